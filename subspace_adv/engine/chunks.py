"""Trains and measures the cells of chunks, many networks side by side, each to its own stop."""

import functools
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np

from subspace_adv import theory, training
from subspace_adv.contracts import Model, named, renamed
from subspace_adv.datasets import cell_data, load_data
from subspace_adv.engine.inputs import arguments, data_of, points_of, spans_of
from subspace_adv.engine.networks import Lane, Spans, hyper_of
from subspace_adv.engine.pauses import Pauses
from subspace_adv.engine.pinned import pinned
from subspace_adv.engine.programs import compiled
from subspace_adv.measures import Measure, Rounding, Variable
from subspace_adv.optimizers import OPTIMIZERS
from subspace_adv.parametrizations import PARAMETRIZATIONS
from subspace_adv.planning import Chunk, Group
from subspace_adv.program import Program
from subspace_adv.settings import entries
from subspace_adv.snapshots import NEVER, Snapshots, during
from subspace_adv.sweep import Sweep
from subspace_adv.training import DIVERGED, PENDING, TrainState

Progress = Callable[[int, int], None]
"""Called with (networks done, gradient steps done) since the last call."""


def _no_progress(networks: int, net_steps: int) -> None:
    """Tell nobody."""


class Cancelled(Exception):
    """The chunk was given up because the caller asked to stop."""


def train_and_measure(
    sweep: Sweep, chunk: Chunk, on_progress: Progress = _no_progress, stop: threading.Event | None = None
) -> dict[str, np.ndarray]:
    """Train all cells of a chunk, each to its own stop, and measure them.

    What a cell yields does not depend on its neighbours or its place in the chunk.

    Args:
        sweep: the sweep.
        chunk: one of its plan's chunks.
        on_progress: told of networks and steps done.
        stop: set to give the chunk up.

    Returns:
        Host arrays with a leading axis over the chunk's cells: those of `train` and of `measure`.

    Raises:
        Cancelled: soon after `stop` is set.
    """
    [(_, trained)] = train(sweep, chunk.group, [chunk], on_progress, stop)
    return saved(chunk, trained) | measure(sweep, chunk, trained, stop)


def _cell_settings(sweep: Sweep, cells: np.ndarray) -> Lane:
    """The settings of cells that are entries of arrays."""
    return {leaf: np.ascontiguousarray(sweep.column(leaf, cells), entry) for leaf, entry in entries().items()}


def _take(tree: Any, index: np.ndarray | slice) -> Any:
    return jax.tree.map(lambda a: np.asarray(a)[index], tree)


class _Job:
    """A chunk under training."""

    @pinned(x64=False)
    def __init__(self, sweep: Sweep, chunk: Chunk, empty: TrainState) -> None:
        total = len(chunk.cells)
        self.chunk, self.cells = chunk, _cell_settings(sweep, chunk.cells)
        self.datasets, self.which = cell_data(sweep, chunk.cells)
        shapes = jax.eval_shape(functools.partial(_outcome, model=chunk.group.program.recipe.model), empty)
        self.trained = {name: np.zeros((total, *leaf.shape[1:]), leaf.dtype) for name, leaf in shapes.items()}
        self.begun, self.left = 0, total
        if count := chunk.group.snapshots.number:
            names = [name for name in self.trained if name != "status"]
            of_one = {name: self.trained[name] for name in names}
            self.trained |= {
                during(name): np.zeros((total, count, *a.shape[1:]), a.dtype) for name, a in of_one.items()
            }
            self.trained[during("steps")][:] = NEVER

    def take(self, outcome: dict[str, np.ndarray], lanes: np.ndarray, rows: np.ndarray) -> None:
        """Networks of lanes, of some rows, have stopped."""
        for name, values in outcome.items():
            self.trained[name][rows] = values[lanes]
        self.left -= len(lanes)

    def take_snapshots(
        self, outcome: dict[str, np.ndarray], lanes: np.ndarray, rows: np.ndarray, snapshots: np.ndarray
    ) -> None:
        """Networks of lanes, of some rows, are where they are to be measured; not those that have diverged."""
        well = outcome["status"][lanes] != DIVERGED
        lanes, place = lanes[well], (rows[well], snapshots[well])
        for name, values in outcome.items():
            if name != "status":
                self.trained[during(name)][place] = values[lanes]


def _unbegun(jobs: Iterable[_Job]) -> Iterator[_Job]:
    """Each job again and again, until all its cells are begun."""
    for job in jobs:
        while job.begun < len(job.chunk.cells):
            yield job


def _outcome(state: TrainState, model: Model) -> dict[str, Any]:
    """What is kept of networks once they have stopped."""
    return named(training.finish(state, model)) | {"status": state.status, "steps": state.step}


class _Inputs(NamedTuple):
    """What networks are drawn and trained for; a leading axis of lanes where each has its own data."""

    x: np.ndarray
    y: np.ndarray
    spans: Spans


class _Lanes:
    """Networks that train side by side, each for a cell of some chunk."""

    def __init__(self, program: Program, count: int, snapshots: Snapshots) -> None:
        self.empty, settings, *_ = arguments("fill", program, count)
        state, self.settings = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), (self.empty, settings))
        self.settings["batch_size"][:] = 1  # by which idle lanes divide
        self.program, self.state = program, state._replace(status=np.full(count, DIVERGED, np.int8))
        self.inputs: _Inputs | None = None
        self.jobs: list[_Job | None] = [None] * count  # idle where None
        self.rows, self.counted = np.zeros(count, np.int64), np.zeros(count, np.int64)
        self.pauses = Pauses(snapshots, count)

    @property
    def count(self) -> int:
        return len(self.jobs)

    def busy(self) -> np.ndarray:
        return np.flatnonzero([job is not None for job in self.jobs])

    def idle(self) -> np.ndarray:
        return np.flatnonzero([job is None for job in self.jobs])

    def fill(self, jobs: Iterator[_Job]) -> None:
        """Begin the next cells in idle lanes, as long as there are any."""
        idle = filled = self.idle()
        while len(idle) and (job := next(jobs, None)):
            taken, idle = np.split(idle, [len(job.chunk.cells) - job.begun])
            rows = job.begun + np.arange(len(taken))
            job.begun += len(taken)
            self._move_in(taken, job, rows)
        filled = filled[: len(filled) - len(idle)]
        if len(filled) and self.inputs:
            replace = np.zeros(self.count, bool)
            replace[filled], self.counted[filled] = True, 0
            self.pauses.begin(filled)
            with pinned(x64=True):
                fill = compiled("fill", self.program, self.count)
                self.state = fill(self.state, self.settings, self.inputs.spans, replace)

    def _move_in(self, lanes: np.ndarray, job: _Job, rows: np.ndarray) -> None:
        jax.tree.map(lambda to, given: to.__setitem__(lanes, given[rows]), self.settings, job.cells)
        self.rows[lanes] = rows
        for lane in lanes:
            self.jobs[lane] = job
        if self.program.shared_data and self.inputs:
            return
        for lane, dataset in zip(lanes, job.which[rows], strict=True):
            settings = job.datasets[dataset]
            own = _Inputs(*points_of(self.program, settings), spans_of("fill", self.program, settings))
            if self.program.shared_data:
                self.inputs = own
                return
            self.inputs = self.inputs or jax.tree.map(lambda a: np.zeros((self.count, *a.shape), a.dtype), own)
            jax.tree.map(lambda to, given, lane=lane: to.__setitem__(lane, given), self.inputs, own)

    @pinned(x64=False)
    def pack(self, count: int) -> None:
        """Go on with so many lanes: all that are busy, and some idle ones."""
        kept = np.concatenate([self.busy(), self.idle()])[:count]
        self.state, self.settings = _take(self.state, kept), _take(self.settings, kept)
        self.rows, self.counted, self.jobs = self.rows[kept], self.counted[kept], [self.jobs[lane] for lane in kept]
        self.pauses.pack(kept)
        if not self.program.shared_data:
            self.inputs = _take(self.inputs, kept)

    @pinned(x64=False)
    def advance(self, steps: int) -> tuple[int, int, list[_Job]]:
        """Take steps; networks that have stopped, steps taken by all, and jobs of which no cell is left."""
        assert self.inputs
        advance, hyper = compiled("advance", self.program, self.count, steps), hyper_of(self.settings)
        self.state = advance(self.state, self.inputs.x, self.inputs.y, self.pauses.sooner(hyper))
        busy, status, counted = self.busy(), np.array(self.state.status), np.asarray(self.state.step, np.int64)
        taken, self.counted = int((counted - self.counted)[busy].sum()), counted
        now = self.pauses.reached(status, counted, hyper, busy)
        stopped = np.flatnonzero(now.stopped)
        if not (len(stopped) or len(now.lanes)):
            return 0, taken, []
        # NumPy adds a few small arrays sooner than JAX dispatches one sum.
        params, change = jax.tree.map(np.asarray, (self.state.params, self.state.change))
        held = self.state._replace(params=params, change=change, status=status)
        with np.errstate(over="ignore", invalid="ignore"):  # of those that diverge
            outcome = {name: np.asarray(values) for name, values in _outcome(held, self.program.recipe.model).items()}
            outcome["status"] = np.where(training.are_finite(held), status, DIVERGED).astype(np.int8)
        for job, mine in self._by_job(now.lanes):
            lanes = now.lanes[mine]
            job.take_snapshots(outcome, lanes, self.rows[lanes], now.snapshots[mine])
        jobs = []
        for job, mine in self._by_job(stopped):
            job.take(outcome, stopped[mine], self.rows[stopped[mine]])
            jobs.append(job)
        for lane in stopped:
            self.jobs[lane] = None
        if now.paused.any():
            self.state = self.state._replace(status=np.where(now.paused, np.int8(PENDING), status))
        return len(stopped), taken, [job for job in jobs if not job.left]

    def _by_job(self, lanes: np.ndarray) -> Iterator[tuple[_Job, np.ndarray]]:
        """The jobs that lanes work for, and which of the lanes do."""
        jobs = [self.jobs[lane] for lane in lanes]
        for job in dict.fromkeys(jobs):
            assert job
            yield job, np.array([other is job for other in jobs])


def train(
    sweep: Sweep,
    group: Group,
    chunks: Iterable[Chunk],
    on_progress: Progress = _no_progress,
    stop: threading.Event | None = None,
) -> Iterator[tuple[Chunk, dict[str, np.ndarray]]]:
    """Train the cells of a group's chunks, each to its own stop.

    A lane whose network has stopped is refilled with the next cell, of the next chunk where one runs out; at the
    very end, the networks left are packed into fewer lanes. So few lanes are ever idle, and none waits for the
    slowest network of a chunk.

    Args:
        sweep: the sweep.
        group: a group of its plan.
        chunks: chunks of this group; asked for the next one only when lanes are free.
        on_progress: told of networks and steps done.
        stop: set to give up.

    Yields:
        Each chunk, as soon as it is done, with its networks' parameters by name, such as weight (cells, m, d), and
        status and steps (cells,). Of snapshots parameters and steps by the names that `during` gives them,
        (cells, snapshots, …); steps are `NEVER` where a network had stopped before.

    Raises:
        Cancelled: soon after `stop` is set.
    """
    lanes = _Lanes(group.program, group.lanes, group.snapshots)
    waiting = _unbegun(_Job(sweep, chunk, lanes.empty) for chunk in chunks)
    while True:
        if len(lanes.idle()) >= max(1, lanes.count // 16):
            lanes.fill(waiting)
        busy = len(lanes.busy())
        if not busy:
            return
        if busy <= group.tail_lanes < lanes.count:
            lanes.pack(group.tail_lanes)
        stopped, steps, done = lanes.advance(group.steps_per_call)
        on_progress(stopped, steps)
        for job in [*done, None]:
            if stop and stop.is_set():
                raise Cancelled
            if job:
                yield job.chunk, job.trained


def measure(
    sweep: Sweep, chunk: Chunk, trained: dict[str, np.ndarray], stop: threading.Event | None = None, threads: int = 1
) -> dict[str, np.ndarray]:
    """Measure every trained network of a chunk.

    Args:
        sweep: the sweep.
        chunk: one of its plan's chunks.
        trained: what `train` yielded for it.
        stop: set to give up.
        threads: that measure side by side.

    Returns:
        Float32 arrays named as in `measures.variables`, (cells,), (cells, n) or (cells, h), each rounded as its
        measure says; NaN where training diverged, and at held-out points that there are not. Of snapshots those named
        by `during`, (cells, snapshots, …), NaN where a network had stopped before.
    """
    group = chunk.group
    measured = _measured(sweep, group.program, chunk.cells, trained, group.measured, stop, threads)
    for values in measured.values():
        values[trained["status"] == DIVERGED] = np.nan
    then = group.program_during
    if then is None:
        return measured
    there = trained[during("steps")] != NEVER
    cell, _ = np.nonzero(there)
    names = [*named(then.parameters), "steps"]
    held = {name: trained[during(name)][there] for name in names}
    found = _measured(sweep, then, chunk.cells[cell], held, group.measured_during, stop, threads)
    for name, values in found.items():
        measured[during(name)] = np.full((*there.shape, *values.shape[1:]), np.nan, np.float32)
        measured[during(name)][there] = values
    return measured


def _measured(
    sweep: Sweep,
    program: Program,
    cells: np.ndarray,
    trained: dict[str, np.ndarray],
    batch: int,
    stop: threading.Event | None,
    threads: int,
) -> dict[str, np.ndarray]:
    """What a program records of networks, each of a cell, by parameters and steps, (networks, …)."""
    batches, arguments_of = _in_batches("measure", sweep, program, cells, trained, batch)

    def of(rows: np.ndarray) -> dict[str, np.ndarray]:
        if stop and stop.is_set():
            raise Cancelled
        with pinned(x64=True):
            recorded = compiled("measure", program, len(rows))(*arguments_of(rows))
            return {name: np.asarray(values) for name, values in recorded.items()}

    variables = program.recording.variables
    if not batches:
        return {name: np.zeros((0, *row.shape(program.shape.samples)), np.float32) for name, row in variables.items()}
    with ThreadPoolExecutor(threads) as pool:
        parts = list(pool.map(of, batches))
    measured = {
        name: _rounded(np.concatenate([part[name] for part in parts])[: len(cells)], _rounding(row))
        for name, row in variables.items()
    }
    missing = _without_heldout(sweep, cells)
    for name in (name for name, row in variables.items() if row.dimensions == ("heldout",)):
        measured[name][missing] = np.nan
    return measured


def saved(chunk: Chunk, trained: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What is saved of what `train` yielded of a chunk: networks before their stop only if the sweep says so."""
    snapshots = chunk.group.snapshots
    names = [during(name) for name in named(chunk.group.program.parameters)] if snapshots.number else []
    if not snapshots.networks:
        return {name: values for name, values in trained.items() if name not in names}
    for name in names:
        trained[name][trained[during("steps")] == NEVER] = np.nan
    return trained


def _without_heldout(sweep: Sweep, cells: np.ndarray) -> np.ndarray:
    """Which held-out points of some cells there are not, (cells, HELDOUT)."""
    datasets, which = cell_data(sweep, cells)
    return np.stack([np.isnan(load_data(dataset).heldout).any(axis=1) for dataset in datasets])[which]


def ambient_networks(sweep: Sweep, chunk: Chunk, trained: dict[str, np.ndarray]) -> Any:
    """Parameters of the trained networks of a chunk in ambient coordinates, float32 host arrays.

    Args:
        sweep: the sweep.
        chunk: whole or in part.
        trained: what `train` yielded for these cells.
    """
    program, parts = chunk.group.program, []
    if not program.reduced:
        return _networks(program, trained)
    batches, arguments_of = _in_batches("ambient", sweep, program, chunk.cells, trained, jax.local_device_count())
    for rows in batches:
        with pinned(x64=True):
            parts.append(compiled("ambient", program, len(rows))(*arguments_of(rows)))
    networks = jax.tree.map(lambda *leaves: np.concatenate(leaves)[: len(chunk.cells)], *parts)
    with np.errstate(over="ignore"):  # beyond float32's range weights are inf
        return jax.tree.map(lambda a: a.astype(np.float32), networks)


def _networks(program: Program, trained: dict[str, np.ndarray]) -> Any:
    """The parameters of what `train` yielded, with a leading axis."""
    return renamed(program.parameters, trained)


def _in_batches(
    name: str, sweep: Sweep, program: Program, cells: np.ndarray, trained: dict[str, np.ndarray], batch: int
) -> tuple[list[np.ndarray], Callable[[np.ndarray], tuple]]:
    """Rows of all cells in batches, and what yields a compiled program's arguments for rows.

    The last batch is filled up with its last row, whose network is NaN there: a kernel then searches for nothing.
    """
    settings = _cell_settings(sweep, cells)
    datasets, which = cell_data(sweep, cells)
    held = _networks(program, trained)
    momentum = settings["momentum"] if "momentum" in OPTIMIZERS[program.recipe.optimizer].reads else 0.0
    law = program.law
    rate = PARAMETRIZATIONS[law.parametrization].first(law.ambient_dim, settings["width"].astype(np.float64)).weight
    decay = theory.decay(trained["steps"], settings["learning_rate"] * rate, settings["weight_decay"], momentum)

    def arguments_of(rows: np.ndarray) -> tuple:
        networks = _take(held, rows)
        for values in jax.tree.leaves(networks):
            values[1:][rows[1:] == rows[:-1]] = np.nan
        here = datasets[:1] if program.shared_data else [datasets[i] for i in which[rows]]
        inputs = [(data_of(program, dataset), spans_of(name, program, dataset)) for dataset in here]
        data, spans = inputs[0] if program.shared_data else jax.tree.map(lambda *leaves: np.stack(leaves), *inputs)
        own = (networks, _take(settings, rows), decay[rows])
        return (*own, data, spans) if name == "measure" else (*own, spans)

    begins = range(0, len(cells), batch)
    return [np.minimum(np.arange(begin, begin + batch), len(cells) - 1) for begin in begins], arguments_of


def _rounding(variable: Variable) -> Rounding:
    return variable.rounding if isinstance(variable, Measure) else Rounding.NEAREST


def _rounded(values: np.ndarray, rounding: Rounding) -> np.ndarray:
    """Float32 of float64 values."""
    with np.errstate(over="ignore", under="ignore"):  # past float32's range: inf, 0
        single = values.astype(np.float32)
        match rounding:
            case Rounding.NEAREST:
                return single
            case Rounding.DOWN:
                return np.where(single > values, np.nextafter(single, np.float32(-np.inf)), single)
            case Rounding.UP:
                return np.where(single < values, np.nextafter(single, np.float32(np.inf)), single)
