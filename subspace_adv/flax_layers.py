"""Flax modules of networks of layers: perceptrons of any depth, and convolutions written as products with patches."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen

from subspace_adv.receptive_fields import ReceptiveFields

Product = Callable[[jax.Array, jax.Array], jax.Array]
"""Of rows (n, i) and a matrix (i, j)."""


class Affine(linen.Module):
    """Neurons that see inputs (..., i): `kernel` of shape (i, features), or (*taps, i/taps, features), and `bias`.

    Kernels of convolutions so have the shape that flax's `Conv` gives them.
    """

    features: int
    taps: tuple[int, ...] = ()  # along each dimension, of places that a neuron sees
    product: Product = jnp.matmul

    @linen.compact
    def __call__(self, seen: jax.Array) -> jax.Array:
        """Preactivations (..., features)."""
        inputs = seen.shape[-1]
        shape = (*self.taps, inputs // math.prod(self.taps), self.features)
        kernel = self.param("kernel", linen.initializers.lecun_normal(), shape)
        bias = self.param("bias", linen.initializers.zeros, (self.features,))
        rows = self.product(seen.reshape(-1, inputs), kernel.reshape(inputs, self.features))
        return (rows + bias[None]).reshape(*seen.shape[:-1], self.features)


class Layers(linen.Module):
    """N(x): affine layers with ReLUs between, each neuron of which sees its receptive field; a linear head.

    `apply(variables, x)` takes points x (..., d) to outputs (...); `variables` is {"params": …}.
    """

    width: int | tuple[int, ...]  # of all layers before the head, or of each
    depth: int  # number of these layers
    fields: ReceptiveFields
    product: Product = jnp.matmul

    def setup(self) -> None:
        """The layers hidden_0, hidden_1, … and head."""
        taps = [(), *[self.fields.taps] * (self.depth - 1)]
        widths = [self.width] * self.depth if isinstance(self.width, int) else self.width
        sizes = zip(widths, taps, strict=True)
        self.hidden = [Affine(width, of_layer, self.product) for width, of_layer in sizes]
        self.head = Affine(1, product=self.product)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Outputs (...) at points (..., d)."""
        return self.behind(self.fields.patches(x))

    def behind(self, patches: jax.Array) -> jax.Array:
        """Outputs (...) where the first layer sees these."""
        return self.rest(self.fields.flat(self.hidden[0](patches)))

    def rest(self, z: jax.Array) -> jax.Array:
        """Outputs (...) where the first layer's preactivations are z (..., k)."""
        for layer in range(1, self.depth + 1):
            z = self.affine(layer, linen.relu(z))
        return z

    def affine(self, layer: int, h: jax.Array) -> jax.Array:
        """Preactivations (..., k') of a layer, or outputs (...), where the activations before are h (..., k)."""
        if layer == self.depth:
            return self.head(self.fields.pooled(layer - 1, h))[..., 0]
        return self.fields.flat(self.hidden[layer](self.fields.seen(layer, h)))
