"""Kind "subspace": labelled points on a random or axis-aligned linear subspace, or on a curved manifold within it."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import AfterValidator, Field

from subspace_adv import streams
from subspace_adv.data.drawn import DrawnData
from subspace_adv.data.kind import HELDOUT, Data, Impossible, Shape, as_data
from subspace_adv.data.manifolds import MANIFOLDS, Form, Manifold, frames
from subspace_adv.fields import AS_TUPLE, DATA, DATA_LIST, PLACE, Count, Positive, distinct, distinct_in_float32
from subspace_adv.geometry import Subspace, orthonormal

_Radii = Annotated[
    tuple[Positive, ...], AS_TUPLE, Field(min_length=2), AfterValidator(distinct), AfterValidator(distinct_in_float32)
]
_LINEAR_READS = ("subspace_dim", "labels")  # of the fields that not every distribution reads


class SubspaceData(DrawnData, frozen=True):
    """Points on a k-dimensional linear subspace of R^d, or on a curved manifold whose hull it is.

    Points of circles and spheres have the radii in turn, and each radius has the label +1 and −1 in turn.
    """

    to_align: ClassVar[str] = "set basis = 'axis-aligned'"

    ambient_dim: Annotated[Count, PLACE] = 20  # d
    subspace_dim: Annotated[Count, DATA] = 2  # k
    # Uniform among k-dimensional subspaces, or the first k axes.
    basis: Annotated[Literal["random", "axis-aligned"], PLACE] = "random"
    radii: Annotated[_Radii, DATA_LIST] = (1.0, 3.0)  # of circles and spheres
    frequencies: Annotated[Count, DATA] = 2  # K, of a curve
    spacing: Annotated[Literal["random", "even"], DATA] = "random"  # of the training points of circles and curves

    @property
    def shape(self) -> Shape:
        """A linear subspace is its own span."""
        if self._manifold is None:
            return Shape(self.samples, self.ambient_dim, self.subspace_dim, self.subspace_dim)
        k = self._manifold.hull_dim(self._form)
        return Shape(self.samples, self.ambient_dim, k, k, self._manifold.tangent_dim(k))

    def draw(self) -> Data:
        """The points, by their coordinates within the subspace, and what is tangent and normal to a curved manifold."""
        manifold, form = self._manifold, self._form
        if manifold is None:
            return super().draw()
        x, radii = self._points(manifold), np.array(form.radii)
        some = self._stream(streams.HELDOUT_RADII).integers(len(radii), size=HELDOUT)
        heldout = manifold.points(form, self._stream(streams.HELDOUT_POINTS), radii[some], False)
        k = x.shape[1]
        return as_data(x, self.draw_labels(), Subspace.axis_aligned(k, k), heldout, frames(manifold, x))

    def draw_labels(self) -> np.ndarray:
        """The labels; those of circles and spheres go by the radius."""
        manifold = self._manifold
        if manifold is not None and "labels" not in manifold.reads:
            return np.where(np.arange(self.samples) % len(self.radii) % 2 == 0, 1, -1)
        if manifold is not None and self.labels == "halfspace":
            normal = self._stream(streams.HYPERPLANE).standard_normal(self.shape.subspace_dim)
            return np.where(self._points(manifold) @ normal >= 0, 1, -1)
        return super().draw_labels()

    def _points(self, manifold: Manifold) -> np.ndarray:
        """Training points of a curved manifold, (n, k), the radii in turn."""
        radius = np.array(self.radii)[np.arange(self.samples) % len(self.radii)]
        return manifold.points(self._form, self._stream(streams.POINTS), radius, self._form.even)

    @property
    def _manifold(self) -> Manifold | None:
        """The curved manifold that the points are on, if any."""
        return MANIFOLDS[self.distribution] if self.distribution in MANIFOLDS else None

    @property
    def _form(self) -> Form:
        return Form(self.subspace_dim, self.radii, self.frequencies, self.spacing == "even")

    def span(self) -> np.ndarray:
        """The subspace.

        Raises:
            ValueError: if it has more dimensions than the space.
        """
        d, k = self.ambient_dim, self.shape.subspace_dim
        if k > d:
            raise ValueError(f"subspace_dim {k} is over ambient_dim {d}")
        if self.is_axis_aligned:
            return np.eye(d, k)
        return orthonormal(self._stream(streams.SPAN, d).standard_normal((d, k)))

    @property
    def is_axis_aligned(self) -> bool:
        """Whether it is of the first axes."""
        return self.basis == "axis-aligned"

    @classmethod
    def reads_where(cls, leaf: str) -> Mapping[str, tuple[str, ...]]:
        """The form of curved manifolds is not that of linear subspaces."""
        curved = [name for name, row in MANIFOLDS.items() if leaf in row.reads]
        linear = ["gaussian", "sphere"] if leaf in _LINEAR_READS else []
        return {"distribution": (*linear, *curved)} if curved else {}

    @classmethod
    def impossible(cls, values: Mapping[str, tuple]) -> Impossible | None:
        """A subspace has no more dimensions than the space, and the form of manifolds has limits of its own."""
        distributions, d = values["distribution"], min(values["ambient_dim"])
        at_most = f"over ambient_dim = {d}; at most {d} is possible"
        k, least = max(values["subspace_dim"]), min(values["subspace_dim"])
        if k > d and set(distributions) & set(cls.reads_where("subspace_dim")["distribution"]):
            return Impossible("subspace_dim", k, at_most)
        if least < 2 and "spheres" in distributions:
            return Impossible("subspace_dim", least, "spheres are in 2 dimensions at least")
        if 2 > d and "circles" in distributions:
            return Impossible("ambient_dim", d, "circles are in 2 dimensions at least")
        most = max(values["frequencies"])
        if 2 * most > d and "curve" in distributions:
            told = f"a curve has 2 dimensions each, and ambient_dim is {d}; at most {d // 2} is possible"
            return Impossible("frequencies", most, told)
        if "curve" in distributions and "clusters" in values["labels"]:
            return Impossible("labels", "clusters", "no curve has clusters; 'random' or 'halfspace' is possible")
        return None
