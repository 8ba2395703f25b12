"""Ranks among redraws of the weights off the subspace: whole numbers, of draws that can be made by hand."""

import functools
import itertools
from pathlib import Path

import jax
import layered
import numpy as np
import pytest
import xarray as xr
from layered import Shape
from shell import read, write

from subspace_adv import Sweep, checks, load_networks, load_points, open_results, plan, run, streams
from subspace_adv.engine.networks import _rank
from subspace_adv.initialization import off_weights
from subspace_adv.measures import MEASURES, Rounding, variables

REDRAWS = 4
SMALL = f"""
name = "redrawn"
[data]
kind = "subspace"
ambient_dim = 6
subspace_dim = 2
samples = 3
data_seed = 1
[network]
init = "theory"
width = 3
[training]
learning_rate = 0.1
weight_decay = 0.01
max_steps = 40
[measure]
regions = ["off"]
attack_steps = 4
restarts = 2
redraws = {REDRAWS}
[axes]
seed = "0:30"
depth = [1, 2]
"""
OFF = {
    *("gradient_norm_off", "gradient_off_whitened", "distance_universal", "distance_universal_heldout"),
    *("distance_random", "distance_random_heldout", "distance_off_l2_upper", "distance_off_l2_lower"),
}


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(
            ("ambient_dim=3", "depth=1"), id="a line"
        ),  # off which nothing is searched, nor takes long to compile
        pytest.param((), id="four dimensions", marks=pytest.mark.slow),
    ],
)
def sweep(request: pytest.FixtureRequest) -> Sweep:
    return read(SMALL, *request.param)


@pytest.fixture(scope="module")
def folder(sweep, tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("redraws") / "redrawn"
    run(sweep, found)
    return found


@pytest.fixture(scope="module")
def dataset(folder) -> xr.Dataset:
    return open_results(folder)


def test_all_that_depends_on_weights_off_the_subspace_is_ranked(dataset):
    ranks = {str(name).removeprefix("rank_") for name in dataset.data_vars if str(name).startswith("rank_")}
    assert ranks == OFF == {name for name, row in variables(("off",), ("l2",)).items() if row.off}
    for name in OFF:
        found = dataset[f"rank_{name}"]
        assert found.dims == dataset[name].dims and found.dtype == np.float32
        assert f"rank of {name} among it and {REDRAWS} redraws" in found.attrs["long_name"]
        assert set(np.unique(found)) == set(range(REDRAWS + 1))  # no NaN, and all of them come up
    assert dataset.attrs["redraws"] == REDRAWS


def test_all_else_is_what_it_is_without_redraws(sweep, folder, dataset, tmp_path):
    without = run(Sweep.from_toml(write(tmp_path, sweep.to_toml()), "redraws=0"), tmp_path / "without")
    assert set(without.data_vars) == {name for name in dataset.data_vars if not str(name).startswith("rank_")}
    for name in without.variables:
        assert without[name].values.tobytes() == dataset[name].values.tobytes(), name
    for depth in sweep.values("depth"):
        parts = (jax.tree.leaves(load_networks(of, depth=depth)) for of in (folder, tmp_path / "without"))
        assert all(a.tobytes() == b.tobytes() for a, b in zip(*parts, strict=True))


def test_the_rank_of_the_gradient_is_that_of_weights_redrawn_by_hand(sweep, folder, dataset):
    """|ρ|·|Y a(x)|, Y a draw of the weights off the subspace, a(x) by the chain rule in NumPy; of all ρ is the same."""
    points, seen = load_points(folder, depth=1), 0
    laws = dict(zip(sweep.values("depth"), (group.program.law for group in plan(sweep).groups), strict=True))
    for depth, seed in itertools.product(laws, range(30)):
        network = load_networks(folder, depth=depth, seed=seed)
        params = network.params if depth > 1 else as_layers(network)
        x = points.x[seed] if points.x.ndim > 2 else points.x
        _, a = layered.backward(layered.double(params), x, Shape(depth), np.ones(len(x)))
        init_key, _ = streams.training_keys(seed)
        draws = [
            np.asarray(off_weights(key, np.int32(3), np.float32(1), law=laws[depth]), np.float64)[:3]
            for key in streams.off_keys(init_key, REDRAWS)
        ]
        own, *others = lengths = np.array([np.linalg.norm(a[:, 0] @ draw, axis=1) for draw in draws])
        recorded = dataset.sel(seed=seed, depth=depth)
        decay = abs(float(recorded["predicted_decay"]))
        np.testing.assert_allclose(recorded["gradient_norm_off"], decay * own, rtol=1e-4)
        for point in np.flatnonzero(own > 0):
            assert np.diff(np.sort(lengths[:, point])).min() > 1e-5 * own[point]  # none so near that rounding decides
            assert recorded["rank_gradient_norm_off"][point] == sum(other[point] < own[point] for other in others)
            seen += 1
    assert seen > 60 * len(laws)


def as_layers(network):
    return {
        "hidden_0": {"kernel": network.weight.T, "bias": network.bias},
        "head": {"kernel": network.head[:, None], "bias": network.head_bias[None]},
    }


def test_redraws_are_other_draws_and_the_first_key_is_the_networks_own():
    key, _ = streams.training_keys(5)
    keys = jax.random.key_data(streams.off_keys(key, 6))
    assert np.array_equal(keys[0], jax.random.key_data(key)) and len(np.unique(keys, axis=0)) == 7
    assert np.array_equal(jax.random.key_data(streams.off_keys(key, 3)), keys[:4])  # of fewer, the first of more


def test_ties_are_broken_evenly_and_what_is_no_number_has_no_rank(x64, standard_promotion):
    values = np.array([[1.0, 2, np.inf, np.nan], [1, 1, np.inf, 1], [2, 1, 0, 2], [0, 3, np.inf, 3]])
    ranks = np.array(jax.vmap(functools.partial(_rank, values))(jax.random.split(streams.key_of(3), 400)))
    assert (ranks[:, 1] == 2).all() and np.isnan(ranks[:, 3]).all()
    assert set(ranks[:, 0]) == {1, 2} and 150 < (ranks[:, 0] == 1).sum() < 250
    counts = [np.sum(ranks[:, 2] == rank) for rank in range(4)]
    assert counts[0] == 0 and min(counts[1:]) > 100


@pytest.mark.slow
def test_ranks_are_uniform_even_of_distances_and_at_any_depth(tmp_path):
    dataset = run(read(SMALL, "seed=0:400"), tmp_path)
    found = {one.variable: one for one in checks.check(dataset).ranks}
    assert set(found) == OFF and {one.sample for one in found.values()} == {400}
    assert min(one.p_value for one in found.values()) > 1e-3


@pytest.mark.slow
def test_what_is_no_fresh_draw_has_no_rank(tmp_path):
    """Of uniform weights, and where nothing is off the span; all else is recorded as ever."""
    dataset = run(read(SMALL, "seed=0:3", "init=torch,theory", "subspace_dim=2,6"), tmp_path)
    for name, (init, k) in itertools.product(OFF, itertools.product(("torch", "theory"), (2, 6))):
        of = dataset.sel(init=init, subspace_dim=k)
        assert np.isnan(of[f"rank_{name}"]).all() == (init == "torch" or k == 6)
        assert np.isfinite(of["output"]).all()


@pytest.mark.slow
def test_redraws_may_differ_between_networks(tmp_path):
    dataset = run(read(SMALL, "seed=0:40", "ambient_dim=3", "depth=1", "redraws=0,2,4"), tmp_path)
    for name in OFF:
        for redraws in (0, 2, 4):
            found = dataset[f"rank_{name}"].sel(redraws=redraws)
            assert np.isnan(found).all() if not redraws else set(np.unique(found)) == set(range(redraws + 1))
            assert np.array_equal(dataset[name].sel(redraws=redraws), dataset[name].sel(redraws=0))
    found = checks.check(dataset).ranks
    assert {one.variable for one in found} == OFF and min(one.p_value for one in found) > 1e-4
    assert found == checks.check(dataset.sel(redraws=4)).ranks


def test_a_measure_of_weights_within_the_subspace_alone_is_not_ranked():
    assert {name for name, row in MEASURES.items() if not row.off} == {
        *("loss", "margin", "output", "gradient_norm_on", "head_norm_active", "head_sum_active"),
        *("gradient_norm_tangent", "gradient_norm_off_learned", "gradient_off_freedom"),
    }
    assert all(row.rounding in Rounding for row in MEASURES.values())
