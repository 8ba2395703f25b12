"""All gradients off the subspace of one network as one exact statistic (F14, F19 in docs/theory.md)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from subspace_adv.contracts import Model
from subspace_adv.receptive_fields import Dense

_DEPENDENT = 1e-6  # of the largest variance: where less is left of a value, those before it tell all, rounding apart


class Whitened(NamedTuple):
    """Squares of independent normal numbers, in units of the variance of the first layer's frozen weights."""

    squares: jax.Array  # (), their sum
    rank: jax.Array  # (), how many values, each of one or more numbers, are linearly independent


def whitened(weights: jax.Array, values: jax.Array) -> Whitened:
    """Of values Y = A Z (n, l), where Z (k, l) is normal and A (n, k) is known: tr(Yᵀ (A Aᵀ)⁺ Y), and the rank of A.

    Value by value, that of which most is left unexplained first: what those before tell of it is taken off, and the
    rest, over its own deviation, is independent of them (Gram and Schmidt). As many as the rank of A are so taken.

    Args:
        weights: A.
        values: Y.
    """
    least = _DEPENDENT * jnp.max(jnp.sum(weights**2, axis=1))

    def take(_: int, carry: tuple) -> tuple:
        rows, left, squares, rank = carry
        variances = jnp.sum(rows**2, axis=1)
        first = jnp.argmax(variances)
        counts = variances[first] > least
        deviation = jnp.sqrt(jnp.where(counts, variances[first], 1))
        direction, innovation = rows[first] / deviation, left[first] / deviation
        shares = rows @ direction
        rows = jnp.where(counts, rows - shares[:, None] * direction[None], 0)
        left = left - shares[:, None] * innovation[None]
        return rows, left, squares + jnp.where(counts, jnp.sum(innovation**2), 0), rank + counts.astype(rank.dtype)

    start = weights, values, jnp.zeros((), values.dtype), jnp.zeros((), values.dtype)
    _, _, squares, rank = jax.lax.fori_loop(0, min(weights.shape), take, start)
    return Whitened(squares, rank)


def whitened_gradients(
    model: Model, network: Any, sensitivities: jax.Array, complement: jax.Array, frozen: jax.Array | None, unseen: int
) -> Whitened:
    """Of a network's off gradients at all points, but for what of them training made; `rank` is of single numbers.

    Args:
        model: kind of the network.
        network: its parameters.
        sensitivities: a(x) at the points, (n, k).
        complement: orthonormal basis (d, l) of the complement of the data's subspace.
        frozen: projection (fan-in, fan-in) on what no patch of the data spans; read of convolutions.
        unseen: dimensions off the subspace that the coordinates leave out, as no weight has a part there.
    """
    if isinstance(model.fields, Dense):
        gradients = jax.vmap(lambda a: model.pulled_back(network, a) @ complement)(sensitivities)
        found = whitened(sensitivities, gradients)
        return found._replace(rank=found.rank * (complement.shape[1] + unseen))
    if frozen is None:
        raise ValueError("frozen: of convolutions it must be told what no patch of the data spans")
    weight, _ = model.first(network)
    never_learned = model.with_first_weight(network, weight @ frozen)
    values = jax.vmap(lambda a: model.pulled_back(never_learned, a) @ complement)(sensitivities)
    patches = model.fields.patches(complement.T) @ frozen  # (l, places, fan-in)
    a = sensitivities.reshape(len(sensitivities), patches.shape[1], -1)  # (n, places, filters)
    weights = jnp.einsum("npc,lpq->nlcq", a, patches)
    return whitened(weights.reshape(values.size, -1), values.reshape(-1, 1))
