"""The labels of points as −1 and +1."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from subspace_adv.errors import brief

Label = int | float | str


def two_classes(labels: np.ndarray, asked: Sequence[Label] | None) -> tuple[Label, Label]:
    """The labels that become −1 and +1, as points have them.

    Args:
        labels: of all points.
        asked: the two; by default the lesser and the greater of two that there are.

    Raises:
        ValueError: if no point has one of those asked for, or if there are not two where none is asked for.
    """
    there = np.unique(labels).tolist()
    shown = brief(there)[1:-1]
    if asked is None:
        if len(there) != 2:
            told = "; choose two of them, as classes" if len(there) > 2 else "; there must be two"
            raise ValueError(f"points have {len(there)} label{'s' * (len(there) > 1)}, {shown}{told}")
        return there[0], there[1]
    is_text = labels.dtype.kind == "U"
    first, second = (str(label) if is_text else label for label in asked)
    for label in (first, second):
        if label not in there:
            raise ValueError(f"no point has the label {label!r}; there: {shown}")
    return first, second


def signs(labels: Any, classes: Sequence[Label]) -> np.ndarray:
    """−1 and +1 of points of the two classes, 0 of others."""
    first, second = (np.asarray(labels == label) for label in classes)
    return np.where(second, 1, np.where(first, -1, 0))
