"""Bases, complements and regions of subspaces."""

import numpy as np
import pytest

from subspace_adv.subspace import REGIONS, axis_aligned, from_directions, region_basis, region_dim

DIMS = [(2, 1), (5, 3), (4, 4), (12, 1)]


@pytest.fixture(params=DIMS, ids=str)
def directions(request: pytest.FixtureRequest) -> np.ndarray:
    return np.random.default_rng(7).standard_normal(request.param)


def test_basis_is_orthonormal_and_spans_the_directions(directions):
    basis = from_directions(directions).basis
    onto = directions @ np.linalg.pinv(directions)
    np.testing.assert_allclose(basis.T @ basis, np.eye(directions.shape[1]), atol=1e-12)
    np.testing.assert_allclose(basis @ basis.T, onto, atol=1e-12)


def test_complement_is_orthonormal_and_orthogonal_to_the_directions(directions):
    d, k = directions.shape
    complement = from_directions(directions).complement
    assert complement.shape == (d, d - k)
    np.testing.assert_allclose(complement.T @ complement, np.eye(d - k), atol=1e-12)
    np.testing.assert_allclose(complement.T @ directions, 0, atol=1e-12)


def test_basis_follows_the_signs_of_the_directions(directions):
    """Gram–Schmidt: each direction has a positive component along its own basis vector, none along later ones."""
    components = from_directions(directions).basis.T @ directions
    assert (np.diag(components) > 0).all()
    np.testing.assert_allclose(np.tril(components, -1), 0, atol=1e-12)


def test_bases_are_float64(directions):
    subspace = from_directions(directions.astype(np.float32))
    assert subspace.basis.dtype == subspace.complement.dtype == np.float64


def test_axis_aligned_spans_the_first_axes():
    subspace = axis_aligned(4, 1)
    np.testing.assert_array_equal(subspace.basis, [[1], [0], [0], [0]])
    np.testing.assert_array_equal(subspace.complement, [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])


@pytest.mark.parametrize("region", REGIONS)
def test_region_basis_projects_on_the_region(x64, directions, region):
    d, k = directions.shape
    basis = np.asarray(region_basis(from_directions(directions), region))
    on = directions @ np.linalg.pinv(directions)
    expected = {"on": on, "off": np.eye(d) - on, "full": np.eye(d)}[region]
    assert basis.shape == (d, region_dim(region, d, k))
    np.testing.assert_allclose(basis.T @ basis, np.eye(basis.shape[1]), atol=1e-12)
    np.testing.assert_allclose(basis @ basis.T, expected, atol=1e-12)


def test_region_dimensions():
    assert [region_dim(region, 7, 2) for region in ("off", "on", "full")] == [5, 2, 7]
