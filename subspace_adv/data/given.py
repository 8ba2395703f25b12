"""Points that are given, not drawn: which of them networks train on, and the subspace that is fitted to them."""

import functools
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
from pydantic import BeforeValidator

from subspace_adv import streams
from subspace_adv.data.kind import HELDOUT, Data, DataSettings, Impossible, Shape, as_data
from subspace_adv.data.labels import Label, signs, two_classes
from subspace_adv.data.leading import BLOCK, Leading
from subspace_adv.errors import UserError, brief
from subspace_adv.fields import DATA, DATA_LIST_AXIS, DATA_REPLICATE, Count, Positive, Seed
from subspace_adv.geometry import Subspace, orthonormal
from subspace_adv.pointfile import PointFile
from subspace_adv.rows import nearest

_LARGEST = 1e15
_ON_AXIS = 1e-9  # how far a share of an axis may be from 0 or 1, by rounding


class Unfit(UserError):
    """Settings that the points do not allow."""

    def __init__(self, leaf: str, value: object, why: str) -> None:
        """As an `Impossible` tells it."""
        super().__init__(f"data.{leaf} = {value}: {why}")
        self.impossible = Impossible(leaf, value, why)


def _two_labels(value: object) -> tuple[Label, Label] | None:
    if value is None:
        return None
    several = list(value) if isinstance(value, list | tuple) else []
    if len(several) != 2 or not all(type(one) in (int, float, str) for one in several):
        raise ValueError("must be a list of two labels, such as [3, 8], of which the first becomes −1")
    if several[0] == several[1]:
        raise ValueError(f"{several[0]!r} is listed twice")
    return several[0], several[1]


def _factor(value: object) -> float | str:
    words = ("length", "columns")
    if isinstance(value, str) and value not in words:
        raise ValueError(f"must be a positive number, 'length' or 'columns'{nearest(value, words)}")
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError("must be a positive number, 'length' or 'columns'")
    if not isinstance(value, str) and not 1e-30 <= value <= 1e30:
        raise ValueError("must be a number between 1e-30 and 1e30, 'length' or 'columns'")
    return value if isinstance(value, str) else float(value)


class GivenData(DataSettings, ABC, frozen=True):
    """Points of two classes, moved and scaled, and a subspace near them; a subclass tells where they come from.

    Held out are points that were not chosen, or that are given as such: the first of both classes, treated as the
    training points were and projected onto their span; NaN where there are not so many.
    """

    is_signal: ClassVar[bool] = True
    told_in_span: ClassVar[bool] = True

    # Labels that become −1 and +1; by default the lesser and the greater of two that there are.
    classes: Annotated[tuple[Label, Label] | None, BeforeValidator(_two_labels), DATA_LIST_AXIS] = None
    # As many of each class, or one more of the first; by default all points, in the order that they are given in.
    samples: Annotated[Count | None, DATA] = None
    data_seed: Annotated[Seed, DATA_REPLICATE] = 0
    center: Annotated[bool, DATA] = False  # whether the mean of the training points is subtracted
    # A factor on all coordinates once they are centred; or the root mean square of the training points' lengths becomes
    # 1, or the standard deviation of each of their coordinates, but of those that do not vary.
    scale: Annotated[Positive | Literal["length", "columns"], BeforeValidator(_factor), DATA] = 1.0
    # Dimension of the subspace that is nearest to the training points; by default that of their span, or of the basis
    # that is given with them.
    subspace_dim: Annotated[Count | None, DATA] = None
    # Whether points are replaced by their projections, so that the subspace is their span, or stay what they are.
    fit: Annotated[Literal["project", "keep"], DATA] = "project"

    @abstractmethod
    def points(self) -> PointFile:
        """All points there are."""

    @property
    @abstractmethod
    def source(self) -> tuple[str, str]:
        """The field that tells where the points come from, and its value."""

    @property
    def shape(self) -> Shape:
        """Its sizes; of these the rank of the points takes as long as a fit, once."""
        return _facts(self, self.version).shape

    @property
    def is_axis_aligned(self) -> bool:
        """Whether the subspace, and the span of the points, are of coordinate axes."""
        return _facts(self, self.version).is_axis_aligned

    def draw(self) -> Data:
        """The chosen points, by their coordinates in the span."""
        chosen, fit = _chosen(self._as_chosen(), self.version), _fit(self, self.version)
        x, heldout = (_coordinates(self.points(), *which, chosen, fit.span) for which in chosen.places)
        missing = np.full((HELDOUT - len(heldout), x.shape[1]), np.nan)
        return as_data(x, chosen.labels, fit.subspace, np.concatenate([heldout, missing]))

    def draw_labels(self) -> np.ndarray:
        """The labels; they take no fit."""
        return _chosen(self._as_chosen(), self.version).labels

    @property
    def label_draws(self) -> int:
        """Rows that are looked at."""
        return self.shape.samples

    def span(self) -> np.ndarray:
        """The span of the points and of the subspace."""
        return _fit(self, self.version).span

    def told(self, leaf: str) -> Any:
        """The labels of the two classes, as text, and whether points are centred."""
        if leaf == "classes":
            return ", ".join(map(str, self.classes or _classes(self.points().y, self)))
        if leaf == "center":
            return str(self.center).lower()
        return super().told(leaf)

    @classmethod
    def impossible(cls, values: Mapping[str, tuple]) -> Impossible | None:
        """What the points do not allow, of any of the datasets."""
        if values["samples"] == (None,) and values["data_seed"] != (0,):
            seed = brief(list(values["data_seed"]))
            return Impossible("data_seed", seed, "changes nothing, as all points are taken; set samples")
        for combination in itertools.product(*values.values()):
            settings = cls(**dict(zip(values, combination, strict=True)))
            try:
                _facts(settings, settings.version)
            except Unfit as unfit:
                return unfit.impossible
            except UserError as error:  # in reading the points
                leaf, value = settings.source
                return Impossible(leaf, value, str(error).removeprefix(f"{value}: "))
        return None

    def _as_chosen(self) -> Self:
        """The settings that decide which points are chosen, and where they lie: all but those of the subspace."""
        return self.model_copy(update={"subspace_dim": None, "fit": "project"})


class _Chosen(NamedTuple):
    """Which points networks train on, and where they are moved."""

    rows: np.ndarray  # (n,) of the points there are
    labels: np.ndarray  # (n,) −1 or +1
    heldout: np.ndarray  # (h,) rows of further points, h ≤ HELDOUT
    heldout_apart: bool  # whether they are rows of the points given as held out
    mean: np.ndarray  # (d,) that is subtracted
    factor: np.ndarray  # (d,) that multiplies then

    @property
    def places(self) -> tuple[tuple[np.ndarray, bool], tuple[np.ndarray, bool]]:
        """Rows of the training points, and of those held out; and whether they are of those given as held out."""
        return (self.rows, False), (self.heldout, self.heldout_apart)


class _Fit(NamedTuple):
    """The span of the chosen points, and the subspace within it."""

    shape: Shape
    is_axis_aligned: bool
    span: np.ndarray  # (d, r)
    subspace: Subspace  # (r, k) and (r, r − k)


class _Facts(NamedTuple):
    """What of a fit is kept of any number of datasets."""

    shape: Shape
    is_axis_aligned: bool


@functools.lru_cache(maxsize=4096)
def _facts(settings: GivenData, version: str) -> _Facts:
    fit = _fit(settings, version)
    return _Facts(fit.shape, fit.is_axis_aligned)


@functools.lru_cache(maxsize=8)
def _fit(settings: GivenData, version: str) -> _Fit:
    """The span, and the subspace: of the basis that is given, or of the leading directions of the points."""
    given = settings.points()
    chosen = _chosen(settings._as_chosen(), version)
    n, d = len(chosen.rows), given.x.shape[1]
    leading = _directions_of(settings._as_chosen(), version)
    if given.basis is None:
        k = settings.subspace_dim or leading.rank
        if k > leading.rank:
            told = f"the {n} points{' less their mean' if settings.center else ''} span {leading.rank} dimensions"
            raise Unfit("subspace_dim", k, f"{told}; at most {leading.rank} is possible")
        directions = leading.directions(leading.rank if settings.fit == "keep" else k)
    else:
        directions = orthonormal(chosen.factor[:, None] * given.basis)
        k = directions.shape[1]
        if settings.subspace_dim not in (None, k):
            told = f"the basis that is given with the points has {k} columns; leave subspace_dim out"
            raise Unfit("subspace_dim", settings.subspace_dim, told)
        if settings.fit == "keep":
            beside = Leading.of(lambda rows, columns: _beside(given.x, rows, columns, chosen, directions), n, d)
            beyond = beside.directions(beside.reached(leading.sizes[0]))
            directions = orthonormal(np.concatenate([directions, beyond], axis=1))
    return _placed(directions, Shape(n, d, k, directions.shape[1]))


def _placed(directions: np.ndarray, shape: Shape) -> _Fit:
    """The span of some directions, the first of which span the subspace; of coordinate axes where that can be."""
    k = shape.subspace_dim
    axes = [_axes(part) for part in (directions, directions[:, :k])]
    span = directions if axes[0] is None else _on_axes(shape.ambient_dim, axes[0])
    if axes[0] is None:
        return _Fit(shape, False, span, Subspace.axis_aligned(shape.span_dim, k))
    if axes[1] is None:
        within = directions[axes[0]]
        return _Fit(shape, False, span, Subspace(within[:, :k], within[:, k:]))  # pyright: ignore[reportArgumentType]
    inside = np.isin(axes[0], axes[1])
    bases = (_on_axes(shape.span_dim, np.flatnonzero(which)) for which in (inside, ~inside))
    return _Fit(shape, True, span, Subspace(*bases))  # pyright: ignore[reportArgumentType]


def _axes(directions: np.ndarray) -> np.ndarray | None:
    """The coordinate axes that some orthonormal directions (d, k) span, if they span such."""
    shares = np.einsum("dk,dk->d", directions, directions)
    if np.minimum(np.abs(shares), np.abs(shares - 1)).max() > _ON_AXIS:
        return None
    return np.flatnonzero(shares > 0.5)


def _on_axes(d: int, axes: np.ndarray) -> np.ndarray:
    basis = np.zeros((d, len(axes)))
    basis[axes, np.arange(len(axes))] = 1
    return basis


@functools.lru_cache(maxsize=64)
def _chosen(settings: GivenData, version: str) -> _Chosen:
    """Which points, and how they are moved."""
    given = settings.points()
    classes = _classes(given.y, settings)
    found = signs(given.y, classes)
    rows = _rows(found, settings)
    if settings.samples is None:
        training, further = np.flatnonzero(found), rows[:0]
    else:
        training, further = rows[: settings.samples], rows[settings.samples :]
    apart = given.heldout_y is not None
    if given.heldout_y is not None:
        further = np.flatnonzero(signs(given.heldout_y, classes))
        if not len(further):
            told = (
                f"no held-out point has a label of the two classes; there: {brief(np.unique(given.heldout_y).tolist())}"
            )
            raise Unfit(*settings.source, told)
    mean, factor = _moved(given.x, training, settings)
    return _Chosen(training, found[training], further[:HELDOUT], apart, mean, factor)


def _classes(labels: np.ndarray, settings: GivenData) -> tuple[Label, Label]:
    """The labels that become −1 and +1, as points have them."""
    try:
        return two_classes(labels, settings.classes)
    except ValueError as error:
        at = settings.source if settings.classes is None else ("classes", brief(settings.classes))
        raise Unfit(*at, str(error)) from None


def _rows(of_points: np.ndarray, settings: GivenData) -> np.ndarray:
    """The points of the two classes in turn, each class in random order; of more than the other has, no further."""
    seed = settings.data_seed
    less, more = (
        streams.data_generator(seed, streams.CHOSEN, i).permutation(np.flatnonzero(of_points == sign))
        for i, sign in enumerate((-1, 1))
    )
    most = 2 * len(more) + 1 if len(less) > len(more) else 2 * len(less)
    if settings.samples is not None and settings.samples > most:
        told = f"there are {len(less)} points of one class and {len(more)} of the other, of which as many are taken"
        raise Unfit("samples", settings.samples, f"{told}; at most {most} is possible")
    turns = np.empty(most, np.int64)
    turns[0::2], turns[1::2] = less[: -(-most // 2)], more[: most // 2]
    return np.concatenate([turns, less[-(-most // 2) :], more[most // 2 :]])


def _moved(x: np.ndarray, rows: np.ndarray, settings: GivenData) -> tuple[np.ndarray, np.ndarray]:
    """The point that is subtracted from chosen ones, and the factor that multiplies each coordinate then."""
    n, d = len(rows), x.shape[1]
    mean = _sum(x, rows, lambda block: block) / n
    offset = mean if settings.center else np.zeros(d)
    if settings.scale == "columns":
        # Of a coordinate that does not vary, the deviation from the mean is rounding.
        varies = np.zeros(d, bool)
        for block in _blocks(x, rows):
            varies |= (block != x[rows[0]]).any(axis=0)
        deviation = np.sqrt(_sum(x, rows, lambda block: (block - mean) ** 2) / n)
        return offset, 1 / np.where(varies & (deviation > 0), deviation, 1)
    if settings.scale == "length":
        length = np.sqrt(_sum(x, rows, lambda block: (block - offset) ** 2).sum() / n)
        return offset, np.full(d, 1 / length if length > 0 else 1.0)
    return offset, np.full(d, float(settings.scale))


def _blocks(x: np.ndarray, rows: np.ndarray) -> Iterator[np.ndarray]:
    """The points of some rows in float64, some at a time."""
    size = max(BLOCK // x.shape[1], 1)
    for begin in range(0, len(rows), size):
        yield x[rows[begin : begin + size]].astype(np.float64)


def _sum(x: np.ndarray, rows: np.ndarray, of: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Sum over some rows (d,)."""
    return sum((of(block).sum(axis=0) for block in _blocks(x, rows)), np.zeros(x.shape[1]))


def _coordinates(given: PointFile, rows: np.ndarray, apart: bool, chosen: _Chosen, span: np.ndarray) -> np.ndarray:
    """Coordinates of some points in the span, (n, r) float32."""
    x: Any = given.heldout_x if apart else given.x
    found, begin = np.empty((len(rows), span.shape[1]), np.float32), 0
    for block in _blocks(x, rows):
        found[begin : begin + len(block)] = ((block - chosen.mean) * chosen.factor) @ span
        begin += len(block)
    return found


@functools.lru_cache(maxsize=2)  # each holds on to all points of a file
def _directions_of(settings: GivenData, version: str) -> Leading:
    """Directions of the chosen points."""
    given, chosen = settings.points(), _chosen(settings, version)
    largest = max(np.abs((block - chosen.mean) * chosen.factor).max() for block in _blocks(given.x, chosen.rows))
    if largest > _LARGEST or 0 < largest < 1 / _LARGEST:
        told = f"the largest coordinate is {largest:.3g}, too far from 1 for float32, in which networks train"
        raise Unfit(*settings.source, f"{told}; scale the points")
    leading = Leading.of(functools.partial(_part, given.x, chosen), len(chosen.rows), given.x.shape[1])
    if not leading.sizes[0] > 0:
        told = "all chosen points are one, and so 0 once the mean is subtracted" if settings.center else "all are 0"
        raise Unfit(*settings.source, f"{told}; there is no subspace")
    return leading


def _part(x: np.ndarray, chosen: _Chosen, rows: slice, columns: slice) -> np.ndarray:
    """Some rows and columns of the chosen points, moved."""
    some = x[chosen.rows[rows], columns].astype(np.float64)
    return (some - chosen.mean[columns]) * chosen.factor[columns]


def _beside(x: np.ndarray, rows: slice, columns: slice, chosen: _Chosen, basis: np.ndarray) -> np.ndarray:
    """The same less their projections onto a subspace."""
    whole = _part(x, chosen, rows, slice(None))
    return _part(x, chosen, rows, columns) - (whole @ basis) @ basis[columns].T
