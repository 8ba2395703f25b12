"""Which data the cells of a sweep have: distinct `[data]` tables, their shapes, and the points they describe."""

import functools

import numpy as np

from subspace_adv.data import FIXED_SHAPES, Data, Shape, chessboard, line, random_subspace, span_basis
from subspace_adv.subspace import Subspace, from_directions
from subspace_adv.sweep import DataSettings, Sweep

DATA_LEAVES = tuple(DataSettings.model_fields)


def data_leaves(sweep: Sweep) -> tuple[str, ...]:
    """The axes that the data depend on."""
    return tuple(axis for axis in sweep.axes if axis in DATA_LEAVES)


def data_settings(sweep: Sweep, values: dict) -> DataSettings:
    """The `[data]` table of cells with the given axis values, with what their kind does not read at default."""
    merged = {leaf: values.get(leaf, getattr(sweep.data, leaf)) for leaf in DATA_LEAVES}
    return DataSettings(**merged) if merged["kind"] == "subspace" else DataSettings(kind=merged["kind"])


def data_shape(settings: DataSettings) -> Shape:
    """Sizes of the dataset that a `[data]` table describes."""
    k = settings.subspace_dim
    return FIXED_SHAPES.get(settings.kind) or Shape(settings.samples, settings.ambient_dim, k, k)


def load_data(settings: DataSettings) -> Data:
    """The dataset that a `[data]` table describes, in coordinates of its span."""
    if settings.kind == "line":
        return line()
    if settings.kind == "chessboard":
        return chessboard()
    return _load_subspace(**settings.model_dump(exclude={"kind", "ambient_dim", "basis"}))


_load_subspace = functools.lru_cache(maxsize=4096)(random_subspace)


@functools.lru_cache(maxsize=64)
def load_span(settings: DataSettings, *, complete: bool = False) -> Subspace:
    """Where the span of a dataset lies: its basis (d, r) and, where `complete`, that of its complement (else empty)."""
    basis = span_basis(**settings.model_dump(exclude={"samples", "distribution", "labels"}))
    return from_directions(basis) if complete else Subspace(basis, basis[:, :0])  # pyright: ignore[reportArgumentType]


def cell_data(sweep: Sweep, cells: np.ndarray) -> tuple[list[DataSettings], np.ndarray]:
    """The distinct `[data]` tables of some cells, and which of them each cell has."""
    names = data_leaves(sweep)
    if not names:
        return [data_settings(sweep, {})], np.zeros(len(cells), np.int64)
    columns = [sweep.column(leaf, cells) for leaf in names]
    number: dict[DataSettings, int] = {}
    which = np.empty(len(cells), np.int64)
    for i, values in enumerate(zip(*(column.tolist() for column in columns), strict=True)):
        settings = data_settings(sweep, dict(zip(names, values, strict=True)))
        which[i] = number.setdefault(settings, len(number))
    return list(number), which


def grid_data(sweep: Sweep) -> tuple[list[DataSettings], np.ndarray]:
    """The distinct `[data]` tables of a sweep, and which of them each cell has.

    Returns:
        The tables, and their indices with one dimension for each axis of the sweep, of length 1 where the data do
        not depend on it.
    """
    names = data_leaves(sweep)
    first = np.zeros((), np.int64)
    for axis, size in zip(sweep.axes, sweep.shape, strict=True):
        first = first[..., None] * size + (np.arange(size) if axis in names else np.zeros(1, np.int64))
    datasets, which = cell_data(sweep, first.ravel())
    return datasets, which.reshape(first.shape)
