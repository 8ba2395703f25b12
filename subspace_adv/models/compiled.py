"""Distances to a flip of a two-layer network by the C++ kernel, on the CPU: of points and along rays, in one call.

The kernel crosses a ray as `two_layer` does, attacks a point as `attacks` does, certifies it as `concave` does, and
takes planes exactly as `planes` does. It does so point by point, each with as much effort as it needs.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import random

from subspace_adv.models import fused
from subspace_adv.network import Network, preactivations
from subspace_adv.norms import NORMS

ATTACKS = ("fmn", "fab")
"""The attacks that the kernel makes, by their names in `attacks.ATTACKS`."""


def serves(norm: str, x: jax.Array, attacks: tuple[str, ...]) -> bool:
    """Whether the kernel measures distances in a norm, from points as numbers of this type, by these attacks."""
    known = any(_kinds(norm)) and set(attacks) == set(ATTACKS)
    return known and x.dtype == jnp.float64 and fused.unavailable() is None


def crosses(z: jax.Array) -> bool:
    """Whether the kernel crosses rays of neurons whose preactivations are numbers of this type."""
    return z.dtype == jnp.float64 and fused.unavailable() is None


def crossing(z: jax.Array, rate: jax.Array, head: jax.Array, offset: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The ends of an interval that holds the first zero along a ray; arguments as of `two_layer.first_crossing`."""
    shapes = [jax.ShapeDtypeStruct((), z.dtype)] * 2
    lower, upper = jax.ffi.ffi_call(fused.CROSS, shapes, vmap_method="broadcast_all")(z, rate, head, offset)
    return lower, upper


def _kinds(norm: str) -> tuple[bool, bool, bool]:
    """Which of the norms that the kernel knows, in its order, a norm is."""
    row = NORMS[norm]
    return row.is_euclidean, row.is_cubic, row.is_taxicab


def bracket(
    network: Network,
    x: jax.Array,
    basis: jax.Array,
    keys: jax.Array,
    toward: jax.Array,
    *,
    norm: str,
    steps: int,
    restarts: int,
    gap: float,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Distances to a flip of every point within a region of two dimensions or more.

    Args:
        network: weight (m, d), float64.
        x: points (n, d).
        basis: (d, r) of all points, or (n, d, r).
        keys: typed PRNG keys (n,) of the attacks' random starts.
        toward: (n, d), of every point another one that the network classifies otherwise; itself where none is known.
        norm: of the distances.
        steps: gradient steps of an attack's run.
        restarts: its runs.
        gap: a bracket whose ends differ by a smaller share is tightened no further.

    Returns:
        Bounds from below and above (n,), and the perturbations (n, d) of the latter; zeros where none was found.
    """
    dimension = basis.shape[-1]
    bases = basis if basis.ndim == 3 else basis[None]
    shapes = [jax.ShapeDtypeStruct(shape, x.dtype) for shape in ((len(x),), (len(x),), (len(x), dimension))]
    call = jax.ffi.ffi_call(fused.BRACKET, shapes, vmap_method="broadcast_all")
    # Sums of d + 1 products are off by as many ulps of the products' sizes at most.
    ulps = (x.shape[1] + 2) * float(jnp.finfo(x.dtype).eps)
    sizes = jax.tree.map(jnp.abs, network)
    lower, distance, place = call(
        network.head,
        network.head_bias,
        preactivations(network, x),
        jnp.einsum("md,qdr->qmr", network.weight, bases),
        ulps * preactivations(sizes, jnp.abs(x)),
        ulps * jnp.linalg.norm(network.weight, axis=1),
        random.key_data(keys),
        _times(toward - x, bases),
        norm=np.int64(_kinds(norm).index(True)),
        steps=np.int64(steps),
        restarts=np.int64(restarts),
        gap=np.float64(gap),
    )
    return lower, distance, _times(place, bases.mT)


def _times(rows: jax.Array, matrices: jax.Array) -> jax.Array:
    """Vectors (n, d) times a matrix (1, d, r) for all of them, or (n, d, r), one a vector."""
    if len(matrices) == 1:
        return rows @ matrices[0]
    return jnp.einsum("nd,ndr->nr", rows, matrices)
