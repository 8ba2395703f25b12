"""What a results folder says of itself: its sweep, how that is cut into chunks, and with what it was made."""

import base64
import hashlib
import inspect
import json
import platform
import shlex
import subprocess
import sys
import zlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from subspace_adv.attacks import ATTACKS
from subspace_adv.contracts import named
from subspace_adv.devices import processor
from subspace_adv.dimensions import place
from subspace_adv.errors import UserError, brief
from subspace_adv.identity import Column, own_settings
from subspace_adv.identity import digest as settings_digest
from subspace_adv.measures import MEASURES
from subspace_adv.models import class_of, is_class_name
from subspace_adv.planning import Group, Plan
from subspace_adv.pointfile import absolute, digest, relative
from subspace_adv.settings import role, tables
from subspace_adv.sweep import Sweep, compact

FORMAT = 9
"""Of results folders; another one is refused."""
_ORIGIN = ("versions", "machine", "rows")
"""Parts of a manifest that tell with what the arrays were made."""


class Part(NamedTuple):
    """Cells that one program serves, and what makes their arrays what they are beside their settings."""

    made_by: dict[str, Any]
    cells: np.ndarray  # flat indices into the grid, ascending
    chunk_cells: int  # of each chunk but the last


class Description(NamedTuple):
    """How a sweep is carried out here: all that its results folder tells, and plain enough to be sent elsewhere."""

    sweep: Sweep
    origin: dict[str, dict[str, str]]  # the parts `_ORIGIN`
    device: dict[str, Any]  # that computes; results depend on no more of it than `origin` tells
    parts: tuple[Part, ...]
    bytes: int  # of all arrays

    @property
    def part_of(self) -> np.ndarray:
        """The part of each cell, (cells,) an index."""
        which = np.empty(self.sweep.cells, np.int32)
        for i, part in enumerate(self.parts):
            which[part.cells] = i
        return which


class ChunkEntry(NamedTuple):
    """A chunk as the manifest lists it."""

    number: int
    part: int  # of the manifest's
    cells: np.ndarray  # flat indices into the grid
    fingerprint: str  # of all that its arrays depend on


def describe(plan: Plan) -> Description:
    """A plan that is carried out here, as its results folder tells it."""
    devices = jax.local_devices()
    origin = {
        "versions": {name: version(name) for name in ("subspace-adv", "jax", "jaxlib")},
        "machine": {
            "device": devices[0].platform if devices[0].platform == "cpu" else devices[0].device_kind,
            "processor": platform.machine(),
        },
        "rows": {"attacks": ", ".join(ATTACKS), "measures": ", ".join(MEASURES)},
    }
    device = {"device_kind": devices[0].device_kind, "device_count": len(devices), "processor_name": processor()}
    parts = tuple(Part(_made_by(plan.sweep, group), group.cells, group.chunk_cells) for group in plan.groups)
    return Description(plan.sweep, origin, device, parts, plan.bytes)


def begin(description: Description, folder: Path, entries: Sequence[ChunkEntry]) -> dict[str, Any]:
    """The manifest of a folder that is begun here, or cut anew."""
    files = description.sweep.files()
    return {
        "program": "subspace_adv",
        "format": FORMAT,
        "cells": description.sweep.cells,
        "sweep": written(description.sweep, folder),
        **description.origin,
        "folder": absolute(folder),  # to which paths of files are relative
        "files": {relative(path, folder): content for path, content in files.items()},
        "begun": {**description.device, "commit": git_commit(), "command": command(), "started": now()},
        "parts": [part.made_by for part in description.parts],
        "chunks": [_listed(entry) for entry in entries],
    }


def excerpt(manifest: dict[str, Any], entries: Sequence[ChunkEntry]) -> dict[str, Any]:
    """What a process must know of a manifest that computes some of the chunks, and nothing of the others."""
    return {name: manifest[name] for name in (*_ORIGIN, "parts")} | {"chunks": [_listed(entry) for entry in entries]}


def _listed(entry: ChunkEntry) -> list[Any]:
    return [entry.number, entry.part, pack(entry.cells), entry.fingerprint]


def entries_of(manifest: dict[str, Any]) -> list[ChunkEntry]:
    """The chunks that a manifest lists."""
    return [ChunkEntry(number, part, unpack(cells), of) for number, part, cells, of in manifest["chunks"]]


def cut(description: Description, held: Sequence[ChunkEntry] = (), number: int = 0) -> list[ChunkEntry]:
    """The chunks of a sweep: those that are held as they are, and all other cells cut into new ones.

    Args:
        description: of the sweep.
        held: some chunks.
        number: of the first new one.
    """
    entries, free = list(held), np.ones(description.sweep.cells, np.bool_)
    for entry in held:
        free[entry.cells] = False
    for i, part in enumerate(description.parts):
        left = part.cells[free[part.cells]]
        for start in range(0, len(left), part.chunk_cells):
            cells = left[start : start + part.chunk_cells]
            settings = own_settings(description.sweep, cells, description.sweep.files())
            entries.append(ChunkEntry(number, i, cells, fingerprint(description, i, settings)))
            number += 1
    return entries


def fingerprint(description: Description, part: int, settings: Mapping[str, Column]) -> str:
    """Of all that the arrays of a chunk depend on, whatever the grid that its cells, with their settings, are in."""
    decisive = ["subspace_adv", FORMAT, description.origin, description.parts[part].made_by, settings_digest(settings)]
    return sha256(json.dumps(decisive, sort_keys=True).encode())[:32]


def written(sweep: Sweep, folder: Path) -> str:
    """A sweep as its results folder holds it: paths of files are relative to the folder, with which they may move."""
    return sweep.to_toml(lambda path: relative(path, folder))


def made_with(manifest: dict[str, Any]) -> dict[str, str]:
    """Versions, machine and programs that a folder's arrays were made with, by name."""
    by = {name: " and ".join(sorted({part[name] for part in manifest["parts"]})) for name in ("trainer", "measurer")}
    return manifest["versions"] | manifest["machine"] | by


def _made_by(sweep: Sweep, group: Group) -> dict[str, Any]:
    program = group.program
    [architecture] = set(sweep.column("architecture", group.cells[:1]).tolist())
    told = {
        "trainer": _trainer(group),
        "measurer": _measurer(group),
        "parameters": ", ".join(named(program.parameters)),
        "reduced": program.reduced,
        "shared data": program.shared_data,
    }
    if not is_class_name(architecture):
        return told
    own = f"{architecture} of a file with SHA-256 {_source_digest(architecture)}"
    certified = program.recipe.model.certificate is not None
    return told | {"architecture": architecture, "class": own, "certified": certified}


def _trainer(group: Group) -> str:
    """What rounds the steps of training: the kernel does by its vector instructions."""
    recipe = group.program.recipe
    return recipe.model.kernel.label() if recipe.model.kernel and recipe.trainer == "fused" else recipe.trainer


def _measurer(group: Group) -> str:
    """What rounds distances, likewise."""
    kernel = group.program.recipe.model.kernel
    return kernel.label() if kernel and group.measurer == "kernel" else group.measurer


def certified_classes(manifest: dict[str, Any]) -> set[str]:
    """Names of the user's own classes, in a folder of this manifest, of which all networks are certified."""
    own = [part for part in manifest["parts"] if "class" in part]
    return {part["architecture"] for part in own} - {part["architecture"] for part in own if not part["certified"]}


def _source_digest(name: str) -> str:
    """Of the file that a class is written in: other code may make other networks."""
    try:
        return sha256(Path(inspect.getfile(class_of(name))).read_bytes())
    except (OSError, TypeError) as error:
        raise UserError(f"architecture {name!r}: its source cannot be read: {error}") from None


def git_commit() -> str | None:
    """The user's commit, where the working directory is in a repository; "-dirty" follows if files have changed."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        described = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True, timeout=20
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip()


def sweep_difference(theirs: Sweep, ours: Sweep) -> str | None:
    """In what a folder's sweep is not ours, in words; what a sweep, or a file of the same content, is called is not."""
    same_files = list(theirs.files().values()) == list(ours.files().values())
    there, here = (_content(sweep, with_files=not same_files) for sweep in (theirs, ours))
    for table in {**there, **here}:
        for leaf in {**there.get(table, {}), **here.get(table, {})}:
            was, now = (content.get(table, {}).get(leaf) for content in (there, here))
            if was != now:
                return f"holds another sweep: {table}.{leaf} {_told(was, now)}"
    if list(theirs.dimensions) != list(ours.dimensions):
        orders = [", ".join(sweep.dimensions) for sweep in (theirs, ours)]
        return f"holds the axes in another order, {orders[0]} and not {orders[1]}"
    return None


def _content(sweep: Sweep, *, with_files: bool) -> dict[str, dict[str, Any]]:
    content = {table: getattr(sweep, table).model_dump() for table in tables()}
    for leaf, values in sweep.axes.items():
        content.setdefault(place(sweep.dimensions, leaf), {})[leaf] = values
    return {
        table: {leaf: value for leaf, value in fields.items() if with_files or not role(leaf).is_file}
        for table, fields in content.items()
    }


def places(manifest: dict[str, Any], folder: Path, elsewhere: dict[str, str]) -> dict[str, str]:
    """Where the files that a folder's data are made of are now, by the paths that its sweep tells.

    They are where the sweep tells, or where they were when the folder was made, or where a later run found them, or at
    other places where there are files of some digests.
    """
    found, contents = {}, [*manifest["files"].values()]
    for path, content in manifest["files"].items():
        told, was = absolute(path, folder.absolute()), absolute(path, manifest.get("folder", ""))
        alone = contents.count(content) == 1  # a path for one of two equal files would be taken for both
        given = [elsewhere[content]] if content in elsewhere and alone else []
        later = [absolute(place, folder.absolute()) for place in manifest.get("found", {}).get(content, [])]
        known = (*given, told, was, *later)
        found[told] = next((place for place in known if not file_difference({place: content})), told)
    return found


def with_found(manifest: dict[str, Any], folder: Path, files: dict[str, str]) -> dict[str, Any]:
    """A folder's manifest that tells also where files with digests are, those that are nowhere it told before."""
    known = zip(places(manifest, folder, {}).values(), manifest["files"].values(), strict=True)
    lost = {content for place, content in known if file_difference({place: content})}
    # Either may be where the file still is once the folder has moved, alone or with it.
    found = {content: [path, relative(path, folder)] for path, content in files.items() if content in lost}
    return manifest | {"found": manifest.get("found", {}) | found} if found else manifest


def file_difference(files: dict[str, str], given: dict[str, str] | None = None) -> str | None:
    """Which of some files with digests is not as it was, in words; or which other one is given in its stead.

    Args:
        files: digests by path.
        given: paths by digest, of files that a user named.
    """
    others = [path for content, path in (given or {}).items() if content not in files.values() and path not in files]
    for path, was in files.items():
        try:
            if digest(path) == was:
                continue
            told = f"{path} has changed since the results were made; restore it, or run into another --out"
        except UserError as error:
            told = f"{error}; put it back, or run the sweep again with path=… into the same --out"
        if others:
            told = f"the file given, {others[0]}, has other content; give the right one, or choose another --out"
        return f"{told}; the results were made with a file of SHA-256 {was}"
    return None


def origin_difference(manifest: dict[str, Any], description: Description) -> str | None:
    """What of versions and machine keeps a folder's chunks from being computed here, in words."""
    for name in _ORIGIN:
        if told := _differs(manifest[name], description.origin[name]):
            return told
    return None


def program_difference(manifest: dict[str, Any], description: Description) -> str | None:
    """What of the programs keeps a folder's chunks from being computed here, in words; of the same sweep."""
    part_of = description.part_of
    for there, here in {entry.part: part_of[entry.cells[0]] for entry in entries_of(manifest)}.items():
        if told := _differs(manifest["parts"][there], description.parts[here].made_by):
            return told
    return None


def _differs(was: dict[str, Any], now: dict[str, Any]) -> str | None:
    for name in now | was:
        if was.get(name) != now.get(name):
            return f"was made with {name} {was.get(name)}, and this is {now.get(name)}"
    return None


def _told(was: Any, now: Any) -> str:
    """How a setting differs, in words; of long lists, where they first do."""
    shown = ["not set" if value is None else _short(value) for value in (was, now)]
    if isinstance(was, tuple) and isinstance(now, tuple) and any(text.endswith("…") for text in shown):
        pairs = enumerate(zip(was, now, strict=False), 1)
        place = next((place for place, (theirs, ours) in pairs if theirs != ours), None)
        if place is None:
            return f"has {len(was):,} values there and {len(now):,} here"
        return f"has {was[place - 1]!r} there and {now[place - 1]!r} here as value number {place:,}"
    return f"is {shown[0]} there and {shown[1]} here"


def _short(value: Any) -> str:
    """A value as `brief` shows it, or a range as the sweep file has it."""
    written = compact(value) if isinstance(value, tuple) else value
    return written if isinstance(value, tuple) and isinstance(written, str) else brief(written)


def sha256(content: bytes) -> str:
    """Digest of some bytes, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def now() -> str:
    """The time, in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def command() -> str:
    """What started this process."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def pack(cells: np.ndarray) -> list[int] | str:
    """Indices as JSON: start, stop and step where they are evenly spaced, else their compressed differences."""
    step = int(cells[1] - cells[0]) if len(cells) > 1 else 1
    if step > 0 and np.array_equal(cells, cells[0] + step * np.arange(len(cells))):
        return [int(cells[0]), int(cells[-1]) + 1, step]
    return base64.b64encode(zlib.compress(np.diff(cells, prepend=0).astype("<i8").tobytes(), 9)).decode()


def unpack(packed: list[int] | str) -> np.ndarray:
    """The indices that `pack` was given."""
    if isinstance(packed, str):
        return np.cumsum(np.frombuffer(zlib.decompress(base64.b64decode(packed)), "<i8")).astype(np.int64)
    return np.arange(*packed)
