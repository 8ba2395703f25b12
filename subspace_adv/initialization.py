"""The initial laws of every layer: what is drawn from a seed, on the span of the data and off it."""

import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import random

from subspace_adv import streams
from subspace_adv.chi import chi_of_normal
from subspace_adv.geometry import factors, triangular_factor
from subspace_adv.network import Network
from subspace_adv.parametrizations import PARAMETRIZATIONS

Init = Literal["theory", "paper-code", "torch", "he", "lecun"]
GAUSSIAN: tuple[Init, ...] = ("theory", "paper-code", "he", "lecun")
"""Initial laws whose first-layer weights are N(0, β²), β = `gain` · init_scale / √d."""
_WITHOUT_BIASES: tuple[Init, ...] = ("theory", "he", "lecun")  # at first


def gain(init: Init) -> float:
    """Standard deviation of the first layer's Gaussian weights over init_scale / √fan-in."""
    return math.sqrt(2) if init == "he" else 1.0


_ABOVE_MINUS_ONE = float(np.nextafter(np.float32(-1), np.float32(0)))  # keeps the quantile transform finite
_BLOCK = 256  # ambient coordinates drawn at once


class Law(NamedTuple):
    """The law that networks are drawn from, and the coordinates that they are drawn in; static.

    First-layer weights are held in coordinates of a span of r of the d dimensions that a neuron sees: that of the data,
    or all. The rest of them is drawn apart, as it takes no part in training (F1 in docs/theory.md).
    """

    init: Init
    padded_width: int
    ambient_dim: int  # d, its fan-in: of a convolution, that of its filters
    span_dim: int  # r
    parametrization: str = "standard"  # a row of `PARAMETRIZATIONS`

    @property
    def off_dim(self) -> int:
        """Dimensions that the weights off the span take in canonical coordinates (F6 in docs/theory.md)."""
        return min(self.padded_width, self.ambient_dim - self.span_dim)

    @property
    def deviation(self) -> float:
        """Of first-layer weights at init_scale 1: standard where they are Gaussian, else the largest."""
        return gain(self.init) * self.ambient_dim**-0.5

    @property
    def is_gaussian(self) -> bool:
        """Whether first-layer weights are normal, and so of the same law in all coordinates."""
        return self.init in GAUSSIAN


def init_network(
    key: jax.Array, width: jax.Array, init_scale: jax.Array, *, law: Law, basis: jax.Array | None = None
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
        law: of the draw. "theory": w ~ N(0, I/d), u = ±1/√m, no biases; "paper-code": w ~ N(0, I/d),
            u ~ N(0, 1/m), biases uniform ±1/√fan_in; "torch": all uniform ±1/√fan_in; "he": w ~ N(0, 2I/d),
            u ~ N(0, 2/m), biases 0; "lecun": w ~ N(0, I/d), u ~ N(0, 1/m), biases 0.
        basis: of the span, (d, r), orthonormal; read by "torch" where the span is not all of R^d.

    Returns:
        Float32 network with weight (padded_width, r), in coordinates of the span.
    """
    neurons = jnp.arange(law.padded_width + 1, dtype=jnp.int32)  # the last draw is the head bias's
    keys = streams.neuron_keys(key, jnp.where(neurons == law.padded_width, streams.HEAD_BIAS, neurons))
    draw = jax.vmap(lambda k: _uniform(random.fold_in(k, streams.PARAMETERS), 2 + law.span_dim))(keys)
    fan_in, fan_hidden = law.ambient_dim**-0.5, jax.lax.rsqrt(width.astype(jnp.float32))
    weight, bias, head, head_bias = draw[:-1, 2:], fan_in * draw[:-1, 0], draw[:-1, 1], draw[-1, 0]
    if law.is_gaussian:
        weight = _normal(weight)
    else:
        weight = _cube_within(keys[:-1], law, basis).astype(jnp.float32)
    if law.init in _WITHOUT_BIASES:
        bias, head_bias = jnp.zeros_like(bias), jnp.zeros_like(head_bias)
    if law.init == "theory":
        head = jnp.where(head < 0, -1.0, 1.0)
    else:
        head = init_scale * gain(law.init) * (_normal(head) if law.is_gaussian else head)
    head = head * PARAMETRIZATIONS[law.parametrization].head_deviation(width.astype(jnp.float32))
    real = _real(law, width)
    return Network(
        jnp.where(real[:, None], init_scale * law.deviation * weight, 0.0),
        jnp.where(real, bias, 0.0),
        jnp.where(real, fan_hidden * head, 0.0),
        fan_hidden * head_bias,
    )


class Layer(NamedTuple):
    """Parameters of a layer between the first and the head; leading axes batch networks."""

    kernel: jax.Array  # (inputs, m)
    bias: jax.Array  # (m,)


def init_hidden(
    key: jax.Array, layer: int, width: jax.Array, init_scale: jax.Array, *, law: Law, taps: int = 1
) -> Layer:
    """Draw a layer of neurons that see `taps` places of `width` neurons each; paired and padded as `init_network`.

    Args:
        key: as in `init_network`.
        layer: its number, from 1 on; the same whatever the depth of the network.
        width: as in `init_network`.
        init_scale: as in `init_network`.
        law: of the draw. "theory" and "he": N(0, 2/fan_in); "paper-code" and "lecun": N(0, 1/fan_in); "torch": uniform
            ±1/√fan_in. Biases as in `init_network`. The scale is that of the first layer alone in "theory".
        taps: places that a neuron sees; 1 but for convolutions.

    Returns:
        Float32; inputs place by place.
    """
    neurons = jnp.arange(law.padded_width, dtype=jnp.int32)
    keys = streams.neuron_keys(random.fold_in(key, streams.HIDDEN_LAYER - layer), neurons)
    draw = jax.vmap(lambda k: _uniform(k, 1 + law.padded_width * taps))(keys)
    fan_in = jax.lax.rsqrt(taps * width.astype(jnp.float32))
    weight = _normal(draw[:, 1:]) if law.is_gaussian else draw[:, 1:]
    if law.init in ("theory", "he"):
        weight = math.sqrt(2) * weight
    if law.init != "theory":
        weight = init_scale * weight
    bias = jnp.zeros_like(draw[:, 0]) if law.init in _WITHOUT_BIASES else fan_in * draw[:, 0]
    real = _real(law, width)
    # A neuron draws input by input, and place by place within each: so that narrow networks are parts of wide ones.
    both = real[:, None, None] & real[None, :, None]
    kernel = jnp.where(both, weight.reshape(len(keys), -1, taps), 0.0)
    return Layer(fan_in * kernel.transpose(2, 1, 0).reshape(-1, len(keys)), jnp.where(real, bias, 0.0))


def off_weights(
    key: jax.Array, width: jax.Array, init_scale: jax.Array, *, law: Law, basis: jax.Array | None = None
) -> jax.Array:
    """The part of a fresh network's weights off the span, in canonical coordinates (F6 in docs/theory.md).

    A Gaussian m × l matrix is a lower-triangular one, of independent normal entries with χ distributed ones on the
    diagonal, times a random rotation (Bartlett 1933), and no L2 measurement sees the rotation. So nothing here is of
    size d. Of uniform weights, the triangular factor is computed from blocks of coordinates.

    Args:
        key: as in `init_network`, like the other arguments.
        width: number m of neurons.
        init_scale: factor on the weights.
        law: of the draw.
        basis: as in `init_network`.

    Returns:
        (padded_width, off_dim): float32 where Gaussian, else of the widest type enabled.
    """
    size = (law.padded_width, law.off_dim)
    keys = streams.neuron_keys(key, jnp.arange(law.padded_width, dtype=jnp.int32))
    scale = init_scale * law.deviation
    if not law.off_dim:
        return jnp.zeros(size, jnp.float32)
    if law.is_gaussian:
        normal = _normal(jax.vmap(lambda k: _uniform(random.fold_in(k, streams.OFF_WEIGHTS), law.off_dim))(keys))
        freedom = law.ambient_dim - law.span_dim - np.arange(law.off_dim)
        chi = chi_of_normal(jnp.diagonal(normal), freedom)
        weights = jnp.tril(normal, -1).at[jnp.arange(law.off_dim), jnp.arange(law.off_dim)].set(chi)
    else:
        weights = _cube_triangle(keys, law, basis).T
    return jnp.where(_real(law, width)[:, None], scale.astype(weights.dtype) * weights, 0)


def ambient_off_weights(
    key: jax.Array, width: jax.Array, init_scale: jax.Array, *, law: Law, basis: jax.Array
) -> jax.Array:
    """The weights off the span, (padded_width, d), that `off_weights` are the canonical coordinates of.

    Args:
        key: as in `init_network`, like the other arguments.
        width: number m of neurons.
        init_scale: factor on the weights.
        law: of the draw.
        basis: of the span, (d, r).
    """
    if not law.off_dim:
        return jnp.zeros((law.padded_width, law.ambient_dim), basis.dtype)
    if law.is_gaussian:
        off = off_weights(key, width, init_scale, law=law).astype(basis.dtype)
        return off @ _random_frame(key, law, basis).T
    keys = streams.neuron_keys(key, jnp.arange(law.padded_width, dtype=jnp.int32))
    weight = _cube(keys, law).astype(basis.dtype)
    weight = weight - (weight @ basis) @ basis.T
    scale = (init_scale * law.deviation).astype(basis.dtype)
    return jnp.where(_real(law, width)[:, None], scale * weight, 0)


def _real(law: Law, width: jax.Array) -> jax.Array:
    """Which neurons are not padding, (padded_width,)."""
    return jnp.arange(law.padded_width, dtype=jnp.int32) < width


def _uniform(key: jax.Array, count: int) -> jax.Array:
    """Base draws, uniform on (−1, 1)."""
    return random.uniform(key, (count,), jnp.float32, _ABOVE_MINUS_ONE, 1.0)


def _normal(uniform: jax.Array) -> jax.Array:
    # The quantile transform, as jax.random.normal does it.
    return math.sqrt(2) * jax.lax.erf_inv(uniform)


def _random_frame(key: jax.Array, law: Law, basis: jax.Array) -> jax.Array:
    """Uniformly random orthonormal vectors (d, off_dim) off the span; the first of them are those of fewer."""
    keys = streams.neuron_keys(random.fold_in(key, streams.OFF_FRAME), jnp.arange(law.off_dim, dtype=jnp.int32))
    normal = _normal(jax.vmap(lambda k: _uniform(k, law.ambient_dim))(keys)).T
    frame, triangle = factors(jnp.concatenate([basis, normal.astype(basis.dtype)], axis=1))
    sign = jnp.where(jnp.diagonal(triangle) < 0, -1, 1).astype(basis.dtype)
    return (frame * sign[None])[:, law.span_dim :]


def _cube(keys: jax.Array, law: Law) -> jax.Array:
    """Uniform base draws of all ambient coordinates, (m, d)."""
    blocks = [_cube_block(keys, law, block) for block in range(_cube_blocks(law))]
    return jnp.concatenate(blocks, axis=1)[:, : law.ambient_dim]


def _cube_blocks(law: Law) -> int:
    return -(-law.ambient_dim // _BLOCK)


def _cube_block(keys: jax.Array, law: Law, block: jax.Array | int) -> jax.Array:
    """Uniform base draws of a block of ambient coordinates, (m, b); zeros past the last coordinate."""
    size = min(_BLOCK, law.ambient_dim)
    draw = jax.vmap(lambda k: _uniform(random.fold_in(k, streams.COORDINATE_BLOCKS + block), size))(keys)
    return jnp.where((block * _BLOCK + jnp.arange(size, dtype=jnp.int32) < law.ambient_dim)[None], draw, 0)


def _cube_within(keys: jax.Array, law: Law, basis: jax.Array | None) -> jax.Array:
    """Uniform base draws in coordinates of the span, (m, r)."""
    if basis is None:
        return _cube(keys, law)

    def add(total: jax.Array, block: tuple) -> tuple[jax.Array, None]:
        number, rows = block
        return total + _cube_block(keys, law, number).astype(rows.dtype) @ rows, None

    total = jnp.zeros((len(keys), law.span_dim), basis.dtype)
    return jax.lax.scan(add, total, (jnp.arange(_cube_blocks(law), dtype=jnp.int32), _in_blocks(basis, law)))[0]


def _cube_triangle(keys: jax.Array, law: Law, basis: jax.Array | None) -> jax.Array:
    """Triangular factor (off_dim, m) of the uniform base draws off the span, from one block of rows after another."""
    if basis is None:
        raise ValueError("the weights off a span that is not said where: give its basis")
    dtype = jnp.result_type(float)
    basis = basis.astype(dtype)
    rows = _in_blocks(basis, law)
    within = _cube_within(keys, law, basis).astype(dtype)

    def add(triangle: jax.Array, block: tuple) -> tuple[jax.Array, None]:
        number, rows = block
        off = _cube_block(keys, law, number).astype(dtype).T - rows @ within.T
        return triangular_factor(jnp.concatenate([triangle, off])), None

    start = jnp.zeros((len(keys), len(keys)), dtype)
    return jax.lax.scan(add, start, (jnp.arange(_cube_blocks(law), dtype=jnp.int32), rows))[0][: law.off_dim]


def _in_blocks(basis: jax.Array, law: Law) -> jax.Array:
    """Rows of the basis, (blocks, b, r), padded with zeros."""
    size = min(_BLOCK, law.ambient_dim)
    missing = _cube_blocks(law) * size - law.ambient_dim
    padded = jnp.concatenate([basis, jnp.zeros((missing, basis.shape[1]), basis.dtype)])
    return padded.reshape(-1, size, basis.shape[1])
