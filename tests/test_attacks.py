"""Exact crossings against dense scans in long double, and attacks against closed forms and dense directions."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from optimum import ORDER
from reference import Ray
from shell import needs_kernel

from subspace_adv import attacks, models
from subspace_adv.attacks.universal import universal_direction
from subspace_adv.engine.pinned import compiler_options
from subspace_adv.geometry import Subspace
from subspace_adv.models.two_layer import crossing_by_xla
from subspace_adv.network import Network

DTYPES = [np.float64, np.float32]
# What the bounds may give away: over the rounding allowance at the widths below, relative to the terms' sizes.
SLACK = {np.float64: 4e-11, np.float32: 2e-5}
PADDED = 64
AS_MEASURED = compiler_options(quick=True)  # rounding is a matter of how programs are compiled
every_crossing = pytest.mark.parametrize(
    ("dtype", "first_crossing"),
    [
        pytest.param(np.float64, models.first_crossing, marks=needs_kernel, id="kernel"),
        pytest.param(np.float64, crossing_by_xla, id="xla-float64"),
        pytest.param(np.float32, crossing_by_xla, id="xla-float32"),
    ],
)


def _cases() -> list[tuple[np.ndarray, ...]]:
    """Arguments of `first_crossing` with a positive value at 0: networks of all widths and kinds."""
    rng = np.random.default_rng(0)
    found = []
    kinds = ("plain", "ties", "inactive", "unreached", "spread rates", "spread heads", "nearly level")
    for i in range(1400):
        kind, width = kinds[i % len(kinds)], rng.choice([1, 2, 3, 5, 20, PADDED])
        z, rate, head, offset = *rng.standard_normal((3, width)), rng.standard_normal()
        if kind == "ties":  # many kinks coincide, also at 0, and zeros are met exactly
            z, rate, head, offset = *rng.integers(-3, 4, (3, width)).astype(float), float(rng.integers(-3, 4))
        elif kind == "inactive":  # no neuron is active, and none or all become so
            z, rate = -np.abs(z), rate * rng.integers(0, 2)
        elif kind == "unreached":
            head, offset = np.abs(head), np.abs(offset)
        elif kind == "spread rates":
            rate = rate * 10.0 ** rng.uniform(-6, 6, width)
        elif kind == "spread heads":
            head = head * 10.0 ** rng.uniform(-6, 6, width)
        elif kind == "nearly level" and (rate > 0).any():  # past the last kink the slope is a rounding error
            one = int(np.argmax(rate > 0))
            others = (rate > 0) & (np.arange(width) != one)
            head[one] = -(head[others] @ rate[others]) / rate[one]
        if kind != "ties":  # huge and tiny networks and inputs
            of_input, of_rate, of_head = 10.0 ** rng.uniform(-6, 6, 3)
            z, rate, head, offset = z * of_input, rate * of_rate, head * of_head, offset * of_input * of_head
        sign = 1 if np.maximum(z, 0) @ head + offset >= 0 else -1
        padded = (np.pad(values, (0, PADDED - width)) for values in (z, rate, sign * head))
        found.append((*padded, sign * offset))
    return found


@every_crossing
def test_first_crossing_brackets_a_dense_scan(dtype, first_crossing):
    """Lower ≤ first flip ≤ upper, each within the slack of it; no flip before lower, a true one at upper."""
    cases = [np.array(values).astype(dtype) for values in zip(*_cases(), strict=True)]
    crossings_of = jax.jit(jax.vmap(first_crossing), compiler_options=AS_MEASURED)
    with jax.enable_x64(dtype == np.float64):
        lower, upper = map(np.asarray, crossings_of(*cases))
    assert lower.dtype == upper.dtype == dtype
    crossings = 0
    for i, case in enumerate(zip(*cases, strict=True)):
        ray = Ray.of(*case)
        if ray(0) <= 0:
            assert lower[i] == 0
            continue
        flip, slack = ray.first_flip(), SLACK[dtype]
        assert lower[i] <= flip <= upper[i]
        assert ray.first_flip(-slack) * (1 - slack) <= lower[i]
        assert upper[i] <= ray.first_flip(slack) * (1 + slack)
        assert np.isinf(upper[i]) or ray(upper[i]) < 0
        crossings += np.isfinite(flip)
    assert 300 < crossings < 1100


@needs_kernel
def test_crossings_by_the_kernel_are_those_by_xla(x64, instruction_set):
    """Of more neurons than the kernel sorts at a time, and fewer; whatever rays are crossed beside."""
    rng = np.random.default_rng(2)
    for width in (15, 100):
        z, rate, head = rng.standard_normal((3, 40, width))
        rate = np.where(rng.random(rate.shape) < 0.2, rate[:, :1], rate)
        z = np.where(rng.random(z.shape) < 0.2, rate, z)  # kinks that coincide
        offset = np.abs(rng.standard_normal(40)) - np.sum(np.maximum(z, 0) * head, axis=1)
        mine, theirs = (jax.jit(jax.vmap(by))(z, rate, head, offset) for by in (models.first_crossing, crossing_by_xla))
        for by_kernel, by_xla in zip(mine, theirs, strict=True):
            np.testing.assert_allclose(by_kernel, by_xla, rtol=1e-6)
        alone = models.first_crossing(*(jnp.asarray(values[7]) for values in (z, rate, head, offset)))
        assert (float(alone.lower), float(alone.upper)) == (mine[0][7], mine[1][7])


@needs_kernel
def test_neurons_that_have_turned_off_hide_no_flip(x64, instruction_set):
    """Behind the first kink all are off, and the output is a small negative offset, in between or for good."""
    for behind in (0.0, 1.0):
        z, rate, head = np.array([[1e6, -3.0, 0.0], [-1e6, behind, 0.0], [1.0, 1e3, 0.0]])
        offset = np.float64(-1e-7)
        crossing = models.first_crossing(*map(jnp.asarray, (z, rate, head, offset)))
        assert 1 - 1e-9 <= crossing.lower <= 1 <= crossing.upper <= 1 + 1e-9


@every_crossing
def test_first_crossing_of_small_cases_by_hand(dtype, first_crossing):
    """By rows: a line; a kink that turns it; one that only touches 0; a wait until a neuron wakes; z = 0; none."""
    z = [[1, 0], [1, -1], [2, -2], [-3, 0], [0, 0], [0, 0]]
    rate = [[-1, 0], [-1, 1], [-1, 1], [1.5, 0], [2, -2], [-1, 0]]
    head = [[2, 0], [1, -4], [2, -1], [-2, 0], [-1, 5], [-1, 0]]
    offset = [-1, 1, 0, 1, 3, 2]
    expected = [0.5, 1.25, 2, 7 / 3, 1.5, np.inf]
    with jax.enable_x64(dtype == np.float64):
        arguments = [np.asarray(values, dtype) for values in (z, rate, head, offset)]
        lower, upper = map(np.asarray, jax.jit(jax.vmap(first_crossing))(*arguments))
    tolerance = 20 * SLACK[dtype]
    np.testing.assert_allclose(lower, expected, rtol=tolerance)
    np.testing.assert_allclose(upper, expected, rtol=tolerance)


@functools.cache
def _lines() -> tuple[Network, np.ndarray, np.ndarray]:
    """Networks, points and unit directions, near the origin and far from it."""
    rng = np.random.default_rng(1)
    networks = []
    directions = rng.standard_normal((200, 5))
    x = rng.standard_normal((200, 5)) * np.repeat([1, 100], 100)[:, None]
    for i in range(200):
        network = reference.random_network(rng, rng.choice([1, 3, 30]), 5, 30)
        if i >= 100:  # biases that cancel w·x, so that the kinks are near the point
            network = network._replace(bias=np.where(network.head != 0, network.bias - network.weight @ x[i], 0))
        if i % 10 == 0:
            network = network._replace(bias=-np.abs(network.weight @ x[i]) - 1, weight=0 * network.weight)
        networks.append(network)
    return reference.stacked(networks), x, directions / np.linalg.norm(directions, axis=1, keepdims=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_line_distance_is_the_nearer_flip_of_both_rays(dtype):
    """In float32 near the origin only: its allowance does not cover preactivations that cancel."""
    counted = slice(200 if dtype == np.float64 else 100)
    networks, x, directions = jax.tree.map(lambda a: a[counted].astype(dtype), _lines())
    line_distance = jax.jit(jax.vmap(attacks.line_distance), compiler_options=AS_MEASURED)
    with jax.enable_x64(dtype == np.float64):
        lower, flip = line_distance(networks, x, directions)
    lower, upper = np.asarray(lower), np.asarray(flip.distance)
    slack = SLACK[dtype]
    for i in range(len(x)):
        network = Network(*(field[i] for field in networks))
        rays = [Ray.from_point(network, x[i], sign * directions[i]) for sign in (1, -1)]
        assert lower[i] <= min(ray.first_flip() for ray in rays) <= upper[i]
        assert lower[i] >= min(ray.first_flip(-slack) for ray in rays) * (1 - slack)
        assert upper[i] <= min(ray.first_flip(slack) for ray in rays) * (1 + slack)
        assert np.isinf(upper[i]) or min(ray(upper[i]) for ray in rays) < 0
    assert np.isinf(upper[::10]).all() and np.isfinite(upper).mean() > 0.5


D, K, WIDTH, POINTS = 6, 2, 24, 60
SUBSPACE = Subspace.from_directions(np.random.default_rng(2).standard_normal((D, K)))


@functools.cache
def _victims() -> tuple[Network, np.ndarray]:
    """Random networks; from 40 on all neurons active far around; from 50 on constant; from 54 on never negative."""
    rng = np.random.default_rng(3)
    networks = [reference.random_network(rng, WIDTH, D) for _ in range(POINTS)]
    for i in range(40, 50):
        networks[i] = networks[i]._replace(bias=networks[i].bias + 100, head_bias=1 - 100 * networks[i].head.sum())
    for i in range(50, 60, 2):
        networks[i] = networks[i]._replace(weight=0 * networks[i].weight)
        networks[i + 1] = networks[i + 1]._replace(head=0 * networks[i + 1].head)
    for i in range(54, 60):
        networks[i] = networks[i]._replace(head=np.abs(networks[i].head), head_bias=0.1)
    return reference.stacked(networks), rng.standard_normal((POINTS, D))


def _basis(region: str) -> np.ndarray:
    return {"on": SUBSPACE.basis, "off": SUBSPACE.complement, "full": np.eye(D)}[region]


def _attacked(region: str, dtype: type = np.float64, restarts: int = 4) -> attacks.AttackResult:
    """Attacks on all victims; each is compiled and run once."""
    return _attack_once(region, dtype, restarts)


@functools.cache
def _attack_once(region: str, dtype: type, restarts: int) -> attacks.AttackResult:
    return _attack(region, dtype, restarts)(*_victims())


@functools.cache
def _attack(region: str, dtype: type, restarts: int) -> Callable[[Network, np.ndarray], attacks.AttackResult]:
    """The attack on a batch of networks and points, compiled once."""
    attack = functools.partial(attacks.minimal_norm_attack, basis=_basis(region).astype(dtype), restarts=restarts)
    compiled = jax.jit(jax.vmap(lambda network, x, key: attack(network, x, key=key)))

    def run(networks: Network, x: np.ndarray) -> attacks.AttackResult:
        networks, x = jax.tree.map(lambda a: a.astype(dtype), (networks, x))
        with jax.enable_x64(dtype == np.float64):
            return jax.tree.map(np.asarray, compiled(networks, x, jax.random.split(jax.random.key(0), len(x))))

    return run


def _victim(i: int, dtype: type = np.float64) -> tuple[Network, np.ndarray]:
    networks, x = _victims()
    return Network(*(field[i].astype(dtype) for field in networks)), x[i].astype(dtype)


ATTACKS = [
    *(pytest.param(region, np.float64, marks=pytest.mark.slow) for region in ("on", "off")),
    ("full", np.float64),
    pytest.param("full", np.float32, marks=pytest.mark.slow),
]
REGIONS = [*(pytest.param(region, marks=pytest.mark.slow) for region in ("on", "off")), "full"]


@pytest.mark.parametrize(("region", "dtype"), ATTACKS)
def test_attack_flips_within_its_region_at_the_distance_it_says(region, dtype):
    found, ulp = _attacked(region, dtype), float(np.finfo(dtype).eps)
    basis = _basis(region)
    outside = np.eye(D) - basis @ basis.T
    for i in np.flatnonzero(found.is_adv):
        network, x = _victim(i, dtype)
        delta = found.delta[i].astype(np.longdouble)
        moved = reference.output(network, x + delta * (1 + 10 * ulp))
        assert np.sign(moved) == -np.sign(reference.output(network, x))
        assert np.linalg.norm(found.delta[i]) == pytest.approx(found.distance[i], rel=20 * ulp)
        assert np.linalg.norm(outside @ found.delta[i]) <= 20 * ulp * found.distance[i]
    assert found.is_adv[:50].sum() >= 45


@pytest.mark.parametrize("region", REGIONS)
def test_attack_on_a_linear_region_is_the_closed_form(region):
    """|N|/‖P∇N‖ where all neurons stay active."""
    found = _attacked(region)
    for i in range(40, 50):
        network, x = _victim(i)
        rates = network.weight @ _basis(region)
        exact = abs(float(reference.output(network, x))) / np.linalg.norm(network.head @ rates)
        assert (network.weight @ x + network.bias > exact * np.linalg.norm(rates, axis=1)).all()
        assert found.distance[i] == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize("region", REGIONS)
def test_attack_is_never_above_the_crossings_it_starts_from(region):
    """Those along the gradient, and against all positive neurons' weights."""
    found, basis = _attacked(region), _basis(region)
    improved = 0
    for i in range(50):
        network, x = _victim(i)
        sign = np.sign(float(reference.output(network, x)))
        flips = []
        for toward in (reference.gradient(network, x), network.head @ network.weight):
            direction = -sign * basis @ (toward @ basis)
            ray = Ray.from_point(network, x, direction / np.linalg.norm(direction))
            flips.append(float(ray.first_flip(SLACK[np.float64])))
        assert found.distance[i] <= min(flips) * (1 + 1e-9)
        improved += found.distance[i] < 0.999 * min(flips)
    assert improved > 10


@pytest.mark.slow
def test_attack_is_near_the_least_distance_over_all_directions_of_a_plane():
    basis, angles, counted = _basis("on"), np.linspace(0, 2 * np.pi, 240, endpoint=False), np.arange(30)
    least = []
    for i in counted:
        network, x = _victim(i)
        rays = (Ray.from_point(network, x, basis @ [np.cos(a), np.sin(a)]) for a in angles)
        least.append(float(min(ray.first_flip() for ray in rays)))
    flips = np.isfinite(least)
    assert flips.sum() > 25
    for restarts, typical, worst in [(4, 1.0001, 1.03), (32, 1.0001, 1.001)]:
        found = _attacked("on", restarts=restarts).distance[counted]
        ratios = found[flips] / np.array(least)[flips]
        assert ratios.min() > 1 - 1e-2  # the best direction is between two of the angles
        assert np.median(ratios) < typical and ratios.max() <= worst
        assert np.isinf(found[~flips]).all()


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["l2", "linf", "l1"])
def test_attack_finds_a_narrow_cone_far_beyond_all_kinks(norm):
    """N = 100 − (c₁ + ½) + 30·(|c₂| + |c₃|) beyond the kinks, turned: three directions in ten thousand flip at all."""
    rng, axes = np.random.default_rng(0), np.concatenate([np.eye(3), -np.eye(3)])
    turned = [axes @ np.linalg.qr(rng.standard_normal((3, 3)))[0] for _ in range(24)]
    heads = np.array([-1, 30, 30, 5, 30, 30])
    networks = reference.stacked([Network(weight, np.full(6, 0.5), heads, 100.0) for weight in turned])

    def attack(network: Network, key: jax.Array) -> attacks.AttackResult:
        return attacks.minimal_norm_attack(network, jnp.zeros(3), jnp.eye(3), norm=norm, key=key)

    with jax.enable_x64(True):
        found = jax.jit(jax.vmap(attack))(networks, jax.random.split(jax.random.key(0), 24))
    along_the_cone = 159.5 * np.array([np.linalg.norm(weight[0], ORDER[norm]) for weight in turned])
    assert (np.asarray(found.distance) <= 1.01 * along_the_cone).all()


@pytest.mark.parametrize(("region", "dtype"), ATTACKS)
def test_attack_that_fails_is_infinite_and_not_adversarial(region, dtype):
    found = _attacked(region, dtype)
    for failed in range(50, 60):
        assert found.distance[failed] == np.inf
        assert not found.is_adv[failed]
        np.testing.assert_array_equal(found.delta[failed], np.zeros(D))
    np.testing.assert_array_equal(found.is_adv, np.isfinite(found.distance))


@pytest.mark.slow
def test_a_single_start_attacks_hardly_worse():
    single, four = _attacked("full", restarts=1), _attacked("full")
    assert single.is_adv[:50].sum() >= 45
    ratios = single.distance[:50] / four.distance[:50]
    assert ratios.max() <= 1.01 and np.quantile(ratios, 0.9) <= 1.001
    assert ratios.min() >= 0.9


@pytest.mark.parametrize("factor", [2.0**-20, 2.0**20])
def test_attack_is_equivariant_to_the_scale_of_the_inputs(factor):
    """With weights divided and points multiplied by a factor, so is the distance."""
    networks, x = _victims()
    scaled = _attack("full", np.float64, 4)(networks._replace(weight=networks.weight / factor), x * factor)
    np.testing.assert_allclose(scaled.distance[:40] / factor, _attacked("full").distance[:40], rtol=1e-3)


@pytest.mark.parametrize("factor", [2.0**100, 2.0**-100, 1e30, 1e-30])
def test_the_size_of_the_output_does_not_matter(factor):
    """No distance changes, and by powers of two not in its last bit either."""
    networks, x = _victims()
    scaled = networks._replace(head=networks.head * factor, head_bias=networks.head_bias * factor)
    found, before = _attack("full", np.float64, 4)(scaled, x), _attacked("full")
    if np.log2(factor).is_integer():
        np.testing.assert_array_equal(found.distance, before.distance)
    np.testing.assert_allclose(found.distance, before.distance, rtol=1e-3)


def test_flips_near_by_are_found_where_all_neurons_are_off_and_most_kinks_are_far():
    """As after large steps: the gradient is 0, a neuron turns on at ½ and flips soon; 1,000 times as far others lie."""
    rng = np.random.default_rng(4)
    networks, x = _victims()
    far = networks._replace(weight=networks.weight.copy(), bias=networks.bias.copy(), head=networks.head.copy())
    direction = rng.standard_normal((POINTS, D))
    direction /= np.linalg.norm(direction, axis=1)[:, None]
    far.weight[:, 0], far.head[:, 0] = 20 * direction, -1
    at_x = np.einsum("nd,nmd->nm", x, far.weight)
    reach = rng.uniform(200, 1000, far.bias.shape)
    reach[:, 0] = 0.5
    far = far._replace(bias=-at_x - reach * np.linalg.norm(far.weight, axis=2), head_bias=np.full(POINTS, 10.0))
    found = _attack("full", np.float64, 4)(far, x)
    np.testing.assert_allclose(found.distance[:50], 0.5 + 10 / 20, rtol=1e-3)


def _universal(i: int) -> np.ndarray:
    """Direction of the sum of the negative neurons' off parts less the positive ones', one neuron at a time."""
    network, _ = _victim(i)
    off = _basis("off") @ _basis("off").T
    total = sum((-np.sign(u) * (off @ w) for w, u in zip(network.weight, network.head, strict=True)), np.zeros(D))
    return total / np.linalg.norm(total) if total.any() else total


@functools.cache
def _universally_attacked() -> attacks.AttackResult:
    with jax.enable_x64(True):
        attack = functools.partial(attacks.universal_attack, basis=_basis("off"))
        return jax.tree.map(np.asarray, jax.jit(jax.vmap(attack))(*_victims()))


def test_universal_attack_crosses_along_the_universal_direction():
    found = _universally_attacked()
    signs = []
    for i in range(POINTS):
        network, x = _victim(i)
        sign = np.sign(float(reference.output(network, x)))
        ray = Ray.from_point(network, x, sign * _universal(i))
        flip = float(ray.first_flip())
        assert flip * (1 - 1e-12) <= found.distance[i] <= float(ray.first_flip(SLACK[np.float64])) * (1 + 1e-9)
        assert found.is_adv[i] == np.isfinite(flip)
        if np.isfinite(flip):
            np.testing.assert_allclose(found.delta[i], flip * sign * _universal(i), rtol=1e-6, atol=1e-9 * flip)
            signs.append(sign)
    assert 0.2 < np.mean(np.array(signs) > 0) < 0.8 and len(signs) > 25
    assert not found.is_adv[50:54].any()


def test_universal_direction_is_a_unit_vector_off_the_subspace_or_zero(x64):
    networks, _ = _victims()
    directions = np.asarray(
        jax.vmap(
            lambda network: universal_direction(
                models.TWO_LAYER, network, jnp.sign(network.head), jnp.asarray(SUBSPACE.complement)
            )
        )(networks)
    )
    for i in range(POINTS):
        np.testing.assert_allclose(directions[i], _universal(i), atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(directions[:50], axis=1), 1, rtol=1e-12)
    np.testing.assert_array_equal(directions[50], np.zeros(D))


def test_universal_direction_lowers_the_output_everywhere_where_no_neuron_opposes_it(x64):
    """With orthogonal off parts sign(uᵢ)·wᵢ·v ≤ 0 for all i, and then N falls along v from any point (F4 a)."""
    rng = np.random.default_rng(4)
    off = np.eye(8)[:, 2:] * rng.uniform(0.5, 2, 6)
    weight = off.T + np.pad(rng.standard_normal((6, 2)), ((0, 0), (0, 6)))
    network = Network(weight, rng.standard_normal(6), rng.standard_normal(6), np.float64(0.3))
    direction = np.asarray(universal_direction(models.TWO_LAYER, network, jnp.sign(network.head), jnp.eye(8)[:, 2:]))
    for x in np.pad(rng.standard_normal((20, 2)) * 3, ((0, 0), (0, 6))):
        outputs = reference.output(network, x + np.linspace(-5, 5, 301)[:, None] * direction)
        assert (np.diff(outputs) <= 1e-15).all() and outputs[0] > outputs[-1]
