"""What is recorded of networks, random and trained: order of the bounds, and agreement with float64 NumPy."""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from reference import Ray

from subspace_adv import attacks, brackets, measures, training
from subspace_adv.attacks import AttackResult
from subspace_adv.brackets import Beginnings, Effort
from subspace_adv.data import HELDOUT, KINDS, Data
from subspace_adv.datasets import load_data, load_span
from subspace_adv.geometry import REGIONS, Subspace, in_ambient, region_basis
from subspace_adv.initialization import Law, init_network
from subspace_adv.measures import Recording, variables
from subspace_adv.models import TWO_LAYER, certificates, trained_fields
from subspace_adv.network import Network
from subspace_adv.optimizers import Hyper
from subspace_adv.training import Recipe

RANDOM, TRAINED, WIDTH = 8, 8, 30
ALL = ("off", "on", "full")


def ambient(kind: str, **fields) -> Data:
    """A dataset in ambient coordinates."""
    table = KINDS[kind](**fields)
    data, span = load_data(table), load_span(table, complete=True)
    with jax.enable_x64(True):
        subspace = Subspace(*map(np.asarray, in_ambient(data.subspace, span)))
    x, heldout = ((points @ span.basis.T).astype(np.float32) for points in (data.x, data.heldout))
    return Data(x, data.y, subspace, heldout)


DRAWN = dict(kind="subspace", samples=8, basis="random", distribution="gaussian", labels="random", data_seed=3)
DATA = {
    "line": ambient(kind="line"),
    "subspace": ambient(ambient_dim=6, subspace_dim=3, **DRAWN),
    "codimension 0": ambient(ambient_dim=1, subspace_dim=1, **DRAWN),
}


class Measured(NamedTuple):
    """A batch of networks, float64, and what was recorded of them."""

    data: Data
    networks: Network
    record: dict[str, np.ndarray]

    def each(self):
        """Index, network and point of every network and point."""
        for i, j in np.ndindex(len(self.networks.head), len(self.data.x)):
            yield (i, j), Network(*(field[i] for field in self.networks)), self.data.x[j].astype(float)


def networks_on(data: Data) -> Network:
    """Networks as drawn, half of whose points are misclassified, and trained ones."""
    recipe = Recipe(TWO_LAYER, "logistic", "gd", trained_fields("paper-code", "all"))
    hyper = Hyper(*(np.float32(v) for v in (0.3, 0, 0)), np.int32(1), np.float32(0.3), np.int32(1500))

    def one(seed: jax.Array, steps: jax.Array) -> Network:
        law = Law("paper-code", WIDTH, data.x.shape[1], data.x.shape[1])
        network = init_network(jax.random.key(seed), jnp.int32(WIDTH), jnp.float32(1), law=law)
        limited = hyper._replace(max_steps=steps)
        return training.train(network, data.x, data.y, limited, jax.random.key(0), recipe=recipe)[0]

    steps = np.where(np.arange(RANDOM + TRAINED) < RANDOM, 0, 1500).astype(np.int32)
    found = jax.jit(jax.vmap(one))(np.arange(RANDOM + TRAINED, dtype=np.uint32), steps)
    return jax.tree.map(lambda a: np.asarray(a, np.float64), found)


def measured(data: Data, networks: Network, regions: tuple = ALL) -> Measured:
    recording = Recording(regions, ("l2",), attack_steps=10, restarts=3, gap=0.01, loss="exponential")
    wide = jax.tree.map(lambda a: np.asarray(a, np.float64), data)
    with jax.enable_x64(True):
        one = functools.partial(measures.measure, recording=recording, model=TWO_LAYER)
        batched = jax.jit(jax.vmap(one, in_axes=(0, None, None, None, None, 0)))
        record = batched(networks, *wide[:4], jax.random.split(jax.random.key(1), len(networks.head)))
        return Measured(data, networks, jax.tree.map(np.asarray, record))


@functools.cache
def _case(name: str, regions: tuple = ALL) -> Measured:
    return measured(DATA[name], networks_on(DATA[name]), regions)


@pytest.fixture(params=[pytest.param(name, marks=[pytest.mark.slow] * (name != "codimension 0")) for name in DATA])
def case(request: pytest.FixtureRequest) -> Measured:
    return _case(request.param)


def test_the_registry_names_what_is_measured_and_its_shape(case):
    table = variables(ALL, ("l2",))
    assert set(case.record) == set(table)
    for name, variable in table.items():
        points = [{"point": len(case.data.x), "heldout": HELDOUT}[dimension] for dimension in variable.dimensions]
        assert case.record[name].shape == (RANDOM + TRAINED, *points)
        assert case.record[name].dtype == np.float64
        assert variable.unit and variable.meaning
        assert not np.isnan(case.record[name]).any()


def test_outputs_losses_and_gradient_norms_agree_with_numpy(case):
    record, on = case.record, case.data.subspace.basis @ case.data.subspace.basis.T
    for at, network, x in case.each():
        gradient = reference.gradient(network, x)
        assert record["output"][at] == pytest.approx(float(reference.output(network, x)), rel=1e-9, abs=1e-12)
        assert record["gradient_norm_on"][at] == pytest.approx(np.linalg.norm(on @ gradient), rel=1e-9)
        off = np.linalg.norm(gradient - on @ gradient)
        assert record["gradient_norm_off"][at] == pytest.approx(off, rel=1e-9, abs=1e-12)
        active = network.weight @ x + network.bias > 0
        assert record["head_norm_active"][at] == pytest.approx(np.linalg.norm(network.head[active]), rel=1e-9)
        assert record["head_sum_active"][at] == pytest.approx(np.abs(network.head[active]).sum(), rel=1e-9)
    signed = case.data.y * record["output"]
    np.testing.assert_allclose(record["margin"], signed.min(axis=1), rtol=1e-12)
    np.testing.assert_allclose(record["loss"], np.exp(-signed).mean(axis=1), rtol=1e-12)


def test_distances_are_in_their_order(case):
    """Lower ≤ upper in every region; full ≤ off and on; off ≤ universal (F9)."""
    record = case.record
    for region in ALL:
        assert (record[f"distance_{region}_l2_lower"] <= record[f"distance_{region}_l2_upper"]).all()
    for region in ("off", "on"):
        assert (record["distance_full_l2_upper"] <= record[f"distance_{region}_l2_upper"]).all()
        assert (record["distance_full_l2_lower"] <= record[f"distance_{region}_l2_lower"] * (1 + 1e-9)).all()
    for direction in ("universal", "random"):
        assert (record["distance_off_l2_lower"] <= record[f"distance_{direction}"]).all()
    assert (record["distance_off_l2_upper"] <= record["distance_universal"]).all()


@pytest.mark.slow
def test_a_region_alone_is_measured_as_among_others():
    """But the full distance, which then has no flips off or on the subspace to draw on, save the universal one."""
    case = _case("subspace")
    record = measured(case.data, case.networks, ("full",)).record
    assert set(record) == set(variables(("full",), ("l2",)))
    for name in set(record) - {"distance_full_l2_upper"}:
        np.testing.assert_allclose(record[name], case.record[name], rtol=1e-12)
    assert (record["distance_full_l2_upper"] <= record["distance_universal"]).all()


def test_misclassified_points_are_at_distance_0_and_no_others(case):
    wrong = case.data.y * case.record["output"] <= 0
    assert wrong[:RANDOM].mean() > 0.2 > wrong[RANDOM:].mean()
    for name, values in case.record.items():
        if name.startswith("distance") and not name.endswith("heldout"):
            np.testing.assert_array_equal(values == 0, wrong)


def test_most_distances_are_finite_and_their_brackets_mean_something(case):
    right = case.data.y * case.record["output"] > 0
    for region in ALL if case.data.subspace.complement.size else ("on", "full"):
        lower, upper = (case.record[f"distance_{region}_l2_{side}"][right] for side in ("lower", "upper"))
        finite = np.isfinite(upper)
        assert finite.mean() > 0.5
        assert np.median(lower[finite] / upper[finite]) > 0.3


def test_codimension_0_has_no_perturbation_off_the_subspace():
    case = _case("codimension 0")
    right = case.data.y * case.record["output"] > 0
    for name in ("distance_off_l2_lower", "distance_off_l2_upper", "distance_universal", "distance_random"):
        np.testing.assert_array_equal(case.record[name], np.where(right, np.inf, 0))
    for name in ("distance_universal_heldout", "distance_random_heldout"):
        np.testing.assert_array_equal(case.record[name], np.inf)
    np.testing.assert_array_equal(case.record["gradient_norm_off"], 0)


@pytest.mark.slow
@pytest.mark.parametrize(("region", "basis"), [("off", "complement"), ("on", "basis")])
def test_one_dimensional_regions_are_crossed_exactly(region, basis):
    case = _case("line", ("off", "on"))
    direction = getattr(case.data.subspace, basis)[:, 0]
    lower, upper = (case.record[f"distance_{region}_l2_{side}"] for side in ("lower", "upper"))
    for at, network, x in case.each():
        if upper[at] > 0:
            flip = float(min(Ray.from_point(network, x, sign * direction).first_flip() for sign in (1, -1)))
            assert lower[at] <= flip <= upper[at]
            assert upper[at] == flip or upper[at] == pytest.approx(lower[at], rel=1e-7)


def universal(case: Measured, network: Network, x: np.ndarray) -> np.ndarray:
    off = case.data.subspace.complement @ case.data.subspace.complement.T
    direction = np.sign(float(reference.output(network, x))) * off @ (-np.sign(network.head) @ network.weight)
    return direction / np.linalg.norm(direction)


def drawn(case: Measured, i: int, network: Network, x: np.ndarray) -> np.ndarray:
    """The random direction of the i-th network, against |N| at x to first order."""
    complement = case.data.subspace.complement
    with jax.enable_x64(True):
        key = jax.random.split(jax.random.key(1), len(case.networks.head))[i]
        normal = np.asarray(jax.random.normal(jax.random.fold_in(key, 2**32 - 1), complement.shape[1:], np.float64))
    direction = complement @ normal / np.linalg.norm(normal)
    return -np.sign(float(reference.output(network, x)) * reference.gradient(network, x) @ direction) * direction


def test_distances_along_a_direction_are_the_crossings_at_training_points():
    case = _case("subspace", ())
    for (i, j), network, x in case.each():
        right = case.data.y[j] * reference.output(network, x) > 0
        for name, direction in (("universal", universal(case, network, x)), ("random", drawn(case, i, network, x))):
            expected = float(Ray.from_point(network, x, direction).first_flip()) if right else 0
            assert case.record[f"distance_{name}"][i, j] == pytest.approx(expected, rel=1e-7, abs=1e-9)


def test_distances_along_a_direction_are_the_crossings_at_heldout_points_whatever_their_label():
    case = _case("subspace", ())
    for i, j in np.ndindex(len(case.networks.head), HELDOUT):
        network, x = Network(*(field[i] for field in case.networks)), case.data.heldout[j].astype(float)
        for name, direction in (("universal", universal(case, network, x)), ("random", drawn(case, i, network, x))):
            expected = float(Ray.from_point(network, x, direction).first_flip())
            assert case.record[f"distance_{name}_heldout"][i, j] == pytest.approx(expected, rel=1e-7, abs=1e-9)


@pytest.mark.slow
def test_off_a_line_both_directions_are_the_one_there_is():
    """A crossing along either is one of the two rays; the shorter of both rays is the distance off the line."""
    record = _case("line", ("off", "on")).record
    assert (record["distance_off_l2_upper"] <= record["distance_random"] * (1 + 1e-9)).all()
    found = np.isfinite(record["distance_random"]) & (record["distance_random"] > 0)
    alike = np.isclose(record["distance_random"], record["distance_off_l2_upper"], rtol=1e-9)
    assert alike[found].mean() > 0.8


def test_random_directions_differ_between_networks_and_are_uniform(x64):
    complement = jnp.asarray(DATA["subspace"].subspace.complement)
    keys = jax.random.split(jax.random.key(5), 4000)
    found = np.asarray(jax.vmap(lambda key: attacks.random_direction(key, complement))(keys))
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-12)
    np.testing.assert_allclose(found @ DATA["subspace"].subspace.basis, 0, atol=1e-12)
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=0.05)
    np.testing.assert_allclose(found.T @ found / len(found), complement @ complement.T / 3, atol=0.03)


# Brackets from stand-ins for attacks and certificates ------------------------------------------------------------


def _flips(rng: np.random.Generator, basis: np.ndarray, order: float, points: int) -> AttackResult:
    """Perturbations in a region: any, along one axis, or none."""
    delta = rng.standard_normal((points, basis.shape[1]))
    delta[::3, 1:] = 0
    found = rng.random(points) < 0.7
    delta = np.where(found[:, None], delta @ basis.T, 0)
    distance = np.where(found, np.linalg.norm(delta, order, axis=1), np.inf)
    return AttackResult(*map(jnp.asarray, (delta, distance, found)))


@pytest.mark.parametrize("norms", [("l2",), ("linf", "l2", "l1"), ("l1", "linf")])
@pytest.mark.parametrize(
    "regions", [("full", "on", "off"), ("full",), ("on", "off"), ("full", "tangent", "normal", "on"), REGIONS]
)
def test_the_least_of_all_flips_and_the_largest_of_all_bounds_are_kept(regions, norms, monkeypatch, x64):
    """At their lengths in each norm, in every region that holds the one they lie in; the universal one lies in off."""
    rng, points, order = np.random.default_rng(0), 30, {"linf": np.inf, "l2": 2, "l1": 1}
    subspace = Subspace.axis_aligned(5, 2)
    line = Subspace.axis_aligned(5, 1)  # of each point the same, so that a flip along it can be made as the others are
    tangent = Subspace(*(jnp.broadcast_to(part, (points, *part.shape)) for part in line))
    bases = {region: np.asarray(region_basis(subspace, region)) for region in ALL}
    bases |= {"tangent": np.asarray(line.basis), "normal": np.asarray(line.complement)}
    parts = {"off": ["off"], "tangent": ["tangent"], "on": ["tangent", "on"], "normal": ["off", "normal"]}
    parts["full"] = list(bases)
    universal = _flips(rng, bases["off"], 2, points)
    lowers = {case: rng.uniform(0, 1, points) for case in itertools.product(regions, norms)}
    attacked = {(region, norm): _flips(rng, bases[region], order[norm], points) for region, norm in lowers}
    dims = {3: "off", 2: "on", 5: "full", 1: "tangent", 4: "normal"}

    def bracket(network, x, basis, begin, *, norm, effort, model, shared):
        region = dims[basis.shape[-1]]
        assert shared == (region in ("on", "full")) and (basis.ndim == 3) == (region in ("tangent", "normal"))
        return jnp.asarray(lowers[region, norm]), attacked[region, norm]

    monkeypatch.setattr(brackets, "bracket", bracket)
    what = {"regions": regions, "norms": norms, "effort": Effort(1, 1, ()), "model": TWO_LAYER, "beside": False}
    what["tangent"] = tangent
    network, x = Network(*map(jnp.zeros, ((1, 5), 1, 1, ()))), jnp.zeros((points, 5))
    begin = Beginnings.of(network, x, jax.random.key(0), TWO_LAYER)
    found = brackets.brackets(network, x, subspace, universal, begin, **what)
    assert set(found) == set(lowers)
    for (region, norm), (lower, upper) in found.items():
        flips = [flip for (where, _), flip in attacked.items() if where in parts[region]]
        flips += [universal] if "off" in parts[region] else []
        lengths = [np.where(f.is_adv, np.linalg.norm(f.delta, order[norm], axis=1), np.inf) for f in flips]
        np.testing.assert_allclose(upper, np.min(lengths, axis=0), rtol=1e-11)
        shorter = [other for other in norms if order[other] >= order[norm]]
        np.testing.assert_array_equal(lower, np.max([lowers[region, other] for other in shorter], axis=0))
        for other in shorter:
            assert (found[region, other][1] <= upper).all()  # to the last bit
        if norm == "l2" and "off" in parts[region]:
            assert (upper <= universal.distance).all()
        for part in set(parts[region]) & set(regions):
            assert (upper <= found[part, norm][1]).all()


def test_every_point_is_attacked_with_its_own_key_and_the_better_certificate_counts(monkeypatch, x64):
    rng = np.random.default_rng(1)
    network, x = (
        jax.tree.map(jnp.asarray, reference.random_network(rng, 5, 3)),
        jnp.asarray(rng.standard_normal((6, 3))),
    )

    on = np.asarray(x) @ np.asarray(network.weight).T + np.asarray(network.bias) > 0
    neuron = int(np.argmax(on.any(axis=0) & ~on.all(axis=0)))

    def attack(network, point, basis, *, key, toward, norm, steps, restarts, attacks, model):
        assert (norm, steps, restarts, attacks, model) == ("l1", 7, 3, ("fab",), TWO_LAYER)
        return AttackResult(toward, jax.random.uniform(key, (), point.dtype), jnp.asarray(True))

    def kink(network, point, basis, *, norm):
        return point[0]

    def crown(network, point, basis, *, norm, upper):
        return point[1] + upper

    def concave(local, *, norm, upper, known):
        return known + jax.nn.relu(local.z[neuron]) * upper

    monkeypatch.setattr(brackets, "minimal_norm_attack", attack)
    stand_ins = {"kink_certificate": kink, "crown_certificate": crown, "concave_certificate": concave}
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(certificates, name, stand_in)
    effort, key = Effort(steps=7, restarts=3, attacks=("fab",), gap=0.5), jax.random.key(3)
    begin = brackets.Beginnings.of(network, x, key, TWO_LAYER)
    lower, found = brackets.bracket(network, x, jnp.eye(3), begin, norm="l1", effort=effort, model=TWO_LAYER)
    drawn = [float(jax.random.uniform(own, (), jnp.float64)) for own in jax.random.split(key, len(x))]
    np.testing.assert_array_equal(found.distance, drawn)
    np.testing.assert_array_equal(found.delta, begin.toward)
    first, known = x @ network.weight[neuron] + network.bias[neuron], np.maximum(x[:, 0], x[:, 1] + found.distance)
    is_open = found.distance > known * 1.5
    expected = np.where(is_open, known + np.maximum(first, 0) * found.distance, known)
    np.testing.assert_allclose(lower, expected, rtol=1e-12)
    assert {True, False} == set(np.asarray(is_open & (first > 0)).tolist()) and not is_open.all()
    assert len(set(drawn)) == len(x)


def test_distance_along_a_direction_in_a_linear_network(x64):
    """N(x) = a·x + c flips at |N(x)| / |a·v| along ±v, and never across a."""
    rng = np.random.default_rng(0)
    a, c = rng.standard_normal(6), 0.3
    network = Network(*map(jnp.asarray, (np.stack([a, -a]), np.zeros(2), np.array([1.0, -1.0]), np.float64(c))))
    descent_distance = jax.jit(attacks.descent_distance)
    for x, v in rng.standard_normal((20, 2, 6)):
        v /= np.linalg.norm(v)
        expected = abs(a @ x + c) / abs(a @ v)
        assert descent_distance(network, jnp.asarray(x), jnp.asarray(v)) == pytest.approx(expected, rel=1e-9)
    assert np.isinf(descent_distance(network, jnp.asarray(a), jnp.zeros(6)))
