"""Results in files that other programs read: Datasets as netCDF and Zarr, and their tables as Parquet and CSV."""

import functools
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from subspace_adv.errors import UserError
from subspace_adv.files import remove, unique
from subspace_adv.results import open_results
from subspace_adv.rows import one_of

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

EXTRA = "pip install 'subspace-adv[export]'"
_ROWS = 2**18  # of a table that are held in memory at once, and one row group of Parquet
_INNER = {"point": "points", "heldout": "heldout", "feature": "features", "step": "steps", "margin_level": "margins"}
"""What tables are called by the dimensions that they have beside the axes; one of the axes alone is `cells`."""


class Written(NamedTuple):
    """A file, or a folder, that was written."""

    path: Path
    rows: int | None  # of a table
    bytes: int


class Table(NamedTuple):
    """All variables of a Dataset along the same dimensions beside the axes, row by row."""

    name: str
    sizes: dict[str, int]  # of its dimensions, the last fastest
    columns: "dict[str, xr.Variable]"  # dimensions first, then other coordinates, then variables

    @property
    def rows(self) -> int:
        """Number of rows."""
        return int(np.prod(list(self.sizes.values()), dtype=np.int64))

    def blocks(self) -> "Iterator[pd.DataFrame]":
        """The rows, some at a time; at least one block."""
        import pandas as pd  # takes long to import

        shape = tuple(self.sizes.values())
        for start in range(0, max(self.rows, 1), _ROWS):
            rows = np.arange(start, min(start + _ROWS, self.rows))
            at = dict(zip(self.sizes, np.unravel_index(rows, shape) if shape else (), strict=True))
            cells = {
                name: column.values[tuple(at[str(dimension)] for dimension in column.dims)]
                for name, column in self.columns.items()
            }
            yield pd.DataFrame(cells, index=rows)


def export(results: "str | Path | xr.Dataset", path: str | Path) -> list[Written]:
    """Write results to a file, as its ending says: `.nc`, `.zarr`, `.parquet` or `.csv`.

    The first two hold the whole Dataset, which `xarray.open_dataset` reads. The others hold tables, each in a file of
    its own: of `mine.csv` what there is of a network is a row of `mine-cells.csv`, of a point of a network one of
    `mine-points.csv`, and so on. Axes are columns of each. What the attrs of the Dataset and of its variables tell is
    in the metadata of a `.parquet`, which pandas has as `attrs`, and beside a `.csv` in `mine-attrs.json`.

    Each file is written whole or not at all; one that is there is overwritten.

    Args:
        results: a results folder, or a Dataset such as `open_results` or `measure` gives.
        path: the file; for tables, what their names begin with.

    Returns:
        What was written.

    Raises:
        UserError: if the ending is another one, something must be installed, or nothing can be written there.
    """
    path = Path(path)
    write = _writer(path)
    try:
        tempfile.TemporaryFile(dir=path.parent).close()  # a mistake is told before all is read
        return write(open_results(results) if isinstance(results, str | Path) else results, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}; choose another place") from None


def _write_netcdf(dataset: "xr.Dataset", path: Path) -> list[Written]:
    """Write a Dataset in the form of netCDF that SciPy writes, which has no integers of 64 bits."""
    wide = [
        name
        for name, values in dataset.variables.items()
        if values.dtype.kind in "iu" and values.size and np.abs(values).max() > np.iinfo(np.int32).max
    ]  # seeds, which float64 holds as they are
    told = dataset.assign({name: dataset[name].astype(np.float64) for name in wide})
    return _commit({path: lambda partial: told.to_netcdf(partial, engine="scipy")})


def tables_of(dataset: "xr.Dataset") -> list[Table]:
    """A Dataset as tables, one for each set of dimensions that its variables have beside the axes.

    Coordinates are columns of all tables that have their dimensions. Those that no variable shares its dimensions with,
    as points have them, are tables of their own.
    """
    axes = set(dataset["status"].dims) if "status" in dataset else set()  # one network has no axes
    by_inner: dict[frozenset, list[str]] = {}
    for name, variable in dataset.variables.items():
        if name not in dataset.dims:
            by_inner.setdefault(frozenset(variable.dims) - axes, []).append(str(name))
    made = []
    for inner, names in by_inner.items():
        own = [name for name in names if name in dataset.data_vars] or (names if inner else [])
        has = {dimension for name in own for dimension in dataset[name].dims}
        sizes = {str(dimension): size for dimension, size in dataset.sizes.items() if dimension in has}
        told = [str(name) for name, one in dataset.coords.items() if set(one.dims) <= has]
        columns = {name: dataset[name].variable for name in dict.fromkeys([*sizes, *told, *own])}
        if own:
            name = "-".join(_INNER.get(dimension, dimension) for dimension in sizes if dimension in inner)
            made.append(Table(name or "cells", sizes, columns))
    return made


def _write_zarr(dataset: "xr.Dataset", path: Path) -> list[Written]:
    try:
        import zarr
    except ImportError:
        raise UserError(f"{path}: needs zarr to be written; install it by {EXTRA}") from None
    del zarr  # xarray calls it
    # Format 2: every reader of Zarr has it, and it has a rule for text.
    return _commit({path: lambda partial: dataset.to_zarr(partial, mode="w", zarr_format=2, consolidated=True)})


def _write_parquet(dataset: "xr.Dataset", path: Path) -> list[Written]:
    try:
        import pyarrow as pa
        from pyarrow.parquet import ParquetWriter
    except ImportError:
        raise UserError(f"{path}: needs pyarrow to be written; install it by {EXTRA}") from None

    def write(table: Table, partial: Path) -> None:
        blocks = (pa.Table.from_pandas(block, preserve_index=False) for block in table.blocks())
        first = next(blocks)
        told = {"PANDAS_ATTRS": json.dumps(_attrs(dataset, table.columns))}  # where pandas has `attrs` of a table
        schema = first.schema.with_metadata((first.schema.metadata or {}) | {k: v.encode() for k, v in told.items()})
        repeated: Any = [name for name in table.columns if name not in dataset.data_vars]  # its type says bool alone
        with ParquetWriter(partial, schema, use_dictionary=repeated) as writer:
            for block in (first, *blocks):
                writer.write_table(block.cast(schema))

    return _write_tables(dataset, path, write)


def _write_csv(dataset: "xr.Dataset", path: Path) -> list[Written]:
    def write(table: Table, partial: Path) -> None:
        with partial.open("w", encoding="utf-8", newline="") as file:
            for number, block in enumerate(table.blocks()):
                block.to_csv(file, index=False, header=number == 0, lineterminator="\n")

    def write_attrs(partial: Path) -> None:
        partial.write_text(json.dumps(_attrs(dataset, dataset.variables), indent=1) + "\n", encoding="utf-8")

    return _write_tables(dataset, path, write, {_beside(path, "attrs", ".json"): write_attrs})


def _write_tables(
    dataset: "xr.Dataset",
    path: Path,
    write: Callable[[Table, Path], None],
    further: "Mapping[Path, Callable[[Path], Any]] | None" = None,
) -> list[Written]:
    """Write each table to a file of its own, and further files beside."""
    made = {_beside(path, table.name, path.suffix): table for table in tables_of(dataset)}
    writers = {place: functools.partial(write, table) for place, table in made.items()}
    written = _commit(writers | dict(further or {}))
    return [one._replace(rows=made[one.path].rows) if one.path in made else one for one in written]


def _beside(path: Path, name: str, suffix: str) -> Path:
    return path.with_name(f"{path.stem}-{name}{suffix}")


def _attrs(dataset: "xr.Dataset", columns: "Mapping[Any, xr.Variable]") -> dict[str, Any]:
    """What a Dataset says of itself and, under `variables`, of some of its variables, as JSON has it."""
    from subspace_adv.formats import plain  # which takes long to import, as pandas does

    variables = {str(name): dataset[name].attrs for name in columns if name in dataset.variables}
    return plain({**dataset.attrs, "variables": variables})


def _commit(writers: Mapping[Path, Callable[[Path], Any]]) -> list[Written]:
    """Write files, or folders, each whole or not at all: beside their places first, into which they then are moved."""
    for path in writers:
        _refuse_folder(path)
    partials = {path: unique(path, ".partial") for path in writers}
    try:
        for path, write in writers.items():
            write(partials[path])
        written = [Written(path, None, _bytes(partial)) for path, partial in partials.items()]
        for path, partial in partials.items():
            _move(partial, path)
    finally:
        for partial in partials.values():
            remove(partial)
    return written


def _move(made: Path, place: Path) -> None:
    """Put what was made into its place; a folder there, which nothing replaces in one step, is moved away first."""
    if not place.is_dir():
        made.replace(place)
        return
    former = unique(place, ".former")
    place.replace(former)
    made.replace(place)
    remove(former)


def _bytes(place: Path) -> int:
    return sum(path.stat().st_size for path in (place, *place.rglob("*")) if path.is_file())


Writer = Callable[["xr.Dataset", Path], list[Written]]
WRITERS: dict[str, Writer] = {
    ".nc": _write_netcdf,
    ".zarr": _write_zarr,
    ".parquet": _write_parquet,
    ".csv": _write_csv,
}
"""What writes a Dataset to a file, by the file's ending."""


def _writer(path: Path) -> Writer:
    """What writes a file of this ending into a place that can be overwritten."""
    try:
        ending = one_of(path.suffix, WRITERS)
    except ValueError as error:
        raise UserError(f"{path}: has the ending {path.suffix!r}; {error}") from None
    _refuse_folder(path)
    return WRITERS[ending]


def _refuse_folder(place: Path) -> None:
    """Refuse a place where there is a folder that no earlier export has made."""
    if place.suffix != ".zarr":
        if place.is_dir():
            raise UserError(f"{place}: is a folder; choose another name")
    elif place.is_dir() and not any((place / mark).exists() for mark in (".zgroup", "zarr.json")):
        raise UserError(f"{place}: is a folder that is no Zarr store; choose another name")
