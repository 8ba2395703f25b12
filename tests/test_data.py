"""Datasets: the two fixed ones point by point, and the laws of the random ones."""

import numpy as np
import pytest
from scipy.optimize import linprog

from subspace_adv.data import CLUSTER_SPREAD, FIXED_SHAPES, HELDOUT, Data, chessboard, line, random_subspace

SETTINGS = dict(
    ambient_dim=9, subspace_dim=3, samples=50, basis="random", distribution="gaussian", labels="random", data_seed=0
)


def draw(**changes) -> Data:
    return random_subspace(**(SETTINGS | changes))


def coordinates(data: Data) -> np.ndarray:
    return data.x @ data.subspace.basis


def heldout(data: Data) -> np.ndarray:
    return data.heldout @ data.subspace.basis


def test_line_is_seven_alternating_points_on_the_diagonal():
    data = line()
    t = np.array([-1, -2 / 3, -1 / 3, 0, 1 / 3, 2 / 3, 1])
    np.testing.assert_allclose(data.x, np.stack([t, t], axis=1), atol=1e-7)
    np.testing.assert_array_equal(data.y, [-1, 1, -1, 1, -1, 1, -1])
    np.testing.assert_allclose(data.subspace.basis, np.full((2, 1), 0.5**0.5))


def test_chessboard_is_the_grid_at_half_height_labelled_by_parity():
    data = chessboard()
    quarters = (0, 0.25, 0.5, 0.75, 1)
    np.testing.assert_array_equal(data.x, [(a, b, 0.5) for a in quarters for b in quarters])
    np.testing.assert_array_equal(data.y, [(-1) ** (row + column) for row in range(5) for column in range(5)])
    np.testing.assert_array_equal(data.subspace.complement, [[0], [0], [1]])


@pytest.mark.parametrize(("kind", "data"), [("line", line()), ("chessboard", chessboard())])
def test_fixed_shapes_are_those_of_the_data(kind, data):
    assert FIXED_SHAPES[kind] == (*data.x.shape, data.subspace.basis.shape[1])


@pytest.mark.parametrize("data", [line(), chessboard(), draw()], ids=["line", "chessboard", "subspace"])
def test_points_and_labels_are_float32_and_bases_float64(data):
    assert data.x.dtype == data.y.dtype == data.heldout.dtype == np.float32
    assert data.subspace.basis.dtype == data.subspace.complement.dtype == np.float64


@pytest.mark.parametrize("basis", ["random", "axis-aligned"])
@pytest.mark.parametrize("subspace_dim", [1, 3, 9])
def test_points_lie_in_the_subspace(basis, subspace_dim):
    data = draw(basis=basis, subspace_dim=subspace_dim)
    assert data.x.shape == (50, 9)
    assert data.subspace.complement.shape == (9, 9 - subspace_dim)
    np.testing.assert_allclose(data.x @ data.subspace.complement, 0, atol=1e-6)
    assert np.linalg.matrix_rank(data.x, tol=1e-4) == subspace_dim
    np.testing.assert_allclose(data.heldout @ data.subspace.complement, 0, atol=1e-6)


@pytest.mark.parametrize("labels", ["random", "halfspace", "clusters"])
@pytest.mark.parametrize("distribution", ["gaussian", "sphere"])
def test_coordinates_and_labels_do_not_depend_on_the_ambient_space(labels, distribution):
    low, high, axes = (
        draw(labels=labels, distribution=distribution, **space)
        for space in (dict(ambient_dim=4), dict(ambient_dim=60), dict(basis="axis-aligned"))
    )
    for other in (high, axes):
        np.testing.assert_allclose(coordinates(low), coordinates(other), atol=3e-6)
        np.testing.assert_allclose(heldout(low), heldout(other), atol=3e-6)
        np.testing.assert_array_equal(low.y, other.y)


@pytest.mark.parametrize("data", [line(), chessboard(), draw()], ids=["line", "chessboard", "subspace"])
def test_heldout_points_are_no_training_points_and_the_same_every_time(data):
    assert data.heldout.shape == (HELDOUT, data.x.shape[1])
    assert np.linalg.norm(data.heldout[:, None] - data.x, axis=2).min() > 1e-3
    again = {2: line, 3: chessboard, 9: draw}[data.x.shape[1]]()
    np.testing.assert_array_equal(again.heldout, data.heldout)


def test_heldout_points_of_the_fixed_datasets_lie_between_the_training_points():
    t, other = line().heldout.T
    np.testing.assert_array_equal(t, other)
    assert -1 <= t.min() < -0.5 and 0.5 < t.max() <= 1
    *square, height = chessboard().heldout.T
    np.testing.assert_array_equal(height, 0.5)
    for side in square:
        assert 0 <= side.min() < 0.25 and 0.75 < side.max() <= 1
    assert abs(np.corrcoef(*square)[0, 1]) < 0.6


@pytest.mark.parametrize("labels", ["random", "halfspace", "clusters"])
@pytest.mark.parametrize("distribution", ["gaussian", "sphere"])
def test_heldout_points_have_the_law_of_the_training_points(labels, distribution):
    drawn = [draw(labels=labels, distribution=distribution, samples=18, data_seed=seed) for seed in range(500)]
    trained, fresh = (np.concatenate([of(data) for data in drawn]) for of in (coordinates, heldout))
    np.testing.assert_allclose(fresh.mean(axis=0), 0, atol=0.05)
    np.testing.assert_allclose(np.cov(fresh.T), np.cov(trained.T), atol=0.06)
    lengths = [np.quantile(np.linalg.norm(points, axis=1), (0.1, 0.5, 0.9)) for points in (trained, fresh)]
    np.testing.assert_allclose(*lengths, rtol=0.03)


def test_random_basis_depends_on_the_data_seed_and_axes_do_not():
    random, other = draw().subspace.basis, draw(data_seed=1).subspace.basis
    assert np.linalg.norm(random @ random.T - other @ other.T) > 0.1
    np.testing.assert_array_equal(draw(basis="axis-aligned", data_seed=5).subspace.basis, np.eye(9)[:, :3])


def test_random_bases_are_uniform_on_average():
    """The mean projection on a uniform k-dimensional subspace of R^d is k/d times the identity."""
    bases = [draw(data_seed=seed, samples=1).subspace.basis for seed in range(2000)]
    np.testing.assert_allclose(np.mean([b @ b.T for b in bases], axis=0), np.eye(9) / 3, atol=0.02)


def test_data_seed_decides_points_and_labels():
    one, same, other = draw(), draw(), draw(data_seed=1)
    np.testing.assert_array_equal(one.x, same.x)
    np.testing.assert_array_equal(one.y, same.y)
    assert (np.abs(coordinates(one) - coordinates(other)) > 1e-3).mean() > 0.9
    assert 0 < (one.y != other.y).sum() < 50


def test_gaussian_coordinates_are_standard_normal():
    found = coordinates(draw(samples=20_000))
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=0.03)
    np.testing.assert_allclose(np.cov(found.T), np.eye(3), atol=0.05)
    assert abs((found**4).mean() - 3) < 0.1


@pytest.mark.parametrize("labels", ["random", "halfspace", "clusters"])
def test_sphere_has_radius_root_k(labels):
    found = draw(distribution="sphere", samples=2000, labels=labels)
    np.testing.assert_allclose(np.linalg.norm(found.x, axis=1), 3**0.5, rtol=1e-6)
    np.testing.assert_allclose(coordinates(found).mean(axis=0), 0, atol=0.1)


def test_random_labels_are_fair_signs_unrelated_to_the_points():
    data = draw(samples=20_000)
    assert set(data.y) == {-1, 1}
    assert abs(data.y.mean()) < 0.03
    np.testing.assert_allclose(data.y @ coordinates(data) / 20_000, 0, atol=0.03)


@pytest.mark.parametrize("data_seed", range(3))
def test_halfspace_labels_are_separable_through_zero_and_random_ones_are_not(data_seed):
    def separable(data: Data) -> bool:
        constraints = -data.y[:, None] * coordinates(data)
        return linprog(np.zeros(3), A_ub=constraints, b_ub=-np.full(50, 1e-3), bounds=(None, None)).success

    halfspace = draw(labels="halfspace", data_seed=data_seed)
    assert set(halfspace.y) == {-1, 1}
    assert separable(halfspace)
    assert not separable(draw(labels="random", data_seed=data_seed))


def test_clusters_are_separated_share_their_label_and_split_the_labels_evenly():
    data = draw(labels="clusters", samples=600)
    centres = np.sqrt(3) * np.concatenate([np.eye(3), -np.eye(3)])
    distances = np.linalg.norm(coordinates(data)[:, None] - centres, axis=2)
    nearest = distances.argmin(axis=1)
    assert distances.min(axis=1).max() < 6 * CLUSTER_SPREAD < np.sqrt(6) / 2  # centres are √6 or more apart
    np.testing.assert_array_equal(np.bincount(nearest), 100)
    spread = (coordinates(data) - centres[nearest]).std()
    assert spread == pytest.approx(CLUSTER_SPREAD, rel=0.05)
    labels = [set(data.y[nearest == c]) for c in range(6)]
    assert sorted(labels, key=min) == [{-1}] * 3 + [{1}] * 3


def test_cluster_labels_are_dealt_by_the_data_seed():
    assert len({tuple(draw(labels="clusters", data_seed=seed).y[:6]) for seed in range(30)}) > 5


def test_clusters_with_fewer_points_than_centres():
    data = draw(labels="clusters", samples=4)
    assert sorted(data.y) == [-1, -1, 1, 1]


def test_subspace_over_the_ambient_dimension_is_refused():
    with pytest.raises(ValueError, match="subspace_dim 10 is over ambient_dim 9"):
        draw(subspace_dim=10)
