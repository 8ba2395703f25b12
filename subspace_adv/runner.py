"""Runs a sweep: which chunk runs where and when, what is done already, and progress to whoever listens."""

import itertools
import shlex
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from subspace_adv import driver
from subspace_adv.classes import own_classes
from subspace_adv.errors import UserError, brief
from subspace_adv.growing import grown
from subspace_adv.manifest import describe, made_with, origin_difference, program_difference
from subspace_adv.planning import Plan, chunks_of, cut, plan
from subspace_adv.process import Listener, carry_out, copy, is_done
from subspace_adv.results import dataset_of
from subspace_adv.rows import one_of
from subspace_adv.settings import leaves, role
from subspace_adv.shards import Shard
from subspace_adv.store import Store, Wanted
from subspace_adv.sweep import Sweep
from subspace_adv.tasks import Commit
from subspace_adv.training import Trainer

if TYPE_CHECKING:
    import xarray as xr


_SHARDS_TOLD, _CHUNKS_TOLD = 20, 5  # of those that are not done, and of the chunks that one lacks


def default_out(sweep: Sweep) -> Path:
    """The results folder of a sweep that is given none."""
    return Path("results") / sweep.name


def run(
    sweep: Sweep | str | Path,
    out: str | Path | None = None,
    listener: Listener | None = None,
    trainer: Trainer | None = None,
    *,
    grow: bool = False,
    reuse: Sequence[str | Path] = (),
    executor: Executor | None = None,
    commit: Commit = "workers",
) -> "xr.Dataset":
    """Run a sweep, or what is left of it, into a results folder.

    Args:
        sweep: what to run, or the path of its file.
        out: the results folder; results/NAME by default. If it holds the same sweep, the run is resumed.
        listener: told of progress.
        trainer: what is to advance the networks; where none is given, what is fastest here.
        grow: whether the folder may hold a smaller grid: its results are kept, and what is missing is computed.
        reuse: other results folders, whose networks are taken over where they are those of the sweep.
        executor: whose workers are to compute, on this machine or on others; by default this process does.
        commit: who saves what an executor's workers compute: the "workers", in a folder that all machines see, or the
            "driver", which is this process.

    Returns:
        All results that there are, as `open_results` gives them.

    Raises:
        UserError: if the folder or the trainer cannot be used, or the disk fills up; the run can be resumed.
        KeyboardInterrupt: after an interrupt; what was committed is kept, and the run can be resumed.
    """
    listener = listener or Listener()
    sweep = Sweep.from_toml(sweep) if isinstance(sweep, str | Path) else sweep
    if not isinstance(sweep, Sweep):
        raise UserError(f"{brief(sweep)} is no Sweep; Sweep.from_toml reads one from a file")
    out = out or default_out(sweep)
    if executor is None:
        return dataset_of(_run_here(sweep, out, listener, trainer, None, grow=grow, reuse=reuse))
    if not isinstance(executor, Executor):
        raise UserError(f"executor = {brief(executor)}: must be a concurrent.futures.Executor")
    try:
        one_of(commit, get_args(Commit))
    except ValueError as error:
        raise UserError(f"commit = {brief(commit)}: {error}") from None
    store = driver.run(sweep, out, listener, trainer, executor=executor, commit=commit, grow=grow, reuse=reuse)
    return dataset_of(store)


def run_shard(
    sweep: Sweep,
    shard: Shard,
    out: str | Path,
    listener: Listener,
    trainer: Trainer | None = None,
    *,
    grow: bool = False,
    reuse: Sequence[str | Path] = (),
) -> tuple[int, int]:
    """Run a part of a sweep, where other processes or machines run the others into the same folder; as `run`.

    Returns:
        The networks of the whole sweep that are done, and all of them. Results are not read: of many shards each
        would read those of all.

    Raises:
        UserError: as `run` does.
        KeyboardInterrupt: likewise.
    """
    store = _run_here(sweep, out, listener, trainer, shard, grow=grow, reuse=reuse)
    return sum(len(entry.cells) for entry in store.committed), sweep.cells


def _run_here(
    sweep: Sweep,
    out: str | Path,
    listener: Listener,
    trainer: Trainer | None,
    shard: Shard | None,
    *,
    grow: bool,
    reuse: Sequence[str | Path],
) -> Store:
    todo = plan(sweep, trainer)
    store = Store.create(out, describe(todo), shared=shard is not None, grow=grow, reuse=reuse)
    try:
        chunks = chunks_of(todo, [(entry.number, entry.cells) for entry in store.entries])
        chunks = chunks if shard is None else shard.part(chunks)
        pending = [chunk for chunk in chunks if not is_done(store, chunk.number, listener)]
        cells = sum(len(chunk.cells) for chunk in chunks)
        listener.start(cells, cells - sum(len(chunk.cells) for chunk in pending))
        copied = copy(store, store.commit, listener)
        if shard is not None:
            store.note_shard(*shard)
            store.share()
        carry_out(sweep, [chunk for chunk in pending if chunk.number not in copied], store.commit, listener)
        if shard is None:  # of shards, none knows whether others write too
            store.finish()
    except Exception:
        store.check_files()  # whatever fails where a file has changed meanwhile, that is why
        raise
    finally:
        store.close()
    return store


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


def shards_left(folder: str | Path) -> Iterator[str]:
    """What is left of shards that were begun, in words; nothing of a folder that has none.

    Raises:
        UserError: if it is not a results folder.
    """
    store = Store.open(folder)
    begun = store.shards()
    for of in sorted({of for _, of in begun}):
        parts = {number: Shard(number, of).part(store.entries) for number in range(1, of + 1)}
        missing = {
            number: [entry.number for entry in part if not store.has(entry.number)] for number, part in parts.items()
        }
        left = {number: chunks for number, chunks in missing.items() if chunks}
        yield f"{of - len(left):,} of {of:,} shards done"
        for number, chunks in itertools.islice(left.items(), _SHARDS_TOLD):
            listed = ", ".join(map(str, chunks[:_CHUNKS_TOLD])) + (", …" if len(chunks) > _CHUNKS_TOLD else "")
            told = f"{len(parts[number]) - len(chunks):,} of {len(parts[number]):,} chunks, without {listed}"
            when = f"begun on {begun[number, of]}" if (number, of) in begun else "never begun"
            yield f"  --shard {number}/{of}: {told}; {when}"
        if len(left) > _SHARDS_TOLD:
            yield f"  and {len(left) - _SHARDS_TOLD:,} more"


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
