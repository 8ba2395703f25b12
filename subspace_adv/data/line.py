"""Kind "line": the line in the plane of Melamed, Yehudai and Vardi (2023)."""

from typing import ClassVar

import numpy as np

from subspace_adv import streams
from subspace_adv.data.kind import HELDOUT, Data, DataSettings, Shape, as_data
from subspace_adv.geometry import Subspace


class LineData(DataSettings, frozen=True):
    """Seven points (t, t), t = −1, −2/3, …, 1, with alternating labels: a line in the plane.

    Held out: points with t uniform on [−1, 1].
    """

    has_origin: ClassVar[bool] = True

    @property
    def shape(self) -> Shape:
        """Seven points on a line through 0 in the plane."""
        return Shape(samples=7, ambient_dim=2, subspace_dim=1, span_dim=1)

    def draw(self) -> Data:
        """The points, by their distance √2·t from 0."""
        t = np.linspace(-1.0, 1.0, 7)
        heldout = streams.data_generator(streams.FIXED_DATA_SEED).uniform(-1, 1, (HELDOUT, 1))
        return as_data(np.sqrt(2) * t[:, None], self.draw_labels(), Subspace.axis_aligned(1, 1), np.sqrt(2) * heldout)

    def draw_labels(self) -> np.ndarray:
        """−1 and +1 in turn."""
        return np.where(np.arange(7) % 2 == 0, -1, 1)

    def span(self) -> np.ndarray:
        """The diagonal."""
        return np.full((2, 1), np.sqrt(0.5))

    @property
    def is_axis_aligned(self) -> bool:
        """The diagonal is no axis."""
        return False
