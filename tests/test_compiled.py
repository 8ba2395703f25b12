"""Brackets by the kernel: against flips on rays, against XLA's, alone and in company, with every instruction set."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from optimum import ORDER

from subspace_adv.brackets import Effort, bracket
from subspace_adv.models import TWO_LAYER, compiled, fused
from subspace_adv.network import Network
from subspace_adv.streams import key_of

pytestmark = pytest.mark.skipif(fused.unavailable() is not None, reason=str(fused.unavailable()))

WIDTH, D, NETWORKS, POINTS = 30, 6, 12, 4
NORMS = ("l2", "linf", "l1")
DIMENSIONS = (3, 6)
XLA = dataclasses.replace(TWO_LAYER, kernel=None)
EFFORT = Effort(56, 32, compiled.ATTACKS)


def degenerate(rng: np.random.Generator, kind: int) -> Network:
    """A random network, or one that has what makes trouble."""
    network = reference.random_network(rng, WIDTH, D)
    weight, bias, head, head_bias = (np.array(part) for part in network)
    match kind:
        case 1:  # duplicated neurons, that aid and oppose
            weight[1::2], bias[1::2], head[1::2] = weight[::2], bias[::2], -head[::2] * (1 + 1e-9)
        case 2:  # neurons that do not vary, or do nothing
            weight[:10], head[10:14] = 0, 0
        case 3:  # kinks through one point
            bias = -weight @ np.full(D, 0.5)
        case 4:  # dead around the points, alive far away
            bias = bias - 40
        case 5:  # sizes of the input and the output
            weight, bias, head, head_bias = weight * 1e-30, bias * 1e-30, head * 1e70, head_bias * 1e40
        case 6:  # all neurons at one another's kinks
            weight[:] = weight[0]
        case 7:  # never flips
            head, head_bias = np.abs(head), np.abs(head_bias) + 1
        case 8:  # terms that cancel to a trillionth
            weight[15:], bias[15:], head[15:] = weight[:15], bias[:15], -head[:15]
            head[0] *= 1 + 1e-12
    return Network(weight, bias, head, head_bias)


@functools.cache
def cases() -> tuple[list[Network], np.ndarray]:
    rng = np.random.default_rng(30)
    networks = [degenerate(rng, i % 9) for i in range(NETWORKS)]
    x = rng.standard_normal((POINTS, D))
    x[0] = 0.5
    return networks, x


@functools.partial(jax.jit, static_argnames=("norm", "dimension", "by"))
def _bracket(network: Network, x: jax.Array, norm: str, dimension: int, by: str):
    model = {"kernel": TWO_LAYER, "xla": XLA}[by]
    return bracket(network, x, jnp.eye(D)[:, :dimension], key_of(1), norm=norm, effort=EFFORT, model=model)


def brackets(network: Network, x: np.ndarray, norm: str, dimension: int, by: str = "kernel"):
    with jax.enable_x64(True):
        lower, attack = _bracket(network, x, norm, dimension, by)
        return np.asarray(lower), np.asarray(attack.distance), np.asarray(attack.delta)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_no_ray_flips_sooner_and_what_is_found_is_a_flip(norm, dimension, instruction_set):
    networks, x = cases()
    rng = np.random.default_rng(31)
    for network in networks:
        lower, upper, delta = brackets(network, x, norm, dimension)
        assert not np.isnan(lower).any() and (lower <= upper).all()
        for point, low, high, move in zip(x, lower, upper, delta, strict=True):
            scan = reference.nearest_flip(rng, network, point, np.eye(D)[:, :dimension], ORDER[norm])
            assert low <= scan * (1 + 1e-9)
            assert high <= scan * 1.05 or scan > 1e3
            if np.isfinite(high):
                assert (move[dimension:] == 0).all()
                assert np.linalg.norm(move, ORDER[norm]) == pytest.approx(high, rel=1e-9)
                there = point.astype(np.longdouble) + move
                assert reference.output(network, point) * reference.output(network, there) <= 0
            else:
                assert (move == 0).all()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_brackets_hold_a_distance_that_those_of_xla_hold_too(norm, dimension):
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


def test_the_gap_says_how_far_a_bracket_is_tightened():
    networks, x = cases()

    def lower(gap: float) -> np.ndarray:
        what = {"norm": "l2", "effort": EFFORT._replace(gap=gap), "model": TWO_LAYER}
        with jax.enable_x64(True):
            return np.asarray(bracket(networks[0], jnp.asarray(x), jnp.eye(D), key_of(1), **what)[0])

    loose, tight = lower(10.0), lower(0.0)
    assert (loose <= tight).all() and (loose < tight).any()


def test_arrays_that_do_not_fit_are_refused():
    with jax.enable_x64(True):
        call = jax.ffi.ffi_call(
            "subspace_adv_bracket",
            [jax.ShapeDtypeStruct((2,), jnp.float64)] * 2 + [jax.ShapeDtypeStruct((2, 3), jnp.float64)],
        )
        keys, rest = jnp.zeros((2, 2), jnp.uint32), {"steps": np.int64(1), "restarts": np.int64(1), "gap": 0.0}
        whole = [jnp.ones(4), jnp.float64(1), jnp.ones((2, 4)), jnp.ones((1, 4, 3)), keys, jnp.zeros((2, 3))]
        call(*whole, norm=np.int64(0), **rest)
        for i in range(len(whole)):
            if whole[i].ndim:
                cut = [a[..., :-1] if i == k else a for k, a in enumerate(whole)]
                with pytest.raises(Exception, match="do not fit together"):
                    jax.block_until_ready(call(*cut, norm=np.int64(0), **rest))
        with pytest.raises(Exception, match="do not fit together"):
            jax.block_until_ready(call(*whole, norm=np.int64(3), **rest))
