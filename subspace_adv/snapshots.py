"""When networks are measured on the way to their stop, how that is called, and what of a Dataset is of their stop."""

import math
from typing import TYPE_CHECKING, NamedTuple

from subspace_adv.settings import MeasureSettings

if TYPE_CHECKING:
    import xarray as xr

STEP, MARGIN_LEVEL = "step", "margin_level"
"""Dimensions of the Dataset along which networks are measured before their stop; the last value of each is the stop."""

NEVER = -1
"""Step of a snapshot that a network stopped before."""


class Snapshots(NamedTuple):
    """When networks are measured before their stop: at some steps, then once their margin first exceeds some levels."""

    steps: tuple[int, ...] = ()  # ascending
    margins: tuple[float, ...] = ()  # ascending
    brackets: bool = False  # whether brackets are measured there too
    networks: bool = False  # whether the parameters there are saved

    @property
    def number(self) -> int:
        """How many a network has at most, those at steps first."""
        return len(self.steps) + len(self.margins)

    def values(self, dimension: str) -> tuple[float, ...]:
        """Where along a dimension networks are measured, the stop last."""
        return (*map(float, self.steps if dimension == STEP else self.margins), math.inf)

    @property
    def dimensions(self) -> dict[str, slice]:
        """Those that the Dataset has, and which of the snapshots are along each."""
        both = {STEP: slice(0, len(self.steps)), MARGIN_LEVEL: slice(len(self.steps), self.number)}
        return {dimension: part for dimension, part in both.items() if part.start < part.stop}


def snapshots_of(measure: MeasureSettings) -> Snapshots:
    """What `[measure]` says of them."""
    return Snapshots(measure.at_steps or (), measure.at_margins or (), measure.brackets_during, measure.keep_networks)


def during(name: str) -> str:
    """Name of an array (cells, snapshots, …) of what networks had before their stop, by its name at the stop."""
    return f"{name}_during"


def at_margin(name: str) -> str:
    """Name of a variable along the margins in a Dataset whose variables are along steps."""
    return f"{name}_at_margin"


def measured_along(dataset: "xr.Dataset", dimension: str) -> "xr.Dataset":
    """What was measured along one of the dimensions of snapshots, by the names that it has at the stop."""
    if not {STEP, MARGIN_LEVEL} <= set(dataset.dims):
        return dataset
    if dimension == STEP:
        return dataset.drop_dims(MARGIN_LEVEL)
    at_stop = {name.removesuffix(at_margin("")): name for name in map(str, dataset.data_vars)}
    renamed = {name: base for base, name in at_stop.items() if name != base}
    return dataset.drop_dims(STEP).drop_vars("steps").rename_vars(renamed)


def final(dataset: "xr.Dataset") -> "xr.Dataset":
    """What was measured of networks at their stop: a Dataset as it is without snapshots."""
    dimension = next((one for one in (STEP, MARGIN_LEVEL) if one in dataset.dims), None)
    return dataset if dimension is None else measured_along(dataset, dimension).isel({dimension: -1}, drop=True)
