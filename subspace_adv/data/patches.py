"""Kind "patches": signals cut into patches, each of them anywhere in one subspace that all share."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import numpy as np

from subspace_adv import streams
from subspace_adv.data.drawn import DrawnData
from subspace_adv.data.kind import Impossible, Shape
from subspace_adv.fields import DATA, PLACE, Count
from subspace_adv.geometry import orthonormal


class PatchesData(DrawnData, frozen=True):
    """Signals of p patches of q coordinates, each of which is in one k-dimensional subspace of R^q.

    The subspace of the data has p·k dimensions, of R^(p·q). A convolution whose kernel and stride are q sees nothing
    else of its filters than their part within the k dimensions (F19 in docs/theory.md).
    """

    to_align: ClassVar[str] = "set basis = 'axis-aligned'"

    patches: Annotated[Count, DATA] = 4  # p
    patch_size: Annotated[Count, PLACE] = 8  # q
    patch_dim: Annotated[Count, DATA] = 1  # k
    # Uniform among k-dimensional subspaces of a patch, or its first k axes.
    basis: Annotated[Literal["random", "axis-aligned"], PLACE] = "random"

    @property
    def shape(self) -> Shape:
        """Patches beside one another."""
        dimension = self.patches * self.patch_dim
        return Shape(self.samples, self.patches * self.patch_size, dimension, dimension)

    def span(self) -> np.ndarray:
        """The subspace of a patch, once for each.

        Raises:
            ValueError: if it has more dimensions than a patch.
        """
        q, k = self.patch_size, self.patch_dim
        if k > q:
            raise ValueError(f"patch_dim {k} is over patch_size {q}")
        drawn = self._stream(streams.SPAN, q).standard_normal((q, k))
        return np.kron(np.eye(self.patches), np.eye(q, k) if self.is_axis_aligned else orthonormal(drawn))

    @property
    def is_axis_aligned(self) -> bool:
        """Whether it is of the first axes of every patch."""
        return self.basis == "axis-aligned"

    @classmethod
    def impossible(cls, values: Mapping[str, tuple]) -> Impossible | None:
        """The subspace of a patch has no more dimensions than the patch."""
        k, q = max(values["patch_dim"]), min(values["patch_size"])
        why = f"over patch_size = {q}; at most {q} is possible"
        return Impossible("patch_dim", k, why) if k > q else super().impossible(values)
