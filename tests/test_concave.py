"""Concave certificates against flips in dense directions, linear programs and points of the ball."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from optimum import ORDER
from reference import Ray
from scipy.optimize import linprog

from subspace_adv.models import TwoLayerLocal, concave, crown_certificate, local
from subspace_adv.models.concave import concave_certificate
from subspace_adv.network import Network

WIDTH, D, NETWORKS = 30, 6, 24
NORMS = ("l2", "linf", "l1")
FEW = np.eye(D)[:, :3]  # a cube of so few dimensions has few vertices
BASES = {"few": FEW, "full": np.eye(D)}


@functools.cache
def _cases() -> tuple[list[Network], np.ndarray]:
    rng = np.random.default_rng(20)
    networks = [reference.random_network(rng, (3, 12, WIDTH)[i % 3], D, WIDTH) for i in range(NETWORKS)]
    sizes = 10.0 ** rng.uniform(-6, 6, (NETWORKS, 2)) * (np.arange(NETWORKS) % 4 == 0)[:, None]
    sizes = np.where(sizes > 0, sizes, 1)
    scaled = [
        Network(net.weight * inner, net.bias * inner, net.head * outer, net.head_bias * inner * outer)
        for net, (inner, outer) in zip(networks, sizes, strict=True)
    ]
    return scaled, rng.standard_normal((NETWORKS, D))


@functools.cache
def _certified(norm: str, basis: str) -> tuple[np.ndarray, np.ndarray]:
    """Radii by a linear bound and by the concave one, up to twice the nearest flip of some rays."""

    def one(network: Network, x: jax.Array, upper: jax.Array) -> tuple[jax.Array, jax.Array]:
        known = crown_certificate(network, x, BASES[basis], norm=norm, upper=upper)
        around = local(network, x, BASES[basis])
        return known, concave_certificate(around, norm=norm, upper=upper, known=known)

    networks, x = _cases()
    with jax.enable_x64(True):
        uppers = 2 * np.array(_flips(norm, basis))
        found = jax.jit(jax.vmap(one))(reference.stacked(networks), x, uppers)
        return np.asarray(found[0]), np.asarray(found[1])


@functools.cache
def _flips(norm: str, basis: str) -> list[float]:
    """The nearest flips on some rays."""
    rng, columns = np.random.default_rng(21), np.asarray(BASES[basis], np.float64)
    pairs = zip(*_cases(), strict=True)
    return [reference.nearest_flip(rng, network, x, columns, ORDER[norm])[0] for network, x in pairs]


@pytest.mark.parametrize(
    ("norm", "basis"),
    [
        ("linf", "few"),
        *(pytest.param(*pair, marks=pytest.mark.slow) for pair in [("l2", "few"), ("l2", "full"), ("linf", "full")]),
        *(pytest.param("l1", basis, marks=pytest.mark.slow) for basis in BASES),
    ],
)
def test_no_direction_flips_within_the_certificate_which_is_near_the_nearest_flip(norm, basis):
    known, found = _certified(norm, basis)
    flips = np.array(_flips(norm, basis))
    assert (found <= flips).all() and np.isfinite(found).all()
    flipped = np.isfinite(flips)
    ratios = np.maximum(found, known)[flipped] / flips[flipped]
    assert flipped.mean() > 0.7 and np.median(ratios) > 0.9
    assert (found > 1.001 * known).mean() > 0.1  # elsewhere the linear bound is exact, or nearly


def _best_slopes(around: TwoLayerLocal, vertices: np.ndarray, radius: float) -> float:
    """The most that F can be at its least vertex, by a linear program over all slopes in [0, 1]."""
    inputs = around.z + radius * vertices @ around.rates.T
    aids = around.head > 0
    opposed = np.maximum(inputs, 0) @ np.minimum(around.head, 0) + around.offset
    lines = inputs[:, aids] * around.head[aids]
    constraints = np.concatenate([-lines, np.ones((len(vertices), 1))], axis=1)
    limits = [*[(0, 1)] * aids.sum(), (None, None)]
    goal = np.append(np.zeros(aids.sum()), -1)
    return -linprog(goal, A_ub=constraints, b_ub=opposed, bounds=limits, method="highs").fun


@pytest.mark.parametrize("norm", ["l1", "linf"])
def test_slopes_are_near_the_best_where_the_ball_has_few_vertices(norm, x64):
    """The radius up to which some slopes certify, by bisection over linear programs."""
    networks, x = _cases()
    known, found = _certified(norm, "few")
    vertices = np.concatenate([np.eye(3), -np.eye(3)])
    if norm == "linf":
        vertices = np.array(np.meshgrid(*[[-1, 1]] * 3)).reshape(3, -1).T
    ratios = []
    for i in range(0, NETWORKS, 2):
        around = local(Network(*map(jnp.asarray, networks[i])), jnp.asarray(x[i]), FEW)
        around = TwoLayerLocal(*map(np.asarray, around))
        below, above = 0.0, 2 * _flips(norm, "few")[i]
        if np.isinf(above):
            continue
        for _ in range(30):
            middle = (below + above) / 2
            below, above = (middle, above) if _best_slopes(around, vertices, middle) >= 0 else (below, middle)
        assert found[i] <= above * (1 + 1e-6)
        ratios.append(max(found[i], known[i]) / below)
    assert np.median(ratios) > 0.98 and min(ratios) > 0.8


def test_parabolas_lie_above_the_relu_and_touch_it(x64):
    """Whatever moments they are made for; those of two points touch it there."""
    rng = np.random.default_rng(22)
    low = rng.uniform(-3, 0, 400) * 10.0 ** rng.uniform(-4, 4, 400)
    high = -low * 10.0 ** rng.uniform(-3, 3, 400)
    low[:20], high[20:40] = np.abs(low[:20]) * 0.1 * np.sign(high[:20]), -1e-3 * np.abs(low[20:40])
    low[:20] = np.minimum(low[:20], high[:20])
    high[20:40] = np.maximum(high[20:40], low[20:40])
    share = rng.uniform(0, 1, 400)
    points = low + rng.uniform(0, 1, (2, 400)) * (high - low)
    mean, second = share * points[0] + (1 - share) * points[1], share * points[0] ** 2 + (1 - share) * points[1] ** 2
    curve, tilt = map(np.asarray, concave._parabolas(*map(jnp.asarray, (mean, second, low, high))))
    lift = np.asarray(concave._lift(*map(jnp.asarray, (curve, tilt, low, high))))
    t = low + np.linspace(0, 1, 2001)[:, None] * (high - low)
    gap = (curve * t + tilt) * t + lift - np.maximum(t, 0)
    size = np.maximum(-low, high)
    assert (curve >= 0).all() and (gap >= -1e-12 * size).all()
    assert (gap.min(axis=0) <= 1e-3 * size).all()
    # No parabola does better than one on the average of moments that are right, and its average is a true bound.
    average = curve * second + tilt * mean + lift
    assert (average >= share * np.maximum(points[0], 0) + (1 - share) * np.maximum(points[1], 0) - 1e-12 * size).all()
    assert (average <= (mean + np.sqrt(second)) / 2 + 1e-9 * size).all()
    chord = np.where((low < 0) & (high > 0), high * (mean - low) / np.where(high > low, high - low, 1), np.inf)
    assert (average <= np.where(low >= 0, mean, chord) + 1e-9 * size)[(low >= 0) | (high > 0)].all()


@pytest.mark.parametrize("norm", [pytest.param("l2", marks=pytest.mark.slow), "linf", "l1"])
def test_certificate_of_degenerate_networks_is_a_number(norm, x64):
    rng = np.random.default_rng(14)
    network, x = reference.random_network(rng, 10, D), rng.standard_normal(D)
    network = Network(*map(np.float64, network))

    @jax.jit
    def certify(network, x, upper, known):
        return concave_certificate(local(network, x, jnp.eye(D)), norm=norm, upper=upper, known=known)

    still = network._replace(weight=0 * network.weight)
    headless = network._replace(head=0 * network.head)
    asleep = network._replace(bias=-np.abs(network.weight @ x) - 1, head=np.abs(network.head), head_bias=np.float64(1))
    twins = network._replace(
        weight=np.repeat(network.weight[:5], 2, axis=0), bias=np.repeat(network.bias[:5], 2), head_bias=np.float64(3)
    )
    on_kinks = network._replace(bias=-(network.weight @ x), head_bias=np.float64(1))
    for safe in (still, headless, asleep):
        assert 0 <= certify(safe, x, jnp.float64(7), jnp.float64(5)) <= 7
        assert 0 <= certify(safe, x, jnp.float64(np.inf), jnp.float64(5))
    for net in (twins, on_kinks):
        directions = rng.standard_normal((400, D))
        directions /= np.linalg.norm(directions, ORDER[norm], axis=1)[:, None]
        flip = min(Ray.from_point(net, x, v).first_flip() for v in directions)
        assert 0 < certify(net, x, jnp.float64(4), jnp.float64(1e-3)) <= min(float(flip), 4)
    tie = network._replace(head_bias=network.head_bias - np.float64(reference.output(network, x)))
    nothing = Network(*(0 * np.asarray(field) for field in network))
    for upper in (2.0**-100, 1.0, np.inf):
        assert certify(tie, x, jnp.float64(upper), jnp.float64(0)) == 0
        assert certify(nothing, x, jnp.float64(upper), jnp.float64(0)) == 0
