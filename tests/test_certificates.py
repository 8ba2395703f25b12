"""The kink certificate against its root by sorting in float64, and against flips in dense directions."""

import functools

import jax
import numpy as np
import pytest
import reference
from reference import Ray

from subspace_adv.certificates import kink_certificate
from subspace_adv.network import Network
from subspace_adv.subspace import from_directions

D, PADDED, NETWORKS = 5, 200, 60
SUBSPACE = from_directions(np.random.default_rng(5).standard_normal((D, 2)))
REGIONS = {"on": SUBSPACE.basis, "off": SUBSPACE.complement, "full": np.eye(D), "line": SUBSPACE.complement[:, :1]}


@functools.cache
def _cases() -> tuple[Network, np.ndarray]:
    """Random networks of several widths, from tiny to huge; their points."""
    rng = np.random.default_rng(6)
    networks = []
    for i in range(NETWORKS):
        network = reference.random_network(rng, (1, 4, 25, PADDED)[i % 4], D, PADDED)
        scale, head_scale = 10.0 ** rng.uniform(-4, 4, 2) if i % 3 == 0 else (1.0, 1.0)
        networks.append(
            Network(
                network.weight * scale,
                network.bias * scale,
                network.head * head_scale,
                network.head_bias * scale * head_scale,
            )
        )
    return reference.stacked(networks), rng.standard_normal((NETWORKS, D))


@functools.cache
def _certified(region: str, dtype: type = np.float64) -> np.ndarray:
    networks, x = jax.tree.map(lambda a: a.astype(dtype), _cases())
    basis = REGIONS[region].astype(dtype)
    with jax.enable_x64(dtype == np.float64):
        certify = jax.jit(jax.vmap(lambda network, point: kink_certificate(network, point, basis)))
        return np.asarray(certify(networks, x))


def _case(i: int) -> tuple[Network, np.ndarray]:
    networks, x = _cases()
    return Network(*(field[i] for field in networks)), x[i]


def _root(network: Network, x: np.ndarray, basis: np.ndarray) -> float:
    """Where |N| − r‖P∇N‖ − Σ_{s·uᵢ<0} |uᵢ|·max(r‖Pwᵢ‖ − |zᵢ|, 0) falls to zero (F7): sort the kinks, add up slopes."""
    z = network.weight @ x + network.bias
    value = float(reference.output(network, x))
    reach = np.linalg.norm(network.weight @ basis, axis=1)
    opposing = (np.sign(value) * network.head < 0) & (reach > 0)
    kinks = np.abs(z[opposing]) / reach[opposing]
    order = np.argsort(kinks)
    steeper = (np.abs(network.head[opposing]) * reach[opposing])[order]
    slopes = np.linalg.norm(reference.gradient(network, x) @ basis) + np.concatenate([[0], np.cumsum(steeper)])
    begins = np.concatenate([[0], kinks[order]])
    values = abs(value) - np.concatenate([[0], np.cumsum(slopes[:-1] * np.diff(begins))])
    last = np.flatnonzero(values >= 0)[-1]
    return begins[last] + values[last] / slopes[last] if slopes[last] > 0 else np.inf


@pytest.mark.parametrize("region", REGIONS)
def test_certificate_is_the_root_of_the_kink_bound(region):
    found = _certified(region)
    for i in range(NETWORKS):
        network, x = _case(i)
        root = _root(network, x, REGIONS[region])
        assert 0 < found[i] <= root * (1 + 1e-12)
        # The rounding allowance is relative to the terms' sizes, so a small output leaves it less.
        sizes = np.abs(network.head) @ np.abs(network.weight @ x + network.bias) + abs(network.head_bias)
        cancellation = float(sizes / abs(reference.output(network, x)))
        assert found[i] >= root * (1 - 1e-10 * cancellation)
        assert found[i] >= root * (1 - 1e-9) or cancellation > 10


def _ratios(found: np.ndarray, region: str) -> np.ndarray:
    """Certificates over the finite roots."""
    roots = np.array([_root(*_case(i), REGIONS[region]) for i in range(NETWORKS)])
    finite = np.isfinite(roots)
    assert finite.mean() > 0.9
    return found[finite] / roots[finite]


@pytest.mark.parametrize("region", REGIONS)
def test_most_certificates_are_the_root_to_nine_digits(region):
    assert (np.abs(_ratios(_certified(region), region) - 1) < 1e-9).mean() > 0.8


@pytest.mark.parametrize("region", ["on", "full"])
def test_certificate_in_float32_is_below_the_root(region):
    ratios = _ratios(_certified(region, np.float32), region)
    assert max(ratios) <= 1 + 1e-6
    assert np.median(ratios) > 0.999


@pytest.mark.parametrize("region", REGIONS)
def test_no_direction_flips_within_the_certificate(region):
    rng = np.random.default_rng(7)
    basis, found, nearest = REGIONS[region], _certified(region), []
    for i in range(0, NETWORKS, 2):
        network, x = _case(i)
        directions = rng.standard_normal((40, basis.shape[1]))
        sign = np.sign(float(reference.output(network, x)))
        gradient = -sign * reference.gradient(network, x) @ basis
        against = -sign * network.head @ network.weight @ basis
        directions = np.concatenate([directions, [gradient], [against], [-gradient]])
        rays = [Ray.from_point(network, x, basis @ v / np.linalg.norm(v)) for v in directions if v.any()]
        flip = min(ray.first_flip() for ray in rays)
        assert found[i] <= flip
        if np.isfinite(flip):
            nearest.append(float(found[i] / flip))
    assert max(nearest) > 0.5  # the bound is not idle


@pytest.mark.parametrize("region", ["on", "full"])
def test_networks_linear_all_around_are_certified_to_their_distance(x64, region):
    """Where no opposing neuron has a kink on the way the certificate is |N|/‖P∇N‖, the distance itself."""
    rng = np.random.default_rng(8)
    network, x = reference.random_network(rng, 10, D), rng.standard_normal(D)
    network = network._replace(bias=network.bias + 50, head_bias=1 - 50 * network.head.sum())
    exact = abs(float(reference.output(network, x))) / np.linalg.norm(network.head @ network.weight @ REGIONS[region])
    assert kink_certificate(network, x, REGIONS[region]) == pytest.approx(exact, rel=1e-6)
    assert kink_certificate(network, x, REGIONS[region]) <= exact


def test_certificate_is_infinite_where_no_neuron_can_lower_the_output(x64):
    rng = np.random.default_rng(9)
    network, x = reference.random_network(rng, 10, D), rng.standard_normal(D)
    only_on = network._replace(weight=network.weight @ SUBSPACE.basis @ SUBSPACE.basis.T)
    still = network._replace(weight=0 * network.weight)
    headless = network._replace(head=0 * network.head)
    asleep = network._replace(bias=-np.abs(network.weight @ x) - 1, head=np.abs(network.head), head_bias=1.0)
    assert kink_certificate(still, x, np.eye(D)) == np.inf
    assert kink_certificate(headless, x, np.eye(D)) == np.inf
    assert kink_certificate(asleep, x, np.eye(D)) == np.inf
    assert kink_certificate(asleep._replace(head=-asleep.head), x, np.eye(D)) < 1e3
    assert kink_certificate(only_on, x, SUBSPACE.complement) > 1e3  # the rounding of a projection is not quite 0
    assert kink_certificate(only_on, x, SUBSPACE.basis) < 1e3


def test_certificate_is_zero_where_the_output_is(x64):
    rng = np.random.default_rng(10)
    network, x = reference.random_network(rng, 10, D), rng.standard_normal(D)
    at_zero = network._replace(head_bias=network.head_bias - float(reference.output(network, x)))
    assert kink_certificate(at_zero, x, np.eye(D)) == 0
    nothing = Network(*(0 * np.asarray(field) for field in network))
    assert kink_certificate(nothing, x, np.eye(D)) == 0


def test_certificate_does_not_depend_on_the_sign_of_the_output(x64):
    network, x = _case(2)
    negated = network._replace(head=-network.head, head_bias=-network.head_bias)
    basis = REGIONS["full"]
    assert kink_certificate(network, x, basis) == kink_certificate(negated, x, basis)
