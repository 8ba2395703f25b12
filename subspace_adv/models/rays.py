"""Networks of any depth as chains of affine maps with ReLUs between, and where such a one is zero along a ray, exactly.

The output is f_L(relu(f_{L−1}(… relu(f_1(relu(z)))))) of the first layer's preactivations z. Each f_k is a
`jax.tree_util.Partial` of a function and arrays, affine in its argument (..., m) and linear in the arrays, with factors
between that are not negative: dense layers, convolutions, means over positions.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from subspace_adv.contracts import Crossing
from subspace_adv.models.two_layer import TIE

_ROWS = 64  # breakpoints of a ray that are looked at together


def chained(maps: Sequence[Callable[[jax.Array], jax.Array]], z: jax.Array) -> jax.Array:
    """Output (...) where the first layer's preactivations are z (..., m)."""
    for affine_map in maps:
        z = affine_map(jax.nn.relu(z))
    return z


def linear_part(affine_map: Callable[[jax.Array], jax.Array], h: jax.Array) -> jax.Array:
    """A map of h (..., m) less its constant, without the rounding of a difference."""
    return jax.jvp(affine_map, (jnp.zeros_like(h),), (h,))[1]


def absolute(affine_map: jax.tree_util.Partial) -> jax.tree_util.Partial:
    """The map whose coefficients and constants are the absolute values of another one's: the sizes of its terms."""
    return jax.tree.map(jnp.abs, affine_map)


def depth_share(maps: Sequence[Callable[[jax.Array], jax.Array]], z: jax.Array) -> float:
    """Of the sum of the sizes of all terms, what rounding can change an output by that is computed map after map.

    Each map sums m rounded terms, which are off by a few ulps of their sizes times √m at most in practice, as
    `two_layer.rounding_allowance` has it, and hands on what those before it were off by.
    """
    return 4 * len(maps) * (4 + max(widths(maps, z)) ** 0.5) * float(jnp.finfo(z.dtype).eps)


def widths(maps: Sequence[Callable[[jax.Array], jax.Array]], z: jax.Array) -> list[int]:
    """Numbers of neurons of all hidden layers, the first of which has the preactivations z (m,)."""
    layer, found = jax.ShapeDtypeStruct(z.shape, z.dtype), [z.size]
    for affine_map in maps[:-1]:
        layer = jax.eval_shape(affine_map, layer)
        found.append(layer.size)
    return found


def sizes_of_terms(maps: Sequence[jax.tree_util.Partial], like: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sum of the sizes of all that an output adds up, as a linear function of those of the first layer's terms.

    Args:
        maps: of the chain.
        like: any array (m,) of the first layer's shape and type.

    Returns:
        The coefficients (m,) and the constant ().
    """

    def added(first: jax.Array) -> jax.Array:
        for affine_map in maps:
            first = absolute(affine_map)(first)
        return first

    constant, pullback = jax.vjp(added, jnp.zeros_like(like))
    return pullback(jnp.ones_like(constant))[0], constant


class _Ray(NamedTuple):
    """What does not change from window to window."""

    z: jax.Array  # (m,), preactivations at t = 0
    rate: jax.Array  # (m,), their derivatives in t
    z_size: jax.Array  # (m,), of the terms that z adds up
    rate_size: jax.Array  # (m,)
    kinks: jax.Array  # (m + rows,), ascending; inf where there are no more
    maps: Sequence[jax.tree_util.Partial]
    weight: jax.Array  # (m,), by which the sizes of the first layer's terms count for the output
    constant: jax.Array  # (), what does not depend on them
    share: float  # of sums of sizes, what rounding can change by


class _Rows(NamedTuple):
    """A layer's preactivations at breakpoints, between which they are linear."""

    time: jax.Array  # (n,), ascending; those past `filled` repeat the last one
    values: jax.Array  # (n, m)
    direction: jax.Array  # (m,), derivatives beyond the last breakpoint, if it is the ray's last
    direction_size: jax.Array  # (m,), sums of the sizes of their terms, of all neurons that may stay on there
    filled: jax.Array  # (), int32, how many there are
    is_rest: jax.Array  # (), bool, whether nothing bends beyond the last breakpoint


class _Found(NamedTuple):
    """What is known of the crossing."""

    begin: jax.Array  # (), where the next window begins
    lower: jax.Array  # (); inf as long as none is known
    upper: jax.Array  # (); the same
    is_over: jax.Array  # (), bool


def first_crossing(
    z: jax.Array,
    rate: jax.Array,
    maps: Sequence[jax.tree_util.Partial],
    *,
    z_size: jax.Array | None = None,
    rate_size: jax.Array | None = None,
) -> Crossing:
    """First zero of t ↦ f_L(relu(… relu(f_1(relu(z + t·rate))))) for t > 0, exactly (F24 in docs/theory.md).

    Breakpoints are pushed through layer by layer. Between two neighbouring ones every preactivation of a layer is
    linear; where it changes its sign is a new breakpoint, and beyond the last one its direction tells. Breakpoints are
    looked at in windows, of which each begins where the one before it ends.

    *Rounding.* Let S(t) be what the output is if all coefficients and constants are replaced by their absolute values,
    all ReLUs behind the first layer are left out, and the first layer's outputs are replaced by the sizes of the terms
    of its preactivations where these are positive, up to a share θ = 2·`TIE` of the sizes, and by 0 elsewhere. All that
    is computed at a layer is off by no more than a few ulps of its own such sizes: what is added up; the place of a
    zero between its neighbours, as it divides by a difference of numbers of unlike signs; and what preactivations are
    there, as S is linear between two breakpoints. ReLUs and linear interpolation magnify no error, and a map magnifies
    it by the absolute values of its coefficients at most, as it does the sizes. So the output computed is within
    `depth_share`·S(t) of the true one, however much preactivations cancel, at a place that is off by a few ulps of t,
    which changes it by as many ulps of S again. A first layer's neuron that is off, by more than θ of its terms, adds
    nothing to either, whatever its size; and beyond the last breakpoint S grows by neurons that stay on alone.

    Args:
        z: first layer's preactivations at t = 0, (m,); the output must be positive there, so pass the last map with the
            sign s.
        rate: their derivatives in t, (m,).
        maps: f_1 to f_L, the last one to (...).
        z_size: sums of the sizes of the terms of z, (m,), no less than its own size, which is taken where none are
            given: as if z had no rounding errors but relative ones.
        rate_size: those of the rates, (m,), likewise.

    Returns:
        The ends of an interval that holds the crossing: a rounding error wide.
    """
    z_size = jnp.abs(z) if z_size is None else z_size
    rate_size = jnp.abs(rate) if rate_size is None else rate_size
    # On the CPU rays are crossed one by one, so that each takes as many windows as it needs alone.
    one_by_one = jax.custom_batching.sequential_vmap(_crossing)
    ray = z, rate, z_size, rate_size, tuple(maps)
    return Crossing(*jax.lax.platform_dependent(*ray, cpu=one_by_one, default=_crossing))


def _crossing(
    z: jax.Array, rate: jax.Array, z_size: jax.Array, rate_size: jax.Array, maps: tuple[jax.tree_util.Partial, ...]
) -> tuple[jax.Array, jax.Array]:
    """The ends of the interval that holds the crossing; arguments as of `first_crossing`."""
    weight, constant = sizes_of_terms(maps, z)
    kinks = -z / rate
    kinks = jnp.sort(jnp.where((kinks > 0) & jnp.isfinite(kinks), kinks, jnp.inf))
    kinks = jnp.concatenate([kinks, jnp.full(_ROWS, jnp.inf, z.dtype)])
    ray = _Ray(z, rate, z_size, rate_size, kinks, maps, weight, constant, depth_share(maps, z))
    nowhere = jnp.full_like(z[0], jnp.inf)
    found = _Found(jnp.zeros_like(nowhere), nowhere, nowhere, jnp.asarray(False))
    found = jax.lax.while_loop(lambda found: ~found.is_over, lambda found: _after_window(ray, found), found)
    return found.lower * (1 - _tie(z.dtype)), found.upper


def _tie(dtype: jnp.dtype) -> float:
    """Share of its terms' sizes up to which a preactivation may have either sign."""
    return 2 * TIE if dtype == jnp.float64 else 2.0**-18


def _after_window(ray: _Ray, found: _Found) -> _Found:
    """What is known when one more window has been looked at."""
    rows = _first_rows(ray, found.begin)
    for affine_map in ray.maps[:-1]:
        rows = _with_zeros(_pushed(affine_map, rows, ray.share))
    rows = _pushed(ray.maps[-1], rows, ray.share)
    allowance, growth = _allowance(ray, rows)
    lower = jnp.where(jnp.isinf(found.lower), _first_zero(rows, -allowance, -growth), found.lower)
    upper = _first_zero(rows, allowance, growth)
    return _Found(rows.time[-1], lower, upper, rows.is_rest | jnp.isfinite(upper) | jnp.isnan(rows.values[0]))


def _first_rows(ray: _Ray, begin: jax.Array) -> _Rows:
    """The first layer's preactivations at a window's beginning and at the kinks that follow."""
    following = jnp.searchsorted(ray.kinks, begin, side="right")
    ahead = jax.lax.dynamic_slice(ray.kinks, (following,), (_ROWS,))
    time = jnp.concatenate([begin[None], ahead[:-1]])
    count = jnp.sum(jnp.isfinite(time), dtype=jnp.int32)
    time = jnp.where(jnp.isfinite(time), time, time[count - 1])
    values = ray.z[None] + time[:, None] * ray.rate[None]
    exact = jnp.abs(values) > 4 * jnp.finfo(values.dtype).eps * jnp.abs(ray.z)[None]  # at a kink the terms are opposite
    values = jnp.where(exact, values, 0)
    return _Rows(time, values, ray.rate, ray.rate_size, count, jnp.isinf(ahead[-1]))


def _pushed(affine_map: jax.tree_util.Partial, rows: _Rows, share: float) -> _Rows:
    """What a map makes of the ReLUs of a layer's preactivations, none of which changes its sign between the rows."""
    last = rows.values[-1]
    is_on = (last > 0) | ((last == 0) & (rows.direction > 0))
    may_stay_on = rows.direction > -share * rows.direction_size
    return rows._replace(
        values=affine_map(jax.nn.relu(rows.values)),
        direction=linear_part(affine_map, jnp.where(is_on, rows.direction, 0)),
        direction_size=linear_part(absolute(affine_map), jnp.where(may_stay_on, rows.direction_size, 0)),
    )


def _with_zeros(rows: _Rows) -> _Rows:
    """The same preactivations with rows where one of them is zero; as many of the earliest as there is place for.

    What is found is a place between the row before it and the next, as a share of the way. Beyond the last row
    directions stand in for differences, and times since for shares.
    """
    time, values, _, _, filled, is_rest = rows
    (n, m), dtype = values.shape, values.dtype
    direction = jnp.where(is_rest, rows.direction, 0)
    step = jnp.concatenate([jnp.diff(values, axis=0), direction[None]])
    duration = jnp.concatenate([jnp.diff(time), jnp.ones(1, dtype)])
    towards = jnp.concatenate([values[1:], direction[None]])
    crosses = ((values < 0) & (towards > 0)) | ((values > 0) & (towards < 0))
    # Row by row, up to one more than a row can have: only float32 is fast to select from, and holds these integers.
    places = min(m + 1, n * m)
    earliness = jnp.where(crosses.ravel(), -jnp.arange(n * m, dtype=jnp.float32), -jnp.inf)
    earliness, index = jax.lax.top_k(earliness, places)
    row, neuron = index // m, index % m
    share = jnp.where(jnp.isfinite(earliness), -values[row, neuron] / step[row, neuron], jnp.inf)
    zero_time = time[row] + share * duration[row]
    # If there are more, what follows the row at which places ran out is left to the next window.
    has_more = jnp.sum(crosses, dtype=jnp.int32) > places
    last_row = jnp.where(has_more, row[-1], n - 1)
    own = jnp.arange(n, dtype=row.dtype)
    old, new = (own < filled) & (own <= last_row), (zero_time > time[0]) & ~(has_more & (row >= last_row))
    is_kept = jnp.concatenate([old, new])
    merged = jnp.where(is_kept, jnp.concatenate([time, zero_time]), jnp.inf)
    kept = jnp.sum(jnp.isfinite(merged), dtype=jnp.int32)
    now = jnp.minimum(kept, n)
    order = jnp.argsort(merged)[:n][jnp.minimum(own, now - 1)]
    begin = jnp.concatenate([own, row])[order]
    share = jnp.concatenate([jnp.zeros_like(time), share])[order]
    itself = jnp.concatenate([jnp.full_like(own, -1), neuron])[order]
    between = values[begin] + share[:, None] * step[begin]
    between = jnp.where(itself[:, None] == jnp.arange(m, dtype=itself.dtype)[None], 0, between)
    is_rest = is_rest & ~has_more & (kept <= n)
    return rows._replace(time=merged[order], values=between, filled=now, is_rest=is_rest)


def _allowance(ray: _Ray, rows: _Rows) -> tuple[jax.Array, jax.Array]:
    """What rounding can change the output by just behind each row, (n,), and how fast that grows, (n,)."""
    size = ray.z_size[None] + rows.time[:, None] * ray.rate_size[None]
    tie = _tie(size.dtype)
    may_be_on = ray.z[None] + rows.time[:, None] * ray.rate[None] > -tie * size
    rises = ray.rate > -tie * ray.rate_size
    counts = may_be_on | jnp.concatenate([may_be_on[1:], rises[None]])
    allowance = jnp.where(counts, size, 0) @ ray.weight + ray.constant
    growth = jnp.where(counts[:-1], ray.rate_size[None], 0) @ ray.weight
    allowance = ray.share * allowance + jnp.finfo(size.dtype).tiny  # where all is off: an output of 0 is no flip
    return allowance, ray.share * jnp.concatenate([growth, rows.direction_size[None]])


def _first_zero(rows: _Rows, allowance: jax.Array, growth: jax.Array) -> jax.Array:
    """Where the output (n,) plus an allowance (n,) that grows first falls to zero; inf if it does not."""
    level = rows.values + allowance
    ends = rows.values[1:] + allowance[:-1] + growth[:-1] * jnp.diff(rows.time)
    fall = jnp.where(ends <= 0, level[:-1] - ends, jnp.inf)
    inside = rows.time[:-1] + jnp.diff(rows.time) * jnp.where(fall > 0, jnp.clip(level[:-1] / fall, 0, 1), 0)
    inside = jnp.where((level[:-1] <= 0) | (ends <= 0), inside, jnp.inf)
    descent = -(rows.direction + growth[-1])
    falls = rows.is_rest & (descent > 0)
    beyond = jnp.where(falls, rows.time[-1] + level[-1] / jnp.where(falls, descent, 1), jnp.inf)
    beyond = jnp.where(level[-1] > 0, beyond, rows.time[-1])
    return jnp.minimum(jnp.min(inside), beyond)
