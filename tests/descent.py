"""Training in float64 NumPy, in ambient coordinates and by the chain rule; it shares no code with the package."""

from typing import NamedTuple

import numpy as np

from subspace_adv.network import Network

Arrays = dict[str, np.ndarray]
_MEANS, _TINY = (0.9, 0.999), 1e-8  # of Adam's moments (Kingma and Ba 2015)


class Settings(NamedTuple):
    """Of each network, (cells,)."""

    learning_rate: np.ndarray
    weight_decay: np.ndarray
    momentum: np.ndarray
    stop_margin: np.ndarray
    max_steps: np.ndarray


class Descent(NamedTuple):
    """Where networks ended."""

    networks: Network  # (cells, …), float64
    converged: np.ndarray  # (cells,), else at max_steps
    steps: np.ndarray  # (cells,)


def descend(
    start: Network,
    x: np.ndarray,
    y: np.ndarray,
    settings: Settings,
    *,
    optimizer: str,
    loss: str = "logistic",
    trained: tuple[str, ...] = Network._fields,
    shares: np.ndarray | None = None,
) -> Descent:
    """Train many networks at once, each until all its margins are over its stop margin after a step.

    Args:
        start: networks, (cells, …).
        x: points of each, (cells, n, d).
        y: their labels (cells, n).
        settings: of each.
        optimizer: "gd", "sgd", "momentum" or "adam".
        loss: "logistic" or "exponential".
        trained: fields that are trained.
        shares: (steps, cells, n), of the points in the loss of each step; 1/n where none are given.
    """
    at = _double(start._asdict())
    x, y, settings = np.float64(x), np.float64(y), Settings(*map(np.float64, settings))
    first, second = ({name: np.zeros_like(at[name]) for name in trained} for _ in range(2))
    cells = len(x)
    steps, converged, going_on = np.zeros(cells, int), np.zeros(cells, bool), np.ones(cells, bool)
    for step in range(int(settings.max_steps.max()) + 1):
        z = np.einsum("cnd,cmd->cnm", x, at["weight"]) + at["bias"][:, None]
        margins = y * (np.einsum("cnm,cm->cn", np.maximum(z, 0), at["head"]) + at["head_bias"][:, None])
        if step:
            converged |= going_on & (margins.min(axis=1) > settings.stop_margin)
        going_on &= ~converged & (step < settings.max_steps)
        if not going_on.any():
            break
        share = np.full(y.shape, 1 / y.shape[1]) if shares is None else shares[step]
        gradient = _gradient(at, x, z, share * y * _slope(margins, loss))
        for name in trained:
            force = gradient[name] + _beside(settings.weight_decay, at[name]) * at[name]
            first[name], second[name], move = _move(optimizer, first[name], second[name], force, settings, step + 1)
            moved = at[name] - _beside(settings.learning_rate, move) * move
            at[name] = np.where(_beside(going_on, move), moved, at[name])
        steps[going_on] += 1
    return Descent(Network(**at), converged, steps)


def _double(arrays: Arrays) -> Arrays:
    return {name: np.array(values, np.float64) for name, values in arrays.items()}


def _beside(values: np.ndarray, array: np.ndarray) -> np.ndarray:
    """Numbers of each network, shaped to broadcast over an array of theirs."""
    return values.reshape(-1, *(1,) * (array.ndim - 1))


def _slope(margins: np.ndarray, loss: str) -> np.ndarray:
    return -np.exp(-margins) if loss == "exponential" else -1 / (1 + np.exp(margins))


def _gradient(at: Arrays, x: np.ndarray, z: np.ndarray, of_output: np.ndarray) -> Arrays:
    hidden = of_output[:, :, None] * (z > 0) * at["head"][:, None]
    return {
        "weight": np.einsum("cnm,cnd->cmd", hidden, x),
        "bias": hidden.sum(axis=1),
        "head": np.einsum("cn,cnm->cm", of_output, np.maximum(z, 0)),
        "head_bias": of_output.sum(axis=1),
    }


def _move(
    optimizer: str, first: np.ndarray, second: np.ndarray, force: np.ndarray, settings: Settings, step: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Both moments after a step, and what the learning rate multiplies."""
    if optimizer == "momentum":
        first = _beside(settings.momentum, force) * first + force
        return first, second, first
    if optimizer == "adam":
        first, second = (
            mean * old + (1 - mean) * new
            for mean, old, new in zip(_MEANS, (first, second), (force, force**2), strict=True)
        )
        unbiased = (moment / (1 - mean**step) for mean, moment in zip(_MEANS, (first, second), strict=True))
        one, two = unbiased
        return first, second, one / (np.sqrt(two) + _TINY)
    return first, second, force
