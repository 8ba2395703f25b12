"""Decision surfaces of networks trained on the chessboard."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import Normal, Stroke
from mpl_toolkits.mplot3d.art3d import Line3DCollection, Poly3DCollection

from subspace_adv import engine
from subspace_adv.contracts import Model
from subspace_adv.plots.panels import (
    DISTANCE_NOTE,
    Load,
    boundary_pieces,
    draw_pieces,
    draw_points,
    headline,
    legend_columns,
    model_of,
    of_first_data,
    panel_title,
    panels,
    trained_networks,
    zips,
)

_MAX_SURFACES = 32  # whose decision surfaces are computed
_PLANE = 0.5  # height of the chessboard
_REACH = 2.0  # how far above and below it a flip is looked for
_SIGHT = 1.0  # how far above and below it a decision surface is drawn
# The boundary within the plane, to be seen on any colour.
_BOUNDARY: dict[str, Any] = {"color": "black", "linewidth": 1.1}
_BOUNDARY["path_effects"] = [Stroke(linewidth=2.5, foreground="white"), Normal()]
_JUMP = 0.4  # larger steps between neighbouring heights belong to two sheets of the surface


def surfaces(dataset: xr.Dataset, load: Load) -> Figure:
    """Decision surfaces of networks trained on the chessboard, one column an arm.

    Above, the surface of the first seed's network over the unit square: the nearest change of prediction
    straight up or down from the data's plane. Below, the median over networks of its distance from the plane.
    Lines are the first seed's boundary within the plane. The dataset must be of kind "chessboard".
    """
    shown = of_first_data(dataset, panels(dataset))
    figure = Figure(figsize=(2.2 * max(len(shown), 2) + 1.2, 6.5), layout="constrained")
    x, y = np.meshgrid(np.linspace(0, 1, 65), np.linspace(0, 1, 65), indexing="ij")
    coarse = (x[::2, ::2], y[::2, ::2])
    flat, distance = [], None
    for i, panel in enumerate(shown):
        model, networks = model_of(dataset, panel.arm), trained_networks(dataset, load, panel.arm, _MAX_SURFACES)
        look = {"model": model, "plane": _PLANE, "reach": _REACH}
        solid: Any = figure.add_subplot(2, len(shown), i + 1, projection="3d", computed_zorder=False)
        _draw_surface(solid, x, y, flip_heights(networks[0], x, y, **look))
        draw_points(solid, dataset, depthshade=False)
        solid.set_title(panel_title(dataset, panel))
        heights = np.stack([flip_heights(net, *coarse, **look) for net in networks])
        median = np.median(np.minimum(np.abs(heights), _REACH), axis=0)
        ax = figure.add_subplot(2, len(shown), len(shown) + i + 1, sharey=flat[0] if flat else None)
        distance = ax.contourf(*coarse, median, levels=np.linspace(0, 1, 11), extend="max")
        distance.set_rasterized(True)
        _draw_boundary(solid, ax, boundary_pieces(ax, model, networks[0], np.array([0, 0, _PLANE]), (0, 1)))
        draw_points(ax, dataset, clip_on=False)
        ax.set(xlabel="$x_1$", xticks=(0, 0.5, 1), yticks=(0, 0.5, 1), aspect="equal")
        ax.tick_params(labelleft=i == 0)
        flat.append(ax)
    flat[0].set_ylabel("$x_2$")
    label = "distance up or down to a flip,\nmedian over networks"
    figure.colorbar(distance, ax=flat, label=label)  # pyright: ignore[reportArgumentType]
    figure.legend(*flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=legend_columns(shown))
    headline(
        figure, dataset, "Where networks trained on a chessboard change their prediction", DISTANCE_NOTE, zips(dataset)
    )
    return figure


def flip_heights(network: Any, x: np.ndarray, y: np.ndarray, *, model: Model, plane: float, reach: float) -> np.ndarray:
    """Signed height above a plane z = const of the nearest flip straight up or down (F5 in docs/theory.md).

    Args:
        network: parameters of one network on R³.
        x: first coordinates, (..., k).
        y: second coordinates, (..., k).
        model: kind of the network.
        plane: height z of the plane.
        reach: largest distance at which a flip is looked for.

    Returns:
        Heights (..., k), float64, a rounding error beyond the zero of N; inf where there is none within reach.
    """
    points = np.stack([x, y, np.full_like(x, plane)], axis=-1)
    rows = points.reshape(-1, *points.shape[-2:])
    net = jax.tree.map(lambda a: np.asarray(a, np.float64), network)
    up, down = engine.alone(_crossings, net, rows, x64=True, model=model)
    heights = np.where(up <= down, up, -down).reshape(x.shape)
    return np.where(np.abs(heights) <= reach, heights, np.inf)


def _crossings(network: Any, rows: jax.Array, *, model: Model) -> tuple[jax.Array, jax.Array]:
    """Distances up and down to a flip, (p, k), of points (p, k, 3), row by row to stay in the cache."""

    def of_one(point: jax.Array) -> tuple[jax.Array, jax.Array]:
        vertical = model.local(network, point, jnp.eye(3, 1, -2, point.dtype))
        return vertical.crossing(jnp.ones(1)).upper, vertical.crossing(-jnp.ones(1)).upper

    return jax.lax.map(jax.vmap(of_one), rows)


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


def _draw_boundary(solid: Any, flat: Axes, pieces: np.ndarray) -> None:
    """One network's boundary within the data's plane, straight pieces (k, 2, 2), in space and seen from above."""
    if not len(pieces):
        return
    solid.add_collection3d(Line3DCollection(np.insert(pieces, 2, _PLANE, axis=2), **_BOUNDARY, zorder=3))
    draw_pieces(flat, pieces, **_BOUNDARY, zorder=2)
    flat.plot([], [], **_BOUNDARY, label="boundary of the first network within the plane")
