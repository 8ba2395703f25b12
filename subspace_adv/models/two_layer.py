"""The signed output of a two-layer ReLU network around a point, and where it is zero along a ray, exactly."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from subspace_adv.contracts import Blurred, Crossing, power_of_two, prepared
from subspace_adv.models import compiled
from subspace_adv.network import Network, output, preactivations
from subspace_adv.norms import dual_length

# With a few inputs, XLA on CPU runs products written out as one pass of vector code.
_MAX_INPUTS_WRITTEN_OUT = 8
# Relative to a kink: as near to it a neuron may be on or off. More than kinks that `ascending` may swap are apart.
TIE = 2.0**-36
_BLURRED = 0.2  # of what a preactivation can change by within a radius: as near to its kink, a ReLU is partly on


def rounding_allowance(magnitude: jax.Array, width: int) -> jax.Array:
    """Bound on the rounding error of an output whose terms' absolute values sum to `magnitude`.

    A neuron that is off adds exactly nothing, unless it is within a share `TIE` of its kink; so it is no such term,
    however large its weights are. Sums of m rounded terms are off by a few ulps of the magnitude times √m at most in
    practice; the factor leaves a wide reserve. In float64 that reserve also covers preactivations whose terms cancel
    down to 10⁻⁴.
    """
    return _rounding_share(magnitude.dtype, width) * magnitude


def _rounding_share(dtype: Any, width: int) -> float:
    return 4 * (4 + width**0.5) * float(jnp.finfo(dtype).eps) + (TIE if dtype == jnp.float64 else 0)


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
    by = compiled.crossing if compiled.crosses(z) else crossing_by_xla
    return Crossing(*by(z, rate, head, offset))


def crossing_by_xla(z: jax.Array, rate: jax.Array, head: jax.Array, offset: jax.Array) -> tuple[jax.Array, jax.Array]:
    """As `first_crossing`, where the kernel does not serve."""
    kink = -z / rate
    is_kink = jnp.isfinite(kink) & (kink > 0)
    last = jnp.max(jnp.where(is_kink, kink, 0))
    kink = jnp.where(is_kink, kink, last)
    order = ascending(kink)
    jump_of = jnp.where(is_kink, head * jnp.abs(rate), 0)
    kink, jump = kink[order], jump_of[order]
    on = (z > 0) | ((z == 0) & (rate > 0))
    slope = jnp.sum(jnp.where(on, head * rate, 0)) + jnp.concatenate([jnp.zeros(1, z.dtype), jnp.cumsum(jump)])
    # Past the last kink the slope is summed anew: no rounding error then stands in for neurons all switched off.
    at_last, rising = len(z), jax.nn.relu(rate)
    slope = slope.at[at_last].set(head @ rising)
    begin = jnp.concatenate([jnp.zeros(1, z.dtype), kink])
    rise = jnp.concatenate([jnp.zeros(1, z.dtype), jnp.cumsum(slope[:-1] * jnp.diff(begin))])
    value = head @ jax.nn.relu(z) + offset + rise
    end = jnp.concatenate([begin[1:], jnp.full(1, jnp.inf, z.dtype)])
    # The allowance for rounding grows linearly in t, so the function less or plus it is piecewise linear too. It counts
    # neurons from where they turn on.
    share = _rounding_share(z.dtype, len(z))
    allowance = share * (jnp.abs(head) @ jax.nn.relu(z) + jnp.abs(offset))
    allowance += jnp.finfo(z.dtype).tiny  # where all is off: an output of 0 is no flip
    turning_on = share * jnp.where(z < 0, jnp.abs(jump_of), 0)[order]
    none = jnp.zeros(1, z.dtype)
    allowance += jnp.concatenate([none, jnp.cumsum(turning_on * kink)])
    growths = share * (jnp.where(on, jnp.abs(head), 0) @ jnp.abs(rate))
    growths += jnp.concatenate([none, jnp.cumsum(turning_on)])
    reserves = allowance + begin * growths
    growths = growths.at[at_last].set(share * (jnp.abs(head) @ rising))
    near_kink = 2 * TIE if z.dtype == jnp.float64 else 2.0**-18  # there a piece may have ended, or not yet

    def first_zero(side: int, end: jax.Array) -> jax.Array:
        level, descent = value + side * reserves, -slope - side * growths
        falls = descent > 0
        reach = jnp.where(falls, begin + jnp.maximum(level, 0) / jnp.where(falls, descent, 1), jnp.inf)
        return jnp.where(level[0] > 0, jnp.min(jnp.where(reach <= end, reach, jnp.inf)), 0)

    return first_zero(-1, end) * (1 - near_kink), first_zero(1, end * (1 - near_kink))


class TwoLayerLocal(NamedTuple):
    """The contract `Local`, c ↦ Σᵢ headᵢ·relu(zᵢ + ratesᵢ·c) + offset."""

    z: jax.Array  # (m,), preactivations at x
    rates: jax.Array  # (m, r), their derivatives in c
    head: jax.Array  # (m,), output weights times s
    offset: jax.Array  # (), output bias times s

    @property
    def dimension(self) -> int:
        """Number r of coordinates."""
        return self.rates.shape[1]

    @property
    def dtype(self) -> Any:
        """Type of its numbers."""
        return self.z.dtype

    def astype(self, dtype: Any) -> "TwoLayerLocal":
        """The same in numbers of another type."""
        return jax.tree.map(lambda a: a.astype(dtype), self)

    def in_own_units(self) -> "TwoLayerLocal":
        """The same, over a power of two near the sum of the sizes of all that the output at x adds up."""
        size = jnp.abs(self.head) @ jnp.abs(self.z) + jnp.abs(self.offset)
        factor = power_of_two(size)
        return self._replace(head=self.head / factor, offset=self.offset / factor)

    def value(self, c: jax.Array) -> jax.Array:
        """Signed output (...) at the coordinates (..., r)."""
        return self._value_of(self._preactivations(c))

    def value_and_gradient(self, c: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Signed output and its gradient (..., r) at the coordinates (..., r); a ReLU at its kink counts as off."""
        hidden = self._preactivations(c)
        return self._value_of(hidden), self._gradient_of((hidden > 0).astype(c.dtype))

    def crossing(self, direction: jax.Array) -> Crossing:
        """First zero along a ray of coordinates (r,)."""
        return first_crossing(self.z, self.rates @ direction, self.head, self.offset)

    def reach(self, norm: str) -> jax.Array:
        """Least radius within which every ReLU that varies can change its state."""
        speed = dual_length(self.rates, norm)
        return jnp.max(jnp.where(speed > 0, jnp.abs(self.z) / jnp.where(speed > 0, speed, 1), 0))

    def unbent(self, norm: str) -> jax.Array:
        """Least radius at which a ReLU that is off and would lower the output can turn on; inf if there is none.

        Until then ReLUs that turn on raise the output, and those that turn off lower it no further.
        """
        speed = dual_length(self.rates, norm)
        bends = (self.head < 0) & (self.z <= 0) & (speed > 0)
        return jnp.min(jnp.where(bends, -self.z / jnp.where(bends, speed, 1), jnp.inf))

    def beyond(self) -> "TwoLayerLocal":
        """The output as it is far away: without biases."""
        return self._replace(z=jnp.zeros_like(self.z), offset=jnp.zeros_like(self.offset))

    def values_along(self, directions: jax.Array, radii: jax.Array) -> jax.Array:
        """Signed outputs (k, q) on rays (k, r), each at all of the radii (q,)."""
        rates = directions @ self.rates.T
        # Radius by radius: all at once would not stay in the cache.
        return jax.lax.map(lambda radius: self._value_of(self.z[None] + radius * rates), radii).T

    def asymptotes(self, directions: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Slopes (k,) and constants (k,) of the lines that the output is beyond all kinks of rays (k, r)."""
        rates = directions @ self.rates.T
        slope = jax.nn.relu(rates) @ self.head
        return slope, jnp.where(rates > 0, self.z[None], 0) @ self.head + self.offset

    def gradient_all_on(self) -> jax.Array:
        """Gradient (r,) where every ReLU is on."""
        return self.head @ self.rates

    def blurred(self, norm: str) -> Blurred:
        """Outputs and gradients; a ReLU turns on along a straight line over a part of what it can change by."""
        speed = dual_length(self.rates, norm)

        def value_and_gradient(c: jax.Array, radius: jax.Array) -> tuple[jax.Array, jax.Array]:
            hidden = self._preactivations(c)
            width = jnp.maximum(_BLURRED * (radius[:, None] * speed[None]), jnp.finfo(hidden.dtype).tiny)
            return self._value_of(hidden), self._gradient_of(jnp.clip(0.5 + hidden / (2 * width), 0, 1))

        return value_and_gradient

    def _preactivations(self, c: jax.Array) -> jax.Array:
        """Inputs of the ReLUs (..., m) at the coordinates (..., r)."""
        r, row = self.rates.shape[1], (1,) * (c.ndim - 1) + self.z.shape
        if r > _MAX_INPUTS_WRITTEN_OUT:
            return c @ self.rates.T + self.z.reshape(row)
        return sum((c[..., i, None] * self.rates[:, i].reshape(row) for i in range(r)), self.z.reshape(row))

    def _value_of(self, hidden: jax.Array) -> jax.Array:
        """Signed output (...) where the preactivations are `hidden` (..., m)."""
        return jax.nn.relu(hidden) @ self.head + self.offset

    def _gradient_of(self, on: jax.Array) -> jax.Array:
        """Gradient (..., r) of the signed output where ReLUs are on, 1, or off, 0, or in between (..., m)."""
        return (on * self.head.reshape((1,) * (on.ndim - 1) + self.head.shape)) @ self.rates


def local(network: Network, x: jax.Array, basis: jax.Array) -> TwoLayerLocal:
    """The signed output around x (d,) over coordinates of the columns of `basis` (d, r)."""
    network, x, basis = prepared(network, x, basis)
    sign = jnp.where(output(network, x) < 0, -1, 1).astype(x.dtype)
    return TwoLayerLocal(
        preactivations(network, x), network.weight @ basis, sign * network.head, sign * network.head_bias
    )


def ascending(values: jax.Array) -> jax.Array:
    """Indices that sort each row of values (..., m); of float64 values, up to ties within 2⁻³⁹ of each other.

    XLA on CPU sorts plain integers many times faster than floats or pairs. The bits of floats are ordered as the floats
    are, once those of negative ones are turned over, and the index fits into the last few of them.
    """
    count = values.shape[-1]
    if values.dtype != jnp.float64 or count > 2**13:
        return jnp.argsort(values, axis=-1)
    index_mask = jnp.int64(2 ** (count - 1).bit_length() - 1)
    bits = jax.lax.bitcast_convert_type(values, jnp.int64)
    bits = bits ^ ((bits >> 63) & jnp.iinfo(jnp.int64).max)
    indices = jnp.arange(count, dtype=jnp.int64).reshape((1,) * (values.ndim - 1) + (count,))
    return jnp.sort((bits & ~index_mask) | indices, axis=-1) & index_mask
