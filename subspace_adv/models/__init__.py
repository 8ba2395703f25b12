"""Architectures, a row each of `MODELS`: what each tells training, attacks and measures of its networks."""

from subspace_adv.contracts import Architecture
from subspace_adv.models import autodiff, fused
from subspace_adv.models.certificates import crown_certificate, kink_certificate
from subspace_adv.models.cnn import CNN
from subspace_adv.models.layers import as_given
from subspace_adv.models.mlp import MLP, TWO_LAYER
from subspace_adv.models.module import (
    ANY_CLASS,
    ASKED,
    MODULE,
    class_of,
    hand_over,
    is_class_name,
    is_known,
    must_fit,
    unread,
)
from subspace_adv.models.two_layer import TwoLayerLocal, first_crossing, local, rounding_allowance
from subspace_adv.models.two_layer_training import trained_fields
from subspace_adv.rows import Rows


def _check(name: str, row: object) -> None:
    if not isinstance(row, Architecture):
        raise TypeError(f"architecture {name!r}: must be an Architecture, not {type(row).__name__}")


MODELS: Rows[Architecture] = Rows("architecture", {"mlp": MLP, "cnn": CNN, ANY_CLASS: MODULE}, _check)
"""What `[network] architecture` may be; the last row is that of every class of the user's own."""


def row_name(architecture: str) -> str:
    """Name of an architecture's row."""
    return ANY_CLASS if is_class_name(architecture) else architecture


def architecture_of(architecture: str) -> Architecture:
    """Row of an architecture."""
    return MODELS[row_name(architecture)]


def architecture_name(value: object) -> str:
    """A value of the setting, which must be the name of a row, or of a class.

    Raises:
        ValueError: telling what it must be.
    """
    return str(value) if is_class_name(value) else MODELS.name(value)


__all__ = [
    "ASKED",
    "MODELS",
    "TWO_LAYER",
    "TwoLayerLocal",
    "architecture_name",
    "architecture_of",
    "as_given",
    "autodiff",
    "class_of",
    "crown_certificate",
    "first_crossing",
    "fused",
    "hand_over",
    "is_class_name",
    "is_known",
    "kink_certificate",
    "local",
    "must_fit",
    "rounding_allowance",
    "row_name",
    "trained_fields",
    "unread",
]
