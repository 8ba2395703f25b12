"""Kind "chessboard": the chessboard in R³ of Melamed, Yehudai and Vardi (2023)."""

import numpy as np

from subspace_adv import streams
from subspace_adv.data.kind import HELDOUT, Data, DataSettings, Shape, as_data
from subspace_adv.geometry import Subspace

_HEIGHT = 0.5


class ChessboardData(DataSettings, frozen=True):
    """The 5 × 5 grid over the unit square at height z = ½, labelled like a chessboard: a plane in R³.

    Held out: points uniform on that square.
    """

    @property
    def shape(self) -> Shape:
        """25 points of a plane that does not hold 0, so that they span R³."""
        return Shape(samples=25, ambient_dim=3, subspace_dim=2, span_dim=3)

    def draw(self) -> Data:
        """The points, in coordinates of R³."""
        row, column = np.divmod(np.arange(25), 5)
        x = np.stack([row / 4, column / 4, np.full(25, _HEIGHT)], axis=1)
        square = streams.data_generator(streams.FIXED_DATA_SEED).uniform(0, 1, (HELDOUT, 2))
        heldout = np.concatenate([square, np.full((HELDOUT, 1), _HEIGHT)], axis=1)
        return as_data(x, self.draw_labels(), Subspace.axis_aligned(3, 2), heldout)

    def draw_labels(self) -> np.ndarray:
        """+1 on white squares."""
        return np.where(np.arange(25) % 2 == 0, 1, -1)

    def span(self) -> np.ndarray:
        """All of R³."""
        return np.eye(3)

    @property
    def is_axis_aligned(self) -> bool:
        """The plane is parallel to two axes."""
        return True
