"""The predicted laws of the off gradient (F3, F14, F19 in docs/theory.md) against what a sweep measured."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import xarray as xr

from subspace_adv.errors import UserError
from subspace_adv.initialization import gain
from subspace_adv.parametrizations import PARAMETRIZATIONS
from subspace_adv.snapshots import MARGIN_LEVEL, STEP, final, measured_along
from subspace_adv.theory import chi_cdf
from subspace_adv.training import DIVERGED, PENDING

_GOLDEN = (5**0.5 - 1) / 2
_RESAMPLES = 1000
_BLOCKS = 2000  # of neighbouring seeds, resampled together where there are more seeds than that
_LEAST_SEEDS = 20  # for a bootstrap interval to mean what it says


class Interval(NamedTuple):
    """An estimate with its 95 % interval."""

    estimate: float
    low: float
    high: float


class Bound(NamedTuple):
    """How often a bound held, and how often it must at least."""

    side: str
    share: float  # of all points compared
    sample: Interval  # share of the independent sample, Clopper–Pearson
    promised: float  # mean over that sample of the probability promised


class Exponent(NamedTuple):
    """Power of an axis with which a root mean square over seeds grows, fitted and predicted."""

    axis: str
    quantity: str
    seeds: int
    fitted: Interval  # bootstrap over seeds
    predicted: float


class Fit(NamedTuple):
    """How a sample of independent numbers fits its law."""

    of: str  # which networks, as "depth 2"; "" of all
    sample: int  # one number of each seed
    p_value: float  # Kolmogorov–Smirnov, of the sample's probability integral transform
    scale: Interval  # measured over predicted


class Ranks(NamedTuple):
    """How the ranks of a variable among redrawn off parts fit the uniform law (F16)."""

    variable: str
    sample: int  # one point of each seed
    p_value: float  # χ², of the counts of all ranks


class AtSnapshot(NamedTuple):
    """How networks fit the law that were measured before their stop."""

    dimension: str  # "step" or "margin_level"
    at: float  # value along it
    at_points: Fit | None  # as of `Check`, of those that had not stopped; and so the other
    whitened: tuple[Fit, ...]


class Check(NamedTuple):
    """Outcome of comparing laws and measurement."""

    networks: int  # compared
    left_out: dict[str, int]  # networks, by reason
    points: int  # of the networks compared
    idle_points: int  # of them, left out as no neuron is active there
    at_points: Fit | None  # of the gradient at single points; None where no law is known of it
    whitened: tuple[Fit, ...]  # of the gradients at all points of a network, by architecture and depth
    bounds: tuple[Bound, ...]
    exponents: tuple[Exponent, ...]
    ranks: tuple[Ranks, ...]
    snapshots: tuple[AtSnapshot, ...]


class _Measured(NamedTuple):
    """Float32 arrays (seeds, other axes together, points), and settings that broadcast to them."""

    ratio: np.ndarray  # of the gradient norm to |ρ|·β·√A, hence χ_l; NaN where there is nothing to compare
    bounded: tuple[np.ndarray, np.ndarray]  # of the gradient norm to its lower bound, and to its upper one; NaN alike
    promised: np.ndarray  # (seeds, other axes, 1), least probability of each bound
    squares: np.ndarray  # (seeds, other axes, 1), float64, of all gradients whitened, hence χ²
    freedom: np.ndarray  # (seeds, other axes, 1), its degrees of freedom; NaN where there is nothing to compare
    kinds: np.ndarray  # (1 or, where they vary with it, seeds, other axes, 1), architecture and depth, in words
    per_decay: np.ndarray  # the gradient norm over |ρ|·√l; NaN alike
    head_norm: np.ndarray  # √A
    head_sum: np.ndarray  # Σ|uᵢ|
    codimension: np.ndarray  # as kinds, and so are the following
    ambient_dim: np.ndarray
    width: np.ndarray
    init_scale: np.ndarray
    gain: np.ndarray
    depth: np.ndarray
    parametrization: np.ndarray
    fixed_head: np.ndarray  # whether all |uᵢ| are equal, of two layers


def check(dataset: xr.Dataset) -> Check:
    """Compare the predicted law of `gradient_norm_off` with the measurement, over all cells.

    Cells of one seed share their base draws, and the points of a network its weights. So the sample that is tested
    has one point for each seed; which cell and point that is goes round with the seed.

    Args:
        dataset: as from `open_results`.

    Raises:
        UserError: if there is nothing to compare.
    """
    whole, dataset = dataset, final(dataset)
    predicted = ~np.isnan(dataset["predicted_off_deviation"].values)
    status = dataset["status"].values
    left_out = {"pending": int((status == PENDING).sum()), "diverged": int((status == DIVERGED).sum())}
    left_out["without prediction"] = int((~predicted).sum()) - sum(left_out.values())
    measured = _measured(dataset)
    compared = ~np.isnan(measured.bounded[0]) | (measured.freedom > 0)
    if not compared.any():
        reason = _why_nothing(status.size, int(predicted.sum()), left_out)
        raise UserError(f"{dataset.attrs['name']}: nothing to check: {reason}")
    points = int((~np.isnan(dataset["predicted_gradient_norm_off_upper_bound"].values)).sum())
    return Check(
        networks=int(predicted.sum()),
        left_out=left_out,
        points=points,
        idle_points=points - int((~np.isnan(measured.bounded[0])).sum()),
        at_points=_fit_at_points(measured),
        whitened=tuple(_fits_of_networks(measured)),
        bounds=_bounds(measured),
        exponents=_exponents(measured),
        ranks=_ranks(dataset),
        snapshots=tuple(_at_snapshots(whole)),
    )


def _at_snapshots(dataset: xr.Dataset) -> Iterator[AtSnapshot]:
    """Of every snapshot that some network has come to."""
    for dimension in (one for one in (STEP, MARGIN_LEVEL) if one in dataset.dims):
        there = measured_along(dataset, dimension)
        for place, at in enumerate(there[dimension].values[:-1].tolist()):
            measured = _measured(there.isel({dimension: place}, drop=True))
            at_points, whitened = _fit_at_points(measured), tuple(_fits_of_networks(measured))
            if at_points or whitened:
                yield AtSnapshot(dimension, at, at_points, whitened)


def _fit_at_points(measured: _Measured) -> Fit | None:
    """Of the gradient at one point of each seed (F3, F14)."""
    valid = ~np.isnan(measured.ratio)
    if not valid.any():
        return None
    at = _independent(valid)
    ratio, codimension = measured.ratio[at].astype(np.float64), np.broadcast_to(measured.codimension, valid.shape)[at]
    return Fit("", len(ratio), _p_value(chi_cdf(codimension, ratio)), _scale(ratio**2, codimension))


def _fits_of_networks(measured: _Measured) -> Iterator[Fit]:
    """Of all gradients of one network of each seed, whitened (F14, F19), by architecture and depth."""
    kinds = np.broadcast_to(measured.kinds, measured.freedom.shape)
    for kind in dict.fromkeys(measured.kinds.ravel().tolist()):
        valid = (measured.freedom > 0) & (kinds == kind)
        if valid.any():
            at = _independent(valid)
            squares, freedom = measured.squares[at], measured.freedom[at]
            yield Fit(kind, len(squares), _p_value(chi_cdf(freedom, np.sqrt(squares))), _scale(squares, freedom))


def _ranks(dataset: xr.Dataset) -> tuple[Ranks, ...]:
    """Of every variable that was measured with redrawn off parts too, as many as any network has."""
    from scipy.stats import chisquare

    told = dataset["redraws"] if "redraws" in dataset.coords else xr.DataArray(dataset.attrs.get("redraws", 0))
    for along in told.dims:
        dataset = dataset.isel({along: np.flatnonzero(told == told.max())})
    found, redraws = [], int(told.max())
    dataset = _by_seed(dataset)
    for name in dataset.data_vars if redraws else ():
        if str(name).startswith("rank_"):
            values = dataset[name].transpose("seed", ...).values
            values = values.reshape(len(values), 1, -1)
            valid = ~np.isnan(values)
            if valid.any():
                ranks = values[_independent(valid)]
                counts = np.bincount(ranks.astype(np.int64), minlength=redraws + 1)
                found.append(Ranks(str(name).removeprefix("rank_"), len(ranks), float(chisquare(counts).pvalue)))
    return tuple(found)


def _why_nothing(cells: int, predicted: int, left_out: dict[str, int]) -> str:
    if left_out["pending"] == cells:
        return "no network is trained yet; run the sweep to its end"
    if left_out["diverged"] + left_out["pending"] == cells:
        return "every network has diverged; lower the learning rate"
    if predicted:
        return "no neuron is active at any point"
    return (
        "no cell has a prediction; that takes networks of architecture mlp or cnn with Gaussian weights (init theory, "
        "paper-code, he or lecun), and training that leaves them alone off the subspace, see F3 in docs/theory.md"
    )


def _by_seed(dataset: xr.Dataset) -> xr.Dataset:
    """The Dataset with a dimension of seeds: where they vary together with other fields, all networks of one at it."""
    if "seed" in dataset.dims:
        return dataset
    if "seed" not in dataset.coords:
        return dataset.expand_dims("seed")
    [along] = dataset["seed"].dims
    seeds = dataset["seed"].values
    of_each = [np.flatnonzero(seeds == seed) for seed in np.unique(seeds)]
    most = max(map(len, of_each))
    places = xr.DataArray([np.resize(of, most) for of in of_each], dims=("seed", along))
    there = xr.DataArray([np.arange(most) < len(of) for of in of_each], dims=("seed", along))
    grouped = dataset.drop_vars(["seed", along]).isel({along: places})
    varying = [name for name in dataset.data_vars if along in dataset[name].dims]
    return grouped.assign({name: grouped[name].where(there) for name in varying})


_SETTINGS = ("ambient_dim", "span_dim", "architecture", "depth", "width", "init", "init_scale", "parametrization")


def _measured(dataset: xr.Dataset) -> _Measured:
    dataset = _by_seed(dataset)
    others = [dim for dim in dataset["status"].dims if dim != "seed"]
    one_seed = dataset["status"].isel(seed=0, drop=True).transpose(*others)
    with_seeds = any("seed" in dataset[leaf].dims for leaf in _SETTINGS if leaf in dataset.coords)
    like, rows = (dataset["status"], dataset.sizes["seed"]) if with_seeds else (one_seed, 1)

    def recorded(name: str) -> np.ndarray:
        values = dataset[name].transpose("seed", *others, *([] if "point" not in dataset[name].dims else ["point"]))
        shape = (dataset.sizes["seed"], one_seed.size, -1)
        return values.values.reshape(shape)

    def setting(leaf: str) -> xr.DataArray:
        values = dataset[leaf] if leaf in dataset.coords else xr.DataArray(dataset.attrs.get(leaf))
        return values.broadcast_like(like).transpose(..., *others)

    def column(values: xr.DataArray) -> np.ndarray:
        return values.values.reshape(rows, -1, 1)

    d, codimension = column(setting("ambient_dim")), column(setting("ambient_dim") - setting("span_dim"))
    off, learned = recorded("gradient_norm_off"), recorded("gradient_norm_off_learned")
    gradient = np.where(learned > 0, np.sqrt(np.maximum(off**2 - learned**2, 0)), off)  # what never learns of it
    decay = np.abs(recorded("predicted_decay"))
    name = "predicted_gradient_norm_off"
    lower, upper, median = (recorded(f"{name}{side}") for side in ("_lower_bound", "_upper_bound", ""))
    scale = recorded("predicted_off_deviation") * recorded("head_norm_active")
    scale = np.where(np.isnan(median), np.float32(np.nan), scale)
    scale, lower, upper = (np.where(values == 0, np.float32(np.nan), values) for values in (scale, lower, upper))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):  # where the scale is NaN, 0 or tiny
        ratio = (gradient / scale).astype(np.float32)
        bounded = off / lower, off / upper
        per_decay = np.where(np.isnan(ratio), np.float32(np.nan), gradient / decay / np.sqrt(codimension))
        squares = recorded("gradient_off_whitened") / recorded("predicted_off_deviation").astype(np.float64) ** 2
    freedom = np.where(np.isfinite(squares), recorded("gradient_off_freedom"), np.nan)
    kinds = setting("architecture").values.ravel(), setting("depth").values.ravel()
    two_layers = (setting("architecture") == "mlp") & (setting("depth") == 1)
    return _Measured(
        ratio,
        bounded,
        recorded("predicted_bound_probability"),
        squares,
        freedom,
        np.array([_kind(*pair) for pair in zip(*kinds, strict=True)]).reshape(rows, -1, 1),
        per_decay,
        recorded("head_norm_active"),
        recorded("head_sum_active"),
        codimension,
        d,
        column(setting("width")),
        column(setting("init_scale")),
        np.array([gain(init) for init in setting("init").values.ravel()]).reshape(rows, -1, 1),
        column(setting("depth")),
        column(setting("parametrization")),
        column((setting("init") == "theory") & (setting("trainable") != "all") & two_layers),
    )


def _kind(architecture: str, depth: int) -> str:
    return f"{'' if architecture == 'mlp' else architecture + ', '}depth {depth}"


def _independent(valid: np.ndarray) -> tuple[np.ndarray, ...]:
    """Index of one valid entry for each seed that has any, going evenly round all of them."""
    chosen = []
    for seed, entries in enumerate(valid.reshape(len(valid), -1)):
        places = np.flatnonzero(entries)
        if len(places):
            chosen.append((seed, places[int(seed * _GOLDEN % 1 * len(places))]))
    seeds, places = np.array(chosen).T
    return seeds, *np.unravel_index(places, valid.shape[1:])


def _p_value(transformed: np.ndarray) -> float:
    from scipy.stats import kstest  # takes long to import

    return float(kstest(transformed, "uniform").pvalue)


def _scale(squares: np.ndarray, freedom: np.ndarray) -> Interval:
    """Measured over predicted scale: the sum of squares is χ² of all degrees of freedom, so the interval is exact."""
    from scipy.stats import chi2

    total, dof = np.sum(squares), np.sum(freedom)
    low, high = (float(np.sqrt(total / chi2.isf(tail, dof))) for tail in (0.025, 0.975))
    return Interval(float(np.sqrt(total / dof)), low, high)


def _bounds(measured: _Measured) -> tuple[Bound, ...]:
    from scipy.stats import binomtest

    over_lower, over_upper = measured.bounded
    valid = ~np.isnan(over_lower)
    if not valid.any():
        return ()
    at = _independent(valid)
    promised = float(np.broadcast_to(measured.promised, valid.shape)[at].mean())
    found = []
    for side, held in (("lower", over_lower >= 1), ("upper", over_upper <= 1)):
        successes, trials = int(held[at].sum()), len(at[0])
        interval = binomtest(successes, trials).proportion_ci(0.95, method="exact")
        sample = Interval(successes / trials, float(interval.low), float(interval.high))
        found.append(Bound(side, float(held.sum() / valid.sum()), sample, promised))
    return tuple(found)


def _exponents(measured: _Measured) -> tuple[Exponent, ...]:
    """Powers along every axis that varies; the law's other factors are divided out as measured (docs/theory.md)."""
    if len(measured.kinds) > 1:
        return ()  # no seed has networks all along an axis
    codimension, d, s = measured.codimension, measured.ambient_dim, measured.init_scale * measured.gain
    per_active, per_head = measured.per_decay / measured.head_norm, np.sqrt(d) / s
    with np.errstate(invalid="ignore"):  # where no neuron is active
        share = np.where(measured.fixed_head, measured.head_sum / measured.head_norm / np.sqrt(measured.width), np.nan)
    laws = [
        ("codimension", "g/(ρβ√A)", codimension, lambda: per_active * np.sqrt(codimension) * per_head, 0.5),
        ("ambient_dim", "g/(ρs√(Al))", d, lambda: per_active / s, -0.5),
        ("init_scale", "g√d/(ρ√(Al))", measured.init_scale, lambda: per_active * np.sqrt(d) / measured.gain, 1.0),
        ("depth", "g/(ρβ√(Al))", measured.depth, lambda: per_active * per_head, 0.0),
    ]
    for name, row in PARAMETRIZATIONS.items():
        only = np.where(measured.parametrization == name, 1, np.nan)
        told = "width" if name == "standard" else f"width, {name}"
        power = float(np.log(row.head_deviation(math.e)))  # of a width e
        laws.append(
            (
                told,
                "g/(ρβ√(kl/m))",
                measured.width,
                lambda only=only: measured.per_decay * per_head / share * only,
                power,
            )
        )
    found = []
    for axis, quantity, along, values, predicted in laws:
        if len(np.unique(along)) > 1 and (fitted := _power(values(), along.ravel())):
            found.append(Exponent(axis, quantity, *fitted, predicted))
    return tuple(found)


def _power(values: np.ndarray, along: np.ndarray) -> tuple[int, Interval] | None:
    """Seeds and slope of the log root mean square of `values` (seeds, others, points) in log `along` (others,).

    Squares are averaged over whatever else differs at one seed; seeds enter if they have all of `along`, so they are
    paired. None where there are too few seeds, or fewer than two places.
    """
    there = ~np.isnan(values)
    places = np.unique(along[there.any(axis=(0, 2))])
    squares = np.empty((len(values), len(places)))
    for i, place in enumerate(places):
        mine, count = values[:, along == place].astype(np.float64), there[:, along == place].sum(axis=(1, 2))
        total = np.nansum(mine**2, axis=(1, 2))
        squares[:, i] = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    squares = squares[(np.isfinite(squares) & (squares > 0)).all(axis=1)]  # beyond float32 there is no power to fit
    seeds = len(squares)
    if seeds < _LEAST_SEEDS or len(places) < 2:
        return None
    x = np.log(places) - np.log(places).mean()

    def slope(sums: np.ndarray) -> float:
        return float(np.log(sums) @ x / (x @ x) / 2)

    rng = np.random.default_rng(0)
    blocks = np.stack([block.mean(axis=0) for block in np.array_split(squares, min(seeds, _BLOCKS))])
    shares = np.full(len(blocks), 1 / len(blocks))
    resampled = [slope(rng.multinomial(len(blocks), shares) @ blocks) for _ in range(_RESAMPLES)]
    return seeds, Interval(slope(squares.sum(axis=0)), *map(float, np.quantile(resampled, (0.025, 0.975))))
