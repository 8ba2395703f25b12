"""Every network, and every attack on a point of it, draws from a key of its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from shell import in_its_stead, read

from subspace_adv import brackets, engine
from subspace_adv.attacks import AttackResult
from subspace_adv.models import MODELS
from subspace_adv.planning import plan

DRAWN = """
[data]
kind = "subspace"
ambient_dim = 4
subspace_dim = 3  # in a plane nothing is drawn
samples = 4
data_seed = 1
[network]
width = 3
[training]
max_steps = 0
[measure]
regions = ["on"]
attack_steps = 43  # as no other test has, so that nothing is compiled already
[axes]
seed = "0:256"
"""


@pytest.mark.slow
def test_networks_of_different_seeds_are_independent():
    """All parameters in ambient coordinates: those of a seed, and those of it and of the next one."""
    sweep = read(DRAWN)
    chunks = plan(sweep, "xla").chunks
    trained = {chunk.number: arrays for chunk, arrays in engine.train(sweep, chunks[0].group, chunks)}
    parts = [engine.ambient_networks(sweep, chunk, trained[chunk.number]) for chunk in chunks]
    fields = [np.concatenate(field) for field in zip(*parts, strict=True)]
    columns = np.concatenate([field.reshape(256, -1).T for field in fields])
    columns = np.concatenate([columns[:, :-1], columns[:, 1:]])
    assert len(columns) == 2 * (3 * 4 + 3 + 3 + 1)
    correlations = np.corrcoef(columns) - np.eye(len(columns))
    assert np.abs(correlations).max() < 5 / 255**0.5
    for values in columns:
        assert len(np.unique(values)) == 255


@pytest.mark.slow
def test_attacks_on_different_points_and_networks_start_from_keys_of_their_own(monkeypatch):
    """By an attack that says what it draws; cells of one seed draw the same."""

    def draw(network, point, basis, *, key, toward, **effort) -> AttackResult:
        return AttackResult(jnp.zeros_like(point), jax.random.uniform(key, (), jnp.float64), jnp.bool_(True))

    monkeypatch.setattr(brackets, "minimal_norm_attack", draw)
    monkeypatch.setitem(MODELS._rows, "mlp", in_its_stead(kernel=None))  # which attacks in its stead
    sweep = read(DRAWN, "learning_rate=0.1,0.2", "seed=0:128")
    parts = [engine.train_and_measure(sweep, chunk)["distance_on_l2_upper"] for chunk in plan(sweep, "xla").chunks]
    found = np.concatenate(parts).reshape((*sweep.shape, 4))
    one, other = np.moveaxis(found, list(sweep.axes).index("learning_rate"), 0)
    np.testing.assert_array_equal(one, other)
    right = one > 0
    assert 0.3 < right.mean() < 0.7
    assert len(np.unique(one[right])) == right.sum()
    assert stats.kstest(one[right], "uniform").pvalue > 1e-3
    both = right[:, :-1] & right[:, 1:]
    assert abs(np.corrcoef(one[:, :-1][both], one[:, 1:][both])[0, 1]) < 4 / both.sum() ** 0.5
