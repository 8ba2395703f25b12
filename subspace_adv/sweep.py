"""A sweep: settings shared by all cells of a grid, the axes along which they differ, and what is wrong with them."""

import itertools
import math
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import tomli_w

from subspace_adv import sweepfile
from subspace_adv.contracts import Design
from subspace_adv.data import KINDS, DataSettings, Shape
from subspace_adv.errors import UserError, brief
from subspace_adv.fields import Table, checked, distinct, distinct_in_float32
from subspace_adv.models import architecture_of, row_name
from subspace_adv.network import padded_size
from subspace_adv.norms import NORMS
from subspace_adv.optimizers import OPTIMIZERS, OffPart
from subspace_adv.pointfile import digest
from subspace_adv.rows import nearest
from subspace_adv.settings import (
    OF_SNAPSHOTS,
    MeasureSettings,
    NetworkSettings,
    TrainingSettings,
    deciders,
    leaves,
    read_where,
    replicates,
    role,
    tables,
    where_read,
)
from subspace_adv.spacing import MOST_VALUES, read_spacing

Scalar = str | int | float
Source = Callable[[str], str]
"""Where a field was written, as messages tell it: a file, the command line, or Python."""


@dataclass(frozen=True, init=False)
class Sweep:
    """A grid of experiments: settings shared by all cells, and the axes along which cells differ."""

    name: str
    data: Table
    network: NetworkSettings
    training: TrainingSettings
    measure: MeasureSettings
    axes: dict[str, tuple[Scalar, ...]]

    def __init__(
        self,
        name: str = "sweep",
        *,
        data: Table | Mapping[str, Any] | None = None,
        network: Table | Mapping[str, Any] | None = None,
        training: Table | Mapping[str, Any] | None = None,
        measure: Table | Mapping[str, Any] | None = None,
        axes: Mapping[str, Any] | None = None,
    ) -> None:
        """A sweep written in Python, checked as a sweep file is.

        Args:
            name: letters, digits, "_", "-" and "."; names the results folder.
            data: fields of `[data]` that are not as by default, such as {"kind": "line"}; so the others.
            network: of `[network]`.
            training: of `[training]`.
            measure: of `[measure]`.
            axes: values by field: a list or a tuple, a range, or as a sweep file has them, such as "start:stop" or
                {"log": [0.001, 1], "n": 7}.

        Raises:
            UserError: naming the field, its value and the nearest good one; so for a field that no cell reads.
        """
        written = {"data": data, "network": network, "training": training, "measure": measure, "axes": axes}
        document = {table: _plain(table, content) for table, content in written.items()}
        self._make({"name": name, **document}, lambda leaf: "Sweep", set())

    @classmethod
    def from_toml(cls, path: str | Path, overrides: str | Iterable[str] = ()) -> Self:
        """Read a sweep file and apply command-line overrides.

        Args:
            path: a TOML file with the tables [data], [network], [training], [measure] and [axes].
            overrides: "name=value" sets a field (of an axis: its one value); "name=a,b", "name=start:stop",
                "name=start:stop:step", "name=log:a:b:n" or "name=lin:a:b:n" makes it an axis. One string is one
                override.

        Warns:
            Where an override has the effect that no cell reads some of the file's fields any more.

        Raises:
            UserError: naming file, field, value and the nearest good one; so for a field that no cell reads.
        """
        document, overridden = sweepfile.read(path, overrides)
        return cls._read(document, lambda leaf: "command line" if leaf in overridden else str(path), overridden)

    @classmethod
    def of_results(cls, path: str | Path, text: str, moved: Mapping[str, str]) -> Self:
        """The sweep of a results folder.

        Args:
            path: of its file, to which paths of other files are relative.
            text: what the file tells.
            moved: where files that it names are now, by the paths at which they would be.
        """
        document, _ = sweepfile.read(path, text=text, moved=moved)
        return cls._read(document, lambda leaf: str(path), set())

    @classmethod
    def _read(cls, document: dict[str, Any], source: Source, overridden: set[str]) -> Self:
        sweep = cls.__new__(cls)
        sweep._make(document, source, overridden)
        return sweep

    def _make(self, document: dict[str, Any], source: Source, overridden: set[str]) -> None:
        """Become the sweep of a document; fields that no cell reads get their defaults."""
        name = document["name"]
        if not isinstance(name, str):
            raise UserError(f"{source('name')}: name = {brief(name)}: must be text")
        if not _NAME.fullmatch(name):
            told = "must be letters, digits, '_', '-' and '.', as it names a folder"
            raise UserError(f"{source('name')}: name = {brief(name)}: {told}")
        content = _validated(document, source) | {"axes": _axes(document.get("axes", {}), source)}
        for part, value in ({"name": name} | content).items():
            object.__setattr__(self, part, value)
        _check_read(self, document, overridden, source)
        read = {table: getattr(self, table).model_dump(include=self._shared(table)) for table in tables()}
        for table, model in tables().items():
            object.__setattr__(self, table, model.model_validate(read[table] | self._of_kinds(table)))
        object.__setattr__(self, "axes", {leaf: values for leaf, values in self.axes.items() if self.reads(leaf)})
        _check_combinations(self, source)

    def _of_kinds(self, table: str) -> dict[str, Any]:
        """Fields of a table that are left to the kinds of data, where all kinds of the sweep have one default."""
        told = {}
        for leaf in self._shared(table) if table == "data" else ():
            rows = (KINDS[kind].model_fields for kind in self.values("kind"))
            defaults = {row[leaf].default for row in rows if leaf in row}
            if getattr(self.data, leaf) is None and len(defaults) == 1:
                [told[leaf]] = defaults
        return told

    def to_toml(self, path_of: Callable[[str], str] = str) -> str:
        """The sweep, all that its cells read, as a TOML document that `from_toml` reads back to an equal sweep.

        Args:
            path_of: how paths of files, which are absolute, are written.
        """

        def written(leaf: str, value: Any) -> Any:
            return path_of(value) if role(leaf).is_file else value

        document: dict[str, Any] = {"name": self.name}
        for table in tables():
            fields = getattr(self, table).model_dump(mode="json", exclude_none=True, include=self._shared(table))
            document[table] = {leaf: written(leaf, value) for leaf, value in fields.items()}
        document["axes"] = {
            leaf: compact(tuple(written(leaf, value) for value in values)) for leaf, values in self.axes.items()
        }
        return tomli_w.dumps(document)

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of values on each axis."""
        return tuple(len(values) for values in self.axes.values())

    @property
    def dimensions(self) -> dict[str, dict[str, tuple]]:
        """The dimensions of the grid by name: of the fields that vary along each, the values."""
        return {leaf: {leaf: values} for leaf, values in self.axes.items()}

    @property
    def cells(self) -> int:
        """Number of cells of the grid."""
        return math.prod(self.shape)

    def values(self, leaf: str) -> tuple:
        """All values of a field over the grid: its axis, or its one setting."""
        return self.axes.get(leaf) or (getattr(getattr(self, leaves()[leaf]), leaf),)

    def reads(self, leaf: str) -> bool:
        """Whether some cell reads a field."""
        if leaf in OF_SNAPSHOTS:
            return self.measure.has_snapshots
        conditions = read_where(leaf)
        return not conditions or any(
            all(not set(values).isdisjoint(map(row_name, self.values(decider))) for decider, values in one.items())
            for one in conditions
        )

    def column(self, leaf: str, cells: np.ndarray) -> np.ndarray:
        """Value of a field in the given cells (flat indices into the grid, last axis fastest)."""
        told = self.values(leaf)
        as_they_are = leaf == "trainable" or role(leaf).is_list
        values = np.fromiter(told, object, len(told)) if as_they_are else np.array(told)
        return values[self.places(leaf, cells)]

    def places(self, leaf: str, cells: np.ndarray) -> np.ndarray:
        """Which of the `values` of a field each of the given cells has, an index."""
        if leaf not in self.axes:
            return np.broadcast_to(0, len(cells))
        return np.unravel_index(cells, self.shape)[list(self.axes).index(leaf)]

    def coordinate(self, axis: str) -> np.ndarray:
        """The values of an axis as results tell them: lists are text."""
        values: tuple[Any, ...] = self.axes[axis]
        return np.array([", ".join(map(str, value)) for value in values] if role(axis).is_list else values)

    def files(self) -> dict[str, str]:
        """Digests of the files that decide on the data, by path."""
        named = (leaf for leaf in leaves() if role(leaf).is_file and self.reads(leaf))
        return {path: digest(path) for leaf in named for path in self.values(leaf)}

    def dataset(self, at: Mapping[str, Any]) -> DataSettings:
        """The dataset of cells with given values on the axes that it depends on; of one left out, with its first."""

        def value(leaf: str) -> Any:
            return at[leaf] if leaf in at else self.values(leaf)[0]

        row = KINDS[value("kind")]
        return row(**{leaf: told for leaf in row.model_fields if (told := value(leaf)) is not None})

    def design(self, at: Mapping[str, Any], shape: Shape) -> Design:
        """What shapes the model of cells with given values, on data of a shape; fields left out have their first."""
        fields: dict[str, Any] = {leaf: at[leaf] if leaf in at else self.values(leaf)[0] for leaf in DESIGNED}
        width = fields["width"]
        padded = padded_size(width) if architecture_of(fields["architecture"]).pads else width
        fields["width"] = padded
        return Design(ambient_dim=shape.ambient_dim, **fields)

    def datasets_but_for_replicates(self) -> Iterator[DataSettings]:
        """The datasets of the grid, of those that differ in their seed alone the first."""
        for kind in self.values("kind"):
            varying = [leaf for leaf in KINDS[kind].model_fields if leaf in self.axes and leaf not in replicates()]
            for at in itertools.product(*(self.axes[leaf] for leaf in varying)):
                yield self.dataset({"kind": kind, **dict(zip(varying, at, strict=True))})

    def designs(self) -> Iterator[tuple[DataSettings, Design]]:
        """The designs of the grid's networks but for their width, on each of `datasets_but_for_replicates`."""
        datasets = list(self.datasets_but_for_replicates())
        varying = [leaf for leaf in DESIGNED if leaf in self.axes and leaf != "width"]
        for values in itertools.product(*(self.axes[leaf] for leaf in varying)):
            for dataset in datasets:
                yield dataset, self.design(dict(zip(varying, values, strict=True)), dataset.shape)

    def _shared(self, table: str) -> set[str]:
        """The fields of a table that cells read there, and not from an axis."""
        return {leaf for leaf in tables()[table].model_fields if self.reads(leaf) and leaf not in self.axes}


DESIGNED = tuple(leaf for leaf in Design._fields if leaf != "ambient_dim")
_NAME = re.compile(r"\w[\w.-]*")


def _plain(table: str, content: Table | Mapping[str, Any] | None) -> dict[str, Any]:
    """What a table of a sweep in Python sets."""
    if isinstance(content, Table):
        return content.model_dump(exclude_unset=True)
    if not isinstance(content, Mapping | None):
        raise UserError(f"Sweep: {table} = {brief(content)}: must be a mapping, of fields to values")
    return dict(content or {})


def _validated(document: dict[str, Any], source: Source) -> dict[str, Table]:
    """The tables of a document, or a one-line UserError for the first field with something wrong."""
    for table, model in tables().items():
        for leaf in document.get(table, {}):
            if leaf not in model.model_fields:
                hint = f"; it belongs in [{leaves()[leaf]}]" if leaf in leaves() else nearest(leaf, model.model_fields)
                raise UserError(f"{source(leaf)}: {table}.{leaf}: no such field{hint}")
            checked(model, leaf, document[table][leaf], f"{source(leaf)}: {table}.{leaf}")
    return {table: model.model_validate(document.get(table, {})) for table, model in tables().items()}


def _axes(document: dict[str, Any], source: Source) -> dict[str, tuple]:
    """The axes of a document, or a one-line UserError for the first with something wrong."""
    axes = {}
    for leaf, written in document.items():
        where = f"{source(leaf)}: axes.{leaf}"
        if leaf not in leaves():
            raise UserError(f"{where}: no such axis{nearest(leaf, [one for one in leaves() if role(one).axis])}")
        if not role(leaf).axis:
            why = f"{leaf} is a list already" if role(leaf).is_list else f"{leaf} is one for all networks"
            raise UserError(f"{where}: cannot be an axis; {why}; set it in [{leaves()[leaf]}]")
        axes[leaf] = _axis(leaf, written, where)
    return axes


def _axis(leaf: str, written: Any, where: str) -> tuple:
    """The values of an axis, written as a list or by their ends."""
    model = tables()[leaves()[leaf]]
    if isinstance(written, list | tuple | range):
        if not written:
            raise UserError(f"{where} = []: no values; list at least one")
        values = tuple(checked(model, leaf, value, where) for value in written)
    else:
        values = _spaced(model, leaf, written, where)
    try:
        if isinstance(written, list | tuple):
            distinct(values)
        if len({isinstance(value, str) for value in values}) > 1:
            raise ValueError("must be all numbers or all text")
        if isinstance(values[0], float):
            distinct_in_float32(values)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None
    return values


def _spaced(model: type[Table], leaf: str, written: Any, where: str) -> tuple:
    """The values of an axis written by their ends, of the field's type."""
    try:
        spacing = read_spacing(written)
    except ValueError as error:
        raise UserError(f"{where} = {brief(written)}: {error}") from None
    first, _ = (checked(model, leaf, end, where) for end in spacing.ends)
    kind = type(first)
    return tuple(map(kind, spacing.values(whole=kind is int)))


def _check_read(sweep: Sweep, document: dict[str, Any], overridden: set[str], source: Source) -> None:
    """Refuse what is written and read by no cell; warn of it where the command line, not the file, made it so."""
    for leaf in OF_SNAPSHOTS if not sweep.measure.has_snapshots else ():
        if (written := document.get("measure", {}).get(leaf)) is not None:
            told = "changes nothing; it is read with at_steps or at_margins; leave it out"
            raise UserError(f"{source(leaf)}: measure.{leaf} = {brief(written)}: {told}")
    dropped: dict[str, list[str]] = {}
    for table in (*tables(), "axes"):
        for leaf, written in document.get(table, {}).items():
            if sweep.reads(leaf):
                continue
            if leaf in overridden or deciders(leaf).isdisjoint(overridden):
                told = f"{table}.{leaf} = {brief(written)}: changes nothing; it is {where_read(leaf)}; leave it out"
                raise UserError(f"{source(leaf)}: {told}")
            dropped.setdefault(where_read(leaf), []).append(f"{table}.{leaf}")
    for where, names in dropped.items():
        told = where.replace("read", "read only", 1)
        warnings.warn(f"{source('')}: {', '.join(names)}: left out, as {told}", stacklevel=4)


def _check_combinations(sweep: Sweep, source: Source) -> None:
    def named(leaf: str, value: Any) -> str:
        return f"{source(leaf)}: {'axes' if leaf in sweep.axes else leaves()[leaf]}.{leaf} = {value}"

    if sweep.cells > MOST_VALUES:
        longest = max(sweep.axes, key=lambda leaf: len(sweep.axes[leaf]))
        raise UserError(
            f"{source(longest)}: axes.{longest}: {sweep.cells:,} cells with the other axes; "
            f"at most {MOST_VALUES:,} are possible"
        )
    for kind in sweep.values("kind"):
        row = KINDS[kind]
        own = {leaf: field.default for leaf, field in row.model_fields.items()}
        values = {leaf: tuple(own[leaf] if one is None else one for one in sweep.values(leaf)) for leaf in own}
        if wrong := row.impossible(values):
            raise UserError(f"{named(wrong.leaf, wrong.value)}: {wrong.why}")
    if any(not OPTIMIZERS[name].full_batch for name in sweep.values("optimizer")):
        n = min(dataset.shape.samples for dataset in sweep.datasets_but_for_replicates())
        batch = max(sweep.values("batch_size"))
        if batch > n:
            raise UserError(f"{named('batch_size', batch)}: over the {n} points of the data; at most {n} is possible")
    _check_parametrizations(sweep, named)
    _check_designs(sweep, named)
    _check_norms(sweep, source)
    _check_snapshots(sweep, named)


def _check_parametrizations(sweep: Sweep, named: Callable[[str, Any], str]) -> None:
    """Their rates are of optimizers that are linear in the gradient."""
    others = [one for one in sweep.values("parametrization") if one != "standard"]
    linear = [name for name, row in OPTIMIZERS.items() if row.off is OffPart.SCALED]
    for optimizer in sweep.values("optimizer"):
        if others and optimizer not in linear:
            told = f"has rates for {', '.join(linear)}, and none for {optimizer}; leave the parametrization out"
            raise UserError(f"{named('parametrization', others[0])}: {told}")


def _check_designs(sweep: Sweep, named: Callable[[str, Any], str]) -> None:
    """Of each architecture, on each kind and shape of data."""
    for dataset, design in sweep.designs():
        row = architecture_of(design.architecture)
        if row.needs_signals and not dataset.is_signal:
            kind = next(name for name, kind in KINDS.items() if isinstance(dataset, kind))
            told = f"sees signals or images, and points of kind {kind!r} are none; choose another kind"
            raise UserError(f"{named('architecture', design.architecture)}: {told}")
        if wrong := row.impossible(design):
            leaf, why = wrong
            raise UserError(f"{named(leaf, getattr(design, leaf))}: {why}")


def _check_norms(sweep: Sweep, source: Source) -> None:
    """Norms other than L2 need regions whose coordinates have the norm of the perturbation."""
    norms, regions = (getattr(sweep.measure, leaf) for leaf in ("norms", "regions"))
    rotated = [norm for norm in norms if not NORMS[norm].is_euclidean]
    if not rotated:
        return
    for dataset in sweep.datasets_but_for_replicates():
        shape = dataset.shape
        for region in regions:
            curved = shape.tangent_dim is not None and region in ("normal", "tangent")
            if region == "full" or shape.region_dim(region) <= 1 or (dataset.is_axis_aligned and not curved):
                continue
            way_out = f", or {dataset.to_align}" if dataset.to_align and not curved else ""
            of = "at points of a curved manifold" if curved else "of a subspace off the coordinate axes"
            raise UserError(
                f"{source('norms')}: measure.norms = {brief(norms)}: {rotated[0]!r} cannot be measured in region "
                f"{region!r} {of}: its norm is not that of coordinates there; leave {region!r} out of "
                f"measure.regions{way_out}"
            )


def _check_snapshots(sweep: Sweep, named: Callable[[str, Any], str]) -> None:
    """No network is trained beyond `max_steps`, nor beyond the step at which its margin exceeds `stop_margin`."""
    for leaf, end in (("at_steps", "max_steps"), ("at_margins", "stop_margin")):
        listed, last = getattr(sweep.measure, leaf), min(sweep.values(end))
        if listed and listed[-1] > last:
            told = f"{listed[-1]} is over {end} = {last}, where training ends; at most {last} is possible"
            raise UserError(f"{named(leaf, brief(list(listed)))}: {told}")


def compact(values: tuple) -> Any:
    """An axis as the sweep file writes it: "start:stop" where it counts up, else a list."""
    if len(values) > 2 and isinstance(values[0], int) and values == tuple(range(values[0], values[0] + len(values))):
        return f"{values[0]}:{values[-1] + 1}"
    return list(values)
