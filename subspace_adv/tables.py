"""Summaries of a Dataset: medians over seeds with intervals, and paired differences between the arms."""

import itertools
import math
from collections.abc import Hashable, Iterator
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from scipy.special import bdtrc  # scipy.stats takes long to import

from subspace_adv.training import CONVERGED, PENDING

REPLICATES = ("seed", "data_seed")
"""Axes whose values are repetitions of one experiment."""
REMEDIES = ("init_scale", "weight_decay")
"""Axes whose first value is the standard setting that the others are compared with."""

Arm = dict[Hashable, Any]


class Estimate(NamedTuple):
    """A median with a 95 % interval."""

    median: float
    low: float
    high: float


class Row(NamedTuple):
    """One arm of a sweep: the networks that differ in their seeds only."""

    arm: Arm  # axis → value
    networks: int  # trained so far
    converged: float  # share of them
    steps: float  # median
    gradient_off: Estimate
    distance: dict[str, Estimate]  # region → L2 distance, upper
    gain: dict[str, Estimate]  # region → paired difference of the distance from the standard arm's; empty there


def arms(dataset: xr.Dataset) -> Iterator[Arm]:
    """Every combination of values of the axes that are no replicates."""
    axes = [axis for axis in dataset["status"].dims if axis not in REPLICATES]
    for values in itertools.product(*(dataset[axis].values.tolist() for axis in axes)):
        yield dict(zip(axes, values, strict=True))


def standard_arm(dataset: xr.Dataset, arm: Arm) -> Arm:
    """The arm to compare with: the first value of each remedy, or of every axis where no remedy varies."""
    varying = [axis for axis in arm if dataset.sizes[axis] > 1]
    back = [axis for axis in varying if axis in REMEDIES] or varying
    return arm | {axis: dataset[axis].values.tolist()[0] for axis in back}


def per_network(dataset: xr.Dataset, variable: str, arm: Arm) -> np.ndarray:
    """A variable of all networks of an arm, the median over the points of each; NaN where pending or diverged."""
    values = dataset[variable].sel(arm)
    if "point" not in values.dims:
        return values.values.ravel()
    flat = values.transpose(..., "point").values.reshape(-1, dataset.sizes["point"])
    return _median_ignoring_nan(flat)


def median_interval(values: np.ndarray, level: float = 0.95) -> Estimate:
    """Median of a sample and its percentile-bootstrap interval, without resampling.

    A resample's median is at most the k-th smallest value if at least half of n draws are among the k smallest:
    with probability P(Binomial(n, k/n) ≥ n/2). The interval is that of infinitely many resamples; where n is
    even, its ends are those of the lower and upper median, hence slightly wide.
    NaN are left out; the ends may be infinite.
    """
    ordered = np.sort(values[~np.isnan(values)])
    n = len(ordered)
    if n == 0:
        return Estimate(math.nan, math.nan, math.nan)
    share = np.arange(1, n + 1) / n
    tail = (1 - level) / 2
    low = np.searchsorted(bdtrc((n + 1) // 2 - 1, n, share), tail)
    high = np.searchsorted(bdtrc(n // 2, n, share), 1 - tail)
    median = (float(ordered[(n - 1) // 2]) + float(ordered[n // 2])) / 2
    return Estimate(median, float(ordered[low]), float(ordered[min(high, n - 1)]))


def summarize(dataset: xr.Dataset) -> list[Row]:
    """One row per arm: medians over seeds of each network's median over points, with 95 % intervals.

    The gain is the difference of an arm's distance from that of the standard arm, paired by seed (F12 in
    docs/theory.md): the same draws at another scale or weight decay.
    """
    regions = [region for region in ("off", "on", "full") if f"distance_{region}_l2_upper" in dataset]
    rows = []
    for arm in arms(dataset):
        status = dataset["status"].sel(arm).values.ravel()
        trained = status != PENDING
        standard = standard_arm(dataset, arm)
        distance, gain = {}, {}
        for region in regions:
            mine = per_network(dataset, f"distance_{region}_l2_upper", arm)
            distance[region] = median_interval(mine)
            if arm != standard:
                with np.errstate(invalid="ignore"):  # where neither can be flipped, there is no difference to tell
                    difference = mine - per_network(dataset, f"distance_{region}_l2_upper", standard)
                gain[region] = median_interval(difference)
        rows.append(
            Row(
                arm,
                int(trained.sum()),
                float((status == CONVERGED).sum() / max(trained.sum(), 1)),
                median_interval(dataset["steps"].sel(arm).values.ravel()).median,
                median_interval(per_network(dataset, "gradient_norm_off", arm)),
                distance,
                gain,
            )
        )
    return rows


def _median_ignoring_nan(values: np.ndarray) -> np.ndarray:
    """Median along the last axis; NaN where there is none. Infinite values are ordinary."""
    ordered = np.sort(values, axis=1)  # NaN last
    count = np.sum(~np.isnan(ordered), axis=1)
    rows = np.arange(len(ordered))
    return (ordered[rows, (np.maximum(count, 1) - 1) // 2] + ordered[rows, count // 2 % values.shape[1]]) / 2
