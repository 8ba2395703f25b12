"""Kind "subspace": labelled points on a random or axis-aligned linear subspace of any dimension."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import numpy as np

from subspace_adv import streams
from subspace_adv.data.drawn import DrawnData
from subspace_adv.data.kind import Impossible, Shape
from subspace_adv.fields import DATA, PLACE, Count
from subspace_adv.geometry import orthonormal


class SubspaceData(DrawnData, frozen=True):
    """Points on a k-dimensional linear subspace of R^d."""

    to_align: ClassVar[str] = "set basis = 'axis-aligned'"

    ambient_dim: Annotated[Count, PLACE] = 20  # d
    subspace_dim: Annotated[Count, DATA] = 2  # k
    # Uniform among k-dimensional subspaces, or the first k axes.
    basis: Annotated[Literal["random", "axis-aligned"], PLACE] = "random"

    @property
    def shape(self) -> Shape:
        """As set; a linear subspace is its own span."""
        return Shape(self.samples, self.ambient_dim, self.subspace_dim, self.subspace_dim)

    def span(self) -> np.ndarray:
        """The subspace.

        Raises:
            ValueError: if it has more dimensions than the space.
        """
        d, k = self.ambient_dim, self.subspace_dim
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
    def impossible(cls, values: Mapping[str, tuple]) -> Impossible | None:
        """A subspace has no more dimensions than the space."""
        k, d = max(values["subspace_dim"]), min(values["ambient_dim"])
        why = f"over ambient_dim = {d}; at most {d} is possible"
        return Impossible("subspace_dim", k, why) if k > d else None
