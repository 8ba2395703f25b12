"""Tasks of a sweep that other processes carry out: what any engine that calls functions on other machines is handed.

A task is a function, importable everywhere, of plain values, so that no engine needs to know more of it.
"""

import functools
import os
import platform
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import numpy as np

from subspace_adv import process
from subspace_adv.chunkfiles import packed
from subspace_adv.classes import own_classes
from subspace_adv.errors import UserError
from subspace_adv.manifest import Description, describe, entries_of, origin_difference, program_difference
from subspace_adv.planning import Plan, chunks_of, plan
from subspace_adv.store import Store
from subspace_adv.sweep import Sweep
from subspace_adv.training import Trainer

Commit = Literal["workers", "driver"]
"""Who saves what workers compute: they, in a folder that all machines see, or the process that hands out tasks."""


class Job(NamedTuple):
    """What all tasks of a run are told."""

    sweep: str  # as TOML
    trainer: Trainer | None
    folder: str  # of the results; an absolute path
    commit: Commit
    directory: str  # where modules of the user's own classes are looked for as well


class Done(NamedTuple):
    """What a task tells."""

    networks: int
    net_steps: int
    worker: str  # host and process
    files: dict[int, dict[str, bytes]]  # of chunks by number, where workers do not save them
    messages: list[str]


def describe_plan(job: Job) -> tuple[Description, list[str]]:
    """Plan a sweep, so that whoever hands out tasks need not start JAX; the plan, and what there is to say of it.

    Raises:
        UserError: if the sweep cannot be carried out here.
    """
    with _collected() as messages, _at_host():
        return describe(_plan(job)), messages


def work(job: Job, excerpt: dict[str, Any]) -> Done:
    """Train, measure and save those of some chunks that nobody has saved, or bring them home.

    Args:
        job: what all tasks are told.
        excerpt: of the manifest, with these chunks.

    Raises:
        UserError: if this process is not fit to carry the sweep out, or cannot save what it computes.
    """
    count, files = _Count(), {}
    with _collected() as messages, _at_host():
        todo = _plan(job)
        here = describe(todo)
        if told := origin_difference(excerpt, here) or program_difference(excerpt, here):
            raise UserError(f"{job.folder}: {told}; let machines of one kind work for one folder")
        entries = {entry.number: entry for entry in entries_of(excerpt)}
        chunks = chunks_of(todo, [(entry.number, entry.cells) for entry in entries.values()])
        if job.commit == "driver":

            def pack(number: int, arrays: dict[str, np.ndarray]) -> None:
                files[number] = packed(entries[number].fingerprint, arrays)

            process.carry_out(todo.sweep, chunks, pack, count)
        else:
            store = Store.join(job.folder, todo.sweep, excerpt)
            try:
                left = [chunk for chunk in chunks if not store.has(chunk.number)]
                process.carry_out(todo.sweep, left, store.commit, count)
            finally:
                store.close()
    networks, worker = sum(len(chunk.cells) for chunk in chunks), f"{platform.node()} {os.getpid()}"
    return Done(networks, count.net_steps, worker, files, [*messages, *count.messages])


def _plan(job: Job) -> Plan:
    return _planned(job.sweep, job.trainer, job.directory)


@functools.lru_cache(maxsize=4)
def _planned(text: str, trainer: Trainer | None, directory: str) -> Plan:
    """The plan of a sweep, made once in a process."""
    sweep = Sweep.of_results("sweep.toml", text, {})
    if own_classes(sweep) and directory not in sys.path:
        sys.path.append(directory)
    return plan(sweep, trainer)


@contextmanager
def _at_host() -> Iterator[None]:
    """Mistakes are told with the machine on which they came to light."""
    try:
        yield
    except UserError as error:
        raise UserError(f"on {platform.node()}: {error}") from None


@contextmanager
def _collected() -> Iterator[list[str]]:
    """Warnings within, as words."""
    messages: list[str] = []
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: messages.append(str(message))
        yield messages


class _Count(process.Listener):
    """Adds up steps, and keeps what it is told."""

    def __init__(self) -> None:
        self.net_steps, self.messages, self._adding = 0, [], threading.Lock()

    def message(self, text: str) -> None:
        """Keep it."""
        self.messages.append(text)

    def progress(self, networks: int, net_steps: int) -> None:
        """Add them up."""
        with self._adding:
            self.net_steps += net_steps
