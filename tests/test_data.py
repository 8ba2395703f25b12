"""Datasets: the two fixed ones point by point, and the laws of the random ones."""

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from scipy.stats import chisquare

from subspace_adv.data import HELDOUT, ChessboardData, Data, DataSettings, LineData, SubspaceData
from subspace_adv.datasets import load_data, load_span
from subspace_adv.geometry import Subspace, in_ambient

KINDS = {
    "line": LineData(),
    "chessboard": ChessboardData(),
    "subspace": SubspaceData(ambient_dim=9, subspace_dim=3, samples=50, distribution="gaussian", labels="random"),
}


def draw(**changes) -> Data:
    return KINDS["subspace"].model_copy(update=changes).draw()


def span(**changes) -> np.ndarray:
    return KINDS["subspace"].model_copy(update=changes).span()


def in_space(settings: DataSettings) -> tuple[Data, np.ndarray, Subspace]:
    """A dataset, where its span lies, and its subspace in ambient coordinates."""
    data, place = load_data(settings), load_span(settings, complete=True)
    return data, place.basis, Subspace(*map(np.asarray, in_ambient(data.subspace, place)))


def test_line_is_seven_alternating_points_on_the_diagonal(x64):
    data, basis, subspace = in_space(KINDS["line"])
    t = np.array([-1, -2 / 3, -1 / 3, 0, 1 / 3, 2 / 3, 1])
    np.testing.assert_allclose(data.x @ basis.T, np.stack([t, t], axis=1), atol=1e-7)
    np.testing.assert_array_equal(data.y, [-1, 1, -1, 1, -1, 1, -1])
    np.testing.assert_allclose(subspace.basis, np.full((2, 1), 0.5**0.5))
    np.testing.assert_allclose(np.abs(subspace.complement), np.full((2, 1), 0.5**0.5))


def test_chessboard_is_the_grid_at_half_height_labelled_by_parity(x64):
    data, basis, subspace = in_space(KINDS["chessboard"])
    quarters = (0, 0.25, 0.5, 0.75, 1)
    np.testing.assert_array_equal(data.x @ basis.T, [(a, b, 0.5) for a in quarters for b in quarters])
    np.testing.assert_array_equal(data.y, [(-1) ** (row + column) for row in range(5) for column in range(5)])
    np.testing.assert_array_equal(subspace.complement, [[0], [0], [1]])


@pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS)
def test_shapes_are_those_of_the_data(settings):
    """Without the points having been drawn; and the span is the least that holds them all."""
    data, place, shape = load_data(settings), load_span(settings, complete=True), settings.shape
    assert shape == (len(data.x), len(place.basis), data.subspace.basis.shape[1], data.x.shape[1], None)
    assert place.basis.shape[1] == np.linalg.matrix_rank(data.x, tol=1e-4) == shape.span_dim
    assert place.complement.shape == (shape.ambient_dim, shape.ambient_dim - shape.span_dim)
    assert load_span(settings).complement.size == 0
    np.testing.assert_allclose(load_span(settings).basis, place.basis, atol=1e-15)


@pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS)
def test_points_and_labels_are_float32_and_bases_float64(settings):
    data, place = load_data(settings), load_span(settings, complete=True)
    assert data.x.dtype == data.y.dtype == data.heldout.dtype == np.float32
    assert data.subspace.basis.dtype == data.subspace.complement.dtype == np.float64
    assert place.basis.dtype == place.complement.dtype == np.float64


@pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS)
def test_points_lie_in_the_subspace_and_lengths_are_those_of_the_ambient_space(settings, x64):
    data, basis, subspace = in_space(settings)
    (_, d, k, *_), rotation = settings.shape, np.concatenate(subspace, axis=1)
    assert subspace.basis.shape == (d, k)
    np.testing.assert_allclose(rotation.T @ rotation, np.eye(d), atol=1e-12)
    for points in (data.x, data.heldout):
        ambient = points.astype(np.float64) @ basis.T
        heights = ambient @ subspace.complement  # all the same: the subspace is affine
        np.testing.assert_allclose(heights - heights[0], 0, atol=1e-6)
        np.testing.assert_allclose(np.linalg.norm(ambient, axis=1), np.linalg.norm(points, axis=1), rtol=1e-6)
    spread = ambient - ambient.mean(axis=0)
    assert np.linalg.matrix_rank(spread, tol=1e-4) == k


@pytest.mark.parametrize("subspace_dim", [1, 3, 9])
def test_points_of_a_subspace_span_all_coordinates_there_are(subspace_dim):
    data = draw(subspace_dim=subspace_dim)
    assert data.x.shape == (50, subspace_dim)
    assert np.linalg.matrix_rank(data.x, tol=1e-4) == subspace_dim
    np.testing.assert_array_equal(data.subspace.basis, np.eye(subspace_dim))
    assert data.subspace.complement.shape == (subspace_dim, 0)


@pytest.mark.parametrize("labels", ["random", "halfspace", "clusters"])
@pytest.mark.parametrize("distribution", ["gaussian", "sphere"])
def test_coordinates_and_labels_do_not_depend_on_the_ambient_space(labels, distribution):
    base = SubspaceData(ambient_dim=4, subspace_dim=3, samples=50, labels=labels, distribution=distribution)
    low, *others = (
        load_data(base.model_copy(update=space)) for space in ({}, {"ambient_dim": 60}, {"basis": "axis-aligned"})
    )
    for other in others:
        for name in ("x", "y", "heldout"):
            np.testing.assert_array_equal(getattr(low, name), getattr(other, name))


@pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS)
def test_heldout_points_are_no_training_points_and_the_same_every_time(settings):
    data = load_data(settings)
    assert data.heldout.shape == (HELDOUT, data.x.shape[1])
    assert np.linalg.norm(data.heldout[:, None] - data.x, axis=2).min() > 1e-3
    again = settings.draw()
    np.testing.assert_array_equal(again.heldout, data.heldout)


def test_heldout_points_of_the_fixed_datasets_lie_between_the_training_points():
    t, other = (LineData().draw().heldout @ LineData().span().T).T
    np.testing.assert_array_equal(t, other)
    assert -1 <= t.min() < -0.5 and 0.5 < t.max() <= 1
    *square, height = (ChessboardData().draw().heldout @ ChessboardData().span().T).T
    np.testing.assert_array_equal(height, 0.5)
    for side in square:
        assert 0 <= side.min() < 0.25 and 0.75 < side.max() <= 1
    assert abs(np.corrcoef(*square)[0, 1]) < 0.6


@pytest.mark.parametrize("labels", ["random", "halfspace", "clusters"])
@pytest.mark.parametrize("distribution", ["gaussian", "sphere"])
def test_heldout_points_have_the_law_of_the_training_points(labels, distribution):
    drawn = [draw(labels=labels, distribution=distribution, samples=18, data_seed=seed) for seed in range(500)]
    trained, fresh = (np.concatenate([getattr(data, name) for data in drawn]) for name in ("x", "heldout"))
    np.testing.assert_allclose(fresh.mean(axis=0), 0, atol=0.05)
    np.testing.assert_allclose(np.cov(fresh.T), np.cov(trained.T), atol=0.06)
    lengths = [np.quantile(np.linalg.norm(points, axis=1), (0.1, 0.5, 0.9)) for points in (trained, fresh)]
    np.testing.assert_allclose(*lengths, rtol=0.03)


@pytest.mark.parametrize("basis", ["random", "axis-aligned"])
@pytest.mark.parametrize("subspace_dim", [1, 3, 9])
def test_the_basis_of_a_span_is_orthonormal(basis, subspace_dim):
    found = span(basis=basis, subspace_dim=subspace_dim)
    assert found.shape == (9, subspace_dim) and found.dtype == np.float64
    np.testing.assert_allclose(found.T @ found, np.eye(subspace_dim), atol=1e-12)


def test_random_basis_depends_on_the_data_seed_and_axes_do_not():
    random, other = span(), span(data_seed=1)
    assert np.linalg.norm(random @ random.T - other @ other.T) > 0.1
    np.testing.assert_array_equal(span(basis="axis-aligned", data_seed=5), np.eye(9)[:, :3])


def test_axes_nest_over_the_dimensions_and_random_bases_are_drawn_anew():
    for d, k in itertools.product((4, 9), (1, 3)):
        np.testing.assert_array_equal(span(basis="axis-aligned", ambient_dim=d, subspace_dim=k), np.eye(9)[:d, :k])
    low, high = (span(ambient_dim=d, subspace_dim=1)[:4, 0] for d in (4, 9))
    assert abs(low @ high) < 0.99 * np.linalg.norm(low) * np.linalg.norm(high)


def test_random_bases_are_uniform_on_average():
    """The mean projection on a uniform k-dimensional subspace of R^d is k/d times the identity; no sign is favoured."""
    bases = [span(data_seed=seed) for seed in range(2000)]
    np.testing.assert_allclose(np.mean([b @ b.T for b in bases], axis=0), np.eye(9) / 3, atol=0.02)
    np.testing.assert_allclose(np.mean(bases, axis=0), 0, atol=0.04)


def test_data_seed_decides_points_and_labels():
    one, same, other = draw(), draw(), draw(data_seed=1)
    np.testing.assert_array_equal(one.x, same.x)
    np.testing.assert_array_equal(one.y, same.y)
    assert (np.abs(one.x - other.x) > 1e-3).mean() > 0.9
    assert 0 < (one.y != other.y).sum() < 50


def test_gaussian_coordinates_are_standard_normal():
    found = draw(samples=20_000).x
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=0.03)
    np.testing.assert_allclose(np.cov(found.T), np.eye(3), atol=0.05)
    assert abs((found**4).mean() - 3) < 0.1


@pytest.mark.parametrize("labels", ["random", "halfspace", "clusters"])
def test_sphere_has_radius_root_k(labels):
    found = draw(distribution="sphere", samples=2000, labels=labels)
    np.testing.assert_allclose(np.linalg.norm(found.x, axis=1), 3**0.5, rtol=1e-6)
    np.testing.assert_allclose(found.x.mean(axis=0), 0, atol=0.1)


def test_random_labels_are_fair_signs_unrelated_to_the_points():
    data = draw(samples=20_000)
    assert set(data.y) == {-1, 1}
    assert abs(data.y.mean()) < 0.03
    np.testing.assert_allclose(data.y @ data.x / 20_000, 0, atol=0.03)


@pytest.mark.parametrize("data_seed", range(3))
def test_halfspace_labels_are_separable_through_zero_and_random_ones_are_not(data_seed):
    def separable(data: Data) -> bool:
        constraints = -data.y[:, None] * data.x
        return linprog(np.zeros(3), A_ub=constraints, b_ub=-np.full(50, 1e-3), bounds=(None, None)).success

    halfspace = draw(labels="halfspace", data_seed=data_seed)
    assert set(halfspace.y) == {-1, 1}
    assert separable(halfspace)
    assert not separable(draw(labels="random", data_seed=data_seed))


def test_clusters_are_separated_share_their_label_and_split_the_labels_evenly():
    data = draw(labels="clusters", samples=600)
    centres = np.sqrt(3) * np.concatenate([np.eye(3), -np.eye(3)])
    distances = np.linalg.norm(data.x[:, None] - centres, axis=2)
    nearest = distances.argmin(axis=1)
    assert distances.min(axis=1).max() < 0.6 < np.sqrt(6) / 2  # centres are √6 or more apart
    np.testing.assert_array_equal(np.bincount(nearest), 100)
    spread = (data.x - centres[nearest]).std()
    assert spread == pytest.approx(0.1, rel=0.05)
    labels = [set(data.y[nearest == c]) for c in range(6)]
    assert sorted(labels, key=min) == [{-1}] * 3 + [{1}] * 3


def test_cluster_labels_are_dealt_evenly_by_the_data_seed():
    """Each of the 6 over 2 ways to label four centres evenly is as frequent as the others."""
    centres = np.sqrt(2) * np.concatenate([np.eye(2), -np.eye(2)])
    ways: Counter[tuple] = Counter()
    for seed in range(600):
        data = draw(labels="clusters", subspace_dim=2, samples=4, data_seed=seed)
        ways[tuple(data.y[np.linalg.norm(data.x - centre, axis=1).argmin()] for centre in centres)] += 1
    assert set(ways) == {way for way in itertools.product((-1, 1), repeat=4) if sum(way) == 0}
    assert chisquare(list(ways.values())).pvalue > 1e-3


@pytest.mark.parametrize("samples", range(1, 8))
def test_clusters_with_fewer_points_than_centres_have_one_each_and_both_labels(samples):
    data = draw(labels="clusters", samples=samples)
    centres = np.sqrt(3) * np.concatenate([np.eye(3), -np.eye(3)])
    nearest = np.linalg.norm(data.x[:, None] - centres, axis=2).argmin(axis=1)
    assert len(set(nearest)) == min(samples, 6)
    assert data.y.sum() == samples % 2
    held = np.linalg.norm(data.heldout[:, None] - centres, axis=2).argmin(axis=1)
    assert set(held) <= set(nearest)


@pytest.mark.parametrize("labels", ["random", "halfspace", "clusters"])
@pytest.mark.parametrize("distribution", ["gaussian", "sphere"])
@given(k=st.integers(1, 6), n=st.integers(1, 40), more=st.integers(1, 40), data_seed=st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_fewer_points_are_the_first_of_more_with_the_same_labels(labels, distribution, k, n, more, data_seed):
    law = dict(subspace_dim=k, distribution=distribution, labels=labels, data_seed=data_seed)
    few, many = draw(samples=n, **law), draw(samples=n + more, **law)
    np.testing.assert_array_equal(few.x, many.x[:n])
    np.testing.assert_array_equal(few.y, many.y[:n])
    if labels != "clusters" or n >= 2 * k:
        np.testing.assert_array_equal(few.heldout, many.heldout)


@pytest.mark.parametrize("settings", [LineData(), ChessboardData(), SubspaceData(samples=7, subspace_dim=3)])
def test_labels_are_drawn_of_no_more_numbers_than_all_points_are(settings):
    assert len(settings.draw_labels()) <= settings.label_draws <= settings.draw().x.size


@pytest.mark.parametrize("labels", ["random", "halfspace", "clusters"])
def test_labels_alone_are_those_of_the_points(labels):
    for data_seed, distribution in itertools.product(range(20), ("gaussian", "sphere")):
        data = draw(labels=labels, distribution=distribution, data_seed=data_seed)
        alone = KINDS["subspace"].model_copy(update={"labels": labels, "data_seed": data_seed}).draw_labels()
        np.testing.assert_array_equal(data.y, alone)


def test_one_hyperplane_divides_any_number_of_points():
    """Found from many points, it tells the labels of few, and stands in every direction as often."""
    normals = []
    for data_seed in range(200):
        many = draw(labels="halfspace", samples=400, data_seed=data_seed)
        normal = (many.y[:, None] * many.x).mean(axis=0)  # points along it, on average
        normals.append(normal / np.linalg.norm(normal))
        few = draw(labels="halfspace", samples=30, data_seed=data_seed)
        assert (few.y * (few.x @ normals[-1]) > 0).mean() > 0.8
    np.testing.assert_allclose(np.mean(normals, axis=0), 0, atol=0.15)
    np.testing.assert_allclose(np.cov(np.transpose(normals)), np.eye(3) / 3, atol=0.1)


def test_draws_are_independent_of_each_other():
    """No two of points, labels, held-out points, hyperplane, centres and basis are made of the same numbers."""
    rows = []
    for seed in range(1000):
        random, halfspace, clusters = (
            draw(labels=labels, subspace_dim=2, samples=4, data_seed=seed)
            for labels in ("random", "halfspace", "clusters")
        )
        base = span(subspace_dim=2, ambient_dim=4, data_seed=seed)
        points = [*random.x[:2].ravel(), *random.heldout[:2].ravel()]
        centres = [*(clusters.x[0] / 2**0.5).round(), *(clusters.heldout[0] / 2**0.5).round()]
        rows.append([*points, *random.y[:2], *halfspace.y[:2], *base.ravel(), *centres])
        assert (halfspace.x == random.x).all() and (halfspace.heldout == random.heldout).all()
    correlations = np.corrcoef(np.transpose(rows))
    for part in (slice(12, 20), slice(20, 22), slice(22, 24)):  # an orthonormal basis, and two centres
        correlations[part, part] = 0
    np.fill_diagonal(correlations, 0)
    assert np.abs(correlations).max() < 5 / 1000**0.5


def test_what_a_seed_draws_never_changes():
    """Or the results of a sweep would be others with another version of this package."""
    assert draw(samples=9, data_seed=3).y.tolist() == [1, 1, 1, 1, -1, -1, 1, -1, -1]
    assert draw(samples=9, data_seed=3, labels="halfspace").y.tolist() == [-1, -1, -1, -1, -1, 1, -1, -1, 1]
    centres = draw(samples=9, data_seed=3, labels="clusters").x.round()
    np.testing.assert_array_equal(centres[:3], [[0, 0, -2], [2, 0, 0], [0, 0, 2]])
    np.testing.assert_allclose(draw(data_seed=3).x[0], [2.040919, -2.555665, 0.418099], atol=1e-5)
    np.testing.assert_allclose(draw(data_seed=3).heldout[-1], [0.963969, 1.528283, 0.528684], atol=1e-5)
    np.testing.assert_allclose(span(data_seed=3)[0], [0.339852, 0.223216, -0.548207], atol=1e-5)


def test_subspace_over_the_ambient_dimension_is_refused():
    with pytest.raises(ValueError, match="subspace_dim 10 is over ambient_dim 9"):
        span(subspace_dim=10)


@pytest.mark.parametrize(
    ("leaf", "value", "again"),
    [
        ("ambient_dim", 31, False),
        ("basis", "axis-aligned", False),
        ("subspace_dim", 3, True),
        ("samples", 21, True),
        ("distribution", "gaussian", True),
        ("labels", "clusters", True),
        ("data_seed", 1, True),
    ],
)
def test_points_and_labels_are_others_for_all_but_where_they_are_placed(leaf, value, again):
    one, other = load_data(SubspaceData()), load_data(SubspaceData(**{leaf: value}))
    assert (one.x.tobytes() + one.y.tobytes() != other.x.tobytes() + other.y.tobytes()) == again
    assert (one is not other) == again  # and drawn once
