"""Fast minimum-norm attack (Pintor, Roli, Brendel and Biggio 2021) on the signed output, in three norms."""

import jax
import jax.numpy as jnp
from jax import random

from subspace_adv.attacks.crossing import AttackResult, Slice, around, shortest
from subspace_adv.attacks.norms import Norm, dual_length, length, project, steepest, unit
from subspace_adv.network import Network


def fmn_attack(
    network: Network,
    x: jax.Array,
    region: jax.Array,
    *,
    norm: Norm = "l2",
    steps: int = 40,
    restarts: int = 4,
    key: jax.Array,
    toward: jax.Array | None = None,
) -> AttackResult:
    """Fast minimum-norm attack with restarts, finished by the exact crossing.

    Each restart begins where the ray of a start direction first crosses the decision boundary: the steepest
    descent, the direction against all neurons, the one toward a given point, then random ones. The rays of the
    starts and of all perturbations found are extended or shortened to their own exact crossings. The search
    runs in float32, the crossings in the network's dtype.

    Args:
        network: weight (m, d).
        x: point (d,).
        region: basis (d, r) of the perturbations allowed: orthonormal for "l2", of coordinate axes for "linf"
            and "l1", or any single column.
        norm: of the perturbation.
        steps: gradient steps of each restart.
        restarts: starts tried.
        key: typed PRNG key of the random starts.
        toward: a point (d,) that the network classifies otherwise; none by default.

    Returns:
        The smallest perturbation found.
    """
    rays = around(network, x, region)
    _, gradient = rays.value_and_gradient(jnp.zeros(region.shape[1], x.dtype))
    informed = [-steepest(gradient, norm), -unit(rays.head @ rays.rates, norm)]
    if toward is not None:
        informed.append(unit((toward - x) @ region, norm))
    informed = jnp.stack(informed)[:restarts]
    drawn = random.normal(key, (restarts - len(informed), region.shape[1]), x.dtype)
    starts = jnp.concatenate([informed, jax.vmap(lambda c: unit(c, norm))(drawn)])
    reached = jax.vmap(lambda c: rays.crossing(c).upper)(starts)
    radii = jnp.where(jnp.isfinite(reached), reached, _scale(rays, reached, gradient, norm))
    rays32, starts32, radii32 = jax.tree.map(lambda a: a.astype(jnp.float32), (rays, starts, radii))
    found = jax.vmap(lambda start, radius: _search(rays32, start, radius, norm, steps))(starts32, radii32)
    return shortest(rays, region, jnp.concatenate([found.astype(x.dtype), starts]), norm)


def _scale(rays: Slice, reached: jax.Array, gradient: jax.Array, norm: Norm) -> jax.Array:
    """A length to begin at where a ray does not cross: of other rays, of first order, or of the kinks."""
    size = dual_length(gradient, norm)
    first_order = rays.value(jnp.zeros_like(gradient)) / jnp.where(size > 0, size, 1)
    nearest = jnp.minimum(jnp.min(reached), jnp.where(size > 0, first_order, jnp.inf))
    speed = dual_length(rays.rates, norm)
    kinks = jnp.max(jnp.where(speed > 0, jnp.abs(rays.z) / jnp.where(speed > 0, speed, 1), 0))
    return jnp.where(jnp.isfinite(nearest), nearest, kinks)


def _search(rays: Slice, start: jax.Array, radius: jax.Array, norm: Norm, steps: int) -> jax.Array:
    """Smallest adversarial coordinates (r,) met by one run from `radius`·`start`; zeros if none."""
    cosine = 0.5 * (1 + jnp.cos(jnp.pi * jnp.arange(steps, dtype=jnp.float32) / steps))
    start_length = jnp.linalg.norm(radius * start)

    def move(carry: tuple, decay: jax.Array) -> tuple[tuple, None]:
        delta, bound, best, best_size = carry
        margin, gradient = rays.value_and_gradient(delta)
        size = length(delta, norm)
        flipped = margin <= 0
        better = flipped & (size < best_size)
        best, best_size = jnp.where(better, delta, best), jnp.where(better, size, best_size)
        rate = 0.001 + 0.099 * decay
        linear = size + margin / dual_length(gradient, norm)
        unflipped = jnp.where(jnp.isfinite(best_size), bound * (1 + rate), linear)
        bound = jnp.where(flipped, jnp.minimum(bound * (1 - rate), best_size), unflipped)
        delta = delta - 0.5 * decay * start_length * unit(gradient, "l2")
        return (project(delta, bound, norm), bound, best, best_size), None

    inf = jnp.float32(jnp.inf)
    (_, _, best, _), _ = jax.lax.scan(move, (radius * start, inf, jnp.zeros_like(start), inf), cosine)
    return best
