"""A chain of dense layers with ReLUs between, read from arrays by name, as PyTorch and flax keep them."""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from subspace_adv.arrays import array
from subspace_adv.errors import UserError, brief

_AGREES = 1e-5  # share of the largest output, by which rounding in float32 may change one
_HEADS = (1, 2)  # outputs, of one number or of two logits
_KERNEL = "kernel"  # as flax calls a weight, of the other orientation: (in, out)


class Layer(NamedTuple):
    """An affine map of activations, in float64."""

    weight: np.ndarray  # (out, in)
    bias: np.ndarray  # (out,)


def layers_of(
    arrays: Mapping[str, Any],
    *,
    mean: Any = None,
    std: Any = None,
    x: Any = None,
    outputs: Any = None,
    where: str,
) -> list[Layer]:
    """The layers of a network R^d → R from the first to the head; arguments as of `Network.from_state_dict`.

    Args:
        arrays: by name.
        mean: taken from every input, ().
        std: by which inputs are divided then.
        x: points at which outputs are known.
        outputs: at these points.
        where: messages begin with this.

    Raises:
        UserError: if they are no such chain, or its outputs are others.
    """
    layers = list(_in_order(where, _named_layers(where, arrays)).values())
    layers[0] = _normalized(where, layers[0], mean, std)
    if outputs is not None or x is not None:
        _check_outputs(where, layers, x, outputs)
    *hidden, head = layers
    if len(head.bias) == 2:
        head = Layer(np.diff(head.weight, axis=0), np.diff(head.bias))
    return [*hidden, head]


def _flattened(where: str, given: Any, outer: str = "") -> dict[str, Any]:
    """Entries of a mapping, or of mappings within it, by names with dots between."""
    if not isinstance(given, Mapping):
        raise UserError(f"{where}: must be a mapping of names to arrays, as model.state_dict() is, not {brief(given)}")
    found = {}
    for key, value in given.items():
        name = f"{outer}{key}".replace("/", ".")
        more = _flattened(where, value, f"{name}.") if isinstance(value, Mapping) else {name: value}
        if twice := found.keys() & more.keys():
            raise UserError(f"{where}: {min(twice)}: there are two arrays of this name")
        found |= more
    return found


def _named_layers(where: str, given: Any) -> dict[str, Layer]:
    """Layers by the names of their weights, in no order."""
    weights, biases = {}, {}
    for name, value in _flattened(where, given).items():
        stem, _, part = name.rpartition(".")
        if part not in ("weight", _KERNEL, "bias"):
            told = "is no weight or bias of a dense layer (kernel or bias, in flax's words)"
            raise UserError(f"{where}: {name}: {told}; networks are dense layers with ReLUs between, and nothing else")
        if part == "bias":
            biases[stem] = array(f"{where}: {name}", value, 1, "(out,)")
            continue
        shape = "(in, out)" if part == _KERNEL else "(out, in)"
        weight = array(f"{where}: {name}", value, 2, f"{shape} of a dense layer, and nothing else has weights")
        if not weight.size:
            raise UserError(f"{where}: {name}: is of shape {weight.shape}; must not be empty")
        weights[name] = weight.T if part == _KERNEL else weight
    layers = {}
    for name, weight in weights.items():
        bias = biases.pop(name.rpartition(".")[0], np.zeros(len(weight)))
        if len(bias) == weight.shape[1] != len(weight):
            raise UserError(_transposed(where, name, weight, f"its bias is of shape {bias.shape}"))
        if len(bias) != len(weight):
            told = f"{name} yields {len(weight)} and its bias is of shape {bias.shape}; must be ({len(weight)},)"
            raise UserError(f"{where}: {told}")
        layers[name] = Layer(weight, bias)
    if biases:
        name = next(iter(biases))
        raise UserError(f"{where}: {name}.bias: is the bias of a layer whose weight is missing")
    if len(layers) < 2:
        told = f"holds {'one layer, ' + next(iter(layers)) if layers else 'no layer'}"
        raise UserError(f"{where}: {told}; must hold at least two, a hidden one and a head")
    return layers


def _transposed(where: str, name: str, weight: np.ndarray, why: str) -> str:
    is_kernel = name.rpartition(".")[2] == _KERNEL
    shape = weight.T.shape if is_kernel else weight.shape
    orientation = "(in, out), as of flax's kernels" if is_kernel else "(out, in), as PyTorch's are"
    return f"{where}: {name}: is of shape {shape}, but {why}: it fits transposed; must be {orientation}"


# Order ------------------------------------------------------------------------------------------------------------


def _in_order(where: str, layers: dict[str, Layer]) -> dict[str, Layer]:
    """Layers from the first to the head: as the numbers in their names say, and as they fit together."""
    orders = _orders(layers)
    if not orders:
        raise UserError(_misfit(where, layers))
    if len(orders) > 1:
        told = f"layers {brief(list(layers))} fit together in several orders"
        raise UserError(f"{where}: {told}; name them by numbers, such as '0.weight', '1.weight'")
    return {name: layers[name] for name in orders[0]}


def _orders(layers: Mapping[str, Layer], *, head: Sequence[int] | None = _HEADS) -> list[tuple[str, ...]]:
    """Orders in which each layer takes what the one before it yields, up to two of them.

    Layers whose names differ first in a number follow by that number.

    Args:
        layers: by name.
        head: how many outputs the last one may have; any if None.
    """

    def extended(done: tuple[str, ...], left: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        if not left and (head is None or len(layers[done[-1]].bias) in head):
            yield done
        for name in left:
            fits = not done or len(layers[done[-1]].bias) == layers[name].weight.shape[1]
            if fits and not any(_precedes(other, name) for other in left):
                yield from extended((*done, name), tuple(other for other in left if other != name))

    return [] if _loose(layers) else list(itertools.islice(extended((), tuple(layers)), 2))


def _precedes(one: str, other: str) -> bool:
    """Whether two names differ first in a number, which is less in the first."""
    pairs = zip(re.split(r"(\d+)", one), re.split(r"(\d+)", other), strict=False)
    a, b = next(((a, b) for a, b in pairs if a != b), ("", ""))
    return a.isdecimal() and b.isdecimal() and int(a) < int(b)


def _loose(layers: Mapping[str, Layer]) -> tuple[list[str], list[str]] | None:
    """Layers that take, and that yield, what no other one yields or takes; None where one of each is: both ends."""
    firsts, lasts = [], []
    for name, layer in layers.items():
        others = [other for key, other in layers.items() if key != name]
        if all(len(other.bias) != layer.weight.shape[1] for other in others):
            firsts.append(name)
        if all(other.weight.shape[1] != len(layer.bias) for other in others):
            lasts.append(name)
    return (firsts, lasts) if len(firsts) > 1 or len(lasts) > 1 else None


def _misfit(where: str, layers: dict[str, Layer]) -> str:
    """Why layers do not make a chain."""
    flipped = {name: Layer(layer.weight.T, np.zeros(layer.weight.shape[1])) for name, layer in layers.items()}
    for name, layer in layers.items():
        if _orders(layers | {name: flipped[name]}):
            return _transposed(where, name, layer.weight, "the others do not fit it")
    if _orders(flipped):
        return _transposed(where, *next((name, layer.weight) for name, layer in layers.items()), "none fits another")
    if chains := _orders(layers, head=None):
        name = chains[0][-1]
        told = f"{name} yields {len(layers[name].bias)} outputs; must be 1, or 2 logits, whose difference is taken"
        return f"{where}: {told}; of more classes keep the rows of two in the last layer"
    firsts, lasts = _loose(layers) or ([], [])
    if len(firsts) > 1:
        name = firsts[1]
        sizes = f"takes {layers[name].weight.shape[1]} inputs, and no other layer yields as many"
        return f"{where}: {name} {sizes}: a layer is missing before it, or this one is too many"
    if len(lasts) > 1:
        name = next((name for name in lasts if len(layers[name].bias) not in _HEADS), lasts[0])
        sizes = f"yields {len(layers[name].bias)}, and no other layer takes as many"
        return f"{where}: {name} {sizes}: a layer is missing behind it, or this one is too many"
    shapes = ", ".join(f"{name} {layer.weight.shape}" for name, layer in layers.items())
    return f"{where}: the layers do not fit one behind another: {shapes[:200]}"


# Inputs and outputs -------------------------------------------------------------------------------------------------


def _normalized(where: str, first: Layer, mean: Any, std: Any) -> Layer:
    """The first layer of a network that is given (x − mean)/std, as one that is given x."""
    d = first.weight.shape[1]
    shift, scale = (_per_input(f"{where}: {name}", given, d) for name, given in (("mean", mean), ("std", std)))
    if scale is not None and not (scale > 0).all():
        raise UserError(f"{where}: std: holds {scale[scale <= 0][0]:g}; must be positive")
    with np.errstate(all="ignore"):  # told below
        weight = first.weight if scale is None else first.weight / scale
        bias = first.bias if shift is None else first.bias - weight @ shift
    if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
        raise UserError(f"{where}: mean and std: make weights of the first layer infinite; rescale the inputs")
    return Layer(weight, bias)


def _per_input(where: str, given: Any, d: int) -> np.ndarray | None:
    """A number for each input (d,), of one for each or for all; None of None."""
    if given is None:
        return None
    try:
        dimensions = min(np.ndim(given), 1)
    except ValueError:  # lists of different lengths
        dimensions = 1
    found = array(where, given, dimensions, f"() or ({d},)")
    if found.shape not in ((), (1,), (d,)):
        raise UserError(f"{where}: is of shape {found.shape}; must be one number, or one for each of the {d} inputs")
    return np.broadcast_to(found, d)


def _check_outputs(where: str, layers: Sequence[Layer], x: Any, outputs: Any) -> None:
    """Compare a network's outputs with what they are told to be."""
    if x is None or outputs is None:
        raise UserError(
            f"{where}: {'outputs' if x is None else 'x'}: give both, points and the network's outputs there"
        )
    d, heads = layers[0].weight.shape[1], len(layers[-1].bias)
    points = array(f"{where}: x", x, 2, f"(n, {d})")
    if not points.size or points.shape[1] != d:
        raise UserError(f"{where}: x: is of shape {points.shape}; must be points (n, {d}), as the first layer takes")
    given = array(f"{where}: outputs", outputs, min(max(np.ndim(outputs), 1), 2), f"({len(points)}, {heads})")
    shapes = [(len(points), heads), *([(len(points),)] if heads == 1 else [])]
    if given.shape not in shapes:
        told = " or ".join(map(str, shapes))
        raise UserError(f"{where}: outputs: is of shape {given.shape}; must be {told}, of {len(points)} points")
    found = points
    for layer in layers[:-1]:
        found = np.maximum(found @ layer.weight.T + layer.bias, 0)
    found = found @ layers[-1].weight.T + layers[-1].bias
    gap = np.abs(found - given.reshape(found.shape)).max(axis=1)
    worst = int(np.argmax(gap))
    if gap[worst] > _AGREES * np.abs(given).max(initial=np.abs(found).max()):
        told = f"given are {_numbers(given[worst])} at point {worst}, and the network yields {_numbers(found[worst])}"
        raise UserError(f"{where}: outputs: {told}; {_UNLIKE}")


_UNLIKE = "is its activation another one than ReLU, or are its inputs normalized (mean, std)?"


def _numbers(values: np.ndarray) -> str:
    return " and ".join(f"{value:.6g}" for value in np.atleast_1d(values))
