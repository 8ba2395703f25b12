"""What results depend on: the settings that each cell reads, whatever the grid it is in."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from subspace_adv.data import KINDS
from subspace_adv.models import row_name
from subspace_adv.settings import OF_SNAPSHOTS, leaves, read_where, role
from subspace_adv.sweep import Sweep


class Column(NamedTuple):
    """A field's values in some cells."""

    values: tuple[Any, ...]  # distinct, in order, first None where some cells do not read the field
    which: np.ndarray  # (cells,) that each cell has, an index


def own_settings(sweep: Sweep, cells: np.ndarray, files: Mapping[str, str]) -> dict[str, Column]:
    """The fields that some of a sweep's cells read, by name, with their values.

    Args:
        sweep: the sweep.
        cells: flat indices into its grid.
        files: digests by path, of files that the sweep names; they stand for the paths.
    """
    columns = {leaf: _column(sweep, leaf, cells, files) for leaf in leaves() if sweep.reads(leaf)}
    return {leaf: column for leaf, column in columns.items() if column.values != (None,)}


def digest(settings: Mapping[str, Column]) -> str:
    """Of the settings of some cells, in the order of the cells."""
    found = hashlib.sha256()
    for leaf, (values, which) in sorted(settings.items()):
        found.update(json.dumps([leaf, values]).encode())
        if len(values) > 1:
            found.update(which.astype("<i4").tobytes())
    return found.hexdigest()


def differing(there: Mapping[str, Column], here: Mapping[str, Column]) -> dict[str, np.ndarray]:
    """The fields in which some cells differ from as many others, by name, and which cells do, (cells,) bool."""
    unread = Column((None,), np.zeros(1, np.int64))
    found = {}
    for leaf in sorted(there.keys() | here.keys()):
        (their_values, theirs), (our_values, ours) = there.get(leaf, unread), here.get(leaf, unread)
        number = {value: i for i, value in enumerate(dict.fromkeys((*their_values, *our_values)))}
        codes = [np.array([number[value] for value in values]) for values in (their_values, our_values)]
        differs = codes[0][theirs] != codes[1][ours]
        if differs.any():
            found[leaf] = differs
    return found


def _column(sweep: Sweep, leaf: str, cells: np.ndarray, files: Mapping[str, str]) -> Column:
    values: list[Any] = [files[path] for path in sweep.values(leaf)] if role(leaf).is_file else [*sweep.values(leaf)]
    reading = _reading(sweep, leaf, cells)
    by_kind = leaves()[leaf] == "data" and None in values  # each kind has a default of its own
    if len(values) == 1 and isinstance(reading, bool) and not by_kind:
        return Column((values[0] if reading else None,), np.zeros(len(cells), np.int64))
    which = np.array(sweep.places(leaf, cells))
    if by_kind:
        unset = np.array([value is None for value in values])[which]
        for i, kind in enumerate(sweep.values("kind")):
            if leaf in KINDS[kind].model_fields:
                which[unset & (sweep.places("kind", cells) == i)] = len(values)
                values.append(KINDS[kind].model_fields[leaf].default)
    which[~np.broadcast_to(reading, len(cells))] = len(values)
    values.append(None)
    held = {i: values[i] for i in np.unique(which).tolist()}
    distinct = set(held.values())
    ordered = [*({None} & distinct), *sorted(distinct - {None})]
    rank = {value: i for i, value in enumerate(ordered)}
    number = np.zeros(len(values), np.int64)
    number[list(held)] = [rank[value] for value in held.values()]
    return Column(tuple(ordered), number[which])


def _reading(sweep: Sweep, leaf: str, cells: np.ndarray) -> np.ndarray | bool:
    """Which of the cells read a field, (cells,), or whether all do."""
    conditions = read_where(leaf)
    if leaf in OF_SNAPSHOTS or not conditions:
        return True  # as the sweep does
    found: np.ndarray | bool = False
    for condition in conditions:
        holds: np.ndarray | bool = True
        for decider, values in condition.items():
            holds = _has(sweep, decider, values, cells) & holds
        found = holds | found
    return found


def _has(sweep: Sweep, leaf: str, values: tuple[str, ...], cells: np.ndarray) -> np.ndarray | bool:
    """Which of the cells have one of some values of a field, (cells,), or whether all do."""
    has = [row_name(value) in values for value in sweep.values(leaf)]
    return has[0] if len(has) == 1 else np.array(has)[sweep.places(leaf, cells)]
