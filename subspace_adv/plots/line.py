"""Decision boundaries of networks trained on the line."""

import numpy as np
import xarray as xr
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

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
    outputs_at,
    panel_title,
    panels,
    trained_networks,
    zips,
)

_SHARES = LinearSegmentedColormap.from_list("shares", ["#5FA6D0", "#F7F7F7", "#EE9A5E"])
_MAX_NETWORKS = 200  # whose predictions are averaged
_FAINT_BOUNDARIES = 6
_HALF_WIDTH = 1.5  # of the square in which boundaries are drawn


def boundaries(dataset: xr.Dataset, load: Load) -> Figure:
    """Decision boundaries of networks trained on the line, one panel an arm.

    The background is the share of the arm's networks that predict +1; the boundary of the first seed's
    network is a line, those of a few further seeds are faint lines. The dataset must be of kind "line".
    """
    shown = of_first_data(dataset, panels(dataset))
    height = 4.2 if len(shown) > 2 else 4.9  # with the legend's third row
    figure = Figure(figsize=(2.2 * max(len(shown), 2) + 1.1, height), layout="constrained")
    axes = figure.subplots(1, len(shown), sharex=True, sharey=True, squeeze=False)[0]
    ticks = np.linspace(-_HALF_WIDTH, _HALF_WIDTH, 101)
    grid = np.stack(np.meshgrid(ticks, ticks), axis=-1)
    share = None
    for ax, panel in zip(axes, shown, strict=True):
        networks = trained_networks(dataset, load, panel.arm, _MAX_NETWORKS)
        model = model_of(dataset, panel.arm)
        outputs = outputs_at(model, networks, grid)
        positive = 100 * (outputs > 0).mean(axis=0)
        share = ax.contourf(ticks, ticks, positive, levels=np.linspace(0, 100, 11), cmap=_SHARES)
        share.set_rasterized(True)
        for i in range(min(1 + _FAINT_BOUNDARIES, len(networks))):
            look = {"linewidth": 0.6, "alpha": 0.3} if i else {"linewidth": 1.8}
            pieces = boundary_pieces(ax, model, networks[i], np.zeros(2), (-_HALF_WIDTH, _HALF_WIDTH))
            draw_pieces(ax, pieces, color="black", **look)
        ax.axline((0, 0), slope=1, color="black", linestyle="--", linewidth=1, label="the data's line")
        ax.plot([], [], color="black", linewidth=1.8, label="boundary of one network")
        ax.plot([], [], color="black", linewidth=0.6, alpha=0.4, label="of a few others")
        draw_points(ax, dataset)
        ax.set(title=panel_title(dataset, panel), xlabel="$x_1$", xticks=(-1, 0, 1), yticks=(-1, 0, 1), aspect="equal")
    axes[0].set_ylabel("$x_2$")
    colorbar = figure.colorbar(share, ax=axes, shrink=0.7, ticks=(0, 50, 100), format="%d %%")  # pyright: ignore
    colorbar.set_label("networks that predict +1")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=legend_columns(shown))
    headline(figure, dataset, "Where networks trained on a line change their prediction", DISTANCE_NOTE, zips(dataset))
    return figure
