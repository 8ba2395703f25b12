"""A sweep: settings shared by all cells of a grid, the dimensions along which they differ, and what is wrong there."""

import functools
import itertools
import math
import operator
import re
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import tomli_w

from subspace_adv import sweepfile
from subspace_adv.contracts import Design
from subspace_adv.data import KINDS, DataSettings, Shape
from subspace_adv.dimensions import Dimension, Source, check_rows, is_axis, place, read_dimensions, written_fields
from subspace_adv.errors import UserError, brief
from subspace_adv.fields import Table, checked
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
from subspace_adv.spacing import MOST_VALUES

Values = dict[str, Any]
"""Values by field, of some cells."""


@dataclass(frozen=True, init=False)
class Sweep:
    """A grid of experiments: settings shared by all cells, and the dimensions along which cells differ.

    An axis is a dimension of one field, whose name it has; along others, zips and a sample, several move together.
    """

    name: str
    data: Table
    network: NetworkSettings
    training: TrainingSettings
    measure: MeasureSettings
    dimensions: dict[str, Dimension]
    axes: Dimension = field(repr=False, compare=False)  # the fields of all dimensions

    def __init__(
        self,
        name: str = "sweep",
        *,
        data: Table | Mapping[str, Any] | None = None,
        network: Table | Mapping[str, Any] | None = None,
        training: Table | Mapping[str, Any] | None = None,
        measure: Table | Mapping[str, Any] | None = None,
        axes: Mapping[str, Any] | None = None,
        zips: Iterable[Mapping[str, Any]] = (),
        sample: Mapping[str, Any] | None = None,
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
            zips: fields that move together: of each `[[zip]]` its name, and values by field.
            sample: of `[sample]`: n, and ranges by field, such as {"log": [0.001, 1]}; draw_seed, and the method.

        Raises:
            UserError: naming the field, its value and the nearest good one; so for a field that no cell reads.
        """
        given = {"data": data, "network": network, "training": training, "measure": measure, "axes": axes}
        given |= {} if sample is None else {"sample": sample}
        document: dict[str, Any] = {table: _plain(table, content) for table, content in given.items()}
        document["zip"] = [_plain("zips", one) for one in _listed(zips)]
        self._make({"name": name, **document}, lambda leaf: "Sweep", set())

    @classmethod
    def from_toml(cls, path: str | Path, overrides: str | Iterable[str] = ()) -> Self:
        """Read a sweep file and apply command-line overrides.

        Args:
            path: a TOML file with the tables [data], [network], [training], [measure], [axes], [[zip]] and [sample].
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
        for part, value in ({"name": name} | _validated(document, source)).items():
            object.__setattr__(self, part, value)
        self._span(read_dimensions(document, source))
        _check_read(self, document, overridden, source)
        read = {table: getattr(self, table).model_dump(include=self._shared(table)) for table in tables()}
        for table, model in tables().items():
            object.__setattr__(self, table, model.model_validate(read[table] | self._of_kinds(table)))
        dimensions = {
            name: {leaf: values for leaf, values in of.items() if self.reads(leaf)}
            for name, of in self.dimensions.items()
        }
        self._span({name: of for name, of in dimensions.items() if of})
        check_rows(self.dimensions, source)
        _check_combinations(self, source)

    def _span(self, dimensions: dict[str, Dimension]) -> None:
        """Let cells differ along these."""
        fields = {leaf: values for of in dimensions.values() for leaf, values in of.items()}
        object.__setattr__(self, "dimensions", dimensions)
        object.__setattr__(self, "axes", fields)

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

        def told(leaf: str, values: tuple) -> tuple:
            return tuple(map(path_of, values)) if role(leaf).is_file else values

        def listed(of: Dimension) -> dict[str, Any]:
            return {leaf: compact(told(leaf, values)) for leaf, values in of.items()}

        document: dict[str, Any] = {"name": self.name}
        for table in tables():
            fields = getattr(self, table).model_dump(mode="json", exclude_none=True, include=self._shared(table))
            document[table] = {leaf: told(leaf, (value,))[0] for leaf, value in fields.items()}
        zips = [{"name": name, **listed(of)} for name, of in self.dimensions.items() if not is_axis(name)]
        document["axes"] = listed({name: of[name] for name, of in self.dimensions.items() if is_axis(name)})
        return tomli_w.dumps(document | ({"zip": zips} if zips else {}))

    def __reduce__(self) -> tuple[Callable[..., "Sweep"], tuple[str, str, dict[str, str]]]:
        """To other processes it is sent as its document, which tells where its files are from the root on."""
        return Sweep.of_results, ("sweep.toml", self.to_toml(), {})

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of places along each dimension."""
        return tuple(len(next(iter(of.values()))) for of in self.dimensions.values())

    @property
    def cells(self) -> int:
        """Number of cells of the grid."""
        return math.prod(self.shape)

    def values(self, leaf: str) -> tuple:
        """All values of a field over the grid: those along its dimension, or its one setting."""
        return self.axes.get(leaf) or (getattr(getattr(self, leaves()[leaf]), leaf),)

    def reads(self, leaf: str) -> bool:
        """Whether some cell reads a field."""
        if leaf in OF_SNAPSHOTS:
            return self.measure.has_snapshots
        conditions = read_where(leaf)
        return not conditions or any(
            all(row_name(value) in condition[decider] for decider, value in at.items())
            for condition in conditions
            for at in self.combinations(condition)
        )

    def distinct(
        self, fields: Collection[str], as_far_as: Callable[[str, Any], Any] = lambda leaf, value: value
    ) -> Iterator[tuple[list[Values], np.ndarray]]:
        """Of each dimension what it tells of some fields, and which of that each place along it has.

        Args:
            fields: by name.
            as_far_as: what of a field's value makes a difference; of places that do not differ, the first is told.
        """
        for of, size in zip(self.dimensions.values(), self.shape, strict=True):
            mine = [leaf for leaf in of if leaf in fields]
            if not mine:
                yield [{}], np.zeros(size, np.intp)
                continue
            found: dict[tuple, tuple[int, Values]] = {}
            which = np.empty(size, np.intp)
            for i, row in enumerate(zip(*(of[leaf] for leaf in mine), strict=True)):
                key = tuple(as_far_as(leaf, value) for leaf, value in zip(mine, row, strict=True))
                if key not in found:
                    found[key] = len(found), dict(zip(mine, row, strict=True))
                which[i] = found[key][0]
            yield [values for _, values in found.values()], which

    def combinations(self, fields: Collection[str]) -> Iterator[Values]:
        """The values of some fields that cells have together, each combination once; of those that do not vary too."""
        fixed = {leaf: self.values(leaf)[0] for leaf in fields if leaf not in self.axes}
        for parts in itertools.product(*(values for values, _ in self.distinct(fields))):
            yield functools.reduce(operator.or_, parts, fixed)

    def column(self, leaf: str, cells: np.ndarray) -> np.ndarray:
        """Value of a field in the given cells (flat indices into the grid, last dimension fastest)."""
        told = self.values(leaf)
        as_they_are = leaf == "trainable" or role(leaf).is_list
        values = np.fromiter(told, object, len(told)) if as_they_are else np.array(told)
        return values[self.places(leaf, cells)]

    def places(self, leaf: str, cells: np.ndarray) -> np.ndarray:
        """Which of the `values` of a field each of the given cells has, an index."""
        if leaf not in self.axes:
            return np.broadcast_to(0, len(cells))
        along = next(i for i, of in enumerate(self.dimensions.values()) if leaf in of)
        return cells // math.prod(self.shape[along + 1 :]) % self.shape[along]

    def coordinate(self, leaf: str) -> np.ndarray:
        """The values of a field along its dimension, as results tell them: lists are text."""
        values = self.axes[leaf]
        return np.array([", ".join(map(str, value)) for value in values] if role(leaf).is_list else values)

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
        """The datasets of the grid, each once, of those that differ in their seed alone the first."""
        yield from dict.fromkeys(self.dataset(at) for at in self.combinations(_data_but_for_replicates()))

    def designs(self) -> Iterator[tuple[DataSettings, Design]]:
        """The designs of the grid's networks but for their width, and the data of each, all pairs once."""
        designed = [leaf for leaf in DESIGNED if leaf != "width"]
        found = {}
        for at in self.combinations([*_data_but_for_replicates(), *designed]):
            dataset = self.dataset(at)
            found[dataset, self.design(at, dataset.shape)] = None
        yield from found

    def _shared(self, table: str) -> set[str]:
        """The fields of a table that cells read there, and not from an axis."""
        return {leaf for leaf in tables()[table].model_fields if self.reads(leaf) and leaf not in self.axes}


DESIGNED = tuple(leaf for leaf in Design._fields if leaf != "ambient_dim")
_NAME = re.compile(r"\w[\w.-]*")


def _data_but_for_replicates() -> list[str]:
    """The fields that decide on the data, but for seeds."""
    seeds = replicates()
    return [leaf for leaf, table in leaves().items() if table == "data" and leaf not in seeds]


def _listed(zips: Any) -> list:
    """Zips of a sweep in Python."""
    if isinstance(zips, str | Mapping) or not isinstance(zips, Iterable):
        raise UserError(
            f"Sweep: zips = {brief(zips)}: must be a list of mappings, each of a name, and fields to values"
        )
    return list(zips)


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


def _check_read(sweep: Sweep, document: dict[str, Any], overridden: set[str], source: Source) -> None:
    """Refuse what is written and read by no cell; warn of it where the command line, not the file, made it so."""
    for leaf in OF_SNAPSHOTS if not sweep.measure.has_snapshots else ():
        if (written := document.get("measure", {}).get(leaf)) is not None:
            told = "changes nothing; it is read with at_steps or at_margins; leave it out"
            raise UserError(f"{source(leaf)}: measure.{leaf} = {brief(written)}: {told}")
    dropped: dict[str, list[str]] = {}
    settings = ((table, leaf, value) for table in tables() for leaf, value in document.get(table, {}).items())
    for table, leaf, value in (*settings, *written_fields(document)):
        if sweep.reads(leaf):
            continue
        if leaf in overridden or deciders(leaf).isdisjoint(overridden):
            told = f"{table}.{leaf} = {brief(value)}: changes nothing; it is {where_read(leaf)}; leave it out"
            raise UserError(f"{source(leaf)}: {told}")
        dropped.setdefault(where_read(leaf), []).append(f"{table}.{leaf}")
    for where, names in dropped.items():
        told = where.replace("read", "read only", 1)
        warnings.warn(f"{source('')}: {', '.join(names)}: left out, as {told}", stacklevel=4)


def _check_combinations(sweep: Sweep, source: Source) -> None:
    def named(leaf: str, value: Any) -> str:
        return f"{source(leaf)}: {place(sweep.dimensions, leaf)}.{leaf} = {value}"

    if sweep.cells > MOST_VALUES:
        longest = max(zip(sweep.shape, sweep.dimensions.values(), strict=True), key=lambda one: one[0])[1]
        leaf = next(iter(longest))
        raise UserError(
            f"{source(leaf)}: {place(sweep.dimensions, leaf)}.{leaf}: {sweep.cells:,} cells with the other axes; "
            f"at most {MOST_VALUES:,} are possible"
        )
    _check_data(sweep, named)
    _check_batches(sweep, named)
    _check_parametrizations(sweep, named)
    _check_designs(sweep, named)
    _check_norms(sweep, source)
    _check_snapshots(sweep, named)


def _check_data(sweep: Sweep, named: Callable[[str, Any], str]) -> None:
    """Of each kind, all values of its fields that occur together: those along axes, and one place of each zip."""
    together = [leaf for name, of in sweep.dimensions.items() if not is_axis(name) for leaf in of]
    for kind in dict.fromkeys(sweep.values("kind")):
        row = KINDS[kind]
        own = {leaf: field.default for leaf, field in row.model_fields.items()}
        for at in sweep.combinations({"kind", *own}.intersection(together)):
            if at.get("kind", kind) != kind:
                continue
            given = {leaf: (at[leaf],) if leaf in at else sweep.values(leaf) for leaf in own}
            values = {leaf: tuple(own[leaf] if one is None else one for one in told) for leaf, told in given.items()}
            if wrong := row.impossible(values):
                raise UserError(f"{named(wrong.leaf, wrong.value)}: {wrong.why}")


def _check_batches(sweep: Sweep, named: Callable[[str, Any], str]) -> None:
    """No minibatch has more points than there are."""
    if all(OPTIMIZERS[name].full_batch for name in sweep.values("optimizer")):
        return
    found = [
        (at["batch_size"], sweep.dataset(at).shape.samples)
        for at in sweep.combinations([*_data_but_for_replicates(), "optimizer", "batch_size"])
        if not OPTIMIZERS[at["optimizer"]].full_batch
    ]
    batch, n = max(((batch, n) for batch, n in found if batch > n), key=lambda one: (one[0], -one[1]), default=(0, 0))
    if batch > n:
        raise UserError(f"{named('batch_size', batch)}: over the {n} points of the data; at most {n} is possible")


def _check_parametrizations(sweep: Sweep, named: Callable[[str, Any], str]) -> None:
    """Their rates are of optimizers that are linear in the gradient."""
    linear = [name for name, row in OPTIMIZERS.items() if row.off is OffPart.SCALED]
    for at in sweep.combinations(["parametrization", "optimizer"]):
        if at["parametrization"] != "standard" and at["optimizer"] not in linear:
            told = f"has rates for {', '.join(linear)}, and none for {at['optimizer']}; leave the parametrization out"
            raise UserError(f"{named('parametrization', at['parametrization'])}: {told}")


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
