"""What a results folder says of itself: its sweep, how that is cut into chunks, and with what it was made."""

import hashlib
import inspect
import json
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from subspace_adv.attacks import ATTACKS
from subspace_adv.classes import own_classes
from subspace_adv.contracts import named
from subspace_adv.errors import UserError, brief
from subspace_adv.measures import MEASURES
from subspace_adv.models import architecture_of, class_of
from subspace_adv.planning import Group, Plan
from subspace_adv.pointfile import absolute, digest, relative
from subspace_adv.settings import role, tables
from subspace_adv.sweep import Sweep, compact

FORMAT = 8
"""Of results folders; another one is refused."""
_ORIGIN = ("versions", "machine", "rows")
"""Parts of a manifest that tell with what the arrays were made."""


def describe(plan: Plan, folder: Path) -> dict[str, Any]:
    """The manifest of a plan that is carried out here, into a folder; what git says of the working directory beside."""
    files = plan.sweep.files()
    return {
        "program": "subspace_adv",
        "format": FORMAT,
        "cells": plan.cells,
        "sweep": sha256(plan.sweep.to_toml(files.__getitem__).encode()),  # wherever its files are
        "written": sha256(written(plan.sweep, folder).encode()),
        **_made_with(plan),
        "folder": absolute(folder),  # to which paths of files are relative
        "files": {relative(path, folder): content for path, content in files.items()},
        "chunks": _chunks(plan),
    }


def written(sweep: Sweep, folder: Path) -> str:
    """A sweep as its results folder holds it: paths of files are relative to the folder, with which they may move."""
    return sweep.to_toml(lambda path: relative(path, folder))


def _chunks(plan: Plan) -> list[dict[str, int] | list[int]]:
    return [pack(chunk.cells) for chunk in plan.chunks]


def _made_with(plan: Plan) -> dict[str, dict[str, str]]:
    """The parts `_ORIGIN`."""
    return {
        "versions": {name: version(name) for name in ("subspace-adv", "jax", "jaxlib")},
        "machine": {
            "device": jax.default_backend(),
            "processor": platform.machine(),
            "trainer": " and ".join(sorted({_trainer(group) for group in plan.groups})),
            "measurer": " and ".join(sorted({_measurer(group) for group in plan.groups})),
        },
        "rows": {
            "attacks": ", ".join(ATTACKS),
            "measures": ", ".join(MEASURES),
            "parameters": "; ".join(sorted({_parameters(group) for group in plan.groups})),
            "classes": ", ".join(_classes(plan.sweep)),
            "certified classes": ", ".join(_certified(plan.sweep)),
        },
    }


def _trainer(group: Group) -> str:
    """What rounds the steps of training: the kernel does by its vector instructions."""
    recipe = group.program.recipe
    return recipe.model.kernel.label() if recipe.model.kernel and recipe.trainer == "fused" else recipe.trainer


def _measurer(group: Group) -> str:
    """What rounds distances, likewise."""
    kernel = group.program.recipe.model.kernel
    return kernel.label() if kernel and group.measurer == "kernel" else group.measurer


def _parameters(group: Group) -> str:
    """Names of the parameters that a group's networks have."""
    return ", ".join(named(group.program.parameters))


def _classes(sweep: Sweep) -> list[str]:
    """The user's own classes of networks, with digests of the files they are written in."""
    return [f"{name} of a file with SHA-256 {_source_digest(name)}" for name in own_classes(sweep)]


def _certified(sweep: Sweep) -> list[str]:
    """Those of the user's own classes of which all networks of the sweep are certified."""
    models = [
        (design.architecture, architecture_of(design.architecture).model(design)) for _, design in sweep.designs()
    ]
    none = {name for name, model in models if model.certificate is None}
    return [name for name in own_classes(sweep) if name not in none]


def certified_classes(manifest: dict[str, Any]) -> set[str]:
    """Names of the user's own classes, in a folder of this manifest, whose lower bounds are certified."""
    return set(manifest["rows"]["certified classes"].split(", "))


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


def fingerprint(manifest: dict[str, Any], number: int, cells: np.ndarray) -> str:
    """Of all that a chunk's arrays depend on."""
    decisive = {name: manifest[name] for name in ("program", "format", "cells", "sweep", "files", *_ORIGIN)}
    decisive["files"] = dict.fromkeys(decisive["files"].values())  # wherever they are
    return sha256(json.dumps([decisive, number]).encode() + cells.astype("<i8").tobytes())


def sweep_difference(theirs: Sweep, ours: Sweep) -> str | None:
    """In what a folder's sweep is not ours, in words; what a sweep, or a file of the same content, is called is not."""
    same_files = list(theirs.files().values()) == list(ours.files().values())
    there, here = (_content(sweep, with_files=not same_files) for sweep in (theirs, ours))
    for table in there:
        for leaf in {**there[table], **here[table]}:
            was, now = there[table].get(leaf), here[table].get(leaf)
            if was != now:
                return f"holds another sweep: {table}.{leaf} {_told(was, now)}"
    if list(theirs.axes) != list(ours.axes):
        orders = [", ".join(sweep.axes) for sweep in (theirs, ours)]
        return f"holds the axes in another order, {orders[0]} and not {orders[1]}"
    return None


def _content(sweep: Sweep, *, with_files: bool) -> dict[str, dict[str, Any]]:
    content = {table: getattr(sweep, table).model_dump() for table in tables()} | {"axes": sweep.axes}
    return {
        table: {leaf: value for leaf, value in fields.items() if with_files or not role(leaf).is_file}
        for table, fields in content.items()
    }


def places(manifest: dict[str, Any], folder: Path, elsewhere: dict[str, str]) -> dict[str, str]:
    """Where the files that a folder's data are made of are now, by the paths that its sweep tells.

    They are where the sweep tells, or where they were when the folder was made, or where a later run found them, or at
    other places where there are files of some digests.
    """
    found = {}
    for path, content in manifest["files"].items():
        told, was = absolute(path, folder.absolute()), absolute(path, manifest.get("folder", ""))
        given = [elsewhere[content]] if content in elsewhere else []
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


def origin_difference(manifest: dict[str, Any], plan: Plan) -> str | None:
    """What of version, machine and chunks keeps a plan of a folder's sweep from being resumed here, in words."""
    here = _made_with(plan)
    for part in _ORIGIN:
        for name, now in here[part].items():
            was = manifest[part].get(name)
            if was != now:
                return f"was made with {name} {was}, and this is {now}"
    return None if _chunks(plan) == manifest["chunks"] else "is cut into chunks in another way"


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


def pack(cells: np.ndarray) -> dict[str, int] | list[int]:
    """Indices as JSON: start, stop and step where they are evenly spaced."""
    step = int(cells[1] - cells[0]) if len(cells) > 1 else 1
    if np.array_equal(cells, cells[0] + step * np.arange(len(cells))):
        return {"start": int(cells[0]), "stop": int(cells[-1]) + 1, "step": step}
    return cells.tolist()


def unpack(packed: dict[str, int] | list[int]) -> np.ndarray:
    """The indices that `pack` was given."""
    if isinstance(packed, dict):
        return np.arange(packed["start"], packed["stop"], packed["step"])
    return np.array(packed, np.int64)
