"""Training throughput of deep and convolutional networks beside what a user would write: flax under vmap, and PyTorch.

Networks of four hidden layers of width 100, and convolutional ones, 256 of each, all steps useful. Peers train in
ambient coordinates, as their user would. benchmarks/README.md holds the last table and says how to run.
"""

import argparse
import functools
import itertools
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen

from subspace_adv import bench, plan
from subspace_adv.datasets import load_data, load_span
from subspace_adv.planning import Plan
from subspace_adv.sweep import Sweep

NETWORKS, RATE = 256, 0.02
_TRAINING = {"learning_rate": RATE, "stop_margin": 1e9}


class Problem(NamedTuple):
    """Networks to train."""

    data: dict[str, Any]
    network: dict[str, Any]
    steps: int  # of ours
    peers: Callable[[], linen.Module]


class Perceptron(linen.Module):
    """Four hidden layers, of flax's own."""

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Outputs (n,) at points (n, d)."""
        for _ in range(4):
            x = linen.relu(linen.Dense(100)(x))
        return linen.Dense(1)(x)[:, 0]


class Convolutional(linen.Module):
    """Two circular convolutions, of flax's own."""

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Outputs (n,) at signals (n, d)."""
        x = linen.relu(linen.Conv(16, (12,), padding="CIRCULAR")(x[..., None]))
        x = linen.relu(linen.Conv(16, (3,), padding="CIRCULAR")(x))
        return linen.Dense(1)(x.mean(axis=-2))[:, 0]


def on_a_line(d: int) -> dict[str, Any]:
    """Seven points of a line in R^d."""
    return {"kind": "subspace", "ambient_dim": d, "subspace_dim": 1, "samples": 7, "distribution": "gaussian"}


_DEEP = {"init": "torch", "width": 100, "depth": 4}
_CNN = {"architecture": "cnn", "init": "torch", "width": 16, "depth": 2, "kernel": 12}
PROBLEMS = {
    "depth 4, width 100, d 20": Problem(on_a_line(20), _DEEP, 600, Perceptron),
    "depth 4, width 100, d 2": Problem(on_a_line(2), _DEEP, 600, Perceptron),
    "cnn, depth 2, 16 channels, d 32": Problem(
        {"kind": "band-limited", "ambient_dim": 32, "frequencies": 2, "samples": 8}, _CNN, 300, Convolutional
    ),
}


def ours(problem: Problem) -> Plan:
    """The plan of a problem."""
    training = _TRAINING | {"max_steps": problem.steps}
    axes = {"seed": range(NETWORKS)}
    return plan(Sweep("deep", data=problem.data, network=problem.network, training=training, axes=axes))


def points_of(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """Points (n, d) and labels (n,)."""
    settings = ours(problem).sweep.dataset({})
    data = load_data(settings)
    return np.asarray(data.x @ load_span(settings).basis.T, np.float32), data.y


def plain_flax_rate(problem: Problem, seconds: float) -> float:
    """`jit(vmap(grad))` of a flax module in a fori_loop; useful steps a second, as none stops."""
    x, y = map(jnp.asarray, points_of(problem))
    module = problem.peers()

    def step(_: int, params: Any) -> Any:
        def loss(params: Any) -> jax.Array:
            outputs: Any = module.apply(params, x)
            return jnp.mean(jax.nn.softplus(-y * outputs))

        return jax.tree.map(lambda p, g: p - RATE * g, params, jax.grad(loss)(params))

    @functools.partial(jax.jit, donate_argnums=0)
    def steps(params: Any) -> Any:
        return jax.lax.fori_loop(0, 5, jax.vmap(step, in_axes=(None, 0)), params)

    params = jax.jit(jax.vmap(lambda key: module.init(key, x)))(jax.random.split(jax.random.key(0), NETWORKS))
    params = jax.block_until_ready(steps(params))
    taken, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < seconds:
        params = jax.block_until_ready(steps(params))
        taken += 5 * NETWORKS
    return taken / (time.perf_counter() - begun)


def torch_loop_rate(problem: Problem, seconds: float) -> float:
    """One network after the other, its margin looked at point by point after each step, as the paper's code does."""
    import torch

    x, y = map(torch.tensor, points_of(problem))
    if problem.peers is Perceptron:
        sizes = [x.shape[1], 100, 100, 100, 100]
        layers = [layer for a, b in itertools.pairwise(sizes) for layer in (torch.nn.Linear(a, b), torch.nn.ReLU())]
        model, given = torch.nn.Sequential(*layers, torch.nn.Linear(100, 1)), x
    else:
        first = torch.nn.Conv1d(1, 16, 12, padding="same", padding_mode="circular")
        second = torch.nn.Conv1d(16, 16, 3, padding="same", padding_mode="circular")
        pooled = (torch.nn.AdaptiveAvgPool1d(1), torch.nn.Flatten(), torch.nn.Linear(16, 1))
        model, given = torch.nn.Sequential(first, torch.nn.ReLU(), second, torch.nn.ReLU(), *pooled), x[:, None]
    optimizer, criterion = torch.optim.SGD(model.parameters(), lr=RATE), torch.nn.BCELoss()
    taken, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < seconds:
        optimizer.zero_grad()
        criterion(torch.sigmoid(model(given)).squeeze(1), (y + 1) / 2).backward()
        optimizer.step()
        taken += 1
        with torch.no_grad():
            min(float(y[i] * model(given[i : i + 1])) for i in range(len(y)))
    return taken / (time.perf_counter() - begun)


def main() -> None:
    """Interleave the rounds, and print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8, help="that a peer is timed for, a round")
    arguments = parser.parse_args()
    print("; ".join(f"{name} {value}" for name, value in bench.machine().items()))
    print(f"{'':34}{'ours':>12}{'plain flax':>12}{'×':>7}{'PyTorch loop':>14}{'×':>8}{'of peak':>9}")
    for name, problem in PROBLEMS.items():
        todo = ours(problem)
        bench.throughput(todo)  # compiles
        rounds: list[tuple[float, ...]] = []
        for number in range(arguments.rounds):
            peers = (plain_flax_rate(problem, arguments.seconds), torch_loop_rate(problem, arguments.seconds / 2))
            rounds.append((bench.throughput(todo), *peers, bench.matrix_product_flops()))
            print(f"round {number + 1}: {name}: {', '.join(f'{rate:,.0f}' for rate in rounds[-1])}", file=sys.stderr)
        mine, flax, torch, peak = map(statistics.median, zip(*rounds, strict=True))
        share = mine * todo.groups[0].step_flops / peak
        print(f"{name:34}{mine:12,.0f}{flax:12,.0f}{mine / flax:7.1f}{torch:14,.0f}{mine / torch:8.0f}{share:9.0%}")


if __name__ == "__main__":
    main()
