"""Receptive fields: a neuron sees all that is before it, or some places of a signal or an image."""

import itertools
import math
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

Padding = Literal["circular", "valid"]
Layout = Literal["signal", "image"]


@dataclass(frozen=True)
class Dense:
    """Of multilayer perceptrons; and the contract of the others."""

    taps: tuple[int, ...] = ()  # places that a neuron behind the first layer sees, along each dimension

    def patches(self, x: jax.Array) -> jax.Array:
        """What the first layer's neurons see of points (..., d): (..., d), or (..., places, fan-in)."""
        return x

    def flat(self, z: jax.Array) -> jax.Array:
        """Preactivations (..., m) or (..., places, m) as one vector (..., k)."""
        return z

    def seen(self, layer: int, h: jax.Array) -> jax.Array:
        """What neurons of a later layer, from 1 on, see of activations (..., k): (..., m) or (..., places, taps·m)."""
        del layer
        return h

    def pooled(self, layer: int, h: jax.Array) -> jax.Array:
        """What the head sees of the last layer's activations (..., k): (..., m)."""
        del layer
        return h


@dataclass(frozen=True)
class Convolution:
    """Of convolutional networks: squares or intervals of `kernel` inputs, then of `mixing` places, and their mean.

    Signals are of one dimension, images are square. Circular ones go on at their beginning; else only what lies within
    is seen.
    """

    ambient_dim: int  # d, coordinates of a point; of images row by row
    kernel: int
    stride: int
    mixing: int
    padding: Padding
    layout: Layout

    @property
    def dimensions(self) -> int:
        """Of the layout."""
        return 2 if self.layout == "image" else 1

    @property
    def side(self) -> int:
        """Inputs along each dimension."""
        return math.isqrt(self.ambient_dim) if self.dimensions == 2 else self.ambient_dim

    @property
    def taps(self) -> tuple[int, ...]:
        """Places that a neuron behind the first layer sees, along each dimension."""
        return (self.mixing,) * self.dimensions

    @property
    def fan_in(self) -> int:
        """Inputs that a neuron of the first layer sees."""
        return self.kernel**self.dimensions

    def places(self, layer: int) -> int:
        """Places of each of a layer's neurons along a dimension; the first layer is 0."""
        if self.padding == "circular":
            return self.side // self.stride
        return (self.side - self.kernel) // self.stride + 1 - layer * (self.mixing - 1)

    def impossible(self, layers: int) -> tuple[str, str] | None:
        """The setting that no network of so many convolutions can have on such points, and why; None if it can."""
        d, side, what = self.ambient_dim, self.side, self.layout
        if side**self.dimensions != d:
            return "layout", f"points of {d} coordinates are no square; {side**2} or {(side + 1) ** 2} would be"
        if self.kernel > side:
            return "kernel", f"wider than the {what}, of {side} places; at most {side} is possible"
        if self.padding == "circular" and side % self.stride:
            near = [s for s in range(1, side + 1) if side % s == 0]
            told = ", ".join(map(str, near[:6]))
            return "stride", f"does not divide the {side} places of a circular {what}; {told} do"
        if self.padding == "valid" and layers > 1 and self.places(layers - 1) < 1:
            left = self.places(0)
            fit = f"at most {(left - 1) // (self.mixing - 1)} do, or layers of less mixing"
            return "mixing", f"{layers - 1} layers of it do not fit into the {left} places of the first layer; {fit}"
        if self.padding == "circular" and layers > 1 and self.mixing > self.places(0):
            return "mixing", f"wider than the {self.places(0)} places of the first layer; at most that is possible"
        return None

    def patches(self, x: jax.Array) -> jax.Array:
        """Of points (..., d): (..., places, fan-in)."""
        return x[..., self._first_places()]

    def flat(self, z: jax.Array) -> jax.Array:
        """Place by place."""
        return z.reshape(*z.shape[:-2], -1)

    def seen(self, layer: int, h: jax.Array) -> jax.Array:
        """Of activations (..., k) of the layer before: (..., places, taps·m)."""
        before, after = self.places(layer - 1), self.places(layer)
        grid = h.reshape(*h.shape[:-1], *[before] * self.dimensions, h.shape[-1] // before**self.dimensions)
        shifted = (
            self._shifted(grid, tap, after) for tap in itertools.product(range(self.mixing), repeat=self.dimensions)
        )
        seen = jnp.concatenate(list(shifted), axis=-1)
        return seen.reshape(*h.shape[:-1], -1, seen.shape[-1])

    def pooled(self, layer: int, h: jax.Array) -> jax.Array:
        """The mean over places."""
        places = self.places(layer) ** self.dimensions
        return jnp.mean(h.reshape(*h.shape[:-1], places, h.shape[-1] // places), axis=-2)

    def _shifted(self, grid: jax.Array, tap: tuple[int, ...], after: int) -> jax.Array:
        """What of a grid (..., places, m) lies so far ahead of each of `after` places."""
        for axis, shift in zip(range(-1 - self.dimensions, -1), tap, strict=True):
            if self.padding == "circular":
                grid = jnp.roll(grid, -shift, axis)
            else:
                grid = jax.lax.slice_in_dim(grid, shift, shift + after, axis=grid.ndim + axis)
        return grid

    def _first_places(self) -> np.ndarray:
        """Coordinates of a point that the first layer's neurons see, (places, fan-in)."""
        starts = self.stride * np.arange(self.places(0))
        along = (starts[:, None] + np.arange(self.kernel)) % self.side  # (places, kernel)
        if self.dimensions == 1:
            return along
        rows, columns = along[:, None, :, None], along[None, :, None, :]
        return (self.side * rows + columns).reshape(len(along) ** 2, -1)


ReceptiveFields = Dense | Convolution
DENSE = Dense()
