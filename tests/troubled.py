"""Networks that make trouble for bounds, and trained ones, also after steps that throw neurons far off."""

import numpy as np
import reference
from descent import Settings, descend

from subspace_adv.network import Network


def degenerate(rng: np.random.Generator, kind: int, width: int, dim: int) -> Network:
    """A random network, or one that has what makes trouble: of kinds from 0 to 9."""
    network = reference.random_network(rng, width, dim)
    weight, bias, head, head_bias = (np.array(part) for part in network)
    half = width // 2
    match kind:
        case 1:  # duplicated neurons, that aid and oppose
            weight[1::2], bias[1::2], head[1::2] = weight[::2], bias[::2], -head[::2] * (1 + 1e-9)
        case 2:  # neurons that do not vary, or do nothing
            weight[:10], head[10:14] = 0, 0
        case 3:  # kinks through one point
            bias = -weight @ np.full(dim, 0.5)
        case 4:  # dead around the points, alive far away
            bias = bias - 40
        case 5:  # sizes of the input and the output
            weight, bias, head, head_bias = weight * 1e-30, bias * 1e-30, head * 1e70, head_bias * 1e40
        case 6:  # all neurons at one another's kinks
            weight[:] = weight[0]
        case 7:  # never flips
            head, head_bias = np.abs(head), np.abs(head_bias) + 1
        case 8:  # terms that cancel to a trillionth
            weight[half:], bias[half:], head[half:] = weight[:half], bias[:half], -head[:half]
            head[0] *= 1 + 1e-12
        case 9:  # neurons of all sizes
            sizes = 10.0 ** rng.uniform(-3, 3, width)
            weight, bias, head = weight * sizes[:, None], bias * sizes, head / sizes
    return Network(weight, bias, head, head_bias)


def cancelling(rng: np.random.Generator, width: int, dim: int) -> Network:
    """An output of a trillionth of its terms, all around: neurons of opposite heads and nearly the same kinks."""
    weight = reference.random_network(rng, width // 2, dim).weight
    bias, head = rng.uniform(8, 12, width // 2), rng.standard_normal(width // 2)
    return Network(
        np.concatenate([weight, weight * (1 + 1e-12)]), np.append(bias, bias * (1 + 2e-12)), np.append(head, -head), 0.0
    )


def descended(rng: np.random.Generator, x: np.ndarray, learning_rates: list[float], width: int) -> list[Network]:
    """Networks after 200 steps of gradient descent on points x (n, d) whose labels alternate, one at each rate."""
    count, (n, dim) = len(learning_rates), x.shape
    start = reference.stacked([reference.random_network(rng, width, dim) for _ in range(count)])
    y = np.where(np.arange(n) % 2, 1.0, -1.0)
    settings = Settings(np.array(learning_rates), *(np.full(count, value) for value in (0.0, 0.0, 0.3, 200)))
    with np.errstate(over="ignore"):
        found = descend(start, np.tile(x, (count, 1, 1)), np.tile(y, (count, 1)), settings, optimizer="gd")
    return [Network(*(field[i] for field in found.networks)) for i in range(count)]
