"""Which datasets the cells of a sweep have, and what they hold, each drawn once."""

import functools

import numpy as np

from subspace_adv.data import Data, DataSettings
from subspace_adv.geometry import Subspace
from subspace_adv.receptive_fields import Dense, ReceptiveFields
from subspace_adv.reduction import InputSpan
from subspace_adv.settings import leaves
from subspace_adv.sweep import Sweep


def data_fields(sweep: Sweep) -> tuple[str, ...]:
    """The fields that vary and decide on the data."""
    return tuple(leaf for leaf in sweep.axes if leaves()[leaf] == "data")


def load_data(settings: DataSettings) -> Data:
    """A dataset, in coordinates of its span."""
    return _draw(settings.unplaced(), settings.version)


@functools.lru_cache(maxsize=4096)
def _draw(settings: DataSettings, version: str) -> Data:
    del version  # a file that has changed is another dataset
    return settings.draw()


def load_span(settings: DataSettings, *, complete: bool = False) -> Subspace:
    """Where the span of a dataset lies: its basis (d, r) and, where `complete`, that of its complement (else empty)."""
    return _span(settings, complete, settings.version)


@functools.lru_cache(maxsize=64)
def _span(settings: DataSettings, complete: bool, version: str) -> Subspace:
    del version
    basis = settings.span()
    return Subspace.from_directions(basis) if complete else Subspace(basis, basis[:, :0])  # pyright: ignore[reportArgumentType]


def load_patch_span(settings: DataSettings, fields: ReceptiveFields) -> np.ndarray:
    """Orthonormal basis (fan-in, r) of the span of all patches of a dataset's span (F19 in docs/theory.md).

    It is of coordinate axes where that can be.
    """
    return _patch_span(settings, fields, settings.version)


@functools.lru_cache(maxsize=256)
def _patch_span(settings: DataSettings, fields: ReceptiveFields, version: str) -> np.ndarray:
    del version
    places = np.asarray(fields.patches(np.asarray(load_span(settings).basis).T))  # pyright: ignore[reportArgumentType]
    patches = places.reshape(-1, places.shape[-1])
    _, sizes, directions = np.linalg.svd(patches, full_matrices=False)
    directions = directions[sizes > _NEGLIGIBLE * sizes[0]]
    shares = np.sum(directions**2, axis=0)  # of the axes within the span
    if np.isclose(shares, np.round(shares), rtol=0, atol=_NEGLIGIBLE).all():
        return np.eye(len(shares))[:, shares > 0.5]
    return directions.T


_NEGLIGIBLE = 1e-9  # beside the largest: rounding


def input_span(settings: DataSettings, fields: ReceptiveFields) -> InputSpan:
    """The span of what the first layer of some networks sees of a dataset."""
    shape = settings.shape
    if isinstance(fields, Dense):
        return InputSpan(shape.ambient_dim, shape.span_dim, settings.is_axis_aligned)
    basis = load_patch_span(settings, fields)
    return InputSpan(*basis.shape, is_axis_aligned=np.count_nonzero(basis) == basis.shape[1])


def cell_data(sweep: Sweep, cells: np.ndarray) -> tuple[list[DataSettings], np.ndarray]:
    """The distinct datasets of some cells, and which of them each cell has."""
    names = data_fields(sweep)
    if not names:
        return [sweep.dataset({})], np.zeros(len(cells), np.int64)
    columns = [sweep.column(leaf, cells) for leaf in names]
    number: dict[DataSettings, int] = {}
    which = np.empty(len(cells), np.int64)
    for i, values in enumerate(zip(*(column.tolist() for column in columns), strict=True)):
        settings = sweep.dataset(dict(zip(names, values, strict=True)))
        which[i] = number.setdefault(settings, len(number))
    return list(number), which


def grid_data(sweep: Sweep) -> tuple[list[DataSettings], np.ndarray]:
    """The distinct datasets of a sweep, and which of them each cell has.

    Returns:
        The datasets, and their indices with one dimension for each of the sweep, of length 1 where the data do
        not depend on it.
    """
    names = data_fields(sweep)
    first = np.zeros((), np.int64)
    for of, size in zip(sweep.dimensions.values(), sweep.shape, strict=True):
        first = first[..., None] * size + (np.zeros(1, np.int64) if of.keys().isdisjoint(names) else np.arange(size))
    datasets, which = cell_data(sweep, first.ravel())
    return datasets, which.reshape(first.shape)
