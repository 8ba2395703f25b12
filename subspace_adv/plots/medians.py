"""Medians of distance and gradient off the subspace, against the axes of a sweep."""

from collections.abc import Hashable
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from subspace_adv.measures import distance_name
from subspace_adv.plots.panels import (
    COLOURS,
    INFINITE_NOTE,
    first_values,
    headline,
    panel_label,
    panels,
    say_where_infinite,
    varies,
    zips,
)
from subspace_adv.tables import REMEDIES, Arm, median_interval, per_network, repetitions

_LINES = tuple(zip(COLOURS, "osD^vPX", strict=True))
_QUANTITIES = {
    distance_name("off", "l2", "upper"): "distance to a flip\noff the subspace",
    "gradient_norm_off": "gradient\noff the subspace",
}
_AXIS_NAMES = {
    "init_scale": "initialization scale",
    "weight_decay": "weight decay λ",
    "depth": "depth (hidden layers)",
    "width": "width",
    "subspace_dim": "dimension k of the subspace",
    "frequencies": "frequencies K",
    "samples": "points n",
}
SIZES = {
    "depth": "depth of networks",
    "width": "width of networks",
    "subspace_dim": "dimension of the subspace",
    "frequencies": "number of frequencies",
    "samples": "number of points",
}
"""Axes that have a figure of their own, as the ambient dimension has, and what they are."""
_KINDS = ("parametrization", "fit")  # axes that get a line for each value in these figures


class Column(NamedTuple):
    """An axis of a sweep that medians are drawn against."""

    along: str
    label: str
    x: np.ndarray  # where its values are drawn
    legend: str  # what tells the lines apart
    lines: list[tuple[str, Arm]]  # each line's name, and the values on the other axes


def remedies(dataset: xr.Dataset) -> Figure:
    """Distance and gradient off the subspace against the initialization scale and against the weight decay.

    Points are medians over networks of the median over the points of each, with 95 % bootstrap intervals. A
    sweep in which neither remedy varies is drawn against each other axis of numbers.
    """
    columns = []
    for along in drawn_against(dataset):
        other = next((axis for axis in REMEDIES if axis != along and varies(dataset, axis)), "")
        values = dataset[other].values.tolist() if other else []
        chosen = sorted({round(i) for i in np.linspace(0, len(values) - 1, len(_LINES)) if values})
        first = first_values(dataset)
        lines = [(f"{values[i]:.3g}", first | {other: values[i]}) for i in chosen] or [("", first)]
        x, label = dataset[along].values, _AXIS_NAMES.get(along, along)
        columns.append(Column(along, label, x, _AXIS_NAMES.get(other, ""), lines))
    return _against(dataset, columns, "What changes off the data's subspace")


def codimension(dataset: xr.Dataset) -> Figure:
    """As `remedies`, but against the codimension, one line an arm; the dataset must have an axis `ambient_dim`."""
    coords, attrs = dataset.coords, dataset.attrs
    subspace_dim = coords["subspace_dim"].values.flat[0] if "subspace_dim" in coords else attrs["subspace_dim"]
    lines = [(panel_label(panel), panel.arm) for panel in panels(dataset)]
    label = "codimension (ambient_dim − subspace_dim)"
    column = Column("ambient_dim", label, dataset["ambient_dim"].values - subspace_dim, "", lines)
    return _against(dataset, [column], "What the codimension changes off the data's subspace")


def size(dataset: xr.Dataset, along: str) -> Figure:
    """As `codimension`, against a size of the networks or of the data, which must be an axis.

    There is a line a parametrization or fit, if these vary. Where the size decides on how much of R^d the points span,
    the share of dimensions that they do not, in which nothing is learned, stands below.
    """
    lines = [(panel_label(panel), panel.arm) for panel in panels(dataset)]
    for axis in (axis for axis in _KINDS if varies(dataset, axis)):
        lines = [(kind, first_values(dataset) | {axis: kind}) for kind in dataset[axis].values.tolist()]
    column = Column(along, _AXIS_NAMES[along], dataset[along].values, "", lines)
    return _against(dataset, [column], f"What the {SIZES[along]} changes off the data's subspace", frozen=True)


def drawn_against(dataset: xr.Dataset) -> list[str]:
    """The axes that `remedies` draws against; sizes of networks and the ambient dimension have figures of their own."""
    axes = first_values(dataset).keys() - zips(dataset)
    numbers = [str(axis) for axis in dataset["status"].dims if axis in axes and dataset[axis].dtype.kind in "iuf"]
    varying = [axis for axis in numbers if varies(dataset, axis) and axis not in ("ambient_dim", *SIZES)]
    return [axis for axis in REMEDIES if axis in varying] or varying


def _frozen_shares(dataset: xr.Dataset, column: Column) -> list[np.ndarray]:
    """Of each line, at each place, the share of dimensions that the points do not span; none where all are alike."""
    if not {"ambient_dim", "span_dim"} <= dataset.coords.keys() | dataset.attrs.keys():
        return []

    def of(size: str, arm: Arm) -> float:
        told = dataset.coords[size] if size in dataset.coords else dataset.attrs[size]
        return float(told.sel({axis: arm[axis] for axis in told.dims}) if isinstance(told, xr.DataArray) else told)

    arms = [[arm | {column.along: value} for value in column.x.tolist()] for _, arm in column.lines]
    shares = [np.array([1 - of("span_dim", one) / of("ambient_dim", one) for one in line]) for line in arms]
    return shares if np.ptp(shares) > 0 else []


def _against(dataset: xr.Dataset, columns: list[Column], title: str, frozen: bool = False) -> Figure:
    """Each quantity (row) against the axes given, with a line for each arm; what is frozen along one in the last."""
    quantities = [name for name in _QUANTITIES if name in dataset]
    shares = _frozen_shares(dataset, columns[0]) if frozen else []
    rows = len(quantities) + bool(shares)
    figure = Figure(figsize=(3.6 * len(columns) + 1.8, 2.4 * rows + 1.7), layout="constrained")
    grid = figure.subplots(rows, len(columns), squeeze=False, sharex="col", sharey="row")
    for (name, _), share, (colour, marker) in zip(columns[0].lines, shares, _LINES, strict=False):
        order = np.argsort(columns[0].x)
        look = {"color": colour, "marker": marker, "markersize": 5, "label": name}
        grid[-1, 0].plot(columns[0].x[order], share[order], **look)
        grid[-1, 0].set_ylabel("dimensions that\nthe points do not span\n(share)")
        grid[-1, 0].set_ylim(0, 1)
        grid[-1, 0].grid(color="0.9")
    infinite = False
    for row, variable in zip(grid, quantities, strict=False):
        drawn = [_panel(ax, dataset, column, variable) for ax, column in zip(row, columns, strict=True)]
        row[0].set_ylim(bottom=0)
        row[0].set_ylabel(f"{_QUANTITIES[variable]}\n({dataset[variable].attrs['units']})")
        infinite |= say_where_infinite(row, drawn)
    for axes, column in zip(grid.T, columns, strict=True):
        _spacing(axes[-1], np.sort(column.x))
        axes[-1].set_xlabel(column.label)
        if len(column.lines) > 1:
            below, wide = (0.5, -0.25), 4 if column.legend else 2
            axes[-1].legend(loc="upper center", bbox_to_anchor=below, title=column.legend, ncols=wide)
    count = repetitions(dataset)
    note = f"medians over {count} networks, with 95 % intervals" if count > 1 else "one network each"
    note += f"; {INFINITE_NOTE}" if infinite else ""
    told = {axis for column in columns for _, arm in column.lines for axis in arm if _differs(column, axis)}
    headline(figure, dataset, title, note, [*(column.along for column in columns), *told])
    return figure


def _panel(ax: Axes, dataset: xr.Dataset, column: Column, variable: str) -> np.ndarray:
    """A line for each arm; returns the medians and their intervals, (lines, k, 3)."""
    drawn = []
    for (name, arm), (colour, marker) in zip(column.lines, _LINES, strict=False):
        arms = [arm | {column.along: value} for value in dataset[column.along].values.tolist()]
        drawn.append([median_interval(per_network(dataset, variable, one)) for one in arms])
        _line(ax, column.x, np.array(drawn[-1]), color=colour, marker=marker, label=name)
    ax.grid(color="0.9")
    ax.set_axisbelow(True)
    return np.array(drawn)


def _differs(column: Column, axis: Hashable) -> bool:
    """Whether lines tell an axis apart."""
    return len({arm[axis] for _, arm in column.lines}) > 1


def _line(ax: Axes, x: np.ndarray, estimates: np.ndarray, **style: Any) -> None:
    """Medians and their intervals (k, 3) joined in the order of x; gaps where a median is infinite or unknown."""
    order = np.argsort(x)
    median, low, high = np.where(np.isfinite(estimates), estimates, np.nan)[order].T
    errors = np.nan_to_num([median - low, high - median])
    ax.errorbar(x[order], median, errors if errors.any() else None, capsize=3, markersize=5, **style)


def _spacing(ax: Axes, x: np.ndarray) -> None:
    """Space ascending values so that each can be told from the next, and mark them."""
    if x[0] > 0 and x[-1] >= 4 * x[0]:
        ax.set_xscale("log")
    elif x[0] == 0 and len(x) > 2 and x[-1] >= 4 * x[1]:
        ax.set_xscale("symlog", linthresh=x[1])
    if len(x) <= 8:
        ax.set_xticks(x, [f"{value:.4g}" for value in x])
    ax.minorticks_off()
