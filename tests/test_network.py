"""Initial laws, their pairing over widths and scales, and evaluation of the network."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from scipy import stats

from subspace_adv import initialization, network
from subspace_adv.initialization import Law
from subspace_adv.network import Network

LAWS = ["theory", "paper-code", "torch"]
D, SCALE, WIDTH = 6, 0.5, 3000


_drawn = jax.jit(initialization.init_network, static_argnames="law")


@functools.cache  # and of few shapes, each of which is compiled
def draw(law: str, *, seed: int = 0, width: int = WIDTH, scale: float = 1.0, padded: int | None = None) -> Network:
    drawn = _drawn(jax.random.key(seed), jnp.int32(width), jnp.float32(scale), law=Law(law, padded or width, D, D))
    return jax.tree.map(np.asarray, drawn)


@pytest.fixture(scope="module")
def small_networks() -> dict[str, Network]:
    """Networks of width 3 on the plane, for 2,000 seeds along the leading axis, by law."""

    def one(seed: jax.Array, law: str) -> Network:
        key, width, scale = jax.random.key(seed), jnp.int32(3), jnp.float32(SCALE)
        return initialization.init_network(key, width, scale, law=Law(law, 3, 2, 2))

    seeds = np.arange(2000, dtype=np.uint32)
    return {law: jax.tree.map(np.asarray, jax.jit(jax.vmap(functools.partial(one, law=law)))(seeds)) for law in LAWS}


def follows(sample: np.ndarray, law: stats.rv_continuous) -> bool:
    """Kolmogorov–Smirnov: draws are fixed by their seed, so this passes always or never."""
    return stats.kstest(sample.ravel(), law.cdf).pvalue > 1e-3


def uniform(bound: float) -> stats.rv_continuous:
    return stats.uniform(-bound, 2 * bound)


@pytest.mark.parametrize("law", LAWS)
def test_networks_are_float32_of_the_padded_shape(law):
    drawn = draw(law, width=5, padded=8)
    assert [field.shape for field in drawn] == [(8, D), (8,), (8,), ()]
    assert {field.dtype for field in drawn} == {np.dtype(np.float32)}


@pytest.mark.parametrize("law", ["theory", "paper-code"])
def test_weights_are_gaussian_of_variance_one_over_d(law):
    weight = draw(law, scale=SCALE).weight
    assert follows(weight, stats.norm(0, SCALE / D**0.5))
    np.testing.assert_allclose(np.cov(weight.T), SCALE**2 / D * np.eye(D), atol=0.07 * SCALE**2 / D)


def test_theory_head_is_a_fair_sign_over_root_m_at_any_scale():
    for scale in (1.0, SCALE):
        head = draw("theory", scale=scale).head
        np.testing.assert_allclose(np.abs(head), WIDTH**-0.5, rtol=1e-6)
        assert abs((head > 0).mean() - 0.5) < 4 / (2 * WIDTH**0.5)


def test_theory_has_no_biases(small_networks):
    assert not draw("theory").bias.any()
    assert not small_networks["theory"].head_bias.any()


def test_paper_code_head_is_gaussian_of_variance_one_over_m():
    assert follows(draw("paper-code", scale=SCALE).head, stats.norm(0, SCALE / WIDTH**0.5))


def test_torch_weights_are_uniform_over_root_fan_in():
    drawn = draw("torch", scale=SCALE)
    for values, bound in [(drawn.weight, SCALE / D**0.5), (drawn.head, SCALE / WIDTH**0.5)]:
        assert np.abs(values).max() <= bound
        assert follows(values, uniform(bound))


@pytest.mark.parametrize("law", ["paper-code", "torch"])
def test_biases_are_uniform_over_root_fan_in_whatever_the_scale(law, small_networks):
    for values, bound in [(draw(law, scale=SCALE).bias, D**-0.5), (small_networks[law].head_bias, 3**-0.5)]:
        assert np.abs(values).max() <= bound
        assert follows(values, uniform(bound))


@pytest.mark.parametrize("law", LAWS)
def test_the_parameters_of_a_neuron_are_uncorrelated(law):
    drawn = draw(law)
    columns = [*drawn.weight.T, drawn.head, *([] if law == "theory" else [drawn.bias])]
    correlations = np.corrcoef(columns) - np.eye(len(columns))
    assert np.abs(correlations).max() < 5 / WIDTH**0.5


@pytest.mark.parametrize("law", ["paper-code", "torch"])
def test_all_parameters_of_a_network_are_uncorrelated_over_seeds(law, small_networks):
    columns = np.concatenate([field.reshape(2000, -1).T for field in small_networks[law]])
    correlations = np.corrcoef(columns) - np.eye(len(columns))
    assert len(columns) == 13 and np.abs(correlations).max() < 5 / 2000**0.5


def test_neurons_and_seeds_differ():
    one, other = draw("paper-code", width=40), draw("paper-code", width=40, seed=1)
    rows = np.concatenate([one.weight, other.weight])
    assert len(np.unique(rows, axis=0)) == 80
    assert one.head_bias != other.head_bias


@pytest.mark.parametrize("law", LAWS)
def test_a_narrow_network_is_the_first_neurons_of_a_wide_one(law):
    """Up to the scales that depend on the width by definition: those of head and head bias."""
    narrow, wide = draw(law, width=5, padded=8), draw(law, width=40)
    np.testing.assert_array_equal(narrow.weight[:5], wide.weight[:5])
    np.testing.assert_array_equal(narrow.bias[:5], wide.bias[:5])
    np.testing.assert_allclose(narrow.head[:5] * 5**0.5, wide.head[:5] * 40**0.5, rtol=1e-6)
    np.testing.assert_allclose(narrow.head_bias * 5**0.5, wide.head_bias * 40**0.5, rtol=1e-6)


@pytest.mark.parametrize("law", LAWS)
def test_padding_changes_no_draw_and_is_zero(law):
    exact, padded = draw(law, width=5), draw(law, width=5, padded=8)
    for name in ("weight", "bias", "head"):
        np.testing.assert_array_equal(getattr(padded, name)[:5], getattr(exact, name))
        assert not getattr(padded, name)[5:].any()
    assert padded.head_bias == exact.head_bias


@pytest.mark.parametrize("law", LAWS)
def test_networks_are_paired_over_the_init_scale(law):
    one, small = (draw(law, width=20, padded=40, scale=scale) for scale in (1.0, 0.25))
    np.testing.assert_array_equal(small.weight, 0.25 * one.weight)
    np.testing.assert_array_equal(small.head, one.head if law == "theory" else 0.25 * one.head)
    np.testing.assert_array_equal(small.bias, one.bias)
    assert small.head_bias == one.head_bias


def test_laws_share_their_base_draws():
    """Gaussian weights are the same ones, biases are, and heads share signs and ranks."""
    theory, paper, torch = (draw(law, width=20, padded=40) for law in LAWS)
    np.testing.assert_array_equal(theory.weight, paper.weight)
    np.testing.assert_array_equal(paper.bias, torch.bias)
    assert paper.head_bias == torch.head_bias
    np.testing.assert_allclose(stats.norm.cdf(paper.head * 20**0.5), (torch.head * 20**0.5 + 1) / 2, atol=1e-6)
    np.testing.assert_array_equal(np.sign(theory.head), np.sign(torch.head))
    np.testing.assert_array_equal(np.sign(paper.head), np.sign(torch.head))


@pytest.mark.parametrize("shape", [(D,), (4, D), (2, 3, D)], ids=str)
def test_output_and_preactivations_agree_with_numpy(x64, shape):
    rng = np.random.default_rng(0)
    net, x = reference.random_network(rng, 15, D), rng.standard_normal(shape)
    np.testing.assert_allclose(network.output(net, x), reference.output(net, x).astype(float), rtol=1e-12)
    for found, point in zip(np.reshape(network.preactivations(net, x), (-1, 15)), x.reshape(-1, D), strict=True):
        np.testing.assert_allclose(found, [np.dot(w, point) + b for w, b in zip(*net[:2], strict=True)], atol=1e-12)


def test_input_gradient_agrees_with_finite_differences(x64):
    rng = np.random.default_rng(1)
    net, x = reference.random_network(rng, 15, D), rng.standard_normal((8, D))
    step = 1e-6 * np.eye(D)
    difference = [
        [float(reference.output(net, point + e) - reference.output(net, point - e)) / 2e-6 for e in step] for point in x
    ]
    np.testing.assert_allclose(network.input_gradient(net, x), difference, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(network.input_gradient(net, x[0]), difference[0], rtol=1e-6, atol=1e-9)


def test_input_gradient_counts_a_relu_at_its_kink_as_off():
    net = Network(*(np.float32(a) for a in ([[1, 0], [0, 1]], [0, 0], [2, 3], 0)))
    np.testing.assert_array_equal(network.input_gradient(net, np.float32([0, 1])), [0, 3])


def test_padded_width_is_the_least_allowed_width():
    """Allowed are 2^k and, rounded up, 5/4 and 25/16 of it."""
    allowed = sorted({-(-factor * 2**k // 16) for factor in (16, 20, 25) for k in range(16)})
    for width in range(1, 3000):
        assert network.padded_size(width) == min(a for a in allowed if a >= width)


def test_padded_width_wastes_little_and_nothing_at_usual_widths():
    for width in (1, 25, 50, 100, 200, 400, 800, *(2**k for k in range(15))):
        assert network.padded_size(width) == width
    assert max(network.padded_size(width) / width for width in range(1, 10_000)) <= 1.28
