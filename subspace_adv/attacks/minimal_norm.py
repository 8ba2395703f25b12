"""The best of the searching attacks."""

import jax
import jax.numpy as jnp

from subspace_adv.attacks.crossing import AttackResult
from subspace_adv.attacks.fab import fab_attack
from subspace_adv.attacks.fmn import fmn_attack
from subspace_adv.attacks.norms import Norm
from subspace_adv.network import Network


def minimal_norm_attack(
    network: Network,
    x: jax.Array,
    region: jax.Array,
    *,
    norm: Norm = "l2",
    steps: int = 40,
    restarts: int = 8,
    key: jax.Array,
    toward: jax.Array | None = None,
) -> AttackResult:
    """The shorter of what `fmn_attack` and `fab_attack` find; arguments as in `fmn_attack`."""
    fmn = fmn_attack(network, x, region, norm=norm, steps=steps, restarts=restarts, key=key, toward=toward)
    fab = fab_attack(network, x, region, norm=norm, steps=steps)
    return jax.tree.map(lambda a, b: jnp.where(fab.distance < fmn.distance, b, a), fmn, fab)
