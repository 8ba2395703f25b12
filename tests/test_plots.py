"""Figures: the geometry they show is right, and they draw whatever axes a sweep has."""

import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.contour import ContourSet
from matplotlib.figure import Figure
from matplotlib.lines import AxLine
from matplotlib.patches import PathPatch
from matplotlib.text import Text
from shell import in_its_stead

from subspace_adv import plots
from subspace_adv.errors import UserError
from subspace_adv.models import MODELS, TWO_LAYER
from subspace_adv.network import Network
from subspace_adv.plots.chessboard import flip_heights
from subspace_adv.plots.panels import panels, trained_networks
from subspace_adv.plots.robustness import fooling_rates, robust_accuracies
from subspace_adv.plots.tightness import tightnesses
from subspace_adv.runner import run
from subspace_adv.snapshots import MARGIN_LEVEL
from subspace_adv.sweep import Sweep
from subspace_adv.tables import median_interval
from subspace_adv.training import CONVERGED, DIVERGED, PENDING, STEP_LIMIT

WIDTH = 8
REMEDIES = {"init_scale": (1.0, 0.5), "weight_decay": (0.0, 0.001, 0.003)}
SEEDS = {"seed": (0, 1, 2, 3, 4)}


def synthetic(axes: dict[str, tuple], d: int = 2, **attrs: Any) -> tuple[xr.Dataset, Callable[..., Network]]:
    """A Dataset as a results folder gives it, of random numbers, and a loader of random networks."""
    rng = np.random.default_rng(0)
    dims, shape = tuple(axes), tuple(len(values) for values in axes.values())
    units = {"distance_off_l2_upper": "input length", "gradient_norm_off": "output per input length"}
    units |= dict.fromkeys(("distance_universal", "distance_random"), "input length")
    heldout = {f"distance_{name}_heldout": rng.uniform(1, 2, (*shape, 16)) for name in ("universal", "random")}
    dataset = xr.Dataset(
        {name: ((*dims, "point"), rng.uniform(1, 2, (*shape, 3)), {"units": unit}) for name, unit in units.items()}
        | {name: ((*dims, "heldout"), values) for name, values in heldout.items()}
        | {"status": (dims, np.full(shape, CONVERGED, np.int8)), "margin": (dims, np.ones(shape))},
        coords={
            **{axis: list(values) for axis, values in axes.items()},
            "label": ("point", np.array([1, -1, 1], np.int8)),
            "input": (("point", "feature"), rng.uniform(-1, 1, (3, d))),
        },
        attrs={"name": "synthetic", "architecture": "mlp", "depth": 1, "parametrization": "standard", **attrs},
    )
    inner = ((WIDTH, d), (WIDTH,), (WIDTH,), ())
    networks = [rng.standard_normal((*shape, *size)).astype(np.float32) for size in inner]

    def load(**coordinates: Any) -> Network:
        places = []
        for axis, values in axes.items():
            wanted = coordinates.get(axis, values)
            many = isinstance(wanted, (list, tuple))
            places.append([values.index(v) for v in wanted] if many else values.index(wanted))
        lists = np.ix_(*[np.atleast_1d(place) for place in places])
        kept = tuple(len(place) for place in places if isinstance(place, list))
        return Network(*(a[lists].reshape((*kept, *size)) for a, size in zip(networks, inner, strict=True)))

    return dataset, load


def output(network: Network, points: np.ndarray) -> np.ndarray:
    weight, bias, head, head_bias = (np.asarray(array, np.float64) for array in network)
    return np.maximum(points @ weight.T + bias, 0) @ head + head_bias


def titles(figure: Figure) -> list[str]:
    return [ax.get_title() for ax in figure.axes if ax.get_title()]


def drawn_pieces(ax: Axes, linewidth: float) -> np.ndarray:
    """Ends of all straight pieces that are drawn as wide, (k, 2)."""
    return np.concatenate([np.asarray(p.get_path().vertices) for p in ax.patches if p.get_linewidth() == linewidth])


def test_flip_heights_are_the_nearest_zeros_of_a_dense_scan() -> None:
    rng = np.random.default_rng(1)
    plane, reach = 0.5, 1.5
    found_somewhere = missed_somewhere = False
    for _ in range(20):
        network = Network(*(rng.standard_normal(size) for size in ((WIDTH, 3), (WIDTH,), (WIDTH,), ())))
        network.weight[0], network.bias[0], network.head[0] = 0, 0, 0  # padding
        network.weight[1, 2] = 0  # a neuron that does not see z
        network.weight[2, 2] = 1e-4  # one whose kink is far away
        x, y = rng.uniform(-1, 1, (2, 3, 4))
        heights = flip_heights(network, x, y, plane=plane, reach=reach, model=TWO_LAYER)
        t = np.linspace(-reach, reach, 6001)
        scan = output(network, np.stack(np.broadcast_arrays(x[..., None], y[..., None], plane + t), axis=-1))
        changes = np.diff(scan > 0, axis=-1)
        step = t[1] - t[0]
        nearest = np.where(changes, np.abs((t[:-1] + t[1:]) / 2), np.inf).min(axis=-1)
        assert heights.shape == x.shape
        # The scan may overlook two zeros within a step, so a nearer one is right if the output vanishes there.
        finite = np.isfinite(heights)
        assert (np.abs(heights) <= nearest + step).all()
        zeros = np.stack([x, y, plane + np.where(finite, heights, 0)], axis=-1)
        np.testing.assert_allclose(output(network, zeros)[finite], 0, atol=1e-8)
        found_somewhere, missed_somewhere = found_somewhere or finite.any(), missed_somewhere or not finite.all()
    assert found_somewhere and missed_somewhere


def test_flip_height_takes_the_nearer_of_two_sheets_with_its_sign() -> None:
    # N = 1 − 5·relu(z − ½) − 10·relu(½ − z) vanishes 0.2 above and 0.1 below the plane z = ½.
    network = Network(*map(np.array, ([[0, 0, 1], [0, 0, -1]], [-0.5, 0.5], [-5, -10], 1.0)))
    heights = flip_heights(network, np.zeros(2), np.ones(2), plane=0.5, reach=1.0, model=TWO_LAYER)
    np.testing.assert_allclose(heights, -0.1, rtol=1e-9)
    assert np.isinf(flip_heights(network, np.zeros(1), np.ones(1), plane=0.5, reach=0.05, model=TWO_LAYER)).all()


def test_panels_are_the_remedies_alone_and_together_if_trained() -> None:
    dataset, _ = synthetic({"width": (8, 16)} | SEEDS | REMEDIES)
    found = panels(dataset)
    assert [panel.name for panel in found] == ["standard", "smaller initialization", "L2 regularization", "both"]
    assert found[0].arm == {"width": 8, "init_scale": 1.0, "weight_decay": 0.0}
    assert found[3].arm == {"width": 8, "init_scale": 0.5, "weight_decay": 0.003}
    dataset["status"].loc[{"init_scale": 0.5}] = PENDING
    assert [panel.name for panel in panels(dataset)] == ["standard", "L2 regularization"]


def test_boundaries_show_the_zeros_of_the_first_network_in_a_panel_for_each_arm() -> None:
    dataset, load = synthetic(SEEDS | REMEDIES, kind="line")

    def vertical(**coordinates: Any) -> Network:
        loaded = load(**coordinates)
        sign = np.where(np.arange(WIDTH) < WIDTH / 2, 1, -1).astype(np.float32)
        loaded.weight[0] = np.stack([sign, 0 * sign], axis=1)  # N = Σ sign·relu(sign·x₁) ∝ x₁
        loaded.bias[0], loaded.head[0], loaded.head_bias[0] = 0, sign, 0
        return loaded

    figure = plots.boundaries(dataset, vertical)
    assert len(titles(figure)) == 4
    assert all("5 of 5 networks fit" in title for title in titles(figure))
    ax = figure.axes[0]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("$x_1$", "$x_2$")
    vertices = drawn_pieces(ax, 1.8)
    np.testing.assert_allclose(vertices[:, 0], 0, atol=1e-6)
    np.testing.assert_allclose([vertices[:, 1].min(), vertices[:, 1].max()], [-1.5, 1.5])
    assert sum(isinstance(patch, PathPatch) for patch in ax.patches) == 5  # those of the others too
    (diagonal,) = [line for line in ax.lines if line.get_label() == "the data's line"]
    assert isinstance(diagonal, AxLine) and diagonal.get_slope() == 1 and diagonal.get_xy1() == (0, 0)


@pytest.mark.parametrize(
    ("kind", "d", "draw", "linewidth"), [("line", 2, plots.boundaries, 1.8), ("chessboard", 3, plots.surfaces, 1.1)]
)
def test_a_model_without_an_exact_boundary_has_contours_near_it(
    kind: str, d: int, draw: Callable, linewidth: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, load = synthetic(SEEDS, d=d, kind=kind)

    def flat(figure: Any) -> Axes:
        return next(ax for ax in figure.axes if ax.name != "3d")

    exact = flat(draw(dataset, load))
    monkeypatch.setitem(MODELS._rows, "mlp", in_its_stead(boundary=None))
    ax = flat(draw(dataset, load))
    for drawn in (exact, ax):
        assert len([c for c in drawn.collections if isinstance(c, ContourSet)]) == 1  # the shares, or the distances
    pieces, near = (drawn_pieces(drawn, linewidth).reshape(-1, 2, 2) for drawn in (exact, ax))
    assert len(near) > 10

    def distances(points: np.ndarray, pieces: np.ndarray) -> np.ndarray:
        along = pieces[:, 1] - pieces[:, 0]
        share = np.sum((points[:, None] - pieces[:, 0]) * along, axis=2) / np.sum(along**2, axis=1)
        feet = pieces[:, 0] + np.clip(share, 0, 1)[..., None] * along
        return np.linalg.norm(feet - points[:, None], axis=2).min(axis=1)

    assert distances(near.reshape(-1, 2), pieces).max() < 0.03  # the grid's step
    assert distances(pieces.mean(axis=1), near).max() < 0.05


def test_networks_with_any_number_that_is_none_are_not_drawn() -> None:
    dataset, load = synthetic(SEEDS, kind="line")
    whole = load()
    whole.weight[1, 0, 0], whole.weight[3] = np.nan, np.inf
    found = trained_networks(dataset, lambda **_: whole, {}, 10)
    np.testing.assert_array_equal([network.head_bias for network in found], whole.head_bias[[0, 2, 4]])


def test_the_background_of_boundaries_is_the_share_of_networks_that_predict_plus_one() -> None:
    """Of five networks three predict it everywhere, one nowhere, and one on the right."""
    dataset, load = synthetic(SEEDS, kind="line")

    def five(**coordinates: Any) -> Network:
        loaded = load(**coordinates)
        loaded.weight[:], loaded.bias[:], loaded.head[:] = 0, 0, 0
        loaded.weight[0, 0], loaded.head[0, 0] = [1, 0], 1
        loaded.head_bias[:] = [-0.01, 1, 1, 1, -1]
        return loaded

    [background] = [c for c in plots.boundaries(dataset, five).axes[0].collections if getattr(c, "filled", False)]
    assert isinstance(background, ContourSet)
    assert (background.zmin, background.zmax) == (60, 80)


def test_surfaces_have_two_rows_and_finite_sheets_within_sight() -> None:
    dataset, load = synthetic(SEEDS | REMEDIES, d=3, kind="chessboard")

    def slanted(**coordinates: Any) -> Network:
        loaded = load(**coordinates)
        loaded.weight[0], loaded.bias[0] = 0, 0
        loaded.weight[0, 0], loaded.weight[0, 1] = [2, 0, 1], [-2, 0, -1]
        loaded.head[0] = [1, -1, *[0] * (WIDTH - 2)]
        loaded.head_bias[0] = -1.5  # N = 2x + z − 1.5: the sheet z = 1.5 − 2x
        return loaded

    figure = plots.surfaces(dataset, slanted)
    solid = [ax for ax in figure.axes if ax.name == "3d"]
    flat = [ax for ax in figure.axes if ax.get_xlabel() == "$x_1$" and ax.name != "3d"]
    assert len(solid) == len(flat) == len(titles(figure)) == 4
    for ax in solid:
        x, _, z = ax.collections[0]._faces.T
        np.testing.assert_allclose(z, 1.5 - 2 * x, atol=1e-6)
        assert z.min() == -0.5 and z.max() == 1.5
        lines = np.concatenate(ax.collections[-1]._segments3d)
        np.testing.assert_allclose(sorted(lines.tolist()), [[0.5, 0, 0.5], [0.5, 1, 0.5]], atol=1e-9)  # 1.5 − 2x = ½
        outline = {tuple(corner) for corner in np.transpose(ax.lines[0].get_data_3d())}
        assert outline == {(x, y, 0.5) for x in (0, 1) for y in (0, 1)}
    for ax in flat:
        np.testing.assert_allclose(sorted(drawn_pieces(ax, 1.1).tolist()), [[0.5, 0], [0.5, 1]], atol=1e-9)


@pytest.mark.parametrize(("kind", "d", "draw"), [("chessboard", 3, plots.surfaces), ("line", 2, plots.boundaries)])
def test_networks_that_predict_one_label_everywhere_have_no_boundary(kind: str, d: int, draw: Callable) -> None:
    dataset, load = synthetic(SEEDS | REMEDIES, d=d, kind=kind)

    def constant(**coordinates: Any) -> Network:
        loaded = load(**coordinates)
        loaded.head[:], loaded.head_bias[:] = 0, 1
        return loaded

    figure = draw(dataset, constant)
    flat = [ax for ax in figure.axes if ax.get_xlabel() == "$x_1$" and ax.name != "3d"]
    assert len(flat) == 4
    for ax in flat:
        assert not [patch for patch in ax.patches if patch.get_linewidth() == 1.1 and len(patch.get_path().vertices)]


def test_remedies_draw_medians_with_intervals_and_gaps() -> None:
    dataset, _ = synthetic(SEEDS | REMEDIES)
    distance = dataset["distance_off_l2_upper"]
    distance.loc[{"init_scale": 0.5, "weight_decay": 0.001}] = np.inf
    distance.loc[{"init_scale": 1.0, "seed": 2}] = np.nan
    dataset["status"].loc[{"init_scale": 1.0, "seed": 2}] = DIVERGED
    figure = plots.remedies(dataset)
    by_scale, by_decay = figure.axes[:2]
    assert [ax.get_xlabel() for ax in figure.axes[2:]] == ["initialization scale", "weight decay λ"]
    assert "input length" in by_scale.get_ylabel() and "output per input length" in figure.axes[2].get_ylabel()
    assert [text.get_text() for text in figure.axes[3].get_legend().get_texts()] == ["1", "0.5"]
    assert len(by_scale.containers) == 3 and len(by_decay.containers) == 2
    medians = distance.median("point").median("seed")  # skips NaN
    for container, scale in zip(by_decay.containers, REMEDIES["init_scale"], strict=True):
        line, caps, bars = container.lines
        expected = medians.sel(init_scale=scale).values
        np.testing.assert_allclose(line.get_ydata(), np.where(np.isinf(expected), np.nan, expected))
        assert np.isnan(line.get_ydata()).sum() == (scale == 0.5)
        assert caps
        networks = distance.median("point").sel(init_scale=scale).transpose("weight_decay", "seed").values
        ends = [segment[:, 1] for segment in bars[0].get_segments() if len(segment)]
        np.testing.assert_allclose(ends, [median_interval(arm)[1:] for arm in networks if np.isfinite(arm).any()])
    for container, decay in zip(by_scale.containers, REMEDIES["weight_decay"], strict=True):
        expected = medians.sel(weight_decay=decay, init_scale=[0.5, 1.0]).values  # in the order of x
        np.testing.assert_array_equal(container.lines[0].get_xdata(), [0.5, 1.0])
        np.testing.assert_allclose(container.lines[0].get_ydata(), np.where(np.isinf(expected), np.nan, expected))


def test_what_is_infinite_is_said_to_be_and_an_empty_panel_has_no_axis() -> None:
    """Only where it is so, and panels with a line keep their axis."""
    dataset, _ = synthetic(SEEDS | REMEDIES)
    distance = dataset["distance_off_l2_upper"]

    def drawn() -> tuple[bool, list[list[str]], bool]:
        figure = plots.remedies(dataset)
        note = "; infinite distances are not drawn\n" in figure.get_suptitle()
        upper, lower = figure.axes[0], figure.axes[2]
        assert len(lower.get_yticks()) > 1
        return note, [[text.get_text() for text in ax.texts] for ax in figure.axes], len(upper.get_yticks()) > 1

    assert drawn() == (False, [[], [], [], []], True)
    distance.loc[{"init_scale": 0.5, "seed": [3, 4]}] = np.inf  # the end of an interval alone
    assert drawn() == (True, [[], [], [], []], True)
    distance[:] = np.inf
    assert drawn() == (True, [["infinite everywhere"], ["infinite everywhere"], [], []], False)
    distance[:] = np.nan  # which is not infinite
    assert drawn() == (False, [[], [], [], []], False)


def test_trajectories_say_what_is_infinite_and_what_is_no_law() -> None:
    units = {"steps": "1", "distance_universal": "input length", "predicted_distance_universal": "input length"}
    dims, shape, rng = ("seed", MARGIN_LEVEL), (5, 4), np.random.default_rng(0)  # the last level is the stop
    dataset = xr.Dataset(
        {name: (dims, rng.uniform(1, 2, shape), {"units": unit}) for name, unit in units.items()}
        | {"status": ("seed", np.full(5, CONVERGED, np.int8))},
        coords={"seed": range(5), MARGIN_LEVEL: [0.1, 0.2, 0.3, np.inf]},
        attrs={"name": "synthetic"},
    )
    figure = plots.trajectories(dataset, MARGIN_LEVEL)
    labels = [ax.get_ylabel() for ax in figure.axes]
    assert labels == ["gradient steps\ntill then", "universal distance\nto a flip\n(input length)"]
    note = figure.get_suptitle().replace("\n", " ")
    assert "the predicted universal distance is an estimate for large codimensions" in note
    assert "infinite" not in note
    dataset["distance_universal"][2:, 1] = np.inf
    broken = plots.trajectories(dataset, MARGIN_LEVEL)
    assert "infinite distances are not drawn" in broken.get_suptitle().replace("\n", " ")
    assert not broken.axes[1].texts
    del dataset["predicted_distance_universal"]
    dataset["distance_universal"][:] = np.inf
    empty = plots.trajectories(dataset, MARGIN_LEVEL)
    assert "predicted" not in empty.get_suptitle()
    assert [text.get_text() for text in empty.axes[1].texts] == ["infinite everywhere"]
    assert not empty.axes[1].get_yticks().size and empty.axes[0].get_yticks().size


def test_against_a_size_of_the_data_the_share_that_is_frozen_stands_below() -> None:
    dataset, _ = synthetic(SEEDS | {"frequencies": (1, 2, 4), "init_scale": (1.0, 0.5)}, ambient_dim=16)
    dataset = dataset.assign_coords(span_dim=("frequencies", [2, 4, 8]))
    figure = plots.size(dataset, "frequencies")
    *_, last = figure.axes
    assert len(figure.axes) == 3 and last.get_xlabel() == "frequencies K"
    for line in last.lines:
        np.testing.assert_allclose(line.get_ydata(), [14 / 16, 12 / 16, 8 / 16])
    assert [text.get_text().split("\n")[0] for text in last.get_legend().get_texts()] == [
        "standard",
        "smaller initialization",
    ]
    alike, _ = synthetic(SEEDS | {"samples": (4, 8)}, ambient_dim=16, span_dim=2)
    assert len(plots.size(alike, "samples").axes) == 2


def test_the_map_of_both_remedies_has_the_medians_in_ascending_order_and_hatches_what_does_not_converge() -> None:
    dataset, _ = synthetic(SEEDS | {"init_scale": (1.0, 0.5, 0.25), "weight_decay": (0.0, 0.003, 0.001)})
    distance = dataset["distance_off_l2_upper"]
    distance.loc[{"init_scale": 0.25, "weight_decay": 0.003}] = np.inf
    dataset["status"].loc[{"init_scale": 1.0, "weight_decay": 0.001}] = STEP_LIMIT
    figure = plots.phase(dataset)
    [mesh] = figure.axes[0].images
    medians = distance.median("point").median("seed").sel(init_scale=[0.25, 0.5, 1.0], weight_decay=[0, 0.001, 0.003])
    expected = medians.transpose("weight_decay", "init_scale").values
    assert np.isinf(expected).sum() == 1
    np.testing.assert_allclose(mesh.get_array().filled(np.nan), np.where(np.isinf(expected), np.nan, expected))
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == ["0.25", "0.5", "1"]
    assert [patch.get_xy() for patch in figure.axes[0].patches if patch.get_hatch()] == [(1.5, 0.5)]
    assert not plots.is_map(synthetic(SEEDS | REMEDIES)[0])


def test_a_sweep_without_seeds_has_no_intervals_and_names_what_it_holds_fixed() -> None:
    dataset, load = synthetic({"optimizer": ("gd", "adam"), "width": (4, 8, 16)}, kind="line")
    figure = plots.size(dataset, "width")
    assert [ax.get_xlabel() for ax in figure.axes] == ["", "width"]
    assert not figure.axes[0].containers[0].lines[2]
    assert "optimizer = gd" in figure.get_suptitle() and "width =" not in figure.get_suptitle()
    assert len(titles(plots.boundaries(dataset, load))) == 1


def test_sizes_of_networks_have_figures_of_their_own() -> None:
    """A line for each arm, or each parametrization; the remedies are drawn beside, at the first size."""
    dataset, _ = synthetic(SEEDS | {"depth": (1, 2, 5)} | REMEDIES, kind="line")
    ax = plots.size(dataset, "depth").axes[0]
    assert len(ax.containers) == 4
    np.testing.assert_array_equal(ax.containers[0].lines[0].get_xdata(), [1, 2, 5])
    assert plots.drawn_against(dataset) == ["init_scale", "weight_decay"]
    dataset, _ = synthetic(SEEDS | {"parametrization": ("ntk", "mean-field"), "width": (32, 2048)}, kind="line")
    figure = plots.size(dataset, "width")
    assert [container.get_label() for container in figure.axes[0].containers] == ["ntk", "mean-field"]
    assert [tick.get_text() for tick in figure.axes[1].get_xticklabels()] == ["32", "2048"]
    assert "parametrization =" not in figure.get_suptitle()
    assert plots.drawn_against(dataset) == []


def test_codimension_is_counted_from_the_subspace() -> None:
    dataset, _ = synthetic(SEEDS | {"ambient_dim": (5, 8, 20)} | REMEDIES, kind="subspace", subspace_dim=4)
    ax = plots.codimension(dataset).axes[0]
    assert len(ax.containers) == 4
    np.testing.assert_array_equal(ax.containers[0].lines[0].get_xdata(), [1, 4, 16])


@pytest.mark.parametrize("axes", [{"kind": ("subspace", "line")}, {"subspace_dim": (2, 1)}])
def test_codimension_is_counted_from_the_subspace_that_is_drawn(axes: dict) -> None:
    dataset, _ = synthetic(SEEDS | axes | {"ambient_dim": (5, 8)} | REMEDIES)
    dataset = dataset.assign_coords(subspace_dim=(next(iter(axes)), [2, 1]))
    ax = plots.codimension(dataset).axes[0]
    np.testing.assert_array_equal(ax.containers[0].lines[0].get_xdata(), [3, 6])


def test_robust_accuracy_has_a_panel_for_each_region_and_norm_and_a_band_for_each_arm() -> None:
    dataset, _ = synthetic(SEEDS | REMEDIES)
    for i, name in enumerate(("off_l2", "full_l2", "off_linf")):
        dataset[f"distance_{name}_upper"] = dataset["distance_off_l2_upper"] * (1 + i)
        dataset[f"distance_{name}_lower"] = dataset[f"distance_{name}_upper"] / 2
    figure = robust_accuracies(dataset)
    off, full, off_linf, empty = figure.axes
    assert [ax.get_title() for ax in (off, full, off_linf)] == ["off the subspace", "anywhere", "off the subspace"]
    assert not empty.axison and not empty.lines
    assert "$L_2$" in full.get_xlabel() and "infty" in off_linf.get_xlabel()
    assert off.get_ylabel() == off_linf.get_ylabel() == "robust accuracy (%)"
    upper = dataset["distance_full_l2_upper"].sel(init_scale=0.5, weight_decay=0.0).values
    certified, attacked = full.lines[2:4]
    sizes = attacked.get_xdata()
    assert sizes[0] == 0 and full.get_xlim() == (0, sizes[-1])
    assert 0.85 <= (dataset["distance_full_l2_upper"].values <= sizes[-1]).mean() < 1
    np.testing.assert_allclose(attacked.get_ydata(), [100 * (upper > size).mean() for size in sizes])
    np.testing.assert_allclose(certified.get_ydata(), [100 * (upper / 2 > size).mean() for size in sizes])
    [edge] = full.collections[1].get_paths()
    assert {*map(tuple, edge.vertices)} == {tuple(end) for line in (certified, attacked) for end in line.get_xydata()}
    assert len(full.collections) == 4
    (legend,) = figure.legends
    assert [text.get_text().split("\n")[0] for text in legend.get_texts()] == [p.name for p in panels(dataset)]


def test_fooling_rates_have_a_panel_for_each_arm_and_a_line_for_each_kind_of_point() -> None:
    dataset, _ = synthetic(SEEDS | REMEDIES)
    dataset["distance_random"][0] = 0  # misclassified by the first seed's networks
    dataset["distance_random_heldout"][1] = np.inf
    figure = fooling_rates(dataset)
    assert [title.split("\n")[0] for title in titles(figure)] == [panel.name for panel in panels(dataset)]
    assert all("input length" in ax.get_xlabel() and ax.get_xscale() == "log" for ax in figure.axes)
    names = ["distance_universal", "distance_universal_heldout", "distance_random", "distance_random_heldout"]
    for ax, panel in zip(figure.axes, panels(dataset), strict=True):
        for line, name in zip(ax.lines, names, strict=True):
            values = dataset[name].sel(panel.arm).values
            values = values[values > 0]
            np.testing.assert_allclose(line.get_ydata(), [100 * (values <= size).mean() for size in line.get_xdata()])
    assert figure.axes[0].lines[3].get_ydata().max() <= 80
    for shown, told in ((dataset, "means over points and 5 networks; shaded"), (dataset.isel(seed=[0]), "one network")):
        assert any(told in text.get_text() for text in fooling_rates(shown).findobj(Text))


def test_tightness_is_the_cumulative_share_of_points_by_how_far_the_ends_are_apart() -> None:
    dataset, _ = synthetic(SEEDS | REMEDIES)
    upper = dataset["distance_off_l2_upper"]
    rng = np.random.default_rng(2)
    ends = {"off_l2": 1 / (1 + 10 ** rng.uniform(-7, 1, upper.shape)), "full_l2": 1, "full_l1": 0.97}
    for where, ratio in ends.items():
        dataset[f"distance_{where}_upper"], dataset[f"distance_{where}_lower"] = upper.copy(), upper * ratio
    dataset["distance_full_l1_upper"][0] = np.inf  # by the first seed's networks no flip was found
    dataset["distance_full_l1_lower"][1] = np.inf  # by the second's there is none
    dataset["distance_full_l1_upper"][1] = np.inf
    figure = tightnesses(dataset)
    assert [ax.get_title() for ax in figure.axes] == ["$L_2$ norm", "$L_1$ norm"]
    assert "points of 30 networks, unflippable ones left out" in " ".join(figure.get_suptitle().split())
    drawn = {
        (ax.get_title(), line.get_label()): line.get_xydata()
        for ax in figure.axes
        for line in ax.lines
        if not str(line.get_label()).startswith("_")
    }
    assert len(drawn) == 3
    gaps, shares = drawn["$L_2$ norm", "off the subspace"].T
    apart = (dataset["distance_off_l2_upper"] / dataset["distance_off_l2_lower"]).values.ravel() - 1
    expected = [100 * sum(gap >= one for one in apart) / apart.size for gap in gaps]
    np.testing.assert_allclose(shares, expected, rtol=1e-9)
    assert gaps[0] == pytest.approx(1e-6) and 0 < shares[0] < 30 and shares[-1] == 100
    assert set(drawn["$L_2$ norm", "anywhere"][:, 1]) == {100}
    gaps, shares = drawn["$L_1$ norm", "anywhere"].T
    np.testing.assert_allclose(shares, np.where(gaps < 1 / 0.97 - 1, 0, 75))


def serve(monkeypatch: pytest.MonkeyPatch, dataset: xr.Dataset, load: Callable[..., Network]) -> None:
    """Have `plot` find these results in any folder."""
    monkeypatch.setattr(plots, "open_results", lambda folder: dataset)
    monkeypatch.setattr(plots, "load_networks", lambda folder, **coordinates: load(**coordinates))


@pytest.mark.parametrize(
    ("kind", "axes", "names"),
    [
        ("line", REMEDIES, ["boundaries", "remedies", "robust_accuracy", "fooling_rate"]),
        ("chessboard", {"init_scale": (1.0, 0.5)}, ["surfaces", "remedies", "robust_accuracy", "fooling_rate"]),
        ("subspace", {"ambient_dim": (5, 8)}, ["codimension", "robust_accuracy", "fooling_rate"]),
        ("subspace", {"subspace_dim": (5,)}, []),
    ],
)
def test_plot_draws_what_fits(
    kind: str, axes: dict, names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, load = synthetic(SEEDS | axes, d=3 if kind == "chessboard" else 2, kind=kind, subspace_dim=4)
    dataset["distance_off_l2_lower"] = dataset["distance_off_l2_upper"]
    if not names:  # nothing varies, no region was measured, and nothing flips off the subspace
        dataset = dataset.drop_vars("distance_off_l2_lower")
        dataset["distance_random_heldout"][:] = np.inf
    serve(monkeypatch, dataset, load)
    paths = plots.plot(tmp_path)
    assert [path.name for path in paths] == [f"{name}.{suffix}" for name in names for suffix in ("png", "svg")]
    assert all(path.stat().st_size < 300_000 for path in paths)
    dataset["status"][:] = DIVERGED
    assert plots.plot(tmp_path) == []
    dataset["status"][:] = PENDING
    with pytest.raises(UserError, match="no network is trained yet"):
        plots.plot(tmp_path)


def test_tightness_is_drawn_where_not_all_brackets_are_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "_encoded", lambda figure, suffix: b"")  # which takes the time
    dataset, load = synthetic(SEEDS | REMEDIES, kind="line")
    dataset["distance_off_l2_lower"] = dataset["distance_off_l2_upper"] * (1 - 1e-7)
    serve(monkeypatch, dataset, load)
    exact = plots.plot(tmp_path, formats=("png",))
    dataset["distance_off_l2_lower"][0, 0, 0, 0] /= 2
    not_all = plots.plot(tmp_path, formats=("png",))
    assert {path.stem for path in not_all} - {path.stem for path in exact} == {"tightness"}


def test_what_is_trained_so_far_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of a run that is under way."""
    monkeypatch.setattr(plots, "_encoded", lambda figure, suffix: figure.draw_without_rendering() or b"")
    dataset, load = synthetic(SEEDS | REMEDIES, kind="line")
    for name in [str(name) for name in dataset.data_vars if name != "status"]:
        dataset[name][1:3] = np.nan
    dataset["status"][1:3] = PENDING
    serve(monkeypatch, dataset, load)
    paths = plots.plot(tmp_path, formats=("png",))
    assert [path.stem for path in paths] == ["boundaries", "remedies", "fooling_rate"]


@pytest.mark.slow
def test_figures_are_the_same_to_the_byte_if_drawn_again_whatever_the_users_matplotlib(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, load = synthetic(SEEDS | {"width": (4, 8)}, kind="line")
    serve(monkeypatch, dataset, load)
    first = {path: path.read_bytes() for path in plots.plot(tmp_path)}
    assert len(first) == 6
    users = {"savefig.format": "pdf", "savefig.dpi": 30, "savefig.bbox": "tight", "savefig.transparent": True}
    users |= {"text.usetex": True, "font.size": 20, "lines.linewidth": 5, "figure.facecolor": "red"}
    users |= {"svg.fonttype": "none", "legend.frameon": True}
    with mpl.rc_context(users):
        assert {path: path.read_bytes() for path in plots.plot(tmp_path)} == first
        assert mpl.rcParams["savefig.format"] == "pdf"


def test_where_nothing_can_be_written_no_figure_is_left_or_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, load = synthetic(SEEDS | {"width": (4, 8)}, kind="line")
    serve(monkeypatch, dataset, load)
    (tmp_path / "figures").write_text("")
    with pytest.raises(UserError, match="figures: cannot be made: File exists"):
        plots.plot(tmp_path)
    (tmp_path / "figures").unlink()
    (tmp_path / "figures").mkdir()
    old = tmp_path / "figures" / "boundaries.png"
    old.write_bytes(b"old")
    _, most = limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for largest in (0, 5000):  # bytes, as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, most))
        try:
            with pytest.raises(UserError, match=r"boundaries.png: cannot be written: File too large"):
                plots.plot(tmp_path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert list((tmp_path / "figures").iterdir()) == [old]
        assert old.read_bytes() == b"old"


@pytest.mark.parametrize("value", [0.25, 3.3e38, np.inf])
def test_extremes_are_drawn_in_silence(value: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All distances alike, and a network that predicts one class everywhere in sight."""
    dataset, load = synthetic({"seed": (0,)} | {"init_scale": (1.0, 0.5)}, kind="line")
    for name in [str(name) for name in dataset.data_vars if "distance" in str(name)]:
        dataset[name] = xr.full_like(dataset[name], value, np.float32)
    dataset["distance_off_l2_lower"] = dataset["distance_off_l2_upper"]

    def one_class(**coordinates: Any) -> Network:
        networks = load(**coordinates)
        networks.head[:], networks.head_bias[:] = 0, 1
        networks.head[..., 0], networks.weight[:, 0], networks.bias[:, 0] = 1e30, 1e30, 1e30
        return networks

    serve(monkeypatch, dataset, one_class)
    assert len(plots.plot(tmp_path, formats=("svg",))) == 4 - (value == np.inf)


def test_a_boundary_out_of_sight_is_not_drawn() -> None:
    dataset, load = synthetic(SEEDS | REMEDIES, kind="line")

    def one_class(**coordinates: Any) -> Network:
        networks = load(**coordinates)
        networks.head[:], networks.head_bias[:] = 0, 1
        return networks

    ax = plots.boundaries(dataset, one_class).axes[0]
    assert len([c for c in ax.collections if isinstance(c, ContourSet)]) == 1  # the shares
    assert len(drawn_pieces(ax, 1.8)) == 0


@pytest.mark.slow
def test_a_results_folder_is_drawn_into_its_figures(tmp_path: Path) -> None:
    small = {"network": {"width": WIDTH}, "training": {"max_steps": 20}, "measure": {"regions": ("off",)}}
    run(Sweep("small", **small, axes={"seed": (0, 1), "init_scale": (1.0, 0.5)}), tmp_path)
    paths = plots.plot(tmp_path, formats=("png",))
    names = ["boundaries", "remedies", "robust_accuracy", "fooling_rate"]
    assert paths == [tmp_path / "figures" / f"{name}.png" for name in names]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
