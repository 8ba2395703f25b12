"""Networks measured on the way to their stop: as if they had been stopped there, and trained on as if they had not."""

import functools
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import xarray as xr
from shell import TINY, content, files, read, write
from test_batching import Cell, sweep

from subspace_adv import UserError, engine, load_networks, open_results, planning, run
from subspace_adv.checks import check
from subspace_adv.cli import main
from subspace_adv.engine.pauses import Pauses
from subspace_adv.measures import distance_name
from subspace_adv.models import fused
from subspace_adv.optimizers import Hyper
from subspace_adv.planning import Group, plan
from subspace_adv.snapshots import Snapshots, final, measured_along
from subspace_adv.sweep import Sweep
from subspace_adv.training import CONVERGED, DIVERGED, PENDING, SETTLING_STEPS, STEP_LIMIT, Trainer

LANES = 5  # few, so that they are refilled on the way
LOOKS = 90  # steps between two looks at the lanes
AT_STEPS = (0, 1, 7, 100, 255, SETTLING_STEPS, 257, 400)
AT_MARGINS = (-0.3, -0.05, 0.0, 0.0001, 0.3)
LAST = 400

OWN_POINTS = {"kind": "subspace", "ambient_dim": 3, "subspace_dim": 2, "samples": 4}
OWN_SEEDS = {"seed": (0, 1, 2), "data_seed": (5, 6, 12)}  # of which none has one label alone
SMALL = {"width": 3, "stop_margin": 0.3, "loss": "logistic"}
CASES: dict[str, tuple[Trainer, dict, dict]] = {
    "fused": ("fused", {}, {"seed": (0, 1, 2), "weight_decay": (0.0, 0.02), "learning_rate": (0.1, 1e6, 1.0)}),
    "fused, momentum, own points": (
        "fused",
        OWN_POINTS | {"optimizer": "momentum", "learning_rate": 0.03},
        OWN_SEEDS,
    ),
    "xla": ("xla", {}, {"seed": (0, 1, 2), "weight_decay": (0.0, 0.02), "learning_rate": (0.1, 1e6, 1.0)}),
    "xla, adam": ("xla", {"optimizer": "adam"}, {"seed": tuple(range(8)), "learning_rate": (0.02, 0.1)}),
    "xla, minibatches, own points": (
        "xla",
        OWN_POINTS | {"optimizer": "sgd", "batch_size": 3, "learning_rate": 0.01},
        OWN_SEEDS,
    ),
    "two hidden layers": (
        "xla",
        {"depth": 2, "init": "torch", "width": 4, "optimizer": "momentum"},
        {"seed": (0, 1, 2, 3), "learning_rate": (0.02, 1e6)},
    ),
    "a convolution": (
        "xla",
        {"architecture": "cnn", "kind": "patches", "patches": 2, "patch_size": 3, "samples": 4, "data_seed": 1},
        {"seed": tuple(range(7)), "learning_rate": (0.1,)},
    ),
}
QUICK = ("fused",)
AT_STOP = {"distance_universal_heldout", "distance_random_heldout"}  # recorded of networks at their stop alone
BRACKETS = [distance_name("off", "l2", side) for side in ("lower", "upper")]


class Ran(NamedTuple):
    """A grid run whole, and again with snapshots."""

    of: tuple[Trainer, dict, dict]
    plain: list[Cell]
    cells: list[Cell]
    told: tuple[int, int]  # networks and steps that progress was told of

    def stopped_at(self, step: int) -> list[Cell]:
        """The grid, stopped after so many steps at the latest."""
        trainer, settings, axes = self.of
        return run_cells(sweep(SMALL | settings | {"max_steps": step}, axes), trainer)[0]


def run_cells(whole: Sweep, trainer: Trainer) -> tuple[list[Cell], tuple[int, int]]:
    """What every cell yields, and what progress was told."""
    told: list[tuple[int, int]] = []
    cells: list[Cell] = [{} for _ in range(whole.cells)]
    todo = plan(whole, trainer)
    [group] = todo.groups
    done = list(engine.train(whole, group, todo.chunks, lambda *news: told.append(news)))
    for chunk, trained in done:
        arrays = engine.saved(chunk, trained) | engine.measure(whole, chunk, trained)
        for row, cell in enumerate(chunk.cells):
            cells[cell] = {name: values[row] for name, values in arrays.items()}
    return cells, tuple(np.sum(told, axis=0).tolist())


@pytest.fixture(scope="module", params=[pytest.param(c, marks=[pytest.mark.slow] * (c not in QUICK)) for c in CASES])
def ran(request) -> Ran:
    trainer, settings, axes = CASES[request.param]
    if trainer == "fused" and fused.unavailable():
        pytest.skip(str(fused.unavailable()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "_lanes", lambda *_: (LANES, LANES))
        patch.setattr(Group, "steps_per_call", LOOKS)
        whole = SMALL | settings | {"max_steps": LAST}
        during = {"at_steps": AT_STEPS, "at_margins": AT_MARGINS, "keep_networks": True}
        (plain, _), (cells, told) = (run_cells(sweep(whole | how, axes), trainer) for how in ({}, during))
        yield Ran((trainer, settings, axes), plain, cells, told)


def test_training_goes_on_as_if_nobody_had_looked(ran):
    """To the last bit, in all that is recorded and every parameter."""
    for cell, plain in zip(ran.cells, ran.plain, strict=True):
        for name, values in plain.items():
            np.testing.assert_array_equal(cell[name], values, err_msg=name, strict=True)
    assert ran.told == (len(ran.cells), sum(int(cell["steps"]) for cell in ran.cells))


@pytest.mark.parametrize("column", [0, 1, 2, 4, 5, 6, 7])
def test_a_snapshot_is_the_network_that_a_run_of_so_many_steps_yields(ran, column):
    """To the last bit; and there is none of a network that stopped before, or diverged there."""
    step, seen = AT_STEPS[column], 0
    for cell, own in zip(ran.cells, ran.stopped_at(step), strict=True):
        is_there = own["steps"] == step and own["status"] != DIVERGED
        assert cell["steps_during"][column] == (step if is_there else -1)
        for name in own.keys() - {"status", "steps", *BRACKETS, *AT_STOP}:
            expected = own[name] if is_there else np.full_like(own[name], np.nan)
            np.testing.assert_array_equal(cell[f"{name}_during"][column], expected, err_msg=name, strict=True)
        seen += is_there
    assert seen >= 1


def test_a_network_is_measured_once_its_margin_first_exceeds_a_level(ran):
    """So it was at that step, or at an earlier one that has no snapshot; not before any that has one."""
    met = 0
    for cell in ran.cells:
        steps = cell["steps_during"][len(AT_STEPS) :]
        margins = cell["margin_during"][len(AT_STEPS) :]
        for level, step, margin in zip(AT_MARGINS, steps, margins, strict=True):
            before = [i for i, at in enumerate(AT_STEPS) if 0 < at and 0 <= cell["steps_during"][i] < int(step) % 2**31]
            assert all(cell["margin_during"][i] <= level + 1e-6 for i in before)
            assert np.isnan(margin) if step < 0 else margin > level - 1e-6
            met += step > 0
        assert (np.diff(steps[steps >= 0]) >= 0).all()
        if cell["status"] == CONVERGED:  # the last level is that of the stop
            assert steps[-1] == cell["steps"] and margins[-1] == cell["margin"]
    assert met > 3


def hyper(lanes: int, **settings) -> Hyper:
    values = {"learning_rate": 0.1, "weight_decay": 0, "momentum": 0, "batch_size": 1, "stop_margin": 1, "max_steps": 9}
    whole = ("batch_size", "max_steps")
    return Hyper(
        **{
            name: np.full(lanes, value, np.int32 if name in whole else np.float32)
            for name, value in (values | settings).items()
        }
    )


def test_pauses_are_told_from_stops():
    """Levels one by one, also at one step; then that step; and what has diverged is at none."""
    pauses, settings, busy = Pauses(Snapshots((3, 9), (0.5, 1.0)), 4), hyper(4), np.arange(3)

    def reached(status: list[int], step: list[int]) -> tuple[list, list, list]:
        now = pauses.reached(np.array(status, np.int8), np.array(step), settings, busy)
        seen = sorted(zip(now.lanes.tolist(), now.snapshots.tolist(), strict=True))
        return np.flatnonzero(now.stopped).tolist(), np.flatnonzero(now.paused).tolist(), seen

    assert pauses.sooner(settings).max_steps.tolist() == 4 * [3]
    assert pauses.sooner(settings).stop_margin.tolist() == 4 * [0.5]
    # A level at the step of a snapshot; the step; a network that goes on; an idle lane.
    assert reached([CONVERGED, STEP_LIMIT, PENDING, STEP_LIMIT], [3, 3, 2, 3]) == ([], [0, 1], [(0, 2), (1, 0)])
    assert pauses.sooner(settings).max_steps.tolist() == [3, 9, 3, 3]
    assert pauses.sooner(settings).stop_margin.tolist() == [1, 0.5, 0.5, 0.5]
    # The last level is that of the stop, and is come to at a step of a snapshot.
    assert reached([CONVERGED, CONVERGED, DIVERGED, STEP_LIMIT], [3, 5, 3, 3]) == (
        [0, 2],
        [1],
        [(0, 0), (0, 3), (1, 2)],
    )
    pauses.begin(np.array([0]))
    # The limit of all steps is one of a snapshot.
    assert reached([PENDING, STEP_LIMIT, DIVERGED, STEP_LIMIT], [0, 9, 3, 3]) == ([1, 2], [], [(1, 1)])
    assert pauses.sooner(settings).stop_margin[:2].tolist() == [0.5, 1]
    pauses.pack(np.array([1, 0]))
    assert pauses.sooner(hyper(2)).stop_margin.tolist() == [1, 0.5]


# Results ---------------------------------------------------------------------------------------------------------

PLAIN = TINY.replace("max_steps", "stop_margin = -0.2\nmax_steps")
DURING = PLAIN.replace("[axes]", "at_steps = [0, 10, 30]\nat_margins = [-0.6, -0.3]\nkeep_networks = true\n[axes]")


@functools.cache
def folders(root: Path) -> tuple[Path, Path]:
    """Of a small sweep, and of the same with snapshots."""
    for name, text in (("plain", PLAIN), ("during", DURING)):
        run(read(text), root / name)
    return root / "plain", root / "during"


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> tuple[Path, Path]:
    return folders(tmp_path_factory.getbasetemp() / "snapshots")


def printed(capsys, *arguments: object) -> str:
    with pytest.raises(SystemExit) as ended:
        main(list(map(str, arguments)))
    assert not ended.value.code
    return capsys.readouterr().out


def test_the_stop_is_as_without_snapshots(results):
    """All of the Dataset but for what tells of snapshots, and all networks, to the last bit."""
    plain, during = map(open_results, results)
    found = final(during)
    assert set(found.variables) == set(plain.variables) and found.sizes == plain.sizes
    for name in plain.variables:
        np.testing.assert_array_equal(found[name].values, plain[name].values, err_msg=str(name), strict=True)
        assert found[name].attrs.keys() == plain[name].attrs.keys()
    assert final(plain) is plain
    told = {"at_steps": "0, 10, 30", "at_margins": "-0.6, -0.3", "brackets_during": 0, "keep_networks": 1}
    assert during.attrs.items() >= told.items() and not told.keys() & plain.attrs.keys()
    assert not any(leaf in (results[0] / "sweep.toml").read_text() for leaf in told)
    of_plain, of_during = content(results[0]), content(results[1])
    for name in of_plain.keys() - {str(name) for name in plain.variables}:
        assert of_during[name] == of_plain[name], name


def test_snapshots_are_along_a_dimension_that_ends_with_the_stop(results):
    dataset = open_results(results[1])
    assert dataset["step"].values.tolist() == [0, 10, 30, np.inf]
    assert dataset["margin_level"].values.tolist() == [-0.6, -0.3, np.inf]
    axes = ("width", "seed", "init_scale")
    assert dataset["output"].dims == (*axes, "step", "point")
    assert dataset["distance_random_heldout"].dims == (*axes, "heldout")
    assert dataset["loss"].dims == dataset["predicted_decay"].dims == (*axes, "step")
    assert dataset["steps"].dims == dataset["status"].dims == axes
    assert dataset["distance_off_l2_upper"].dims == (*axes, "point")
    assert dataset["steps_at_margin"].dims == (*axes, "margin_level")
    assert all(
        dataset[name].attrs["long_name"] for name in ("step", "margin_level", "steps_at_margin", "loss_at_margin")
    )
    steps = dataset["steps_at_margin"].transpose("margin_level", ...).values
    assert 0 < np.isnan(steps[:-1]).sum() < steps[:-1].size and np.array_equal(steps[-1], dataset["steps"].values)
    np.testing.assert_array_equal(np.isnan(steps), np.isnan(dataset["loss_at_margin"].transpose("margin_level", ...)))
    # A margin is exceeded later than a smaller one, and so it is where it was met.
    with np.errstate(invalid="ignore"):
        assert not (np.diff(steps[:-1], axis=0) < 0).any()
        assert not (dataset["margin_at_margin"] < dataset["margin_level"] - 1e-6).isel(margin_level=slice(-1)).any()
    before = dataset.isel(step=slice(-1))
    reached = (dataset["steps"] >= before["step"]).transpose(*before["loss"].dims)
    assert 0 < reached.sum() < reached.size
    np.testing.assert_array_equal(before["loss"].notnull(), reached)
    by_margin = measured_along(dataset, "margin_level")
    assert by_margin["steps"].dims == (*axes, "margin_level") and "step" not in by_margin.dims
    np.testing.assert_array_equal(by_margin["loss"], dataset["loss_at_margin"])
    assert measured_along(dataset, "step")["loss"].dims == (*axes, "step")


def test_what_is_predicted_of_a_snapshot_is_of_its_step_and_its_head(tmp_path):
    settings = {"weight_decay": 0.05, "learning_rate": 0.1, "max_steps": 30, "stop_margin": 9.0}
    axes, measured = {"seed": range(3)}, {"regions": ["off"], "at_steps": [0, 4, 30]}
    dataset = run(Sweep("a", network={"width": 3}, training=settings, measure=measured, axes=axes), tmp_path)
    found = dataset["predicted_decay"].values
    np.testing.assert_allclose(found, 3 * [[1, 0.995**4, 0.995**30, 0.995**30]], rtol=1e-6)
    ratio = dataset["predicted_gradient_norm_off"] / dataset["head_norm_active"] / dataset["predicted_decay"]
    assert np.nanmax(ratio) == pytest.approx(np.nanmin(ratio), rel=1e-5)
    assert dataset["steps"].dims == ("seed",) and "margin_level" not in dataset.dims


def test_margins_alone_tell_the_steps_along_them(tmp_path):
    measured = {"regions": ["off"], "at_margins": [-9.0, -0.3], "brackets_during": True}
    training = {"max_steps": 30, "learning_rate": 0.5}
    dataset = run(
        Sweep("a", network={"width": 3}, training=training, measure=measured, axes={"seed": range(40)}), tmp_path
    )
    assert dataset["steps"].dims == dataset["margin"].dims == ("seed", "margin_level") and "step" not in dataset.dims
    assert (dataset["steps"].isel(margin_level=0) == 1).all()  # it is asked for after a step
    assert dataset["distance_off_l2_upper"].dims == ("seed", "margin_level", "point")
    # Off a line distances are exact, and the universal direction is one of two.
    at_once = dataset["distance_off_l2_upper"] <= dataset["distance_universal"] * (1 + 1e-6)
    assert at_once.where(dataset["margin"].notnull(), True).all()
    assert 0 < dataset["margin"].isel(margin_level=1).notnull().sum() < 40
    assert final(dataset)["steps"].dims == ("seed",)


def test_networks_before_their_stop_are_loaded(results, tmp_path):
    dataset = open_results(results[1])
    networks = load_networks(results[1], step=10, width=5, init_scale=1.0)
    known = (dataset["steps"] >= 10).sel(width=5, init_scale=1.0).values
    assert np.array_equal(np.isfinite(networks.weight).all((1, 2)), known) and known.any()
    shorter = read(PLAIN, "max_steps=10")
    run(shorter, tmp_path)
    for found, expected in zip(networks, load_networks(tmp_path, width=5, init_scale=1.0), strict=True):
        np.testing.assert_array_equal(found[known], expected[known], strict=True)
    stopped, at_inf = load_networks(results[1]), load_networks(results[1], margin_level=np.inf)
    for one, other in zip(stopped, at_inf, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_points_that_fill_up_and_curved_data_have_snapshots_too(tmp_path):
    """With brackets, all that is recorded at a step is what a run of so many steps yields, to the last bit."""

    def found(max_steps: int, **during) -> xr.Dataset:
        whole = Sweep(
            "a",
            data={"kind": "subspace", "ambient_dim": 6, "distribution": "circles"},
            network={"width": 8},
            training={"max_steps": max_steps, "learning_rate": 0.1},
            measure={"regions": ["off", "tangent"]} | during,
            axes={"samples": [8, 9], "seed": range(4)},
        )
        return run(whole, tmp_path / f"{max_steps} {len(during)}")

    during = found(60, at_steps=[0, 20, 60], brackets_during=True)
    for own, there in ((found(60), final(during)), (found(20), during.isel(step=1))):
        for name in own.data_vars.keys() - {"status", "steps", *AT_STOP}:
            np.testing.assert_array_equal(there[name].values, own[name].values, err_msg=str(name), strict=True)


@pytest.mark.parametrize(
    ("which", "selection", "message"),
    [
        (1, {"step": 11}, "step = 11: not a value of this axis; the nearest is 10"),
        (1, {"step": 10, "margin_level": -0.3}, "step and margin_level: select networks by one of the two"),
        (0, {"step": 10}, "step = 10: networks were not measured so; that takes measure.at_steps"),
        (0, {"margin_level": 0.1}, "margin_level = 0.1: networks were not measured so; that takes measure.at_margins"),
    ],
)
def test_networks_that_are_not_there_are_told(results, which, selection, message):
    with pytest.raises(UserError, match=message):
        load_networks(results[which], **selection)


def test_networks_that_were_not_kept_are_told(tmp_path):
    run(read(DURING, "keep_networks=false", "seed=0", "width=3", "init_scale=1"), tmp_path)
    with pytest.raises(UserError, match=r"step = 10: no networks were saved .* takes measure.keep_networks = true"):
        load_networks(tmp_path, step=10)


def test_the_law_is_tested_at_every_snapshot(results, capsys):
    found = check(open_results(results[1]))
    assert [(one.dimension, one.at) for one in found.snapshots] == [
        ("step", 0), ("step", 10), ("step", 30), ("margin_level", -0.6), ("margin_level", -0.3)
    ]  # fmt: skip
    assert all(one.at_points and one.at_points.sample <= 12 and one.whitened for one in found.snapshots)
    # At step 0 all networks are there, and none of the plain ones is without its law.
    assert found.snapshots[0].whitened[0].sample == 12
    assert check(open_results(results[0]))._replace(snapshots=found.snapshots) == found
    told = printed(capsys, "check", results[1])
    assert told.count("networks before their stop") == 2 and " -0.3 " in told


def test_trajectories_are_drawn_and_nothing_else_changes(results, capsys):
    for folder in results:
        printed(capsys, "plot", folder)
    plain, during = ({path.name: path.read_bytes() for path in (r / "figures").iterdir()} for r in results)
    names = {f"{name}.{kind}" for name in ("trajectories", "trajectories_at_margin") for kind in ("png", "svg")}
    assert during.keys() - plain.keys() == names
    assert all(during[name] == plain[name] for name in plain)
    tables = [printed(capsys, "table", folder) for folder in results]
    assert tables[0] == tables[1]


# Plans -----------------------------------------------------------------------------------------------------------


def test_a_chunk_holds_no_more_networks_for_all_its_snapshots():
    many = {"seed": range(10**5)}
    for steps in ([1], list(range(20)), list(range(5000))):
        sweep = Sweep("a", training={"max_steps": 5000}, measure={"at_steps": steps}, axes=many)
        [group] = plan(sweep).groups
        assert 1 <= group.chunk_cells and (group.chunk_cells - 1) * (1 + len(steps)) < planning._MAX_CHUNK_NETWORKS
    plain = plan(Sweep("a", axes=many)).groups[0]
    assert plain.chunk_cells * 2 > planning._MAX_CHUNK_NETWORKS


def test_a_plan_counts_what_snapshots_take(tmp_path):
    plain, during, kept = (
        plan(read(PLAIN if name == "plain" else DURING, *(["keep_networks=false"] if name == "during" else [])))
        for name in ("plain", "during", "kept")
    )
    assert [todo.programs - plain.programs for todo in (during, kept)] == 2 * [len(plain.groups)]
    assert plain.bytes < during.bytes < kept.bytes
    run(kept.sweep, tmp_path)
    from subspace_adv.store import Store

    store = Store.open(tmp_path)
    assert kept.bytes == sum(values.nbytes for entry in store.entries for values in store.load(entry.number).values())
    for part in ("compiling", "measuring"):
        assert getattr(during.seconds(2), part) > getattr(plain.seconds(2), part)


# Sweep files -----------------------------------------------------------------------------------------------------


def test_steps_may_be_spaced_on_a_logarithmic_scale():
    spaced = read(TINY, "at_steps={log=[1,30],n=8}", "max_steps=30").measure.at_steps
    assert spaced == (1, 2, 3, 4, 7, 11, 18, 30)
    assert read(TINY, "at_steps={log = [1, 8], n = 20}").measure.at_steps == tuple(range(1, 9))
    assert read(TINY, "at_steps=0,10").measure.at_steps == (0, 10)
    assert read(TINY, "at_margins=0,0.1").measure.at_margins == (0.0, 0.1)
    again = read(read(DURING).to_toml())
    assert again == read(DURING) and "at_steps = [\n    0,\n    10,\n    30,\n]" in read(DURING).to_toml()


BAD = {
    "at_steps=0,31": "at_steps = [0, 31]: 31 is over max_steps = 30, where training ends; at most 30 is possible",
    "at_steps=10,5": "measure.at_steps = [10, 5]: must ascend; 5 comes after 10",
    "at_steps=5,5": "measure.at_steps = [5, 5]: 5 is listed twice",
    "at_steps=-1,5": "measure.at_steps = [-1, 5]: must be greater than or equal to 0",
    "at_steps=1.5": "measure.at_steps = [1.5]: must be a whole number",
    "at_steps={log=[0,10],n=3}": "0 has no place on a logarithmic scale; both ends must be over 0",
    "at_steps={lin=[1.5,10],n=3}": "both ends must be whole numbers",
    "at_steps={lin=[1,10]}": "must be a list, ",
    "at_steps={log=[true,10],n=3}": "True is no end; both must be finite numbers",
    "at_steps={log=[1,10],n=1000000000000}": "n is 1000000000000; must be a whole number from 2 to 10,000",
    "at_margins=0.1,0.4": "measure.at_margins = [0.1, 0.4]: 0.4 is over stop_margin = 0.3, where training ends",
    "at_margins=0.1,0": "measure.at_margins = [0.1, 0]: must ascend; 0.0 comes after 0.1",
    "at_margins=-inf,0": "measure.at_margins = [-inf, 0]: must be a finite number",
    "at_margins=0.1,0.100000001": "0.1 and 0.100000001 are one number in float32, in which networks train",
    "keep_networks=true": "measure.keep_networks = True: changes nothing; it is read with at_steps or at_margins",
    "brackets_during=false": "measure.brackets_during = False: changes nothing; it is read with at_steps or at_margins",
    "keep_networks=true,false": "axes.keep_networks: cannot be an axis; keep_networks is one for all networks",
    "keep_networks=yes": "measure.keep_networks = 'yes': must be",
}


@pytest.mark.parametrize("override", BAD)
def test_what_is_wrong_with_snapshots_is_told_in_a_line(override, tmp_path, capsys):
    write(tmp_path, TINY)
    before = files(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["run", str(tmp_path / "sweep.toml"), override, "--out", str(tmp_path / "out")])
    told = capsys.readouterr().err
    assert ended.value.code == 2 and told.count("\n") == 1 and files(tmp_path) == before
    assert BAD[override] in told


def test_an_empty_list_is_none(tmp_path):
    with pytest.raises(UserError, match=r"at_steps = \[\]: must list at least one value; leave it out for none"):
        Sweep("a", measure={"at_steps": []})


def test_snapshots_are_no_axes():
    with pytest.raises(UserError, match=r"axes.at_steps: cannot be an axis; at_steps is a list already"):
        Sweep("a", axes={"at_steps": [1, 2]})
