"""What is recorded of networks, random and trained: order of the bounds, and agreement with float64 NumPy."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from reference import Ray

from subspace_adv import measures, training
from subspace_adv.data import Data, line, random_subspace
from subspace_adv.measures import Recording, variables
from subspace_adv.network import Network, init_network
from subspace_adv.training import Hyper, Recipe, trained_fields

QUICK = {"xla_backend_optimization_level": 1}  # as the engine compiles what runs once a network
RANDOM, TRAINED, WIDTH = 8, 8, 30
ALL = ("off", "on", "full")


def subspace(ambient_dim: int, subspace_dim: int) -> Data:
    return random_subspace(
        ambient_dim=ambient_dim,
        subspace_dim=subspace_dim,
        samples=8,
        basis="random",
        distribution="gaussian",
        labels="random",
        data_seed=3,
    )


DATA = {"line": line(), "subspace": subspace(6, 3), "codimension 0": subspace(1, 1)}


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
    recipe = Recipe("logistic", "gd", trained_fields("paper-code", "all"))
    hyper = Hyper(*(np.float32(v) for v in (0.3, 0, 0)), np.int32(1), np.float32(0.3), np.int32(1500))

    def one(seed: jax.Array, steps: jax.Array) -> Network:
        draw = functools.partial(init_network, law="paper-code", padded_width=WIDTH, ambient_dim=data.x.shape[1])
        network = draw(jax.random.key(seed), jnp.int32(WIDTH), jnp.float32(1))
        limited = hyper._replace(max_steps=steps)
        return training.train(network, data.x, data.y, limited, jax.random.key(0), recipe=recipe)[0]

    steps = np.where(np.arange(RANDOM + TRAINED) < RANDOM, 0, 1500).astype(np.int32)
    found = jax.jit(jax.vmap(one))(np.arange(RANDOM + TRAINED, dtype=np.uint32), steps)
    return jax.tree.map(lambda a: np.asarray(a, np.float64), found)


def measured(data: Data, networks: Network, regions: tuple = ALL) -> Measured:
    recording = Recording(regions, ("l2",), attack_steps=10, restarts=3, loss="exponential")
    wide = jax.tree.map(lambda a: np.asarray(a, np.float64), data)
    with jax.enable_x64(True):
        one = functools.partial(measures.measure, recording=recording)
        batched = jax.jit(jax.vmap(one, in_axes=(0, None, None, None, 0)), compiler_options=QUICK)
        record = batched(networks, *wide, jax.random.split(jax.random.key(1), len(networks.head)))
        return Measured(data, networks, jax.tree.map(np.asarray, record))


@functools.cache
def _case(name: str) -> Measured:
    return measured(DATA[name], networks_on(DATA[name]))


@pytest.fixture(params=DATA)
def case(request: pytest.FixtureRequest) -> Measured:
    return _case(request.param)


def test_the_registry_names_what_is_measured_and_its_shape(case):
    table = variables(ALL, ("l2",))
    assert set(case.record) == set(table)
    for name, variable in table.items():
        points = (len(case.data.x),) if variable.per_point else ()
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
    assert (record["distance_off_l2_upper"] <= record["distance_universal"]).all()


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
        if name.startswith("distance"):
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
    for name in ("distance_off_l2_lower", "distance_off_l2_upper", "distance_universal"):
        np.testing.assert_array_equal(case.record[name], np.where(right, np.inf, 0))
    np.testing.assert_array_equal(case.record["gradient_norm_off"], 0)


@pytest.mark.parametrize(("region", "basis"), [("off", "complement"), ("on", "basis")])
def test_one_dimensional_regions_are_crossed_exactly(region, basis):
    case = _case("line")
    direction = getattr(case.data.subspace, basis)[:, 0]
    lower, upper = (case.record[f"distance_{region}_l2_{side}"] for side in ("lower", "upper"))
    for at, network, x in case.each():
        if upper[at] > 0:
            flip = float(min(Ray.from_point(network, x, sign * direction).first_flip() for sign in (1, -1)))
            assert lower[at] <= flip <= upper[at]
            assert upper[at] == flip or upper[at] == pytest.approx(lower[at], rel=1e-7)


def test_universal_distance_is_the_crossing_along_the_one_direction():
    case = _case("subspace")
    off = case.data.subspace.complement @ case.data.subspace.complement.T
    for at, network, x in case.each():
        value = float(reference.output(network, x))
        direction = np.sign(value) * off @ (-np.sign(network.head) @ network.weight)
        flip = float(Ray.from_point(network, x, direction / np.linalg.norm(direction)).first_flip())
        expected = flip if case.data.y[at[1]] * value > 0 else 0
        assert case.record["distance_universal"][at] == pytest.approx(expected, rel=1e-7)
