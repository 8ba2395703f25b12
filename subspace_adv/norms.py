"""The norms of a perturbation, a row each: length, dual, steepest direction and projection on a ball."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from subspace_adv.rows import Rows

_THRESHOLD_STEPS = 4  # of Newton's iteration for the L1 threshold; what is left is scaled into the ball


class Norm(NamedTuple):
    """What is known of an Lp norm; its functions take vectors (..., r)."""

    exponent: float  # p; no vector is longer in the norm of a larger one
    dual: str  # name of the norm that is the most that v·c can be for c of this norm 1
    symbol: str  # as figures write it
    length: Callable[[jax.Array], jax.Array]  # (...)
    steepest: Callable[[jax.Array], jax.Array]  # (..., r), of norm 1, with the largest v·c; zeros where v is zero
    project: Callable[[jax.Array, jax.Array], jax.Array]  # on balls of radii (..., 1), about the nearest point

    @property
    def is_euclidean(self) -> bool:
        """Whether it is L2: the same in all orthonormal coordinates."""
        return self.exponent == 2

    @property
    def is_cubic(self) -> bool:
        """Whether it is L∞, whose balls are cubes."""
        return self.exponent == math.inf

    @property
    def is_taxicab(self) -> bool:
        """Whether it is L1, whose balls have their corners on the axes."""
        return self.exponent == 1


def scaled(v: jax.Array, size: jax.Array) -> jax.Array:
    """Vectors over their sizes (...); zeros stay zeros, and vectors whose size is not finite become zeros."""
    size = size[..., None]
    usable = (size > 0) & jnp.isfinite(size)
    return jnp.where(usable, v / jnp.where(usable, size, 1), 0)


def _euclidean(v: jax.Array) -> jax.Array:
    return jnp.linalg.norm(v, axis=-1)


def _sum(v: jax.Array) -> jax.Array:
    return jnp.sum(jnp.abs(v), axis=-1)


def _into_ball(v: jax.Array, radius: jax.Array, length: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """Vectors shortened to the radii (..., 1) where they are longer."""
    size = length(v)[..., None]
    return v * jnp.minimum(1, radius / jnp.where(size > 0, size, 1))


def _largest_coordinate(v: jax.Array) -> jax.Array:
    """The sign of the largest coordinate, where it stands."""
    largest = jnp.argmax(jnp.abs(v), axis=-1, keepdims=True)
    return jnp.where(jnp.broadcast_to(jnp.arange(v.shape[-1]), v.shape) == largest, jnp.sign(v), 0)


def _shrunk(v: jax.Array, radius: jax.Array) -> jax.Array:
    """Coordinates less a threshold, to a good approximation that of the nearest point of the L1 ball."""
    size = jnp.abs(v)

    def newton(_: int, threshold: jax.Array) -> jax.Array:
        above = size > threshold
        excess = jnp.sum(jnp.where(above, size, 0), axis=-1, keepdims=True) - radius
        return jnp.maximum(threshold, excess / jnp.maximum(jnp.sum(above, axis=-1, keepdims=True, dtype=v.dtype), 1))

    threshold = jax.lax.fori_loop(0, min(_THRESHOLD_STEPS, v.shape[-1]), newton, jnp.zeros_like(radius))
    return _into_ball(jnp.sign(v) * jnp.maximum(size - threshold, 0), radius, _sum)


NORMS: Rows[Norm] = Rows(
    "norm",
    {
        "l2": Norm(
            exponent=2,
            dual="l2",
            symbol="$L_2$",
            length=_euclidean,
            steepest=lambda v: scaled(v, _euclidean(v)),
            project=lambda v, radius: _into_ball(v, radius, _euclidean),
        ),
        "linf": Norm(
            exponent=math.inf,
            dual="l1",
            symbol=r"$L_\infty$",
            length=lambda v: jnp.max(jnp.abs(v), axis=-1, initial=0),
            steepest=jnp.sign,
            project=lambda v, radius: jnp.clip(v, -radius, radius),
        ),
        "l1": Norm(
            exponent=1,
            dual="linf",
            symbol="$L_1$",
            length=_sum,
            steepest=_largest_coordinate,
            project=_shrunk,
        ),
    },
)


def length(v: jax.Array, norm: str) -> jax.Array:
    """Norm of the vectors (..., r), (...)."""
    return NORMS[norm].length(v)


def dual_length(v: jax.Array, norm: str) -> jax.Array:
    """Dual norm: the most that v·c can be for c (..., r) of norm 1."""
    return length(v, NORMS[norm].dual)


def unit(v: jax.Array, norm: str) -> jax.Array:
    """The vectors (..., r) scaled to norm 1; zeros stay zeros, and so do vectors that are not finite."""
    return scaled(v, length(v, norm))


def steepest(v: jax.Array, norm: str) -> jax.Array:
    """Vectors (..., r) of norm 1 with the largest v·c; zeros where v is zero."""
    return NORMS[norm].steepest(v)


def project(v: jax.Array, radius: jax.Array, norm: str) -> jax.Array:
    """Points of the balls of radii (...) nearest, in L2, to v (..., r); in L1 to a good approximation in the ball."""
    return NORMS[norm].project(v, radius[..., None])
