"""A model that the package does not have: two hidden layers, all but its definition by automatic differentiation."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import random

from subspace_adv import streams
from subspace_adv.contracts import Architecture
from subspace_adv.initialization import Law, init_network
from subspace_adv.models import autodiff


class Deep(NamedTuple):
    """Parameters of one network of width m on R^d."""

    weight: Any  # (m, d)
    bias: Any  # (m,)
    hidden: Any  # (m, m)
    head: Any  # (m,)


def _init(key: jax.Array, width: jax.Array, init_scale: jax.Array, *, law: Law, basis: Any = None) -> Deep:
    two_layers = init_network(key, width, init_scale, law=law, basis=basis)
    neurons = jnp.arange(law.padded_width, dtype=jnp.int32)
    keys = streams.neuron_keys(random.fold_in(key, 2**31 - 3), neurons)
    hidden = jax.vmap(lambda key: random.normal(key, neurons.shape, jnp.float32))(keys)
    real = neurons < width
    hidden = jnp.where(real[:, None] & real[None], jax.lax.rsqrt(width.astype(jnp.float32)) * hidden, 0)
    return Deep(two_layers.weight, two_layers.bias, hidden, two_layers.head)


def rest(params: Deep, z: jax.Array) -> jax.Array:
    """The output where the first layer's preactivations are z (..., m)."""
    return jax.nn.relu(jax.nn.relu(z) @ params.hidden.T) @ params.head


DEEP = autodiff.model(
    init=_init,
    first=lambda params: (params.weight, params.bias),
    with_first_weight=lambda params, weight: params._replace(weight=weight),
    rest=rest,
    trained=lambda init, trainable: ("weight", "bias", "hidden"),
)
ROW = Architecture(lambda design: DEEP)
