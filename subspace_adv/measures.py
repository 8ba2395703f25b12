"""What is recorded of a trained network: one function from a network to named arrays, and their registry."""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import random

from subspace_adv.attacks import (
    AttackResult,
    descent_distance,
    line_distance,
    minimal_norm_attack,
    random_direction,
    universal_attack,
)
from subspace_adv.data import HELDOUT
from subspace_adv.models import crown_certificate, kink_certificate
from subspace_adv.network import Network, input_gradient, output, preactivations
from subspace_adv.norms import NORMS, length
from subspace_adv.subspace import Region, Subspace, region_basis
from subspace_adv.training import Loss, loss_value

_DIRECTION_STREAM = 2**32 - 1  # apart from the attacks' keys, which are split off one a point


class Recording(NamedTuple):
    """What to record: static under jit."""

    regions: tuple[Region, ...]
    norms: tuple[str, ...]
    attack_steps: int
    restarts: int
    loss: Loss


class Variable(NamedTuple):
    """Meaning of a recorded variable."""

    per_point: bool
    unit: str
    meaning: str
    per_heldout: bool = False

    def values(self, points: int) -> int:
        """How many a network has."""
        return HELDOUT if self.per_heldout else points if self.per_point else 1


_REGION_WORDS = {
    "off": "orthogonal to the data's subspace",
    "on": "within the data's subspace",
    "full": "anywhere",
}


def variables(regions: tuple[Region, ...], norms: tuple[str, ...]) -> dict[str, Variable]:
    """Registry of what `measure` returns, by name."""
    table = {
        "loss": Variable(False, "nat", "training loss, averaged over the points, without the weight penalty"),
        "margin": Variable(False, "output", "least signed output y·N(x) over the training points"),
        "output": Variable(True, "output", "network output N(x)"),
        "gradient_norm_off": Variable(
            True, "output per input length", "L2 norm of the input gradient's part orthogonal to the subspace"
        ),
        "gradient_norm_on": Variable(
            True, "output per input length", "L2 norm of the input gradient's part within the subspace"
        ),
        "head_norm_active": Variable(True, "1", "L2 norm of the output weights of the neurons active at the point"),
        "head_sum_active": Variable(
            True, "1", "sum of the sizes of the output weights of the neurons active at the point"
        ),
        "distance_universal": Variable(
            True,
            "input length",
            "L2 distance to a flip along the one direction off the subspace that serves every point, exact; "
            "0 where misclassified, inf where that direction never flips the point",
        ),
        "distance_random": Variable(
            True,
            "input length",
            "L2 distance to a flip along one random direction off the subspace, or against it, whichever lowers "
            "|N| to first order, exact; 0 where misclassified, inf where it never flips the point",
        ),
        "distance_universal_heldout": Variable(
            False,
            "input length",
            "as distance_universal, of the network's own prediction at held-out points",
            per_heldout=True,
        ),
        "distance_random_heldout": Variable(
            False,
            "input length",
            "as distance_random, of the network's own prediction at held-out points",
            per_heldout=True,
        ),
    }
    for region in regions:
        for norm in norms:
            where = f"{norm.upper()} distance to a flip by a perturbation {_REGION_WORDS[region]}"
            misses = "0 where misclassified"
            table[f"distance_{region}_{norm}_upper"] = Variable(
                True, "input length", f"{where}: least found by an attack; {misses}, inf where none was found"
            )
            table[f"distance_{region}_{norm}_lower"] = Variable(
                True, "input length", f"{where}: certified, none is smaller; {misses}"
            )
    return table


def measure(
    network: Network,
    x: jax.Array,
    y: jax.Array,
    subspace: Subspace,
    heldout: jax.Array,
    key: jax.Array,
    *,
    recording: Recording,
    unseen: int = 0,
) -> dict[str, jax.Array]:
    """Record one trained network, in the dtype of its arguments.

    Coordinates may be those of R^d or, for L2 alone, canonical ones (F6 in docs/theory.md).

    Args:
        network: weight (m, d).
        x: training points (n, d).
        y: labels (n,), −1 or +1.
        subspace: the data's subspace.
        heldout: further points of the subspace (h, d).
        key: typed PRNG key of the attacks' random starts and of the random direction.
        recording: regions, norms, attack effort; static.
        unseen: dimensions off the subspace that the coordinates leave out, as no weight has a part there; static.

    Returns:
        The arrays named by `variables`, () per cell, (n,) per point and (h,) per held-out point.
    """
    outputs = output(network, x)
    active_heads = jnp.where(preactivations(network, x) > 0, jnp.abs(network.head)[None, :], 0)
    gradients = input_gradient(network, x)
    margins = y * outputs
    wrong = margins <= 0

    def distance(values: jax.Array) -> jax.Array:
        return jnp.where(wrong, 0, values)

    drawn = random_direction(random.fold_in(key, _DIRECTION_STREAM), subspace.complement, unseen)
    points = jnp.concatenate([x, heldout])
    universal = jax.vmap(lambda point: universal_attack(network, point, subspace.complement))(points)
    along_drawn = jax.vmap(lambda point: descent_distance(network, point, drawn))(points)
    along_drawn, drawn_heldout = jnp.split(along_drawn, [len(x)])
    universal_heldout = universal.distance[len(x) :]
    universal = jax.tree.map(lambda a: a[: len(x)], universal)
    record = {
        "loss": jnp.mean(loss_value(margins, recording.loss)),
        "margin": jnp.min(margins),
        "output": outputs,
        "gradient_norm_off": jnp.linalg.norm(gradients @ subspace.complement, axis=1),
        "gradient_norm_on": jnp.linalg.norm(gradients @ subspace.basis, axis=1),
        "head_norm_active": jnp.linalg.norm(active_heads, axis=1),
        "head_sum_active": jnp.sum(active_heads, axis=1),
        "distance_universal": distance(universal.distance),
        "distance_random": distance(along_drawn),
        "distance_universal_heldout": universal_heldout,
        "distance_random_heldout": drawn_heldout,
    }
    for (region, norm), (lower, upper) in _brackets(network, x, subspace, universal, key, recording).items():
        record[f"distance_{region}_{norm}_lower"] = distance(lower)
        record[f"distance_{region}_{norm}_upper"] = distance(upper)
    return record


def _brackets(
    network: Network, x: jax.Array, subspace: Subspace, universal: AttackResult, key: jax.Array, recording: Recording
) -> dict[tuple[Region, str], tuple[jax.Array, jax.Array]]:
    """Lower and upper distances (n,) of every point by region and norm.

    A perturbation found in one norm is one in the others too, at its length there; one off or on the subspace is
    one in the full space; and as no vector is longer in L∞ than in L2, nor in L2 than in L1, neither are the
    distances.
    """
    norms = sorted(recording.norms, key=lambda norm: -NORMS[norm].exponent)  # lengths grow
    brackets: dict[tuple[Region, str], tuple[jax.Array, jax.Array]] = {}
    for region in sorted(recording.regions, key=("off", "on", "full").index):
        basis = region_basis(subspace, region)
        found = {norm: bracket(network, x, basis, key, recording, norm) for norm in norms}
        attacks = {norm: attack for norm, (_, attack) in found.items()}
        uppers = {norm: [attack.distance] for norm, attack in attacks.items()}
        for norm in norms:
            others = [attacks[other] for other in norms if other != norm]
            # The universal direction is a direction off the subspace, for the full space as well.
            others += [universal] if region != "on" else []
            uppers[norm] += [_length(other, norm) for other in others]
            if NORMS[norm].is_euclidean and region != "on":
                uppers[norm].append(universal.distance)
            if region == "full":
                uppers[norm] += [brackets[part, norm][1] for part in ("off", "on") if (part, norm) in brackets]
        lowers = itertools.accumulate((found[norm][0] for norm in norms), jnp.maximum)
        least = (functools.reduce(jnp.minimum, uppers[norm]) for norm in reversed(norms))
        least = reversed(list(itertools.accumulate(least, jnp.minimum)))
        for norm, lower, upper in zip(norms, lowers, least, strict=True):
            brackets[region, norm] = lower, upper
    return brackets


def _length(attack: AttackResult, norm: str) -> jax.Array:
    """Length of perturbations (n, d) in a norm, rounded up; inf where the attack failed."""
    return jnp.where(attack.is_adv, length(attack.delta, norm) * (1 + 2.0**-40), jnp.inf)


def bracket(
    network: Network, x: jax.Array, region: jax.Array, key: jax.Array, recording: Recording, norm: str
) -> tuple[jax.Array, AttackResult]:
    """Distances to a flip of every point within a region, from below and above.

    A region that is a line is crossed exactly, both ways; in a larger one the better of two certificates bounds
    the distance from below and the best of the attacks from above. No perturbation in a region of dimension 0
    flips.

    Args:
        network: weight (m, d).
        x: points (n, d).
        region: basis (d, r), orthonormal; of coordinate axes for norms other than L2, or a single column.
        key: typed PRNG key of the attacks' random starts.
        recording: the attacks' effort.
        norm: of the distances.

    Returns:
        The lower bounds (n,) and the attacks' results, with a leading axis over points.
    """
    dimension = region.shape[1]
    if dimension == 0:
        unbounded = jnp.full(len(x), jnp.inf, x.dtype)
        return unbounded, AttackResult(jnp.zeros_like(x), unbounded, jnp.zeros(len(x), bool))
    if dimension == 1:
        crossing = jax.vmap(lambda point: line_distance(network, point, region[:, 0], norm))
        return crossing(x)
    effort = {"norm": norm, "steps": recording.attack_steps, "restarts": recording.restarts}

    def one(point: jax.Array, toward: jax.Array, key: jax.Array) -> tuple[jax.Array, AttackResult]:
        attack = minimal_norm_attack(network, point, region, key=key, toward=toward, **effort)
        kink = kink_certificate(network, point, region, norm=norm)
        crown = crown_certificate(network, point, region, norm=norm, upper=attack.distance)
        return jnp.maximum(kink, crown), attack

    return jax.vmap(one)(x, _nearest_of_other_sign(network, x), random.split(key, len(x)))


def _nearest_of_other_sign(network: Network, x: jax.Array) -> jax.Array:
    """For every point (n, d), the nearest one that the network classifies otherwise; itself where there is none."""
    positive = output(network, x) >= 0
    gap = jnp.sum((x[:, None] - x[None]) ** 2, axis=-1)
    gap = jnp.where(positive[:, None] == positive[None], jnp.inf, gap)
    nearest = jnp.argmin(gap, axis=1)
    return jnp.where(jnp.isfinite(jnp.min(gap, axis=1))[:, None], x[nearest], x)
