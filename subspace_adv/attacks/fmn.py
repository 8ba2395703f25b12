"""Fast minimum-norm attack (Pintor, Roli, Brendel and Biggio 2021) on the signed output, in three norms."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import random

from subspace_adv.attacks.crossing import AttackResult, Slice, around, shortest
from subspace_adv.attacks.norms import Norm, dual_length, length, project, steepest, unit
from subspace_adv.network import Network

_RADII = 6  # at which a ray is evaluated to see where it crosses, about
_FAR_RAYS, _FAR_KEPT, _FAR_STEPS = 64, 4, 8  # of the search beyond all kinks
_FAR = 8.0  # times the farthest kink
_FIRST, _SECOND = (0.7, 0.2), (0.4, 0.01)  # gradient steps of the two rounds, first and last, relative to the start
_FIRST_RATE, _SECOND_RATE = (0.1, 0.02), (0.05, 0.001)  # most that the radius changes in a step
_KEPT=6
_NEAR=2
_SHARE=.5
_FINALISTS = 2  # the shortest flips met, whose rays are crossed exactly


def fmn_attack(
    network: Network,
    x: jax.Array,
    region: jax.Array,
    *,
    norm: Norm = "l2",
    steps: int = 40,
    restarts: int = 16,
    key: jax.Array,
    toward: jax.Array | None = None,
) -> AttackResult:
    """Fast minimum-norm attack with restarts, finished by the exact crossing.

    Rays are screened first: the steepest descent, the direction against all neurons, the one toward a given point, random
    ones (in L∞ sign vectors too, in L1 coordinate axes), and those of steepest descent far beyond all kinks. In a first
    round a run begins where each of the best `restarts` of them crosses the decision boundary. In a second round
    the best quarter of the runs goes on with finer steps, and as many begin around the best flip found. The rays of the
    best perturbations are extended or shortened to their own exact crossings. The search runs in float32, the
    crossings in the network's dtype.

    Args:
        network: weight (m, d).
        x: point (d,).
        region: basis (d, r) of the perturbations allowed: orthonormal for "l2", of coordinate axes for "linf"
            and "l1", or any single column.
        norm: of the perturbation.
        steps: gradient steps of a run through both rounds.
        restarts: runs of the first round.
        key: typed PRNG key of the random rays.
        toward: a point (d,) that the network classifies otherwise; none by default.

    Returns:
        The smallest perturbation found.
    """
    rays = around(network, x, region)
    goal = None if toward is None else (toward - x) @ region
    directions = fmn_directions(rays, norm=norm, steps=steps, restarts=restarts, key=key, goal=goal)
    _, result = shortest(rays, region, directions, norm)
    return result


def fmn_directions(
    rays: Slice, *, norm: Norm, steps: int, restarts: int, key: jax.Array, goal: jax.Array | None
) -> jax.Array:
    """The best flips that `fmn_attack` meets around a point, and its best first ray, (k, r)."""
    dtype = rays.z.dtype
    rays, goal = jax.tree.map(lambda a: a.astype(jnp.float32), (rays, goal))
    ray_key, near_key = random.split(key)
    starts = _starts(rays, norm, restarts, ray_key, goal)
    nothing = _Flips(jnp.zeros_like(starts), jnp.full(restarts, jnp.inf, jnp.float32))
    found = _search(rays, starts, nothing, norm, int(steps*_SHARE), _FIRST, _FIRST_RATE)
    kept_count, near_count = _KEPT, _NEAR
    again = jnp.argsort(found.sizes)[:kept_count]
    kept = jax.tree.map(lambda a: a[again], found)
    noise = unit(random.normal(near_key, (near_count, starts.shape[1]), jnp.float32), norm)
    near = unit(unit(kept.places[:1], norm) + noise, norm) * kept.sizes[0]
    flips = jnp.isfinite(kept.sizes)[:, None]
    begin = jnp.concatenate([jnp.where(flips, kept.places, starts[again]), jnp.where(flips[0], near, starts[:near_count])])
    kept = jax.tree.map(lambda a, b: jnp.concatenate([a, b[:near_count]]), kept, nothing)
    refined = _search(rays, begin, kept, norm, steps-int(steps*_SHARE), _SECOND, _SECOND_RATE)
    places, sizes = (jnp.concatenate(pair) for pair in zip(found, refined, strict=True))
    best = jnp.argsort(sizes)[:_FINALISTS]
    return jnp.concatenate([places[best], starts[:1]]).astype(dtype)


class _Flips(NamedTuple):
    """The smallest flip that each of several runs has met."""

    places: jax.Array  # (k, r), coordinates; zeros where none
    sizes: jax.Array  # (k,), their norms; inf where none


def _starts(rays: Slice, norm: Norm, restarts: int, key: jax.Array, goal: jax.Array | None) -> jax.Array:
    """Where the runs begin, (restarts, r): the crossings of rays, nearest first, and places on rays without one."""
    r = rays.rates.shape[1]
    margin, gradient = rays.value_and_gradient(jnp.zeros(r, jnp.float32))
    informed = [-steepest(gradient, norm), -gradient, -rays.head @ rays.rates]
    if goal is not None:
        informed.append(goal)
    dense = random.normal(key, (restarts, r), jnp.float32)
    if norm == "linf":
        dense = jnp.where(jnp.arange(restarts)[:, None] % 2 == 0, jnp.sign(dense), dense)
    if norm == "l1":
        dense = jnp.concatenate([_steepest_axes(rays, gradient, 4 * restarts), dense[: -(-restarts // 2)]])
    directions = unit(jnp.concatenate([jnp.stack(informed), _far_descent(rays), dense]), norm)
    speed, kink = dual_length(gradient, norm), rays.farthest_kink(norm)
    first_order = jnp.where(speed > 0, margin / jnp.where(speed > 0, speed, 1), kink)
    reached = _reached(rays, directions, jnp.minimum(first_order / 2, kink), kink)
    nearest = jnp.argsort(reached.at[:len(informed)].set(0))[:restarts]
    odd = jnp.arange(restarts) % 2 == 1
    none = jnp.where(odd, first_order, _FAR * kink)
    best = jnp.min(reached)
    radius = jnp.where(jnp.isfinite(reached[nearest]), reached[nearest], jnp.where(jnp.isfinite(best), best, none))
    short = restarts - len(nearest)
    starts = jnp.pad(radius[: len(nearest), None] * directions[nearest], ((0, short), (0, 0)))
    return starts


def _steepest_axes(rays: Slice, gradient: jax.Array, count: int) -> jax.Array:
    """Coordinate axes with signs (≤ count, r): half the steepest downhill at x, half beyond all kinks."""
    axes = jnp.eye(len(gradient), dtype=gradient.dtype)
    both = jnp.concatenate([axes, -axes])
    near = jnp.argsort(both @ gradient)[: -(-count // 2)]
    far = jnp.argsort(jax.nn.relu(both @ rays.rates.T) @ rays.head)[: count // 2]
    return both[jnp.concatenate([near, far])]


def _far_descent(rays: Slice) -> jax.Array:
    """Directions (few, r) down which the output falls beyond all kinks, by descent on the sphere.

    There N is positively homogeneous up to a constant. Where only a narrow cone of rays flips, and far away, no ray
    drawn at random may lie in it. Descent begins from the best of some rays that are the same for all points.
    """
    beyond = rays._replace(z=jnp.zeros_like(rays.z), offset=jnp.zeros_like(rays.offset))
    c = unit(random.normal(random.key(0), (_FAR_RAYS, rays.rates.shape[1]), jnp.float32), "l2")
    c = c[jnp.argsort(beyond.value(c))[:_FAR_KEPT]]

    def move(carry: tuple, step: jax.Array) -> tuple[tuple, None]:
        c, best, least = carry
        slope, gradient = beyond.value_and_gradient(c)
        better = slope < least
        best, least = jnp.where(better[:, None], c, best), jnp.where(better, slope, least)
        return (unit(c - step * unit(gradient, "l2"), "l2"), best, least), None

    steps = jnp.geomspace(0.5, 0.05, _FAR_STEPS, dtype=c.dtype)
    (_, best, _), _ = jax.lax.scan(move, (c, c, jnp.full(len(c), jnp.inf, c.dtype)), steps)
    return best


def _reached(rays: Slice, directions: jax.Array, low: jax.Array, high: jax.Array) -> jax.Array:
    """About where each of some rays (k, r) first crosses zero, (k,); inf if it seems not to.

    Each is evaluated at radii from `low` to `high`, and is a line beyond the last kink.
    """
    radii = jnp.geomspace(low, high, _RADII, dtype=low.dtype)
    radii = jnp.concatenate([jnp.zeros(1, low.dtype), radii])
    rates = directions @ rays.rates.T
    hidden = rays.z[None, None] + radii[None, :, None] * rates[:, None]
    values = jax.nn.relu(hidden) @ rays.head + rays.offset
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
    norm: Norm,
    steps: int,
    step_sizes: tuple[float, float],
    rates: tuple[float, float],
) -> _Flips:
    """Smallest flips met by runs from given places (k, r), or known before.

    The radius on which a run goes on is where the output would be zero if it were linear, but within a few
    per cent, the rate, of the smallest flip that the run has met. Step sizes are relative to the starts' lengths, and fall, as
    the rates do, from the first to the last along a cosine.
    """
    descent = 0.5 * (1 + jnp.cos(jnp.pi * jnp.arange(steps, dtype=jnp.float32) / max(steps - 1, 1)))
    sizes, rates_of_steps = (last + (first - last) * descent for first, last in (step_sizes, rates))
    metric: Norm = "linf" if norm == "linf" else "l2"
    unit_step = length(starts, metric)

    def move(carry: tuple, now: tuple) -> tuple[tuple, None]:
        c, bound, best = carry
        step, rate = now
        margin, gradient = rays.value_and_gradient(c)
        size, slope = length(c, norm), dual_length(gradient, norm)
        better = (margin <= 0) & (size < best.sizes)
        best = _Flips(jnp.where(better[:, None], c, best.places), jnp.where(better, size, best.sizes))
        linear = size + margin / slope
        near = jnp.clip(linear, jnp.minimum(bound, best.sizes) * (1 - rate), best.sizes * (1 + rate))
        bound = jnp.where(jnp.isfinite(best.sizes), near, linear)
        c = c - (step * unit_step)[:, None] * _downhill(gradient, norm)
        return (project(c, bound, norm), bound, best), None

    (_, _, best), _ = jax.lax.scan(move, (starts, known.sizes, known), (sizes, rates_of_steps))
    return best


def _downhill(gradient: jax.Array, norm: Norm) -> jax.Array:
    """Along the gradients (k, r), as long as 1 in L2; in L∞ with every coordinate above the average as long as 1."""
    if norm != "linf":
        return unit(gradient, "l2")
    average = jnp.mean(jnp.abs(gradient), axis=-1, keepdims=True)
    return jnp.clip(gradient / jnp.where(average > 0, average, 1), -1, 1)
