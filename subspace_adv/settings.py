"""The tables of a sweep file as frozen models: every field, its type, its limits and its default."""

import math
from collections.abc import Mapping
from typing import Annotated

import numpy as np
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, PlainValidator

from subspace_adv import data, network, training
from subspace_adv.norms import NORMS
from subspace_adv.optimizers import OPTIMIZERS, readers
from subspace_adv.subspace import Region


def distinct(values: tuple) -> tuple:
    """The values, none of which may be listed twice."""
    seen = set()
    for value in values:
        if value in seen:
            raise ValueError(f"{value!r} is listed twice")
        seen.add(value)
    return values


def _number(value: float) -> float:
    if math.isnan(value):
        raise ValueError("must be a number, not NaN")
    return value


_TINY, _LARGEST = (float(limit) for limit in (np.finfo(np.float32).tiny, np.finfo(np.float32).max))


def _in_float32(value: float) -> float:
    if 0 < abs(value) < _TINY:  # XLA takes subnormal numbers for 0
        least = math.copysign(1.2e-38, value)
        raise ValueError(f"is 0 in float32, in which networks train; the nearest to 0 is {least}")
    if _LARGEST < abs(value) < math.inf:
        largest = math.copysign(3.4e38, value)
        raise ValueError(f"is infinite in float32, in which networks train; the farthest from 0 is {largest}")
    return value


def _below_one_in_float32(value: float) -> float:
    if np.float32(value) == 1:
        raise ValueError("is 1 in float32, in which networks train; at most 0.9999999 is possible")
    return value


_as_tuple = BeforeValidator(lambda v: tuple(v) if isinstance(v, list) else v)
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False), AfterValidator(_in_float32)]
_NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False), AfterValidator(_in_float32)]
_BelowOne = Annotated[
    float, Field(ge=0, lt=1, allow_inf_nan=False), AfterValidator(_in_float32), AfterValidator(_below_one_in_float32)
]
_Count = Annotated[int, Field(ge=1, le=2**24)]
_Seed = Annotated[int, Field(ge=0, lt=2**32)]
_Regions = Annotated[tuple[Region, ...], _as_tuple, Field(min_length=1), AfterValidator(distinct)]
_Norms = Annotated[
    tuple[Annotated[str, PlainValidator(NORMS.name)], ...], _as_tuple, Field(min_length=1), AfterValidator(distinct)
]


class Table(BaseModel, frozen=True, extra="forbid", strict=True):
    """A table of the sweep file."""


class DataSettings(Table, frozen=True):
    """`[data]`: the points, their labels and their subspace. All but `kind` describe kind "subspace"."""

    kind: data.Kind = "line"
    ambient_dim: _Count = 20
    subspace_dim: _Count = 2
    samples: _Count = 20
    basis: data.Basis = "random"
    distribution: data.Distribution = "sphere"
    labels: data.Labels = "random"
    data_seed: _Seed = 0


class NetworkSettings(Table, frozen=True):
    """`[network]`: the initial law and what of it is trained ("hidden" for init "theory", else "all")."""

    init: network.Init = "paper-code"
    trainable: training.Trainable | None = None
    width: _Count = 100
    init_scale: _Positive = 1.0
    seed: _Seed = 0


class TrainingSettings(Table, frozen=True):
    """`[training]`: loss, optimizer and stop rule."""

    loss: training.Loss = "logistic"
    optimizer: Annotated[str, PlainValidator(OPTIMIZERS.name)] = "gd"
    learning_rate: _Positive = 0.02
    weight_decay: _NotNegative = 0.0
    momentum: _BelowOne = 0.9
    batch_size: _Count = 1
    stop_margin: Annotated[float, AfterValidator(_number), AfterValidator(_in_float32)] = 0.3
    max_steps: Annotated[int, Field(ge=0, lt=2**31 - 1)] = 40_000


class MeasureSettings(Table, frozen=True):
    """`[measure]`: regions and norms of the distances, and the effort of the attacks."""

    regions: _Regions = ("off", "on", "full")
    norms: _Norms = ("l2",)
    attack_steps: Annotated[int, Field(ge=1, le=100_000)] = 56
    restarts: Annotated[int, Field(ge=1, le=10_000)] = 32


TABLES: Mapping[str, type[Table]] = {
    "data": DataSettings,
    "network": NetworkSettings,
    "training": TrainingSettings,
    "measure": MeasureSettings,
}
TABLE_OF = {leaf: table for table, model in TABLES.items() for leaf in model.model_fields}
LISTS = ("regions", "norms")
"""Leaves that are lists already, and so no axes."""


def read_where(leaf: str) -> tuple[str, tuple[str, ...]] | None:
    """Of a leaf that only some cells read: the leaf that decides, and its values there; None if all cells read it."""
    if leaf in DataSettings.model_fields and leaf != "kind":
        return "kind", ("subspace",)
    some = readers(leaf)
    return ("optimizer", some) if some else None


def resolved_trainable(init: network.Init, trainable: training.Trainable | None) -> training.Trainable:
    """What is trained: as set, or by default of the initial law."""
    return trainable or ("hidden" if init == "theory" else "all")
