"""The three norms of a perturbation: length, dual, steepest direction and projection on a ball."""

import difflib
from typing import Literal, get_args

import jax
import jax.numpy as jnp

Norm = Literal["l2", "linf", "l1"]

_THRESHOLD_STEPS = 4  # of Newton's iteration for the L1 threshold; what is left is scaled into the ball


def check_norm(norm: Norm) -> None:
    """Refuse what is not the name of a norm.

    Raises:
        ValueError: naming the nearest one.
    """
    known = get_args(Norm)
    if norm not in known:
        close = difflib.get_close_matches(str(norm).lower(), known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
        raise ValueError(f"norm {norm!r}: there is none of this name; {hint}")


def length(v: jax.Array, norm: Norm) -> jax.Array:
    """Norm of the vectors (..., r), (...)."""
    check_norm(norm)
    if norm == "l2":
        return jnp.linalg.norm(v, axis=-1)
    return jnp.max(jnp.abs(v), axis=-1, initial=0) if norm == "linf" else jnp.sum(jnp.abs(v), axis=-1)


def dual_length(v: jax.Array, norm: Norm) -> jax.Array:
    """Dual norm: the most that v·c can be for c (..., r) of norm 1."""
    check_norm(norm)
    dual: dict[Norm, Norm] = {"l2": "l2", "linf": "l1", "l1": "linf"}
    return length(v, dual[norm])


def unit(v: jax.Array, norm: Norm) -> jax.Array:
    """The vectors (..., r) scaled to norm 1; zeros stay zeros, and so do vectors that are not finite."""
    size = length(v, norm)[..., None]
    usable = (size > 0) & jnp.isfinite(size)
    return jnp.where(usable, v / jnp.where(usable, size, 1), 0)


def steepest(v: jax.Array, norm: Norm) -> jax.Array:
    """Vectors (..., r) of norm 1 with the largest v·c; zeros where v is zero."""
    check_norm(norm)
    if norm == "l2":
        return unit(v, norm)
    if norm == "linf":
        return jnp.sign(v)
    largest = jnp.argmax(jnp.abs(v), axis=-1, keepdims=True)
    return jnp.where(jnp.broadcast_to(jnp.arange(v.shape[-1]), v.shape) == largest, jnp.sign(v), 0)


def project(v: jax.Array, radius: jax.Array, norm: Norm) -> jax.Array:
    """Points of the balls of radii (...) nearest, in L2, to v (..., r); in L1 to a good approximation in the ball."""
    check_norm(norm)
    radius = radius[..., None]
    if norm == "linf":
        return jnp.clip(v, -radius, radius)
    shrunk = v
    if norm == "l1":
        size = jnp.abs(v)

        def newton(_: int, threshold: jax.Array) -> jax.Array:
            above = size > threshold
            excess = jnp.sum(jnp.where(above, size, 0), axis=-1, keepdims=True) - radius
            return jnp.maximum(
                threshold, excess / jnp.maximum(jnp.sum(above, axis=-1, keepdims=True, dtype=v.dtype), 1)
            )

        threshold = jax.lax.fori_loop(0, min(_THRESHOLD_STEPS, v.shape[-1]), newton, jnp.zeros_like(radius))
        shrunk = jnp.sign(v) * jnp.maximum(size - threshold, 0)
    size = length(shrunk, norm)[..., None]
    return shrunk * jnp.minimum(1, radius / jnp.where(size > 0, size, 1))
