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

    values: tuple[str, ...]  # distinct, in JSON, in the order of their texts; null where cells do not read the field
    which: np.ndarray  # (cells,) that each cell has, an index


def own_settings(sweep: Sweep, cells: np.ndarray, files: Mapping[str, str]) -> dict[str, Column]:
    """The fields that some of a sweep's cells read, by name, with their values.

    Args:
        sweep: the sweep.
        cells: flat indices into its grid.
        files: digests by path, of files that the sweep names; they stand for the paths.
    """
    columns = {leaf: _column(sweep, leaf, cells, files) for leaf in leaves() if sweep.reads(leaf)}
    return {leaf: column for leaf, column in columns.items() if column.values != ("null",)}


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
    unread = Column(("null",), np.zeros(1, np.int64))
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
    values: list[Any] = list(sweep.values(leaf))
    which = np.array(sweep.places(leaf, cells))
    if leaves()[leaf] == "data" and None in values:  # each kind has a default of its own
        unset = np.array([value is None for value in values])[which]
        kinds = sweep.values("kind")
        for i, kind in enumerate(kinds):
            if leaf in KINDS[kind].model_fields:
                which[unset & (sweep.places("kind", cells) == i)] = len(values)
                values.append(KINDS[kind].model_fields[leaf].default)
    which[~np.broadcast_to(_reading(sweep, leaf, cells), len(cells))] = len(values)
    values.append(None)
    if role(leaf).is_file:
        values = [files.get(value, value) for value in values]
    held = np.unique(which).tolist()
    texts = {i: json.dumps(values[i]) for i in held}
    rank = {text: i for i, text in enumerate(sorted(set(texts.values())))}
    number = np.zeros(len(values), np.int64)
    number[held] = [rank[texts[i]] for i in held]
    return Column(tuple(rank), number[which])


def _reading(sweep: Sweep, leaf: str, cells: np.ndarray) -> Any:
    """Which of the cells read a field, (cells,) bool or one for all."""
    conditions = read_where(leaf)
    if leaf in OF_SNAPSHOTS or not conditions:
        return True  # as the sweep does
    return np.logical_or.reduce(
        [
            np.logical_and.reduce([_has(sweep, decider, values, cells) for decider, values in condition.items()])
            for condition in conditions
        ]
    )


def _has(sweep: Sweep, leaf: str, values: tuple[str, ...], cells: np.ndarray) -> np.ndarray:
    """Which of the cells have one of some values of a field."""
    return np.array([row_name(value) in values for value in sweep.values(leaf)])[sweep.places(leaf, cells)]
