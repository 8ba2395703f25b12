"""The results folder: resolved sweep, manifest and chunks, each written whole or not at all. Imports orbax."""

import fcntl
import functools
import hashlib
import json
import logging
import os
import platform
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, Self

import jax
import numpy as np

from subspace_adv import fused
from subspace_adv.planning import Group, Plan
from subspace_adv.sweep import Sweep, UserError, brief, nearest

_SWEEP, _MANIFEST, _CHUNKS, _LOCK = "sweep.toml", "manifest.json", "chunks", ".lock"
_ARRAYS, _SEAL, _PARTIAL = "arrays", "seal.json", ".partial"  # in a chunk's folder; its name until it is whole
_OURS = {_SWEEP, _MANIFEST, _CHUNKS, _LOCK, _SWEEP + ".tmp", _MANIFEST + ".tmp"}
_FORMAT = 3
_BLOCK = bytes(2**20)


@functools.cache
def _orbax() -> Any:
    """The storage library, which takes long to import; networks train meanwhile."""
    for noisy in ("absl", "orbax"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    from orbax.checkpoint import v1

    return v1


class DamagedChunk(Exception):
    """A chunk that cannot be read back as it was written."""


class ChunkEntry(NamedTuple):
    """A chunk as the manifest lists it."""

    number: int
    cells: np.ndarray  # flat indices into the grid
    fingerprint: str  # of the sweep, the versions and the cells


class Store:
    """A results folder opened for one sweep."""

    def __init__(self, folder: Path, sweep: Sweep, description: dict[str, Any], entries: list[ChunkEntry]) -> None:
        """See `open` and `create`."""
        self.folder, self.sweep, self.description, self.entries = folder, sweep, description, entries
        self._lock: Any = None

    @classmethod
    def open(cls, folder: str | Path) -> Self:
        """Open an existing results folder to read.

        Raises:
            UserError: if it is not a results folder, or its description is damaged.
        """
        folder = _without_patterns(Path(folder))
        damaged = UserError(f"{folder / _MANIFEST}: damaged; move the folder away and run the sweep again")
        try:
            description = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
            entries = [
                ChunkEntry(i, _unpack(entry["cells"]), entry["fingerprint"])
                for i, entry in enumerate(description.pop("chunks"))
            ]
            written = description["sweep"]
        except (FileNotFoundError, NotADirectoryError):
            hint = nearest(folder.name, [p.parent.name for p in folder.parent.glob(f"*/{_MANIFEST}")])
            raise UserError(f"{folder}: not a results folder (no {_MANIFEST}); `run` makes one{hint}") from None
        except OSError as error:
            raise UserError(f"{folder}: cannot be read: {error.strerror}") from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise damaged from None
        if description.get("format") != _FORMAT:
            raise UserError(f"{folder}: of format {description.get('format')}; this version reads format {_FORMAT}")
        if any(e.fingerprint != _fingerprint(description, e.number, e.cells) for e in entries):
            raise damaged
        sweep = Sweep.from_toml(folder / _SWEEP)
        if _sha256((folder / _SWEEP).read_bytes()) != written:
            raise UserError(f"{folder / _SWEEP}: was changed since the run; restore it, or move the folder away")
        return cls(folder, sweep, description, entries)

    @classmethod
    def create(cls, folder: str | Path, plan: Plan) -> Self:
        """Open the folder of a sweep to write: a new one, or the same sweep's to resume.

        Raises:
            UserError: if the folder holds another sweep or version, is not ours, is in use, cannot be written
                or the disk is too small for the plan.
        """
        folder = _without_patterns(Path(folder))
        try:
            held = {entry.name for entry in folder.iterdir()} if folder.exists() else set()
            begun = _MANIFEST in held
            foreign = held - _OURS or (_SWEEP in held and (folder / _SWEEP).read_text() != plan.sweep.to_toml())
        except OSError as error:
            raise UserError(f"{folder}: cannot hold results: {error.strerror}; choose another --out") from None
        if foreign and not begun:
            raise UserError(f"{folder}: holds files that are no results of ours; choose another --out")
        store = cls.open(folder) if begun else cls._new(folder, plan)
        _refuse_difference(store, plan)
        _refuse_small_disk(folder, plan)
        try:
            (folder / _CHUNKS).mkdir(parents=True, exist_ok=True)
            store._acquire()
            for left in (folder / _CHUNKS).glob(f"*{_PARTIAL}"):
                shutil.rmtree(left)
            if not begun:
                _write(folder / _SWEEP, plan.sweep.to_toml())
                chunks = [{"cells": _pack(e.cells), "fingerprint": e.fingerprint} for e in store.entries]
                _write(folder / _MANIFEST, json.dumps(store.description | {"chunks": chunks}))
        except OSError as error:
            store.close()
            raise UserError(f"{folder}: cannot be written: {error.strerror}; choose another --out") from None
        return store

    @classmethod
    def _new(cls, folder: Path, plan: Plan) -> Self:
        description = _describe(plan)
        entries = [
            ChunkEntry(chunk.number, chunk.cells, _fingerprint(description, chunk.number, chunk.cells))
            for chunk in plan.chunks
        ]
        return cls(folder, plan.sweep, description, entries)

    def _acquire(self) -> None:
        """Keep other processes from writing to the folder."""
        self._lock = (self.folder / _LOCK).open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise UserError(
                f"{self.folder}: another run is writing here; wait for it, or choose another --out"
            ) from None

    def close(self) -> None:
        """Let other processes write to the folder."""
        if self._lock:
            self._lock.close()

    def has(self, number: int) -> bool:
        """Whether a chunk was committed; it may be damaged."""
        return self._path(number).exists()

    def commit(self, number: int, arrays: dict[str, np.ndarray]) -> None:
        """Save a chunk's arrays atomically.

        Raises:
            UserError: if the disk is full or the folder cannot be written; the run can be resumed.
        """
        path = self._path(number)
        partial = path.with_name(path.name + _PARTIAL)
        try:
            _make_sure_of_room(path.parent, sum(values.nbytes for values in arrays.values()))
            partial.mkdir()
            _orbax().save(str(partial.absolute() / _ARRAYS), arrays)
            seal = {"fingerprint": self.entries[number].fingerprint, "digest": _digest(partial / _ARRAYS)}
            _write(partial / _SEAL, json.dumps(seal))
            partial.rename(path)
        except Exception as error:  # the storage library wraps what the system says in errors of its own
            shutil.rmtree(partial, ignore_errors=True)
            reason = _system_reason(error)
            raise UserError(
                f"{path}: cannot be saved: {reason}; make room, then run the same command to resume"
            ) from error

    def verify(self, number: int) -> None:
        """Check that a committed chunk is as it was saved.

        Raises:
            DamagedChunk: if anything is missing or differs.
        """
        path = self._path(number)
        try:
            seal = json.loads((path / _SEAL).read_text(encoding="utf-8"))
            digest = _digest(path / _ARRAYS)
        except (OSError, ValueError) as error:
            raise DamagedChunk(f"{path}: cannot be read") from error
        if seal != {"fingerprint": self.entries[number].fingerprint, "digest": digest}:
            raise DamagedChunk(f"{path}: differs from what was saved")

    def load(self, number: int) -> dict[str, np.ndarray]:
        """Verify and read a committed chunk's arrays.

        Raises:
            DamagedChunk: if anything is missing or differs from what was saved.
        """
        self.verify(number)  # the storage library is noisy about what is damaged
        path = self._path(number)
        try:
            return {name: np.asarray(values) for name, values in _orbax().load(str(path.absolute() / _ARRAYS)).items()}
        except Exception as error:
            raise DamagedChunk(f"{path}: cannot be read") from error

    def discard(self, number: int) -> None:
        """Remove a chunk.

        Raises:
            UserError: if the folder cannot be written.
        """
        path = self._path(number)
        try:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise UserError(f"{path}: cannot be removed: {error.strerror}; remove it, then run again") from None

    def _path(self, number: int) -> Path:
        return self.folder / _CHUNKS / f"{number:06d}"


def _without_patterns(folder: Path) -> Path:
    """The folder, refused where the storage library would take its path for a pattern and find nothing."""
    for sign in "[*?\\":
        if sign in str(folder.absolute()):
            raise UserError(f"{folder}: a path with {sign} cannot hold results; choose another name")
    return folder


def _describe(plan: Plan) -> dict[str, Any]:
    return {
        "program": "subspace_adv",
        "format": _FORMAT,
        "cells": plan.cells,
        "sweep": _sha256(plan.sweep.to_toml().encode()),
        "versions": {name: version(name) for name in ("subspace-adv", "jax", "jaxlib")},
        "machine": {
            "device": jax.default_backend(),
            "processor": platform.machine(),
            "trainer": " and ".join(sorted({_trainer(group) for group in plan.groups})),
        },
    }


def _trainer(group: Group) -> str:
    """What rounds the steps of training: the kernel does by its vector instructions."""
    trainer = group.program.recipe.trainer
    return fused.label() if trainer == "fused" else trainer


def _fingerprint(description: dict[str, Any], number: int, cells: np.ndarray) -> str:
    return _sha256(json.dumps([description, number]).encode() + cells.astype("<i8").tobytes())


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _refuse_difference(held: Store, plan: Plan) -> None:
    """Refuse to resume what is not this plan; what a sweep is called makes no difference."""
    theirs, ours = (s.model_dump(exclude={"name"}) for s in (held.sweep, plan.sweep))
    for table in theirs:
        for leaf in {**theirs[table], **ours[table]}:
            was, now = theirs[table].get(leaf), ours[table].get(leaf)
            if was != now:
                raise UserError(
                    f"{held.folder}: holds another sweep: {table}.{leaf} is {_shown(was)} there and {_shown(now)} "
                    "here; choose another --out"
                )
    if list(held.sweep.axes) != list(plan.sweep.axes):
        there, here = (", ".join(sweep.axes) for sweep in (held.sweep, plan.sweep))
        raise UserError(f"{held.folder}: holds the axes in another order, {there} and not {here}; choose another --out")
    description = _describe(plan)
    for part in ("versions", "machine"):
        for name, now in description[part].items():
            was = held.description[part].get(name)
            if was != now:
                raise UserError(f"{held.folder}: was made with {name} {was}, and this is {now}; choose another --out")
    cuts = [chunk.cells.tolist() for chunk in plan.chunks]
    if cuts != [entry.cells.tolist() for entry in held.entries]:
        raise UserError(f"{held.folder}: is cut into chunks in another way; choose another --out")


def _shown(value: Any) -> str:
    return "not set" if value is None else brief(value)


def _refuse_small_disk(folder: Path, plan: Plan) -> None:
    existing = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    free, held = shutil.disk_usage(existing).free, 0
    if (folder / _CHUNKS).exists():
        held = sum(f.stat().st_size for f in (folder / _CHUNKS).rglob("*") if f.is_file())
    if plan.bytes - held > free:
        raise UserError(
            f"{folder}: the results need {plan.bytes / 1e9:.3g} GB and {free / 1e9:.3g} GB are free; "
            "make room, choose another --out, or fewer cells"
        )


def _digest(folder: Path) -> str:
    """Of the names and contents of all files of a folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").digest()
            digest.update(str(path.relative_to(folder)).encode() + b"\0" + content)
    return digest.hexdigest()


def _make_sure_of_room(folder: Path, size: int) -> None:
    """Let the system refuse now: a save that fails midway floods stderr from threads of the storage library."""
    with tempfile.TemporaryFile(dir=folder) as file:
        for _ in range(0, size + len(_BLOCK), len(_BLOCK)):  # one more for what a chunk takes beside its arrays
            file.write(_BLOCK)
        file.flush()


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _pack(cells: np.ndarray) -> dict[str, int] | list[int]:
    """Indices as JSON: start, stop and step where they are evenly spaced."""
    step = int(cells[1] - cells[0]) if len(cells) > 1 else 1
    if np.array_equal(cells, cells[0] + step * np.arange(len(cells))):
        return {"start": int(cells[0]), "stop": int(cells[-1]) + 1, "step": step}
    return cells.tolist()


def _unpack(packed: dict[str, int] | list[int]) -> np.ndarray:
    if isinstance(packed, dict):
        return np.arange(packed["start"], packed["stop"], packed["step"])
    return np.array(packed, np.int64)


def _system_reason(error: BaseException) -> str:
    """What the operating system said, from an exception or its causes; else the exception's first line."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    known = ("No space left on device", "Disk quota exceeded", "Permission denied", "Read-only file system")
    return next((k for k in known if k in str(error)), str(error).splitlines()[0] if str(error) else repr(error))
