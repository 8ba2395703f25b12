"""The one direction off the subspace that serves for every point (F4 in docs/theory.md), and a random one beside it."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import random

from subspace_adv.attacks.crossing import AttackResult, around, prepared, shortest
from subspace_adv.network import Network, chi_of_normal, output
from subspace_adv.norms import unit


def universal_direction(network: Network, region: jax.Array) -> jax.Array:
    """The one vector of a region, of L2 length 1, meant to lower the output at all points of the subspace.

    It does so to first order with high probability in a large codimension, and not at every point always; a ray
    that never crosses zero is found out by its exact crossing.

    Args:
        network: weight (m, d).
        region: orthonormal basis (d, r), of the orthogonal complement of the subspace.

    Returns:
        (d,), the direction of P(Σ_{uᵢ<0} wᵢ − Σ_{uᵢ>0} wᵢ); zeros if that vanishes.
    """
    return region @ unit((-jnp.sign(network.head) @ network.weight) @ region, "l2")


def universal_attack(
    network: Network,
    x: jax.Array,
    region: jax.Array,
    *,
    norm: str = "l2",
    steps: int = 0,
    restarts: int = 1,
    key: jax.Array | None = None,
) -> AttackResult:
    """Move x along ±`universal_direction`, whichever lowers |N(x)|, to the exact crossing.

    Nothing is searched: `steps`, `restarts` and `key` are there because every attack has them.
    """
    del steps, restarts, key
    network, x, region = prepared(network, x, region, norm)
    rays = around(network, x, region)
    sign = jnp.where(output(network, x) < 0, -1, 1).astype(x.dtype)
    direction = sign * universal_direction(network, region) @ region
    _, result = shortest(rays, region, direction[None], norm)
    return result


def random_direction(key: jax.Array, region: jax.Array, unseen: int = 0) -> jax.Array:
    """A uniformly random vector of a region, of L2 length 1, to compare `universal_direction` with.

    Args:
        key: typed PRNG key.
        region: orthonormal basis (d, r).
        unseen: further dimensions of the region that the coordinates leave out, as no weight has a part there.

    Returns:
        (d,), the part of the vector that the coordinates hold: shorter than 1 where some are unseen.
    """
    region = jnp.asarray(region)
    seen = random.normal(key, region.shape[1:], region.dtype)
    if not unseen:
        return region @ unit(seen, "l2")
    rest = chi_of_normal(random.normal(random.fold_in(key, 0), (1,), region.dtype), np.array([unseen]))
    return region @ (seen / jnp.sqrt(jnp.sum(seen**2) + rest[0] ** 2))


def descent_distance(network: Network, x: jax.Array, direction: jax.Array) -> jax.Array:
    """Exact distance to a flip of x along ±direction, with the sign that lowers |N| to first order at x.

    Args:
        network: weight (m, d).
        x: point (d,).
        direction: vector (d,), in whose lengths the distance is.

    Returns:
        (), a flip whatever the rounding; inf where that ray never flips x.
    """
    rays = around(network, x, direction[:, None])
    _, slope = rays.value_and_gradient(jnp.zeros(1, x.dtype))
    return rays.crossing(jnp.where(slope > 0, -jnp.ones_like(slope), 1)).upper
