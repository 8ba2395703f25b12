"""Networks of flax layers: perceptrons of any depth, and convolutions."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from subspace_adv.contracts import Form, Model
from subspace_adv.flax_layers import Layers
from subspace_adv.initialization import Law, init_hidden, init_network
from subspace_adv.models import chain
from subspace_adv.parametrizations import PARAMETRIZATIONS, Parametrization, Rates
from subspace_adv.receptive_fields import Convolution, ReceptiveFields

# XLA on CPU runs sums written out over a few inputs or points as fused vector code, faster than the small products
# that they replace.
_MAX_INPUTS_WRITTEN_OUT = 8
_MAX_POINTS_WRITTEN_OUT = 16

Params = dict[str, dict[str, jax.Array]]


def model(depth: int, fields: ReceptiveFields, fan_in: int, parametrization: str) -> Model:
    """Networks of so many layers before the head.

    Args:
        depth: number of hidden layers.
        fields: what their neurons see.
        fan_in: inputs of a neuron of the first layer.
        parametrization: a row of `PARAMETRIZATIONS`.
    """

    def module(params: Params) -> Layers:
        return Layers(params["head"]["kernel"].shape[0], depth, fields)

    def maps(params: Params) -> tuple[Partial, ...]:
        names = [*(f"hidden_{layer}" for layer in range(1, depth)), "head"]
        return tuple(
            Partial(_map(fields, depth, layer), {name: params[name]}) for layer, name in enumerate(names, start=1)
        )

    def outputs_and_pullback(params: Params, patches: jax.Array) -> tuple[jax.Array, Callable[[jax.Array], Any]]:
        trained = module(params).clone(product=product)
        outputs: Any
        outputs, pullback = jax.vjp(lambda held: trained.apply({"params": held}, patches, method="behind"), params)
        return outputs, lambda output_gradient: pullback(output_gradient)[0]

    def init(key: jax.Array, width: jax.Array, init_scale: jax.Array, *, law: Law, basis: Any = None) -> Params:
        first = init_network(key, width, init_scale, law=law, basis=basis)
        taps = math.prod(fields.taps)
        hidden = {}
        for layer in range(1, depth):
            drawn = init_hidden(key, layer, width, init_scale, law=law, taps=taps)
            kernel = drawn.kernel.reshape(*fields.taps, law.padded_width, law.padded_width)
            hidden[f"hidden_{layer}"] = {"kernel": kernel, "bias": drawn.bias}
        begin = {"kernel": first.weight.T, "bias": first.bias}
        return {"hidden_0": begin, **hidden, "head": {"kernel": first.head[:, None], "bias": first.head_bias[None]}}

    def step_flops(shapes: Params, samples: int, trained: tuple[str, ...]) -> int:
        del trained
        return sum(_layer_flops(name, layer, samples, fields) for name, layer in shapes.items())

    rates = functools.partial(_rates, PARAMETRIZATIONS[parametrization], depth, fan_in, math.prod(fields.taps))
    return chain.model(
        init=init,
        first=lambda params: (params["hidden_0"]["kernel"].T, params["hidden_0"]["bias"]),
        with_first_weight=_with_first_weight,
        maps=maps,
        trained=functools.partial(_trained, depth),
        fields=fields,
        form=Form(lambda params: params, lambda params: params, outputs_and_pullback, compensated=False),
        step_flops=step_flops,
        rates=None if parametrization == "standard" else rates,
    )


@functools.lru_cache(maxsize=256)
def as_given(depth: int, fields: ReceptiveFields) -> Model:
    """Of networks that are neither drawn nor trained, and of any widths; one object for equal arguments."""
    return model(depth, fields, 1, "standard")


@functools.lru_cache(maxsize=1024)
def _map(fields: ReceptiveFields, depth: int, layer: int) -> Callable[[Params, jax.Array], jax.Array]:
    """An affine map of a layer's own parameters and of activations (..., k); one object for equal arguments."""

    def affine(own: Params, h: jax.Array) -> jax.Array:
        [parameters] = own.values()
        width = parameters["kernel"].shape[-2] if layer == depth else parameters["kernel"].shape[-1]
        made_of = Layers(width, depth, fields)
        return made_of.apply({"params": own}, layer, h, method="affine")  # pyright: ignore[reportReturnType]

    return affine


def _with_first_weight(params: Params, weight: jax.Array) -> Params:
    # Tests of the contract put a marker in the weight's place.
    kernel = weight.T if hasattr(weight, "T") else weight
    return params | {"hidden_0": params["hidden_0"] | {"kernel": kernel}}


def _trained(depth: int, init: str, trainable: str) -> tuple[str, ...]:
    """Names of the parameters trained: all, or all but the head; init "theory" has no biases."""
    layers = [f"hidden_{layer}" for layer in range(depth)] + (["head"] if trainable == "all" else [])
    parts = ("kernel",) if init == "theory" else ("kernel", "bias")
    return tuple(f"{layer}.{part}" for layer in layers for part in parts)


def _rates(
    parametrization: Parametrization, depth: int, fan_in: int, taps: int, width: jax.Array
) -> dict[str, jax.Array]:
    """Factors on the learning rate of every parameter by name."""
    m = width.astype(jnp.float32)
    of_layers = {"hidden_0": parametrization.first(fan_in, m), "head": parametrization.head(m, m)}
    of_layers |= {f"hidden_{layer}": parametrization.hidden(taps * m, m) for layer in range(1, depth)}
    return {f"{layer}.{part}": _rate(rates, part) for layer, rates in of_layers.items() for part in ("kernel", "bias")}


def _rate(rates: Rates, part: str) -> jax.Array:
    return jnp.asarray(rates.weight if part == "kernel" else rates.bias, jnp.float32)


def _layer_flops(name: str, layer: dict[str, Any], samples: int, fields: ReceptiveFields) -> int:
    """Operations of a gradient step: forward, both products backward, and the update."""
    size = math.prod(layer["kernel"].shape)
    places = 1
    if isinstance(fields, Convolution) and name != "head":
        places = fields.places(int(name.removeprefix("hidden_"))) ** fields.dimensions
    products = 2 if name == "hidden_0" else 3
    return 2 * products * samples * places * size + 4 * size


# Products ---------------------------------------------------------------------------------------------------------


@jax.custom_vjp
def product(rows: jax.Array, matrix: jax.Array) -> jax.Array:
    """Rows (n, i) times a matrix (i, j), written out where small.

    A matrix's gradient is a sum of outer products, one a row. Written out, XLA adds it to the matrix in one pass, and
    never stores it.
    """
    if rows.shape[1] > _MAX_INPUTS_WRITTEN_OUT:
        return rows @ matrix
    return functools.reduce(jnp.add, (rows[:, i, None] * matrix[i][None] for i in range(len(matrix))))


def _product_forward(rows: jax.Array, matrix: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return product(rows, matrix), (rows, matrix)


def _product_backward(held: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    rows, matrix = held
    if len(rows) > _MAX_POINTS_WRITTEN_OUT:
        of_matrix = rows.T @ gradient
    else:
        of_matrix = functools.reduce(jnp.add, (rows[i][:, None] * gradient[i][None] for i in range(len(rows))))
    return gradient @ matrix.T, of_matrix


product.defvjp(_product_forward, _product_backward)
