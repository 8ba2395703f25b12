"""One network, three ways to train it: the kernel, XLA's program and float64; on one core, two, or several devices."""

import functools
import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shell import in_its_stead, needs_kernel

from subspace_adv import engine, planning, training
from subspace_adv.data import LineData
from subspace_adv.engine.pinned import compiler_options
from subspace_adv.errors import UserError
from subspace_adv.initialization import Law, init_network
from subspace_adv.models import MODELS, TWO_LAYER, fused, trained_fields
from subspace_adv.network import Network
from subspace_adv.optimizers import Hyper
from subspace_adv.sweep import Sweep
from subspace_adv.training import CONVERGED, DIVERGED, STEP_LIMIT


def line_sweep(seeds: int, **leaves: float) -> Sweep:
    network = {"init_scale": leaves.pop("init_scale", 1.0)}
    return Sweep("trainers", network=network, training=leaves, axes={"seed": range(seeds)})


def steps_of(sweep: Sweep, trainer: training.Trainer) -> np.ndarray:
    """Steps that each network takes to its stop."""
    todo = planning.plan(sweep, trainer)
    trained = sorted(engine.train(sweep, todo.groups[0], todo.chunks), key=lambda done: done[0].number)
    return np.concatenate([arrays["steps"] for _, arrays in trained])


def steps_in_float64(seeds: int, learning_rate: float, weight_decay: float) -> np.ndarray:
    """The same by plain gradient descent on all networks at once in float64 NumPy."""
    law, data = Law("paper-code", 100, 2, 1), LineData().draw()

    def draw(seed: jax.Array) -> tuple:
        return init_network(jax.random.split(jax.random.key(seed))[0], jnp.int32(100), jnp.float32(1), law=law)

    drawn = jax.jit(jax.vmap(draw), compiler_options=compiler_options(quick=False))(jnp.arange(seeds, dtype=jnp.uint32))
    w, b, u, c = (np.asarray(a, np.float64) for a in drawn)
    w, x, y = w[:, :, 0], data.x[:, 0].astype(np.float64), data.y.astype(np.float64)
    eta, decay, stop = (float(np.float32(v)) for v in (learning_rate, weight_decay, 0.3))
    steps, going_on = np.zeros(seeds, int), np.arange(seeds)
    for step in range(40_001):
        z = w[:, None] * x[:, None] + b[:, None]
        hidden = np.maximum(z, 0)
        margins = y * (np.einsum("knm,km->kn", hidden, u) + c[:, None])
        kept = (margins.min(axis=1) <= stop) if step else np.ones(len(w), bool)
        steps[going_on[~kept]] = step
        going_on, w, b, u, c, z, hidden, margins = (a[kept] for a in (going_on, w, b, u, c, z, hidden, margins))
        if not len(going_on):
            break
        g = -y / (1 + np.exp(margins)) / len(x)
        active = g[:, :, None] * (z > 0)
        of_w, of_b = u * np.einsum("knm,n->km", active, x), u * active.sum(axis=1)
        of_u = np.einsum("kn,knm->km", g, hidden)
        w, b, u = w - eta * (of_w + decay * w), b - eta * (of_b + decay * b), u - eta * (of_u + decay * u)
        c = c - eta * (g.sum(axis=1) + decay * c)
    return steps


def assert_alike(found: np.ndarray, expected: np.ndarray) -> None:
    """Within one step in 98 % of the networks, whichever instructions a processor rounds by; within 0.1 % in all."""
    apart = np.abs(found - expected)
    assert np.mean(apart <= 1) >= 0.98
    assert np.all(apart <= 1 + 0.001 * expected)


@pytest.mark.slow
def test_networks_stop_where_float64_does_by_either_trainer():
    exact = steps_in_float64(300, 0.02, 0.0)
    assert exact.min() > 1000
    trainers = ("xla",) if fused.unavailable() else ("xla", "fused")
    found = [steps_of(line_sweep(300, learning_rate=0.02), trainer) for trainer in trainers]
    for one, other in itertools.combinations([exact, *found], 2):
        assert_alike(other, one)


@needs_kernel
@pytest.mark.slow
@pytest.mark.parametrize("init", ["theory", "paper-code"])
@pytest.mark.parametrize("trainable", ["all", "hidden"])
def test_both_trainers_train_the_same_parameters(init, trainable):
    """Those that the law and the setting name, and no others."""
    network = {"init": init, "trainable": trainable, "width": 9}
    sweeps = [
        Sweep(
            "both",
            data={"kind": "chessboard"},
            network=network,
            training={"learning_rate": 0.02, "weight_decay": 0.1, "max_steps": steps},
            axes={"seed": range(4)},
        )
        for steps in (0, 30)
    ]

    def networks(sweep: Sweep, trainer: training.Trainer) -> Network:
        todo = planning.plan(sweep, trainer)
        [(chunk, arrays)] = engine.train(sweep, todo.groups[0], todo.chunks)
        return engine.ambient_networks(sweep, chunk, arrays)

    start, by_xla = (networks(sweep, "xla") for sweep in sweeps)
    by_kernel = networks(sweeps[1], "fused")
    names = trained_fields(init, trainable)
    for name, before, one, other in zip(Network._fields, start, by_xla, by_kernel, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-6, err_msg=name)
        assert (np.abs(one - before).max() > 1e-3) == (name in names), name


def test_a_trainer_that_cannot_serve_is_refused_with_the_reason(monkeypatch):
    sweep = Sweep("a", training={"optimizer": "adam"})
    with pytest.raises(UserError, match=r"trainer 'fused' cannot serve: .*; leave the trainer out, or request 'xla'"):
        planning.plan(sweep, "fused")
    kernel = TWO_LAYER.kernel._replace(unavailable=lambda platform: "there is no compiler")
    monkeypatch.setattr(MODELS, "_rows", {"mlp": in_its_stead(kernel=kernel)})
    with pytest.raises(UserError, match="trainer 'fused' cannot serve: there is no compiler"):
        planning.plan(line_sweep(1), "fused")
    [group] = planning.plan(line_sweep(1)).groups
    assert (group.program.recipe.trainer, group.why[1]) == ("xla", "there is no compiler")


class Small(NamedTuple):
    """Two neurons on one input: first layer, biases, head, its bias, points (n, 1) and labels."""

    weight: tuple
    bias: tuple
    head: tuple
    head_bias: float
    x: tuple
    y: tuple


TRAINERS = ["xla", pytest.param("fused", marks=needs_kernel)]
HUGE = 3e38  # half as much again is over float32's range


def ended(
    given: Small, trainer: training.Trainer, *, trained: tuple[str, ...], loss: training.Loss, **settings
) -> tuple:
    """Statuses and steps of copies of a network, one for each of the settings that are lists."""
    defaults = {
        "learning_rate": 0.1,
        "weight_decay": 0,
        "momentum": 0,
        "batch_size": 1,
        "stop_margin": 0.3,
        "max_steps": 5,
    }
    columns = np.broadcast_arrays(*(defaults | settings).values())
    whole = ("batch_size", "max_steps")
    hyper = Hyper(
        **{
            name: np.atleast_1d(np.asarray(column, np.int32 if name in whole else np.float32))
            for name, column in zip(defaults, columns, strict=True)
        }
    )
    network = Network(*(np.float32(field) for field in ([[w] for w in given.weight], *given[1:4])))
    recipe = training.Recipe(TWO_LAYER, loss, "gd", trained, trainer)
    state = _end(network, np.float32(given.x)[:, None], np.float32(given.y), hyper, recipe)
    return state.status.tolist(), state.step.tolist()


@functools.partial(jax.jit, static_argnames="recipe")
def _end(network: Network, x: jax.Array, y: jax.Array, hyper: Hyper, recipe: training.Recipe):
    def train(hyper: Hyper) -> training.TrainState:
        state = training.start(network, hyper, jax.random.key(0), recipe=recipe)
        state = training.advance(state, x, y, hyper, recipe=recipe, steps=20)
        return state._replace(status=jnp.where(training.are_finite(state), state.status, DIVERGED))

    return jax.vmap(train)(hyper)


OVERFLOWS = {
    "to +inf, rightly": Small((1, 1), (0, 0), (HUGE, 0), 0, (1.5,), (1,)),
    "to -inf, rightly": Small((1, 1), (0, 0), (0, -HUGE), 0, (1.5,), (-1,)),
    "in a sum": Small((1, 1), (0, 0), (HUGE, HUGE), 0, (1,), (1,)),
    "wrongly": Small((1, 1), (0, 0), (HUGE, 0), 0, (1.5,), (-1,)),
    "at one of the points": Small((1, 1), (0, 0), (HUGE, 0), 1, (1, -2, 1.5), (1, 1, 1)),
    "both ways": Small((1, 1), (0, 0), (HUGE, -HUGE), 0, (1.5,), (1,)),
    "in the head bias": Small((1, 1), (0, 0), (1, 1), np.inf, (1.5,), (1,)),
    "in the first layer": Small((HUGE, 1), (0, 0), (1, 1), 0, (1.5,), (1,)),
}


@pytest.mark.parametrize("trainer", TRAINERS)
@pytest.mark.parametrize("given", OVERFLOWS.values(), ids=OVERFLOWS)
def test_an_output_that_overflows_has_diverged_though_its_sign_is_right(given, trainer):
    """Before its first step, where no step is allowed, and whatever the margin sought."""
    allowed, margins = [5, 0, 5, 5], [0.3, 0.3, -np.inf, np.inf]
    found = ended(given, trainer, trained=Network._fields, loss="logistic", max_steps=allowed, stop_margin=margins)
    assert found == ([DIVERGED] * 4, [0] * 4)


@pytest.mark.parametrize("trainer", TRAINERS)
def test_an_output_that_overflows_at_the_last_step_has_diverged(trainer):
    """The step from -80 goes e^80·10⁴ up."""
    given = Small((0, 0), (0, 0), (0, 0), -80, (1,), (1,))
    steps = {"learning_rate": [1e4, 1e3, 1e3], "max_steps": [1, 1, 5]}
    found = ended(given, trainer, trained=Network._fields, loss="exponential", **steps)
    assert found == ([DIVERGED, CONVERGED, CONVERGED], [1, 1, 1])
    found = ended(given, trainer, trained=Network._fields, loss="exponential", stop_margin=np.inf, **steps)
    assert found == ([DIVERGED, STEP_LIMIT, STEP_LIMIT], [1, 1, 5])


@pytest.mark.parametrize("trainer", TRAINERS)
def test_a_weight_that_overflows_has_diverged_though_no_output_has(trainer):
    """Its neuron sleeps at every point from then on, so the outputs are 0."""
    given = Small((1.5, 0), (0, 0), (-1, 0), 0, (1,), (1,))
    settings = {"learning_rate": [HUGE, 1e30, HUGE, 1e30], "stop_margin": [-1, -1, 1, 1], "max_steps": [5, 5, 1, 1]}
    found = ended(given, trainer, trained=("weight",), loss="exponential", **settings)
    assert found == ([DIVERGED, CONVERGED, DIVERGED, STEP_LIMIT], [1] * 4)


@pytest.mark.parametrize("trainer", TRAINERS)
def test_a_margin_at_the_limit_does_not_exceed_it(trainer):
    """Outputs are ½ at every step."""
    given = Small((0, 0), (0, 0), (0, 0), 0.5, (1, 2), (1, 1))
    limits = [0.5, np.nextafter(np.float32(0.5), np.float32(0)), np.nextafter(np.float32(0.5), np.float32(1))]
    settings = {"learning_rate": 0, "stop_margin": limits, "max_steps": 3}
    found = ended(given, trainer, trained=Network._fields, loss="logistic", **settings)
    assert found == ([STEP_LIMIT, CONVERGED, STEP_LIMIT], [3, 1, 3])


SCRIPT = """
import hashlib, os, sys
if sys.argv[1] == "cores":
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(sys.argv[2])])
from subspace_adv import Sweep, engine, plan, process
import jax, numpy as np
sweep = Sweep("a", network={"width": 20}, measure={"regions": ["off"]}, training={"max_steps": 300},
    axes={"seed": range(90)})
trainer = "fused" if sys.argv[1] == "cores" else "xla"
todo = plan(sweep, trainer)
[group] = todo.groups
digest = hashlib.sha256()
done = sorted(engine.train(sweep, group, todo.chunks), key=lambda d: d[0].number)
for chunk, arrays in done:
    arrays = arrays | engine.measure(sweep, chunk, arrays)
    for name in sorted(arrays):
        digest.update(arrays[name].tobytes())
program = engine.compiled("advance", group.program, group.lanes, group.steps_per_call)
devices, shares = jax.local_device_count(), jax.tree.leaves(program.output_shardings)
assert {(len(share.device_set), share.is_fully_replicated) for share in shares} == {(devices, devices == 1)}
assert not any(word in program.as_text() for word in ("all-reduce", "all-gather", "collective-permute", "all-to-all"))
print(devices, process.threads(), digest.hexdigest())
"""


def run_script(*arguments: str, **environment: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
        cwd=Path(__file__).parent,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@needs_kernel
@pytest.mark.slow
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="takes two cores")
def test_results_are_the_same_to_the_byte_on_one_core_and_on_two():
    (_, one, alone), (_, two, together) = run_script("cores", "1"), run_script("cores", "2")
    assert (one, two) == ("1", "2")
    assert alone == together


@pytest.mark.slow
def test_networks_are_spread_over_all_local_devices_without_collectives():
    devices = "--xla_force_host_platform_device_count="
    one, two = (run_script("devices", XLA_FLAGS=devices + count) for count in "12")
    assert (one[0], two[0]) == ("1", "2")
    assert two[1] == "1"
    assert one[2] == two[2]
