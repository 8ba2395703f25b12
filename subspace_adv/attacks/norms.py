"""The three norms of a perturbation: length, dual, steepest direction and projection on a ball."""

from typing import Literal

import jax
import jax.numpy as jnp

Norm = Literal["l2", "linf", "l1"]

_THRESHOLD_STEPS = 12  # Newton's iteration for the L1 threshold ends in a few; each can only come closer


def length(v: jax.Array, norm: Norm) -> jax.Array:
    """Norm of the vectors (..., r), (...)."""
    if norm == "l2":
        return jnp.linalg.norm(v, axis=-1)
    return jnp.max(jnp.abs(v), axis=-1, initial=0) if norm == "linf" else jnp.sum(jnp.abs(v), axis=-1)


def dual_length(v: jax.Array, norm: Norm) -> jax.Array:
    """Dual norm: the most that v·c can be for c (..., r) of norm 1."""
    dual: dict[Norm, Norm] = {"l2": "l2", "linf": "l1", "l1": "linf"}
    return length(v, dual[norm])


def unit(v: jax.Array, norm: Norm) -> jax.Array:
    """The vector (r,) scaled to norm 1; zeros stay zeros, and so do vectors that are not finite."""
    size = length(v, norm)
    usable = (size > 0) & jnp.isfinite(size)
    return jnp.where(usable, v / jnp.where(usable, size, 1), 0)


def steepest(v: jax.Array, norm: Norm) -> jax.Array:
    """A vector (r,) of norm 1 with the largest v·c; zeros where v is zero."""
    if norm == "l2":
        return unit(v, norm)
    if norm == "linf":
        return jnp.sign(v)
    return jnp.where(jnp.arange(len(v)) == jnp.argmax(jnp.abs(v)), jnp.sign(v), 0)


def project(v: jax.Array, radius: jax.Array, norm: Norm) -> jax.Array:
    """Point of the ball of a radius nearest, in L2, to v (r,); in L1 to a good approximation within the ball."""
    if norm == "l2":
        return v * jnp.minimum(1, radius / jnp.linalg.norm(v))
    if norm == "linf":
        return jnp.clip(v, -radius, radius)
    size = jnp.abs(v)

    def newton(_: int, threshold: jax.Array) -> jax.Array:
        above = size > threshold
        excess = jnp.sum(jnp.where(above, size, 0)) - radius
        return jnp.maximum(threshold, excess / jnp.maximum(jnp.sum(above.astype(v.dtype)), 1))

    threshold = jax.lax.fori_loop(0, min(_THRESHOLD_STEPS, len(v)), newton, jnp.zeros((), v.dtype))
    shrunk = jnp.sign(v) * jnp.maximum(size - threshold, 0)
    return jnp.where(jnp.sum(size) <= radius, v, shrunk * jnp.minimum(1, radius / jnp.sum(jnp.abs(shrunk))))
