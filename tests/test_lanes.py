"""Networks in few lanes, refilled and packed, each of its own data and settings, against float64 NumPy."""

import functools
from typing import NamedTuple

import jax
import numpy as np
import pytest
import reference
from descent import Settings, descend
from reference import Ray
from test_batching import cells_of, sweep

from subspace_adv import engine
from subspace_adv.data import SubspaceData
from subspace_adv.datasets import load_data, load_span
from subspace_adv.engine import chunks
from subspace_adv.geometry import Subspace
from subspace_adv.models import fused
from subspace_adv.network import Network
from subspace_adv.planning import Chunk, Group, plan
from subspace_adv.sweep import Sweep
from subspace_adv.training import CONVERGED, STEP_LIMIT, Trainer

LANES, TAIL, CHUNK, STEPS = 5, 2, 7, 20
"""Lanes of the whole and of the end, cells in a chunk, and steps between two looks at the lanes: all small."""

# Off a line in the plane every distance is an exact crossing.
SETTINGS = {
    "kind": "subspace",
    "ambient_dim": 2,
    "subspace_dim": 1,
    "samples": 4,
    "width": 3,
    "learning_rate": 0.05,
}
# Cells side by side differ in their points and in what only their optimizer reads.
AXES = {
    "seed": (3, 4, 5),
    "weight_decay": (0.0, 0.1),
    "stop_margin": (-0.2, 50.0),
    "max_steps": (70, 0, 130),
    "data_seed": (5, 6, 12),
}
OWN = {
    "gd": {"learning_rate": (0.05, 0.2)},
    "momentum": {"momentum": (0.5, 0.9)},
    "sgd": {"batch_size": (2, 3)},
    "adam": {"learning_rate": (0.01, 0.03)},
}
CASES = [
    pytest.param(("fused", "gd"), marks=pytest.mark.slow),
    ("fused", "momentum"),
    pytest.param(("xla", "momentum"), marks=pytest.mark.slow),
    pytest.param(("xla", "sgd"), marks=pytest.mark.slow),
    pytest.param(("xla", "adam"), marks=pytest.mark.slow),
]
# What is trained of a network, and the settings that say so.
TRAINED = {
    "gd": (Network._fields, {"loss": "exponential"}),
    "momentum": (Network._fields, {"loss": "logistic"}),
    "sgd": (("weight",), {"loss": "logistic", "init": "theory"}),
    "adam": (Network._fields, {"loss": "logistic"}),
}
# Momentum adds up ten steps' rounding errors; Adam divides by gradients that may be little more than that.
TOLERANCES = {"gd": 1e-6, "sgd": 1e-6, "momentum": 1e-5, "adam": 5e-5}


class Ran(NamedTuple):
    """A grid, run."""

    sweep: Sweep
    cells: dict[str, np.ndarray]  # what training and measuring yield, (cells, …)
    networks: Network  # in ambient coordinates, (cells, …)
    told: tuple[int, int]  # networks and steps that progress was told of

    def column(self, leaf: str) -> np.ndarray:
        """Setting of each cell."""
        return self.sweep.column(leaf, np.arange(self.sweep.cells))


def run(whole: Sweep, trainer: Trainer, *, measured: bool) -> Ran:
    """Train a grid of one group in chunks of few cells, and in few lanes that are looked at often."""
    [group] = plan(whole, trainer).groups
    group = group._replace(lanes=LANES, tail_lanes=TAIL)
    begins = range(0, whole.cells, CHUNK)
    parts = [Chunk(i, group, group.cells[begin : begin + CHUNK]) for i, begin in enumerate(begins)]
    told: list[tuple[int, int]] = []
    done = list(engine.train(whole, group, parts, lambda *news: told.append(news)))
    networks, cells = [], []
    for chunk, trained in sorted(done, key=lambda pair: pair[0].number):
        networks.append(engine.ambient_networks(whole, chunk, trained))
        cells.append(trained | (engine.measure(whole, chunk, trained) if measured else {}))
    return Ran(
        whole,
        jax.tree.map(lambda *leaves: np.concatenate(leaves), *cells),
        jax.tree.map(lambda *leaves: np.concatenate(leaves), *networks),
        tuple(np.sum(told, axis=0).tolist()),
    )


@pytest.fixture(scope="module", params=CASES, ids=" ".join)
def ran(request) -> Ran:
    """All cells of a grid, many more than lanes."""
    trainer, optimizer = request.param
    if trainer == "fused" and fused.unavailable():
        pytest.skip(str(fused.unavailable()))
    whole = sweep(SETTINGS | {"optimizer": optimizer} | TRAINED[optimizer][1], AXES | OWN[optimizer])
    with pytest.MonkeyPatch.context() as patch, jax.numpy_dtype_promotion("standard"):
        patch.setattr(Group, "steps_per_call", STEPS)
        kept: list[np.ndarray] = []
        pack = chunks._Lanes.pack
        patch.setattr(chunks._Lanes, "pack", lambda lanes, count: (kept.append(lanes.busy()), pack(lanes, count)))
        found = run(whole, trainer, measured=optimizer == "momentum")
    assert kept and kept[0].max() >= TAIL  # packing moves networks to other lanes
    return found


def settings_of(values: dict) -> SubspaceData:
    """The data of a cell."""
    return SubspaceData(ambient_dim=2, subspace_dim=1, samples=4, data_seed=values["data_seed"])


def points_of(values: dict) -> tuple[np.ndarray, np.ndarray]:
    """Training points of a cell in ambient coordinates, and labels."""
    data, span = load_data(settings_of(values)), load_span(settings_of(values))
    return data.x.astype(np.float64) @ span.basis.T, data.y


@functools.cache
def shares(seed: int, batch_size: int, epochs: int = 70) -> np.ndarray:
    """Share of each point in the loss of each step of SGD, (steps, 4): one shuffled epoch after another."""
    key = jax.random.split(jax.random.key(seed))[1]
    ranks = jax.vmap(lambda epoch: jax.random.permutation(jax.random.fold_in(key, epoch), 4))(np.arange(epochs))
    batches = -(-4 // batch_size)
    chosen = [order // batch_size == batch for order in np.asarray(ranks) for batch in range(batches)]
    return np.array([points / points.sum() for points in chosen])


def untrained(ran: Ran) -> np.ndarray:
    """For every cell, the one that differs from it in taking no step."""
    cells = [tuple(values.items()) for values in cells_of(ran.sweep.axes)]
    return np.array([cells.index(tuple((dict(values) | {"max_steps": 0}).items())) for values in cells])


def test_every_lane_trains_its_own_cell(ran):
    """From its start, on its points, by its settings, with nothing of what the lane held before."""
    cells, optimizer = cells_of(ran.sweep.axes), ran.sweep.training.optimizer
    x, y = (np.stack(arrays) for arrays in zip(*map(points_of, cells), strict=True))
    start = Network(*(field[untrained(ran)] for field in ran.networks))
    settings = Settings(*(np.float32(ran.column(leaf)) for leaf in Settings._fields))
    of_steps = None
    if optimizer == "sgd":
        of_steps = np.stack([shares(values["seed"], values["batch_size"])[:131] for values in cells], axis=1)
    how = {"optimizer": optimizer, "loss": ran.sweep.training.loss, "trained": TRAINED[optimizer][0]}
    exact = descend(start, x, y, settings, **how, shares=of_steps)
    np.testing.assert_array_equal(ran.cells["steps"], exact.steps)
    np.testing.assert_array_equal(ran.cells["status"], np.where(exact.converged, CONVERGED, STEP_LIMIT))
    assert 0.1 < exact.converged.mean() < 0.4 and len(set(exact.steps)) > 10
    tolerance = TOLERANCES[optimizer]
    for name, found, expected in zip(Network._fields, ran.networks, exact.networks, strict=True):
        np.testing.assert_allclose(found, expected, atol=tolerance, err_msg=name)
    moved = np.abs(ran.networks.weight - start.weight).max(axis=(1, 2))
    assert (moved[ran.column("max_steps") > 0] > 100 * tolerance).all()


def test_starts_are_those_of_the_seed_whatever_the_other_settings(ran):
    """In coordinates of the span, which the data seed turns: the part on it, and the length of the part off it."""
    weight, bias, head, head_bias = (field[untrained(ran)] for field in ran.networks)
    spans = [load_span(settings_of(values), complete=True) for values in cells_of(ran.sweep.axes)]
    on, off = (
        np.stack([w @ getattr(s, side) for w, s in zip(weight, spans, strict=True)]) for side in Subspace._fields
    )
    fields = {"on": on, "off": np.abs(off), "bias": bias, "head": head, "head_bias": head_bias}
    for name, values in fields.items():
        values = values.reshape(len(values), -1)
        of_seed = {seed: values[ran.column("seed") == seed] for seed in ran.sweep.axes["seed"]}
        for own in of_seed.values():
            np.testing.assert_allclose(own, own[:1].repeat(len(own), axis=0), atol=1e-6)
        if name in ("on", "off") or ran.sweep.network.init != "theory":
            one, two, three = (own[0] for own in of_seed.values())
            assert min(np.abs(one - two).min(), np.abs(one - three).min(), np.abs(two - three).min()) > 1e-4


def test_progress_is_told_of_every_network_and_step_once(ran):
    assert ran.told == (ran.sweep.cells, ran.cells["steps"].sum())


@pytest.mark.parametrize("ran", CASES[1:3], ids=" ".join, indirect=True)
def test_every_network_is_measured_at_its_own_points(ran):
    flips = 0
    for i, values in enumerate(cells_of(ran.sweep.axes)):
        network, (x, y) = Network(*(field[i] for field in ran.networks)), points_of(values)
        off = load_span(settings_of(values), complete=True).complement[:, 0]
        outputs = reference.output(network, x).astype(float)
        np.testing.assert_allclose(ran.cells["output"][i], outputs, atol=1e-6)
        for j, right in enumerate(y * outputs > 0):
            rays = [Ray.from_point(network, x[j], sign * off) for sign in (1, -1)]
            flip = min(float(ray.first_flip()) for ray in rays) if right else 0
            assert ran.cells["distance_off_l2_upper"][i, j] == pytest.approx(flip, rel=1e-4, abs=1e-6)
            flips += 0 < flip < np.inf
    assert flips > 100
