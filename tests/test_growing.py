"""Grids that grow: what is held is kept, what is new is computed, and the whole is what a fresh run makes."""

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from shell import BASE, COMMAND, MANY, TINY, content, environment, read, write
from test_cli import assert_refused, command  # noqa: F401, a fixture

from subspace_adv import Sweep, UserError, open_results, plan, run, store
from subspace_adv.identity import differing, digest, own_settings
from subspace_adv.manifest import describe
from subspace_adv.runner import foresee
from subspace_adv.store import Store
from subspace_adv.training import PENDING

SMALL = "width=3"
PLACED = f"""
name = "placed"
[data]
kind = "subspace"
ambient_dim = 6
subspace_dim = 2
samples = 7
{BASE}
[axes]
seed = "0:6"
"""


def times(folder: Path) -> dict[str, int]:
    """When each chunk was committed, by its number."""
    return {path.name: path.stat().st_mtime_ns for path in (folder / "chunks").iterdir()}


def assert_same(found: Path, expected: Path) -> None:
    theirs, ours = content(expected), content(found)
    assert theirs.keys() == ours.keys()
    for name, values in theirs.items():
        assert ours[name] == values, name


def killed_at_the_sweep(path: Path, text: str, written: Callable[[Path, str], None] = store.write) -> None:
    """What a process writes that dies after the manifest, and before the sweep's file."""
    if path.name == "sweep.toml":
        raise KeyboardInterrupt
    written(path, text)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (["seed=3:6"], ["seed=0:12"]),
        (["seed=0:6"], ["seed=0:6", "init_scale=0.7,0.5,1.0"]),
        (["seed=0:6"], ["seed=0:12", "learning_rate=0.01,0.02", "init_scale=1.0,0.7,0.5"]),
        pytest.param(["seed=0:6"], ["seed=0:6", "optimizer=gd,momentum"], marks=pytest.mark.slow),
        pytest.param(["seed=0:6"], ["seed=0:6", "restarts=32,33"], marks=pytest.mark.slow),
        pytest.param(["seed=0:6"], ["seed=0:6", "width=3,5"], marks=pytest.mark.slow),
    ],
)
def test_a_grown_folder_is_what_a_fresh_run_makes(tmp_path, before, after):
    run(read(TINY, SMALL, *before), tmp_path / "out")
    held = times(tmp_path / "out")
    larger = read(TINY, *([] if "width=3,5" in after else [SMALL]), *after)
    run(larger, tmp_path / "out", grow=True)
    assert times(tmp_path / "out").items() > held.items()
    run(larger, tmp_path / "fresh")
    assert_same(tmp_path / "out", tmp_path / "fresh")
    assert Sweep.from_toml(tmp_path / "out" / "sweep.toml") == larger
    again = times(tmp_path / "out")
    run(larger, tmp_path / "out")
    assert times(tmp_path / "out") == again


def test_when_all_was_begun_and_finished_is_told(tmp_path):
    run(read(TINY, SMALL, "seed=0:2"), tmp_path / "out")
    told = open_results(tmp_path / "out").attrs
    assert told["started"] <= told["finished"]
    run(read(TINY, SMALL, "seed=0:2"), tmp_path / "out")
    assert open_results(tmp_path / "out").attrs == told  # nothing was left to do
    Store.create(tmp_path / "out", describe(plan(read(TINY, SMALL, "seed=0:4"))), grow=True).close()
    larger = open_results(tmp_path / "out").attrs
    assert larger["started"] == told["started"] and "finished" not in larger
    run(read(TINY, SMALL, "seed=0:4"), tmp_path / "out")
    assert open_results(tmp_path / "out").attrs["finished"] >= told["finished"]


def test_a_folder_grows_again_and_again(tmp_path):
    for seeds, scales in ((2, "1.0"), (4, "1.0"), (4, "2.0,1.0"), (6, "2.0,1.0,0.5")):
        larger = read(TINY, SMALL, f"seed=0:{seeds}", f"init_scale={scales}")
        run(larger, tmp_path / "out", grow=True)
    run(larger, tmp_path / "fresh")
    assert_same(tmp_path / "out", tmp_path / "fresh")


REFUSED = [
    (["seed=0:5"], "would drop results: seed = 5 is not among the values here"),
    (["init_scale=1.0"], "would drop results: init_scale = 0.5 is not among the values here"),
    (["learning_rate=0.03"], "would drop results: training.learning_rate is 0.02 there and 0.03 here"),
    (["learning_rate=0.03,0.04"], "would drop results: learning_rate = 0.02 is not among the values here"),
    (["regions=off,on"], "would drop results: measure.regions is ('off',) there and ('off', 'on') here"),
    (["kind=chessboard"], "would drop results: data.kind is line there and chessboard here"),
]


@pytest.mark.parametrize(("overrides", "why"), REFUSED)
def test_what_would_drop_results_is_refused(tmp_path, overrides, why):
    run(read(TINY, SMALL, "seed=0:6"), tmp_path / "out")
    before = {path: path.read_bytes() for path in (tmp_path / "out").glob("*.*")} | times(tmp_path / "out")
    seeds = [] if "seed" in overrides[0] else ["seed=0:6"]
    with pytest.raises(UserError) as refused:
        run(read(TINY, SMALL, *seeds, *overrides), tmp_path / "out", grow=True)
    assert str(refused.value) == f"{tmp_path / 'out'}: {why}; choose another --out"
    assert {path: path.read_bytes() for path in (tmp_path / "out").glob("*.*")} | times(tmp_path / "out") == before


def test_axes_in_another_order_are_refused(tmp_path):
    run(read(TINY, SMALL, "seed=0:6"), tmp_path / "out")
    sweep = read(TINY, SMALL, "seed=0:12")
    turned = Sweep(
        "tiny",
        network=sweep.network,
        training=sweep.training,
        measure=sweep.measure,
        axes=dict(reversed(sweep.axes.items())),
    )
    with pytest.raises(
        UserError, match=r"holds the axes in another order, .*seed, init_scale and not init_scale, seed"
    ):
        run(turned, tmp_path / "out", grow=True)


def test_another_version_or_trainer_is_refused(tmp_path, monkeypatch):
    sweep = read(TINY, SMALL, "seed=0:6")
    here = describe(plan(sweep, "xla"))
    other = here.origin | {"versions": here.origin["versions"] | {"jax": "0.1"}}
    Store.create(tmp_path / "old", here._replace(origin=other)).close()
    with pytest.raises(UserError, match=r"was made with jax 0.1, and this is .*; choose another --out"):
        run(read(TINY, SMALL, "seed=0:12"), tmp_path / "old", grow=True, trainer="xla")
    parts = tuple(part._replace(made_by=part.made_by | {"trainer": "abacus"}) for part in here.parts)
    Store.create(tmp_path / "other", here._replace(parts=parts)).close()
    with pytest.raises(UserError, match="was made with trainer abacus, and this is xla; choose another --out"):
        run(read(TINY, SMALL, "seed=0:12"), tmp_path / "other", grow=True, trainer="xla")


def test_without_grow_the_refusal_names_it(tmp_path, command):  # noqa: F811
    file, out = write(tmp_path, TINY), tmp_path / "out"
    run(read(TINY, SMALL, "seed=0:6"), out)
    told = f"{out}: holds another sweep: axes.seed is 0:6 there and 0:12 here"
    assert_refused(command("run", file, SMALL, "--out", out), f"{told}; add to it with --grow, or choose another --out")
    code, printed, _ = command("run", file, SMALL, "--out", out, "--grow")
    assert code == 0 and printed
    assert (open_results(out)["status"] != PENDING).all()


@pytest.mark.slow
def test_what_is_computed_again_is_told_beforehand(tmp_path, command):  # noqa: F811
    """Where all networks had one dataset and now have several, another program serves them."""
    file, out = write(tmp_path, PLACED), tmp_path / "out"
    assert list(foresee(plan(read(PLACED)), out)) == [f"{out}: holds no results yet"]
    run(read(PLACED), out)
    _, printed, _ = command("plan", file, "--out", out)
    assert printed.splitlines()[0] == f"{out}: a run keeps 6 networks and computes 0"
    _, printed, _ = command("plan", file, "seed=0:9", "--out", out)
    assert printed.splitlines()[0] == f"{out}: a run with --grow keeps 6 networks and computes 3"
    _, printed, _ = command("plan", file, "data_seed=0,1", "--out", out)
    assert printed.splitlines()[:2] == [
        f"{out}: a run with --grow keeps 0 networks and computes 12",
        "6 of those that are there are computed again, by another program: shared data was True and is False",
    ]
    run(read(PLACED, "data_seed=0,1"), out, grow=True)
    run(read(PLACED, "data_seed=0,1"), tmp_path / "fresh")
    assert_same(out, tmp_path / "fresh")
    assert len(times(out)) == len(Store.open(out).entries)
    held = times(out)
    run(read(PLACED, "data_seed=0,2,1"), out, grow=True)
    assert times(out).items() > held.items()


def test_killed_between_manifest_and_sweep_a_folder_is_grown(tmp_path, monkeypatch):
    run(read(TINY, SMALL, "seed=0:6"), tmp_path / "out")
    held, old = times(tmp_path / "out"), (tmp_path / "out" / "sweep.toml").read_text()
    larger = read(TINY, SMALL, "seed=0:12")
    with monkeypatch.context() as patched:
        patched.setattr(store, "write", killed_at_the_sweep)
        with pytest.raises(KeyboardInterrupt):
            run(larger, tmp_path / "out", grow=True)
    assert (tmp_path / "out" / "sweep.toml").read_text() == old
    found = open_results(tmp_path / "out")
    assert found.sizes["seed"] == 12 and int((found["status"] != PENDING).sum()) == 12
    run(larger, tmp_path / "out")
    assert Sweep.from_toml(tmp_path / "out" / "sweep.toml") == larger
    assert times(tmp_path / "out").items() > held.items()
    run(larger, tmp_path / "fresh")
    assert_same(tmp_path / "out", tmp_path / "fresh")


def test_killed_there_twice_a_folder_is_grown(tmp_path, monkeypatch):
    """The sweep's file is then two manifests behind."""
    description = [describe(plan(read(TINY, SMALL, f"seed=0:{seeds}"))) for seeds in (6, 8, 10)]
    Store.create(tmp_path / "out", description[0]).close()

    with monkeypatch.context() as patched:
        patched.setattr(store, "write", killed_at_the_sweep)
        for larger in description[1:]:
            with pytest.raises(KeyboardInterrupt):
                Store.create(tmp_path / "out", larger, grow=True)
            assert Store.open(tmp_path / "out").sweep == larger.sweep
    Store.create(tmp_path / "out", description[2]).close()
    assert Sweep.from_toml(tmp_path / "out" / "sweep.toml") == description[2].sweep


def test_a_folder_is_read_that_grows_meanwhile(tmp_path, monkeypatch):
    smaller, larger = (describe(plan(read(TINY, SMALL, f"seed=0:{seeds}"))) for seeds in (6, 8))
    Store.create(tmp_path / "out", smaller).close()
    text = Path.read_text

    def grown_then(path: Path, *args: str, **kwargs: str) -> str:
        held = text(path, *args, **kwargs)
        monkeypatch.undo()
        Store.create(tmp_path / "out", larger, grow=True).close()
        return held

    monkeypatch.setattr(Path, "read_text", grown_then)
    assert Store.open(tmp_path / "out").sweep == smaller.sweep
    assert Store.open(tmp_path / "out").sweep == larger.sweep


def test_two_files_of_one_content_are_resumed(tmp_path):
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text("x,z,label\n0,1,1\n2,1,-1\n-1,0.5,1\n")
    axis = f"{tmp_path / 'a.csv'},{tmp_path / 'b.csv'}"
    description = describe(plan(read(TINY, SMALL, "kind=file", f"path={axis}")))
    for _ in range(2):
        Store.create(tmp_path / "out", description).close()
    assert Store.open(tmp_path / "out").sweep.values("path") == description.sweep.values("path")


def test_folders_are_merged(tmp_path):
    """Parts of chunks as well, whatever axes they are along; and what none has is computed."""
    run(read(TINY, SMALL, "seed=0:5"), tmp_path / "a")
    run(read(TINY, "seed=3:9", "width=5,3", "init_scale=0.5"), tmp_path / "b")
    whole = read(TINY)
    run(whole, tmp_path / "both", reuse=[tmp_path / "a", tmp_path / "b"])
    run(whole, tmp_path / "fresh")
    assert_same(tmp_path / "both", tmp_path / "fresh")
    held = times(tmp_path / "both")
    run(whole, tmp_path / "both", reuse=[tmp_path / "a", tmp_path / "b"])  # the same command again
    assert times(tmp_path / "both") == held


def test_what_is_merged_is_not_trained_again(tmp_path, monkeypatch):
    run(read(TINY, SMALL, "seed=0:6"), tmp_path / "a")
    run(read(TINY, SMALL, "seed=6:12"), tmp_path / "b")
    monkeypatch.setattr("subspace_adv.process.engine.train", lambda *_: pytest.fail("nothing is left to train"))
    found = run(read(TINY, SMALL), tmp_path / "both", reuse=[tmp_path / "a", tmp_path / "b"])
    assert (found["status"] != PENDING).all()


def test_what_others_have_fills_a_folder_that_is_begun(tmp_path):
    sweep = read(TINY, SMALL)
    Store.create(tmp_path / "out", describe(plan(sweep))).close()
    run(read(TINY, SMALL, "seed=4:8"), tmp_path / "a")
    run(sweep, tmp_path / "out", reuse=[tmp_path / "a"])
    run(sweep, tmp_path / "fresh")
    assert_same(tmp_path / "out", tmp_path / "fresh")


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        (["seed=20:22"], "holds no results of this sweep; seed = 20 is not among the values here"),
        (["learning_rate=0.03"], "holds no results of this sweep; training.learning_rate is another one there"),
        (["regions=off,on"], "holds no results of this sweep; measure.regions is another one there"),
    ],
)
def test_what_cannot_be_reused_is_told(tmp_path, command, overrides, why):  # noqa: F811
    seeds = [] if "seed=20:22" in overrides else ["seed=0:2"]
    run(read(TINY, SMALL, *seeds, *overrides), tmp_path / "a")
    asked = command("run", write(tmp_path, TINY), SMALL, "--out", tmp_path / "out", "--reuse", tmp_path / "a")
    assert_refused(asked, f"{tmp_path / 'a'}: {why}; leave it out of what is to be reused")


def test_results_of_another_version_are_not_reused(tmp_path):
    here = describe(plan(read(TINY, SMALL)))
    other = here.origin | {"versions": here.origin["versions"] | {"jax": "0.1"}}
    Store.create(tmp_path / "a", here._replace(origin=other)).close()
    with pytest.raises(UserError, match=r"was made with jax 0.1, and this is .*; leave it out"):
        run(read(TINY, SMALL), tmp_path / "out", reuse=[tmp_path / "a"])


@pytest.mark.slow
def test_shards_grow_a_folder_together(tmp_path):
    run(read(MANY, "seed=0:256"), tmp_path / "out")
    held, sweep = times(tmp_path / "out"), write(tmp_path, MANY)
    start = [COMMAND, "run", sweep, "--out", tmp_path / "out", "--grow"]
    parts = []
    for i in (1, 2):
        parts.append(
            subprocess.Popen([*start, "--shard", f"{i}/2"], stdout=-1, stderr=-1, text=True, env=environment())
        )
        time.sleep(0.5 * (i == 1))
    told = [part.communicate(timeout=300) for part in parts]
    assert [part.returncode for part in parts] == [0, 0], told
    assert times(tmp_path / "out").items() > held.items()
    run(read(MANY), tmp_path / "fresh")
    assert_same(tmp_path / "out", tmp_path / "fresh")


def settings_digest(sweep: Sweep, *cells: int) -> str:
    return digest(own_settings(sweep, np.array(cells), sweep.files()))


def test_the_settings_of_cells_are_told_whatever_their_grid():
    """Of every leaf that is an axis or a setting, read by all cells or by some."""
    alone = read(TINY, SMALL, "seed=3", "init_scale=0.5")
    for overrides, cell in (
        ([SMALL, "seed=3", "init_scale=0.5"], 0),
        ([SMALL, "seed=0:12"], 7),
        (["seed=0:12"], 7),
        ([SMALL, "seed=3", "init_scale=0.5", "optimizer=sgd,gd", "batch_size=1,2"], 2),
        ([SMALL, "seed=3", "init_scale=0.5", "kind=chessboard,line"], 1),
        ([SMALL, "seed=3", "init_scale=0.5", "name=other"], 0),
    ):
        assert settings_digest(read(TINY, *overrides), cell) == settings_digest(alone, 0), overrides
    for other in (["seed=4"], ["init_scale=0.7"], ["width=5"], ["optimizer=momentum"], ["gap=0.02"], ["redraws=2"]):
        names = {text.partition("=")[0] for text in other}
        kept = [text for text in (SMALL, "seed=3", "init_scale=0.5") if text.partition("=")[0] not in names]
        changed = read(TINY, *kept, *other)
        assert settings_digest(changed, 0) != settings_digest(alone, 0)
        cell = np.zeros(1, np.int64)
        both = (own_settings(sweep, cell, {}) for sweep in (alone, changed))
        assert names <= differing(*both).keys()


def test_fields_that_some_cells_read_are_told_of_those():
    both = read(TINY, SMALL, "seed=0", "init_scale=1", "optimizer=gd,momentum", "momentum=0.5")
    column = own_settings(both, np.array([0, 1]), {})["momentum"]
    assert [column.values[i] for i in column.which] == [None, 0.5]
    assert "momentum" not in own_settings(both, np.array([0]), {})


@pytest.mark.slow
def test_a_run_killed_while_it_grows_a_folder_is_resumed_by_the_same_command(tmp_path):
    """At moments from its start to its end; what it had held, and what it had computed by then, stays."""
    out, file = tmp_path / "out", write(tmp_path, MANY)
    run(read(MANY, "seed=100:150"), out)
    held = times(out)
    start = [COMMAND, "run", file, "--out", out, "--grow"]
    rng, killed = np.random.default_rng(0), 0
    for _ in range(8):
        growing = subprocess.Popen(start, stdout=-1, stderr=-1, text=True, env=environment())
        try:
            growing.communicate(timeout=rng.uniform(1, 8))
        except subprocess.TimeoutExpired:
            growing.kill()
            growing.communicate()
            killed += 1
        assert times(out).items() >= held.items()
        held = {name: when for name, when in times(out).items() if name.isdecimal()}
    assert killed
    subprocess.run(start, check=True, capture_output=True, env=environment(), timeout=300)
    assert times(out).items() >= held.items()
    run(read(MANY), tmp_path / "fresh")
    assert_same(out, tmp_path / "fresh")
