"""What training, attacks, certificates and measures ask of a network, whatever it is made of: Model and Local."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from subspace_adv.norms import NORMS
from subspace_adv.receptive_fields import DENSE, Convolution, Dense, Layout, Padding, ReceptiveFields


class Crossing(NamedTuple):
    """Where a signed output first falls to zero along a ray, in units of the direction's length."""

    lower: jax.Array  # (), no flip before this point, whatever the rounding; 0 where nothing better is known
    upper: jax.Array  # (), an output below 0 here, whatever the rounding; inf if none is known


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

    def in_own_units(self) -> "Local":
        """The same but for a positive factor, by which its terms are about 1: float32 can hold them."""
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

    def unbent(self, norm: str) -> jax.Array:
        """Least radius, (), at which the output can begin to fall faster than its gradient says; inf if it cannot."""
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


class PlaneDistances(NamedTuple):
    """Of the points of a plane to a flip."""

    lower: jax.Array  # (n,), no flip is nearer; inf where there is none
    # (n, k, 2), coordinates of directions in the plane: the nearest flip along them is nearest of all, rounding apart;
    # zeros lead nowhere.
    directions: jax.Array


class Form(NamedTuple):
    """How networks are held while they train, and what differentiates them; for leading axes of networks too."""

    to_training: Callable[[Any], Any]  # parameters → the same under the same names, laid out for speed
    from_training: Callable[[Any], Any]  # and back
    # (held parameters, what the first layer sees (n, …, d)) → outputs (n,), and what takes ∂loss/∂outputs (n,) to the
    # gradient, shaped like what is held.
    outputs_and_pullback: Callable[[Any, jax.Array], tuple[jax.Array, Callable[[jax.Array], Any]]]
    # Whether changes are held apart from the parameters for many steps, so that float32 loses less of them; else each
    # step is added at once, which takes half the time where parameters are many more than activations.
    compensated: bool = True


class Kernel(NamedTuple):
    """What is compiled for one model's networks, and takes the place of programs that XLA compiles: on the CPU."""

    unavailable: Callable[[str | None], str | None]  # platform, or None for JAX's → why it cannot serve, if so
    instruction_set: Callable[[], str]
    # (state, x, y, hyper, recipe, steps) → state, as `training.advance`: all with a leading axis of networks, which
    # the points may lack.
    advance: Callable[..., Any]
    # (norm, x, names of attacks) → whether `bracket` serves, here and now.
    measures: Callable[[str, jax.Array, tuple[str, ...]], bool]
    # (params, x (n, d), basis (d, r) or (n, d, r), keys (n,), toward (n, d), *, norm, steps, restarts, gap) → bounds
    # (n,) and (n,), and perturbations (n, d), of regions of two dimensions or more: as of `brackets.bracket`.
    bracket: Callable[..., tuple[jax.Array, jax.Array, jax.Array]]

    def label(self) -> str:
        """The trainer with what decides its rounding, "fused (avx512)"."""
        return f"fused ({self.instruction_set()})"


@dataclass(frozen=True, kw_only=True)
class Model:
    """A kind of networks: the contract of a row of `MODELS`.

    Static, and its functions written for one network, whose parameters are a pytree of arrays with names. A point x
    enters through the first affine layer alone: N(x) = rest(params, W x + b), (W, b) = first(params), so that weights
    off the span of the data never learn (F13 in docs/theory.md). In a convolutional network the same W and b see each
    patch of x, and z holds what all patches make, place by place. `models.autodiff` makes a model of the first five
    fields.
    """

    # (key, width, init_scale, *, law, basis=None) → float32 parameters, W (padded_width, r) in coordinates of the law's
    # span and drawn as `initialization` draws it: what is off the span is drawn apart. Neurons past `width` are inert:
    # zero weights to them and from them (F11).
    init: Callable[..., Any]
    first: Callable[[Any], tuple[jax.Array, jax.Array]]  # params → W (m, d), b (m,)
    with_first_weight: Callable[[Any, jax.Array], Any]  # (params, W (m, d')) → params of a network on R^d'
    rest: Callable[[Any, jax.Array], jax.Array]  # (params, z (..., k)) → output (...)
    trained: Callable[[str, str], tuple[str, ...]]  # settings init and trainable → names of the parameters trained
    # (params, a(x) (n, k) at some points) → ā (k,) of length √m, or less where neurons are padding: −P ∂z/∂xᵀ ā is the
    # one direction off the subspace that is meant to lower the output at all points (F15 in docs/theory.md).
    universal_weights: Callable[[Any, jax.Array], jax.Array]
    input_gradient: Callable[[Any, jax.Array], jax.Array]  # (params, x (n, d)) → ∇N (n, d)
    local: Callable[[Any, jax.Array, jax.Array], Local]  # (params, x (d,), basis (d, r)) → s·N around x
    form: Form
    step_flops: Callable[..., int]  # (params' shapes, samples, trained) → operations of a gradient step, about
    fields: ReceptiveFields = DENSE  # of its neurons; k = m but of convolutions, where it is m times the places
    # width → factor on the learning rate of each parameter by name; without it, all learn at one rate.
    rates: Callable[[jax.Array], dict[str, jax.Array]] | None = None
    # Whether the first layer is drawn as `initialization` draws it; else `init` draws networks on R^d whole, and they
    # train there.
    has_frozen_part: bool = True
    # (params, x (d,), basis (d, r), *, norm, upper) → (), a radius within which no perturbation flips x, at best
    # `upper`, a distance at which one does; without one lower bounds are 0, but along lines those of
    # `Local.crossing`.
    certificate: Callable[..., jax.Array] | None = None
    # As `certificate`, with `known`, what that certified: dearer, and asked where a bracket is not tight yet.
    finer_certificate: Callable[..., jax.Array] | None = None
    # (params, x (n, d), basis (d, 2), *, norm) → `PlaneDistances` of points of one plane, exact; without it planes are
    # searched as larger regions are.
    plane: Callable[..., PlaneDistances] | None = None
    # (params, centre (d,), basis (d, 2), low (2,), high (2,)) → (k, 2, 2), both ends of each straight piece of the
    # decision boundary within a rectangle of the plane through a centre, exact, of NumPy; without it figures draw the
    # boundary as it is between places of a grid.
    boundary: Callable[..., np.ndarray] | None = None
    kernel: Kernel | None = None

    def __post_init__(self) -> None:
        """Refuse what is no function.

        Raises:
            TypeError: naming the field.
        """
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        optional = ("certificate", "finer_certificate", "plane", "boundary", "rates")
        others = {"form": Form, "kernel": Kernel | None, "fields": ReceptiveFields, "has_frozen_part": bool}
        for name, part in parts.items():
            expected = others.get(name, Callable)
            if not (isinstance(part, expected) or (name in optional and part is None)):
                raise TypeError(f"{name} {part!r}: must be a {getattr(expected, '__name__', 'Kernel')}")

    def preactivations(self, params: Any, x: jax.Array) -> jax.Array:
        """What the first layer makes of x (..., d): z (..., k), in a multilayer perceptron W x + b."""
        return self.fields.flat(affine(*self.first(params), self.fields.patches(x)))

    def preactivations_along(self, params: Any, basis: jax.Array) -> jax.Array:
        """How they vary, (k, r), along the columns of a basis (d, r): in a multilayer perceptron W basis."""
        weight, _ = self.first(params)
        if isinstance(self.fields, Dense):
            return weight @ basis
        return self.fields.flat(self.fields.patches(basis.T) @ weight.T).T

    def pulled_back(self, params: Any, a: jax.Array) -> jax.Array:
        """Gradient in x, (d,), of a (k,) times the preactivations: in a multilayer perceptron Wᵀ a."""
        weight, _ = self.first(params)
        if isinstance(self.fields, Dense):
            return a @ weight
        points = jnp.zeros(self.fields.ambient_dim, a.dtype)
        return jax.vjp(lambda x: self.preactivations(params, x), points)[1](a)[0]

    def output(self, params: Any, x: jax.Array) -> jax.Array:
        """N(x), (...), of x (..., d)."""
        return self.rest(params, self.preactivations(params, x))

    def sensitivity(self, params: Any, x: jax.Array) -> jax.Array:
        """a(x), (n, k), of x (n, d): the output's gradient in the first layer's preactivations."""
        return jax.vmap(jax.grad(lambda z: self.rest(params, z)))(self.preactivations(params, x))


class Design(NamedTuple):
    """What of a cell's settings shapes its model: static and hashable."""

    architecture: str
    ambient_dim: int  # of the points
    width: int  # padded, where networks of several widths share arrays
    depth: int
    parametrization: str
    kernel: int
    stride: int
    mixing: int
    padding: Padding
    layout: Layout

    @property
    def convolution(self) -> Convolution:
        """The receptive fields of convolutional networks."""
        return Convolution(self.ambient_dim, self.kernel, self.stride, self.mixing, self.padding, self.layout)


class Architecture(NamedTuple):
    """A row of `MODELS`: which model a design has, and what of the settings is read for it."""

    model: Callable[[Design], Model]  # one object for equal designs
    reads: tuple[str, ...] = ("init", "trainable", "width")  # fields of [network] that not all architectures read
    # The setting that no network of a design can have, and why; None if there is one.
    impossible: Callable[[Design], tuple[str, str] | None] = lambda design: None
    needs_signals: bool = False  # whether the order of a point's coordinates matters
    pads: bool = True  # whether networks of several widths share arrays, the narrower padded with inert neurons
    # The flax linen module whose parameters networks have; None where they have others.
    module: Callable[[Design], Any] = lambda design: None


def affine(weight: jax.Array, bias: jax.Array, x: jax.Array) -> jax.Array:
    """W x + b, (..., m), of x (..., d), W (m, d) and b (m,)."""
    inputs = x @ weight.T
    return inputs + jnp.broadcast_to(bias, inputs.shape)


def power_of_two(size: jax.Array) -> jax.Array:
    """The largest power of two that is not above a positive number; 1 for what is none."""
    usable = (size > 0) & jnp.isfinite(size)
    _, exponent = jnp.frexp(jnp.where(usable, size, 1))
    return jnp.ldexp(jnp.ones_like(size), exponent - 1)


def named(params: Any) -> dict[str, jax.Array]:
    """The arrays of a pytree by name: of a field, or of keys with dots between."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def renamed(like: Any, arrays: Mapping[str, Any]) -> Any:
    """A pytree of the structure of another one, of arrays by name."""
    return jax.tree.unflatten(jax.tree.structure(like), [arrays[name] for name in named(like)])


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
