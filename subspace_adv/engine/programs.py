"""The compiled programs of a group: one network's functions, vmapped over lanes and sharded over devices."""

import functools
import hashlib
import threading
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from subspace_adv import training
from subspace_adv.data import Data
from subspace_adv.engine import networks
from subspace_adv.engine.inputs import arguments
from subspace_adv.engine.kept import compiled_or_kept, keep_compiled
from subspace_adv.engine.networks import Lane, Spans
from subspace_adv.engine.pinned import compiler_options, pinned
from subspace_adv.optimizers import Hyper
from subspace_adv.program import Program
from subspace_adv.training import TrainState

_compiling = threading.RLock()

# Programs of several groups, which follow one another. XLA on CPU maps each of its functions by itself: a program that
# measures takes up to 5,100 mappings where our kernel does not, another one up to 300, and a Linux process may have
# 65,530, beyond which it dies.
_LOADED_PROGRAMS = {"fill": 20, "advance": 20, "measure": 8, "ambient": 20}


def _compile(name: str, program: Program, lanes: int, steps: int) -> Any:
    """One of a group's compiled programs for so many lanes, over all local devices; traced once a run.

    - "fill": (state, lane, spans, replace) → state, with fresh networks where `replace`;
    - "advance": (state, x, y, hyper) → state, `steps` steps later at most;
    - "measure": (trained, lane, decay, data, spans) → named arrays;
    - "ambient": (trained, lane, decay, spans) → networks in ambient coordinates.

    All arrays have a leading axis of lanes, but for data and spans that are shared.
    """
    own = None if program.shared_data else 0
    on_cpu = jax.default_backend() == "cpu"
    share = lanes // jax.local_device_count()

    def fill(state: TrainState, lane: Lane, spans: Spans, replace: jax.Array) -> TrainState:
        def choose(new: jax.Array, old: jax.Array) -> jax.Array:
            return jnp.where(replace.reshape(replace.shape + (1,) * (new.ndim - 1)), new, old)

        fresh = jax.vmap(functools.partial(networks.fresh, program), in_axes=(0, own))(lane, spans)
        return jax.tree.map(choose, fresh, state)

    def advance(state: TrainState, x: jax.Array, y: jax.Array, hyper: Hyper) -> TrainState:
        one = functools.partial(training.advance, recipe=program.recipe, steps=steps)
        return jax.vmap(one, in_axes=(0, own, own, 0))(state, x, y, hyper)

    def measure(trained: Any, lane: Lane, decay: jax.Array, data: Data, spans: Spans) -> dict[str, jax.Array]:
        block = min(program.measured_at_once, share) if on_cpu else share
        one = functools.partial(networks.measured, program)
        if program.shared_data:
            return jax.lax.map(lambda a: one(*a, data=data, spans=spans), (trained, lane, decay), batch_size=block)
        return jax.lax.map(lambda a: one(*a), (trained, lane, decay, data, spans), batch_size=block)

    def ambient(trained: Any, lane: Lane, decay: jax.Array, spans: Spans) -> Any:
        one = functools.partial(networks.ambient, program)
        if program.shared_data:
            return jax.lax.map(lambda a: one(*a, spans=spans), (trained, lane, decay))
        return jax.lax.map(lambda a: one(*a), (trained, lane, decay, spans))

    each, data = PartitionSpec("networks"), PartitionSpec() if program.shared_data else PartitionSpec("networks")
    function, specs = {
        "fill": (fill, (each, each, data, each)),
        "advance": (advance, (each, data, data, each)),
        "measure": (measure, (each, each, each, data, data)),
        "ambient": (ambient, (each, each, each, data)),
    }[name]
    # JAX names what it keeps after the function, so that whoever looks into the folder can tell programs apart; but
    # those that are equal, as of two trainers or optimizers measuring is, should be kept once.
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
        return compiled_or_kept(lowered, compiler_options(quick=name != "advance") if on_cpu else {})


def compiled(name: str, program: Program, lanes: int, steps: int = 0) -> Any:
    """One of a group's compiled programs, as `_compile` describes them."""
    with _compiling:
        return _loaded[name](program, lanes, steps)


_loaded = {
    name: functools.lru_cache(maxsize=most)(functools.partial(_compile, name))
    for name, most in _LOADED_PROGRAMS.items()
}


@functools.lru_cache(maxsize=_LOADED_PROGRAMS["measure"])
def _alone(function: Callable[..., Any], static: tuple) -> Any:
    options = compiler_options(quick=True) if jax.default_backend() == "cpu" else {}
    return jax.jit(functools.partial(function, **dict(static)), compiler_options=options)


def alone(function: Callable[..., Any], *arguments: Any, x64: bool, **static: Any) -> Any:
    """Call a function of one network, compiled for the shapes of its arguments.

    Args:
        function: of JAX arrays, and of what is static, by name.
        *arguments: host arrays, or pytrees of them.
        x64: whether it computes in float64.
        **static: hashable.

    Returns:
        What it returns, in host arrays.
    """
    keep_compiled()
    with _compiling, pinned(x64=x64):
        found = _alone(function, tuple(sorted(static.items())))(*arguments)
        return jax.tree.map(np.asarray, found)
