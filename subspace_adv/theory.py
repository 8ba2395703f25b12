"""Predicted laws of what is measured off the data's subspace: pure functions of NumPy arrays that broadcast."""

import numpy as np
import scipy  # whose parts it imports when they are used


def decay(
    steps: np.ndarray, learning_rate: np.ndarray, weight_decay: np.ndarray, momentum: np.ndarray | float = 0.0
) -> np.ndarray:
    """Factor ρ_T by which training multiplies weights that receive no loss gradient (F1 in docs/theory.md).

    The recursion κ ← μκ + λρ, ρ ← ρ − ηκ from κ = 0, ρ = 1 is the power of a 2 × 2 matrix, taken by squaring:
    as many rounds as T has binary digits.

    Args:
        steps: T ≥ 0; NaN where unknown.
        learning_rate: η.
        weight_decay: λ.
        momentum: μ; 0 for plain gradient descent and SGD, where ρ_T = (1 − ηλ)^T.

    Returns:
        Float64 of the shape that the arguments broadcast to. Negative where decay overshoots zero at an odd step.
    """
    eta, lam, mu = (np.asarray(a, np.float64) for a in (learning_rate, weight_decay, momentum))
    known = np.isfinite(steps)
    left = np.where(known, steps, 0).astype(np.int64)
    shape = np.broadcast_shapes(left.shape, eta.shape, lam.shape, mu.shape)
    kappa, rho = np.zeros(shape), np.ones(shape)
    a, b, c, d = mu, lam, -eta * mu, 1 - eta * lam  # (κ, ρ) ← (aκ + bρ, cκ + dρ)
    with np.errstate(over="ignore", invalid="ignore"):  # of powers that are taken and not used
        while left.any():
            odd = left % 2 == 1
            kappa, rho = np.where(odd, a * kappa + b * rho, kappa), np.where(odd, c * kappa + d * rho, rho)
            a, b, c, d = a * a + b * c, (a + d) * b, (a + d) * c, b * c + d * d
            left = left // 2
    return np.where(known, rho, np.nan)


def chi_quantile(dof: np.ndarray, probability: float) -> np.ndarray:
    """Quantile of the length of a standard normal vector of `dof` ≥ 1 coordinates: the χ law of F3."""
    return np.sqrt(2 * scipy.special.gammaincinv(np.asarray(dof) / 2, probability))


def chi_cdf(dof: np.ndarray, length: np.ndarray) -> np.ndarray:
    """Probability that a standard normal vector of `dof` ≥ 1 coordinates is shorter than `length`."""
    return scipy.special.gammainc(np.asarray(dof) / 2, np.square(length) / 2)


def length_bounds(dof: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """√(l/2) and √(2l): a χ_l length is over the first, and under the second, each with `bound_probability`."""
    return np.sqrt(np.asarray(dof) / 2), np.sqrt(2 * np.asarray(dof))


def bound_probability(dof: np.ndarray) -> np.ndarray:
    """1 − e^(−l/16): each of the two bounds of F3 holds with at least this probability."""
    return -np.expm1(-np.asarray(dof) / 16)


def universal_distance(
    output: np.ndarray, head_sum: np.ndarray, scale: np.ndarray, dof: np.ndarray, width: np.ndarray
) -> np.ndarray:
    """First-order distance to a flip along the universal direction, |N|·√m / (σ·√l·Σ|uᵢ|) (F4 in docs/theory.md).

    Args:
        output: N(x).
        head_sum: Σ|uᵢ| over the neurons active at x.
        scale: σ = |ρ_T|·β, the standard deviation of the off weights' entries.
        dof: l ≥ 1, the codimension.
        width: m.

    Returns:
        The distance, of the shape that the arguments broadcast to; inf where no neuron is active, or the output rises.
    """
    slope = np.asarray(scale * np.sqrt(dof / width)) * head_sum
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(slope <= 0, np.float32(np.inf), np.abs(output) / slope)
