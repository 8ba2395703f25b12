"""Labelled points on a low-dimensional subspace, drawn on the host in float64 from a data seed.

Points are held by their coordinates in the linear span of their subspace, so that nothing here grows with the ambient
dimension; `span_basis` tells where that span lies.
"""

from typing import Literal, NamedTuple

import numpy as np

from subspace_adv.subspace import Subspace, axis_aligned, orthonormal

Kind = Literal["line", "chessboard", "subspace"]
Basis = Literal["random", "axis-aligned"]
Distribution = Literal["gaussian", "sphere"]
Labels = Literal["random", "halfspace", "clusters"]

CLUSTER_SPREAD = 0.1
"""Standard deviation, per coordinate, of a point around its cluster's centre (centres have norm √k)."""

HELDOUT = 16
"""Held-out points of every dataset: drawn from the training points' law, or beside them, and never trained on."""

# Streams of a data seed: none of them depends on what another one draws, or how much of it.
_POINTS, _SIGNS, _BASIS, _HELDOUT, _HYPERPLANE, _CENTRES, _HELDOUT_CENTRES = range(7)


class Shape(NamedTuple):
    """Sizes of a dataset; static and hashable."""

    samples: int  # n
    ambient_dim: int  # d
    subspace_dim: int  # k
    span_dim: int  # r, of the linear span of the subspace: k, or k + 1 where it is affine


FIXED_SHAPES = {"line": Shape(7, 2, 1, 1), "chessboard": Shape(25, 3, 2, 3)}
"""Shapes of the kinds that have no choice of them."""


class Data(NamedTuple):
    """Training points, the subspace they lie in, and further points of it, in coordinates of its linear span."""

    x: np.ndarray  # (n, r) float32
    y: np.ndarray  # (n,) float32, −1 or +1
    subspace: Subspace  # float64 bases, (r, k) and (r, r − k)
    heldout: np.ndarray  # (HELDOUT, r) float32


def line() -> Data:
    """Seven points (t, t), t = −1, −2/3, …, 1, with alternating labels: a line in the plane.

    Held out: points with t uniform on [−1, 1].
    """
    t = np.linspace(-1.0, 1.0, 7)
    labels = np.where(np.arange(7) % 2 == 0, -1, 1)
    heldout = np.random.default_rng(0).uniform(-1, 1, (HELDOUT, 1))
    return _data(np.sqrt(2) * t[:, None], labels, axis_aligned(1, 1), np.sqrt(2) * heldout)


def chessboard() -> Data:
    """The 5 × 5 grid over the unit square at height z = ½, labelled like a chessboard: a plane in R³.

    Held out: points uniform on that square.
    """
    row, column = np.divmod(np.arange(25), 5)
    x = np.stack([row / 4, column / 4, np.full(25, 0.5)], axis=1)
    labels = np.where((row + column) % 2 == 0, 1, -1)
    square = np.random.default_rng(0).uniform(0, 1, (HELDOUT, 2))
    heldout = np.concatenate([square, np.full((HELDOUT, 1), 0.5)], axis=1)
    return _data(x, labels, axis_aligned(3, 2), heldout)


def random_subspace(
    *, subspace_dim: int, samples: int, distribution: Distribution, labels: Labels, data_seed: int
) -> Data:
    """Points on a k-dimensional linear subspace, wherever `span_basis` places it.

    Held out: fresh draws of the same law.

    Args:
        subspace_dim: k, the dimension of the subspace.
        samples: n, the number of points.
        distribution: coordinates "gaussian" (standard normal) or on the "sphere" of radius √k.
        labels: "random" signs; "halfspace", the side of a random hyperplane of the subspace through 0; or
            "clusters", points normal around min(2k, n) centres ±√k·eⱼ in random order, with standard deviation
            `CLUSTER_SPREAD` in each coordinate; every other centre is of each label.
        data_seed: seed of all draws. Points and labels are the first n of any number of them.
    """
    k = subspace_dim
    coordinates = _rng(data_seed, _POINTS).standard_normal((samples, k))
    heldout = _rng(data_seed, _HELDOUT).standard_normal((HELDOUT, k))
    if labels == "clusters":
        centres = _centres(k, data_seed)
        some = _rng(data_seed, _HELDOUT_CENTRES).integers(min(2 * k, samples), size=HELDOUT)
        coordinates = centres[np.arange(samples) % (2 * k)] + CLUSTER_SPREAD * coordinates
        heldout = centres[some] + CLUSTER_SPREAD * heldout
    if distribution == "sphere":
        coordinates, heldout = (
            points * (np.sqrt(k) / np.linalg.norm(points, axis=1, keepdims=True)) for points in (coordinates, heldout)
        )
    y = subspace_labels(subspace_dim=k, samples=samples, labels=labels, data_seed=data_seed)
    return _data(coordinates, y, axis_aligned(k, k), heldout)


def subspace_labels(*, subspace_dim: int, samples: int, labels: Labels, data_seed: int) -> np.ndarray:
    """The labels of `random_subspace` alone, (n,), −1 or +1; they do not depend on the distribution of the points."""
    if labels == "clusters":
        return np.where(np.arange(samples) % (2 * subspace_dim) % 2 == 0, 1, -1)
    if labels == "halfspace":
        coordinates = _rng(data_seed, _POINTS).standard_normal((samples, subspace_dim))
        return np.where(coordinates @ _rng(data_seed, _HYPERPLANE).standard_normal(subspace_dim) >= 0, 1, -1)
    return np.where(_rng(data_seed, _SIGNS).random(samples) < 0.5, 1, -1)


def _centres(k: int, data_seed: int) -> np.ndarray:
    """The centres ±√k·eⱼ of clusters in random order, (2k, k); every other one carries the label +1."""
    centres = np.sqrt(k) * np.concatenate([np.eye(k), -np.eye(k)])
    return _rng(data_seed, _CENTRES).permutation(centres)


def span_basis(kind: Kind, *, ambient_dim: int, subspace_dim: int, basis: Basis, data_seed: int) -> np.ndarray:
    """Orthonormal basis Q (d, r) of the span that a dataset's coordinates refer to: points are x Qᵀ in R^d; float64.

    Args:
        kind: of the dataset; the other arguments describe kind "subspace".
        ambient_dim: d, the dimension of the space.
        subspace_dim: k, the dimension of the subspace.
        basis: "random" (uniform among k-dimensional subspaces) or "axis-aligned" (the first k axes).
        data_seed: seed of the draw.

    Raises:
        ValueError: if k > d.
    """
    if kind == "line":
        return np.full((2, 1), np.sqrt(0.5))
    if kind == "chessboard":
        return np.eye(3)
    if subspace_dim > ambient_dim:
        raise ValueError(f"subspace_dim {subspace_dim} is over ambient_dim {ambient_dim}")
    if basis == "axis-aligned":
        return np.eye(ambient_dim, subspace_dim)
    return orthonormal(_rng(data_seed, _BASIS, ambient_dim).standard_normal((ambient_dim, subspace_dim)))


def _rng(data_seed: int, *stream: int) -> np.random.Generator:
    return np.random.default_rng([data_seed, *stream])


def _data(x: np.ndarray, y: np.ndarray, subspace: Subspace, heldout: np.ndarray) -> Data:
    return Data(np.asarray(x, np.float32), np.asarray(y, np.float32), subspace, np.asarray(heldout, np.float32))
