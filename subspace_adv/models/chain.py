"""Networks of any depth: chains of affine maps with ReLUs between, whose rays are crossed exactly and certified."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from subspace_adv.contracts import Blurred, Crossing, Model, affine, power_of_two, prepared
from subspace_adv.models import autodiff, crown, rays
from subspace_adv.models.autodiff import ByDerivatives
from subspace_adv.models.rays import absolute, chained, linear_part
from subspace_adv.norms import dual_length

_BLURRED = 0.2  # of what a preactivation can change by within a radius: as near to its kink, a ReLU is partly on

Maps = Callable[[Any], tuple[Partial, ...]]
"""Of parameters, the affine maps behind the first layer, each with a ReLU before it, as `rays` tells of them."""
Entered = Callable[[Any, jax.Array, jax.Array], tuple[jax.Array, jax.Array, jax.Array]]
"""Of parameters, a point x (d,) and a basis (d, r): the first layer's preactivations z (m,) at x, their derivatives
(m, r) along the basis, and the sums (m,) of the sizes of the terms of z."""


def model(
    *,
    init: Callable[..., Any],
    first: Callable[[Any], tuple[jax.Array, jax.Array]],
    with_first_weight: Callable[[Any, jax.Array], Any],
    maps: Maps,
    trained: Callable[[str, str], tuple[str, ...]],
    **further: Any,
) -> Model:
    """A model of affine maps behind its first layer; other arguments as of `autodiff.model`."""
    by_derivatives = autodiff.model(
        init=init,
        first=first,
        with_first_weight=with_first_weight,
        rest=lambda params, z: chained(maps(params), z),
        trained=trained,
        **further,
    )
    return certified(by_derivatives, functools.partial(_entered, by_derivatives), maps)


def certified(of: Model, entered: Entered, maps: Maps) -> Model:
    """A model that is a chain, with exact crossings and a certificate.

    Args:
        of: the same without them.
        entered: its first affine map.
        maps: those behind it.
    """
    return dataclasses.replace(
        of,
        local=functools.partial(local, entered, maps),
        certificate=functools.partial(certificate, entered, maps),
    )


def _entered(of: Model, params: Any, x: jax.Array, basis: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    weight, bias = of.first(params)
    sizes = of.fields.flat(affine(jnp.abs(weight), jnp.abs(bias), jnp.abs(of.fields.patches(x))))
    return of.preactivations(params, x), of.preactivations_along(params, basis), sizes


class _Fields(NamedTuple):
    z: jax.Array  # (m,), first layer's preactivations at x
    rates: jax.Array  # (m, r), their derivatives in c
    sizes: jax.Array  # (m,), sums of the sizes of the terms of z
    maps: tuple[Partial, ...]  # f_1 to f_L, the last one to the signed output (...)


class ChainLocal(ByDerivatives, _Fields):
    """The contract `Local`, c ↦ f_L(relu(… relu(f_1(relu(z + rates·c)))))."""

    __slots__ = ()

    def in_own_units(self) -> "ChainLocal":
        """The same, over a power of two near the sum of the sizes of all that the output at x adds up at last."""
        *inner, last = self.maps
        hidden = jax.nn.relu(chained(inner, self.z))
        factor = power_of_two(absolute(last)(hidden))
        return self._replace(maps=(*inner, jax.tree.map(lambda a: a / factor, last)))

    def value(self, c: jax.Array) -> jax.Array:
        """Signed output (...) at the coordinates (..., r)."""
        moved = c @ self.rates.T
        return chained(self.maps, moved + jnp.broadcast_to(self.z, moved.shape))

    def crossing(self, direction: jax.Array) -> Crossing:
        """First zero along a ray of coordinates (r,), exactly."""
        sizes = jnp.abs(self.rates) @ jnp.abs(direction)
        return rays.first_crossing(self.z, self.rates @ direction, self.maps, z_size=self.sizes, rate_size=sizes)

    def reach(self, norm: str) -> jax.Array:
        """Least radius within which each of the first layer's neurons that varies can change its state."""
        return jnp.max(_radii(self.z, self.rates, norm, none=0))

    def unbent(self, norm: str) -> jax.Array:
        """Least radius at which a neuron of any layer can change its state, of those that vary near x."""

        def layers(c: jax.Array) -> list[jax.Array]:
            preactivations = [self.z + self.rates @ c]
            for affine_map in self.maps[:-1]:
                preactivations.append(affine_map(jax.nn.relu(preactivations[-1])))
            return preactivations

        at_x, along = jax.linearize(layers, jnp.zeros_like(self.rates[0]))
        rates = jax.vmap(along, out_axes=1)(jnp.eye(self.dimension, dtype=self.dtype))
        radii = [_radii(z, rate, norm, none=jnp.inf) for z, rate in zip(at_x, rates, strict=True)]
        return jnp.min(jnp.concatenate(radii))

    def beyond(self) -> "ChainLocal":
        """The output as it is far away: without biases."""
        maps = tuple(Partial(linear_part, affine_map) for affine_map in self.maps)
        return self._replace(z=jnp.zeros_like(self.z), sizes=jnp.zeros_like(self.z), maps=maps)

    def asymptotes(self, directions: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Slopes (k,) and constants (k,) of the lines that the output is beyond all kinks of rays (k, r)."""
        slope = directions @ self.rates.T
        constant = jnp.broadcast_to(self.z, slope.shape)
        for affine_map in self.maps:
            is_on = (slope > 0) | ((slope == 0) & (constant > 0))
            slope = linear_part(affine_map, jnp.where(is_on, slope, 0))
            constant = affine_map(jnp.where(is_on, constant, 0))
        return slope, constant

    def blurred(self, norm: str) -> Blurred:
        """Outputs and gradients; first ReLUs turn on along a straight line over a part of what they can change by."""
        speed, (first, *rest) = dual_length(self.rates, norm), self.maps

        def value_and_gradient(c: jax.Array, radius: jax.Array) -> tuple[jax.Array, jax.Array]:
            moved = c @ self.rates.T
            z = moved + jnp.broadcast_to(self.z, moved.shape)
            width = jnp.maximum(_BLURRED * (radius[:, None] * speed[None]), jnp.finfo(z.dtype).tiny)
            value, pullback = jax.vjp(lambda h: chained(rest, first(h)), jax.nn.relu(z))
            (gradient,) = pullback(jnp.ones_like(value))
            return value, (gradient * jnp.clip(0.5 + z / (2 * width), 0, 1)) @ self.rates

        return value_and_gradient

    def gradient_all_on(self) -> jax.Array:
        """Gradient (r,) where every ReLU is on."""

        def all_on(z: jax.Array) -> jax.Array:
            return functools.reduce(lambda h, affine_map: affine_map(h), self.maps, z)

        return jax.grad(all_on)(self.z) @ self.rates


def _radii(z: jax.Array, rates: jax.Array, norm: str, none: float) -> jax.Array:
    """Least radii (m,) at which preactivations z + rates·c can be zero; `none` where one does not vary."""
    speed = dual_length(rates, norm)
    return jnp.where(speed > 0, jnp.abs(z) / jnp.where(speed > 0, speed, 1), none)


def local(entered: Entered, maps: Maps, params: Any, x: jax.Array, basis: jax.Array) -> ChainLocal:
    """The signed output around x (d,) over coordinates of the columns of `basis` (d, r)."""
    params, x, basis = prepared(params, x, basis)
    z, rates, sizes = entered(params, x, basis)
    *inner, last = maps(params)
    sign = jnp.where(chained([*inner, last], z) < 0, -1, 1).astype(x.dtype)
    return ChainLocal(z, rates, sizes, (*inner, jax.tree.map(lambda a: sign * a, last)))


def certificate(
    entered: Entered, maps: Maps, params: Any, x: jax.Array, basis: jax.Array, *, norm: str, upper: jax.Array
) -> jax.Array:
    """A radius (), within which no perturbation in the region flips x (d,): that of `crown_certificate`.

    Args:
        entered: the model's first affine map.
        maps: those behind it.
        params: of the network.
        x: point (d,).
        basis: (d, r), of the perturbations allowed: orthonormal for "l2", of coordinate axes for "linf" and "l1".
        norm: of the perturbation.
        upper: a distance at which x is known to flip, (); inf if none is known.
    """
    params, x, basis = prepared(params, x, basis, norm)
    return crown.crown_certificate(local(entered, maps, params, x, basis), norm=norm, upper=upper)
