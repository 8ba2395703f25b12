"""Sweeps that workers of other engines carry out: to the same bytes, whoever dies; who hands them out starts no JAX."""

import importlib.util
import multiprocessing
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from shell import COMMAND, MANY, MANY_CHUNKS, call, chunk_states, content, environment, needs_kernel, read, start, write
from test_cli import assert_refused, command  # noqa: F401, a fixture

from subspace_adv import UserError, driver, manifest, run, tasks
from subspace_adv.process import Listener, cores
from subspace_adv.store import Store

needs_ray, needs_dask, needs_loky = (
    pytest.mark.skipif(
        importlib.util.find_spec(name) is None, reason=f"{name} is not installed; `uv sync --group cluster` does so"
    )
    for name in ("ray", "distributed", "loky")
)
# So many steps that there is time to kill who takes them: over a second a chunk, on two cores.
LONG = ["max_steps=300000", "stop_margin=1e9", "seed=0:2048"]
LONG_CHUNKS = 16


class _Told(Listener):
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.networks = self.net_steps = self.most_workers = 0
        self.started: list[tuple[int, int]] = []

    def message(self, text: str) -> None:
        self.messages.append(text)

    def start(self, networks: int, done: int) -> None:
        self.started.append((networks, done))

    def progress(self, networks: int, net_steps: int) -> None:
        self.networks += networks
        self.net_steps += net_steps

    def workers(self, number: int) -> None:
        self.most_workers = max(self.most_workers, number)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple]:
    """What one process makes."""
    folder = tmp_path_factory.mktemp("whole") / "many"
    run(read(MANY), folder)
    return content(folder)


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple]:
    folder = tmp_path_factory.mktemp("long") / "many"
    run(read(MANY, *LONG), folder)
    return content(folder)


class _Here(Executor):
    """Carries out each task at once, in this process."""

    def __init__(self) -> None:
        self.begun: list[Future] = []

    def submit(self, fn: Callable, /, *arguments: object) -> Future:
        future = Future()
        self.begun.append(future)
        try:
            future.set_result(fn(*arguments))
        except Exception as error:
            future.set_exception(error)
        return future


# What tells of tasks, without workers.


@pytest.mark.parametrize("commit", ["workers", "driver"])
def test_an_executor_makes_what_one_process_makes_and_tells_of_it(tmp_path, whole, commit):
    told = _Told()
    run(read(MANY), tmp_path / "out", told, executor=_Here(), commit=commit)
    assert content(tmp_path / "out") == whole
    assert told.started == [(1024, 0)]
    assert (told.networks, told.net_steps, told.most_workers, told.messages) == (1024, 30 * 1024, 1, [])
    again = _Told()
    here, states = _Here(), chunk_states(tmp_path / "out")
    run(read(MANY), tmp_path / "out", again, executor=here, commit=commit)
    assert again.started == [(1024, 1024)]
    assert len(here.begun) == 1  # the plan
    assert chunk_states(tmp_path / "out") == states
    assert {path.name for path in (tmp_path / "out" / "chunks").iterdir()} == set(states)


@pytest.mark.parametrize("commit", ["workers", "driver"])
def test_what_was_begun_here_is_finished_elsewhere(tmp_path, whole, commit):
    class _Impatient(Listener):
        def progress(self, networks: int, net_steps: int) -> None:
            if (tmp_path / "chunks" / "000000").exists():
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(read(MANY), tmp_path, _Impatient())
    kept = chunk_states(tmp_path)
    damaged = next((tmp_path / "chunks" / min(kept)).rglob("manifest.ocdbt"))
    damaged.write_bytes(b"")
    told = _Told()
    run(read(MANY), tmp_path, told, executor=_Here(), commit=commit)
    assert [message for message in told.messages if "computing it again" in message] == told.messages != []
    assert content(tmp_path) == whole
    assert {name: chunk_states(tmp_path)[name] for name in set(kept) - {min(kept)}} == {
        name: state for name, state in kept.items() if name != min(kept)
    }


def test_other_whole_runs_are_refused_while_workers_write(tmp_path):
    refusals = []

    class _Second(Listener):
        def progress(self, networks: int, net_steps: int) -> None:
            for executor in (None, _Here()):
                with pytest.raises(UserError) as error:
                    run(read(MANY), tmp_path, executor=executor)
                refusals.append(str(error.value))

    run(read(MANY), tmp_path, _Second(), executor=_Here())
    assert refusals
    assert all("another run is writing here" in refusal for refusal in refusals)


def test_a_mistake_is_told_by_the_worker_in_one_line(tmp_path):
    with pytest.raises(UserError, match=r"^on \S+: trainer 'fused' cannot serve: [^\n]+$"):
        run(read(MANY, "depth=2"), tmp_path / "out", executor=_Here(), trainer="fused")
    assert not (tmp_path / "out").exists()


def first_chunk(job: tasks.Job) -> dict[str, Any]:
    """What a task is told of the first chunk of a sweep."""
    description, _ = tasks.describe_plan(job)
    entries = manifest.cut(description)
    return manifest.excerpt(manifest.begin(description, Path(job.folder), entries), entries[:1])


def test_a_folder_that_workers_do_not_see_is_told(tmp_path):
    job = tasks.Job(read(MANY).to_toml(), None, str(tmp_path / "elsewhere"), "workers", str(tmp_path))
    with pytest.raises(UserError, match=r"^on \S+: .*elsewhere: is not here; choose a folder that all machines see"):
        tasks.work(job, first_chunk(job))


def test_chunks_that_are_nowhere_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr(driver, "work", lambda *_: tasks.Done(1, 1, "host 1", {}, []))
    with pytest.raises(UserError, match=rf": {MANY_CHUNKS} chunks that workers have saved under this path"):
        run(read(MANY), tmp_path, executor=_Here())


def test_a_worker_of_another_kind_is_told(tmp_path):
    job = tasks.Job(read(MANY).to_toml(), None, str(tmp_path), "driver", str(tmp_path))
    told = first_chunk(job)
    told["machine"] = told["machine"] | {"device": "tpu"}
    with pytest.raises(UserError, match="was made with device tpu, and this is cpu; let machines of one kind work"):
        tasks.work(job, told)
    told = first_chunk(job)
    told["parts"] = [part | {"trainer": "another"} for part in told["parts"]]
    with pytest.raises(UserError, match="was made with trainer another, and this is "):
        tasks.work(job, told)


def test_workers_of_another_version_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr(driver, "version", lambda _: "99.0")
    with pytest.raises(UserError, match=r"^workers have subspace-adv \S+, and this is 99.0; install one version"):
        run(read(MANY), tmp_path / "out", executor=_Here())
    assert not (tmp_path / "out").exists()


def test_what_is_no_executor_and_who_else_would_commit_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"executor = 3: must be a concurrent.futures.Executor"):
        run(read(MANY), tmp_path, executor=3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match="commit = 'me': must be 'workers' or 'driver'"):
        run(read(MANY), tmp_path, executor=_Here(), commit="me")  # pyright: ignore[reportArgumentType]
    assert not list(tmp_path.iterdir())


class _Late(Executor):
    """Ends tasks in the order of their beginning, a while after each has begun."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1)
        self.under_way = self.most = 0

    def submit(self, fn: Callable, /, *arguments: object) -> Future:
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        future = self._pool.submit(fn, *arguments)
        future.add_done_callback(lambda _: setattr(self, "under_way", self.under_way - 1))
        return future


def test_what_is_on_its_way_home_is_bounded(tmp_path, whole, monkeypatch):
    """Where this process saves, by bytes; a task is under way even where one is over the bound."""
    monkeypatch.setattr(driver, "_HELD", 1)
    late = _Late()
    run(read(MANY), tmp_path / "one", executor=late, commit="driver")
    assert late.most == 1
    assert content(tmp_path / "one") == whole


def test_a_task_has_several_chunks_of_one_group_and_fewer_at_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    taken: list[list[manifest.ChunkEntry]] = []
    sweep = read(MANY, "width=3,9,17", "seed=0:4096", "max_steps=1")

    def work(job: tasks.Job, excerpt: dict[str, Any]) -> tasks.Done:
        taken.append(manifest.entries_of(excerpt))
        return tasks.Done(1, 1, "host 1", {}, [])

    monkeypatch.setattr(driver, "work", work)
    with pytest.raises(UserError, match="are not here"):
        run(sweep, tmp_path, executor=_Here())
    listed = Store.open(tmp_path).entries
    assert [entry.number for entries in taken for entry in entries] == [entry.number for entry in listed]
    assert {entry.part for entry in listed} == {0, 1, 2}
    assert all(len({entry.part for entry in entries}) == 1 for entries in taken)
    assert max(map(len, taken)) == len(taken[0]) == 4
    assert len(taken[-1]) == 1


def test_what_other_folders_hold_is_taken_over_and_a_folder_grows(tmp_path, whole):
    """By a worker's storage library: whoever hands out tasks has none that starts no JAX."""
    run(read(MANY, "seed=0:256"), tmp_path / "part")
    told = _Told()
    run(read(MANY, "seed=0:512"), tmp_path / "reused", told, executor=_Here(), reuse=[tmp_path / "part"])
    assert content(tmp_path / "reused") == whole
    assert (told.networks, told.net_steps) == (1024, 30 * 512)
    kept = chunk_states(tmp_path / "part")
    run(read(MANY), tmp_path / "part", executor=_Here(), commit="driver", grow=True)
    assert content(tmp_path / "part") == whole
    assert chunk_states(tmp_path / "part").items() >= kept.items()


def test_cores_are_those_that_the_environment_admits(monkeypatch):
    monkeypatch.delenv("NPROC", raising=False)
    there = cores()
    for told, expected in (("1", 1), ("1000", there), ("0", there), ("many", there), ("", there)):
        monkeypatch.setenv("NPROC", told)
        assert cores() == expected


# The command line.


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--cluster=rays"], "--cluster: 'rays': must be ray, or ray://host:port of a cluster"),
        (["--cluster=ray://host"], "--cluster: 'ray://host': must be ray, or ray://host:port of a cluster"),
        (["--commit=driver"], "--commit driver: tells who saves what a --cluster computes; leave it out"),
        (["--commit=me", "--cluster=ray"], 'Invalid value "me" for --commit'),
        (["--shard=1/2", "--cluster=ray"], "--shard 1/2: --cluster hands out the whole sweep; leave one of them out"),
    ],
)
def test_mistakes_are_told_before_anything_begins(tmp_path, command, arguments, told):  # noqa: F811
    sweep = write(tmp_path, MANY)
    assert_refused(command("run", sweep, "--out", tmp_path / "out", *arguments), told)
    assert not (tmp_path / "out").exists()


def test_without_ray_what_to_install_is_told(tmp_path, command, monkeypatch):  # noqa: F811
    monkeypatch.setitem(sys.modules, "ray", None)
    answer = command("run", write(tmp_path, MANY), "--cluster", "ray")
    assert_refused(answer, "--cluster: Ray cannot be imported", "pip install 'subspace-adv[cluster]'")


@needs_ray
@pytest.mark.parametrize("address", ["ray://localhost:1", "ray://localhost:99999", "ray://no.such.host.invalid:10001"])
def test_an_address_where_nothing_listens_is_told_soon(tmp_path, address):
    begun = time.monotonic()
    answer = call(COMMAND, "run", write(tmp_path, MANY), "--out", "out", "--cluster", address, cwd=tmp_path)
    assert_refused(answer, f"--cluster: {address}: cannot be reached: ")
    assert time.monotonic() - begun < 30
    assert not (tmp_path / "out").exists()


# Workers of other engines.

# Whatever starts JAX in this process fails; workers do not run what stands under the last line.
WITHOUT_JAX = """
import multiprocessing, sys
from concurrent.futures import ProcessPoolExecutor
import jax
import subspace_adv as sa

if __name__ == "__main__":
    jax.config.update("jax_platforms", "none-here")
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
        sa.run("sweep.toml", "out", executor=executor, commit=sys.argv[1])
    try:
        jax.devices()
    except RuntimeError:
        print("nothing has started JAX")
"""


@pytest.mark.slow
@pytest.mark.parametrize("commit", ["workers", "driver"])
def test_who_hands_out_tasks_never_starts_jax(tmp_path, whole, commit):
    write(tmp_path, MANY)
    write(tmp_path, WITHOUT_JAX, "script.py")
    status, out, err = call(sys.executable, "script.py", commit, cwd=tmp_path)
    assert (status, out) == (0, "nothing has started JAX\n"), err
    assert content(tmp_path / "out") == whole


@contextmanager
def dask() -> Iterator[Executor]:
    from distributed import Client, LocalCluster

    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as local, Client(local) as client:
        yield client.get_executor()


@contextmanager
def loky() -> Iterator[Executor]:
    from loky import ProcessPoolExecutor

    with ProcessPoolExecutor(2) as executor:
        yield executor


def pool() -> Executor:
    return ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of theirs
@pytest.mark.parametrize(
    "engine",
    [pool, pytest.param(dask, marks=needs_dask), pytest.param(loky, marks=needs_loky)],
    ids=["pool", "dask", "loky"],
)
def test_workers_of_any_engine_make_what_one_process_makes(tmp_path, whole, engine):
    with engine() as executor:
        for commit in ("workers", "driver"):
            told = _Told()
            run(read(MANY), tmp_path / commit, told, executor=executor, commit=commit)
            assert content(tmp_path / commit) == whole
            assert (told.networks, told.messages) == (1024, [])
            assert 1 <= told.most_workers <= 2


@pytest.mark.slow
def test_the_script_of_the_documentation_runs(tmp_path, whole):
    text = (Path(__file__).parents[1] / "docs" / "cluster.md").read_text(encoding="utf-8")
    [script] = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    (tmp_path / "sweeps").mkdir()
    write(tmp_path / "sweeps", MANY, "line.toml")
    status, out, err = call(sys.executable, write(tmp_path, script, "script.py"), cwd=tmp_path)
    assert (status, out, err) == (0, "", "")
    assert content(tmp_path / "results" / "many") == whole


@pytest.mark.slow
@needs_kernel
def test_a_worker_that_dies_is_told_in_one_line_and_the_run_goes_on(tmp_path, long):
    class _Killer(Listener):
        def progress(self, networks: int, net_steps: int) -> None:
            for process in multiprocessing.active_children():
                process.kill()

    sweep = read(MANY, *LONG)
    with (
        pytest.raises(UserError, match=r"^a worker is lost: [^\n]+; run the same command to resume$"),
        pool() as executor,
    ):
        run(sweep, tmp_path, _Killer(), executor=executor)
    kept = chunk_states(tmp_path)
    assert 0 < len(kept) < LONG_CHUNKS
    with pool() as executor:
        run(sweep, tmp_path, executor=executor)
    assert content(tmp_path) == long
    assert chunk_states(tmp_path).items() >= kept.items()


# Ray.


def processes(*words: str) -> list[int]:
    """Those whose command lines hold some words."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if entry.name.isdecimal() and all(word in line for word in words):
            found.append(int(entry.name))
    return found


def descends(number: int, ancestor: int) -> bool:
    while number > 1:
        if number == ancestor:
            return True
        try:
            number = int(Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return False
    return False


def committed(folder: Path) -> int:
    return len(chunk_states(folder)) if (folder / "chunks").exists() else 0


def wait_until(happened: Callable[[], object], process: subprocess.Popen[str], seconds: float = 200) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def end(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=300)
    finally:
        process.kill()
    return process.returncode, out, err


@pytest.mark.slow
@needs_ray
@needs_kernel
@pytest.mark.parametrize("commit", ["workers", "driver"])
def test_a_worker_of_ray_is_killed_and_its_task_runs_again(tmp_path, long, commit):
    write(tmp_path, MANY)
    options = ["--out", "out", "--cluster", "ray", "--commit", commit]
    process = start(COMMAND, "run", "sweep.toml", *LONG, *options, cwd=tmp_path)
    wait_until(lambda: committed(tmp_path / "out"), process)
    kept = chunk_states(tmp_path / "out")
    time.sleep(0.5)
    [worker] = [number for number in processes("ray::work") if descends(number, process.pid)]
    os.kill(worker, signal.SIGKILL)
    status, out, err = end(process)
    assert status == 0, err
    assert out.startswith("init_scale"), out  # what Ray says of the worker is elsewhere
    assert "figure: out/figures/" in out
    assert content(tmp_path / "out") == long
    assert chunk_states(tmp_path / "out").items() >= kept.items()


@pytest.mark.slow
@needs_ray
@needs_kernel
def test_an_interrupt_stops_the_tasks_and_leaves_what_can_be_resumed(tmp_path, long):
    write(tmp_path, MANY)
    options = [*LONG, "--out", "out"]
    process = start(COMMAND, "run", "sweep.toml", *options, "--cluster", "ray", "--commit", "workers", cwd=tmp_path)
    wait_until(lambda: committed(tmp_path / "out"), process)
    workers = [number for number in processes("ray::") if descends(number, process.pid)]
    process.send_signal(signal.SIGINT)
    begun = time.monotonic()
    status, out, err = end(process)
    assert time.monotonic() - begun < 30
    assert (status, out) == (130, "")
    again = f"subspace-adv run sweep.toml {' '.join(options)} --cluster ray --commit workers"
    assert err == f"subspace-adv: interrupted; what is done is kept. Resume with: {again}\n"
    assert not set(workers) & set(processes("ray::"))
    kept = chunk_states(tmp_path / "out")
    assert 0 < len(kept) < LONG_CHUNKS
    run(read(MANY, *LONG), tmp_path / "out")
    assert content(tmp_path / "out") == long
    assert chunk_states(tmp_path / "out").items() >= kept.items()


# A cluster of one machine that computes, which is lost once something is done; then another one joins.
NODES = """
import os, sys, threading, time
from pathlib import Path
from typing import Any
for name, value in {"RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0", "RAY_USAGE_STATS_ENABLED": "0"}.items():
    os.environ[name] = value
import ray
from ray.cluster_utils import Cluster
from subspace_adv import cluster, process, run

nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
lost = nodes.add_node(num_cpus=2)
ray.init(nodes.address, log_to_driver=False, logging_level="ERROR")
rays = cluster.RayCluster(ray, elsewhere=True)
assert rays.slots() == 1
chunks = Path("out/chunks")

class Told(process.Listener):
    most = 0
    def workers(self, number):
        self.most = max(self.most, number)

told = Told()
how = {"executor": rays, "commit": sys.argv[1]}
thread = threading.Thread(target=run, args=["sweep.toml", "out", told], kwargs=how)
thread.start()
while not (chunks.exists() and any("partial" not in path.name for path in chunks.iterdir())):
    time.sleep(0.05)
nodes.remove_node(lost, allow_graceful=False)
time.sleep(2)
nodes.add_node(num_cpus=1)
nodes.add_node(num_cpus=1)
thread.join()
print("workers", rays.slots(), told.most)
ray.shutdown()
nodes.shutdown()
"""


@pytest.mark.slow
@needs_ray
@needs_kernel
def test_machines_are_lost_and_join(tmp_path, long):
    """Two small ones take the place of a large one: tasks take fewer cores, and both are at work."""
    sweep = write(tmp_path, read(MANY, *LONG).to_toml())
    write(tmp_path, NODES, "nodes.py")
    assert sweep.name == "sweep.toml"
    status, out, err = end(start(sys.executable, "nodes.py", "driver", cwd=tmp_path))
    assert status == 0, err
    [(slots, most)] = re.findall(r"^workers (\d+) (\d+)$", out, re.MULTILINE)
    assert slots == "2"
    assert int(most) >= 2  # one that is lost counts for a while
    assert content(tmp_path / "out") == long


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return one.getsockname()[1]


@pytest.mark.slow
@needs_ray
def test_a_cluster_that_is_there_takes_tasks_of_those_who_have_its_token(tmp_path, whole):
    ports, own = [free_port(), free_port()], tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # sockets have short paths
    secret = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 2, "RAY_USAGE_STATS_ENABLED": "0"}
    known = environment() | secret | {"RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}  # as docs/cluster.md says
    head = [COMMAND.with_name("ray"), "start", "--head", "--num-cpus=2", "--include-dashboard=false", "--block"]
    head += [f"--port={ports[0]}", f"--ray-client-server-port={ports[1]}", f"--temp-dir={own}"]
    cluster_of_ours = subprocess.Popen(list(map(str, head)), stdout=-3, stderr=-3, env=known, start_new_session=True)
    write(tmp_path, MANY)
    options = ["--out", "out", "--cluster", f"ray://localhost:{ports[1]}", "--commit", "driver"]
    try:
        deadline = time.monotonic() + 240  # a busy machine takes several attempts
        while True:
            done = subprocess.run(
                [COMMAND, "run", "sweep.toml", *options], cwd=tmp_path, env=known, capture_output=True, text=True
            )
            if done.returncode == 0 or time.monotonic() > deadline:
                break
        assert done.returncode == 0, done.stderr
        assert content(tmp_path / "out") == whole
        options[1] = "other"
        for token in ({}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "f" * 32}):
            begun = time.monotonic()
            other = subprocess.run(
                [COMMAND, "run", "sweep.toml", *options],
                cwd=tmp_path,
                env=environment() | token,
                capture_output=True,
                text=True,
            )
            assert_refused((other.returncode, other.stdout, other.stderr), "cannot be reached", "RAY_AUTH_TOKEN")
            assert time.monotonic() - begun < 30
            assert not (tmp_path / "other").exists()
    finally:
        os.killpg(cluster_of_ours.pid, signal.SIGKILL)
        cluster_of_ours.wait()
        shutil.rmtree(own, ignore_errors=True)


@pytest.mark.slow
@needs_ray
def test_under_uv_run_workers_have_the_environment_that_is_there(tmp_path, whole):
    """Ray's own way would start each worker by `uv run`, and so build the package anew for it."""
    if not (uv := shutil.which("uv")):
        pytest.skip("uv is not on the path")
    write(tmp_path, MANY)
    options = ["--out", "out", "--cluster", "ray"]
    project = ["--no-sync", "--project", Path(__file__).parents[1]]
    process = start(uv, "run", *project, "subspace-adv", "run", "sweep.toml", *options, cwd=tmp_path)
    by_uv, seen = [], []
    while process.poll() is None and not (by_uv and seen):
        seen += processes("default_worker.py", "python")
        by_uv += [number for number in processes("default_worker.py", "uv run") if descends(number, process.pid)]
        time.sleep(0.02)
    status, _, err = end(process)
    assert (status, err, by_uv) == (0, "", [])
    assert seen
    assert content(tmp_path / "out") == whole
