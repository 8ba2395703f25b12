"""Both remedies together, as a map: the distance off the subspace over initialization scales and weight decays."""

import numpy as np
import xarray as xr
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from subspace_adv.measures import distance_name
from subspace_adv.plots.panels import first_values, headline
from subspace_adv.tables import REMEDIES, median_interval, per_network, repetitions
from subspace_adv.training import CONVERGED

_LEAST_VALUES = 3  # of each remedy, for a map to show more than lines do
_QUANTITY = distance_name("off", "l2", "upper")


def is_map(dataset: xr.Dataset) -> bool:
    """Whether both remedies have values enough, and the distance was measured."""
    return _QUANTITY in dataset and all(dataset.sizes.get(axis, 1) >= _LEAST_VALUES for axis in REMEDIES)


def phase(dataset: xr.Dataset) -> Figure:
    """Median distance of every pair of initialization scale and weight decay; hatched where fewer than half converge.

    Medians are over networks, of the median over the points of each. All other axes are at their first values.
    """
    columns, rows = (np.sort(dataset[axis].values) for axis in REMEDIES)
    first = first_values(dataset)
    medians, converged = np.empty((2, len(rows), len(columns)))
    for i, j in np.ndindex(medians.shape):
        arm = first | dict(zip(REMEDIES, (columns[j], rows[i]), strict=True))
        medians[i, j] = median_interval(per_network(dataset, _QUANTITY, arm)).median
        converged[i, j] = (dataset["status"].sel(arm) == CONVERGED).mean()
    figure = Figure(figsize=(0.55 * len(columns) + 2.6, 0.42 * len(rows) + 2.3), layout="constrained")
    ax = figure.subplots()
    shown = np.where(np.isfinite(medians) & (medians > 0), medians, np.nan)
    mesh = ax.imshow(shown, origin="lower", cmap="viridis", norm=LogNorm(), aspect="auto")
    for i, j in np.argwhere(converged < 0.5):
        ax.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, fill=False, hatch="///", edgecolor="0.6", linewidth=0))
    ax.set_xticks(range(len(columns)), [f"{value:.4g}" for value in columns])
    ax.set_yticks(range(len(rows)), [f"{value:.4g}" for value in rows])
    ax.set_xlabel("initialization scale")
    ax.set_ylabel("weight decay λ")
    units = dataset[_QUANTITY].attrs["units"]
    figure.colorbar(mesh, label=f"distance to a flip off the subspace\n({units})")
    count = repetitions(dataset)
    note = f"medians over {count} networks" if count > 1 else "one network each"
    note += "; hatched: fewer than half converged" if (converged < 0.5).any() else ""
    headline(figure, dataset, "Both remedies together", note, REMEDIES)
    return figure
