"""Curved manifolds: their points, what is tangent and normal to them, and what is measured there."""

import itertools

import numpy as np
import pytest
import reference
from shell import needs_kernel, read

from subspace_adv import UserError, load_networks, load_points, run
from subspace_adv.checks import check
from subspace_adv.data import HELDOUT, SubspaceData

FORMS = {
    "circles": {"distribution": "circles", "radii": (1.0, 3.0, 0.5)},
    "spheres": {"distribution": "spheres", "radii": (1.0, 1.3), "subspace_dim": 4},
    "curve": {"distribution": "curve", "frequencies": 3},
}
RADII_TOLD = ("circles", "spheres")
REGIONS = ("off", "normal", "tangent", "on", "full")


def data_of(name: str, **changes) -> SubspaceData:
    return SubspaceData(**{"samples": 20, "ambient_dim": 9} | FORMS[name] | changes)


def curve(theta: np.ndarray, frequencies: int) -> np.ndarray:
    """(cos θ, sin θ, …, cos Kθ, sin Kθ)/√K, written out."""
    waves = [[np.cos(j * theta), np.sin(j * theta)] for j in range(1, frequencies + 1)]
    return np.moveaxis(np.array(waves), -1, 0).reshape(len(theta), -1) / frequencies**0.5


def angles(x: np.ndarray) -> np.ndarray:
    return np.arctan2(x[:, 1], x[:, 0])


def differences(name: str, x: np.ndarray) -> np.ndarray:
    """Central differences of the parametrization along each of its parameters, (n, k, t or more)."""
    h = 1e-5
    if name == "curve":
        return ((curve(angles(x) + h, 3) - curve(angles(x) - h, 3)) / (2 * h))[:, :, None]
    radius = np.linalg.norm(x, axis=1, keepdims=True)

    def moved(step: np.ndarray) -> np.ndarray:  # along an axis, and back to the sphere
        there = x + step
        return radius * there / np.linalg.norm(there, axis=1, keepdims=True)

    axes = np.eye(x.shape[1])
    return np.stack([(moved(h * axis) - moved(-h * axis)) / (2 * h) for axis in axes], axis=2)


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("data_seed", range(5))
def test_tangent_and_normal_are_those_of_finite_differences(name, data_seed):
    data = data_of(name, data_seed=data_seed).draw()
    x, (tangent, normal) = data.x.astype(np.float64), data.tangent
    t = data_of(name).shape.tangent_dim
    assert t == {"circles": 1, "spheres": 3, "curve": 1}[name]
    assert tangent.shape == (20, x.shape[1], t) and normal.shape == (20, x.shape[1], x.shape[1] - t)
    along = differences(name, x)
    assert {np.linalg.matrix_rank(one, tol=1e-3) for one in along} == {t}
    within = np.einsum("nkt,njt,nji->nki", tangent, tangent, along)
    np.testing.assert_allclose(within, along, atol=1e-6)
    np.testing.assert_allclose(np.einsum("nkr,nki->nri", normal, along), 0, atol=1e-6)
    both = np.concatenate([tangent, normal], axis=2)
    np.testing.assert_allclose(both.mT @ both, np.broadcast_to(np.eye(x.shape[1]), both.shape), atol=1e-12)


@pytest.mark.parametrize("name", FORMS)
def test_all_points_lie_on_the_manifold_and_labels_go_by_the_radius(name):
    found = data_of(name).draw()
    for points in (found.x, found.heldout):
        length = np.linalg.norm(points.astype(np.float64), axis=1)
        if name == "curve":
            np.testing.assert_allclose(curve(angles(points.astype(np.float64)), 3), points, atol=1e-6)
            continue
        radii = FORMS[name]["radii"]
        nearest = np.argmin(np.abs(length[:, None] - radii), axis=1)
        np.testing.assert_allclose(length, np.array(radii)[nearest], rtol=1e-6)
        assert set(nearest) == set(range(len(radii)))
        if points is found.x:
            np.testing.assert_array_equal(found.y, np.where(nearest % 2 == 0, 1, -1))
    assert found.heldout.shape == (HELDOUT, found.x.shape[1])


@pytest.mark.parametrize("name", FORMS)
def test_random_points_are_uniform(name):
    """By rotations: of circles and spheres all, of a curve its angle."""
    drawn = [data_of(name, samples=40, data_seed=seed).draw() for seed in range(200)]
    for points in (np.concatenate([getattr(one, part) for one in drawn]) for part in ("x", "heldout")):
        if name == "curve":
            moments = np.exp(1j * angles(points)[:, None] * np.arange(1, 5)).mean(axis=0)
            np.testing.assert_allclose(moments, 0, atol=0.06)
            continue
        directions = points / np.linalg.norm(points, axis=1, keepdims=True)
        k = directions.shape[1]
        np.testing.assert_allclose(directions.mean(axis=0), 0, atol=0.05)
        np.testing.assert_allclose(directions.T @ directions / len(points), np.eye(k) / k, atol=0.03)


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("labels", ["random", "halfspace"])
def test_fewer_points_are_the_first_of_more_with_their_labels(name, labels):
    changes = {} if name in RADII_TOLD else {"labels": labels}
    few, many = data_of(name, samples=7, **changes).draw(), data_of(name, samples=31, **changes).draw()
    np.testing.assert_array_equal(few.x, many.x[:7])
    np.testing.assert_array_equal(few.y, many.y[:7])
    np.testing.assert_array_equal(few.heldout, many.heldout)


def test_even_points_divide_each_circle_and_the_curve_into_equal_parts():
    found = data_of("circles", spacing="even", samples=10, radii=(2.0, 1.0)).draw().x.astype(np.float64)
    for own in (found[::2], found[1::2]):
        np.testing.assert_allclose(np.diff(np.sort(angles(own) % (2 * np.pi))), 2 * np.pi / 5, atol=1e-6)
    theta = 2 * np.pi * np.arange(9) / 9
    found = data_of("curve", spacing="even", samples=9).draw().x
    np.testing.assert_allclose(found, curve(theta, 3), atol=1e-6)


def test_halfspace_labels_of_a_curve_are_the_sides_of_a_hyperplane_through_0():
    found = data_of("curve", labels="halfspace", samples=400).draw()
    normal, *_ = np.linalg.lstsq(found.x, found.y, rcond=None)
    assert (found.y * (found.x @ normal) > 0).mean() > 0.9 and set(found.y) == {-1, 1}


# What is measured ------------------------------------------------------------------------------------------------

CURVED = """
name = "curved"
[data]
kind = "subspace"
ambient_dim = 7
samples = 6
distribution = "circles"
[network]
width = 6
[training]
max_steps = 60
learning_rate = 0.3
[measure]
regions = ["off", "normal", "tangent", "on", "full"]
restarts = 4
attack_steps = 8
[axes]
seed = "0:3"
"""


@pytest.mark.parametrize(
    "kernel", [pytest.param(True, marks=needs_kernel), pytest.param(False, marks=pytest.mark.slow)]
)
def test_on_linear_data_tangent_is_on_and_normal_is_off_to_the_byte(kernel, tmp_path, monkeypatch):
    if not kernel:
        monkeypatch.setattr("subspace_adv.models.compiled.fused.unavailable", lambda platform=None: "not here")
    overrides = ["distribution=sphere", "subspace_dim=3"]
    found = run(read(CURVED, *overrides), tmp_path / "linear", trainer=None if kernel else "xla")
    for name in ("gradient_norm_{}", "distance_{}_l2_lower", "distance_{}_l2_upper"):
        for one, other in (("tangent", "on"), ("normal", "off")):
            mine, its = (found[name.format(region)].values for region in (one, other))
            assert mine.tobytes() == its.tobytes() and (mine > 0).any()


@pytest.mark.parametrize("optimizer", ["gd", pytest.param("adam", marks=pytest.mark.slow)])
def test_what_is_measured_at_points_of_a_curved_manifold_agrees_with_numpy(optimizer, tmp_path):
    """In coordinates of the span, and in all of R^d, where adam trains."""
    found = run(read(CURVED, f"optimizer={optimizer}", "learning_rate=0.05"), tmp_path)
    networks, points = load_networks(tmp_path), load_points(tmp_path)
    for i in range(3):
        net = type(networks)(*(np.asarray(field[i], np.longdouble) for field in networks))
        x, basis = np.asarray(points.x[i], np.float64), np.asarray(points.basis[i], np.float64)
        for j, point in enumerate(x):
            gradient = np.asarray(reference.gradient(net, point), np.float64)
            within = point @ basis
            turned = basis @ np.array([-within[1], within[0]]) / np.linalg.norm(within)
            at = found.isel(seed=i, point=j)
            along = abs(gradient @ turned)
            assert at["gradient_norm_tangent"] == pytest.approx(along, rel=1e-4)
            assert at["gradient_norm_normal"] == pytest.approx((gradient @ gradient - along**2) ** 0.5, rel=1e-4)
            sizes = {
                region: [float(at[f"distance_{region}_l2_{side}"]) for side in ("lower", "upper")] for region in REGIONS
            }
            for part, whole in (("off", "normal"), ("tangent", "on"), *itertools.product(REGIONS, ["full"])):
                assert sizes[whole][1] <= sizes[part][1]
            if at["output"] * found["label"].values[j] > 0:
                crossings = [reference.first_flip_along(net, point, side * turned) for side in (1, -1)]
                nearest = min((float(one) for one in crossings if one is not None), default=np.inf)
                np.testing.assert_allclose(sizes["tangent"], nearest, rtol=1e-5)


@pytest.mark.slow
def test_a_cell_of_a_grid_of_distributions_is_as_it_is_alone(tmp_path):
    """Of other dimensions, so of other programs, and read under other settings."""
    overrides = ["distribution=circles,curve,gaussian", "seed=0:2", "regions=off,tangent"]
    together = run(read(CURVED, *overrides), tmp_path / "all")
    for name in together["distribution"].values.tolist():
        alone = run(read(CURVED, *overrides[1:], f"distribution={name}"), tmp_path / name)
        for variable in alone.data_vars:
            mine = together[variable].sel(distribution=name).values
            assert mine.tobytes() == alone[variable].values.tobytes(), (name, variable)


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMS)
def test_the_law_holds_off_the_hull_of_a_curved_manifold(name, tmp_path):
    fields = [f"{leaf}={','.join(map(str, v)) if isinstance(v, tuple) else v}" for leaf, v in FORMS[name].items()]
    sweep = read(CURVED, *fields, "seed=0:300", "regions=off", "ambient_dim=10", "max_steps=300", "width=20")
    found = check(run(sweep, tmp_path))
    assert found.at_points and found.at_points.p_value > 0.01
    assert all(fit.p_value > 0.01 for fit in found.whitened)
    assert all(bound.sample.high >= bound.promised for bound in found.bounds)


WRONG = {
    "curved signals": (["kind=band-limited", "distribution=curve"], "is of kind 'subspace' alone"),
    "one radius": (["radii=1"], "radii"),
    "two alike": (["radii=1,1"], "listed twice"),
    "two alike in float32": (["radii=1,1.00000001"], "1.0 and 1.00000001 are one number in float32"),
    "radius 0": (["radii=0,1"], "greater than 0"),
    "a line of circles": (["ambient_dim=1"], "circles are in 2 dimensions at least"),
    "spheres on a line": (["distribution=spheres", "subspace_dim=1"], "spheres are in 2 dimensions at least"),
    "frequencies": (["distribution=curve", "frequencies=4"], "at most 3 is possible"),
    "clusters of a curve": (["distribution=curve", "labels=clusters"], "no curve has clusters"),
    "dimension of circles": (
        ["subspace_dim=3"],
        "changes nothing; it is read where kind = 'subspace' and distribution",
    ),
    "labels of circles": (["labels=random"], "changes nothing"),
    "radii of a curve": (["distribution=curve", "radii=1,2"], "distribution = 'circles' or 'spheres'"),
    "taxicab normals": (["norms=l1", "regions=normal", "basis=axis-aligned"], "at points of a curved manifold"),
    "radii as an axis": (["radii=1,2", "distribution=gaussian"], "changes nothing"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_is_refused_in_one_line(case):
    overrides, words = WRONG[case]
    with pytest.raises(UserError) as refused:
        read(CURVED, *overrides)
    assert words in str(refused.value) and "\n" not in str(refused.value)
