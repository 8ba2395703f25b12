"""A model from its initial law, its first layer and the rest; all else by automatic differentiation and search."""

from collections.abc import Callable
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp

from subspace_adv.contracts import Blurred, Crossing, Form, Model, affine, power_of_two, prepared
from subspace_adv.norms import dual_length, unit
from subspace_adv.receptive_fields import DENSE, ReceptiveFields

_FAR = 1e3  # where an output is as it is far away, in reaches of the first layer's kinks
_SCAN = 1_024  # points of a ray at which a flip is looked for, between the first layer's kinks, and as many beyond them
_LEAST_SCAN = 2  # of them between two neighbouring kinks
_HALVINGS = 60  # of the interval of the scan that holds the first flip
_ROUNDING = 2.0**-30  # of the output at the point: a flip is one past it, float32's errors in 2⁻¹² of it


def model(
    *,
    init: Callable[..., Any],
    first: Callable[[Any], tuple[jax.Array, jax.Array]],
    with_first_weight: Callable[[Any, jax.Array], Any],
    rest: Callable[[Any, jax.Array], jax.Array],
    trained: Callable[[str, str], tuple[str, ...]],
    fields: ReceptiveFields = DENSE,
    **further: Any,
) -> Model:
    """A model without a kernel or a certificate; arguments as the fields of `contracts.Model`.

    The universal direction weighs the first layer's preactivations by the mean of the output's gradients in them.
    """

    def outputs_and_pullback(params: Any, inputs: jax.Array) -> tuple[jax.Array, Callable[[jax.Array], Any]]:
        def outputs_of(params: Any) -> jax.Array:
            return rest(params, fields.flat(affine(*first(params), inputs)))

        outputs, pullback = jax.vjp(outputs_of, params)
        return outputs, lambda output_gradient: pullback(output_gradient)[0]

    def universal_weights(params: Any, sensitivities: jax.Array) -> jax.Array:
        weight, _ = first(params)
        neurons = jnp.sum(jnp.any(weight != 0, axis=1)).astype(sensitivities.dtype)  # but for padding
        return jnp.sqrt(neurons) * unit(jnp.mean(sensitivities, axis=0), "l2")

    def input_gradient(params: Any, x: jax.Array) -> jax.Array:
        return jax.vmap(jax.grad(lambda point: made.output(params, point)))(x)

    def local(params: Any, x: jax.Array, basis: jax.Array) -> AutodiffLocal:
        params, x, basis = prepared(params, x, basis)
        z, rates = made.preactivations(params, x), made.preactivations_along(params, basis)
        sign = jnp.where(rest(params, z) < 0, -1, 1).astype(x.dtype)
        held = jax.tree_util.Partial(_signed, jax.tree_util.Partial(rest), params, sign)
        return AutodiffLocal(held, z, rates, jnp.ones_like(sign), jnp.ones_like(sign))

    made = Model(
        **{
            "init": init,
            "first": first,
            "with_first_weight": with_first_weight,
            "rest": rest,
            "trained": trained,
            "universal_weights": universal_weights,
            "input_gradient": input_gradient,
            "local": local,
            "form": Form(lambda params: params, lambda params: params, outputs_and_pullback),
            "step_flops": _step_flops,
            "fields": fields,
        }
        | further
    )
    return made


class ByDerivatives:
    """What the contract `Local` takes from the first layer and from derivatives of the value: to be inherited."""

    __slots__ = ()

    z: Any  # (m,), first layer's preactivations at x
    rates: Any  # (m, r), their derivatives in c
    value: Callable[..., jax.Array]

    @property
    def dimension(self) -> int:
        """Number r of coordinates."""
        return self.rates.shape[1]

    @property
    def dtype(self) -> Any:
        """Type of its numbers."""
        return self.z.dtype

    def astype(self, dtype: Any) -> Self:
        """The same in numbers of another type."""
        return jax.tree.map(lambda a: a.astype(dtype), self)

    def value_and_gradient(self, c: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Signed output (...) and its gradient (..., r) at the coordinates (..., r)."""
        value, pullback = jax.vjp(self.value, c)
        return value, pullback(jnp.ones_like(value))[0]

    def values_along(self, directions: jax.Array, radii: jax.Array) -> jax.Array:
        """Signed outputs (k, q) on rays (k, r), each at all of the radii (q,)."""
        return jax.lax.map(lambda radius: self.value(radius * directions), radii).T

    def blurred(self, norm: str) -> Blurred:
        """Outputs and gradients as they are: what the rest jumps by is not known."""
        del norm
        return lambda c, radius: self.value_and_gradient(c)


class _Fields(NamedTuple):
    rest: Any  # z (..., m) → signed output (...), a pytree of the parameters that it holds
    z: jax.Array  # (m,), first layer's preactivations at x
    rates: jax.Array  # (m, r), their derivatives in c
    scale: jax.Array  # (), of the perturbations and of what they do to the output
    unit: jax.Array  # (), of the output


class AutodiffLocal(ByDerivatives, _Fields):
    """The contract `Local`, c ↦ s·rest(z + rates·c), without a formula for its zeros: rays are scanned."""

    __slots__ = ()

    def in_own_units(self) -> "AutodiffLocal":
        """The same, over a power of two near the output at x."""
        return self._replace(unit=self.unit * power_of_two(jnp.abs(self.value(jnp.zeros_like(self.rates[0])))))

    def value(self, c: jax.Array) -> jax.Array:
        """Signed output (...) at the coordinates (..., r)."""
        moved = (self.scale * c) @ self.rates.T
        return self.rest(moved + jnp.broadcast_to(self.z, moved.shape)) / (self.scale * self.unit)

    def crossing(self, direction: jax.Array) -> Crossing:
        """First flip that a scan of a ray (r,) meets; nothing is certified."""
        radii = self._scanned(direction)
        allowance = _ROUNDING * jnp.abs(self.value(jnp.zeros_like(direction)))

        def flips(radius: jax.Array) -> jax.Array:
            return self.value(radius * direction) < -allowance

        found = jax.vmap(flips)(radii)
        first = jnp.argmax(found)

        def halve(_: int, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            low, high = ends
            middle = (low + high) / 2
            inside = flips(middle)
            return jnp.where(inside, low, middle), jnp.where(inside, middle, high)

        _, upper = jax.lax.fori_loop(0, _HALVINGS, halve, (radii[jnp.maximum(first - 1, 0)], radii[first]))
        return Crossing(jnp.zeros_like(upper), jnp.where(jnp.any(found), upper, jnp.inf))

    def _scanned(self, direction: jax.Array) -> jax.Array:
        """Ascending radii at which a flip is looked for: between all kinks of the first layer, and far beyond."""
        kink = -self.z / (self.rates @ direction)
        kink = jnp.where(jnp.isfinite(kink) & (kink > 0), kink, 0)
        kink = jnp.where(jnp.any(kink > 0), kink, 1)  # none lies ahead: near the point is looked at all the same
        last = jnp.max(kink)
        ends = jnp.concatenate([jnp.zeros(1, self.dtype), jnp.sort(kink)])
        between = max(_LEAST_SCAN, _SCAN // len(kink))
        parts = jnp.linspace(0, 1, between + 1, dtype=self.dtype)[1:]
        near = ends[:-1, None] + jnp.diff(ends)[:, None] * parts[None]
        far = last * jnp.geomspace(1, _FAR, _SCAN + 1, dtype=self.dtype)[1:]
        return jnp.concatenate([jnp.zeros(1, self.dtype), near.ravel(), far])

    def reach(self, norm: str) -> jax.Array:
        """Least radius within which each of the first layer's neurons that varies can change its sign; at least 1."""
        speed = dual_length(self.rates, norm)
        return jnp.maximum(jnp.max(jnp.where(speed > 0, jnp.abs(self.z) / jnp.where(speed > 0, speed, 1), 0)), 1)

    def unbent(self, norm: str) -> jax.Array:
        """Least radius at which a neuron of the first layer can change its sign; those of the rest are not known."""
        speed = dual_length(self.rates, norm)
        return jnp.min(jnp.where(speed > 0, jnp.abs(self.z) / jnp.where(speed > 0, speed, 1), jnp.inf))

    def beyond(self) -> "AutodiffLocal":
        """The output as it is far away."""
        return self._replace(scale=jnp.asarray(_FAR, self.dtype) * self.reach("l2"))

    def asymptotes(self, directions: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Slopes (k,) and constants (k,) of the lines through two values far out on rays (k, r)."""
        far = _FAR * self.reach("l2")
        one, two = self.values_along(directions, jnp.stack([far, 2 * far])).T
        return (two - one) / far, 2 * one - two

    def gradient_all_on(self) -> jax.Array:
        """Gradient (r,) where every neuron of the first layer is positive."""
        highest = jnp.max(jnp.abs(self.z))
        return jax.grad(self.rest)(jnp.full_like(self.z, highest)) @ self.rates / self.unit


def _signed(rest: Callable[[Any, jax.Array], jax.Array], params: Any, sign: jax.Array, z: jax.Array) -> jax.Array:
    return sign * rest(params, z)


def _step_flops(shapes: Any, samples: int, trained: tuple[str, ...]) -> int:
    """Forward, both products backward, and the update of every parameter."""
    del trained
    parameters = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    return 6 * samples * parameters + 6 * parameters
