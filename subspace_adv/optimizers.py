"""The optimizers, a row each: the optax transformation, what it reads, and what it does to weights that never learn."""

import enum
from collections.abc import Callable
from typing import NamedTuple

import jax
import optax

from subspace_adv.rows import Rows


class Hyper(NamedTuple):
    """What may differ from network to network in one program; scalars."""

    learning_rate: jax.Array  # float32
    weight_decay: jax.Array  # float32, λ: adds λθ to the gradient of every trained θ
    momentum: jax.Array  # float32, read by optimizers that say so
    batch_size: jax.Array  # int32, likewise
    stop_margin: jax.Array  # float32
    max_steps: jax.Array  # int32
    width: jax.Array | None = None  # int32, read by parametrizations


class OffPart(enum.Enum):
    """What an optimizer does to the part of the weights off the span of the data, whose loss gradient is zero."""

    SCALED = "scaled"  # every weight by the factor of `theory.decay`, of plain or heavy-ball steps (F1)
    COORDINATEWISE = "coordinatewise"  # each coordinate by itself; without weight decay, nothing where gradients are 0
    UNKNOWN = "unknown"  # so that training is never reduced to the span


class Optimizer(NamedTuple):
    """What is known of an optimizer."""

    make: Callable[[Hyper], optax.GradientTransformation]  # of the gradient with weight decay
    off: OffPart
    reads: tuple[str, ...] = ()  # hyperparameters that only some optimizers read
    moments: int = 0  # copies of the trained parameters that it keeps
    in_kernel: bool = False  # whether the kernel of `fused` knows it

    @property
    def full_batch(self) -> bool:
        """Whether each step is on all points."""
        return "batch_size" not in self.reads


def readers(hyperparameter: str) -> tuple[str, ...]:
    """Names of the optimizers that read a hyperparameter of which not all do."""
    return tuple(name for name, row in OPTIMIZERS.items() if hyperparameter in row.reads)


OPTIMIZERS: Rows[Optimizer] = Rows(
    "optimizer",
    {
        "gd": Optimizer(
            make=lambda hyper: optax.sgd(hyper.learning_rate),
            off=OffPart.SCALED,
            in_kernel=True,
        ),
        "momentum": Optimizer(
            make=lambda hyper: optax.sgd(hyper.learning_rate, momentum=hyper.momentum),
            off=OffPart.SCALED,
            reads=("momentum",),
            moments=1,
            in_kernel=True,
        ),
        "sgd": Optimizer(
            make=lambda hyper: optax.sgd(hyper.learning_rate),
            off=OffPart.SCALED,
            reads=("batch_size",),
        ),
        "adam": Optimizer(
            make=lambda hyper: optax.adam(hyper.learning_rate),
            off=OffPart.COORDINATEWISE,
            moments=2,
        ),
    },
)
