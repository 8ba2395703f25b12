"""Each attack alone, with none to make up for it: against many directions crossed in NumPy, in every norm."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from optimum import DUAL_ORDER, ORDER

from subspace_adv import attacks, brackets, norms
from subspace_adv.attacks import fmn
from subspace_adv.models import TwoLayerLocal
from subspace_adv.network import Network, output

RANDOM, TRAINED, WIDTH = 16, 8, 12
DIMS = {"l2": 5, "linf": 3, "l1": 4}
NORMS = ("linf", "l2", "l1")


def _trained(rng: np.random.Generator, dim: int) -> tuple[Network, np.ndarray]:
    """A network after 600 steps of gradient descent on 6 points, and the first of them."""
    weight, bias, head, head_bias = reference.random_network(rng, WIDTH, dim)
    x, y = rng.standard_normal((6, dim)), np.array([1.0, -1, 1, -1, 1, -1])
    for _ in range(600):
        z = x @ weight.T + bias
        hidden = np.maximum(z, 0)
        pull = y / (1 + np.exp(y * (hidden @ head + head_bias))) / len(x)
        at_neurons = pull[:, None] * (z > 0) * head
        weight, bias = weight + 0.3 * at_neurons.T @ x, bias + 0.3 * at_neurons.sum(axis=0)
        head, head_bias = head + 0.3 * pull @ hidden, head_bias + 0.3 * pull.sum()
    return Network(weight, bias, head, head_bias), x[0]


@functools.cache
def _victims(norm: str) -> tuple[Network, np.ndarray]:
    dim = DIMS[norm]
    rng = np.random.default_rng(dim)
    drawn = [(reference.random_network(rng, WIDTH, dim), rng.standard_normal(dim)) for _ in range(RANDOM)]
    networks, x = zip(*drawn, *(_trained(rng, dim) for _ in range(TRAINED)), strict=True)
    return reference.stacked(list(networks)), np.array(x)


def _victim(norm: str, i: int) -> tuple[Network, np.ndarray]:
    networks, x = _victims(norm)
    return Network(*(field[i] for field in networks)), x[i]


@functools.cache
def _least(norm: str) -> np.ndarray:
    """The nearest flip met along thousands of directions, the best of which are searched around."""
    rng, dim, found = np.random.default_rng(7), DIMS[norm], []
    corners = np.array(list(itertools.product([-1, 0, 1], repeat=dim)))
    first = np.concatenate([corners[corners.any(axis=1)], rng.standard_normal((2500, dim))])
    for i in range(RANDOM + TRAINED):
        network, x = _victim(norm, i)
        directions, distances = first, np.full(len(first), np.inf)
        for spread in 0.6 * 0.6 ** np.arange(10):
            directions = directions / np.linalg.norm(directions, ORDER[norm], axis=1, keepdims=True)
            distances = reference.first_flips(network, x, directions)
            best = directions[np.argsort(distances)[:8]]
            steps = spread * rng.standard_normal((8, 40, dim)) * (rng.random((8, 40, dim)) < 0.5)
            directions = np.concatenate([best, (best[:, None] + steps).reshape(-1, dim)])
        found.append(distances.min())
    return np.array(found)


@functools.cache
def _attacked(name: str, norm: str) -> attacks.AttackResult:
    networks, x = _victims(norm)
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(0), len(x))
        attack = functools.partial(getattr(attacks, f"{name}_attack"), basis=jnp.eye(DIMS[norm]), norm=norm)
        run = jax.jit(jax.vmap(lambda network, point, key: attack(network, point, key=key)))
        return jax.tree.map(np.asarray, run(networks, x, keys))


@pytest.mark.slow
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", ["fmn", "fab", "universal"])
def test_what_an_attack_finds_flips_at_the_distance_it_says(name, norm):
    found = _attacked(name, norm)
    np.testing.assert_array_equal(found.is_adv, np.isfinite(found.distance))
    assert found.is_adv.sum() > 5
    for i in np.flatnonzero(found.is_adv):
        network, x = _victim(norm, i)
        moved = reference.output(network, x + found.delta[i].astype(np.longdouble) * (1 + 1e-15))
        assert np.sign(moved) == -np.sign(reference.output(network, x))
        assert np.linalg.norm(found.delta[i], ORDER[norm]) == pytest.approx(found.distance[i], rel=1e-14)


# What ratios to the least flip may be: at the median, at three quarters and at worst, where FAB may fail.
@pytest.mark.slow
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("name", "allowed"), [("fmn", (1.00001, 1.00001, 1.01)), ("fab", (1.005, 1.1, np.inf))])
def test_an_attack_alone_is_near_the_least_flip(name, allowed, norm):
    least = _least(norm)
    assert np.isfinite(least).all()
    ratios = np.sort(_attacked(name, norm).distance / least)
    assert ratios[0] > 1 - 2e-3  # nothing is nearer than the nearest of all directions
    assert (ratios[[len(ratios) // 2, 3 * len(ratios) // 4, -1]] <= allowed).all()


@pytest.mark.slow
def test_the_shortest_flip_of_both_attacks_is_taken(x64):
    """After so few steps that each is better than the other somewhere."""

    def three(network: Network, point: jax.Array, key: jax.Array) -> list[jax.Array]:
        effort = {"basis": jnp.eye(DIMS["l1"]), "norm": "l1", "restarts": 1, "key": key}
        best = attacks.minimal_norm_attack(network, point, steps=10, **effort)
        of_fmn = attacks.fmn_attack(network, point, steps=10, **effort)
        return [best.distance, of_fmn.distance, attacks.fab_attack(network, point, steps=5, **effort).distance]

    run, keys = jax.jit(jax.vmap(three)), jax.random.split(jax.random.key(0), RANDOM + TRAINED)
    best, of_fmn, of_fab = map(np.asarray, run(*_victims("l1"), keys))
    np.testing.assert_allclose(best, np.minimum(of_fmn, of_fab), rtol=1e-12)
    assert (of_fmn < 0.999 * of_fab).any() and (of_fab < 0.999 * of_fmn).any()


@pytest.mark.parametrize("norm", DIMS)
def test_the_universal_attack_crosses_its_ray_in_every_norm(norm):
    found, signs = _attacked("universal", norm), []
    for i in range(RANDOM + TRAINED):
        network, x = _victim(norm, i)
        sign = np.sign(float(reference.output(network, x)))
        ray = -sign * np.sign(network.head) @ network.weight
        flip = reference.first_flips(network, x, ray[None])[0] * np.linalg.norm(ray, ORDER[norm])
        assert found.distance[i] == pytest.approx(flip, rel=1e-8)
        signs += [sign] if np.isfinite(flip) else []
    assert {-1.0, 1.0} == set(signs)


@pytest.mark.parametrize("norm", DIMS)
def test_a_run_goes_on_where_the_linear_output_is_zero(norm):
    """From half-way to the flip of a linear network, along its gradient, a run meets it by its fourth step."""
    rng = np.random.default_rng(4)
    weight, head = rng.standard_normal((2, 12, 6)).astype(np.float32)
    local = TwoLayerLocal(np.full(12, 9, np.float32), weight, head[:, 0], np.float32(1 - 9 * head[:, 0].sum()))
    gradient = head[:, 0] @ weight
    distance = 1 / np.linalg.norm(gradient, DUAL_ORDER[norm])
    start = -0.5 * distance * np.asarray(norms.steepest(gradient, norm))[None]
    none = fmn.Flips(jnp.zeros((1, 6)), jnp.full(1, jnp.inf))
    found = fmn._search(local, start, none, jnp.ones(1), norm, 4, fmn.Fall(1.0, 0.2), fmn.Fall(0.1, 0.02))
    assert found.sizes[0] == pytest.approx(distance, rel=0.03)


# Starts toward a point -------------------------------------------------------------------------------------------


def _well(rng: np.random.Generator, x: np.ndarray, goal: np.ndarray) -> Network:
    """Ridges in all directions through a goal, which add up to a flip within a small ball around it alone.

    Each is 1 − |a·(· − goal)|/w for as long as that is positive. No ridge reaches x, where N is constant, and far out
    the ridges are over.
    """
    ridges, half_width = 24, 0.3 * np.linalg.norm(goal - x)
    across = rng.standard_normal((40 * ridges, len(goal)))
    across /= np.linalg.norm(across, axis=1, keepdims=True)
    across = across[np.abs(across @ (goal - x)) > half_width][:ridges]
    bias = -across @ goal
    biases = np.concatenate([bias + half_width, bias, bias - half_width])
    heads = np.repeat([-1.0, 2.0, -1.0], ridges) / half_width
    return Network(np.tile(across, (3, 1)), biases, heads, 0.6 * ridges)


@pytest.mark.slow
@pytest.mark.parametrize("attack", [attacks.fmn_attack, attacks.minimal_norm_attack])
def test_a_flip_that_no_other_start_finds_is_found_toward_a_point(attack, x64):
    rng = np.random.default_rng(1)
    x, goals = rng.standard_normal((2, 12, 6))
    networks = reference.stacked([_well(rng, *pair) for pair in zip(x, goals, strict=True)])
    basis = np.linalg.qr(np.random.default_rng(2).standard_normal((6, 6)))[0]

    def run(network: Network, point: jax.Array, toward: jax.Array, key: jax.Array) -> attacks.AttackResult:
        return attack(network, point, basis, steps=12, restarts=8, key=key, toward=toward)

    run = jax.jit(jax.vmap(run))
    keys = jax.random.split(jax.random.key(0), len(goals))
    found = run(networks, x, goals, keys)
    assert np.mean(found.distance < np.linalg.norm(goals - x, axis=1)) > 0.75
    for elsewhere in (x, 2 * x - goals):
        assert not run(networks, x, elsewhere, keys).is_adv.any()


def test_the_point_to_start_toward_is_the_nearest_of_the_other_sign(x64):
    rng, found = np.random.default_rng(3), 0
    for i in range(12):
        network, x = reference.random_network(rng, 6, 3), rng.standard_normal((7, 3))
        network = network._replace(head_bias=network.head_bias - float(np.median(reference.output(network, x))) + 0.01)
        if i == 3:  # an output of 0, as of the points beyond the one neuron's kink, counts as positive
            network = network._replace(bias=0 * network.bias, head=-np.eye(6)[0], head_bias=0.0)
        if i > 8:  # all alike
            network = network._replace(head_bias=10.0 * (-1) ** i)
        positive = reference.output(network, x) >= 0
        outputs = output(Network(*map(jnp.asarray, network)), jnp.asarray(x))
        toward = np.asarray(brackets._nearest_of_other_sign(outputs, jnp.asarray(x), jnp.ones(len(x), bool)))
        for j in range(len(x)):
            others = x[positive != positive[j]]
            expected = min(others, key=lambda other, at=x[j]: np.linalg.norm(other - at)) if len(others) else x[j]
            np.testing.assert_array_equal(toward[j], expected)
            found += len(others) > 0
    assert found > 50
