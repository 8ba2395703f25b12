"""Points of a linear subspace by their coordinates in it, and their labels, from a data seed: for several kinds."""

from abc import ABC
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import numpy as np

from subspace_adv import streams
from subspace_adv.data.kind import HELDOUT, Data, DataSettings, Impossible, as_data
from subspace_adv.data.manifolds import MANIFOLDS
from subspace_adv.fields import DATA, DATA_REPLICATE, Count, Seed
from subspace_adv.geometry import Subspace

CLUSTER_SPREAD = 0.1
"""Standard deviation, per coordinate, of a point around its cluster's centre (centres have norm √k)."""


class DrawnData(DataSettings, ABC, frozen=True):
    """Points of a k-dimensional linear subspace, drawn by their coordinates; a subclass tells where it lies.

    Points and labels are the first n of any number of them. Held out: fresh draws of the same law.
    """

    is_signal: ClassVar[bool] = True
    told_in_span: ClassVar[bool] = True

    samples: Annotated[Count, DATA] = 20  # n
    # Coordinates that are standard normal, or lie on the sphere of radius √k; of kind subspace, also a curved manifold,
    # a row of `MANIFOLDS`.
    distribution: Annotated[Literal["gaussian", "sphere", "circles", "spheres", "curve"], DATA] = "sphere"
    # Random signs; the side of a random hyperplane of the subspace through 0; or points normal around min(2k, n)
    # centres ±√k·eⱼ in random order, with standard deviation CLUSTER_SPREAD in each coordinate, every other centre of
    # each label.
    labels: Annotated[Literal["random", "halfspace", "clusters"], DATA] = "random"
    data_seed: Annotated[Seed, DATA_REPLICATE] = 0

    def draw(self) -> Data:
        """The points, by their coordinates within the subspace."""
        k, n = self.shape.subspace_dim, self.samples
        coordinates = self._stream(streams.POINTS).standard_normal((n, k))
        heldout = self._stream(streams.HELDOUT_POINTS).standard_normal((HELDOUT, k))
        if self.labels == "clusters":
            centres = self._centres()
            some = self._stream(streams.HELDOUT_CENTRES).integers(min(2 * k, n), size=HELDOUT)
            coordinates = centres[np.arange(n) % (2 * k)] + CLUSTER_SPREAD * coordinates
            heldout = centres[some] + CLUSTER_SPREAD * heldout
        if self.distribution == "sphere":
            coordinates, heldout = (
                points * (np.sqrt(k) / np.linalg.norm(points, axis=1, keepdims=True))
                for points in (coordinates, heldout)
            )
        return as_data(coordinates, self.draw_labels(), Subspace.axis_aligned(k, k), heldout)

    def draw_labels(self) -> np.ndarray:
        """The labels; they do not depend on the distribution of the points."""
        k, n = self.shape.subspace_dim, self.samples
        if self.labels == "clusters":
            return np.where(np.arange(n) % (2 * k) % 2 == 0, 1, -1)
        if self.labels == "halfspace":
            coordinates = self._stream(streams.POINTS).standard_normal((n, k))
            return np.where(coordinates @ self._stream(streams.HYPERPLANE).standard_normal(k) >= 0, 1, -1)
        return np.where(self._stream(streams.LABEL_SIGNS).random(n) < 0.5, 1, -1)

    @property
    def label_draws(self) -> int:
        """Only a halfspace needs the points."""
        return self.samples * (self.shape.subspace_dim if self.labels == "halfspace" else 1)

    @classmethod
    def impossible(cls, values: Mapping[str, tuple]) -> Impossible | None:
        """Curved manifolds are of kind subspace."""
        curved = next((name for name in values["distribution"] if name in MANIFOLDS), None)
        return curved and Impossible("distribution", curved, "is of kind 'subspace' alone; choose another one")

    def _centres(self) -> np.ndarray:
        """The centres ±√k·eⱼ of clusters in random order, (2k, k); every other one carries the label +1."""
        k = self.shape.subspace_dim
        centres = np.sqrt(k) * np.concatenate([np.eye(k), -np.eye(k)])
        return self._stream(streams.CENTRES).permutation(centres)

    def _stream(self, *stream: int) -> np.random.Generator:
        return streams.data_generator(self.data_seed, *stream)
