"""The two-layer ReLU network N(x) = Σᵢ uᵢ·relu(wᵢ·x + bᵢ) + c: its pytree and its evaluation."""

from typing import NamedTuple

import jax

from subspace_adv.contracts import affine


class Network(NamedTuple):
    """Parameters of one network of width m on R^d; leading axes batch networks."""

    weight: jax.Array  # (m, d), rows wᵢ
    bias: jax.Array  # (m,), bᵢ
    head: jax.Array  # (m,), uᵢ
    head_bias: jax.Array  # (), c


def preactivations(network: Network, x: jax.Array) -> jax.Array:
    """Inputs w·x + b of the ReLUs, (..., m), for x (..., d)."""
    return affine(network.weight, network.bias, x)


def output(network: Network, x: jax.Array) -> jax.Array:
    """Network outputs N(x), (...), for x (..., d)."""
    return rest(network, preactivations(network, x))


def rest(network: Network, z: jax.Array) -> jax.Array:
    """Outputs (...) where the preactivations are z (..., m)."""
    return jax.nn.relu(z) @ network.head + network.head_bias


def input_gradient(network: Network, x: jax.Array) -> jax.Array:
    """Gradient of N at x, (..., d), for x (..., d); a ReLU at its kink counts as off."""
    active = preactivations(network, x) > 0
    return active.astype(x.dtype) @ (network.head[:, None] * network.weight)


def padded_size(size: int) -> int:
    """Least of 2^k, 1.25·2^k and 1.5625·2^k (rounded up) that holds a number of neurons or of points.

    Networks are padded with inert neurons (F11 in docs/theory.md), and data with points without a label, up to this
    number, so that neighbouring widths and samples share a compiled program. It depends on the number alone, so the
    other cells of a sweep cannot change a cell's rounding. At most 28 % is padding; 20, 25, 50, 100, 200, 400, 800 and
    powers of two have none.
    """
    power = 1
    while 2 * power <= size:
        power *= 2
    steps = (power, -(-5 * power // 4), -(-25 * power // 16), 2 * power)
    return next(step for step in steps if step >= size)
