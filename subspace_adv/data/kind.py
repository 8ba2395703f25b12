"""What every kind of data provides: the contract of a row of `KINDS`."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np

from subspace_adv.fields import Table, role_in
from subspace_adv.geometry import Region, Subspace, region_dim
from subspace_adv.pointfile import digest

HELDOUT = 16
"""Held-out points of every dataset: drawn from the training points' law, or beside them, and never trained on."""


class Shape(NamedTuple):
    """Sizes of a dataset; static and hashable."""

    samples: int  # n
    ambient_dim: int  # d
    subspace_dim: int  # k
    span_dim: int  # r, of the linear span of the subspace: k, or k + 1 where it is affine
    tangent_dim: int | None = None  # t, of a curved manifold within the subspace; None where the points are not on one

    def region_dim(self, region: Region) -> int:
        """Dimension of a region of perturbations."""
        return region_dim(region, self.ambient_dim, self.subspace_dim, self.tangent_dim)


class Data(NamedTuple):
    """Training points, the subspace they lie in, and further points like them, in coordinates of its linear span."""

    x: np.ndarray  # (n, r) float32
    y: np.ndarray  # (n,) float32, −1 or +1
    subspace: Subspace  # float64 bases, (r, k) and (r, r − k)
    heldout: np.ndarray  # (HELDOUT, r) float32; NaN where there are not so many
    # Of a curved manifold at each training point, float64, (n, r, t) and (n, r, r − t); None where there is none.
    tangent: Subspace | None = None


class Impossible(NamedTuple):
    """A value of a field that the values of others rule out."""

    leaf: str
    value: object
    why: str


class DataSettings(Table, ABC, frozen=True):
    """One dataset: what `[data]` says of it beside its kind, a field each, and what follows from that.

    A kind of data is a subclass, in a file of its own, and a row of `KINDS`. Points are held by their coordinates in
    the linear span of their subspace, so that nothing but `span` grows with the ambient dimension.
    """

    has_origin: ClassVar[bool] = False  # whether one of the training points is 0
    is_signal: ClassVar[bool] = False  # whether coordinates have an order, as those of signals and images do
    told_in_span: ClassVar[bool] = False  # whether results tell points in coordinates of the span, or of R^d
    to_align: ClassVar[str] = ""  # what a user can do for the subspace to be one of coordinate axes, if anything

    @property
    def pads(self) -> bool:
        """Whether data of several numbers of points share arrays, the smaller filled up with points without a label."""
        return "samples" in type(self).model_fields

    @property
    @abstractmethod
    def shape(self) -> Shape:
        """Its sizes, known without drawing it."""

    @abstractmethod
    def draw(self) -> Data:
        """Points and labels on the host, in float64 until the end; none of it depends on fields of role PLACE."""

    @abstractmethod
    def span(self) -> np.ndarray:
        """Orthonormal basis Q (d, r) of the span that coordinates refer to: points are x Qᵀ in R^d; float64."""

    @property
    @abstractmethod
    def is_axis_aligned(self) -> bool:
        """Whether the subspace is one of coordinate axes of R^d, moved or not."""

    def draw_labels(self) -> np.ndarray:
        """The labels alone, (n,), −1 or +1."""
        return self.draw().y

    @property
    def label_draws(self) -> int:
        """Random numbers that `draw_labels` takes, about."""
        return self.shape.samples * self.shape.subspace_dim

    @property
    def version(self) -> str:
        """What differs where the same settings mean other data: digests of the files that they name."""
        files = (leaf for leaf in type(self).model_fields if role_in(type(self), leaf).is_file)
        return " ".join(digest(getattr(self, leaf)) for leaf in files)

    def told(self, leaf: str) -> Any:
        """A field, which is no size, as results tell it."""
        return getattr(self, leaf)

    def unplaced(self) -> Self:
        """The same points wherever their span lies: fields of role PLACE are as by default."""
        kind = type(self)
        told = {leaf: getattr(self, leaf) for leaf in kind.model_fields if role_in(kind, leaf).tells_points}
        return kind(**told)

    @classmethod
    def reads_where(cls, leaf: str) -> Mapping[str, tuple[str, ...]]:
        """Of one of its fields: others of them and their values where it is read; none if it always is."""
        del leaf
        return {}

    @classmethod
    def impossible(cls, values: Mapping[str, tuple]) -> Impossible | None:
        """What values of a grid cannot go together, if any.

        Args:
            values: all values over the grid of each field.
        """
        del values
        return None


def padded(data: Data, samples: int) -> Data:
    """Data with room for so many points; those that fill them up are 0, without a label."""

    def grown(of_points: Any) -> Any:
        return np.pad(of_points, [(0, samples - len(of_points)), *((0, 0) for _ in of_points.shape[1:])])

    if len(data.x) == samples:
        return data
    tangent = data.tangent and Subspace(grown(data.tangent.basis), grown(data.tangent.complement))
    return data._replace(x=grown(data.x), y=grown(data.y), tangent=tangent)


def as_data(
    x: np.ndarray, y: np.ndarray, subspace: Subspace, heldout: np.ndarray, tangent: Subspace | None = None
) -> Data:
    """Points and labels in the types that data have."""
    x, y, heldout = (np.asarray(part, np.float32) for part in (x, y, heldout))
    return Data(x, y, subspace, heldout, tangent)
