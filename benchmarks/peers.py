"""Training throughput beside what a user would write instead: one run, interleaved rounds, medians and ratios.

Claim: on CPU, networks of the paper's line experiment (7 points, width 100, margin 0.3) train at more than 20 times the
speed of plain `jit(vmap(grad))` and thousands of times that of a PyTorch loop over networks, at more than half of the
machine's float32 matrix-product peak; and data of few dimensions in a large space cost what they do without it. A whole
run of the line, which also measures in three regions and commits the results, is more than 15 times as fast as plain
JAX. benchmarks/README.md holds the last table and says how to run.

Useful gradient steps are those of networks that had not stopped yet; peers' wasted ones are counted beside. Every peer
trains in ambient coordinates, as its user would. What runs for long is timed over a part of it, where no network has
stopped: all but plain JAX on the line, whose end shows what waiting for the last network costs.
"""

import argparse
import functools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from subspace_adv import bench, run
from subspace_adv.datasets import load_data, load_span
from subspace_adv.initialization import Law, init_network
from subspace_adv.planning import Plan, plan
from subspace_adv.sweep import Sweep
from subspace_adv.training import Trainer

STOP_MARGIN = 0.3


class Task(NamedTuple):
    """What a peer is to train: networks and points in ambient coordinates."""

    x: np.ndarray  # (n, d)
    y: np.ndarray  # (n,)
    parameters: list[np.ndarray]  # weight (networks, m, d), bias, head, head bias
    learning_rate: float
    max_steps: int
    seconds: float  # after which a peer may stop


def task_of(problem: bench.Problem, seconds: float) -> Task:
    """A problem of `subspace-adv bench`, for its peers."""
    sweep = bench.plan_of(problem, "xla").sweep
    settings = sweep.dataset({})
    data, span = load_data(settings), load_span(settings)
    d, width = len(span.basis), sweep.network.width
    law = Law(sweep.network.init, width, d, d)

    def one(seed: jax.Array) -> tuple:
        key, _ = jax.random.split(jax.random.key(seed))
        return init_network(key, jnp.int32(width), jnp.float32(1), law=law)

    drawn = jax.jit(jax.vmap(one))(jnp.arange(problem.networks, dtype=jnp.uint32))
    x = np.asarray(data.x @ span.basis.T, np.float32)
    return Task(x, data.y, list(map(np.asarray, drawn)), sweep.training.learning_rate, 40_000, seconds)


def advance_until_stopped(task: Task, block: int, advance: Callable[[], np.ndarray]) -> tuple[float, float]:
    """Useful and all steps a second of calls that take `block` steps of all networks and return their margins."""
    advance()  # compiles
    stopped, useful, taken, begun = np.zeros(len(task.parameters[0]), bool), 0, 0, time.perf_counter()
    while not stopped.all() and taken < task.max_steps and time.perf_counter() - begun < task.seconds:
        useful += int((~stopped).sum()) * block
        stopped |= advance() > STOP_MARGIN
        taken += block
    elapsed = time.perf_counter() - begun
    return useful / elapsed, taken * len(stopped) / elapsed


def plain_rate(task: Task, block: int) -> tuple[float, float]:
    """The obvious JAX program: vmap of autodiff in a fori_loop, every network until the last one stops."""
    x, y = jnp.asarray(task.x), jnp.asarray(task.y)

    def outputs(parameters: list[jax.Array]) -> jax.Array:
        weight, bias, head, head_bias = parameters
        return jax.nn.relu(x @ weight.T + bias) @ head + head_bias

    def loss(parameters: list[jax.Array]) -> jax.Array:
        return jnp.mean(jax.nn.softplus(-y * outputs(parameters)))

    def step(parameters: list[jax.Array]) -> list[jax.Array]:
        return jax.tree.map(lambda p, g: p - task.learning_rate * g, parameters, jax.grad(loss)(parameters))

    @jax.jit
    def steps(parameters: list[jax.Array]) -> tuple[list[jax.Array], jax.Array]:
        parameters = jax.lax.fori_loop(0, block, lambda _, p: jax.vmap(step)(p), parameters)
        return parameters, jnp.min(y * jax.vmap(outputs)(parameters), axis=1)

    parameters = [jnp.asarray(p) for p in task.parameters]

    def advance() -> np.ndarray:
        nonlocal parameters
        parameters, margins = steps(parameters)
        return np.asarray(margins)

    return advance_until_stopped(task, block, advance)


def torch_func_rate(task: Task, block: int) -> tuple[float, float]:
    """The same in PyTorch: `torch.func.vmap(torch.func.grad(loss))`, all networks at once."""
    import torch

    x, y = torch.tensor(task.x), torch.tensor(task.y)
    parameters = tuple(torch.tensor(p) for p in task.parameters)

    def outputs(weight: torch.Tensor, bias: torch.Tensor, head: torch.Tensor, head_bias: torch.Tensor) -> torch.Tensor:
        return torch.relu(x @ weight.T + bias) @ head + head_bias

    def loss(parameters: tuple) -> torch.Tensor:
        return torch.nn.functional.softplus(-y * outputs(*parameters)).mean()

    gradient = torch.func.vmap(torch.func.grad(loss))

    def advance() -> np.ndarray:
        for _ in range(block):
            for p, g in zip(parameters, gradient(parameters), strict=True):
                p.sub_(g, alpha=task.learning_rate)
        return (y * torch.func.vmap(outputs)(*parameters)).min(dim=1).values.numpy()

    with torch.no_grad():
        return advance_until_stopped(task, block, advance)


def torch_loop_rate(task: Task, block: int) -> tuple[float, float]:
    """The paper's manner in PyTorch: network after network, the margin checked point by point after each step."""
    import torch

    del block
    x, y = torch.tensor(task.x), torch.tensor(task.y)
    networks, width, d = task.parameters[0].shape
    steps, begun = 0, time.perf_counter()
    for i in range(networks):
        model = torch.nn.Sequential(torch.nn.Linear(d, width), torch.nn.ReLU(), torch.nn.Linear(width, 1))
        with torch.no_grad():
            for parameter, values in zip(model.parameters(), task.parameters, strict=True):
                parameter.copy_(torch.tensor(values[i]).reshape(parameter.shape))
        optimizer = torch.optim.SGD(model.parameters(), lr=task.learning_rate)
        criterion = torch.nn.BCELoss()
        for _ in range(task.max_steps):
            optimizer.zero_grad()
            criterion(torch.sigmoid(model(x)).squeeze(1), (y + 1) / 2).backward()
            optimizer.step()
            steps += 1
            with torch.no_grad():
                margin = min(float(y[n] * model(x[n])) for n in range(len(y)))
            if margin > STOP_MARGIN or time.perf_counter() - begun > task.seconds:
                break
        if time.perf_counter() - begun > task.seconds:
            break
    rate = steps / (time.perf_counter() - begun)
    return rate, rate


def whole_run_rate() -> tuple[float, float]:
    """Useful steps a second of a whole run of the line's standard arm: trained, measured and committed."""
    arm = [f"seed=0:{RUN_NETWORKS}", "init_scale=1.0", "weight_decay=0.0"]
    sweep = Sweep.from_toml(Path(__file__).parent.parent / "sweeps" / "line.toml", arm)
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        steps = int(run(sweep, Path(folder) / "out")["steps"].sum())
        rate = steps / (time.perf_counter() - begun)
    return rate, rate


RUN_NETWORKS = 16_384
WHOLE_RUN = "subspace_adv, whole run"
PEERS = {"plain jit(vmap(grad))": plain_rate, "torch.func vmap(grad)": torch_func_rate, "PyTorch loop": torch_loop_rate}
BLOCKS = {"line, to its margin": 200, "chessboard": 20}  # steps between two looks at the margins; else 1


def timers_of(problem: bench.Problem, seconds: float) -> dict[str, Callable[[], tuple[float, float]]]:
    """How to time each path of ours and each peer; what is compiled is compiled already."""

    def ours(todo: Plan) -> tuple[float, float]:
        rate = bench.throughput(todo)
        return rate, rate

    timers = {}
    for path in bench.paths():
        if path in problem.steps and path != "ambient":
            timers[f"subspace_adv, {path}"] = functools.partial(ours, bench.plan_of(problem, path))
            timers[f"subspace_adv, {path}"]()
    if "margin" in problem.name:
        timers[WHOLE_RUN] = whole_run_rate
        whole_run_rate()
    block, task = BLOCKS.get(problem.name, 1), task_of(problem, seconds)
    for name, rate in PEERS.items():
        whole = rate is plain_rate and "margin" in problem.name
        timers[name] = functools.partial(rate, task._replace(seconds=np.inf) if whole else task, block)
    return timers


def useful_share(trainer: Trainer, rounds: int) -> float:
    """Useful steps a second where networks stop at very different times, over those where all take as many.

    From `init_scale` 1 to 1/3, the line's networks take 1,500 steps to 40,000.
    """
    axes = {"seed": tuple(range(256)), "init_scale": (1.0, 2 / 3, 0.5, 1 / 3)}
    todos = [
        plan(Sweep("mixed", training=training, axes=axes), trainer)
        for training in ({"max_steps": 40_000}, {"max_steps": 8000, "stop_margin": 1e9})
    ]
    for todo in todos:
        bench.throughput(todo)  # compiles
    rates = [[bench.throughput(todo) for todo in todos] for _ in range(rounds)]
    mixed, whole = map(statistics.median, zip(*rates, strict=True))
    return mixed / whole


def main() -> None:
    """Interleave the rounds, print medians and ratios, and write them as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10, help="that a peer is timed for, a round")
    parser.add_argument("--problems", type=int, default=len(bench.PROBLEMS), help="how many, in their order")
    parser.add_argument("--json", help="file to write the figures to")
    arguments = parser.parse_args()
    print("; ".join(f"{name} {value}" for name, value in bench.machine().items()))
    found, peaks = {}, []
    for problem in bench.PROBLEMS[: arguments.problems]:
        timers = timers_of(problem, arguments.seconds)
        rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in timers}
        for number in range(arguments.rounds):
            peaks.append(bench.matrix_product_flops())
            for name, rate in timers.items():
                rounds[name].append(rate())
                print(f"round {number + 1}: {problem.name}: {name}: {rounds[name][-1][0]:,.1f}/s", file=sys.stderr)
        medians = {name: tuple(map(statistics.median, zip(*values, strict=True))) for name, values in rounds.items()}
        found[problem.name] = medians
        flops, peak = bench.plan_of(problem, "xla").groups[0].step_flops, statistics.median(peaks)
        ours = [name for name in medians if name not in PEERS]
        print(f"\n{problem.name}, {problem.networks:,} networks (matrix-product peak {peak / 1e9:.0f} GFLOP/s)")
        print(f"{'':24}{'useful net-steps/s':>20}{'all':>14}{'of peak':>9}", end="")
        print("".join(f"{f'{name[14:]}, ×':>14}" for name in ours))
        for name, (useful, every) in medians.items():
            share = f"{useful * flops / peak:.0%}" if name in ours and name != WHOLE_RUN else ""
            ratios = "".join(f"{medians[own][0] / useful:14,.1f}" for own in ours)
            print(f"{name:24}{useful:20,.1f}{every:14,.1f}{share:>9}{ratios}")
    shares = {path: useful_share(path, arguments.rounds) for path in bench.paths() if path != "ambient"}
    told = ", ".join(f"{path} {share:.0%}" for path, share in shares.items())
    print(f"\nline, init_scale 1 to 1/3, useful steps a second over those without stops: {told}")
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(
                {"machine": bench.machine(), "net_steps": found, "peaks": peaks, "useful": shares}, file, indent=1
            )


if __name__ == "__main__":
    main()
