"""What the figures share: palette, panels, titles and legends."""

import textwrap
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path as MatplotlibPath

from subspace_adv import engine
from subspace_adv.contracts import Design, Model
from subspace_adv.loading import Networks
from subspace_adv.measures import distance_name
from subspace_adv.models import architecture_of, is_class_name, is_known
from subspace_adv.settings import leaves
from subspace_adv.tables import (
    REMEDIES,
    Arm,
    arm_dimensions,
    fields_along,
    median_interval,
    per_network,
    settings_of,
)
from subspace_adv.training import DIVERGED, PENDING

Load = Callable[..., Any]
"""`load_networks` of one folder: axis values → parameters of trained networks."""

# Okabe and Ito's palette, whose colours readers with any colour vision tell apart.
BLUE, ORANGE = "#0072B2", "#D55E00"
COLOURS = ("#000000", ORANGE, BLUE, "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
REGION_WORDS = {
    "off": "off the subspace",
    "normal": "normal to the manifold",
    "tangent": "tangent to the manifold",
    "on": "on the subspace",
    "full": "anywhere",
}
_BOUNDARY_TICKS = 101  # along each side of a square in which a boundary is looked for
DISTANCE_NOTE = "distance to a flip: off the data's subspace, median over points and networks"
INFINITE_NOTE = "infinite distances are not drawn"


class Panel(NamedTuple):
    """An arm of a sweep that gets a panel, or a line, of its own."""

    name: str
    arm: Arm  # axis → value, of all axes but the replicates
    settings: dict[str, Any]  # the values by field, those along zips too


def panels(dataset: xr.Dataset) -> list[Panel]:
    """The standard arm, each remedy alone, and both together: those that the sweep has, and trained.

    An axis is at its first value in the standard arm; a remedy's axis is at its last where it is applied. The further
    places of every zip follow, evenly chosen where there are more than can be told apart.
    """
    first = first_values(dataset)
    scale, decay = ({a: dataset[a].values.tolist()[-1]} if varies(dataset, a) else {} for a in REMEDIES)
    size = "smaller" if scale and scale["init_scale"] < first["init_scale"] else "larger"
    changes = {f"{size} initialization": scale, "L2 regularization": decay}
    changes["both"] = scale | decay if scale and decay else {}
    found = {"standard": first} | {name: first | change for name, change in changes.items() if change}
    further = [{one: place} for one in zips(dataset) for place in range(1, dataset.sizes[one])]
    room = max(len(COLOURS) - len(found), 0)
    chosen = {round(i) for i in np.linspace(0, len(further) - 1, min(room, len(further)))}
    found |= {", ".join(f"{one} {i}" for one, i in further[k].items()): first | further[k] for k in sorted(chosen)}
    told = [Panel(name, arm, settings_of(dataset, arm)) for name, arm in found.items()]
    return [panel for panel in told if is_trained(dataset["status"].sel(panel.arm)).any()]


def zips(dataset: xr.Dataset) -> list[Hashable]:
    """The dimensions along which several fields of arms vary together."""
    return [one for one in arm_dimensions(dataset) if fields_along(dataset, one) != [one]]


def of_first_data(dataset: xr.Dataset, shown: Sequence[Panel]) -> list[Panel]:
    """The panels whose networks were trained on the data of the first arm."""
    data = [leaf for leaf in settings_of(dataset, first_values(dataset)) if leaves()[leaf] == "data"]
    first = settings_of(dataset, first_values(dataset))
    return [panel for panel in shown if all(panel.settings[leaf] == first[leaf] for leaf in data)]


def first_values(dataset: xr.Dataset) -> Arm:
    """The first value of every axis but the replicates."""
    return {axis: dataset[axis].values.tolist()[0] for axis in arm_dimensions(dataset)}


def varies(dataset: xr.Dataset, axis: Hashable) -> bool:
    """Whether a sweep has several values of an axis."""
    return dataset.sizes.get(axis, 1) > 1


def is_trained(status: xr.DataArray) -> np.ndarray:
    """Where training has ended in a network."""
    return ~np.isin(status.values, (PENDING, DIVERGED))


def are_known(dataset: xr.Dataset) -> bool:
    """Whether figures can evaluate networks: those of a user's own class if it was imported, or handed over."""
    kinds = dataset["architecture"].values.tolist() if "architecture" in dataset.coords else None
    return all(is_known(kind) for kind in kinds or [dataset.attrs["architecture"]] if is_class_name(kind))


def model_of(dataset: xr.Dataset, arm: Arm) -> Model:
    """The kind of an arm's networks."""
    settings = settings_of(dataset, arm)
    told: dict[str, Any] = {leaf: settings.get(leaf, dataset.attrs.get(leaf)) for leaf in Design._fields}
    told["ambient_dim"] = dataset.sizes["feature"]  # of kinds whose input space is drawn
    return architecture_of(told["architecture"]).model(Design(**told))


def trained_networks(dataset: xr.Dataset, load: Load, arm: Arm, count: int) -> list[Any]:
    """Parameters of the first trained networks of an arm, at most `count`."""
    status = dataset["status"].sel(arm)
    chosen = {str(axis): value for axis, value in arm.items()}
    if status.ndim:
        axis = str(status.dims[0])
        some = is_trained(status).any(axis=tuple(range(1, status.ndim)))
        chosen[axis] = dataset[axis].values[some][:count].tolist()
    loaded = load(**chosen)
    params = loaded.params if isinstance(loaded, Networks) else loaded
    flat = jax.tree.map(lambda a: np.reshape(a, (-1, *a.shape[status.ndim :])), params)
    trained = [i for i, one in enumerate(jax.tree.leaves(flat)[0]) if np.isfinite(one).all()]
    return [jax.tree.map(lambda a, i=i: a[i], flat) for i in trained[:count]]


def draw_points(ax: Any, dataset: xr.Dataset, **options: Any) -> None:
    """The training points, told apart by colour and marker."""
    first = dataset.isel({axis: 0 for axis in dataset["label"].dims if axis != "point"})
    inputs, labels = first["input"].values, first["label"].values
    for sign, label, colour, marker in (("−", -1, BLUE, "o"), ("+", 1, ORANGE, "s")):
        coordinates = inputs[labels == label][:, : 3 if ax.name == "3d" else 2].T
        look = {"color": colour, "marker": marker, "s": 34, "edgecolors": "white", "linewidths": 0.9}
        ax.scatter(*coordinates, label=f"label {sign}1", zorder=5, **look, **options)


def draw_pieces(ax: Axes, pieces: np.ndarray, **look: Any) -> None:
    """Straight pieces (k, 2, 2) as one path, so that where they meet nothing is drawn twice."""
    codes = np.tile([MatplotlibPath.MOVETO, MatplotlibPath.LINETO], len(pieces))
    path = MatplotlibPath(pieces.reshape(-1, 2), codes.astype(MatplotlibPath.code_type))
    ax.add_patch(PathPatch(path, fill=False, capstyle="round", **look))


def outputs_at(model: Model, networks: Sequence[Any], points: np.ndarray) -> np.ndarray:
    """Outputs (networks, k, k') at a grid of points (k, k', d)."""
    stacked = jax.tree.map(lambda *parts: np.stack(parts).astype(np.float32), *networks)
    return engine.alone(_output_each, stacked, points.astype(np.float32), x64=False, model=model)


def _output_each(networks: Any, points: jax.Array, *, model: Model) -> jax.Array:
    """Network by network and row by row, to stay in the cache."""
    return jax.lax.map(lambda net: jax.lax.map(lambda row: model.output(net, row), points), networks)


def boundary_pieces(
    ax: Axes, model: Model, network: Any, centre: np.ndarray, limits: tuple[float, float]
) -> np.ndarray:
    """A network's decision boundary in a square of a plane, straight pieces (k, 2, 2): exact where its model knows it.

    Elsewhere it lies where outputs change their sign between places of a grid.

    Args:
        ax: any, whose contours are made for that and taken away again.
        model: of the network.
        network: its parameters.
        centre: (d,), of coordinates in the plane of the first two axes.
        limits: of both coordinates.
    """
    if model.boundary is not None:
        low, high = (np.full(2, limit) for limit in limits)
        return model.boundary(network, centre, np.eye(len(centre), 2), low, high)
    ticks = np.linspace(*limits, _BOUNDARY_TICKS)
    grid = centre + np.stack(np.meshgrid(ticks, ticks), axis=-1) @ np.eye(len(centre), 2).T
    [values] = outputs_at(model, [network], grid)
    if not values.min() < 0 < values.max():  # matplotlib would draw another level
        return np.zeros((0, 2, 2))
    drawn = ax.contour(ticks, ticks, values, levels=[0])
    lines = [line for line in drawn.allsegs[0] if len(line) > 1]
    drawn.remove()
    return np.concatenate([np.stack([line[:-1], line[1:]], axis=1) for line in lines])


def say_where_infinite(row: Sequence[Axes], drawn: Sequence[np.ndarray]) -> bool:
    """Write into panels that are empty as all medians are infinite that they are; no ticks where all panels are empty.

    Args:
        row: panels that share a y axis.
        drawn: estimates in each, (..., 3): medians and both ends of their intervals.

    Returns:
        Whether any estimate is infinite, so that `INFINITE_NOTE` is due.
    """
    for ax, estimates in zip(row, drawn, strict=True):
        if np.isinf(estimates[..., 0]).any() and not np.isfinite(estimates[..., 0]).any():
            ax.text(0.5, 0.5, "infinite everywhere", transform=ax.transAxes, ha="center", va="center")
    if not any(np.isfinite(estimates[..., 0]).any() for estimates in drawn):
        row[0].set_yticks([])
    return any(bool(np.isinf(estimates).any()) for estimates in drawn)


def legend_columns(shown: Sequence[Panel]) -> int:
    """Entries of a legend side by side that a figure of these panels has room for."""
    return len(shown) + 1 if len(shown) > 2 else 2


def panel_label(panel: Panel) -> str:
    """The arm's name and settings."""
    told = zip(REMEDIES, ("scale", "λ"), strict=True)
    settings = [f"{name} {panel.settings[leaf]:.3g}" for leaf, name in told if leaf in panel.settings]
    further = [leaf for leaf in panel.settings if leaf not in (*panel.arm, *REMEDIES)]
    lines = [f"{leaf} {_short(panel.settings[leaf])}" for leaf in further]
    return "\n".join([panel.name, *([", ".join(settings)] if settings else []), *lines])


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def panel_title(dataset: xr.Dataset, panel: Panel) -> str:
    """What a panel shows: the arm, how many networks fit, and their distance off the subspace."""
    margins = dataset["margin"].sel(panel.arm).values[is_trained(dataset["status"].sel(panel.arm))]
    lines = [panel_label(panel), f"{(margins > 0).sum()} of {margins.size} networks fit"]
    name = distance_name("off", "l2", "upper")
    if name in dataset:
        distance = median_interval(per_network(dataset, name, panel.arm)).median
        lines.append(f"distance to a flip {distance:.2f}")
    return "\n".join(lines)


def headline(figure: Figure, dataset: xr.Dataset, title: str, note: str, drawn: Iterable[Hashable] = ()) -> None:
    """The title and a note; below, the sweep's name and what the figure holds fixed without saying so."""
    unsaid = set(first_values(dataset)) - {*REMEDIES, *drawn}
    at = {axis: value for axis, value in first_values(dataset).items() if axis in unsaid and varies(dataset, axis)}
    fixed = [f"{leaf} = {value}" for leaf, value in settings_of(dataset, at).items()]
    lines = [title, note, ", ".join(["sweep " + dataset.attrs["name"], *fixed])]
    characters = int(12 * figure.get_figwidth())
    figure.suptitle("\n".join(textwrap.fill(line, characters) for line in lines))
