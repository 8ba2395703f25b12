"""Fast minimum-norm attack (Pintor, Roli, Brendel and Biggio 2021) on the signed output, in three norms."""

import jax
import jax.numpy as jnp
from jax import random

from subspace_adv.attacks.crossing import AttackResult, Slice, around, shortest
from subspace_adv.attacks.norms import Norm, dual_length, length, project, steepest, unit
from subspace_adv.network import Network

_FINALISTS = 4  # the shortest flips met, whose rays are crossed exactly


def fmn_attack(
    network: Network,
    x: jax.Array,
    region: jax.Array,
    *,
    norm: Norm = "l2",
    steps: int = 40,
    restarts: int = 12,
    key: jax.Array,
    toward: jax.Array | None = None,
) -> AttackResult:
    """Fast minimum-norm attack with restarts, finished by the exact crossing.

    A run begins where the ray of a start direction first crosses the decision boundary. The first half of the runs
    starts along the steepest descent, against all neurons, toward a given point, along the coordinate axes with
    the nearest crossings (L1) and at random; the second half around the best that the first half found. The rays of
    the best perturbations found are extended or shortened to their own exact crossings. The search runs in float32,
    the crossings in the network's dtype.

    Args:
        network: weight (m, d).
        x: point (d,).
        region: basis (d, r) of the perturbations allowed: orthonormal for "l2", of coordinate axes for "linf"
            and "l1", or any single column.
        norm: of the perturbation.
        steps: gradient steps of each restart.
        restarts: starts of each half.
        key: typed PRNG key of the random starts.
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
    """The best starts of `fmn_attack` around a point and the best flips met from them, (k, r)."""
    shape, dtype = (restarts, rays.rates.shape[1]), rays.z.dtype
    _, gradient = rays.value_and_gradient(jnp.zeros(shape[1], dtype))
    informed = [-steepest(gradient, norm), -unit(rays.head @ rays.rates, norm)]
    if goal is not None:
        informed.append(unit(goal, norm))
    near_key, far_key = random.split(key)
    others = _random_units(far_key, shape, norm, dtype)
    if norm == "l1":
        others = jnp.concatenate([_nearest_axes(rays)[:restarts], others])
    starts = jnp.concatenate([jnp.stack(informed), others])[:restarts]
    reached = jax.vmap(lambda c: rays.crossing(c).upper)(starts)
    scale = _scale(rays, reached, gradient, norm)
    rays32, starts32, reached32, scale32 = jax.tree.map(lambda a: a.astype(jnp.float32), (rays, starts, reached, scale))

    def search(start: jax.Array, radius: jax.Array) -> tuple[jax.Array, jax.Array]:
        return _search(rays32, start, jnp.where(jnp.isfinite(radius), radius, scale32), norm, steps)

    first, sizes = jax.vmap(search)(starts32, reached32)
    best = jnp.argmin(sizes)
    noise = _random_units(near_key, shape, norm, jnp.float32)
    around_best = jax.vmap(lambda c: unit(unit(first[best], norm) + c, norm))(noise)
    second, second_sizes = jax.vmap(search)(around_best, jnp.full(restarts, 1.2 * sizes[best]))
    found = jnp.concatenate([first, second])[jnp.argsort(jnp.concatenate([sizes, second_sizes]))[:_FINALISTS]]
    return jnp.concatenate([found.astype(dtype), starts[jnp.argmin(reached)][None]])


def _random_units(key: jax.Array, shape: tuple[int, ...], norm: Norm, dtype: jnp.dtype) -> jax.Array:
    return jax.vmap(lambda c: unit(c, norm))(random.normal(key, shape, dtype))


def _nearest_axes(rays: Slice) -> jax.Array:
    """Both directions of all coordinate axes (2r, r), those that cross first first."""
    axes = jnp.eye(rays.rates.shape[1], dtype=rays.z.dtype)
    both = jnp.concatenate([axes, -axes])
    return both[jnp.argsort(jax.vmap(lambda c: rays.crossing(c).upper)(both))]


def _scale(rays: Slice, reached: jax.Array, gradient: jax.Array, norm: Norm) -> jax.Array:
    """A length to begin at where a ray does not cross: of other rays, of first order, or of the kinks."""
    size = dual_length(gradient, norm)
    first_order = rays.value(jnp.zeros_like(gradient)) / jnp.where(size > 0, size, 1)
    nearest = jnp.minimum(jnp.min(reached), jnp.where(size > 0, first_order, jnp.inf))
    return jnp.where(jnp.isfinite(nearest), nearest, rays.farthest_kink(norm))


def _search(rays: Slice, start: jax.Array, radius: jax.Array, norm: Norm, steps: int) -> tuple[jax.Array, jax.Array]:
    """Smallest adversarial coordinates (r,) met by one run from `radius`·`start`, and their norm; 0 and inf if none."""
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
    (_, _, best, best_size), _ = jax.lax.scan(move, (radius * start, inf, jnp.zeros_like(start), inf), cosine)
    return best, best_size
