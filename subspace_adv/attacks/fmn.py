"""Fast minimum-norm attack (Pintor, Roli, Brendel and Biggio 2021) on the signed output, in three norms."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import random

from subspace_adv.attacks.crossing import AttackResult, Slice, around, prepared, shortest
from subspace_adv.network import Network
from subspace_adv.norms import NORMS, dual_length, length, project, steepest, unit
from subspace_adv.streams import key_of

_RADII = 6  # at which a ray is evaluated to see where it crosses, about
_LEAST_RADIUS = 1e-6  # of the largest
_START = 2.0  # times the nearest crossing of all rays, at most, is where runs begin
_FAR_RAYS, _FAR_KEPT, _FAR_STEPS = 64, 4, 8  # of the search beyond all kinks
_FAR = 8.0  # times the farthest kink
# Gradient steps of the two rounds, first and last, relative to the start; and the most that the radius changes in one.
_FIRST, _FIRST_IN_A_CUBE = (1.0, 0.2), (0.7, 0.2)
_FIRST_RATE, _SECOND, _SECOND_RATE = (0.1, 0.02), (0.4, 0.01), (0.1, 0.001)
_BLUR = 0.2  # of a step: within this distance of its kink, a ReLU counts as partly on in L∞
_FINALISTS = 2  # the shortest flips met, whose rays are crossed exactly


def fmn_attack(
    network: Network,
    x: jax.Array,
    region: jax.Array,
    *,
    norm: str = "l2",
    steps: int = 56,
    restarts: int = 32,
    key: jax.Array,
    toward: jax.Array | None = None,
) -> AttackResult:
    """Fast minimum-norm attack with restarts, finished by the exact crossing.

    In a first round, runs begin where rays cross the decision boundary: the steepest descent, the direction against
    all neurons, the one toward a given point, that of the steepest descent far beyond all kinks, and random ones (in
    L∞ sign vectors too, in L1 the coordinate axes), most of them those that cross first. In a second round the best
    sixth of the runs goes on with finer steps, and half as many begin around the best flip found, each nearer and with
    finer steps than the one before. The rays of the best perturbations are extended or shortened to their own exact
    crossings. The search runs in float32, the crossings in the network's dtype.

    Args:
        network: weight (m, d).
        x: point (d,).
        region: basis (d, r) of the perturbations allowed: orthonormal for "l2", of coordinate axes for "linf"
            and "l1", or any single column.
        norm: of the perturbation.
        steps: gradient steps of a run through both rounds, two fifths of them in the first.
        restarts: runs of the first round.
        key: typed PRNG key of the random rays.
        toward: a point (d,) that the network classifies otherwise; none by default.

    Returns:
        The smallest perturbation found.
    """
    network, x, region = prepared(network, x, region, norm)
    rays = around(network, x, region)
    goal = None if toward is None else (toward - x) @ region
    directions = fmn_directions(rays, norm=norm, steps=steps, restarts=restarts, key=key, goal=goal)
    _, result = shortest(rays, region, directions, norm)
    return result


def fmn_directions(
    rays: Slice, *, norm: str, steps: int, restarts: int, key: jax.Array, goal: jax.Array | None
) -> jax.Array:
    """The best flips that `fmn_attack` meets around a point, and its nearest start, (k, r)."""
    dtype = rays.z.dtype
    rays, goal = jax.tree.map(lambda a: a.astype(jnp.float32), (rays, goal))
    ray_key, near_key = random.split(key)
    starts = _starts(rays, norm, restarts, ray_key, goal)
    none = _Flips(jnp.zeros_like(starts), jnp.full(restarts, jnp.inf, jnp.float32))
    first_steps = -(-2 * steps // 5)
    first_sizes = _FIRST_IN_A_CUBE if NORMS[norm].is_cubic else _FIRST
    first = _search(rays, starts, none, jnp.ones_like(none.sizes), norm, first_steps, first_sizes, _FIRST_RATE)

    going_on, anew = -(-restarts // 6), -(-restarts // 12)
    best = _least(first.sizes, going_on)
    kept = jax.tree.map(lambda a: a[best], first)
    flips = jnp.isfinite(kept.sizes)[:, None]
    noise = unit(random.normal(near_key, (anew, starts.shape[1]), jnp.float32), norm)
    scale = 4.0 ** -jnp.arange(anew, dtype=jnp.float32)
    near = unit(unit(kept.places[:1], norm) + scale[:, None] * noise, norm) * kept.sizes[0]
    begin = [jnp.where(flips, kept.places, starts[best]), jnp.where(flips[0], near, starts[:anew])]
    known = jax.tree.map(lambda a, b: jnp.concatenate([a, b[:anew]]), kept, none)
    scales = jnp.concatenate([jnp.ones_like(kept.sizes), scale])
    second = _search(rays, jnp.concatenate(begin), known, scales, norm, steps - first_steps, _SECOND, _SECOND_RATE)

    places, sizes = (jnp.concatenate(pair) for pair in zip(first, second, strict=True))
    nearest = jnp.argmin(length(starts, norm))
    return jnp.concatenate([places[_least(sizes, _FINALISTS)], starts[nearest][None]]).astype(dtype)


class _Flips(NamedTuple):
    """The smallest flip that each of several runs has met."""

    places: jax.Array  # (k, r), coordinates; zeros where none
    sizes: jax.Array  # (k,), their norms; inf where none


def _least(values: jax.Array, count: int) -> jax.Array:
    """Indices of the least of some values, ascending; XLA on CPU selects many times faster than it sorts floats."""
    return jax.lax.top_k(-values, count)[1]


def _starts(rays: Slice, norm: str, restarts: int, key: jax.Array, goal: jax.Array | None) -> jax.Array:
    """Where the runs begin, (restarts, r): where rays cross zero, but not much farther than the nearest does."""
    r = rays.rates.shape[1]
    margin, gradient = rays.value_and_gradient(jnp.zeros(r, jnp.float32))
    far = _far_descents(rays)
    informed = [-steepest(gradient, norm), -gradient, -rays.head @ rays.rates, far[0]]
    if goal is not None:
        informed.append(goal)
    drawn = random.normal(key, (restarts if NORMS[norm].is_taxicab else 2 * restarts, r), jnp.float32)
    if NORMS[norm].is_cubic:
        drawn = jnp.where(jnp.arange(len(drawn))[:, None] % 2 == 0, jnp.sign(drawn), drawn)
    if NORMS[norm].is_taxicab:
        drawn = jnp.concatenate([drawn, _steepest_axes(rays, gradient, 4 * restarts)])
    directions = unit(jnp.concatenate([jnp.stack(informed), drawn, far[1:]]), norm)
    speed, kink = dual_length(gradient, norm), rays.farthest_kink(norm)
    first_order = jnp.where(speed > 0, margin / jnp.where(speed > 0, speed, 1), kink)
    reached = _reached(rays, directions, first_order / 2, kink)
    nearest = jnp.min(reached)
    # A quarter is taken as drawn, wherever it crosses: the least flip need not be near the nearest crossing.
    certain = len(informed) + restarts // 4
    chosen = _least(reached.at[:certain].set(0), restarts)
    unknown = jnp.where(jnp.arange(restarts) % 2 == 0, first_order, _FAR * kink)
    radius = jnp.where(jnp.isfinite(nearest), jnp.minimum(reached[chosen], _START * nearest), unknown)
    return radius[:, None] * directions[chosen]


def _steepest_axes(rays: Slice, gradient: jax.Array, most: int) -> jax.Array:
    """Coordinate axes with both signs (k, r): all, or half of `most` steep downhill at x, half beyond all kinks."""
    axes = jnp.eye(len(gradient), dtype=gradient.dtype)
    both = jnp.concatenate([axes, -axes])
    if len(both) <= most:
        return both
    near = _least(both @ gradient, most // 2)
    far = _least(jax.nn.relu(both @ rays.rates.T) @ rays.head, most // 2)
    return both[jnp.concatenate([near, far])]


def _far_descents(rays: Slice) -> jax.Array:
    """Directions (few, r) down which the output falls beyond all kinks, the steepest first, by descent on the sphere.

    There N is positively homogeneous up to a constant. Where only a narrow cone of rays flips, and far away, no ray
    drawn at random may lie in it. The descents begin from the best of some rays that are the same for all points.
    """
    beyond = rays._replace(z=jnp.zeros_like(rays.z), offset=jnp.zeros_like(rays.offset))
    c = unit(random.normal(key_of(0), (_FAR_RAYS, rays.rates.shape[1]), jnp.float32), "l2")
    c = c[_least(beyond.value(c), _FAR_KEPT)]

    def move(carry: tuple, step: jax.Array) -> tuple[tuple, None]:
        c, best, least = carry
        slope, gradient = beyond.value_and_gradient(c)
        better = slope < least
        best, least = jnp.where(better[:, None], c, best), jnp.where(better, slope, least)
        return (unit(c - step * unit(gradient, "l2"), "l2"), best, least), None

    steps = jnp.geomspace(0.5, 0.05, _FAR_STEPS, dtype=c.dtype)
    (_, best, least), _ = jax.lax.scan(move, (c, c, jnp.full(len(c), jnp.inf, c.dtype)), steps)
    return best[_least(least, _FAR_KEPT)]


def _reached(rays: Slice, directions: jax.Array, low: jax.Array, high: jax.Array) -> jax.Array:
    """About where each of some rays (k, r) first crosses zero, (k,); inf if it seems not to.

    Each is evaluated at radii from `low` to `high`, the farthest kink, beyond which it is a line.
    """
    ratio = jnp.clip(low / jnp.where(high > 0, high, 1), _LEAST_RADIUS, 1)
    radii = high * ratio ** jnp.linspace(1, 0, _RADII, dtype=high.dtype)
    radii = jnp.concatenate([jnp.zeros(1, low.dtype), radii])
    rates = directions @ rays.rates.T
    # Radius by radius: all at once would not stay in the cache.
    values = jax.lax.map(lambda radius: rays.value_of(rays.z[None] + radius * rates), radii).T
    flipped = values <= 0
    at = jnp.maximum(jnp.argmax(flipped, axis=1), 1)
    after, before = (jnp.take_along_axis(values, i[:, None], axis=1)[:, 0] for i in (at, at - 1))
    share = before / jnp.where(before > after, before - after, 1)
    inside = radii[at - 1] + jnp.clip(share, 0, 1) * (radii[at] - radii[at - 1])
    slope = jax.nn.relu(rates) @ rays.head
    constant = jnp.where(rates > 0, rays.z[None], 0) @ rays.head + rays.offset
    outside = jnp.where(slope < 0, jnp.maximum(constant / -jnp.where(slope < 0, slope, -1), high), jnp.inf)
    return jnp.where(jnp.any(flipped, axis=1), inside, outside)


def _search(
    rays: Slice,
    starts: jax.Array,
    known: _Flips,
    scales: jax.Array,
    norm: str,
    steps: int,
    step_sizes: tuple[float, float],
    rates: tuple[float, float],
) -> _Flips:
    """Smallest flips met by runs from given places (k, r), or known before.

    The radius on which a run goes on is where the output would be zero if it were linear, but within a few per cent,
    the rate, of the smallest flip that the run has met. Step sizes are relative to the starts' lengths times the runs'
    scales (k,), and fall, as the rates do, from the first to the last along a cosine. In L∞ least flips lie where many
    kinks meet, across which gradients jump back and forth: there a ReLU turns on over a part of a step.
    """
    descent = 0.5 * (1 + jnp.cos(jnp.pi * jnp.arange(steps, dtype=jnp.float32) / max(steps - 1, 1)))
    schedule = tuple(last + (first - last) * descent for first, last in (step_sizes, rates))
    unit_step = scales * length(starts, norm if NORMS[norm].is_cubic else "l2")
    reach = dual_length(rays.rates, norm)

    def move(carry: tuple, now: tuple) -> tuple[tuple, None]:
        c, bound, best = carry
        step, rate = now[0] * unit_step, now[1]
        hidden = rays.preactivations(c)
        blurred = _blurred(hidden, _BLUR * step[:, None] * reach[None]) if NORMS[norm].is_cubic else (hidden > 0)
        margin, gradient = rays.value_of(hidden), rays.gradient_of(blurred.astype(hidden.dtype))
        size, slope = length(c, norm), dual_length(gradient, norm)
        better = (margin <= 0) & (size < best.sizes)
        best = _Flips(jnp.where(better[:, None], c, best.places), jnp.where(better, size, best.sizes))
        linear = size + margin / slope
        near = jnp.clip(linear, jnp.minimum(bound, best.sizes) * (1 - rate), best.sizes * (1 + rate))
        bound = jnp.where(jnp.isfinite(best.sizes), near, linear)
        c = c - step[:, None] * _downhill(gradient, norm)
        return (project(c, bound, norm), bound, best), None

    (_, _, best), _ = jax.lax.scan(move, (starts, known.sizes, known), schedule)
    return best


def _blurred(hidden: jax.Array, change: jax.Array) -> jax.Array:
    """How far ReLUs (k, m) are on, 0 to 1: along a straight line near their kinks, given what a step can change."""
    width = jnp.maximum(_BLUR * change, jnp.finfo(hidden.dtype).tiny)
    return jnp.clip(0.5 + hidden / (2 * width), 0, 1)


def _downhill(gradient: jax.Array, norm: str) -> jax.Array:
    """Along the gradients (k, r), as long as 1 in L2; in L∞ with every coordinate above the average as long as 1."""
    if not NORMS[norm].is_cubic:
        return unit(gradient, "l2")
    average = jnp.mean(jnp.abs(gradient), axis=-1, keepdims=True)
    return jnp.clip(gradient / jnp.where(average > 0, average, 1), -1, 1)
