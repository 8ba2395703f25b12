"""The comparison of law and measurement: on data made by the law, and on data made by another."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import xarray as xr
from scipy import stats
from shell import read
from test_predictions import predicted

from subspace_adv import UserError, checks, theory
from subspace_adv.checks import check
from subspace_adv.datasets import grid_data
from subspace_adv.results import _settings, _sizes
from subspace_adv.sweep import Sweep
from subspace_adv.training import CONVERGED, DIVERGED, PENDING

WIDE = """
name = "wide"
[data]
kind = "subspace"
ambient_dim = 24
subspace_dim = 4
samples = 3
[network]
init = "theory"
width = 50
"""
VARIED = (
    WIDE
    + """
[axes]
width = [25, 50, 100]
ambient_dim = [6, 12, 40]
seed = "0:60"
init_scale = [1.0, 0.5, 0.1]
weight_decay = [0.0, 0.01]
"""
)


def simulated(sweep: Sweep, rng: np.random.Generator, factor=1.0) -> xr.Dataset:
    """A Dataset by F3 and F14, times `factor` (cells, 1).

    All cells of a seed share one off direction and the points of a network its neurons, as in a sweep: only one of
    them is an independent draw. So with what is left of all gradients once whitened, whose number differs.
    """
    datasets, which = grid_data(sweep)
    shapes = [settings.shape for settings in datasets]
    n = max(shape.samples for shape in shapes)
    cells = np.arange(sweep.cells)
    width = sweep.column("width", cells).astype(int)
    seed = np.unique(sweep.column("seed", cells), return_inverse=True)[1]
    codimension = np.array([shape.ambient_dim - shape.subspace_dim for shape in shapes])
    codimension = np.broadcast_to(codimension[which], sweep.shape).ravel()
    active = rng.integers(1, width[:, None] + 1, (sweep.cells, n))
    # In mean-field output weights are 1/m, else 1/√m.
    head = np.where(sweep.column("parametrization", cells) == "mean-field", 1 / width, width**-0.5)[:, None]
    record = {
        "status": np.full(sweep.cells, CONVERGED, np.int8),
        "steps": rng.integers(0, 50, sweep.cells).astype(float),
        "output": rng.standard_normal((sweep.cells, n)),
        "gradient_norm_off_learned": np.zeros((sweep.cells, n), np.float32),
        "head_norm_active": (head * np.sqrt(active)).astype(np.float32),
        "head_sum_active": (head * active).astype(np.float32),
    }
    found = predicted(sweep, record)
    normal = rng.standard_normal((seed.max() + 1, codimension.max()))
    chi = np.sqrt(np.cumsum(normal**2, axis=1)[seed, codimension - 1])[:, None]
    scale = found["predicted_gradient_norm_off_upper_bound"] / np.sqrt(2 * codimension)[:, None]
    arrays = record | found | {"gradient_norm_off": (scale * chi * factor).astype(np.float32)}
    freedom = codimension * rng.integers(1, n + 1, sweep.cells)
    white = rng.standard_normal((seed.max() + 1, n * codimension.max()))
    squares = (
        np.cumsum(white**2, axis=1)[seed, np.maximum(freedom, 1) - 1]
        * np.broadcast_to(factor, (sweep.cells, 1)).ravel() ** 2
    )
    arrays["gradient_off_whitened"] = (found["predicted_off_deviation"] ** 2 * squares).astype(np.float32)
    arrays["gradient_off_freedom"] = freedom.astype(np.float32)
    settings = {**sweep.data.model_dump(), **sweep.network.model_dump(exclude_none=True)}
    shared, along = _sizes(sweep, datasets, which)
    settings = {leaf: value for leaf, value in settings.items() if leaf not in along} | shared
    return xr.Dataset(
        {
            name: ((*sweep.axes, "point")[: len(sweep.axes) + a.ndim - 1], a.reshape((*sweep.shape, *a.shape[1:])))
            for name, a in arrays.items()
        },
        coords={axis: np.array(values) for axis, values in sweep.axes.items()} | along,
        attrs={"name": sweep.name} | {leaf: v for leaf, v in settings.items() if leaf not in sweep.axes},
    )


def of_points(dataset: xr.Dataset) -> checks.Fit:
    """How the gradients at single points fit."""
    found = check(dataset).at_points
    assert found
    return found


def test_where_the_law_holds_p_values_are_uniform():
    """Although cells and points are heavily dependent: each sample has one of a seed."""
    sweep, rng = read(WIDE, "seed=0:40", "data_seed=0:3", "weight_decay=0,0.1"), np.random.default_rng(0)
    found = [of_points(simulated(sweep, rng)) for _ in range(100)]
    assert {outcome.sample for outcome in found} == {40}
    assert stats.kstest([outcome.p_value for outcome in found], "uniform").pvalue > 0.01
    covered = np.mean([outcome.scale.low < 1 < outcome.scale.high for outcome in found])
    assert 0.9 <= covered < 1  # of 95 %


def test_a_scale_wrong_by_3_percent_is_rejected():
    sweep = read(WIDE, "seed=0:2000")
    for seed, factor in enumerate((1.03, 0.97)):
        right, wrong = (of_points(simulated(sweep, np.random.default_rng(seed), f)) for f in (1.0, factor))
        assert right.p_value > 0.01
        assert wrong.p_value < 1e-3
        assert right.scale.low < 1 < right.scale.high
        assert wrong.scale.low < factor < wrong.scale.high
        assert not wrong.scale.low < 1 < wrong.scale.high


def test_a_law_of_another_shape_is_rejected():
    """Of the right root mean square: the length in a codimension of half the size, times √2."""
    sweep, rng = read(WIDE, "seed=0:1000"), np.random.default_rng(0)
    dataset = simulated(sweep, rng)
    other = simulated(read(WIDE, "seed=0:1000", "ambient_dim=14"), rng)
    ratio = other["gradient_norm_off"] / other["predicted_gradient_norm_off_upper_bound"]
    dataset["gradient_norm_off"] = ratio * dataset["predicted_gradient_norm_off_upper_bound"]
    assert of_points(dataset).p_value < 1e-3


def test_exponents_of_the_law_are_found():
    found = check(simulated(read(VARIED), np.random.default_rng(0)))
    predictions = {exponent.axis: exponent.predicted for exponent in found.exponents}
    assert predictions == {"codimension": 0.5, "ambient_dim": -0.5, "width": 0.0, "init_scale": 1.0}
    for exponent in found.exponents:
        assert exponent.seeds == 60
        fitted, low, high = exponent.fitted
        assert low <= fitted <= high
        assert fitted == pytest.approx(exponent.predicted, abs=high - low + 1e-6)  # four standard errors
        assert high - low < 0.2


@pytest.mark.parametrize("axis", ["ambient_dim", "width", "init_scale"])
def test_exponents_of_another_law_are_found_too(axis):
    sweep = read(VARIED)
    values = np.asarray(sweep.column(axis, np.arange(sweep.cells)), float)
    found = check(simulated(sweep, np.random.default_rng(0), values[:, None] ** 0.2))
    [exponent] = [e for e in found.exponents if e.axis == axis]
    fitted, low, high = exponent.fitted
    assert fitted == pytest.approx(exponent.predicted + 0.2, abs=high - low + 1e-6)
    assert low > exponent.predicted + 0.1


def test_exponents_cover_the_truth_as_often_as_they_say():
    sweep, rng = read(WIDE, "seed=0:80", "ambient_dim=8,24,60"), np.random.default_rng(1)
    found = [check(simulated(sweep, rng)).exponents[0].fitted for _ in range(40)]
    assert 0.85 <= np.mean([fitted.low <= 0.5 <= fitted.high for fitted in found]) < 1  # of 95 %


@pytest.mark.parametrize("shift", [0.0, 0.2])
def test_exponents_in_depth_and_in_the_width_by_parametrization(shift):
    """What the width does to the output weights is each parametrization's own; without it, nothing is left (F18)."""
    names = ("standard", "ntk", "mean-field")
    sweep = read(VARIED, f"parametrization={','.join(names)}", "depth=1,3", "ambient_dim=12", "init_scale=1.0")
    values = sweep.column("width", np.arange(sweep.cells)) * sweep.column("depth", np.arange(sweep.cells))
    found = check(simulated(sweep, np.random.default_rng(0), values[:, None].astype(float) ** shift)).exponents
    assert [(one.axis, one.predicted) for one in found] == [
        *(("depth", 0.0), ("width", 0.0), ("width, ntk", 0.0), ("width, mean-field", -0.5)),
    ]
    for one in found:
        fitted, low, high = one.fitted
        assert fitted == pytest.approx(one.predicted + shift, abs=high - low + 1e-6)
        assert (low > one.predicted + 0.1) if shift else high - low < 0.2


def test_exponents_need_seeds_and_fixed_heads():
    rng = np.random.default_rng(0)
    assert check(simulated(read(VARIED, "seed=0:19"), rng)).exponents == ()
    for overrides in (["init=paper-code"], ["trainable=all"]):
        found = check(simulated(read(VARIED, "seed=0:25", *overrides), rng))
        assert [exponent.axis for exponent in found.exponents] == ["codimension", "ambient_dim", "init_scale"]
    found = check(simulated(read(VARIED, "seed=0:25", "trainable=hidden,all"), rng))
    assert "width" in [exponent.axis for exponent in found.exponents]
    assert check(simulated(read(WIDE, "seed=0:25", "weight_decay=0,0.1"), rng)).exponents == ()


DEPTHS = ("depth=1,2,4", "weight_decay=0,0.1")


def test_whitened_by_depth_p_values_are_uniform():
    """Although all cells of a seed share their numbers."""
    sweep, rng = read(WIDE, "seed=0:40", *DEPTHS), np.random.default_rng(0)
    found = [check(simulated(sweep, rng)).whitened for _ in range(60)]
    for depth, fits in zip((1, 2, 4), zip(*found, strict=True), strict=True):
        assert {(fit.of, fit.sample) for fit in fits} == {(f"depth {depth}", 40)}
        assert stats.kstest([fit.p_value for fit in fits], "uniform").pvalue > 0.01
        covered = np.mean([fit.scale.low < 1 < fit.scale.high for fit in fits])
        assert 0.87 <= covered <= 1  # of 95 %, in 60


@pytest.mark.parametrize("factor", [1.03, 0.97])
def test_whitened_a_scale_wrong_at_one_depth_is_rejected_there(factor):
    sweep = read(WIDE, "seed=0:1000", *DEPTHS)
    factors = np.where(sweep.column("depth", np.arange(sweep.cells)) == 2, factor, 1.0)[:, None]
    right, wrong, deep = check(simulated(sweep, np.random.default_rng(0), factors)).whitened
    for fit in (right, deep):
        assert fit.p_value > 0.01 and fit.scale.low < 1 < fit.scale.high
    assert wrong.p_value < 1e-3 and wrong.scale.low < factor < wrong.scale.high
    assert not wrong.scale.low < 1 < wrong.scale.high


def test_whitened_a_degree_of_freedom_too_many_is_rejected():
    dataset = simulated(read(WIDE, "seed=0:2000", "ambient_dim=8"), np.random.default_rng(0))
    assert check(dataset).whitened[0].p_value > 0.01
    dataset["gradient_off_freedom"] += 1
    assert check(dataset).whitened[0].p_value < 1e-3


def test_whitened_what_has_no_freedom_is_left_out():
    dataset = simulated(read(WIDE, "seed=0:50"), np.random.default_rng(0))
    dataset["gradient_off_freedom"][:10] = 0
    dataset["gradient_off_whitened"][10:15] = np.nan
    [fit] = check(dataset).whitened
    assert fit.sample == 35


def ranked(rng: np.random.Generator, redraws: int, change=lambda ranks: ranks) -> xr.Dataset:
    """A Dataset of 300 seeds with ranks, alike in all cells of a seed, of a variable of points and one of networks."""
    dataset = simulated(read(WIDE, "seed=0:300", "weight_decay=0,0.1"), rng)
    dataset.attrs["redraws"] = redraws
    for name, dims in (("margin", ("seed", "weight_decay")), ("output", ("seed", "weight_decay", "point"))):
        ranks = change(rng.integers(0, redraws + 1, 300)).astype(np.float32)
        of_seeds = xr.DataArray(ranks, dims="seed").expand_dims({dim: dataset.sizes[dim] for dim in dims[1:]})
        dataset[f"rank_{name}"] = of_seeds.transpose(*dims)
    return dataset


def test_ranks_that_are_uniform_pass():
    rng = np.random.default_rng(0)
    found = [check(ranked(rng, 9)).ranks for _ in range(40)]
    for name, of_one in zip(("margin", "output"), zip(*found, strict=True), strict=True):
        assert {(one.variable, one.sample) for one in of_one} == {(name, 300)}
        assert stats.kstest([one.p_value for one in of_one], "uniform").pvalue > 0.01


@pytest.mark.parametrize(
    "change",
    [lambda ranks: np.minimum(ranks + 1, 9), lambda ranks: np.maximum(ranks, 1), lambda ranks: ranks // 2 * 2],
    ids=["shifted", "never least", "even"],
)
def test_ranks_of_another_law_are_rejected(change):
    assert all(one.p_value < 1e-3 for one in check(ranked(np.random.default_rng(0), 9, change)).ranks)


def test_ranks_that_are_not_there_are_left_out_and_those_that_never_came_are_counted():
    dataset = ranked(np.random.default_rng(0), 4)
    dataset["rank_margin"] = dataset["rank_margin"] * np.nan
    dataset["rank_output"] = dataset["rank_output"].where(dataset["seed"] < 120) * 0
    [one] = check(dataset).ranks
    assert (one.variable, one.sample) == ("output", 120)
    assert one.p_value == pytest.approx(stats.chisquare([120, 0, 0, 0, 0]).pvalue)
    dataset.attrs["redraws"] = 0
    assert check(dataset).ranks == ()


def test_bounds_are_counted():
    sweep = read(WIDE, "seed=0:500", "ambient_dim=6,24")
    dataset = simulated(sweep, np.random.default_rng(0))
    for found, name, held in zip(check(dataset).bounds, ("lower", "upper"), ("__ge__", "__le__"), strict=True):
        bound = dataset[f"predicted_gradient_norm_off_{name}_bound"]
        share = getattr(dataset["gradient_norm_off"], held)(bound).mean()
        assert found.side == name
        assert found.share == pytest.approx(float(share), abs=1e-9)
        assert found.sample.low < share < found.sample.high
        assert found.promised == pytest.approx(1 - (np.exp(-2 / 16) + np.exp(-20 / 16)) / 2, abs=0.01)
        assert found.sample.high >= found.promised
    dataset["gradient_norm_off"] *= 0.1
    lower, upper = check(dataset).bounds
    assert lower.sample.high < lower.promised
    assert upper.sample == (1, pytest.approx(0.025 ** (1 / 500)), 1)  # Clopper–Pearson


def test_what_cannot_be_compared_is_left_out_and_counted():
    sweep = read(WIDE, "seed=0:100", "init=theory,torch", "init_scale=1,0.5")
    dataset = simulated(sweep, np.random.default_rng(0))
    whole = check(dataset)
    assert whole.at_points and [fit.sample for fit in (whole.at_points, *whole.whitened)] == [100, 100]
    assert whole.networks == 200
    assert whole.left_out == {"pending": 0, "diverged": 0, "without prediction": 200}
    assert (whole.points, whole.idle_points) == (600, 0)
    status = dataset["status"].values
    status[:10], status[10:15, 0, 1] = PENDING, DIVERGED
    for name in dataset.data_vars:
        if name != "status":
            dataset[name] = dataset[name].where(dataset["status"] == CONVERGED)
    idle = xr.DataArray(np.arange(3) == 1, dims="point") & (dataset["seed"] >= 50)
    for name in ("gradient_norm_off", "head_norm_active", "head_sum_active", *predictions_of_points(dataset)):
        dataset[name] = dataset[name] * ~idle
    part = check(dataset)
    assert part.left_out == {"pending": 40, "diverged": 5, "without prediction": 180}
    assert part.at_points and [fit.sample for fit in (part.at_points, *part.whitened)] == [90, 90]
    assert part.networks == 175
    assert (part.points, part.idle_points) == (525, 100)
    assert part.at_points.p_value > 0.01 and part.whitened[0].p_value > 0.01


def test_what_is_compared_is_left_as_it_is():
    dataset = simulated(read(WIDE, "seed=0:20", "init=theory,torch"), np.random.default_rng(0))
    for name in ("gradient_norm_off", "head_norm_active", "head_sum_active", *predictions_of_points(dataset)):
        dataset[name][:5] = 0  # no neuron is active
    before = dataset.copy(deep=True)
    check(dataset)
    xr.testing.assert_identical(dataset, before)


@pytest.mark.parametrize(
    "overrides",
    [
        ["kind=line"],
        ["kind=subspace,line", "init=paper-code,theory", "seed=0:40"],
        ["kind=line,subspace", "ambient_dim=6,24", "init=theory,paper-code", "width=25,50", "seed=0:40"],
        ["init=theory", "trainable=all,hidden", "width=25,50", "seed=0:40"],
    ],
)
@pytest.mark.filterwarnings("ignore:.*left out, as read only where")
def test_settings_as_results_tell_them_are_those_set(overrides):
    """The sizes of a line, what is trained by default, and what differs along an axis."""
    sweep = read(WIDE, *overrides)
    dataset = simulated(sweep, np.random.default_rng(0))
    shared, along = _settings(sweep, *grid_data(sweep))
    told = dataset.assign_coords(along)
    told.attrs = {"name": sweep.name, **shared}
    assert set(along) | set(shared) | set(sweep.axes) >= {"ambient_dim", "subspace_dim", "trainable"}
    assert check(told) == check(dataset)


def predictions_of_points(dataset: xr.Dataset) -> list[str]:
    return [str(name) for name in dataset.data_vars if str(name).startswith("predicted_gradient")]


@pytest.mark.parametrize(
    ("overrides", "status", "words"),
    [
        (["init=torch"], CONVERGED, "wide: nothing to check: no cell has a prediction; that takes networks of"),
        (["optimizer=adam"], CONVERGED, "no cell has a prediction"),
        (["ambient_dim=4"], CONVERGED, "no cell has a prediction"),
        ([], PENDING, "no network is trained yet; run the sweep to its end"),
        ([], DIVERGED, "every network has diverged"),
    ],
)
def test_where_there_is_nothing_to_compare_the_reason_is_told(overrides, status, words):
    rng = np.random.default_rng(0)
    dataset = simulated(read(WIDE, "seed=0:3"), rng)
    sweep = read(WIDE, "seed=0:3", *overrides)
    record = {name: dataset[name].values for name in dataset.data_vars if not str(name).startswith("predicted")}
    dataset["status"][:] = record["status"][:] = status
    for name, values in predicted(sweep, record).items():  # pyright: ignore[reportArgumentType]
        dataset[name] = (dataset[name].dims, values)
    with pytest.raises(UserError, match=words):
        check(dataset)


def test_one_network_without_axes_is_a_sample_of_one():
    """The p value is twice the lesser tail of its length, in units of an upper bound √(2·20)."""
    dataset = simulated(read(WIDE), np.random.default_rng(0))
    found = check(dataset)
    assert found.at_points and (found.networks, found.at_points.sample, found.exponents) == (1, 1, ())
    ratio = dataset["gradient_norm_off"] / dataset["predicted_gradient_norm_off_upper_bound"]
    length, law = float(ratio[0]) * 40**0.5, stats.chi(20)
    assert found.at_points.p_value == pytest.approx(2 * min(law.cdf(length), law.sf(length)), rel=1e-5)
    [all_points] = found.whitened
    squares = float(dataset["gradient_off_whitened"] / dataset["predicted_off_deviation"] ** 2)
    law = stats.chi2(float(dataset["gradient_off_freedom"]))
    assert (all_points.of, all_points.sample) == ("depth 1", 1)
    assert all_points.p_value == pytest.approx(2 * min(law.cdf(squares), law.sf(squares)), rel=1e-5)


@pytest.mark.parametrize("dof", [1, 8, 20])
def test_a_scale_wrong_by_5_percent_and_a_degree_of_freedom_too_many_are_rejected(dof):
    lengths = stats.chi(dof).rvs(20_000, random_state=0)
    assert checks._p_value(theory.chi_cdf(np.full(len(lengths), dof), lengths)) > 0.01
    for other, factor in ((dof, 1.05), (dof, 0.95), (dof + 1, 1)):
        assert checks._p_value(theory.chi_cdf(np.full(len(lengths), other), factor * lengths)) < 1e-3


def test_the_scale_is_that_of_a_normal_sample():
    """Of chi lengths of several degrees of freedom, with chi-square's interval."""
    dof = np.array([1, 3, 8, 20])
    lengths = 2 * stats.chi(dof).rvs(random_state=1)
    found = checks._scale(lengths**2, dof)
    low, high = stats.chi2.interval(0.95, dof.sum())
    squares = (lengths**2).sum()
    assert found == pytest.approx((np.sqrt(squares / 32), np.sqrt(squares / high), np.sqrt(squares / low)))


def test_bounds_hold_at_their_ends_and_leave_out_what_is_unknown():
    length = np.array([[2, 4], [1.9, 4.1], [3, np.nan], [np.inf, 3]])[:, None]  # the bounds are 2 and 4
    promised = np.array([0.1, 0.2, 0.3, 0.4]).reshape(4, 1, 1)
    measured: Any = SimpleNamespace(bounded=(length / 2, length / 4), promised=promised)
    of_sample = length[checks._independent(~np.isnan(length))]
    lower, upper = checks._bounds(measured)
    assert (lower.share, upper.share) == pytest.approx((6 / 7, 5 / 7))
    for found, held in ((lower, of_sample >= 2), (upper, of_sample <= 4)):
        ends = stats.binomtest(int(held.sum()), 4).proportion_ci(0.95, method="exact")
        assert found.sample == pytest.approx((held.mean(), *ends))
        assert found.promised == pytest.approx(0.25)


@pytest.mark.parametrize("power", [-0.5, 0.5, 1.0])
def test_powers_are_found_to_rounding_whatever_else_differs(power):
    rng = np.random.default_rng(0)
    along = np.array([1.0, 1.0, 4.0, 9.0])
    values = (rng.uniform(1, 2, (30, 1, 1)) * along[:, None] ** power).repeat(3, axis=2)
    values[:, 1, 1:] = np.nan  # points that are not there
    seeds, fitted = checks._power(values, along)  # pyright: ignore[reportGeneralTypeIssues]
    assert seeds == 30
    assert fitted == pytest.approx((power,) * 3)


def test_powers_take_root_mean_squares_of_seeds_that_have_every_place():
    values = np.ones((40, 2, 2), np.float32)
    values[:, 1] = [1, 7]  # root mean square 5
    values[:10, 1] = np.nan
    values[10, 0], values[11, 0] = 0, np.inf
    seeds, fitted = checks._power(values, np.array([1.0, 5.0]))  # pyright: ignore[reportGeneralTypeIssues]
    assert seeds == 28
    assert fitted == pytest.approx((1, 1, 1))
    assert checks._power(1e30 * values, np.array([1.0, 5.0]))[1] == pytest.approx((1, 1, 1))  # pyright: ignore


def test_the_sample_leaves_out_seeds_without_entries_and_takes_valid_ones():
    valid = np.random.default_rng(0).random((200, 3, 2)) < 0.3
    valid[7] = False
    at = checks._independent(valid)
    assert at[0].tolist() == np.flatnonzero(valid.any(axis=(1, 2))).tolist()
    assert valid[at].all()


def test_the_sample_goes_round_all_cells_and_points():
    seeds, others, points = checks._independent(np.ones((240, 4, 3), bool))
    assert seeds.tolist() == list(range(240))
    counts = np.bincount(others * 3 + points)
    assert len(counts) == 12
    assert counts.min() >= 19
    assert counts.max() <= 21
