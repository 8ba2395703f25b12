"""Robust accuracy against the size of the perturbation, and how many predictions one direction changes."""

from collections.abc import Iterable

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from subspace_adv.measures import distance_name
from subspace_adv.norms import NORMS
from subspace_adv.plots.panels import BLUE, COLOURS, ORANGE, REGION_WORDS, Panel, headline, panel_label, panels, zips
from subspace_adv.tables import (
    DIRECTIONS,
    Curve,
    fooling_rate,
    point_values,
    regions_and_norms,
    repetitions,
    robust_accuracy,
)

_SIZES = 101  # at which curves are drawn
_DIRECTION_COLOURS = {"universal": ORANGE, "random": BLUE}


def robust_accuracies(dataset: xr.Dataset) -> Figure:
    """Robust accuracy against the size of the perturbation: a column for each region, a row for each norm.

    An arm's band reaches from the certified share to the attacked one; where they meet it is a line.
    """
    shown, pairs = panels(dataset), regions_and_norms(dataset)
    regions, norms = (list(dict.fromkeys(pair[i] for pair in pairs)) for i in (0, 1))
    figure = Figure(figsize=(2.9 * max(len(regions), 2) + 0.7, 2.5 * len(norms) + 1.9), layout="constrained")
    grid = figure.subplots(len(norms), len(regions), squeeze=False, sharey=True)
    for ax, (norm, region) in zip(grid.flat, ((n, r) for n in norms for r in regions), strict=True):
        if (region, norm) not in pairs:
            ax.set_axis_off()
            continue
        sizes = np.linspace(0, _reach(dataset, shown, [distance_name(region, norm, "upper")])[1], _SIZES)
        for panel, colour in zip(shown, COLOURS, strict=False):
            certified, attacked = robust_accuracy(dataset, panel.arm, region, norm, sizes)
            ax.fill_between(sizes, 100 * certified.mean, 100 * attacked.mean, color=colour, alpha=0.15, linewidth=0)
            ax.plot(sizes, 100 * certified.mean, color=colour, linewidth=1, linestyle="--")
            ax.plot(sizes, 100 * attacked.mean, color=colour, linewidth=1.6, label=panel_label(panel))
        _finish(ax, sizes, f"size ε of the perturbation\n({NORMS[norm].symbol} norm, input length)")
        ax.set_title(REGION_WORDS[region])
    for ax in grid[:, 0]:
        ax.set_ylabel("robust accuracy (%)")
    _legend(figure, grid[0, 0], len(shown) if len(regions) > 2 else 2)
    note = f"solid: attacked; dashed: certified; {_mean_over(dataset)}"
    headline(figure, dataset, "Training points that no perturbation up to ε flips", note, zips(dataset))
    return figure


def fooling_rates(dataset: xr.Dataset) -> Figure:
    """Predictions changed along the universal direction and along a random one, against the length; a panel an arm."""
    shown = panels(dataset)
    figure = Figure(figsize=(2.3 * max(len(shown), 2) + 1.0, 4.0), layout="constrained")
    axes = figure.subplots(1, len(shown), squeeze=False, sharex=True, sharey=True)[0]
    names = [f"distance_{name}{end}" for name in DIRECTIONS for end in ("", "_heldout")]
    sizes = np.geomspace(*_reach(dataset, shown, names), _SIZES)
    for ax, panel in zip(axes, shown, strict=True):
        for name in DIRECTIONS:
            fooled, colour = fooling_rate(dataset, panel.arm, name, sizes), _DIRECTION_COLOURS[name]
            _curve(ax, sizes, fooled.training, colour, "-", f"{name} direction, training points")
            _curve(ax, sizes, fooled.heldout, colour, "--", f"{name} direction, held-out points")
        ax.set_xscale("log")
        _finish(ax, sizes, "length of the perturbation\n($L_2$ norm, input length)")
        ax.set_title(panel_label(panel))
    axes[0].set_ylabel("predictions changed (%)")
    _legend(figure, axes[0], 2)
    note = f"{_mean_over(dataset)}; shaded: 95 % intervals" if repetitions(dataset) > 1 else _mean_over(dataset)
    headline(figure, dataset, "Predictions that one direction off the subspace changes", note, zips(dataset))
    return figure


def _reach(dataset: xr.Dataset, shown: Iterable[Panel], variables: Iterable[str]) -> tuple[float, float]:
    """Sizes at which few points have flipped in any arm, and nearly all in every arm, of those that flip at all."""
    found = [point_values(dataset, name, panel.arm) for panel in shown for name in variables]
    flips = [values[np.isfinite(values) & (values > 0)] for values in found]
    ends = np.array([np.quantile(values, (0.05, 0.9)) for values in flips if values.size] or [(0.1, 1)])
    low, high = float(ends[:, 0].min()), float(ends[:, 1].max())
    return (low, high) if low < high else (low / 2, 2 * high)


def _curve(ax: Axes, sizes: np.ndarray, curve: Curve, colour: str, line: str, label: str) -> None:
    ax.fill_between(sizes, 100 * curve.low, 100 * curve.high, color=colour, alpha=0.15, linewidth=0)
    ax.plot(sizes, 100 * curve.mean, color=colour, linestyle=line, linewidth=1.6, label=label)


def _finish(ax: Axes, sizes: np.ndarray, label: str) -> None:
    ax.set(xlim=(sizes[0], sizes[-1]), ylim=(0, 102), yticks=range(0, 101, 25), xlabel=label)
    ax.grid(color="0.9")
    ax.set_axisbelow(True)


def _legend(figure: Figure, ax: Axes, columns: int) -> None:
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=columns)


def _mean_over(dataset: xr.Dataset) -> str:
    count = repetitions(dataset)
    return f"means over points and {count} networks" if count > 1 else "one network each"
