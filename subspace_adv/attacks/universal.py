"""Directions that serve for all points: a model's universal one (F4 in docs/theory.md), and a random one beside it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import random

from subspace_adv import streams
from subspace_adv.chi import chi_of_normal
from subspace_adv.contracts import Model
from subspace_adv.norms import unit


def universal_direction(model: Model, network: Any, weights: jax.Array, basis: jax.Array) -> jax.Array:
    """The one vector of a region, of L2 length 1, meant to lower the output at all points (F4 in docs/theory.md).

    It does so to first order with high probability in a large codimension, and not at every point always; a ray
    that never crosses zero is found out by its exact crossing.

    Args:
        model: kind of the network.
        network: parameters of the model's.
        weights: ā (k,), of the first layer's preactivations.
        basis: orthonormal (d, r), of the orthogonal complement of the subspace.

    Returns:
        (d,), the direction of −P Wᵀā, with two layers that of P(Σ_{uᵢ<0} wᵢ − Σ_{uᵢ>0} wᵢ); zeros if that vanishes.
    """
    return basis @ unit(model.pulled_back(network, -weights) @ basis, "l2")


def universal_descent(
    model: Model, network: Any, x: jax.Array, basis: jax.Array, weights: jax.Array | None = None
) -> jax.Array:
    """Coordinates (r,), within a basis (d, r), of ± the universal direction, whichever lowers |N| at x (d,).

    The weights ā are those of some points; without them, those of x alone.
    """
    sign = jnp.where(model.output(network, x) < 0, -1, 1).astype(x.dtype)
    if weights is None:
        weights = model.universal_weights(network, model.sensitivity(network, x[None]))
    return sign * universal_direction(model, network, weights, basis) @ basis


def random_direction(key: jax.Array, basis: jax.Array, unseen: int = 0) -> jax.Array:
    """A uniformly random vector of a region, of L2 length 1, to compare the universal one with.

    Args:
        key: typed PRNG key.
        basis: orthonormal (d, r).
        unseen: further dimensions of the region that the coordinates leave out, as no weight has a part there.

    Returns:
        (d,), the part of the vector that the coordinates hold: shorter than 1 where some are unseen.
    """
    basis = jnp.asarray(basis)
    seen = random.normal(key, basis.shape[1:], basis.dtype)
    if not unseen:
        return basis @ unit(seen, "l2")
    rest = chi_of_normal(random.normal(streams.unseen_key(key), (1,), basis.dtype), np.array([unseen]))
    return basis @ (seen / jnp.sqrt(jnp.sum(seen**2) + rest[0] ** 2))
