"""Functions split into affine maps: what they make, which are refused, and what a class gains by being such a chain."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen

from subspace_adv.contracts import Design, Model, named
from subspace_adv.models import MODELS, hand_over
from subspace_adv.models import module as own
from subspace_adv.models.rays import absolute, linear_part
from subspace_adv.models.splitting import split

D = 16
Dense, relu = linen.Dense, linen.relu


class Body(linen.Module):
    """A module that calls a function within which layers are made."""

    body: Callable[[jax.Array], Any]

    @linen.compact
    def __call__(self, x: jax.Array) -> Any:
        """What the function makes of a point (d,)."""
        return self.body(x)


class Perceptron(linen.Module):
    """Two hidden layers."""

    width: int

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """The output (1,)."""
        for _ in range(2):
            x = relu(Dense(self.width)(x))
        return Dense(1)(x)


def signals(x):
    h = jnp.maximum(0, linen.Conv(4, (3,), padding="CIRCULAR")(x[:, None]))
    h = linen.avg_pool(h, (2,), (2,))
    return Dense(1)(jax.nn.relu(Dense(5, use_bias=False)(h.ravel())))[0]


def images(x):
    h = relu(linen.Conv(3, (3, 3), padding="SAME", strides=2)(2 * x.reshape(4, 4, 1)))
    h = relu(linen.Conv(5, (2, 2), padding="VALID")(h) / 3)
    left, right = jnp.split(jnp.roll(h.reshape(-1), 1), [2])
    return Dense(1)(jnp.concatenate([right[::-1], left]))


def mean_before_its_relu(x):
    """So that coefficients cancel."""
    return Dense(1)(relu(linen.Conv(4, (3,), padding="CIRCULAR")(x[:, None]).mean(0)))


def calls_within(x):
    return Dense(1)(jax.jit(jax.nn.relu)(linen.remat(Dense)(4)(x)) + 0)


CHAINS = {Perceptron(6): 3, Body(signals): 3, Body(images): 3, Body(mean_before_its_relu): 2, Body(calls_within): 2}


def residual(x):
    h = relu(Dense(4)(x))
    return Dense(1)(h + relu(Dense(4)(h)))


OTHERS = {
    "a ReLU skipped": residual,
    "two branches": lambda x: Dense(1)(relu(Dense(4)(x)) + relu(Dense(4)(x))),
    "tanh": lambda x: Dense(1)(linen.tanh(Dense(4)(x))),
    "a leaky ReLU": lambda x: Dense(1)(linen.leaky_relu(Dense(4)(x))),
    "normalization": lambda x: Dense(1)(relu(linen.LayerNorm()(Dense(4)(x)))),
    "normalized weights": lambda x: Dense(1)(relu(linen.WeightNorm(Dense(4))(x))),
    "a product of layers": lambda x: Dense(1)(relu(Dense(4)(Dense(3)(x)))),
    "a constant of its own": lambda x: Dense(1)(relu(Dense(4)(x))) - 1,
    "another one": lambda x: Dense(1)(1 + relu(Dense(4)(x))),
    "differences": lambda x: Dense(1)(jnp.diff(relu(Dense(4)(x)))),
    "a negative factor": lambda x: Dense(1)(-0.5 * relu(Dense(4)(x))),
    "no layer between ReLUs": lambda x: Dense(1)(relu(relu(Dense(4)(x)))),
    "a maximum above 0": lambda x: Dense(1)(jnp.maximum(Dense(4)(x), 0.1)),
    "a maximum over places": lambda x: Dense(1)(linen.max_pool(Dense(4)(x)[None, :, None], (2,))[0, :, 0]),
    "no ReLU": Dense(1),
    "a maximum that repeats": lambda x: Dense(1)(jnp.maximum(Dense(1)(x), jnp.zeros(5))),
    "another type": lambda x: Dense(1, dtype=jnp.float32)(relu(Dense(4, dtype=jnp.float32)(x))),
    "products in another type": lambda x: Dense(1)(relu(jnp.dot(Dense(4)(x), np.eye(4), preferred_element_type="f4"))),
    "groups": lambda x: Dense(1)(relu(linen.Conv(4, (3,), feature_group_count=2)(x.reshape(8, 2))).ravel()),
}


def drawn(module: linen.Module):
    """Parameters of NumPy's, float64, and points."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(module.init, jax.random.key(0), jax.ShapeDtypeStruct((D,), jnp.float32))["params"]
    return jax.tree.map(lambda a: jnp.asarray(rng.standard_normal(a.shape)), shapes), rng.standard_normal((4, D))


def split_of(module: linen.Module, params):
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), params)
    return split(lambda p, x: module.apply({"params": p}, x), shapes, jax.ShapeDtypeStruct((D,), jnp.float64))


@pytest.mark.parametrize(
    "module", CHAINS, ids=lambda module: getattr(getattr(module, "body", None), "__name__", "perceptron")
)
def test_a_chain_makes_what_the_module_makes(module, x64, standard_promotion):
    params, x = drawn(module)
    maps = split_of(module, params)
    assert maps and len(maps) == CHAINS[module]
    arrays, h, seen = named(params), jnp.asarray(x), []
    for number, affine_map in enumerate(maps):
        own_arrays = {name: arrays[name] for name in affine_map.parameters()}
        held = jax.tree_util.Partial(affine_map, own_arrays)
        none = jnp.zeros((0, h.shape[-1]))  # as many directions as there are off a subspace that is the whole space
        h = jax.jit(held)(jax.nn.relu(h) if number else h)
        assert held(none).shape == (0, h.shape[-1])
        seen += [*own_arrays]
        check_sizes(held, jnp.asarray(np.random.default_rng(number).standard_normal(affine_map.given.shape)).ravel())
    assert sorted(seen) == sorted(arrays)  # each in one map
    expected = jax.jit(jax.vmap(lambda point: jnp.ravel(module.apply({"params": params}, point))))(x)
    np.testing.assert_allclose(h, expected, rtol=1e-12, atol=1e-12)


def check_sizes(held: jax.tree_util.Partial, h: jax.Array) -> None:
    """A map is its matrix's product and its constant; that of absolute values is not less than theirs."""
    made = jax.jit(_made)(held, h)
    matrix, constant = made["matrix"], made["constant"]
    np.testing.assert_allclose(made["value"], matrix @ h + constant, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(made["linear"], matrix @ h, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(made["opposite"], -made["value"], rtol=1e-12)
    sum_of_sizes = np.abs(matrix) @ np.abs(h) + np.abs(constant)
    assert (made["sizes"] >= sum_of_sizes * (1 - 1e-12)).all() and (made["sizes"] < 20 * sum_of_sizes).all()


def _made(held: jax.tree_util.Partial, h: jax.Array) -> dict[str, jax.Array]:
    return {
        "matrix": jax.jacobian(held)(h),
        "constant": held(jnp.zeros_like(h)),
        "value": held(h),
        "linear": linear_part(held, h),
        "opposite": jax.tree.map(lambda a: -a, held)(h),
        "sizes": absolute(held)(jnp.abs(h)),
    }


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_no_chain_is_not_split(kind, x64, standard_promotion):
    module = Body(OTHERS[kind])
    assert split_of(module, drawn(module)[0]) is None


@pytest.fixture
def named_class() -> Iterator[str]:
    """A name under which `Perceptron` was handed over."""
    hand_over("here:Perceptron", Perceptron)
    yield "here:Perceptron"
    del own._classes["here:Perceptron"]


def certified(model: Model, params, x: jax.Array, norm: str):
    """Certificates (n,) in the full space, of points that are known to flip 3 away, and crossings (n, 2) of a ray."""
    basis = jnp.eye(x.shape[1])

    def one(x: jax.Array):
        assert model.certificate
        crossing = model.local(params, x, basis).crossing(jnp.ones(x.shape[0]))
        return model.certificate(params, x, basis, norm=norm, upper=jnp.float64(3)), jnp.stack(crossing)

    return jax.vmap(one)(x)


@pytest.mark.parametrize("norm", ["l2", pytest.param("linf", marks=pytest.mark.slow)])
def test_a_class_that_is_a_chain_is_certified_as_the_same_layers_are(norm, named_class, x64, standard_promotion):
    design = Design(named_class, 3, 6, 2, "standard", 3, 1, 3, "circular", "signal")
    ours, theirs = (MODELS[row].model(design) for row in ("mlp", own.ANY_CLASS))
    rng = np.random.default_rng(5)
    layers = [
        {"kernel": rng.standard_normal((before, after)) * (2 / before) ** 0.5, "bias": 0.3 * rng.standard_normal(after)}
        for before, after in ((3, 6), (6, 6), (6, 1))
    ]
    layers = jax.tree.map(jnp.asarray, layers)
    x = jnp.asarray(rng.standard_normal((6, 3)))
    expected = certified(ours, dict(zip(["hidden_0", "hidden_1", "head"], layers, strict=True)), x, norm)
    found = certified(theirs, {f"Dense_{i}": layer for i, layer in enumerate(layers)}, x, norm)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), found, expected)
    radius, crossing = found
    assert (radius > 0).all() and np.isfinite(crossing).any()
