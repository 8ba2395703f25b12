"""What the theory predicts for every cell of a sweep, from its settings and what was recorded of it."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from subspace_adv import theory
from subspace_adv.data import DataSettings
from subspace_adv.frozen import Frozen, over_grid
from subspace_adv.initialization import GAUSSIAN, gain
from subspace_adv.measures import Dimension, Variable
from subspace_adv.optimizers import OPTIMIZERS, OffPart, readers
from subspace_adv.parametrizations import PARAMETRIZATIONS
from subspace_adv.reduction import reduction
from subspace_adv.snapshots import during
from subspace_adv.sweep import Sweep
from subspace_adv.training import CONVERGED, PENDING, STEP_LIMIT

_DECAY_HOLDS = (
    "NaN where training moves the part in ways of its own: adam, but for points and region on coordinate axes apart "
    "and without weight decay, and points that span the whole space (chessboard); in "
    "convolutions whose patches of the data span all that a filter sees; in networks of a user's own class"
)
_LAW_HOLDS = (
    "NaN where there is no predicted_decay, where the initial weights are not Gaussian (torch), in codimension 0"
)
_BOUND_HOLDS = (
    f"{_LAW_HOLDS}, and in convolutions but for patches that tile the points, each of them anywhere in one subspace"
)
_HOLDS = f"{_LAW_HOLDS}, and in convolutions"
_POINT: tuple[Dimension, ...] = ("point",)
_GRADIENT = "predicted gradient_norm_off given the training run"
_GRADIENT_UNIT = "output per input length"

PREDICTIONS = {
    "predicted_decay": Variable(
        (), "1", f"factor by which training multiplies the weights orthogonal to the subspace; {_DECAY_HOLDS}"
    ),
    "predicted_bound_probability": Variable(
        (), "1", f"least probability of predicted_gradient_norm_off_lower_bound, and of the upper one; {_BOUND_HOLDS}"
    ),
    "predicted_off_deviation": Variable(
        (),
        "output per input length",
        "standard deviation of the first layer's weights that never learn: gradient_off_whitened over its square is χ² "
        f"of gradient_off_freedom degrees of freedom given the training run; {_LAW_HOLDS}",
    ),
    "predicted_gradient_norm_off": Variable(_POINT, _GRADIENT_UNIT, f"{_GRADIENT}: median of its law; {_HOLDS}"),
    "predicted_gradient_norm_off_low": Variable(
        _POINT, _GRADIENT_UNIT, f"{_GRADIENT}: 2.5 % quantile of its law; {_HOLDS}"
    ),
    "predicted_gradient_norm_off_high": Variable(
        _POINT, _GRADIENT_UNIT, f"{_GRADIENT}: 97.5 % quantile of its law; {_HOLDS}"
    ),
    "predicted_gradient_norm_off_lower_bound": Variable(
        _POINT, _GRADIENT_UNIT, f"{_GRADIENT}: exceeded with predicted_bound_probability; {_BOUND_HOLDS}"
    ),
    "predicted_gradient_norm_off_upper_bound": Variable(
        _POINT, _GRADIENT_UNIT, f"{_GRADIENT}: not exceeded with predicted_bound_probability; {_BOUND_HOLDS}"
    ),
    "predicted_distance_universal": Variable(
        _POINT,
        "input length",
        "predicted distance_universal, to first order and at the typical slope; 0 where misclassified, inf where no "
        f"neuron is active; {_BOUND_HOLDS}, and where the points span more than the subspace",
    ),
}

Setting = Callable[..., np.ndarray]
"""Values of a leaf, shaped to broadcast over the grid."""
OfFrozen = Callable[[Callable[[Frozen], Any], Any], np.ndarray]
"""A fact of what never learns, and another where nothing is known of it, shaped to broadcast over the grid."""


def predict(
    sweep: Sweep,
    recorded: dict[str, np.ndarray],
    datasets: Sequence[DataSettings],
    which: np.ndarray,
    labels: np.ndarray,
) -> dict[str, np.ndarray]:
    """Predictions for all cells of a grid.

    Args:
        sweep: the sweep.
        recorded: what was recorded, (cells,) or (cells, points); NaN where pending.
        datasets: the distinct ones of the grid.
        which: the dataset of each cell, as from `datasets.grid_data`.
        labels: training labels (datasets, points); 0 where there is no such point.

    Returns:
        Float32 arrays named by `PREDICTIONS`, (cells,) or (cells, points).
    """

    def setting(leaf: str, dtype: Any = np.float32) -> np.ndarray:
        return np.array(sweep.values(leaf), dtype).reshape(
            [-1 if leaf in of else 1 for of in sweep.dimensions.values()]
        )

    def of_frozen(fact: Callable[[Frozen], Any], otherwise: Any) -> np.ndarray:
        return over_grid(sweep, datasets, which, fact, otherwise)

    def per_cell(values: np.ndarray) -> np.ndarray:
        return np.broadcast_to(values, sweep.shape).astype(np.float32).reshape(-1)

    def per_point(factor: np.ndarray) -> np.ndarray:
        frozen = per_cell(scale * factor)[:, None] * recorded["head_norm_active"]
        return np.hypot(recorded["gradient_norm_off_learned"], frozen)

    inits = setting("init", None)
    gains = np.vectorize(gain, otypes=[np.float32])(inits)
    fan_in = of_frozen(lambda frozen: frozen.span.fan_in, np.nan)
    rho = np.where(_off_untrained(setting, of_frozen), _decay(sweep, setting, fan_in, recorded), np.nan)
    deviation = (
        np.abs(rho) * np.where(np.isin(inits, GAUSSIAN), gains * setting("init_scale"), np.nan) / np.sqrt(fan_in)
    )
    freedom = of_frozen(lambda frozen: frozen.freedom, 0)
    scale = np.where(freedom > 0, deviation, np.nan)
    dense = np.where(of_frozen(lambda frozen: frozen.is_dense, False), 1, np.nan)
    codimension, all_off = np.maximum(freedom, 1), of_frozen(lambda frozen: frozen.all_off, False)
    lower_bound, upper_bound = theory.length_bounds(codimension)
    universal = theory.universal_distance(
        recorded["output"],
        recorded["head_sum_active"],
        *(per_cell(values)[:, None] for values in (np.where(all_off, scale, np.nan), codimension, setting("width"))),
    )
    wrong = _signed(sweep, recorded["output"], labels[which]) <= 0
    gradient = "predicted_gradient_norm_off"
    return {
        "predicted_decay": per_cell(rho),
        "predicted_bound_probability": per_cell(
            np.where(np.isnan(scale), np.nan, theory.bound_probability(codimension))
        ),
        "predicted_off_deviation": per_cell(deviation),
        gradient: per_point(dense * theory.chi_quantile(codimension, 0.5)),
        f"{gradient}_low": per_point(dense * theory.chi_quantile(codimension, 0.025)),
        f"{gradient}_high": per_point(dense * theory.chi_quantile(codimension, 0.975)),
        f"{gradient}_lower_bound": per_point(lower_bound),
        f"{gradient}_upper_bound": per_point(upper_bound),
        "predicted_distance_universal": np.where(wrong & ~np.isnan(universal), np.float32(0), universal),
    }


def predict_during(
    sweep: Sweep,
    recorded: dict[str, np.ndarray],
    datasets: Sequence[DataSettings],
    which: np.ndarray,
    labels: np.ndarray,
    snapshots: int,
) -> dict[str, np.ndarray]:
    """As `predict`, of every snapshot of what was recorded: arrays named by `during`, (cells, snapshots, …)."""
    names = [name for name in recorded if during(name) in recorded]
    found = []
    for one in range(snapshots):
        then = {name: recorded[during(name)][:, one] for name in names}
        then["status"] = np.where(np.isnan(then["steps"]), PENDING, STEP_LIMIT)
        found.append(predict(sweep, then, datasets, which, labels))
    return {during(name): np.stack([values[name] for values in found], axis=1) for name in PREDICTIONS}


def _off_untrained(setting: Setting, of_frozen: OfFrozen) -> np.ndarray:
    """Where training does to the off part what `theory.decay` says, and there is an off part."""
    optimizers = setting("optimizer", None)
    untrained = np.zeros((), bool)
    for name in np.unique(optimizers):
        by_decay_alone = of_frozen(lambda frozen, name=name: reduction(frozen.span, name, 0)[0], False)
        if OPTIMIZERS[name].off is not OffPart.SCALED:
            by_decay_alone = by_decay_alone & (setting("weight_decay") == 0)
        untrained = untrained | ((optimizers == name) & by_decay_alone)
    return untrained & of_frozen(lambda frozen: frozen.exists, False)


def _decay(sweep: Sweep, setting: Setting, fan_in: np.ndarray, recorded: dict[str, np.ndarray]) -> np.ndarray:
    trained = np.isin(recorded["status"], (CONVERGED, STEP_LIMIT))
    momentum = np.where(np.isin(setting("optimizer", None), readers("momentum")), setting("momentum"), 0)
    names, width = setting("parametrization", None), setting("width", np.float64)
    rate: np.ndarray | float = 1.0
    for name in set(sweep.values("parametrization")):
        rate = np.where(names == name, PARAMETRIZATIONS[name].first(fan_in, width).weight, rate)
    return theory.decay(
        np.where(trained, recorded["steps"], np.nan).reshape(sweep.shape),
        setting("learning_rate") * rate,
        setting("weight_decay"),
        momentum,
    )


def _signed(sweep: Sweep, output: np.ndarray, labels: np.ndarray) -> np.ndarray:
    points = output.shape[1]
    return np.broadcast_to(labels, (*sweep.shape, points)).reshape(-1, points) * output
