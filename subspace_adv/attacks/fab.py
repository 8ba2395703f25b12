"""Fast adaptive boundary attack (Croce and Hein 2020), DeepFool (Moosavi-Dezfooli et al. 2016) with a way back."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from subspace_adv.contracts import Local
from subspace_adv.norms import dual_length, length, steepest

_OVERSHOOT = 1.05  # η of the paper
_BACKWARD = 0.9  # β, the share of a flip's length at which the iteration goes on
_MOST_BIAS = 0.1  # α_max, towards x


class _State(NamedTuple):
    """Where the iteration stands."""

    c: jax.Array  # (r,)
    best: jax.Array  # (r,), the smallest flip met; zeros if none
    size: jax.Array  # (), its norm; inf if none


def fab_directions(local: Local, norm: str, steps: int) -> jax.Array:
    """Step onto the boundary of the linearized output again and again, biased towards x.

    Before its first flip, from x, the iteration is DeepFool. It has one start and draws nothing.

    Args:
        local: the signed output around a point.
        norm: of the perturbation.
        steps: of the iteration.

    Returns:
        The smallest flip that it meets, or where it ends without, (1, r).
    """
    dtype = local.dtype
    local = local.astype(jnp.float32)
    tiny = jnp.finfo(jnp.float32).tiny

    def move(state: _State, _: None) -> tuple[_State, None]:
        c, best, best_size = state
        value, gradient = local.value_and_gradient(c)
        slope = dual_length(gradient, norm)
        downhill = -steepest(gradient, norm) / jnp.where(slope > 0, slope, 1)
        from_here, from_x = value, value - gradient @ c  # the linearized output, here and at x
        weight = jnp.minimum(jnp.abs(from_here) / (jnp.abs(from_here) + jnp.abs(from_x) + tiny), _MOST_BIAS)
        step = c + _OVERSHOOT * from_here * downhill
        origin = _OVERSHOOT * from_x * downhill
        c = (1 - weight) * step + weight * origin
        flipped = local.value(c) <= 0
        size = length(c, norm)
        better = flipped & (size < best_size)
        best, best_size = jnp.where(better, c, best), jnp.where(better, size, best_size)
        return _State(jnp.where(flipped, _BACKWARD * c, c), best, best_size), None

    start = jnp.zeros(local.dimension, local.dtype)
    state = _State(start, start, jnp.full((), jnp.inf, local.dtype))
    state, _ = jax.lax.scan(move, state, None, length=steps)
    return jnp.where(jnp.isfinite(state.size), state.best, state.c)[None].astype(dtype)
