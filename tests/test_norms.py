"""Lengths, duals, steepest directions and projections of the three norms against closed forms and many vectors."""

import numpy as np
import pytest
from optimum import DUAL_ORDER, ORDER

from subspace_adv import norms

NORMS = ("l2", "linf", "l1")


def _vectors(dim: int) -> np.ndarray:
    """Of all sizes, some with zeros, with equal coordinates or with one far above the others; one is zero."""
    rng = np.random.default_rng(dim)
    found = rng.standard_normal((60, dim)) * 10.0 ** rng.uniform(-3, 3, (60, 1))
    found[:10] *= rng.random((10, dim)) < 0.5
    found[10:20] = np.sign(found[10:20])
    found[20:30, 0] *= 100
    found[0] = 0
    return found


@pytest.mark.parametrize("dim", [1, 2, 7])
@pytest.mark.parametrize("norm", NORMS)
def test_lengths_are_those_of_numpy(norm, dim, x64):
    v = _vectors(dim)
    np.testing.assert_allclose(norms.length(v, norm), np.linalg.norm(v, ORDER[norm], axis=1), rtol=1e-15)
    np.testing.assert_allclose(norms.dual_length(v, norm), np.linalg.norm(v, DUAL_ORDER[norm], axis=1), rtol=1e-15)
    assert norms.length(np.zeros((3, 0)), norm).tolist() == [0, 0, 0]


@pytest.mark.parametrize("dim", [1, 2, 7])
@pytest.mark.parametrize("norm", NORMS)
def test_no_vector_of_norm_1_is_steeper_than_the_steepest(norm, dim, x64):
    """Hölder: v·c ≤ the dual norm for all c of norm 1, and the steepest attains it."""
    v, rng = _vectors(dim), np.random.default_rng(1)
    steepest = np.asarray(norms.steepest(v, norm))
    dual = np.linalg.norm(v, DUAL_ORDER[norm], axis=1)
    np.testing.assert_allclose((v * steepest).sum(axis=1), dual, rtol=1e-14)
    lengths = np.linalg.norm(steepest, ORDER[norm], axis=1)
    np.testing.assert_allclose(lengths, np.where(dual > 0, 1, 0), rtol=1e-14)
    drawn = np.concatenate([rng.standard_normal((500, dim)), rng.choice([-1.0, 1.0], (50, dim)), np.eye(dim)])
    drawn /= np.linalg.norm(drawn, ORDER[norm], axis=1, keepdims=True)
    assert (v @ drawn.T <= np.asarray(norms.dual_length(v, norm))[:, None] * (1 + 1e-14)).all()


@pytest.mark.parametrize("norm", NORMS)
def test_units_have_norm_1_and_keep_their_direction(norm, x64):
    v = np.concatenate([_vectors(4), [[np.inf, 1, 0, 0], [np.nan, 1, 0, 0]]])
    unit = np.asarray(norms.unit(v, norm))
    np.testing.assert_array_equal(unit[[0, -2, -1]], 0)
    np.testing.assert_allclose(np.linalg.norm(unit[1:-2], ORDER[norm], axis=1), 1, rtol=1e-14)
    np.testing.assert_allclose(unit[1:-2] * np.linalg.norm(v[1:-2], ORDER[norm], axis=1)[:, None], v[1:-2], rtol=1e-14)


def _projected(v: np.ndarray, radius: float, norm: str) -> np.ndarray:
    """The nearest point of a ball to v (d,) in L2; in L1 by sorting (Duchi et al. 2008)."""
    if np.linalg.norm(v, ORDER[norm]) <= radius:
        return v
    if norm == "l2":
        return v * radius / np.linalg.norm(v)
    if norm == "linf":
        return np.minimum(np.maximum(v, -radius), radius)
    size = np.sort(np.abs(v))[::-1]
    thresholds = (np.cumsum(size) - radius) / np.arange(1, len(v) + 1)
    threshold = thresholds[np.flatnonzero(size >= thresholds)[-1]]
    return np.sign(v) * np.maximum(np.abs(v) - threshold, 0)


@pytest.mark.parametrize("dim", [1, 3, 40])
@pytest.mark.parametrize("norm", NORMS)
def test_projection_is_the_nearest_point_of_the_ball(norm, dim, x64):
    v = _vectors(dim)
    radius = np.linalg.norm(v, ORDER[norm], axis=1) * np.tile([0, 0.01, 0.3, 0.9, 1, 2], 10)
    found = np.asarray(norms.project(v, radius, norm))
    assert (np.linalg.norm(found, ORDER[norm], axis=1) <= radius * (1 + 1e-14)).all()
    within = radius >= np.linalg.norm(v, ORDER[norm], axis=1)
    np.testing.assert_allclose(found[within], v[within], rtol=1e-13)
    again = np.asarray(norms.project(found, radius, norm))
    np.testing.assert_allclose(again, found, atol=1e-14 * np.abs(v).max(axis=1, keepdims=True).max())
    nearest = np.array([_projected(*pair, norm) for pair in zip(v, radius, strict=True)])
    farther = np.linalg.norm(found - v, axis=1) - np.linalg.norm(nearest - v, axis=1)
    missed = 5e-4 if (norm, dim) == ("l1", 40) else 1e-15  # Newton's few steps, where there are many thresholds
    assert (farther <= missed * np.linalg.norm(v, axis=1)).all()
