"""Results as labelled arrays: names, dimensions, dtypes and meanings; networks by the values of their axes."""

import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest
import reference
import xarray as xr
from shell import MANY, TINY, environment, read

from subspace_adv import Network, UserError, load_networks, open_results, plan, planning, run
from subspace_adv.data import ChessboardData
from subspace_adv.datasets import grid_data, load_data, load_span
from subspace_adv.manifest import describe
from subspace_adv.measures import variables
from subspace_adv.results import _settings
from subspace_adv.store import Store

# Lines and subspaces in planes and in space, several draws of the points, on which every region is a line or empty.
MIXED = """
name = "mixed"
[data]
subspace_dim = 1
samples = 4
[network]
width = 3
[training]
max_steps = 30
[measure]
regions = ["on"]
[axes]
seed = [7, 3]
kind = ["line", "subspace"]
ambient_dim = [3, 2]
data_seed = [2, 1, 4]
"""


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results") / "mixed"
    run(read(MIXED), folder)
    return folder


def test_dimensions_are_the_axes_in_order_and_the_points(tiny):
    dataset = open_results(tiny)
    axes = ("width", "seed", "init_scale")
    assert dataset["status"].dims == dataset["steps"].dims == dataset["loss"].dims == dataset["margin"].dims == axes
    assert dataset["output"].dims == dataset["distance_universal"].dims == (*axes, "point")
    assert dict(dataset.sizes) == {"width": 2, "seed": 12, "init_scale": 2, "point": 7, "heldout": 16, "feature": 2}
    assert dataset["distance_universal_heldout"].dims == dataset["distance_random_heldout"].dims == (*axes, "heldout")
    assert set(dataset.data_vars) == {
        "gradient_off_whitened",
        "gradient_off_freedom",
        "predicted_off_deviation",
        "status",
        "steps",
        "loss",
        "margin",
        "output",
        "gradient_norm_off",
        "gradient_norm_off_learned",
        "gradient_norm_on",
        "head_norm_active",
        "head_sum_active",
        "distance_universal",
        "distance_universal_heldout",
        "distance_random",
        "distance_random_heldout",
        "distance_off_l2_upper",
        "distance_off_l2_lower",
        "predicted_decay",
        "predicted_bound_probability",
        "predicted_gradient_norm_off",
        "predicted_gradient_norm_off_low",
        "predicted_gradient_norm_off_high",
        "predicted_gradient_norm_off_lower_bound",
        "predicted_gradient_norm_off_upper_bound",
        "predicted_distance_universal",
    }
    assert dataset["predicted_decay"].dims == dataset["predicted_bound_probability"].dims == axes
    assert dataset["predicted_gradient_norm_off"].dims == (*axes, "point")


def test_coordinates_carry_the_values_of_the_axes_and_the_points(tiny):
    dataset = open_results(tiny)
    assert set(dataset.coords) == {"width", "seed", "init_scale", "label", "input", "heldout_input"}
    assert dataset["width"].values.tolist() == [3, 5]
    assert dataset["seed"].values.tolist() == list(range(12))
    assert dataset["init_scale"].values.tolist() == [1.0, 0.5]
    assert dataset["label"].dims == ("point",)
    assert dataset["input"].dims == ("point", "feature")
    settings = read(TINY).dataset({})
    data, basis = load_data(settings), load_span(settings).basis
    assert np.array_equal(dataset["label"], data.y)
    assert np.array_equal(dataset["input"], (data.x @ basis.T).astype(np.float32))
    assert np.allclose(dataset["input"], np.linspace(-1, 1, 7)[:, None])  # in the plane
    assert dataset["heldout_input"].dims == ("heldout", "feature")
    assert np.array_equal(dataset["heldout_input"], (data.heldout @ basis.T).astype(np.float32))


def test_dtypes_and_meanings(tiny):
    dataset = open_results(tiny)
    assert dataset["status"].dtype == np.int8
    assert dataset["status"].attrs["flag_values"].tolist() == [0, 1, 2, 3]
    assert dataset["status"].attrs["flag_values"].dtype == np.int8
    assert dataset["status"].attrs["flag_meanings"] == "pending converged step_limit diverged"
    assert dataset["steps"].dtype == np.float64  # NaN where pending
    assert dataset["label"].dtype == np.int8
    assert dataset["input"].dtype == dataset["heldout_input"].dtype == np.float32
    for name, variable in dataset.data_vars.items():
        assert variable.attrs["long_name"]
        if name != "status":
            assert variable.attrs["units"]
        if name not in ("status", "steps"):
            assert variable.dtype == np.float32


@pytest.mark.parametrize(
    ("text", "exact"),
    [
        ('kind = "line"', {"off", "on", "full"}),
        ('kind = "chessboard"', {"off", "on"}),
        ('kind = "subspace"\nambient_dim = 4\nsubspace_dim = 2', {"off", "on"}),
        ('kind = "subspace"\nsubspace_dim = 4\n[axes]\nambient_dim = [5, 6, 7]', set()),
        ('kind = "subspace"\nsubspace_dim = 4\n[axes]\nambient_dim = [5, 6]', {"off"}),
    ],
)
def test_distances_say_where_they_are_exact(text, exact, tmp_path):
    """In lines and planes, if they are that in every cell."""
    Store.create(tmp_path / "out", describe(plan(read(f"[data]\n{text}\n")))).close()
    dataset = open_results(tmp_path / "out")
    for region in ("off", "on", "full"):
        for side in ("lower", "upper"):
            told = dataset[f"distance_{region}_l2_{side}"].attrs["long_name"]
            assert told.endswith("; exact, rounding apart") == (region in exact), (region, side)


def test_attributes_tell_the_settings_that_all_cells_share(tiny):
    attributes = open_results(tiny).attrs
    assert attributes["name"] == "tiny"
    assert attributes["max_steps"] == 30
    assert attributes["learning_rate"] == 0.02
    assert attributes["kind"] == "line"
    assert (attributes["regions"], attributes["norms"]) == ("off", "l2")
    assert (attributes["attack_steps"], attributes["restarts"]) == (56, 32)
    assert not attributes.keys() & {"width", "seed", "init_scale"}


def test_attributes_tell_with_what_the_results_were_made(tmp_path):
    """Of the folder, not of this process."""
    planned = plan(read(TINY, "regions=off,full", "norms=l2,linf", "restarts=2,3"))
    made = Store.create(tmp_path, describe(planned))
    made.close()
    edited = made.manifest | {
        "versions": {"subspace-adv": "7.0", "jax": "8.0", "jaxlib": "9.0"},
        "machine": {"device": "gpu", "processor": "abacus"},
        "parts": [part | {"trainer": "fused (avx512)", "measurer": "xla"} for part in made.manifest["parts"]],
        "begun": {"commit": "0123-dirty", "command": "subspace-adv run", "device_count": 8, "device_kind": None},
    }

    def attributes(told: dict) -> dict:
        digest = hashlib.sha256(json.dumps(told).encode()).hexdigest()
        (tmp_path / "manifest.json").write_text(json.dumps(told | {"digest": digest}))
        return open_results(tmp_path).attrs

    found = attributes(edited)
    expected = {
        "regions": "off, full",
        "norms": "l2, linf",
        "attack_steps": 56,
        "subspace_adv_version": "7.0",
        "jax_version": "8.0",
        "jaxlib_version": "9.0",
        "device": "gpu",
        "processor": "abacus",
        "trainer": "fused (avx512)",
        "measurer": "xla",
        "commit": "0123-dirty",
        "command": "subspace-adv run",
        "device_count": 8,
    }
    assert found | expected == found
    assert "restarts" not in found
    assert all(type(value) in (str, int, float) for value in found.values())
    assert "commit" not in attributes(edited | {"begun": made.manifest["begun"] | {"commit": None}})


SIZES = ("ambient_dim", "subspace_dim", "samples")


def told(*overrides: str) -> tuple[dict, dict]:
    """Attributes and coordinates that tell of a sweep's settings, the latter as lists with their dimension."""
    sweep = read("", *overrides)
    shared, along = _settings(sweep, *grid_data(sweep))
    return shared, {leaf: (dim, values.tolist()) for leaf, (dim, values) in along.items()}


@pytest.mark.parametrize(
    ("overrides", "sizes"),
    [
        ([], (2, 1, 7)),
        (["kind=chessboard"], (3, 2, 25)),
        (["kind=subspace"], (20, 2, 20)),
        (["kind=subspace", "ambient_dim=9", "subspace_dim=4", "samples=30"], (9, 4, 30)),
        (["kind=subspace,line", "ambient_dim=2", "subspace_dim=1", "samples=7"], (2, 1, 7)),
    ],
)
def test_attributes_tell_the_sizes_of_the_data(overrides, sizes):
    shared, along = told(*overrides)
    assert tuple(shared[leaf] for leaf in SIZES) == sizes
    assert along == {}
    sweep = read("", *overrides)
    settings = sweep.dataset({"kind": sweep.values("kind")[0]})
    data, basis = load_data(settings), load_span(settings).basis
    assert sizes == (len(basis), data.subspace.basis.shape[1], len(data.x))


def test_attributes_tell_nothing_that_no_cell_read():
    of_subspaces = {"basis", "distribution", "labels", "data_seed"}
    assert not told()[0].keys() & {*of_subspaces, "momentum", "batch_size"}
    assert told("kind=line,subspace", "optimizer=momentum,sgd")[0].keys() >= {*of_subspaces, "momentum", "batch_size"}
    assert told("optimizer=adam,momentum")[0].keys() & {"momentum", "batch_size"} == {"momentum"}


def test_what_is_trained_is_told_as_it_was():
    assert told()[0]["trainable"] == told("init=torch,paper-code")[0]["trainable"] == "all"
    assert told("init=theory")[0]["trainable"] == "hidden"
    assert told("init=theory", "trainable=all")[0]["trainable"] == "all"
    assert told("init=torch,theory", "trainable=hidden")[0]["trainable"] == "hidden"
    shared, along = told("init=torch,theory,paper-code")
    assert "trainable" not in shared
    assert along == {"trainable": ("init", ["all", "hidden", "all"])}
    assert "trainable" not in told("trainable=all,hidden", "init=torch,theory")[1]


def test_sizes_that_differ_by_kind_are_coordinates_along_it():
    shared, along = told("kind=chessboard,subspace,line", "subspace_dim=1")
    assert not shared.keys() & set(SIZES)
    assert along == {
        "ambient_dim": (("kind",), [3, 20, 2]),
        "subspace_dim": (("kind",), [2, 1, 1]),
        "span_dim": (("kind",), [3, 1, 1]),
        "samples": (("kind",), [25, 20, 7]),
    }
    shared, along = told("kind=subspace,line", "subspace_dim=1", "ambient_dim=2,3")
    assert (shared["subspace_dim"], along["samples"]) == (1, (("kind",), [20, 7]))


def test_sizes_that_follow_from_axes_are_told_along_them():
    shared, along = told("kind=patches", "patches=2,3", "patch_size=8", "data_seed=0:4")
    assert shared["patch_size"] == 8 and along["ambient_dim"] == (("patches",), [16, 24])
    assert along["subspace_dim"] == along["span_dim"] == (("patches",), [2, 3])
    _, along = told("kind=subspace,line", "subspace_dim=1", "ambient_dim=2,3")
    assert "ambient_dim" not in along and along["samples"] == (("kind",), [20, 7])
    assert told("kind=patches")[0]["ambient_dim"] == told("kind=patches")[0]["patches"] * shared["patch_size"]


@pytest.mark.slow
def test_the_dataset_of_several_kinds_has_their_sizes(mixed):
    dataset = open_results(mixed)
    assert dataset["samples"].dims == ("kind",)
    assert dataset["samples"].sel(kind="line").item() == 7
    assert dataset["samples"].sel(kind="subspace").item() == 4
    assert dataset.attrs["subspace_dim"] == 1
    assert dataset["ambient_dim"].values.tolist() == [3, 2]


def test_variables_are_finite_where_they_should_be(tiny):
    dataset = open_results(tiny)
    assert (dataset["status"] == 2).all()
    for name in ("loss", "margin", "output", "gradient_norm_off", "gradient_norm_on"):
        assert np.isfinite(dataset[name]).all()
    assert (dataset["distance_off_l2_lower"] <= dataset["distance_off_l2_upper"]).all()
    for name in ("distance_universal_heldout", "distance_random_heldout"):
        assert (dataset[name] > 0).all()
    assert np.allclose(dataset["margin"], (dataset["output"] * dataset["label"]).min("point"), rtol=1e-6)


def test_predictions_stand_beside_what_they_predict(tiny):
    """As one line of NumPy has them: in codimension 1, ρ = 1, β = init_scale / √2."""
    dataset = open_results(tiny)
    scale = dataset["head_norm_active"] * dataset["init_scale"] / np.sqrt(2)
    active = dataset["head_norm_active"] > 0
    assert (dataset["predicted_decay"] == 1).all()
    assert np.allclose(dataset["predicted_bound_probability"], 1 - np.exp(-1 / 16))
    for name, length in {"": 0.67449, "_low": 0.031338, "_high": 2.241403, "_upper_bound": 2**0.5}.items():
        assert np.allclose(dataset[f"predicted_gradient_norm_off{name}"], length * scale, rtol=1e-4)
    below = dataset["gradient_norm_off"] <= dataset["predicted_gradient_norm_off"]
    assert 0.3 < below.where(active).mean() < 0.7
    slope = dataset["head_sum_active"] * dataset["init_scale"] / np.sqrt(2 * dataset["width"])
    size = (np.abs(dataset["output"]) / slope).where(dataset["output"] * dataset["label"] > 0, 0)
    assert np.allclose(dataset["predicted_distance_universal"], size.transpose(*size.dims), rtol=1e-4)


def test_a_cell_is_where_its_values_are(tiny, tmp_path):
    others = run(read(TINY, "width=5", "seed=7:29", "init_scale=0.5"), tmp_path)
    at = {"width": 5, "seed": range(7, 12), "init_scale": 0.5}
    dataset = open_results(tiny)
    for name in dataset.data_vars:
        assert dataset[name].sel(at).values.tobytes() == others[name].sel(at).values.tobytes()


@pytest.mark.slow
def test_the_loss_as_an_axis_keeps_its_name(tmp_path):
    dataset = run(read(TINY, "loss=logistic,exponential", "width=3"), tmp_path)
    assert dataset["loss"].values.tolist() == ["logistic", "exponential"]
    assert dataset["loss_value"].dims == ("width", "seed", "init_scale", "loss")
    margins = dataset["output"] * dataset["label"]
    expected = np.log1p(np.exp(-margins)).mean("point").sel(loss="logistic")
    assert np.allclose(dataset["loss_value"].sel(loss="logistic"), expected, rtol=1e-5)
    expected = np.exp(-margins).mean("point").sel(loss="exponential")
    assert np.allclose(dataset["loss_value"].sel(loss="exponential"), expected, rtol=1e-5)


@pytest.mark.slow
def test_points_have_the_axes_of_the_data(mixed):
    dataset, sweep = open_results(mixed), read(MIXED)
    assert list(dataset.dims)[:4] == ["seed", "kind", "ambient_dim", "data_seed"]
    # Where a subspace lies changes neither labels nor coordinates within it.
    assert dataset["label"].dims == ("kind", "data_seed", "point")
    assert dataset["input"].dims == ("kind", "data_seed", "point", "feature")
    assert dataset["heldout_input"].dims == ("kind", "data_seed", "heldout", "feature")
    assert (dataset.sizes["point"], dataset.sizes["feature"]) == (7, 2)
    for kind in ("line", "subspace"):
        for ambient_dim in (3, 2):
            for data_seed in (2, 1, 4):
                at = {"kind": kind, "ambient_dim": ambient_dim, "data_seed": data_seed}
                data, of_data = load_data(sweep.dataset(at)), {"kind": kind, "data_seed": data_seed}
                label, points = dataset["label"].sel(of_data).values, dataset["input"].sel(of_data).values
                frame = np.full((1, 2), 0.5**0.5) if kind == "line" else np.eye(1)
                n, d = len(data.x), frame.shape[1]
                assert np.array_equal(label[:n], data.y)
                assert (label[n:] == 0).all()
                assert np.allclose(points[:n, :d], data.x @ frame, rtol=1e-6, atol=1e-7)
                assert np.isnan(points[n:]).all()
                assert np.isnan(points[:, d:]).all()
                heldout = dataset["heldout_input"].sel(of_data).values
                assert np.allclose(heldout[:, :d], data.heldout @ frame, rtol=1e-6, atol=1e-7)
                assert np.isnan(heldout[:, d:]).all()
                output = dataset["output"].sel(at).values
                assert np.isfinite(output[:, :n]).all()
                assert np.isnan(output[:, n:]).all()


@pytest.mark.slow
def test_axes_that_a_kind_does_not_read_repeat_its_cells(mixed):
    line = open_results(mixed).sel(kind="line")
    for name in line.data_vars:
        first = line[name].isel(ambient_dim=0, data_seed=0).values
        for ambient_dim in range(2):
            for data_seed in range(3):
                assert np.array_equal(
                    line[name].isel(ambient_dim=ambient_dim, data_seed=data_seed), first, equal_nan=True
                )


def assert_networks_reproduce_outputs(folder, sweep) -> None:
    """Every stored output, from the stored weights and points, by an implementation of its own."""
    dataset, networks = open_results(folder), load_networks(folder)
    for place in np.ndindex(sweep.shape):
        at = dict(zip(sweep.axes, place, strict=True))
        settings = sweep.dataset({axis: values[at[axis]] for axis, values in sweep.axes.items()})
        here = Network(*(field[place] for field in networks))
        data, span = load_data(settings), load_span(settings, complete=True)
        points = data.x @ span.basis.T
        points = np.pad(points, ((0, 0), (0, here.weight.shape[1] - points.shape[1])))
        found = np.array([float(reference.output(here, point)) for point in points])
        assert np.allclose(found, dataset["output"].isel(at).values[: len(points)], rtol=1e-5, atol=1e-5)
        if not isinstance(settings, ChessboardData):  # else part of the span is off the data's plane
            gradients = np.array([reference.gradient(here, point) for point in points])[:, : len(span.basis)]
            near = (np.abs(points @ here.weight.T + here.bias)[:, here.head != 0] < 1e-5).any(axis=1)
            for name, basis in (("on", span.basis), ("off", span.complement)):
                stored = dataset[f"gradient_norm_{name}"].isel(at).values[: len(points)]
                norms = np.linalg.norm(gradients @ basis, axis=1)
                assert np.allclose(norms[~near], stored[~near], rtol=1e-5, atol=1e-5)
            assert not near.all()


def test_networks_reproduce_the_stored_outputs(tiny):
    assert_networks_reproduce_outputs(tiny, read(TINY))


def test_a_sweep_of_one_network_is_loaded(tmp_path, tiny):
    run(read(TINY, "width=3", "seed=5", "init_scale=0.5"), tmp_path)
    expected = load_networks(tiny, seed=[5], init_scale=[0.5], width=[3])
    for found, part in zip(load_networks(tmp_path), expected, strict=True):
        np.testing.assert_array_equal(found, part)


@pytest.mark.slow
def test_networks_of_several_kinds_reproduce_the_stored_outputs(mixed):
    assert_networks_reproduce_outputs(mixed, read(MIXED))


def test_networks_of_several_widths_are_padded_with_zeros(tiny):
    networks = load_networks(tiny)
    assert networks.weight.shape == (2, 12, 2, 5, 2)
    assert networks.bias.shape == networks.head.shape == (2, 12, 2, 5)
    assert networks.head_bias.shape == (2, 12, 2)
    assert all(field.dtype == np.float32 for field in networks)
    assert (networks.weight[0, ..., 3:, :] == 0).all()
    assert (networks.bias[0, ..., 3:] == 0).all()
    assert (networks.head[0, ..., 3:] == 0).all()
    assert (networks.head != 0).any(axis=(1, 2)).tolist() == [[True] * 3 + [False] * 2, [True] * 5]


@pytest.mark.slow
def test_networks_of_several_dimensions_are_padded_with_zeros(mixed):
    networks = load_networks(mixed)
    assert networks.weight.shape == (2, 2, 2, 3, 3, 3)
    assert (networks.weight[:, 0, ..., 2] == 0).all()  # lines are in the plane
    assert (networks.weight[:, 1, 1, ..., 2] == 0).all()
    assert (networks.weight[:, 1, 0, ..., 2] != 0).all()
    assert load_networks(mixed, kind="line").weight.shape == (2, 2, 3, 3, 2)
    assert load_networks(mixed, kind="subspace", ambient_dim=2).weight.shape == (2, 3, 3, 2)


def test_reading_does_not_look_for_pitfalls_again(tiny, monkeypatch):
    monkeypatch.setattr(planning, "warn_of_pitfalls", lambda _: pytest.fail("it did"))
    load_networks(tiny, seed=0)
    open_results(tiny)


def test_selection_by_value(tiny):
    whole = load_networks(tiny)
    for coordinates, index in [
        ({"width": 5}, (1,)),
        ({"seed": 3}, (slice(None), 3)),
        ({"seed": [3]}, (slice(None), [3])),
        ({"seed": [9, 3, 9]}, (slice(None), [9, 3, 9])),
        ({"seed": range(2, 5)}, (slice(None), slice(2, 5))),
        ({"seed": np.array([4, 2])}, (slice(None), [4, 2])),
        ({"seed": np.int64(4)}, (slice(None), 4)),
        ({"init_scale": 0.5, "seed": (1, 2)}, (slice(None), slice(1, 3), 1)),
        ({"init_scale": np.float32(0.5)}, (slice(None), slice(None), 1)),
        ({"init_scale": 0.5000002}, (slice(None), slice(None), 1)),  # within the rounding of float32
        ({"init_scale": [0.4999998, 0.9999996]}, (slice(None), slice(None), [1, 0])),
        ({"width": 5, "seed": 11, "init_scale": 1}, (1, 11, 0)),
    ]:
        for found, field in zip(load_networks(tiny, **coordinates), whole, strict=True):
            assert np.array_equal(found, field[index])


def test_a_coordinate_of_the_dataset_selects(tiny):
    dataset = open_results(tiny)
    best = dataset["margin"].sel(width=5, init_scale=0.5).argmax("seed")
    found = load_networks(tiny, width=dataset["width"][1], init_scale=0.5, seed=dataset["seed"][best])
    assert np.array_equal(found.head, load_networks(tiny).head[1, int(best), 1])
    assert load_networks(tiny, width=5, seed=dataset["seed"][2:5]).head.shape == (3, 2, 5)


@pytest.mark.slow
def test_padding_is_trimmed_where_one_width_is_selected(tmp_path):
    sweep = read(TINY, "width=6")
    run(sweep, tmp_path)
    assert plan(sweep).groups[0].program.law.padded_width == 7
    assert load_networks(tmp_path).weight.shape == (1, 12, 2, 6, 2)


def test_values_near_the_rounding_of_float32_select(tmp_path):
    run(read(TINY, "width=3", "init_scale=0.1,0.7"), tmp_path)
    exact = load_networks(tmp_path, init_scale=0.7)
    rounded = load_networks(tmp_path, init_scale=float(np.float32(0.7)))
    assert np.array_equal(exact.weight, rounded.weight)


@pytest.mark.parametrize(
    ("coordinates", "message"),
    [
        ({"sede": 1}, "sede: no such axis; did you mean 'seed'?"),
        ({"loss": "logistic"}, "loss: no such axis; known: init_scale, seed, width"),
        ({"seed": 12}, "seed = 12: not a value of this axis; the nearest is 11"),
        ({"seed": [0, 99]}, "seed = 99: not a value of this axis; the nearest is 11"),
        ({"init_scale": 0.6}, "init_scale = 0.6: not a value of this axis; the nearest is 0.5"),
        ({"init_scale": 0.502}, "init_scale = 0.502: not a value of this axis; the nearest is 0.5"),
        ({"init_scale": 0.500001}, "init_scale = 0.500001: not a value of this axis; the nearest is 0.5"),
        ({"init_scale": 0.999998}, "init_scale = 0.999998: not a value of this axis; the nearest is 1.0"),
        ({"seed": 3.0000001}, "seed = 3.0000001: not a value of this axis; the nearest is 3"),
        ({"init_scale": "big"}, "init_scale = 'big': not a value of this axis"),
        ({"seed": None}, "seed = None: not a value of this axis"),
        ({"seed": []}, "seed = []: must be one value of this axis, or a list of some"),
        ({"seed": [[1, 2]]}, "seed = [[1, 2]]: must be one value of this axis, or a list of some"),
        ({"seed": float("nan")}, "seed = nan: not a value of this axis"),
    ],
)
def test_unknown_axes_and_values_are_refused(tiny, coordinates, message):
    with pytest.raises(UserError) as refused:
        load_networks(tiny, **coordinates)
    assert str(refused.value).startswith(message)


@pytest.mark.slow
def test_misspelt_names_on_an_axis_are_refused(mixed):
    with pytest.raises(UserError, match="kind = 'lien': not a value of this axis; did you mean 'line'"):
        load_networks(mixed, kind="lien")


def test_pending_cells_are_nan(tmp_path):
    sweep = read(MANY)
    run(sweep, tmp_path)
    whole, networks = open_results(tmp_path), load_networks(tmp_path)
    store = Store.open(tmp_path)
    store.discard(1)
    cells = store.entries[1].cells
    dataset = open_results(tmp_path)
    pending = np.zeros(sweep.cells, bool)
    pending[cells] = True
    pending = pending.reshape(sweep.shape)
    assert np.array_equal(dataset["status"] == 0, pending)
    for name, variable in dataset.data_vars.items():
        if name != "status":
            assert np.isnan(variable.values[pending]).all()
        assert np.array_equal(variable.values[~pending], whole[name].values[~pending])
    loaded = load_networks(tmp_path)
    for field, before in zip(loaded, networks, strict=True):
        assert np.isnan(field[pending]).all()
        assert np.array_equal(field[~pending], before[~pending])
    seed = int(dataset["seed"][np.flatnonzero(pending.all(axis=1))[0]])
    with pytest.raises(UserError, match="none of the networks selected is trained yet"):
        load_networks(tmp_path, seed=seed)
    for number in (0, 2, 3):
        store.discard(number)
    assert (open_results(tmp_path)["status"] == 0).all()


def test_a_damaged_chunk_is_warned_of_and_pending(tmp_path):
    run(read(MANY), tmp_path)
    (tmp_path / "chunks" / "000001" / "seal.json").write_text("{}")
    with pytest.warns(UserWarning, match="chunks/000001: its seal.json is damaged; run the sweep again"):
        dataset = open_results(tmp_path)
    assert (dataset["status"] == 0).sum() == 256
    with pytest.warns(UserWarning, match="chunks/000001"):
        networks = load_networks(tmp_path)
    assert np.isnan(networks.head_bias).sum() == 256


# Where there is no such accelerator and the system's encoding is not the one of the folder's name.
ELSEWHERE = """
import os, pathlib, sys, warnings
import subspace_adv, jax
from jax._src import xla_bridge
from subspace_adv import cli
folder = os.listdir(".")[0]
dataset = subspace_adv.open_results(folder)
print(int((dataset["status"] != 0).sum()), *jax.config.jax_platforms.split(","), len(xla_bridge._backends))
cli.status(pathlib.Path(folder))
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    networks = subspace_adv.load_networks(folder, seed=3)
print(*(one.message for one in told))
sys.stdout.buffer.write(networks.weight.tobytes())
"""


@pytest.mark.slow
def test_reading_needs_no_accelerator_and_no_encoding(tiny, tmp_path):
    (tmp_path / "résultats").symlink_to(tiny)
    without = {"JAX_PLATFORMS": "cuda", "CUDA_VISIBLE_DEVICES": ""}
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE],
        cwd=tmp_path,
        env=environment() | without | ascii_only,
        capture_output=True,
        check=False,
        timeout=300,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    lines = done.stdout.split(b"\n", 7)
    assert lines[:2] == [b"48 cuda 0", b"tiny: 48 of 48 networks done"]
    assert lines[6].startswith(b"JAX finds no device for JAX_PLATFORMS=cuda: ")
    assert lines[6].endswith(b"; networks are rebuilt on the CPU")
    assert lines[7] == load_networks(tiny, seed=3).weight.tobytes()


def test_values_beyond_float32_are_read_in_silence(tmp_path):
    planned = plan(read(TINY, "width=3", "init_scale=3e38", "learning_rate=3e38", "weight_decay=1"), "xla")
    made = Store.create(tmp_path, describe(planned))
    for chunk in planned.chunks:
        n = len(chunk.cells)
        arrays = {"status": np.full(n, 2, np.int8), "steps": np.full(n, 3, np.int32)}
        for name, variable in variables(("off",), ("l2",)).items():
            shape = (n, variable.values(7)) if variable.dimensions else (n,)
            arrays[name] = np.full(shape, 3e38, np.float32)
        made.commit(chunk.number, arrays)
    made.close()
    dataset = open_results(tmp_path)  # any warning is an error here
    assert np.isposinf(dataset["predicted_gradient_norm_off"]).all()


def test_results_can_be_written_as_netcdf(tiny, tmp_path):
    dataset = open_results(tiny)
    dataset.to_netcdf(tmp_path / "tiny.nc", engine="scipy")
    with xr.open_dataset(tmp_path / "tiny.nc", engine="scipy") as again:
        assert np.array_equal(again["output"], dataset["output"])
        assert again["status"].attrs["flag_meanings"] == dataset["status"].attrs["flag_meanings"]


def test_places_that_hold_no_results(tmp_path):
    with pytest.raises(UserError, match="not a results folder"):
        open_results(tmp_path)
    with pytest.raises(UserError, match="not a results folder"):
        load_networks(tmp_path / "nowhere")
