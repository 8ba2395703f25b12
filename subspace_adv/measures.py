"""What is recorded of a trained network: one function from a network to named arrays, and their registry."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import random

from subspace_adv.attacks import (
    Norm,
    descent_distance,
    line_distance,
    minimal_norm_attack,
    random_direction,
    universal_attack,
)
from subspace_adv.certificates import kink_certificate
from subspace_adv.data import HELDOUT
from subspace_adv.network import Network, input_gradient, output
from subspace_adv.subspace import Region, Subspace, region_basis
from subspace_adv.training import Loss, loss_value

_DIRECTION_STREAM = 2**32 - 1  # apart from the attacks' keys, which are split off one a point


class Recording(NamedTuple):
    """What to record: static under jit."""

    regions: tuple[Region, ...]
    norms: tuple[Norm, ...]
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


def variables(regions: tuple[Region, ...], norms: tuple[Norm, ...]) -> dict[str, Variable]:
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
) -> dict[str, jax.Array]:
    """Record one trained network, in the dtype of its arguments.

    Args:
        network: weight (m, d).
        x: training points (n, d).
        y: labels (n,), −1 or +1.
        subspace: the data's subspace.
        heldout: further points of the subspace (h, d).
        key: typed PRNG key of the attacks' random starts and of the random direction.
        recording: regions, norms, attack effort; static.

    Returns:
        The arrays named by `variables`, () per cell, (n,) per point and (h,) per held-out point.
    """
    outputs = output(network, x)
    gradients = input_gradient(network, x)
    margins = y * outputs
    wrong = margins <= 0

    def distance(values: jax.Array) -> jax.Array:
        return jnp.where(wrong, 0, values)

    drawn = random_direction(random.fold_in(key, _DIRECTION_STREAM), subspace.complement)
    points = jnp.concatenate([x, heldout])
    universal = jax.vmap(lambda point: universal_attack(network, point, subspace.complement).distance)(points)
    along_drawn = jax.vmap(lambda point: descent_distance(network, point, drawn))(points)
    universal, universal_heldout = jnp.split(universal, [len(x)])
    along_drawn, drawn_heldout = jnp.split(along_drawn, [len(x)])
    record = {
        "loss": jnp.mean(loss_value(margins, recording.loss)),
        "margin": jnp.min(margins),
        "output": outputs,
        "gradient_norm_off": jnp.linalg.norm(gradients @ subspace.complement, axis=1),
        "gradient_norm_on": jnp.linalg.norm(gradients @ subspace.basis, axis=1),
        "distance_universal": distance(universal),
        "distance_random": distance(along_drawn),
        "distance_universal_heldout": universal_heldout,
        "distance_random_heldout": drawn_heldout,
    }
    least = {"off": universal}
    # A perturbation off or on the subspace is one in the full space too, so "full" comes last.
    for region in sorted(recording.regions, key=("off", "on", "full").index):
        basis = region_basis(subspace, region)
        lower, upper = bracket(network, x, basis, key, recording)
        upper = jnp.minimum(upper, least.get(region, jnp.inf))
        if region == "full":
            upper = jnp.minimum(upper, jnp.minimum(least["off"], least.get("on", jnp.inf)))
        least[region] = upper
        record[f"distance_{region}_l2_lower"] = distance(lower)
        record[f"distance_{region}_l2_upper"] = distance(upper)
    return record


def bracket(
    network: Network, x: jax.Array, region: jax.Array, key: jax.Array, recording: Recording
) -> tuple[jax.Array, jax.Array]:
    """L2 distances to a flip of every point within a region, from below and above.

    A region that is a line is crossed exactly, both ways; in a larger one the kink certificate bounds the
    distance from below and a minimal-norm attack from above. No perturbation in a region of dimension 0 flips.

    Returns:
        lower (n,), upper (n,).
    """
    dimension = region.shape[1]
    if dimension == 0:
        return jnp.full(len(x), jnp.inf, x.dtype), jnp.full(len(x), jnp.inf, x.dtype)
    if dimension == 1:
        crossing = jax.vmap(lambda point: line_distance(network, point, region[:, 0]))(x)
        return crossing.lower, crossing.upper
    keys = random.split(key, len(x))
    attack = jax.vmap(
        lambda point, key: minimal_norm_attack(
            network, point, region, steps=recording.attack_steps, restarts=recording.restarts, key=key
        )
    )
    lower = jax.vmap(lambda point: kink_certificate(network, point, region))(x)
    return lower, attack(x, keys).distance
