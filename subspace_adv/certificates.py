"""Lower bounds on the distance to a flip: radii within which no perturbation can change the prediction."""

import jax
import jax.numpy as jnp

from subspace_adv.attacks import rounding_allowance
from subspace_adv.network import Network, output, preactivations

_NEWTON_STEPS = 16


def kink_certificate(network: Network, x: jax.Array, region: jax.Array) -> jax.Array:
    """Largest L2 radius that the kink bound certifies (F7 in docs/theory.md).

    With s = sign N(x), no perturbation in the region of norm up to r flips x if
    |N| − r‖P∇N‖ − Σ_{s·uᵢ<0} |uᵢ|·max(r‖Pwᵢ‖ − |zᵢ|, 0) ≥ 0. The left side, less an allowance for rounding,
    is concave, decreasing and piecewise linear in r. Newton's iteration from the right reaches its root in a few
    pieces; the chord to r = 0 then lies below the function, so its root is certified wherever Newton stopped.

    Args:
        network: weight (m, d).
        x: point (d,).
        region: orthonormal basis (d, r) of the perturbations allowed.

    Returns:
        The radius, (); inf where no active and no opposing neuron varies within the region, 0 where the output is
        within rounding of 0.
    """
    z = preactivations(network, x)
    sign = jnp.where(output(network, x) < 0, -1, 1).astype(x.dtype)
    rates = network.weight @ region
    reach, weight = jnp.linalg.norm(rates, axis=1), jnp.abs(network.head)
    opposing = jnp.where(sign * network.head < 0, weight, 0)
    slope = jnp.linalg.norm(jnp.where(z > 0, network.head, 0) @ rates)
    width = len(z)
    slack = slope + rounding_allowance(jnp.where(z > 0, weight, opposing) @ reach, width)
    margin = sign * output(network, x)
    margin -= rounding_allowance(weight @ jnp.abs(z) + jnp.abs(network.head_bias), width)

    def bound(r: jax.Array) -> jax.Array:
        return margin - r * slack - opposing @ jnp.maximum(r * reach - jnp.abs(z), 0)

    def newton(_: int, r: jax.Array) -> jax.Array:
        descent = slack + opposing @ jnp.where(r * reach > jnp.abs(z), reach, 0)
        return jnp.where(bound(r) < 0, r + bound(r) / descent, r)

    # Both the first and the last linear piece lie above the function, so their roots lie right of its root.
    last_root = (margin + opposing @ jnp.abs(z)) / (slack + opposing @ reach)
    start = jnp.minimum(margin / slack, last_root)
    finite = jnp.where(jnp.isfinite(start), start, 0)
    right = jax.lax.fori_loop(0, _NEWTON_STEPS, newton, finite)
    at_right = bound(right)
    chord = right * jnp.where(at_right < 0, margin / (margin - at_right), 1)
    return jnp.where(margin > 0, jnp.where(jnp.isfinite(start), chord, jnp.inf), 0)
