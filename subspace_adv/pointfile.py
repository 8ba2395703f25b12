"""Labelled points in a file: NumPy's `.npz`, `.csv` or `.parquet`, read, checked and told apart by their digests."""

import csv
import functools
import hashlib
import os
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from subspace_adv.errors import UserError, brief
from subspace_adv.rows import near, nearest

EXTRA = "pip install 'subspace-adv[data]'"
"""What installs the libraries that not everybody's points need."""


class PointFile(NamedTuple):
    """What a file holds; of a table the first three alone are told, and there is no basis. Not to be written to."""

    x: np.ndarray  # (n, d) float32 or float64, finite
    y: np.ndarray  # (n,) labels as in the file: numbers or text
    basis: np.ndarray | None = None  # (d, k), columns that span the subspace
    heldout_x: np.ndarray | None = None  # (h, d)
    heldout_y: np.ndarray | None = None  # (h,)


def read_points(path: str | Path, label_column: str = "label") -> PointFile:
    """The points of a file, read once as long as it does not change.

    Args:
        path: `.npz` with arrays x (n, d) and y (n,), optionally basis (d, k), heldout_x (h, d) and heldout_y (h,);
            `.csv` with a header, or `.parquet`: a row for each point, with a column of labels and the coordinates in
            all others.
        label_column: of a table, the name of the column of labels.

    Raises:
        UserError: if it cannot be read, or is no such file, telling what is wrong with it.
    """
    return _read(str(path), label_column, _version(path))


def digest(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal, taken once as long as the file does not change.

    Raises:
        UserError: if it cannot be read.
    """
    return _digest(str(path), _version(path))


def near_files(path: Path, endings: Iterable[str]) -> str:
    """A hint naming the files, of some endings, that a missing one may be mistaken for, or some that are there."""
    files = sorted(file for file in path.parent.glob("*") if file.suffix.lower() in endings)
    files = [file for file in files if file.name != "pyproject.toml"]
    if close := near(path.stem, sorted({file.stem for file in files})):
        return f"; did you mean {' or '.join(repr(file.name) for file in files if file.stem in close)}?"
    names = [file.name for file in files]
    return f"; there: {', '.join(names[:10])}{', …' * (len(names) > 10)}" if names else ""


def absolute(path: str | Path, folder: str | Path = "") -> str:
    """A path that is relative to a folder, by default to the working directory, as one that is not; none stays none."""
    return os.path.abspath(os.path.join(folder, os.path.expanduser(path))) if path else ""


def relative(path: str, folder: str | Path) -> str:
    """A path that is not relative as one that is, to a folder."""
    try:
        return Path(os.path.relpath(path, absolute(folder))).as_posix()
    except ValueError:  # on another drive of Windows
        return path


def entry(held: Any, name: str, needed: str) -> np.ndarray:
    """An array of an open `.npz` by its name.

    Raises:
        UserError: if it holds what NumPy does not read, naming it, its type, and what is needed.
    """
    try:
        found = held[name]
    except ValueError as error:
        if "pickle" not in str(error):
            raise
        raise UserError(f"{name} is of type object, of Python objects; save {needed}") from None
    if not isinstance(found, np.ndarray):
        told = "as torch.save makes such archives; save arrays by numpy.savez('network.npz', **model.state_dict())"
        raise UserError(f"{name} is no array of NumPy's, {told}")
    if found.dtype.kind == "V":
        told = "as bfloat16 and other types that NumPy lacks are saved"
        raise UserError(f"{name} is of type {found.dtype}, {told}; save it as float32")
    return found


_Version = tuple[int, int, int]


def _version(path: str | Path) -> _Version:
    """What differs as soon as a file is another one, or was written again; cheaper than its digest."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        if os.path.islink(path):
            raise UserError(f"{path}: links to {os.readlink(path)}, which is no file") from None
        raise UserError(f"{path}: no such file{near_files(Path(path), _READERS)}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    return status.st_ino, status.st_mtime_ns, status.st_size


@functools.lru_cache(maxsize=64)
def _digest(path: str, version: _Version) -> str:
    del version
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


@functools.lru_cache(maxsize=2)  # each may fill a good part of the memory
def _read(path: str, label_column: str, version: _Version) -> PointFile:
    del version
    ending = Path(path).suffix.lower()
    if ending not in _READERS:
        told = f"the ending {ending!r}" if ending else "no ending"
        raise UserError(f"{path}: has {told}; points are read from files that end in {', '.join(_READERS)}")
    try:
        points = _READERS[ending](path, label_column)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except OSError as error:
        raise UserError(f"{path}: {_unreadable(error, ending)}") from None
    except (ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path}: damaged, or no {ending} file: {_first_line(error)}") from None
    for part in points:
        if part is not None:
            part.flags.writeable = False  # all who read it get the same arrays
    return points


def _unreadable(error: OSError, ending: str) -> str:
    return f"cannot be read: {error.strerror}" if error.strerror else f"damaged, or no {ending} file: {error}"


def _first_line(error: BaseException) -> str:
    return (str(error.args[0] if error.args else error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def _from_arrays(path: str, label_column: str) -> PointFile:
    del label_column
    if not zipfile.is_zipfile(path):
        raise zipfile.BadZipFile("no archive of arrays, as numpy.savez(path, x=…, y=…) saves them")
    with np.load(path, allow_pickle=False) as held:
        if missing := [name for name in ("x", "y") if name not in held]:
            there = f"; there: {', '.join(sorted(held)[:10])}" if len(held) else ""
            raise UserError(f"has no {' and no '.join(missing)}; numpy.savez(path, x=…, y=…) saves both{there}")
        for name in held:
            if name not in PointFile._fields:
                told = f"has an array {name!r}, which is not read; leave it out"
                raise UserError(f"{told}{nearest(name, PointFile._fields)}")
        arrays = {name: entry(held, name, "numbers, or labels as text by y.astype(str)") for name in held}
    if ("heldout_x" in arrays) != ("heldout_y" in arrays):
        raise UserError("has one of heldout_x and heldout_y; save both, or none")
    x = _coordinates(arrays["x"], "x")
    found = PointFile(x, _labels(arrays["y"], "y", len(x)))
    if "basis" in arrays:
        found = found._replace(basis=_basis(arrays["basis"], x.shape[1]))
    if "heldout_x" in arrays:
        heldout = _coordinates(arrays["heldout_x"], "heldout_x")
        if heldout.shape[1] != x.shape[1]:
            raise UserError(f"heldout_x is of shape {heldout.shape}, and x of {x.shape}: must have as many columns")
        found = found._replace(heldout_x=heldout, heldout_y=_labels(arrays["heldout_y"], "heldout_y", len(heldout)))
    return found


def _coordinates(given: np.ndarray, name: str) -> np.ndarray:
    """Points (n, d) as floating-point numbers of the same values."""
    if given.ndim != 2:
        hint = f"; {name}.reshape(len({name}), -1) is" if given.ndim > 2 else ""
        raise UserError(f"{name} is of shape {given.shape}: must be (n, d), a row for each point{hint}")
    if given.dtype.kind not in "fiub":
        raise UserError(f"{name} is of type {given.dtype}: must be real numbers")
    if not given.size:
        raise UserError(f"{name} is of shape {given.shape}: has no points, or no coordinates")
    exact = given.dtype in (np.bool_, np.int8, np.uint8, np.int16, np.uint16, np.float16, np.float32)
    points = given.astype(np.float32 if exact else np.float64, copy=False)
    if place := _first_not_finite(points):
        raise UserError(f"{name}{list(place)} is {points[place]}: must be a finite number")
    return points


def _first_not_finite(values: np.ndarray) -> tuple[int, ...]:
    """Indices of the first value that is NaN or infinite; empty if there is none."""
    finite = np.isfinite(values)
    return () if finite.all() else tuple(map(int, np.argwhere(~finite)[0]))


def _labels(given: np.ndarray, name: str, points: int) -> np.ndarray:
    if given.shape != (points,):
        raise UserError(f"{name} is of shape {given.shape}: must be ({points},), a label for each point")
    if given.dtype.kind not in "fiubU":
        raise UserError(f"{name} is of type {given.dtype}: must be numbers or text")
    if given.dtype.kind == "f" and (place := _first_not_finite(given)):
        raise UserError(f"{name}{list(place)} is {given[place]}: must be a label")
    return given


def _basis(given: np.ndarray, d: int) -> np.ndarray:
    if given.ndim != 2 or given.shape[0] != d or not 1 <= given.shape[1] <= d or given.dtype.kind not in "fiu":
        told = f"{given.dtype} of shape {given.shape}"
        raise UserError(f"basis is {told}: must be real numbers ({d}, k), a column for each direction, of which k ≤ d")
    if not np.isfinite(given).all() or np.linalg.matrix_rank(given) < given.shape[1]:
        raise UserError("basis: must be finite, and its columns linearly independent")
    return given.astype(np.float64, copy=False)


def _from_csv(path: str, label_column: str) -> PointFile:
    import pandas as pd  # which takes long to import

    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file)
            header, first = next(rows, []), next(rows, [])
        # As exact as NumPy reads text, which pandas does by itself from 3.1 on; and whole columns at once: a column's
        # type does not depend on its beginning.
        older = tuple(map(int, pd.__version__.split(".")[:2])) < (3, 1)
        exact: Any = {"float_precision": "round_trip"} if older else {}
        table = pd.read_csv(path, low_memory=False, encoding="utf-8-sig", **exact)
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8 text (byte {error.start}); save the file as UTF-8") from None
    except pd.errors.EmptyDataError:
        raise UserError("is empty; its first line must name the columns") from None
    if "" in header:
        told = "where it holds the rows' numbers, leave it out by DataFrame.to_csv(path, index=False)"
        raise UserError(f"column number {header.index('') + 1} has no name; {told}")
    if len(set(header)) < len(header):
        raise UserError(f"has two columns {next(name for name in header if header.count(name) > 1)!r}")
    if len(first) > len(header) or not isinstance(table.index, pd.RangeIndex):  # pandas takes it for rows' names
        raise UserError("rows have more values than the first line names columns")
    return _from_table(table, label_column)


def _from_parquet(path: str, label_column: str) -> PointFile:
    import pandas as pd

    try:
        table = pd.read_parquet(path, engine="pyarrow")
    except ImportError:
        raise UserError(f"needs pyarrow to be read; install it by {EXTRA}") from None
    return _from_table(table, label_column)


def _from_table(table: Any, label_column: str) -> PointFile:
    """Of a pandas.DataFrame."""
    from pandas.api import types

    names = [str(name) for name in table.columns]
    table.columns = names
    if label_column not in names:
        apart = names[0] if len(names) == 1 else ""
        if sign := next((sign for sign in ";\t" if sign in apart), None):
            raise UserError(f"has one column, {brief(apart)}; separate columns by commas, not by {sign!r}")
        raise UserError(f"has no column {label_column!r} of labels{nearest(label_column, names[:1000])}")
    if not len(table) or len(names) < 2:
        raise UserError(f"has {len(table)} rows and {len(names) - 1} columns of coordinates: must have some of both")
    labels = table.pop(label_column)
    for name, kind in table.dtypes.items():
        if not types.is_numeric_dtype(kind) or types.is_complex_dtype(kind):
            raise UserError(f"column {name!r} holds {_not_a_number(table[name])}: must be numbers")
    if labels.isna().any():
        raise UserError(f"row {int(labels.isna().argmax()) + 1} has no label")
    x = table.to_numpy(np.float64, na_value=np.nan)
    if place := _first_not_finite(x):
        row, column = place
        told = f"row {row + 1}, column {table.columns[column]!r} is {x[place]}"
        raise UserError(f"{told}: must be a finite number")
    is_number = types.is_numeric_dtype(labels.dtype)
    return PointFile(x, _labels(np.array(labels.tolist()) if is_number else labels.to_numpy(str), "label", len(x)))


def _not_a_number(column: Any) -> str:
    for value in column:
        try:
            float(value)
        except (TypeError, ValueError):
            return brief(value)
    return f"values of type {column.dtype}"


_READERS: dict[str, Callable[[str, str], PointFile]] = {
    ".npz": _from_arrays,
    ".csv": _from_csv,
    ".parquet": _from_parquet,
}
