"""Runs: everything is done once, what is done is kept, and whoever listens is told."""

import platform
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from shell import COMMAND, MANY, MANY_CHUNKS, PRINT_PEAK, TINY, call, chunk_states, content, needs_kernel, read, write

from subspace_adv import UserError, engine, manifest, open_results, plan, planning, process, run, runner, store
from subspace_adv.process import Listener
from subspace_adv.runner import how_to_resume
from subspace_adv.training import CONVERGED, DIVERGED, PENDING, STEP_LIMIT, Trainer


class _Heard(Listener):
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.starts: list[tuple[int, int]] = []
        self.groups: set[tuple[int, int]] = set()
        self.networks, self.net_steps = 0, 0

    def message(self, text: str) -> None:
        self.messages.append(text)

    def start(self, networks: int, done: int) -> None:
        self.starts.append((networks, done))

    def compiling(self, number: int, total: int) -> None:
        self.groups.add((number, total))

    def progress(self, networks: int, net_steps: int) -> None:
        self.networks += networks
        self.net_steps += net_steps


def test_a_run_does_every_cell_and_tells(tmp_path):
    heard = _Heard()
    dataset = run(read(TINY), tmp_path / "out", heard)
    assert dataset.identical(open_results(tmp_path / "out"))
    assert (dataset["status"] != PENDING).all()
    assert heard.starts == [(48, 0)]
    assert heard.groups == {(1, 2), (2, 2)}
    assert heard.networks == 48
    assert heard.net_steps == dataset["steps"].sum()
    assert heard.messages == []


def test_running_again_does_nothing_twice(tmp_path, monkeypatch):
    sweep = read(TINY)
    first = run(sweep, tmp_path)
    before = chunk_states(tmp_path)
    monkeypatch.setattr(engine, "train", lambda *arguments: pytest.fail("nothing is left to train"))
    heard = _Heard()
    assert run(sweep, tmp_path, heard).identical(first)
    assert heard.starts == [(48, 48)]
    assert (heard.networks, heard.groups) == (0, set())
    assert chunk_states(tmp_path) == before


def test_only_what_is_missing_is_done(tmp_path):
    sweep = read(MANY)
    run(sweep, tmp_path)
    before, whole = chunk_states(tmp_path), content(tmp_path)
    (tmp_path / "chunks" / "000002" / "seal.json").unlink()
    heard = _Heard()
    run(sweep, tmp_path, heard)
    assert heard.starts == [(1024, 768)]
    assert heard.networks == 256
    (message,) = heard.messages
    assert message == f"{tmp_path / 'chunks' / '000002'}: seal.json is missing; computing it again"
    assert content(tmp_path) == whole
    after = chunk_states(tmp_path)
    assert len(after) == MANY_CHUNKS
    assert {name for name in after if after[name] != before[name]} == {"000002"}


def test_the_folder_is_results_name_by_default(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(read(TINY, "width=3"))
    assert (tmp_path / "results" / "tiny" / "manifest.json").exists()
    assert runner.default_out(read("", "name=other")) == Path("results/other")


def test_a_failure_stops_the_run_and_what_is_done_is_kept(tmp_path, monkeypatch):
    sweep, measure, calls = read(MANY), engine.measure, []

    def failing(*arguments: object) -> dict:
        calls.append(arguments)
        if len(calls) == 3:
            raise RuntimeError("out of memory")
        return measure(*arguments)  # pyright: ignore[reportArgumentType]

    with monkeypatch.context() as patched:
        patched.setattr(engine, "measure", failing)
        with pytest.raises(RuntimeError, match="out of memory"):
            run(sweep, tmp_path / "out")
    kept = chunk_states(tmp_path / "out")
    assert 1 <= len(kept) < MANY_CHUNKS
    run(sweep, tmp_path / "out")  # the folder is not locked any more
    assert chunk_states(tmp_path / "out").items() >= kept.items()
    run(sweep, tmp_path / "whole")
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_a_failure_is_told_when_no_worker_is_left(tmp_path, monkeypatch):
    waiting, ended = threading.Event(), []

    def train(sweep: object, group: object, chunks: object, progress: object, stop: threading.Event) -> Iterator[tuple]:
        if waiting.is_set():
            raise RuntimeError("out of memory")
        waiting.set()
        assert stop.wait(60)
        time.sleep(0.3)
        ended.append(group)
        yield from ()

    monkeypatch.setattr(process, "threads", lambda: 2)
    monkeypatch.setattr(engine, "train", train)
    with pytest.raises(RuntimeError, match="out of memory"):
        run(read(MANY), tmp_path, trainer="xla")
    assert len(ended) == 1


def test_an_interrupt_keeps_what_is_done(tmp_path):
    class _Impatient(Listener):
        def progress(self, networks: int, net_steps: int) -> None:
            if (tmp_path / "chunks" / "000000").exists():
                raise KeyboardInterrupt

    sweep = read(MANY)
    with pytest.raises(KeyboardInterrupt):
        run(sweep, tmp_path, _Impatient())
    kept = chunk_states(tmp_path)
    assert "000000" in kept
    run(sweep, tmp_path)
    assert chunk_states(tmp_path).items() >= kept.items()


def test_an_interrupt_before_all_threads_have_started(tmp_path, monkeypatch):
    start, starts = threading.Thread.start, []

    def interrupted(thread: threading.Thread) -> None:
        starts.append(thread)
        if len(starts) == 2:
            raise KeyboardInterrupt
        start(thread)

    monkeypatch.setattr(process, "threads", lambda: 3)
    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(read(MANY), tmp_path)
    assert not starts[0].is_alive()


def test_a_folder_that_cannot_be_used_is_refused_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "train", lambda *arguments: pytest.fail("too early"))
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match="holds files that are no results of ours"):
        run(read(TINY), tmp_path)


def test_a_diverged_network_is_a_value_and_its_neighbours_never_notice(tmp_path):
    alone = run(read(TINY, "width=3"), tmp_path / "alone")
    both = run(read(TINY, "width=3", "learning_rate=0.02,1e30"), tmp_path / "both")
    diverged, healthy = both.sel(learning_rate=1e30), both.sel(learning_rate=0.02, drop=True)
    assert (diverged["status"] == DIVERGED).any()
    for name in ("loss", "margin", "output", "gradient_norm_off", "distance_off_l2_upper", "distance_off_l2_lower"):
        assert diverged[name].where(diverged["status"] == DIVERGED, drop=True).isnull().all()
        assert healthy[name].values.tobytes() == alone[name].values.tobytes()
    assert set(np.unique(healthy["status"])) <= {CONVERGED, STEP_LIMIT}


def resuming(folder: Path, trainer: Trainer | None = None, **origin: dict[str, str]) -> str:
    """What is told of a folder that was begun by a trainer, and with other versions or on another machine."""
    todo = plan(read(TINY, "width=3"), trainer)
    here = manifest.describe(todo)
    parts = tuple(part._replace(made_by=part.made_by | origin.get("parts", {})) for part in here.parts)
    there = {name: told | origin.get(name, {}) for name, told in here.origin.items()}
    store.Store.create(folder, here._replace(origin=there, parts=parts)).close()
    return how_to_resume(folder)


def test_how_to_resume_is_told(tmp_path, monkeypatch):
    again = "resume with: subspace-adv run '{0}/sweep.toml' --out '{0}'"
    assert resuming(tmp_path / "my own") == again.format(tmp_path / "my own")
    assert resuming(tmp_path / "by xla", "xla") == again.format(tmp_path / "by xla") + " --trainer xla"


@needs_kernel
def test_the_trainer_is_told_where_it_is_not_what_is_chosen_here(tmp_path, monkeypatch):
    assert resuming(tmp_path / "a", "fused").endswith(f"--out {tmp_path / 'a'}")
    choose = planning.choose_trainer
    monkeypatch.setattr(
        planning,
        "choose_trainer",
        lambda model, design, optimizer, asked, device: choose(model, design, optimizer, asked or "xla", device),
    )
    assert resuming(tmp_path / "b", "xla").endswith(f"--out {tmp_path / 'b'}")
    assert resuming(tmp_path / "c", "fused").endswith(f"--out {tmp_path / 'c'} --trainer fused")


def test_what_cannot_be_resumed_here_is_told_with_where_it_can(tmp_path, monkeypatch):
    here = manifest.describe(plan(read(TINY, "width=3"), "xla")).origin
    told = resuming(tmp_path / "a", "xla", versions={"jax": "0.1"})
    assert told.startswith(
        f"cannot be resumed here: was made with jax 0.1, and this is {here['versions']['jax']}; it can "
    )
    assert f" jax 0.1, jaxlib {here['versions']['jaxlib']}, device cpu, processor {platform.machine()}, trainer" in told
    told = resuming(tmp_path / "b", machine={"device": "gpu"})
    assert told.startswith("cannot be resumed here: was made with device gpu, and this is cpu; it can ")
    told = resuming(tmp_path / "c", parts={"trainer": "fused (abacus)"})
    assert told.startswith("cannot be resumed here: was made with trainer fused (abacus), and this is ")

    def absent(*arguments: object) -> None:
        raise AssertionError

    monkeypatch.setattr(jax, "local_devices", absent)
    assert how_to_resume(tmp_path / "c").startswith("cannot be resumed here: JAX finds no device for JAX_PLATFORMS=")
    assert all(line not in told for line in ("resume with", "\n"))


def test_no_step_is_a_network_as_drawn(tmp_path):
    dataset = run(read(TINY, "width=3", "max_steps=0"), tmp_path)
    assert (dataset["status"] == STEP_LIMIT).all()
    assert (dataset["steps"] == 0).all()


def test_one_cell_without_axes(tmp_path):
    dataset = run(read("[network]\nwidth = 3\n[training]\nmax_steps = 3\n[measure]\nregions = ['off']\n"), tmp_path)
    assert dataset["status"].dims == ()
    assert dataset["output"].dims == ("point",)
    assert dataset["status"].item() == STEP_LIMIT
    assert dataset["steps"].item() == 3


PEAK = f"""
import sys
from subspace_adv import Sweep, run
run(Sweep.from_toml("sweep.toml", sys.argv[1:]), "out" + sys.argv[1])
{PRINT_PEAK}
"""


@pytest.mark.slow
def test_memory_is_bounded_by_the_chunk_and_not_by_the_grid(tmp_path):
    write(tmp_path, TINY.replace("width = [3, 5]\n", ""))

    def peak(seeds: int) -> int:
        overrides = (f"seed=0:{seeds}", "width=15", "max_steps=200")
        status, out, err = call(sys.executable, "-c", PEAK, *overrides, cwd=tmp_path, timeout=600)
        assert (status, err) == (0, "")
        return int(out)

    small, large = peak(5_000), peak(20_000)  # 10,000 and 40,000 networks
    assert large < 1.2 * small


@pytest.mark.slow
def test_networks_whose_off_part_is_factored_are_measured_side_by_side(tmp_path):
    """Several at once in as many programs as there are threads: jaxlib's own batches would wait for ever."""
    path = write(tmp_path, '[measure]\nregions = ["off"]\n')
    overrides = ("init=torch", "width=100", "max_steps=20", "seed=0:40")
    status, _, err = call(COMMAND, "run", path, *overrides, "--out", tmp_path / "out", cwd=tmp_path, timeout=150)
    assert status == 0, err
