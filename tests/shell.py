"""Small sweeps, what they train, the command line as a process, and what a test of the kernel is marked with."""

import dataclasses
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from subspace_adv import Network, Networks, Sweep, engine, load_networks, open_results, plan
from subspace_adv.contracts import Architecture, named
from subspace_adv.datasets import load_data, load_span
from subspace_adv.geometry import REGIONS, in_ambient, region_basis
from subspace_adv.models import MODELS, TWO_LAYER, fused
from subspace_adv.planning import Chunk

needs_kernel = pytest.mark.skipif(fused.unavailable() is not None, reason=str(fused.unavailable()))

COMMAND = Path(sys.executable).with_name("subspace-adv")

BASE = """
[network]
width = 3
[training]
max_steps = 30
[measure]
regions = ["off"]
"""

# Every program shape costs seconds of compilation: all tests that can share these two widths.
TINY = f"""
name = "tiny"
{BASE}
[axes]
width = [3, 5]
seed = "0:12"
init_scale = [1.0, 0.5]
"""

MANY = f"""
name = "many"
{BASE}
[axes]
seed = "0:512"
init_scale = [1.0, 0.5]
"""
# The line with which a Python program prints its own peak memory, in KiB. Linux's `ru_maxrss` is inherited, so that it
# would count the test process as well: under a large one any limit would be missed, and any ratio would be 1.
PRINT_PEAK = 'print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM:")).split()[1])'

MANY_CHUNKS = 4 if fused.unavailable() is None else 16


def write(folder: Path, text: str, name: str = "sweep.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def in_its_stead(**changes: Any) -> Architecture:
    """A row of perceptrons whose two-layer networks differ from `TWO_LAYER`."""
    changed = dataclasses.replace(TWO_LAYER, **changes)
    return MODELS["mlp"]._replace(model=lambda design: changed)


def read(text: str, *overrides: str) -> Sweep:
    """The sweep of a text, as if from a file."""
    with tempfile.TemporaryDirectory() as folder:
        return Sweep.from_toml(write(Path(folder), text), overrides)


def content(folder: Path) -> dict[str, tuple]:
    """All that a results folder holds: dtype, shape and bytes of every array of the Dataset and the networks."""
    dataset = open_results(folder)
    arrays = {str(name): dataset[name].values for name in dataset.variables}
    for depth in dataset["depth"].values.tolist() if "depth" in dataset.dims else [None]:
        networks = load_networks(folder) if depth is None else load_networks(folder, depth=depth)
        params = networks.params if isinstance(networks, Networks) else networks
        arrays |= {f"{name} of depth {depth}": np.asarray(values) for name, values in named(params).items()}
    return {name: (values.dtype.str, values.shape, values.tobytes()) for name, values in arrays.items()}


def chunk_states(folder: Path) -> dict[str, tuple[int, int]]:
    """Identity and time of every committed chunk: both change if it is computed again."""
    chunks = [path for path in (folder / "chunks").iterdir() if not path.name.endswith(".partial")]
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in chunks}


def files(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def environment() -> dict[str, str]:
    """Of a process: compiled modules are kept, so that only the first start of the tests is slow."""
    kept = {"PYTHONPYCACHEPREFIX": str(Path(tempfile.gettempdir()) / f"subspace-adv-tests-{os.getuid()}")}
    path = os.pathsep.join([str(COMMAND.parent), os.environ.get("PATH", "")])
    without = {"PYTHONDONTWRITEBYTECODE", "PYTHONWARNINGS"}
    return {name: value for name, value in os.environ.items() if name not in without} | kept | {"PATH": path}


def start(*arguments: Any, cwd: Path) -> subprocess.Popen[str]:
    """Start a program; its output is collected."""
    return subprocess.Popen(
        list(map(str, arguments)),
        cwd=cwd,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def call(*arguments: Any, cwd: Path, timeout: float = 300) -> tuple[int, str, str]:
    """Run a program to its end; returns exit status, stdout and stderr."""
    with start(*arguments, cwd=cwd) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    return process.returncode, out, err


class Trained(NamedTuple):
    """The networks of a sweep, in ambient coordinates, and what they were trained on."""

    chunk: Chunk
    arrays: dict[str, np.ndarray]  # what training leaves of each
    networks: Network  # (cells, …), float64
    x: np.ndarray  # (n, d)
    y: np.ndarray
    bases: dict[str, np.ndarray]  # (d, r), by region


def trained(sweep: Sweep) -> Trained:
    """All networks of a sweep of one chunk and dataset."""
    [chunk] = plan(sweep).chunks
    [(_, arrays)] = engine.train(sweep, chunk.group, [chunk])
    networks = Network(*(np.float64(field) for field in engine.ambient_networks(sweep, chunk, arrays)))
    settings = sweep.dataset({})
    data, span = load_data(settings), load_span(settings, complete=True)
    with jax.enable_x64(True):
        subspace = in_ambient(data.subspace, span)
        bases = {region: np.asarray(region_basis(subspace, region)) for region in REGIONS}
    return Trained(chunk, arrays, networks, data.x.astype(np.float64) @ span.basis.T, data.y, bases)
