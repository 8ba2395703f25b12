"""Training in coordinates of the data's span and measuring in canonical ones changes nothing, or nothing in law."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from descent import Settings, descend
from reference import Ray
from scipy import stats
from shell import read

from subspace_adv import engine, load_networks, measures, run
from subspace_adv.chi import chi_of_normal
from subspace_adv.data import KINDS, SubspaceData
from subspace_adv.datasets import input_span, load_data, load_span
from subspace_adv.geometry import Subspace, in_ambient
from subspace_adv.initialization import Law, ambient_off_weights, init_network, off_weights
from subspace_adv.network import Network
from subspace_adv.planning import plan
from subspace_adv.receptive_fields import DENSE
from subspace_adv.reduction import reduction
from subspace_adv.sweep import Sweep

LAWS = [*(pytest.param(law, marks=pytest.mark.slow) for law in ("paper-code", "theory")), "torch"]

# On a line, the distances within the subspace are exact crossings, which compile fastest.
BASE = """
[data]
kind = "subspace"
subspace_dim = 1
samples = 4
data_seed = 2
[training]
max_steps = 0
[measure]
regions = ["on"]
"""


def trained(sweep: Sweep, *, reduced: bool | None = None) -> tuple[dict[str, np.ndarray], Network]:
    """What the engine trains of a sweep of one chunk, in one kind of coordinates; and its networks in ambient ones."""
    [chunk] = plan(sweep).chunks
    if reduced is not None:
        group = chunk.group._replace(program=chunk.group.program._replace(reduced=reduced))
        chunk = chunk._replace(group=group)
    [(_, found)] = engine.train(sweep, chunk.group, [chunk])
    return found, engine.ambient_networks(sweep, chunk, found)


def apart(one: Network, other: Network) -> float:
    """Largest difference of a parameter array of any network, relative to its norm."""
    worst = 0.0
    for a, b in zip(one, other, strict=True):
        a, b = (np.asarray(v, np.float64).reshape(len(v), -1) for v in (a, b))
        scale = np.maximum(np.linalg.norm(b, axis=1), 0.01)
        worst = max(worst, (np.linalg.norm(a - b, axis=1) / scale).max())
    return worst


TRAINED = """
[data]
kind = "subspace"
ambient_dim = 5
samples = 5
[network]
width = 6
[training]
learning_rate = 0.05
max_steps = 200
stop_margin = 0.3
[axes]
"""
PATHS = {
    "gd": ("paper-code", "random", "0, 0.02"),
    "momentum": ("theory", "random", "0, 0.02"),
    "sgd": ("torch", "random", "0, 0.02"),
    "adam": ("paper-code", "axis-aligned", "0"),
}
RATES = {"adam": 0.002}
READ = {"momentum": "momentum = [0.8]\n", "sgd": "batch_size = [2]\n"}


@pytest.mark.parametrize(
    "optimizer", ["gd", *(pytest.param(other, marks=pytest.mark.slow) for other in PATHS if other != "gd")]
)
def test_training_in_coordinates_of_the_span_is_training_in_all(optimizer, standard_promotion):
    law, basis, decays = PATHS[optimizer]
    axes = f'seed = [0, 1]\nweight_decay = [{decays}]\noptimizer = ["{optimizer}"]\ninit = ["{law}"]\n'
    axes += f"learning_rate = [{RATES.get(optimizer, 0.05)}]\n{READ.get(optimizer, '')}"
    sweep = read(f'{TRAINED}{axes}basis = ["{basis}"]\n')
    own, reduced = trained(sweep)
    full, ambient = trained(sweep, reduced=False)
    assert own["weight"].shape[2] == 2 and full["weight"].shape[2] == reduced.weight.shape[2] == 5
    for name in ("steps", "status"):
        np.testing.assert_array_equal(own[name], full[name])
    assert (own["steps"] > 50).any()
    assert apart(reduced, ambient) < 1e-4
    start = trained(read(f'{TRAINED}{axes}basis = ["{basis}"]\nmax_steps = [0]\n'))[1]
    assert apart(start, ambient) > 0.1  # they did learn


@pytest.mark.slow
def test_training_in_coordinates_of_the_span_is_another_where_adam_is_refused(standard_promotion):
    """Were the comparison above blind, it would not see this."""
    axes = 'seed = [0, 1]\nweight_decay = [0]\noptimizer = ["adam"]\ninit = ["paper-code"]\nbasis = ["random"]\n'
    sweep = read(f"{TRAINED}{axes}")
    assert not plan(sweep).groups[0].program.reduced
    assert apart(trained(sweep, reduced=True)[1], trained(sweep)[1]) > 1e-2


@pytest.mark.parametrize(("decay", "coordinates"), [(0, 2), pytest.param(0.05, 5, marks=pytest.mark.slow)])
def test_adam_with_decay_or_without_is_adam_in_all_coordinates(decay, coordinates, standard_promotion):
    """In float64 NumPy; with decay it is trained there, as a weight off the span is then no multiple of its start."""
    axes = f'seed = [0, 1]\nweight_decay = [{decay}]\noptimizer = ["adam"]\ninit = ["paper-code"]\n'
    axes += 'learning_rate = [0.002]\nbasis = ["axis-aligned"]\n'
    own, found = trained(read(f"{TRAINED}{axes}"))
    assert own["weight"].shape[2] == coordinates
    start = trained(read(f"{TRAINED}{axes}max_steps = [0]\n"))[1]
    data = load_data(SubspaceData(ambient_dim=5, samples=5))
    x, y = (np.stack([points] * 2) for points in (np.pad(data.x, ((0, 0), (0, 3))), data.y))
    columns = (np.full(2, value, np.float32) for value in (0.002, decay, 0, 0.3, 200))
    exact = descend(start, x, y, Settings(*columns), optimizer="adam")
    np.testing.assert_array_equal(own["steps"], exact.steps)
    assert apart(found, exact.networks) < 1e-4
    off = start.weight[:, :, 2:]
    factors = found.weight[:, :6, 2:] / off[:, :6]
    assert np.ptp(factors) == 0 if decay == 0 else np.ptp(factors) > 0.1


def test_where_the_reduction_is_exact_and_why():
    def decided(optimizer: str, weight_decay: float = 0.0, *, kind: str, **fields: object) -> tuple[bool, str]:
        return reduction(input_span(KINDS[kind](**fields), DENSE), optimizer, weight_decay)

    flat = {"kind": "subspace", "ambient_dim": 5, "subspace_dim": 2, "basis": "axis-aligned"}
    tilted = flat | {"basis": "random"}
    for optimizer in ("gd", "sgd", "momentum"):
        for settings in ({"kind": "line"}, {"kind": "chessboard"}, flat, tilted):
            for weight_decay in (0.0, 0.1):
                told = f"{optimizer} moves weights off the span of the data by decay alone"
                assert decided(optimizer, weight_decay, **settings) == (True, told)
    coordinates = (False, "adam steps by coordinates, and the span of the data is not one of coordinate axes")
    for weight_decay in (0.0, 0.1):
        assert decided("adam", weight_decay, kind="line") == coordinates
        assert decided("adam", weight_decay, **tilted) == coordinates
        # A rotation of the whole space matters to adam, too.
        assert decided("adam", weight_decay, **tilted | {"subspace_dim": 5}) == coordinates
        whole = (True, "the data span the whole space")
        assert decided("adam", weight_decay, kind="chessboard") == whole
        assert decided("adam", weight_decay, **flat | {"subspace_dim": 5}) == whole
    assert decided("adam", 0.0, **flat) == (True, "adam without decay leaves weights off the span of the data alone")
    assert decided("adam", 0.1, **flat) == (False, "adam lets every weight off the span decay in its own way")


@functools.partial(jax.jit, static_argnames="law")
def drawn(seeds: jax.Array, width: jax.Array, basis: jax.Array, *, law: Law) -> tuple[Network, jax.Array, jax.Array]:
    """Fresh networks of a sweep in coordinates of the span, and their weights off it: canonical and ambient."""

    def one(seed: jax.Array) -> tuple[Network, jax.Array, jax.Array]:
        draw = {"key": jax.random.split(jax.random.key(seed))[0], "width": width, "init_scale": jnp.float32(1)}
        draw |= {"law": law, "basis": basis}
        return init_network(**draw), off_weights(**draw), ambient_off_weights(**draw)

    return jax.vmap(one)(seeds)


def fresh(law: Law, basis: np.ndarray, count: int, width: int | None = None) -> tuple[Network, np.ndarray, np.ndarray]:
    with jax.enable_x64(True):
        seeds, size = np.arange(count, dtype=np.uint32), np.int32(width or law.padded_width)
        return jax.tree.map(lambda a: np.asarray(a, np.float64), drawn(seeds, size, basis, law=law))


def sized(init: str, width: int, ambient_dim: int, seeds: int, text: str = BASE) -> Sweep:
    return read(f'{text}[axes]\nseed = "0:{seeds}"\n', f"init={init}", f"width={width}", f"ambient_dim={ambient_dim}")


# Codimension over the width and under it; uniform weights in one block of coordinates and in three, one not full.
CASES = [
    pytest.param("paper-code", 5, 12, marks=pytest.mark.slow),
    pytest.param("paper-code", 8, 4, marks=pytest.mark.slow),
    pytest.param("theory", 5, 12, marks=pytest.mark.slow),
    pytest.param("torch", 5, 3, marks=pytest.mark.slow),
    pytest.param("torch", 4, 600, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("init", "width", "ambient_dim"), CASES)
def test_a_network_measured_in_canonical_coordinates_is_as_in_ambient_ones(init, width, ambient_dim):
    """All that is exact, by NumPy on ambient weights and points; but the random direction, which is another."""
    sweep = sized(init, width, ambient_dim, 6)
    [chunk] = plan(sweep).chunks
    assert chunk.group.program.canonical
    record = engine.train_and_measure(sweep, chunk)
    settings = sweep.dataset({"ambient_dim": ambient_dim})
    data, span = load_data(settings), load_span(settings, complete=True)
    within, _, off = fresh(chunk.group.program.law, span.basis, 6, width)
    networks = within._replace(weight=within.weight @ span.basis.T + off)
    assert np.abs(off).max() > 0.1 * ambient_dim**-0.5
    x, heldout = (points.astype(np.float64) @ span.basis.T for points in (data.x, data.heldout))
    compared = 0
    for i in range(6):
        network = Network(*(field[i] for field in networks))
        direction = span.complement @ (span.complement.T @ (-np.sign(network.head) @ network.weight))
        direction /= np.linalg.norm(direction)
        for j, point in enumerate(np.concatenate([x, heldout])):
            value = float(reference.output(network, point))
            universal = float(Ray.from_point(network, point, np.sign(value) * direction).first_flip())
            if value == 0:  # no neuron is active, and there is no bias: a tie
                assert init == "theory"
                continue
            if j >= len(x):
                found = record["distance_universal_heldout"][i, j - len(x)]
                assert found == pytest.approx(universal, rel=1e-5)
                compared += np.isfinite(universal)
                continue
            gradient = reference.gradient(network, point)
            active = np.abs(network.head[network.weight @ point + network.bias > 0])
            right = data.y[j] * value > 0
            rays = [float(Ray.from_point(network, point, s * span.basis[:, 0]).first_flip()) for s in (-1, 1)]
            for name, expected in {
                "output": value,
                "gradient_norm_off": np.linalg.norm(gradient @ span.complement),
                "gradient_norm_on": np.linalg.norm(gradient @ span.basis),
                "head_norm_active": np.linalg.norm(active),
                "head_sum_active": active.sum(),
                "distance_universal": universal if right else 0,
            }.items():
                assert record[name][i, j] == pytest.approx(expected, rel=1e-5, abs=1e-7), name
            if not right:
                rays = [0.0]
            lower, upper = (record[f"distance_on_l2_{side}"][i, j] for side in ("lower", "upper"))
            assert lower * (1 - 1e-6) <= min(rays) <= upper * (1 + 1e-6)
            if init != "theory":  # without biases, N touches zero at the origin and may turn back
                assert [lower, upper] == pytest.approx([min(rays)] * 2, rel=1e-5)
        margins = data.y * np.array([float(reference.output(network, point)) for point in x])
        assert record["margin"][i] == pytest.approx(margins.min(), rel=1e-5, abs=1e-7)
        assert record["loss"][i] == pytest.approx(np.log1p(np.exp(-margins)).mean(), rel=1e-5)
    assert compared > 20


@pytest.mark.slow
def test_brackets_in_canonical_coordinates_hold_in_ambient_ones():
    """Attacks start elsewhere, so they differ; but no lower bound of the one is over an upper one of the other."""
    text = BASE.replace('["on"]', '["off", "on", "full"]\nattack_steps = 20\nrestarts = 1').replace(
        "subspace_dim = 1", "subspace_dim = 2"
    )
    sweep = sized("paper-code", 8, 14, 8, text)
    [chunk] = plan(sweep).chunks
    canonical = engine.train_and_measure(sweep, chunk)
    settings, program = sweep.dataset({}), chunk.group.program
    data, span = load_data(settings), load_span(settings, complete=True)
    within, _, off = fresh(program.law, span.basis, 8)
    networks = within._replace(weight=within.weight @ span.basis.T + off)
    with jax.enable_x64(True):
        subspace = Subspace(*map(np.asarray, in_ambient(data.subspace, span)))
        points = [a.astype(np.float64) @ span.basis.T for a in (data.x, data.heldout)]
        one = functools.partial(measures.measure, recording=program.recording, model=program.recipe.model)
        batched = jax.jit(jax.vmap(one, in_axes=(0, None, None, None, None, 0)))
        keys = jax.random.split(jax.random.key(1), 8)
        ambient = batched(networks, points[0], data.y.astype(np.float64), subspace, points[1], keys)
    assert set(ambient) == set(canonical) - {*Network._fields, "status", "steps"}
    right = data.y * canonical["output"] > 0
    for region in ("off", "on", "full"):
        lower, upper = (f"distance_{region}_l2_{side}" for side in ("lower", "upper"))
        assert (canonical[lower] <= np.asarray(ambient[upper]) * (1 + 1e-6)).all()
        assert (np.asarray(ambient[lower]) <= canonical[upper] * (1 + 1e-6)).all()
        finite = right & np.isfinite(canonical[upper]) & np.isfinite(ambient[upper])
        assert finite.sum() > 5
        ratio = canonical[upper][finite] / np.asarray(ambient[upper])[finite]
        assert abs(np.median(ratio) - 1) < 0.01


def plain(rng: np.random.Generator, width: int, ambient_dim: int) -> Network:
    """A network of law "paper-code" with independent weights in all coordinates."""
    weight, head = rng.standard_normal((width, ambient_dim)), rng.standard_normal(width)
    fan_in, fan_hidden = ambient_dim**-0.5, width**-0.5
    bias, head_bias = fan_in * rng.uniform(-1, 1, width), fan_hidden * rng.uniform(-1, 1)
    return Network(fan_in * weight, bias, fan_hidden * head, head_bias)


@pytest.mark.slow
@pytest.mark.parametrize(("width", "ambient_dim"), [(5, 8), (5, 12), (8, 4)])
def test_canonical_networks_have_the_law_of_plain_ones(width, ambient_dim):
    """What is measured off the span, of 2,000 networks and of 2,000 that NumPy draws in all coordinates."""
    sweep = sized("paper-code", width, ambient_dim, 2000)
    parts = [engine.train_and_measure(sweep, chunk) for chunk in plan(sweep).chunks]
    names = ("gradient_norm_off", "distance_universal_heldout", "distance_random_heldout")
    # Held-out points have distances whatever their label.
    found = {name: np.concatenate([part[name] for part in parts])[:, 0] for name in names}
    data, rng = load_data(sweep.dataset({})), np.random.default_rng(5)
    expected = np.empty((3, 2000))
    for i in range(2000):
        network, off = plain(rng, width, ambient_dim), np.arange(ambient_dim) > 0
        x, heldout = (np.where(off, 0, float(point[0])) for point in (data.x[0], data.heldout[0]))
        sign = 1 if reference.output(network, heldout) > 0 else -1
        universal = np.where(off, -sign * np.sign(network.head) @ network.weight, 0)
        random = np.where(off, rng.standard_normal(ambient_dim), 0)
        random *= -sign if reference.gradient(network, heldout) @ random > 0 else sign
        rays = [Ray.from_point(network, heldout, v / np.linalg.norm(v)) for v in (universal, random)]
        expected[0, i] = np.linalg.norm(reference.gradient(network, x)[1:])
        expected[1:, i] = [float(ray.first_flip()) for ray in rays]
    for name, values in zip(names, expected, strict=True):
        assert np.isfinite(found[name]).mean() > 0.3, name
        capped = [np.minimum(a.astype(np.float64), 1e9) for a in (found[name], values)]
        assert stats.ks_2samp(*capped).pvalue > 1e-3, name
        assert stats.ks_2samp(1.2 * capped[0], capped[1]).pvalue < 1e-3, name  # it would see 20 %


@pytest.mark.parametrize(("width", "off"), [*(pytest.param(4, off, marks=pytest.mark.slow) for off in (7, 4)), (4, 2)])
def test_canonical_weights_are_a_bartlett_factor(width, off):
    """χ of l − j degrees of freedom on the diagonal, normal below, zero above, all independent."""
    d = 3 + off
    _, found, _ = fresh(Law("paper-code", width, d, 3), np.eye(d, 3), 3000)
    found = found * d**0.5
    assert found.shape == (3000, width, min(width, off))
    columns = []
    for i, j in np.ndindex(found.shape[1:]):
        if i < j:
            assert not found[:, i, j].any()
            continue
        law = stats.chi(off - j) if i == j else stats.norm
        assert stats.kstest(found[:, i, j], law.cdf).pvalue > 1e-3
        columns.append(found[:, i, j])
    correlations = np.corrcoef(columns) - np.eye(len(columns))
    assert np.abs(correlations).max() < 5 / 3000**0.5


@pytest.mark.parametrize("law", LAWS)
def test_canonical_weights_of_a_narrow_network_are_the_first_of_a_wide_one(law):
    basis = load_span(SubspaceData(ambient_dim=9, subspace_dim=2)).basis
    narrow, wide = (fresh(Law(law, padded, 9, 2), basis, 3, 3) for padded in (3, 5))
    _, off, ambient = narrow
    _, padded, padded_ambient = wide
    np.testing.assert_allclose(padded[:, :3, :3] @ padded[:, :3, :3].mT, off @ off.mT, rtol=1e-6, atol=1e-9)
    assert not padded[:, 3:].any() and not padded_ambient[:, 3:].any()
    np.testing.assert_allclose(padded_ambient[:, :3], ambient, atol=1e-7)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize(
    ("width", "d", "k"),
    [(6, 9, 2), *(pytest.param(*sizes, marks=pytest.mark.slow) for sizes in ((6, 5, 2), (3, 300, 2)))],
)
def test_ambient_weights_off_the_span_belong_to_the_canonical_ones(law, width, d, k):
    """Orthogonal to the span, of equal Gram matrix, and of the law of plain weights projected off it."""
    settings = SubspaceData(ambient_dim=d, subspace_dim=k)
    span = load_span(settings, complete=True)
    within, canonical, off = fresh(Law(law, width, d, k), span.basis, 400)
    assert canonical.shape == (400, width, min(width, d - k)) and off.shape == (400, width, d)
    np.testing.assert_allclose(off @ span.basis, 0, atol=1e-6)
    np.testing.assert_allclose(off @ off.mT, canonical @ canonical.mT, rtol=1e-5, atol=1e-6)
    if law == "torch":  # every ambient coordinate is uniform
        sample, uniform = within.weight @ span.basis.T + off, stats.uniform(-(d**-0.5), 2 * d**-0.5)
        assert np.abs(sample).max() <= d**-0.5 * (1 + 1e-6)
        cdf = uniform.cdf
    else:
        sample, cdf = off @ span.complement, stats.norm(0, d**-0.5).cdf
    for entries in (sample[:, 0, 0], sample[:, -1, -1], sample[:, -1, 0], sample[:, :, :2].ravel()):
        assert stats.kstest(entries, cdf).pvalue > 1e-3
    columns = sample[:, :2].reshape(400, -1).T
    assert np.abs(np.corrcoef(columns) - np.eye(len(columns))).max() < 6 / 400**0.5


@pytest.mark.parametrize("dof", [1, 2, 3, 7, 50, 1000, 10**5, 10**6])
def test_chi_of_normal_is_the_quantile_of_the_same_rank(x64, dof):
    z = np.linspace(-5.6, 5.6, 201)
    found = np.asarray(chi_of_normal(jnp.asarray(z), np.full(201, dof)))
    expected = np.where(z < 0, stats.chi.ppf(stats.norm.cdf(z), dof), stats.chi.isf(stats.norm.sf(z), dof))
    np.testing.assert_allclose(found, expected, rtol=1e-7)
    np.testing.assert_allclose(chi_of_normal(jnp.asarray([-9.0, 9.0]), np.full(2, dof)), found[[0, -1]], rtol=1e-12)


def largest(text: str) -> int:
    """Numbers in the largest array of a compiled program."""
    return max(math.prod(map(int, shape.split(","))) for shape in re.findall(r"[a-z]\w*\[([\d,]+)\]", text))


@pytest.mark.slow
def test_no_array_of_a_compiled_l2_program_grows_with_the_ambient_dimension():
    text = BASE.replace('["on"]', '["on", "off"]').replace("max_steps = 0", "max_steps = 5")
    [group] = plan(sized("paper-code", 3, 10**6, 2, text)).groups
    for name in ("measure", "fill", "advance"):
        compiled = engine.compiled(name, group.program, group.lanes).as_text()
        assert 4 * 3 < largest(compiled) < 10**5, name
    [group] = plan(sized("torch", 3, 10**6, 2, text)).groups
    compiled = engine.compiled("fill", group.program, group.lanes).as_text()
    assert largest(compiled) >= 10**6  # uniform weights do read the basis


@pytest.mark.slow
def test_a_million_ambient_dimensions_run_at_once(tmp_path):
    sweep = sized("paper-code", 3, 10**6, 2, BASE.replace("max_steps = 0", "max_steps = 5"))
    dataset = run(sweep, tmp_path)
    assert dataset["input"].shape == (4, 1)
    network = load_networks(tmp_path, seed=1)
    assert network.weight.shape == (3, 10**6)
    settings = sweep.dataset({})
    x, basis = load_data(settings).x, load_span(settings).basis
    for j, value in enumerate(dataset["output"].sel(seed=1).values.reshape(-1)):
        assert float(reference.output(network, basis @ x[j])) == pytest.approx(value, rel=1e-4, abs=1e-5)
        gradient = reference.gradient(network, basis @ x[j])
        off = np.linalg.norm(gradient - basis @ (basis.T @ gradient))
        assert dataset["gradient_norm_off"].sel(seed=1).values.reshape(-1)[j] == pytest.approx(off, rel=1e-4)
