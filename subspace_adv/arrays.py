"""Arrays that people hand over, checked."""

from typing import Any

import numpy as np

from subspace_adv.errors import UserError


def array(where: str, given: Any, ndim: int, shape: str) -> np.ndarray:
    """Finite real numbers in so many dimensions, float64."""
    try:
        found = np.asarray(given)
    except ValueError:  # lists of different lengths
        found = np.array(None)
    except (RuntimeError, TypeError) as error:  # as of a tensor on a GPU
        raise UserError(f"{where}: cannot be read by NumPy: {' '.join(str(error).split())}") from None
    if np.ma.is_masked(given):
        raise UserError(f"{where}: has masked values; must be real numbers of shape {shape}")
    if found.dtype.kind not in "fiu":
        hint = "; make it float32" if found.dtype.kind == "V" else ""  # as bfloat16, which NumPy lacks
        raise UserError(f"{where}: holds {found.dtype} values; must be real numbers of shape {shape}{hint}")
    if found.ndim != ndim:
        raise UserError(f"{where}: is of shape {found.shape}; must be real numbers of shape {shape}")
    if not np.isfinite(found).all():
        raise UserError(f"{where}: holds NaN or inf; must be finite")
    return found.astype(np.float64)
