"""Kinds of networks, a row each of `MODELS`: what each tells training, attacks and measures of itself."""

import jax.numpy as jnp

from subspace_adv.contracts import Model
from subspace_adv.initialization import init_network
from subspace_adv.models import autodiff, fused
from subspace_adv.models.boundary import boundary_pieces
from subspace_adv.models.certificates import certificate, crown_certificate, finer_certificate, kink_certificate
from subspace_adv.models.planes import plane_distances
from subspace_adv.models.two_layer import TwoLayerLocal, first_crossing, local, rounding_allowance
from subspace_adv.models.two_layer_training import FORM, KERNEL, step_flops, trained_fields
from subspace_adv.network import input_gradient, rest
from subspace_adv.rows import Rows

TWO_LAYER = Model(
    init=init_network,
    first=lambda network: (network.weight, network.bias),
    with_first_weight=lambda network, weight: network._replace(weight=weight),
    rest=rest,
    trained=trained_fields,
    universal_weights=lambda network: jnp.sign(network.head),
    input_gradient=input_gradient,
    local=local,
    form=FORM,
    step_flops=step_flops,
    certificate=certificate,
    finer_certificate=finer_certificate,
    plane=plane_distances,
    boundary=boundary_pieces,
    kernel=KERNEL,
)
"""Two-layer ReLU networks."""


def _check(name: str, row: object) -> None:
    if not isinstance(row, Model):
        raise TypeError(f"architecture {name!r}: must be a Model, not {type(row).__name__}")


MODELS: Rows[Model] = Rows("architecture", {"mlp": TWO_LAYER}, _check)
"""What `[network] architecture` may be: "mlp", a multilayer perceptron, is the two-layer network."""

__all__ = [
    "MODELS",
    "TWO_LAYER",
    "TwoLayerLocal",
    "autodiff",
    "crown_certificate",
    "first_crossing",
    "fused",
    "kink_certificate",
    "local",
    "rounding_allowance",
    "trained_fields",
]
