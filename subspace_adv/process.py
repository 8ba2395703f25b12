"""Chunks carried out by this process: the threads that train, measure and commit, and what they tell."""

import itertools
import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np

from subspace_adv import engine
from subspace_adv.chunkfiles import DamagedChunk
from subspace_adv.planning import Chunk, Group
from subspace_adv.store import Store
from subspace_adv.sweep import Sweep


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

    def workers(self, number: int) -> None:
        """So many worker processes have lately told of what they did, where others than this one work."""


def cores() -> int:
    """Processor cores that this process may use: no more than NPROC, which also XLA's threads heed."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    told = os.environ.get("NPROC", "")
    return min(usable, int(told)) if told.isdecimal() and int(told) else usable


def threads() -> int:
    """Threads that call programs at once: one a core of a CPU, as small ones use one core; else one for all devices."""
    return cores() if jax.default_backend() == "cpu" and jax.local_device_count() == 1 else 1


def is_done(store: Store, number: int, listener: Listener) -> bool:
    """Whether a chunk is committed and whole; one that is damaged is removed."""
    if not store.has(number):
        return False
    try:
        store.verify(number)
    except DamagedChunk as damage:
        listener.message(f"{damage}; computing it again")
        store.discard(number)
        return False
    return True


Save = Callable[[int, dict[str, np.ndarray]], str | None]
"""Saves the arrays of a chunk, by its number; returns what a user should know of that."""


def copy(store: Store, commit: Save, listener: Listener) -> set[int]:
    """Take from other folders what they have of a store's chunks; the numbers of those that are done by that."""
    done = set()
    for one in store.copies:
        try:
            arrays = one.load()
        except DamagedChunk as damage:
            listener.message(f"{damage}; computing its networks again")
            continue
        commit(one.entry.number, arrays)
        listener.progress(len(one.rows), 0)
        done.add(one.entry.number)
    return done


def carry_out(sweep: Sweep, chunks: Sequence[Chunk], commit: Save, listener: Listener) -> None:
    """Train and measure chunks, on all cores or devices of this process, and commit each as soon as it is done.

    Raises:
        UserError: if a chunk cannot be saved.
        KeyboardInterrupt: after an interrupt; what was committed is kept.
    """
    _Threads(sweep, chunks, commit, listener).run()


class _Threads:
    """Threads that train, measure and commit; they share each group's chunks, and one takes those trained alone.

    The thread that calls `run` only waits, so that an interrupt never strikes within a commit.
    """

    def __init__(self, sweep: Sweep, chunks: Sequence[Chunk], commit: Save, listener: Listener) -> None:
        by_group = itertools.groupby(chunks, key=lambda chunk: chunk.group)
        self._groups = [(group, deque(chunks)) for group, chunks in by_group]
        self._sweep, self._commit, self._listener = sweep, commit, listener
        self._stop, self._committing = threading.Event(), threading.Lock()
        self._ended: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

    def run(self) -> None:
        """Carry out all chunks, or raise the first error of a thread's, or an interrupt, once all have ended."""
        begun = [threading.Thread(target=self._work, args=[thread]) for thread in range(threads())]
        try:
            for thread in begun:
                thread.start()
            for _ in begun:
                if error := self._ended.get():
                    raise error
        finally:
            self._stop.set()
            for thread in begun:
                if thread.ident:  # an interrupt may come before it is started
                    thread.join()

    def _work(self, thread: int) -> None:
        try:
            for number, (group, waiting) in enumerate(self._groups, 1):
                if not (group.alone and thread):
                    self._run_group(number, group, waiting)
            self._ended.put(None)
        except BaseException as error:
            self._ended.put(error)

    def _run_group(self, number: int, group: Group, waiting: deque[Chunk]) -> None:
        if waiting:
            self._listener.compiling(number, len(self._groups))
        # Training beside measurement would take both longer than one after the other, each on all cores.
        beside = threads() if group.fused else 1
        for chunk, trained in engine.train(self._sweep, group, drain(waiting), self._listener.progress, self._stop):
            arrays = engine.saved(chunk, trained) | engine.measure(self._sweep, chunk, trained, self._stop, beside)
            with self._committing:
                if difference := self._commit(chunk.number, arrays):
                    self._listener.message(difference)


def drain(waiting: deque[Chunk]) -> Iterator[Chunk]:
    """Take chunks from the left until none is left; several threads may take from one deque."""
    while True:
        try:
            yield waiting.popleft()
        except IndexError:
            return
