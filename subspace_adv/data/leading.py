"""The linear subspaces nearest to points, of any dimension up to the rank of the points."""

from collections.abc import Callable
from typing import NamedTuple, Self

import numpy as np

from subspace_adv.geometry import orthonormal

BLOCK = 2**22
"""Numbers of a block of points that is held in float64 at a time."""
# Points reach into a direction if their singular value there exceeds this share of the largest one. What is less is
# rounding: networks train on points in float32, which tells apart no more than 6e-8 of a length.
_RANK = 1e-6

Part = Callable[[slice, slice], np.ndarray]
"""Some rows and columns of a matrix of points (n, d), float64."""


class Leading(NamedTuple):
    """Directions of points from the one along which they are longest on: right singular vectors of (n, d)."""

    sizes: np.ndarray  # (q,) singular values, descending; q = min(n, d)
    part: Part
    shape: tuple[int, int]  # (n, d)
    vectors: np.ndarray  # (q, q): right ones where d ≤ n, else left ones

    @classmethod
    def of(cls, part: Part, n: int, d: int) -> Self:
        """Of a matrix, from the triangle of its QR factorization, which is taken block by block.

        Nothing is larger than a block but the triangle, of the lesser of both sizes. Its singular values are those of
        the matrix, to float64's rounding beside the largest.
        """
        triangle = np.empty((0, min(n, d)))
        size = max(BLOCK // min(n, d), 1)
        everything = slice(None)
        for begin in range(0, max(n, d), size):
            some = slice(begin, begin + size)
            block = part(some, everything) if d <= n else part(everything, some).T
            triangle = np.linalg.qr(np.concatenate([triangle, block]), mode="r")
        _, sizes, vectors = np.linalg.svd(triangle)
        return cls(sizes, part, (n, d), vectors.T)

    @property
    def rank(self) -> int:
        """Of the points: how many directions they reach into; 0 if all are 0."""
        return self.reached(self.sizes[0])

    def reached(self, largest: float) -> int:
        """How many directions they reach into, beside a largest singular value."""
        return int(np.sum(self.sizes > _RANK * largest))

    def directions(self, number: int) -> np.ndarray:
        """The first directions (d, number), orthonormal; each points to where its largest coordinate is positive."""
        vectors = self.vectors[:, :number]
        n, d = self.shape
        if n < d:
            vectors, size = vectors / self.sizes[:number], max(BLOCK // n, 1)
            blocks = (self.part(slice(None), slice(begin, begin + size)) for begin in range(0, d, size))
            vectors = orthonormal(np.concatenate([block.T @ vectors for block in blocks]))
        largest = np.abs(vectors).argmax(axis=0)
        return vectors * np.where(vectors[largest, np.arange(number)] < 0, -1, 1)
