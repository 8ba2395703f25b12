"""The sweep file: tables, axes, overrides, and messages a user can act on."""

import itertools
import math
import re
import tomllib
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
import tomli_w
from pydantic import Field, ValidationError

from subspace_adv import data
from subspace_adv.norms import NORMS
from subspace_adv.optimizers import OPTIMIZERS
from subspace_adv.rows import near, nearest
from subspace_adv.settings import (
    LISTS,
    TABLE_OF,
    TABLES,
    DataSettings,
    MeasureSettings,
    NetworkSettings,
    Table,
    TrainingSettings,
    distinct,
    read_where,
)
from subspace_adv.subspace import region_dim

Scalar = str | int | float


class UserError(ValueError):
    """A mistake of the user's, told in one line: where, which field, which value, and what to do."""


_RANGE = re.compile(r"(\d+):(\d+)")
_MAX_CELLS = 10**7


class Sweep(Table, frozen=True):
    """A grid of experiments: settings shared by all cells, and the axes along which cells differ."""

    name: Annotated[str, Field(pattern=r"^\w[\w.-]*$")]
    data: DataSettings = DataSettings()
    network: NetworkSettings = NetworkSettings()
    training: TrainingSettings = TrainingSettings()
    measure: MeasureSettings = MeasureSettings()
    axes: dict[str, tuple[Scalar, ...]] = Field(default_factory=dict)

    @classmethod
    def from_toml(cls, path: str | Path, overrides: str | Iterable[str] = ()) -> Self:
        """Read a sweep file and apply command-line overrides.

        Args:
            path: a TOML file with the tables [data], [network], [training], [measure] and [axes].
            overrides: "name=value" sets a field (of an axis: its one value); "name=a,b" or "name=start:stop"
                makes it an axis. One string is one override.

        Warns:
            Where an override has the effect that no cell reads some of the file's fields any more.

        Raises:
            UserError: naming file, field, value and the nearest good one; so for a field that no cell reads.
        """
        path = Path(path)
        document = _read(path)
        document.setdefault("name", path.stem)
        _check_tables(document, path)
        overridden = _override(document, _texts(overrides))

        def source(leaf: str) -> str:
            return "command line" if leaf in overridden else str(path)

        sweep = _build(cls, document, source)
        _check_read(sweep, document, overridden, source)
        sweep = sweep._as_read()
        _check_combinations(sweep, source)
        return sweep

    def to_toml(self) -> str:
        """The sweep, all that its cells read, as a TOML document that `from_toml` reads back to an equal sweep."""
        shared = {table: self._shared(table) for table in TABLES}
        document = self.model_dump(mode="json", exclude_none=True, include={"name": True, **shared})
        document["axes"] = {name: compact(values) for name, values in self.axes.items()}
        return tomli_w.dumps(document)

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of values on each axis."""
        return tuple(len(values) for values in self.axes.values())

    @property
    def cells(self) -> int:
        """Number of cells of the grid."""
        return math.prod(self.shape)

    def values(self, leaf: str) -> tuple:
        """All values of a leaf over the grid: its axis, or its one setting."""
        return self.axes.get(leaf) or (getattr(getattr(self, TABLE_OF[leaf]), leaf),)

    def reads(self, leaf: str) -> bool:
        """Whether some cell reads a leaf."""
        some = read_where(leaf)
        return some is None or not set(some[1]).isdisjoint(self.values(some[0]))

    def column(self, leaf: str, cells: np.ndarray) -> np.ndarray:
        """Value of a leaf in the given cells (flat indices into the grid, last axis fastest)."""
        values = np.array(self.values(leaf), dtype=object if leaf == "trainable" else None)
        if leaf not in self.axes:
            return np.broadcast_to(values, len(cells))
        return values[np.unravel_index(cells, self.shape)[list(self.axes).index(leaf)]]

    def _shared(self, table: str) -> set[str]:
        """The fields of a table that cells read there, and not from an axis."""
        return {leaf for leaf in TABLES[table].model_fields if self.reads(leaf) and leaf not in self.axes}

    def _as_read(self) -> Self:
        """The same sweep with default values where no cell reads them."""
        tables = {name: getattr(self, name).model_dump(include=self._shared(name)) for name in TABLES}
        read = {name: TABLES[name].model_validate(fields) for name, fields in tables.items()}
        return self.model_copy(update=read | {"axes": {a: values for a, values in self.axes.items() if self.reads(a)}})


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file{_near_files(path)}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}); save the file as UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid TOML: {error}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def _near_files(path: Path) -> str:
    """A hint naming the sweep files that a missing one may be mistaken for, or some that are there."""
    stems = sorted(file.stem for file in path.parent.glob("*.toml"))
    if close := near(path.stem, stems):
        return f"; did you mean {' or '.join(repr(f'{stem}.toml') for stem in close)}?"
    return f"; there: {', '.join(f'{stem}.toml' for stem in stems[:10])}{', …' * (len(stems) > 10)}" if stems else ""


def _check_tables(document: dict[str, Any], path: Path) -> None:
    for name, content in document.items():
        if name not in Sweep.model_fields:
            hint = nearest(name, Sweep.model_fields)
            if name in TABLE_OF:
                hint = f"; it belongs in [{TABLE_OF[name]}]"
            raise UserError(f"{path}: {name}: no such table{hint}")
        if name != "name" and not isinstance(content, dict):
            raise UserError(f"{path}: {name} = {brief(content)}: must be a table, [{name}]")


def _texts(overrides: Any) -> list[str]:
    """The overrides, each a text."""
    if isinstance(overrides, str):
        return [overrides]
    texts = list(overrides) if isinstance(overrides, Iterable) else [overrides]
    if isinstance(overrides, Mapping) or not all(isinstance(text, str) for text in texts):
        raise UserError(f'overrides: write texts such as ["seed=0:20"], not {brief(overrides)}')
    return texts


def _override(document: dict[str, Any], overrides: Iterable[str]) -> set[str]:
    """Write overrides into the document; returns the names they set."""
    names = set()
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals or not name or not text:
            raise UserError(f"command line: {override!r}: write name=value, name=a,b or name=start:stop")
        if name in names:
            raise UserError(f"command line: {name} is set twice")
        names.add(name)
        values = [_parse(token) for token in text.split(",")]
        axes = document.setdefault("axes", {})
        if name == "name":
            document["name"] = text
        elif name not in TABLE_OF:
            raise UserError(f"command line: {name}: no such field{nearest(name, TABLE_OF)}")
        elif text.startswith("["):
            plain = re.sub(r"[][\s\"']", "", text).strip(",")
            raise UserError(f"command line: {override!r}: a list has no brackets here; write {name}={plain or 'a,b'}")
        elif name in LISTS:
            document.setdefault(TABLE_OF[name], {})[name] = values
        elif _RANGE.fullmatch(text):
            axes[name] = text
        elif len(values) > 1 or name in axes:
            axes[name] = values
        else:
            document.setdefault(TABLE_OF[name], {})[name] = values[0]
    return names


def _parse(token: str) -> Any:
    try:
        return tomllib.loads(f"value = {token}")["value"]
    except (ValueError, RecursionError):
        pass
    try:
        return float(token)  # TOML has no .5 and no 1.
    except ValueError:
        return token


def _build(cls: type[Sweep], document: dict[str, Any], source: Any) -> Any:
    """The sweep of a document, or a one-line UserError for the first thing wrong with a field or an axis."""
    for table, model in TABLES.items():
        for leaf in document.get(table, {}):
            if leaf not in model.model_fields:
                hint = nearest(leaf, model.model_fields)
                if leaf in TABLE_OF:
                    hint = f"; it belongs in [{TABLE_OF[leaf]}]"
                raise UserError(f"{source(leaf)}: {table}.{leaf}: no such field{hint}")
            _check(table, leaf, document[table][leaf], f"{source(leaf)}: {table}.{leaf}")
    axes = {}
    for leaf, written in document.get("axes", {}).items():
        where = f"{source(leaf)}: axes.{leaf}"
        if leaf in LISTS:
            raise UserError(f"{where}: cannot be an axis; {leaf} is a list already; set it in [measure]")
        if leaf not in TABLE_OF:
            raise UserError(f"{where}: no such axis{nearest(leaf, TABLE_OF.keys() - set(LISTS))}")
        axes[leaf] = _axis(leaf, written, where)
    try:
        return cls.model_validate({**document, "axes": axes})
    except ValidationError as error:
        raise UserError(f"{source('name')}: name = {brief(document['name'])}: {_reason(error)}") from None


def _check(table: str, leaf: str, value: Any, where: str) -> Any:
    """The value of a leaf as its model holds it."""
    try:
        return getattr(TABLES[table].model_validate({leaf: value}), leaf)
    except ValidationError as error:
        raise UserError(f"{where} = {brief(value)}: {_reason(error)}") from None


def _reason(error: ValidationError) -> str:
    detail = error.errors()[0]
    kind, given = detail["type"], detail["input"]
    if kind == "literal_error":
        expected = detail.get("ctx", {}).get("expected", "")
        options = re.findall(r"'([^']+)'", expected)
        return f"must be {expected}{nearest(str(given), options, otherwise_all=False)}"
    if kind == "string_pattern_mismatch":
        return "must be letters, digits, '_', '-' and '.', as it names a folder"
    if kind == "int_type":
        hint = f"; did you mean {round(given)}?" if isinstance(given, float) and math.isfinite(given) else ""
        if isinstance(given, str) and ":" in given:
            hint = ", or as an axis a range start:stop of those from 0 on"
        return f"must be a whole number{hint}"
    plain = {"float_type": "must be a number", "string_type": "must be text", "tuple_type": "must be a list"}
    message = detail["msg"].removeprefix("Value error, ").removesuffix(" after validation, not 0")
    return plain.get(kind, re.sub(r"^(Input|Tuple|Value) should", "must", message))


def _axis(leaf: str, written: Any, where: str) -> tuple:
    """The values of an axis written as a list or as "start:stop"."""
    if isinstance(written, str) and (match := _RANGE.fullmatch(written)):
        start, stop = map(int, match.groups())
        if stop <= start:
            raise UserError(f'{where} = "{written}": no values; stop must be over start')
        if stop - start > _MAX_CELLS:
            raise UserError(f'{where} = "{written}": {stop - start:,} values; at most {_MAX_CELLS:,} are possible')
        first, _ = (_check(TABLE_OF[leaf], leaf, end, where) for end in (start, stop - 1))
        values = tuple(map(type(first), range(start, stop)))
    elif not isinstance(written, list):
        raise UserError(f'{where} = {brief(written)}: must be a list or a range "start:stop" of whole numbers')
    elif not written:
        raise UserError(f"{where} = []: no values; list at least one")
    else:
        values = tuple(_check(TABLE_OF[leaf], leaf, value, where) for value in written)
    try:
        if isinstance(written, list):
            distinct(values)
        if isinstance(values[0], float):
            _check_distinct_in_float32(values)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None
    return values


def _check_distinct_in_float32(values: tuple[float, ...]) -> None:
    held: dict[float, float] = {}
    for value, number in zip(values, np.array(values, np.float32).tolist(), strict=True):
        if number in held:
            raise ValueError(f"{held[number]} and {value} are one number in float32, in which networks train")
        held[number] = value


def _check_read(sweep: Sweep, document: dict[str, Any], overridden: set[str], source: Any) -> None:
    """Refuse what is written and read by no cell; warn of it where the command line, not the file, made it so."""
    dropped: dict[str, list[str]] = {}
    for table in (*TABLES, "axes"):
        for leaf, written in document.get(table, {}).items():
            some = read_where(leaf)
            if sweep.reads(leaf) or some is None:
                continue
            decider, values = some
            where = f"{decider} = {' or '.join(map(repr, values))}"
            if leaf in overridden or decider not in overridden:
                raise UserError(
                    f"{source(leaf)}: {table}.{leaf} = {brief(written)}: changes nothing; "
                    f"it is read where {where}; leave it out"
                )
            dropped.setdefault(where, []).append(f"{table}.{leaf}")
    for where, leaves in dropped.items():
        warnings.warn(f"{source('')}: {', '.join(leaves)}: left out, as read only where {where}", stacklevel=3)


def _check_combinations(sweep: Sweep, source: Any) -> None:
    def named(leaf: str, value: Any) -> str:
        return f"{source(leaf)}: {'axes' if leaf in sweep.axes else TABLE_OF[leaf]}.{leaf} = {value}"

    if sweep.cells > _MAX_CELLS:
        longest = max(sweep.axes, key=lambda leaf: len(sweep.axes[leaf]))
        raise UserError(
            f"{source(longest)}: axes.{longest}: {sweep.cells:,} cells with the other axes; "
            f"at most {_MAX_CELLS:,} are possible"
        )
    kinds = sweep.values("kind")
    if "subspace" in kinds:
        dims, d = sweep.values("subspace_dim"), min(sweep.values("ambient_dim"))
        if max(dims) > d:
            raise UserError(f"{named('subspace_dim', max(dims))}: over ambient_dim = {d}; at most {d} is possible")
    if any(not OPTIMIZERS[name].full_batch for name in sweep.values("optimizer")):
        sizes = {"subspace": min(sweep.values("samples"))} | {k: shape[0] for k, shape in data.FIXED_SHAPES.items()}
        n, batch = min(sizes[kind] for kind in kinds), max(sweep.values("batch_size"))
        if batch > n:
            raise UserError(f"{named('batch_size', batch)}: over the {n} points of the data; at most {n} is possible")
    _check_norms(sweep, source)


def _check_norms(sweep: Sweep, source: Any) -> None:
    """Norms other than L2 need regions whose coordinates have the norm of the perturbation."""
    rotated = [norm for norm in sweep.measure.norms if not NORMS[norm].is_euclidean]
    if not rotated or "subspace" not in sweep.values("kind") or "random" not in sweep.values("basis"):
        return
    leaves = ("subspace_dim", "ambient_dim")
    for region in sweep.measure.regions:
        dims = [region_dim(region, d, k) for k, d in itertools.product(*map(sweep.values, leaves))]
        if region != "full" and max(dims) > 1:
            raise UserError(
                f"{source('norms')}: measure.norms = {brief(sweep.measure.norms)}: {rotated[0]!r} cannot be measured "
                f"in region {region!r} of a random subspace: its norm is not that of coordinates there; "
                f"leave {region!r} out of measure.regions, or set basis = 'axis-aligned'"
            )


def compact(values: tuple) -> Any:
    """An axis as the sweep file writes it: "start:stop" where it counts up, else a list."""
    if len(values) > 2 and isinstance(values[0], int) and values == tuple(range(values[0], values[0] + len(values))):
        return f"{values[0]}:{values[-1] + 1}"
    return list(values)


def brief(value: Any) -> str:
    """A value as messages show it: its first characters where there are many."""
    text = repr(list(value) if isinstance(value, tuple) else value)
    return text if len(text) <= 60 else f"{text[:40]} …"
