"""Lower bounds on the distance to a flip: radii within which no perturbation can change the prediction."""

import jax
import jax.numpy as jnp

from subspace_adv.attacks import Norm, Slice, around, dual_length, rounding_allowance, steepest
from subspace_adv.network import Network

_NEWTON_STEPS = 16
_SLOPE_STEPS = 10
_BISECTION_STEPS = 12  # to 2⁻¹² of the way to the flip; what is certified is sound wherever they end


def kink_certificate(network: Network, x: jax.Array, region: jax.Array, *, norm: Norm = "l2") -> jax.Array:
    """Largest radius that the kink bound certifies (F7 in docs/theory.md).

    With s = sign N(x), no perturbation in the region of norm up to r flips x if
    |N| − r‖P∇N‖ − Σ_{s·uᵢ<0} |uᵢ|·max(r‖Pwᵢ‖ − |zᵢ|, 0) ≥ 0, in dual norms. The left side, less an allowance for
    rounding, is concave, decreasing and piecewise linear in r. Newton's iteration from the right reaches its root in
    a few pieces; the chord to r = 0 then lies below the function, so its root is certified wherever Newton stopped.

    Args:
        network: weight (m, d).
        x: point (d,).
        region: basis (d, r) of the perturbations allowed: orthonormal for "l2", of coordinate axes for "linf"
            and "l1".
        norm: of the perturbation.

    Returns:
        The radius, (); inf where no active and no opposing neuron varies within the region, 0 where the output is
        within rounding of 0.
    """
    rays = around(network, x, region)
    reach, weight = dual_length(rays.rates, norm), jnp.abs(rays.head)
    opposing = jnp.where(rays.head < 0, weight, 0)
    margin, slope, width = _safe_margin(rays), _slope(rays, norm), len(reach)
    slack = slope + rounding_allowance(jnp.where(rays.z > 0, weight, opposing) @ reach, width)

    def bound(r: jax.Array) -> jax.Array:
        return margin - r * slack - opposing @ jnp.maximum(r * reach - jnp.abs(rays.z), 0)

    def newton(_: int, r: jax.Array) -> jax.Array:
        descent = slack + opposing @ jnp.where(r * reach > jnp.abs(rays.z), reach, 0)
        return jnp.where(bound(r) < 0, r + bound(r) / descent, r)

    # Both the first and the last linear piece lie above the function, so their roots lie right of its root.
    last_root = (margin + opposing @ jnp.abs(rays.z)) / (slack + opposing @ reach)
    start = jnp.minimum(margin / slack, last_root)
    finite = jnp.where(jnp.isfinite(start), start, 0)
    right = jax.lax.fori_loop(0, _NEWTON_STEPS, newton, finite)
    at_right = bound(right)
    chord = right * jnp.where(at_right < 0, margin / (margin - at_right), 1)
    return jnp.where(margin > 0, jnp.where(jnp.isfinite(start), chord, jnp.inf), 0)


def crown_certificate(
    network: Network, x: jax.Array, region: jax.Array, *, norm: Norm = "l2", upper: jax.Array
) -> jax.Array:
    """Radius certified by linear bounds on every ReLU (CROWN, Zhang et al. 2018; F8 in docs/theory.md).

    Within radius r, preactivation i lies between l = zᵢ − r‖Pwᵢ‖ and h = zᵢ + r‖Pwᵢ‖ (dual norms). Where that
    interval holds 0, a ReLU that counts for the prediction lies above the line through 0 of any slope between 0 and 1,
    and one that counts against it lies below the chord. The bound is linear in the perturbation, and r is certified
    while its least value, less an allowance for rounding, is not negative. A few steps move the slopes, concave as the
    bound is in them, to where the worst perturbation leaves their neurons: 1 if active there, 0 if not.
    Bisection between 0 and `upper` finds such an r.

    Args:
        network: weight (m, d).
        x: point (d,).
        region: as in `kink_certificate`.
        norm: of the perturbation.
        upper: where to begin, (): a distance at which x is known to flip; inf if none is known.

    Returns:
        The radius, (); 0 if none was certified.
    """
    rays = around(network, x, region)
    reach, width = dual_length(rays.rates, norm), len(rays.z)
    margin = _safe_margin(rays)
    helping = rays.head > 0

    def bound(r: jax.Array, slopes: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Certified output at radius r for these slopes, and the preactivations where it is attained."""
        low, high = rays.z - r * reach, rays.z + r * reach
        unstable = (low < 0) & (high > 0)
        chord = high / jnp.where(unstable, high - low, 1)
        slope = jnp.where(unstable, jnp.where(helping, slopes, chord), (low >= 0).astype(r.dtype))
        line = rays.head * slope
        intercept = jnp.where(unstable & ~helping, rays.head * chord * -low, 0)
        gradient = line @ rays.rates
        value = line @ rays.z + jnp.sum(intercept) + rays.offset - r * dual_length(gradient, norm)
        magnitude = jnp.abs(rays.head) @ (jnp.abs(rays.z) + r * reach) + jnp.abs(rays.offset)
        worst = rays.z - r * (rays.rates @ steepest(gradient, norm))
        return value - rounding_allowance(magnitude, width), worst

    def halve(_: int, carry: tuple) -> tuple:
        low, high, slopes = carry
        middle = (low + high) / 2

        def improve(i: jax.Array, carry: tuple) -> tuple:
            slopes, best_value, best_slopes = carry
            value, worst = bound(middle, slopes)
            better = value > best_value
            best_value, best_slopes = jnp.where(better, value, best_value), jnp.where(better, slopes, best_slopes)
            share = 2 / (i + 3).astype(slopes.dtype)
            return slopes + share * ((worst > 0).astype(slopes.dtype) - slopes), best_value, best_slopes

        start = (slopes, jnp.full_like(low, -jnp.inf), slopes)
        _, value, slopes = jax.lax.fori_loop(0, _SLOPE_STEPS, improve, start)
        sound = value >= 0
        return jnp.where(sound, middle, low), jnp.where(sound, high, middle), slopes

    # Beyond every kink and the root of the steepest possible descent, doubling tells nothing new.
    start = jnp.where(jnp.isfinite(upper), upper, 2 * rays.farthest_kink(norm) + 1)
    slopes = (rays.z > 0).astype(start.dtype)
    low, _, _ = jax.lax.fori_loop(0, _BISECTION_STEPS, halve, (jnp.zeros_like(start), start, slopes))
    return jnp.where(margin > 0, low, 0)


def _safe_margin(rays: Slice) -> jax.Array:
    """|N(x)| less an allowance for rounding."""
    margin = rays.head @ jax.nn.relu(rays.z) + rays.offset
    return margin - rounding_allowance(jnp.abs(rays.head) @ jnp.abs(rays.z) + jnp.abs(rays.offset), len(rays.z))


def _slope(rays: Slice, norm: Norm) -> jax.Array:
    """Dual norm of the gradient at x."""
    return dual_length(jnp.where(rays.z > 0, rays.head, 0) @ rays.rates, norm)
