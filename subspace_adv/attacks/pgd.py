"""Projected gradient descent (Madry et al. 2018) on the signed output, in balls of many radii."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import random

from subspace_adv import streams
from subspace_adv.attacks.fmn import Fall, Flips, finished
from subspace_adv.contracts import Local
from subspace_adv.norms import length, project, unit


class Tuning(NamedTuple):
    """What the search was tuned to."""

    radii: int = 16  # of the balls, in geometric progression
    least: float = 2.0**-8  # radius, relative to that which comes to every kink
    most: float = 8.0  # likewise
    rays: int = 8  # times the restarts, each evaluated at all radii
    runs: int = 8  # one in so many restarts in each ball, rounded up
    step: Fall = Fall(0.5, 0.02)  # relative to the place, but geometrically


TUNING = Tuning()


def pgd_directions(local: Local, norm: str, steps: int, restarts: int, key: jax.Array) -> jax.Array:
    """Descents in balls of fixed radii, whose flips go on as those of the fast minimum-norm attack do.

    In each ball the runs begin on its surface, where the outputs of random rays are lowest. Fixed radii do not depend
    on where the output would vanish if it were linear, which leads nowhere where flips lie in a narrow cone. An output
    of 0, which whole regions without an active neuron can have, is no flip. The search runs in float32.

    Args:
        local: the signed output around a point.
        norm: of the perturbation.
        steps: gradient steps of a run.
        restarts: the effort: so many times more rays, and parts of it as runs in each ball.
        key: typed PRNG key of the random rays.

    Returns:
        The best flips met, (k, r); zeros where none.
    """
    dtype, local = local.dtype, local.astype(jnp.float32)
    ray_key, near_key = streams.search_keys(key)
    reach = local.reach(norm)
    radii = jnp.where(reach > 0, reach, 1) * jnp.geomspace(TUNING.least, TUNING.most, TUNING.radii, dtype=jnp.float32)
    rays = unit(random.normal(ray_key, (TUNING.rays * restarts, local.dimension), jnp.float32), norm)
    runs = -(-restarts // TUNING.runs)
    _, lowest = jax.lax.top_k(-local.values_along(rays, radii).T, runs)
    radius = jnp.repeat(radii, runs)

    def move(carry: tuple[jax.Array, Flips], step: jax.Array) -> tuple[tuple[jax.Array, Flips], None]:
        c, best = carry
        value, gradient = local.value_and_gradient(c)
        size = length(c, norm)
        better = (value < 0) & (size < best.sizes)
        best = Flips(jnp.where(better[:, None], c, best.places), jnp.where(better, size, best.sizes))
        c = c - (step * length(c, "l2"))[:, None] * unit(gradient, "l2")
        return (project(c, radius, norm), best), None

    begin = radius[:, None] * rays[lowest.ravel()]
    shares = jnp.geomspace(*TUNING.step, steps, dtype=jnp.float32)
    (_, flips), _ = jax.lax.scan(move, (begin, Flips.none(begin)), shares)
    return finished(local, begin, flips, near_key, norm, steps).astype(dtype)
