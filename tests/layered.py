"""Layered networks in float64 NumPy, by loops over places and the chain rule; it shares no code with the package."""

import itertools
from typing import NamedTuple

import numpy as np

Arrays = dict[str, dict[str, np.ndarray]]


class Shape(NamedTuple):
    """Of a network of several layers; a perceptron where there is no kernel."""

    depth: int
    kernel: int = 0
    stride: int = 1
    mixing: int = 3
    padding: str = "circular"
    layout: str = "signal"


def double(params: Arrays) -> Arrays:
    """The parameters of one network, as float64."""
    return {
        name: {part: np.array(values, np.float64) for part, values in layer.items()} for name, layer in params.items()
    }


def windows(side: int, kernel: int, stride: int, padding: str, dimensions: int) -> np.ndarray:
    """Places (outputs, inputs) that each output place sees, of a line or a square counted row by row."""
    last = side - 1 if padding == "circular" else side - kernel
    starts = [start for start in range(side) if start % stride == 0 and start <= last]
    found = []
    for corner in itertools.product(starts, repeat=dimensions):
        seen = []
        for shift in itertools.product(range(kernel), repeat=dimensions):
            place = [(c + s) % side for c, s in zip(corner, shift, strict=True)]
            seen.append(place[0] if dimensions == 1 else side * place[0] + place[1])
        found.append(seen)
    return np.array(found)


def sights(shape: Shape, d: int) -> list[np.ndarray]:
    """What each layer's places see of those before, a list of (outputs, inputs)."""
    dimensions = 1 if shape.layout == "signal" else 2
    side = round(d ** (1 / dimensions))
    found = [windows(side, shape.kernel, shape.stride, shape.padding, dimensions)]
    for _ in range(1, shape.depth):
        side = round(len(found[-1]) ** (1 / dimensions))
        found.append(windows(side, shape.mixing, 1, shape.padding, dimensions))
    return found


def matrix(layer: dict[str, np.ndarray]) -> np.ndarray:
    """Kernel of a layer, (inputs, m): tap by tap, and channel by channel within each."""
    return layer["kernel"].reshape(-1, layer["kernel"].shape[-1])


class Pass(NamedTuple):
    """Of some points through a network."""

    outputs: np.ndarray  # (n,)
    seen: list[np.ndarray]  # what each layer saw, (n, places, inputs)
    hidden: list[np.ndarray]  # its preactivations, (n, places, m)


def forward(params: Arrays, x: np.ndarray, shape: Shape) -> Pass:
    """Outputs at points (n, d), and all that is on the way."""
    places = sights(shape, x.shape[1]) if shape.kernel else None
    h, seen, hidden = (x[:, :, None] if places else x[:, None]), [], []
    for layer in range(shape.depth):
        if places:
            h = h[:, places[layer]].reshape(len(x), len(places[layer]), -1)
        seen.append(h)
        hidden.append(h @ matrix(params[f"hidden_{layer}"]) + params[f"hidden_{layer}"]["bias"])
        h = np.maximum(hidden[-1], 0)
    pooled = h.mean(axis=1)
    outputs = pooled @ params["head"]["kernel"][:, 0] + params["head"]["bias"][0]
    return Pass(outputs, [*seen, pooled], hidden)


def backward(params: Arrays, x: np.ndarray, shape: Shape, of_outputs: np.ndarray) -> tuple[Arrays, np.ndarray]:
    """Gradients of Σ of_outputs·N in the parameters, and in the first layer's preactivations (n, places, m)."""
    places = sights(shape, x.shape[1]) if shape.kernel else None
    passed = forward(params, x, shape)
    head = {"kernel": (passed.seen[-1].T @ of_outputs)[:, None], "bias": of_outputs.sum(keepdims=True)}
    gradient: Arrays = {"head": head}
    count = passed.hidden[-1].shape[1]
    of_hidden = np.repeat(of_outputs[:, None, None] * params["head"]["kernel"][:, 0] / count, count, axis=1)
    for layer in reversed(range(shape.depth)):
        of_hidden = of_hidden * (passed.hidden[layer] > 0)
        kernel = np.einsum("npi,npj->ij", passed.seen[layer], of_hidden)
        kernel = kernel.reshape(params[f"hidden_{layer}"]["kernel"].shape)
        gradient[f"hidden_{layer}"] = {"kernel": kernel, "bias": of_hidden.sum(axis=(0, 1))}
        if not layer:
            return gradient, of_hidden
        of_seen = of_hidden @ matrix(params[f"hidden_{layer}"]).T
        if places:
            below = np.zeros_like(passed.hidden[layer - 1])
            taps = of_seen.reshape(*of_seen.shape[:2], places[layer].shape[1], -1)
            for place, tap in np.ndindex(*places[layer].shape):
                below[:, places[layer][place, tap]] += taps[:, place, tap]
            of_seen = below
        of_hidden = of_seen
    raise AssertionError


def descend(
    params: Arrays, x: np.ndarray, y: np.ndarray, shape: Shape, rates: dict[str, float], decay: float, steps: int
) -> list[Arrays]:
    """Networks after each step of gradient descent on the logistic loss; a rate for each trained parameter by name."""
    at, found = double(params), [double(params)]
    for _ in range(steps):
        margins = y * forward(at, x, shape).outputs
        gradient, _ = backward(at, x, shape, -y / (1 + np.exp(margins)) / len(y))
        for name, rate in rates.items():
            layer, part = name.split(".")
            at[layer][part] = at[layer][part] - rate * (gradient[layer][part] + decay * at[layer][part])
        found.append(double(at))
    return found
