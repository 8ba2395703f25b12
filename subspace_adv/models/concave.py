"""Radii certified by concave bounds, which all neurons meet at one and the same perturbation (F22 in docs/theory.md).

The signed output is bounded from below by a concave function F. ReLUs that count for the prediction lie above lines,
and those that count against it stay as they are, or lie below parabolas. Where the ball has few vertices, F is least at
one of them; elsewhere it is a quadratic form, whose least value over the ball weak duality bounds.

Lines and parabolas are chosen by a game. An adversary plays perturbations, in the form of their mean and second
moments, spread out a little so that its answers change smoothly. The bound that suits the average of its plays best is
the next move. What is certified is sound wherever the game ends.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from subspace_adv.models.two_layer import TIE, TwoLayerLocal, rounding_allowance
from subspace_adv.norms import NORMS, dual_length

_STEPS = 24  # of the game
_AVERAGE = 0.4  # share of the adversary's last answer in the average of all
_SPREAD = (0.7, 0.02)  # of the answers, at first and at last
_RANGE = (0.7, 0.03)  # by which the radius on which bounds hold exceeds what is certified, at first and at last
_WEIGHT_POWER = 0.4  # of the excess in a coordinate of a cube, by which its weight grows
_MOST_COORDINATES = 32  # of quadratic forms, whose inverses cost the cube of that
_MOST_CUBE = 4  # dimensions of a cube whose vertices are taken one by one
_NEWTON_STEPS = 12
_GAPS = (1e-3, 10.0, 16)  # by which multipliers exceed the largest eigenvalue: least, most and how many
_POWERS = 12  # of a matrix, to find that
_REFINEMENTS = 4  # of the multipliers
_MARGIN = 2.0**-20  # by which multipliers are raised and radii lowered, relative: beyond all rounding
_TINY = 2.0**-60  # in the units of the game


def concave_certificate(local: TwoLayerLocal, *, norm: str, upper: jax.Array, known: jax.Array) -> jax.Array:
    """Radius certified by a concave function below the signed output.

    Args:
        local: the signed output around a point.
        norm: of the perturbation.
        upper: where a flip is known, (); inf if none is.
        known: a certified radius, (), at which the search begins.

    Returns:
        The radius, (), not above `upper`; 0 if none was certified, or for a norm, or in so many dimensions, that no
        bound is made for.
    """
    kind, r = NORMS[norm], local.dimension
    vertices = _vertices(norm, r)
    if vertices is None and not ((kind.is_euclidean or kind.is_cubic) and r <= _MOST_COORDINATES):
        return jnp.zeros_like(known)
    units = _Units.of(local, norm, known)
    scaled, most = units.scaled(local), (upper / units.length).astype(jnp.float32)
    if vertices is not None:
        slopes = _slopes_for_vertices(scaled, vertices, norm, most)
        radius = _certified_at_vertices(local, vertices.astype(local.dtype), slopes.astype(local.dtype))
    else:
        bound = jax.tree.map(lambda a: a.astype(local.dtype), _played(scaled, norm, most))
        radius = _certified(local, units.unscaled(bound), norm)
    return jnp.where(jnp.isfinite(radius) & (known > 0), jnp.minimum(radius, upper), 0)


class _Units(NamedTuple):
    """In which the game is played, in float32: a certified radius, the output at the point, what neurons vary by."""

    length: jax.Array  # ()
    output: jax.Array  # ()
    inputs: jax.Array  # (m,)

    @classmethod
    def of(cls, local: TwoLayerLocal, norm: str, known: jax.Array) -> "_Units":
        """Of a signed output."""
        value = local.value(jnp.zeros(local.dimension, local.dtype))
        length, output = (jnp.where(size > 0, size, 1) for size in (known, value))
        inputs = length * dual_length(local.rates, norm)
        return cls(length, output, jnp.where(inputs > 0, inputs, 1))

    def scaled(self, local: TwoLayerLocal) -> TwoLayerLocal:
        """The signed output in these units."""
        return TwoLayerLocal(
            local.z / self.inputs,
            local.rates * (self.length / self.inputs)[:, None],
            local.head * (self.inputs / self.output),
            local.offset / self.output,
        ).astype(jnp.float32)

    def unscaled(self, bound: "_Bound") -> "_Bound":
        """A bound in the units of the signed output."""
        return bound._replace(
            radius=bound.radius * self.length,
            curve=bound.curve / self.inputs,
            multipliers=bound.multipliers * (self.output / self.length**2),
        )


def _schedule(ends: tuple[float, float]) -> jax.Array:
    """Values (steps,) of each step, geometric."""
    return jnp.geomspace(*ends, _STEPS, dtype=jnp.float32)


# Balls with few vertices ------------------------------------------------------------------------------------------


def _vertices(norm: str, r: int) -> jax.Array | None:
    """Vertices (k, r) of the ball of radius 1, if they are few."""
    axes = jnp.eye(r)
    if NORMS[norm].is_taxicab:
        return jnp.concatenate([axes, -axes])
    if NORMS[norm].is_cubic and r <= _MOST_CUBE:
        bits = jnp.arange(2**r)[:, None] // 2 ** jnp.arange(r)[None] % 2
        return (1 - 2 * bits).astype(axes.dtype)
    return None


class _SlopeGame(NamedTuple):
    """Where the game stands."""

    average: jax.Array  # (m,), slopes
    certified: jax.Array  # (), radius
    best: jax.Array  # (m,), the slopes that certify it


def _slopes_for_vertices(local: TwoLayerLocal, vertices: jax.Array, norm: str, upper: jax.Array) -> jax.Array:
    """Slopes (m,) of the lines below the ReLUs that count for the prediction; the radius 1 is certified."""
    rates, speed = vertices.astype(jnp.float32) @ local.rates.T, dual_length(local.rates, norm)
    aiding, opposing = jnp.maximum(local.head, 0), jnp.maximum(-local.head, 0)

    def step(game: _SlopeGame, now: tuple[jax.Array, jax.Array]) -> tuple[_SlopeGame, None]:
        (average, certified, best), (spread, reserve) = game, now
        radius = jnp.minimum(upper, certified * (1 + reserve))
        slopes = _stable_or(local.z - radius * speed, local.z + radius * speed, average)
        inputs = local.z[None] + radius * rates
        values = inputs @ (aiding * slopes) - jax.nn.relu(inputs) @ opposing + local.offset
        at_origin = local.z @ (aiding * slopes) - jax.nn.relu(local.z) @ opposing + local.offset
        # By the chord from the origin, as F is concave.
        held = radius * jnp.min(jnp.where(values >= 0, 1, at_origin / jnp.where(values >= 0, 1, at_origin - values)))
        better = (held > certified) & (at_origin > 0)
        share = jax.nn.softmax(-values / spread)
        mean = share @ rates
        deviation = jnp.sqrt(jnp.maximum(share @ rates**2 - mean**2, 0))
        answer = _smooth_step(local.z + radius * mean, spread * radius * deviation)
        average = average + _AVERAGE * (answer - average)
        return _SlopeGame(average, jnp.where(better, held, certified), jnp.where(better, slopes, best)), None

    on = (local.z > 0).astype(jnp.float32)
    game, _ = jax.lax.scan(step, _SlopeGame(on, jnp.ones_like(upper), on), (_schedule(_SPREAD), _schedule(_RANGE)))
    return game.best


def _certified_at_vertices(local: TwoLayerLocal, vertices: jax.Array, slopes: jax.Array) -> jax.Array:
    """The least radius at which F, less an allowance for rounding, is zero at a vertex.

    Along a ray F is concave, and so is what is left of it. Newton's iteration from the right stays right of the root,
    and the chord to the origin, where F is positive, lies below the function.
    """
    rates, count = vertices @ local.rates.T, len(local.z)
    aiding, opposing = jnp.maximum(local.head, 0) * slopes, jnp.maximum(-local.head, 0)
    level = rounding_allowance(aiding @ jnp.abs(local.z) + jnp.abs(local.offset), count)
    growth = rounding_allowance(jnp.abs(rates) @ aiding, count)
    # Opposing ReLUs are taken a little too large, so that rounding counts for those alone that are on.
    opposing, raised = opposing * (1 + 2 * TIE), local.z + 2 * TIE * jnp.abs(local.z)
    steeper = rates + 2 * TIE * jnp.abs(rates)

    def values(t: jax.Array) -> tuple[jax.Array, jax.Array]:
        inputs = raised[None] + t[:, None] * steeper
        aid = (local.z[None] + t[:, None] * rates) @ aiding
        value = aid - jax.nn.relu(inputs) @ opposing + local.offset - level - t * growth
        descent = growth - rates @ aiding + (inputs > 0).astype(t.dtype) * steeper @ opposing
        return value, descent

    # The last linear piece lies above the function, so its root lies right of the function's.
    last_descent = growth - rates @ aiding + jax.nn.relu(steeper) @ opposing
    last_level = local.z @ aiding - jnp.where(steeper > 0, raised[None], 0) @ opposing + local.offset - level
    start = last_level / jnp.where(last_descent > 0, last_descent, 1)
    falls = last_descent > 0
    start = jnp.where(falls, jnp.maximum(start, 0), 0)

    def newton(_: int, t: jax.Array) -> jax.Array:
        value, descent = values(t)
        return jnp.where((value < 0) & (descent > 0), jnp.maximum(t + value / jnp.where(descent > 0, descent, 1), 0), t)

    right = jax.lax.fori_loop(0, _NEWTON_STEPS, newton, start)
    at_origin, (at_right, _) = values(jnp.zeros_like(right))[0], values(right)
    chord = right * jnp.where(at_right < 0, at_origin / jnp.where(at_right < 0, at_origin - at_right, 1), 1)
    # A concave function that ends no lower than it rises never falls to zero.
    return jnp.where(at_origin[0] > 0, jnp.min(jnp.where(falls, chord, jnp.inf)), 0)


# Balls and cubes --------------------------------------------------------------------------------------------------


class _Bound(NamedTuple):
    """What makes F: of ReLUs t ↦ relu(t), lines below those that aid and parabolas above those that oppose."""

    radius: jax.Array  # (), up to which they are
    slopes: jax.Array  # (m,), of the lines
    curve: jax.Array  # (m,), not negative
    tilt: jax.Array  # (m,), relu(t) ≤ curve·t² + tilt·t + what is least for that
    multipliers: jax.Array  # (r,), of the constraints on the coordinates' squares


class _Form(NamedTuple):
    """F(c) = level + gradient·c − ½ c·curvature·c."""

    level: jax.Array  # ()
    gradient: jax.Array  # (r,)
    curvature: jax.Array  # (r, r)


class _Game(NamedTuple):
    """Where the game stands."""

    mean: jax.Array  # (r,), of the adversary's perturbations, on the average of its answers
    second: jax.Array  # (r, r), their second moments
    slopes: jax.Array  # (m,)
    weights: jax.Array  # (r,), of the coordinates: a ball of these holds the ball of the norm
    certified: jax.Array  # ()
    best: _Bound


def _played(local: TwoLayerLocal, norm: str, upper: jax.Array) -> _Bound:
    """The best bound of the game; the radius 1 is certified."""
    r, is_cubic = local.dimension, NORMS[norm].is_cubic
    speed = dual_length(local.rates, norm)
    on = (local.z > 0).astype(local.dtype)
    one, even = jnp.ones_like(upper), jnp.ones(r, local.dtype)
    none = _Bound(one, on, jnp.zeros_like(on), on, even)
    start = _Game(jnp.zeros_like(even), jnp.diag(even) / (1 if is_cubic else r), on, even, one, none)

    def step(game: _Game, now: tuple[jax.Array, jax.Array]) -> tuple[_Game, None]:
        spread, reserve = now
        radius = jnp.minimum(upper, game.certified * (1 + reserve))
        low, high = local.z - radius * speed, local.z + radius * speed
        shift = local.rates @ game.mean
        variance = jnp.sum((local.rates @ game.second) * local.rates, axis=1)
        second = jnp.maximum(local.z**2 + 2 * local.z * shift + variance, 0)
        curve, tilt = _parabolas(local.z + shift, second, low, high)
        bound = _Bound(radius, _stable_or(low, high, game.slopes), curve, tilt, game.weights)
        form, _ = _form(local, bound, low, high)
        total = jnp.sum(game.weights) if is_cubic else jnp.ones((), local.dtype)
        answer = _answer(form, game.weights, total, game.certified, spread)
        radius = jnp.minimum(answer.certified, bound.radius)
        better = radius > game.certified
        bound = bound._replace(multipliers=answer.multiplier * game.weights)
        best = jax.tree.map(lambda new, old: jnp.where(better, new, old), bound, game.best)
        mean = game.mean + _AVERAGE * (answer.mean - game.mean)
        moments = game.second + _AVERAGE * (answer.second - game.second)
        deviation = jnp.sqrt(jnp.maximum(variance, 0))
        slopes = _smooth_step(local.z + local.rates @ answer.mean, spread * deviation)
        weights = game.weights
        if is_cubic:
            weights = weights * (jnp.diag(moments) / game.certified**2) ** _WEIGHT_POWER
            weights = weights / jnp.mean(weights)
        averaged = game.slopes + _AVERAGE * (slopes - game.slopes)
        return _Game(mean, moments, averaged, weights, jnp.where(better, radius, game.certified), best), None

    game, _ = jax.lax.scan(step, start, (_schedule(_SPREAD), _schedule(_RANGE)))
    return game.best


def _form(local: TwoLayerLocal, bound: _Bound, low: jax.Array, high: jax.Array) -> tuple[_Form, jax.Array]:
    """F, and the sum of the sizes of all that it adds up within the radius."""
    aiding, opposing = jnp.maximum(local.head, 0) * bound.slopes, jnp.maximum(-local.head, 0)
    lift = _lift(bound.curve, bound.tilt, low, high)
    z, speed = local.z, (high - low) / 2
    level = aiding @ z - opposing @ ((bound.curve * z + bound.tilt) * z + lift) + local.offset
    gradient = (aiding - opposing * (2 * bound.curve * z + bound.tilt)) @ local.rates
    curved = (opposing * bound.curve)[:, None] * local.rates
    farthest = jnp.abs(z) + speed
    size = (aiding + opposing * (bound.curve * farthest + jnp.abs(bound.tilt))) @ farthest
    size += opposing @ jnp.abs(lift) + jnp.abs(local.offset)
    return _Form(level, gradient, 2 * curved.T @ local.rates), size


class _Answer(NamedTuple):
    """Of the adversary."""

    mean: jax.Array  # (r,)
    second: jax.Array  # (r, r)
    multiplier: jax.Array  # (), the best that certifies
    certified: jax.Array  # (), the radius


def _answer(form: _Form, weights: jax.Array, total: jax.Array, radius: jax.Array, spread: jax.Array) -> _Answer:
    """Perturbations with Σ weights·c² = total·radius² on the average that make F small, and what F certifies.

    In coordinates √weights·c that is a ball. The moments are those at which F, less a share of their determinant's
    logarithm, is least, by the least of some multipliers for which they are within the budget.
    """
    root, r = jnp.sqrt(weights), len(weights)
    curvature, slope = form.curvature / (root[:, None] * root[None]), form.gradient / root
    budget = jnp.maximum(total * radius**2, _TINY)
    top = _largest_eigenvalue(curvature)
    scale = jnp.maximum(top + jnp.linalg.norm(slope) / jnp.sqrt(budget), _TINY)
    multipliers = top + scale * jnp.geomspace(*_GAPS, dtype=top.dtype)
    identity = jnp.eye(r, dtype=top.dtype)
    inverse, is_definite = _inverse(multipliers[:, None, None] * identity[None] - curvature[None])
    means = -(inverse @ slope)
    squares = (2 * form.level + means @ slope) / (multipliers * total)
    squares = jnp.where(is_definite, squares, 0)
    best = jnp.argmax(squares)
    # The least multiplier whose answer, spread out, is within the budget.
    spread_out = spread * budget / r * multipliers
    spent = jnp.sum(means**2, axis=1) + spread_out * jnp.trace(inverse, axis1=1, axis2=2)
    affordable = jnp.argmax(is_definite & ((spent <= budget) | (jnp.arange(len(spent)) == len(spent) - 1)))
    mean = means[affordable] / root
    second = spread_out[affordable] * inverse[affordable] / (root[:, None] * root[None])
    certified = jnp.sqrt(jnp.maximum(squares[best], 0))
    return _Answer(mean, jnp.outer(mean, mean) + second, multipliers[best], certified)


def _largest_eigenvalue(matrix: jax.Array) -> jax.Array:
    """Of a positive semidefinite matrix (r, r), about and from below, by power iteration."""

    def multiply(_: int, v: jax.Array) -> jax.Array:
        v = matrix @ v
        return v / jnp.maximum(jnp.linalg.norm(v), _TINY)

    # No even start: it could be orthogonal to what it looks for.
    start = 1 + jnp.sqrt(jnp.arange(1, len(matrix) + 1, dtype=matrix.dtype)) % 1
    return jnp.linalg.norm(matrix @ jax.lax.fori_loop(0, _POWERS, multiply, start / jnp.linalg.norm(start)))


def _inverse(matrices: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Inverses of symmetric matrices (k, r, r), and which are positive definite, by Gauss and Jordan.

    The pivots are all positive just then. It is plain vector code: LAPACK's threads wait for one another, for ever,
    where several programs run at once.
    """
    r = matrices.shape[-1]

    def eliminate(i: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        a, definite = carry
        here = (jnp.arange(r) == i).astype(a.dtype)[None]
        pivot = a[:, i, i]
        definite = definite & (pivot > 0)
        pivot = jnp.where(definite, pivot, 1)[:, None]
        row, column = a[:, i] * (1 - here), a[:, :, i] * (1 - here)
        rest = a * ((1 - here)[:, :, None] * (1 - here)[:, None]) - column[:, :, None] * (row / pivot)[:, None]
        new_row = here[:, :, None] * ((row + here) / pivot)[:, None]
        return rest + new_row - (column / pivot)[:, :, None] * here[:, None], definite

    return jax.lax.fori_loop(0, r, eliminate, (matrices, jnp.ones(len(matrices), bool)))


def _certified(local: TwoLayerLocal, bound: _Bound, norm: str) -> jax.Array:
    """The radius that a bound certifies, whatever the rounding; 0 if none.

    With multipliers D for which S = D − curvature is positive definite, F(c) ≥ level − ½ gradient·S⁻¹·gradient −
    ½ Σ D·c², where Σ D·c² is at most radius²·max D in L2, and radius²·Σ D in L∞.
    """
    speed = dual_length(local.rates, norm)
    reach = bound.radius * speed
    # Beyond rounding, as a ReLU that is off adds nothing.
    low, high = local.z - reach, local.z + reach + TIE * (jnp.abs(local.z) + reach)
    curve, slopes = jnp.maximum(bound.curve, 0), jnp.clip(bound.slopes, 0, 1)
    form, size = _form(local, bound._replace(curve=curve, slopes=slopes), low, high)
    # Gershgorin's bound of all eigenvalues, to which errors of the curvature are relative.
    largest = jnp.max(
        2 * (jnp.maximum(-local.head, 0) * curve * jnp.sum(jnp.abs(local.rates), axis=1)) @ jnp.abs(local.rates)
    )
    multipliers = jnp.maximum(bound.multipliers, 0)
    allowance = rounding_allowance(size, len(local.z))

    def squared(scales: jax.Array) -> jax.Array:
        """The squared radii (k,) that the multipliers times some factors certify; 0 if none."""
        d = scales[:, None] * multipliers[None] + _MARGIN * largest
        inverse, is_definite = _inverse(d[:, :, None] * jnp.eye(d.shape[1], dtype=d.dtype)[None] - form.curvature[None])
        shares = jnp.sum((inverse @ form.gradient) * form.gradient[None], axis=1)
        spent = jnp.sum(d, axis=1) if NORMS[norm].is_cubic else jnp.max(d, axis=1)
        level = form.level - allowance - shares * (1 + _MARGIN) / 2
        square = 2 * level / jnp.where(spent > 0, spent, 1) * (1 - _MARGIN)
        return jnp.where(is_definite & (spent > 0) & (level > 0) & jnp.isfinite(square), square, 0)

    def refine(step: jax.Array, scale: jax.Array) -> jax.Array:
        scales = scale * 2 ** (jnp.linspace(-1, 1, 9, dtype=scale.dtype) * 0.25 ** step.astype(scale.dtype))
        return scales[jnp.argmax(squared(scales))]

    scale = jax.lax.fori_loop(0, _REFINEMENTS, refine, jnp.ones((), local.dtype))
    return jnp.minimum(jnp.sqrt(squared(scale[None])[0]), bound.radius)


# ReLUs ------------------------------------------------------------------------------------------------------------


def _smooth_step(at: jax.Array, width: jax.Array) -> jax.Array:
    """From 0 to 1 around 0."""
    return jax.nn.sigmoid(jnp.clip(at / jnp.maximum(width, _TINY), -50, 50))


def _stable_or(low: jax.Array, high: jax.Array, slopes: jax.Array) -> jax.Array:
    """1 of ReLUs that are on over [low, high], 0 of those that are off, else the slopes (m,)."""
    return jnp.where(low >= 0, 1, jnp.where(high <= 0, 0, slopes))


def _parabolas(mean: jax.Array, second: jax.Array, low: jax.Array, high: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Of arguments t in [low, high] with some mean and second moment: curve and tilt of parabolas above relu(t).

    They are those whose average is least. Each touches the ReLU in two points, at which such arguments can lie: at −τ
    and τ, τ² the second moment, or at an end of the interval and beyond 0; the chord touches it at both ends.
    """
    variance, size = jnp.maximum(second - mean**2, 0), jnp.sqrt(second)
    size = jnp.maximum(size, jnp.maximum(high - low, 0) * 2.0**-12)
    size = jnp.maximum(size, _TINY)
    from_low, from_high = (jnp.maximum(gap, size * 2.0**-12) for gap in (mean - low, high - mean))
    # Distances of the other point from the end that is one.
    across, back = from_low + variance / from_low, from_high + variance / from_high
    at_low = (size > -low) & (-low <= high)
    at_high = (size > high) & ~at_low
    curve = jnp.where(at_low, -low / across**2, jnp.where(at_high, high / back**2, 1 / (4 * size)))
    tilt_low = 1 + 2 * low / across - 2 * curve * low
    tilt_high = 2 * high / back - 2 * curve * high
    tilt = jnp.where(at_low, tilt_low, jnp.where(at_high, tilt_high, 0.5))
    chord = (at_low & (low + across >= high)) | (at_high & (high - back <= low))
    slope = high / jnp.where(high > low, high - low, 1)
    is_stable = (low >= 0) | (high <= 0)
    curve = jnp.where(is_stable | chord, 0, jnp.maximum(curve, 0))
    return curve, _stable_or(low, high, jnp.where(chord, slope, tilt))


def _lift(curve: jax.Array, tilt: jax.Array, low: jax.Array, high: jax.Array) -> jax.Array:
    """The least constants (m,) with which curve·t² + tilt·t lies above relu(t) on [low, high]."""

    def most(slope: jax.Array, begin: jax.Array, end: jax.Array) -> jax.Array:
        """Of slope·t − curve·t² on an interval."""
        peak = jnp.where(curve > 0, slope / jnp.where(curve > 0, 2 * curve, 1), jnp.where(slope > 0, end, begin))
        t = jnp.clip(peak, begin, end)
        return (slope - curve * t) * t

    off = jnp.where(low < 0, most(-tilt, low, jnp.minimum(high, 0)), -jnp.inf)
    on = jnp.where(high >= 0, most(1 - tilt, jnp.maximum(low, 0), high), -jnp.inf)
    return jnp.maximum(off, on)
