"""Runs a sweep: which chunk runs where and when, what is done already, and progress to whoever listens."""

import itertools
import os
import queue
import shlex
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import jax

from subspace_adv import engine
from subspace_adv.classes import own_classes
from subspace_adv.errors import UserError
from subspace_adv.growing import grown
from subspace_adv.manifest import describe, made_with, origin_difference, program_difference
from subspace_adv.planning import Chunk, Group, Plan, chunks_of, cut, plan
from subspace_adv.results import dataset_of
from subspace_adv.settings import leaves, role
from subspace_adv.shards import Shard
from subspace_adv.store import DamagedChunk, Store, Wanted
from subspace_adv.sweep import Sweep
from subspace_adv.training import Trainer

if TYPE_CHECKING:
    import xarray as xr


class Listener:
    """What a run tells while it goes on; override what is of interest. Calls may come from several threads."""

    def message(self, text: str) -> None:
        """Something a user should know."""

    def start(self, networks: int, done: int) -> None:
        """The number of networks in all, and of those that an earlier run has done."""

    def compiling(self, number: int, total: int) -> None:
        """Group `number` of `total` is being compiled."""

    def progress(self, networks: int, net_steps: int) -> None:
        """So many networks and gradient steps done since the last call."""


def default_out(sweep: Sweep) -> Path:
    """The results folder of a sweep that is given none."""
    return Path("results") / sweep.name


def workers() -> int:
    """Threads that call programs at once: one a core of a CPU, as small ones use one core; else one for all devices."""
    return cores() if jax.default_backend() == "cpu" and jax.local_device_count() == 1 else 1


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run(
    sweep: Sweep | str | Path,
    out: str | Path | None = None,
    listener: Listener | None = None,
    trainer: Trainer | None = None,
    shard: Shard | None = None,
    *,
    grow: bool = False,
    reuse: Sequence[str | Path] = (),
) -> "xr.Dataset":
    """Run a sweep, or what is left of it, into a results folder.

    Args:
        sweep: what to run, or the path of its file.
        out: the results folder; results/NAME by default. If it holds the same sweep, the run is resumed.
        listener: told of progress.
        trainer: what is to advance the networks; where none is given, what is fastest here.
        shard: the part of the plan to run, where other processes or machines run the others into the same folder.
        grow: whether the folder may hold a smaller grid: its results are kept, and what is missing is computed.
        reuse: other results folders, whose networks are taken over where they are those of the sweep.

    Returns:
        All results that there are, as `open_results` gives them.

    Raises:
        UserError: if the folder or the trainer cannot be used, or the disk fills up; the run can be resumed.
        KeyboardInterrupt: after an interrupt; what was committed is kept, and the run can be resumed.
    """
    listener = listener or Listener()
    sweep = Sweep.from_toml(sweep) if isinstance(sweep, str | Path) else sweep
    todo = plan(sweep, trainer)
    store = Store.create(out or default_out(sweep), describe(todo), shared=shard is not None, grow=grow, reuse=reuse)
    try:
        chunks = chunks_of(todo, [(entry.number, entry.cells) for entry in store.entries])
        chunks = chunks if shard is None else shard.part(chunks)
        pending = [chunk for chunk in chunks if not _is_done(store, chunk, listener)]
        cells = sum(len(chunk.cells) for chunk in chunks)
        listener.start(cells, cells - sum(len(chunk.cells) for chunk in pending))
        copied = _copy(store, listener)
        if shard is not None:
            store.share()
        _Workers(sweep, store, [chunk for chunk in pending if chunk.number not in copied], listener).run()
    except Exception:
        store.check_files()  # whatever fails where a file has changed meanwhile, that is why
        raise
    finally:
        store.close()
    return dataset_of(store)


def foresee(todo: Plan, folder: str | Path) -> Iterator[str]:
    """What a run of a plan into a results folder would keep, and what it would compute again, line by line.

    Raises:
        UserError: if the folder cannot hold the plan's sweep, even grown.
    """
    description = describe(todo)
    begun = Wanted(description, grow=True, others=[]).open(Path(folder))
    if begun is None:
        yield f"{folder}: holds no results yet"
        return
    growth = begun.growth or grown(description, begun.store.holder())
    kept, again = (sum(len(entry.cells) for entry in entries) for entries in (growth.kept, growth.again))
    how = " with --grow" if begun.growth else ""
    yield f"{folder}: a run{how} keeps {kept:,} networks and computes {todo.cells - kept:,}"
    if again:
        yield f"{again:,} of those that are there are computed again, by another program: {growth.why}"


def how_to_resume(folder: str | Path) -> str:
    """The command that goes on with a results folder; where none can here, why, and where it can.

    Raises:
        UserError: if it is not a results folder.
    """
    folder, store = Path(folder), Store.open(folder)
    named = [leaf for leaf in leaves() if role(leaf).is_file and store.sweep.reads(leaf)]
    zipped = [leaf for leaf in named if leaf in store.sweep.axes and leaf not in store.sweep.dimensions]
    if store.moved and zipped:  # the command line cannot tell where they are
        files = ", ".join(store.sweep.values(zipped[0]))
        told = (
            f"files have moved, and {zipped[0]} is in a zip; run a copy of {folder / 'sweep.toml'} that tells {files}"
        )
        return f"cannot be resumed as it is: {told}, with --out {folder}"
    moved = [f"{leaf}={','.join(store.sweep.values(leaf))}" for leaf in named if store.moved]
    command = shlex.join(["subspace-adv", "run", str(folder / "sweep.toml"), *moved, "--out", str(folder)])
    if own_classes(store.sweep):  # which are imported by a run alone
        return f"resume with: {command}"
    difference = _difference(store, None)
    for trainer in get_args(Trainer):
        if difference and not _difference(store, trainer):
            return f"resume with: {command} --trainer {trainer}"
    if not difference:
        return f"resume with: {command}"
    made = ", ".join(f"{name} {of}" for name, of in made_with(store.manifest).items())
    return f"cannot be resumed here: {difference}; it can where all is as it was made with: {made}"


def _difference(store: Store, trainer: Trainer | None) -> str | None:
    """What keeps a folder from being resumed here with a trainer, in words."""
    try:
        here = describe(cut(store.sweep, trainer))
        return origin_difference(store.manifest, here) or program_difference(store.manifest, here)
    except UserError as error:
        return str(error)


def _copy(store: Store, listener: Listener) -> set[int]:
    """Take from other folders what they have; the numbers of the chunks that are done by that."""
    done = set()
    for copy in store.copies:
        try:
            arrays = copy.load()
        except DamagedChunk as damage:
            listener.message(f"{damage}; computing its networks again")
            continue
        store.commit(copy.entry.number, arrays)
        listener.progress(len(copy.rows), 0)
        done.add(copy.entry.number)
    return done


def _is_done(store: Store, chunk: Chunk, listener: Listener) -> bool:
    if not store.has(chunk.number):
        return False
    try:
        store.verify(chunk.number)
    except DamagedChunk as damage:
        listener.message(f"{damage}; computing it again")
        store.discard(chunk.number)
        return False
    return True


class _Workers:
    """Threads that train, measure and commit; they share each group's chunks, and one takes those trained alone.

    The thread that calls `run` only waits, so that an interrupt never strikes within a commit.
    """

    def __init__(self, sweep: Sweep, store: Store, pending: list[Chunk], listener: Listener) -> None:
        by_group = itertools.groupby(pending, key=lambda chunk: chunk.group)
        self._groups = [(group, deque(chunks)) for group, chunks in by_group]
        self._sweep, self._store, self._listener = sweep, store, listener
        self._stop, self._committing = threading.Event(), threading.Lock()
        self._ended: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

    def run(self) -> None:
        """Carry out all chunks, or raise the first error of a thread's, or an interrupt, once all have ended."""
        threads = [threading.Thread(target=self._work, args=[worker]) for worker in range(workers())]
        try:
            for thread in threads:
                thread.start()
            for _ in threads:
                if error := self._ended.get():
                    raise error
        finally:
            self._stop.set()
            for thread in threads:
                if thread.ident:  # an interrupt may come before it is started
                    thread.join()

    def _work(self, worker: int) -> None:
        try:
            for number, (group, waiting) in enumerate(self._groups, 1):
                if not (group.alone and worker):
                    self._run_group(number, group, waiting)
            self._ended.put(None)
        except BaseException as error:
            self._ended.put(error)

    def _run_group(self, number: int, group: Group, waiting: deque[Chunk]) -> None:
        if waiting:
            self._listener.compiling(number, len(self._groups))
        # Training beside measurement would take both longer than one after the other, each on all cores.
        beside = workers() if group.fused else 1
        for chunk, trained in engine.train(self._sweep, group, drain(waiting), self._listener.progress, self._stop):
            arrays = engine.saved(chunk, trained) | engine.measure(self._sweep, chunk, trained, self._stop, beside)
            with self._committing:
                if difference := self._store.commit(chunk.number, arrays):
                    self._listener.message(difference)


def drain(waiting: deque[Chunk]) -> Iterator[Chunk]:
    """Take chunks from the left until none is left; several threads may take from one deque."""
    while True:
        try:
            yield waiting.popleft()
        except IndexError:
            return
