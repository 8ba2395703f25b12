"""What attacks, certificates and measures ask of a network, whatever it is made of."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from subspace_adv.norms import NORMS


class Crossing(NamedTuple):
    """Where a signed output first falls to zero along a ray, in units of the direction's length."""

    lower: jax.Array  # (), no flip before this point, whatever the rounding; 0 where nothing better is known
    upper: jax.Array  # (), a flip here, whatever the rounding; inf if none is known


Blurred = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
"""Of coordinates (k, r) and radii (k,): signed outputs (k,), and gradients (k, r) blurred over the radii."""


class Local(Protocol):
    """The signed output s·N, s = sign N(x), around a point x, over the coordinates c of a perturbation within a region.

    The perturbation is basis·c, of r coordinates. Attacks know nothing else of a network. Only `value` and `crossing`
    decide what flips and where; the rest tells a search where to look, so an approximation does no harm.
    """

    @property
    def dimension(self) -> int:
        """Number r of coordinates."""
        ...

    @property
    def dtype(self) -> Any:
        """Type of its numbers."""
        ...

    def astype(self, dtype: Any) -> "Local":
        """The same in numbers of another type: searches run in float32."""
        ...

    def value(self, c: jax.Array) -> jax.Array:
        """Signed output (...) at the coordinates (..., r); not negative at 0."""
        ...

    def value_and_gradient(self, c: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Signed output (...) and its gradient (..., r) at the coordinates (..., r); one of several where it jumps."""
        ...

    def crossing(self, direction: jax.Array) -> Crossing:
        """First zero along a ray of coordinates (r,)."""
        ...

    def reach(self, norm: str) -> jax.Array:
        """Least radius, (), that comes to a point of every kink: with ReLUs, each can change its state within it."""
        ...

    def beyond(self) -> "Local":
        """The output as it is far away, c ↦ lim value(t·c)/t for t → ∞: positively homogeneous."""
        ...

    def values_along(self, directions: jax.Array, radii: jax.Array) -> jax.Array:
        """Signed outputs (k, q) on rays (k, r), each at all of the radii (q,)."""
        ...

    def asymptotes(self, directions: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Slopes (k,) and constants (k,) of the lines that the output nears far out on rays (k, r)."""
        ...

    def gradient_all_on(self) -> jax.Array:
        """Gradient (r,) as if every ReLU were on; a model without any may take another typical gradient."""
        ...

    def blurred(self, norm: str) -> Blurred:
        """What yields outputs and gradients that change little by little where they jump.

        It is made outside of loops, so that what does not depend on the coordinates is computed once.
        """
        ...


class Model(NamedTuple):
    """What is asked of a kind of network; static, and its functions written for one network, a pytree of parameters."""

    output: Callable[[Any, jax.Array], jax.Array]  # (network, x (..., d)) → N(x), (...)
    local: Callable[[Any, jax.Array, jax.Array], Local]  # (network, x (d,), basis (d, r)) → s·N around x
    # (network, x (d,), basis (d, r), *, norm, upper) → (), a radius within which no perturbation flips x, at best
    # `upper`, a distance at which one does; 0 where nothing is certified.
    certificate: Callable[..., jax.Array]
    # (network, basis (d, r)) → (d,), the one vector within the basis that is meant to lower the output at all points.
    universal_direction: Callable[[Any, jax.Array], jax.Array]


def prepared(network: Any, x: jax.Array, basis: jax.Array, norm: str = "l2") -> tuple[Any, jax.Array, jax.Array]:
    """A network, a point and a basis, of NumPy or JAX, as JAX arrays of one type.

    Args:
        network: a pytree of parameters.
        x: point (d,).
        basis: (d, r).
        norm: of the perturbation.

    Raises:
        ValueError: if the norm is unknown, or the basis is none of directions at x.
    """
    NORMS[norm]  # an unknown one is refused
    if isinstance(basis, str):
        raise ValueError(f"basis {basis!r}: give an array (d, r), which geometry.region_basis makes of this word")
    if basis.ndim != 2 or (len(basis),) != x.shape:
        raise ValueError(f"basis of shape {basis.shape}: give one (d, r) of directions at x, of shape {x.shape}")
    leaves, tree = jax.tree.flatten((network, x, basis))
    leaves = [jnp.asarray(leaf) for leaf in leaves]
    dtype = jnp.result_type(*leaves)
    return jax.tree.unflatten(tree, [leaf.astype(dtype) for leaf in leaves])
