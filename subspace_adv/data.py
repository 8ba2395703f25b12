"""Labelled points on a low-dimensional subspace, drawn on the host in float64 from a data seed."""

from typing import Literal, NamedTuple

import numpy as np

from subspace_adv.subspace import Subspace, axis_aligned, from_directions

Kind = Literal["line", "chessboard", "subspace"]
Basis = Literal["random", "axis-aligned"]
Distribution = Literal["gaussian", "sphere"]
Labels = Literal["random", "halfspace", "clusters"]

CLUSTER_SPREAD = 0.1
"""Standard deviation, per coordinate, of a point around its cluster's centre (centres have norm √k)."""

HELDOUT = 16
"""Held-out points of every dataset: drawn from the training points' law, or beside them, and never trained on."""

FIXED_SHAPES = {"line": (7, 2, 1), "chessboard": (25, 3, 2)}
"""(points, ambient dimension, subspace dimension) of the kinds that have no choice of them."""


class Data(NamedTuple):
    """Training points, the subspace they lie in, and further points of it."""

    x: np.ndarray  # (n, d) float32
    y: np.ndarray  # (n,) float32, −1 or +1
    subspace: Subspace  # float64 bases
    heldout: np.ndarray  # (HELDOUT, d) float32


def line() -> Data:
    """Seven points (t, t), t = −1, −2/3, …, 1, with alternating labels: a line in the plane.

    Held out: points with t uniform on [−1, 1].
    """
    t = np.linspace(-1.0, 1.0, 7)
    labels = np.where(np.arange(7) % 2 == 0, -1, 1)
    heldout = np.random.default_rng(0).uniform(-1, 1, (HELDOUT, 1)) * np.ones(2)
    return _data(np.stack([t, t], axis=1), labels, from_directions(np.ones((2, 1))), heldout)


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
    *,
    ambient_dim: int,
    subspace_dim: int,
    samples: int,
    basis: Basis,
    distribution: Distribution,
    labels: Labels,
    data_seed: int,
) -> Data:
    """Points on a k-dimensional linear subspace of R^d.

    The coordinates within the subspace and the labels depend on everything but `ambient_dim` and `basis`, so
    the same points can be placed in spaces of different dimension. Held out: fresh draws of the same law.

    Args:
        ambient_dim: d, the dimension of the space.
        subspace_dim: k ≤ d, the dimension of the subspace.
        samples: n, the number of points.
        basis: "random" (uniform among k-dimensional subspaces) or "axis-aligned" (the first k axes).
        distribution: coordinates "gaussian" (standard normal) or on the "sphere" of radius √k.
        labels: "random" signs; "halfspace", the side of a random hyperplane of the subspace through 0; or
            "clusters", points around min(2k, n) centres ±√k·eⱼ, half of which carry each label.
        data_seed: seed of all draws.

    Raises:
        ValueError: if k > d.
    """
    if subspace_dim > ambient_dim:
        raise ValueError(f"subspace_dim {subspace_dim} is over ambient_dim {ambient_dim}")
    k = subspace_dim
    points_rng, labels_rng, heldout_rng = (np.random.default_rng([data_seed, stream]) for stream in (0, 1, 3))
    coordinates, heldout = points_rng.standard_normal((samples, k)), heldout_rng.standard_normal((HELDOUT, k))
    y = np.where(labels_rng.random(samples) < 0.5, 1, -1)
    if labels == "clusters":
        count = min(2 * k, samples)
        centres = np.sqrt(k) * np.concatenate([np.eye(k), -np.eye(k)])[:count]
        of_point = np.arange(samples) % count
        coordinates = centres[of_point] + CLUSTER_SPREAD * coordinates
        heldout = centres[heldout_rng.integers(count, size=HELDOUT)] + CLUSTER_SPREAD * heldout
        y = labels_rng.permutation(np.where(np.arange(count) % 2 == 0, 1, -1))[of_point]
    if distribution == "sphere":
        coordinates, heldout = (
            points * (np.sqrt(k) / np.linalg.norm(points, axis=1, keepdims=True)) for points in (coordinates, heldout)
        )
    if labels == "halfspace":
        y = np.where(coordinates @ labels_rng.standard_normal(k) >= 0, 1, -1)
    if basis == "axis-aligned":
        subspace = axis_aligned(ambient_dim, k)
    else:
        basis_rng = np.random.default_rng([data_seed, 2, ambient_dim])
        subspace = from_directions(basis_rng.standard_normal((ambient_dim, k)))
    return _data(coordinates @ subspace.basis.T, y, subspace, heldout @ subspace.basis.T)


def _data(x: np.ndarray, y: np.ndarray, subspace: Subspace, heldout: np.ndarray) -> Data:
    return Data(np.asarray(x, np.float32), np.asarray(y, np.float32), subspace, np.asarray(heldout, np.float32))
