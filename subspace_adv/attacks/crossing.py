"""Where a signed output first falls to zero along a ray: exact, and how every attack ends (F5 in docs/theory.md)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from subspace_adv.network import Network, output, preactivations
from subspace_adv.norms import NORMS, dual_length, length, scaled, unit

_TIED = 2.0**-100  # a distance that counts as 0 but is none, and whose square is a number
# With a few inputs, XLA on CPU runs products written out as one pass of vector code.
_MAX_INPUTS_WRITTEN_OUT = 8
_TIE = 2.0**-36  # more than kinks that `_ascending` may swap can move an output, relative to its terms


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


class Slice(NamedTuple):
    """The signed output s·N, s = sign N(x), over the coordinates c of a perturbation within a region."""

    z: jax.Array  # (m,), preactivations at x
    rates: jax.Array  # (m, r), their derivatives in c
    head: jax.Array  # (m,), output weights times s
    offset: jax.Array  # (), output bias times s

    def preactivations(self, c: jax.Array) -> jax.Array:
        """Inputs of the ReLUs (..., m) at the coordinates (..., r)."""
        r, row = self.rates.shape[1], (1,) * (c.ndim - 1) + self.z.shape
        if r > _MAX_INPUTS_WRITTEN_OUT:
            return c @ self.rates.T + self.z.reshape(row)
        return sum((c[..., i, None] * self.rates[:, i].reshape(row) for i in range(r)), self.z.reshape(row))

    def value_of(self, hidden: jax.Array) -> jax.Array:
        """Signed output (...) where the preactivations are `hidden` (..., m)."""
        return jax.nn.relu(hidden) @ self.head + self.offset

    def gradient_of(self, on: jax.Array) -> jax.Array:
        """Gradient (..., r) of the signed output where ReLUs are on, 1, or off, 0, or in between (..., m)."""
        return (on * self.head.reshape((1,) * (on.ndim - 1) + self.head.shape)) @ self.rates

    def value(self, c: jax.Array) -> jax.Array:
        """Signed output at the coordinates (..., r); positive at 0."""
        return self.value_of(self.preactivations(c))

    def value_and_gradient(self, c: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Signed output and its gradient (..., r) at the coordinates (..., r); a ReLU at its kink counts as off."""
        hidden = self.preactivations(c)
        return self.value_of(hidden), self.gradient_of((hidden > 0).astype(c.dtype))

    def farthest_kink(self, norm: str) -> jax.Array:
        """Least radius within which every ReLU that varies can change its state."""
        speed = dual_length(self.rates, norm)
        return jnp.max(jnp.where(speed > 0, jnp.abs(self.z) / jnp.where(speed > 0, speed, 1), 0))

    def crossing(self, direction: jax.Array) -> Crossing:
        """First zero along a ray of coordinates (r,)."""
        return first_crossing(self.z, self.rates @ direction, self.head, self.offset)


def prepared(
    network: Network, x: jax.Array, region: jax.Array, norm: str = "l2"
) -> tuple[Network, jax.Array, jax.Array]:
    """A network, a point and a basis, of NumPy or JAX, as JAX arrays of one type.

    Args:
        network: weight (m, d).
        x: point (d,).
        region: basis (d, r).
        norm: of the perturbation.

    Raises:
        ValueError: if the norm is unknown, or the region is no basis of directions at x.
    """
    NORMS[norm]  # an unknown one is refused
    if isinstance(region, str):
        raise ValueError(f"region {region!r}: give a basis (d, r), which subspace.region_basis makes of this word")
    if region.ndim != 2 or (len(region),) != x.shape:
        raise ValueError(f"region of shape {region.shape}: give a basis (d, r) of directions at x, of shape {x.shape}")
    leaves = [jnp.asarray(leaf) for leaf in (*network, x, region)]
    dtype = jnp.result_type(*leaves)
    *parameters, x, region = (leaf.astype(dtype) for leaf in leaves)
    return Network(*parameters), x, region


def around(network: Network, x: jax.Array, region: jax.Array) -> Slice:
    """The signed output around x (d,) within the region spanned by the columns of `region` (d, r)."""
    network, x, region = prepared(network, x, region)
    sign = jnp.where(output(network, x) < 0, -1, 1).astype(x.dtype)
    return Slice(preactivations(network, x), network.weight @ region, sign * network.head, sign * network.head_bias)


class AttackResult(NamedTuple):
    """Outcome of an attack on one point."""

    delta: jax.Array  # (d,), the perturbation; zeros where the attack failed
    distance: jax.Array  # (), its norm; inf where the attack failed
    is_adv: jax.Array  # (), bool


def crossings(rays: Slice, region: jax.Array, directions: jax.Array, norm: str) -> tuple[jax.Array, Crossing]:
    """First zeros along several rays.

    Args:
        rays: the signed output around a point.
        region: (d, r), what its coordinates mean.
        directions: (k, r), of any length; zeros and what is not finite are rays that lead nowhere.
        norm: of the perturbation in R^d.

    Returns:
        The directions scaled to norm 1, and the crossings along them (k,).
    """
    coordinates = scaled(directions, length(directions @ region.T, norm))
    return coordinates, jax.vmap(rays.crossing)(coordinates)


def shortest(rays: Slice, region: jax.Array, directions: jax.Array, norm: str) -> tuple[jax.Array, AttackResult]:
    """The least perturbation that flips along any of some rays; arguments as in `crossings`.

    Returns:
        A lower bound, a rounding error below the least crossing of these rays, and the flip.
    """
    coordinates, crossing = crossings(rays, region, directions, norm)
    moves = jnp.any(coordinates != 0, axis=1)
    # A point on the decision boundary is flipped by an arbitrarily small step, if there is a step to take.
    tied = (rays.value(jnp.zeros_like(directions[0])) <= 0) & jnp.any(moves)
    best = jnp.where(tied, jnp.argmax(moves), jnp.argmin(crossing.upper))
    distance = jnp.where(tied, _TIED, jnp.maximum(crossing.upper[best], _TIED))
    is_adv = jnp.isfinite(distance)
    result = AttackResult(jnp.where(is_adv, distance, 0) * (region @ coordinates[best]), distance, is_adv)
    return jnp.min(crossing.lower), result


def line_distance(
    network: Network, x: jax.Array, direction: jax.Array, norm: str = "l2"
) -> tuple[jax.Array, AttackResult]:
    """Exact distance to a flip of x along the line spanned by a vector, both ways.

    Args:
        network: weight (m, d).
        x: point (d,).
        direction: vector (d,).
        norm: of the distance.

    Returns:
        A lower bound a rounding error below the distance, and the flip that attains it; inf where nothing flips.
    """
    network, x, direction = prepared(network, x, direction[:, None], norm)
    move = unit(direction[:, 0], norm)[:, None]
    return shortest(around(network, x, move), move, jnp.array([[1.0], [-1.0]], x.dtype), norm)


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
