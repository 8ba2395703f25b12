"""Sweeps in parts: by several processes at once, and by a job array's tasks one after the other."""

import platform
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from shell import COMMAND, MANY, MANY_CHUNKS, call, chunk_states, content, environment, needs_kernel, read, start, write
from test_cli import assert_refused, command  # noqa: F401, a fixture

from subspace_adv import UserError, open_results, plan, run
from subspace_adv.process import Listener
from subspace_adv.runner import run_shard
from subspace_adv.shards import Shard
from subspace_adv.training import PENDING


def test_shards_are_parts_of_the_whole_plan():
    todo = plan(read(MANY))
    for n in (1, 2, 3, MANY_CHUNKS + 5):
        parts = [Shard(number, n).part(todo.chunks) for number in range(1, n + 1)]
        assert sorted(chunk.number for part in parts for chunk in part) == list(range(len(todo.chunks)))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("0/3", "command line: --shard: '0/3': must be from 1/3 to 3/3; let the job array count from 1 to 3"),
        ("4/3", "command line: --shard: '4/3': must be from 1/3 to 3/3; let the job array count from 1 to 3"),
        ("1/0", "command line: --shard: '1/0': must be i/n, such as 2/3, the second of three"),
        ("a/b", "command line: --shard: 'a/b': must be i/n, such as 2/3, the second of three"),
        ("2", "command line: --shard: '2': must be i/n, such as 2/3, the second of three"),
        ("-1/3", "command line: --shard: '-1/3': must be i/n, such as 2/3, the second of three"),
    ],
)
def test_what_is_no_shard_is_told_in_one_line(tmp_path, command, text, told):  # noqa: F811
    sweep = write(tmp_path, MANY)
    assert_refused(command("run", sweep, f"--shard={text}", "--out", tmp_path / "out"), told)
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError):
        Shard.read(text)


@pytest.mark.slow
def test_shards_at_once_make_what_one_process_makes(tmp_path):
    """They print how far all are, and draw nothing; the run that ends them computes nothing, prints and draws."""
    whole = run(read(MANY), tmp_path / "whole")
    sweep, out = write(tmp_path, MANY), tmp_path / "out"
    begin = [COMMAND, "run", sweep, "--out", out]
    parts = [
        subprocess.Popen([*begin, "--shard", f"{i}/3"], stdout=-1, stderr=-1, text=True, env=environment())
        for i in (1, 2, 3)
    ]
    told = [part.communicate(timeout=300) for part in parts]
    assert [part.returncode for part in parts] == [0, 0, 0], told
    assert all(printed.startswith("many: ") and printed.endswith("of 1,024 networks done\n") for printed, _ in told)
    assert not (out / "figures").exists()
    made = {path: path.stat().st_mtime_ns for path in (out / "chunks").rglob("*")}
    found = run(read(MANY), out)
    assert {path: path.stat().st_mtime_ns for path in (out / "chunks").rglob("*")} == made
    for name, values in whole.data_vars.items():
        assert found[name].values.tobytes() == values.values.tobytes(), name


def test_what_a_shard_leaves_is_pending(tmp_path):
    done = run_shard(read(MANY), Shard(1, 2), tmp_path, Listener())
    first = open_results(tmp_path)
    assert done == ((first["status"] != PENDING).sum(), first["status"].size)
    todo = plan(read(MANY))
    mine = np.concatenate([chunk.cells for chunk in Shard(1, 2).part(todo.chunks)])
    assert (np.flatnonzero(first["status"].values.ravel() != PENDING) == np.sort(mine)).all()
    assert run_shard(read(MANY), Shard(2, 2), tmp_path, Listener()) == (1024, 1024)
    assert (open_results(tmp_path)["status"] != PENDING).all()


def test_status_tells_what_shards_lack(tmp_path, command):  # noqa: F811
    """Of those of which one was begun; nothing of a folder without shards."""
    out, todo = tmp_path / "out", plan(read(MANY))
    run_shard(read(MANY), Shard(2, 3), out, Listener())
    _, printed, _ = command("status", out)
    missing = {i: [chunk.number for chunk in Shard(i, 3).part(todo.chunks)] for i in (1, 3)}
    assert "1 of 3 shards done\n" in printed
    for i, numbers in missing.items():
        told = ", ".join(map(str, numbers[:5])) + (", …" if len(numbers) > 5 else "")
        assert f"  --shard {i}/3: 0 of {len(numbers)} chunks, without {told}; never begun\n" in printed
    assert f"resume with: subspace-adv run {out / 'sweep.toml'} --out {out}\n" in printed
    shutil.rmtree(out / "chunks" / "000001")
    _, printed, _ = command("status", out)
    assert "0 of 3 shards done\n" in printed
    part = len(Shard(2, 3).part(todo.chunks))
    begun = rf"begun on {platform.node()} at \d{{4}}-\d\d-\d\dT\S+\n"
    assert re.search(rf"  --shard 2/3: {part - 1} of {part} chunks, without 1; {begun}", printed)
    run(read(MANY), out)
    _, printed, _ = command("status", out)
    assert "shard" not in printed


# The command line, but it keeps which chunks it has trained.
LOGGING = """
import os, sys
from subspace_adv import cli, engine
measure = engine.measure
def logging(sweep, chunk, *arguments):
    with open("log", "a") as file:
        file.write(f"{chunk.number}\\n")
    return measure(sweep, chunk, *arguments)
engine.measure = logging
cli.main()
"""


@pytest.mark.slow
@needs_kernel
def test_a_shard_that_is_killed_is_run_again_and_nothing_else_is(tmp_path):
    """Of three at once, midway in a chunk; a plain run then finds nothing to compute."""
    options = ["max_steps=300000", "stop_margin=1e9", "seed=0:2048"]
    todo = plan(read(MANY, *options))
    write(tmp_path, MANY)
    logged = [sys.executable, "-c", LOGGING, "run", "sweep.toml", *options, "--out", "out"]

    def shard(i: int) -> subprocess.Popen[str]:
        return start(*logged, "--shard", f"{i}/3", cwd=tmp_path)

    first, killed, third = map(shard, (1, 2, 3))
    theirs = [f"{chunk.number:06d}" for chunk in Shard(2, 3).part(todo.chunks)]
    deadline = time.monotonic() + 200
    while not any((tmp_path / "out" / "chunks" / name).exists() for name in theirs):
        assert killed.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.5)
    killed.kill()
    killed.communicate()
    kept = chunk_states(tmp_path / "out")
    assert set(theirs) - set(kept)
    for process in (shard(2), first, third):
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
    assert chunk_states(tmp_path / "out").items() >= kept.items()
    computed = Counter(map(int, (tmp_path / "log").read_text().split()))
    assert set(computed) == {chunk.number for chunk in todo.chunks}
    twice = {f"{number:06d}" for number, times in computed.items() if times > 1}
    assert twice <= set(theirs) - set(kept)
    assert max(computed.values()) <= 2
    made = chunk_states(tmp_path / "out")
    status, printed, err = call(*logged, cwd=tmp_path)
    assert (status, err) == (0, "")
    assert "figure: out/figures/" in printed
    assert chunk_states(tmp_path / "out") == made
    assert Counter(map(int, (tmp_path / "log").read_text().split())) == computed
    run(read(MANY, *options), tmp_path / "whole")
    assert content(tmp_path / "out") == content(tmp_path / "whole")


CLUSTER = (Path(__file__).parents[1] / "docs" / "cluster.md").read_text(encoding="utf-8")
SCRIPTS = dict(re.findall(r"^<!-- (\S+) -->\n```sh\n(.*?)^```", CLUSTER, re.DOTALL | re.MULTILINE))
# What each scheduler tells a task of an array, and how that task knows which one it is.
SCHEDULERS = {
    "slurm.sh": ({"SLURM_CPUS_PER_TASK": "1"}, "SLURM_ARRAY_TASK_ID"),
    "pbs.sh": ({"NCPUS": "1", "PBS_O_WORKDIR": "."}, "PBS_ARRAY_INDEX"),
    "lsf.sh": ({"LSB_DJOB_NUMPROC": "1"}, "LSB_JOBINDEX"),
}


def test_every_script_is_run_here():
    assert SCRIPTS.keys() == SCHEDULERS.keys()
    for text in SCRIPTS.values():
        asked = [line for line in text.splitlines() if re.match(r"#(SBATCH|PBS|BSUB) ", line)]
        assert sum("1-100" in line for line in asked) == 1  # as many tasks as `--shard` tells


@pytest.mark.slow
@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_tasks_of_a_job_array_make_a_sweep(tmp_path, tmp_path_factory, name):
    """Two at a time, of one core each, from the script of docs/cluster.md; one has no chunk left."""
    text = MANY if MANY_CHUNKS < 10 else MANY.replace("0:512", "0:128")
    (tmp_path / "sweeps").mkdir()
    write(tmp_path / "sweeps", text, "line.toml")
    script = write(tmp_path, SCRIPTS[name], name)
    told, index = SCHEDULERS[name]
    told = told | {"TMPDIR": str(tmp_path_factory.getbasetemp())}  # where compiled programs are kept
    chunks = len(plan(read(text)).chunks)
    indices = [*range(1, chunks + 1), 100]
    for first in range(0, len(indices), 2):
        tasks = [
            subprocess.Popen(
                ["sh", script],
                cwd=tmp_path,
                env=environment() | told | {index: str(task)},
                stdout=-1,
                stderr=-1,
                text=True,
            )
            for task in indices[first : first + 2]
        ]
        for task in tasks:
            out, err = task.communicate(timeout=300)
            assert (task.returncode, err) == (0, ""), out
            assert out.startswith("many: ")
    assert len(chunk_states(tmp_path / "results" / "line")) == chunks
    run(read(text), tmp_path / "whole")
    assert content(tmp_path / "results" / "line") == content(tmp_path / "whole")
