"""Trains and measures the cells of chunks, many networks side by side, each to its own stop."""

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from subspace_adv import theory, training
from subspace_adv.engine.programs import Lane, arguments, compiled, points_of, span_of
from subspace_adv.network import Network
from subspace_adv.planning import Chunk, Group, Program, cell_data, load_data
from subspace_adv.subspace import Subspace
from subspace_adv.sweep import DataSettings, Sweep
from subspace_adv.training import DIVERGED, PENDING, Hyper, TrainState

_MEASURED_NETWORKS = 32  # a call and device

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
    return trained | measure(sweep, chunk, trained, stop)


def _cell_settings(sweep: Sweep, cells: np.ndarray) -> Lane:
    def column(leaf: str, dtype: type) -> Any:
        return np.ascontiguousarray(sweep.column(leaf, cells), dtype)

    return Lane(
        column("seed", np.uint32),
        column("width", np.int32),
        column("init_scale", np.float32),
        Hyper(
            learning_rate=column("learning_rate", np.float32),
            weight_decay=column("weight_decay", np.float32),
            momentum=column("momentum", np.float32),
            batch_size=column("batch_size", np.int32),
            stop_margin=column("stop_margin", np.float32),
            max_steps=column("max_steps", np.int32),
        ),
    )


def _take(tree: Any, index: np.ndarray | slice) -> Any:
    return jax.tree.map(lambda a: np.asarray(a)[index], tree)


class _Job(NamedTuple):
    """A chunk under training."""

    chunk: Chunk
    cells: Lane  # settings of its cells
    datasets: list[DataSettings]
    which: np.ndarray  # the dataset of each cell
    trained: dict[str, np.ndarray]  # one row per cell
    left: list[int]  # one number: cells not yet trained

    @classmethod
    def of(cls, sweep: Sweep, chunk: Chunk, empty: TrainState) -> "_Job":
        total = len(chunk.cells)
        shapes = jax.eval_shape(jax.vmap(training.finish), empty)._asdict()
        shapes |= {"status": empty.status, "steps": empty.step}
        trained = {name: np.zeros((total, *leaf.shape[1:]), leaf.dtype) for name, leaf in shapes.items()}
        return cls(chunk, _cell_settings(sweep, chunk.cells), *cell_data(sweep, chunk.cells), trained, [total])


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
        Each chunk, as soon as it is done, with weight (cells, m, d), bias, head (cells, m), head_bias, status and
        steps (cells,).

    Raises:
        Cancelled: soon after `stop` is set.
    """
    program, lanes = group.program, group.lanes
    with jax.enable_x64(True):
        empty = arguments("fill", program, lanes)[0]
    jobs = (_Job.of(sweep, chunk, empty) for chunk in chunks)
    waiting = ((job, row) for job in jobs for row in range(len(job.chunk.cells)))
    owners: list[tuple[_Job, int] | None] = [None] * lanes
    state = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), empty)._replace(status=np.full(lanes, DIVERGED, np.int8))
    settings, inputs = _blank_lanes(lanes), None
    counted, exhausted = np.zeros(lanes, np.int64), False
    while True:
        idle = [lane for lane, owner in enumerate(owners) if owner is None]
        if not exhausted and len(idle) >= max(1, lanes // 8):
            replace = np.zeros(lanes, bool)
            for lane in idle:
                owners[lane] = owner = next(waiting, None)
                if owner is None:
                    exhausted = True
                    break
                replace[lane], counted[lane] = True, 0
                inputs = _move_in(program, settings, inputs, lane, *owner)
            if replace.any():
                with jax.enable_x64(True):
                    state = compiled("fill", program, lanes)(state, settings, inputs.span, replace)
        busy = [lane for lane, owner in enumerate(owners) if owner is not None]
        if not busy or inputs is None:
            return
        if exhausted and len(busy) <= group.tail_lanes < lanes:
            kept = np.array((busy + idle)[: group.tail_lanes])
            state, settings, counted = _take(state, kept), _take(settings, kept), counted[kept]
            inputs = inputs if program.shared_data else _take(inputs, kept)
            owners, lanes = [owners[lane] for lane in kept], group.tail_lanes
            busy = [lane for lane, owner in enumerate(owners) if owner is not None]
        state = compiled("advance", program, lanes, group.steps_per_call)(state, inputs.x, inputs.y, settings.hyper)
        host = jax.tree.map(np.asarray, state._replace(opt_state=()))
        done = [lane for lane in busy if host.status[lane] != PENDING]
        on_progress(len(done), int((host.step - counted)[busy].sum()))
        counted = host.step.astype(np.int64)
        if stop and stop.is_set():
            raise Cancelled
        networks = training.finish(host)._asdict() | {"status": host.status, "steps": host.step}
        for lane in done:
            job, row = owners[lane]  # pyright: ignore[reportGeneralTypeIssues]
            owners[lane] = None
            for name, values in networks.items():
                job.trained[name][row] = values[lane]
            job.left[0] -= 1
            if not job.left[0]:
                yield job.chunk, job.trained


def _blank_lanes(lanes: int) -> Lane:
    def blank(dtype: type, fill: int = 0) -> Any:
        return np.full(lanes, fill, dtype)

    f32, i32 = np.float32, np.int32
    hyper = Hyper(blank(f32), blank(f32), blank(f32), blank(i32, 1), blank(f32), blank(i32))
    return Lane(blank(np.uint32), blank(i32), blank(f32), hyper)


class _Inputs(NamedTuple):
    """What networks are drawn and trained for; a leading axis of lanes where each has its own data."""

    x: np.ndarray
    y: np.ndarray
    span: Subspace


def _move_in(program: Program, settings: Lane, inputs: _Inputs | None, lane: int, job: _Job, row: int) -> _Inputs:
    """Write a cell's settings and inputs into a lane; the group's one set of inputs if that is shared."""
    jax.tree.map(lambda to, given: to.__setitem__(lane, given[row]), settings, job.cells)
    if program.shared_data and inputs:
        return inputs
    dataset = job.datasets[job.which[row]]
    own = _Inputs(*points_of(program, dataset), span_of("fill", program, dataset))
    if program.shared_data:
        return own
    inputs = inputs or jax.tree.map(lambda a: np.zeros((len(settings.seed), *a.shape), a.dtype), own)
    jax.tree.map(lambda to, given: to.__setitem__(lane, given), inputs, own)
    return inputs


def measure(
    sweep: Sweep, chunk: Chunk, trained: dict[str, np.ndarray], stop: threading.Event | None = None
) -> dict[str, np.ndarray]:
    """Measure every trained network of a chunk.

    Args:
        sweep: the sweep.
        chunk: one of its plan's chunks.
        trained: what `train` yielded for it.
        stop: set to give up.

    Returns:
        Float32 arrays named as in `measures.variables`, (cells,), (cells, n) or (cells, h), bounds rounded
        outwards; NaN where training diverged.
    """
    program, parts = chunk.group.program, []
    for rows, given in _in_batches("measure", sweep, program, chunk.cells, trained):
        if stop and stop.is_set():
            raise Cancelled
        with jax.enable_x64(True):
            recorded = compiled("measure", program, len(rows))(*given)
        parts.append(recorded)
    measured = {
        name: _rounded(name, np.concatenate([part[name] for part in parts])[: len(chunk.cells)]) for name in parts[0]
    }
    for values in measured.values():
        values[trained["status"] == DIVERGED] = np.nan
    return measured


def ambient_networks(sweep: Sweep, chunk: Chunk, trained: dict[str, np.ndarray]) -> Network:
    """Trained networks of a chunk in ambient coordinates, float32 host arrays.

    Args:
        sweep: the sweep.
        chunk: whole or in part.
        trained: what `train` yielded for these cells.
    """
    program, parts = chunk.group.program, []
    if not program.reduced:
        return Network._make(trained[name] for name in Network._fields)
    for rows, given in _in_batches("ambient", sweep, program, chunk.cells, trained):
        with jax.enable_x64(True):
            parts.append(compiled("ambient", program, len(rows))(*given))
    networks = jax.tree.map(lambda *leaves: np.concatenate(leaves)[: len(chunk.cells)], *parts)
    return jax.tree.map(lambda a: a.astype(np.float32), networks)


def _in_batches(
    name: str, sweep: Sweep, program: Program, cells: np.ndarray, trained: dict[str, np.ndarray]
) -> Iterator[tuple[np.ndarray, tuple]]:
    """Rows, and arguments of a compiled program for them, of all cells; the last again in a batch not full."""
    settings = _cell_settings(sweep, cells)
    datasets, which = cell_data(sweep, cells)
    momentum = settings.hyper.momentum if program.recipe.optimizer == "momentum" else 0
    rate, penalty = settings.hyper.learning_rate, settings.hyper.weight_decay
    decay = theory.decay(trained["steps"], rate, penalty, momentum)
    batch = _MEASURED_NETWORKS * jax.local_device_count()
    for begin in range(0, len(cells), batch):
        rows = np.minimum(np.arange(begin, begin + batch), len(cells) - 1)
        networks = Network._make(trained[field][rows] for field in Network._fields)
        here = datasets[:1] if program.shared_data else [datasets[i] for i in which[rows]]
        inputs = [(load_data(dataset), span_of(name, program, dataset)) for dataset in here]
        data, span = inputs[0] if program.shared_data else jax.tree.map(lambda *leaves: np.stack(leaves), *inputs)
        own = (networks, _take(settings, rows), decay[rows])
        yield rows, (*own, data, span) if name == "measure" else (*own, span)


def _rounded(name: str, values: np.ndarray) -> np.ndarray:
    """Float32 of float64 values; certified bounds go down and found ones up."""
    with np.errstate(over="ignore"):  # past float32's range: inf
        single = values.astype(np.float32)
    if name.endswith("_lower"):
        return np.where(single > values, np.nextafter(single, np.float32(-np.inf)), single)
    if name.startswith("distance"):
        return np.where(single < values, np.nextafter(single, np.float32(np.inf)), single)
    return single
