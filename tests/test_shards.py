"""Sweeps in parts: by several processes at once, and by a job array's tasks one after the other."""

import subprocess

import numpy as np
import pytest
from shell import COMMAND, MANY, MANY_CHUNKS, environment, read, write
from test_cli import assert_refused, command  # noqa: F401, a fixture

from subspace_adv import UserError, plan, run
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


def test_shards_at_once_make_what_one_process_makes(tmp_path):
    """They print how far all are, and draw nothing; the run that ends them computes nothing, prints and draws."""
    whole = run(read(MANY), tmp_path / "whole")
    sweep, out = write(tmp_path, MANY), tmp_path / "out"
    start = [COMMAND, "run", sweep, "--out", out]
    parts = [
        subprocess.Popen([*start, "--shard", f"{i}/3"], stdout=-1, stderr=-1, text=True, env=environment())
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
    first = run(read(MANY), tmp_path, shard=Shard(1, 2))
    todo = plan(read(MANY))
    mine = np.concatenate([chunk.cells for chunk in Shard(1, 2).part(todo.chunks)])
    assert (np.flatnonzero(first["status"].values.ravel() != PENDING) == np.sort(mine)).all()
    assert (run(read(MANY), tmp_path, shard=Shard(2, 2))["status"] != PENDING).all()
