"""Kind "digits": scikit-learn's handwritten digits."""

import functools
from typing import Any

from subspace_adv.data.given import GivenData
from subspace_adv.errors import UserError
from subspace_adv.pointfile import EXTRA, PointFile


class DigitsData(GivenData, frozen=True):
    """1,797 images of digits of 8 × 8 pixels of 0 to 16, which come with scikit-learn."""

    def points(self) -> PointFile:
        """All of them, with their digits as labels."""
        return _digits()

    @property
    def source(self) -> tuple[str, str]:
        """The kind."""
        return "kind", "digits"


@functools.cache
def _digits() -> PointFile:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UserError(f"needs scikit-learn; install it by {EXTRA}") from None
    digits: Any = load_digits()
    return PointFile(digits.data, digits.target)
