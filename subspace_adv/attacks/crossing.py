"""How every attack ends: with the exact crossings of some rays, the shortest of which is the flip."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from subspace_adv.contracts import Local
from subspace_adv.norms import length, scaled

_LEAST = 2.0**-100  # a distance that counts as 0 but is none, and whose square is a number


class AttackResult(NamedTuple):
    """Outcome of an attack on one point."""

    delta: jax.Array  # (d,), the perturbation; zeros where the attack failed
    distance: jax.Array  # (), its norm; inf where the attack failed
    is_adv: jax.Array  # (), bool


def shortest(local: Local, basis: jax.Array, directions: jax.Array, norm: str) -> tuple[jax.Array, AttackResult]:
    """The least perturbation that flips along any of some rays.

    Args:
        local: the signed output around a point.
        basis: (d, r), what its coordinates mean.
        directions: (k, r), of any length; zeros and what is not finite are rays that lead nowhere.
        norm: of the perturbation in R^d.

    Returns:
        A lower bound, a rounding error below the least crossing of these rays, and the flip.
    """
    coordinates = scaled(directions, length(directions @ basis.T, norm))
    crossing = jax.vmap(local.crossing)(coordinates)
    best = jnp.argmin(crossing.upper)
    distance = jnp.maximum(crossing.upper[best], _LEAST)
    is_adv = jnp.isfinite(distance)
    result = AttackResult(jnp.where(is_adv, distance, 0) * (basis @ coordinates[best]), distance, is_adv)
    return jnp.min(crossing.lower), result
