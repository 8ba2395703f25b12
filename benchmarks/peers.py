"""Training throughput on the paper's line experiment, beside what a user would write instead; one run, ratios.

Claim: 1,024 networks of sweeps/line.toml (7 points, width 100, margin 0.3) train at several times the speed of plain
`jit(vmap(grad))` on the same machine, and at hundreds of times that of a PyTorch loop over networks.
benchmarks/README.md holds the last table and says how to run.

Only useful gradient steps count: those of networks that had not stopped yet. The plain JAX loop runs in blocks of
steps until its last network has stopped; the ratio is also given with all of its steps counted.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np

from subspace_adv import engine, planning, runner
from subspace_adv.data import line
from subspace_adv.network import init_network
from subspace_adv.sweep import Sweep

LEARNING_RATE, STOP_MARGIN, MAX_STEPS, WIDTH = 0.02, 0.3, 40_000, 100


def engine_rate(networks: int) -> tuple[float, float]:
    """(useful steps/s, all steps/s) of this package's engine, all workers busy, compilation excluded."""
    sweep = Sweep.model_validate({"name": "bench", "axes": {"seed": tuple(range(networks))}})
    todo = planning.plan(sweep)
    [group] = todo.groups
    engine.executables(group)
    waiting = deque(todo.chunks)

    def work(_: int) -> int:
        trained = engine.train(sweep, group, runner.drain(waiting))
        return sum(int(arrays["steps"].sum()) for _, arrays in trained)

    begun = time.perf_counter()
    with ThreadPoolExecutor(runner.workers()) as pool:
        steps = sum(pool.map(work, range(runner.workers())))
    rate = steps / (time.perf_counter() - begun)
    return rate, rate


def draw(networks: int) -> list[jax.Array]:
    """Initial parameters of the same networks, (networks, …) each."""

    def one(seed: jax.Array) -> tuple:
        init_key, _ = jax.random.split(jax.random.key(seed))
        return init_network(
            init_key, jnp.int32(WIDTH), jnp.float32(1), law="paper-code", padded_width=WIDTH, ambient_dim=2
        )

    return list(jax.jit(jax.vmap(one))(jnp.arange(networks, dtype=jnp.uint32)))


def plain_rate(networks: int, block: int = 200) -> tuple[float, float]:
    """The obvious JAX program: vmap of autodiff in a fori_loop, every network until the last one stops."""
    data = line()
    x, y = jnp.asarray(data.x), jnp.asarray(data.y)

    def outputs(parameters: list[jax.Array]) -> jax.Array:
        weight, bias, head, head_bias = parameters
        return jax.nn.relu(x @ weight.T + bias) @ head + head_bias

    def loss(parameters: list[jax.Array]) -> jax.Array:
        return jnp.mean(jax.nn.softplus(-y * outputs(parameters)))

    def step(parameters: list[jax.Array]) -> list[jax.Array]:
        return jax.tree.map(lambda p, g: p - LEARNING_RATE * g, parameters, jax.grad(loss)(parameters))

    @jax.jit
    def advance(parameters: list[jax.Array]) -> tuple[list[jax.Array], jax.Array]:
        parameters = jax.lax.fori_loop(0, block, lambda _, p: jax.vmap(step)(p), parameters)
        return parameters, jnp.min(y * jax.vmap(outputs)(parameters), axis=1) > STOP_MARGIN

    parameters = draw(networks)
    jax.block_until_ready(advance(parameters))
    stopped, useful, taken = np.zeros(networks, bool), 0, 0
    begun = time.perf_counter()
    while not stopped.all() and taken < MAX_STEPS:
        useful += int((~stopped).sum()) * block
        parameters, done = advance(parameters)
        stopped |= np.asarray(done)
        taken += block
    elapsed = time.perf_counter() - begun
    return useful / elapsed, taken * networks / elapsed


def torch_rate(networks: int, seconds: float) -> tuple[float, float]:
    """The paper's manner in PyTorch: network after network, the margin checked point by point after each step."""
    import torch

    data = line()
    x, y = torch.tensor(data.x), torch.tensor(data.y)
    initial = [np.asarray(p) for p in draw(networks)]
    steps, begun = 0, time.perf_counter()
    for i in range(networks):
        model = torch.nn.Sequential(torch.nn.Linear(2, WIDTH), torch.nn.ReLU(), torch.nn.Linear(WIDTH, 1))
        with torch.no_grad():
            for parameter, values in zip(model.parameters(), initial, strict=True):
                parameter.copy_(torch.tensor(values[i]).reshape(parameter.shape))
        optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
        criterion = torch.nn.BCELoss()
        for _ in range(MAX_STEPS):
            optimizer.zero_grad()
            criterion(torch.sigmoid(model(x)).squeeze(1), (y + 1) / 2).backward()
            optimizer.step()
            steps += 1
            with torch.no_grad():
                margin = min(float(y[n] * model(x[n])) for n in range(len(y)))
            if margin > STOP_MARGIN or time.perf_counter() - begun > seconds:
                break
        if time.perf_counter() - begun > seconds:
            break
    rate = steps / (time.perf_counter() - begun)
    return rate, rate


def main() -> None:
    """Interleave the rounds, print medians and ratios, and write them as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--torch-seconds", type=float, default=10.0, help="per round; 0 leaves PyTorch out")
    parser.add_argument("--json", help="file to write the figures to")
    arguments = parser.parse_args()
    peers: dict[str, Callable[[], tuple[float, float]]] = {
        "subspace_adv": lambda: engine_rate(arguments.networks),
        "plain jit(vmap(grad))": lambda: plain_rate(arguments.networks),
    }
    if arguments.torch_seconds > 0:
        peers["PyTorch loop"] = lambda: torch_rate(arguments.networks, arguments.torch_seconds)
    rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in peers}
    for number in range(arguments.rounds):
        for name, rate in peers.items():
            rounds[name].append(rate())
            print(f"round {number + 1}: {name}: {rounds[name][-1][0]:,.0f} useful net-steps/s", file=sys.stderr)
    medians = {name: tuple(map(statistics.median, zip(*values, strict=True))) for name, values in rounds.items()}
    ours = medians["subspace_adv"][0]
    print(f"jax {jax.__version__}, Python {platform.python_version()}, {os.cpu_count()} cores, {platform.machine()}")
    print(f"{'':24}{'useful net-steps/s':>20}{'all net-steps/s':>20}{'ours, × useful':>16}{'× all':>10}")
    for name, (useful, every) in medians.items():
        print(f"{name:24}{useful:20,.0f}{every:20,.0f}{ours / useful:16.1f}{ours / every:10.1f}")
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump({name: {"useful": u, "all": a} for name, (u, a) in medians.items()}, file)


if __name__ == "__main__":
    main()
