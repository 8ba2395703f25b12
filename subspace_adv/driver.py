"""Hands the chunks of a sweep to workers as tasks of an executor: what is under way, what is done, what went wrong.

Nothing here starts JAX: on a machine with an accelerator it would take the memory that a worker needs, and on one
without it would plan for a CPU what workers are to run on accelerators.
"""

import os
from collections import deque
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

import numpy as np

from subspace_adv.chunkfiles import packed
from subspace_adv.errors import UserError
from subspace_adv.manifest import ChunkEntry, Description, excerpt
from subspace_adv.process import Listener, copy, is_done
from subspace_adv.store import Store
from subspace_adv.sweep import Sweep
from subspace_adv.tasks import Commit, Done, Job, describe_plan, work
from subspace_adv.training import Trainer

_CHUNKS = 4  # of a task at most: each takes a core up to 40 seconds, and lanes that one leaves are filled by the next
_UNDER_WAY = 1000  # tasks, where nothing tells how many workers there are
_HELD = 2**28  # bytes of results on their way home, at most
_LOOK_SECONDS = 5.0  # between two looks at how many workers there are

Result = TypeVar("Result")


class Cluster(Executor):
    """An executor that knows how many tasks it can run at a time, which may change while it runs."""

    def slots(self) -> int:
        """Tasks that can run now."""
        raise NotImplementedError


def run(
    sweep: Sweep,
    out: str | Path,
    listener: Listener,
    trainer: Trainer | None,
    *,
    executor: Executor,
    commit: Commit,
    grow: bool,
    reuse: Sequence[str | Path],
) -> Store:
    """Carry out a sweep, or what is left of it, by the workers of an executor; arguments are those of `runner.run`.

    Returns:
        The results folder.

    Raises:
        UserError: if the folder or a worker cannot be used, or a worker has died; the run can be resumed.
        KeyboardInterrupt: after an interrupt, once tasks not yet begun are cancelled; the run can be resumed.
    """
    job = Job(sweep.to_toml(), trainer, os.path.abspath(out), commit, os.getcwd())
    description, messages = _result(executor.submit(describe_plan, job))
    for message in messages:
        listener.message(message)
    theirs, ours = description.origin["versions"]["subspace-adv"], version("subspace-adv")
    if theirs != ours:
        raise UserError(f"workers have subspace-adv {theirs}, and this is {ours}; install one version on all machines")
    store = Store.create(out, description, grow=grow, reuse=reuse)
    try:
        _Tasks(executor, job, store, description, listener).run()
        store.check_files()
        store.finish()
    finally:
        store.close()
    return store


class _Tasks:
    """The chunks of a run that are not done, and the tasks that carry them out."""

    def __init__(
        self, executor: Executor, job: Job, store: Store, description: Description, listener: Listener
    ) -> None:
        self._executor, self._job, self._store, self._listener = executor, job, store, listener
        self._cell_bytes = description.bytes / description.sweep.cells
        pending = [entry for entry in store.entries if not is_done(store, entry.number, listener)]
        listener.start(store.sweep.cells, store.sweep.cells - sum(len(entry.cells) for entry in pending))
        copied = copy(store, self._save, listener)
        self._pending = [entry for entry in pending if entry.number not in copied]
        self._waiting = deque(self._pending)
        self._running: dict[Future[Done], int] = {}  # and how many bytes it is to bring home
        self._ended = 0
        self._last_of: dict[str, int] = {}  # which of all tasks a worker ended last

    def _save(self, number: int, arrays: dict[str, np.ndarray]) -> None:
        """Save a chunk by a worker's storage library, which starts JAX."""
        files = _result(self._executor.submit(packed, self._store.fingerprint(number), arrays))
        self._store.adopt(number, files)

    def run(self) -> None:
        """Carry out all that is left, or raise the first error, or an interrupt."""
        self._listener.workers(0)
        if self._job.commit == "workers":
            self._store.share()
        try:
            while self._waiting or self._running:
                self._begin()
                for future in wait(self._running, _LOOK_SECONDS, FIRST_COMPLETED).done:
                    self._end(future)
        finally:
            for future in self._running:
                future.cancel()
        lost = sum(not self._store.has(entry.number) for entry in self._pending)
        if lost:
            told = f"{lost:,} chunks that workers have saved under this path are not here"
            remedy = "choose a folder that all machines see, or let the driver save them (--commit driver)"
            raise UserError(f"{self._store.folder}: {told}; {remedy}")

    def _begin(self) -> None:
        """Hand out as many tasks as should be under way."""
        slots = self._executor.slots() if isinstance(self._executor, Cluster) else None
        most = _UNDER_WAY if slots is None else 2 * max(slots, 1)
        while self._waiting and len(self._running) < most and self._may_hold_more():
            entries = self._next(slots or os.cpu_count() or 1)
            future = self._executor.submit(work, self._job, excerpt(self._store.manifest, entries))
            self._running[future] = int(self._cell_bytes * sum(len(entry.cells) for entry in entries))

    def _may_hold_more(self) -> bool:
        return self._job.commit == "workers" or sum(self._running.values()) < _HELD

    def _next(self, slots: int) -> list[ChunkEntry]:
        """The chunks of a task: of one program, and fewer at the end, so that no worker is without."""
        size = max(min(_CHUNKS, len(self._waiting) // (2 * slots)), 1)
        entries = [self._waiting.popleft()]
        while self._waiting and len(entries) < size and self._waiting[0].part == entries[0].part:
            entries.append(self._waiting.popleft())
        return entries

    def _end(self, future: Future[Done]) -> None:
        """Take what a task brings home, and tell of it."""
        del self._running[future]
        done = _result(future)
        for number, files in done.files.items():
            self._store.adopt(number, files)
        for message in done.messages:
            self._listener.message(message)
        self._listener.progress(done.networks, done.net_steps)
        self._ended += 1
        self._last_of[done.worker] = self._ended
        lately = self._ended - len(self._running) - 1
        self._listener.workers(sum(last > lately for last in self._last_of.values()))


def _result(future: Future[Result]) -> Result:
    """What a task returns; where its worker died, that it did, in one line."""
    try:
        return future.result()
    except BrokenExecutor as error:
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        raise UserError(f"a worker is lost: {reason}; run the same command to resume") from error
