"""What linear certificates share: chords of ReLUs, caps of balls, and the search for the largest certified radius."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from subspace_adv.models.two_layer import rounding_allowance
from subspace_adv.norms import NORMS, dual_length, steepest

_LEAST_PROGRESS = 0.1  # of the way to the radius on trial, by each step
_NEXT_TRIAL = 0.65  # of the way from what is certified to what was given up
_LEAST_Q = 2.0**-20


def chord(low: jax.Array, high: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Slope of the ReLU's chord over [low, high], in [0, 1], and its value at 0."""
    above, below = jnp.maximum(high, 0), jnp.minimum(low, 0)
    slope = above / jnp.where(above > below, above - below, 1)
    return slope, -slope * below


def within_cap(
    rates: jax.Array, speed: jax.Array, toward: jax.Array, falls: jax.Array, r: jax.Array, height: jax.Array, norm: str
) -> tuple[jax.Array, jax.Array]:
    """How far linear functions can fall and rise over a cap of a ball, {‖c‖ ≤ r, toward·c ≤ −height}.

    In L2 the farthest point is the ball's own if the cap holds it, else on the cap's rim. In other norms, by weak
    duality, a·c ≤ r‖a − λ·toward‖ − λ·height for every λ ≥ 0. The right side is convex in λ; taken is the λ where
    its tangent at 0 meets its asymptote.

    Args:
        rates: the functions' gradients a (k, r).
        speed: their dual norms (k,).
        toward: (r,), of dual norm 1 up to rounding, or zeros.
        falls: the functions' values where toward·c is largest for c of norm 1, (k,).
        r: radius of the ball, ().
        height: between −r and r, (), with an allowance for the rounding of all that it is computed from.
        norm: of the ball.

    Returns:
        Both (k,), not below the true ones by more than some ulps of r·speed.
    """
    if NORMS[norm].is_euclidean:
        # The root of a difference of squares magnifies rounding, so the allowance is made before it.
        beside = jnp.maximum(speed**2 + rounding_allowance(speed**2, len(speed)) - falls**2, 0)
        rim = jnp.sqrt((r - height) * (r + height)) * jnp.sqrt(beside)
        down = jnp.where(r * falls >= height * speed, r * speed, rim + height * falls)
        up = jnp.where(-r * falls >= height * speed, r * speed, rim - height * falls)
        return down, up
    along = steepest(rates, norm) @ toward

    def most(side: int) -> jax.Array:
        # λ = p/q, multiplied out as divisions are dear.
        p, q = jnp.maximum(speed + side * falls, 0), jnp.maximum(1 + side * along, _LEAST_Q)
        length = dual_length(q[:, None] * rates - side * p[:, None] * toward[None], norm)
        bound = r * length - p * height + rounding_allowance(r * p, len(p))
        return jnp.minimum(bound / q, r * speed)

    return most(-1), most(1)


class Trials(NamedTuple):
    """Radii that are tried one after the other, and what is certified."""

    lower: jax.Array  # (), no flip is shorter
    upper: jax.Array  # (), the least radius given up
    radius: jax.Array  # (), on trial, between the two
    height: jax.Array  # (), least length of a flip that the trial's last step left possible
    known: Any  # of flips within `radius`, and so within smaller ones: a pytree
    kept: Any  # the same of flips within `upper`


def first_trial(sure: jax.Array, radius: jax.Array, known: Any) -> Trials:
    """The trial of a radius () where another one is certified, and something known of all flips."""
    return Trials(sure, radius, radius, jnp.full_like(radius, -jnp.inf), known, known)


def advanced(trials: Trials, height: jax.Array, sound: jax.Array) -> tuple[Trials, jax.Array]:
    """After a step that proved flips within the radius as long as `height`, or that there are none (`sound`).

    A trial is given up where its steps prove too little more. Then the next radius lies between what is certified and
    what was given up, and its trial begins with what is known within the latter.

    Returns:
        The trials, and whether another one begins, ().
    """
    r = trials.radius
    given_up = ~sound & (height - trials.height < _LEAST_PROGRESS * (r - height))
    over = sound | given_up
    lower = jnp.maximum(trials.lower, jnp.where(sound, r, jnp.minimum(height, r)))
    upper = jnp.where(given_up, r, trials.upper)
    kept = _where(given_up, trials.known, trials.kept)
    after = Trials(
        lower=lower,
        upper=upper,
        radius=jnp.where(over, jnp.minimum(lower + _NEXT_TRIAL * (upper - lower), 2 * lower), r),
        height=jnp.where(over, -jnp.inf, height),
        known=_where(over, kept, trials.known),
        kept=kept,
    )
    return after, over


def _where(condition: jax.Array, yes: Any, no: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)
