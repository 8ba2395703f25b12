"""Parametrizations, a row each: how fast every layer learns, and how large the output is, as the width grows."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from subspace_adv.rows import Rows

Number = jax.Array | np.ndarray | float


class Rates(NamedTuple):
    """Of one layer: factors on the learning rate."""

    weight: Number
    bias: Number


class Parametrization(NamedTuple):
    """What is known of a parametrization (F18 in docs/theory.md).

    Rates are of optimizers that are linear in the gradient. Their arguments are a layer's fan-in and the width.
    """

    first: Callable[[Number, Number], Rates]
    hidden: Callable[[Number, Number], Rates]  # between the first layer and the head
    head: Callable[[Number, Number], Rates]
    head_deviation: Callable[[Number], Number]  # of the width: factor on the initial head


PARAMETRIZATIONS: Rows[Parametrization] = Rows(
    "parametrization",
    {
        "standard": Parametrization(
            first=lambda fan_in, width: Rates(1.0, 1.0),
            hidden=lambda fan_in, width: Rates(1.0, 1.0),
            head=lambda fan_in, width: Rates(1.0, 1.0),
            head_deviation=lambda width: 1.0,
        ),
        "ntk": Parametrization(
            first=lambda fan_in, width: Rates(1.0 / fan_in, 1.0),
            hidden=lambda fan_in, width: Rates(1.0 / fan_in, 1.0),
            head=lambda fan_in, width: Rates(1.0 / fan_in, 1.0),
            head_deviation=lambda width: 1.0,
        ),
        # The two-layer one; with more layers that of maximal updates (Yang and Hu 2021).
        "mean-field": Parametrization(
            first=lambda fan_in, width: Rates(width, width),
            hidden=lambda fan_in, width: Rates(1.0, width),
            head=lambda fan_in, width: Rates(1.0 / width, 1.0),
            head_deviation=lambda width: width**-0.5,
        ),
    },
)
