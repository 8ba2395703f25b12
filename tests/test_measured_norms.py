"""Distances in all norms, as the engine measures them, against proven optima and NumPy in ambient coordinates."""

import functools
import importlib.util
import itertools
from typing import NamedTuple

import numpy as np
import pytest
import reference
from optimum import ORDER, least_flip
from reference import Ray
from shell import read, trained

from subspace_adv import engine
from subspace_adv.datasets import load_span
from subspace_adv.geometry import Subspace
from subspace_adv.network import Network
from subspace_adv.norms import NORMS
from subspace_adv.planning import plan

CLOSE = 1e-5  # between networks in float32, as they are kept, and in the float64 that is measured

# In the plane off a line, canonical coordinates are turned against the axes.
TEXT = """
[data]
kind = "subspace"
ambient_dim = 3
subspace_dim = 1
samples = 3
data_seed = 1
basis = "axis-aligned"
[network]
width = 6
[training]
learning_rate = 0.2
weight_decay = 0.02
max_steps = 30
stop_margin = inf
[measure]
regions = ["off"]
norms = ["linf", "l1", "l2"]
attack_steps = 20
restarts = 8
[axes]
seed = "0:6"
"""


class Measured(NamedTuple):
    """Networks in ambient coordinates, (cells, …), their points (n, d), bases by region, and what is recorded."""

    networks: Network
    x: np.ndarray
    y: np.ndarray
    bases: dict[str, np.ndarray]
    record: dict[str, np.ndarray]

    def rightly_classified(self):
        """Index, network and point of every network and point that it classifies rightly."""
        for i, j in np.ndindex(len(self.networks.head), len(self.x)):
            network = Network(*(field[i] for field in self.networks))
            if self.y[j] * reference.output(network, self.x[j]) > 0:
                yield (i, j), network, self.x[j]


@functools.cache
def measured(*overrides: str) -> Measured:
    sweep = read(TEXT, *overrides)
    found = trained(sweep)
    bases = {region: found.bases[region] for region in sweep.measure.regions}
    return Measured(found.networks, found.x, found.y, bases, engine.measure(sweep, found.chunk, found.arrays))


def scanned(network: Network, x: np.ndarray, basis: np.ndarray, norm: str) -> float:
    """Norm of the nearest flip along many rays."""
    against = basis.T @ reference.gradient(network, x) * -np.sign(float(reference.output(network, x)))
    rng = np.random.default_rng(0)
    rays = np.concatenate([against[None], -against[None], rng.standard_normal((100, basis.shape[1]))]) @ basis.T
    rays = rays[rays.any(axis=1)]
    return min(float(Ray.from_point(network, x, ray / np.linalg.norm(ray, ORDER[norm])).first_flip()) for ray in rays)


def assert_brackets_hold_the_optimum(found: Measured, norms: tuple[str, ...]) -> None:
    """Lower ≤ least flip ≤ upper at every point, and both near it at most of them."""
    ratios = []
    for (region, basis), norm in itertools.product(found.bases.items(), norms):
        lower, upper = (found.record[f"distance_{region}_{norm}_{side}"] for side in ("lower", "upper"))
        for at, network, x in found.rightly_classified():
            near = min(float(upper[at]) * (1 + CLOSE), scanned(network, x, basis, norm))
            if not np.isfinite(near):  # nothing to seek within
                assert lower[at] > 0
                continue
            least = least_flip(network, x, basis, norm, near)
            assert least.proven
            assert lower[at] <= least.upper * (1 + CLOSE), (region, norm, at)
            assert upper[at] >= least.lower * (1 - CLOSE), (region, norm, at)
            ratios.append((lower[at] / least.upper, upper[at] / least.upper))
    assert len(ratios) >= 5 * len(norms)
    of_lower, of_upper = np.median(ratios, axis=0)
    assert of_lower > 0.8 and of_upper < 1.001


def assert_measured_in_ambient_coordinates(found: Measured, span: Subspace) -> None:
    """What needs no attack, by NumPy."""
    for (i, j), network, x in found.rightly_classified():
        gradient = reference.gradient(network, x)
        direction = span.complement @ (span.complement.T @ (-np.sign(network.head) @ network.weight))
        direction *= np.sign(float(reference.output(network, x))) / np.linalg.norm(direction)
        for name, expected in {
            "output": float(reference.output(network, x)),
            "gradient_norm_off": np.linalg.norm(gradient @ span.complement),
            "gradient_norm_on": np.linalg.norm(gradient @ span.basis),
            "distance_universal": float(Ray.from_point(network, x, direction).first_flip()),
        }.items():
            assert found.record[name][i, j] == pytest.approx(expected, rel=1e-4), name


CASES = {
    "several, off": ([], tuple(NORMS)),
    "every region": (["regions=on,full,off"], tuple(NORMS)),
    "linf alone": (["norms=linf"], ("linf",)),
    "l1 before l2, off": (["norms=l1,l2"], ("l1", "l2")),
    "random, full": (["basis=random", "regions=full"], tuple(NORMS)),
    "random line, on and full": (["basis=random", "regions=on,full", "norms=l2,linf"], ("l2", "linf")),
}


@pytest.mark.slow
@pytest.mark.parametrize(("overrides", "norms"), CASES.values(), ids=CASES)
def test_brackets_of_a_sweep_hold_the_optimum_in_ambient_coordinates(overrides, norms):
    found = measured(*overrides)
    if importlib.util.find_spec("pyscipopt") is None:
        norms = tuple(norm for norm in norms if norm != "l2")
    assert_brackets_hold_the_optimum(found, norms)
    assert_measured_in_ambient_coordinates(found, load_span(read(TEXT, *overrides).dataset({}), complete=True))


@pytest.mark.slow
def test_distances_are_in_the_order_of_their_norms():
    record = measured().record
    for shorter, longer in itertools.pairwise(("linf", "l2", "l1")):
        for side in ("lower", "upper"):
            short, long = (record[f"distance_off_{norm}_{side}"] for norm in (shorter, longer))
            assert (short <= long).all() and (short < long).any()


@pytest.mark.parametrize("norms", [norms for count in (1, 2, 3) for norms in itertools.permutations(NORMS, count)])
def test_only_l2_alone_is_measured_in_canonical_coordinates(norms):
    [group] = plan(read(TEXT, f"norms={','.join(norms)}")).groups
    assert group.program.canonical == (norms == ("l2",))
