"""Architectures, a row each of `MODELS`: what each tells training, attacks and measures of its networks."""

from subspace_adv.contracts import Architecture
from subspace_adv.models import autodiff, fused
from subspace_adv.models.certificates import crown_certificate, kink_certificate
from subspace_adv.models.cnn import CNN
from subspace_adv.models.mlp import MLP, TWO_LAYER
from subspace_adv.models.two_layer import TwoLayerLocal, first_crossing, local, rounding_allowance
from subspace_adv.models.two_layer_training import trained_fields
from subspace_adv.rows import Rows


def _check(name: str, row: object) -> None:
    if not isinstance(row, Architecture):
        raise TypeError(f"architecture {name!r}: must be an Architecture, not {type(row).__name__}")


MODELS: Rows[Architecture] = Rows("architecture", {"mlp": MLP, "cnn": CNN}, _check)
"""What `[network] architecture` may be."""


def architecture_of(name: str) -> Architecture:
    """The row of an architecture."""
    return MODELS[name]


__all__ = [
    "MODELS",
    "TWO_LAYER",
    "TwoLayerLocal",
    "architecture_of",
    "autodiff",
    "crown_certificate",
    "first_crossing",
    "fused",
    "kink_certificate",
    "local",
    "rounding_allowance",
    "trained_fields",
]
