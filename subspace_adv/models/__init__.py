"""Kinds of networks: what each tells attacks and measures of itself, by the contracts in `contracts`."""

from subspace_adv.contracts import Model
from subspace_adv.models.certificates import certificate, crown_certificate, kink_certificate
from subspace_adv.models.two_layer import TwoLayerLocal, first_crossing, local, rounding_allowance, universal_direction
from subspace_adv.network import output

TWO_LAYER = Model(output=output, local=local, certificate=certificate, universal_direction=universal_direction)
"""Two-layer ReLU networks."""

__all__ = [
    "TWO_LAYER",
    "TwoLayerLocal",
    "crown_certificate",
    "first_crossing",
    "kink_certificate",
    "local",
    "rounding_allowance",
    "universal_direction",
]
