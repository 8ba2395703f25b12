"""Runs that are killed, interrupted, damaged or out of disk go on where they stopped, to the very same bytes."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from shell import COMMAND, MANY, MANY_CHUNKS, TINY, call, chunk_states, content, read, start, write

from subspace_adv import UserError, chunkfiles, load_networks, open_results, run
from subspace_adv.process import Listener

SECONDS = 0.4  # a chunk takes longer by

# The command line, but every chunk takes a while, so that there is something to interrupt.
SLOWLY = f"""
import signal, time
from subspace_adv import cli, engine
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored in the background
measure = engine.measure
def slowly(*arguments):
    time.sleep({SECONDS})
    return measure(*arguments)
engine.measure = slowly
cli.main()
"""


class _Messages(Listener):
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple]:
    """What a run yields that nothing interrupts."""
    folder = tmp_path_factory.mktemp("whole") / "many"
    run(read(MANY), folder)
    return content(folder)


def wait_for(process: subprocess.Popen[str], happened: Callable[[], bool], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def start_slowly(folder: Path, out: str, chunks: int) -> subprocess.Popen[str]:
    """Start a run and wait until it has committed so many chunks."""
    process = start(sys.executable, "-c", SLOWLY, "run", "sweep.toml", "--out", out, cwd=folder)
    manifest = folder / out / "manifest.json"
    try:
        wait_for(process, lambda: manifest.exists() and len(chunk_states(folder / out)) >= chunks)
    except BaseException:
        process.kill()
        process.communicate()
        raise
    return process


def assert_resumes(folder: Path, whole: dict[str, tuple], text: str = MANY, chunks: int = MANY_CHUNKS) -> None:
    """The rest is done and nothing else, and all is as if nothing had happened."""
    before = chunk_states(folder)
    run(read(text), folder)
    assert content(folder) == whole
    after = chunk_states(folder)
    assert len(after) == chunks
    assert after.items() >= before.items()
    assert {path.name for path in (folder / "chunks").iterdir()} == set(after)


def kill_and_resume(folder: Path, whole: dict[str, tuple], moment: random.Random, text: str = MANY) -> None:
    write(folder, text)
    process = start_slowly(folder, "out", moment.randrange(MANY_CHUNKS))
    time.sleep(moment.uniform(0, 2 * SECONDS))
    process.kill()
    process.communicate()
    assert_resumes(folder / "out", whole, text)


def test_a_killed_run_goes_on(tmp_path, whole):
    kill_and_resume(tmp_path, whole, random.Random(0))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 21))
def test_runs_killed_at_random_moments_go_on(tmp_path, whole, seed):
    kill_and_resume(tmp_path, whole, random.Random(seed))


DURING = MANY.replace("[axes]", "at_steps = [0, 7, 30]\nat_margins = [-0.3, 0.0]\nkeep_networks = true\n[axes]")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_runs_that_are_measured_on_the_way_go_on_too(tmp_path, seed):
    """In chunks that are whole or not there, snapshots and networks before their stop included."""
    run(read(DURING), tmp_path / "whole")
    kill_and_resume(tmp_path, content(tmp_path / "whole"), random.Random(seed), DURING)
    one, other = (load_networks(tmp_path / name, step=7) for name in ("whole", "out"))
    for field, again in zip(one, other, strict=True):
        np.testing.assert_array_equal(again, field, strict=True)


DEEP = """
name = "deep"
[network]
init = "torch"
[training]
max_steps = 30
[measure]
regions = ["off"]
[axes]
seed = "0:50"
depth = [1, 3]
width = [3, 5]
init_scale = [1.0, 0.7]
learning_rate = [0.02, 1e6]
"""


@pytest.mark.slow
def test_a_killed_run_of_several_depths_goes_on(tmp_path):
    run(read(DEEP), tmp_path / "whole")
    whole, chunks = content(tmp_path / "whole"), len(chunk_states(tmp_path / "whole"))
    for moment in (0, chunks // 2, chunks - 1):
        write(tmp_path, DEEP)
        process = start_slowly(tmp_path, f"out{moment}", moment)
        time.sleep(SECONDS / 2)
        process.kill()
        process.communicate()
        assert_resumes(tmp_path / f"out{moment}", whole, DEEP, chunks)


@pytest.mark.slow
def test_a_run_killed_again_and_again_gets_there(tmp_path, whole):
    write(tmp_path, MANY)
    for chunks in range(MANY_CHUNKS):
        process = start_slowly(tmp_path, "out", chunks)
        process.kill()
        process.communicate()
    assert_resumes(tmp_path / "out", whole)


@pytest.mark.slow
@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_tells_how_to_go_on(tmp_path, whole, signal_number):
    write(tmp_path, MANY)
    out = "it's my  results"
    process = start_slowly(tmp_path, out, 1)
    process.send_signal(signal_number)
    begun = time.monotonic()
    printed, told = process.communicate(timeout=60)
    assert time.monotonic() - begun < 30
    assert process.returncode == 130
    assert printed == ""
    assert told.count("\n") == 1
    assert told.startswith("subspace-adv: interrupted; what is done is kept. Resume with: ")
    kept = chunk_states(tmp_path / out)
    assert 1 <= len(kept) < MANY_CHUNKS
    again = told.partition("Resume with: ")[2]
    status, printed, error = call("sh", "-c", again, cwd=tmp_path)
    assert (status, error) == (0, "")
    assert chunk_states(tmp_path / out).items() >= kept.items()
    assert content(tmp_path / out) == whole


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_an_interrupt_at_any_moment_is_one_line(tmp_path, whole, seed):
    moment = random.Random(seed)
    write(tmp_path, MANY)
    process = start_slowly(tmp_path, "out", moment.randrange(MANY_CHUNKS))
    time.sleep(moment.uniform(0, SECONDS))
    process.send_signal(moment.choice([signal.SIGINT, signal.SIGTERM]))
    _, told = process.communicate(timeout=60)
    if process.returncode == 0:  # it was done before
        assert told == ""
    else:
        assert process.returncode == 130
        assert told.count("\n") == 1
    assert_resumes(tmp_path / "out", whole)


def damage(chunk: Path, how: str) -> None:
    files = sorted(path for path in chunk.rglob("*") if path.is_file() and path.stat().st_size)
    largest = max(files, key=lambda path: path.stat().st_size)
    if how == "flipped byte":
        flipped = bytearray(largest.read_bytes())
        flipped[len(flipped) // 2] ^= 4
        largest.write_bytes(flipped)
    elif how == "truncated file":
        os.truncate(largest, largest.stat().st_size // 2)
    elif how == "deleted file":
        largest.unlink()
    elif how == "half of the folder":
        for path in files[::2]:
            path.unlink()
    else:
        shutil.rmtree(chunk)
        if how == "file in its place":
            chunk.write_text("…")
        else:
            (chunk / "state.orbax-checkpoint-tmp").mkdir(parents=True)


@pytest.mark.parametrize(
    "how",
    ["flipped byte", "truncated file", "deleted file", "half of the folder", "file in its place", "empty folder"],
)
def test_a_damaged_chunk_is_computed_again(tmp_path, whole, how):
    folder, sweep = tmp_path / "out", read(MANY)
    run(sweep, folder)
    before = chunk_states(folder)
    damage(folder / "chunks" / "000001", how)
    with pytest.warns(UserWarning, match="chunks/000001: "):
        pending = open_results(folder)["status"] == 0
    assert pending.sum() == 256
    heard = _Messages()
    run(sweep, folder, heard)
    (message,) = heard.messages
    assert message.startswith(f"{folder / 'chunks' / '000001'}: ")
    assert message.endswith("; computing it again")
    assert content(folder) == whole
    after = chunk_states(folder)
    assert all(after[name] == before[name] for name in after if name != "000001")


def test_a_lost_chunk_is_computed_again(tmp_path, whole):
    run(read(MANY), tmp_path)
    shutil.rmtree(tmp_path / "chunks" / "000002")
    assert_resumes(tmp_path, whole)


def test_a_full_disk_is_told_and_the_run_goes_on(tmp_path, whole, monkeypatch):
    save, saved = chunkfiles._orbax().save, []

    def until_full(path: str, *arguments: object) -> None:
        if len(saved) == 2:
            raise OSError(28, "No space left on device", path)
        saved.append(path)
        save(path, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(chunkfiles._orbax(), "save", until_full)
        with pytest.raises(UserError, match="cannot be saved: No space left on device; make room, then run the same"):
            run(read(MANY), tmp_path)
    assert len(chunk_states(tmp_path)) == 2
    assert_resumes(tmp_path, whole)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a few megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.getuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", folder], check=False).returncode:
        pytest.skip("only root may mount a small disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


# The command line, but somebody else fills the disk once the second chunk is trained.
FILLED = """
import errno
from subspace_adv import cli, engine
measure, calls = engine.measure, []
def filling(*arguments):
    calls.append(arguments)
    if len(calls) == 2:
        with open("disk/ballast", "wb", buffering=0) as ballast:
            try:
                while True:
                    ballast.write(bytes(4096))
            except OSError as error:
                assert error.errno == errno.ENOSPC
    return measure(*arguments)
engine.measure = filling
cli.main()
"""


@pytest.mark.slow
def test_a_disk_that_fills_up_is_told_in_a_line(tmp_path, whole, small_disk):
    write(tmp_path, MANY)
    process = start(sys.executable, "-c", FILLED, "run", "sweep.toml", "--out", "disk/out", cwd=tmp_path)
    printed, told = process.communicate(timeout=120)  # it ends, and soon
    assert process.returncode == 2
    assert printed == ""
    assert told.count("\n") == 1
    assert told.startswith("subspace-adv: disk/out/chunks/00000")
    assert "cannot be saved: No space left on device; make room, then run the same command to resume" in told
    assert len(chunk_states(small_disk / "out")) < MANY_CHUNKS
    (small_disk / "ballast").unlink()
    assert_resumes(small_disk / "out", whole)


@pytest.mark.slow
def test_a_disk_too_small_is_refused_at_once(tmp_path, small_disk):
    write(tmp_path, TINY)
    status, printed, told = call(COMMAND, "run", "sweep.toml", "seed=0:30000", "--out", "disk/out", cwd=tmp_path)
    assert (status, printed) == (2, "")
    assert told.count("\n") == 1
    assert "disk/out: the results need" in told
    assert list(small_disk.iterdir()) == []
