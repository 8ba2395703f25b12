"""The only place that vmaps and compiles: trains and measures the cells of a chunk, many networks at once."""

import functools
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import random

from subspace_adv import measures, network, training
from subspace_adv.data import HELDOUT, Data
from subspace_adv.network import Network
from subspace_adv.planning import Chunk, Group, Program, cell_data
from subspace_adv.subspace import Subspace
from subspace_adv.sweep import Sweep
from subspace_adv.training import DIVERGED, PENDING, Hyper, TrainState

STEPS_PER_CALL = 256
"""Gradient steps between two looks at which networks have stopped."""

_MEASURED_POINTS = 16  # at once on CPU

Progress = Callable[[int, int], None]
"""Called with (networks done, gradient steps done) since the last call."""


def _no_progress(networks: int, net_steps: int) -> None:
    """Tell nobody."""


class Cancelled(Exception):
    """The chunk was given up because the caller asked to stop."""


class Lane(NamedTuple):
    """Settings of the cell that a lane trains; leading axis: lanes."""

    seed: Any  # uint32
    width: Any  # int32
    init_scale: Any  # float32
    hyper: Hyper


class Executables(NamedTuple):
    """Compiled programs of a group; every array has a leading axis of lanes."""

    empty: TrainState  # shapes and dtypes
    fill: Callable[..., TrainState]  # (state, settings, replace) → state: fresh networks where `replace`
    advance: Callable[..., TrainState]  # (state, hyper, x, y) → state
    advance_few: Callable[..., TrainState]  # the same on `tail_lanes`
    measure: Callable[..., dict[str, jax.Array]]  # (network, data, seed) → named arrays


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


_compiling = threading.Lock()


def executables(group: Group) -> Executables:
    """The compiled programs of a group, traced once per process."""
    with _compiling:
        return _compile(group.program, group.lanes, group.tail_lanes)


@functools.lru_cache(maxsize=256)
def _compile(program: Program, lanes: int, tail_lanes: int) -> Executables:
    n, d, k = program.samples, program.ambient_dim, program.subspace_dim

    law, padded_width = program.law, program.padded_width
    on_cpu = jax.default_backend() == "cpu"
    # On CPU, a few points' search fits the cache and a chunk's does not.
    block = min(max(_MEASURED_POINTS // n, 1), lanes) if on_cpu else lanes

    def fresh(lane: Lane) -> TrainState:
        init_key, order_key = random.split(random.key(lane.seed))
        drawn = network.init_network(
            init_key, lane.width, lane.init_scale, law=law, padded_width=padded_width, ambient_dim=d
        )
        return training.start(drawn, lane.hyper, order_key, recipe=program.recipe)

    def fill(state: TrainState, lanes: Lane, replace: jax.Array) -> TrainState:
        def choose(new: jax.Array, old: jax.Array) -> jax.Array:
            return jnp.where(replace.reshape(replace.shape + (1,) * (new.ndim - 1)), new, old)

        return jax.tree.map(choose, jax.vmap(fresh)(lanes), state)

    def advance(state: TrainState, hyper: Hyper, x: jax.Array, y: jax.Array) -> TrainState:
        one = functools.partial(training.step, recipe=program.recipe)
        shared = None if program.shared_data else 0
        batched = jax.vmap(one, in_axes=(0, shared, shared, 0))

        def body(carry: tuple) -> tuple:
            count, state = carry
            return count + 1, batched(state, x, y, hyper)

        def busy(carry: tuple) -> jax.Array:
            count, state = carry
            return (count < STEPS_PER_CALL) & jnp.any(state.status == PENDING)

        return jax.lax.while_loop(busy, body, (jnp.int32(0), state))[1]

    def measure(trained: Network, data: Data, seed: jax.Array) -> Any:
        def one(net: Network, data: Any, seed: jax.Array) -> Any:
            key = random.fold_in(random.key(seed), 1)
            net, (x, y, subspace, heldout) = jax.tree.map(lambda a: a.astype(jnp.float64), (net, data))
            return measures.measure(net, x, y, subspace, heldout, key, recording=program.recording)

        if program.shared_data:
            return jax.lax.map(lambda own: one(own[0], data, own[1]), (trained, seed), batch_size=block)
        return jax.lax.map(lambda own: one(*own), (trained, data, seed), batch_size=block)

    def abstract(lanes: int) -> tuple:
        def array(dtype: Any, *shape: int) -> Any:
            return jax.ShapeDtypeStruct(shape, dtype)

        f32, i32 = (array(t, lanes) for t in (jnp.float32, jnp.int32))
        hyper = Hyper(f32, f32, f32, i32, f32, i32)
        settings = Lane(array(jnp.uint32, lanes), i32, f32, hyper)
        state = jax.eval_shape(jax.vmap(fresh), settings)
        own = () if program.shared_data else (lanes,)
        x, y = array(jnp.float32, *own, n, d), array(jnp.float32, *own, n)
        subspace = Subspace(array(jnp.float64, *own, d, k), array(jnp.float64, *own, d, d - k))
        data = Data(x, y, subspace, array(jnp.float32, *own, HELDOUT, d))  # pyright: ignore[reportArgumentType]
        return state, settings, array(jnp.bool_, lanes), hyper, data

    state, settings, mask, hyper, data = abstract(lanes)
    jit_advance = jax.jit(advance, donate_argnums=0)
    lowered = {"fill": jax.jit(fill, donate_argnums=0).lower(state, settings, mask)}
    lowered["advance"] = jit_advance.lower(state, hyper, data.x, data.y)
    if lanes != tail_lanes:
        few, _, _, few_hyper, few_data = abstract(tail_lanes)
        lowered["advance_few"] = jit_advance.lower(few, few_hyper, few_data.x, few_data.y)
    # Measurements are in float64, so that rounding hardly widens the brackets; training stays in float32.
    with jax.enable_x64(True):
        trained = jax.eval_shape(jax.vmap(training.finish), state)
        *_, data = abstract(lanes)
        lowered["measure"] = jax.jit(measure).lower(trained, data, settings.seed)
    # What runs once a network need not be polished by the compiler for seconds; XLA's CPU code hardly differs.
    quick: dict[str, str | bool] = {"xla_backend_optimization_level": "1"} if on_cpu else {}
    compiled = {
        name: program.compile(compiler_options=quick if name in ("fill", "measure") else {})
        for name, program in lowered.items()
    }
    return Executables(empty=state, **{"advance_few": compiled["advance"], **compiled})


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
    datasets: list[Data]
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
    programs = executables(group)
    empty, lanes, advance = programs.empty, group.lanes, programs.advance
    jobs = (_Job.of(sweep, chunk, empty) for chunk in chunks)
    waiting = ((job, row) for job in jobs for row in range(len(job.chunk.cells)))
    owners: list[tuple[_Job, int] | None] = [None] * lanes
    state = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), empty)._replace(status=np.full(lanes, DIVERGED, np.int8))
    settings, points = _blank_lanes(lanes), None
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
                points = _move_in(settings, points, lane, *owner, shared=group.program.shared_data)
            if replace.any():
                state = programs.fill(state, settings, replace)
        busy = [lane for lane, owner in enumerate(owners) if owner is not None]
        if not busy or points is None:
            return
        if exhausted and len(busy) <= group.tail_lanes < lanes:
            kept = np.array((busy + idle)[: group.tail_lanes])
            state, settings, counted = _take(state, kept), _take(settings, kept), counted[kept]
            points = points if group.program.shared_data else _take(points, kept)
            owners, advance, lanes = [owners[lane] for lane in kept], programs.advance_few, group.tail_lanes
            busy = [lane for lane, owner in enumerate(owners) if owner is not None]
        state = advance(state, settings.hyper, *points)
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


def _move_in(
    settings: Lane, points: tuple | None, lane: int, job: _Job, row: int, *, shared: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Write a cell's settings into a lane; returns the lanes' x and y, the group's one set if that is shared."""
    jax.tree.map(lambda to, given: to.__setitem__(lane, given[row]), settings, job.cells)
    x, y = job.datasets[job.which[row]][:2]
    if shared:
        return x, y
    if points is None:
        points = (np.zeros((len(settings.seed), *x.shape), x.dtype), np.zeros((len(settings.seed), *y.shape), y.dtype))
    points[0][lane], points[1][lane] = x, y
    return points


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
    group, total = chunk.group, len(chunk.cells)
    programs = executables(group)
    seeds = np.ascontiguousarray(sweep.column("seed", chunk.cells), np.uint32)
    datasets, which = cell_data(sweep, chunk.cells)
    parts = []
    for begin in range(0, total, group.lanes):
        if stop and stop.is_set():
            raise Cancelled
        here = np.minimum(np.arange(begin, begin + group.lanes), total - 1)
        networks = Network._make(trained[name][here] for name in Network._fields)
        data = datasets[0]
        if not group.program.shared_data:
            data = jax.tree.map(lambda *leaves: np.stack(leaves), *(datasets[i] for i in which[here]))
        with jax.enable_x64(True):
            recorded = programs.measure(networks, data, seeds[here])
        parts.append(_take(recorded, slice(total - begin)))
    measured = {name: _rounded(name, np.concatenate([part[name] for part in parts])) for name in parts[0]}
    for values in measured.values():
        values[trained["status"] == DIVERGED] = np.nan
    return measured


def _rounded(name: str, values: np.ndarray) -> np.ndarray:
    """Float32 of float64 values; certified bounds go down and found ones up."""
    with np.errstate(over="ignore"):  # past float32's range: inf
        single = values.astype(np.float32)
    if name.endswith("_lower"):
        return np.where(single > values, np.nextafter(single, np.float32(-np.inf)), single)
    if name.startswith("distance"):
        return np.where(single < values, np.nextafter(single, np.float32(np.inf)), single)
    return single
