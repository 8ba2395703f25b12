"""A network in a file: arrays by name in NumPy's `.npz` or in `.safetensors`."""

import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from subspace_adv.errors import UserError
from subspace_adv.network import Network, Networks, of_layers
from subspace_adv.pointfile import entry, near_files
from subspace_adv.state_dict import layers_of

_BESIDE = ("mean", "std", "x", "outputs")  # entries that are no layer's


def read_network(path: str | Path) -> Network | Networks:
    """A network trained elsewhere, as `Network.from_state_dict` makes it of arrays by name.

    Args:
        path: `.npz`, as `numpy.savez(path, **model.state_dict())` saves a PyTorch network, or `.safetensors`. Entries
            `mean` and `std`, and `x` with `outputs`, are the arguments of these names.

    Raises:
        UserError: if it cannot be read, or holds no such network, telling what is wrong with it.
    """
    if not isinstance(path, str | Path):
        raise UserError(f"read_network: {path!r}: must be the path of a file")
    path = Path(path)
    if path.suffix.lower() in (".pt", ".pth", ".ckpt", ".bin", ".pkl"):
        told = "reading it could run any code; save it by numpy.savez('network.npz', **model.state_dict())"
        raise UserError(f"{path}: is a pickle, and {told}, or as .safetensors")
    if path.suffix.lower() not in _READERS:
        told = f"the ending {path.suffix!r}" if path.suffix else "no ending"
        raise UserError(f"{path}: has {told}; networks are read from files that end in {' or '.join(_READERS)}")
    try:
        arrays = _READERS[path.suffix.lower()](path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file{near_files(path, _READERS)}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    beside = {name: arrays.pop(name) for name in _BESIDE if name in arrays}
    return of_layers(layers_of(arrays, **beside, where=str(path)))


def _from_npz(path: Path) -> dict[str, Any]:
    try:
        held = np.load(path, allow_pickle=False)
        if not isinstance(held, np.lib.npyio.NpzFile):
            raise UserError("holds one array; must hold arrays by name, as numpy.savez(path, **arrays) saves")
        with held:
            return {name: entry(held, name, "numbers") for name in held}
    except (ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        if isinstance(error, UserError):
            raise UserError(f"{path}: {error}") from None
        raise UserError(f"{path}: damaged, or no .npz file of numbers: {' '.join(str(error).split())}") from None


def _from_safetensors(path: Path) -> dict[str, Any]:
    try:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file
    except ImportError:
        told = "needs safetensors to be read; install it by pip install 'subspace-adv[networks]'"
        raise UserError(f"{path}: {told}") from None
    try:
        return load_file(path)
    except (SafetensorError, KeyError, TypeError) as error:  # the last two of types that NumPy lacks
        raise UserError(f"{path}: damaged, or no .safetensors file of NumPy's types: {error}") from None


_READERS: dict[str, Callable[[Path], dict[str, Any]]] = {".npz": _from_npz, ".safetensors": _from_safetensors}
