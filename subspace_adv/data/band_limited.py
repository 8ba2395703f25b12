"""Kind "band-limited": periodic signals of few frequencies."""

from collections.abc import Mapping
from typing import Annotated

import numpy as np

from subspace_adv.data.drawn import DrawnData
from subspace_adv.data.kind import Impossible, Shape
from subspace_adv.fields import DATA, PLACE, Count


class BandLimitedData(DrawnData, frozen=True):
    """Signals of d places round a circle, combinations of the sines and cosines of the K lowest frequencies.

    The constant is left out. The subspace has 2·K dimensions, and so has the span of all patches of at least as many
    places (F19 in docs/theory.md).
    """

    ambient_dim: Annotated[Count, PLACE] = 20  # d
    frequencies: Annotated[Count, DATA] = 2  # K

    @property
    def shape(self) -> Shape:
        """A sine and a cosine each."""
        return Shape(self.samples, self.ambient_dim, 2 * self.frequencies, 2 * self.frequencies)

    def span(self) -> np.ndarray:
        """The waves, of length 1.

        Raises:
            ValueError: if there are not so many frequencies.
        """
        d, most = self.ambient_dim, self.frequencies
        if 2 * most >= d:
            raise ValueError(f"frequencies {most}: must be under half of ambient_dim {d}")
        phases = 2 * np.pi * np.arange(d)[:, None] * np.arange(1, most + 1) / d
        return np.sqrt(2 / d) * np.stack([np.cos(phases), np.sin(phases)], axis=2).reshape(d, -1)

    @property
    def is_axis_aligned(self) -> bool:
        """Waves are not."""
        return False

    @classmethod
    def impossible(cls, values: Mapping[str, tuple]) -> Impossible | None:
        """There are fewer than d/2 frequencies."""
        most, d = max(values["frequencies"]), min(values["ambient_dim"])
        why = f"at least half of ambient_dim = {d}; at most {max((d - 1) // 2, 0)} is possible"
        return Impossible("frequencies", most, why) if 2 * most >= d else super().impossible(values)
