"""Predictions of every cell of a grid: which are made, and that each is made of its own cell's settings."""

import numpy as np
import pytest
from shell import read

from subspace_adv import theory
from subspace_adv.datasets import grid_data, load_data
from subspace_adv.predictions import PREDICTIONS, predict
from subspace_adv.sweep import Sweep
from subspace_adv.training import CONVERGED, DIVERGED, PENDING

# Every setting that a prediction reads, as an axis, the data's among and between the others.
ALL = """
name = "all"
[data]
samples = 5
[axes]
init = ["theory", "paper-code", "torch"]
kind = ["line", "chessboard", "subspace"]
optimizer = ["gd", "momentum", "adam", "sgd"]
basis = ["random", "axis-aligned"]
seed = [3, 1]
ambient_dim = [6, 2, 9]
weight_decay = [0.0, 0.01]
learning_rate = [0.1, 0.4]
width = [6, 41]
init_scale = [1.0, 0.5]
momentum = [0.9, 0.5]
"""


def recorded(sweep: Sweep, points: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shape = (sweep.cells, points)
    return {
        "status": np.full(sweep.cells, CONVERGED, np.int8),
        "steps": rng.integers(0, 50, sweep.cells).astype(float),
        "output": rng.standard_normal(shape).astype(np.float32),
        "gradient_norm_off_learned": np.zeros(shape, np.float32),
        "head_norm_active": rng.random(shape, np.float32),
        "head_sum_active": rng.random(shape, np.float32) * 2,
    }


def predicted(sweep: Sweep, record: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    datasets, which = grid_data(sweep)
    labels = np.zeros((len(datasets), record["output"].shape[1]), np.int8)
    for i, settings in enumerate(datasets):
        y = load_data(settings).y
        labels[i, : len(y)] = y
    return predict(sweep, record, datasets, which, labels)


def one_cell(sweep: Sweep, cell: int) -> dict:
    return {leaf: sweep.column(leaf, np.array([cell]))[0].item() for leaf in sweep.axes}


@pytest.fixture(scope="module")
def everything():
    sweep = read(ALL)
    record = recorded(sweep, 25)
    return sweep, record, predicted(sweep, record)


def test_every_prediction_is_there_in_float32(everything):
    sweep, _, found = everything
    assert set(found) == set(PREDICTIONS)
    for name, variable in PREDICTIONS.items():
        assert found[name].shape == ((sweep.cells, 25) if variable.dimensions else (sweep.cells,))
        assert found[name].dtype == np.float32
        assert variable.unit and "NaN where" in variable.meaning


def test_predictions_are_made_where_they_hold_and_nowhere_else(everything):
    sweep, _, found = everything
    for cell in range(0, sweep.cells, 7):
        at = one_cell(sweep, cell)
        off_is_left_alone = at["kind"] != "chessboard" and not (at["kind"] == "subspace" and at["ambient_dim"] == 2)
        if at["optimizer"] == "adam":
            apart = at["kind"] == "subspace" and at["basis"] == "axis-aligned" and at["weight_decay"] == 0
            off_is_left_alone &= apart
        for name in PREDICTIONS:
            holds = off_is_left_alone and (name == "predicted_decay" or at["init"] != "torch")
            assert np.isfinite(found[name][cell]).all() == holds, (name, at)
            assert np.isnan(found[name][cell]).all() == (not holds), (name, at)


def test_each_cell_is_predicted_from_its_own_settings(everything):
    sweep, record, found = everything
    chosen = np.random.default_rng(1).choice(sweep.cells, 1000, replace=False)
    compared = 0
    for cell in chosen[~np.isnan(found["predicted_bound_probability"][chosen])]:
        at = one_cell(sweep, cell)
        d, dof = (2, 1) if at["kind"] == "line" else (at["ambient_dim"], at["ambient_dim"] - 2)
        momentum = at["momentum"] if at["optimizer"] == "momentum" else 0.0
        rho = theory.decay(record["steps"][cell], at["learning_rate"], at["weight_decay"], momentum)
        assert found["predicted_decay"][cell] == pytest.approx(float(rho), rel=1e-5)
        sigma = abs(float(rho)) * at["init_scale"] / d**0.5
        scale = sigma * record["head_norm_active"][cell]
        for name, length in [
            ("", theory.chi_quantile(dof, 0.5)),
            ("_low", theory.chi_quantile(dof, 0.025)),
            ("_high", theory.chi_quantile(dof, 0.975)),
            ("_lower_bound", (dof / 2) ** 0.5),
            ("_upper_bound", (2 * dof) ** 0.5),
        ]:
            np.testing.assert_allclose(found[f"predicted_gradient_norm_off{name}"][cell], scale * length, rtol=1e-5)
        assert found["predicted_bound_probability"][cell] == pytest.approx(1 - np.exp(-dof / 16), rel=1e-5)
        slope = sigma * record["head_sum_active"][cell] * (dof / at["width"]) ** 0.5
        size = np.abs(record["output"][cell]) / slope
        universal = found["predicted_distance_universal"][cell]
        np.testing.assert_allclose(universal[universal > 0], size[universal > 0], rtol=1e-5)
        compared += 1
    assert compared > 250


def test_misclassified_points_are_at_distance_0_and_no_others(everything):
    sweep, record, found = everything
    datasets, which = grid_data(sweep)
    which = np.broadcast_to(which, sweep.shape).ravel()
    for cell in np.flatnonzero(~np.isnan(found["predicted_bound_probability"]))[::97]:
        y = load_data(datasets[which[cell]]).y
        wrong = y * record["output"][cell, : len(y)] <= 0
        np.testing.assert_array_equal(found["predicted_distance_universal"][cell, : len(y)] == 0, wrong)


def test_the_origin_of_a_network_without_biases_is_misclassified():
    """Its output is 0, and no neuron is active."""
    sweep = read("[network]\ninit = 'theory'\n")
    record = recorded(sweep, 7)
    for name in ("output", "head_norm_active", "head_sum_active"):
        record[name][0, 3] = 0
    found = predicted(sweep, record)
    assert found["predicted_distance_universal"][0, 3] == 0
    assert found["predicted_gradient_norm_off"][0, 3] == 0


def test_pending_and_diverged_cells_are_nan():
    sweep = read('[axes]\nseed = "0:3"\n')
    record = recorded(sweep, 7)
    record["status"][:] = CONVERGED, PENDING, DIVERGED
    record["steps"][1] = np.nan
    for name in ("output", "gradient_norm_off_learned", "head_norm_active", "head_sum_active"):
        record[name][1:] = np.nan
    for values in predicted(sweep, record).values():
        assert np.isfinite(values[0]).all()
        assert np.isnan(values[1:]).all()


def test_a_sweep_without_axes_is_one_cell():
    sweep = read("")
    found = predicted(sweep, recorded(sweep, 7))
    assert found["predicted_decay"].tolist() == [1]
    assert found["predicted_gradient_norm_off"].shape == (1, 7)
