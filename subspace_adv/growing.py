"""Which results that folders hold are those of a sweep's cells, so that only the others are computed."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from subspace_adv.errors import UserError
from subspace_adv.identity import differing, own_settings
from subspace_adv.manifest import ChunkEntry, Description, fingerprint, origin_difference
from subspace_adv.settings import leaves
from subspace_adv.sweep import Sweep


class Holder(NamedTuple):
    """What a results folder holds."""

    sweep: Sweep
    manifest: dict[str, Any]
    entries: Sequence[ChunkEntry]
    done: set[int]  # numbers of the chunks that are there


class Kept(NamedTuple):
    """Cells of a folder's chunk that are some of a sweep's."""

    number: int  # of the chunk in its folder
    rows: np.ndarray  # which of its cells
    cells: np.ndarray  # flat indices into the sweep's grid, one for each row
    part: int  # of the sweep's description
    fingerprint: str  # of them


class Growth(NamedTuple):
    """What becomes of a folder's chunks when its sweep grows."""

    kept: list[ChunkEntry]  # as the sweep numbers their cells
    again: list[ChunkEntry]  # as the folder has them: another program computes their cells now
    why: str = ""  # that is so


def grown(description: Description, holder: Holder) -> Growth:
    """The chunks of a folder in a larger sweep, which has all of its cells.

    Raises:
        UserError: if the sweep lacks any, or their results would be others; telling what differs.
    """
    sweep = description.sweep
    if told := origin_difference(holder.manifest, description) or _order_difference(holder.sweep, sweep):
        raise UserError(told)
    kept, again, why = [], [], ""
    places, part_of = _Places(holder.sweep, sweep), description.part_of
    for entry in holder.entries:
        cells = places.of(entry.cells)
        there = own_settings(holder.sweep, entry.cells, holder.sweep.files())
        lacking = cells < 0
        if lacking.any():
            raise UserError(f"would drop results: {places.lacking(entry.cells[lacking][0])}")
        here = own_settings(sweep, cells, sweep.files())
        for leaf, differs in differing(there, here).items():
            first = int(np.flatnonzero(differs)[0])
            was, now = (_value(of, leaf, at[first]) for of, at in ((holder.sweep, entry.cells), (sweep, cells)))
            raise UserError(f"would drop results: {leaves()[leaf]}.{leaf} is {was} there and {now} here")
        part = int(part_of[cells[0]])
        of = fingerprint(description, part, here)
        if of != entry.fingerprint:
            why = _other_program(holder.manifest["parts"][entry.part], description.parts[part].made_by)
        if entry.number in holder.done and of == entry.fingerprint:
            kept.append(ChunkEntry(entry.number, part, cells, of))
        elif entry.number in holder.done:
            again.append(entry)
    return Growth(kept, again, why)


def reused(description: Description, holder: Holder, free: np.ndarray) -> list[Kept]:
    """The cells of a folder that are some of a sweep's, of equal results.

    Args:
        description: of the sweep.
        holder: the folder.
        free: (cells,) bool, the sweep's cells of which there are no results yet; those that are found are cleared.

    Raises:
        UserError: if there are none, telling why.
    """
    if told := origin_difference(holder.manifest, description):
        raise UserError(told)
    sweep, part_of, found = description.sweep, description.part_of, []
    places, known, why = _Places(holder.sweep, sweep), False, "it holds none"
    for entry in (entry for entry in holder.entries if entry.number in holder.done):
        cells = places.of(entry.cells)
        rows = np.flatnonzero(cells >= 0)
        if not len(rows):
            why = places.lacking(entry.cells[0])
            continue
        there = own_settings(holder.sweep, entry.cells[rows], holder.sweep.files())
        equal = np.ones(len(rows), np.bool_)
        for leaf, differs in differing(there, own_settings(sweep, cells[rows], sweep.files())).items():
            equal &= ~differs
            why = f"{leaves()[leaf]}.{leaf} is another one there"
        known |= bool(equal.any())
        rows = rows[equal & free[cells[rows]]]
        if not len(rows):
            continue
        part = int(part_of[cells[rows[0]]])
        there_made, here_made = holder.manifest["parts"][entry.part], description.parts[part].made_by
        if there_made != here_made:
            known, why = False, f"another program made its networks: {_other(there_made, here_made)}"
            continue
        free[cells[rows]] = False
        settings = own_settings(sweep, cells[rows], sweep.files())
        found.append(Kept(entry.number, rows, cells[rows], part, fingerprint(description, part, settings)))
    if not (found or known):
        raise UserError(f"holds no results of this sweep; {why}")
    return found


def _order_difference(there: Sweep, here: Sweep) -> str | None:
    was = [name for name in there.dimensions if name in here.dimensions]
    now = [name for name in here.dimensions if name in there.dimensions]
    return None if was == now else f"holds the axes in another order, {', '.join(was)} and not {', '.join(now)}"


class _Places:
    """Where the cells of one grid are in another, by the values that they have on its dimensions."""

    def __init__(self, there: Sweep, here: Sweep) -> None:
        self._there, self._shape = there, here.shape
        self._numbers = [  # along each dimension, by the values of its fields
            (tuple(fields), {values: i for i, values in enumerate(zip(*fields.values(), strict=True))})
            for fields in here.dimensions.values()
        ]
        self._tables = [  # the same by the numbers of the values there, where there is one field
            np.array([number.get((value,), -1) for value in there.values(fields[0])]) if len(fields) == 1 else None
            for fields, number in self._numbers
        ]

    def of(self, cells: np.ndarray) -> np.ndarray:
        """Flat indices into the other grid; −1 of cells that are not in it."""
        found, inside = np.zeros(len(cells), np.int64), np.ones(len(cells), np.bool_)
        for dimension, size in enumerate(self._shape):
            place = self._along(dimension, cells)
            inside &= place >= 0
            found = found * size + place
        return np.where(inside, found, -1)

    def lacking(self, cell: int) -> str:
        """Which of the values of a cell the other grid lacks, in words."""
        for dimension, (fields, _) in enumerate(self._numbers):
            if self._along(dimension, np.array([cell]))[0] < 0:
                told = " with ".join(f"{leaf} = {_value(self._there, leaf, cell)}" for leaf in fields)
                return f"{told} is not among the values here"
        raise ValueError(f"cell {cell} is in the grid")

    def _along(self, dimension: int, cells: np.ndarray) -> np.ndarray:
        (fields, number), table = self._numbers[dimension], self._tables[dimension]
        which = [self._there.places(leaf, cells) for leaf in fields]
        if table is not None:
            return table[which[0]]
        held, back = np.unique(np.stack(which), axis=1, return_inverse=True)
        told = [self._there.values(leaf) for leaf in fields]
        places = [number.get(tuple(of[i] for of, i in zip(told, one, strict=True)), -1) for one in held.T.tolist()]
        return np.array(places)[back.ravel()]


def _value(sweep: Sweep, leaf: str, cell: int) -> Any:
    [place] = sweep.places(leaf, np.array([cell]))
    return sweep.values(leaf)[place]


def _other_program(there: dict[str, Any], here: dict[str, Any]) -> str:
    """In what a program differs that serves the same cells now, in words.

    Raises:
        UserError: if it is not of the same code.
    """
    for name in ("trainer", "measurer", "class"):
        if there.get(name) != here.get(name):
            raise UserError(f"was made with {name} {there.get(name)}, and this is {here.get(name)}")
    return _other(there, here)


def _other(there: dict[str, Any], here: dict[str, Any]) -> str:
    differing = (name for name in there | here if there.get(name) != here.get(name))
    return ", ".join(f"{name} was {there.get(name)} and is {here.get(name)}" for name in differing)
