"""Distances of the points of a plane to a flip of a two-layer network, exactly (F21 in docs/theory.md).

Within a plane, the kinks of the ReLUs are lines, and the decision boundary is made of straight pieces, each within a
cell between them. Every piece begins on a line, so all are found where the output crosses zero along the lines, one
sort a line. The nearest point of the boundary is one of those crossings, or the foot of a perpendicular on a piece.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from subspace_adv.contracts import PlaneDistances, prepared
from subspace_adv.models import two_layer
from subspace_adv.models.two_layer import TIE, ascending, rounding_allowance
from subspace_adv.network import Network, output
from subspace_adv.norms import NORMS, dual_length, length, steepest

_BATCH = 64  # crossings whose cells are computed at once
# In ulps:
_PARALLEL = 2**8  # the sine of an angle, and a relative distance, below which two lines count as one or as parallel
_EQUAL = 2**3  # likewise, below which one of two lines is left out
_ORDER = 2**3  # times the number of lines: relative distance of kinks that may be out of order, or left out, with all
_FAR = 2.0**60  # where no line is looked for
_SURE = 16  # allowances for rounding beyond which the sign of an output is certain wherever it matters
_REACH = 3  # times a foot's distance from the plane's origin: where the piece that it is on begins, if not nearer
_CONSTANT = 2  # times the allowance's growth: a gradient as small is rounding


class _Plane(NamedTuple):
    """The output over coordinates p of a plane: Σ headᵢ·relu(weightᵢ·p + biasᵢ) + offset."""

    weight: jax.Array  # (m, 2)
    bias: jax.Array  # (m,)
    head: jax.Array  # (m,)
    offset: jax.Array  # ()
    # An output at p is computed within level + growth·|p| of the true one.
    level: jax.Array  # ()
    growth: jax.Array  # ()
    # Beyond sure_level + sure_growth·|p| its sign is certain, also to what computes the crossings of rays.
    sure_level: jax.Array  # ()
    sure_growth: jax.Array  # ()
    steepness: jax.Array  # (), no output varies faster

    def allowance(self, distance: jax.Array) -> jax.Array:
        """What rounding can change of an output as far from the origin."""
        return self.level + self.growth * distance

    def sure(self, distance: jax.Array) -> jax.Array:
        """Size beyond which the sign of an output as far from the origin is certain."""
        return self.sure_level + self.sure_growth * distance

    def values(self, p: jax.Array) -> jax.Array:
        """Outputs (...) at p (..., 2)."""
        return output(Network(self.weight, self.bias, self.head, self.offset), p)


class _Lines(NamedTuple):
    """The kinks of the ReLUs, and two lines through the origin, which any other straight line meets."""

    normal: jax.Array  # (l, 2), of length 1
    origin: jax.Array  # (l, 2), the point nearest to that of the plane
    usable: jax.Array  # (l,), whether it is a line, and none of those before
    start: jax.Array  # (l, m), preactivations at its origin
    rate: jax.Array  # (l, m), their change along it; 0 of lines that count as parallel
    coincident: jax.Array  # (l, m), −1 or 1 where a neuron's kink is this line: whether its normal is opposite
    horizon: jax.Array  # (), nothing nearer has been left out; inf where nothing has at all

    @property
    def direction(self) -> jax.Array:
        """Along the lines, (l, 2)."""
        return _turned(self.normal)


class _Crossings(NamedTuple):
    """Where the output along a line may be zero, one for each edge between two kinks that holds such places."""

    line: jax.Array  # (k,), index
    low: jax.Array  # (k,), ends of the interval, in lengths from the line's origin
    high: jax.Array  # (k,)
    inside: jax.Array  # (k,), a place well within the edge
    negative: jax.Array  # (k,), where the output is negative for certain, just; NaN where that is beyond the edge
    positive: jax.Array  # (k,)


class _Cells(NamedTuple):
    """The cells on both sides of crossings, first those to which the normal points."""

    gradient: jax.Array  # (2, k, 2)
    constant: jax.Array  # (2, k), the output is gradient·p + constant
    begin: jax.Array  # (k, 2), where the boundary enters them
    along: jax.Array  # (2, k, 2), the direction in which it goes on, of length 1
    extent: jax.Array  # (2, k), how far

    @property
    def sides(self) -> tuple[jax.Array, ...]:
        """What differs between the sides."""
        return self.gradient, self.constant, self.along, self.extent


class _Nearest(NamedTuple):
    """What of the boundary is nearest to each point, of all that has been looked at."""

    lower: jax.Array  # (n,)
    foot: jax.Array  # (n,), distances
    toward_foot: jax.Array  # (n, 2)
    flip: jax.Array  # (n,), distances
    toward_flip: jax.Array  # (n, 2)


def plane_distances(network: Network, x: jax.Array, basis: jax.Array, *, norm: str) -> PlaneDistances:
    """Distances to a flip within a plane that holds all of some points.

    Args:
        network: weight (m, d).
        x: points (n, d), whose differences are combinations of the basis. Rounding apart; where they are not, the
            bounds are loose.
        basis: (d, 2), of the perturbations allowed: orthonormal for "l2", of coordinate axes for "linf" and "l1".
        norm: of the perturbation.

    Returns:
        Lower bounds, a rounding error below the distances, and two directions for each point: its flips along them,
        one of which is nearest, are the upper bounds.
    """
    network, centre, basis = prepared(network, x[0], basis, norm)
    x = x.astype(centre.dtype)
    points = (x - centre[None]) @ basis
    network = _without_what_is_off(network, x, basis, jnp.linalg.norm(points, axis=1), norm)
    plane = _plane(network, x, centre, basis, points)
    lines = _lines(plane)
    edges = _edges(plane, lines)
    found = _nearest(plane, lines, edges, points, norm)
    values, size = plane.values(points), jnp.linalg.norm(points, axis=1)
    sure = jnp.abs(values) > plane.allowance(size)
    lower = jnp.minimum(found.lower, lines.horizon) * (1 - _PARALLEL * _ulp(x))
    directions = jnp.stack([found.toward_foot, found.toward_flip], axis=1)
    return PlaneDistances(jnp.where(sure, lower, 0), directions)


def _without_what_is_off(network: Network, x: jax.Array, basis: jax.Array, away: jax.Array, norm: str) -> Network:
    """The network without neurons that are off wherever a nearest flip can be: it is the same there.

    Weights that large steps threw far away would otherwise count for the rounding of outputs that they add nothing to.

    Args:
        network: weight (m, d).
        x: points (n, d).
        basis: (d, 2).
        away: distances (n,) of the points from the first one, in L2.
        norm: of the perturbation.
    """
    rays = jnp.concatenate([jnp.eye(2, dtype=x.dtype), -jnp.eye(2, dtype=x.dtype)])

    def flipped(point: jax.Array) -> jax.Array:
        """Distance of a flip."""
        return jnp.min(jax.vmap(two_layer.local(network, point, basis).crossing)(rays).upper)

    # A ball of another norm lies within one of L2 as large, or √2 times.
    farthest = jnp.max(away + (2**0.5 if NORMS[norm].is_cubic else 1) * jax.vmap(flipped)(x))
    z, speed = network.weight @ x[0] + network.bias, jnp.linalg.norm(network.weight @ basis, axis=1)
    is_off = (z < 0) & (-z * (1 - TIE) > farthest * speed)
    return network._replace(head=jnp.where(is_off, 0, network.head))


def _plane(network: Network, x: jax.Array, centre: jax.Array, basis: jax.Array, points: jax.Array) -> _Plane:
    """The plane through a centre, with the points (n, 2) of it."""
    weight, bias = network.weight @ basis, network.weight @ centre + network.bias
    head, width = jnp.abs(network.head), len(network.head)
    steepness = head @ jnp.linalg.norm(weight, axis=1)
    size = head @ jnp.abs(bias) + jnp.abs(network.head_bias)
    # Preactivations at the centre are sums themselves, and points may lie beside the plane.
    summed = jnp.abs(network.weight) @ jnp.abs(centre) + jnp.abs(network.bias)
    beside = jnp.max(jnp.linalg.norm(x - centre[None] - points @ basis.T, axis=1))
    shift = beside * (head @ jnp.linalg.norm(network.weight, axis=1))
    share = (_PARALLEL + _ORDER * (width + 3) + 4 * width**0.5) * _ulp(x)
    growth, farthest = share * steepness, jnp.max(jnp.linalg.norm(points, axis=1))
    level = share * size + growth * farthest + shift + (len(basis) + 2) * _ulp(x) * (head @ summed)
    sure_level = _SURE * level + 2 * rounding_allowance(size + 2 * steepness * farthest, width)
    sure_growth = _SURE * growth + 2 * rounding_allowance(steepness, width)
    bounds = (level, growth, sure_level, sure_growth, steepness)
    return _Plane(weight, bias, network.head, network.head_bias, *bounds)


def _ulp(a: jax.Array) -> float:
    return float(jnp.finfo(a.dtype).eps)


def _turned(v: jax.Array) -> jax.Array:
    """Vectors (..., 2) turned by a right angle."""
    return jnp.stack([-v[..., 1], v[..., 0]], axis=-1)


def _lines(plane: _Plane) -> _Lines:
    speed = jnp.linalg.norm(plane.weight, axis=1)
    is_line = (speed > 0) & (jnp.abs(plane.bias) < _FAR * speed)
    divisor = jnp.where(is_line, speed, 1)
    axes = jnp.eye(2, dtype=speed.dtype)
    normal = jnp.concatenate([jnp.where(is_line[:, None], plane.weight / divisor[:, None], axes[:1]), axes])
    offset = jnp.concatenate([jnp.where(is_line, -plane.bias / divisor, 0), jnp.zeros(2, speed.dtype)])
    origin = offset[:, None] * normal
    # Of every neuron along every line.
    start, rate = origin @ plane.weight.T + plane.bias[None], _turned(normal) @ plane.weight.T
    size = jnp.abs(offset)[:, None] * speed[None] + jnp.abs(plane.bias)[None]

    def parallel(angle: float) -> jax.Array:
        return jnp.abs(rate) <= angle * _ulp(rate) * speed[None]

    def near(distance: float) -> jax.Array:
        return parallel(distance) & (jnp.abs(start) <= distance * _ulp(start) * size)

    same = near(_PARALLEL)
    before = jnp.arange(len(normal))[:, None] > jnp.arange(len(speed))[None]
    doubles = before & is_line[None] & near(_EQUAL)
    usable = jnp.concatenate([is_line, jnp.ones(2, bool)]) & ~jnp.any(doubles, axis=1)
    flat = parallel(_PARALLEL) | (jnp.abs(rate) * _FAR < jnp.abs(start))
    coincident = jnp.where(same, jnp.sign(normal @ plane.weight.T), 0)
    left_out = jnp.any((speed > 0) & ~is_line) | jnp.any(flat & ~parallel(_PARALLEL))
    horizon = jnp.where(left_out, _FAR / 2, jnp.inf).astype(speed.dtype)
    return _Lines(normal, origin, usable, jnp.where(same, 0, start), jnp.where(flat, 0, rate), coincident, horizon)


def _edges(plane: _Plane, lines: _Lines) -> _Crossings:
    """Of every edge of every line, where the output along it may be zero; low > high where it is not."""
    head, rate, start = plane.head[None], lines.rate, lines.start
    rows = jnp.arange(len(rate))[:, None]
    kink = jnp.where(rate != 0, -start / jnp.where(rate != 0, rate, 1), 0)
    # A kink at 0 that is none: on either side of it, allowances are linear.
    kink = jnp.concatenate([kink, jnp.zeros((len(rate), 1), rate.dtype)], axis=1)
    turn = jnp.pad(head * jnp.abs(rate), ((0, 0), (0, 1)))
    lift = jnp.pad(head * jnp.sign(rate) * start, ((0, 0), (0, 1)))
    order = ascending(kink)
    kink, turn, lift = kink[rows, order], turn[rows, order], lift[rows, order]
    on = (rate < 0) | ((rate == 0) & (start > 0))  # before the first kink
    first_slope = jnp.sum(jnp.where(on, head * rate, 0), axis=1, keepdims=True)
    first_constant = jnp.sum(jnp.where(on, head * start, 0), axis=1, keepdims=True) + plane.offset
    slope = jnp.concatenate([first_slope, first_slope + jnp.cumsum(turn, axis=1)], axis=1)
    constant = jnp.concatenate([first_constant, first_constant + jnp.cumsum(lift, axis=1)], axis=1)
    infinite = jnp.full((len(rate), 1), jnp.inf, rate.dtype)
    begin, end = jnp.concatenate([-infinite, kink], axis=1), jnp.concatenate([kink, infinite], axis=1)
    away = jnp.linalg.norm(lines.origin, axis=1)[:, None]
    outward = jnp.where(begin >= 0, 1, -1).astype(rate.dtype)
    low, high, negative = _at_most(-slope, -constant, begin, end, away, outward, plane)
    low_too, high_too, positive = _at_most(slope, constant, begin, end, away, outward, plane)
    low, high = jnp.maximum(low, low_too), jnp.minimum(high, high_too)
    # What an edge is too short for, its neighbours tell.
    least = jnp.minimum(jnp.abs(begin), jnp.abs(end))
    counts = (end - begin) * plane.steepness > plane.allowance(away + least)
    counts = counts & lines.usable[:, None]
    bounded_begin = jnp.maximum(begin, end - 2 - 2 * jnp.abs(end))
    bounded_end = jnp.minimum(end, begin + 2 + 2 * jnp.abs(begin))
    inside = (jnp.where(jnp.isinf(begin), bounded_begin, begin) + jnp.where(jnp.isinf(end), bounded_end, end)) / 2
    counts = counts & (low <= high) & (low < jnp.inf) & (high > -jnp.inf)
    low, high = jnp.where(counts, low, jnp.inf), jnp.where(counts, high, -jnp.inf)
    return _Crossings(jnp.broadcast_to(rows, low.shape), low, high, inside, negative, positive)


def _at_most(
    slope: jax.Array,
    constant: jax.Array,
    begin: jax.Array,
    end: jax.Array,
    away: jax.Array,
    outward: jax.Array,
    plane: _Plane,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Where within edges (l, e) slope·t + constant is not positive for certain, and the place where that begins."""
    slope = slope - plane.sure_growth * outward
    constant = constant - plane.sure(away)
    zero = -constant / jnp.where(slope == 0, 1, slope)
    low = jnp.where(slope < 0, jnp.maximum(begin, zero), begin)
    high = jnp.where(slope > 0, jnp.minimum(end, zero), end)
    low = jnp.where((slope == 0) & (constant > 0), jnp.inf, low)
    within = (slope != 0) & (zero >= begin) & (zero <= end)
    return low, high, jnp.where(within, zero, jnp.nan)


def _nearest(plane: _Plane, lines: _Lines, edges: _Crossings, points: jax.Array, norm: str) -> _Nearest:
    """Of all crossings and of the cells beside them, batch by batch."""
    flat = jax.tree.map(jnp.ravel, edges)
    rank = jnp.cumsum(flat.low <= flat.high, dtype=jnp.int32)
    count = rank[-1]
    none = jnp.full(len(points), jnp.inf, points.dtype)

    def step(carry: tuple[jax.Array, _Nearest]) -> tuple[jax.Array, _Nearest]:
        begin, best = carry
        wanted = begin + 1 + jnp.arange(_BATCH, dtype=jnp.int32)
        index = jnp.minimum(jnp.searchsorted(rank, wanted), len(rank) - 1)
        crossings = jax.tree.map(lambda a: a[index], flat)
        cells = _cells(plane, lines, crossings)
        return begin + _BATCH, _look(plane, lines, crossings, cells, wanted <= count, points, best, norm)

    start = _Nearest(none, none, jnp.zeros_like(points), none, jnp.zeros_like(points))
    _, found = jax.lax.while_loop(lambda carry: carry[0] < count, step, (jnp.zeros_like(count), start))
    return found


def _cells(plane: _Plane, lines: _Lines, crossings: _Crossings) -> _Cells:
    """The cells beside crossings, and the pieces of the boundary in them."""
    origin, direction = lines.origin[crossings.line], lines.direction[crossings.line]
    normal, coincident = lines.normal[crossings.line], lines.coincident[crossings.line]
    finite = jnp.isfinite(crossings.low) & jnp.isfinite(crossings.high)
    middle = (crossings.low + crossings.high) / 2
    place = jnp.where(finite, middle, jnp.clip(jnp.zeros_like(middle), crossings.low, crossings.high))
    begin = origin + place[:, None] * direction
    inside = origin + crossings.inside[:, None] * direction
    is_on = _preactivations(plane, inside) > 0
    start = _preactivations(plane, begin)

    def cell(side: int) -> tuple[jax.Array, ...]:
        on = jnp.where(coincident != 0, side * coincident > 0, is_on)
        head = jnp.where(on, plane.head[None], 0)
        gradient, constant = head @ plane.weight, head @ plane.bias + plane.offset
        across = _turned(gradient) / jnp.maximum(jnp.linalg.norm(gradient, axis=1), jnp.finfo(head.dtype).tiny)[:, None]
        along = jnp.where(side * jnp.sum(across * normal, axis=1, keepdims=True) < 0, -across, across)
        sign = jnp.where(on, 1, -1).astype(head.dtype)
        toward = -sign * (along[:, :1] * plane.weight[None, :, 0] + along[:, 1:] * plane.weight[None, :, 1])
        nears = (toward > 0) & (coincident == 0)
        extent = jnp.where(nears, jnp.maximum(sign * start, 0) / jnp.where(nears, toward, 1), jnp.inf)
        return gradient, constant, along, jnp.min(extent, axis=1)

    gradient, constant, along, extent = (jnp.stack(pair) for pair in zip(cell(1), cell(-1), strict=True))
    return _Cells(gradient, constant, begin, along, extent)


def _preactivations(plane: _Plane, p: jax.Array) -> jax.Array:
    """(k, m) at p (k, 2)."""
    return p[:, :1] * plane.weight[None, :, 0] + p[:, 1:] * plane.weight[None, :, 1] + plane.bias[None]


def _look(
    plane: _Plane,
    lines: _Lines,
    crossings: _Crossings,
    cells: _Cells,
    real: jax.Array,
    points: jax.Array,
    best: _Nearest,
    norm: str,
) -> _Nearest:
    """The nearest places of some crossings (k,), those that are `real`, and of their cells, or those known before."""
    beside, nearest = _on_lines(lines, crossings, points, norm)
    direction = lines.direction[crossings.line][None]
    away = jnp.linalg.norm(points, axis=1)[:, None] + jnp.linalg.norm(nearest, axis=-1)
    lower, thickest = best.lower, jnp.zeros_like(away)
    foot, toward_foot = best.foot, best.toward_foot
    for gradient, constant, along, extent in zip(*cells.sides, strict=True):
        feet = _feet(plane, (gradient, constant), (cells.begin, along, extent), points, norm)
        lower = jnp.minimum(lower, jnp.min(jnp.where(real[None], feet.lower, jnp.inf), axis=1))
        foot, toward_foot = _nearer(foot, toward_foot, jnp.where(real[None], feet.distance, jnp.inf), feet.move)
        thickest = jnp.maximum(thickest, plane.sure(away) * feet.thickness)

    to_crossing = jnp.maximum(length(nearest, norm) - thickest, 0)
    lower = jnp.minimum(lower, jnp.min(jnp.where(real[None], to_crossing, jnp.inf), axis=1))
    is_positive = plane.values(points) >= 0
    target = jnp.where(is_positive[:, None], crossings.negative[None], crossings.positive[None])
    known = jnp.isfinite(target) & real[None]
    move = beside + jnp.where(known, target, 0)[..., None] * direction
    flip, toward_flip = _nearer(best.flip, best.toward_flip, jnp.where(known, length(move, norm), jnp.inf), move)
    return _Nearest(lower, foot, toward_foot, flip, toward_flip)


def _on_lines(lines: _Lines, crossings: _Crossings, points: jax.Array, norm: str) -> tuple[jax.Array, jax.Array]:
    """From the points (n, 2) to the origins of the lines, and to the nearest places of the crossings, (n, k, 2).

    What is nearest of a whole line is so in any norm along the steepest direction. On a part of it, convexity lets the
    nearest place be the one beside that.
    """
    normal, direction = lines.normal[crossings.line][None], lines.direction[crossings.line][None]
    beside = lines.origin[crossings.line][None] - points[:, None]
    gap = jnp.sum(normal * beside, axis=-1, keepdims=True) / dual_length(normal, norm)[..., None]
    place = jnp.sum((gap * steepest(normal, norm) - beside) * direction, axis=-1)
    place = jnp.clip(place, crossings.low[None], crossings.high[None])
    return beside, beside + place[..., None] * direction


class _Feet(NamedTuple):
    """Of perpendiculars from points (n,) on the pieces of the boundary in cells (k,)."""

    lower: jax.Array  # (n, k), no flip within the cell is nearer, unless one near its edge is; inf where none is
    distance: jax.Array  # (n, k), to the foot; inf where it is not on the piece
    move: jax.Array  # (n, k, 2), to the foot
    thickness: jax.Array  # (1, k), how far the piece moves if the output changes by 1; 0 where it hardly varies


def _feet(
    plane: _Plane,
    output: tuple[jax.Array, jax.Array],
    piece: tuple[jax.Array, jax.Array, jax.Array],
    points: jax.Array,
    norm: str,
) -> _Feet:
    """The feet in cells whose outputs have a gradient (k, 2) and a constant, and pieces a begin, direction, extent."""
    (gradient, constant), (begin, along, extent) = output, piece
    p, own = points[:, None], jnp.linalg.norm(points, axis=1)[:, None]
    steepness = dual_length(gradient, norm)[None]
    inverse = jnp.where(steepness > 0, 1 / jnp.where(steepness > 0, steepness, 1), 0)
    value = jnp.sum(p * gradient[None], axis=-1) + constant[None]
    move = -(value * inverse)[..., None] * steepest(gradient, norm)[None]
    from_begin, away = p + move - begin[None], jnp.linalg.norm(p + move, axis=-1)
    at = jnp.sum(from_begin * along[None], axis=-1)
    # A piece that begins much farther from the origin than the foot is begins elsewhere too, and nearer.
    begins_near = jnp.linalg.norm(from_begin, axis=-1) <= _REACH * away + 2 * plane.sure(away) * inverse
    varies = jnp.linalg.norm(gradient, axis=1)[None] > _CONSTANT * plane.growth
    on_piece = varies & begins_near & (at >= 0) & (at <= extent[None])
    allowance = plane.allowance(own + jnp.linalg.norm(move, axis=-1))
    lower = jnp.maximum(jnp.abs(value) - allowance, 0) * inverse
    # Where the output hardly varies, all that is known is how fast it can fall.
    slowest = (jnp.abs(value) - plane.allowance(own)) / (steepness + 2 * plane.growth)
    falls = ~varies & (jnp.abs(value) > 4 * plane.allowance(own))
    return _Feet(
        jnp.where(on_piece, lower, jnp.where(falls, slowest, jnp.inf)),
        jnp.where(on_piece, jnp.abs(value) * inverse, jnp.inf),
        move,
        jnp.where(varies, inverse, 0),
    )


def _nearer(least: jax.Array, toward: jax.Array, distances: jax.Array, moves: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The least of distances (n, k) and of those known before (n,), and the moves (n, 2) that it is of."""
    at = jnp.argmin(distances, axis=1)
    nearest = jnp.take_along_axis(distances, at[:, None], axis=1)[:, 0]
    move = jnp.take_along_axis(moves, at[:, None, None], axis=1)[:, 0]
    better = nearest < least
    return jnp.where(better, nearest, least), jnp.where(better[:, None], move, toward)
