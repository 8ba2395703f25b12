"""How a sweep will be carried out: which cells share a compiled program, and which run and are saved together."""

import functools
import itertools
from typing import NamedTuple

import numpy as np

from subspace_adv.data import FIXED_SHAPES, Data, chessboard, line, random_subspace
from subspace_adv.measures import Recording, variables
from subspace_adv.network import Init, padded_width
from subspace_adv.sweep import DataSettings, Sweep
from subspace_adv.training import Recipe, trained_fields

_DATA_LEAVES = tuple(DataSettings.model_fields)
_PROGRAM_LEAVES = (*_DATA_LEAVES, "init", "trainable", "width", "loss", "optimizer", "attack_steps", "restarts")

# A step's activations (points × neurons × networks) should stay in a core's L2 cache.
_CACHE_BYTES = 2**18
# A chunk is lost when the machine dies: about half a minute of one core, if all its networks run to max_steps.
_CHUNK_FLOPS = 4e11
_MAX_CHUNK_CELLS = 1024
_MIN_CHUNKS = 16  # of a large enough group, so that cores share it evenly
# Useful speed of one core on small networks, for estimates of time only.
_FLOPS_PER_SECOND = 1e10


class Program(NamedTuple):
    """Everything that shapes a group's compiled code; static and hashable."""

    law: Init
    padded_width: int
    recipe: Recipe
    recording: Recording
    samples: int
    ambient_dim: int
    subspace_dim: int
    shared_data: bool  # one dataset for all cells of the group, or one of equal shape for each


class Chunk(NamedTuple):
    """Cells of one group that run, are saved and are resumed together."""

    number: int
    group: "Group"
    cells: np.ndarray  # flat indices into the grid


class Group(NamedTuple):
    """Cells that share compiled programs."""

    program: Program
    cells: np.ndarray  # flat indices into the grid, ascending
    max_steps: int
    lanes: int  # networks that train side by side
    tail_lanes: int  # the same at the end of a chunk, when few are left

    @property
    def step_flops(self) -> int:
        """Floating-point operations of one gradient step of one network."""
        n, m, d = self.program.samples, self.program.padded_width, self.program.ambient_dim
        return n * m * (4 * (d + 1) + 5) + m * (4 * (d + 1) + 6)

    @property
    def chunk_cells(self) -> int:
        """Cells in each chunk of the group but the last."""
        affordable = int(_CHUNK_FLOPS / (self.step_flops * max(self.max_steps, 1)))
        share = -(-len(self.cells) // _MIN_CHUNKS)
        return max(min(affordable, _MAX_CHUNK_CELLS, share), 4 * self.lanes)

    @property
    def programs(self) -> int:
        """Compiled programs: fill, advance, advance few, measure."""
        return 3 if self.lanes == self.tail_lanes else 4

    @property
    def cell_bytes(self) -> int:
        """Bytes a cell takes in the results folder, uncompressed."""
        p = self.program
        network = 4 * (p.padded_width * (p.ambient_dim + 2) + 1)
        recorded = variables(p.recording.regions, p.recording.norms).values()
        return network + 5 + sum(4 * v.values(p.samples) for v in recorded)


class Plan(NamedTuple):
    """A sweep cut into groups and chunks."""

    sweep: Sweep
    groups: tuple[Group, ...]
    chunks: tuple[Chunk, ...]

    @property
    def cells(self) -> int:
        """Number of networks."""
        return self.sweep.cells

    @property
    def programs(self) -> int:
        """Number of compiled programs, each traced once."""
        return sum(group.programs for group in self.groups)

    @property
    def bytes(self) -> int:
        """Size of the results folder, uncompressed."""
        return sum(group.cell_bytes * len(group.cells) for group in self.groups)

    @property
    def max_net_steps(self) -> int:
        """Gradient steps of all networks if none stops early."""
        return int(self.sweep.column("max_steps", np.arange(self.cells)).sum(dtype=np.int64))

    def max_seconds(self, workers: int) -> float:
        """Rough training time on `workers` cores if no network stops before max_steps."""
        flops = sum(
            int(self.sweep.column("max_steps", group.cells).sum(dtype=np.int64)) * group.step_flops
            for group in self.groups
        )
        return flops / (_FLOPS_PER_SECOND * workers)


def plan(sweep: Sweep) -> Plan:
    """Cut a sweep into groups that share compiled programs and chunks that are saved together."""
    varying = [leaf for leaf in sweep.axes if leaf in _PROGRAM_LEAVES]
    grid = np.arange(sweep.cells).reshape(sweep.shape)
    members: dict[tuple, list[np.ndarray]] = {}
    datasets: dict[tuple, set[DataSettings]] = {}
    for place in itertools.product(*(range(len(sweep.axes[leaf])) for leaf in varying)):
        at = dict(zip(varying, place, strict=True))
        cells = grid[tuple(at.get(leaf, slice(None)) for leaf in sweep.axes)].ravel()
        key, settings = _program_key(sweep, {leaf: sweep.axes[leaf][i] for leaf, i in at.items()})
        members.setdefault(key, []).append(cells)
        datasets.setdefault(key, set()).add(settings)
    groups = []
    for key, parts in members.items():
        cells = np.sort(np.concatenate(parts))
        program = Program(*key, shared_data=len(datasets[key]) == 1)
        lanes, tail_lanes = _lanes(program, len(cells))
        max_steps = int(sweep.column("max_steps", cells).max())
        groups.append(Group(program, cells, max_steps, lanes, tail_lanes))
    chunks = []
    for group in groups:
        for start in range(0, len(group.cells), group.chunk_cells):
            chunks.append(Chunk(len(chunks), group, group.cells[start : start + group.chunk_cells]))
    return Plan(sweep, tuple(groups), tuple(chunks))


def data_leaves(sweep: Sweep) -> tuple[str, ...]:
    """The axes that the data depend on."""
    return tuple(axis for axis in sweep.axes if axis in _DATA_LEAVES)


def data_settings(sweep: Sweep, values: dict) -> DataSettings:
    """The `[data]` table of cells with the given axis values, with what their kind does not read at default."""
    merged = {leaf: values.get(leaf, getattr(sweep.data, leaf)) for leaf in _DATA_LEAVES}
    return DataSettings(**merged) if merged["kind"] == "subspace" else DataSettings(kind=merged["kind"])


@functools.lru_cache(maxsize=4096)
def load_data(settings: DataSettings) -> Data:
    """The dataset that a `[data]` table describes."""
    if settings.kind == "line":
        return line()
    if settings.kind == "chessboard":
        return chessboard()
    return random_subspace(**settings.model_dump(exclude={"kind"}))


def cell_data(sweep: Sweep, cells: np.ndarray) -> tuple[list[Data], np.ndarray]:
    """The distinct datasets of some cells, and which of them each cell has."""
    names = data_leaves(sweep)
    if not names:
        return [load_data(data_settings(sweep, {}))], np.zeros(len(cells), np.int64)
    columns = [sweep.column(leaf, cells) for leaf in names]
    number: dict[DataSettings, int] = {}
    which = np.empty(len(cells), np.int64)
    for i, values in enumerate(zip(*(column.tolist() for column in columns), strict=True)):
        settings = data_settings(sweep, dict(zip(names, values, strict=True)))
        which[i] = number.setdefault(settings, len(number))
    return [load_data(settings) for settings in number], which


def grid_data(sweep: Sweep) -> tuple[list[Data], np.ndarray]:
    """The distinct datasets of a sweep, and which of them each cell has.

    Returns:
        The datasets, and their indices with one dimension for each axis of the sweep, of length 1 where the data do
        not depend on it.
    """
    names = data_leaves(sweep)
    first = np.zeros((), np.int64)
    for axis, size in zip(sweep.axes, sweep.shape, strict=True):
        first = first[..., None] * size + (np.arange(size) if axis in names else np.zeros(1, np.int64))
    datasets, which = cell_data(sweep, first.ravel())
    return datasets, which.reshape(first.shape)


def _program_key(sweep: Sweep, values: dict) -> tuple[tuple, DataSettings]:
    def value(leaf: str) -> object:
        return values[leaf] if leaf in values else sweep.values(leaf)[0]

    settings = data_settings(sweep, values)
    chosen_shape = (settings.samples, settings.ambient_dim, settings.subspace_dim)
    shapes = FIXED_SHAPES.get(settings.kind, chosen_shape)
    law = value("init")
    trainable = value("trainable") or ("hidden" if law == "theory" else "all")
    recipe = Recipe(value("loss"), value("optimizer"), trained_fields(law, trainable))  # pyright: ignore
    effort = (value("attack_steps"), value("restarts"))
    recording = Recording(sweep.measure.regions, sweep.measure.norms, *effort, recipe.loss)  # pyright: ignore
    return (law, padded_width(value("width")), recipe, recording, *shapes), settings  # pyright: ignore


def _lanes(program: Program, cells: int) -> tuple[int, int]:
    activations = 4 * program.samples * program.padded_width
    lanes = 4
    while lanes < 64 and 2 * lanes * activations <= _CACHE_BYTES:
        lanes *= 2
    tail = max(lanes // 4, 2)
    return (tail, tail) if cells <= tail else (lanes, tail)
