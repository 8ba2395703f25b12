"""The certificates against flips in dense directions, the kink one's root by sorting, and CROWN as published."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from optimum import DUAL_ORDER, ORDER
from reference import Ray

from subspace_adv.geometry import Subspace
from subspace_adv.models import TwoLayerLocal, certificates, crown_certificate, kink_certificate, relaxation
from subspace_adv.models.relaxation import within_cap
from subspace_adv.network import Network

D, PADDED, NETWORKS = 5, 200, 60
SUBSPACE = Subspace.from_directions(np.random.default_rng(5).standard_normal((D, 2)))
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


_jitted_kink = jax.jit(kink_certificate)


def _kink(network: Network, x: np.ndarray, basis: np.ndarray) -> jax.Array:
    """The certificate by a program that is compiled once for all networks of a shape."""
    return _jitted_kink(Network(*map(np.asarray, network)), x, basis)


@pytest.mark.parametrize("region", ["on", "full"])
def test_networks_linear_all_around_are_certified_to_their_distance(x64, region):
    """Where no opposing neuron has a kink on the way the certificate is |N|/‖P∇N‖, the distance itself."""
    rng = np.random.default_rng(8)
    network, x = reference.random_network(rng, 10, D), rng.standard_normal(D)
    network = network._replace(bias=network.bias + 50, head_bias=1 - 50 * network.head.sum())
    exact = abs(float(reference.output(network, x))) / np.linalg.norm(network.head @ network.weight @ REGIONS[region])
    assert _kink(network, x, REGIONS[region]) == pytest.approx(exact, rel=1e-6)
    assert _kink(network, x, REGIONS[region]) <= exact


def test_certificate_is_infinite_where_no_neuron_can_lower_the_output(x64):
    rng = np.random.default_rng(9)
    network, x = reference.random_network(rng, 10, D), rng.standard_normal(D)
    only_on = network._replace(weight=network.weight @ SUBSPACE.basis @ SUBSPACE.basis.T)
    still = network._replace(weight=0 * network.weight)
    headless = network._replace(head=0 * network.head)
    asleep = network._replace(bias=-np.abs(network.weight @ x) - 1, head=np.abs(network.head), head_bias=1.0)
    assert _kink(still, x, np.eye(D)) == np.inf
    assert _kink(headless, x, np.eye(D)) == np.inf
    assert _kink(asleep, x, np.eye(D)) == np.inf
    assert _kink(asleep._replace(head=-asleep.head), x, np.eye(D)) < 1e3
    assert _kink(only_on, x, SUBSPACE.complement) > 1e3  # the rounding of a projection is not quite 0
    assert _kink(only_on, x, SUBSPACE.basis) < 1e3


def test_certificate_is_zero_where_the_output_is(x64):
    rng = np.random.default_rng(10)
    network, x = reference.random_network(rng, 10, D), rng.standard_normal(D)
    at_zero = network._replace(head_bias=network.head_bias - float(reference.output(network, x)))
    assert _kink(at_zero, x, np.eye(D)) == 0
    nothing = Network(*(0 * np.asarray(field) for field in network))
    assert _kink(nothing, x, np.eye(D)) == 0


def test_certificate_does_not_depend_on_the_sign_of_the_output(x64):
    network, x = _case(2)
    negated = network._replace(head=-network.head, head_bias=-network.head_bias)
    basis = REGIONS["full"]
    assert _kink(network, x, basis) == _kink(negated, x, basis)


# The cap ---------------------------------------------------------------------------------------------------------


def _steepest(v: np.ndarray, norm: str) -> np.ndarray:
    """Vectors of norm 1 with the largest v·c, for v (..., r)."""
    if norm == "l2":
        return v / np.linalg.norm(v, axis=-1, keepdims=True)
    return np.sign(v) if norm == "linf" else np.sign(v) * (np.abs(v) == np.abs(v).max(axis=-1, keepdims=True))


def _sampled_cap(rng: np.random.Generator, toward: np.ndarray, height: float, norm: str, toward_too: np.ndarray):
    """Points of the unit ball with toward·c ≤ −height: far along some directions, most of them on the cap's rim."""
    deepest = -_steepest(toward, norm)
    outer = np.concatenate([rng.standard_normal((100, len(toward))), np.eye(len(toward)), -np.eye(len(toward))])
    outer = np.concatenate([outer / np.linalg.norm(outer, ORDER[norm], axis=1)[:, None], toward_too])
    # From each, towards the deepest point as far as the rim.
    levels, deep = outer @ toward, deepest @ toward
    need = np.clip((levels + height) / np.maximum(levels - deep, 1e-300), 0, 1)[:, None]
    points = (1 - need) * outer + need * deepest
    return points[points @ toward <= -height]


@pytest.mark.parametrize("norm", ["l2", "linf", "l1"])
def test_no_point_of_a_cap_is_beyond_the_extent_computed(norm, x64):
    """At all scales and heights, for functions along the cap's axis too; the ranges are narrower than the ball's."""
    rng, narrower = np.random.default_rng(11), []
    extent = jax.jit(functools.partial(within_cap, norm=norm))
    for i in range(120):
        dim = (1, 2, 5, 20, 200)[i % 5]
        toward = rng.standard_normal(dim) * 10.0 ** (rng.uniform(-3, 0, dim) if i % 2 else 0)
        toward /= np.linalg.norm(toward, DUAL_ORDER[norm])
        rates = rng.standard_normal((30, dim))
        rates[:4] = np.array([[1], [-1], [0], [1]]) * toward + 1e-9 * np.array([[0], [0], [0], [1]]) * rates[3]
        rates *= 10.0 ** rng.uniform(-4, 4, (30, 1))
        reach, r = np.linalg.norm(rates, DUAL_ORDER[norm], axis=1), 10.0 ** rng.uniform(-4, 4)
        height = (rng.uniform(-1, 1), 1 - 10.0 ** rng.uniform(-15, -1), -1.0, 1.0)[i % 4]
        far = np.concatenate([_steepest(side * rates[reach > 0], norm) for side in (-1, 1)])
        points = _sampled_cap(rng, toward, height, norm, far)
        assert len(points) or height == 1
        falls = rates @ _steepest(toward, norm) / np.linalg.norm(_steepest(toward, norm), ORDER[norm])
        safe = jnp.float64(r * max(height - 2e-12, -1))  # as the allowance on the output lowers it
        down, up = map(np.asarray, extent(rates, reach, toward, falls, jnp.float64(r), safe))
        values, ulps = r * points @ rates.T, 1e-12 * r * reach
        assert (values >= -down - ulps).all() and (values <= up + ulps).all()
        assert (np.maximum(down, up) <= r * reach * (1 + 1e-15)).all()
        if 0.5 < height < 1:
            narrower.append(np.median((down + up)[4:] / (2 * r * reach[4:])))
    assert np.median(narrower) < 0.5


def test_the_extent_of_a_disc_is_attained(x64):
    angles = np.linspace(0, 2 * np.pi, 100_001)
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    rates = circle[::10_000] * 3
    for height in (-0.5, 0.0, 0.3, 0.9):
        cap = 2 * circle[circle[:, 0] <= -height]
        sizes = np.full(len(rates), 3.0), np.array([1.0, 0.0]), rates[:, 0], jnp.float64(2), jnp.float64(2 * height)
        extent = within_cap(rates, *sizes, "l2")
        values = cap @ rates.T
        np.testing.assert_allclose(extent, [-values.min(axis=0), values.max(axis=0)], atol=1e-3)


# A step of CROWN ------------------------------------------------------------------------------------------------


def test_a_chord_meets_the_relu_at_both_ends(x64):
    low = np.array([-2.0, -1.0, 0.0, 1.0, -3.0, -1.0, 0.0])
    high = np.array([1.0, 5.0, 2.0, 3.0, -1.0, 0.0, 0.0])
    slope, lift = map(np.asarray, relaxation.chord(low, high))
    np.testing.assert_allclose(slope * low + lift, np.maximum(low, 0), atol=1e-15)
    np.testing.assert_allclose(slope * high + lift, np.maximum(high, 0), atol=1e-15)
    assert (slope >= 0).all() and (slope <= 1).all()


def test_the_line_is_below_the_signed_output_within_the_ranges(x64):
    """Where all neurons count for the prediction, it is the sum of the lines of the slopes given."""
    rng = np.random.default_rng(15)
    for _ in range(20):
        z, slopes = rng.standard_normal(8), rng.choice([0.0, 0.3, 1.0], 8)
        local = TwoLayerLocal(z, rng.standard_normal((8, 3)), rng.standard_normal(8), rng.standard_normal())
        low, high, farthest = z - rng.uniform(0, 3, 8), z + rng.uniform(0, 3, 8), np.abs(z) + 3
        level, gradient = map(np.asarray, certificates._line(local, low, high, slopes, farthest))
        c = 0.7 * rng.standard_normal((4000, 3))
        hidden = z + c @ local.rates.T
        within = ((hidden >= low) & (hidden <= high)).all(axis=1)
        value = np.maximum(hidden, 0) @ local.head + local.offset
        assert within.sum() > 5
        assert (level + c @ gradient <= value + 1e-12)[within].all()
        kept = local._replace(head=np.maximum(local.head, 0))
        level, gradient = map(np.asarray, certificates._line(kept, low, high, slopes, farthest))
        np.testing.assert_allclose(level, (kept.head * slopes) @ z + local.offset, atol=1e-8)
        np.testing.assert_allclose(gradient, (kept.head * slopes) @ local.rates)


@pytest.mark.parametrize(
    ("height", "sound", "expected"),
    [
        (5.0, True, {"lower": 4.0, "upper": 10.0, "radius": 7.9, "known": "kept", "kept": "kept"}),
        (3.0, False, {"lower": 3.0, "upper": 10.0, "radius": 4.0, "known": "known", "kept": "kept"}),
        (2.05, False, {"lower": 2.05, "upper": 4.0, "radius": 3.3175, "known": "known", "kept": "known"}),
        (0.5, False, {"lower": 1.0, "upper": 4.0, "radius": 2.0, "known": "known", "kept": "known"}),
    ],
    ids=["certified", "goes on", "given up", "given up at once"],
)
def test_a_trial_ends_certified_or_given_up_and_keeps_what_holds(height, sound, expected, x64):
    """A trial of 4 between 1 and 10, whose last height was 2: the next begins with ranges that hold within it."""
    arrays = {"known": jnp.ones((2, 1)), "kept": jnp.full((2, 1), 3.0)}
    trials = relaxation.Trials(*map(jnp.float64, (1, 10, 4, 2)), **arrays)
    after, is_over = relaxation.advanced(trials, jnp.float64(height), jnp.asarray(sound))
    found = after._asdict()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], arrays[value] if isinstance(value, str) else value, err_msg=name)
    assert is_over == (expected["radius"] != 4)
    assert found["height"] == (-np.inf if is_over else height)


# CROWN -----------------------------------------------------------------------------------------------------------


BASES = {"plane": np.eye(4)[:, :2], "full": np.eye(4)}
NORMS = ["linf", *(pytest.param(norm, marks=pytest.mark.slow) for norm in ("l2", "l1"))]  # each is compiled


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("region", [pytest.param("plane", marks=pytest.mark.slow), "full"])
def test_no_direction_flips_within_the_crown_certificate(region, norm, x64):
    """Wherever its search begins; in the plane the nearest of dense directions is often hardly farther."""
    rng, basis, ratios = np.random.default_rng(12), BASES[region], []
    networks = [reference.random_network(rng, (3, 10, 20)[i % 3], 4, 20) for i in range(12)]
    x, starts = rng.standard_normal((len(networks), 4)), np.array([np.inf, 1.0, 1e-3])

    def certify(network: Network, point: jax.Array) -> jax.Array:
        return jax.vmap(lambda upper: crown_certificate(network, point, basis, norm=norm, upper=upper))(starts)

    found = np.asarray(jax.jit(jax.vmap(certify))(reference.stacked(networks), x))
    assert (found >= 0).all() and np.isfinite(found).all()
    assert (found <= starts).all()
    for network, point, radii in zip(networks, x, found, strict=True):
        directions = rng.standard_normal((150, basis.shape[1]))
        directions /= np.linalg.norm(directions, ORDER[norm], axis=1)[:, None]
        flip = min(Ray.from_point(network, point, basis @ v).first_flip() for v in directions)
        assert (radii <= flip).all()
        if np.isfinite(flip):
            ratios.append(float(radii[0] / flip))
    assert max(ratios) > (0.99 if region == "plane" else 0.7)


def _plain_crown(network: Network, x: np.ndarray, norm: str) -> float:
    """Root of CROWN's bound with slopes fixed by the interval's midpoint, by bisection in NumPy."""
    value = float(reference.output(network, x))
    z, head = network.weight @ x + network.bias, np.sign(value) * network.head
    reach = np.linalg.norm(network.weight, DUAL_ORDER[norm], axis=1)
    below, above = 0.0, 100.0
    for _ in range(50):
        r = (below + above) / 2
        low, high = np.minimum(z - r * reach, 0), np.maximum(z + r * reach, 0)
        chord = high / (high - low)
        line = head * np.where(head > 0, z > 0, chord)
        level = line @ z - np.minimum(head, 0) @ (chord * low) + np.sign(value) * network.head_bias
        sound = level >= r * np.linalg.norm(line @ network.weight, DUAL_ORDER[norm])
        below, above = (r, above) if sound else (below, r)
    return below


@pytest.mark.parametrize("norm", NORMS)
def test_crown_certificate_is_tighter_than_crown(norm, x64):
    rng, gains = np.random.default_rng(13), []
    certify = jax.jit(functools.partial(crown_certificate, norm=norm))
    for _ in range(20):
        network, x = reference.random_network(rng, 60, 8), rng.standard_normal(8)
        plain = _plain_crown(network, x, norm)
        assert plain > 0
        gains.append(float(certify(network, x, np.eye(8), upper=jnp.float64(3 * plain))) / plain)
    assert min(gains) > 0.9  # a search of so few steps ends below its root
    assert np.median(gains) > 1.2


@pytest.mark.parametrize("norm", NORMS)
def test_crown_certificate_scales_with_the_inputs(norm):
    """By powers of two exactly; and the sizes of head and output do not matter."""
    networks, x = _cases()
    scaled = networks._replace(
        bias=networks.bias * 2.0**12, head=networks.head * 2.0**-20, head_bias=networks.head_bias * 2.0**-8
    )
    with jax.enable_x64(True):
        certify = functools.partial(crown_certificate, norm=norm)
        run = jax.jit(jax.vmap(lambda network, point, upper: certify(network, point, np.eye(D), upper=upper)))
        upper = np.full(NETWORKS, 4.0)
        np.testing.assert_array_equal(run(scaled, x * 2.0**12, upper * 2.0**12), run(networks, x, upper) * 2.0**12)


@pytest.mark.parametrize("norm", ["l2", "linf", "l1"])
def test_crown_certificate_of_degenerate_networks_is_a_number(norm, x64):
    rng = np.random.default_rng(14)
    network, x = reference.random_network(rng, 10, D), rng.standard_normal(D)
    network = Network(*map(np.float64, network))
    certify = jax.jit(functools.partial(crown_certificate, norm=norm))
    still = network._replace(weight=0 * network.weight)
    headless = network._replace(head=0 * network.head)
    asleep = network._replace(bias=-np.abs(network.weight @ x) - 1, head=np.abs(network.head), head_bias=np.float64(1))
    for safe in (still, headless, asleep):
        assert certify(safe, x, np.eye(D), upper=jnp.float64(7)) == 7
        assert 1 <= certify(safe, x, np.eye(D), upper=jnp.float64(np.inf)) < np.inf
    tie = network._replace(head_bias=network.head_bias - np.float64(reference.output(network, x)))
    nothing = Network(*(0 * np.asarray(field) for field in network))
    for upper in (2.0**-100, 1.0, np.inf):
        assert certify(tie, x, np.eye(D), upper=jnp.float64(upper)) == 0
        assert certify(nothing, x, np.eye(D), upper=jnp.float64(upper)) == 0
