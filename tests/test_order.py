"""The order of all distances, over random and degenerate networks of every scale: no exceptions.

What is measured of a network is bounded from below and above, in three regions and three norms, and the bounds
hold an order whatever the network: hypothesis looks for one that breaks it.
"""

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from subspace_adv import attacks, brackets, measures, subject
from subspace_adv.engine import chunks
from subspace_adv.engine.pinned import compiler_options
from subspace_adv.geometry import Subspace, region_basis
from subspace_adv.measures import Recording
from subspace_adv.models import TWO_LAYER, crown_certificate, kink_certificate
from subspace_adv.network import Network

POINTS = 3
REGIONS = ("off", "on", "full")
NORMS = ("linf", "l2", "l1")  # the shortest first
RECORDING = Recording(REGIONS, NORMS, attack_steps=8, restarts=3, gap=0.01, loss="logistic")
EXAMPLES, COMPARED = 100, 1_000_000  # batches, and pairs of bounds at least
STARTS = (1.0, 2.0, np.inf)  # where the CROWN certificate begins, in units of the upper distance


class Shape(NamedTuple):
    """What a program is compiled for: ambient and subspace dimension, width with padding, networks of a batch."""

    d: int
    k: int
    width: int
    batch: int = 64


SHAPES = (
    Shape(3, 2, 40),
    Shape(1, 1, 7),
    Shape(2, 1, 1),
    Shape(12, 4, 7),
    Shape(40, 8, 12, batch=16),  # 32 dimensions off the subspace, the most in which certificates are concave
    Shape(200, 3, 40, batch=8),
)


class Draw(NamedTuple):
    """One network of a batch: its kind, and powers of ten.

    They multiply its weights and biases, its head, both head and bias of the output, and the inputs.
    """

    kind: str
    weight: float
    head: float
    logit: float
    inputs: float


# Kinds -----------------------------------------------------------------------------------------------------------


def dead(rng: np.random.Generator, network: Network, x: np.ndarray) -> Network:
    """About a half of the neurons are off at all points, or have no weights, bias or head."""
    weight, bias, head, _ = (np.array(field) for field in network)
    off, zero = rng.random((2, len(bias))) < [[0.4], [0.2]]
    bias[off] = -2 * np.abs(weight[off] @ x.T).max(axis=1)
    weight[zero] = bias[zero] = head[zero] = 0
    return network._replace(weight=weight, bias=bias, head=head)


def no_biases(rng: np.random.Generator, network: Network, x: np.ndarray) -> Network:
    return network._replace(bias=0 * network.bias, head_bias=network.head_bias * rng.integers(2))


def no_head(rng: np.random.Generator, network: Network, x: np.ndarray) -> Network:
    return network._replace(head=0 * network.head, head_bias=network.head_bias * rng.integers(2))


def twins(rng: np.random.Generator, network: Network, x: np.ndarray) -> Network:
    """The second half of the neurons repeats the first, with the same heads or the opposite ones, or both."""
    half = len(network.bias) // 2
    source = np.where(np.arange(len(network.bias)) < half, 0, half)
    at = np.arange(len(network.bias)) - source
    sign = rng.choice([[1, 1], [-1, -1], [1, -1]])[rng.integers(2, size=len(at))]
    head = network.head[at] * np.where(source > 0, sign, 1)
    return network._replace(
        weight=network.weight[at], bias=network.bias[at], head=head, head_bias=network.head_bias * rng.integers(2)
    )


def huge_head_bias(rng: np.random.Generator, network: Network, x: np.ndarray) -> Network:
    return network._replace(head_bias=network.head_bias * 10.0 ** rng.uniform(2, 8))


def tie(rng: np.random.Generator, network: Network, x: np.ndarray) -> Network:
    """N = 0 at the first point, up to rounding."""
    return network._replace(head_bias=-np.maximum(network.weight @ x[0] + network.bias, 0) @ network.head)


def near_tie(rng: np.random.Generator, network: Network, x: np.ndarray) -> Network:
    return network._replace(head_bias=tie(rng, network, x).head_bias * (1 + 10.0 ** rng.uniform(-16, -8)))


def asleep(rng: np.random.Generator, network: Network, x: np.ndarray) -> Network:
    """No neuron is active at any point."""
    bias = -np.abs(network.weight @ x.T).max(axis=1) * (1 + rng.random(len(network.bias)))
    return network._replace(bias=bias, head_bias=network.head_bias * rng.integers(2))


def kinks(rng: np.random.Generator, network: Network, x: np.ndarray) -> Network:
    """All neurons, or some, at their kinks at the first point, up to rounding."""
    some = rng.random(len(network.bias)) < rng.choice([0.5, 1])
    return network._replace(bias=np.where(some, -(network.weight @ x[0]), network.bias))


def blind(rng: np.random.Generator, network: Network, x: np.ndarray) -> Network:
    """To some coordinates: all from one on, all before one, or any, possibly to every one."""
    d = network.weight.shape[1]
    at = np.arange(d)
    first = rng.integers(d + 1)
    seen = [at < first, at >= first, rng.random(d) < rng.random()][rng.integers(3)]
    return network._replace(weight=network.weight * seen)


def spread(rng: np.random.Generator, network: Network, x: np.ndarray) -> Network:
    """Every neuron has its own scales."""
    of_weight, of_head = 10.0 ** rng.uniform(-4, 4, (2, len(network.bias)))
    return network._replace(
        weight=network.weight * of_weight[:, None], bias=network.bias * of_weight, head=network.head * of_head
    )


def one_sided(rng: np.random.Generator, network: Network, x: np.ndarray) -> Network:
    """All heads of one sign: many points cannot be flipped."""
    return network._replace(head=np.abs(network.head) * rng.choice([-1, 1]))


def same(rng: np.random.Generator, network: Network, x: np.ndarray) -> Network:
    return network


KINDS: dict[str, Callable[[np.random.Generator, Network, np.ndarray], Network]] = {
    "plain": same,
    "whole numbers": same,
    "dead": dead,
    "no biases": no_biases,
    "no head": no_head,
    "twins": twins,
    "huge head bias": huge_head_bias,
    "tie": tie,
    "near tie": near_tie,
    "asleep": asleep,
    "kinks": kinks,
    "blind": blind,
    "spread": spread,
    "one-sided": one_sided,
}


def drawn(shape: Shape, seed: int, i: int, draw: Draw) -> tuple[Network, np.ndarray, np.ndarray]:
    """The i-th network of a batch, its points (POINTS, d) and their labels."""
    rng = np.random.default_rng([seed, i])
    network = reference.random_network(rng, rng.integers(1, shape.width + 1), shape.d, shape.width)
    x = rng.standard_normal((POINTS, shape.d)) * 10.0 ** rng.uniform(-2, 2)
    if rng.random() < 0.7:
        x[:, shape.k :] = 0
    of_weight, of_head, of_logit, of_input = 10.0 ** np.array(draw[1:])
    if draw.kind == "whole numbers":  # sums are exact, so kinks coincide and outputs are 0
        network, x = Network(*(np.rint(2 * np.asarray(field)) for field in network)), np.rint(x)
        of_weight, of_head, of_logit, of_input = np.exp2(np.rint(np.log2([of_weight, of_head, of_logit, of_input])))
    x = x * of_input
    network = Network(
        network.weight * (of_weight / of_input),
        network.bias * of_weight,
        network.head * of_head * of_logit,
        network.head_bias * of_weight * of_head * of_logit,
    )
    network = KINDS[draw.kind](rng, network, x)
    y = np.where(reference.output(network, x) < 0, -1.0, 1.0) * np.where(rng.random(POINTS) < 0.15, -1, 1)
    return network, x, y


# Shrinking takes minutes and what is found names its network: `drawn(shape, seed, i, draws[i])`.
THOROUGH = settings(deadline=None, derandomize=True, database=None, phases=[Phase.explicit, Phase.generate])


def batches(shape: Shape) -> st.SearchStrategy[tuple[Shape, int, list[Draw]]]:
    near, far = st.floats(-4, 4), st.floats(-30, 30)
    draws = st.builds(Draw, st.sampled_from(list(KINDS)), near, near | far, far, st.floats(-12, 12))
    return st.tuples(
        st.just(shape), st.integers(0, 2**32 - 1), st.lists(draws, min_size=shape.batch, max_size=shape.batch)
    )


# What is measured ------------------------------------------------------------------------------------------------


class Found(NamedTuple):
    """What is measured of a batch, and how: the record, every attack's flips, and the certificates alone."""

    record: dict[str, jax.Array]
    flips: dict[tuple[str, str], attacks.AttackResult]  # by region and norm; the universal one is ("off", "universal")
    kink: dict[tuple[str, str], jax.Array]  # (batch, n)
    crown: dict[tuple[str, str], jax.Array]  # (batch, n, starts)


def _one(subspace, network: Network, x: jax.Array, y: jax.Array, key: jax.Array) -> Found:
    flips = {}

    def bracket(network, x, basis, begin, *, norm, **how):
        lower, flip = original(network, x, basis, begin, norm=norm, **how)
        flips[REGIONS[len(flips) // len(NORMS)], norm] = flip  # the regions in turn, each in all norms
        return lower, flip

    def every(network, x, subspace, universal, key, **recording):
        found = every_original(network, x, subspace, universal, key, **recording)
        flips["off", "universal"] = universal
        return found

    original, every_original = brackets.bracket, brackets.brackets
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(brackets, "bracket", bracket)
        patch.setattr(subject, "brackets", every)
        record = measures.measure(network, x, y, subspace, x[:1], key, recording=RECORDING, model=TWO_LAYER)
    assert len(flips) == len(REGIONS) * len(NORMS) + 1
    # All regions in one program: zero columns let nothing vary, so they make a smaller region of a larger one.
    d = x.shape[1]
    bases = [region_basis(subspace, region) for region in REGIONS]
    bases = jnp.stack([jnp.pad(basis, ((0, 0), (0, d - basis.shape[1]))) for basis in bases])
    kink, crown = {}, {}
    for norm in NORMS:
        upper = jnp.stack([record[f"distance_{region}_{norm}_upper"] for region in REGIONS])
        certify = functools.partial(kink_certificate, network, norm=norm)
        radii = jax.vmap(lambda basis, f=certify: jax.vmap(f, (0, None))(x, basis))(bases)
        kink |= {(region, norm): radii[i] for i, region in enumerate(REGIONS)}

        def crown_from(point, basis, upper, norm=norm):
            starts = upper * jnp.array(STARTS)
            return jax.vmap(lambda start: crown_certificate(network, point, basis, norm=norm, upper=start))(starts)

        radii = jax.vmap(lambda basis, upper, f=crown_from: jax.vmap(f, (0, None, 0))(x, basis, upper))(bases, upper)
        crown |= {(region, norm): radii[i] for i, region in enumerate(REGIONS)}
    return Found(record, flips, kink, crown)


@functools.cache
def _program(shape: Shape) -> Callable:
    subspace = Subspace.axis_aligned(shape.d, shape.k)
    # As the engine compiles: rounding is a matter of that.
    return jax.jit(jax.vmap(functools.partial(_one, subspace)), compiler_options=compiler_options(quick=True))


class Batch(NamedTuple):
    """Networks and points, and what was found of them."""

    networks: list[Network]
    x: np.ndarray
    y: np.ndarray
    found: Found

    def each(self) -> Iterator[tuple[tuple[int, int], Network, np.ndarray]]:
        """Index, network and point of every network and point."""
        for i, j in np.ndindex(self.y.shape):
            yield (i, j), self.networks[i], self.x[i, j]


def measured(shape: Shape, seed: int, draws: list[Draw]) -> Batch:
    networks, x, y = zip(*(drawn(shape, seed, i, draw) for i, draw in enumerate(draws)), strict=True)
    x, y = np.array(x), np.array(y)
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(seed), len(draws))
        found = _program(shape)(reference.stacked(list(networks)), x, y, keys)
        return Batch(list(networks), x, y, jax.tree.map(np.asarray, found))


# The order -------------------------------------------------------------------------------------------------------


def holds(claim: str, true: np.ndarray, *values: np.ndarray) -> None:
    """Fail with the first place where a claim does not hold, and the values there."""
    broken = np.argwhere(~true)
    if len(broken):
        at = tuple(broken[0])
        pytest.fail(f"{claim}: not so at {at} and {len(broken) - 1} more, {[value[at] for value in values]}")


def check_the_values(name: str, values: np.ndarray, wrong: np.ndarray) -> None:
    """Of one variable: its sign, and where it is 0."""
    holds(f"{name} is a number", ~np.isnan(values), values)
    if not name.startswith("distance"):
        return
    holds(f"{name} ≥ 0", values >= 0, values)
    if not name.endswith("heldout"):
        holds(f"{name} is 0 where misclassified", (values == 0) | ~wrong, values)
    if not name.endswith(("heldout", "lower")):
        holds(f"{name} is 0 nowhere else", (values != 0) | wrong, values)


def check_the_record(record: dict[str, np.ndarray], wrong: np.ndarray) -> int:
    """Returns how many pairs of distances were compared."""
    for name, values in record.items():
        check_the_values(name, values, wrong)
    pairs = [("distance_off_l2_upper", "distance_universal")]
    pairs += [("distance_off_l2_lower", f"distance_{direction}") for direction in ("universal", "random")]
    for region, norm in itertools.product(REGIONS, NORMS):
        pairs.append((f"distance_{region}_{norm}_lower", f"distance_{region}_{norm}_upper"))
        pairs.append((f"distance_full_{norm}_upper", f"distance_{region}_{norm}_upper"))
    for region, side, (shorter, longer) in itertools.product(
        REGIONS, ("lower", "upper"), (("linf", "l2"), ("l2", "l1"))
    ):
        pairs.append((f"distance_{region}_{shorter}_{side}", f"distance_{region}_{longer}_{side}"))
    for low, high in pairs:
        holds(f"{low} ≤ {high}", record[low] <= record[high], record[low], record[high])
    return len(pairs) * wrong.size


def check_the_certificates(found: Found, wrong: np.ndarray) -> int:
    """Each alone is at most the upper distance, wherever CROWN's search begins; misclassified points are aside.

    Returns how many were compared.
    """
    for region, norm in found.kink:
        upper = found.record[f"distance_{region}_{norm}_upper"]
        kink, crown = found.kink[region, norm], found.crown[region, norm]
        holds(f"kink {region} {norm} ≤ upper", (kink <= upper) | wrong, kink, upper)
        for start, radius in zip(STARTS, np.moveaxis(crown, -1, 0), strict=True):
            holds(f"CROWN {region} {norm} from {start} ≤ upper", (radius <= upper) | wrong, radius, upper)
    return len(found.kink) * (1 + len(STARTS)) * wrong.size


def is_tie(network: Network, x: np.ndarray) -> bool:
    """Whether the output at x (d,) is 0 up to what float64's rounding may make of it in the worst case."""
    weight, bias, head, head_bias = (np.abs(field) for field in network)
    sizes = head @ (weight @ np.abs(x) + bias) + head_bias
    return bool(abs(reference.output(network, x)) <= np.finfo(float).eps * (len(x) + len(bias) + 2) * sizes)


def check_the_flips(batch: Batch, k: int) -> int:
    """Every flip found lies in its region and flips in long double, unless x is a tie; returns how many there are."""
    count = 0
    flips = batch.found.flips
    for (region, norm), flip in flips.items():
        claim = f"flips {region} {norm}"
        holds(f"{claim} are finite", np.isfinite(flip.delta).all(axis=-1), flip.delta)
        holds(f"{claim} have a distance", flip.is_adv == np.isfinite(flip.distance), flip.distance)
        outside = {"off": flip.delta[..., :k], "on": flip.delta[..., k:], "full": flip.delta[..., :0]}[region]
        holds(f"{claim} lie in the region", (outside == 0).all(axis=-1), flip.delta)
    deltas = np.stack([flip.delta for flip in flips.values()], axis=2)  # (batch, n, flips, d)
    is_adv = np.stack([flip.is_adv for flip in flips.values()], axis=2)
    for at, network, x in batch.each():
        if is_tie(network, x):
            continue
        value, delta = reference.output(network, x), np.asarray(deltas[at], np.longdouble)
        sign = 1 if value > 0 else -1
        moved = sign * np.minimum(*(sign * reference.output(network, x + delta * far) for far in (1, 1 + 1e-9)))
        flipped = (sign * moved <= 0) | ~is_adv[at]
        for name, good, there in zip(flips, flipped, moved, strict=True):
            assert good, f"{name} is no flip at {at}: N goes from {value} to {there}"
        count += is_adv[at].sum()
    return count


def check_the_uppers_are_found(batch: Batch, wrong: np.ndarray) -> None:
    """Every finite upper distance is the length of some flip found in its region; but for ties."""
    aside = wrong | np.reshape([is_tie(network, x) for _, network, x in batch.each()], wrong.shape)
    within = {"off": ("off",), "on": ("on",), "full": REGIONS}
    for region in REGIONS:
        found = [flip for (where, _), flip in batch.found.flips.items() if where in within[region]]
        for norm in NORMS:
            upper = batch.found.record[f"distance_{region}_{norm}_upper"]
            order = {"l2": 2, "linf": np.inf, "l1": 1}[norm]
            lengths = [np.where(f.is_adv, np.linalg.norm(f.delta, ord=order, axis=-1), np.inf) for f in found]
            least = np.min(lengths, axis=0)
            with np.errstate(invalid="ignore"):
                close = (np.abs(upper - least) <= 1e-9 * least) | (upper == least)
            holds(f"the upper distance {region} {norm} is a flip's length", close | aside, upper, least)


def check(shape: Shape, seed: int, draws: list[Draw]) -> int:
    """Returns how many pairs of bounds were compared."""
    batch = measured(shape, seed, draws)
    record, rows = batch.found.record, RECORDING.variables
    stored = {name: chunks._rounded(values, rows[name].rounding) for name, values in record.items()}
    wrong = batch.y * record["output"] <= 0
    check_the_flips(batch, shape.k)
    check_the_uppers_are_found(batch, wrong)
    return (
        check_the_record(record, wrong) + check_the_record(stored, wrong) + check_the_certificates(batch.found, wrong)
    )


@pytest.mark.slow
def test_distances_are_in_their_order():
    counts = []

    @settings(THOROUGH, max_examples=EXAMPLES)
    @given(st.sampled_from(SHAPES).flatmap(batches))
    def search(batch):
        counts.append(check(*batch))

    search()
    assert sum(counts) >= COMPARED
