"""Networks on the way to their stop: margin, gradient and distances off the subspace, with the predicted law beside."""

import math

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from subspace_adv.measures import distance_name
from subspace_adv.plots.panels import BLUE, ORANGE, headline, legend_columns, panel_label, panels
from subspace_adv.settings import replicates
from subspace_adv.snapshots import MARGIN_LEVEL, STEP, measured_along
from subspace_adv.tables import Arm, median_interval, per_network

_ROWS = {  # what is the same for all networks is left out
    STEP: {"margin": "margin"},
    MARGIN_LEVEL: {"steps": "gradient steps\ntill then"},
}
_MEASURED = {
    "gradient_norm_off": "gradient\noff the subspace",
    "distance_universal": "universal distance\nto a flip",
    distance_name("off", "l2", "upper"): "distance to a flip\noff the subspace",
}
_AXES = {STEP: "gradient steps", MARGIN_LEVEL: "margin first exceeded"}
_NOTES = {STEP: "a network that has stopped stays as it was", MARGIN_LEVEL: "of networks that ever exceeded it"}


def trajectories(dataset: xr.Dataset, dimension: str) -> Figure:
    """Medians over networks, against the steps or the margins at which they were measured: a column an arm.

    Args:
        dataset: with snapshots along the dimension.
        dimension: "step" or "margin_level".
    """
    measured = measured_along(dataset, dimension)
    words = _ROWS[dimension] | _MEASURED
    rows = [name for name in words if name in measured and dimension in measured[name].dims]
    shown, x = panels(dataset), measured[dimension].values[:-1]
    figure = Figure(figsize=(2.5 * max(len(shown), 2) + 1.1, 1.9 * len(rows) + 1.8), layout="constrained")
    grid = figure.subplots(len(rows), len(shown), squeeze=False, sharex=True, sharey="row")
    broken = False
    for axes, panel in zip(grid.T, shown, strict=True):
        for ax, name in zip(axes, rows, strict=True):
            medians = _medians(measured, name, panel.arm, dimension)
            broken |= bool(np.isinf(medians[:, 0]).any())
            _draw(ax, x, medians, "measured", BLUE, "-")
            if (predicted := f"predicted_{name}") in measured:
                _draw(ax, x, _medians(measured, predicted, panel.arm, dimension), "predicted", ORANGE, "--")
            ax.grid(color="0.9")
            ax.set_axisbelow(True)
        axes[0].set_title(panel_label(panel))
        axes[-1].set_xlabel(_AXES[dimension])
    for ax, name in zip(grid[:, 0], rows, strict=True):
        ax.set_ylabel(f"{words[name]}\n({measured[name].attrs['units']})", fontsize=9)
        if name != "margin":
            ax.set_ylim(bottom=0)
    if dimension == STEP:
        _spacing(grid[-1, 0], x)
    labelled = grid[min(1, len(rows) - 1), 0]
    figure.legend(*labelled.get_legend_handles_labels(), loc="outside lower center", ncols=legend_columns(shown))
    count = math.prod(dataset.sizes.get(axis, 1) for axis in replicates())
    note = f"medians over points and {count} networks, shaded: 95 % intervals; {_NOTES[dimension]}"
    if broken:
        note += "; there is no line where the median distance is infinite"
    headline(figure, dataset, "What happens off the data's subspace during training", note)
    return figure


def _medians(dataset: xr.Dataset, name: str, arm: Arm, dimension: str) -> np.ndarray:
    """Median over networks with its interval at each snapshot, (k, 3), of the median over the points of each."""
    places = range(dataset.sizes[dimension])
    values = np.array([per_network(dataset.isel({dimension: place}, drop=True), name, arm) for place in places])
    *before, stop = values
    if dimension == STEP:
        before = [np.where(np.isnan(one), stop, one) for one in before]
    return np.array([median_interval(one) for one in before])


def _draw(ax: Axes, x: np.ndarray, estimates: np.ndarray, label: str, colour: str, line: str) -> None:
    """Gaps where a median is infinite or unknown."""
    median, low, high = np.where(np.isfinite(estimates), estimates, np.nan).T
    ax.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    ax.plot(x, median, color=colour, linestyle=line, linewidth=1.6, marker="o", markersize=2.5, label=label)


def _spacing(ax: Axes, steps: np.ndarray) -> None:
    """A logarithmic axis, on which 0 has a place too."""
    if len(steps) < 2 or steps[-1] < 10 * max(steps[1], 1):
        return
    if steps[0] > 0:
        ax.set_xscale("log")
    else:
        ax.set_xscale("symlog", linthresh=steps[1])
    ax.minorticks_off()
