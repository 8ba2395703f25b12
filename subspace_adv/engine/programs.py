"""The compiled programs of a group: one network's functions, vmapped over lanes and sharded over devices."""

import functools
import hashlib
import os
import platform
import threading
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import platformdirs
from jax import random
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh, PartitionSpec

from subspace_adv import measures, network, training
from subspace_adv.data import HELDOUT, Data, DataSettings
from subspace_adv.datasets import load_data, load_span
from subspace_adv.engine.pinned import compiler_options, pinned
from subspace_adv.network import Network, key_of
from subspace_adv.optimizers import Hyper
from subspace_adv.planning import Program
from subspace_adv.settings import entries
from subspace_adv.subspace import Subspace, beside_span, canonical_coordinates, in_ambient
from subspace_adv.training import TrainState

Lane = dict[str, Any]
"""Settings of the cell that a lane trains, by name: those of a run-time role; leading axis: lanes."""


def hyper_of(lane: Lane) -> Hyper:
    """What training reads of a lane's settings."""
    return Hyper(**{name: lane[name] for name in Hyper._fields})


def _draw(program: Program, lane: Lane) -> tuple[dict[str, Any], jax.Array]:
    """Arguments that draw the cell's network, and the key of its minibatch order."""
    init_key, order_key = random.split(key_of(lane["seed"]))
    draw = {"key": init_key, "width": lane["width"], "init_scale": lane["init_scale"], "law": program.law}
    return draw, order_key


def _fresh(program: Program, lane: Lane, span: Subspace) -> TrainState:
    """Training state of a cell's network, not yet trained."""
    draw, order_key = _draw(program, lane)
    basis = span.basis if program.reads_basis else None
    drawn = network.init_network(**draw, basis=basis)
    if not program.reduced:
        weight = drawn.weight.astype(jnp.float64) @ span.basis.T + network.ambient_off_weights(**draw, basis=span.basis)
        drawn = drawn._replace(weight=weight)
    drawn = jax.tree.map(lambda a: a.astype(jnp.float32), drawn)
    return training.start(drawn, hyper_of(lane), order_key, recipe=program.recipe)


def _in_ambient(program: Program, trained: Network, lane: Lane, decay: jax.Array, span: Subspace) -> Network:
    """A trained network in ambient coordinates: what training left alone is drawn again, times its decay."""
    if not program.reduced:
        return trained
    draw, _ = _draw(program, lane)
    off = decay * network.ambient_off_weights(**draw, basis=span.basis)
    return trained._replace(weight=trained.weight.astype(jnp.float64) @ span.basis.T + off)


def _in_canonical(program: Program, trained: Network, lane: Lane, decay: jax.Array, span: Subspace) -> Network:
    """A trained network in canonical coordinates (F6 in docs/theory.md)."""
    if not program.reduced:
        return trained._replace(weight=canonical_coordinates(trained.weight, span.basis))
    draw, _ = _draw(program, lane)
    off = network.off_weights(**draw, basis=span.basis if program.reads_basis else None)
    off = decay * off.astype(jnp.float64)
    return trained._replace(weight=jnp.concatenate([trained.weight, off], axis=1))


def _measured(
    program: Program, trained: Network, lane: Lane, decay: jax.Array, data: Data, span: Subspace
) -> dict[str, jax.Array]:
    """All that is recorded of a trained network, in float64."""
    key = random.fold_in(key_of(lane["seed"]), 1)
    trained, (x, y, subspace, heldout) = jax.tree.map(lambda a: a.astype(jnp.float64), (trained, data))
    law = program.law
    if program.canonical:
        net = _in_canonical(program, trained, lane, decay, span)
        x, heldout = (jnp.pad(points, ((0, 0), (0, law.off_dim))) for points in (x, heldout))
        subspace, unseen = beside_span(subspace, law.off_dim), law.ambient_dim - law.span_dim - law.off_dim
    else:
        net = _in_ambient(program, trained, lane, decay, span)
        x, heldout = x @ span.basis.T, heldout @ span.basis.T
        subspace, unseen = in_ambient(subspace, span), 0
    return measures.measure(net, x, y, subspace, heldout, key, recording=program.recording, unseen=unseen)


_compiling = threading.RLock()
_CANNOT_READ = "Error reading persistent compilation cache entry for "  # as JAX warns
_CANNOT_WRITE = "Error writing persistent compilation cache entry for "


# Of several groups, which follow one another. XLA on CPU maps each kernel by itself: a program that measures takes some
# thousand mappings, and a Linux process may have 65,530, beyond which it dies.
_LOADED_PROGRAMS = 12


@functools.lru_cache(maxsize=_LOADED_PROGRAMS)
def _compile(name: str, program: Program, lanes: int, steps: int) -> Any:
    """One of a group's compiled programs for so many lanes, over all local devices; traced once a run.

    - "fill": (state, lane, span, replace) → state, with fresh networks where `replace`;
    - "advance": (state, x, y, hyper) → state, `steps` steps later at most;
    - "measure": (trained, lane, decay, data, span) → named arrays;
    - "ambient": (trained, lane, decay, span) → networks in ambient coordinates.

    All arrays have a leading axis of lanes, but for data and spans that are shared.
    """
    own = None if program.shared_data else 0
    on_cpu = jax.default_backend() == "cpu"
    share = lanes // jax.local_device_count()

    def fill(state: TrainState, lane: Lane, span: Subspace, replace: jax.Array) -> TrainState:
        def choose(new: jax.Array, old: jax.Array) -> jax.Array:
            return jnp.where(replace.reshape(replace.shape + (1,) * (new.ndim - 1)), new, old)

        fresh = jax.vmap(functools.partial(_fresh, program), in_axes=(0, own))(lane, span)
        return jax.tree.map(choose, fresh, state)

    def advance(state: TrainState, x: jax.Array, y: jax.Array, hyper: Hyper) -> TrainState:
        one = functools.partial(training.advance, recipe=program.recipe, steps=steps)
        return jax.vmap(one, in_axes=(0, own, own, 0))(state, x, y, hyper)

    def measure(trained: Network, lane: Lane, decay: jax.Array, data: Data, span: Subspace) -> dict[str, jax.Array]:
        block = min(program.measured_at_once, share) if on_cpu else share
        one = functools.partial(_measured, program)
        if program.shared_data:
            return jax.lax.map(lambda a: one(*a, data=data, span=span), (trained, lane, decay), batch_size=block)
        return jax.lax.map(lambda a: one(*a), (trained, lane, decay, data, span), batch_size=block)

    def ambient(trained: Network, lane: Lane, decay: jax.Array, span: Subspace) -> Network:
        one = functools.partial(_in_ambient, program)
        if program.shared_data:
            return jax.lax.map(lambda a: one(*a, span=span), (trained, lane, decay))
        return jax.lax.map(lambda a: one(*a), (trained, lane, decay, span))

    each, data = PartitionSpec("networks"), PartitionSpec() if program.shared_data else PartitionSpec("networks")
    function, specs = {
        "fill": (fill, (each, each, data, each)),
        "advance": (advance, (each, data, data, each)),
        "measure": (measure, (each, each, each, data, data)),
        "ambient": (ambient, (each, each, each, data)),
    }[name]
    # JAX names what it keeps after the function. A damaged entry is told by that name, so few entries should share one;
    # but programs that are equal, as of two trainers or optimizers measuring is, should be kept once.
    shaped_by = (program.law, program.shape, program.reduced, program.shared_data, lanes, steps)
    digest = hashlib.sha256(repr(shaped_by).encode()).hexdigest()[:16]
    function.__name__ = f"{name}_{digest}"
    mesh = Mesh(np.array(jax.local_devices()), ("networks",))
    sharded = jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=each, check_vma=False)
    # Measurements are in float64, so that rounding hardly widens the brackets; training is in float32.
    shapes = arguments(name, program, lanes)
    with pinned(x64=name != "advance"):
        lowered = jax.jit(sharded, donate_argnums=0 if name in ("fill", "advance") else ()).lower(*shapes)
        # What runs once a network need not be polished by the compiler for seconds; XLA's CPU code hardly differs.
        return _compiled_or_kept(lowered, compiler_options(quick=name != "advance") if on_cpu else {})


def _compiled_or_kept(lowered: jax.stages.Lowered, options: dict[str, str | bool]) -> Any:
    """A program compiled, or read from the folder of compiled programs; what cannot be kept is told once."""
    kept = _keep_compiled()
    with warnings.catch_warnings(record=True) as told:
        warnings.filterwarnings("always", message=_CANNOT_WRITE)
        if kept:
            warnings.filterwarnings("error", message=_CANNOT_READ)
        try:
            program = lowered.compile(compiler_options=options)
        except UserWarning as error:  # a kill or a full disk left a file in part, which JAX would never write again
            name = str(error).removeprefix(_CANNOT_READ).split("'")[1]
            for entry in kept.glob(f"{name}-*") if kept else ():
                entry.unlink(missing_ok=True)
            program = lowered.compile(compiler_options=options)
    for warning in told:
        if str(warning.message).startswith(_CANNOT_WRITE):
            _tell_unkept(str(warning.message).partition(": ")[2].partition(": '")[0])  # without the file
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return program


@functools.cache
def _tell_unkept(reason: str) -> None:
    folder = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    warnings.warn(
        f"{folder}: compiled programs cannot be kept there, and each run compiles anew: {reason}", stacklevel=2
    )


def _processor(cpuinfo: Path) -> str:
    """What compiled code depends on: the kind of machine, and its processor's name and features where they are told."""
    if not cpuinfo.exists():
        return f"{platform.machine()}\n{platform.processor()}"
    of_the_first = cpuinfo.read_text().partition("\n\n")[0].splitlines()
    features = [line for line in of_the_first if line.startswith(("flags", "Features", "model name"))]
    return "\n".join([platform.machine(), *features])


@functools.cache
def _keep_compiled() -> Path | None:
    """Keep compiled programs in the user's cache folder, which is returned.

    Unless JAX was given another one, or none can be written, or JAX was imported before this package, on CPU: then XLA
    would say of every program that it loads what `subspace_adv/__init__.py` keeps it from.
    """
    if jax.default_backend() == "cpu" and int(os.environ.get("TF_CPP_MIN_LOG_LEVEL", "0")) < 3:
        return None
    if jax.config.jax_compilation_cache_dir is not None:  # pyright: ignore[reportAttributeAccessIssue]
        return None
    # Code for one processor may be unfit for another that shares the home folder.
    processor = hashlib.sha256(_processor(Path("/proc/cpuinfo")).encode()).hexdigest()[:8]
    folder = platformdirs.user_cache_path("subspace-adv") / f"compiled-{processor}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    compilation_cache.reset_cache()  # what was compiled before has found that there is none
    return folder


def compiled(name: str, program: Program, lanes: int, steps: int = 0) -> Any:
    """One of a group's compiled programs, as `_compile` describes them."""
    with _compiling:
        return _compile(name, program, lanes, steps)


@pinned(x64=True)
def arguments(name: str, program: Program, lanes: int) -> tuple:
    """Shapes and dtypes of a compiled program's arguments."""

    def array(dtype: Any, *shape: int) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype)

    f64 = array(jnp.float64, lanes)
    lane = {leaf: array(entry, lanes) for leaf, entry in entries().items()}
    own = () if program.shared_data else (lanes,)
    (n, d, k, r), inputs = program.shape, program.inputs
    basis, complement = _span_shapes(name, program)
    span = Subspace(array(jnp.float64, *own, *basis), array(jnp.float64, *own, *complement))
    state = jax.eval_shape(
        jax.vmap(functools.partial(_fresh, program), in_axes=(0, None if program.shared_data else 0)),
        lane,
        Subspace(array(jnp.float64, *own, d, r), array(jnp.float64, *own, d, 0)),
    )
    trained = jax.eval_shape(jax.vmap(training.finish), state)
    subspace = Subspace(array(jnp.float64, *own, r, k), array(jnp.float64, *own, r, r - k))
    data = Data(
        array(jnp.float32, *own, n, r), array(jnp.float32, *own, n), subspace, array(jnp.float32, *own, HELDOUT, r)
    )
    points = (array(jnp.float32, *own, n, inputs), array(jnp.float32, *own, n))
    return {
        "fill": (state, lane, span, array(jnp.bool_, lanes)),
        "advance": (state, *points, hyper_of(lane)),
        "measure": (trained, lane, f64, data, span),
        "ambient": (trained, lane, f64, span),
    }[name]


def _span_shapes(name: str, program: Program) -> tuple[tuple[int, int], tuple[int, int]]:
    """Shapes of the bases that a compiled program reads of the span and its complement; of size 0 if it reads none."""
    d, r = program.shape.ambient_dim, program.shape.span_dim
    if not program.reads_basis and name != "ambient":
        return (0, 0), (0, 0)
    return (d, r), (d, d - r) if name == "measure" and not program.canonical else (d, 0)


def span_of(name: str, program: Program, settings: DataSettings) -> Subspace:
    """Where the data's span lies, as far as a compiled program reads it."""
    basis, complement = _span_shapes(name, program)
    if not basis[0]:
        return Subspace(np.zeros(basis), np.zeros(complement))  # pyright: ignore[reportArgumentType]
    return load_span(settings, complete=complement[1] > 0)


def points_of(program: Program, settings: DataSettings) -> tuple[np.ndarray, np.ndarray]:
    """Training points in the coordinates that networks train in, and labels."""
    data = load_data(settings)
    if program.reduced:
        return data.x, data.y
    return (data.x @ load_span(settings).basis.T).astype(np.float32), data.y
