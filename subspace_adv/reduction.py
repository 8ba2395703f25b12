"""Where training in coordinates of the data's span is exact (F1, F2 in docs/theory.md)."""

from subspace_adv.data import DataSettings
from subspace_adv.optimizers import OPTIMIZERS, OffPart


def reduction(settings: DataSettings, optimizer: str, weight_decay: float) -> tuple[bool, str]:
    """Whether training in coordinates of the data's span is exact (F1, F2 in docs/theory.md), and why.

    Args:
        settings: of the data.
        optimizer: by name.
        weight_decay: λ.
    """
    whole = settings.shape.span_dim == settings.shape.ambient_dim
    off = OPTIMIZERS[optimizer].off
    if off is OffPart.UNKNOWN:
        return False, f"what {optimizer} does to weights off the span of the data is not known"
    if off is OffPart.SCALED:
        return True, f"{optimizer} moves weights off the span of the data by decay alone"
    if not settings.is_axis_aligned:
        return False, f"{optimizer} steps by coordinates, and the span of the data is not one of coordinate axes"
    if whole:
        return True, "the data span the whole space"
    if weight_decay:
        return False, f"{optimizer} lets every weight off the span decay in its own way"
    return True, f"{optimizer} without decay leaves weights off the span of the data alone"
