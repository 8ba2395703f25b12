"""The sweep file as frozen models: settings, axes, overrides, and messages a user can act on."""

import difflib
import itertools
import math
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
import tomli_w
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationError

from subspace_adv import data, network, training
from subspace_adv.attacks import Norm
from subspace_adv.subspace import Region, region_dim

Scalar = str | int | float


class UserError(ValueError):
    """A mistake of the user's, told in one line: where, which field, which value, and what to do."""


def _distinct(values: tuple) -> tuple:
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


_as_tuple = BeforeValidator(lambda v: tuple(v) if isinstance(v, list) else v)
_LARGEST = 3.4e38  # of float32
_Positive = Annotated[float, Field(gt=0, le=_LARGEST, allow_inf_nan=False)]
_NotNegative = Annotated[float, Field(ge=0, le=_LARGEST, allow_inf_nan=False)]
_Count = Annotated[int, Field(ge=1, le=2**24)]
_Seed = Annotated[int, Field(ge=0, lt=2**32)]
_Regions = Annotated[tuple[Region, ...], _as_tuple, Field(min_length=1), AfterValidator(_distinct)]
_Norms = Annotated[tuple[Norm, ...], _as_tuple, Field(min_length=1), AfterValidator(_distinct)]


class _Table(BaseModel, frozen=True, extra="forbid", strict=True):
    """A table of the sweep file."""


class DataSettings(_Table, frozen=True):
    """`[data]`: the points, their labels and their subspace. All but `kind` describe kind "subspace"."""

    kind: data.Kind = "line"
    ambient_dim: _Count = 20
    subspace_dim: _Count = 2
    samples: _Count = 20
    basis: data.Basis = "random"
    distribution: data.Distribution = "sphere"
    labels: data.Labels = "random"
    data_seed: _Seed = 0


class NetworkSettings(_Table, frozen=True):
    """`[network]`: the initial law and what of it is trained ("hidden" for init "theory", else "all")."""

    init: network.Init = "paper-code"
    trainable: training.Trainable | None = None
    width: _Count = 100
    init_scale: _Positive = 1.0
    seed: _Seed = 0


class TrainingSettings(_Table, frozen=True):
    """`[training]`: loss, optimizer and stop rule."""

    loss: training.Loss = "logistic"
    optimizer: training.Optimizer = "gd"
    learning_rate: _Positive = 0.02
    weight_decay: _NotNegative = 0.0
    momentum: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] = 0.9
    batch_size: _Count = 1
    stop_margin: Annotated[float, AfterValidator(_number)] = 0.3
    max_steps: Annotated[int, Field(ge=0, lt=2**31 - 1)] = 40_000


class MeasureSettings(_Table, frozen=True):
    """`[measure]`: regions and norms of the distances, and the effort of the attacks."""

    regions: _Regions = ("off", "on", "full")
    norms: _Norms = ("l2",)
    attack_steps: Annotated[int, Field(ge=1, le=100_000)] = 56
    restarts: Annotated[int, Field(ge=1, le=10_000)] = 32


TABLES: Mapping[str, type[_Table]] = {
    "data": DataSettings,
    "network": NetworkSettings,
    "training": TrainingSettings,
    "measure": MeasureSettings,
}
TABLE_OF = {leaf: table for table, model in TABLES.items() for leaf in model.model_fields}
_LISTS = ("regions", "norms")
_READ_ONLY_BY = {  # leaves that only some cells read: the leaf that decides, and its value
    **dict.fromkeys(set(DataSettings.model_fields) - {"kind"}, ("kind", "subspace")),
    "momentum": ("optimizer", "momentum"),
    "batch_size": ("optimizer", "sgd"),
}
_RANGE = re.compile(r"(\d+):(\d+)")
_MAX_CELLS = 10**7


class Sweep(_Table, frozen=True):
    """A grid of experiments: settings shared by all cells, and the axes along which cells differ."""

    name: Annotated[str, Field(pattern=r"^\w[\w.-]*$")]
    data: DataSettings = DataSettings()
    network: NetworkSettings = NetworkSettings()
    training: TrainingSettings = TrainingSettings()
    measure: MeasureSettings = MeasureSettings()
    axes: dict[str, tuple[Scalar, ...]] = {}

    @classmethod
    def from_toml(cls, path: str | Path, overrides: Iterable[str] = ()) -> Self:
        """Read a sweep file and apply command-line overrides.

        Args:
            path: a TOML file with the tables [data], [network], [training], [measure] and [axes].
            overrides: "name=value" sets a field (of an axis: its one value); "name=a,b" or "name=start:stop"
                makes it an axis.

        Raises:
            UserError: naming file, field, value and the nearest good one.
        """
        path = Path(path)
        document = _read(path)
        document.setdefault("name", path.stem)
        _check_tables(document, path)
        overridden = _override(document, overrides)

        def source(leaf: str) -> str:
            return "command line" if leaf in overridden else str(path)

        return _validate(cls, document, source)

    def to_toml(self) -> str:
        """The sweep as a TOML document that `from_toml` reads back to an equal sweep."""
        document = self.model_dump(mode="json", exclude_none=True, exclude={"axes"})
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

    def column(self, leaf: str, cells: np.ndarray) -> np.ndarray:
        """Value of a leaf in the given cells (flat indices into the grid, last axis fastest)."""
        values = np.array(self.values(leaf), dtype=object if leaf == "trainable" else None)
        if leaf not in self.axes:
            return np.broadcast_to(values, len(cells))
        return values[np.unravel_index(cells, self.shape)[list(self.axes).index(leaf)]]


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        folder = path.parent if path.parent.is_dir() else Path()
        hint = nearest(path.name, [p.name for p in folder.glob("*.toml")])
        raise UserError(f"{path}: no such file{hint}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}); save the file as UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid TOML: {error}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def _check_tables(document: dict[str, Any], path: Path) -> None:
    for name, content in document.items():
        if name not in Sweep.model_fields:
            hint = nearest(name, Sweep.model_fields)
            if name in TABLE_OF:
                hint = f"; it belongs in [{TABLE_OF[name]}]"
            raise UserError(f"{path}: {name}: no such table{hint}")
        if name != "name" and not isinstance(content, dict):
            raise UserError(f"{path}: {name} = {brief(content)}: must be a table, [{name}]")


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
        elif name in _LISTS:
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


def _validate(cls: type[Sweep], document: dict[str, Any], source: Any) -> Any:
    """Build the sweep, or raise a one-line UserError for the first thing wrong."""
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
        if leaf in _LISTS:
            raise UserError(f"{where}: cannot be an axis; {leaf} is a list already; set it in [measure]")
        if leaf not in TABLE_OF:
            raise UserError(f"{where}: no such axis{nearest(leaf, TABLE_OF.keys() - set(_LISTS))}")
        axes[leaf] = _axis(leaf, written, where)
    try:
        sweep = cls.model_validate({**document, "axes": axes})
    except ValidationError as error:
        raise UserError(f"{source('name')}: name = {brief(document['name'])}: {_reason(error)}") from None
    _check_combinations(sweep, source)
    return sweep


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
        return tuple(map(type(first), range(start, stop)))
    if not isinstance(written, list):
        raise UserError(f'{where} = {brief(written)}: must be a list or a range "start:stop" of whole numbers')
    if not written:
        raise UserError(f"{where} = []: no values; list at least one")
    values = tuple(_check(TABLE_OF[leaf], leaf, value, where) for value in written)
    try:
        return _distinct(values)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None


def _check_combinations(sweep: Sweep, source: Any) -> None:
    def named(leaf: str, value: Any) -> str:
        return f"{source(leaf)}: {'axes' if leaf in sweep.axes else TABLE_OF[leaf]}.{leaf} = {value}"

    if sweep.cells > _MAX_CELLS:
        longest = max(sweep.axes, key=lambda leaf: len(sweep.axes[leaf]))
        raise UserError(
            f"{source(longest)}: axes.{longest}: {sweep.cells:,} cells with the other axes; "
            f"at most {_MAX_CELLS:,} are possible"
        )
    for leaf in sweep.axes:
        decider, value = _READ_ONLY_BY.get(leaf, ("kind", None))
        if value is not None and value not in sweep.values(decider):
            raise UserError(f"{source(leaf)}: axes.{leaf}: changes nothing; it is read where {decider} = {value!r}")
    kinds = sweep.values("kind")
    if "subspace" in kinds:
        dims, d = sweep.values("subspace_dim"), min(sweep.values("ambient_dim"))
        if max(dims) > d:
            raise UserError(f"{named('subspace_dim', max(dims))}: over ambient_dim = {d}; at most {d} is possible")
    if "sgd" in sweep.values("optimizer"):
        sizes = {"subspace": min(sweep.values("samples"))} | {k: shape[0] for k, shape in data.FIXED_SHAPES.items()}
        n, batch = min(sizes[kind] for kind in kinds), max(sweep.values("batch_size"))
        if batch > n:
            raise UserError(f"{named('batch_size', batch)}: over the {n} points of the data; at most {n} is possible")
    _check_norms(sweep, source)


def _check_norms(sweep: Sweep, source: Any) -> None:
    """Norms other than L2 need regions whose coordinates have the norm of the perturbation."""
    rotated = [norm for norm in sweep.measure.norms if norm != "l2"]
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


def nearest(name: str, known: Iterable[str], *, otherwise_all: bool = True) -> str:
    """A hint naming the known name nearest to a mistyped one, or all of them where none is near."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(known)}" if known and otherwise_all else ""
