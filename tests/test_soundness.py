"""Nothing flips within a certified radius, and what an attack finds does flip: in rational numbers, of all networks.

Against the nearest flips on many rays, what attacks find and the best of the cells in which they find it.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from optimum import ORDER, least_flip_in_cell
from reference import first_flip_along, is_at_most
from shell import needs_kernel
from troubled import cancelling, degenerate, descended

from subspace_adv.brackets import Beginnings, Effort, bracket
from subspace_adv.models import TWO_LAYER, compiled, first_crossing
from subspace_adv.models.planes import plane_distances
from subspace_adv.models.two_layer import crossing_by_xla
from subspace_adv.network import Network
from subspace_adv.streams import key_of

WIDTH, POINTS = 30, 4
NORMS = ("l2", "linf", "l1")


class Cases(NamedTuple):
    """Networks and the points of all of them, (POINTS, d)."""

    clear: list[Network]
    hidden: list[Network]  # their outputs, as rounding may be as large
    x: np.ndarray


@functools.cache
def cases(dim: int) -> Cases:
    rng = np.random.default_rng(30)
    clear = [degenerate(rng, kind, WIDTH, dim) for kind in range(10)]
    x = rng.standard_normal((POINTS, dim))
    x[0] = 0.5
    clear += descended(rng, x, [0.3, 0.3], WIDTH)
    return Cases(clear, [*descended(rng, x, [30, 100], WIDTH), cancelling(rng, WIDTH, dim)], x)


class Found(NamedTuple):
    """Of a network's points."""

    lower: np.ndarray
    upper: np.ndarray
    delta: np.ndarray  # (POINTS, d)


@functools.partial(jax.jit, static_argnames=("norm", "dimension"))
def _bracket(network: Network, x: jax.Array, norm: str, dimension: int):
    basis, effort = jnp.eye(x.shape[1])[:, :dimension], Effort(56, 32, compiled.ATTACKS)
    begin = Beginnings.of(network, x, key_of(1), TWO_LAYER)
    return bracket(network, x, basis, begin, norm=norm, effort=effort, model=TWO_LAYER)


@functools.partial(jax.jit, static_argnames=("norm", "dimension"))
def _certify(network: Network, x: jax.Array, upper: jax.Array, norm: str, dimension: int) -> jax.Array:
    """By XLA."""
    basis = jnp.eye(x.shape[1])[:, :dimension]

    def one(point: jax.Array, upper: jax.Array) -> jax.Array:
        known = TWO_LAYER.certificate(network, point, basis, norm=norm, upper=upper)
        finer = TWO_LAYER.finer_certificate(network, point, basis, norm=norm, upper=upper, known=known)
        return jnp.maximum(known, finer)

    return jax.vmap(one)(x, upper)


def bracketed(network: Network, x: np.ndarray, norm: str, dimension: int) -> Found:
    with jax.enable_x64(True):
        lower, attack = _bracket(network, x, norm, dimension)
        return Found(*map(np.asarray, (lower, attack.distance, attack.delta)))


@functools.cache
def scans(dim: int, norm: str, dimension: int) -> list[list[tuple[float, np.ndarray]]]:
    """The nearest flips on many rays and their directions, of every network and point."""
    (clear, hidden, x), rng, columns = cases(dim), np.random.default_rng(31), np.eye(dim)[:, :dimension]
    scan = functools.partial(reference.nearest_flip, rng, columns=columns, order=ORDER[norm])
    return [[scan(network, point) for point in x] for network in clear + hidden]


def assert_flips(network: Network, point: np.ndarray, norm: str, dimension: int, high: float, move: np.ndarray) -> None:
    """What was found lies in the region, is as long as it says, and flips the point."""
    if np.isinf(high):
        assert (move == 0).all()
        return
    assert (move[dimension:] == 0).all()
    assert np.linalg.norm(move, ORDER[norm]) == pytest.approx(high, rel=1e-9)
    flip = first_flip_along(network, point, move)
    assert flip is not None and flip <= 1 + 2**-40


def directions(network: Network, point: np.ndarray, norm: str, dimension: int, move: np.ndarray) -> list[np.ndarray]:
    """Of flips: what was found, and the nearest in its cell, also a little beyond the corner where that mostly lies."""
    if not move.any():
        return []
    best = functools.partial(least_flip_in_cell, network, point, np.eye(len(point))[:, :dimension], norm, move)
    return [move, *(found for margin in (0, 1e-9) if (found := best(margin=margin)) is not None)]


def closeness(network: Network, point: np.ndarray, norm: str, low: float, ways: list[np.ndarray]) -> float:
    """The certified radius over the nearest flip along some directions, which it is not above."""
    nearest = 0.0
    for direction in ways:
        flip = first_flip_along(network, point, direction)
        if flip is not None:
            assert is_at_most(low, flip, direction, ORDER[norm])
            nearest = max(nearest, low / (float(flip) * np.linalg.norm(direction, ORDER[norm])))
    return nearest


@needs_kernel
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    ("dim", "dimension"),
    [(6, 3), *(pytest.param(*case, marks=pytest.mark.slow) for case in ((6, 6), *((30, r) for r in (1, 2, 3, 7, 30))))],
)
def test_no_flip_is_nearer_than_certified_and_what_is_found_is_one(dim, dimension, norm):
    clear, hidden, x = cases(dim)
    ratios, certified, missed = [], [], 0
    for i, network in enumerate(clear + hidden):
        found = bracketed(network, x, norm, dimension)
        assert not np.isnan(found.lower).any() and (found.lower <= found.upper).all()
        certified.append((found.lower > 0).mean())
        for j, (low, high, move) in enumerate(zip(*found, strict=True)):
            scan, toward = scans(dim, norm, dimension)[i][j]
            assert_flips(network, x[j], norm, dimension, high, move)
            ways = [toward, *directions(network, x[j], norm, dimension, move)]
            ratios.append(closeness(network, x[j], norm, low, ways))
            missed += i < len(clear) and scan < 1e3 and high > 1.05 * scan
    assert missed <= (dim > 6)  # one flip in a narrow cone
    assert np.mean(certified) > 0.75 and np.mean(np.array(ratios) > 0.98) > 0.1


@needs_kernel
@pytest.mark.slow
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dimension", [3, 7, 30])
def test_no_flip_is_nearer_than_certified_by_xla(dimension, norm):
    """Up to the flips that the kernel finds."""
    clear, hidden, x = cases(30)
    ratios = []
    for i, network in enumerate(clear + hidden):
        found = bracketed(network, x, norm, dimension)
        with jax.enable_x64(True):
            lower = np.asarray(_certify(network, x, jnp.asarray(found.upper), norm, dimension))
        for j, (low, move) in enumerate(zip(lower, found.delta, strict=True)):
            ways = [scans(30, norm, dimension)[i][j][1], *directions(network, x[j], norm, dimension, move)]
            ratios.append(closeness(network, x[j], norm, low, ways))
    assert np.mean(np.array(ratios) > 0.98) > 0.1


def thrown_away(big: float, dim: int) -> Network:
    """At 0 it is 1 until the first coordinate is 2; a neuron of large weights is off up to 3 in the second one."""
    weight = np.zeros((2, dim))
    weight[0, 0], weight[1, 1] = 1, big
    return Network(weight, np.array([-1.0, -3 * big]), np.array([-1.0, big]), np.array(1.0))


@needs_kernel
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dim", [2, 3, 9])
def test_weights_of_neurons_that_are_off_hide_nothing(dim, norm, instruction_set):
    for big in (1, 1e3, 1e6, 1e10):
        low, high, _ = bracketed(thrown_away(big, dim), np.zeros((1, dim)), norm, dim)
        assert 2 * (1 - 1e-6) <= low[0] <= 2 <= high[0] <= 2 * (1 + 1e-9)


@pytest.mark.parametrize("by", [pytest.param(first_crossing, marks=needs_kernel), crossing_by_xla])
def test_weights_of_neurons_that_are_off_hide_no_crossing(by, x64):
    weight, bias, head, offset = reference.stacked([thrown_away(big, 3) for big in (1, 1e6, 1e10)])
    for lower, upper in zip(*jax.jit(jax.vmap(by))(bias, weight[:, :, 0], head, offset), strict=True):
        assert 2 * (1 - 1e-9) <= lower <= 2 <= upper <= 2 * (1 + 1e-9)


@pytest.mark.slow  # XLA compiles for long
def test_weights_of_neurons_that_are_off_hide_nothing_from_xla(x64):
    for big in (1, 1e6, 1e10):
        assert 2 * (1 - 1e-6) <= _certify(thrown_away(big, 3), np.zeros((1, 3)), jnp.full(1, 2.0), "l1", 3)[0] <= 2
        exact = jax.jit(plane_distances, static_argnames="norm")
        assert 2 * (1 - 1e-6) <= exact(thrown_away(big, 2), np.zeros((1, 2)), np.eye(2), norm="l2").lower[0] <= 2
