"""Linear and affine subspaces of R^d as orthonormal bases, and the regions a perturbation may lie in."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from subspace_adv.errors import UserError, brief

Region = Literal["off", "normal", "tangent", "on", "full"]
PARTS: dict[Region, tuple[Region, ...]] = {
    "off": (),
    "normal": ("off",),
    "tangent": (),
    "on": ("tangent",),
    "full": ("off", "normal", "tangent", "on"),
}
"""Of every region the others that lie within it, which stand before it."""
REGIONS: tuple[Region, ...] = tuple(PARTS)
LINEAR_REGIONS: tuple[Region, ...] = ("off", "on", "full")
"""Those of a linear subspace; where the data's manifold is not curved, `tangent` is `on`, and `normal` is `off`."""


class Subspace(NamedTuple):
    """Directions of the data's subspace M and of its orthogonal complement.

    An affine subspace is described by its direction space: perturbations do not see the offset. Where every point has a
    subspace of its own, as what is tangent to a curved manifold at it, there is a leading axis of points.
    """

    basis: jax.Array  # (d, k), orthonormal columns spanning the directions of M
    complement: jax.Array  # (d, d - k), orthonormal columns spanning the orthogonal complement

    @classmethod
    def from_directions(cls, directions: np.ndarray) -> "Subspace":
        """The subspace spanned by the columns of `directions` (d, k); float64.

        Raises:
            UserError: if they are no matrix of linearly independent columns.
        """
        given = np.asarray(directions)
        if given.ndim != 2 or given.shape[1] > given.shape[0] or given.dtype.kind not in "fiu":
            told = f"{given.dtype} of shape {given.shape}"
            raise UserError(f"directions: {told}: must be a real matrix (d, k) of columns, of which k ≤ d")
        given = given.astype(np.float64)
        if not np.isfinite(given).all() or np.linalg.matrix_rank(given) < given.shape[1]:
            raise UserError("directions: must be finite, and linearly independent columns")
        rotation, _ = np.linalg.qr(given, mode="complete")
        return cls(orthonormal(given), rotation[:, given.shape[1] :])  # pyright: ignore[reportArgumentType]

    @classmethod
    def axis_aligned(cls, ambient_dim: int, subspace_dim: int) -> "Subspace":
        """Span of the first `subspace_dim` coordinate axes of R^ambient_dim.

        Raises:
            UserError: if they are no whole numbers, or there are not so many axes.
        """
        for name, value in (("ambient_dim", ambient_dim), ("subspace_dim", subspace_dim)):
            if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 0:
                raise UserError(f"axis_aligned: {name} = {brief(value)}: must be a whole number, and at least 0")
        if subspace_dim > ambient_dim:
            raise UserError(f"axis_aligned: subspace_dim = {subspace_dim}: must be at most ambient_dim = {ambient_dim}")
        identity = np.eye(ambient_dim)
        return cls(identity[:, :subspace_dim], identity[:, subspace_dim:])  # pyright: ignore[reportArgumentType]


def orthonormal(directions: np.ndarray) -> np.ndarray:
    """Columns of `directions` (d, k) made orthonormal from first to last, by a triangle of positive diagonal."""
    basis, triangle = np.linalg.qr(np.asarray(directions, np.float64))
    return basis * np.where(np.diag(triangle) < 0, -1, 1)


@jax.custom_batching.sequential_vmap
def factors(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Orthonormal columns (d, c) and triangle (c, c) that a matrix (d, c) is the product of; c ≤ d, else both cut to d.

    Of several matrices one after the other: LAPACK, as jaxlib calls it for many at once, waits for threads of XLA's
    pool, and where as many programs do so as there are threads, for ever.
    """
    columns, triangle = jnp.linalg.qr(matrix)
    return columns, triangle


@jax.custom_batching.sequential_vmap
def triangular_factor(matrix: jax.Array) -> jax.Array:
    """The triangle of `factors` alone."""
    return jnp.linalg.qr(matrix, mode="r")


def in_ambient(subspace: Subspace, span: Subspace) -> Subspace:
    """A subspace (r, k) given in coordinates of the span that holds it, in those of R^d.

    Args:
        subspace: within the span, (r, k) and (r, r − k), or with a leading axis of points.
        span: (d, r) and (d, d − r).

    Returns:
        (d, k) and (d, d − k), or with that axis; of coordinate axes where both arguments are.
    """
    return Subspace(span.basis @ subspace.basis, _joined(span.basis @ subspace.complement, span.complement, axis=-1))


def beside_span(subspace: Subspace, dimension: int) -> Subspace:
    """A subspace (r, k) given in coordinates of its span, with `dimension` further coordinates orthogonal to the span.

    Returns:
        (r + dimension, k) and (r + dimension, r − k + dimension); arguments and results may have a leading axis.
    """
    r = subspace.basis.shape[-2]
    beside = jnp.eye(r + dimension, dimension, -r, subspace.basis.dtype)
    basis, within = (
        _joined(part, jnp.zeros((dimension, part.shape[-1]), part.dtype), axis=-2)
        for part in (subspace.basis, subspace.complement)
    )
    return Subspace(basis, _joined(within, beside, axis=-1))


def _joined(own: jax.Array, of_all: jax.Array, axis: int) -> jax.Array:
    """A matrix, or one for each point, and beside or below it another one that is of all points."""
    return jnp.concatenate([own, jnp.broadcast_to(of_all, (*own.shape[:-2], *of_all.shape))], axis=axis)


def canonical_coordinates(weight: jax.Array, basis: jax.Array) -> jax.Array:
    """Coordinates of a network's weights in which no L2 measurement changes (F6 in docs/theory.md).

    Distances and gradients off the span depend on the weights W there only through W Π Wᵀ, and so on the triangular
    factor of W Π alone.

    Args:
        weight: W (m, d).
        basis: of the span, (d, r), orthonormal.

    Returns:
        (m, r + min(m, d − r)): W in the span's coordinates, then the lower-triangular factor of what is off it.
    """
    within = weight @ basis
    triangle = triangular_factor((weight - within @ basis.T).T)
    return jnp.concatenate([within, triangle[: weight.shape[1] - basis.shape[1]].T], axis=1)


def region_basis(subspace: Subspace, region: Region, tangent: Subspace | None = None) -> jax.Array:
    """Orthonormal basis (d, r) of the directions a perturbation may take.

    Args:
        subspace: the data's subspace M.
        region: "off" (orthogonal to M), "on" (within M), "full" (anywhere in R^d), or "tangent" or "normal", to the
            manifold within M that the data are on.
        tangent: what is tangent to it at each point, (n, d, t) and (n, d, d − t), if it is curved.

    Returns:
        Columns spanning the region: r = d - k, k or d; the coordinate axes for "full"; for a curved manifold's
        "tangent" and "normal" (n, d, r), a basis of each point.
    """
    if region == "full":
        own = np if isinstance(subspace.basis, np.ndarray) else jnp  # which outside of a program may lack float64
        return own.eye(len(subspace.basis), dtype=subspace.basis.dtype)  # pyright: ignore[reportReturnType]
    manifold = subspace if tangent is None else tangent
    return {
        "off": subspace.complement,
        "normal": manifold.complement,
        "tangent": manifold.basis,
        "on": subspace.basis,
    }[region]


def region_dim(region: Region, ambient_dim: int, subspace_dim: int, tangent_dim: int | None = None) -> int:
    """Dimension r of a region; `tangent_dim` is that of a curved manifold."""
    t = subspace_dim if tangent_dim is None else tangent_dim
    return {
        "off": ambient_dim - subspace_dim,
        "normal": ambient_dim - t,
        "tangent": t,
        "on": subspace_dim,
        "full": ambient_dim,
    }[region]
