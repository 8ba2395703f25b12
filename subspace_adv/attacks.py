"""Perturbations that flip a point: exact crossings of a line, the universal direction, a minimal-norm attack.

An attack is one pure function of one network and one point,
`(network, x, region, *, norm, steps, restarts, key) → AttackResult`. A region is an orthonormal basis (d, r) of
the directions allowed. Attacks flip the network's own prediction, sign N(x), and work on the signed output
s·N, s = sign N(x), never on a loss, whose gradient vanishes at large outputs.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import random

from subspace_adv.network import Network, output, preactivations

Norm = Literal["l2"]


_TIE = 2.0**-36  # more than kinks that `_ascending` may swap can move an output, relative to its terms


class AttackResult(NamedTuple):
    """Outcome of an attack on one point."""

    delta: jax.Array  # (d,), the perturbation; zeros where the attack failed
    distance: jax.Array  # (), its norm; inf where the attack failed
    is_adv: jax.Array  # (), bool


class Crossing(NamedTuple):
    """Where a signed output first falls to zero along a ray, in units of the direction's length."""

    lower: jax.Array  # (), no flip before this point, whatever the rounding
    upper: jax.Array  # (), a flip here, whatever the rounding; inf if none


def rounding_allowance(magnitude: jax.Array, width: int) -> jax.Array:
    """Bound on the rounding error of an output whose terms' absolute values sum to `magnitude`.

    Sums of m rounded terms are off by a few ulps of the magnitude times √m at most in practice; the factor
    leaves a wide reserve. In float64 that reserve also covers preactivations whose terms cancel down to 10⁻⁴.
    """
    ulp = float(jnp.finfo(magnitude.dtype).eps)
    return (4 * (4 + width**0.5) * ulp + (_TIE if magnitude.dtype == jnp.float64 else 0)) * magnitude


def first_crossing(z: jax.Array, rate: jax.Array, head: jax.Array, offset: jax.Array) -> Crossing:
    """First zero of t ↦ Σᵢ headᵢ·relu(zᵢ + t·rateᵢ) + offset for t > 0, exactly (F5 in docs/theory.md).

    The function is piecewise linear with kinks at −zᵢ/rateᵢ, where its slope grows by headᵢ·|rateᵢ|. It must
    be positive at t = 0, so pass the head and the offset times s.

    Args:
        z: preactivations at t = 0, (m,).
        rate: their derivatives in t, (m,).
        head: output weights times s, (m,).
        offset: output bias times s, ().

    Returns:
        The ends of an interval, a rounding error wide, that holds the crossing.
    """
    kink = -z / rate
    is_kink = jnp.isfinite(kink) & (kink > 0)
    last = jnp.max(jnp.where(is_kink, kink, 0))
    kink = jnp.where(is_kink, kink, last)
    order = _ascending(kink)
    kink, jump = kink[order], jnp.where(is_kink, head * jnp.abs(rate), 0)[order]
    on = (z > 0) | ((z == 0) & (rate > 0))
    slope = jnp.sum(jnp.where(on, head * rate, 0)) + jnp.concatenate([jnp.zeros(1, z.dtype), jnp.cumsum(jump)])
    # Past the last kink the slope is summed anew: no rounding error then stands in for neurons all switched off.
    at_last, rising = len(z), jax.nn.relu(rate)
    slope = slope.at[at_last].set(head @ rising)
    begin = jnp.concatenate([jnp.zeros(1, z.dtype), kink])
    rise = jnp.concatenate([jnp.zeros(1, z.dtype), jnp.cumsum(slope[:-1] * jnp.diff(begin))])
    value = head @ jax.nn.relu(z) + offset + rise
    end = jnp.concatenate([begin[1:], jnp.full(1, jnp.inf, z.dtype)])
    # The allowance for rounding grows linearly in t, so the function less or plus it is piecewise linear too.
    allowance = rounding_allowance(jnp.abs(head) @ jnp.abs(z) + jnp.abs(offset), len(z))
    growth = rounding_allowance(jnp.abs(head) @ jnp.abs(rate), len(z))
    growths = jnp.full_like(slope, growth).at[at_last].set(rounding_allowance(jnp.abs(head) @ rising, len(z)))

    def first_zero(side: int) -> jax.Array:
        level, descent = value + side * (allowance + begin * growth), -slope - side * growths
        falls = descent > 0
        reach = jnp.where(falls, begin + jnp.maximum(level, 0) / jnp.where(falls, descent, 1), jnp.inf)
        return jnp.where(level[0] > 0, jnp.min(jnp.where(reach <= end, reach, jnp.inf)), 0)

    return Crossing(first_zero(-1), first_zero(1))


def line_distance(network: Network, x: jax.Array, direction: jax.Array) -> Crossing:
    """Exact distance to a flip of x along the line spanned by a unit vector, both ways.

    Args:
        network: weight (m, d).
        x: point (d,).
        direction: unit vector (d,).

    Returns:
        The ends of a rounding-wide interval that holds the distance; both inf where nothing flips.
    """
    z, head, offset = _signed(network, x)
    rate = network.weight @ direction
    both = jax.vmap(lambda r: first_crossing(z, r, head, offset))(jnp.stack([rate, -rate]))
    return Crossing(jnp.min(both.lower), jnp.min(both.upper))


def universal_direction(network: Network, complement: jax.Array) -> jax.Array:
    """The one unit vector off the subspace meant to lower the output at all its points (F4 in docs/theory.md).

    It does so to first order with high probability in a large codimension, and not at every point always; a ray
    that never crosses zero is found out by `first_crossing`.

    Args:
        network: weight (m, d).
        complement: orthonormal basis (d, l) of the orthogonal complement of the subspace.

    Returns:
        (d,), the direction of P⊥(Σ_{uᵢ<0} wᵢ − Σ_{uᵢ>0} wᵢ); zeros if that vanishes.
    """
    return complement @ _unit((-jnp.sign(network.head) @ network.weight) @ complement)


def random_direction(key: jax.Array, complement: jax.Array) -> jax.Array:
    """A uniformly random unit vector (d,) off the subspace, to compare `universal_direction` with; zeros in no room."""
    return complement @ _unit(random.normal(key, complement.shape[1:], complement.dtype))


def descent_distance(network: Network, x: jax.Array, direction: jax.Array) -> jax.Array:
    """Exact distance to a flip of x along ±direction, with the sign that lowers |N| to first order at x.

    Args:
        network: weight (m, d).
        x: point (d,).
        direction: unit vector (d,).

    Returns:
        (), a flip whatever the rounding; inf where that ray never flips x.
    """
    z, head, offset = _signed(network, x)
    rate = network.weight @ direction
    slope = jnp.where(z > 0, head, 0) @ rate
    return first_crossing(z, jnp.where(slope > 0, -rate, rate), head, offset).upper


def universal_attack(network: Network, x: jax.Array, complement: jax.Array) -> AttackResult:
    """Move x along ±`universal_direction`, whichever lowers |N(x)|, to the exact crossing."""
    z, head, offset = _signed(network, x)
    direction = jnp.sign(output(network, x)) * universal_direction(network, complement)
    return _result(first_crossing(z, network.weight @ direction, head, offset).upper, direction)


def minimal_norm_attack(
    network: Network,
    x: jax.Array,
    region: jax.Array,
    *,
    norm: Norm = "l2",
    steps: int = 40,
    restarts: int = 4,
    key: jax.Array,
) -> AttackResult:
    """Fast minimum-norm attack (Pintor et al. 2021) on the signed output, finished by the exact crossing.

    Each restart begins where the ray of a start direction first crosses the decision boundary: the gradient,
    the direction against all positive neurons' weights, then random ones. The best perturbation is extended or
    shortened to its own exact crossing. The search runs in float32, the crossings in the network's dtype.

    Args:
        network: weight (m, d).
        x: point (d,).
        region: orthonormal basis (d, r) of the perturbations allowed.
        norm: "l2".
        steps: gradient steps of each restart.
        restarts: starts tried.
        key: typed PRNG key of the random starts.

    Returns:
        The smallest perturbation found.
    """
    del norm  # one norm so far; the argument is every attack's
    z, head, offset = _signed(network, x)
    rates = network.weight @ region  # (m, r)

    def crossing_along(direction: jax.Array) -> jax.Array:
        return first_crossing(z, rates @ direction, head, offset).upper

    gradient = jnp.where(z > 0, head, 0) @ rates
    informed = jnp.stack([-_unit(gradient), -_unit(head @ rates)])[:restarts]
    drawn = random.normal(key, (restarts - len(informed), region.shape[1]), z.dtype)
    starts = jnp.concatenate([informed, jax.vmap(_unit)(drawn)])
    reached = jax.vmap(crossing_along)(starts)
    first_order = (head @ jax.nn.relu(z) + offset) / jnp.linalg.norm(gradient)
    scale = jnp.minimum(jnp.min(reached), jnp.where(jnp.isfinite(first_order), first_order, jnp.inf))
    z32, rates32, head32, offset32 = jax.tree.map(lambda a: a.astype(jnp.float32), (z, rates, head, offset))
    searched = jax.vmap(lambda start, radius: _search(z32, rates32, head32, offset32, start, radius, steps))(
        starts.astype(jnp.float32), jnp.where(jnp.isfinite(reached), reached, scale).astype(jnp.float32)
    )
    found = jax.vmap(_unit)(searched.astype(z.dtype))
    directions = jnp.concatenate([found, starts])
    distances = jnp.concatenate([jax.vmap(crossing_along)(found), reached])
    best = jnp.argmin(distances)
    return _result(distances[best], region @ directions[best])


def _search(
    z: jax.Array,
    rates: jax.Array,
    head: jax.Array,
    offset: jax.Array,
    start: jax.Array,
    radius: jax.Array,
    steps: int,
) -> jax.Array:
    """Smallest adversarial coefficients (r,) met by one FMN run from `radius`·`start`; zeros if none."""
    cosine = 0.5 * (1 + jnp.cos(jnp.pi * jnp.arange(steps, dtype=jnp.float32) / steps))

    def move(carry: tuple, decay: jax.Array) -> tuple[tuple, None]:
        delta, bound, best, best_norm = carry
        hidden = z + rates @ delta
        margin = head @ jax.nn.relu(hidden) + offset
        gradient = jnp.where(hidden > 0, head, 0) @ rates
        length, slope = jnp.linalg.norm(delta), jnp.linalg.norm(gradient)
        flipped = margin <= 0
        better = flipped & (length < best_norm)
        best, best_norm = jnp.where(better, delta, best), jnp.where(better, length, best_norm)
        rate = 0.001 + 0.099 * decay
        unflipped = jnp.where(jnp.isfinite(best_norm), bound * (1 + rate), length + margin / slope)
        bound = jnp.where(flipped, jnp.minimum(bound * (1 - rate), best_norm), unflipped)
        delta = delta - 0.5 * decay * radius * _unit(gradient)
        return (delta * jnp.minimum(1, bound / jnp.linalg.norm(delta)), bound, best, best_norm), None

    delta = radius * start
    inf = jnp.float32(jnp.inf)
    (_, _, best, _), _ = jax.lax.scan(move, (delta, inf, jnp.zeros_like(delta), inf), cosine)
    return best


def _ascending(values: jax.Array) -> jax.Array:
    """Indices that sort non-negative values (m,); of float64 values, up to ties within 2⁻³⁹ of each other.

    XLA on CPU sorts plain integers many times faster than floats or pairs. The bits of non-negative floats
    are ordered as the floats are, and the index fits into the last few of them.
    """
    if values.dtype != jnp.float64 or len(values) > 2**13:
        return jnp.argsort(values)
    index_mask = jnp.int64(2 ** (len(values) - 1).bit_length() - 1)
    bits = jax.lax.bitcast_convert_type(values, jnp.int64)
    packed = (bits & ~index_mask) | jnp.arange(len(values), dtype=jnp.int64)
    return jnp.sort(packed) & index_mask


def _signed(network: Network, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Preactivations, and the head and output bias times s = sign N(x)."""
    sign = jnp.where(output(network, x) < 0, -1, 1).astype(x.dtype)
    return preactivations(network, x), sign * network.head, sign * network.head_bias


def _unit(v: jax.Array) -> jax.Array:
    length = jnp.linalg.norm(v)
    return jnp.where(length > 0, v / jnp.where(length > 0, length, 1), 0)


def _result(distance: jax.Array, direction: jax.Array) -> AttackResult:
    is_adv = jnp.isfinite(distance)
    return AttackResult(jnp.where(is_adv, distance, 0) * direction, distance, is_adv)
