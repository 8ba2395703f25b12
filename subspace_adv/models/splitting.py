"""Splits a function of flax layers into affine maps with ReLUs between, where it is such a chain."""

import enum
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from subspace_adv.contracts import named


class _Kind(enum.Enum):
    """How a value depends on what it is made of, with factors between that are constant and not negative."""

    PARAMETERS = "linear in the parameters"
    PLAIN = "linear in the activations before"
    WEIGHTED = "affine in the activations before, with coefficients and constants linear in the parameters"


@dataclass(frozen=True, eq=False)
class _Node:
    """A value of the function that is not constant."""

    kind: _Kind
    part: int  # number of the affine map that makes it; −1 of what holds no activations
    shape: tuple[int, ...]
    origin: "_Operation | str | None"  # a parameter's name; None of the activations that a map is given
    result: int = 0  # which of the operation's


@dataclass(frozen=True, eq=False)
class _Operation:
    """A primitive of JAX's with what it is given."""

    primitive: Any
    settings: dict[str, Any]
    inputs: tuple[Any, ...]  # nodes, or constants


class AffineMap(NamedTuple):
    """One of a function's affine maps."""

    given: _Node
    result: _Node

    def parameters(self) -> set[str]:
        """Names of those that it is made of."""
        return {node.origin for node in _behind(self.result, {}) if isinstance(node.origin, str)}

    def __call__(self, parameters: dict[str, jax.Array], h: jax.Array) -> jax.Array:
        """Of activations (..., k), what comes before the next ReLUs (..., k'), of parameters by name."""

        def one(row: jax.Array) -> jax.Array:
            return jnp.ravel(_evaluated(self, parameters, row.reshape(self.given.shape)))

        rows = jax.vmap(one)(h.reshape(math.prod(h.shape[:-1]), h.shape[-1]))
        return rows.reshape(*h.shape[:-1], *rows.shape[1:])  # not -1, which no rows at all leave open


class _NoChain(Exception):
    """A function is not of the kind that can be split."""


def split(function: Callable[[Any, jax.Array], jax.Array], params: Any, x: Any) -> tuple[AffineMap, ...] | None:
    """The affine maps that a function is made of, with a ReLU before each but the first.

    Each is linear in its parameters, with constant factors between that are not negative: dense layers, convolutions,
    flattening, means over places, all between one ReLU and the next, with one layer that has parameters. Everything
    else is no such chain: another activation, a connection that skips a ReLU, normalization, a subtraction, groups of
    channels, numbers of another type than the point's.

    Args:
        function: (params, x) → one number.
        params: shapes and types of a pytree of parameters.
        x: shape and type of a point.

    Returns:
        None if it is no such chain.
    """
    traced = jax.make_jaxpr(function)(params, x)
    nodes = [_Node(_Kind.PARAMETERS, -1, leaf.shape, name) for name, leaf in named(params).items()]
    reading = _Reading(_Node(_Kind.PLAIN, 0, x.shape, None), x.dtype)
    if any(leaf.dtype != x.dtype for leaf in jax.tree.leaves(params)):
        return None
    try:
        [output] = reading.follow(traced.jaxpr, traced.consts, [*nodes, reading.given])
        return reading.ended(output)
    except _NoChain:
        return None


class _Reading:
    """A function that is followed operation by operation."""

    def __init__(self, given: _Node, dtype: Any) -> None:
        self.given, self.dtype, self.maps = given, dtype, []

    def follow(self, jaxpr: Any, consts: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
        """Outputs of a traced function: nodes, or constants."""
        values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *inputs], strict=True))

        def value(atom: Any) -> Any:
            return atom.val if isinstance(atom, core.Literal) else values[atom]

        for equation in jaxpr.eqns:
            found = self._after(equation, [value(atom) for atom in equation.invars])
            values.update(zip(equation.outvars, found, strict=True))
        return [value(atom) for atom in jaxpr.outvars]

    def ended(self, output: Any) -> tuple[AffineMap, ...]:
        """All maps, the last of which makes the output."""
        self._end_map(output)
        if len(self.maps) < 2:
            raise _NoChain
        return tuple(self.maps)

    def _after(self, equation: Any, inputs: list[Any]) -> list[Any]:
        """Outputs of an operation."""
        inner = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
        if equation.primitive.name in _CALLS and inner is not None:
            closed = isinstance(inner, core.ClosedJaxpr)
            return self.follow(inner.jaxpr if closed else inner, inner.consts if closed else (), inputs)
        if not any(isinstance(given, _Node) for given in inputs):
            return _constants(equation, inputs)
        if any(out.aval.dtype != self.dtype for out in equation.outvars):
            raise _NoChain  # rounded in another type than is allowed for
        if equation.primitive.name == "max":
            return [self._relu(inputs, equation.outvars[0].aval.shape)]
        if equation.params.get("feature_group_count", 1) * equation.params.get("batch_group_count", 1) > 1:
            raise _NoChain  # JAX cannot pull several rows of coefficients back through groups at once
        kind, part = self._rule(equation.primitive.name)(inputs), max(_parts(inputs), default=-1)
        if part >= 0 and _parts(inputs) != {len(self.maps)}:
            raise _NoChain  # it skips a ReLU
        operation = _Operation(equation.primitive, equation.params, tuple(inputs))
        return [_Node(kind, part, out.aval.shape, operation, i) for i, out in enumerate(equation.outvars)]

    def _rule(self, name: str) -> Callable[[list[Any]], _Kind]:
        if name not in _RULES:
            raise _NoChain
        return _RULES[name]

    def _relu(self, inputs: list[Any], shape: tuple[int, ...]) -> _Node:
        """The activations, of a shape, that the next map is given."""
        constants = [given for given in inputs if not isinstance(given, _Node)]
        if len(constants) != 1 or np.any(np.asarray(constants[0])):
            raise _NoChain
        [before] = (given for given in inputs if isinstance(given, _Node))
        if before.shape != shape:
            raise _NoChain
        self._end_map(before)
        self.given = _Node(_Kind.PLAIN, len(self.maps), before.shape, None)
        return self.given

    def _end_map(self, result: Any) -> None:
        if not isinstance(result, _Node) or result.kind is not _Kind.WEIGHTED or result.part != len(self.maps):
            raise _NoChain
        self.maps.append(AffineMap(self.given, result))


_CALLS = {"jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "checkpoint", "remat2"}


def _constants(equation: Any, inputs: list[Any]) -> list[Any]:
    with jax.ensure_compile_time_eval():
        found = equation.primitive.bind(*inputs, **equation.params)
    return list(found) if equation.primitive.multiple_results else [found]


def _parts(inputs: Sequence[Any]) -> set[int]:
    return {given.part for given in inputs if isinstance(given, _Node) and given.part >= 0}


def _rearranged(inputs: list[Any]) -> _Kind:
    """Places moved, repeated, left out, added up, and filled up with zeros."""
    kinds = {given.kind for given in inputs if isinstance(given, _Node)}
    if len(kinds) > 1 or any(np.any(np.asarray(given)) for given in inputs if not isinstance(given, _Node)):
        raise _NoChain
    return kinds.pop()


def _sum(inputs: list[Any]) -> _Kind:
    """Terms of one kind, or constants that are parameters added to weighted activations."""
    if {given.kind for given in inputs if isinstance(given, _Node)} == {_Kind.WEIGHTED, _Kind.PARAMETERS}:
        return _Kind.WEIGHTED
    return _rearranged(inputs)


def _product(inputs: list[Any]) -> _Kind:
    nodes = [given for given in inputs if isinstance(given, _Node)]
    if len(nodes) == 2:
        if {node.kind for node in nodes} != {_Kind.PLAIN, _Kind.PARAMETERS}:
            raise _NoChain  # coefficients that are products of parameters
        return _Kind.WEIGHTED
    [constant] = (given for given in inputs if not isinstance(given, _Node))
    if not np.all(np.asarray(constant) >= 0):
        raise _NoChain
    return nodes[0].kind


def _quotient(inputs: list[Any]) -> _Kind:
    numerator, divisor = inputs
    if isinstance(divisor, _Node) or not np.all(np.asarray(divisor) > 0):
        raise _NoChain
    return numerator.kind


_REARRANGING = (
    "broadcast_in_dim",
    "concatenate",
    "copy",
    "pad",
    "reduce_sum",
    "reduce_window_sum",
    "reshape",
    "rev",
    "slice",
    "split",
    "squeeze",
    "transpose",
)
_RULES: dict[str, Callable[[list[Any]], _Kind]] = {
    **dict.fromkeys(_REARRANGING, _rearranged),
    **dict.fromkeys(("add", "add_any"), _sum),
    **dict.fromkeys(("mul", "dot_general", "conv_general_dilated"), _product),
    "div": _quotient,
}


def _behind(node: _Node, seen: dict[_Node, None]) -> Iterator[_Node]:
    """A node and all that it is made of, each once."""
    if node in seen:
        return
    seen[node] = None
    if isinstance(node.origin, _Operation):
        for given in node.origin.inputs:
            if isinstance(given, _Node):
                yield from _behind(given, seen)
    yield node


def _evaluated(affine_map: AffineMap, parameters: dict[str, jax.Array], h: jax.Array) -> jax.Array:
    values: dict[_Node, jax.Array] = {affine_map.given: h}
    results: dict[_Operation, list[jax.Array]] = {}
    for node in _behind(affine_map.result, {affine_map.given: None}):
        if isinstance(node.origin, str):
            values[node] = parameters[node.origin]
            continue
        assert isinstance(node.origin, _Operation)
        operation = node.origin
        if operation not in results:
            given = [values[given] if isinstance(given, _Node) else given for given in operation.inputs]
            made = operation.primitive.bind(*given, **operation.settings)
            results[operation] = made if operation.primitive.multiple_results else [made]
        values[node] = results[operation][node.result]
    return values[affine_map.result]
