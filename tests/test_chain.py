"""Deep networks as chains of affine maps: rays against scans and rational arithmetic, certificates against optima."""

import functools
import itertools
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from scipy.optimize import Bounds, LinearConstraint, milp

from subspace_adv.attacks import minimal_norm_attack
from subspace_adv.contracts import Local, affine
from subspace_adv.models import chain, crown, rays, two_layer
from subspace_adv.norms import NORMS
from subspace_adv.streams import key_of

SLOW = pytest.mark.slow
ORDER = {"l2": 2, "linf": np.inf, "l1": 1}


def dense(params: dict, h: jax.Array) -> jax.Array:
    return affine(params["kernel"], params["bias"], h)


def head(params: dict, h: jax.Array) -> jax.Array:
    return dense(params, h)[..., 0]


def dense_maps(layers: Sequence[dict]) -> tuple[Partial, ...]:
    return (*(Partial(dense, layer) for layer in layers[:-1]), Partial(head, layers[-1]))


MODEL = chain.model(
    init=lambda *args, **options: None,
    first=lambda params: (params["layers"][0]["kernel"], params["layers"][0]["bias"]),
    with_first_weight=lambda params, weight: {
        "layers": ({**params["layers"][0], "kernel": weight}, *params["layers"][1:])
    },
    maps=lambda params: dense_maps(params["layers"][1:]),
    trained=lambda init, trainable: ("layers",),
)


def he_layers(rng: np.random.Generator, sizes: Sequence[int]) -> tuple[dict, ...]:
    """He weights between layers of some sizes, the last ones without the factor, and PyTorch's biases."""
    return tuple(
        {
            "kernel": rng.standard_normal((after, before)) * np.sqrt((2 if after > 1 else 1) / before),
            "bias": rng.uniform(-1, 1, after) / np.sqrt(before),
        }
        for before, after in itertools.pairwise(sizes)
    )


def forward(layers: Sequence[dict], x: np.ndarray) -> list[np.ndarray]:
    """Preactivations of all layers, the last of which are the outputs (..., 1)."""
    found = [x @ layers[0]["kernel"].T + layers[0]["bias"]]
    for layer in layers[1:]:
        found.append(np.maximum(found[-1], 0) @ layer["kernel"].T + layer["bias"])
    return found


def trained(seed: int, width: int, hidden: int, d: int, points: int = 8) -> tuple[dict, np.ndarray]:
    """A network of some hidden layers after gradient descent on points of a subspace with random labels; the points."""
    rng = np.random.default_rng(seed)
    layers, x = list(he_layers(rng, [d, *[width] * hidden, 1])), rng.standard_normal((points, d)) * np.sqrt(2)
    x[:, d // 2 :] = 0
    y = np.where(np.arange(points) % 2, 1.0, -1.0)
    for _ in range(400):
        *inner, outputs = forward(layers, x)
        if (y * outputs[:, 0]).min() > 0.3:
            break
        back = (-y / (1 + np.exp(y * outputs[:, 0])) / points)[:, None]
        for k in reversed(range(len(layers))):
            kernel, bias = layers[k]["kernel"], layers[k]["bias"]
            below = np.maximum(inner[k - 1], 0) if k else x
            layers[k] = {"kernel": kernel - 0.05 * back.T @ below, "bias": bias - 0.05 * back.sum(axis=0)}
            back = (back @ kernel) * (inner[k - 1] > 0) if k else back
    return {"layers": tuple(layers)}, x


# Rays.


class Ray(NamedTuple):
    """A ray of preactivations of the first layer, and the layers behind it."""

    z: np.ndarray
    rate: np.ndarray
    layers: tuple[dict, ...]

    def values(self, t: np.ndarray) -> np.ndarray:
        """Outputs at (...), in long double."""
        h = self.z.astype(np.longdouble) + np.multiply.outer(t.astype(np.longdouble), self.rate)
        for layer in self.layers:
            h = np.maximum(h, 0) @ layer["kernel"].T.astype(np.longdouble) + layer["bias"]
        return h[..., 0]

    def signed(self) -> "Ray":
        """The one that begins above zero."""
        sign = -1 if self.values(np.zeros(1))[0] < 0 else 1
        last = {name: sign * a for name, a in self.layers[-1].items()}
        return self._replace(layers=(*self.layers[:-1], last))

    def scaled(self, rng: np.random.Generator) -> "Ray":
        """Layers in other units, of 10⁻³⁰ to 10³⁰ in all, and time too; outputs in other units than before."""
        units = 10.0 ** rng.uniform(-15, 15, len(self.layers) + 1)
        layers = [
            {"kernel": layer["kernel"] * after / before, "bias": layer["bias"] * after}
            for layer, (before, after) in zip(self.layers, itertools.pairwise(units), strict=True)
        ]
        return Ray(self.z * units[0], self.rate * units[0] * 10.0 ** rng.uniform(-15, 15), tuple(layers))


def random_ray(rng: np.random.Generator, width: int, depth: int) -> Ray:
    layers = he_layers(rng, [*[width] * depth, 1])
    return Ray(rng.standard_normal(width), rng.standard_normal(width), layers).signed()


@functools.partial(jax.jit, static_argnames="rows")
def _crossed(
    z: jax.Array, rate: jax.Array, layers: tuple[dict, ...], z_size: jax.Array, rows: int
) -> tuple[jax.Array, jax.Array]:
    rays._ROWS = rows

    def one(z: jax.Array, rate: jax.Array, layers: tuple[dict, ...], z_size: jax.Array) -> tuple[jax.Array, jax.Array]:
        return tuple(rays.first_crossing(z, rate, dense_maps(layers), z_size=z_size))

    return jax.vmap(one)(z, rate, layers, z_size)


def crossed(many: Sequence[Ray], rows: int = rays._ROWS, z_size: np.ndarray | None = None) -> np.ndarray:
    """Lower and upper ends (n, 2)."""
    usual, stacked = rays._ROWS, jax.tree.map(lambda *a: np.stack(a), *many)
    sizes = np.abs(stacked.z) if z_size is None else np.broadcast_to(z_size, stacked.z.shape)
    try:
        return np.stack(_crossed(*stacked, sizes, rows), axis=1)
    finally:
        rays._ROWS = usual


def check(ray: Ray, lower: float, upper: float, gap: float) -> None:
    """By many outputs: none is negative before the lower end, that at the upper end is, and none is much before."""
    far = upper if np.isfinite(upper) else 1e3 * np.abs(ray.z).max() / np.abs(ray.rate).max()
    t = np.concatenate([np.linspace(0, 2 * far, 4001), far * np.linspace(1 - 1e-4, 1 + 1e-4, 2001)])
    t = np.sort(np.concatenate([t, far * np.geomspace(1e-6, 1e6, 2001)]))
    values = ray.values(t)
    assert (values[t <= lower] >= 0).all()
    if np.isfinite(upper):
        assert ray.values(np.array([upper]))[0] <= 0
        assert lower <= upper <= lower * (1 + gap)
        assert not (values[t < upper * (1 - gap)] < 0).any()
    else:
        assert lower == np.inf and not (values < 0).any()


@pytest.mark.parametrize(
    ("depth", "width"),
    [pytest.param(1, 24, marks=SLOW), (2, 3), (2, 24), pytest.param(3, 12, marks=SLOW), pytest.param(4, 8, marks=SLOW)],
)
def test_a_crossing_is_the_first_of_a_scan(depth, width, x64):
    rng = np.random.default_rng([depth, width])
    plain = [random_ray(rng, width, depth) for _ in range(60)]
    many = plain + [ray.scaled(rng) for ray in plain]
    found = crossed(many)
    assert 20 < np.isfinite(found[:, 1]).sum() < 118
    for ray, ends in zip(many, found, strict=True):
        check(ray, *ends, gap=1e-7)


def test_of_one_layer_it_is_the_crossing_of_two_layer_networks(x64):
    rng = np.random.default_rng(2)
    many = [random_ray(rng, 24, 1) for _ in range(60)]
    by_hand = jax.jit(jax.vmap(two_layer.crossing_by_xla))
    stacked = jax.tree.map(lambda *a: np.stack(a), *many)
    expected = by_hand(stacked.z, stacked.rate, stacked.layers[0]["kernel"][:, 0], stacked.layers[0]["bias"][:, 0])
    np.testing.assert_allclose(crossed(many), np.stack(expected, axis=1), rtol=1e-9)


@pytest.mark.parametrize("rows", [2, pytest.param(7, marks=SLOW)])
def test_a_ray_of_many_breakpoints_is_crossed_window_by_window(rows, x64):
    """Those whose windows end at any breakpoint cross at the same place."""
    many = forty(np.random.default_rng(3))
    found, usual = crossed(many, rows), crossed(many)
    np.testing.assert_allclose(found, usual, rtol=1e-9)
    assert np.isfinite(usual).any() and np.isinf(usual).any()


def forty(rng: np.random.Generator) -> list[Ray]:
    """Rays that share a program."""
    return [random_ray(rng, 12, 3) for _ in range(40)]


def test_a_dead_layer_and_a_rising_output_are_never_crossed(x64):
    dead, rising, flat, *others = forty(np.random.default_rng(4))
    dead.layers[1]["bias"][:] = -1e3
    dead.layers[1]["kernel"][:] = -np.abs(dead.layers[1]["kernel"])
    dead.layers[2]["bias"][:] = 0.1
    rising.layers[2]["kernel"][:] = np.abs(rising.layers[2]["kernel"])
    rising.layers[2]["bias"][:] = 1e-9
    flat.rate[:] = 0
    assert (crossed([dead, rising, flat, *others])[:3] == np.inf).all()


def test_in_float32_it_is_near_the_crossing(x64):
    many = forty(np.random.default_rng(5))
    exact = crossed(many)[:, 1]
    found = crossed([jax.tree.map(np.float32, ray) for ray in many])
    finite = np.isfinite(exact)
    assert found.dtype == np.float32
    assert (found[:, 0] <= exact).all() and (found[finite, 1] >= exact[finite] * (1 - 1e-6)).all()
    assert np.median(found[finite, 1] / found[finite, 0]) < 1.01


class Piece(NamedTuple):
    """Where numbers are linear in time, in rational arithmetic."""

    begin: Fraction
    end: Fraction | None
    values: list[Fraction]
    slopes: list[Fraction]


def _cut_at_zeros(piece: Piece) -> list[Piece]:
    """The ReLUs of a piece's numbers."""
    zeros = {piece.begin - v / s for v, s in zip(piece.values, piece.slopes, strict=True) if s}
    inside = sorted(t for t in zeros if t > piece.begin and (piece.end is None or t < piece.end))
    found = []
    for begin, end in itertools.pairwise([piece.begin, *inside, piece.end]):
        assert begin is not None
        values = [v + (begin - piece.begin) * s for v, s in zip(piece.values, piece.slopes, strict=True)]
        on = [v > 0 or (v == 0 and s > 0) for v, s in zip(values, piece.slopes, strict=True)]
        found.append(
            Piece(
                begin,
                end,
                [v if is_on else Fraction(0) for v, is_on in zip(values, on, strict=True)],
                [s if is_on else Fraction(0) for s, is_on in zip(piece.slopes, on, strict=True)],
            )
        )
    return found


def exact_ends(ray: Ray) -> tuple[Fraction | float, Fraction | float]:
    """First zero, and the infimum of where the output is negative; inf where there is none."""
    pieces = [Piece(Fraction(0), None, [*map(Fraction, ray.z)], [*map(Fraction, ray.rate)])]
    for layer in ray.layers:
        kernel = [[*map(Fraction, row)] for row in layer["kernel"]]
        bias = [*map(Fraction, layer["bias"])]
        pieces = [
            Piece(
                cut.begin,
                cut.end,
                [
                    sum((k * v for k, v in zip(row, cut.values, strict=True)), b)
                    for row, b in zip(kernel, bias, strict=True)
                ],
                [sum((k * s for k, s in zip(row, cut.slopes, strict=True)), Fraction(0)) for row in kernel],
            )
            for piece in pieces
            for cut in _cut_at_zeros(piece)
        ]
    zero = negative = np.inf
    for begin, end, (value,), (slope,) in pieces:
        at = begin if value <= 0 else (begin - value / slope if slope < 0 else None)
        if at is None or (end is not None and at > end):
            continue
        zero = min(zero, at)
        if value < 0 or (slope < 0 and (end is None or at < end)):
            negative = min(negative, at)
    return zero, negative


def exact_value(ray: Ray, t: float) -> Fraction:
    h = [Fraction(z) + Fraction(t) * Fraction(r) for z, r in zip(ray.z, ray.rate, strict=True)]
    for layer in ray.layers:
        h = [
            sum((Fraction(k) * max(v, Fraction(0)) for k, v in zip(row, h, strict=True)), Fraction(b))
            for row, b in zip(layer["kernel"], layer["bias"], strict=True)
        ]
    return h[0]


def of_integers(rng: np.random.Generator, width: int, depth: int) -> Ray:
    """Kinks of many neurons, and zeros, fall together."""
    layers = [
        {"kernel": rng.integers(-2, 3, (after, before)) * 1.0, "bias": rng.integers(-2, 3, after) * 1.0}
        for before, after in itertools.pairwise([*[width] * depth, 1])
    ]
    return Ray(rng.integers(-3, 4, width) * 1.0, rng.integers(-2, 3, width) * 1.0, tuple(layers)).signed()


@pytest.mark.parametrize("depth", [pytest.param(1, marks=SLOW), 2, pytest.param(3, marks=SLOW)])
def test_no_rounding_takes_the_ends_to_the_wrong_side(depth, x64):
    rng = np.random.default_rng([6, depth])
    many = [of_integers(rng, 4, depth) for _ in range(200)] + [random_ray(rng, 4, depth) for _ in range(50)]
    flips = 0
    for ray, (lower, upper) in zip(many, crossed(many), strict=True):
        if exact_value(ray, 0.0) == 0:
            assert lower == 0
            continue
        zero, negative = exact_ends(ray)
        assert lower <= zero
        if np.isfinite(upper):
            assert exact_value(ray, upper) < 0
            assert (
                negative * (1 - Fraction(1, 10**9)) <= upper <= negative * (1 + Fraction(1, 10**9)) + Fraction(1, 10**9)
            )
            flips += 1
        else:
            assert negative == np.inf
        # Slopes that cancel to nothing may fall, by ulps of their terms.
        assert lower > 1e10 if zero == np.inf else lower >= zero * (1 - Fraction(1, 10**9))
    assert 50 < flips < 250


def test_what_cancels_in_the_first_preactivations_is_allowed_for(x64):
    """Preactivations that have lost digits differ from the true ones; so do crossings, by less than is told."""
    rng = np.random.default_rng(7)
    many = forty(rng)
    crosses = np.isfinite(crossed(many)[:, 1])
    sizes = np.full(12, 1e6)
    for (lower, upper), ray in itertools.islice(
        zip(crossed(many, z_size=sizes)[crosses], itertools.compress(many, crosses), strict=True), 4
    ):
        for _ in range(3):
            moved = ray._replace(z=ray.z + sizes * rng.uniform(-1, 1, 12) * 2.0**-52)
            assert lower <= exact_ends(moved)[0] and exact_value(moved, upper) < 0


# The local contract.


def test_the_local_contract_is_kept(x64):
    rng = np.random.default_rng(8)
    params = {"layers": he_layers(rng, [4, 12, 10, 8, 1])}
    x, basis = rng.standard_normal(4), np.linalg.qr(rng.standard_normal((4, 3)))[0]
    of: Local = MODEL.local(params, x, basis)
    assert isinstance(of, chain.ChainLocal) and (of.dimension, of.dtype) == (3, np.float64)
    assert of.astype(jnp.float32).dtype == np.float32
    c, far = rng.standard_normal((7, 3)), 1e6

    @jax.jit
    def told(of: Local) -> dict[str, Any]:
        return {
            "value": of.value(jnp.asarray(c)),
            "gradient": of.value_and_gradient(jnp.asarray(c))[1],
            "beyond": of.beyond().value(jnp.asarray(c)),
            "along": of.values_along(jnp.asarray(c), jnp.array([0.5, far, 2 * far])),
            "asymptotes": of.asymptotes(jnp.asarray(c)),
            "own": of.in_own_units().value(jnp.asarray(c)),
            "all on": of.gradient_all_on(),
            "blurred": of.blurred("l2")(jnp.asarray(c), jnp.full(7, 1e-12)),
            "at x": of.value_and_gradient(jnp.zeros(3)),
            "reach": {norm: of.reach(norm) for norm in NORMS},
            "unbent": {norm: of.unbent(norm) for norm in NORMS},
        }

    found = told(of)
    sign = np.sign(forward(params["layers"], x)[-1][0])

    def outputs(c: np.ndarray) -> np.ndarray:
        return sign * forward(params["layers"], x + c @ basis.T)[-1][..., 0]

    np.testing.assert_allclose(found["value"], outputs(c), rtol=1e-12)
    for axis, step in enumerate(1e-7 * np.eye(3)):
        slope = (outputs(c + step) - outputs(c)) / 1e-7
        np.testing.assert_allclose(found["gradient"][:, axis], slope, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["beyond"], outputs(1e9 * c) / 1e9, rtol=1e-6, atol=1e-8)
    along = np.stack([outputs(radius * c) for radius in (0.5, far, 2 * far)], axis=1)
    np.testing.assert_allclose(found["along"], along, rtol=1e-12)
    slope, constant = found["asymptotes"]
    np.testing.assert_allclose(slope, (along[:, 2] - along[:, 1]) / far, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(constant, 2 * along[:, 1] - along[:, 2], rtol=1e-5, atol=1e-8)
    factor = np.log2(outputs(c) / found["own"])
    np.testing.assert_allclose(factor, np.full(7, factor[0].round()), atol=1e-9)
    linear = functools.reduce(lambda rows, layer: rows @ layer["kernel"], params["layers"][::-1], np.ones((1, 1)))
    np.testing.assert_allclose(found["all on"], sign * (linear @ basis)[0], rtol=1e-12)
    np.testing.assert_allclose(found["blurred"][0], found["value"], rtol=1e-12)
    np.testing.assert_allclose(found["blurred"][1], found["gradient"], rtol=1e-12)
    rates = params["layers"][0]["kernel"] @ basis
    for norm, order in ORDER.items():
        directions = rng.standard_normal((50, 3))
        within = directions / np.linalg.norm(directions, order, axis=1)[:, None] * float(found["unbent"][norm])
        value, gradient = found["at x"]
        np.testing.assert_allclose(outputs((1 - 1e-9) * within), value + within @ gradient, rtol=1e-7)
        nearest = np.abs(forward(params["layers"], x)[0]) / np.linalg.norm(
            rates, {2: 2, 1: np.inf}.get(order, 1), axis=1
        )
        assert found["reach"][norm] == pytest.approx(nearest.max())


# Certificates.


def least_flip(params: dict, x: np.ndarray, axes: np.ndarray, norm: str, upper: float, limit: float = 60) -> float:
    """The least L∞ or L1 norm of a flip along some axes, by a mixed-integer program of HiGHS: a proven lower bound.

    Each ReLU whose sign is not settled within the known upper bound has a binary. The network is in units in which that
    bound is 1.
    """
    layers = list(params["layers"])
    sign = np.sign(forward(layers, x)[-1][0]) or 1.0
    layers[-1] = {name: sign * a for name, a in layers[-1].items()}
    r, most = len(axes), 1 + 1e-4
    base, rates = layers[0]["kernel"] @ x + layers[0]["bias"], upper * layers[0]["kernel"][:, axes]
    reach = most * np.linalg.norm(rates, 1 if norm == "linf" else np.inf, axis=1)
    hidden = [layer["kernel"].shape[0] for layer in layers[:-1]]
    # Variables: coefficients, their sizes, the norm; then outputs and binaries of every hidden layer.
    total = 2 * r + 1 + 2 * sum(hidden)
    least, highest = np.full(total, -np.inf), np.full(total, np.inf)
    least[: 2 * r + 1] = [*[-most] * r, *[0.0] * (r + 1)]
    highest[: 2 * r + 1] = most
    rows, limits = [], []

    def constrain(row: np.ndarray, most: float) -> None:
        rows.append(row)
        limits.append(most)

    unit_vector = np.eye(total)
    for i in range(r):
        for side in (1, -1):
            constrain(side * unit_vector[i] - unit_vector[r + i], 0)
        if norm == "linf":
            constrain(unit_vector[r + i] - unit_vector[2 * r], 0)
    if norm == "l1":
        constrain(unit_vector[r : 2 * r].sum(axis=0) - unit_vector[2 * r], 0)
    begin, inputs = 2 * r + 1, np.concatenate([rates, np.zeros((hidden[0], total - r))], axis=1)
    low, high = base - reach, base + reach
    for k, m in enumerate(hidden):
        out, binary = np.arange(begin, begin + m), np.arange(begin + m, begin + 2 * m)
        least[out], highest[out] = 0, np.maximum(high, 0)
        least[binary], highest[binary] = low > 0, high > 0
        for i in range(m):
            y, b = unit_vector[out[i]], unit_vector[binary[i]]
            constrain(inputs[i] - y, -base[i])
            constrain(y - inputs[i] - min(low[i], 0) * b, base[i] - min(low[i], 0))
            constrain(y - max(high[i], 0) * b, 0)
        kernel, bias = layers[k + 1]["kernel"], layers[k + 1]["bias"]
        inputs, base = np.zeros((len(kernel), total)), bias
        inputs[:, out] = kernel
        above, below = np.maximum(high, 0), np.maximum(low, 0)
        positive, negative = np.maximum(kernel, 0), np.minimum(kernel, 0)
        low, high = bias + positive @ below + negative @ above, bias + positive @ above + negative @ below
        begin += 2 * m
    constrain(inputs[0], -base[0])
    integrality = np.zeros(total)
    for k, m in enumerate(hidden):
        first = 2 * r + 1 + 2 * sum(hidden[:k]) + m
        integrality[first : first + m] = 1
    solved = milp(
        unit_vector[2 * r],
        integrality=integrality,
        bounds=Bounds(least, highest),
        constraints=LinearConstraint(np.array(rows), -np.inf, np.array(limits)),
        options={"time_limit": limit, "mip_rel_gap": 1e-7},
    )
    return np.inf if solved.status == 2 else float(solved.mip_dual_bound) * upper


@functools.partial(jax.jit, static_argnames="norm")
def _bracketed(params: Any, x: jax.Array, basis: jax.Array, norm: str) -> tuple[jax.Array, jax.Array]:
    def one(params: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        attack = minimal_norm_attack(params, x, basis, norm=norm, key=key_of(0), model=MODEL)
        assert MODEL.certificate
        return MODEL.certificate(params, x, basis, norm=norm, upper=attack.distance), attack.delta

    return jax.vmap(lambda params, x: jax.vmap(lambda x: one(params, x))(x))(params, x)


class Bracketed(NamedTuple):
    """A point's certificate and the length of its attack, in an order of networks and points."""

    params: dict
    x: np.ndarray
    lower: float
    upper: float


def bracketed(seeds: range, width: int, hidden: int, d: int, axes: np.ndarray, norm: str) -> list[Bracketed]:
    cases = [trained(seed, width, hidden, d) for seed in seeds]
    params, x = jax.tree.map(lambda *a: np.stack(a), *cases)
    lower, delta = _bracketed(params, x, np.eye(d)[:, axes], norm)
    found = []
    for (params, x), lowers, deltas in zip(cases, np.asarray(lower), np.asarray(delta), strict=True):
        for point, low, moved in zip(x, lowers, deltas, strict=True):
            before, after = (forward(params["layers"], point + by)[-1][0] for by in (0 * moved, moved))
            flips = moved.any() and np.sign(before) != np.sign(after)
            upper = float(np.linalg.norm(moved, ORDER[norm])) if flips else np.inf
            found.append(Bracketed(params, point, float(low), upper))
    return found


OFF, FULL = np.arange(3, 6), np.arange(6)


@pytest.mark.parametrize("norm", [pytest.param("l2", marks=SLOW), "linf", pytest.param("l1", marks=SLOW)])
def test_no_certificate_is_above_a_flip(norm, x64):
    found = bracketed(range(4), 12, 2, 6, FULL, norm)
    ratios = np.array([case.lower / case.upper for case in found])
    assert np.isfinite([case.upper for case in found]).all()
    assert 0 < min(ratios) and max(ratios) <= 1 and np.median(ratios) > 0.8


def test_attacks_and_certificates_are_near_some_proven_optima(x64):
    for case in bracketed(range(4), 12, 2, 6, FULL, "linf")[:16:2]:
        optimum = least_flip(case.params, case.x, FULL, "linf", case.upper)
        assert case.lower <= optimum * (1 + 1e-6) and case.upper <= 1.02 * optimum


@SLOW
@pytest.mark.parametrize("norm", ["linf", "l1"])
@pytest.mark.parametrize(("width", "axes"), [(16, FULL), (24, OFF)], ids=["full", "off"])
def test_attacks_and_certificates_are_near_the_proven_optima(norm, width, axes, x64):
    """Of 40 problems each."""
    cases = [case for case in bracketed(range(5), width, 2, 6, axes, norm) if np.isfinite(case.upper)]
    optima = np.array([least_flip(case.params, case.x, axes, norm, case.upper) for case in cases])
    lower, upper = (np.array([case[i] for case in cases]) for i in (2, 3))
    assert len(cases) > 30
    assert (lower <= optima * (1 + 1e-6)).all() and (upper <= 1.02 * optima).all()
    assert np.median(lower / optima) > 0.8


@functools.partial(jax.jit, static_argnames="norm")
def _certified(layers: tuple[dict, ...], x: jax.Array, upper: jax.Array, norm: str) -> jax.Array:
    assert MODEL.certificate
    return MODEL.certificate({"layers": layers}, x, jnp.eye(6), norm=norm, upper=upper)


def certified(layers: Sequence[dict], x: np.ndarray, norm: str, upper: float = np.inf) -> float:
    return float(_certified(tuple(layers), x, upper, norm))


def test_certificates_are_infinite_where_nothing_lowers_the_output_and_zero_where_it_is_zero(x64):
    rng = np.random.default_rng(9)
    layers, x = he_layers(rng, [6, 12, 12, 1]), rng.standard_normal(6)
    still = [{**layers[0], "kernel": 0 * layers[0]["kernel"]}, *layers[1:]]
    headless = [*layers[:-1], {"kernel": 0 * layers[-1]["kernel"], "bias": np.ones(1)}]
    rising = [
        {**layers[0], "bias": -np.abs(layers[0]["kernel"] @ x) - 1},
        *({"kernel": np.abs(layer["kernel"]), "bias": np.abs(layer["bias"])} for layer in layers[1:]),
    ]
    falling = [*rising[:-1], {"kernel": -rising[-1]["kernel"], "bias": rising[-1]["bias"] + 100}]
    at_zero = [*layers[:-1], {**layers[-1], "bias": layers[-1]["bias"] - forward(layers, x)[-1]}]
    assert [certified(case, x, "l2") for case in (still, headless, rising)] == [np.inf] * 3
    assert 0 < certified(falling, x, "l2") < 1e4
    assert certified(at_zero, x, "l2") == 0


@pytest.mark.parametrize(
    ("norm", "dual"), [("l2", 2), pytest.param("linf", 1, marks=SLOW), pytest.param("l1", np.inf, marks=SLOW)]
)
def test_a_network_that_is_linear_all_around_is_certified_to_its_distance(norm, dual, x64):
    rng = np.random.default_rng(10)
    layers, x = list(he_layers(rng, [6, 12, 12, 1])), rng.standard_normal(6)
    layers[0]["bias"] = layers[0]["bias"] + 50
    layers[1]["bias"] = layers[1]["bias"] + 50 * np.abs(layers[1]["kernel"]).sum(axis=1)
    layers[2]["bias"] = layers[2]["bias"] + 1 - forward(layers, x)[-1]
    row = (layers[2]["kernel"] @ layers[1]["kernel"] @ layers[0]["kernel"])[0]
    distance = 1 / np.linalg.norm(row, dual)
    assert distance * (1 - 1e-9) <= certified(layers, x, norm, 1.01 * distance) <= distance


def test_certificates_hold_in_any_units(x64):
    """Those of networks whose layers are in other units are the same."""
    params, x = trained(0, 12, 2, 6)
    usual = certified(params["layers"], x[0], "l2", 2.0)
    layers = [
        {"kernel": layer["kernel"] * after / before, "bias": layer["bias"] * after}
        for layer, (before, after) in zip(params["layers"], itertools.pairwise((1, 1e-12, 1e9, 1e-20)), strict=True)
    ]
    assert certified(layers, x[0], "l2", 2.0) == pytest.approx(usual, rel=1e-6)


def exact_product(kernel: np.ndarray, of: np.ndarray) -> np.ndarray:
    """In rational arithmetic."""
    return np.vectorize(Fraction, otypes=[object])(kernel) @ np.vectorize(Fraction, otypes=[object])(of)


def test_certificates_allow_for_what_cancels(x64):
    """Neurons in pairs, all on, that cancel to a thousandth or a millionth of their sum: distances are known."""
    rng, shares = np.random.default_rng(13), []
    for _ in range(40):
        layers, x = list(he_layers(rng, [6, 12, 12, 1])), rng.standard_normal(6)
        heights, odd = 10.0 ** rng.uniform(3, 6, 2), np.arange(12) % 2 == 1
        first, second, last = (layer["kernel"] for layer in layers)
        second = np.where(odd[None], -np.roll(second, 1, axis=1), second)
        layers[0] = {
            "kernel": np.where(odd[:, None], -np.roll(first, 1, axis=0), first),
            "bias": np.full(12, heights[0]),
        }
        layers[1] = {
            "kernel": np.where(odd[:, None], -np.roll(second, 1, axis=0), second),
            "bias": np.full(12, heights[1]),
        }
        layers[2] = {"kernel": np.where(odd[None], -np.roll(last, 1, axis=1), last), "bias": np.zeros(1)}
        output = exact_product(layers[0]["kernel"], x) + exact_product(np.eye(12), layers[0]["bias"])
        for layer in layers[1:]:
            output = exact_product(layer["kernel"], output) + exact_product(np.eye(len(layer["bias"])), layer["bias"])
        gradient = exact_product(exact_product(layers[2]["kernel"], layers[1]["kernel"]), layers[0]["kernel"])[0]
        square = output[0] ** 2 / (gradient @ gradient)
        found = certified(layers, x, "l2", 1.001 * float(square) ** 0.5)
        assert Fraction(found) ** 2 <= square
        shares.append(found / float(square) ** 0.5)
    assert np.median(shares) > 1 - 1e-5


@functools.partial(jax.jit, static_argnames="block")
def _ranges_of_blocks(params: Any, x: jax.Array, block: int) -> jax.Array:
    crown._BLOCK = block
    return crown.crown_certificate(MODEL.local(params, x, jnp.eye(6)), norm="l2", upper=2.0)


@SLOW
def test_blocks_of_neurons_change_nothing(x64):
    params, x = trained(0, 12, 2, 6)
    usual = crown._BLOCK
    try:
        few, many = (_ranges_of_blocks(params, x[0], block) for block in (5, usual))
    finally:
        crown._BLOCK = usual
    assert few == pytest.approx(float(many), rel=1e-9)


# A convolution.

POSITIONS, CHANNELS, TAPS = 8, 3, 3
PATCHES = (np.arange(POSITIONS)[:, None] + np.arange(TAPS)[None]) % POSITIONS


def convolution(params: dict, h: jax.Array) -> jax.Array:
    """Circular, of channels at positions, (..., positions·channels), as a product with patches."""
    image = h.reshape(*h.shape[:-1], POSITIONS, CHANNELS)
    patches = image[..., PATCHES, :].reshape(*h.shape[:-1], POSITIONS, TAPS * CHANNELS)
    return dense(params, patches).reshape(*h.shape[:-1], POSITIONS * CHANNELS)


def pooled(params: dict, h: jax.Array) -> jax.Array:
    return head(params, h.reshape(*h.shape[:-1], POSITIONS, CHANNELS).mean(axis=-2))


def filters_as_matrix(filters: jax.Array) -> jax.Array:
    """(positions·channels, positions) of the first layer's filters (channels, taps)."""
    shifts = jax.nn.one_hot(PATCHES, POSITIONS, dtype=filters.dtype)
    return jnp.einsum("ct,ptd->pcd", filters, shifts).reshape(POSITIONS * CHANNELS, POSITIONS)


CONVOLUTION = chain.model(
    init=lambda *args, **options: None,
    first=lambda params: (filters_as_matrix(params["filters"]), jnp.tile(params["bias"], POSITIONS)),
    with_first_weight=lambda params, weight: params,
    maps=lambda params: (Partial(convolution, params["second"]), Partial(pooled, params["head"])),
    trained=lambda init, trainable: (),
)


def convolved(params: dict, x: np.ndarray) -> float:
    """The output by loops."""
    h = np.zeros((POSITIONS, CHANNELS))
    for p, c in itertools.product(range(POSITIONS), range(CHANNELS)):
        h[p, c] = params["bias"][c] + sum(params["filters"][c, t] * x[(p + t) % POSITIONS] for t in range(TAPS))
    h = np.maximum(h, 0)
    after = np.zeros_like(h)
    for p in range(POSITIONS):
        patch = np.concatenate([h[(p + t) % POSITIONS] for t in range(TAPS)])
        after[p] = params["second"]["kernel"] @ patch + params["second"]["bias"]
    return float(params["head"]["kernel"][0] @ np.maximum(after, 0).mean(axis=0) + params["head"]["bias"][0])


@functools.cache
def _convolution() -> tuple[dict, np.ndarray]:
    rng = np.random.default_rng(11)
    params = {
        "filters": rng.standard_normal((CHANNELS, TAPS)),
        "bias": 0.1 * rng.standard_normal(CHANNELS),
        "second": {"kernel": rng.standard_normal((CHANNELS, TAPS * CHANNELS)), "bias": np.zeros(CHANNELS)},
        "head": {"kernel": np.array([[1.0, -1.0, -1.0]]), "bias": np.array([0.3])},
    }
    return params, rng.standard_normal((6, POSITIONS))


def test_a_convolution_is_a_chain_too(x64):
    params, points = _convolution()
    directions = np.random.default_rng(12).standard_normal((6, 5, POSITIONS))

    @jax.jit
    @jax.vmap
    def found(x: jax.Array, directions: jax.Array) -> tuple:
        of = CONVOLUTION.local(params, x, jnp.eye(POSITIONS))
        return CONVOLUTION.output(params, x), *jax.vmap(of.crossing)(directions)

    outputs, lowers, uppers = found(points, directions)
    for x, output in zip(points, outputs, strict=True):
        assert output == pytest.approx(convolved(params, x))
    for (i, k), end in np.ndenumerate(uppers):
        sign = np.sign(outputs[i])
        t = np.linspace(0, end if np.isfinite(end) else 1e3, 200, endpoint=False)
        assert all(sign * convolved(params, points[i] + s * directions[i, k]) >= -1e-9 for s in t)
        if np.isfinite(end):
            assert sign * convolved(params, points[i] + end * (1 + 1e-9) * directions[i, k]) <= 0
            assert lowers[i, k] == pytest.approx(end, rel=1e-8)
    assert np.isfinite(uppers).mean() > 0.2


@SLOW
def test_a_convolution_is_certified(x64):
    params, points = _convolution()

    @jax.jit
    @jax.vmap
    def found(x: jax.Array) -> tuple:
        basis = jnp.eye(POSITIONS)
        attack = minimal_norm_attack(params, x, basis, key=key_of(0), model=CONVOLUTION)
        assert CONVOLUTION.certificate
        return CONVOLUTION.certificate(params, x, basis, norm="l2", upper=attack.distance), attack.delta

    for x, lower, delta in zip(points, *found(points), strict=True):
        assert lower <= np.linalg.norm(delta) and lower > 0.5 * np.linalg.norm(delta)
        assert np.sign(convolved(params, x + delta)) == -np.sign(convolved(params, x))
