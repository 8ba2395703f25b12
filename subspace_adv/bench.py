"""How fast this machine trains, problem by problem and path by path, beside its own peak in the same run."""

import json
import platform
import statistics
import time
from collections import deque
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from subspace_adv import engine, process
from subspace_adv.models import TWO_LAYER
from subspace_adv.planning import Group, Plan, in_ambient_coordinates, plan
from subspace_adv.sweep import Sweep
from subspace_adv.training import Trainer

_LINE = {"data": {"kind": "line"}, "training": {"learning_rate": 0.02}}
_BOARD = {"data": {"kind": "chessboard"}, "network": {"init": "torch", "width": 400}}
_WIDE = {
    "data": {"kind": "subspace", "ambient_dim": 784, "subspace_dim": 10, "samples": 100},
    "network": {"init": "paper-code", "width": 1000},
}


class Problem(NamedTuple):
    """Networks to train."""

    name: str
    tables: dict[str, Any]  # of the sweep
    networks: int
    steps: dict[str, int]  # most steps of a network, by path; some thousand, for a run of seconds


PROBLEMS = (
    Problem("line, to its margin", _LINE, 1024, {"fused": 40_000, "xla": 40_000}),
    Problem("chessboard", _BOARD, 1024, {"fused": 500, "xla": 200}),
    Problem("n 100, width 1,000, 10 of 784 dims", _WIDE, 64, {"fused": 400, "xla": 40, "ambient": 3}),
)


class Row(NamedTuple):
    """Throughput of one problem on one path."""

    problem: str
    path: str  # fused, xla, or ambient: xla without the reduction to the span
    networks: int
    net_steps: float  # useful gradient steps a second, of all networks together
    flops: float  # useful floating-point operations a second
    peak: float  # share of the matrix-product peak
    compile_seconds: float
    program_bytes: int  # that the compiled step holds: arguments, results and temporaries
    network_bytes: int  # of one network under training


class Bench(NamedTuple):
    """One run."""

    machine: dict[str, str]
    peak_flops: float  # float32 matrix product, operations a second
    rows: tuple[Row, ...]


def paths(trainer: Trainer | None = None) -> list[str]:
    """What can be timed here.

    Args:
        trainer: that alone.

    Raises:
        UserError: if that trainer cannot serve.
    """
    chosen = plan(_sweep(PROBLEMS[0], 1), trainer).groups[0].program.recipe.trainer
    return ["fused"] if trainer == "fused" else ["fused", "xla", "ambient"] if chosen == "fused" else ["xla", "ambient"]


def pairs(trainer: Trainer | None = None) -> list[tuple[Problem, str]]:
    """The problems and paths of a whole run."""
    return [(problem, path) for problem in PROBLEMS for path in paths(trainer) if path in problem.steps]


def run(chosen: Iterable[tuple[Problem, str]], rounds: int = 3) -> Bench:
    """Time problems on paths, and the peak before and after each.

    Args:
        chosen: some of `pairs`, taken one by one.
        rounds: of which medians are reported.
    """
    jax.config.update("jax_enable_compilation_cache", False)  # what was compiled before is compiled again
    timed, peak = [], matrix_product_flops()
    for problem, path in chosen:
        todo = plan_of(problem, path)
        sizes = _compile(todo.groups[0])
        rates = [throughput(todo) for _ in range(rounds)]
        peak = max(peak, matrix_product_flops())
        timed.append((problem, path, statistics.median(rates), todo.groups[0].step_flops, sizes))
    rows = (
        Row(problem.name, path, problem.networks, rate, rate * flops, rate * flops / peak, *sizes)
        for problem, path, rate, flops, sizes in timed
    )
    return Bench(machine(), peak, tuple(rows))


def _compile(group: Group) -> tuple[float, int, int]:
    """Seconds to compile a group's training, bytes that a step's program holds, and bytes of one network in it."""
    begun = time.perf_counter()
    engine.compiled("fill", group.program, group.lanes)
    engine.compiled("advance", group.program, group.tail_lanes, group.steps_per_call)
    advance = engine.compiled("advance", group.program, group.lanes, group.steps_per_call)
    seconds, sizes = time.perf_counter() - begun, advance.memory_analysis()
    held = sizes.argument_size_in_bytes + sizes.output_size_in_bytes + sizes.temp_size_in_bytes
    return seconds, held - sizes.alias_size_in_bytes, sizes.output_size_in_bytes // group.lanes


def to_json(done: Bench) -> str:
    """All figures of a run."""
    return json.dumps(done._asdict() | {"rows": [row._asdict() for row in done.rows]}, indent=1)


def plan_of(problem: Problem, path: str) -> Plan:
    """The plan of a problem on a path."""
    trainer: Trainer = "fused" if path == "fused" else "xla"
    todo = plan(_sweep(problem, problem.steps[path]), trainer)
    return in_ambient_coordinates(todo) if path == "ambient" else todo


def _sweep(problem: Problem, steps: int) -> Sweep:
    training = problem.tables.get("training", {}) | {"max_steps": steps}
    tables = problem.tables | {"training": training, "axes": {"seed": tuple(range(problem.networks))}}
    return Sweep("bench", **tables)


def throughput(todo: Plan) -> float:
    """Useful gradient steps a second of a plan of one group, on all workers, compilation left out."""
    [group] = todo.groups
    waiting = deque(todo.chunks)

    def work(_: int) -> int:
        trained = engine.train(todo.sweep, group, process.drain(waiting))
        return sum(int(arrays["steps"].sum()) for _, arrays in trained)

    workers = 1 if group.alone else process.threads()
    begun = time.perf_counter()
    with ThreadPoolExecutor(workers) as pool:
        steps = sum(pool.map(work, range(workers)))
    return steps / (time.perf_counter() - begun)


def matrix_product_flops(size: int = 2048, rounds: int = 5) -> float:
    """Operations a second of the best of some float32 matrix products on all cores."""
    a = jnp.asarray(np.random.default_rng(0).standard_normal((size, size)), jnp.float32)
    jax.block_until_ready(a @ a)
    best = np.inf
    for _ in range(rounds):
        begun = time.perf_counter()
        jax.block_until_ready(a @ a)
        best = min(best, time.perf_counter() - begun)
    return 2 * size**3 / best


def machine() -> dict[str, str]:
    """What figures belong to."""
    device, kernel = jax.devices()[0], TWO_LAYER.kernel
    assert kernel
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": str(process.cores()),
        "devices": f"{jax.local_device_count()} × {device.device_kind}",
        "kernel": kernel.unavailable(None) or kernel.label(),
        "jax": jax.__version__,
        "python": platform.python_version(),
    }
