"""Fast minimum-norm attack (Pintor, Roli, Brendel and Biggio 2021) on the signed output, in three norms."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import random

from subspace_adv import streams
from subspace_adv.contracts import Local
from subspace_adv.norms import NORMS, dual_length, length, project, steepest, unit


class Fall(NamedTuple):
    """What falls from the first step of a round to its last, along a cosine."""

    first: float
    last: float


class Tuning(NamedTuple):
    """What the search was tuned to, with `benchmarks/attacks.py` and the table of `tests/test_optimum.py`."""

    # Where the first round begins: on rays, about where each crosses zero.
    radii: int = 6  # at which a ray is evaluated to see where that is
    least_radius: float = 1e-6  # of them, relative to the largest
    halvings: int = 3  # of the interval between two of them
    farthest_start: float = 2.0  # times the nearest crossing of all rays
    as_drawn: int = 4  # one run in so many begins on a ray as it was drawn, wherever that crosses
    # The search for directions in which the output falls beyond all kinks.
    far_rays: int = 64
    far_kept: int = 4
    far_steps: int = 8
    far_step: Fall = Fall(0.5, 0.05)  # but geometrically
    far: float = 8.0  # times what comes to every kink, where a run begins on a ray of which no crossing is known
    # Gradient steps of the two rounds, relative to the length of the start, and the most, relative to the smallest
    # flip, that the radius on which a run goes on differs from that.
    first_share: tuple[int, int] = (2, 5)  # of all steps, rounded up
    first_step: Fall = Fall(1.0, 0.2)
    first_step_in_a_cube: Fall = Fall(0.7, 0.2)
    first_rate: Fall = Fall(0.1, 0.02)
    second_step: Fall = Fall(0.4, 0.01)
    second_rate: Fall = Fall(0.1, 0.001)
    blur: float = 0.2  # of a step: the radius over which gradients are blurred in L∞
    # Runs of the second round.
    going_on: int = 6  # one in so many of the first, rounded up
    anew: int = 12  # likewise, begun around the best flip
    nearer: float = 4.0  # as near to it each is as the one before, and as fine are its steps
    finalists: int = 2  # the shortest flips met, whose rays are crossed exactly


TUNING = Tuning()


class Flips(NamedTuple):
    """The smallest flip that each of several runs has met."""

    places: jax.Array  # (k, r), coordinates; zeros where none
    sizes: jax.Array  # (k,), their norms; inf where none

    @classmethod
    def none(cls, starts: jax.Array) -> "Flips":
        """Of runs from some places (k, r) that have met none."""
        return cls(jnp.zeros_like(starts), jnp.full(len(starts), jnp.inf, jnp.float32))


class _Runs(NamedTuple):
    """Where the runs of a round stand."""

    c: jax.Array  # (k, r)
    radius: jax.Array  # (k,), of the ball that each was last projected on; inf before
    best: Flips


def fmn_directions(
    local: Local, norm: str, steps: int, restarts: int, key: jax.Array, goal: jax.Array | None
) -> jax.Array:
    """The fast minimum-norm attack with restarts.

    In a first round, runs begin where rays cross the decision boundary: the steepest descent, the direction against
    all neurons, the one toward a given point, that of the steepest descent far beyond all kinks, and random ones (in
    L∞ sign vectors too, in L1 the coordinate axes), most of them those that cross first. In a second round the best
    sixth of the runs goes on with finer steps, and half as many begin around the best flip found, each nearer and with
    finer steps than the one before. The search runs in float32.

    Args:
        local: the signed output around a point.
        norm: of the perturbation.
        steps: gradient steps of a run through both rounds, two fifths of them in the first.
        restarts: runs of the first round.
        key: typed PRNG key of the random rays.
        goal: coordinates (r,) of a point of the other prediction; None where none is known.

    Returns:
        The best flips met, and the nearest start, (k, r).
    """
    dtype = local.dtype
    local, goal = local.astype(jnp.float32), None if goal is None else goal.astype(jnp.float32)
    ray_key, near_key = streams.search_keys(key)
    share, of = TUNING.first_share
    first_steps = -(-share * steps // of)
    starts = _starts(local, norm, restarts, ray_key, goal)
    first = _first_round(local, starts, norm, first_steps)
    second = _second_round(local, starts, first, near_key, norm, steps - first_steps)
    places, sizes = (jnp.concatenate(pair) for pair in zip(first, second, strict=True))
    nearest = jnp.argmin(length(starts, norm))
    return jnp.concatenate([places[_least(sizes, TUNING.finalists)], starts[nearest][None]]).astype(dtype)


def _first_round(local: Local, starts: jax.Array, norm: str, steps: int) -> Flips:
    """Runs from all starts (k, r)."""
    none = Flips.none(starts)
    step = TUNING.first_step_in_a_cube if NORMS[norm].is_cubic else TUNING.first_step
    return _search(local, starts, none, jnp.ones_like(none.sizes), norm, steps, step, TUNING.first_rate)


def finished(local: Local, starts: jax.Array, first: Flips, key: jax.Array, norm: str, steps: int) -> jax.Array:
    """The best flips (k, r) of a first round by some search, and of a second one; arguments as of `_second_round`."""
    second = _second_round(local, starts, first, key, norm, steps)
    best = [flips.places[_least(flips.sizes, TUNING.finalists)] for flips in (second, first)]
    return jnp.concatenate(best)


def _second_round(local: Local, starts: jax.Array, first: Flips, key: jax.Array, norm: str, steps: int) -> Flips:
    """The best runs go on with finer steps, beside some anew around the best flip, or from starts where there is none.

    Args:
        local: the signed output around a point.
        starts: of the first round (k, r).
        first: the flips that it met.
        key: typed PRNG key of the places around the best flip.
        norm: of the perturbation.
        steps: gradient steps of a run.
    """
    restarts = len(starts)
    going_on, anew = -(-restarts // TUNING.going_on), -(-restarts // TUNING.anew)
    best = _least(first.sizes, going_on)
    kept = jax.tree.map(lambda a: a[best], first)
    flips = jnp.isfinite(kept.sizes)[:, None]
    noise = unit(random.normal(key, (anew, starts.shape[1]), jnp.float32), norm)
    scale = TUNING.nearer ** -jnp.arange(anew, dtype=jnp.float32)
    near = unit(unit(kept.places[:1], norm) + scale[:, None] * noise, norm) * kept.sizes[0]
    begin = [jnp.where(flips, kept.places, starts[best]), jnp.where(flips[0], near, starts[:anew])]
    known = jax.tree.map(lambda a, b: jnp.concatenate([a, b[:anew]]), kept, Flips.none(starts))
    scales = jnp.concatenate([jnp.ones_like(kept.sizes), scale])
    return _search(local, jnp.concatenate(begin), known, scales, norm, steps, TUNING.second_step, TUNING.second_rate)


def _search(
    local: Local, starts: jax.Array, known: Flips, scales: jax.Array, norm: str, steps: int, step: Fall, rate: Fall
) -> Flips:
    """Smallest flips met by runs from given places, or known before.

    The radius on which a run goes on is where the output would be zero if it were linear, but within a few per cent,
    the rate, of the smallest flip that the run has met. In L∞ least flips lie where many kinks meet, across which
    gradients jump back and forth: there they are blurred over a part of a step.

    Args:
        local: the signed output around a point.
        starts: (k, r).
        known: flips that the runs have met before.
        scales: of the runs' steps, (k,).
        norm: of the perturbation.
        steps: number of steps.
        step: their size, relative to the starts' lengths times the scales.
        rate: the most that the radius differs from the smallest flip, relative to that.
    """
    descent = 0.5 * (1 + jnp.cos(jnp.pi * jnp.arange(steps, dtype=jnp.float32) / max(steps - 1, 1)))
    sizes, rates = (fall.last + (fall.first - fall.last) * descent for fall in (step, rate))
    is_cubic = NORMS[norm].is_cubic
    unit_step = scales * length(starts, norm if is_cubic else "l2")
    blurred = local.blurred(norm)

    def move(runs: _Runs, now: tuple[jax.Array, jax.Array]) -> tuple[_Runs, None]:
        c, radius, best = runs
        size_of_step, rate = now[0] * unit_step, now[1]
        margin, gradient = blurred(c, TUNING.blur * size_of_step) if is_cubic else local.value_and_gradient(c)
        size, slope = length(c, norm), dual_length(gradient, norm)
        better = (margin <= 0) & (size < best.sizes)
        best = Flips(jnp.where(better[:, None], c, best.places), jnp.where(better, size, best.sizes))
        linear = size + margin / slope
        near = jnp.clip(linear, jnp.minimum(radius, best.sizes) * (1 - rate), best.sizes * (1 + rate))
        radius = jnp.where(jnp.isfinite(best.sizes), near, linear)
        c = c - size_of_step[:, None] * _downhill(gradient, norm)
        return _Runs(project(c, radius, norm), radius, best), None

    runs, _ = jax.lax.scan(move, _Runs(starts, known.sizes, known), (sizes, rates))
    return runs.best


def _downhill(gradient: jax.Array, norm: str) -> jax.Array:
    """Along the gradients (k, r), as long as 1 in L2; in L∞ with every coordinate above the average as long as 1."""
    if not NORMS[norm].is_cubic:
        return unit(gradient, "l2")
    average = jnp.mean(jnp.abs(gradient), axis=-1, keepdims=True)
    return jnp.clip(gradient / jnp.where(average > 0, average, 1), -1, 1)


def _least(values: jax.Array, count: int) -> jax.Array:
    """Indices of the least of some values, ascending; XLA on CPU selects many times faster than it sorts floats."""
    return jax.lax.top_k(-values, count)[1]


def _starts(local: Local, norm: str, restarts: int, key: jax.Array, goal: jax.Array | None) -> jax.Array:
    """Where the runs begin, (restarts, r): where rays cross zero, but not much farther than the nearest does."""
    r = local.dimension
    margin, gradient = local.value_and_gradient(jnp.zeros(r, jnp.float32))
    far = _far_descents(local)
    informed = [-steepest(gradient, norm), -gradient, -local.gradient_all_on(), far[0]]
    if goal is not None:
        informed.append(goal)
    drawn = random.normal(key, (restarts if NORMS[norm].is_taxicab else 2 * restarts, r), jnp.float32)
    if NORMS[norm].is_cubic:
        drawn = jnp.where(jnp.arange(len(drawn))[:, None] % 2 == 0, jnp.sign(drawn), drawn)
    if NORMS[norm].is_taxicab:
        drawn = jnp.concatenate([drawn, _steepest_axes(local, gradient, 4 * restarts)])
    directions = unit(jnp.concatenate([jnp.stack(informed), drawn, far[1:]]), norm)
    speed, reach = dual_length(gradient, norm), local.reach(norm)
    first_order = jnp.where(speed > 0, margin / jnp.where(speed > 0, speed, 1), reach)
    # No flip is nearer than both.
    reached = _reached(local, directions, jnp.minimum(first_order, local.unbent(norm)), reach)
    nearest = jnp.min(reached)
    # The least flip need not be near the nearest crossing.
    certain = len(informed) + restarts // TUNING.as_drawn
    chosen = _least(reached.at[:certain].set(0), restarts)
    unknown = jnp.where(jnp.arange(restarts) % 2 == 0, first_order, TUNING.far * reach)
    known = jnp.minimum(reached[chosen], TUNING.farthest_start * nearest)
    radius = jnp.where(jnp.isfinite(nearest), known, unknown)
    return radius[:, None] * directions[chosen]


def _steepest_axes(local: Local, gradient: jax.Array, most: int) -> jax.Array:
    """Coordinate axes with both signs (k, r): all, or half of `most` steep downhill at x, half beyond all kinks."""
    axes = jnp.eye(len(gradient), dtype=gradient.dtype)
    both = jnp.concatenate([axes, -axes])
    if len(both) <= most:
        return both
    slope, _ = local.asymptotes(both)
    return both[jnp.concatenate([_least(both @ gradient, most // 2), _least(slope, most // 2)])]


def _far_descents(local: Local) -> jax.Array:
    """Directions (few, r) down which the output falls beyond all kinks, the steepest first, by descent on the sphere.

    There N is positively homogeneous up to a constant. Where only a narrow cone of rays flips, and far away, no ray
    drawn at random may lie in it. The descents begin from the best of some rays that are the same for all points.
    """
    beyond = local.beyond()
    c = unit(random.normal(streams.far_rays_key(), (TUNING.far_rays, local.dimension), jnp.float32), "l2")
    c = c[_least(beyond.value(c), TUNING.far_kept)]

    def move(carry: tuple, step: jax.Array) -> tuple[tuple, None]:
        c, best, least = carry
        slope, gradient = beyond.value_and_gradient(c)
        better = slope < least
        best, least = jnp.where(better[:, None], c, best), jnp.where(better, slope, least)
        return (unit(c - step * unit(gradient, "l2"), "l2"), best, least), None

    steps = jnp.geomspace(*TUNING.far_step, TUNING.far_steps, dtype=c.dtype)
    (_, best, least), _ = jax.lax.scan(move, (c, c, jnp.full(len(c), jnp.inf, c.dtype)), steps)
    return best[_least(least, TUNING.far_kept)]


def _reached(local: Local, directions: jax.Array, low: jax.Array, high: jax.Array) -> jax.Array:
    """About where each of some rays (k, r) first crosses zero, (k,); inf if it seems not to.

    Each is evaluated at radii from `low` to `high`, which comes to every kink, then between the two that enclose a
    crossing, and then taken for a line.
    """
    ratio = jnp.clip(low / jnp.where(high > 0, high, 1), TUNING.least_radius, 1)
    radii = high * ratio ** jnp.linspace(1, 0, TUNING.radii, dtype=high.dtype)
    radii = jnp.concatenate([jnp.zeros(1, low.dtype), radii])
    values = local.values_along(directions, radii)
    flipped = values <= 0
    at = jnp.maximum(jnp.argmax(flipped, axis=1), 1)
    ends = tuple(_End(radii[i], jnp.take_along_axis(values, i[:, None], axis=1)[:, 0]) for i in (at - 1, at))

    def halve(_: int, ends: tuple[_End, _End]) -> tuple[_End, _End]:
        before, after = ends
        radius = (before.radius + after.radius) / 2
        middle = _End(radius, local.value(radius[:, None] * directions))
        is_before = middle.value > 0
        return before.where(~is_before, middle), after.where(is_before, middle)

    before, after = jax.lax.fori_loop(0, TUNING.halvings, halve, ends)
    fall = before.value - after.value
    share = before.value / jnp.where(fall > 0, fall, 1)
    inside = before.radius + jnp.clip(share, 0, 1) * (after.radius - before.radius)
    slope, constant = local.asymptotes(directions)
    outside = jnp.where(slope < 0, jnp.maximum(constant / -jnp.where(slope < 0, slope, -1), high), jnp.inf)
    return jnp.where(jnp.any(flipped, axis=1), inside, outside)


class _End(NamedTuple):
    """Of an interval on each of some rays."""

    radius: jax.Array  # (k,)
    value: jax.Array  # (k,), the output there

    def where(self, stays: jax.Array, other: "_End") -> "_End":
        """These, or others where they do not stay."""
        return _End(*(jnp.where(stays, mine, theirs) for mine, theirs in zip(self, other, strict=True)))
