"""The folder of a chunk: its arrays, and a seal by which they are known again. Imports orbax."""

import functools
import json
import logging
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from subspace_adv.errors import UserError
from subspace_adv.files import digest_of, names_in, reason_of, write

_ARRAYS, _SEAL = "arrays", "seal.json"


class DamagedChunk(Exception):
    """A chunk that is not as it was saved: something of it is missing or differs."""


@functools.cache
def _orbax() -> Any:
    """The library that saves arrays, which takes long to import; networks train meanwhile."""
    for noisy in ("absl", "orbax"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    from orbax.checkpoint import v1

    return v1


def packed(fingerprint: str, arrays: dict[str, np.ndarray]) -> dict[str, bytes]:
    """The files of a chunk by their paths within its folder, which another process saves by `Store.adopt`."""
    with tempfile.TemporaryDirectory(prefix="subspace-adv-") as made:
        folder = Path(made)
        fill(folder, fingerprint, arrays)
        return {name: (folder / name).read_bytes() for name in names_in(folder)}


def fill(folder: Path, fingerprint: str, arrays: dict[str, np.ndarray]) -> None:
    """Save arrays in a chunk's folder, and seal it."""
    _orbax().save(str(folder.absolute() / _ARRAYS), arrays)
    write(folder / _SEAL, json.dumps(_seal(folder / _ARRAYS, fingerprint, names_in(folder / _ARRAYS))))


def _seal(folder: Path, fingerprint: str, names: list[str]) -> dict[str, Any]:
    """What is kept beside a chunk to know it again: whose it is, and its files' names and contents."""
    return {"fingerprint": fingerprint, "files": names, "digest": digest_of(folder, names)}


def verify(path: Path, fingerprint: str) -> None:
    """Check that what was saved in a chunk's folder is there as it was; what lies beside it does not matter.

    Raises:
        DamagedChunk: if anything is missing or differs.
        UserError: if the system keeps it from being read.
    """
    try:
        seal = json.loads((path / _SEAL).read_text(encoding="utf-8"))
        found = _seal(path / _ARRAYS, fingerprint, seal["files"])
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise DamagedChunk(f"{path}: {os.path.relpath(error.filename, path)} is missing") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedChunk(f"{path}: its {_SEAL} is damaged") from error
    if seal != found:
        raise DamagedChunk(f"{path}: differs from what was saved")


def load(path: Path, fingerprint: str) -> dict[str, np.ndarray]:
    """Verify and read the arrays in a chunk's folder.

    Raises:
        DamagedChunk: if anything is missing or differs from what was saved.
        UserError: if it cannot be read for another reason.
    """
    verify(path, fingerprint)  # the storage library is noisy about what is damaged
    try:
        return _read_arrays(path / _ARRAYS)
    except Exception as error:
        raise UserError(f"{path}: cannot be read: {reason_of(error)}") from error


def _read_arrays(folder: Path) -> dict[str, np.ndarray]:
    """Arrays as the storage library saved them: of Zarr, in a TensorStore database.

    Its own reader would start JAX on the machine's accelerator, of which reading has no need.
    """
    import tensorstore

    (manifest,) = folder.resolve().glob("*/manifest.ocdbt")  # of a path with .. TensorStore reads nothing
    path = os.fsencode(manifest.parent.as_posix()).decode()  # whatever the system's encoding, TensorStore's is UTF-8
    database = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{path}/"}}
    keys = tensorstore.KvStore.open(database).result().list().result()
    names = [key.decode().removesuffix("/zarr.json") for key in keys if key.endswith(b"/zarr.json")]
    opening = {
        name: tensorstore.open({"driver": "zarr3", "kvstore": database | {"path": f"{name}/"}}) for name in names
    }
    return {name: opened.result().read().result() for name, opened in opening.items()}
