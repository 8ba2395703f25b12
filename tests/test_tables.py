"""Summaries: intervals as the bootstrap has them, and paired gains where the answer is known."""

import math

import numpy as np
import pytest
import xarray as xr
from scipy.stats import bootstrap
from shell import TINY, read

from subspace_adv import run
from subspace_adv.tables import Estimate, arms, median_interval, per_network, standard_arm, summarize
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
        assert list(row.gain) == ["off"]
        assert row.gain["off"] == pytest.approx((gain, gain, gain))  # paired: no spread over seeds is left
        assert row.distance["off"].low < row.distance["off"].median < row.distance["off"].high
        assert row.networks == SEEDS
        assert row.converged == 1
        assert row.steps == SEEDS // 2
        assert row.gradient_off.median == pytest.approx(2 * row.distance["off"].median)
    expected = np.median(known["distance_off_l2_upper"].isel(init_scale=0, weight_decay=0, point=2))
    assert rows[0].distance["off"].median == expected


def test_a_distance_is_the_median_over_points_then_over_networks(known):
    arm = {"init_scale": 1.0, "weight_decay": 0.0}
    values = per_network(known, "distance_off_l2_upper", arm)
    assert np.array_equal(values, known["distance_off_l2_upper"].sel(arm).values[:, 2])
    assert np.array_equal(per_network(known, "steps", arm), np.arange(SEEDS))


def test_infinite_distances_are_ordinary(known):
    known["distance_off_l2_upper"][0, :, 0] = np.inf  # the standard arm is never flipped
    known["distance_off_l2_upper"][1, : SEEDS // 2 + 1, 0] = np.inf  # half of another arm neither
    rows = summarize(known)
    assert rows[0].distance["off"] == Estimate(math.inf, math.inf, math.inf)
    assert rows[2].distance["off"].median == math.inf
    assert rows[2].distance["off"].low < math.inf
    assert rows[2].gain["off"] == Estimate(-math.inf, -math.inf, -math.inf)  # where one is flipped and the other not
    assert rows[1].gain["off"].median == -math.inf


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
    assert rows[0].distance["off"] == median_interval(known["distance_off_l2_upper"].values[0, 10:, 0, 2])
    assert rows[1].gain["off"] == pytest.approx((0.125,) * 3)
    assert rows[2].gain["off"] == pytest.approx((-0.5,) * 3)  # the median of the points left is 1 lower


def test_an_arm_without_networks_is_nan_in_silence(known):
    known["status"][0, :, 0] = PENDING
    for name in ("distance_off_l2_upper", "gradient_norm_off", "steps"):
        known[name][0, :, 0] = np.nan
    row = summarize(known)[0]
    assert (row.networks, row.converged) == (0, 0)
    assert all(map(math.isnan, (row.steps, *row.gradient_off, *row.distance["off"])))


def test_sweeps_without_seeds_have_rows_of_one_network(known):
    rows = summarize(known.isel(seed=3, drop=True))
    assert len(rows) == 6
    assert rows[0].networks == 1
    low, median, high = (rows[1].gain["off"][i] for i in (1, 0, 2))
    assert low == median == high == pytest.approx(0.125)


def test_sweeps_without_axes_have_one_row(known):
    (row,) = summarize(known.isel(seed=3, init_scale=0, weight_decay=0, drop=True))
    assert row.arm == {}
    assert row.gain == {}
    assert math.isfinite(row.distance["off"].median)


def test_names_as_values_of_axes(known):
    renamed = known.rename(init_scale="init").assign_coords(init=["torch", "theory", "paper-code"])
    rows = summarize(renamed)
    assert [row.arm["init"] for row in rows] == ["torch"] * 2 + ["theory"] * 2 + ["paper-code"] * 2
    assert rows[3].gain["off"] == pytest.approx((0.125,) * 3)  # from the same init without weight decay


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


def test_a_real_run_has_a_table(tmp_path):
    dataset = run(read(TINY), tmp_path)
    rows = summarize(dataset)
    assert len(rows) == 4
    mine, standard = rows[1], rows[0]
    assert (mine.arm, standard.arm) == ({"width": 3, "init_scale": 0.5}, {"width": 3, "init_scale": 1.0})
    distances = dataset["distance_off_l2_upper"].sel(width=3).median("point")
    with np.errstate(invalid="ignore"):
        gains = (distances.sel(init_scale=0.5) - distances.sel(init_scale=1.0)).values
    assert mine.gain["off"].median == pytest.approx(np.median(gains[~np.isnan(gains)]))
    assert mine.gradient_off.median == pytest.approx(
        float(dataset["gradient_norm_off"].sel(mine.arm).median("point").median("seed"))
    )


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
