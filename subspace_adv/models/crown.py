"""Radii within which no perturbation can change the prediction of a chain of affine maps with ReLUs between."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from subspace_adv.models.rays import absolute, chained, linear_part, sizes_of_terms, widths
from subspace_adv.models.relaxation import Trials, advanced, chord, first_trial, within_cap
from subspace_adv.norms import dual_length, steepest

_STEPS = 32  # what is certified is sound wherever they end
_ASCENTS = 6  # of the slopes in a step
_BLOCK = 512  # neurons whose ranges are narrowed together


class Chain(Protocol):
    """A signed output f_L(relu(… relu(f_1(relu(z + rates·c))))) over coordinates c, of maps as `rays` has them."""

    @property
    def z(self) -> Any:
        """First layer's preactivations (m,)."""
        ...

    @property
    def rates(self) -> Any:
        """Their derivatives (m, r)."""
        ...

    @property
    def sizes(self) -> Any:
        """Sums of the sizes of the terms of z, (m,)."""
        ...

    @property
    def maps(self) -> tuple[Partial, ...]:
        """f_1 to f_L, the last one to ()."""
        ...

    def reach(self, norm: str) -> jax.Array:
        """Least radius (), within which the first layer's neurons can change their states."""
        ...


class _Problem(NamedTuple):
    """What does not change in a search."""

    z: jax.Array  # (m,)
    sizes: jax.Array  # (m,)
    rates: jax.Array  # (m, r)
    speed: jax.Array  # (m,), dual norms of the rates
    maps: tuple[Partial, ...]
    constants: tuple[jax.Array, ...]  # of the maps
    rows: tuple[jax.Array, ...]  # coefficients of all maps but the last, (after, before) each
    share: float  # of sums of terms' sizes, what rounding can change by
    norm: str


class _Ranges(NamedTuple):
    """Where the preactivations of each layer lie at all flips within a radius."""

    low: tuple[jax.Array, ...]
    high: tuple[jax.Array, ...]


class _Cap(NamedTuple):
    """Where all flips within a radius lie: toward·c ≤ −height."""

    toward: jax.Array  # (r,), of dual norm 1 up to rounding; zeros where nothing is known
    height: jax.Array  # ()


class _Known(NamedTuple):
    """What is known of all flips within a radius, and so within smaller ones."""

    ranges: _Ranges
    cap: _Cap


class _Lines(NamedTuple):
    """Lines below and above the ReLUs of a layer."""

    below: jax.Array  # (m,), slopes of the lines below, which go through 0
    chord: jax.Array  # (m,), slopes of those above
    lift: jax.Array  # (m,), their values at 0
    size: jax.Array  # (m,), the most that the sizes of a preactivation's terms can add up to


class _Affine(NamedTuple):
    """row·v + level, of a layer's preactivations or outputs v, which is below something at all flips."""

    row: jax.Array  # (m,)
    level: jax.Array  # ()
    size: jax.Array  # (), of all that was added up and multiplied on the way: rounding changes a share of it


class _Search(NamedTuple):
    """Where the search for the largest certified radius stands."""

    trials: Trials  # of what is `_Known`
    slopes: tuple[jax.Array, ...]  # (m,) each, of the lines below the ReLUs that count for the prediction


def crown_certificate(local: Chain, *, norm: str, upper: Any, known: Any = 0.0) -> jax.Array:
    """Radius certified by linear bounds on every ReLU, tightened at all layers where flips can be (F8, F24).

    With ranges [l, h] of all preactivations at all flips within radius ρ, a ReLU lies above the line through 0 of any
    slope between 0 and 1 and below its chord. Backward through the layers, each ReLU is replaced by that of its lines
    which is on the right side for its coefficient (CROWN, Zhang et al. 2018). So

    - the output s·N is above an affine L₀ + G·c. It is 0 or less at flips, of which therefore none is shorter than
      L₀/‖G‖, and all lie in the cap {‖c‖ ≤ ρ, G·c ≤ −L₀}. Slopes ascend to where its least in the ball is largest;
    - a neuron's preactivation, and its negative, are above affine functions too, and the least of these over the cap
      narrows its range. As s·N ≤ 0 at flips, the same is true of a preactivation plus λ·s·N for every λ ≥ 0, whose
      coefficients cancel in part before lines are chosen (as in INVPROP, Kotha et al. 2023). λ is the multiplier with
      which the cap's bound is attained.

    Narrower ranges make better lines. Radii are tried as `relaxation.advanced` tells.

    *Rounding.* Slopes, multipliers and coefficients are taken as they are, once they have been computed. What a sum
    loses is a few ulps of the sizes of its terms. A row a of coefficients of a map's outputs becomes one of its inputs;
    as these are at most h, the rounding of that matters by ulps of |a|·S, with S the sizes |f|(h) of the terms of the
    outputs: one pass of absolute values forward from the highest preactivations. A line's slope and lift are off by
    ulps of its range, which lies within ±S, times |a|. At the first layer S is the sizes of z, whatever cancels in it,
    plus ρ times the dual norms of the rates, and so bounds what rounding makes of G·c and of the cap. So `share` times
    the sum of |a|·S over all layers is taken off each bound.

    Args:
        local: the signed output around a point.
        norm: of the perturbation.
        upper: the first radius tried, (): a distance at which x is known to flip; inf if none is known.
        known: a radius that is certified already, ().

    Returns:
        The radius, (); inf where no neuron can lower the output, 0 where the output is within rounding of 0.
    """
    dtype, problem = local.z.dtype, _problem(local, norm)
    upper = jnp.asarray(upper, dtype)
    start = jnp.where(jnp.isfinite(upper), upper, 2 * local.reach(norm) + 1)

    def step(_: int, search: _Search) -> _Search:
        r = search.trials.radius
        ranges, is_empty = _narrowed(problem, search.trials.known, search.slopes, r)

        def ascended(i: jax.Array, slopes: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            return _ascended(problem, ranges, slopes, r, i)

        slopes = jax.lax.fori_loop(0, _ASCENTS, ascended, search.slopes)
        level, gradient = _output_line(problem, ranges, slopes, r)
        steepness = dual_length(gradient, norm)
        divisor = jnp.where(steepness > 0, steepness, 1)
        height = level / divisor
        cap = _Cap(gradient / divisor, jnp.clip(height, -r, r))
        trials = search.trials._replace(known=_Known(ranges, cap))
        return _Search(advanced(trials, height, (level >= r * steepness) | is_empty)[0], slopes)

    layers = _layers(local.maps, local.z)
    margin, growth = _margin_and_growth(problem)
    sure = jnp.where(margin > 0, jnp.minimum(margin / jnp.where(growth > 0, growth, 1), start), 0)
    sure = jnp.maximum(sure, jnp.asarray(known, dtype))
    low, high = (tuple(jnp.full_like(layer, end) for layer in layers) for end in (-jnp.inf, jnp.inf))
    anything = _Known(_Ranges(low, high), _Cap(jnp.zeros_like(local.rates[0]), jnp.zeros_like(start)))
    slopes = tuple((layer > 0).astype(dtype) for layer in layers)
    search = jax.lax.fori_loop(0, _STEPS, step, _Search(first_trial(sure, start, anything), slopes))
    return jnp.where(margin > 0, jnp.where(_can_fall(problem, layers), search.trials.lower, jnp.inf), 0)


def _problem(local: Chain, norm: str) -> _Problem:
    z, dtype = local.z, local.z.dtype
    sizes = widths(local.maps, z)
    before = [jnp.zeros(size, dtype) for size in sizes]
    rows = [
        jax.vmap(_pullback(affine_map, h))(jnp.eye(after, dtype=dtype))
        for affine_map, h, after in zip(local.maps[:-1], before[:-1], sizes[1:], strict=True)
    ]
    return _Problem(
        z=z,
        sizes=local.sizes,
        rates=local.rates,
        speed=dual_length(local.rates, norm),
        maps=local.maps,
        constants=tuple(affine_map(h) for affine_map, h in zip(local.maps, before, strict=True)),
        rows=tuple(rows),
        share=4 * (4 + max(*sizes, local.rates.shape[1]) ** 0.5) * float(jnp.finfo(dtype).eps),
        norm=norm,
    )


def _pullback(affine_map: Partial, like: jax.Array) -> Any:
    """What makes coefficients of a map's inputs, shaped like an array, of coefficients of its outputs."""
    _, pullback = jax.vjp(affine_map, jnp.zeros_like(like))
    return lambda row: pullback(row)[0]


def _layers(maps: Sequence[Partial], z: jax.Array) -> list[jax.Array]:
    """Preactivations of all hidden layers where the first one's are z."""
    layers = [z]
    for affine_map in maps[:-1]:
        layers.append(affine_map(jax.nn.relu(layers[-1])))
    return layers


def _margin_and_growth(problem: _Problem) -> tuple[jax.Array, jax.Array]:
    """The signed output at x less an allowance for rounding, and the most that it can fall by in a unit of length."""
    weight, constant = sizes_of_terms(problem.maps, problem.z)
    share = len(problem.maps) * problem.share
    may_be_on = problem.z > -share * problem.sizes
    size = weight @ jnp.where(may_be_on, problem.sizes, 0) + constant
    return chained(problem.maps, problem.z) - share * size, (weight @ problem.speed) * (1 + share)


def _can_fall(problem: _Problem, layers: Sequence[jax.Array]) -> jax.Array:
    """Whether any perturbation could lower the output, (), by which neurons can rise and fall, whatever by how much."""
    rises = falls = (problem.speed > 0).astype(problem.z.dtype)
    sizes = problem.sizes
    share = len(problem.maps) * problem.share
    for affine_map, layer in zip(problem.maps, layers, strict=True):
        falls = jnp.where(layer > -share * sizes, falls, 0)
        raising = jax.tree.map(jax.nn.relu, affine_map)
        lowering = jax.tree.map(lambda a: jax.nn.relu(-a), affine_map)
        up = linear_part(raising, rises) + linear_part(lowering, falls)
        down = linear_part(raising, falls) + linear_part(lowering, rises)
        rises, falls = (up > 0).astype(rises.dtype), (down > 0).astype(rises.dtype)
        sizes = absolute(affine_map)(sizes)
    return falls > 0


def _lines(low: jax.Array, high: jax.Array, slopes: jax.Array, size: jax.Array) -> _Lines:
    """Lines of ReLUs whose preactivations lie in [low, high] (m,), those below of given slopes where it matters."""
    above, lift = chord(low, high)
    return _Lines(jnp.where(low >= 0, 1, jnp.where(high <= 0, 0, slopes)), above, lift, size)


def _all_lines(problem: _Problem, ranges: _Ranges, slopes: tuple[jax.Array, ...], r: jax.Array) -> list[_Lines]:
    """Lines of all layers."""
    lines = []
    for k, (low, high, slope) in enumerate(zip(*ranges, slopes, strict=True)):
        lines.append(_lines(low, high, slope, _size(problem, k, ranges.high, lines, r)))
    return lines


def _size(problem: _Problem, k: int, high: Sequence[jax.Array], lines: Sequence[_Lines], r: jax.Array) -> jax.Array:
    """The most that the sizes of the terms of layer k's preactivations, or of the output, can add up to."""
    if k == 0:
        return problem.sizes + r * problem.speed
    return absolute(problem.maps[k - 1])(jnp.minimum(jax.nn.relu(high[k - 1]), lines[k - 1].size))


def _backward(problem: _Problem, lines: Sequence[_Lines], bound: _Affine) -> list[_Affine]:
    """A bound in the outputs of the last ReLUs that have lines, as bounds in each layer's preactivations."""
    bounds = []
    for k in reversed(range(len(lines))):
        below, chord, lift, size = lines[k]
        if bounds:
            row = _pullback(problem.maps[k], size)(bound.row)
            bound = bound._replace(row=row, level=bound.level + bound.row @ problem.constants[k])
        level = bound.level + jnp.minimum(bound.row, 0) @ lift
        row = bound.row * jnp.where(bound.row > 0, below, chord)
        bound = _Affine(row, level, bound.size + jnp.abs(row) @ size)
        bounds.append(bound)
    return bounds[::-1]


def _of_output(problem: _Problem, lines: Sequence[_Lines], high: Sequence[jax.Array], r: jax.Array) -> _Affine:
    """The output, in the outputs of the last ReLUs."""
    row = _pullback(problem.maps[-1], lines[-1].size)(jnp.ones((), r.dtype))
    return _Affine(row, problem.constants[-1], _size(problem, len(lines), high, lines, r))


def _output_line(
    problem: _Problem, ranges: _Ranges, slopes: tuple[jax.Array, ...], r: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """L₀ and G (r,) of an affine function below the signed output at all flips within r, safe from rounding."""
    lines = _all_lines(problem, ranges, slopes, r)
    line = _backward(problem, lines, _of_output(problem, lines, ranges.high, r))[0]
    return line.level + line.row @ problem.z - problem.share * line.size, line.row @ problem.rates


def _ascended(
    problem: _Problem, ranges: _Ranges, slopes: tuple[jax.Array, ...], r: jax.Array, i: jax.Array
) -> tuple[jax.Array, ...]:
    """Slopes after a step of Frank and Wolfe's to where the least of the output's line in the ball is larger."""

    def least(slopes: tuple[jax.Array, ...]) -> jax.Array:
        level, gradient = _output_line(problem, ranges, slopes, r)
        return level - r * dual_length(gradient, problem.norm)

    share = 2 / (i + 3).astype(r.dtype)

    def moved(slope: jax.Array, ascent: jax.Array) -> jax.Array:
        return slope + share * (jnp.where(ascent > 0, 1, jnp.where(ascent < 0, 0, slope)) - slope)

    return jax.tree.map(moved, slopes, jax.grad(least)(slopes))


def _narrowed(
    problem: _Problem, known: _Known, slopes: tuple[jax.Array, ...], r: jax.Array
) -> tuple[_Ranges, jax.Array]:
    """Ranges of all layers' preactivations in the cap, and whether one is empty: then nothing within r flips."""
    cap, rates = known.cap, problem.rates
    falls = rates @ steepest(cap.toward, problem.norm)
    down, up = within_cap(rates, problem.speed, cap.toward, falls, r, cap.height, problem.norm)
    size = _size(problem, 0, (), (), r)
    slack = problem.share * size
    low = [jnp.maximum(known.ranges.low[0], problem.z - down - slack)]
    high = [jnp.minimum(known.ranges.high[0], problem.z + up + slack)]
    lines: list[_Lines] = []
    of_output, steepness = _helpers(problem, known, slopes, r)
    for k, helper in enumerate(of_output[1:], start=1):
        lines.append(_lines(low[-1], high[-1], (high[-1] >= -low[-1]).astype(r.dtype), size))
        size = _size(problem, k, high, lines, r)
        down, up = _least_and_most(problem, lines, size, cap, helper, steepness, r)
        most = size * (1 + problem.share)
        low.append(jnp.maximum(jnp.maximum(known.ranges.low[k], down), -most))
        high.append(jnp.minimum(jnp.minimum(known.ranges.high[k], up), most))
    is_empty = jnp.any(jnp.stack([jnp.any(a > b) for a, b in zip(low, high, strict=True)]))
    return _Ranges(tuple(low), tuple(high)), is_empty


def _helpers(
    problem: _Problem, known: _Known, slopes: tuple[jax.Array, ...], r: jax.Array
) -> tuple[list[_Affine], jax.Array]:
    """Bounds below the output in the preactivations of each layer, and the steepness of the first in coordinates.

    They are zeros in a search's first step, when ranges are not known.
    """
    lines = _all_lines(problem, known.ranges, slopes, r)
    bounds = _backward(problem, lines, _of_output(problem, lines, known.ranges.high, r))
    is_known = jnp.any(known.cap.toward != 0)
    bounds = jax.tree.map(lambda a: jnp.where(is_known, a, 0), bounds)
    return bounds, dual_length(bounds[0].row @ problem.rates, problem.norm)


def _least_and_most(
    problem: _Problem,
    lines: Sequence[_Lines],
    size: jax.Array,
    cap: _Cap,
    helper: _Affine,
    steepness: jax.Array,
    r: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Bounds (m,) of a layer's preactivations in the cap.

    Args:
        problem: of the search.
        lines: of all layers before this one.
        size: of the layer's terms (m,).
        cap: where flips are.
        helper: a bound below the output in this layer's preactivations.
        steepness: what multipliers of the cap are over to be multipliers of the helper, ().
        r: radius.
    """
    before = len(lines) - 1
    pulled = _pullback(problem.maps[before], lines[-1].size)(helper.row)
    constant = helper.level + helper.row @ problem.constants[before] - problem.share * helper.size

    def least(own: _Affine, weight: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The least of a preactivation plus a multiple of the output's bound, and the multiplier of the cap there."""
        # What cancels in the sum was rounded at its full size, which is part of the helper's.
        own_size = own.size + weight * (jnp.abs(helper.row) @ size)
        own = _Affine(own.row + weight * pulled, own.level + weight * constant, own_size)
        bound = _backward(problem, lines, own)[0]
        gradient = (bound.row @ problem.rates)[None]
        along = gradient @ steepest(cap.toward, problem.norm)

        def farthest_down(height: jax.Array) -> jax.Array:
            speed = dual_length(gradient, problem.norm)
            return within_cap(gradient, speed, cap.toward, along, r, height, problem.norm)[0][0]

        down, multiplier = jax.value_and_grad(farthest_down)(cap.height)
        return bound.level + bound.row @ problem.z - down - problem.share * bound.size, -multiplier

    def best(own: _Affine) -> jax.Array:
        """The better of the bounds alone and with the output's."""

        def again(_: int, found: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            bound, multiplier = least(own, found[1])
            usable = (multiplier > 0) & (steepness > 0)
            multiplier = jnp.where(usable, multiplier / jnp.where(steepness > 0, steepness, 1), 0)
            return jnp.where(bound > found[0], bound, found[0]), multiplier

        return jax.lax.fori_loop(0, 2, again, (jnp.full_like(r, -jnp.inf), jnp.zeros_like(r)))[0]

    both = [_Affine(sign * problem.rows[before], sign * problem.constants[before], size) for sign in (1, -1)]
    bounds = jax.lax.map(best, jax.tree.map(lambda *a: jnp.concatenate(a), *both), batch_size=_BLOCK)
    return bounds[: len(size)], -bounds[len(size) :]
