"""Bounds against rounding: certificates and crossings of networks made to cancel, against rational arithmetic."""

import functools
import itertools
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from optimum import DUAL_ORDER
from reference import exactly, first_flip_exactly
from shell import needs_kernel

from subspace_adv import attacks
from subspace_adv.brackets import Beginnings, Effort, bracket
from subspace_adv.engine.pinned import compiler_options
from subspace_adv.models import TWO_LAYER, compiled, crown_certificate, kink_certificate, local
from subspace_adv.models.concave import concave_certificate
from subspace_adv.network import Network
from subspace_adv.streams import key_of

NORMS = ("l2", "linf", "l1")
PAIRS, D, EACH = 8, 5, 60
AS_MEASURED = compiler_options(quick=True)  # rounding is a matter of how programs are compiled


def biases_cancel(rng: np.random.Generator) -> tuple[Network, np.ndarray]:
    """Neurons w, −w with heads u, −u and the bias B: N = 2Σu·(w·x) + c while all are on, of terms up to 10⁷ larger."""
    weight, head = rng.standard_normal((PAIRS, D)), rng.standard_normal(PAIRS)
    bias = 10.0 ** rng.uniform(2, 7)
    return Network(np.concatenate([weight, -weight]), np.full(2 * PAIRS, bias), np.append(head, -head), 0.1), x_of(rng)


def preactivations_cancel(rng: np.random.Generator) -> tuple[Network, np.ndarray]:
    """w·x is 10⁴ times w·x + b, which is about 1; N is a thousandth of its terms, and crosses 0 before any kink."""
    weight, head = rng.standard_normal((2 * PAIRS, D)), rng.standard_normal(2 * PAIRS) * (np.arange(2 * PAIRS) < 3)
    x = rng.standard_normal(D)
    x *= 1e4 / np.abs(weight @ x).max()
    z = rng.uniform(1, 2, 2 * PAIRS)
    return Network(weight, z - weight @ x, head, 1e-3 * np.abs(head).sum() - head @ z), x


def flat_far_out(rng: np.random.Generator) -> tuple[Network, np.ndarray]:
    """Kinks next to the point; past them slopes cancel to some ten millionths, so the flip is that much farther.

    In a third of the networks one more kink lies beyond the flip, in a third just before it.
    """
    rates = rng.uniform(1, 2, 2 * PAIRS) * np.where(rng.random(2 * PAIRS) < 0.5, 1e-3, 1)
    z = 1e-3 * rng.uniform(1, 2, 2 * PAIRS)
    flip, kink = 1e7, rng.choice([np.inf, 1e9, 1e7 * (1 - 1e-8)])
    if np.isfinite(kink):
        rates[0], z[0] = -1 / kink, 1
    head = rng.uniform(1, 2, 2 * PAIRS) * np.where(np.arange(2 * PAIRS) % 2, -1, 1)
    there = np.maximum(z + flip * rates, 0)
    head[-1] = (-1 - head[:-1] @ there[:-1]) / there[-1]
    weight = np.concatenate([rates[:, None], np.zeros((2 * PAIRS, D - 1))], axis=1)
    x = x_of(rng)
    return Network(weight, z - weight @ x, head, 1.0), x


def near_tie(rng: np.random.Generator) -> tuple[Network, np.ndarray]:
    """One neuron against the bias of the output, N a millionth of either: certificates begin at |N|/‖u·w‖."""
    weight, head, x = rng.standard_normal((2 * PAIRS, D)), np.eye(2 * PAIRS)[0] * -rng.uniform(1, 2), x_of(rng)
    bias = 2 - weight @ x
    return Network(weight, bias, head, -2 * head[0] * (1 + 10.0 ** rng.uniform(-8, -5))), x


def twins(rng: np.random.Generator) -> tuple[Network, np.ndarray]:
    """Neurons some ulps apart with opposite heads a million times those of the rest; all on."""
    weight, bias = rng.standard_normal((PAIRS, D)), rng.uniform(10, 20, PAIRS)
    head = rng.standard_normal(PAIRS) * np.where(np.arange(PAIRS) < PAIRS // 2, 1e6, 1)

    def apart(values: np.ndarray) -> np.ndarray:
        return values * (1 + rng.integers(-4, 5, values.shape) * 2.0**-52)

    small = np.where(np.arange(PAIRS) < PAIRS // 2, 1, 0)
    network = Network(
        np.concatenate([weight, apart(weight)]), np.append(bias, apart(bias)), np.append(head, -head * small), 0.0
    )
    x = x_of(rng)
    return network._replace(head_bias=0.5 - float(reference.output(network, x))), x


def kinked_twins(rng: np.random.Generator) -> tuple[Network, np.ndarray]:
    """As `twins`, whose kinks lie around the point, before the flip and after it."""
    network, x = twins(rng)
    kinks = np.tile(rng.standard_normal(PAIRS), 2)
    return network._replace(bias=kinks * (1 + rng.integers(-4, 5, 2 * PAIRS) * 2.0**-52) - network.weight @ x), x


def x_of(rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal(D)


LINEAR = (biases_cancel, preactivations_cancel, near_tie, twins)  # as far as the flip, and all around
KINDS = (*LINEAR, flat_far_out, kinked_twins)


@functools.cache
def _networks() -> tuple[list[Network], np.ndarray]:
    """`EACH` networks of every kind, with weights and heads of all sizes."""
    rng, networks, points = np.random.default_rng(0), [], []
    for kind in KINDS:
        for i in range(EACH):
            (weight, bias, head, head_bias), x = kind(rng)
            inner, outer = 10.0 ** rng.uniform([-3, -8], [3, 8]) if i % 2 else (1.0, rng.choice([-1.0, 1.0]))
            networks.append(Network(weight * inner, bias * inner, head * outer, head_bias * inner * outer))
            points.append(x)
    return networks, np.array(points)


class Exact(NamedTuple):
    """The signed output at a point and its gradient, and the first flip along the first axis; None if none."""

    output: Fraction
    gradient: list[Fraction]
    along: Fraction | None

    def is_within(self, radius: float, norm: str, dimensions: int = D) -> bool:
        """Whether a linear output stays positive up to a radius, over the first of the axes."""
        sizes = [abs(slope) for slope in self.gradient[:dimensions]]
        if norm == "l2":
            return Fraction(radius) ** 2 * sum(size**2 for size in sizes) <= self.output**2
        return Fraction(radius) * (max(sizes) if norm == "l1" else sum(sizes)) <= self.output

    def distance(self, norm: str) -> float:
        """Of a linear output, rounded."""
        return float(self.output) / float(np.linalg.norm([float(slope) for slope in self.gradient], DUAL_ORDER[norm]))


@functools.cache
def _exact() -> list[Exact]:
    found = []
    for network, x in zip(*_networks(), strict=True):
        point, bias, head = exactly(x), exactly(network.bias), exactly(network.head)
        weight = [exactly(row) for row in network.weight]
        z = [sum((a * b for a, b in zip(row, point, strict=True)), c) for row, c in zip(weight, bias, strict=True)]
        value = sum((u * max(a, Fraction(0)) for u, a in zip(head, z, strict=True)), Fraction(float(network.head_bias)))
        sign = 1 if value >= 0 else -1
        head, on = [sign * u for u in head], [a > 0 for a in z]
        gradient = [
            sum((u * row[j] for u, row, i in zip(head, weight, on, strict=True) if i), Fraction(0)) for j in range(D)
        ]
        rays = ([side * row[0] for row in weight] for side in (1, -1))
        flips = [first_flip_exactly(z, rate, head, sign * Fraction(float(network.head_bias))) for rate in rays]
        found.append(Exact(sign * value, gradient, min((flip for flip in flips if flip is not None), default=None)))
    return found


@functools.cache
def _certified(certificate: str, norm: str) -> np.ndarray:
    def one(network: Network, x: jax.Array, upper: jax.Array) -> jax.Array:
        if certificate == "kink":
            return kink_certificate(network, x, jnp.eye(D), norm=norm)
        crown = crown_certificate(network, x, jnp.eye(D), norm=norm, upper=upper)
        if certificate == "crown":
            return crown
        return concave_certificate(local(network, x, jnp.eye(D)), norm=norm, upper=upper, known=crown / 2)

    networks, x = _networks()
    uppers = np.array([1.5 * exact.distance(norm) for exact in _exact()])
    with jax.enable_x64(True):
        return np.asarray(jax.jit(jax.vmap(one), compiler_options=AS_MEASURED)(reference.stacked(networks), x, uppers))


@functools.cache
def _on_the_first_axis() -> tuple[np.ndarray, np.ndarray]:
    networks, x = _networks()
    with jax.enable_x64(True):
        along = jax.vmap(lambda network, point: attacks.line_distance(network, point, jnp.eye(D)[0]))
        run = jax.jit(along, compiler_options=AS_MEASURED)
        lower, flip = run(reference.stacked(networks), x)
        return np.asarray(lower), np.asarray(flip.distance)


@functools.cache
def _bracketed(by: str, dimensions: int, norm: str) -> tuple[np.ndarray, np.ndarray]:
    networks, x = _networks()
    what = {"norm": norm, "effort": Effort(1, 1, {"kernel": compiled.ATTACKS, "xla": ()}[by]), "model": TWO_LAYER}

    def one(network: Network, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        begin = Beginnings.of(network, x[None], key_of(0), TWO_LAYER)
        lower, flip = bracket(network, x[None], jnp.eye(D)[:, :dimensions], begin, **what)
        return lower[0], flip.distance[0]

    with jax.enable_x64(True):
        return jax.tree.map(
            np.asarray, jax.jit(jax.vmap(one), compiler_options=AS_MEASURED)(reference.stacked(networks), x)
        )


def _of(kind: Callable) -> range:
    begin = KINDS.index(kind) * EACH
    return range(begin, begin + EACH)


@pytest.mark.parametrize("kind", LINEAR)
@pytest.mark.parametrize(
    ("certificate", "norm"),
    [
        *itertools.product(("kink", "crown"), NORMS),
        *(pytest.param("concave", norm, marks=pytest.mark.slow) for norm in NORMS),
    ],
)
def test_no_certificate_is_above_the_distance_of_a_linear_network(certificate, norm, kind):
    """|N| over the gradient's dual norm, in rational numbers; and they are as near to it as rounding lets them.

    The concave one is sought in float32, and finds little where an output is tiny beside its terms.
    """
    bounds = _certified(certificate, norm)
    above = [i for i in _of(kind) if not _exact()[i].is_within(bounds[i], norm)]
    assert not above, f"{len(above)} of {EACH}"
    ratios = [bounds[i] / _exact()[i].distance(norm) for i in _of(kind)]
    assert min(ratios) > 0.99 if certificate != "concave" else max(ratios) > 0.9


@pytest.mark.parametrize("kind", KINDS)
def test_crossings_of_the_first_axis_enclose_the_flip(kind):
    lower, upper = _on_the_first_axis()
    flips = 0
    for i in _of(kind):
        flip = _exact()[i].along
        if flip is None:
            assert upper[i] == np.inf, i
            continue
        assert lower[i] <= flip, i
        assert np.isinf(upper[i]) or flip <= upper[i], i
        flips += upper[i] - lower[i] < 0.02 * upper[i]
    assert flips > 0.9 * EACH


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    ("by", "dimensions"),
    [
        *(pytest.param("kernel", dimensions, marks=needs_kernel) for dimensions in (2, 3, D)),
        pytest.param("xla", 2, marks=pytest.mark.slow),
    ],
)
def test_brackets_over_the_first_axes_enclose_the_distance(by, dimensions, norm):
    """Of linear outputs the distance itself, in rational numbers; of others, none is above the flips of an axis."""
    lower, upper = _bracketed(by, dimensions, norm)
    for kind in LINEAR:
        for i in _of(kind):
            exact = _exact()[i]
            assert exact.is_within(lower[i], norm, dimensions) and not exact.is_within(upper[i], norm, dimensions), i
    for i, exact in enumerate(_exact()):
        assert exact.along is None or lower[i] <= exact.along, i
    tight = upper < 1.02 * lower
    assert min(tight[_of(kind)].mean() for kind in (KINDS if dimensions == 2 else LINEAR)) > 0.7
