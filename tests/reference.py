"""Oracles in NumPy that share no code with the package: networks in long double, and where a ray first flips."""

from fractions import Fraction
from typing import NamedTuple, Self

import numpy as np

from subspace_adv.network import Network

_SCAN = 50


def random_network(rng: np.random.Generator, width: int, dim: int, padded: int | None = None) -> Network:
    """A network in float64 whose outputs are of order one, with inert neurons up to `padded`."""
    inert = (padded or width) - width
    weight, bias = rng.standard_normal((width, dim)) / np.sqrt(dim), rng.standard_normal(width)
    head, head_bias = rng.standard_normal(width) / np.sqrt(width), np.float64(rng.standard_normal() / 2)
    return Network(np.pad(weight, ((0, inert), (0, 0))), np.pad(bias, (0, inert)), np.pad(head, (0, inert)), head_bias)


def stacked(networks: list[Network], dtype: type = np.float64) -> Network:
    """One batch of networks of equal shape."""
    return Network(*(np.array(field, dtype) for field in zip(*networks, strict=True)))


def output(network: Network, x: np.ndarray) -> np.ndarray:
    """N(x) in long double, (...) for x (..., d)."""
    weight, bias, head, head_bias = (np.asarray(field, np.longdouble) for field in network)
    return np.maximum(np.asarray(x, np.longdouble) @ weight.T + bias, 0) @ head + head_bias


def gradient(network: Network, x: np.ndarray) -> np.ndarray:
    """Input gradient in float64, one neuron at a time, (d,) for x (d,)."""
    weight, bias, head, _ = (np.asarray(field, np.float64) for field in network)
    total = np.zeros(weight.shape[1])
    for w, b, u in zip(weight, bias, head, strict=True):
        total += u * w if float(np.dot(w, np.asarray(x, np.float64)) + b) > 0 else 0
    return total


def first_flips(network: Network, x: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Where the rays along directions (k, d) first flip x, (k,): N summed up over kinks that are sorted in float64."""
    weight, bias, head, _ = (np.asarray(field, np.float64) for field in network)
    begin = output(network, x)
    sign = 1 if begin >= 0 else -1
    z, rates = weight @ x + bias, directions @ weight.T
    with np.errstate(divide="ignore", invalid="ignore"):
        kinks = -z / rates
    ahead = np.isfinite(kinks) & (kinks > 0)
    order = np.argsort(np.where(ahead, kinks, 0), axis=1)
    t = np.pad(np.take_along_axis(np.where(ahead, kinks, 0), order, axis=1), ((0, 0), (1, 0)))
    steeper = np.take_along_axis(np.where(ahead, sign * head * np.abs(rates), 0), order, axis=1)
    first = np.sum(sign * head * rates * ((z > 0) | ((z == 0) & (rates > 0))), axis=1, dtype=np.longdouble)
    slopes = np.cumsum(np.column_stack([first, steeper]), axis=1)
    values = np.cumsum(np.column_stack([np.full(len(t), abs(begin)), slopes[:, :-1] * np.diff(t)]), axis=1)
    row, below = np.arange(len(t)), (values < 0).any(axis=1)
    before = np.where(below, np.argmax(values < 0, axis=1), len(head) + 1) - 1
    slope, level = slopes[row, before], values[row, before]
    falls = below | (slope < -1e-13 * (np.abs(rates) @ np.abs(head)))
    return np.where(falls, t[row, before] - level / np.where(falls, slope, 1), np.inf).astype(float)


def first_flip_exactly(
    z: list[Fraction], rate: list[Fraction], head: list[Fraction], offset: Fraction
) -> Fraction | None:
    """Least t ≥ 0 right of which Σ headᵢ·relu(zᵢ + t·rateᵢ) + offset is negative, in rational numbers; None if none."""
    on = [a > 0 or (a == 0 and b > 0) for a, b in zip(z, rate, strict=True)]
    level = offset + sum(u * a for u, a, i in zip(head, z, on, strict=True) if i)
    slope = sum((u * b for u, b, i in zip(head, rate, on, strict=True) if i), Fraction(0))
    kinks = sorted((-a / b, i) for i, (a, b) in enumerate(zip(z, rate, strict=True)) if b and -a / b > 0)
    for kink, i in kinks:
        if slope < 0 and level + slope * kink < 0:
            return -level / slope
        turns = -1 if on[i] else 1
        level, slope = level + turns * head[i] * z[i], slope + turns * head[i] * rate[i]
    return max(-level / slope, kinks[-1][0] if kinks else Fraction(0)) if slope < 0 else None


def first_flip_along(network: Network, x: np.ndarray, direction: np.ndarray) -> Fraction | None:
    """Least t ≥ 0 right of which x + t·direction has the other sign, in rational numbers; None if none."""
    head, offset = exactly(network.head), Fraction(float(network.head_bias))
    z = [a + b for a, b in zip(_product(network.weight, x), exactly(network.bias), strict=True)]
    value = sum((u * a for u, a in zip(head, z, strict=True) if a > 0), offset)
    sign = 1 if value >= 0 else -1
    return first_flip_exactly(z, _product(network.weight, direction), [sign * u for u in head], sign * offset)


def _product(rows: np.ndarray, column: np.ndarray) -> list[Fraction]:
    """The products of rows (m, d) and a column (d,) of floats, in rational numbers."""
    (rows, of_rows), (column, of_column) = _whole(rows), _whole(column)
    return [Fraction(number) * Fraction(2) ** (of_rows + of_column) for number in rows @ column]


def _whole(values: np.ndarray) -> tuple[np.ndarray, int]:
    """Floats as integers, times two to a power."""
    mantissas, exponents = np.frexp(np.asarray(values, np.float64))
    least = int(exponents.min(where=mantissas != 0, initial=0))
    shifts = np.maximum(exponents - least, 0)
    pairs = zip((mantissas * 2.0**53).astype(np.int64).ravel(), shifts.ravel(), strict=True)
    return np.array([int(number) << int(shift) for number, shift in pairs], object).reshape(shifts.shape), least - 53


def is_at_most(radius: float, t: Fraction, direction: np.ndarray, order: float) -> bool:
    """Whether a radius is at most t times the length of a direction, in rational numbers."""
    sizes = [abs(size) for size in exactly(direction)]
    if order == 2:
        return Fraction(radius) ** 2 <= t**2 * sum(size**2 for size in sizes)
    return Fraction(radius) <= t * (sum(sizes) if order == 1 else max(sizes))


def exactly(values: np.ndarray) -> list[Fraction]:
    """The rational numbers that floats are."""
    return [Fraction(float(value)) for value in values]


class Ray(NamedTuple):
    """t ↦ Σ headᵢ·relu(zᵢ + t·rateᵢ) + offset for t ≥ 0, evaluated term by term in long double."""

    z: np.ndarray
    rate: np.ndarray
    head: np.ndarray
    offset: np.longdouble

    @classmethod
    def of(cls, z: np.ndarray, rate: np.ndarray, head: np.ndarray, offset: float) -> Self:
        """A ray from the arguments of `first_crossing`."""
        return cls(*(np.asarray(a, np.longdouble) for a in (z, rate, head, offset)))

    @classmethod
    def from_point(cls, network: Network, x: np.ndarray, direction: np.ndarray) -> Self:
        """The output along a direction from x, signed so that it begins positive."""
        weight, bias, head, head_bias = (np.asarray(field, np.longdouble) for field in network)
        sign = 1 if output(network, x) >= 0 else -1
        z = weight @ np.asarray(x, np.longdouble) + bias
        return cls.of(z, weight @ np.asarray(direction, np.longdouble), sign * head, sign * head_bias)

    def __call__(self, t: np.ndarray) -> np.ndarray:
        """Value at t (...)."""
        inputs = self.z + np.asarray(t, np.longdouble)[..., None] * self.rate
        return np.maximum(inputs, 0) @ self.head + self.offset

    def magnitude(self, t: np.ndarray) -> np.ndarray:
        """Sum of the sizes of all that is added up at t (...)."""
        inputs = np.abs(self.z) + np.asarray(t, np.longdouble)[..., None] * np.abs(self.rate)
        return inputs @ np.abs(self.head) + np.abs(self.offset)

    def first_flip(self, slack: float = 0.0) -> np.longdouble:
        """Least t at which the value plus slack·magnitude falls below 0; inf if there is none.

        That sum is linear between kinks. It is evaluated at all kinks and on a dense grid over them; beyond the
        last kink its slope decides.
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            kinks = -self.z / self.rate
        kinks = kinks[np.isfinite(kinks) & (kinks > 0)]
        last = kinks.max(initial=np.longdouble(0))
        t = np.unique(np.concatenate([kinks, np.linspace(np.longdouble(0), last, _SCAN)]))
        value = self(t) + (slack * self.magnitude(t) if slack else 0)
        below = np.flatnonzero(value < 0)
        if len(below):
            i = below[0]
            return t[i] if i == 0 else t[i - 1] + value[i - 1] / (value[i - 1] - value[i]) * (t[i] - t[i - 1])
        slope = self._final_slope(slack)
        return last + value[-1] / -slope if slope < 0 else np.longdouble(np.inf)

    def _final_slope(self, slack: float) -> np.longdouble:
        terms, sizes = self.head * np.maximum(self.rate, 0), np.abs(self.head * self.rate)
        slope = terms.sum() + slack * sizes.sum()
        if abs(slope) > 1e-15 * sizes.sum():
            return slope
        pairs = [(Fraction(float(u)), Fraction(float(a))) for u, a in zip(self.head, self.rate, strict=True) if u * a]
        exact = sum((u * a for u, a in pairs if a > 0), Fraction(0))
        return np.longdouble(float(exact + Fraction(slack) * sum((abs(u * a) for u, a in pairs), Fraction(0))))


def nearest_flip(
    rng: np.random.Generator, network: Network, point: np.ndarray, columns: np.ndarray, order: float
) -> tuple[float, np.ndarray]:
    """The nearest flip on some rays in the span of columns (d, r) and on those around the best of them; its direction.

    The direction (d,) is of length 1 in the norm.
    """

    def nearest(directions: np.ndarray) -> tuple[float, np.ndarray]:
        directions = directions / np.linalg.norm(directions, order, axis=1)[:, None]
        flips = first_flips(network, point, directions @ columns.T)
        return flips.min(), directions[np.argmin(flips)]

    r = columns.shape[1]
    best, toward = nearest(np.concatenate([rng.standard_normal((2000, r)), np.eye(r), -np.eye(r)]))
    for spread in (0.3, 0.1, 0.03, 0.01):
        flip, direction = nearest(toward + spread * rng.standard_normal((500, r)))
        best, toward = min(best, flip), direction if flip < best else toward
    return best, columns @ toward


def nearest_flip_in_plane(network: Network, point: np.ndarray, columns: np.ndarray, order: float) -> float:
    """The nearest flip on 2,000 rays in the plane of columns (d, 2), and on ever closer ones around the best few."""

    def flips(angles: np.ndarray) -> np.ndarray:
        directions = np.stack([np.cos(angles.ravel()), np.sin(angles.ravel())], axis=1) @ columns.T
        found = first_flips(network, point, directions) * np.linalg.norm(directions, order, axis=1)
        return found.reshape(angles.shape)

    angles = np.linspace(-np.pi, np.pi, 2000, endpoint=False)
    found = flips(angles)
    dips = np.flatnonzero((found <= np.roll(found, 1)) & (found <= np.roll(found, -1)))
    dips = dips[np.argsort(found[dips])[:4]]
    best, around, width = found[dips], angles[dips], 2 * np.pi / 2000
    for _ in range(4):
        closer = around[:, None] + width * np.linspace(-1, 1, 41)
        found = flips(closer)
        at = (np.arange(len(dips)), np.argmin(found, axis=1))
        best, around, width = np.minimum(best, found[at]), closer[at], width / 20
    return best.min()
