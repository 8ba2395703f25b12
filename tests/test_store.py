"""The results folder: whole chunks only, damage noticed, and other people's files left alone."""

import errno
import json
import os
import platform
import random
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import portalocker
import pytest
from shell import MANY, TINY, files, read

from subspace_adv import Sweep, UserError, chunkfiles, manifest, plan, store
from subspace_adv import files as files_of_results
from subspace_adv.attacks import ATTACKS
from subspace_adv.chunkfiles import DamagedChunk
from subspace_adv.contracts import Kernel
from subspace_adv.identity import own_settings
from subspace_adv.manifest import Description, describe, fingerprint, pack, unpack
from subspace_adv.models import fused
from subspace_adv.planning import Plan
from subspace_adv.settings import tables
from subspace_adv.store import Store
from subspace_adv.training import Trainer


def arrays_of(planned: Plan, number: int) -> dict[str, np.ndarray]:
    """Arrays as the engine could have made them, of several dtypes and ranks."""
    rng, n = np.random.default_rng(number), len(planned.chunks[number].cells)
    return {
        "weight": rng.standard_normal((n, 3, 2)).astype(np.float32),
        "head_bias": np.full(n, np.nan, np.float32),
        "status": rng.integers(0, 4, n).astype(np.int8),
        "steps": np.arange(n, dtype=np.int32)[::-1],
    }


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name].dtype == values.dtype
        assert found[name].tobytes() == values.tobytes()


@pytest.fixture
def planned() -> Plan:
    return plan(read(TINY), "xla")


@pytest.fixture
def folder(tmp_path, planned) -> Path:
    """A results folder with both its chunks."""
    made = Store.create(tmp_path / "out", describe(planned))
    for chunk in planned.chunks:
        made.commit(chunk.number, arrays_of(planned, chunk.number))
    made.close()
    return made.folder


def refusal(call, *arguments) -> str:
    with pytest.raises(UserError) as refused:
        call(*arguments)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_what_is_committed_is_read_back(folder, planned):
    opened = Store.open(folder)
    assert opened.sweep == planned.sweep
    assert (folder / "sweep.toml").read_text() == planned.sweep.to_toml()
    for chunk, entry in zip(planned.chunks, opened.entries, strict=True):
        assert np.array_equal(entry.cells, chunk.cells)
        assert opened.has(chunk.number)
        assert_same(opened.load(chunk.number), arrays_of(planned, chunk.number))


def test_the_manifest_tells_what_made_it(folder):
    told = json.loads((folder / "manifest.json").read_text())
    assert told["cells"] == 48
    assert told["versions"] == {name: version(name) for name in ("subspace-adv", "jax", "jaxlib")}
    by = "xla" if fused.unavailable() else f"fused ({fused.instruction_set()})"
    machine = {"device": "cpu", "processor": platform.machine(), "trainer": "xla", "measurer": by}
    assert told["machine"] | {name: told["parts"][0][name] for name in ("trainer", "measurer")} == machine
    assert [unpack(chunk[2]).tolist() for chunk in told["chunks"]] == [list(range(24)), list(range(24, 48))]
    begun = told["begun"]
    assert begun["device_kind"] == "cpu" and begun["device_count"] == len(jax.devices()) and begun["command"]
    assert abs(datetime.now(UTC) - datetime.fromisoformat(begun["started"])).total_seconds() < 600
    assert {path.name for path in folder.iterdir()} == {"sweep.toml", "manifest.json", "chunks", ".lock"}
    assert {path.name for path in (folder / "chunks").iterdir()} == {"000000", "000001"}
    assert not list(folder.glob("*.tmp"))


def test_the_folder_can_be_moved(folder, planned, tmp_path, monkeypatch):
    shutil.move(folder, tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    opened = Store.open("elsewhere")
    assert_same(opened.load(1), arrays_of(planned, 1))


def damages(path: Path) -> list[tuple[str, bytes | None]]:
    content, rng = path.read_bytes(), random.Random(path.name)
    if not content:
        return [("filled", b"x"), ("deleted", None)]
    flipped = bytearray(content)
    flipped[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return [("flipped", bytes(flipped)), ("truncated", content[: len(content) // 2]), ("deleted", None)]


def test_any_damage_to_any_file_of_a_chunk_is_noticed_in_silence(folder, planned, capfd):
    opened, chunk = Store.open(folder), folder / "chunks" / "000001"
    paths = [path for path in sorted(chunk.rglob("*")) if path.is_file()]
    assert len(paths) > 5
    for path in paths:
        content = path.read_bytes()
        for damage, damaged in damages(path):
            if damaged is None:
                path.unlink()
            else:
                path.write_bytes(damaged)
            for reading in (opened.verify, opened.load):
                with pytest.raises(DamagedChunk, match="chunks/000001: "):
                    reading(1)
                    pytest.fail(f"{path} {damage}")
        path.write_bytes(content)
    assert_same(opened.load(1), arrays_of(planned, 1))
    assert capfd.readouterr() == ("", "")


def test_a_chunk_in_pieces_is_noticed(folder):
    opened, chunk = Store.open(folder), folder / "chunks" / "000001"

    def assert_damaged() -> None:
        assert opened.has(1)
        with pytest.raises(DamagedChunk):
            opened.load(1)

    for path in sorted((chunk / "arrays").rglob("*"))[::2]:
        if path.is_file():
            path.unlink()
    assert_damaged()
    shutil.rmtree(chunk / "arrays")
    assert_damaged()
    shutil.rmtree(chunk)
    assert not opened.has(1)
    chunk.mkdir()
    assert_damaged()
    chunk.rmdir()
    chunk.write_text("a file in place of the folder")
    assert_damaged()
    opened.discard(1)
    assert not opened.has(1)
    opened.discard(1)


def drop_files(folder: Path) -> set[Path]:
    """Leave in a folder and those within what systems leave there."""
    inner = [path for path in sorted(folder.rglob("*")) if path.is_dir()]
    names = ("._x", ".DS_Store", "desktop.ini", "Thumbs.db", ".nfs00000000008c0b6f00000001", "._000001.partial")
    dropped = {place / name for place in (folder, *inner) for name in names}
    for path in dropped:
        path.write_bytes(b"not ours")
    return dropped


def test_files_that_the_system_drops_are_no_damage(folder, planned):
    dropped = drop_files(folder)
    for opened in (Store.open(folder), Store.create(folder, describe(planned))):
        for number in (0, 1):
            assert_same(opened.load(number), arrays_of(planned, number))
        opened.close()
    assert {path for path in dropped if not path.exists()} == {folder / "chunks" / "._000001.partial"}


def test_files_that_the_system_drops_make_no_folder_foreign(tmp_path, planned):
    drop_files(tmp_path)
    Store.create(tmp_path, describe(planned)).close()
    assert len(Store.open(tmp_path).entries) == 2


def test_files_dropped_while_a_chunk_is_saved_are_not_sealed(tmp_path, planned, monkeypatch):
    made, save, dropped = Store.create(tmp_path, describe(planned)), chunkfiles._orbax().save, []

    def dropping(path: str, arrays: dict[str, np.ndarray]) -> None:
        save(path, arrays)
        dropped.extend(drop_files(Path(path)))

    monkeypatch.setattr(chunkfiles._orbax(), "save", dropping)
    made.commit(0, arrays_of(planned, 0))
    made.close()
    for path in dropped:
        _, *within = path.relative_to(tmp_path / "chunks").parts
        tmp_path.joinpath("chunks", "000000", *within).unlink()
    assert_same(made.load(0), arrays_of(planned, 0))


def test_what_cannot_be_read_is_told_and_no_damage(folder, monkeypatch):
    opened, chunk = Store.open(folder), folder / "chunks" / "000001"
    monkeypatch.setitem(sys.modules, "tensorstore", None)
    assert refusal(opened.load, 1).startswith(f"{chunk}: cannot be read: import of tensorstore halted")
    opened.verify(1)
    monkeypatch.undo()
    largest = max((path for path in chunk.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    for path in (largest, chunk / "seal.json", chunk):
        path.rename(folder / "aside")
        path.symlink_to(path)
        for reading in (opened.verify, opened.load, *([opened.has] if path == chunk else [])):
            assert refusal(reading, 1) == f"{chunk}: cannot be read: Too many levels of symbolic links"
        path.unlink()
        (folder / "aside").rename(path)
    opened.load(1)


def test_a_path_that_cannot_be_said_is_refused(tmp_path, planned):
    folder = tmp_path / "r\udcc3\udca9sultats"
    message = refusal(Store.create, folder, describe(planned))
    assert (
        message == f"{folder}: a path that is not utf-8 cannot hold results; choose another name, or set PYTHONUTF8=1"
    )
    assert not list(tmp_path.iterdir())


def test_a_chunk_of_another_place_is_damage(folder):
    opened = Store.open(folder)
    opened.discard(1)
    shutil.copytree(folder / "chunks" / "000000", folder / "chunks" / "000001")
    with pytest.raises(DamagedChunk, match="differs from what was saved"):
        opened.load(1)


def test_left_overs_of_a_kill_are_cleared(folder, planned):
    left = folder / "chunks" / "000001.0a.partial" / "arrays.orbax-checkpoint-tmp" / "state"
    left.mkdir(parents=True)
    (folder / "manifest.json.0a.tmp").write_text("{")
    Store.create(folder, describe(planned)).close()
    assert {path.name for path in (folder / "chunks").iterdir()} == {"000000", "000001"}


def test_a_run_killed_before_its_manifest_is_begun_anew(tmp_path, planned):
    out = tmp_path / "out"
    (out / "chunks").mkdir(parents=True)
    (out / ".lock").touch()
    (out / "sweep.toml").write_text(planned.sweep.to_toml())
    (out / "manifest.json.0a.tmp").write_text("{")
    Store.create(out, describe(planned)).close()
    assert len(Store.open(out).entries) == 2


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "make room"),
        (errno.EDQUOT, "make room"),
        (errno.EROFS, "permit writing there"),
        (errno.EACCES, "permit writing there"),
        (errno.ESTALE, "put the folder back in its place"),
        (errno.EIO, "mend that"),
    ],
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_failing_save_names_reason_and_remedy_and_leaves_nothing(
    tmp_path, planned, monkeypatch, number, remedy, wrapped
):
    made = Store.create(tmp_path / "out", describe(planned))
    arrays = arrays_of(planned, 0)

    def failing(path: str, *arguments: object) -> None:
        Path(path).mkdir()
        (Path(path) / "half").touch()
        if not wrapped:
            raise OSError(number, os.strerror(number))
        raise ValueError("write failed") from OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(chunkfiles._orbax(), "save", failing)
        message = refusal(made.commit, 0, arrays)
    said = f"{os.strerror(number)}; {remedy}, then run the same command to resume"
    assert message == f"{tmp_path / 'out' / 'chunks' / '000000'}: cannot be saved: {said}"
    assert list((tmp_path / "out" / "chunks").iterdir()) == []
    made.commit(0, arrays)
    assert_same(made.load(0), arrays)
    made.close()


def test_a_folder_that_is_moved_meanwhile_is_told(tmp_path, planned):
    made, out = Store.create(tmp_path / "out", describe(planned)), tmp_path / "out"
    out.rename(tmp_path / "moved")
    message = refusal(made.commit, 0, arrays_of(planned, 0))
    assert message.endswith(
        "cannot be saved: No such file or directory; put the folder back in its place, "
        "then run the same command to resume"
    )
    (tmp_path / "moved").rename(out)
    made.commit(0, arrays_of(planned, 0))
    made.close()


@pytest.mark.parametrize("size", [0, 1, 2**20 - 1, 2**20, 2**20 + 1, 3 * 2**20 + 5])
def test_the_room_made_sure_of_is_a_block_more_than_the_arrays(tmp_path, monkeypatch, size):
    class _Counting:
        written = 0

        def __init__(self, dir: Path) -> None:
            assert dir == tmp_path

        def __enter__(self) -> "_Counting":
            return self

        def __exit__(self, *error: object) -> None:
            pass

        def write(self, block: bytes) -> None:
            _Counting.written += len(block)

        def flush(self) -> None:
            pass

    monkeypatch.setattr(files_of_results.tempfile, "TemporaryFile", _Counting)
    files_of_results.make_sure_of_room(tmp_path, size)
    assert 2**20 <= _Counting.written - size < 2**21


def test_room_is_made_sure_of_before_a_save(tmp_path, planned, monkeypatch):
    resource = pytest.importorskip("resource")
    signal = pytest.importorskip("signal")
    made = Store.create(tmp_path / "out", describe(planned))
    monkeypatch.setattr(chunkfiles._orbax(), "save", lambda *arguments: pytest.fail("there is no room"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, limits[1]))
        assert "cannot be saved: File too large" in refusal(made.commit, 0, arrays_of(planned, 0))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    made.close()


def test_a_plan_beyond_the_disk_is_refused_before_anything_is_written(tmp_path):
    planned = plan(read("", "width=16777216", "seed=0:100000"), "xla")
    before = files(tmp_path)
    message = refusal(Store.create, tmp_path / "out", describe(planned))
    assert message.startswith(f"{tmp_path / 'out'}: the results need ")
    assert "are free; make room, choose another --out, or fewer cells" in message
    assert files(tmp_path) == before


def test_the_disk_must_hold_what_is_not_there_yet(tmp_path, planned, monkeypatch):
    made = Store.create(tmp_path / "new" / "out", describe(planned))
    made.commit(0, arrays_of(planned, 0))
    made.close()
    held = sum(path.stat().st_size for path in (made.folder / "chunks").rglob("*") if path.is_file())
    asked = []

    def usage_of(free: int) -> Any:
        return lambda path: asked.append(path) or SimpleNamespace(free=free)

    for out, needed in ((made.folder, planned.bytes - held), (tmp_path / "other" / "out", planned.bytes)):
        monkeypatch.setattr(store.shutil, "disk_usage", usage_of(needed - 1))
        assert f"{out}: the results need {planned.bytes / 1e9:.3g} GB" in refusal(Store.create, out, describe(planned))
        monkeypatch.setattr(store.shutil, "disk_usage", usage_of(needed))
        Store.create(out, describe(planned)).close()
    assert asked == [made.folder] * 2 + [tmp_path] * 2


def test_two_runs_cannot_write_one_folder(folder, planned):
    first = Store.create(folder, describe(planned))
    message = refusal(Store.create, folder, describe(planned))
    assert message == f"{folder}: another run is writing here; wait for it, or choose another --out"
    Store.open(folder).load(0)  # reading is free
    first.close()
    Store.create(folder, describe(planned)).close()


def test_those_who_share_a_folder_write_side_by_side(folder, planned):
    """But beside no whole run, and what they have left is cleared by that alone."""
    first, second = (Store.create(folder, describe(planned), shared=True) for _ in range(2))
    left = folder / "chunks" / "000000.0a.partial"
    left.mkdir()
    assert "another run is writing here" in refusal(Store.create, folder, describe(planned))
    first.close()
    Store.create(folder, describe(planned), shared=True).close()
    assert left.exists()
    second.close()
    whole = Store.create(folder, describe(planned))
    assert not left.exists()
    with pytest.raises(UserError, match="another run is writing here"):
        Store.create(folder, describe(planned), shared=True)
    whole.close()


def test_the_first_to_save_a_chunk_has_saved_it(tmp_path, planned):
    first, second = (Store.create(tmp_path, describe(planned), shared=True) for _ in range(2))
    arrays = arrays_of(planned, 0)
    assert first.commit(0, arrays) is None
    assert second.commit(0, arrays) is None
    other = arrays | {"weight": arrays["weight"] + 1}
    told = f"{tmp_path / 'chunks' / '000000'}: another writer saved other values of weight; its own are kept"
    assert second.commit(0, other) == told
    assert_same(first.load(0), arrays)
    assert [path.name for path in (tmp_path / "chunks").iterdir()] == ["000000"]
    first.close()
    second.close()


def test_a_folder_that_another_writer_begins_meanwhile_is_shared_with_it(tmp_path, planned, monkeypatch):
    begin = store.begin

    def slow(*arguments: Any) -> Any:
        monkeypatch.setattr(store, "begin", begin)
        Store.create(tmp_path, describe(planned), shared=True).close()
        before.append((tmp_path / "manifest.json").read_bytes())
        return begin(*arguments) | {"versions": {}}

    before: list[bytes] = []
    monkeypatch.setattr(store, "begin", slow)
    made = Store.create(tmp_path, describe(planned), shared=True)
    assert made.manifest == Store.open(tmp_path).manifest
    assert (tmp_path / "manifest.json").read_bytes() == before[0]
    assert not list(tmp_path.glob("*.tmp"))
    made.close()


# One of four writers, which begin each round at once; two of them are whole runs.
WRITER = """
import errno, os, random, sys, time, warnings
from pathlib import Path
import portalocker
from shell import TINY, read
from test_store import arrays_of
from subspace_adv import plan
from subspace_adv.manifest import describe
from subspace_adv.store import Store

def flock(*arguments):
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

portalocker.portalocker.LOCKER = flock
warnings.simplefilter("ignore")
folder, mine, rounds = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
planned = plan(read(TINY), "xla")
described, numbers = describe(planned), [chunk.number for chunk in planned.chunks]
for n in range(rounds):
    (folder / f"{n}.{mine}.here").touch()
    while len(list(folder.glob(f"{n}.*.here"))) < 4:
        time.sleep(0.001)
    store = Store.create(folder / f"out{n}", described, shared=mine % 2 == 0)
    for number in random.Random(4 * n + mine).sample(numbers, len(numbers)):
        if told := store.commit(number, arrays_of(planned, number)):
            sys.exit(told)
    store.close()
"""


@pytest.mark.slow
def test_without_locks_four_writers_lose_nothing(tmp_path, planned):
    """Fifty times: what each saves is there once, whole and as it was, whoever came first."""
    command = [sys.executable, "-c", WRITER, tmp_path]
    path = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    writers = [
        subprocess.Popen([*command, str(mine), "50"], stderr=subprocess.PIPE, text=True, env=path) for mine in range(4)
    ]
    told = [writer.communicate(timeout=500)[1] for writer in writers]
    assert [writer.returncode for writer in writers] == [0] * 4, told
    for n in range(50):
        made = Store.open(tmp_path / f"out{n}")
        assert {path.name for path in made.folder.iterdir()} == {"chunks", "manifest.json", "sweep.toml", ".lock"}
        assert sorted(path.name for path in (made.folder / "chunks").iterdir()) == ["000000", "000001"]
        for chunk in planned.chunks:
            assert_same(made.load(chunk.number), arrays_of(planned, chunk.number))


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_without_locks_a_run_goes_on_and_says_so(folder, planned, monkeypatch, number):
    """Whose the left-overs are nobody knows, so they stay."""

    def flock(*arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    left = folder / "chunks" / "000000.0a.partial"
    left.mkdir()
    monkeypatch.setattr(portalocker.portalocker, "LOCKER", flock)
    with pytest.warns(UserWarning, match="its file system has no locks; see to it yourself that no other whole run"):
        made = Store.create(folder, describe(planned))
    assert left.exists()
    assert_same(made.load(0), arrays_of(planned, 0))
    made.close()


@pytest.mark.parametrize("links", [True, False])
def test_a_manifest_is_that_of_the_first_with_links_and_without(tmp_path, monkeypatch, links):
    def refuse(*arguments: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "manifest.json"
    assert [files_of_results.write_first(path, text) for text in ("a", "b")] == [True, False]
    assert [file.read_text() for file in tmp_path.iterdir()] == ["a"]


def test_the_lock_of_a_dead_process_is_no_obstacle(folder, planned):
    hold = (
        "import portalocker, sys; file = open(sys.argv[1], 'a+'); portalocker.lock(file, portalocker.LOCK_EX); "
        "print(flush=True); input()"
    )
    with subprocess.Popen([sys.executable, "-c", hold, folder / ".lock"], stdin=-1, stdout=-1) as holder:
        assert holder.stdout
        holder.stdout.readline()
        assert "another run is writing here" in refusal(Store.create, folder, describe(planned))
        holder.kill()
    Store.create(folder, describe(planned)).close()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("max_steps=31",), "training.max_steps is 30 there and 31 here"),
        (("width=3,6",), "axes.width is [3, 5] there and [3, 6] here"),
        (("seed=0:200",), "axes.seed is 0:12 there and 0:200 here;"),
        (
            ("seed=0,1,2,3,4,5,6,7,8,9,10,12",),
            "axes.seed is 0:12 there and [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12] here;",
        ),
        (("weight_decay=0,1",), "axes.weight_decay is not set there and [0.0, 1.0] here"),
        (("trainable=hidden",), "network.trainable is not set there and 'hidden' here"),
        (("regions=off,on",), "measure.regions is ['off'] there and ['off', 'on'] here"),
        (("kind=chessboard",), "data.kind is 'line' there and 'chessboard' here"),
    ],
)
def test_the_folder_of_another_sweep_is_refused(folder, overrides, words):
    before = {path: path.stat().st_mtime_ns for path in files(folder)}
    message = refusal(Store.create, folder, describe(plan(read(TINY, *overrides), "xla")))
    assert message.startswith(f"{folder}: holds another sweep: {words}")
    assert message.endswith("choose another --out")
    assert {path: path.stat().st_mtime_ns for path in files(folder)} == before


@pytest.mark.parametrize(
    ("there", "here", "words"),
    [
        ("0:40:2", "0:42:2", "has 20 values there and 21 here"),
        ("0:42:2", "0:40:2", "has 21 values there and 20 here"),
        ("0:60:2", "0:58:2 61", "has 58 there and 61 here as value number 30"),
        ("0:60:2", "1 2:60:2", "has 0 there and 1 here as value number 1"),
    ],
)
def test_of_long_lists_the_first_difference_is_told(tmp_path, there, here, words):
    def of(seeds: str) -> Plan:
        ranges = (range(*map(int, part.split(":"))) if ":" in part else [part] for part in seeds.split())
        return plan(read(TINY, "seed=" + ",".join(str(seed) for part in ranges for seed in part)), "xla")

    Store.create(tmp_path, describe(of(there))).close()
    message = refusal(Store.create, tmp_path, describe(of(here)))
    grow = "add to it with --grow, or " if there == "0:40:2" else ""
    assert message == f"{tmp_path}: holds another sweep: axes.seed {words}; {grow}choose another --out"


def test_axes_in_another_order_are_another_sweep(folder, planned):
    axes = planned.sweep.axes
    settings = {table: getattr(planned.sweep, table) for table in tables()}
    turned = Sweep(planned.sweep.name, **settings, axes=dict(reversed(axes.items())))
    assert turned == planned.sweep  # as tables go
    message = refusal(Store.create, folder, describe(plan(turned, "xla")))
    assert "in another order, width, seed, init_scale and not init_scale, seed, width" in message


def test_the_name_of_a_sweep_makes_no_difference(folder, planned):
    renamed = Store.create(folder, describe(plan(read(TINY, "name=other"), "xla")))
    assert_same(renamed.load(0), arrays_of(planned, 0))
    renamed.close()


def test_another_version_is_refused(folder, planned, monkeypatch):
    here = version("jax")
    monkeypatch.setattr(manifest, "version", lambda name: "99.0" if name == "jax" else version(name))
    message = refusal(Store.create, folder, describe(planned))
    assert message == f"{folder}: was made with jax {here}, and this is 99.0; choose another --out"
    Store.open(folder)  # reading is free


def test_another_machine_is_refused(folder, planned, monkeypatch):
    here = platform.machine()
    with monkeypatch.context() as patched:
        patched.setattr(manifest.platform, "machine", lambda: "abacus")
        message = refusal(Store.create, folder, describe(planned))
    assert message == f"{folder}: was made with processor {here}, and this is abacus; choose another --out"
    gpu = SimpleNamespace(platform="gpu", device_kind="Abacus 7")
    monkeypatch.setattr(manifest.jax, "local_devices", lambda: [gpu])
    told = refusal(Store.create, folder, describe(planned))
    assert "was made with device cpu, and this is Abacus 7; choose" in told


def test_other_attacks_or_measures_are_refused(folder, planned, monkeypatch):
    monkeypatch.setattr(ATTACKS, "_rows", {"fmn": ATTACKS["fmn"]})
    message = refusal(Store.create, folder, describe(planned))
    assert message == f"{folder}: was made with attacks fmn, fab, and this is fmn; choose another --out"


def by(planned: Plan, trainer: Trainer) -> Plan:
    """The same plan for another trainer."""
    groups = {
        group.cells[0]: group._replace(
            program=group.program._replace(recipe=group.program.recipe._replace(trainer=trainer))
        )
        for group in planned.groups
    }
    chunks = (chunk._replace(group=groups[chunk.group.cells[0]]) for chunk in planned.chunks)
    return planned._replace(groups=tuple(groups.values()), chunks=tuple(chunks))


def test_another_trainer_or_instruction_set_is_refused(tmp_path, planned, monkeypatch):
    monkeypatch.setattr(Kernel, "label", lambda kernel: "fused (avx2)")
    made, kernel = Store.create(tmp_path, describe(planned)), by(planned, "fused")
    made.close()
    difference = "was made with trainer xla, and this is fused (avx2); choose another --out"
    assert refusal(Store.create, tmp_path, describe(kernel)) == f"{tmp_path}: {difference}"
    other = Store.create(tmp_path / "kernel", describe(kernel))
    other.close()
    monkeypatch.setattr(Kernel, "label", lambda kernel: "fused (avx512)")
    difference = "was made with trainer fused (avx2), and this is fused (avx512); choose another --out"
    assert refusal(Store.create, tmp_path / "kernel", describe(kernel)) == f"{tmp_path / 'kernel'}: {difference}"
    wider = Store.create(tmp_path / "wider", describe(kernel))
    wider.close()
    assert len({opened.entries[0].fingerprint for opened in (made, other, wider)}) == 3


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
    return subprocess.run(
        ["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.mark.skipif(not shutil.which("git"), reason="needs git")
def test_the_users_commit_is_kept_and_no_obstacle(tmp_path, planned, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)

    def commit_of(name: str) -> str | None:
        Store.create(tmp_path / name, describe(planned)).close()
        return Store.open(tmp_path / name).manifest["begun"]["commit"]

    assert commit_of("no repository") is None
    git(work, "init", "-q")
    assert commit_of("no commit") is None
    (work / "thesis.tex").write_text("…")
    git(work, "add", ".")
    git(work, "commit", "-q", "-m", "thesis")
    git(work, "tag", "-a", "-m", "v1", "v1")
    commit = git(work, "rev-parse", "HEAD")
    assert commit_of("clean") == commit
    (work / "thesis.tex").write_text("……")
    assert commit_of("dirty") == f"{commit}-dirty"
    assert commit_of("clean") == commit  # that of the beginning
    monkeypatch.setenv("PATH", "")
    assert commit_of("no git") is None
    prints = {Store.open(tmp_path / name).entries[0].fingerprint for name in ("no git", "clean", "dirty")}
    assert len(prints) == 1


def test_the_folder_and_not_the_plan_says_how_cells_are_cut_into_chunks(folder, planned):
    described = describe(planned)
    finer = described._replace(parts=tuple(part._replace(chunk_cells=5) for part in described.parts))
    assert len(manifest.cut(finer)) > len(planned.chunks)
    resumed = Store.create(folder, finer)
    assert [entry.cells.tolist() for entry in resumed.entries] == [chunk.cells.tolist() for chunk in planned.chunks]
    resumed.close()


def test_files_of_others_are_left_alone(tmp_path, planned):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("…")
    assert (
        refusal(Store.create, mine, describe(planned))
        == f"{mine}: holds files that are no results of ours; choose another --out"
    )
    assert files(mine) == {mine / "thesis.tex"}


def test_a_sweep_file_of_the_users_is_not_overwritten(tmp_path, planned):
    (tmp_path / "sweep.toml").write_text("# my notes\n" + TINY)
    assert "holds files that are no results of ours" in refusal(Store.create, tmp_path, describe(planned))
    assert (tmp_path / "sweep.toml").read_text().startswith("# my notes")


def test_places_that_cannot_hold_results(tmp_path, planned):
    file = tmp_path / "file"
    file.write_text("…")
    assert (
        refusal(Store.create, file, describe(planned))
        == f"{file}: cannot hold results: Not a directory; choose another --out"
    )
    inside = file / "inside"
    assert refusal(Store.create, inside, describe(planned)).startswith(f"{inside}: cannot be written: Not a directory")
    assert refusal(Store.create, Path("/proc/out"), describe(planned)).startswith("/proc/out: ")
    assert file.read_text() == "…"


def test_places_that_hold_no_results(tmp_path, folder):
    assert "not a results folder (no manifest.json); `run` makes one" in refusal(Store.open, tmp_path)
    assert "; did you mean 'out'?" in refusal(Store.open, tmp_path / "outt")
    assert "not a results folder" in refusal(Store.open, folder / "sweep.toml")
    (folder / "manifest.json").unlink()
    (folder / "manifest.json").mkdir()
    assert refusal(Store.open, folder) == f"{folder}: cannot be read: Is a directory"


def test_any_damage_to_the_manifest_is_noticed(folder, planned):
    path = folder / "manifest.json"
    content, rng = path.read_bytes(), random.Random(0)
    for place in rng.sample(range(len(content)), 100):
        damaged = bytearray(content)
        damaged[place] ^= 1 << rng.randrange(7)
        if bytes(damaged).split() == content.split():
            continue  # one white space for another
        path.write_bytes(bytes(damaged))
        for call in ((Store.open, folder), (Store.create, folder, describe(planned))):
            assert str(folder) in refusal(*call)
    for damaged in (b"", b"[]", b"null", b"{}", b'{"chunks": []}', b'{"program": "another"}', content[:-40], b"\xff"):
        path.write_bytes(damaged)
        assert refusal(Store.open, folder).startswith(f"{path}: damaged; move the folder away")


def test_a_manifest_without_any_of_its_fields_is_damaged(folder):
    path = folder / "manifest.json"
    whole = json.loads(path.read_text())
    fields = {
        "program",
        "format",
        "cells",
        "sweep",
        "versions",
        "machine",
        "rows",
        "files",
        "chunks",
        "begun",
        "parts",
        "digest",
        "folder",
    }
    assert set(whole) == fields
    within = [(part, name) for part in ("versions", "machine", "rows") for name in whole[part]]
    for part, name in [*((None, field) for field in fields), *within]:
        damaged = json.loads(path.read_text())
        (damaged[part] if part else damaged).pop(name)
        (folder / "manifest.json").write_text(json.dumps(damaged))
        assert refusal(Store.open, folder).startswith(f"{path}: damaged; move the folder away")
        path.write_text(json.dumps(whole))
    Store.open(folder)


def test_a_seal_without_any_of_its_fields_is_damage(folder):
    path = folder / "chunks" / "000001" / "seal.json"
    whole = json.loads(path.read_text())
    assert set(whole) == {"fingerprint", "files", "digest"}
    without = [{name: value for name, value in whole.items() if name != field} for field in whole]
    fewer = whole | {"files": whole["files"][1:]}
    for damaged in (*without, fewer, whole | {"files": []}, whole | {"files": None}, whole | {"files": "x"}, [], None):
        path.write_text(json.dumps(damaged))
        with pytest.raises(DamagedChunk):
            Store.open(folder).verify(1)
            pytest.fail(str(damaged))
    path.write_text(json.dumps(whole))
    Store.open(folder).verify(1)


def test_a_fingerprint_is_of_all_that_the_arrays_depend_on(planned):
    described, cells = describe(planned), planned.chunks[0].cells

    def with_origin(part: str, name: str) -> Description:
        return described._replace(origin=described.origin | {part: described.origin[part] | {name: "?"}})

    def with_part(**changes: Any) -> Description:
        first, *others = described.parts
        return described._replace(parts=(first._replace(made_by=first.made_by | changes), *others))

    others = [
        (described._replace(sweep=read(TINY, "learning_rate=0.03")), 0, cells),
        (described._replace(sweep=read(TINY, "regions=off,on")), 0, cells),
        *((with_origin(part, name), 0, cells) for part, told in described.origin.items() for name in told),
        *((with_part(**{name: "?"}), 0, cells) for name in described.parts[0].made_by),
        (described, 0, cells[:-1]),
        (described, 0, cells + 1),
        (described, 0, cells[::-1]),
    ]
    alike = described._replace(device={}, bytes=0, sweep=read(TINY, "name=other"))

    def of(described: Description, part: int, cells: np.ndarray) -> str:
        return fingerprint(described, part, own_settings(described.sweep, cells, {}))

    assert of(alike, 0, cells.copy()) == of(described, 0, cells)
    assert len({of(*other) for other in [(described, 0, cells), *others]}) == 1 + len(others)


@pytest.mark.parametrize("older", [4, 99])
def test_another_format_is_refused(folder, older):
    whole = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(whole | {"format": older}))
    assert refusal(Store.open, folder) == f"{folder}: of format {older}; this version reads format 9"


def test_any_damage_to_the_resolved_sweep_is_noticed(folder, planned):
    path = folder / "sweep.toml"
    content = path.read_text()
    for damaged in (content.replace("30", "31"), content + "\n", "", content[:-9], content.replace('"off"', '"on"')):
        path.write_text(damaged)
        for call in ((Store.open, folder), (Store.create, folder, describe(planned))):
            assert refusal(*call).startswith(f"{path}: ")
    path.unlink()
    assert refusal(Store.open, folder).startswith(f"{path}: was removed")


def test_indices_are_packed_without_loss():
    rng = np.random.default_rng(0)
    cases = [np.array([5]), np.arange(10), np.arange(3, 90, 7), np.array([0, 1, 3]), np.array([2, 9])]
    cases += [np.sort(rng.choice(1000, size, replace=False)) for size in (2, 3, 50)]
    cases += [np.array([3, 1, 2]), np.array([2, 1, 0])]
    for cells in cases:
        packed = json.loads(json.dumps(pack(cells)))
        assert np.array_equal(unpack(packed), cells)
    assert len(pack(np.arange(0, 10**6, 3))) == 3


def test_a_large_manifest_is_small(tmp_path):
    planned = plan(read(MANY, "seed=0:20000"), "xla")
    Store.create(tmp_path, describe(planned)).close()
    assert (tmp_path / "manifest.json").stat().st_size < 1500 + 100 * len(planned.chunks)
    assert Sweep.from_toml(tmp_path / "sweep.toml") == planned.sweep
