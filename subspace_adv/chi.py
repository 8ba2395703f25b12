"""χ distributed draws, made of normal ones."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import scipy  # whose parts it imports when they are used

_CHI_RANGE, _CHI_DEGREE = 5.6, 40  # beyond the normal values that float32 draws can take


def chi_of_normal(z: jax.Array, dof: np.ndarray) -> jax.Array:
    """χ distributed values made of standard normal ones of the same rank, to a relative 10⁻⁷.

    The logarithm of the quantile, as a function of z, is a polynomial over the range of float32 draws. It is smooth, so
    rounding moves a value little, and values of different degrees of freedom are paired.

    Args:
        z: (p,); what lies beyond ±5.6, the range of float32 draws, counts as that.
        dof: degrees of freedom ≥ 1 of each, (p,); static.
    """
    t = jnp.clip(z / _CHI_RANGE, -1, 1)
    first, *higher = _chi_polynomials(tuple(dof.tolist())).astype(z.dtype)
    above, value = jnp.zeros_like(z), jnp.zeros_like(z)
    for coefficient in reversed(higher):  # Clenshaw's recurrence
        value, above = coefficient + 2 * t * value - above, value
    return jnp.exp(first + t * value - above)


@functools.lru_cache(maxsize=256)
def _chi_polynomials(dof: tuple[int, ...]) -> np.ndarray:
    """Chebyshev coefficients (degree + 1, p) of log χ quantiles as functions of z / _CHI_RANGE."""
    nodes = np.polynomial.chebyshev.chebpts1(_CHI_DEGREE + 1)
    tail = scipy.special.ndtr(-np.abs(_CHI_RANGE * nodes))[:, None]
    half = np.array(dof)[None] / 2
    below, above = scipy.special.gammaincinv(half, tail), scipy.special.gammainccinv(half, tail)
    quantile = np.where(nodes[:, None] < 0, below, above)
    return np.polynomial.chebyshev.chebfit(nodes, np.log(2 * quantile) / 2, _CHI_DEGREE)
