"""Architecture "mlp": multilayer perceptrons; of one hidden layer, the two-layer network with its kernel."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from subspace_adv.contracts import Architecture, Design, Model
from subspace_adv.flax_layers import Layers
from subspace_adv.initialization import init_network
from subspace_adv.models import layers
from subspace_adv.models.boundary import boundary_pieces
from subspace_adv.models.certificates import certificate, finer_certificate
from subspace_adv.models.planes import plane_distances
from subspace_adv.models.two_layer import local
from subspace_adv.models.two_layer_training import FORM, KERNEL, step_flops, trained_fields
from subspace_adv.network import Network, input_gradient, rest
from subspace_adv.parametrizations import PARAMETRIZATIONS, Parametrization
from subspace_adv.receptive_fields import DENSE

TWO_LAYER = Model(
    init=init_network,
    first=lambda network: (network.weight, network.bias),
    with_first_weight=lambda network, weight: network._replace(weight=weight),
    rest=rest,
    trained=trained_fields,
    universal_weights=lambda network, sensitivities: jnp.sign(network.head),
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


@functools.lru_cache(maxsize=256)
def model(design: Design) -> Model:
    """The networks of a design."""
    if design.depth > 1:
        return layers.model(design.depth, DENSE, design.ambient_dim, design.parametrization)
    if design.parametrization == "standard":
        return TWO_LAYER
    rates = functools.partial(_two_layer_rates, PARAMETRIZATIONS[design.parametrization], design.ambient_dim)
    return dataclasses.replace(TWO_LAYER, rates=rates)


def _two_layer_rates(parametrization: Parametrization, fan_in: int, width: jax.Array) -> dict[str, jax.Array]:
    m = width.astype(jnp.float32)
    first, head = parametrization.first(fan_in, m), parametrization.head(m, m)
    rates = Network(first.weight, first.bias, head.weight, head.bias)  # pyright: ignore[reportArgumentType]
    return {name: jnp.asarray(rate, jnp.float32) for name, rate in rates._asdict().items()}


def _module(design: Design) -> Layers | None:
    return Layers(design.width, design.depth, DENSE) if design.depth > 1 else None


MLP = Architecture(model, reads=("init", "trainable", "parametrization", "width", "depth"), module=_module)
