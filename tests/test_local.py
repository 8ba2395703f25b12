"""Attacks on a model of which they know the contract alone: two hidden layers, by automatic differentiation."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from subspace_adv.attacks import (
    ATTACKS,
    descent_distance,
    line_distance,
    minimal_norm_attack,
    universal_attack,
)
from subspace_adv.contracts import Crossing, Local, Model
from subspace_adv.models import TwoLayerLocal, local
from subspace_adv.network import Network
from subspace_adv.norms import NORMS, dual_length
from subspace_adv.streams import key_of

FAR = 50.0  # taken for the end of all kinks


class Deep(NamedTuple):
    """A network of two hidden layers on the plane."""

    layers: tuple[tuple[Any, Any], ...]  # weights (n, m) and biases (n,)
    sign: Any = 1.0


def output(network: Deep, x: Any) -> Any:
    (*hidden, (head, head_bias)) = network.layers
    for weight, bias in hidden:
        x = jax.nn.relu(x @ weight.T + jnp.broadcast_to(bias, (*x.shape[:-1], len(bias))))
    return (x @ head.T)[..., 0] + head_bias[0]


class _DeepLocal(NamedTuple):
    """Its signed output around a point, in the coordinates of the plane: sampled where there is no formula."""

    network: Deep
    x: Any
    basis: Any
    scale: float = 1.0  # of the perturbations, and of what they do to the output

    @property
    def dimension(self) -> int:
        return self.basis.shape[1]

    @property
    def dtype(self) -> Any:
        return self.x.dtype

    def astype(self, dtype: Any) -> "_DeepLocal":
        arrays = jax.tree.map(lambda a: a.astype(dtype), (self.network, self.x, self.basis))
        return _DeepLocal(*arrays, self.scale)

    def value(self, c: Any) -> Any:
        moves = self.scale * c @ self.basis.T
        return self.network.sign * output(self.network, moves + jnp.broadcast_to(self.x, moves.shape)) / self.scale

    def value_and_gradient(self, c: Any) -> tuple[Any, Any]:
        return self.value(c), jax.grad(lambda c: jnp.sum(self.value(c)))(c)

    def crossing(self, direction: Any) -> Crossing:
        radii = jnp.linspace(0, FAR, 20_001, dtype=self.dtype)
        flips = self.value(radii[:, None] * direction[None]) < 0
        first = jnp.argmax(flips)
        upper = jnp.where(jnp.any(flips), radii[first], jnp.inf)
        return Crossing(jnp.where(jnp.any(flips), radii[first - 1], 0), upper)

    def reach(self, norm: str) -> Any:
        return jnp.asarray(FAR / 10, self.dtype)

    def beyond(self) -> "_DeepLocal":
        return self._replace(scale=1000.0)

    def values_along(self, directions: Any, radii: Any) -> Any:
        return self.value(radii[None, :, None] * directions[:, None])

    def asymptotes(self, directions: Any) -> tuple[Any, Any]:
        near, far = self.values_along(directions, jnp.array([1.0, 2.0], self.dtype) * FAR).T
        return (far - near) / FAR, 2 * near - far

    def gradient_all_on(self) -> Any:
        return self.value_and_gradient(jnp.zeros(self.dimension, self.dtype))[1]

    def blurred(self, norm: str):
        return lambda c, radius: self.value_and_gradient(c)


def around(network: Deep, x: Any, basis: Any) -> _DeepLocal:
    sign = jnp.where(output(network, x) < 0, -1, 1).astype(x.dtype)
    return _DeepLocal(network._replace(sign=sign), x, basis)


def steepest_drop(network: Deep, basis: Any) -> Any:
    gradient = basis @ (basis.T @ jax.grad(lambda x: output(network, x))(jnp.zeros(len(basis), basis.dtype)))
    return -gradient / jnp.linalg.norm(gradient)


DEEP = Model(output, around, lambda network, x, basis, *, norm, upper: jnp.zeros_like(upper), steepest_drop)


@pytest.fixture(scope="module")
def network() -> Deep:
    rng = np.random.default_rng(3)
    shapes = ((8, 2), (8, 8), (1, 8))
    layers = tuple((rng.standard_normal(shape), rng.standard_normal(shape[0])) for shape in shapes)
    return Deep(layers, np.float64(1))


def least_on_circles(network: Deep, x: np.ndarray) -> float:
    """Distance of the nearest flip along many directions."""
    angles = np.linspace(0, 2 * np.pi, 2000, endpoint=False)
    directions = jnp.stack([np.cos(angles), np.sin(angles)], axis=1)
    return float(jnp.min(jax.lax.map(around(network, jnp.asarray(x), jnp.eye(2)).crossing, directions).upper))


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
        assert np.sign(output(network, x + found.delta)) == -np.sign(output(network, x))
        assert np.linalg.norm(found.delta) == pytest.approx(found.distance)
    assert best.distance == pytest.approx(least_on_circles(network, x), rel=1e-2)
    assert best.distance < along.distance
    assert lower <= both.distance <= descent


def test_a_two_layer_network_is_what_the_contract_says(x64):
    """Each operation against automatic differentiation of the output, or its values far away."""
    rng = np.random.default_rng(5)
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
    for norm in NORMS:
        nearest = jnp.abs(of.z) / dual_length(of.rates, norm)
        assert of.reach(norm) == pytest.approx(float(nearest.max()))
        at, blurred = of.blurred(norm)(c, jnp.full(7, 1e-12))
        np.testing.assert_allclose((at, *blurred.T), (value, *gradient.T), rtol=1e-9)
        _, all_half_on = of.blurred(norm)(c, jnp.full(7, 1e12))
        np.testing.assert_allclose(all_half_on, jnp.tile(of.gradient_all_on() / 2, (7, 1)), rtol=1e-9)


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("norm", NORMS)
def test_every_attack_yields_directions_of_the_region(name, norm, network, x64):
    of = around(network, jnp.array([0.4, -0.3]), jnp.eye(2))
    for goal in (None, jnp.ones(2)):
        found = jax.eval_shape(lambda key, goal=goal: ATTACKS[name](of, norm, 6, 4, key, goal), key_of(0))
        assert found.shape[1:] == (2,) and found.dtype == np.float64 and len(found.shape) == 2 and found.shape[0]
