"""Linear and affine subspaces of R^d as orthonormal bases, and the regions a perturbation may lie in."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Region = Literal["off", "on", "full"]
REGIONS: tuple[Region, ...] = ("off", "on", "full")


class Subspace(NamedTuple):
    """Directions of the data's subspace M and of its orthogonal complement.

    An affine subspace is described by its direction space: perturbations do not see the offset.
    """

    basis: jax.Array  # (d, k), orthonormal columns spanning the directions of M
    complement: jax.Array  # (d, d - k), orthonormal columns spanning the orthogonal complement


def from_directions(directions: np.ndarray) -> Subspace:
    """Subspace spanned by the columns of `directions` (d, k), which must be linearly independent; float64."""
    k = directions.shape[1]
    rotation, triangle = np.linalg.qr(np.asarray(directions, np.float64), mode="complete")
    # QR leaves the signs of the columns free; positive diagonals make the basis unique.
    rotation[:, :k] *= np.sign(np.diag(triangle))
    return Subspace(rotation[:, :k], rotation[:, k:])  # pyright: ignore[reportArgumentType]


def axis_aligned(ambient_dim: int, subspace_dim: int) -> Subspace:
    """Span of the first `subspace_dim` coordinate axes of R^ambient_dim."""
    identity = np.eye(ambient_dim)
    return Subspace(identity[:, :subspace_dim], identity[:, subspace_dim:])  # pyright: ignore[reportArgumentType]


def region_basis(subspace: Subspace, region: Region) -> jax.Array:
    """Orthonormal basis (d, r) of the directions a perturbation may take.

    Args:
        subspace: the data's subspace M.
        region: "off" (orthogonal to M), "on" (within M) or "full" (anywhere in R^d).

    Returns:
        Columns spanning the region: r = d - k, k or d; the coordinate axes for "full".
    """
    if region == "off":
        return subspace.complement
    if region == "on":
        return subspace.basis
    return jnp.eye(len(subspace.basis), dtype=subspace.basis.dtype)


def region_dim(region: Region, ambient_dim: int, subspace_dim: int) -> int:
    """Dimension r of a region."""
    return {"off": ambient_dim - subspace_dim, "on": subspace_dim, "full": ambient_dim}[region]
