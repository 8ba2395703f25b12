"""The decision boundary of a two-layer network in a rectangle of a plane, exactly (F21 in docs/theory.md).

Within a plane the kinks of the ReLUs are lines, and between them the output is affine: a cell holds at most one
straight piece of the boundary, which ends on the cell's edges. So the output is followed along all kinks and the
rectangle's sides, where it is linear from kink to kink. From every zero there, the piece of each cell beside it goes on
to the next kink.
"""

import itertools
from typing import NamedTuple

import numpy as np

from subspace_adv.network import Network

_ROUNDING = 2.0**-40  # relative: a preactivation, or a slope, that is no larger counts as zero


class _Plane(NamedTuple):
    """The output over coordinates p of a rectangle in a plane: Σ headᵢ·relu(weightᵢ·p + biasᵢ) + offset."""

    weight: np.ndarray  # (m, 2), of the neurons that vary in the plane and count
    bias: np.ndarray  # (m,)
    head: np.ndarray  # (m,)
    offset: float
    corners: np.ndarray  # (2, 2), the lowest and the highest coordinates
    slack: np.ndarray  # (m,), preactivations that rounding can make of 0

    def preactivations(self, p: np.ndarray) -> np.ndarray:
        """(..., m) at p (..., 2)."""
        return p @ self.weight.T + self.bias

    def values(self, p: np.ndarray) -> np.ndarray:
        """Outputs (...) at p (..., 2)."""
        return np.maximum(self.preactivations(p), 0) @ self.head + self.offset


class _Zeros(NamedTuple):
    """Where the output changes its sign along lines, each between two kinks."""

    place: np.ndarray  # (k, 2)
    inside: np.ndarray  # (k, 2), a place well between the two kinks
    toward: np.ndarray  # (k, 2), of length 1, from the line into a cell beside it


def boundary_pieces(
    network: Network, centre: np.ndarray, basis: np.ndarray, low: np.ndarray, high: np.ndarray
) -> np.ndarray:
    """The boundary of {N > 0} in a rectangle of a plane, {centre + basis·p : low ≤ p ≤ high} (F21 in docs/theory.md).

    Args:
        network: weight (m, d).
        centre: (d,).
        basis: (d, 2).
        low: (2,).
        high: (2,), above `low`.

    Returns:
        Both ends of each piece, (k, 2, 2): piece, end, coordinate. Each cell between kinks has one at most.
    """
    plane = _plane(network, np.asarray(centre, np.float64), np.asarray(basis, np.float64), np.array([low, high]))
    (x0, y0), (x1, y1) = plane.corners
    around = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]])
    lines = itertools.chain(itertools.pairwise(around), _chords(plane))
    zeros = [_zeros(plane, *line) for line in lines]
    pieces = _pieces(plane, _Zeros(*map(np.concatenate, zip(*zeros, strict=True))))
    # A piece is found from both its ends. In the middle of it, its cell is known for certain.
    cell = np.packbits(plane.preactivations(pieces.mean(axis=1)) > plane.slack, axis=1)
    _, first = np.unique(cell, axis=0, return_index=True)
    return pieces[np.sort(first)]


def _plane(network: Network, centre: np.ndarray, basis: np.ndarray, corners: np.ndarray) -> _Plane:
    weight, bias, head, head_bias = (np.asarray(part, np.float64) for part in network)
    inner, shift = weight @ basis, weight @ centre + bias
    varies = (np.linalg.norm(inner, axis=1) > 0) & (head != 0)
    offset = head_bias + head[~varies] @ np.maximum(shift[~varies], 0)
    size = np.abs(weight) @ np.abs(centre) + np.abs(bias) + np.linalg.norm(inner, axis=1) * np.abs(corners).sum()
    return _Plane(inner[varies], shift[varies], head[varies], float(offset), corners, _ROUNDING * size[varies])


def _chords(plane: _Plane) -> np.ndarray:
    """Both ends of what lies in the rectangle of each kink that crosses it, (l, 2, 2)."""
    speed = np.linalg.norm(plane.weight, axis=1, keepdims=True)
    normal = plane.weight / speed
    origin, direction = -(plane.bias[:, None] / speed) * normal, _turned(normal)
    with np.errstate(divide="ignore", invalid="ignore"):
        ends = np.sort((plane.corners - origin[:, None]) / direction[:, None], axis=1)  # by coordinate; NaN on a side
    begin, end = np.fmax(*ends[:, 0].T), np.fmin(*ends[:, 1].T)
    meets = begin < end
    along = np.stack([begin[meets], end[meets]], axis=1)
    return origin[meets, None] + along[..., None] * direction[meets, None]


def _zeros(plane: _Plane, start: np.ndarray, end: np.ndarray) -> _Zeros:
    """Along the line from a place to another, seen from the cells on its left and on its right."""
    first, last = plane.preactivations(start), plane.preactivations(end)
    turns = np.sign(first) * np.sign(last) < 0
    kinks = np.sort(first[turns] / (first[turns] - last[turns]))
    at = np.concatenate([[0], kinks, [1]])
    values = plane.values(start + at[:, None] * (end - start))
    change = np.flatnonzero(np.diff(values > 0))
    before, after = values[change], values[change + 1]
    share = before / (before - after)
    place, inside = (
        start + (at[change] + part * np.diff(at)[change])[:, None] * (end - start) for part in (share, 0.5)
    )
    left = np.broadcast_to(_turned(end - start) / np.linalg.norm(end - start), place.shape)
    return _Zeros(np.concatenate([place, place]), np.concatenate([inside, inside]), np.concatenate([left, -left]))


def _pieces(plane: _Plane, zeros: _Zeros) -> np.ndarray:
    """The pieces (k, 2, 2) that begin at zeros, each in the cell that it is seen from, and are longer than rounding."""
    z, speed = plane.preactivations(zeros.inside), np.linalg.norm(plane.weight, axis=1)
    on = np.where(np.abs(z) > plane.slack, z > 0, zeros.toward @ plane.weight.T > 0)  # the line's own neuron: beside it
    gradient = (on * plane.head) @ plane.weight
    steepness = np.linalg.norm(gradient, axis=1, keepdims=True)
    along = _turned(gradient) / np.where(steepness > 0, steepness, 1)
    along *= np.where(np.sum(along * zeros.toward, axis=1, keepdims=True) < 0, -1, 1)
    sign = np.where(on, 1, -1)
    room, rate = np.maximum(sign * plane.preactivations(zeros.place), 0), -sign * (along @ plane.weight.T)
    nears = rate > _ROUNDING * speed
    to_kink = np.where(nears, room / np.where(nears, rate, 1), np.inf).min(axis=1, initial=np.inf)
    with np.errstate(divide="ignore", invalid="ignore"):
        to_sides = (np.where(along > 0, plane.corners[1], plane.corners[0]) - zeros.place) / along
    extent = np.fmin(to_kink, np.fmin(*to_sides.T))  # NaN of a side that it runs along
    size = np.ptp(plane.corners, axis=0).max()
    long = (extent > _ROUNDING * size) & (extent <= 2 * size)
    begin = zeros.place[long]
    return np.stack([begin, begin + extent[long, None] * along[long]], axis=1)


def _turned(v: np.ndarray) -> np.ndarray:
    """Vectors (..., 2) turned to the left by a right angle."""
    return np.stack([-v[..., 1], v[..., 0]], axis=-1)
