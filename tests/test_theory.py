"""Predicted laws against recursions in long double, simulations in NumPy and networks really trained."""

import numpy as np
import pytest
from scipy import stats
from shell import read

from subspace_adv import load_networks, open_results, run, theory
from subspace_adv.datasets import load_span

TRAINED = """
name = "trained"
[network]
width = 3  # as other tests have, whose measuring is compiled already
[training]
stop_margin = inf
optimizer = "momentum"
learning_rate = 0.1
[measure]
regions = ["off"]
[axes]
seed = "0:4"
momentum = [0.0, 0.7]
weight_decay = [0.0, 0.05, 3.0]
max_steps = [0, 4, 30]
"""


def recursion(steps: int, eta: float, lam: float, mu: float) -> float:
    """ρ_T of heavy-ball momentum on a parameter whose loss gradient is zero, in long double."""
    eta, lam, mu = map(np.longdouble, (eta, lam, mu))
    rho, buffer = np.longdouble(1), np.longdouble(0)
    for _ in range(steps):
        buffer = mu * buffer + lam * rho
        rho = rho - eta * buffer
    return float(rho)


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 17, 100, 4095, 4096])
def test_decay_is_the_recursion_of_momentum(steps):
    rng = np.random.default_rng(steps)
    eta, lam, mu = rng.uniform(0, 0.5, 20), rng.uniform(0, 0.1, 20), rng.uniform(0, 0.999, 20)
    mu[:5], lam[5:8] = 0, 0
    expected = [recursion(steps, *settings) for settings in zip(eta, lam, mu, strict=True)]
    np.testing.assert_allclose(theory.decay(np.array(steps), eta, lam, mu), expected, rtol=1e-11, atol=1e-13)
    np.testing.assert_array_equal(theory.decay(np.array(steps), eta, 0.0, mu), 1)


def test_decay_stays_exact_over_a_hundred_thousand_steps():
    eta, lam, mu = np.array([0.02, 0.02, 0.05, 0.1]), np.array([0.003, 1e-4, 1e-5, 1e-3]), np.array([0, 0.9, 0.5, 0.99])
    expected = [recursion(100_000, *settings) for settings in zip(eta, lam, mu, strict=True)]
    np.testing.assert_allclose(theory.decay(np.full(4, 100_000), eta, lam, mu), expected, rtol=1e-9)


def test_decay_of_gradient_descent_is_a_power():
    steps, rate = np.array([[0], [1], [50], [40_001]]), np.array([0.0, 1e-4, 0.5, 1.5, 1.999])
    found = theory.decay(steps, np.array(0.5), rate / 0.5)
    np.testing.assert_allclose(found, (1 - rate) ** steps, rtol=1e-10, atol=1e-300)
    assert found[1, 3] < 0  # decay overshoots
    assert np.isnan(theory.decay(np.array(np.nan), np.array(0.1), np.array(0.0)))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results") / "trained"
    sweep = read(TRAINED)
    run(sweep, folder)
    return open_results(folder), load_networks(folder), load_span(sweep.dataset({}), complete=True)


def test_the_decay_predicted_is_that_of_networks_trained(trained):
    """W^T off the subspace is ρ_T·W⁰ off it, by the engine (F1)."""
    dataset, networks, span = trained
    off = networks.weight.astype(np.float64) @ span.complement  # (…, max_steps, m, l)
    rho = dataset["predicted_decay"].values
    assert rho.dtype == np.float32
    assert (rho[..., 0] == 1).all() and (rho[:, :, 0] == 1).all()
    assert rho[0, 0, 2, 2] == pytest.approx(0.7**30)
    assert rho[0, 1].min() < -0.1  # with momentum it swings
    np.testing.assert_allclose(off, rho[..., None, None] * off[:, :, :, :1], atol=2e-6)
    on = networks.weight @ span.basis.astype(np.float32)
    assert np.abs(on[..., 2, :, :] - rho[..., 2, None, None] * on[..., 0, :, :]).max() > 0.1  # that part did learn


def test_the_scale_predicted_is_that_of_the_networks_trained(trained):
    """Median over χ's, times |ρ|·β·√A from the stored weights."""
    dataset, networks, _ = trained
    z = np.einsum("nd,...md->...nm", dataset["input"].values, networks.weight) + networks.bias[..., None, :]
    active = np.where(z > 1e-6, np.abs(networks.head)[..., None, :], 0)
    near = (np.abs(z) < 1e-5).any(axis=-1)  # active or not is a matter of rounding
    found = {"head_norm_active": np.linalg.norm(active, axis=-1), "head_sum_active": active.sum(axis=-1)}
    for name, values in found.items():
        np.testing.assert_allclose(dataset[name].values[~near], values[~near], rtol=1e-5)
    scale = np.abs(dataset["predicted_decay"].values)[..., None] * found["head_norm_active"] / np.sqrt(2)
    for name, length in {
        "": 0.6744898,
        "_low": 0.0313380,
        "_high": 2.2414027,
        "_lower_bound": 0.7071068,
        "_upper_bound": 1.4142136,
    }.items():
        predicted = dataset[f"predicted_gradient_norm_off{name}"].values
        np.testing.assert_allclose(predicted[~near], length * scale[~near], rtol=1e-5)
    np.testing.assert_allclose(dataset["predicted_bound_probability"], 1 - np.exp(-1 / 16), rtol=1e-6)
    assert near.mean() < 0.2
    output = np.einsum("...nm,...m->...n", np.maximum(z, 0), networks.head) + networks.head_bias[..., None]
    slope = np.abs(dataset["predicted_decay"].values)[..., None] * found["head_sum_active"] / np.sqrt(2 * 3)  # width 3
    right = (dataset["label"].values * output > 1e-5) & ~near
    universal = dataset["predicted_distance_universal"].values
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(universal[right], (np.abs(output) / slope)[right], rtol=1e-3)
    assert right.mean() > 0.3 and (universal[dataset["label"].values * output < -1e-5] == 0).all()


@pytest.mark.parametrize("dof", [1, 2, 7, 100, 996])
def test_quantiles_and_distribution_are_those_of_chi(dof):
    probabilities = np.array([0.001, 0.025, 0.5, 0.975, 0.999])
    found = np.array([theory.chi_quantile(np.array(dof), p) for p in probabilities])
    np.testing.assert_allclose(found, stats.chi.ppf(probabilities, dof), rtol=1e-9)
    np.testing.assert_allclose(theory.chi_cdf(np.array(dof), found), probabilities, rtol=1e-9)


def test_bounds_hold_with_the_probability_promised():
    dof = np.arange(1, 3000)
    lower, upper = theory.length_bounds(dof)
    promised = theory.bound_probability(dof)
    assert (stats.chi.sf(lower, dof) >= promised).all()
    assert (stats.chi.cdf(upper, dof) >= promised).all()
    np.testing.assert_allclose(promised[[0, 15]], [1 - np.exp(-1 / 16), 1 - np.exp(-1)], rtol=1e-12)


class Simulated:
    """Off weights drawn many times around one fixed training run: head, active set and ρ given."""

    def __init__(self, width: int, codimension: int, active: int, scale: float, draws: int) -> None:
        """Draw the first `active` neurons as the active ones."""
        rng = np.random.default_rng(width + codimension)
        head = rng.standard_normal(width) / np.sqrt(width)
        head[0] = 1.5  # one neuron outweighs the others
        weights = scale * rng.standard_normal((draws, width, codimension))
        gradient = np.einsum("i,nil->nl", head[:active], weights[:, :active])
        direction = np.einsum("i,nil->nl", -np.sign(head), weights)
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        self.norm = np.linalg.norm(gradient, axis=1)
        self.descent = -np.sum(gradient * direction, axis=1)
        self.head_sum, self.squares = np.abs(head[:active]).sum(), np.square(head[:active]).sum()


CASES = [(30, 1, 12), (30, 5, 12), (8, 40, 8), (60, 200, 25)]


@pytest.mark.parametrize(("width", "codimension", "active"), CASES)
def test_the_law_of_the_off_gradient(width, codimension, active):
    """F3, with a head of unequal sizes."""
    found = Simulated(width, codimension, active, 0.3, 2000)
    transformed = theory.chi_cdf(np.array(codimension), found.norm / (0.3 * np.sqrt(found.squares)))
    assert stats.kstest(transformed, "uniform").pvalue > 0.01


@pytest.mark.parametrize(("width", "codimension", "active"), CASES)
def test_the_law_of_the_descent_along_the_universal_direction(width, codimension, active):
    """F4 (d): σ(Σ|u|/√m·χ_l + √(A − (Σ|u|)²/m)·Z), and the size that the prediction makes of it."""
    found, rng = Simulated(width, codimension, active, 0.3, 2000), np.random.default_rng(0)
    chi = np.sqrt(rng.chisquare(codimension, 2000))
    spread = np.sqrt(found.squares - found.head_sum**2 / width)
    law = 0.3 * (found.head_sum / np.sqrt(width) * chi + spread * rng.standard_normal(2000))
    assert stats.ks_2samp(found.descent, law).pvalue > 0.01
    size = theory.universal_distance(
        np.array(-2.0), np.array(found.head_sum), np.array(0.3), np.array(codimension), np.array(width)
    )
    error = spread / (found.head_sum / np.sqrt(width)) / np.sqrt(codimension)  # of the slope, relative
    if error < 0.3:
        assert np.median(2 / found.descent) == pytest.approx(float(size), rel=0.02)
    expected = stats.chi.mean(codimension) / np.sqrt(codimension)  # of a first-order size, which takes χ for √l
    four_errors = 4 * np.std(found.descent) / 2000**0.5 * size / 2
    assert np.mean(found.descent) * size / 2 == pytest.approx(expected, abs=four_errors)


def test_the_universal_distance_is_the_formula():
    """|N|·√m / (σ·√l·Σ|u|) (F4), of arguments that broadcast."""
    output, head_sum, scale = np.array([[-2.0], [3.0]]), np.array([0.5, 4.0]), np.array(0.1)
    found = theory.universal_distance(output, head_sum, scale, np.array(9), np.array(16))
    np.testing.assert_allclose(found, [[2 * 4 / (0.3 * 0.5), 2 * 4 / 1.2], [3 * 4 / (0.3 * 0.5), 3 * 4 / 1.2]])


def test_the_universal_distance_without_active_neurons_is_infinite():
    for output in (0.5, 0.0):
        assert theory.universal_distance(*map(np.array, (output, 0.0, 0.1, 3, 10))) == np.inf
