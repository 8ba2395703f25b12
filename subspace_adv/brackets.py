"""Distances to a flip from below and above: of every point, within each region, in each norm."""

import functools
import itertools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from subspace_adv import streams
from subspace_adv.attacks import AttackResult, further_attack, line_distance, minimal_norm_attack, shortest
from subspace_adv.contracts import Model
from subspace_adv.geometry import PARTS, REGIONS, Region, Subspace, region_basis
from subspace_adv.norms import NORMS, length

_DIFFERENCES = 2**22  # coordinates of differences of points that are held at a time
_LANES = 5  # points whose brackets are tightened side by side


class Effort(NamedTuple):
    """Of the attacks and certificates; static."""

    steps: int
    restarts: int
    attacks: tuple[str, ...]  # names in `ATTACKS`
    gap: float = 0.01  # a bracket whose ends differ by a smaller share is tightened no further


class Beginnings(NamedTuple):
    """What the attacks on points begin with, whatever the region and the norm."""

    keys: jax.Array  # typed PRNG keys (n,) of random starts
    toward: jax.Array  # (n, d), of every point the nearest other one that the network tells apart; itself if none is
    there: jax.Array  # (n,), which points there are: what is found at the others does not matter

    @classmethod
    def of(
        cls, network: Any, x: jax.Array, key: jax.Array, model: Model, there: jax.Array | None = None
    ) -> "Beginnings":
        """At points (n, d), by a typed PRNG key; without `there`, at all of them."""
        there = jnp.ones(len(x), bool) if there is None else there
        return cls(streams.attack_keys(key, len(x)), _nearest_of_other_sign(model.output(network, x), x, there), there)


class Bracket(NamedTuple):
    """Ends of an interval that holds the distance."""

    lower: jax.Array  # (n,), certified
    upper: jax.Array  # (n,), found by an attack; inf where none was


Brackets = dict[tuple[Region, str], Bracket]
"""By region and norm."""


def brackets(
    network: Any,
    x: jax.Array,
    subspace: Subspace,
    universal: AttackResult,
    begin: Beginnings,
    *,
    regions: tuple[Region, ...],
    norms: tuple[str, ...],
    effort: Effort,
    model: Model,
    beside: bool,
    tangent: Subspace | None,
) -> Brackets:
    """Distances of every point by region and norm (F9 in docs/theory.md).

    A perturbation found in one norm is one in the others too, at its length there; one in a region is one in each that
    holds it; and as no vector is longer in L∞ than in L2, nor in L2 than in L1, neither are the
    distances.

    Args:
        network: parameters of the model's.
        x: points (n, d).
        subspace: the data's subspace.
        universal: of every point, along a direction off the subspace, in L2.
        begin: what attacks begin with.
        regions: where perturbations may lie.
        norms: of the distances.
        effort: of the attacks.
        model: kind of the network.
        beside: whether points may lie beside a translate of the subspace that holds another one.
        tangent: of every point, to the manifold within the subspace, if that is curved.
    """
    ordered = sorted(norms, key=lambda norm: -NORMS[norm].exponent)  # lengths grow
    done: Brackets = {}
    for region in sorted(regions, key=REGIONS.index):
        basis = region_basis(subspace, region, tangent)
        holds_off = region == "off" or "off" in PARTS[region]
        share_region = region == "full" or (basis.ndim == 2 and not holds_off and not beside)
        look = functools.partial(bracket, network, x, basis, begin, effort=effort, model=model, shared=share_region)
        found = {norm: look(norm=norm) for norm in ordered}
        attacks = {norm: attack for norm, (_, attack) in found.items()}
        uppers = {norm: [attack.distance] for norm, attack in attacks.items()}
        for norm in ordered:
            others = [attacks[other] for other in ordered if other != norm]
            # The universal direction is a direction off the subspace, and in all regions that hold these.
            others += [universal] if holds_off else []
            uppers[norm] += [_length(other, norm) for other in others]
            if NORMS[norm].is_euclidean and holds_off:
                uppers[norm].append(universal.distance)
            uppers[norm] += [done[part, norm].upper for part in PARTS[region] if (part, norm) in done]
        lowers = itertools.accumulate((found[norm][0] for norm in ordered), jnp.maximum)
        least = (functools.reduce(jnp.minimum, uppers[norm]) for norm in reversed(ordered))
        least = reversed(list(itertools.accumulate(least, jnp.minimum)))
        for norm, lower, upper in zip(ordered, lowers, least, strict=True):
            done[region, norm] = Bracket(lower, upper)
    return done


def _length(attack: AttackResult, norm: str) -> jax.Array:
    """Length of perturbations (n, d) in a norm, rounded up; inf where the attack failed."""
    return jnp.where(attack.is_adv, length(attack.delta, norm) * (1 + 2.0**-40), jnp.inf)


def is_exact(dimension: int, model: Model | None) -> bool:
    """Whether both ends of a bracket in a region of so many dimensions are the distance, rounding apart.

    Args:
        dimension: of the region.
        model: whose rays are crossed exactly; None of one that is not known here, as a class of the user's own.
    """
    return dimension <= 1 or (dimension == 2 and model is not None and model.plane is not None)


def exactness(dimensions: Iterable[int], models: Iterable[Model | None]) -> str:
    """What to add to the meaning of distances in regions of some dimensions, by models whose crossings are exact."""
    pairs = itertools.product(dimensions, models)
    return "; exact, rounding apart" if all(is_exact(dimension, model) for dimension, model in pairs) else ""


def bracket(
    network: Any,
    x: jax.Array,
    basis: jax.Array,
    begin: Beginnings,
    *,
    norm: str,
    effort: Effort,
    model: Model,
    shared: bool = False,
) -> tuple[jax.Array, AttackResult]:
    """Distances to a flip of every point within a region, from below and above.

    A region that is a line is crossed exactly, both ways, and a plane too where the model knows how. In a larger one
    the model's certificate bounds the distance from below and the best of the attacks from above. No perturbation in a
    region of dimension 0 flips.

    Args:
        network: parameters of the model's.
        x: points (n, d).
        basis: the points' frames, (d, r) for all of them or (n, d, r), one a point: orthonormal; of coordinate axes for
            norms other than L2, or a single column.
        begin: what attacks begin with.
        norm: of the distances.
        effort: of the attacks.
        model: kind of the network.
        shared: whether each point lies in the region of every other one.

    Returns:
        The lower bounds (n,) and the attacks' results, with a leading axis over points.
    """
    dimension, own = basis.shape[-1], 0 if basis.ndim == 3 else None
    if dimension == 0:
        unbounded = jnp.full(len(x), jnp.inf, x.dtype)
        return unbounded, AttackResult(jnp.zeros_like(x), unbounded, jnp.zeros(len(x), bool))
    if dimension == 1:
        along = functools.partial(line_distance, norm=norm, model=model)
        return jax.vmap(along, in_axes=(None, 0, own))(network, x, basis[..., 0])
    if model.kernel is not None and model.kernel.measures(norm, x, effort.attacks):
        return _by_kernel(network, x, basis, begin, norm, effort, model)
    if is_exact(dimension, model):
        return _in_plane(network, x, basis, norm, model, shared)

    def attacked(point: jax.Array, basis: jax.Array, toward: jax.Array, key: jax.Array) -> AttackResult:
        asked = {"toward": toward, "attacks": effort.attacks}
        return minimal_norm_attack(network, point, basis, key=key, **asked, **search)

    def own_basis(i: jax.Array) -> jax.Array:
        return basis if own is None else basis[i]

    search = {"norm": norm, "steps": effort.steps, "restarts": effort.restarts, "model": model}
    attack = jax.vmap(attacked, in_axes=(0, own, 0, 0))(x, basis, begin.toward, begin.keys)
    attack = _where(
        ~attack.is_adv & begin.there,
        attack,
        lambda i: further_attack(network, x[i], own_basis(i), key=begin.keys[i], **search),
    )
    lower = jnp.zeros_like(attack.distance)
    if model.certificate is not None:
        certified = functools.partial(model.certificate, norm=norm)
        bound = jax.vmap(lambda point, basis, upper: certified(network, point, basis, upper=upper), (0, own, 0))
        lower = bound(x, basis, attack.distance)
    finer = model.finer_certificate
    if finer is None:
        return lower, attack
    tightened = _where(
        attack.distance > lower * (1 + effort.gap),
        lower,
        lambda i: finer(network, x[i], own_basis(i), norm=norm, upper=attack.distance[i], known=lower[i]),
    )
    return jnp.maximum(lower, tightened), attack


def _by_kernel(
    network: Any, x: jax.Array, basis: jax.Array, begin: Beginnings, norm: str, effort: Effort, model: Model
) -> tuple[jax.Array, AttackResult]:
    """Arguments and results as of `bracket`."""
    assert model.kernel
    effort_of = {"steps": effort.steps, "restarts": effort.restarts, "gap": effort.gap}
    points = jnp.where(begin.there[:, None], x, jnp.nan)  # at which the kernel looks for nothing
    lower, distance, delta = model.kernel.bracket(
        network, points, basis, begin.keys, begin.toward, norm=norm, **effort_of
    )
    return lower, AttackResult(delta, distance, jnp.isfinite(distance))


def _where(wanted: jax.Array, known: Any, found: Callable[[jax.Array], Any]) -> Any:
    """What is known of points, (n, …), but where more is wanted, what is found then: of these alone, a few at a time.

    Args:
        wanted: (n,).
        known: a pytree of arrays with a leading axis over points.
        found: of a point by its index, a pytree like one point's of what is known.
    """
    points = len(wanted)
    lanes = min(points, _LANES)
    rank = jnp.cumsum(wanted, dtype=jnp.int32)

    def step(carry: tuple[jax.Array, Any]) -> tuple[jax.Array, Any]:
        done, known = carry
        places = done + 1 + jnp.arange(lanes, dtype=jnp.int32)
        index = jnp.where(places <= rank[-1], jnp.searchsorted(rank, places), points)  # what is beyond is dropped
        new = jax.vmap(found)(jnp.minimum(index, points - 1))
        return done + lanes, jax.tree.map(lambda old, new: old.at[index].set(new, mode="drop"), known, new)

    _, known = jax.lax.while_loop(lambda carry: carry[0] < rank[-1], step, (jnp.zeros_like(rank[-1]), known))
    return known


def _in_plane(
    network: Any, x: jax.Array, basis: jax.Array, norm: str, model: Model, shared: bool
) -> tuple[jax.Array, AttackResult]:
    """Arguments and results as of `bracket`: exact distances."""
    plane = model.plane
    assert plane is not None

    def together(points: jax.Array, basis: jax.Array) -> tuple[jax.Array, AttackResult]:
        lower, directions = plane(network, points, basis, norm=norm)

        def along(point: jax.Array, directions: jax.Array) -> AttackResult:
            return shortest(model.local(network, point, basis), basis, directions, norm)[1]

        return lower, jax.vmap(along)(points, directions)

    if shared and basis.ndim == 2:
        return together(x, basis)
    bases = jnp.broadcast_to(basis, (len(x), *basis.shape[-2:]))
    each = jax.lax.map(lambda own: together(*own), (x[:, None], bases))
    return jax.tree.map(lambda a: a[:, 0], each)


def _nearest_of_other_sign(outputs: jax.Array, x: jax.Array, there: jax.Array) -> jax.Array:
    """For every point (n, d), the nearest one that is there and has an output (n,) of the other sign; else itself."""
    positive = outputs >= 0

    def nearest(i: jax.Array) -> jax.Array:
        gap = jnp.sum((x[i][None] - x) ** 2, axis=-1)
        gap = jnp.where((positive == positive[i]) | ~there, jnp.inf, gap)
        closest = jnp.argmin(gap)
        return jnp.where(jnp.isfinite(gap[closest]), x[closest], x[i])

    some = max(_DIFFERENCES // max(x.size, 1), 1)
    return jax.lax.map(nearest, jnp.arange(len(x), dtype=jnp.int32), batch_size=some)
