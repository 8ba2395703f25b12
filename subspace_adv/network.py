"""The two-layer ReLU network N(x) = Σᵢ uᵢ·relu(wᵢ·x + bᵢ) + c: its pytree, initial laws and evaluation."""

import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import random

Init = Literal["theory", "paper-code", "torch"]

_ABOVE_MINUS_ONE = float(np.nextafter(np.float32(-1), np.float32(0)))  # keeps the quantile transform finite


class Network(NamedTuple):
    """Parameters of one network of width m on R^d; leading axes batch networks."""

    weight: jax.Array  # (m, d), rows wᵢ
    bias: jax.Array  # (m,), bᵢ
    head: jax.Array  # (m,), uᵢ
    head_bias: jax.Array  # (), c


def init_network(
    key: jax.Array, width: jax.Array, init_scale: jax.Array, *, law: Init, padded_width: int, ambient_dim: int
) -> Network:
    """Draw a network of `width` neurons inside arrays of `padded_width`.

    Each neuron draws from a key of its own, so a network of width m is the first m neurons of a wider draw (up
    to the width-dependent scale of the head), and every draw is a fixed base draw times its scale: networks of
    one seed are paired across widths and scales (F11, F12 in docs/theory.md). Neurons past `width` are zero,
    and stay so (F11).

    Args:
        key: typed PRNG key.
        width: number m of neurons, at most `padded_width`; int32 scalar.
        init_scale: factor on the weights of both layers (of the first in "theory"), never on biases.
        law: "theory": w ~ N(0, I/d), u = ±1/√m, no biases; "paper-code": w ~ N(0, I/d), u ~ N(0, 1/m), biases
            uniform ±1/√fan_in; "torch": all uniform ±1/√fan_in.
        padded_width: length of the neuron axis.
        ambient_dim: d.

    Returns:
        Float32 network with weight (padded_width, d).
    """
    neurons = jnp.arange(padded_width + 1, dtype=jnp.int32)  # the last draw is the head bias's
    keys = jax.vmap(lambda i: random.fold_in(key, i))(jnp.where(neurons == padded_width, 2**31 - 1, neurons))
    draw = jax.vmap(lambda k: random.uniform(k, (ambient_dim + 2,), jnp.float32, _ABOVE_MINUS_ONE, 1.0))(keys)
    fan_in, fan_hidden = ambient_dim**-0.5, jax.lax.rsqrt(width.astype(jnp.float32))

    def weights(uniform: jax.Array) -> jax.Array:
        # The quantile transform, as jax.random.normal does it; the normal and uniform laws share base draws.
        return uniform if law == "torch" else math.sqrt(2) * jax.lax.erf_inv(uniform)

    weight = init_scale * fan_in * weights(draw[:-1, :ambient_dim])
    bias, head, head_bias = fan_in * draw[:-1, ambient_dim], draw[:-1, ambient_dim + 1], draw[-1, 0]
    if law == "theory":
        bias, head, head_bias = (
            jnp.zeros_like(bias),
            jnp.where(head < 0, -1.0, 1.0),
            jnp.zeros_like(head_bias),
        )
    else:
        head = init_scale * weights(head)
    real = neurons[:-1] < width
    return Network(
        jnp.where(real[:, None], weight, 0.0),
        jnp.where(real, bias, 0.0),
        jnp.where(real, fan_hidden * head, 0.0),
        fan_hidden * head_bias,
    )


def preactivations(network: Network, x: jax.Array) -> jax.Array:
    """Inputs w·x + b of the ReLUs, (..., m), for x (..., d)."""
    inputs = x @ network.weight.T
    return inputs + jnp.broadcast_to(network.bias, inputs.shape)


def output(network: Network, x: jax.Array) -> jax.Array:
    """Network outputs N(x), (...), for x (..., d)."""
    return jax.nn.relu(preactivations(network, x)) @ network.head + network.head_bias


def input_gradient(network: Network, x: jax.Array) -> jax.Array:
    """Gradient of N at x, (..., d), for x (..., d); a ReLU at its kink counts as off."""
    active = preactivations(network, x) > 0
    return active.astype(x.dtype) @ (network.head[:, None] * network.weight)


def padded_width(width: int) -> int:
    """Least of 2^k, 1.25·2^k and 1.5625·2^k (rounded up) that holds `width` neurons.

    Networks are padded with inert neurons (F11 in docs/theory.md) up to this width, so that neighbouring widths
    share a compiled program. It depends on the width alone, so the other cells of a sweep cannot change a
    cell's rounding. At most 28 % is padding; 25, 50, 100, 200, 400, 800 and powers of two have none.
    """
    power = 1
    while 2 * power <= width:
        power *= 2
    steps = (power, -(-5 * power // 4), -(-25 * power // 16), 2 * power)
    return next(step for step in steps if step >= width)
