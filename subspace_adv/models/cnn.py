"""Architecture "cnn": convolutional networks on signals and square images."""

import functools

from subspace_adv.contracts import Architecture, Design, Model
from subspace_adv.flax_layers import Layers
from subspace_adv.models import layers


@functools.lru_cache(maxsize=256)
def model(design: Design) -> Model:
    """The networks of a design."""
    return layers.model(design.depth, design.convolution, design.convolution.fan_in, design.parametrization)


CNN = Architecture(
    model,
    reads=(
        *("init", "trainable", "parametrization", "width", "depth"),
        *("kernel", "stride", "mixing", "padding", "layout"),
    ),
    needs_signals=True,
    impossible=lambda design: design.convolution.impossible(design.depth),
    module=lambda design: Layers(design.width, design.depth, design.convolution),
)
