"""Brackets by the kernel: against XLA's, alone and in company, with every instruction set."""

import dataclasses
import functools
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from shell import needs_kernel
from troubled import degenerate

from subspace_adv.brackets import Beginnings, Effort, bracket
from subspace_adv.models import TWO_LAYER, compiled
from subspace_adv.network import Network
from subspace_adv.streams import key_of

pytestmark = needs_kernel

WIDTH, D, NETWORKS, POINTS = 30, 6, 12, 4
NORMS = ("l2", "linf", "l1")
XLA = dataclasses.replace(TWO_LAYER, kernel=None)
EFFORT = Effort(56, 32, compiled.ATTACKS)


@functools.cache
def cases() -> tuple[list[Network], np.ndarray]:
    rng = np.random.default_rng(30)
    networks = [degenerate(rng, i % 9, WIDTH, D) for i in range(NETWORKS)]
    x = rng.standard_normal((POINTS, D))
    x[0] = 0.5
    return networks, x


@functools.partial(jax.jit, static_argnames=("norm", "dimension", "by"))
def _bracket(network: Network, x: jax.Array, norm: str, dimension: int, by: str):
    model = {"kernel": TWO_LAYER, "xla": XLA}[by]
    begin = Beginnings.of(network, x, key_of(1), model)
    with pytest.MonkeyPatch.context() as patch:
        if by == "xla":
            patch.setattr(compiled, "crosses", lambda z: False)
        return bracket(network, x, jnp.eye(D)[:, :dimension], begin, norm=norm, effort=EFFORT, model=model)


def brackets(network: Network, x: np.ndarray, norm: str, dimension: int, by: str = "kernel"):
    with jax.enable_x64(True):
        lower, attack = _bracket(network, x, norm, dimension, by)
        return np.asarray(lower), np.asarray(attack.distance), np.asarray(attack.delta)


@pytest.mark.slow  # XLA's compile for long
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dimension", (3, 6))
def test_brackets_hold_a_distance_that_those_of_xla_hold_too(dimension, norm):
    networks, x = cases()
    for network in networks[:9]:
        mine, theirs = (brackets(network, x, norm, dimension, by) for by in ("kernel", "xla"))
        assert (mine[0] <= theirs[1]).all() and (theirs[0] <= mine[1]).all()
        found = np.isfinite(theirs[1])
        assert (mine[1][found] <= theirs[1][found] * 1.05).all()
        near = theirs[1] < 1.5 * theirs[0]
        assert (mine[0] * 1.05 >= np.minimum(theirs[0], mine[1] / (1 + EFFORT.gap)))[near].all()


def test_a_point_is_the_same_in_any_company(instruction_set):
    networks, x = cases()
    stacked = reference.stacked(networks)
    for norm in NORMS:
        with jax.enable_x64(True):
            one = functools.partial(_bracket, x=x, norm=norm, dimension=3, by="kernel")
            together = jax.vmap(one)(stacked)
            lower, upper, delta = (np.asarray(a) for a in (together[0], together[1].distance, together[1].delta))
        for i in (0, 5, 11):
            for found, alone in zip((lower, upper, delta), brackets(networks[i], x, norm, 3), strict=True):
                np.testing.assert_array_equal(found[i], alone)


def test_what_is_no_distance_ends_and_tells_no_flip():
    """Parameters that are not finite."""
    networks, x = cases()
    for value in (np.nan, np.inf):
        for field in Network._fields:
            part = np.array(getattr(networks[0], field))
            part.flat[0] = value
            network = networks[0]._replace(**{field: part})
            for norm in NORMS:
                for dimension in (2, 3):
                    lower, upper, _ = brackets(network, x, norm, dimension)
                    assert lower.shape == upper.shape == (POINTS,)
                    if np.isnan(value) and field != "weight":
                        assert np.isinf(upper).all()


def test_fewer_neurons_than_dimensions_are_certified_as_well():
    """Where coordinates are turned: near the flips found, and never beyond those on rays, in any frame."""
    rng, ratios, dim = np.random.default_rng(33), [], 40
    frames = np.eye(dim), np.linalg.qr(rng.standard_normal((dim, dim)))[0]

    @jax.jit
    def measured(network: Network, x: jax.Array, basis: jax.Array) -> tuple[jax.Array, jax.Array]:
        begin = Beginnings.of(network, x, key_of(1), TWO_LAYER)
        lower, attack = bracket(network, x, basis, begin, norm="l2", effort=EFFORT, model=TWO_LAYER)
        return lower, attack.distance

    for width in (2, 8, 20) * 3:
        network, x = reference.random_network(rng, width, dim, 20), rng.standard_normal((3, dim))
        with jax.enable_x64(True):
            found = [tuple(map(np.asarray, measured(network, x, frame))) for frame in frames]
        for lower, upper in found:
            scanned = [reference.nearest_flip(rng, network, point, np.eye(dim), 2)[0] for point in x]
            assert (lower <= upper).all() and (lower <= scanned).all()
            flips = np.isfinite(upper)
            ratios += list(lower[flips] / upper[flips])
        one, other = (lower for lower, _ in found)
        np.testing.assert_allclose(one, other, rtol=0.05)
    assert np.median(ratios) > 0.97 and np.min(ratios) > 0.8


@pytest.mark.parametrize("norm", NORMS)
def test_brackets_in_few_dimensions_are_closed(norm):
    """Of random networks, whose many kinks other certificates leave open; beside flips on rays."""
    rng, order, ratios = np.random.default_rng(34), {"l2": 2, "linf": np.inf, "l1": 1}[norm], []
    for _ in range(12):
        network, x = reference.random_network(rng, 20, D, WIDTH), rng.standard_normal((POINTS, D))
        lower, upper, _ = brackets(network, x, norm, 4)
        scanned = [reference.nearest_flip(rng, network, point, np.eye(D)[:, :4], order)[0] for point in x]
        assert (lower <= upper).all() and (lower <= scanned).all()
        ratios += list((upper / lower)[np.isfinite(upper)])
    assert len(ratios) > 24 and np.mean(np.array(ratios) <= 1 + EFFORT.gap) > 0.98


@pytest.mark.parametrize("norm", NORMS)
def test_no_certificate_is_above_the_distance_where_preactivations_cancel(norm):
    """To a ten-billionth, of one neuron, whose distance rational numbers tell."""
    rng, tight = np.random.default_rng(35), 0
    for _ in range(30):
        weight, x = rng.standard_normal((2, 1, D)).astype(np.float32).astype(float)
        bias = np.float64(1e-10 - float(weight[0] @ x[0]))
        network = Network(weight, np.array([bias]), np.ones(1), np.float64(-3e-11))
        [lower], [upper], _ = brackets(network, x, norm, 3)
        z = sum(Fraction(w) * Fraction(v) for w, v in zip(weight[0], x[0], strict=True)) + Fraction(float(bias))
        slope = [abs(Fraction(w)) for w in weight[0, :3]]
        height = z + Fraction(network.head_bias)
        square, dual = sum(s * s for s in slope), {"linf": sum(slope), "l1": max(slope), "l2": None}[norm]
        exact = height / dual if dual else Fraction(float(height) / float(square) ** 0.5 * (1 + 1e-15))
        assert Fraction(float(lower)) <= exact
        tight += lower > 0.99 * upper
    assert tight > 25


def test_the_gap_says_how_far_a_bracket_is_tightened():
    networks, x = cases()

    def lower(gap: float) -> np.ndarray:
        what = {"norm": "l2", "effort": EFFORT._replace(gap=gap), "model": TWO_LAYER}
        with jax.enable_x64(True):
            begin = Beginnings.of(networks[0], jnp.asarray(x), key_of(1), TWO_LAYER)
            return np.asarray(bracket(networks[0], jnp.asarray(x), jnp.eye(D), begin, **what)[0])

    loose, tight = lower(10.0), lower(0.0)
    assert (loose <= tight).all() and (loose < tight).any()


def test_arrays_that_do_not_fit_are_refused():
    with jax.enable_x64(True):
        cross = jax.ffi.ffi_call("subspace_adv_cross", [jax.ShapeDtypeStruct((2,), jnp.float64)] * 2)
        rays = [jnp.ones((2, 4)), jnp.ones((2, 4)), jnp.ones((2, 4)), jnp.ones(2)]
        cross(*rays)
        for i in range(len(rays)):
            with pytest.raises(Exception, match="do not fit together"):
                jax.block_until_ready(cross(*(a[..., :-1] if i == k else a for k, a in enumerate(rays))))
        call = jax.ffi.ffi_call(
            "subspace_adv_bracket",
            [jax.ShapeDtypeStruct((2,), jnp.float64)] * 2 + [jax.ShapeDtypeStruct((2, 3), jnp.float64)],
        )
        keys, rest = jnp.zeros((2, 2), jnp.uint32), {"steps": np.int64(1), "restarts": np.int64(1), "gap": 0.0}
        whole = [jnp.ones(4), jnp.float64(1), jnp.ones((2, 4)), jnp.ones((1, 4, 3))]
        whole += [jnp.zeros((2, 4)), jnp.zeros(4), keys, jnp.zeros((2, 3))]
        call(*whole, norm=np.int64(0), **rest)
        for i in range(len(whole)):
            if whole[i].ndim:
                cut = [a[..., :-1] if i == k else a for k, a in enumerate(whole)]
                with pytest.raises(Exception, match="do not fit together"):
                    jax.block_until_ready(call(*cut, norm=np.int64(0), **rest))
        with pytest.raises(Exception, match="do not fit together"):
            jax.block_until_ready(call(*whole, norm=np.int64(3), **rest))
