"""Attacks on a model of which they know the contract alone: two hidden layers, by automatic differentiation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from deep import DEEP, Deep

from subspace_adv.attacks import (
    ATTACKS,
    descent_distance,
    line_distance,
    minimal_norm_attack,
    universal_attack,
)
from subspace_adv.attacks.universal import universal_direction
from subspace_adv.contracts import Local, Model
from subspace_adv.models import TWO_LAYER, TwoLayerLocal, autodiff, local
from subspace_adv.network import Network
from subspace_adv.norms import NORMS, dual_length, unit
from subspace_adv.streams import key_of

output, around = DEEP.output, DEEP.local


@pytest.fixture(scope="module")
def network() -> Deep:
    rng = np.random.default_rng(16)
    return Deep(*(rng.standard_normal(shape) for shape in ((8, 2), (8,), (8, 8), (8,))))


def least_on_circles(network: Deep, x: np.ndarray) -> float:
    """Distance of the nearest flip along many directions, from outputs alone."""
    angles = np.linspace(0, 2 * np.pi, 2000, endpoint=False)
    directions = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    radii = np.linspace(0, 20, 4001)[1:]
    hidden = np.maximum((x + radii[:, None, None] * directions) @ network.weight.T + network.bias, 0)
    outputs = np.maximum(hidden @ network.hidden.T, 0) @ network.head
    flips = np.sign(outputs) == -np.sign(float(output(network, jnp.asarray(x))))
    return float(radii[flips.any(axis=1)].min())


@pytest.mark.slow
def test_attacks_find_flips_of_any_model_that_keeps_the_contract(network, x64):
    x, direction = np.array([0.4, -0.3]), np.array([0.6, 0.8])

    @jax.jit
    def attacked(network: Deep) -> tuple:
        best = minimal_norm_attack(network, x, np.eye(2), steps=20, restarts=12, key=key_of(0), model=DEEP)
        along = universal_attack(network, x, np.eye(2), model=DEEP)
        descent = descent_distance(network, jnp.asarray(x), jnp.asarray(direction), model=DEEP)
        return best, along, line_distance(network, x, direction, model=DEEP), descent

    best, along, (lower, both), descent = attacked(network)
    for found in (best, along, both):
        assert np.sign(output(network, jnp.asarray(x + found.delta))) == -np.sign(output(network, jnp.asarray(x)))
        assert np.linalg.norm(found.delta) == pytest.approx(found.distance)
    assert best.distance == pytest.approx(least_on_circles(network, x), rel=1e-2)
    assert best.distance < along.distance
    assert lower <= both.distance <= descent


@pytest.mark.slow  # many small programs
def test_a_two_layer_network_is_what_the_contract_says(x64):
    """Each operation against automatic differentiation of the output, or its values far away."""
    rng = np.random.default_rng(6)
    network = Network(*(jnp.asarray(rng.standard_normal(shape)) for shape in ((12, 4), (12,), (12,), ())))
    x, basis = jnp.asarray(rng.standard_normal(4)), jnp.asarray(np.linalg.qr(rng.standard_normal((4, 3)))[0])
    of: Local = local(network, x, basis)
    assert isinstance(of, TwoLayerLocal) and (of.dimension, of.dtype) == (3, np.float64)
    assert of.astype(jnp.float32).dtype == np.float32
    c = jnp.asarray(rng.standard_normal((7, 3)))
    value, gradient = of.value_and_gradient(c)
    np.testing.assert_array_equal(value, of.value(c))
    np.testing.assert_allclose(gradient, jax.vmap(jax.grad(of.value))(c), rtol=1e-12)
    assert of.value(jnp.zeros(3)) >= 0
    np.testing.assert_allclose(of.beyond().value(c), of.value(1e9 * c) / 1e9, rtol=1e-6, atol=1e-8)
    radii = jnp.array([0.0, 1.0, 1e6, 2e6])
    along = of.values_along(c, radii)
    np.testing.assert_allclose(along, [[of.value(r * v) for r in radii] for v in c], rtol=1e-12)
    slope, constant = of.asymptotes(c)
    np.testing.assert_allclose(slope, (along[:, 3] - along[:, 2]) / 1e6, rtol=1e-6)
    np.testing.assert_allclose(constant, 2 * along[:, 2] - along[:, 3], rtol=1e-5)
    factor = of.value(c) / of.in_own_units().value(c)
    np.testing.assert_allclose(factor, 2.0 ** np.floor(np.log2(jnp.abs(of.head) @ jnp.abs(of.z) + abs(of.offset))))
    for norm in NORMS:
        within = unit(c, norm) * of.unbent(norm)
        slope = dual_length(of.value_and_gradient(jnp.zeros(3))[1], norm)
        assert (of.value(within) >= of.value(jnp.zeros(3)) - slope * of.unbent(norm) * (1 + 1e-9)).all()
        nearest = jnp.abs(of.z) / dual_length(of.rates, norm)
        assert float(of.unbent(norm)) in np.asarray(nearest[(of.z < 0) & (of.head < 0)])
        assert of.reach(norm) == pytest.approx(float(nearest.max()))
        at, blurred = of.blurred(norm)(c, jnp.full(7, 1e-12))
        np.testing.assert_allclose((at, *blurred.T), (value, *gradient.T), rtol=1e-9)
        _, all_half_on = of.blurred(norm)(c, jnp.full(7, 1e12))
        np.testing.assert_allclose(all_half_on, jnp.tile(of.gradient_all_on() / 2, (7, 1)), rtol=1e-9)


TWIN = autodiff.model(
    init=TWO_LAYER.init,
    first=TWO_LAYER.first,
    with_first_weight=TWO_LAYER.with_first_weight,
    rest=TWO_LAYER.rest,
    trained=TWO_LAYER.trained,
)


def test_a_model_by_automatic_differentiation_is_the_one_by_hand(x64):
    """Crossings of rays too, where one neuron's kink is a thousand times as far as the others'."""
    rng = np.random.default_rng(1)
    shapes = ((300, 40, 3), (300, 40), (300, 40), (300,))
    networks = Network(*(rng.standard_normal(shape) for shape in shapes))
    networks.weight[:, 0] *= 1e-3
    x = rng.standard_normal((300, 3))

    @jax.jit
    @jax.vmap
    def both(network: Network, x: jax.Array) -> tuple:
        def told(model: Model) -> tuple:
            of, c = model.local(network, x, jnp.eye(3)), jnp.array([0.3, -0.2, 0.1])
            crossing = of.crossing(jnp.array([1.0, 0.0, 0.0])).upper
            gradient, sensitivity = model.input_gradient(network, x[None]), model.sensitivity(network, x[None])
            far = of.asymptotes(jnp.array([[0.6, 0.8, 0], [0, -0.6, 0.8]]))
            return crossing, (of.value(c), of.value_and_gradient(c), gradient, sensitivity), far

        return told(TWIN), told(TWO_LAYER)

    (found, twins, far), (exact, by_hand, far_by_hand) = both(networks, x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), twins, by_hand)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), far, far_by_hand)
    finite = np.isfinite(exact)
    assert 100 < finite.sum() < 300 and (np.isfinite(found) == finite).mean() > 0.99
    assert (found[finite] >= exact[finite] * (1 - 1e-6)).all()
    assert np.isclose(found[finite], exact[finite], rtol=1e-6).mean() > 0.99


def test_the_universal_direction_is_against_the_mean_gradient(network, x64):
    """Of length 1, in a region; its weights have the length √m, m the neurons that are no padding."""
    x, basis = np.random.default_rng(2).standard_normal((6, 2)), np.array([[0.6], [0.8]])
    weights = DEEP.universal_weights(network, DEEP.sensitivity(network, x))
    assert np.linalg.norm(weights) == pytest.approx(8**0.5)
    gradient = basis @ basis.T @ np.mean(DEEP.input_gradient(network, x), axis=0)
    found = universal_direction(DEEP, network, weights, jnp.asarray(basis))
    np.testing.assert_allclose(found, -gradient / np.linalg.norm(gradient), rtol=1e-9)
    padded = network._replace(weight=np.where(np.arange(8)[:, None] < 5, network.weight, 0))
    assert np.linalg.norm(DEEP.universal_weights(padded, np.ones((2, 8)))) == pytest.approx(5**0.5)
    assert not np.asarray(DEEP.universal_weights(network, np.zeros((2, 8)))).any()


def test_flips_nearer_than_all_kinks_of_the_first_layer_are_met(x64):
    """All of its kinks lie behind, and the second layer flips the sign and back within a unit."""
    of = autodiff.model(
        init=TWO_LAYER.init,
        first=lambda params: (params, jnp.zeros(1)),
        with_first_weight=lambda params, weight: weight,
        rest=lambda params, z: (z[..., 0] - 0.2) * (z[..., 0] - 0.5),
        trained=TWO_LAYER.trained,
    ).local(jnp.eye(1), jnp.zeros(1), jnp.eye(1))
    assert of.crossing(jnp.ones(1)).upper == pytest.approx(0.2)
    assert of.crossing(-jnp.ones(1)).upper == np.inf


def test_where_no_neuron_varies_a_search_yet_has_a_length(x64):
    network = Network(jnp.zeros((4, 2)), jnp.ones(4), jnp.ones(4), jnp.zeros(()))
    assert TWIN.local(network, jnp.zeros(2), jnp.eye(2)).reach("l2") == 1


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("norm", NORMS)
def test_every_attack_yields_directions_of_the_region(name, norm, network, x64):
    of = around(network, jnp.array([0.4, -0.3]), jnp.eye(2))
    for goal in (None, jnp.ones(2)):
        found = jax.eval_shape(lambda key, goal=goal: ATTACKS[name](of, norm, 6, 4, key, goal), key_of(0))
        assert found.shape[1:] == (2,) and found.dtype == np.float64 and len(found.shape) == 2 and found.shape[0]
