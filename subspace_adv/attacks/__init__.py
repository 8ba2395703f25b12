"""Perturbations that flip a point, in L2, L∞ and L1.

A search is a row of `ATTACKS`: from the signed output s·N around a point, s = sign N(x), to directions in which flips
are near. It never sees a loss, whose gradient vanishes at large outputs. An attack is a function of one network and
one point, `(network, x, basis, *, norm, steps, restarts, key) → AttackResult`, where a basis (d, r) spans the
perturbations allowed. It flips the network's own prediction, and ends at the exact crossing of a ray (F5 in
docs/theory.md).
"""

from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from subspace_adv import streams
from subspace_adv.attacks.crossing import AttackResult, shortest
from subspace_adv.attacks.fab import fab_directions
from subspace_adv.attacks.fmn import fmn_directions
from subspace_adv.attacks.pgd import pgd_directions
from subspace_adv.attacks.universal import random_direction, universal_descent
from subspace_adv.contracts import Local, Model, prepared
from subspace_adv.models import TWO_LAYER
from subspace_adv.norms import unit
from subspace_adv.rows import Rows

__all__ = [
    "ATTACKS",
    "AttackResult",
    "Directions",
    "descent_distance",
    "fab_attack",
    "fmn_attack",
    "further_attack",
    "line_distance",
    "minimal_norm_attack",
    "random_direction",
    "shortest",
    "universal_attack",
]


class Directions(Protocol):
    """A search for flips around a point."""

    def __call__(
        self, local: Local, norm: str, steps: int, restarts: int, key: jax.Array, goal: jax.Array | None, /
    ) -> jax.Array:
        """Directions in which flips are near.

        Args:
            local: the signed output around a point, over r coordinates: in a sweep that measures L2 alone, canonical
                ones of the span and what is off it (F6 in docs/theory.md), not those of R^d.
            norm: of the perturbation.
            steps: gradient steps of a run; an effort to be held to, in whatever the search does.
            restarts: its runs.
            key: typed PRNG key, the same for all rows; one that draws folds it with a number of its own above 5.
            goal: coordinates (r,) of a point of the other prediction; None where none is known.

        Returns:
            (k, r), of any length; zeros and what is not finite lead nowhere.
        """
        ...


ATTACKS: Rows[Directions] = Rows(
    "attack",
    {
        "fmn": fmn_directions,
        "fab": lambda local, norm, steps, restarts, key, goal: fab_directions(local, norm, -(-steps // 2)),
    },
)


ROUNDS = 4
"""Most rounds of `further_attack`, each with rays of its own."""


def minimal_norm_attack(
    network: Any,
    x: jax.Array,
    basis: jax.Array,
    *,
    norm: str = "l2",
    steps: int = 56,
    restarts: int = 32,
    key: jax.Array,
    toward: jax.Array | None = None,
    attacks: Sequence[str] | None = None,
    model: Model = TWO_LAYER,
) -> AttackResult:
    """The shortest flip of those that several attacks find, each finished by the exact crossing.

    Args:
        network: parameters of the model's.
        x: point (d,).
        basis: (d, r), of the perturbations allowed: orthonormal for "l2", of coordinate axes for "linf" and "l1", or
            any single column.
        norm: of the perturbation.
        steps: gradient steps of a run.
        restarts: runs.
        key: typed PRNG key.
        toward: a point (d,) that the network classifies otherwise; none by default.
        attacks: names in `ATTACKS`; all by default.
        model: kind of the network.

    Returns:
        The smallest perturbation found; of equal ones, that of the first attack.

    Raises:
        ValueError: for an unknown norm or attack, or what is no basis.
    """
    network, x, basis = prepared(network, x, basis, norm)
    local = model.local(network, x, basis)
    goal = None if toward is None else (toward - x) @ basis
    rows, around = {name: ATTACKS[name] for name in (ATTACKS if attacks is None else attacks)}, local.in_own_units()
    found = {name: row(around, norm, steps, restarts, key, goal) for name, row in rows.items()}
    for name, directions in found.items():
        _check(name, directions, local)
    _, result = shortest(local, basis, jnp.concatenate(list(found.values())), norm)
    return result


def further_attack(
    network: Any,
    x: jax.Array,
    basis: jax.Array,
    *,
    norm: str,
    steps: int,
    restarts: int,
    key: jax.Array,
    model: Model,
) -> AttackResult:
    """Projected gradient descent, for a point at which nothing else has found a flip: round after round until one does.

    As `pgd.pgd_directions` tells, at most so many rounds as `ROUNDS` says; arguments as in `minimal_norm_attack`.
    """
    network, x, basis = prepared(network, x, basis, norm)
    local = model.local(network, x, basis)
    around, keys = local.in_own_units(), streams.further_keys(key, ROUNDS)

    def search(carry: tuple[jax.Array, AttackResult]) -> tuple[jax.Array, AttackResult]:
        done, _ = carry
        directions = pgd_directions(around, norm, steps, restarts, keys[done])
        return done + 1, shortest(local, basis, directions, norm)[1]

    none = AttackResult(jnp.zeros_like(x), jnp.full((), jnp.inf, x.dtype), jnp.zeros((), bool))
    _, result = jax.lax.while_loop(
        lambda carry: (carry[0] < ROUNDS) & ~carry[1].is_adv, search, (jnp.zeros((), jnp.int32), none)
    )
    return result


def _check(name: str, directions: jax.Array, local: Local) -> None:
    """Refuse what are no directions of the region."""
    if directions.ndim != 2 or directions.shape[1] != local.dimension or directions.dtype != local.dtype:
        expected = f"(k, {local.dimension}) and {local.dtype}"
        raise ValueError(f"attack {name!r}: found {directions.shape} and {directions.dtype}, not {expected}")


def fmn_attack(
    network: Any,
    x: jax.Array,
    basis: jax.Array,
    *,
    norm: str = "l2",
    steps: int = 56,
    restarts: int = 32,
    key: jax.Array,
    toward: jax.Array | None = None,
    model: Model = TWO_LAYER,
) -> AttackResult:
    """The fast minimum-norm attack alone, as `fmn.fmn_directions` tells; arguments as in `minimal_norm_attack`."""
    effort = {"steps": steps, "restarts": restarts, "key": key, "toward": toward}
    return minimal_norm_attack(network, x, basis, norm=norm, **effort, attacks=("fmn",), model=model)


def fab_attack(
    network: Any,
    x: jax.Array,
    basis: jax.Array,
    *,
    norm: str = "l2",
    steps: int = 40,
    restarts: int = 1,
    key: jax.Array | None = None,
    model: Model = TWO_LAYER,
) -> AttackResult:
    """The fast adaptive boundary attack alone, in all of its steps; arguments as in `minimal_norm_attack`.

    It has one start and draws nothing: `restarts` and `key` are there because every attack has them.
    """
    del restarts, key
    network, x, basis = prepared(network, x, basis, norm)
    local = model.local(network, x, basis)
    _, result = shortest(local, basis, fab_directions(local.in_own_units(), norm, steps), norm)
    return result


def universal_attack(
    network: Any,
    x: jax.Array,
    basis: jax.Array,
    *,
    norm: str = "l2",
    steps: int = 0,
    restarts: int = 1,
    key: jax.Array | None = None,
    model: Model = TWO_LAYER,
    weights: jax.Array | None = None,
) -> AttackResult:
    """Move x along ± the model's universal direction, whichever lowers |N(x)|, to the exact crossing.

    Nothing is searched: `steps`, `restarts` and `key` are there because every attack has them. Arguments as in
    `minimal_norm_attack`; the basis is of the orthogonal complement of the subspace. The weights ā of the direction
    are those that the model makes of several points, or by default of x alone: of two layers they are the same.
    """
    del steps, restarts, key
    network, x, basis = prepared(network, x, basis, norm)
    direction = universal_descent(model, network, x, basis, weights)
    _, result = shortest(model.local(network, x, basis), basis, direction[None], norm)
    return result


def line_distance(
    network: Any, x: jax.Array, direction: jax.Array, norm: str = "l2", *, model: Model = TWO_LAYER
) -> tuple[jax.Array, AttackResult]:
    """Exact distance to a flip of x along the line spanned by a vector, both ways.

    Args:
        network: parameters of the model's.
        x: point (d,).
        direction: vector (d,).
        norm: of the distance.
        model: kind of the network.

    Returns:
        A lower bound a rounding error below the distance, and the flip that attains it; inf where nothing flips.
    """
    network, x, direction = prepared(network, x, direction[:, None], norm)
    move = unit(direction[:, 0], norm)[:, None]
    return shortest(model.local(network, x, move), move, jnp.array([[1.0], [-1.0]], x.dtype), norm)


def descent_distance(network: Any, x: jax.Array, direction: jax.Array, *, model: Model = TWO_LAYER) -> jax.Array:
    """Exact distance to a flip of x along ±direction, with the sign that lowers |N| to first order at x.

    Args:
        network: parameters of the model's.
        x: point (d,).
        direction: vector (d,), in whose lengths the distance is.
        model: kind of the network.

    Returns:
        (), a flip whatever the rounding; inf where that ray never flips x.
    """
    local = model.local(network, x, direction[:, None])
    _, slope = local.value_and_gradient(jnp.zeros(1, local.dtype))
    return local.crossing(jnp.where(slope > 0, -jnp.ones_like(slope), 1)).upper
