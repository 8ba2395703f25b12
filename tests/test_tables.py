"""Summaries: intervals as the bootstrap has them, and paired gains where the answer is known."""

import itertools
import math

import numpy as np
import pytest
import xarray as xr
from scipy.stats import binomtest, bootstrap, sem, t

from subspace_adv import open_results
from subspace_adv.tables import (
    EXACT,
    Estimate,
    _curve,
    _median_ignoring_nan,
    arms,
    fooling_rate,
    median_interval,
    per_network,
    regions_and_norms,
    robust_accuracy,
    standard_arm,
    summarize,
    tightness,
    typical_epsilons,
)
from subspace_adv.training import CONVERGED, DIVERGED, PENDING, STEP_LIMIT

SCALES, DECAYS, SEEDS, POINTS = [1.0, 0.5, 0.25], [0.0, 0.1], 41, 5


@pytest.fixture
def known() -> xr.Dataset:
    """Distances that each remedy raises by a known amount at every seed, whatever the spread over seeds."""
    rng = np.random.default_rng(0)
    at_seed = 10 * rng.random(SEEDS)
    gain = np.array([0, 0.5, 0.25])[:, None] + np.array([0, 0.125])[None, :]
    network = at_seed[None, :, None] + gain[:, None, :]  # (scale, seed, decay)
    spread = np.array([-3, -1, 0, 2, 900])  # over points; its median is 0
    distance = network[..., None] + spread
    dims = ("init_scale", "seed", "weight_decay")
    return xr.Dataset(
        {
            "status": (dims, np.full(network.shape, CONVERGED, np.int8)),
            "steps": (dims, np.broadcast_to(np.arange(SEEDS, dtype=float)[None, :, None], network.shape).copy()),
            "gradient_norm_off": ((*dims, "point"), 2 * distance),
            "distance_off_l2_upper": ((*dims, "point"), distance),
            "distance_off_l2_lower": ((*dims, "point"), distance / 2),
        },
        coords={"init_scale": SCALES, "seed": np.arange(SEEDS), "weight_decay": DECAYS},
    )


def test_one_row_for_each_arm_and_known_gains(known):
    rows = summarize(known)
    assert [row.arm for row in rows] == [{"init_scale": s, "weight_decay": d} for s in SCALES for d in DECAYS]
    assert rows[0].gain == {}
    for row, gain in zip(rows[1:], [0.125, 0.5, 0.625, 0.25, 0.375], strict=True):
        assert list(row.gain) == [("off", "l2")]
        assert row.gain["off", "l2"] == pytest.approx((gain, gain, gain))  # paired: no spread over seeds is left
        assert row.distance["off", "l2"].low < row.distance["off", "l2"].median < row.distance["off", "l2"].high
        assert row.networks == SEEDS
        assert row.converged == 1
        assert row.steps == SEEDS // 2
        assert row.gradient_off.median == pytest.approx(2 * row.distance["off", "l2"].median)
    expected = np.median(known["distance_off_l2_upper"].isel(init_scale=0, weight_decay=0, point=2))
    assert rows[0].distance["off", "l2"].median == expected


def test_gains_are_paired_by_seed_and_not_by_rank():
    """Four of five networks gain 10, though sorted distances are the same in both arms."""
    distance = np.array([[0, 10, 20, 30, 40], [10, 20, 30, 40, 0]], float)
    dims = ("init_scale", "seed")
    names = ("steps", "gradient_norm_off", "distance_off_l2_lower", "distance_off_l2_upper")
    dataset = xr.Dataset(
        {name: (dims, distance) for name in names} | {"status": (dims, np.full(distance.shape, CONVERGED, np.int8))},
        coords={"init_scale": [1.0, 0.5], "seed": np.arange(5)},
    )
    assert summarize(dataset)[1].gain["off", "l2"] == (10, -40, 10)


def test_distances_and_gains_are_told_in_every_norm(known):
    for side in ("lower", "upper"):
        known[f"distance_on_l1_{side}"] = 3 * known[f"distance_off_l2_{side}"]
    for row in summarize(known):
        assert list(row.distance) == [("off", "l2"), ("on", "l1")]
        for told in (row.distance, row.gain) if row.gain else (row.distance,):
            assert told["on", "l1"] == pytest.approx([3 * number for number in told["off", "l2"]])


def test_a_distance_is_the_median_over_points_then_over_networks(known):
    arm = {"init_scale": 1.0, "weight_decay": 0.0}
    values = per_network(known, "distance_off_l2_upper", arm)
    assert np.array_equal(values, known["distance_off_l2_upper"].sel(arm).values[:, 2])
    assert np.array_equal(per_network(known, "steps", arm), np.arange(SEEDS))


def test_infinite_distances_are_ordinary(known):
    known["distance_off_l2_upper"][0, :, 0] = np.inf  # the standard arm is never flipped
    known["distance_off_l2_upper"][1, : SEEDS // 2 + 1, 0] = np.inf  # half of another arm neither
    rows = summarize(known)
    assert rows[0].distance["off", "l2"] == Estimate(math.inf, math.inf, math.inf)
    assert rows[2].distance["off", "l2"].median == math.inf
    assert rows[2].distance["off", "l2"].low < math.inf
    where_one_is_flipped_and_the_other_not = Estimate(-math.inf, -math.inf, -math.inf)
    assert rows[2].gain["off", "l2"] == where_one_is_flipped_and_the_other_not
    assert rows[1].gain["off", "l2"].median == -math.inf


def test_gains_of_opposite_infinities_have_no_median_in_silence():
    assert math.isnan(median_interval(np.array([-np.inf, np.inf], np.float32)).median)


def test_nan_is_left_out(known):
    known["status"][0, :3, 0] = DIVERGED
    known["status"][0, 3:10, 0] = PENDING
    known["status"][0, 10:20, 0] = STEP_LIMIT
    for name in ("distance_off_l2_upper", "gradient_norm_off", "steps"):
        known[name][0, :10, 0] = np.nan
    known["distance_off_l2_upper"][1, :, 0, 3:] = np.nan  # points beyond a smaller dataset's
    rows = summarize(known)
    assert rows[0].networks == SEEDS - 7
    assert rows[0].converged == pytest.approx((SEEDS - 20) / (SEEDS - 7))
    assert rows[0].distance["off", "l2"] == median_interval(known["distance_off_l2_upper"].values[0, 10:, 0, 2])
    assert rows[1].gain["off", "l2"] == pytest.approx((0.125,) * 3)
    assert rows[2].gain["off", "l2"] == pytest.approx((-0.5,) * 3)  # the median of the points left is 1 lower


def test_an_arm_without_networks_is_nan_in_silence(known):
    known["status"][0, :, 0] = PENDING
    for name in ("distance_off_l2_upper", "gradient_norm_off", "steps"):
        known[name][0, :, 0] = np.nan
    row = summarize(known)[0]
    assert (row.networks, row.converged) == (0, 0)
    assert all(map(math.isnan, (row.steps, *row.gradient_off, *row.distance["off", "l2"])))


def test_sweeps_without_seeds_have_rows_of_one_network(known):
    rows = summarize(known.isel(seed=3, drop=True))
    assert len(rows) == 6
    assert rows[0].networks == 1
    low, median, high = (rows[1].gain["off", "l2"][i] for i in (1, 0, 2))
    assert low == median == high == pytest.approx(0.125)


def test_sweeps_without_axes_have_one_row(known):
    (row,) = summarize(known.isel(seed=3, init_scale=0, weight_decay=0, drop=True))
    assert row.arm == {}
    assert row.gain == {}
    assert math.isfinite(row.distance["off", "l2"].median)


def test_names_as_values_of_axes(known):
    renamed = known.rename(init_scale="init").assign_coords(init=["torch", "theory", "paper-code"])
    rows = summarize(renamed)
    assert [row.arm["init"] for row in rows] == ["torch"] * 2 + ["theory"] * 2 + ["paper-code"] * 2
    assert rows[3].gain["off", "l2"] == pytest.approx((0.125,) * 3)  # from the same init without weight decay


def test_the_standard_arm_has_the_first_value_of_each_remedy(known):
    wider = known.expand_dims(width=[10, 20])
    assert standard_arm(wider, {"width": 20, "init_scale": 0.5, "weight_decay": 0.1}) == {
        "width": 20,
        "init_scale": 1.0,
        "weight_decay": 0.0,
    }
    plain = known.isel(init_scale=[0], weight_decay=0, drop=True).expand_dims(width=[10, 20])
    assert standard_arm(plain, {"width": 20, "init_scale": 1.0}) == {"width": 10, "init_scale": 1.0}
    assert len(list(arms(wider))) == 12


def test_both_kinds_of_seeds_are_repetitions(known):
    repeated = known.expand_dims(data_seed=[0, 1])
    rows = summarize(repeated)
    assert len(rows) == 6
    assert rows[0].networks == 2 * SEEDS


def test_a_real_run_has_a_table(tiny):
    dataset = open_results(tiny)
    rows = summarize(dataset)
    assert len(rows) == 4
    mine, standard = rows[1], rows[0]
    assert (mine.arm, standard.arm) == ({"width": 3, "init_scale": 0.5}, {"width": 3, "init_scale": 1.0})
    distances = dataset["distance_off_l2_upper"].sel(width=3).median("point")
    with np.errstate(invalid="ignore"):
        gains = (distances.sel(init_scale=0.5) - distances.sel(init_scale=1.0)).values
    assert mine.gain["off", "l2"].median == pytest.approx(np.median(gains[~np.isnan(gains)]))
    assert mine.gradient_off.median == pytest.approx(
        float(dataset["gradient_norm_off"].sel(mine.arm).median("point").median("seed"))
    )


@pytest.mark.parametrize(
    "values", [[3, 1], [1, 1, 2], [2, 7, 1, 8], [5, 5, 1, 5, 2], [0, 3, np.inf, 1, 2], [*range(6)]]
)
@pytest.mark.parametrize("level", [0.95, 0.5])
def test_interval_is_that_of_all_resamples(values, level):
    """Of their medians; where n is even, of their lower medians below and of their upper ones above."""
    n, tails = len(values), ((1 - level) / 2, (1 + level) / 2)
    resamples = np.sort(list(itertools.product(values, repeat=n)), axis=1)
    medians = (resamples[:, (n - 1) // 2], resamples[:, n // 2])
    ends = [np.quantile(m, tail, method="inverted_cdf") for m, tail in zip(medians, tails, strict=True)]
    assert median_interval(np.array([*values, np.nan]), level) == (np.median(values), *ends)


def test_medians_ignore_nan_as_numpys_do():
    values = np.random.default_rng(0).choice([np.nan, np.inf, 0, 1, 2.5], (500, 6)).astype(np.float32)
    for width in (1, 2, 5, 6):
        known = values[~np.isnan(values[:, :width]).all(axis=1), :width]
        np.testing.assert_array_equal(_median_ignoring_nan(known), np.nanmedian(known, axis=1))
    assert np.isnan(_median_ignoring_nan(np.full((2, 6), np.nan))).all()
    largest = np.finfo(np.float32).max
    assert _median_ignoring_nan(np.full((1, 2), largest)) == [largest]


@pytest.mark.parametrize("n", [1, 3, 5, 11, 25, 51, 101])
def test_interval_is_the_bootstraps(n):
    """The percentile bootstrap with infinitely many resamples, to within one order statistic."""
    values = np.random.default_rng(n).standard_normal(n)
    estimate = median_interval(values)
    assert estimate.median == np.median(values)
    ordered = np.sort(values)
    if n == 1:
        assert estimate.low == estimate.high == values[0]
        return
    rng = np.random.default_rng(0)
    drawn = bootstrap((values,), np.median, method="percentile", n_resamples=20_000, batch=5000, random_state=rng)
    for mine, theirs in zip(estimate[1:], drawn.confidence_interval, strict=True):
        assert abs(np.searchsorted(ordered, mine) - np.searchsorted(ordered, theirs)) <= 1


@pytest.mark.parametrize("n", [2, 4, 12, 50])
def test_interval_of_an_even_number_holds_the_bootstraps(n):
    values = np.random.default_rng(n).standard_normal(n)
    rng = np.random.default_rng(0)
    drawn = bootstrap((values,), np.median, method="percentile", n_resamples=20_000, batch=5000, random_state=rng)
    low, high = drawn.confidence_interval
    estimate = median_interval(values)
    assert estimate.low <= low + 1e-9
    assert high - 1e-9 <= estimate.high
    assert estimate.median == np.median(values)


@pytest.mark.parametrize("n", [15, 40, 101])
def test_interval_covers_the_median_as_often_as_it_says(n):
    rng = np.random.default_rng(n)
    covered = 0
    for values in rng.exponential(size=(2000, n)):
        estimate = median_interval(values)
        covered += estimate.low <= math.log(2) <= estimate.high
    assert 0.93 < covered / 2000 < 0.985


def test_interval_of_samples_at_the_edge():
    assert median_interval(np.array([2.0])) == (2, 2, 2)
    assert median_interval(np.array([np.nan, 2.0])) == (2, 2, 2)
    assert all(map(math.isnan, median_interval(np.array([]))))
    assert median_interval(np.array([1.0, np.inf, np.inf])) == (math.inf, 1, math.inf)
    assert median_interval(np.full(9, 3.0)) == (3, 3, 3)
    assert median_interval(np.arange(101.0), level=0.5).high < median_interval(np.arange(101.0)).high


HELDOUT, SIZES = 16, (0.0, 0.3, 1.0, 2.5, 1e9)


@pytest.fixture
def flips() -> xr.Dataset:
    """Distances of random networks and points: misclassified, never flipped, diverged, pending, no such point."""
    rng = np.random.default_rng(7)
    dims, shape = ("seed", "init_scale", "data_seed"), (SEEDS, 2, 3)
    upper = rng.exponential(size=(*shape, POINTS)).astype(np.float32)
    upper[rng.random(upper.shape) < 0.2] = 0
    upper[rng.random(upper.shape) < 0.2] = np.inf
    arrays = {
        "distance_off_l2_upper": upper,
        "distance_off_l2_lower": np.where(np.isinf(upper), 3, upper * rng.random(upper.shape).astype(np.float32)),
        "distance_universal": upper * 2,
        "distance_random": upper * 4,
    }
    status = np.full(shape, CONVERGED, np.int8)
    status[0], status[1] = DIVERGED, PENDING
    for values in arrays.values():
        values[:2] = np.nan
        values[:, :, 1, 3:] = np.nan  # points beyond a smaller dataset's
    variables = {name: ((*dims, "point"), values) for name, values in arrays.items()}
    for direction in ("universal", "random"):
        heldout = rng.exponential(size=(*shape, HELDOUT)).astype(np.float32)
        heldout[:2] = np.nan
        variables[f"distance_{direction}_heldout"] = ((*dims, "heldout"), heldout)
    coords = {"seed": np.arange(SEEDS), "init_scale": [1.0, 0.5], "data_seed": [0, 1, 2]}
    return xr.Dataset({"status": (dims, status)} | variables, coords=coords)


def mean_share(values: np.ndarray, holds) -> list[float]:
    """Mean over networks of the share of points, and its interval, one network at a time."""
    shares = []
    for network in values.reshape(-1, values.shape[-1]):
        known = [holds(float(point)) for point in network if not math.isnan(point)]
        told = [answer for answer in known if answer is not None]
        if told:
            shares.append(sum(told) / len(told))
    if set(shares) in ({0}, {1}):
        ends = binomtest(int(sum(shares)), len(shares)).proportion_ci(0.95, method="exact")
        return [shares[0], *ends]
    mean, reach = np.mean(shares), t.ppf(0.975, len(shares) - 1) * np.std(shares, ddof=1) / len(shares) ** 0.5
    return [float(mean), max(float(mean - reach), 0), min(float(mean + reach), 1)]


def test_robust_accuracy_is_the_share_of_points_whose_distance_exceeds_epsilon(flips):
    for arm in arms(flips):
        for side, curve in zip(("lower", "upper"), robust_accuracy(flips, arm, "off", "l2", SIZES), strict=True):
            values = flips[f"distance_off_l2_{side}"].sel(arm).values
            for i, size in enumerate(SIZES):
                expected = mean_share(values, lambda distance, size=size: distance > size)
                assert [curve.mean[i], curve.low[i], curve.high[i]] == pytest.approx(expected, rel=1e-9)
            assert (np.diff(curve.mean) <= 0).all()


def test_a_certified_share_is_no_larger_than_an_attacked_one_and_0_is_the_accuracy(flips):
    certified, attacked = robust_accuracy(flips, {"init_scale": 1.0}, "off", "l2", SIZES)
    assert (certified.mean <= attacked.mean).all()
    upper = flips["distance_off_l2_upper"].sel(init_scale=1.0).values
    shares = [(row[~np.isnan(row)] > 0).mean() for row in upper.reshape(-1, POINTS) if not np.isnan(row).all()]
    assert attacked.mean[0] == pytest.approx(np.mean(shares))
    assert certified.mean[-1] == 0 < attacked.mean[-1]


def test_fooling_rates_leave_out_misclassified_training_points_and_no_heldout_ones(flips):
    for arm in arms(flips):
        for direction in ("universal", "random"):
            found = fooling_rate(flips, arm, direction, SIZES)
            for end, curve in (("", found.training), ("_heldout", found.heldout)):
                values = flips[f"distance_{direction}{end}"].sel(arm).values
                for i, size in enumerate(SIZES):
                    expected = mean_share(values, lambda d, size=size: None if d == 0 else d <= size)
                    assert [curve.mean[i], curve.low[i], curve.high[i]] == pytest.approx(expected, rel=1e-9)
            assert found.training.mean[0] == found.heldout.mean[0] == 0
            assert found.heldout.mean[-1] == 1 > found.training.mean[-1]


def test_a_distance_equal_to_epsilon_is_fooled_and_not_robust():
    distance = np.array([[0.25, 0.5, 1.0]], np.float32)
    names = ("distance_off_l2_lower", "distance_off_l2_upper", "distance_random")
    dataset = xr.Dataset({name: (("seed", "point"), distance) for name in names})
    dataset["distance_random_heldout"] = (("seed", "heldout"), distance)
    for side in robust_accuracy(dataset, {}, "off", "l2", [0.25, 0.5, 1.0]):
        assert side.mean == pytest.approx([2 / 3, 1 / 3, 0])
    for curve in fooling_rate(dataset, {}, "random", [0.25, 0.5, 1.0]):
        assert curve.mean == pytest.approx([1 / 3, 2 / 3, 1])


def test_sizes_are_not_rounded_to_the_precision_of_distances():
    distance = np.array([[0.1]], np.float32)  # a little more than 0.1
    names = ("distance_off_l2_lower", "distance_off_l2_upper", "distance_random")
    dataset = xr.Dataset({name: (("seed", "point"), distance) for name in names})
    dataset["distance_random_heldout"] = (("seed", "heldout"), distance)
    assert robust_accuracy(dataset, {}, "off", "l2", [0.1, 1e300]).certified.mean.tolist() == [1, 0]
    assert fooling_rate(dataset, {}, "random", [0.1, 1e300]).heldout.mean.tolist() == [0, 1]


def test_intervals_of_shares_are_students_within_0_and_1():
    for shares in ([0.2, 0.4, 0.9, 0.5], [0.1, 0.0, 0.0], [1.0, 0.75]):
        known = np.array(shares)
        low, high = t.interval(0.95, len(known) - 1, known.mean(), sem(known))
        found = _curve([np.array([*shares, np.nan])])
        expected = (known.mean(), max(low, 0), min(high, 1))
        assert (found.mean[0], found.low[0], found.high[0]) == pytest.approx(expected)


@pytest.mark.parametrize("n", [2, 10, 200])
def test_the_interval_of_equal_shares_is_what_networks_unseen_leave_open(n):
    for share in (0.0, 1.0):
        ends = binomtest(int(share) * n, n).proportion_ci(0.95, method="exact")
        found = _curve([np.full(n, share)])
        assert (found.mean[0], found.low[0], found.high[0]) == pytest.approx((share, *ends))
    low, high = (_curve([np.full(n, 0.4)])[i][0] for i in (1, 2))
    # Means at the ends, of shares 0.4 and otherwise 0 or 1: all n are 0.4 with probability 0.025.
    assert (low / 0.4) ** n == pytest.approx(0.025)
    assert ((1 - high) / 0.6) ** n == pytest.approx(0.025)


def test_one_network_has_no_interval_and_none_has_no_share(flips):
    one = robust_accuracy(flips.isel(seed=[5], data_seed=[0]), {"init_scale": 1.0}, "off", "l2", [0.5])
    values = flips["distance_off_l2_upper"].values[5, 0, 0]
    assert one.attacked.mean == [(values > 0.5).mean()]
    assert np.isnan([*one.attacked.low, *one.attacked.high]).all()
    none = fooling_rate(flips.isel(seed=[0, 1]), {"init_scale": 1.0}, "random", [0.5])
    assert np.isnan([*none.training.mean, *none.heldout.mean]).all()


def test_linear_networks_have_their_closed_forms():
    """N(x) = a·x flips at |N(x)| / |a| off a subspace, and at |N(x)| / |a·v| along v."""
    rng = np.random.default_rng(3)
    a, v, margins = rng.standard_normal(4), np.array([0.6, 0.8, 0, 0]), np.sort(rng.uniform(-1, 3, (1, 40)))
    exact = np.maximum(margins, 0) / np.linalg.norm(a)
    along = np.maximum(margins, 0) / abs(a @ v)
    points = {"distance_off_l2_lower": exact, "distance_off_l2_upper": exact, "distance_universal": along}
    dataset = xr.Dataset(
        {name: (("seed", "point"), values) for name, values in points.items()}
        | {"distance_universal_heldout": (("seed", "heldout"), np.abs(margins) / abs(a @ v))}
    )
    for size in (0.0, 0.2, 1.0):
        certified, attacked = robust_accuracy(dataset, {}, "off", "l2", [size])
        assert certified.mean == attacked.mean == (margins > size * np.linalg.norm(a)).mean()
        fooled = fooling_rate(dataset, {}, "universal", [size])
        right = margins[margins > 0]
        assert fooled.training.mean == (right <= size * abs(a @ v)).mean()
        assert fooled.heldout.mean == (np.abs(margins) <= size * abs(a @ v)).mean()


def test_regions_and_norms_are_those_measured(flips):
    assert regions_and_norms(flips) == [("off", "l2")]
    other = {f"distance_{where}_lower": flips["distance_off_l2_lower"] for where in ("full_linf", "on_l2", "off_linf")}
    assert regions_and_norms(flips.assign(other)) == [("off", "l2"), ("on", "l2"), ("off", "linf"), ("full", "linf")]
    assert regions_and_norms(flips.drop_vars("distance_off_l2_lower")) == []


def test_tightness_is_the_share_of_correct_points_that_can_be_flipped_whose_ends_are_near(flips):
    lower, upper = (flips[f"distance_off_l2_{side}"] for side in ("lower", "upper"))
    lower[5:9] = upper[5:9] * (1 - 3e-8)  # no nearer in float32
    lower[9:12] = upper[9:12] / 1.04
    lower[12, 0, 0], upper[13, 0, 0] = 0, np.inf  # nothing certified; nothing found
    lower[12, 1, 0], upper[12, 1, 0] = np.inf, np.inf
    within, points, unflippable = dict.fromkeys((EXACT, 0.01, 0.05, 1e9), 0), 0, 0
    for low, up in zip(lower.values.ravel().tolist(), upper.values.ravel().tolist(), strict=True):
        if math.isnan(up) or up == 0:
            continue
        unflippable += low == math.inf
        points += low < math.inf
        for gap in within:
            within[gap] += up <= low * (1 + gap) and low < math.inf
    found = tightness(flips, "off", "l2")
    assert (len(found.gaps), found.unflippable) == (points, unflippable)
    assert 0 < within[EXACT] < within[0.05] < within[1e9] < points
    for gap, count in within.items():
        assert found.share(gap) == pytest.approx(count / points)


def test_ends_that_differ_by_float32_s_rounding_are_exact_and_no_others(flips):
    upper = flips["distance_off_l2_upper"]
    flips["distance_off_l2_lower"] = np.nextafter(np.nextafter(upper, np.float32(0)), np.float32(0))
    upper.values[np.isinf(upper)] = 1
    assert tightness(flips, "off", "l2").share(EXACT) == 1
    flips["distance_off_l2_lower"] = upper * np.float32(1 - 2e-6)
    assert tightness(flips, "off", "l2").share(EXACT) == 0


def test_where_nothing_can_be_flipped_there_is_no_share(flips):
    for side in ("lower", "upper"):
        flips[f"distance_off_l2_{side}"][:] = np.inf
    found = tightness(flips, "off", "l2")
    assert math.isnan(found.share(0.05)) and found.unflippable == flips["distance_off_l2_upper"].size


def test_typical_sizes_are_the_quartiles_to_as_few_digits_as_tell_them_apart():
    def found(distances: list[float]) -> list[float]:
        names = ("distance_off_l2_lower", "distance_off_l2_upper")
        dataset = xr.Dataset({name: (("seed", "point"), [distances]) for name in names})
        dataset["status"] = ("seed", [CONVERGED])
        return typical_epsilons(dataset, "l2")

    assert found([0, 1.2, 2.1, 2.9, 4.1, 5.2, np.inf, np.nan]) == [2, 3, 4]
    assert found([1.0, 1.11, 1.21, 1.32, 9.0]) == [1.1, 1.2, 1.3]


def test_typical_sizes_are_round_numbers_near_the_quartiles_of_the_standard_arm(flips):
    values = flips["distance_off_l2_upper"].sel(init_scale=1.0).values
    finite = values[np.isfinite(values) & (values > 0)]
    found = typical_epsilons(flips, "l2")
    np.testing.assert_allclose(found, np.quantile(finite, (0.25, 0.5, 0.75)), rtol=0.34)
    assert all(float(f"{size:.2g}") == size for size in found)
    flips["distance_off_l2_upper"].loc[{"init_scale": 1.0}] = 0.123
    assert typical_epsilons(flips, "l2") == [0.1]
    flips["distance_off_l2_upper"][:] = np.inf
    assert typical_epsilons(flips, "l2") == [0.1, 0.3, 1.0]
