"""Figures of a results folder: decision boundaries, decision surfaces, and what the remedies change."""

import io
import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from mpl_toolkits.mplot3d.art3d import Poly3DCollection
from PIL import Image

from subspace_adv.data import Data, chessboard, line
from subspace_adv.network import Network
from subspace_adv.results import load_networks, open_results
from subspace_adv.sweep import UserError
from subspace_adv.tables import REMEDIES, REPLICATES, Arm, median_interval, per_network
from subspace_adv.training import DIVERGED, PENDING

Format = Literal["png", "svg"]
Load = Callable[..., Network]
"""`load_networks` of one folder: axis values → trained networks."""

# Okabe and Ito's palette, whose colours readers with any colour vision tell apart.
_BLUE, _ORANGE = "#0072B2", "#D55E00"
_COLOURS = ("#000000", _ORANGE, _BLUE, "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_LINES = tuple(zip(_COLOURS, "osD^vPX", strict=True))
_SHARES = LinearSegmentedColormap.from_list("shares", ["#5FA6D0", "#F7F7F7", "#EE9A5E"])
_STYLE: dict[Any, Any] = {"axes.titlesize": 10, "figure.titlesize": 11, "legend.frameon": False}
_STYLE |= {"legend.columnspacing": 1.4, "svg.hashsalt": "subspace_adv"}

_MAX_NETWORKS = 200  # whose predictions are averaged
_MAX_SURFACES = 32  # whose decision surfaces are computed
_FAINT_BOUNDARIES = 6
_HALF_WIDTH = 1.5  # of the square in which boundaries are drawn
_PLANE = 0.5  # height of the chessboard
_REACH = 2.0  # how far above and below it a flip is looked for
_SIGHT = 1.0  # how far above and below it a decision surface is drawn
_JUMP = 0.4  # larger steps between neighbouring heights belong to two sheets of the surface

_QUANTITIES = {
    "distance_off_l2_upper": "distance to a flip\noff the subspace",
    "gradient_norm_off": "gradient\noff the subspace",
}
_DISTANCE_NOTE = "distance to a flip: off the data's subspace, median over points and networks"
_AXIS_NAMES = {"init_scale": "initialization scale", "weight_decay": "weight decay λ"}


class Panel(NamedTuple):
    """An arm of a sweep that gets a panel, or a line, of its own."""

    name: str
    arm: Arm  # axis → value, of all axes but the replicates


class Column(NamedTuple):
    """An axis of a sweep that medians are drawn against."""

    along: str
    label: str
    x: np.ndarray  # where its values are drawn
    legend: str  # what tells the lines apart
    lines: list[tuple[str, Arm]]  # each line's name, and the values on the other axes


def plot(directory: str | Path, formats: Sequence[Format] = ("png", "svg")) -> list[Path]:
    """Draw every figure that fits a results folder into its subfolder `figures`.

    Args:
        directory: a results folder, complete or not.
        formats: file types of each figure.

    Returns:
        Paths of the files, the same to the byte if drawn again; none where nothing varies, or all diverged.

    Raises:
        UserError: if the folder is no results folder, or the sweep has not yet begun.
    """
    dataset = open_results(directory)
    if (dataset["status"] == PENDING).all():
        raise UserError(f"{directory}: no network is trained yet; run the sweep first")
    if not _trained(dataset["status"]).any():
        return []
    load = partial(load_networks, directory)
    kind = _first(dataset).get("kind", dataset.attrs.get("kind"))
    figures: dict[str, tuple[bool, Callable[[], Figure]]] = {  # name → whether it fits, how to draw it
        "boundaries": (kind == "line", lambda: boundaries(dataset, load)),
        "surfaces": (kind == "chessboard", lambda: surfaces(dataset, load)),
        "codimension": (kind == "subspace" and _varies(dataset, "ambient_dim"), lambda: codimension(dataset)),
        "remedies": (bool(_drawn_against(dataset)), lambda: remedies(dataset)),
    }
    folder = Path(directory) / "figures"
    folder.mkdir(exist_ok=True)
    paths = []
    for name in (name for name, (fits, _) in figures.items() if fits):
        with mpl.rc_context(_STYLE):
            figure = figures[name][1]()
            for suffix in formats:
                paths.append(folder / f"{name}.{suffix}")
                _save(figure, paths[-1])
    return paths


def panels(dataset: xr.Dataset) -> list[Panel]:
    """The standard arm, each remedy alone, and both together: those that the sweep has, and trained.

    An axis is at its first value in the standard arm; a remedy's axis is at its last where it is applied.
    """
    first = _first(dataset)
    scale, decay = ({a: dataset[a].values.tolist()[-1]} if _varies(dataset, a) else {} for a in REMEDIES)
    size = "smaller" if scale and scale["init_scale"] < first["init_scale"] else "larger"
    changes = {f"{size} initialization": scale, "L2 regularization": decay}
    changes["both"] = scale | decay if scale and decay else {}
    found = [Panel("standard", first), *(Panel(name, first | change) for name, change in changes.items() if change)]
    return [panel for panel in found if _trained(dataset["status"].sel(panel.arm)).any()]


def boundaries(dataset: xr.Dataset, load: Load) -> Figure:
    """Decision boundaries of networks trained on the line, one panel an arm.

    The background is the share of the arm's networks that predict +1; the boundary of the first seed's
    network is a line, those of a few further seeds are faint lines. The dataset must be of kind "line".
    """
    shown = panels(dataset)
    figure = Figure(figsize=(2.2 * max(len(shown), 2) + 1.1, 4.2), layout="constrained")
    axes = figure.subplots(1, len(shown), sharex=True, sharey=True, squeeze=False)[0]
    ticks = np.linspace(-_HALF_WIDTH, _HALF_WIDTH, 101)
    grid = np.stack(np.meshgrid(ticks, ticks), axis=-1)
    share = None
    for ax, panel in zip(axes, shown, strict=True):
        outputs = np.stack([_output(net, grid) for net in _networks(dataset, load, panel.arm, _MAX_NETWORKS)])
        positive = 100 * (outputs > 0).mean(axis=0)
        share = ax.contourf(ticks, ticks, positive, levels=np.linspace(0, 100, 11), cmap=_SHARES)
        share.set_rasterized(True)
        for values in outputs[1 : 1 + _FAINT_BOUNDARIES, ::2, ::2]:
            ax.contour(ticks[::2], ticks[::2], values, levels=[0], colors="black", linewidths=0.6, alpha=0.3)
        ax.contour(ticks, ticks, outputs[0], levels=[0], colors="black", linewidths=1.8)
        ax.axline((0, 0), slope=1, color="black", linestyle="--", linewidth=1, label="the data's line")
        ax.plot([], [], color="black", linewidth=1.8, label="boundary of one network")
        ax.plot([], [], color="black", linewidth=0.6, alpha=0.4, label="of a few others")
        _scatter(ax, line())
        ax.set(title=_title(dataset, panel), xlabel="$x_1$", xticks=(-1, 0, 1), yticks=(-1, 0, 1), aspect="equal")
    axes[0].set_ylabel("$x_2$")
    colorbar = figure.colorbar(share, ax=axes, shrink=0.7, ticks=(0, 50, 100), format="%d %%")  # pyright: ignore
    colorbar.set_label("networks that predict +1")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(shown) + 1)
    _suptitle(figure, dataset, "Where networks trained on a line change their prediction", _DISTANCE_NOTE)
    return figure


def surfaces(dataset: xr.Dataset, load: Load) -> Figure:
    """Decision surfaces of networks trained on the chessboard, one column an arm.

    Above, the surface of the first seed's network over the unit square: the nearest change of prediction
    straight up or down from the data's plane. Below, the median over networks of its distance from the plane.
    The dataset must be of kind "chessboard".
    """
    shown = panels(dataset)
    figure = Figure(figsize=(2.2 * max(len(shown), 2) + 1.2, 6.5), layout="constrained")
    x, y = np.meshgrid(np.linspace(0, 1, 65), np.linspace(0, 1, 65), indexing="ij")
    coarse = (x[::2, ::2], y[::2, ::2])
    flat, distance = [], None
    for i, panel in enumerate(shown):
        networks = _networks(dataset, load, panel.arm, _MAX_SURFACES)
        solid: Any = figure.add_subplot(2, len(shown), i + 1, projection="3d", computed_zorder=False)
        _draw_surface(solid, x, y, flip_heights(networks[0], x, y, plane=_PLANE, reach=_REACH))
        _scatter(solid, chessboard(), depthshade=False)
        solid.set_title(_title(dataset, panel))
        heights = np.stack([flip_heights(net, *coarse, plane=_PLANE, reach=_REACH) for net in networks])
        median = np.median(np.minimum(np.abs(heights), _REACH), axis=0)
        ax = figure.add_subplot(2, len(shown), len(shown) + i + 1, sharey=flat[0] if flat else None)
        distance = ax.contourf(*coarse, median, levels=np.linspace(0, 1, 11), extend="max")
        distance.set_rasterized(True)
        _scatter(ax, chessboard(), clip_on=False)
        ax.set(xlabel="$x_1$", xticks=(0, 0.5, 1), yticks=(0, 0.5, 1), aspect="equal")
        ax.tick_params(labelleft=i == 0)
        flat.append(ax)
    flat[0].set_ylabel("$x_2$")
    label = "distance up or down to a flip,\nmedian over networks"
    figure.colorbar(distance, ax=flat, label=label)  # pyright: ignore[reportArgumentType]
    figure.legend(*flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(shown) + 1)
    _suptitle(figure, dataset, "Where networks trained on a chessboard change their prediction", _DISTANCE_NOTE)
    return figure


def remedies(dataset: xr.Dataset) -> Figure:
    """Distance and gradient off the subspace against the initialization scale and against the weight decay.

    Points are medians over networks of the median over the points of each, with 95 % bootstrap intervals. A
    sweep in which neither remedy varies is drawn against each other axis of numbers.
    """
    columns = []
    for along in _drawn_against(dataset):
        other = next((axis for axis in REMEDIES if axis != along and _varies(dataset, axis)), "")
        values = dataset[other].values.tolist() if other else []
        chosen = sorted({round(i) for i in np.linspace(0, len(values) - 1, len(_LINES)) if values})
        lines = [(f"{values[i]:.3g}", _first(dataset) | {other: values[i]}) for i in chosen] or [("", _first(dataset))]
        x, label = dataset[along].values, _AXIS_NAMES.get(along, along)
        columns.append(Column(along, label, x, _AXIS_NAMES.get(other, ""), lines))
    return _against(dataset, columns, "What changes off the data's subspace")


def codimension(dataset: xr.Dataset) -> Figure:
    """As `remedies`, but against the codimension, one line an arm; the dataset must have an axis `ambient_dim`."""
    subspace_dim = _first(dataset).get("subspace_dim", dataset.attrs.get("subspace_dim"))
    lines = [(_label(panel), panel.arm) for panel in panels(dataset)]
    label = "codimension (ambient_dim − subspace_dim)"
    column = Column("ambient_dim", label, dataset["ambient_dim"].values - subspace_dim, "", lines)
    return _against(dataset, [column], "What the codimension changes off the data's subspace")


def flip_heights(network: Network, x: np.ndarray, y: np.ndarray, *, plane: float, reach: float) -> np.ndarray:
    """Signed height above a plane z = const of the nearest zero of N(x, y, ·), exactly (F5 in docs/theory.md).

    Args:
        network: one network on R³, weight (m, 3).
        x: first coordinates, (...).
        y: second coordinates, (...).
        plane: height z of the plane.
        reach: largest distance at which a zero is looked for.

    Returns:
        Heights (...), float64; inf where N has no zero within reach.
    """
    if x.ndim > 1:  # row by row, the arrays stay in the cache: several times faster
        rows = zip(x, y, strict=True)
        return np.stack([flip_heights(network, *row, plane=plane, reach=reach) for row in rows])
    weight, bias, head, head_bias = (np.asarray(array, np.float64) for array in network)
    z, rate = np.stack([x, y, np.full(len(x), plane)], axis=1) @ weight.T + bias, weight[:, 2]
    # A kink out of reach only decides the slope that is met within reach, so it may be moved to the end.
    kink = np.clip(np.divide(-z, rate, out=np.full_like(z, reach), where=rate != 0), -reach, reach)
    order = np.argsort(kink, axis=1)
    ends = np.full((len(x), 1), reach)
    breaks = np.concatenate([-ends, np.take_along_axis(kink, order, axis=1), ends], axis=1)
    # Far below, the neurons that fall with z are on; at each kink the slope grows by head·|rate|.
    falling = np.full_like(ends, head @ np.minimum(rate, 0))
    slope = np.cumsum(np.concatenate([falling, (head * np.abs(rate))[order]], axis=1), axis=1)
    rise = np.cumsum(slope * np.diff(breaks, axis=1), axis=1)
    lowest = (np.maximum(z - reach * rate, 0) @ head + head_bias)[:, None]
    value = np.concatenate([lowest, lowest + rise], axis=1)
    left, right = value[:, :-1], value[:, 1:]
    crosses = (left <= 0) != (right <= 0)
    share = np.where(crosses, left, 0) / np.where(crosses, left - right, 1)
    zero = np.where(crosses, breaks[:, :-1] + share * np.diff(breaks, axis=1), np.inf)
    return zero[np.arange(len(zero)), np.argmin(np.abs(zero), axis=1)]


def _save(figure: Figure, path: Path) -> None:
    """Write a figure; a PNG with 256 colours, which takes a third of the bytes."""
    if path.suffix != ".png":
        figure.savefig(path, dpi=150, metadata={"Date": None})
        return
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=150)
    Image.open(buffer).convert("RGB").quantize(256).save(path, optimize=True)


def _first(dataset: xr.Dataset) -> Arm:
    """The first value of every axis but the replicates."""
    axes = [axis for axis in dataset["status"].dims if axis not in REPLICATES]
    return {axis: dataset[axis].values.tolist()[0] for axis in axes}


def _varies(dataset: xr.Dataset, axis: Hashable) -> bool:
    return dataset.sizes.get(axis, 1) > 1


def _drawn_against(dataset: xr.Dataset) -> list[str]:
    """The axes that `remedies` draws against; the ambient dimension has a figure of its own."""
    numbers = [str(axis) for axis in _first(dataset) if dataset[axis].dtype.kind in "iuf"]
    varying = [axis for axis in numbers if _varies(dataset, axis) and axis != "ambient_dim"]
    return [axis for axis in REMEDIES if axis in varying] or varying


def _trained(status: xr.DataArray) -> np.ndarray:
    return ~np.isin(status.values, (PENDING, DIVERGED))


def _networks(dataset: xr.Dataset, load: Load, arm: Arm, count: int) -> list[Network]:
    """The first trained networks of an arm, at most `count`."""
    status = dataset["status"].sel(arm)
    chosen = {str(axis): value for axis, value in arm.items()}
    if status.ndim:
        axis = str(status.dims[0])
        some = _trained(status).any(axis=tuple(range(1, status.ndim)))
        chosen[axis] = dataset[axis].values[some][:count].tolist()
    flat = [np.reshape(array, (-1, *array.shape[status.ndim :])) for array in load(**chosen)]
    networks = [Network(*one) for one in zip(*flat, strict=True)]
    return [network for network in networks if np.isfinite(network.head_bias)][:count]


def _output(network: Network, points: np.ndarray) -> np.ndarray:
    """Outputs (k, k') at a grid of points (k, k', d), row by row to stay in the cache."""
    weight, bias, head, head_bias = map(np.asarray, network)
    return np.stack([np.maximum(row @ weight.T + bias, 0) @ head + head_bias for row in points.astype(np.float32)])


def _scatter(ax: Any, data: Data, **options: Any) -> None:
    """The training points, told apart by colour and marker."""
    for sign, label, colour, marker in (("−", -1, _BLUE, "o"), ("+", 1, _ORANGE, "s")):
        coordinates = data.x[data.y == label][:, : 3 if ax.name == "3d" else 2].T
        look = {"color": colour, "marker": marker, "s": 34, "edgecolors": "white", "linewidths": 0.9}
        ax.scatter(*coordinates, label=f"label {sign}1", zorder=5, **look, **options)


def _draw_surface(ax: Any, x: np.ndarray, y: np.ndarray, height: np.ndarray) -> None:
    """A decision surface given by its height above the data's plane, and the plane's outline.

    Where the nearest flip jumps from one sheet to another, or is out of sight, the surface has a gap.
    """
    corners = np.stack([x, y, np.clip(height, -_REACH, _REACH)], axis=-1)
    around = (corners[:-1, :-1], corners[1:, :-1], corners[1:, 1:], corners[:-1, 1:])
    faces = np.stack(around, axis=2).reshape(-1, 4, 3)
    faces = faces[(np.ptp(faces[..., 2], axis=1) < _JUMP) & (np.abs(faces[..., 2]).min(axis=1) < _SIGHT)]
    faces[..., 2] = _PLANE + np.clip(faces[..., 2], -_SIGHT, _SIGHT)
    if len(faces):
        look: dict[str, Any] = {"facecolors": "#C4CCD4", "shade": True, "antialiased": False, "rasterized": True}
        ax.add_collection3d(Poly3DCollection(faces, **look))
    square = np.array([[0, 0], [0, 1], [1, 1], [1, 0], [0, 0]]).T
    ax.plot(*square, _PLANE, color="black", linewidth=1, zorder=2)
    ax.set(xlim=(0, 1), ylim=(0, 1), zlim=(_PLANE - _SIGHT, _PLANE + _SIGHT))
    ax.set(xticks=(0, 1), yticks=(0, 1), zticks=(_PLANE - _SIGHT, _PLANE, _PLANE + _SIGHT))
    ax.tick_params(pad=-2)
    for i, letter in enumerate("xyz", start=1):
        getattr(ax, f"set_{letter}label")(f"$x_{i}$", labelpad=-8)
    ax.set_box_aspect((1, 1, 0.9), zoom=1.1)


def _label(panel: Panel) -> str:
    settings = [f"{n} {panel.arm[a]:.3g}" for a, n in zip(REMEDIES, ("scale", "λ"), strict=True) if a in panel.arm]
    return "\n".join([panel.name, ", ".join(settings)]) if settings else panel.name


def _title(dataset: xr.Dataset, panel: Panel) -> str:
    """What a panel shows: the arm, how many networks fit, and their distance off the subspace."""
    margins = dataset["margin"].sel(panel.arm).values[_trained(dataset["status"].sel(panel.arm))]
    lines = [_label(panel), f"{(margins > 0).sum()} of {margins.size} networks fit"]
    if "distance_off_l2_upper" in dataset:
        distance = median_interval(per_network(dataset, "distance_off_l2_upper", panel.arm)).median
        lines.append(f"distance to a flip {distance:.2f}")
    return "\n".join(lines)


def _suptitle(figure: Figure, dataset: xr.Dataset, title: str, note: str, drawn: Iterable[str] = ()) -> None:
    """The title and a note; below, the sweep's name and what the figure holds fixed without saying so."""
    unsaid = set(_first(dataset)) - {*REMEDIES, *drawn}
    fixed = [f"{a} = {value}" for a, value in _first(dataset).items() if a in unsaid and _varies(dataset, a)]
    figure.suptitle("\n".join([title, note, ", ".join(["sweep " + dataset.attrs["name"], *fixed])]))


def _against(dataset: xr.Dataset, columns: list[Column], title: str) -> Figure:
    """Each quantity (row) against the axes given, with a line for each arm."""
    quantities = [name for name in _QUANTITIES if name in dataset]
    figure = Figure(figsize=(3.6 * len(columns) + 1.8, 2.4 * len(quantities) + 1.7), layout="constrained")
    grid = figure.subplots(len(quantities), len(columns), squeeze=False, sharex="col", sharey="row")
    for axes, column in zip(grid.T, columns, strict=True):
        for ax, variable in zip(axes, quantities, strict=True):
            for (name, arm), (colour, marker) in zip(column.lines, _LINES, strict=False):
                arms = [arm | {column.along: value} for value in dataset[column.along].values.tolist()]
                found = [median_interval(per_network(dataset, variable, one)) for one in arms]
                _line(ax, column.x, np.array(found), color=colour, marker=marker, label=name)
            ax.grid(color="0.9")
            ax.set_axisbelow(True)
        _spacing(axes[-1], np.sort(column.x))
        axes[-1].set_xlabel(column.label)
        if len(column.lines) > 1:
            below, wide = (0.5, -0.25), 4 if column.legend else 2
            axes[-1].legend(loc="upper center", bbox_to_anchor=below, title=column.legend, ncols=wide)
    for ax, variable in zip(grid[:, 0], quantities, strict=True):
        ax.set_ylim(bottom=0)
        ax.set_ylabel(f"{_QUANTITIES[variable]}\n({dataset[variable].attrs['units']})")
    count = math.prod(dataset.sizes.get(axis, 1) for axis in REPLICATES)
    note = f"medians over {count} networks, with 95 % intervals" if count > 1 else "one network each"
    _suptitle(figure, dataset, title, note, [column.along for column in columns])
    return figure


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
        ax.set_xticks(x, [f"{value:.3g}" for value in x])
    ax.minorticks_off()
