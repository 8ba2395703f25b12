"""Bases, complements and regions of subspaces."""

import numpy as np
import pytest

from subspace_adv.geometry import (
    REGIONS,
    Subspace,
    beside_span,
    canonical_coordinates,
    in_ambient,
    region_basis,
    region_dim,
)

DIMS = [(2, 1), (5, 3), (4, 4), (12, 1)]


@pytest.fixture(params=DIMS, ids=str)
def directions(request: pytest.FixtureRequest) -> np.ndarray:
    return np.random.default_rng(7).standard_normal(request.param)


def test_basis_is_orthonormal_and_spans_the_directions(directions):
    basis = Subspace.from_directions(directions).basis
    onto = directions @ np.linalg.pinv(directions)
    np.testing.assert_allclose(basis.T @ basis, np.eye(directions.shape[1]), atol=1e-12)
    np.testing.assert_allclose(basis @ basis.T, onto, atol=1e-12)


def test_complement_is_orthonormal_and_orthogonal_to_the_directions(directions):
    d, k = directions.shape
    complement = Subspace.from_directions(directions).complement
    assert complement.shape == (d, d - k)
    np.testing.assert_allclose(complement.T @ complement, np.eye(d - k), atol=1e-12)
    np.testing.assert_allclose(complement.T @ directions, 0, atol=1e-12)


def test_basis_follows_the_signs_of_the_directions(directions):
    """Gram–Schmidt: each direction has a positive component along its own basis vector, none along later ones."""
    components = Subspace.from_directions(directions).basis.T @ directions
    assert (np.diag(components) > 0).all()
    np.testing.assert_allclose(np.tril(components, -1), 0, atol=1e-12)


def test_bases_are_float64(directions):
    subspace = Subspace.from_directions(directions.astype(np.float32))
    assert subspace.basis.dtype == subspace.complement.dtype == np.float64


def test_axis_aligned_spans_the_first_axes():
    subspace = Subspace.axis_aligned(4, 1)
    np.testing.assert_array_equal(subspace.basis, [[1], [0], [0], [0]])
    np.testing.assert_array_equal(subspace.complement, [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])


@pytest.mark.parametrize("region", REGIONS)
def test_region_basis_projects_on_the_region(x64, directions, region):
    d, k = directions.shape
    basis = np.asarray(region_basis(Subspace.from_directions(directions), region))
    on = directions @ np.linalg.pinv(directions)
    off = np.eye(d) - on
    expected = {"on": on, "tangent": on, "off": off, "normal": off, "full": np.eye(d)}[region]
    assert basis.shape == (d, region_dim(region, d, k))
    np.testing.assert_allclose(basis.T @ basis, np.eye(basis.shape[1]), atol=1e-12)
    np.testing.assert_allclose(basis @ basis.T, expected, atol=1e-12)


@pytest.mark.parametrize(("width", "k"), [(3, 2), (8, 2), (4, 6), (1, 1)])
def test_canonical_coordinates_keep_the_span_and_all_inner_products_off_it(width, k, x64):
    """WQ as it is, then a lower triangle Λ with ΛΛᵀ = W Π Wᵀ, of min(m, d − r) columns (F6)."""
    rng, d = np.random.default_rng(1), 7
    basis, weight = np.linalg.qr(rng.standard_normal((d, k)))[0], rng.standard_normal((width, d))
    found = np.asarray(canonical_coordinates(weight, basis))
    assert found.shape == (width, k + min(width, d - k))
    np.testing.assert_allclose(found[:, :k], weight @ basis, atol=1e-14)
    off = weight @ (np.eye(d) - basis @ basis.T)
    np.testing.assert_allclose(found[:, k:] @ found[:, k:].T, off @ off.T, atol=1e-13)
    np.testing.assert_array_equal(np.triu(found[:, k:], 1), 0)


def test_a_subspace_of_a_span_in_ambient_coordinates_and_beside_it(directions, x64):
    """The same basis within the span; complements that make it a rotation."""
    r = directions.shape[1]
    span, k = Subspace.from_directions(directions), (r + 1) // 2
    within = Subspace.from_directions(np.random.default_rng(2).standard_normal((r, k)))
    for found, lift in (
        (in_ambient(within, span), span.basis),
        (beside_span(within, 3), np.eye(r + 3)[:, :r]),
    ):
        np.testing.assert_allclose(found.basis, lift @ within.basis, atol=1e-14)
        both = np.concatenate([found.basis, found.complement], axis=1)
        assert both.shape == (len(lift), len(lift))
        np.testing.assert_allclose(both.T @ both, np.eye(len(lift)), atol=1e-12)


def test_region_dimensions():
    assert [region_dim(region, 7, 2) for region in REGIONS] == [5, 5, 2, 2, 7]
    assert [region_dim(region, 7, 3, 1) for region in REGIONS] == [4, 6, 1, 3, 7]
