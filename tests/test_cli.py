"""The command line: what it prints, and one line and exit status 2 for whatever a user gets wrong."""

import functools
import gc
import io
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
from shell import COMMAND, MANY, TINY, call, content, environment, files, read, start, write
from test_sweep import BAD

from subspace_adv import (
    UserError,
    bench,
    checks,
    cli,
    formats,
    open_results,
    plan,
    plots,
    process,
    progress,
    reports,
    tables,
)
from subspace_adv.manifest import describe
from subspace_adv.models import fused
from subspace_adv.progress import Display, count
from subspace_adv.store import Store

Command = Callable[..., tuple[int, str, str]]
HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """The command line, in this process: arguments → exit status, stdout and stderr."""

    def called(*arguments: object) -> tuple[int, str, str]:
        handlers = {number: signal.getsignal(number) for number in HANDLED}
        for number in HANDLED:  # a shell has SIGINT ignored in the background, and nohup SIGHUP
            signal.signal(number, signal.SIG_DFL)
        capsys.readouterr()
        try:
            cli.main([str(argument) for argument in arguments])
            status = 0
        except SystemExit as end:
            status = end.code or 0
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        out, err = capsys.readouterr()
        assert isinstance(status, int)
        return status, out, err

    return called


def assert_refused(answer: tuple[int, str, str], *words: str) -> None:
    status, out, err = answer
    assert status == 2
    assert out == ""
    assert err.startswith("subspace-adv: ")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    for some in words:
        assert some in err


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("verb", ["run", "plan"])
def test_bad_sweeps_and_overrides(tmp_path, command, case, verb):
    text, overrides, (start, *words) = BAD[case]
    path = write(tmp_path, text)
    out = ("--out", tmp_path / "out") if verb == "run" else ()
    answer = command(verb, path, *([overrides] if isinstance(overrides, str) else overrides), *out)
    assert_refused(answer, f"subspace-adv: {start.replace('FILE', str(path))}", *words)
    assert files(tmp_path) == {path}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["rn"], ('Unknown command "rn"', 'Did you mean "run"?')),
        (["stats", "x"], ('Did you mean "status"?',)),
        (["bench", "--json"], ("--json requires an argument; see",)),
        (["table", "x", "--epsilon"], ("--epsilon requires an argument",)),
        (["run", "x.toml", "--trainer", "fusd"], ('"fusd"', "--trainer", '"fused"', '"xla"')),
        (["zzz"], ('Unknown command "zzz"', "run, plan, status, table, compare, export, attack, check, ...; see")),
        (["--verson"], ("--verson", "--version")),
        (["run"], ('"run"', "SWEEP requires an argument")),
        (["plan"], ('"plan"', "SWEEP requires an argument")),
        (["status"], ('"status"', "FOLDER requires an argument")),
        (["run", "x.toml", "--ot", "y"], ("Unknown option: --ot", "Did you mean --out?")),
        (["run", "x.toml", "--width", "5"], ("Unknown option: --width",)),
        (["run", "x.toml", "--out"], ("--out requires an argument",)),
        (["run", "x.toml", "--out", "a", "--out", "b"], ("--out", "multiple times")),
        (["table", "x", "y"], ("y",)),
        (["status", "x", "--all"], ("--all",)),
    ],
)
def test_bad_command_lines(tmp_path, monkeypatch, command, arguments, words):
    monkeypatch.chdir(tmp_path)
    verb = f" {arguments[0]}" if arguments[0] in cli.app else ""
    assert_refused(command(*arguments), "command line: ", *words, f"; see subspace-adv{verb} --help")
    assert files(tmp_path) == set()


def test_a_benchmark_that_could_not_be_written_is_not_begun(tmp_path, command):
    file = tmp_path / "missing" / "bench.json"
    assert_refused(command("bench", "--json", file), f"{file}: cannot be written: No such file or directory")


def test_a_benchmark_that_fails_leaves_the_figures_of_the_last(tmp_path, command, monkeypatch):
    def fails(_: object) -> None:
        raise UserError("no compiler")

    file = write(tmp_path, "{}", "bench.json")
    monkeypatch.setattr(bench, "run", fails)
    for place in (file, tmp_path / "new.json"):
        assert_refused(command("bench", "--json", place), "no compiler")
    assert file.read_text() == "{}" and files(tmp_path) == {file}


def test_missing_sweep_file(tmp_path, command):
    write(tmp_path, "", "quickstart.toml")
    misspelt = tmp_path / "quikstart.toml"
    assert_refused(command("run", misspelt), f"{misspelt}: no such file; did you mean 'quickstart.toml'?")
    assert_refused(command("run", tmp_path), f"{tmp_path}: cannot be read: Is a directory")


def test_results_folders_that_cannot_be_used(tmp_path, command, tiny):
    sweep = write(tmp_path, TINY)
    file = write(tmp_path, "", "thesis.tex")
    before = files(tmp_path)

    def refused(out: Path, *words: str) -> None:
        assert_refused(command("run", sweep, "--out", out), f"{out}: ", *words)
        assert files(tmp_path) == before

    refused(tmp_path, "holds files that are no results of ours; choose another --out")
    refused(file, "cannot hold results: Not a directory")
    refused(file / "out", "cannot be written: Not a directory")
    refused(Path("/proc/out"))
    refused(tmp_path / "runs [new]", "a path with [ cannot hold results; choose another name")
    other = ("run", sweep, "max_steps=31", "seed=0:200", "--out", tiny)
    assert_refused(command(*other), f"{tiny}: holds another sweep: ", "is 30 there and 31 here; choose another --out")
    large = ("run", sweep, "width=16777216", "seed=0:10000", "--out", tmp_path / "out")
    assert_refused(command(*large), "the results need ", "are free; make room, choose another --out, or fewer cells")
    assert files(tmp_path) == before


def test_a_folder_in_use(tmp_path, command):
    sweep = write(tmp_path, TINY)
    writing = Store.create(tmp_path / "out", describe(plan(read(TINY))))
    answer = command("run", sweep, "--out", tmp_path / "out")
    assert_refused(answer, f"{tmp_path / 'out'}: another run is writing here; wait for it, or choose another --out")
    writing.close()


@pytest.mark.parametrize("verb", ["status", "table", "check", "plot"])
def test_folders_that_hold_no_results(tmp_path, command, tiny, verb):
    words = "not a results folder (no manifest.json); `run` makes one"
    assert_refused(command(verb, tmp_path), f"{tmp_path}: {words}")
    assert_refused(command(verb, tmp_path / "none"), words)
    assert_refused(command(verb, f"{tiny}y"), words, "did you mean 'tiny'?")
    assert_refused(command(verb, "results/*"), f"results/*: {words}")
    assert_refused(command(verb, tiny / "sweep.toml"), words)
    (tmp_path / "manifest.json").write_text("{")
    assert_refused(command(verb, tmp_path), "manifest.json: damaged; move the folder away and run the sweep again")


@pytest.mark.parametrize("verb", ["status", "table", "check", "plot", "run"])
def test_a_folder_whose_sweep_was_changed(tmp_path, command, verb):
    Store.create(tmp_path / "out", describe(plan(read(TINY)))).close()
    resolved = tmp_path / "out" / "sweep.toml"
    arguments = ["run", write(tmp_path, TINY), "--out", tmp_path / "out"] if verb == "run" else [verb, tmp_path / "out"]
    resolved.write_text(resolved.read_text().replace("max_steps = 30", "max_steps = 40"))
    assert_refused(command(*arguments), f"{resolved}: was changed since the run")
    resolved.write_text("[network")
    assert_refused(command(*arguments), f"{resolved}: was changed since the run")
    resolved.unlink()
    assert_refused(command(*arguments), f"{resolved}: was removed since the run; restore it, or move the folder away")
    resolved.mkdir()
    assert_refused(command(*arguments), f"{resolved}: cannot be read: Is a directory")


@pytest.mark.parametrize(
    "arguments",
    [("run", ""), ("plan", ""), ("status", ""), ("plot", ""), ("run", "a.toml", "--out", ""), ("bench", "--json", "")],
)
def test_an_empty_path_is_no_folder_of_the_user(command, arguments):
    """As a variable of the shell that is not set; it would be the folder one is in."""
    assert_refused(command(*arguments), "the path is empty")


def test_plan(tmp_path, command):
    status, out, err = command("plan", write(tmp_path, TINY), "seed=0:1000")
    assert (status, err) == (0, "")
    lines = {line.partition(" ")[0]: line for line in out.splitlines()}
    assert lines["cells"].endswith("4,000")
    assert lines["groups"].endswith(" 2")
    assert lines["programs"].endswith("6 to compile, each once")
    assert lines["chunks"].endswith(" 16")
    assert lines["bytes"].endswith(" 1.92 MB on disk, before compression")  # 2,000 · (469 + 493)
    assert lines["net-steps"].endswith("1.2e+05")
    planned = plan(read(TINY, "seed=0:1000"))
    taken = planned.seconds(process.cores())
    assert f" about {taken.typical:.0f} s on {process.cores()} cores, the first time; up to {taken.most:.0f} s " in out
    assert f" {taken.starting + taken.compiling:.0f} s to start and compile ({taken.starting:.0f} s once " in out
    *_, last, path, by = out.splitlines()
    lanes = planned.groups[1].lanes
    assert last.split() == ["1", "2000", "8", str(lanes), "5", "7", "2", "1", "gd", "logistic"]
    reason = "gd moves weights off the span of the data by decay alone"
    assert path == f"group 0, 1: trained in the span of the data, exactly: {reason}"
    expected = (
        f"xla: {fused.unavailable()}"
        if fused.unavailable()
        else f"fused: the kernel serves ({fused.instruction_set()})"
    )
    assert by == f"group 0, 1: trained by {expected}"
    assert files(tmp_path) == {tmp_path / "sweep.toml"}


def test_plan_tells_why_networks_train_in_which_coordinates(tmp_path, command):
    axes = '[axes]\noptimizer = ["gd", "adam"]\nkind = ["line", "chessboard"]\n'
    status, out, err = command("plan", write(tmp_path, axes))
    assert (status, err) == (0, "")
    exact, ambient, whole = [line for line in out.splitlines() if "trained in " in line and line.startswith("group ")][
        -3:
    ]
    assert exact.startswith("group 0, 1: trained in the span of the data, exactly: gd ")
    assert ambient.startswith("group 2: trained in all ambient coordinates: adam steps by coordinates")
    assert whole == "group 3: trained in the span of the data, exactly: the data span the whole space"
    assert "trained by xla: the kernel does not know adam" in out
    rows = {row[0]: row for row in map(str.split, out.splitlines()) if row and row[0] in "0123"}
    assert [rows[group][6:8] for group in "0123"] == [["2", "1"], ["3", "3"], ["2", "2"], ["3", "3"]]


def test_status_and_table(tmp_path, command, tiny):
    status, out, err = command("status", tiny)
    assert (status, err) == (0, "")
    assert "tiny: 48 of 48 networks done" in out
    assert "step_limit 48" in out
    assert "resume" not in out
    status, out, err = command("table", tiny)
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].split()[:5] == ["width", "init_scale", "networks", "converged", "steps"]
    assert [line.split()[:5] for line in lines[1:5]] == [
        [width, scale, "12", "0%", "30"] for width in ("3", "5") for scale in ("1", "0.5")
    ]
    assert "paired difference" in out
    assert all(len(line) < 250 for line in lines)
    begin = next(i for i, line in enumerate(lines) if line.startswith("norm  region"))
    upper = open_results(tiny)["distance_off_l2_upper"].values
    flipped, not_at_all = (np.isfinite(upper) & (upper > 0)).sum(), np.isinf(upper).sum()
    assert flipped and not_at_all
    assert lines[begin + 1].split() == ["l2", "off", str(flipped), str(not_at_all), *3 * ["100%"]]  # a line
    begin = next(i for i, line in enumerate(lines) if line.startswith("norm  epsilon"))
    assert lines[begin].split()[1:6] == ["epsilon", "width", "init_scale", "robust", "off"]
    block = [line.split() for line in lines[begin + 1 :] if line.startswith("  l2")]
    assert [row[2:4] for row in block[:4]] == [[width, scale] for width in ("3", "5") for scale in ("1", "0.5")]
    assert len(block) % 4 == 0 and 1 <= len({row[1] for row in block}) <= 3
    assert all(len(line) <= 120 for line in lines[begin:])


def test_distances_and_gains_of_every_norm_have_columns(command, capsys, tiny):
    dataset = open_results(tiny)
    for side in ("lower", "upper"):
        dataset[f"distance_on_linf_{side}"] = 2 * dataset[f"distance_off_l2_{side}"]
    reports.print_results(dataset)
    lines = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    lines = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    assert lines[0][-2:] == ["distance off", "gain off"]
    assert lines[5] == ["width", "init_scale", "distance on linf", "gain on linf"]
    for first, second in zip(lines[1:5], lines[6:10], strict=True):
        assert first[:2] == second[:2]
        for one, two in zip(first[-2:], second[-2:], strict=True):
            numbers = ([float(n) for n in cell.translate({ord(c): None for c in "[],"}).split()] for cell in (one, two))
            assert one == two == "–" or [2 * n for n in next(numbers)] == pytest.approx(next(numbers), rel=0.01)


def test_table_tells_robust_accuracy_and_fooling_rates_at_the_sizes_asked_for(command, tiny):
    status, out, err = command("table", tiny, "--epsilon", "0,0.25,1e3")
    assert (status, err) == (0, "")
    _, _, robustness = out.partition("norm  epsilon")
    block = [line.replace(" / ", "/").split() for line in robustness.splitlines() if line.startswith("  l2")]
    assert [row[1] for row in block] == ["0"] * 4 + ["0.25"] * 4 + ["1000"] * 4
    dataset = open_results(tiny)
    for _, epsilon, width, scale, robust, *fooled in block:
        here, size = dataset.sel(width=int(width), init_scale=float(scale)), float(epsilon)
        share = float((here["distance_off_l2_upper"] > size).mean())  # a line: certified and attacked are the same
        assert robust == formats.percent(share)
        for name, found in zip(("universal", "random"), fooled, strict=True):
            right = here[f"distance_{name}"].where(here[f"distance_{name}"] > 0)
            shares = (right <= size).sum("point") / right.notnull().sum("point")
            heldout = float((here[f"distance_{name}_heldout"] <= size).mean())
            assert found == f"{formats.percent(float(shares.mean()))}/{formats.percent(heldout)}"


@pytest.mark.parametrize("epsilon", ["0.1,x", "-0.1", "nan", "0.1,inf", "", "0.1,,0.2", "1e999"])
def test_sizes_that_are_none_are_named(command, tiny, epsilon):
    named = next(text for text in epsilon.split(",") if text not in ("0.1", "0.2"))
    words = ("command line: --epsilon: ", f"{named!r} is no perturbation size", "give numbers such as 0.1,0.3")
    assert_refused(command("table", tiny, f"--epsilon={epsilon}"), *words)
    if epsilon:
        assert_refused(command("table", tiny, "--epsilon", epsilon), *words)


def test_shares_are_rounded_to_0_and_100_only_where_they_are_that():
    shares = (0, 1e-6, 0.0099, 0.01, 0.5, 0.99, 0.9999, 1, float("nan"))
    assert [formats.percent(s) for s in shares] == ["0%", "<1%", "<1%", "1%", "50%", "99%", ">99%", "100%", "–"]


def test_few_networks_that_did_not_converge_are_not_passed_over(tiny, monkeypatch, capsys):
    dataset = open_results(tiny)
    rows = [row._replace(converged=0.99999) for row in tables.summarize(dataset)]
    monkeypatch.setattr(tables, "summarize", lambda _: rows)
    reports.print_results(dataset)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[3] for line in lines[1 : 1 + len(rows)]] == [">99%"] * len(rows)


def test_status_tells_how_to_resume(tmp_path, command, monkeypatch):
    folder = tmp_path / "my results"
    Store.create(folder, describe(plan(read(TINY)))).close()
    status, out, _ = command("status", folder)
    assert status == 0
    assert "tiny: 0 of 48 networks done" in out
    told = shlex.split(out.partition("resume with: ")[2])
    assert told == ["subspace-adv", "run", str(folder / "sweep.toml"), "--out", str(folder)]
    monkeypatch.setattr(cli, "_draw", lambda *_: [])
    assert command(*told[1:])[0] == 0
    assert "48 of 48 networks done" in command("status", folder)[1]


def test_a_table_of_nothing_yet(tmp_path, command):
    Store.create(tmp_path / "out", describe(plan(read(TINY)))).close()
    status, out, err = command("table", tmp_path / "out")
    assert (status, err) == (0, "")
    assert "nan" not in out
    rows = [line.split() for line in out.splitlines()[1:5]]
    assert rows == [[width, scale, "0", "0%", "–", "–", "–", "–"] for width in ("3", "5") for scale in ("1", "0.5")]


def test_check(tmp_path, command, tiny):
    status, out, err = command("check", tiny)
    assert (status, err) == (0, "")
    assert "48 checked; left out: 0 pending, 0 diverged, 0 without prediction" in out
    found = checks.check(open_results(tiny))
    assert found.at_points and len(found.whitened) == 1
    fits = {"the gradient at a point": ["all"], "all gradients, whitened": ["depth", "1"]}
    for (name, networks), fit in zip(fits.items(), (found.at_points, found.whitened[0]), strict=True):
        [line] = [line for line in out.splitlines() if line.startswith(name)]
        assert line.removeprefix(name).split()[:-3] == [*networks, "12", f"{fit.p_value:.3g}"]
    assert [line.split()[0] for line in out.splitlines()[-3:]] == ["bound", "lower", "upper"]
    assert all(len(line) < 120 for line in out.splitlines())
    Store.create(tmp_path / "out", describe(plan(read(TINY)))).close()
    assert_refused(command("check", tmp_path / "out"), "tiny: nothing to check: no network is trained yet")


@pytest.mark.filterwarnings("default")
def test_damage_is_told_in_a_line(tmp_path, command, monkeypatch):
    monkeypatch.setattr(cli, "_draw", lambda *_: [])
    sweep, folder = write(tmp_path, MANY), tmp_path / ("long name " * 9) / "100% {of} it's"
    assert command("run", sweep, "--out", folder)[2] == ""
    chunks = folder / "chunks"
    (chunks / "000001" / "seal.json").write_text("{}")
    (chunks / "000003" / "seal.json").unlink()
    for verb in ("status", "table"):
        status, out, err = command(verb, folder)
        assert status == 0
        assert out
        assert err.splitlines() == [
            f"subspace-adv: {chunks / '000001'}: its seal.json is damaged; run the sweep again to recompute it",
            f"subspace-adv: {chunks / '000003'}: seal.json is missing; run the sweep again to recompute it",
        ]
    status, out, err = command("run", sweep, "--out", folder)
    assert status == 0
    assert err.splitlines() == [
        f"subspace-adv: {chunks / '000001'}: its seal.json is damaged; computing it again",
        f"subspace-adv: {chunks / '000003'}: seal.json is missing; computing it again",
    ]
    assert command("run", sweep, "--out", folder)[2] == ""


def test_help_has_an_example_of_every_command(command):
    verbs = ("run", "plan", "status", "table", "compare", "export", "attack", "check", "plot", "bench")
    for arguments in ([], ["--help"], ["-h"]):
        status, out, err = command(*arguments)
        assert (status, err) == (0, "")
        assert "Example: subspace-adv run sweeps/quickstart.toml" in out
        assert set(re.findall(r"^│ (\w+) ", out, re.MULTILINE)) == set(verbs)
    for verb in verbs:
        status, out, err = command(verb, "--help")
        assert (status, err) == (0, "")
        assert [line.split()[:3] for line in out.splitlines() if "Example" in line] == [
            ["Example:", "subspace-adv", verb]
        ]
    assert "name=value" in command("run", "--help")[1]


def test_counts_and_durations_are_short():
    assert [count(n, "B") for n in (0, 7, 999, 999.6, 1000, 12_345_678, 5e12, 5e16)] == [
        "0 B",
        "7 B",
        "999 B",
        "1 kB",
        "1 kB",
        "12.3 MB",
        "5 TB",
        "5e+04 TB",
    ]
    assert [cli._duration(s) for s in (3, 119, 600, 7200)] == ["3 s", "119 s", "10 min", "2.0 h"]


@pytest.mark.slow
def test_a_run_as_a_process_is_quiet_and_ends_in_its_table(tmp_path):
    """Also where matplotlib is set up for other work, as in a notebook."""
    write(tmp_path, TINY, "tiny.toml")
    settings = write(tmp_path, "savefig.format: pdf\ntext.usetex: True\n", "matplotlibrc")
    notebook = ["env", "MPLBACKEND=module://not_installed", f"MATPLOTLIBRC={settings}"]
    status, out, err = call(*notebook, COMMAND, "run", "tiny.toml", "width=3", cwd=tmp_path)
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].split()[:2] == ["init_scale", "networks"]
    figures = [line.removeprefix("figure: ") for line in lines if line.startswith("figure: ")]
    assert figures
    assert all((tmp_path / figure).stat().st_size > 1000 for figure in figures)
    assert (tmp_path / "results" / "tiny" / "manifest.json").exists()


@pytest.mark.slow
def test_compiled_programs_are_kept_and_written_anew_if_damaged(tmp_path):
    own_cache = ["env", "-u", "JAX_COMPILATION_CACHE_DIR", "-u", "TF_CPP_MIN_LOG_LEVEL", f"XDG_CACHE_HOME={tmp_path}"]
    own_cache.append(f"MPLCONFIGDIR={matplotlib.get_configdir()}")
    write(tmp_path, TINY)
    outs = iter(("one", "another"))

    def run_anew() -> set[Path]:
        answer = call(*own_cache, COMMAND, "run", "sweep.toml", "width=3", "--out", next(outs), cwd=tmp_path)
        assert (answer[0], answer[2]) == (0, "")
        of_the_engine = ("jit_fill_", "jit_advance_", "jit_measure_", "jit_ambient_")
        return {path for path in (tmp_path / "subspace-adv").rglob("*-cache") if path.name.startswith(of_the_engine)}

    kept = run_anew()
    whole = {path: path.read_bytes() for path in kept}
    assert {path.name.split("_")[1] for path in kept} == {"fill", "advance", "measure", "ambient"}
    for path in kept:
        os.truncate(path, path.stat().st_size // 2)
    assert run_anew() == kept
    assert all(len(path.read_bytes()) > 0.9 * len(whole[path]) for path in kept)


@pytest.mark.slow
def test_processes_that_share_a_folder_of_compiled_programs_leave_each_others_entries(tmp_path):
    """Two at once meet entries in part; what others wrote stays, and what is whole is not written anew."""
    kept = tmp_path / "kept"
    shared = ["env", f"JAX_COMPILATION_CACHE_DIR={kept}", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0"]
    write(tmp_path, TINY)

    def begin(out: str) -> subprocess.Popen[str]:
        return start(*shared, COMMAND, "run", "sweep.toml", "width=3", "--out", out, cwd=tmp_path)

    def states() -> dict[str, tuple[int, int]]:
        return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in kept.iterdir()}

    with begin("first") as first:
        assert (first.communicate()[1], first.returncode) == ("", 0)
    [damaged] = kept.glob("jit_measure_*-cache")
    of_others = damaged.with_name(f"{damaged.name.split('-')[0]}-{'0' * 64}-cache")
    of_others.write_bytes(b"of another machine")
    size = damaged.stat().st_size
    os.truncate(damaged, size // 2)
    before = states()
    with begin("second") as second, begin("third") as third:
        for process in (second, third):
            assert (process.communicate()[1], process.returncode) == ("", 0)
    after = states()
    assert after.keys() == before.keys()
    assert {name for name in before if after[name] != before[name]} == {damaged.name}
    assert damaged.stat().st_size > 0.9 * size
    assert content(tmp_path / "first") == content(tmp_path / "second") == content(tmp_path / "third")


def test_a_mistake_as_a_process(tmp_path):
    write(tmp_path, TINY)
    answer = call(COMMAND, "run", "sweep.toml", "widht=5", cwd=tmp_path)
    assert_refused(answer, "command line: widht: no such field; did you mean 'width'?")
    assert {path.name for path in files(tmp_path)} == {"sweep.toml"}


def test_the_version_is_the_packages(command):
    for verb in ([], ["status"]):
        assert command(*verb, "--version") == (0, f"{version('subspace-adv')}\n", "")


@pytest.mark.slow
def test_a_reader_who_stops_early_is_no_mistake_and_figures_are_drawn(tmp_path):
    write(tmp_path, TINY)
    script = f"{{ {shlex.quote(str(COMMAND))} run sweep.toml width=3 --out out; echo $? >status; }} | true"
    assert call("sh", "-c", script, cwd=tmp_path) == (0, "", "")
    assert (tmp_path / "status").read_text() == "0\n"
    names = ("boundaries", "remedies", "robust_accuracy", "fooling_rate")
    drawn = {path.name: path.read_bytes() for path in (tmp_path / "out" / "figures").iterdir()}
    assert drawn.keys() == {f"{name}.{suffix}" for name in names for suffix in ("png", "svg")}
    assert all(drawn[f"{name}.svg"].endswith(b"</svg>\n") for name in names)
    assert all(drawn[f"{name}.png"].endswith(b"IEND\xaeB`\x82") for name in names)


def test_as_a_module_whose_output_cannot_be_written(tmp_path, tiny):
    script = f"{shlex.quote(sys.executable)} -m subspace_adv status {shlex.quote(str(tiny))} >/dev/full"
    message = "subspace-adv: output: No space left on device\n"
    assert call("sh", "-c", script, cwd=tmp_path) == (2, "", message)


@pytest.mark.parametrize("verb", ["status", "table", "check", "plot", "plan", "bench", "--help"])
def test_output_that_cannot_be_written_is_told(tmp_path, command, monkeypatch, tiny, verb):
    place = {"plan": [write(tmp_path, TINY)], "--help": [], "bench": []}.get(verb, [tiny])
    monkeypatch.setattr(bench, "run", lambda pairs: bench.Bench({"cpu": "a processor"}, 1e9, ()))
    monkeypatch.setattr(plots, "draw", lambda _, folder: [folder])
    with monkeypatch.context() as patch, open("/dev/full", "w", encoding="utf-8") as full:
        patch.setattr(sys, "stdout", full)
        status, _, err = command(verb, *place)
        assert (status, err) == (2, "subspace-adv: output: No space left on device\n")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", None)
        status, _, err = command(verb, *place)
        assert (status, err) == (2, "subspace-adv: standard output is closed; send it to a file, or to /dev/null\n")
    with monkeypatch.context() as patch:
        reader, writer = os.pipe()
        os.close(reader)
        with open(writer, "w", encoding="utf-8") as broken:
            patch.setattr(sys, "stdout", broken)
            assert command(verb, *place) == (0, "", "")


def test_messages_that_cannot_be_written_change_no_exit_status(tmp_path, command, monkeypatch):
    for error in (open("/dev/full", "w", encoding="utf-8"), None):
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", error)
            assert command("status", tmp_path) == (2, "", "")
            sys.stderr.close()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
@pytest.mark.parametrize("verb", ["table", "check", "plot"])
def test_what_an_encoding_lacks_is_replaced(tmp_path, command, monkeypatch, tiny, verb, encoding):
    monkeypatch.setattr(plots, "draw", lambda _, folder: [folder / "λ.png"])
    whole = command(verb, tiny)[1]
    with monkeypatch.context() as patch, (tmp_path / "out").open("w", encoding=encoding) as out:
        patch.setattr(sys, "stdout", out)
        assert command(verb, tiny) == (0, "", "")
    assert (tmp_path / "out").read_bytes() == whole.encode(encoding, errors="replace")
    assert "?" in whole.encode(encoding, errors="replace").decode(encoding)


def test_numbers_are_whole_on_narrow_terminals(command, monkeypatch, tiny):
    whole = command("table", tiny)[1]
    for columns in (100, 60, 20):
        monkeypatch.setenv("FORCE_COLOR", "1")  # which makes any stream a terminal
        monkeypatch.setenv("COLUMNS", str(columns))
        told = re.sub(r"\x1b\[[0-9;]*m", "", command("table", tiny)[1])
        assert sorted(told.split()) == sorted(whole.split())
        assert (max(map(len, told.splitlines())) <= 110) == (columns == 100)


def test_matplotlib_is_not_imported_before_it_is_needed():
    script = "import sys; from subspace_adv import cli; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], env=environment(), check=False).returncode == 0


@pytest.mark.parametrize("number", HANDLED)
def test_an_interrupt_is_told_whatever_the_command(command, monkeypatch, tmp_path, number):
    monkeypatch.setattr(cli.results, "open_results", lambda _: signal.raise_signal(number))
    assert command("table", tmp_path) == (130, "", "subspace-adv: interrupted\n")


def test_signals_that_a_system_lacks_are_not_missed(command, monkeypatch, tmp_path, tiny):
    for name in ("SIGHUP", "SIGALRM", "setitimer", "ITIMER_REAL"):  # as on Windows
        monkeypatch.delattr(signal, name)
    assert command("status", tiny)[0] == 0
    monkeypatch.setattr(cli.results, "open_results", lambda _: signal.raise_signal(signal.SIGINT))
    assert command("table", tmp_path) == (130, "", "subspace-adv: interrupted\n")


def test_an_interrupt_during_garbage_collection_is_not_lost(command, monkeypatch, tmp_path):
    interrupted = []

    def interrupt(phase: str, _: dict) -> None:
        if phase == "stop" and threading.current_thread() is threading.main_thread():
            interrupted.append(phase)
            signal.raise_signal(signal.SIGINT)

    def collects(_: Path) -> None:
        gc.callbacks.append(interrupt)
        try:
            while not interrupted:  # nothing is collected while another thread does
                gc.collect()
        finally:
            gc.callbacks.remove(interrupt)
        time.sleep(10)

    monkeypatch.setattr(cli.results, "open_results", collects)
    assert command("table", tmp_path) == (130, "", "subspace-adv: interrupted\n")


def test_the_rate_shown_is_that_since_training_began(monkeypatch):
    """Not since the start: compiling comes before."""
    moments = iter([100.0, 100.0, 102.0])
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(moments)))
    display = Display()
    display.progress(0, 1000)
    display.progress(1, 3000)
    assert display._progress.tasks[0].fields["rate"] == 2000


def test_compiling_is_shown_until_the_first_is_done(monkeypatch):
    shown = io.StringIO()
    terminal = functools.partial(progress.Terminal, file=shown, force_terminal=True, width=80)
    monkeypatch.setattr(progress, "Terminal", lambda stderr: terminal())
    told = []
    for item in progress.track([5, 6], "attacking", first="compiling"):
        time.sleep(0.3)  # until it is drawn again
        told.append((item, "compiling" in shown.getvalue(), "attacking" in shown.getvalue()))
    assert told == [(5, True, False), (6, True, True)] and "100%" in shown.getvalue()
