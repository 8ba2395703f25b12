"""Networks on the way to their stop: margin, gradient and distances off the subspace, with the predicted law beside."""

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from subspace_adv.measures import distance_name
from subspace_adv.plots.panels import (
    BLUE,
    INFINITE_NOTE,
    ORANGE,
    Panel,
    headline,
    legend_columns,
    panel_label,
    panels,
    say_where_infinite,
    zips,
)
from subspace_adv.snapshots import MARGIN_LEVEL, STEP, measured_along
from subspace_adv.tables import Arm, median_interval, per_network, repetitions

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
_UNIVERSAL_NOTE = "the predicted universal distance is an estimate for large codimensions"  # F4 (d)


def trajectories(dataset: xr.Dataset, dimension: str) -> Figure:
    """Medians over networks, against the steps or the margins at which they were measured: a column an arm.

    Args:
        dataset: with snapshots along the dimension.
        dimension: "step" or "margin_level".
    """
    measured = measured_along(dataset, dimension)
    words = _ROWS[dimension] | _MEASURED
    rows = [name for name in words if name in measured and dimension in measured[name].dims]
    shown = panels(dataset)
    figure = Figure(figsize=(2.5 * max(len(shown), 2) + 1.1, 1.9 * len(rows) + 1.8), layout="constrained")
    grid = figure.subplots(len(rows), len(shown), squeeze=False, sharex=True, sharey="row")
    infinite = False
    for row, name in zip(grid, rows, strict=True):
        drawn = [_panel(ax, measured, name, panel, dimension) for ax, panel in zip(row, shown, strict=True)]
        unit = measured[name].attrs["units"]
        row[0].set_ylabel(words[name] if unit == "1" else f"{words[name]}\n({unit})", fontsize=9)
        if name != "margin":
            row[0].set_ylim(bottom=0)
        infinite |= say_where_infinite(row, drawn)
    for axes, panel in zip(grid.T, shown, strict=True):
        axes[0].set_title(panel_label(panel))
        axes[-1].set_xlabel(_AXES[dimension])
    if dimension == STEP:
        _spacing(grid[-1, 0], measured[dimension].values[:-1])
    labelled = grid[min(1, len(rows) - 1), 0]
    figure.legend(*labelled.get_legend_handles_labels(), loc="outside lower center", ncols=legend_columns(shown))
    count = repetitions(dataset)
    note = f"medians over points and {count} networks, shaded: 95 % intervals; {_NOTES[dimension]}"
    if "distance_universal" in rows and "predicted_distance_universal" in measured:
        note += f"; {_UNIVERSAL_NOTE}"
    if infinite:
        note += f"; {INFINITE_NOTE}"
    headline(figure, dataset, "What happens off the data's subspace during training", note, zips(dataset))
    return figure


def _panel(ax: Axes, measured: xr.Dataset, name: str, panel: Panel, dimension: str) -> np.ndarray:
    """What was measured and, if known, predicted; returns the medians and their intervals, (lines, k, 3)."""
    lines = {"measured": name, "predicted": f"predicted_{name}"}
    drawn = []
    for (label, variable), colour, line in zip(lines.items(), (BLUE, ORANGE), ("-", "--"), strict=True):
        if variable in measured:
            drawn.append(_medians(measured, variable, panel.arm, dimension))
            _draw(ax, measured[dimension].values[:-1], drawn[-1], label, colour, line)
    ax.grid(color="0.9")
    ax.set_axisbelow(True)
    return np.array(drawn)


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
