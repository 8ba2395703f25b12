"""Distances within planes against rays in all directions, of networks of all kinds, and against rational numbers."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from reference import first_flips, random_network

from subspace_adv.brackets import Effort, bracket
from subspace_adv.models import TWO_LAYER, compiled, fused
from subspace_adv.network import Network
from subspace_adv.streams import key_of

WIDTH, POINTS, DIM, NETWORKS = 24, 5, 3, 6
BASIS = np.eye(DIM)[:, [2, 0]]  # of axes, so that all norms have distances
LENGTHS = {
    "l2": lambda v: np.linalg.norm(v, axis=-1),
    "linf": lambda v: np.abs(v).max(axis=-1),
    "l1": lambda v: np.abs(v).sum(axis=-1),
}
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


WAYS = [
    "shared",
    "own",
    pytest.param("kernel", marks=pytest.mark.skipif(fused.unavailable() is not None, reason=str(fused.unavailable()))),
]


@functools.partial(jax.jit, static_argnames=("norm", "way"))
def in_plane(network: Network, x: jax.Array, norm: str, way: str):
    """Brackets by XLA, of points that share their plane or have one of their own, or by the kernel."""
    attacks = compiled.ATTACKS if way == "kernel" else ()
    what = {"norm": norm, "effort": Effort(1, 1, attacks), "model": TWO_LAYER, "shared": way == "shared"}
    return bracket(network, x, jnp.asarray(BASIS), key_of(0), **what)


def scanned(network: Network, x: np.ndarray, norm: str) -> float:
    """The nearest flip along rays in 2,000 directions, and then in ever closer ones around the best."""
    best, around, width = np.inf, 0.0, np.pi
    for _ in range(4):
        angles = around + width * np.linspace(-1, 1, 2001)
        directions = np.stack([np.cos(angles), np.sin(angles)], axis=1) @ BASIS.T
        found = first_flips(network, x, directions) * LENGTHS[norm](directions)
        around, width = angles[np.argmin(found)], width / 200
        best = min(best, found.min())
    return best


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("norm", LENGTHS)
@pytest.mark.parametrize("kind", KINDS)
def test_no_ray_flips_sooner_and_the_nearest_flips_are_found(kind, norm, way, x64):
    for seed in range(1 if way == "own" else NETWORKS):
        network, x = KINDS[kind](np.random.default_rng(seed))
        lower, attacked = in_plane(network, x, norm, way)
        loose = {"far_away": 1e-5, "thrown_about": 1e-5}.get(kind, 1e-6)
        lower, upper, delta = np.asarray(lower), np.asarray(attacked.distance), np.asarray(attacked.delta)
        scan = np.array([scanned(network, point, norm) for point in x])
        flips = np.isfinite(upper)
        np.testing.assert_array_equal(flips, np.isfinite(scan))
        assert (lower <= scan).all()
        assert (lower[~flips] >= 1e6).all() or kind == "without_biases"  # which may touch 0 and not cross it
        assert (upper[flips] <= scan[flips] * (1 + loose)).all()
        assert (scan[flips] <= upper[flips] * (1 + 1e-4)).all()
        assert (upper[flips] <= lower[flips] * (1 + loose)).all()
        assert (delta[~flips] == 0).all()
        for point, move, distance in zip(x[flips], delta[flips], upper[flips], strict=True):
            assert LENGTHS[norm](move) == pytest.approx(distance, rel=1e-12)
            there = point.astype(np.longdouble) + move
            assert reference.output(network, point) * reference.output(network, there) <= 0


def test_where_the_output_vanishes_in_a_cone_the_lower_bound_ends_and_the_upper_one_does_not(x64):
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
    for norm, distances in exact.items():
        for way in ("shared", "own", "kernel"):  # the last is as the first where there is no kernel
            lower, attacked = in_plane(network, x, norm, way)
            np.testing.assert_allclose(lower, distances, rtol=1e-8)
            assert (np.asarray(lower) <= distances).all() and not attacked.is_adv.any()


def test_points_beside_the_plane_of_others_are_not_told_wrong(x64):
    """Where they are said to share it, their bounds are loose."""
    for seed in range(NETWORKS):
        rng = np.random.default_rng(seed)
        network, x = generic(rng)
        x[1:, 1] += rng.choice([1e-9, 1e-3, 1.0], POINTS - 1)
        lower, _ = in_plane(network, x, "l2", "shared")
        assert (np.asarray(lower) <= [scanned(network, point, "l2") for point in x]).all()
