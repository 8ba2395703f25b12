"""How near the ends of brackets are: the share of points at which upper exceeds lower by at most so much."""

import math

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from subspace_adv.norms import NORMS
from subspace_adv.plots.panels import BLUE, ORANGE, REGION_WORDS, headline, is_trained
from subspace_adv.tables import EXACT, TIGHT, Tightness, regions_and_norms, tightness

_GAPS = 401  # at which shares are drawn
_LEAST_REACH = 0.1  # of the axis of gaps, upper/lower − 1
_MOST_REACH = 10.0
_LOOKS = {
    "off": (ORANGE, "-"),
    "normal": (ORANGE, ":"),
    "tangent": (BLUE, ":"),
    "on": (BLUE, "--"),
    "full": ("black", "-."),
}


def is_open(dataset: xr.Dataset) -> bool:
    """Whether any bracket is not exact: where all are, there is nothing to draw."""
    return any(tightness(dataset, *where).share(EXACT) < 1 for where in regions_and_norms(dataset))


def tightnesses(dataset: xr.Dataset) -> Figure:
    """Cumulative share of points against upper/lower − 1: a panel for each norm, a line for each region.

    A line begins with the share that is exact but for rounding, and ends below 100 % where no flip was found or
    nothing certified. All arms are in it.
    """
    found = {where: tightness(dataset, *where) for where in regions_and_norms(dataset)}
    norms = list(dict.fromkeys(norm for _, norm in found))
    figure = Figure(figsize=(2.7 * max(len(norms), 2) + 0.8, 3.9), layout="constrained")
    axes = figure.subplots(1, len(norms), squeeze=False, sharex=True, sharey=True)[0]
    gaps = np.geomspace(EXACT, _reach(list(found.values())), _GAPS)
    for ax, norm in zip(axes, norms, strict=True):
        for region in (region for region, other in found if other == norm):
            (colour, line), points = _LOOKS[region], found[region, norm]
            shares = [100 * points.share(gap) for gap in gaps]
            ax.plot(gaps, shares, color=colour, linestyle=line, linewidth=1.6, label=REGION_WORDS[region])
        ax.set_title(f"{NORMS[norm].symbol} norm", pad=14)
        _finish(ax, gaps)
    axes[0].set_ylabel("points (%)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    networks = int(is_trained(dataset["status"]).sum())
    unflippable = sum(points.unflippable for points in found.values())
    note = f"correctly classified points of {networks:,} networks"
    note += ", unflippable ones left out" if unflippable else ""
    headline(figure, dataset, "How near found and certified distances to a flip are", note, dataset["status"].dims)
    return figure


def _reach(found: list[Tightness]) -> float:
    """The largest gap of all, within limits."""
    finite = [points.gaps[np.isfinite(points.gaps)] for points in found]
    return float(np.clip(max((gaps[-1] for gaps in finite if len(gaps)), default=0), _LEAST_REACH, _MOST_REACH))


def _finish(ax: Axes, gaps: np.ndarray) -> None:
    for gap in TIGHT:
        ax.axvline(gap, color="0.6", linewidth=0.8, linestyle=":")
        ax.text(gap, 103, f"{gap:.0%}", ha="center", va="bottom", color="0.4", fontsize=8)
    ax.set(xscale="log", xlim=(gaps[0], gaps[-1]), ylim=(0, 102), yticks=range(0, 101, 25))
    decades = np.arange(round(math.log10(EXACT)), math.log10(gaps[-1]), 2)
    ax.set_xticks(10.0**decades, ["exact", *(f"$10^{{{decade:.0f}}}$" for decade in decades[1:])])
    ax.minorticks_off()
    ax.set_xlabel("upper/lower − 1")
    ax.grid(color="0.9")
    ax.set_axisbelow(True)
