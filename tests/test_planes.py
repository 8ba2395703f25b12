"""Distances within planes against rays in all directions, of networks of all kinds, and against rational numbers."""

import functools
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from optimum import ORDER, least_flip_in_plane
from reference import random_network
from shell import Trained, needs_kernel, read, trained

from subspace_adv.brackets import Beginnings, Effort, bracket
from subspace_adv.models import TWO_LAYER, compiled
from subspace_adv.network import Network
from subspace_adv.streams import key_of

WIDTH, POINTS, DIM, NETWORKS = 24, 5, 3, 6
BASIS = np.eye(DIM)[:, [2, 0]]  # of axes, so that all norms have distances
Drawn = tuple[Network, np.ndarray]


def on_a_plane(rng: np.random.Generator, size: float = 1.0) -> np.ndarray:
    """Points of a plane that misses the origin."""
    return np.array([0, 0.5, 0]) + size * rng.standard_normal((POINTS, 2)) @ BASIS.T


def generic(rng: np.random.Generator) -> Drawn:
    return random_network(rng, WIDTH, DIM), on_a_plane(rng)


def padded(rng: np.random.Generator) -> Drawn:
    return random_network(rng, WIDTH // 2, DIM, padded=WIDTH), on_a_plane(rng)


def without_biases(rng: np.random.Generator) -> Drawn:
    """All kinks meet in one place, where the output is 0."""
    network = random_network(rng, WIDTH, DIM)
    return network._replace(bias=-0.5 * network.weight[:, 1], head_bias=np.float64(0)), on_a_plane(rng)


def coincident(rng: np.random.Generator) -> Drawn:
    """Neurons in threes whose kinks are one line, some of them turned about, in the plane if not in space."""
    network = random_network(rng, WIDTH // 3, DIM)
    scale = rng.choice([-2.0, -0.5, 1.0, 3.0], (3, WIDTH // 3))
    weight, bias = (scale[..., None] * network.weight).reshape(WIDTH, DIM), (scale * network.bias).ravel()
    shift = rng.standard_normal(WIDTH)
    head = rng.standard_normal(WIDTH) / 3
    return Network(weight + shift[:, None] * [0, 1, 0], bias - 0.5 * shift, head, np.float64(0.2)), on_a_plane(rng)


def parallel(rng: np.random.Generator) -> Drawn:
    """Neurons of one direction: the boundary is made of straight lines that meet no kink."""
    direction = rng.standard_normal(DIM)
    weight = np.outer(rng.standard_normal(WIDTH), direction)
    return Network(weight, rng.standard_normal(WIDTH), rng.standard_normal(WIDTH), np.float64(0.1)), on_a_plane(rng)


def linear(rng: np.random.Generator) -> Drawn:
    """No kink in sight, nor one anywhere of half the neurons."""
    network = random_network(rng, WIDTH, DIM)
    weight = np.where(np.arange(WIDTH)[:, None] % 2, network.weight, 0)
    return network._replace(weight=weight, bias=np.abs(network.bias) + 1e3), on_a_plane(rng)


def on_kinks(rng: np.random.Generator) -> Drawn:
    """Each point lies on several kinks."""
    network, x = random_network(rng, WIDTH, DIM), on_a_plane(rng)
    bias = -np.sum(network.weight * x[np.arange(WIDTH) % POINTS], axis=1)
    return network._replace(bias=bias), x


def far_away(rng: np.random.Generator) -> Drawn:
    """The points are a thousand times as far from the origin as they are from one another."""
    network, x = random_network(rng, WIDTH, DIM), on_a_plane(rng)
    shift = 1e3 * rng.standard_normal(2) @ BASIS.T
    return network._replace(bias=network.bias - network.weight @ shift), x + shift


def thrown_about(rng: np.random.Generator) -> Drawn:
    """As after a large step: weights of all sizes, most neurons off at the points, flips far and near."""
    network = random_network(rng, WIDTH, DIM)
    size = 10.0 ** rng.uniform(-3, 3, WIDTH)
    bias = (network.bias - np.where(rng.random(WIDTH) < 0.8, 3, 0)) * size
    return network._replace(weight=network.weight * size[:, None], bias=bias, head=network.head / size), on_a_plane(rng)


def never_flips(rng: np.random.Generator) -> Drawn:
    network = random_network(rng, WIDTH, DIM)
    return network._replace(head=np.abs(network.head), head_bias=np.float64(1)), on_a_plane(rng)


def scaled(factor: float) -> Callable[[np.random.Generator], Drawn]:
    """The output, and so nothing about its sign, times a factor."""

    def draw(rng: np.random.Generator) -> Drawn:
        network, x = generic(rng)
        return network._replace(head=factor * network.head, head_bias=factor * network.head_bias), x

    return draw


KINDS = {
    **{f.__name__: f for f in (generic, padded, without_biases, coincident, parallel, linear, on_kinks, far_away)},
    **{f.__name__: f for f in (thrown_about, never_flips)},
    "tiny": scaled(1e-30),
    "huge": scaled(1e30),
}


@functools.partial(jax.jit, static_argnames=("norm", "way"))
def in_plane(network: Network, x: jax.Array, norm: str, way: str, basis: jax.Array = BASIS):
    """Brackets by XLA, of points that share their plane or have one of their own, or by the kernel."""
    attacks = compiled.ATTACKS if way == "kernel" else ()
    what = {"norm": norm, "effort": Effort(1, 1, attacks), "model": TWO_LAYER, "shared": way == "shared"}
    return bracket(network, x, jnp.asarray(basis), Beginnings.of(network, x, key_of(0), TWO_LAYER), **what)


every_way = pytest.mark.parametrize(
    ("norm", "way"),
    [
        *(pytest.param(norm, "kernel", marks=needs_kernel) for norm in ORDER),
        ("l2", "shared"),
        *(pytest.param(norm, "shared", marks=pytest.mark.slow) for norm in ("linf", "l1")),
        *(pytest.param(norm, "own", marks=pytest.mark.slow) for norm in ORDER),
    ],
)


@every_way
@pytest.mark.parametrize("kind", KINDS)
def test_no_ray_flips_sooner_and_the_nearest_flips_are_found(kind, norm, way, x64):
    for seed in range(1 if way == "own" else NETWORKS):
        network, x = KINDS[kind](np.random.default_rng(seed))
        lower, attacked = in_plane(network, x, norm, way)
        loose = {"far_away": 1e-5, "thrown_about": 1e-5}.get(kind, 1e-6)
        lower, upper, delta = np.asarray(lower), np.asarray(attacked.distance), np.asarray(attacked.delta)
        scan = np.array([reference.nearest_flip_in_plane(network, point, BASIS, ORDER[norm]) for point in x])
        flips = np.isfinite(upper)
        np.testing.assert_array_equal(flips, np.isfinite(scan))
        assert (lower <= scan).all()
        assert (lower[~flips] >= 1e6).all() or kind == "without_biases"  # which may touch 0 and not cross it
        assert (upper[flips] <= scan[flips] * (1 + loose)).all()
        assert (scan[flips] <= upper[flips] * (1 + 1e-4)).all()
        assert (upper[flips] <= lower[flips] * (1 + loose)).all()
        assert (delta[~flips] == 0).all()
        for point, move, distance in zip(x[flips], delta[flips], upper[flips], strict=True):
            assert np.linalg.norm(move, ORDER[norm]) == pytest.approx(distance, rel=1e-12)
            there = point.astype(np.longdouble) + move
            assert reference.output(network, point) * reference.output(network, there) <= 0


class Planes(NamedTuple):
    """A sweep whose networks have a plane as a region, and how far the ends of a bracket may be apart."""

    text: str
    region: str
    overrides: tuple[str, ...] = ()
    loose: float = 1e-6


SWEEPS = Path(__file__).parents[1] / "sweeps"
CHESSBOARD, LINE = ((SWEEPS / f"{name}.toml").read_text() for name in ("chessboard", "line"))
OFF = """
[data]
kind = "subspace"
ambient_dim = 4
basis = "axis-aligned"
[network]
width = 400
[axes]
seed = 0
"""
THROWN = ("width=16", "init_scale=0.5", "weight_decay=0")  # which large steps are to throw about
TRAINED = {
    "chessboard": Planes(CHESSBOARD, "on"),
    "line": Planes(LINE, "full"),
    "off": Planes(OFF, "off", loose=1e-5),  # some are so near to flips that their outputs are tiny
    "large steps": Planes(LINE, "full", (*THROWN, "learning_rate=10,20")),
    # There weights are of all sizes, and rounding allowances may hide outputs.
    "larger steps": Planes(LINE, "full", (*THROWN, "learning_rate=50,100,200"), loose=np.inf),
}
FEW = {"larger steps": 2}
MANY = {"chessboard": 1, "line": 2, "off": 3, "large steps": 12, "larger steps": 12}


@functools.cache
def of_sweep(name: str, seeds: str) -> Trained:
    return trained(read(TRAINED[name].text, f"seed={seeds}", *TRAINED[name].overrides))


@pytest.mark.parametrize(
    ("norm", "name", "seeds", "points"),
    [
        *((norm, name, seeds, 1) for norm, (name, seeds) in itertools.product(("l2", "linf"), FEW.items())),
        *(
            pytest.param(norm, name, seeds, 7, marks=pytest.mark.slow)
            for norm, (name, seeds) in itertools.product(ORDER, MANY.items())
        ),
    ],
)
def test_distances_of_trained_networks_are_those_of_the_boundary_and_of_dense_rays(norm, name, seeds, points, x64):
    """No ray flips before the upper bound and no piece of the boundary lies before the lower one; all are one."""
    found, sweep = of_sweep(name, f"0:{seeds}"), TRAINED[name]
    basis, rng = found.bases[sweep.region], np.random.default_rng(40)
    measure = jax.vmap(functools.partial(in_plane, norm=norm, way="kernel", basis=basis), (0, None))
    lowers, attacked = measure(found.networks, found.x)
    for i, (lower, upper) in enumerate(zip(np.asarray(lowers), np.asarray(attacked.distance), strict=True)):
        network = Network(*(field[i] for field in found.networks))
        for j in rng.choice(len(found.x), points, replace=False):
            least = least_flip_in_plane(network, found.x[j], basis, norm)
            assert lower[j] <= least.upper and least.lower <= upper[j]
            if np.isinf(sweep.loose):
                continue
            scan = reference.nearest_flip_in_plane(network, found.x[j], basis, ORDER[norm])
            assert least.lower * (1 - 1e-12) <= scan <= upper[j] * (1 + 1e-3)
            assert upper[j] <= min(least.lower, lower[j]) * (1 + sweep.loose)


def test_the_distance_of_a_point_at_which_all_neurons_are_off(x64):
    """After large steps the gradient is 0 there, and the output 9.37; the first flip is behind a kink."""
    found = trained(read(LINE, *THROWN, "learning_rate=50", "seed=6"))
    network, x = Network(*(field[0] for field in found.networks)), found.x[1]
    assert (network.weight @ x + network.bias < 0).all() and reference.output(network, x) == pytest.approx(
        9.37, rel=1e-3
    )
    lower, attacked = in_plane(network, x[None], "l2", "kernel", found.bases["full"])
    assert lower[0] == pytest.approx(0.52955, rel=1e-5) and attacked.distance[0] == pytest.approx(0.52955, rel=1e-5)


@every_way
def test_where_the_output_vanishes_in_a_cone_the_lower_bound_ends_and_the_upper_one_does_not(norm, way, x64):
    """N = relu(p₀) + relu(p₁) in the plane: no flip, but 0 in a quadrant, a rounding error from one."""
    weight = np.zeros((WIDTH, DIM))
    weight[[0, 1], [0, 2]] = 1
    network = Network(weight, np.zeros(WIDTH), np.where(np.arange(WIDTH) < 2, 1.0, 0.0), np.float64(0))
    x = np.array([[1.0, 0.5, -3], [1, 0.5, 2], [-2, 0.5, 0.25], [0.5, 0.5, 0.5], [3, 0.5, 4]])
    exact = {
        "l2": [1, np.hypot(1, 2), 0.25, np.hypot(0.5, 0.5), 5],
        "linf": [1, 2, 0.25, 0.5, 4],
        "l1": [1, 3, 0.25, 1, 7],
    }
    lower, attacked = in_plane(network, x, norm, way)
    np.testing.assert_allclose(lower, exact[norm], rtol=1e-8)
    assert (np.asarray(lower) <= exact[norm]).all() and not attacked.is_adv.any()


def test_points_beside_the_plane_of_others_are_not_told_wrong(x64):
    """Where they are said to share it, their bounds are loose."""
    for seed in range(NETWORKS):
        rng = np.random.default_rng(seed)
        network, x = generic(rng)
        x[1:, 1] += rng.choice([1e-9, 1e-3, 1.0], POINTS - 1)
        lower, _ = in_plane(network, x, "l2", "shared")
        assert (np.asarray(lower) <= [reference.nearest_flip_in_plane(network, point, BASIS, 2) for point in x]).all()
