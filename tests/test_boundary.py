"""The exact boundary in a rectangle of a plane, against outputs in long double along other lines, and known shapes."""

import numpy as np
import pytest
from numpy.typing import ArrayLike
from reference import output
from test_planes import BASIS, KINDS, NETWORKS

from subspace_adv.models.boundary import boundary_pieces
from subspace_adv.network import Network

LOW, HIGH = np.array([-2.0, -1.5]), np.array([1.0, 2.0])
STEPS = 2000


def cross(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return u[..., 0] * v[..., 1] - u[..., 1] * v[..., 0]


def met(pieces: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Where pieces meet the way from one place to another, as shares of it, ascending."""
    ahead, along, gap = end - start, pieces[:, 1] - pieces[:, 0], pieces[:, 0] - start
    share, place = cross(gap, along) / cross(ahead, along), cross(gap, ahead) / cross(ahead, along)
    return np.sort(share[(place >= 0) & (place <= 1) & (share > 0) & (share < 1)])


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_change_their_sign_at_the_pieces_and_nowhere_else(kind):
    changes = 0
    for seed in range(NETWORKS):
        rng = np.random.default_rng(seed)
        network, x = KINDS[kind](rng)
        pieces = boundary_pieces(network, x[0], BASIS, LOW, HIGH)
        assert ((pieces >= LOW - 1e-9) & (pieces <= HIGH + 1e-9)).all()
        shares = np.linspace(0, 1, 7)[:, None]
        places = pieces[:, :1] * (1 - shares) + pieces[:, 1:] * shares
        size = np.abs(network.head) @ (np.abs(network.weight) @ np.abs(x[0]) + np.abs(network.bias)) + 1e-300
        assert (np.abs(output(network, x[0] + places @ BASIS.T)) <= 1e-9 * size).all()
        for _ in range(20):
            start, end = rng.uniform(LOW, HIGH, (2, 2))
            way = start + np.linspace(0, 1, STEPS + 1)[:, None] * (end - start)
            positive = output(network, x[0] + way @ BASIS.T) > 0
            seen, told = np.flatnonzero(np.diff(positive)), met(pieces, start, end) * STEPS
            changes += len(seen)
            # Of two changes within a step, none is seen.
            unseen = len(told) - len(seen)
            assert unseen >= 0 and unseen % 2 == 0
            assert all(np.any((step - 1e-6 <= told) & (told <= step + 1 + 1e-6)) for step in seen)
            assert unseen <= 2 * np.sum(np.diff(told) < 1)
    assert (changes == 0) == (kind in ("linear", "never_flips"))


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_join_and_none_is_told_twice(kind):
    """Round each end, and round the rectangle, the sign changes an even number of times."""
    for seed in range(NETWORKS):
        network, x = KINDS[kind](np.random.default_rng(seed))
        pieces = boundary_pieces(network, x[0], BASIS, LOW, HIGH)
        ends = pieces.reshape(-1, 2)
        inner = ends[((ends > LOW + 1e-9) & (ends < HIGH - 1e-9)).all(axis=1)]
        beside = np.abs(inner[:, None] - inner[None]).max(axis=2) < 1e-8
        assert (beside.sum(axis=1) % 2 == 0).all()
        assert (len(ends) - len(inner)) % 2 == 0
        middles = pieces.mean(axis=1)
        assert len(np.unique(middles.round(9), axis=0)) == len(middles)


def same(found: np.ndarray, expected: list) -> bool:
    """Whether two sets of pieces are the same, whatever their order and direction."""
    ordered = (sorted(sorted(map(tuple, piece)) for piece in np.round(pieces, 9) + 0.0) for pieces in (found, expected))
    return next(ordered) == next(ordered)


def drawn(weight: ArrayLike, bias: ArrayLike, head: ArrayLike, head_bias: float, high: float = 2) -> np.ndarray:
    """In the square around 0 of a plane that is all of the space."""
    network = Network(*map(np.array, (weight, bias, head, head_bias)))
    return boundary_pieces(network, np.zeros(2), np.eye(2), np.full(2, -high), np.full(2, high))


AXES = [[1.0, 0], [-1, 0], [0, 1], [0, -1]]


def test_known_shapes():
    north, east, south, west = (0, 1), (1, 0), (0, -1), (-1, 0)
    diamond = [(north, east), (east, south), (south, west), (west, north)]
    assert same(drawn(AXES, [0.0] * 4, [-1] * 4, 1), diamond)  # N = 1 − |x| − |y|
    assert same(drawn(AXES, [0.0] * 4, [-1] * 4, 1.5, high=0.5), [])  # out of sight
    corners = [((sign * 0.25, up * 0.75), (sign * 0.75, up * 0.25)) for sign in (-1, 1) for up in (-1, 1)]
    assert same(drawn(AXES, [0.0] * 4, [-1] * 4, 1, high=0.75), corners)
    assert same(drawn([[1.0, 1]], [9.0], [1.0], -9), [((-2, 2), (2, -2))])  # N = x + y: no kink in sight
    assert same(drawn([[1.0, 1]], [-1.0], [1.0], 0), [((-1, 2), (2, -1))])  # N = relu(x + y − 1): the kink itself
    assert same(drawn(AXES[:2], [0.0] * 2, [1, -1], 0), [((0, -2), (0, 2))])  # N = x by two ReLUs
    assert same(drawn(AXES, [0.0] * 4, [0] * 4, 1), [])
    assert same(drawn(AXES, [0.0] * 4, [1] * 4, 1), [])
    assert same(drawn([[0.0, 0]], [1.0], [-1], 0), [])


def test_neurons_that_do_not_vary_in_the_plane_count_there():
    """N = relu(z) − relu(x) on the plane z = 1: x = 1."""
    network = Network(np.array([[0, 0, 1.0], [1, 0, 0]]), np.zeros(2), np.array([1.0, -1]), np.array(0.0))
    found = boundary_pieces(network, np.array([0, 0, 1.0]), np.eye(3, 2), np.zeros(2), np.full(2, 3.0))
    assert same(found, [((1, 0), (1, 3))])


def test_a_boundary_that_is_a_kink_is_one_piece_whatever_its_slope():
    """N = relu(z) − relu(−z) = z, whose neurons are not where z is 0 to the last digit."""
    rng = np.random.default_rng(0)
    for normal, offset in zip(rng.standard_normal((100, 2)), rng.standard_normal(100) / 2, strict=True):
        found = drawn(np.outer([1, -3, 0.1], normal), offset * np.array([1, -3, 0.1]), [0.5, -1 / 3, 5], 0)
        np.testing.assert_allclose(found @ normal + offset, 0, atol=1e-12)
        assert len(found) == 1 and (np.abs(found).max(axis=2) > 2 - 1e-9).all()
