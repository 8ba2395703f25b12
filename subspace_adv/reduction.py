"""Where training in coordinates of the span of what the first layer sees is exact (F13, F19 in docs/theory.md)."""

from typing import NamedTuple

from subspace_adv.optimizers import OPTIMIZERS, OffPart


class InputSpan(NamedTuple):
    """The span of all that neurons of the first layer see: of the data, or of all patches of them."""

    fan_in: int  # coordinates that a neuron sees
    dimension: int
    is_axis_aligned: bool  # whether it is one of coordinate axes

    @property
    def is_whole(self) -> bool:
        """Whether nothing is off it."""
        return self.dimension == self.fan_in


def reduction(span: InputSpan, optimizer: str, weight_decay: float) -> tuple[bool, str]:
    """Whether training in coordinates of the span is exact (F2, F19 in docs/theory.md), and why.

    Args:
        span: of what the first layer sees.
        optimizer: by name.
        weight_decay: λ.
    """
    off = OPTIMIZERS[optimizer].off
    if off is OffPart.UNKNOWN:
        return False, f"what {optimizer} does to weights off the span of the data is not known"
    if off is OffPart.SCALED:
        return True, f"{optimizer} moves weights off the span of the data by decay alone"
    if not span.is_axis_aligned:
        return False, f"{optimizer} steps by coordinates, and the span of the data is not one of coordinate axes"
    if span.is_whole:
        return True, "the data span the whole space"
    if weight_decay:
        return False, f"{optimizer} lets every weight off the span decay in its own way"
    return True, f"{optimizer} without decay leaves weights off the span of the data alone"
