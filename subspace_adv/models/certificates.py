"""Radii within which no perturbation can change the prediction of a two-layer network: lower bounds on the distance."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from subspace_adv.contracts import prepared
from subspace_adv.models import two_layer
from subspace_adv.models.concave import concave_certificate
from subspace_adv.models.relaxation import Trials, advanced, chord, first_trial, within_cap
from subspace_adv.models.two_layer import TIE, TwoLayerLocal, rounding_allowance
from subspace_adv.network import Network
from subspace_adv.norms import dual_length, steepest

_NEWTON_STEPS = 16
_CROWN_STEPS = 24  # what is certified is sound wherever they end
_TIGHTENED = 16  # neurons, and an eighth of all; the others' chords lose little


def certificate(network: Network, x: jax.Array, basis: jax.Array, *, norm: str, upper: jax.Array) -> jax.Array:
    """The better of both linear certificates, (); arguments as in `crown_certificate`."""
    kink = kink_certificate(network, x, basis, norm=norm)
    return jnp.maximum(kink, crown_certificate(network, x, basis, norm=norm, upper=upper))


def finer_certificate(
    network: Network, x: jax.Array, basis: jax.Array, *, norm: str, upper: jax.Array, known: jax.Array
) -> jax.Array:
    """That of `concave`, (); arguments as of `certificate`, and what that certified."""
    network, x, basis = prepared(network, x, basis, norm)
    return concave_certificate(two_layer.local(network, x, basis), norm=norm, upper=upper, known=known)


def kink_certificate(network: Network, x: jax.Array, basis: jax.Array, *, norm: str = "l2") -> jax.Array:
    """Largest radius that the kink bound certifies (F7 in docs/theory.md).

    With s = sign N(x), no perturbation in the region of norm up to r flips x if
    |N| − r‖P∇N‖ − Σ_{s·uᵢ<0} |uᵢ|·max(r‖Pwᵢ‖ − |zᵢ|, 0) ≥ 0, in dual norms. The left side, less an allowance for
    rounding, is concave, decreasing and piecewise linear in r. Newton's iteration from the right reaches its root in
    a few pieces; the chord to r = 0 then lies below the function, so its root is certified wherever Newton stopped.

    Args:
        network: weight (m, d).
        x: point (d,).
        basis: (d, r), of the perturbations allowed: orthonormal for "l2", of coordinate axes for "linf" and
            "l1".
        norm: of the perturbation.

    Returns:
        The radius, (); inf where no active and no opposing neuron varies within the region, 0 where the output is
        within rounding of 0.
    """
    network, x, basis = prepared(network, x, basis, norm)
    local = two_layer.local(network, x, basis)
    speed, opposing = dual_length(local.rates, norm), jnp.maximum(-local.head, 0)
    on = jnp.where(local.z > 0, local.head, 0)
    margin, slope = _safe_margin(local), dual_length(on @ local.rates, norm)
    slack = slope + rounding_allowance(jnp.abs(on) @ speed, len(speed))
    # ReLUs are taken a little nearer to their kinks and steeper, so that rounding counts for those alone that bend.
    height, fall = jnp.abs(local.z) * (1 - 2 * TIE), speed * (1 + 2 * TIE)

    def bound(r: jax.Array) -> jax.Array:
        return margin - r * slack - jnp.sum(opposing * jnp.maximum(r * fall - height, 0))

    def newton(_: int, r: jax.Array) -> jax.Array:
        descent = slack + jnp.sum(jnp.where(r * fall > height, opposing * fall, 0))
        return jnp.where(bound(r) < 0, r + bound(r) / descent, r)

    # Both the first and the last linear piece lie above the function, so their roots lie right of its root.
    last_root = (margin + opposing @ height) / (slack + opposing @ fall)
    start = jnp.minimum(margin / slack, last_root)
    finite = jnp.where(jnp.isfinite(start), start, 0)
    right = jax.lax.fori_loop(0, _NEWTON_STEPS, newton, finite)
    at_right = bound(right)
    chord = right * jnp.where(at_right < 0, margin / (margin - at_right), 1)
    return jnp.where(margin > 0, jnp.where(jnp.isfinite(start), chord, jnp.inf), 0)


class _Search(NamedTuple):
    """Where the search for the largest certified radius stands."""

    # What is known: (2, k), least and largest preactivations of some neurons.
    trials: Trials
    slopes: jax.Array  # (m,), of the lines below the ReLUs that count for the prediction
    steps: jax.Array  # (), int32, of the trial


def crown_certificate(
    network: Network, x: jax.Array, basis: jax.Array, *, norm: str = "l2", upper: jax.Array
) -> jax.Array:
    """Radius certified by linear bounds on every ReLU, tightened where flips can be (F8 in docs/theory.md).

    Let preactivation i lie between l and h at all flips within radius r: zᵢ ∓ r‖Pwᵢ‖ in dual norms to begin with.
    There a ReLU that counts for the prediction lies above the line through 0 of any slope between 0 and 1, and one
    that counts against it lies below its chord over [l, h]. These lines (CROWN, Zhang et al. 2018), less an allowance
    for rounding, make an affine L(c) = L₀ + G·c ≤ s·N(c), which is ≤ 0 at flips. So

    - no flip is shorter than L₀/‖G‖, and r is certified if that is r or more;
    - all flips within r lie in the cap {‖c‖ ≤ r, G·c ≤ −L₀}, where preactivations range less widely.

    Narrower ranges make better lines, and so on. The slopes meanwhile step to where the worst perturbation leaves
    their neurons: 1 if active there, 0 if not. The trial of a radius ends when it is certified, or given up as
    L₀/‖G‖ nears it too slowly. Ranges within a radius given up hold within smaller ones, whose trials begin with them.

    Args:
        network: weight (m, d).
        x: point (d,).
        basis: as in `kink_certificate`.
        norm: of the perturbation.
        upper: the first radius tried, (): a distance at which x is known to flip; inf if none is known.

    Returns:
        The radius, (); 0 if none was certified.
    """
    network, x, basis = prepared(network, x, basis, norm)
    local, upper = two_layer.local(network, x, basis), jnp.asarray(upper, x.dtype)
    speed = dual_length(local.rates, norm)
    growth = jnp.sum(jnp.abs(local.head) * speed)
    # Beyond every kink and the root of the steepest possible descent, doubling tells nothing new.
    start = jnp.where(jnp.isfinite(upper), upper, 2 * local.reach(norm) + 1)
    loose = _loosest(local, start * speed)
    z, rates, speeds = local.z[loose], local.rates[loose], speed[loose]

    def step(_: int, search: _Search) -> _Search:
        r, known = search.trials.radius, search.trials.known
        low = (local.z - r * speed).at[loose].max(known[0])
        high = (local.z + r * speed).at[loose].min(known[1])
        level, gradient = _line(local, low, high, search.slopes, jnp.abs(local.z) + r * speed)
        steepness = dual_length(gradient, norm)
        divisor = jnp.where(steepness > 0, steepness, 1)
        height, falls = level / divisor, local.rates @ steepest(gradient, norm)
        down, up = within_cap(rates, speeds, gradient / divisor, falls[loose], r, jnp.clip(height, -r, r), norm)
        ranges = jnp.stack([jnp.maximum(low[loose], z - down), jnp.minimum(high[loose], z + up)])
        share = 2 / (search.steps + 3).astype(r.dtype)
        slopes = search.slopes + share * ((local.z > r * falls).astype(r.dtype) - search.slopes)
        trials, is_over = advanced(search.trials._replace(known=ranges), height, level >= r * steepness)
        return _Search(trials, slopes, jnp.where(is_over, 0, search.steps + 1))

    anything = jnp.stack([jnp.full_like(z, -jnp.inf), jnp.full_like(z, jnp.inf)])
    slopes, margin = (local.z > 0).astype(start.dtype), _safe_margin(local)
    # No output falls faster than by `growth`.
    sure = jnp.minimum(margin / (growth + rounding_allowance(growth, len(speed))), start)
    sure = jnp.where((margin > 0) & (growth > 0), sure, 0)
    search = _Search(first_trial(sure, start, anything), slopes, jnp.int32(0))
    search = jax.lax.fori_loop(0, _CROWN_STEPS, step, search)
    return jnp.where(margin > 0, search.trials.lower, 0)


def _loosest(local: TwoLayerLocal, change: jax.Array) -> jax.Array:
    """Indices (k,) of the neurons whose chords over z ∓ change lose the most."""
    _, lift = chord(local.z - change, local.z + change)
    loss = (jnp.maximum(-local.head, 0) * lift).astype(jnp.float32)  # only float32 is fast to select from
    return jax.lax.top_k(loss, min(len(loss), _TIGHTENED + len(loss) // 8))[1]


def _line(
    local: TwoLayerLocal, low: jax.Array, high: jax.Array, slopes: jax.Array, farthest: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """L₀ and G (r,) of the affine function below the signed output while preactivations are in [low, high] (m,).

    L₀ is less an allowance for rounding; `farthest` (m,) bounds the preactivations' sizes. Ranges are made wider by
    what rounding can change of them, so that it counts for those ReLUs alone that are on somewhere.
    """
    above, lift = chord(low, high + TIE * farthest)
    line = local.head * jnp.where(local.head > 0, slopes, above)
    level = jnp.sum(line * local.z + jnp.minimum(local.head, 0) * lift) + local.offset
    size = jnp.abs(line) @ farthest + jnp.abs(local.offset)
    return level - rounding_allowance(size, len(slopes)), line @ local.rates


def _safe_margin(local: TwoLayerLocal) -> jax.Array:
    """|N(x)| less an allowance for rounding."""
    hidden = jax.nn.relu(local.z)
    size = jnp.abs(local.head) @ hidden + jnp.abs(local.offset)
    return local.head @ hidden + local.offset - rounding_allowance(size, len(hidden))
