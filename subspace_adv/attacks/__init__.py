"""Perturbations that flip a point, in L2, L∞ and L1.

An attack is one pure function of one network and one point,
`(network, x, region, *, norm, steps, restarts, key) → AttackResult`. A region is a basis (d, r) of the directions
allowed. Attacks flip the network's own prediction, sign N(x), and work on the signed output s·N, s = sign N(x),
never on a loss, whose gradient vanishes at large outputs. All end at the exact crossing of a ray.
"""

from subspace_adv.attacks.crossing import (
    AttackResult,
    Crossing,
    Slice,
    around,
    first_crossing,
    line_distance,
    prepared,
    rounding_allowance,
)
from subspace_adv.attacks.fab import fab_attack
from subspace_adv.attacks.fmn import fmn_attack
from subspace_adv.attacks.minimal_norm import minimal_norm_attack
from subspace_adv.attacks.universal import descent_distance, random_direction, universal_attack, universal_direction

__all__ = [
    "AttackResult",
    "Crossing",
    "Slice",
    "around",
    "descent_distance",
    "fab_attack",
    "first_crossing",
    "fmn_attack",
    "line_distance",
    "minimal_norm_attack",
    "prepared",
    "random_direction",
    "rounding_allowance",
    "universal_attack",
    "universal_direction",
]
