"""The results folder: resolved sweep, manifest and chunks, by whichever writer comes first."""

import json
import platform
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from subspace_adv import chunkfiles
from subspace_adv.errors import UserError
from subspace_adv.files import (
    PARTIAL,
    REMEDIES,
    TEMPORARY,
    is_dropped,
    make_sure_of_room,
    moved,
    reason_of,
    remove,
    unique,
    write,
    write_first,
)
from subspace_adv.growing import Growth, Holder, Kept, grown, reused
from subspace_adv.locks import LOCK, InUse, Lock, locked
from subspace_adv.manifest import (
    FORMAT,
    ChunkEntry,
    Description,
    begin,
    cut,
    entries_of,
    file_difference,
    now,
    origin_difference,
    places,
    program_difference,
    sha256,
    sweep_difference,
    with_found,
    written,
)
from subspace_adv.rows import nearest
from subspace_adv.sweep import Sweep

_SWEEP, _MANIFEST, _CHUNKS = "sweep.toml", "manifest.json", "chunks"
_SHARDS = "shards"  # which parts of the plan were begun, by whom
_OURS = {_SWEEP, _MANIFEST, _CHUNKS, LOCK, _SHARDS}
_PATIENCE = 600  # seconds that those who share a folder wait while one of them cuts it


class Copy(NamedTuple):
    """A chunk whose arrays another folder has."""

    entry: ChunkEntry  # of the chunk here
    store: "Store"  # that has them
    theirs: int  # number of the chunk there
    rows: np.ndarray  # which of its cells

    def load(self) -> dict[str, np.ndarray]:
        """The arrays; raises what `Store.load` raises."""
        return {name: values[self.rows] for name, values in self.store.load(self.theirs).items()}


class Begun(NamedTuple):
    """What a folder holds of a sweep."""

    store: "Store"
    growth: Growth | None  # what becomes of it, if it is a smaller grid


class Wanted(NamedTuple):
    """What a results folder is to hold."""

    description: Description
    grow: bool  # whether it may hold a smaller grid, whose results are kept
    others: list["Store"]  # other folders, whose cells are taken where they are the same

    def open(self, folder: Path) -> Begun | None:
        """What a folder holds of this sweep; None if nothing is begun there.

        Raises:
            UserError: if it holds anything else, telling what, or must not grow.
        """
        if not (folder / _MANIFEST).exists():
            return None
        description, out = self.description, "choose another --out"
        store = Store.open(folder, {content: path for path, content in description.sweep.files().items()})
        if told := sweep_difference(store.sweep, description.sweep):
            try:
                growth = grown(description, store.holder())
            except UserError as error:
                raise UserError(f"{folder}: {error if self.grow else told}; {out}") from None
            if not self.grow:
                raise UserError(f"{folder}: {told}; add to it with --grow, or {out}")
            return Begun(store, growth)
        if told := origin_difference(store.manifest, description) or program_difference(store.manifest, description):
            raise UserError(f"{folder}: {told}; {out}")
        return Begun(store, None)

    def cut(self, folder: Path, begun: Begun | None) -> "Store":
        """The folder cut for what it is to hold: chunks that it has, those that others have, and new ones."""
        description, kept, number = self.description, [], 0
        if begun:
            kept = begun.growth.kept if begun.growth else begun.store.committed
            number = 1 + max((entry.number for entry in begun.store.entries), default=-1)
        free = np.ones(description.sweep.cells, np.bool_)
        for entry in kept:
            free[entry.cells] = False
        copies = [
            Copy(ChunkEntry(i, one.part, one.cells, one.fingerprint), other, one.number, one.rows)
            for i, (other, one) in enumerate(self._reused(free), number)
        ]
        if begun and not begun.growth and not copies:
            return begun.store
        held = [*kept, *(copy.entry for copy in copies)]
        manifest = begin(description, folder, cut(description, held, number + len(copies)))
        if begun:
            # What the sweep's file holds now may be of an earlier manifest: this one, too, may lack it when killed.
            manifest |= {"begun": begun.store.manifest["begun"], "before": _digest_of(folder / _SWEEP)}
        made = Store(folder, description.sweep, manifest)
        made.copies = copies
        return made

    def _reused(self, free: np.ndarray) -> "Iterator[tuple[Store, Kept]]":
        """What other folders have of the cells that are free, folder by folder."""
        for other in self.others:
            try:
                found = reused(self.description, other.holder(), free)
            except UserError as error:
                raise UserError(f"{other.folder}: {error}; leave it out of what is to be reused") from None
            yield from ((other, one) for one in found)


class Store:
    """A results folder opened for one sweep."""

    def __init__(self, folder: Path, sweep: Sweep, manifest: dict[str, Any]) -> None:
        """See `open` and `create`."""
        self.folder, self.sweep, self.manifest = folder, sweep, manifest
        self.moved = False  # whether files that the data are made of are not where the folder's sweep file tells
        self.files = sweep.files()  # digests by path: what the data are made of here
        self.entries = entries_of(manifest)
        self.copies: list[Copy] = []  # what is to be taken from other folders
        self._entry = {entry.number: entry for entry in self.entries}
        self._lock: Lock | None = None

    @classmethod
    def open(cls, folder: str | Path, elsewhere: dict[str, str] | None = None) -> Self:
        """Open an existing results folder to read.

        Args:
            folder: it.
            elsewhere: paths by digest, of files that may be those its data are made of.

        Raises:
            UserError: if it is not a results folder, or its description is damaged.
        """
        folder = Path(folder)
        damaged = UserError(f"{folder / _MANIFEST}: damaged; move the folder away and run the sweep again")
        held = _held(folder / _SWEEP)  # first, as one that grows meanwhile has its manifest written first
        try:
            manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
            made_by = manifest["format"]
        except (FileNotFoundError, NotADirectoryError):
            hint = nearest(folder.name, [p.parent.name for p in folder.parent.glob(f"*/{_MANIFEST}")])
            raise UserError(f"{folder}: not a results folder (no {_MANIFEST}); `run` makes one{hint}") from None
        except OSError as error:
            raise UserError(f"{folder}: cannot be read: {error.strerror}") from None
        except (ValueError, KeyError, TypeError):
            raise damaged from None
        if made_by != FORMAT:
            raise UserError(f"{folder}: of format {made_by}; this version reads format {FORMAT}")
        if manifest.pop("digest", None) != sha256(json.dumps(manifest).encode()):
            raise damaged
        _check_unchanged(folder / _SWEEP, held, manifest)
        moved = places(manifest, folder, elsewhere or {})
        if change := file_difference(dict(zip(moved.values(), manifest["files"].values(), strict=True)), elsewhere):
            raise UserError(f"{folder}: {change}")
        try:
            store = cls(folder, Sweep.of_results(folder / _SWEEP, manifest["sweep"], moved), manifest)
        except UserError as error:
            raise UserError(f"{error}; a row that was added where the sweep ran must be added here too") from None
        store.moved = any(told != place for told, place in moved.items())
        return store

    @classmethod
    def create(
        cls,
        folder: str | Path,
        description: Description,
        *,
        shared: bool = False,
        grow: bool = False,
        reuse: Sequence[str | Path] = (),
    ) -> "Store":
        """Open the folder of a sweep to write: a new one, or the same sweep's to resume.

        Args:
            folder: the results folder.
            description: of the sweep, as it is carried out here.
            shared: whether others may write to it too, who say so as well; each chunk is that of the first to save it.
            grow: whether it may hold a smaller grid, whose results are kept.
            reuse: other results folders. Where they have cells of the sweep that are not done yet, `copies` tells which
                chunks are to be taken from them, before others may write too: see `share`.

        Warns:
            Where the file system has no locks, so that nothing keeps two whole runs apart.

        Raises:
            UserError: if the folder holds another sweep or version, is not ours, is in use, cannot be written
                or the disk is too small for the plan.
        """
        folder = _nameable(Path(folder))
        _refuse_foreign(folder, description.sweep)
        wanted = Wanted(description, grow, [Store.open(other) for other in reuse])
        until = time.monotonic() + (_PATIENCE if grow or reuse else 0)
        try:
            _refuse_small_disk(folder, description.bytes)
            (folder / _CHUNKS).mkdir(parents=True, exist_ok=True)
            if not shared:
                return cls._alone(folder, wanted)
            while True:
                try:
                    return cls._shared(folder, wanted) or cls._alone(folder, wanted)
                except InUse:
                    if time.monotonic() > until:
                        raise
                time.sleep(1)  # another one, which is to share it, cuts the folder now
        except OSError as error:
            raise UserError(f"{folder}: cannot be written: {error.strerror}; choose another --out") from None

    @classmethod
    def join(cls, folder: str | Path, sweep: Sweep, excerpt: dict[str, Any]) -> Self:
        """Open a folder that another process has created and shares, to save some of its chunks.

        Args:
            folder: the results folder.
            sweep: that it holds.
            excerpt: of its manifest.

        Raises:
            UserError: if it is not here, or cannot be written.
        """
        folder = Path(folder)
        if not (folder / _MANIFEST).exists():
            told = "is not here; choose a folder that all machines see, or let the driver save (--commit driver)"
            raise UserError(f"{folder}: {told}")
        store = cls(folder, sweep, excerpt)
        try:
            store._lock = locked(folder, shared=True)
        except OSError as error:
            raise UserError(f"{folder}: cannot be written: {error.strerror}; choose another --out") from None
        return store

    @classmethod
    def _alone(cls, folder: Path, wanted: Wanted) -> "Store":
        """The folder, to which no other process may write until it is closed or shared."""
        lock = locked(folder, shared=False)
        try:
            if lock.keeps_out:
                _clear(folder)
            store = wanted.cut(folder, wanted.open(folder))
            store._lock = lock
            store._describe()
            store._drop_the_unlisted()
            return store
        except BaseException:
            lock.close()
            raise

    @classmethod
    def _shared(cls, folder: Path, wanted: Wanted) -> "Store | None":
        """The folder, to which others may write too that share it; None where one must cut it before."""
        lock = locked(folder, shared=True)
        try:
            begun = wanted.open(folder)
            is_cut = begun is not None and begun.growth is None  # by another one, maybe
            if not is_cut and (begun or wanted.others):
                lock.close()
                return None
            store = begun.store if begun else wanted.cut(folder, None)
            store._lock = lock
            if store._describe(first=not begun):
                return store
        except BaseException:
            lock.close()
            raise
        lock.close()
        return cls._shared(folder, wanted)  # another one has begun it meanwhile

    def _describe(self, *, first: bool = False) -> bool:
        """Write the sweep and the manifest where they are new; False if they are to be the first and are not."""
        described = with_found(self.manifest, self.folder, self.files)
        text = json.dumps(described | {"digest": sha256(json.dumps(described).encode())})
        sweep, manifest = self.folder / _SWEEP, self.folder / _MANIFEST
        begun = manifest.exists()
        if not begun:
            write(sweep, described["sweep"])
        if first:
            return write_first(manifest, text)
        if not begun or manifest.read_text(encoding="utf-8") != text:
            write(manifest, text)
        if _digest_of(sweep) != sha256(described["sweep"].encode()):
            write(sweep, described["sweep"])
        return True

    def _drop_the_unlisted(self) -> None:
        """Remove chunks that are no longer part of the sweep's cut."""
        listed = {self._path(number) for number in self._entry}
        for path in (self.folder / _CHUNKS).iterdir():
            if path not in listed and path.name.isdecimal():
                remove(path)

    def holder(self) -> Holder:
        """What it holds."""
        return Holder(self.sweep, self.manifest, self.entries, {entry.number for entry in self.committed})

    @property
    def committed(self) -> list[ChunkEntry]:
        """The chunks that are there; they may be damaged."""
        return [entry for entry in self.entries if self.has(entry.number)]

    def finish(self) -> None:
        """Keep when all was done, if all is.

        Raises:
            UserError: if the folder cannot be written.
        """
        if "finished" in self.manifest or len(self.committed) < len(self.entries):
            return
        self.manifest["finished"] = now()
        try:
            self._describe()
        except OSError as error:
            raise UserError(f"{self.folder}: cannot be written: {error.strerror}; run the same command again") from None

    def share(self) -> None:
        """Let other processes write to the folder that share it."""
        if self._lock:
            self._lock.share()

    def close(self) -> None:
        """Let other processes write to the folder."""
        if self._lock:
            self._lock.close()

    def note_shard(self, number: int, of: int) -> None:
        """Keep that a shard was begun, so that people can be told of it; nothing else depends on that.

        Raises:
            UserError: if the folder cannot be written.
        """
        path = self.folder / _SHARDS / f"{number}-of-{of}"
        try:
            path.parent.mkdir(exist_ok=True)
            write(path, f"{platform.node()} at {now()}")
        except OSError as error:
            raise UserError(f"{path}: cannot be written: {error.strerror}; choose another --out") from None

    def shards(self) -> dict[tuple[int, int], str]:
        """Shards that were begun, as (number, of), and in words where and when."""
        named = {path: re.fullmatch(r"(\d+)-of-(\d+)", path.name) for path in (self.folder / _SHARDS).glob("*")}
        return {
            (int(name[1]), int(name[2])): path.read_text(encoding="utf-8", errors="replace")
            for path, name in named.items()
            if name
        }

    def check_files(self) -> None:
        """Make sure that the files that the data are made of are still what they were.

        Raises:
            UserError: if one has changed or is gone.
        """
        if change := file_difference(self.files):
            raise UserError(f"{self.folder}: {change}")

    def fingerprint(self, number: int) -> str:
        """Of all that the arrays of a chunk depend on."""
        return self._entry[number].fingerprint

    def has(self, number: int) -> bool:
        """Whether a chunk was committed; it may be damaged.

        Raises:
            UserError: if the folder cannot be read.
        """
        path = self._path(number)
        try:
            path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror}") from None
        return True

    def commit(self, number: int, arrays: dict[str, np.ndarray]) -> str | None:
        """Save a chunk's arrays atomically; if another writer did so before, its own are kept.

        Returns:
            Where those differ from these, that they do, in words.

        Raises:
            UserError: if the disk is full or the folder cannot be written; the run can be resumed. And if a file that
                the data are made of has changed.
        """
        path, fingerprint = self._path(number), self.fingerprint(number)
        size = sum(values.nbytes for values in arrays.values())
        if self._save(path, size, lambda partial: chunkfiles.fill(partial, fingerprint, arrays)):
            return None
        theirs = self.load(number)
        differing = [name for name, values in arrays.items() if values.tobytes() != theirs[name].tobytes()]
        if not differing:
            return None
        return f"{path}: another writer saved other values of {', '.join(differing)}; its own are kept"

    def adopt(self, number: int, files: dict[str, bytes]) -> None:
        """Save a chunk whose files another process has made by `packed`, as `commit` does.

        Raises:
            UserError: as `commit` does.
        """

        def fill(partial: Path) -> None:
            for name, content in files.items():
                (partial / name).parent.mkdir(parents=True, exist_ok=True)
                (partial / name).write_bytes(content)

        self._save(self._path(number), sum(map(len, files.values())), fill)

    def _save(self, path: Path, size: int, fill: Callable[[Path], None]) -> bool:
        """Make a chunk's folder, whole or not at all; False if another writer has made it before."""
        self.check_files()
        partial = unique(path, PARTIAL)
        try:
            make_sure_of_room(path.parent, size)
            partial.mkdir()
            fill(partial)
            return moved(partial, path)
        except Exception as error:  # the storage library wraps what the system says in errors of its own
            reason = reason_of(error)
            remedy = REMEDIES.get(reason, "mend that")
            raise UserError(
                f"{path}: cannot be saved: {reason}; {remedy}, then run the same command to resume"
            ) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def verify(self, number: int) -> None:
        """Check that what was saved of a committed chunk is there as it was; what lies beside it does not matter.

        Raises:
            DamagedChunk: if anything is missing or differs.
            UserError: if the system keeps it from being read.
        """
        chunkfiles.verify(self._path(number), self.fingerprint(number))

    def load(self, number: int) -> dict[str, np.ndarray]:
        """Verify and read a committed chunk's arrays.

        Raises:
            DamagedChunk: if anything is missing or differs from what was saved.
            UserError: if it cannot be read for another reason.
        """
        return chunkfiles.load(self._path(number), self.fingerprint(number))

    def discard(self, number: int) -> None:
        """Remove a chunk.

        Raises:
            UserError: if the folder cannot be written.
        """
        path = self._path(number)
        aside = unique(path, PARTIAL)
        try:
            path.rename(aside)  # so that another writer meets it whole, or not at all
            remove(aside)
        except FileNotFoundError:
            return  # another one has removed it
        except OSError as error:
            raise UserError(f"{path}: cannot be removed: {error.strerror}; remove it, then run again") from None

    def _path(self, number: int) -> Path:
        return self.folder / _CHUNKS / f"{number:06d}"


def _held(file: Path) -> str | OSError:
    """Digest of a file, or what keeps it from being read."""
    try:
        return _digest_of(file)
    except OSError as error:
        return error


def _check_unchanged(file: Path, held: str | OSError, manifest: dict[str, Any]) -> None:
    """Refuse a folder if its sweep is not what it was, or was before it began to grow."""
    if held in (sha256(manifest["sweep"].encode()), manifest.get("before")):
        return
    if isinstance(held, OSError) and not isinstance(held, FileNotFoundError):
        raise UserError(f"{file}: cannot be read: {held.strerror}")
    change = "removed" if isinstance(held, OSError) else "changed"
    raise UserError(f"{file}: was {change} since the run; restore it, or move the folder away")


def _digest_of(file: Path) -> str:
    return sha256(file.read_bytes())


def _clear(folder: Path) -> None:
    """Remove what those who were killed have left."""
    for left in (*(folder / _CHUNKS).glob(f"*{PARTIAL}"), *folder.glob(f"*{TEMPORARY}")):
        remove(left)


def _refuse_foreign(folder: Path, sweep: Sweep) -> None:
    """Refuse a folder that holds other things than results."""
    try:
        held = {entry.name for entry in folder.iterdir()} if folder.exists() else set()
        if _MANIFEST in held:
            return
        foreign = {name for name in held - _OURS if not is_dropped(name) and not name.endswith(TEMPORARY)}
        if _SWEEP in held and (folder / _SWEEP).read_bytes() != written(sweep, folder).encode():
            foreign.add(_SWEEP)
    except OSError as error:
        raise UserError(f"{folder}: cannot hold results: {error.strerror}; choose another --out") from None
    if foreign:
        raise UserError(f"{folder}: holds files that are no results of ours; choose another --out")


def _nameable(folder: Path) -> Path:
    """The folder, refused where the storage library cannot use its path."""
    path = folder.absolute().as_posix()
    for sign in "[*?\\":  # it would take the path for a pattern and find nothing
        if sign in path:
            raise UserError(f"{folder}: a path with {sign} cannot hold results; choose another name")
    try:
        path.encode()
    except UnicodeEncodeError:
        encoding = sys.getfilesystemencoding()
        raise UserError(
            f"{folder}: a path that is not {encoding} cannot hold results; choose another name, or set PYTHONUTF8=1"
        ) from None
    return folder


def _refuse_small_disk(folder: Path, size: int) -> None:
    existing = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    free, held = shutil.disk_usage(existing).free, 0
    if (folder / _CHUNKS).exists():
        held = sum(f.stat().st_size for f in (folder / _CHUNKS).rglob("*") if f.is_file())
    if size - held > free:
        raise UserError(
            f"{folder}: the results need {size / 1e9:.3g} GB and {free / 1e9:.3g} GB are free; "
            "make room, choose another --out, or fewer cells"
        )
