"""Decision surfaces of networks trained on the chessboard."""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from mpl_toolkits.mplot3d.art3d import Poly3DCollection

from subspace_adv.network import Network
from subspace_adv.plots.panels import DISTANCE_NOTE, Load, draw_points, headline, panel_title, panels, trained_networks

_MAX_SURFACES = 32  # whose decision surfaces are computed
_PLANE = 0.5  # height of the chessboard
_REACH = 2.0  # how far above and below it a flip is looked for
_SIGHT = 1.0  # how far above and below it a decision surface is drawn
_JUMP = 0.4  # larger steps between neighbouring heights belong to two sheets of the surface


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
        networks = trained_networks(dataset, load, panel.arm, _MAX_SURFACES)
        solid: Any = figure.add_subplot(2, len(shown), i + 1, projection="3d", computed_zorder=False)
        _draw_surface(solid, x, y, flip_heights(networks[0], x, y, plane=_PLANE, reach=_REACH))
        draw_points(solid, dataset, depthshade=False)
        solid.set_title(panel_title(dataset, panel))
        heights = np.stack([flip_heights(net, *coarse, plane=_PLANE, reach=_REACH) for net in networks])
        median = np.median(np.minimum(np.abs(heights), _REACH), axis=0)
        ax = figure.add_subplot(2, len(shown), len(shown) + i + 1, sharey=flat[0] if flat else None)
        distance = ax.contourf(*coarse, median, levels=np.linspace(0, 1, 11), extend="max")
        distance.set_rasterized(True)
        draw_points(ax, dataset, clip_on=False)
        ax.set(xlabel="$x_1$", xticks=(0, 0.5, 1), yticks=(0, 0.5, 1), aspect="equal")
        ax.tick_params(labelleft=i == 0)
        flat.append(ax)
    flat[0].set_ylabel("$x_2$")
    label = "distance up or down to a flip,\nmedian over networks"
    figure.colorbar(distance, ax=flat, label=label)  # pyright: ignore[reportArgumentType]
    figure.legend(*flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(shown) + 1)
    headline(figure, dataset, "Where networks trained on a chessboard change their prediction", DISTANCE_NOTE)
    return figure


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
