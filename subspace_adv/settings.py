"""The tables of a sweep file as frozen models: every field, its role, its type, its limits and its default."""

import functools
from collections.abc import Mapping
from typing import Annotated, Any, get_args

import numpy as np
from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, create_model
from pydantic.fields import FieldInfo

from subspace_adv import initialization, training
from subspace_adv.data import KINDS, DataSettings
from subspace_adv.fields import (
    AS_TUPLE,
    DATA,
    STATIC,
    STATIC_LIST,
    SWITCH,
    BelowOne,
    Count,
    Finite,
    Level,
    NotNegative,
    Positive,
    Role,
    Seed,
    Table,
    ascending,
    distinct,
    distinct_in_float32,
    role_in,
    run_time,
    spaced_whole,
)
from subspace_adv.geometry import Region
from subspace_adv.models import MODELS, architecture_name
from subspace_adv.norms import NORMS
from subspace_adv.optimizers import OPTIMIZERS, readers
from subspace_adv.parametrizations import PARAMETRIZATIONS
from subspace_adv.receptive_fields import Layout, Padding

_Regions = Annotated[tuple[Region, ...], AS_TUPLE, Field(min_length=1), AfterValidator(distinct)]
_Norms = Annotated[
    tuple[Annotated[str, PlainValidator(NORMS.name)], ...], AS_TUPLE, Field(min_length=1), AfterValidator(distinct)
]
_Steps = Annotated[
    tuple[Annotated[int, Field(ge=0, lt=2**31 - 1)], ...] | None,
    BeforeValidator(spaced_whole),
    AS_TUPLE,
    AfterValidator(lambda steps: steps if steps is None else ascending(steps)),
]
_Margins = Annotated[
    tuple[Finite, ...] | None,
    AS_TUPLE,
    AfterValidator(lambda levels: levels if levels is None else distinct_in_float32(ascending(levels))),
]


def _one_width(value: object) -> object:
    if isinstance(value, list | tuple):
        raise ValueError(
            "must be one whole number, of all hidden layers; several are an axis, in [axes], and layers of several "
            "widths a class of your own, architecture = 'package.module:Class'"
        )
    return value


class NetworkSettings(Table, frozen=True):
    """`[network]`: a row of `MODELS`, or a class; what shapes it, its initial law, and what of it is trained.

    That is by default "hidden" for init "theory", else "all".
    """

    architecture: Annotated[str, PlainValidator(architecture_name), STATIC] = "mlp"
    init: Annotated[initialization.Init, STATIC] = "paper-code"
    trainable: Annotated[training.Trainable | None, STATIC] = None
    parametrization: Annotated[str, PlainValidator(PARAMETRIZATIONS.name), STATIC] = "standard"
    width: Annotated[Count, BeforeValidator(_one_width), run_time(np.int32, shapes=True)] = 100
    depth: Annotated[int, Field(ge=1, le=64), STATIC] = 1  # hidden layers
    kernel: Annotated[Count, STATIC] = 3  # of the first convolution, along each dimension
    stride: Annotated[Count, STATIC] = 1  # of the first convolution
    mixing: Annotated[Count, STATIC] = 3  # kernel of the further convolutions, of stride 1
    padding: Annotated[Padding, STATIC] = "circular"
    layout: Annotated[Layout, STATIC] = "signal"  # of a point's coordinates
    init_scale: Annotated[Positive, run_time(np.float32)] = 1.0
    seed: Annotated[Seed, run_time(np.uint32, replicate=True)] = 0


class TrainingSettings(Table, frozen=True):
    """`[training]`: loss, optimizer and stop rule."""

    loss: Annotated[training.Loss, STATIC] = "logistic"
    optimizer: Annotated[str, PlainValidator(OPTIMIZERS.name), STATIC] = "gd"
    learning_rate: Annotated[Positive, run_time(np.float32)] = 0.02
    # Whether there is any decides on the reduction of optimizers that step by coordinates.
    weight_decay: Annotated[NotNegative, run_time(np.float32, shapes=True, is_switch=True)] = 0.0
    momentum: Annotated[BelowOne, run_time(np.float32)] = 0.9
    batch_size: Annotated[Count, run_time(np.int32)] = 1
    stop_margin: Annotated[Level, run_time(np.float32)] = 0.3
    max_steps: Annotated[int, Field(ge=0, lt=2**31 - 1), run_time(np.int32)] = 40_000


class MeasureSettings(Table, frozen=True):
    """`[measure]`: regions and norms of the distances, the effort of the attacks, and how tight brackets are to be."""

    regions: Annotated[_Regions, STATIC_LIST] = ("off", "on", "full")
    norms: Annotated[_Norms, STATIC_LIST] = ("l2",)
    attack_steps: Annotated[int, Field(ge=1, le=100_000), STATIC] = 56
    restarts: Annotated[int, Field(ge=1, le=10_000), STATIC] = 32
    gap: Annotated[NotNegative, STATIC] = 0.01
    redraws: Annotated[int, Field(ge=0, le=999), STATIC] = 0
    at_steps: Annotated[_Steps, STATIC_LIST] = None  # where networks are measured before their stop
    at_margins: Annotated[_Margins, STATIC_LIST] = None  # likewise, once their margin exceeds these
    brackets_during: Annotated[bool, SWITCH] = False  # whether brackets too are, there
    keep_networks: Annotated[bool, SWITCH] = False  # whether their parameters there are saved

    @property
    def has_snapshots(self) -> bool:
        """Whether networks are measured before their stop."""
        return bool(self.at_steps or self.at_margins)


OF_SNAPSHOTS = ("brackets_during", "keep_networks")
"""Fields that are read only where networks are measured before their stop."""


def tables() -> Mapping[str, type[Table]]:
    """The tables by name; `[data]` has the fields of all kinds of data that there are."""
    return _tables(KINDS.all)


def leaves() -> Mapping[str, str]:
    """The table of every field; their names differ, so that an axis needs no other."""
    return _leaves(KINDS.all)


def role(leaf: str) -> Role:
    """What a field is to the cells that have it."""
    return role_in(tables()[leaves()[leaf]], leaf)


def entries() -> Mapping[str, type]:
    """The fields that are entries of a cell's arrays, and their NumPy types."""
    return {leaf: entry for leaf in leaves() if (entry := role(leaf).entry)}


def replicates() -> tuple[str, ...]:
    """Axes whose values are repetitions of one experiment, seed first."""
    return tuple(sorted((leaf for leaf in leaves() if role(leaf).replicate), key=lambda leaf: leaf != "seed"))


Condition = Mapping[str, tuple[str, ...]]
"""Fields that decide, and the values of each where another field is read: all at once."""


def read_where(leaf: str) -> tuple[Condition, ...]:
    """Of a field that only some cells read: the conditions of which one must hold; none if all cells read it."""
    if leaves()[leaf] == "data" and leaf != "kind":
        alike: dict[tuple, list[str]] = {}  # kinds by what else they ask
        for kind, row in KINDS.items():
            if leaf in row.model_fields:
                alike.setdefault(tuple(row.reads_where(leaf).items()), []).append(kind)
        if list(alike.values()) == [list(KINDS)] and () in alike:
            return ()
        return tuple({"kind": tuple(kinds), **dict(others)} for others, kinds in alike.items())
    if leaves()[leaf] == "network":
        some = tuple(name for name, row in MODELS.items() if leaf in row.reads)
        return ({"architecture": some},) if 0 < len(some) < len(MODELS) else ()
    some = readers(leaf)
    return ({"optimizer": some},) if some else ()


def deciders(leaf: str) -> set[str]:
    """The fields on which it depends whether a field is read."""
    return {decider for condition in read_where(leaf) for decider in condition}


def where_read(leaf: str) -> str:
    """In words, which cells read a field that not all do."""

    def told(decider: str, values: tuple[str, ...]) -> str:
        return f"{decider} = {' or '.join(map(repr, values))}"

    conditions = (" and ".join(told(*one) for one in condition.items()) for condition in read_where(leaf))
    return f"read where {', or '.join(conditions)}"


def resolved_trainable(init: initialization.Init, trainable: training.Trainable | None) -> training.Trainable:
    """What is trained: as set, or by default of the initial law."""
    return trainable or ("hidden" if init == "theory" else "all")


Kinds = tuple[tuple[str, type[DataSettings]], ...]


@functools.lru_cache(maxsize=16)
def _tables(kinds: Kinds) -> Mapping[str, type[Table]]:
    return {
        "data": _data_table(kinds),
        "network": NetworkSettings,
        "training": TrainingSettings,
        "measure": MeasureSettings,
    }


def _data_table(kinds: Kinds) -> type[Table]:
    """`[data]`: the kind, and the fields of each; kinds may share a field, of one meaning and limits.

    Where their defaults differ, that of the table is None, and each kind has its own.
    """
    fields: dict[str, Any] = {"kind": (Annotated[str, PlainValidator(KINDS.name), DATA], "line")}
    limits: dict[str, Any] = {}
    for kind, row in kinds:
        for leaf, field in row.model_fields.items():
            own, bare = (field.rebuild_annotation(), field.default), (_bare(field), role_in(row, leaf))
            if repr(limits.setdefault(leaf, bare)) != repr(bare):
                raise TypeError(f"kind {kind!r}: its field {leaf} is not that of another kind; give it another name")
            if repr(fields.setdefault(leaf, own)) != repr(own):
                fields[leaf] = (Annotated[bare[0] | None, bare[1]], None)
    return create_model("DataTable", __base__=Table, **fields)  # pyright: ignore[reportCallIssue, reportArgumentType]


def _bare(field: FieldInfo) -> Any:
    """The type and limits of a field but for None, where that is its default."""
    kind: Any = field.annotation
    limits = [mark for mark in field.metadata if not isinstance(mark, Role)]
    if field.default is None:
        [kind] = (one for one in get_args(kind) if one is not type(None))
        inner = FieldInfo.from_annotation(kind)
        kind, limits = inner.annotation, [*inner.metadata, *limits]
    return functools.reduce(lambda made, mark: Annotated[made, mark], limits, kind)


@functools.lru_cache(maxsize=16)
def _leaves(kinds: Kinds) -> Mapping[str, str]:
    found: dict[str, str] = {}
    for table, model in _tables(kinds).items():
        for leaf in model.model_fields:
            if leaf in found:
                raise TypeError(
                    f"{table}.{leaf}: there is a field of this name in [{found[leaf]}]; give it another name"
                )
            found[leaf] = table
    return found
