"""Summaries of a Dataset: medians over seeds with intervals, paired differences between arms, robust accuracy."""

import itertools
import math
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from scipy.special import bdtrc, stdtrit  # scipy.stats takes long to import

from subspace_adv.dimensions import FIELDS
from subspace_adv.geometry import REGIONS
from subspace_adv.measures import distance_name, distance_parts
from subspace_adv.settings import replicates
from subspace_adv.training import CONVERGED, PENDING

REMEDIES = ("init_scale", "weight_decay")
"""Axes whose first value is the standard setting that the others are compared with."""
EXACT = 1e-6
"""By how much upper may exceed lower, as a share, where both are the distance but for float32's rounding outwards."""
TIGHT = (0.01, 0.05)
"""Shares by which upper may exceed lower that tables and figures tell of, beside `EXACT`."""
DIRECTIONS = ("universal", "random")
"""Directions off the subspace along which the training points and held-out ones were moved."""

Arm = dict[Hashable, Any]
Where = tuple[str, str]
"""A region and a norm."""


class Estimate(NamedTuple):
    """A median with a 95 % interval."""

    median: float
    low: float
    high: float


class Row(NamedTuple):
    """One arm of a sweep: the networks that differ in their seeds only."""

    arm: Arm  # axis → value; of a zip the place
    networks: int  # trained so far
    converged: float  # share of them
    steps: float  # median
    gradient_off: Estimate
    distance: dict[Where, Estimate]  # upper
    gain: dict[Where, Estimate]  # paired difference of the distance from the standard arm's; empty there


class Tightness(NamedTuple):
    """How near both ends of a bracket are, at the correctly classified points of all networks trained."""

    gaps: np.ndarray  # (k,) float64, upper/lower − 1, ascending; inf where no flip was found, or nothing certified
    unflippable: int  # further points: for certain, no perturbation flips them

    def share(self, gap: float) -> float:
        """Share of the k points at which upper exceeds lower by at most a share of it; NaN where there are none."""
        return float(np.searchsorted(self.gaps, gap, side="right") / len(self.gaps)) if len(self.gaps) else math.nan


class Curve(NamedTuple):
    """A share at each of k perturbation sizes: its mean over networks, with a 95 % interval."""

    mean: np.ndarray  # (k,)
    low: np.ndarray  # (k,), NaN where there are less than two networks
    high: np.ndarray  # (k,)


class RobustAccuracy(NamedTuple):
    """The share of points classified correctly under every perturbation of a size: it lies between the two."""

    certified: Curve
    attacked: Curve


class FoolingRate(NamedTuple):
    """The share of predictions that change somewhere along a direction up to a distance."""

    training: Curve  # of the training points that are classified correctly
    heldout: Curve  # of all held-out points


def fields_along(dataset: xr.Dataset, dimension: Hashable) -> list[str]:
    """The fields that vary along a dimension of a sweep: along an axis that of its name, along a zip several."""
    return dataset[dimension].attrs.get(FIELDS, str(dimension)).split(", ")


def replicate_dimensions(dataset: xr.Dataset) -> list[Hashable]:
    """The dimensions along which there are repetitions of one experiment, and nothing else varies."""
    of_a_sweep = dataset["status"].dims if "status" in dataset else ()  # one network has none
    seeds = set(replicates())
    return [one for one in of_a_sweep if seeds.issuperset(fields_along(dataset, one))]


def repetitions(dataset: xr.Dataset) -> int:
    """Number of networks of an arm."""
    return math.prod(dataset.sizes[one] for one in replicate_dimensions(dataset))


def arm_dimensions(dataset: xr.Dataset) -> list[Hashable]:
    """The dimensions along which arms differ."""
    of_a_sweep = dataset["status"].dims if "status" in dataset else ()
    repeated = replicate_dimensions(dataset)
    return [one for one in of_a_sweep if one not in repeated]


def arms(dataset: xr.Dataset) -> Iterator[Arm]:
    """Every combination of values of the dimensions that are no replicates; of a zip the place."""
    axes = arm_dimensions(dataset)
    for values in itertools.product(*(dataset[axis].values.tolist() for axis in axes)):
        yield dict(zip(axes, values, strict=True))


def settings_of(dataset: xr.Dataset, arm: Arm) -> dict[str, Any]:
    """The values by field of an arm, those along zips too."""
    fields = {leaf: axis for axis in arm for leaf in fields_along(dataset, axis)}
    return {leaf: dataset[leaf].sel({axis: arm[axis]}).values.tolist() for leaf, axis in fields.items()}


def standard_arm(dataset: xr.Dataset, arm: Arm) -> Arm:
    """The arm to compare with: the first value of each remedy, or of every axis where no remedy varies.

    A zip with a remedy in it goes back to its first place.
    """
    varying = [axis for axis in arm if dataset.sizes[axis] > 1]
    back = [axis for axis in varying if not set(REMEDIES).isdisjoint(fields_along(dataset, axis))] or varying
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
    rows = []
    for arm in arms(dataset):
        status = dataset["status"].sel(arm).values.ravel()
        trained = status != PENDING
        standard = standard_arm(dataset, arm)
        distance, gain = {}, {}
        for region, norm in regions_and_norms(dataset):
            name = distance_name(region, norm, "upper")
            mine = per_network(dataset, name, arm)
            distance[region, norm] = median_interval(mine)
            if arm != standard and _are_paired(dataset, arm, standard):
                with np.errstate(invalid="ignore"):  # where neither can be flipped, there is no difference to tell
                    difference = mine - per_network(dataset, name, standard)
                gain[region, norm] = median_interval(difference)
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


def _are_paired(dataset: xr.Dataset, *two: Arm) -> bool:
    """Whether networks of two arms grew from the same random draws: their seeds do not vary with the arm."""
    first, second = ({leaf: v for leaf, v in settings_of(dataset, arm).items() if leaf in replicates()} for arm in two)
    return first == second


def regions_and_norms(dataset: xr.Dataset) -> list[Where]:
    """The regions and norms in which distances were measured, norm by norm."""
    found = [parts for name in dataset.data_vars if (parts := distance_parts(str(name)))]
    pairs = [(region, norm) for region, norm, side in found if side == "lower"]
    norms = list(dict.fromkeys(norm for _, norm in pairs))
    return [(region, norm) for norm in norms for region in REGIONS if (region, norm) in pairs]


def tightness(dataset: xr.Dataset, region: str, norm: str) -> Tightness:
    """How near the ends of the brackets in a region and norm are, over all arms.

    Networks that diverged or are not trained yet have no brackets. A misclassified point has distance 0 by definition
    and counts nowhere. Where both ends are infinite there is no distance to be near to, though nothing is left open: to
    count such points as exact would flatter the search, so they are told apart.
    """
    lower, upper = (dataset[distance_name(region, norm, side)].values.ravel() for side in ("lower", "upper"))
    bracketed = upper > 0  # not NaN
    lower, upper = lower[bracketed].astype(np.float64), upper[bracketed].astype(np.float64)
    unflippable = np.isinf(lower)
    with np.errstate(divide="ignore"):
        gaps = upper[~unflippable] / lower[~unflippable] - 1
    return Tightness(np.sort(gaps), int(unflippable.sum()))


def robust_accuracy(
    dataset: xr.Dataset, arm: Arm, region: str, norm: str, epsilons: Sequence[float] | np.ndarray
) -> RobustAccuracy:
    """Share of an arm's training points that keep their correct label under every perturbation up to each epsilon.

    A point is robust if its distance exceeds epsilon: certainly if the lower bound does, and as far as the attack
    could tell if the upper bound does. A misclassified point has distance 0.
    """
    sizes = np.asarray(epsilons, np.float64)  # distances are compared as they are, not with sizes rounded to float32
    names = distance_name(region, norm, "lower"), distance_name(region, norm, "upper")
    sides = (point_values(dataset, name, arm) for name in names)
    return RobustAccuracy(*(_curve(_share(values > e, ~np.isnan(values)) for e in sizes) for values in sides))


def fooling_rate(dataset: xr.Dataset, arm: Arm, direction: str, epsilons: Sequence[float] | np.ndarray) -> FoolingRate:
    """Share of predictions that a step of at most each epsilon changes, along one direction off the subspace.

    Args:
        dataset: a Dataset as `open_results` gives it.
        arm: axis → value.
        direction: "universal" or "random".
        epsilons: (k,), L2 norms.
    """
    sizes = np.asarray(epsilons, np.float64)
    training = point_values(dataset, f"distance_{direction}", arm)
    further = f"distance_{direction}_heldout"
    heldout = point_values(dataset, further, arm) if further in dataset else np.full((1, 1), np.nan)
    return FoolingRate(
        _curve(_share((training > 0) & (training <= e), training > 0) for e in sizes),
        _curve(_share(heldout <= e, ~np.isnan(heldout)) for e in sizes),
    )


def typical_epsilons(dataset: xr.Dataset, norm: str) -> list[float]:
    """Round perturbation sizes about which the standard arm's points flip: near the quartiles of its distances."""
    names = [distance_name(region, n, "upper") for region, n in regions_and_norms(dataset) if n == norm]
    standard = standard_arm(dataset, next(arms(dataset)))
    values = np.concatenate(
        [point_values(dataset, name, standard).ravel() for name in names or ["distance_universal"] if name in dataset]
        or [np.zeros(0)]
    )
    flips = values[np.isfinite(values) & (values > 0)]
    if not flips.size:
        return [0.1, 0.3, 1.0]
    quartiles = np.quantile(flips, (0.25, 0.5, 0.75))
    rounded = [sorted({float(f"{q:.{digits}g}") for q in quartiles}) for digits in (1, 2)]
    return max(rounded, key=len)


def point_values(dataset: xr.Dataset, variable: str, arm: Arm) -> np.ndarray:
    """A variable of all networks of an arm, (networks, points)."""
    values = dataset[variable].sel(arm)
    along = "heldout" if "heldout" in values.dims else "point"
    return values.transpose(..., along).values.reshape(-1, dataset.sizes[along])


def _share(holds: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Share of each network's points that are counted, (networks,); NaN where none is."""
    count = counted.sum(axis=1)
    return np.where(count > 0, holds.sum(axis=1) / np.maximum(count, 1), np.nan)


def _curve(shares: Iterable[np.ndarray], level: float = 0.95) -> Curve:
    """Means over networks with a 95 % interval, within 0 and 1; networks whose share is NaN are left out.

    The interval is Student's: a share over points may be anything between 0 and 1, so counts of successes, as
    Clopper and Pearson's interval takes, are not what is seen. Where all n shares are the same s, mostly 0 or 1,
    Student's is empty. Then it is what the other shares, which n networks did not show, leave open: if they have
    probability q, none of them is seen with probability (1 − q)ⁿ, which is at least (1 − level)/2 only up to some q,
    and the mean is between (1 − q)·s and (1 − q)·s + q. At 0 and 1 that is Clopper and Pearson's, of n networks.

    The sizes are taken one by one, as all of their shares may be large.
    """
    means, lows, highs = [], [], []
    for values in shares:
        known = values[~np.isnan(values)]
        mean = known.mean() if len(known) else np.nan
        down = up = np.nan
        if len(known) > 1 and known.min() == known.max():
            unseen = 1 - ((1 - level) / 2) ** (1 / len(known))
            down, up = unseen * mean, unseen * (1 - mean)
        elif len(known) > 1:
            down = up = stdtrit(len(known) - 1, (1 + level) / 2) * known.std(ddof=1) / math.sqrt(len(known))
        means.append(mean)
        lows.append(np.maximum(mean - down, 0))
        highs.append(np.minimum(mean + up, 1))
    return Curve(np.array(means), np.array(lows), np.array(highs))


def _median_ignoring_nan(values: np.ndarray) -> np.ndarray:
    """Median along the last axis; NaN where there is none. Infinite values are ordinary."""
    ordered = np.sort(values, axis=1)  # NaN last
    count = np.sum(~np.isnan(ordered), axis=1)
    rows = np.arange(len(ordered))
    return ordered[rows, (np.maximum(count, 1) - 1) // 2] / 2 + ordered[rows, count // 2] / 2  # sums could overflow
