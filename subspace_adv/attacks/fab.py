"""Fast adaptive boundary attack (Croce and Hein 2020), DeepFool (Moosavi-Dezfooli et al. 2016) with a way back."""

import jax
import jax.numpy as jnp

from subspace_adv.attacks.crossing import AttackResult, Slice, around, prepared, shortest
from subspace_adv.network import Network
from subspace_adv.norms import dual_length, length, steepest

_OVERSHOOT = 1.05
_BACKWARD = 0.9
_MOST_BIAS = 0.1


def fab_attack(
    network: Network,
    x: jax.Array,
    region: jax.Array,
    *,
    norm: str = "l2",
    steps: int = 40,
    restarts: int = 1,
    key: jax.Array | None = None,
) -> AttackResult:
    """Step onto the boundary of the linearized output again and again, biased towards x; end at the exact crossing.

    Before its first flip, from x, the iteration is DeepFool. It has one start and draws nothing: `restarts` and
    `key` are there because every attack has them. Arguments as in `fmn_attack`.
    """
    del restarts, key
    network, x, region = prepared(network, x, region, norm)
    rays = around(network, x, region)
    _, result = shortest(rays, region, fab_directions(rays, norm=norm, steps=steps), norm)
    return result


def fab_directions(rays: Slice, *, norm: str, steps: int) -> jax.Array:
    """The best flip that `fab_attack` meets around a point, or where it ends without, (1, r)."""
    dtype = rays.z.dtype
    rays = jax.tree.map(lambda a: a.astype(jnp.float32), rays)
    tiny = jnp.finfo(jnp.float32).tiny

    def move(carry: tuple, _: None) -> tuple[tuple, None]:
        c, best, best_size = carry
        value, gradient = rays.value_and_gradient(c)
        slope = dual_length(gradient, norm)
        downhill = -steepest(gradient, norm) / jnp.where(slope > 0, slope, 1)
        from_here, from_x = value, value - gradient @ c  # the linearized output, here and at x
        weight = jnp.minimum(jnp.abs(from_here) / (jnp.abs(from_here) + jnp.abs(from_x) + tiny), _MOST_BIAS)
        step = c + _OVERSHOOT * from_here * downhill
        origin = _OVERSHOOT * from_x * downhill
        c = (1 - weight) * step + weight * origin
        flipped = rays.value(c) <= 0
        size = length(c, norm)
        better = flipped & (size < best_size)
        best, best_size = jnp.where(better, c, best), jnp.where(better, size, best_size)
        return (jnp.where(flipped, _BACKWARD * c, c), best, best_size), None

    start = jnp.zeros(rays.rates.shape[1], rays.z.dtype)
    inf = jnp.full((), jnp.inf, rays.z.dtype)
    (last, best, size), _ = jax.lax.scan(move, (start, start, inf), None, length=steps)
    return jnp.where(jnp.isfinite(size), best, last)[None].astype(dtype)
