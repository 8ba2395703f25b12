"""The fused CPU trainer against gradient descent in float64 NumPy, and what a network must not notice of others."""

import ctypes
import functools
import importlib.util
import itertools
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import pytest
from shell import needs_kernel

from subspace_adv.models import fused
from subspace_adv.models.fused import Networks
from subspace_adv.training import CONVERGED, DIVERGED, PENDING, STEP_LIMIT

KERNELS = Path(fused.__file__).parents[1] / "kernels"
STATE = ("params", "residue", "velocity", "step", "status")
INSTRUCTION_SETS = ("generic", "avx2", "avx512")


def width_of(given: Networks) -> int:
    """Number of neurons."""
    return (given.params.shape[-1] - 1) // (given.x.shape[-1] + 2)


def rows(given: Networks, index) -> Networks:
    """Some of the networks; shared points stay."""
    shared = {"x": given.x.ndim == 2, "y": given.y.ndim == 1}
    return Networks(*(v if shared.get(name) else v[index] for name, v in given._asdict().items()))


def networks(
    count: int,
    width: int,
    points: int,
    inputs: int,
    *,
    seed: int = 0,
    has_bias=True,
    momentum=False,
    own=False,
    **given,
) -> Networks:
    """Random networks whose outputs are of order one on random points; `given` settings broadcast to all."""
    rng = np.random.default_rng(seed)
    scale = np.concatenate([np.full(width * inputs, inputs**-0.5), np.ones(width), np.full(width, width**-0.5), [0.5]])
    params = rng.standard_normal((count, len(scale))) * scale
    if not has_bias:
        params[:, width * inputs : width * (inputs + 1)] = params[:, -1] = 0
    leading = (count,) if own else ()
    settings = dict(learning_rate=0.05, weight_decay=0.0, momentum=0.8, stop_margin=np.inf, max_steps=1000) | given
    return Networks(
        np.float32(params),
        np.zeros(params.shape, np.float32),
        np.zeros((count, params.shape[1] if momentum else 0), np.float32),
        np.zeros(count, np.int32),
        np.full(count, PENDING, np.int8),
        np.float32(rng.standard_normal((*leading, points, inputs))),
        np.float32(rng.choice([-1, 1], (*leading, points))),
        **{
            name: np.broadcast_to(np.asarray(value, np.int32 if name == "max_steps" else np.float32), count)
            for name, value in settings.items()
        },
    )


@functools.partial(jax.jit, static_argnames=("steps", "loss", "has_bias", "train_head"))
def _advance(given: Networks, **static) -> Networks:
    return fused.advance(given, **static)


def advance(given: Networks, *, steps=10**6, loss="logistic", has_bias=True, train_head=True) -> Networks:
    """The networks after at most `steps` more steps."""
    found = _advance(given, steps=steps, loss=loss, has_bias=has_bias, train_head=train_head)
    return jax.tree.map(np.asarray, found)


def descend(given: Networks, i: int, *, loss: str, has_bias=True, train_head=True) -> Iterator[tuple[dict, np.ndarray]]:
    """Parameters and margins of one network in float64 after 0, 1, 2, … steps, by the chain rule."""
    m, r = width_of(given), given.x.shape[-1]
    flat = given.params[i].astype(np.float64)
    x = np.float64(given.x if given.x.ndim == 2 else given.x[i])
    y = np.float64(given.y if given.y.ndim == 1 else given.y[i])
    rate, decay, inertia = (float(v[i]) for v in (given.learning_rate, given.weight_decay, given.momentum))
    w, b, u, c = flat[: m * r].reshape(r, m), flat[m * r : -m - 1], flat[-m - 1 : -1], flat[-1:]
    params = {"weight": w, "bias": b, "head": u, "head_bias": c}
    trained = ["weight"] + ["bias"] * has_bias + ["head"] * train_head + ["head_bias"] * (train_head and has_bias)
    velocity = {name: np.zeros_like(value) for name, value in params.items()}
    while True:
        z = x @ params["weight"] + params["bias"]
        margins = y * (np.maximum(z, 0) @ params["head"] + params["head_bias"])
        yield params, margins
        slope = {"logistic": -1 / (1 + np.exp(margins)), "exponential": -np.exp(-margins)}[loss] * y / len(y)
        hidden = slope[:, None] * (z > 0) * params["head"]
        gradient = {
            "weight": x.T @ hidden,
            "bias": hidden.sum(0),
            "head": slope @ np.maximum(z, 0),
            "head_bias": slope.sum(keepdims=True),
        }
        for name in trained:
            force = gradient[name] + decay * params[name]
            velocity[name] = (inertia if given.velocity.size else 0) * velocity[name] + force
        params = params | {name: params[name] - rate * velocity[name] for name in trained}


def after(steps: int, path: Iterator) -> tuple[dict, np.ndarray]:
    return next(itertools.islice(path, steps, None))


def flatten(params: dict) -> np.ndarray:
    return np.concatenate([params[name].ravel() for name in ("weight", "bias", "head", "head_bias")])


def distance(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def assert_same(one: Networks, other: Networks) -> None:
    """To the last bit."""
    for name in STATE:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


@needs_kernel
@pytest.mark.parametrize("loss", ["logistic", "exponential"])
@pytest.mark.parametrize("momentum", [False, True])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("train_head", [False, True])
def test_steps_agree_with_float64(loss, momentum, has_bias, train_head):
    given = networks(
        5, 11, 9, 3, has_bias=has_bias, momentum=momentum, learning_rate=0.02, weight_decay=[0, 0.1, 0.2, 0.3, 1]
    )
    static = dict(loss=loss, has_bias=has_bias, train_head=train_head)
    for steps in (0, 1, 2, 20):
        found = advance(given, steps=steps, **static)
        np.testing.assert_array_equal(found.step, steps)
        np.testing.assert_array_equal(found.status, PENDING)
        for i in range(5):
            expected, _ = after(steps, descend(given, i, **static))
            assert distance(found.params[i], flatten(expected)) < (1e-6 if steps < 20 else 3e-6)  # errors grow
            untrained = flatten(expected) == given.params[i]
            np.testing.assert_array_equal(found.params[i][untrained], given.params[i][untrained])


@needs_kernel
@pytest.mark.parametrize("momentum", [False, True])
def test_rounding_errors_of_many_small_steps_do_not_add_up(momentum, instruction_set):
    """Each step is a few units in the last place: plain sums would lose some 10⁻⁵ of what moves."""
    given = networks(2, 5, 7, 2, momentum=momentum, learning_rate=3e-6, weight_decay=0.5, max_steps=10**6)
    expected, _ = after(10_000, descend(given, 0, loss="logistic"))
    found = advance(given, steps=10_000)
    assert distance(flatten(expected), given.params[0]) > 0.01
    error = distance(found.params[0], flatten(expected))
    assert error < 1e-7, error


SIZES = [(1, 1, 1), (1, 5, 2), (7, 7, 1), (100, 7, 1), (4, 25, 3), (5, 33, 4), (6, 40, 5), (3, 100, 10), (2, 3, 64)]


@needs_kernel
@pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])
@pytest.mark.parametrize(("width", "points", "inputs"), SIZES + [(3, n, 6) for n in (2, 3, 4, 6, 8, 9, 17, 64, 65)])
def test_any_size_agrees_with_float64(width, points, inputs, own, instruction_set):
    given = networks(18, width, points, inputs, own=own, weight_decay=0.01)
    found = advance(given, steps=2)
    for i in (0, 1, 17):
        expected, _ = after(2, descend(given, i, loss="logistic"))
        assert distance(found.params[i], flatten(expected)) < 1e-6


@needs_kernel
def test_training_stops_where_float64_does(instruction_set):
    given = networks(40, 30, 7, 3, stop_margin=0.3, max_steps=90, learning_rate=0.1)
    found = advance(given)
    for i in range(40):
        margins = [
            margins.min() for _, (_, margins) in zip(range(91), descend(given, i, loss="logistic"), strict=False)
        ]
        stops = [k for k in range(1, 91) if margins[k] > 0.3]
        assert np.abs(np.array(margins[1:]) - 0.3).min() > 1e-6  # none is decided by a rounding error
        assert found.step[i] == (stops or [90])[0]
        assert found.status[i] == (CONVERGED if stops else STEP_LIMIT)
    assert (found.status == CONVERGED).sum() > 20 and len(set(found.step)) > 20


@needs_kernel
def test_the_stop_rule_at_its_edges():
    """As `training.step`: a satisfied rule takes one step, none where none is allowed; the last step may converge."""
    given = networks(6, 8, 5, 2, stop_margin=[-np.inf, -99, np.inf, -np.inf, np.inf, -99], max_steps=[5, 1, 5, 0, 0, 7])
    found = advance(given)
    np.testing.assert_array_equal(found.step, [1, 1, 5, 0, 0, 1])
    np.testing.assert_array_equal(found.status, [CONVERGED, CONVERGED, STEP_LIMIT, STEP_LIMIT, STEP_LIMIT, CONVERGED])
    np.testing.assert_array_equal(found.params[3:5], given.params[3:5])
    assert_same(advance(found), found)


@needs_kernel
def test_a_network_that_is_not_pending_is_left_alone():
    given = networks(40, 4, 5, 2, max_steps=3)
    given = given._replace(status=np.int8([CONVERGED, PENDING, DIVERGED, STEP_LIMIT] * 10))
    found = advance(given)
    waited = given.status == PENDING
    np.testing.assert_array_equal(found.step, np.where(waited, 3, 0))
    np.testing.assert_array_equal(found.status, np.where(waited, STEP_LIMIT, given.status))
    np.testing.assert_array_equal(found.params[~waited], given.params[~waited])


@needs_kernel
@pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])
def test_a_network_is_the_same_in_any_company(own, instruction_set):
    """Whatever its lane, its batch, its neighbours, the threads at work, and where the calls divide its steps."""
    given = networks(
        150, 13, 9, 2, own=own, momentum=True, weight_decay=0.001, stop_margin=0.5, max_steps=np.arange(150) * 7
    )
    together = advance(given)
    assert len(set(together.step)) > 50 and {CONVERGED, STEP_LIMIT} <= set(together.status)
    for index in ([0], [149], slice(3, 20), slice(40, 73), np.random.default_rng(0).permutation(150)):
        assert_same(advance(rows(given, index)), rows(together, index))
    parts = given
    for _ in range(150):
        parts = advance(parts, steps=10)
    assert_same(parts, together)
    shared = () if own else ("x", "y")
    halves = {name: v if name in shared else v.reshape(2, 75, *v.shape[1:]) for name, v in given._asdict().items()}
    nested = advance(Networks(**halves))
    assert_same(given._replace(**{n: getattr(nested, n).reshape(150, -1).squeeze() for n in STATE}), together)


@needs_kernel
def test_vmap_is_a_leading_axis_and_points_may_be_shared_by_the_last_axes():
    given = networks(12, 6, 5, 2, max_steps=50)
    together = advance(given)
    static = dict(steps=100, loss="logistic", has_bias=True, train_head=True)
    axes = Networks(*(None if name in ("x", "y") else 0 for name in Networks._fields))
    mapped = jax.jit(jax.vmap(lambda one: fused.advance(one, **static), in_axes=(axes,)))(given)
    assert_same(given._replace(**{n: np.asarray(getattr(mapped, n)) for n in STATE}), together)
    other = networks(12, 6, 5, 2, seed=1, max_steps=50)
    both = Networks(*(np.stack(pair) for pair in zip(given, other, strict=True)))
    assert both.x.shape == (2, 5, 2)
    found = advance(both)
    for i, single in enumerate((given, other)):
        assert_same(Networks(*(v[i] for v in found)), advance(single))


@needs_kernel
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["params", "learning_rate", "x"])
def test_a_network_that_diverges_leaves_its_neighbours_and_successors_alone(bad, where):
    given = networks(70, 5, 9, 2, own=True, momentum=True, max_steps=30 + np.arange(70) % 20)
    poison = getattr(given, where).copy()
    poison[::3].flat[:: 7 if where == "params" else 1] = bad
    hit = ~np.isfinite(poison.reshape(70, -1)).all(axis=1)
    found = advance(given._replace(**{where: poison}))
    np.testing.assert_array_equal(found.status, np.where(hit, DIVERGED, STEP_LIMIT))
    assert hit.sum() > 10
    assert_same(rows(found, ~hit), rows(advance(given), ~hit))


@needs_kernel
def test_the_exponential_loss_diverges_at_large_rates():
    given = networks(20, 8, 7, 2, learning_rate=[0.05, 1e6, 1e30, 0.02] * 5, max_steps=40)
    found = advance(given, loss="exponential")
    np.testing.assert_array_equal(found.status == DIVERGED, given.learning_rate > 1)
    assert (found.step[given.learning_rate > 1] < 10).all()


@needs_kernel
def test_no_networks_and_no_points():
    given = networks(3, 4, 5, 2, max_steps=4)
    assert advance(rows(given, slice(0, 0))).params.shape == (0, 17)
    empty = advance(given._replace(x=given.x[:0], y=given.y[:0]))
    np.testing.assert_array_equal(empty.status, STEP_LIMIT)
    np.testing.assert_array_equal(empty.params, given.params)


@needs_kernel
@pytest.mark.parametrize("name", Networks._fields)
def test_an_array_that_does_not_fit_the_others_is_refused(name):
    given = networks(3, 4, 5, 2, momentum=True, own=True)
    with pytest.raises(Exception, match="do not fit together"):
        advance(given._replace(**{name: getattr(given, name)[..., :-1]}))


@needs_kernel
def test_the_exponential_function(instruction_set):
    rng = np.random.default_rng(0)
    x = np.float32(np.concatenate([rng.uniform(-87.3, 88.7, 10**6), rng.normal(0, 1, 10**5), [0, -0.0, 88.72, 1e-30]]))
    specials = np.float32([88.73, 100, 1e30, np.inf, -104, -1e30, -np.inf, np.nan, -np.nan])
    x = np.concatenate([x, specials])
    result = np.empty_like(x)
    pointer = ctypes.POINTER(ctypes.c_float)
    fused.library().subspace_adv_exp(x.ctypes.data_as(pointer), result.ctypes.data_as(pointer), ctypes.c_int64(len(x)))
    found, exact = result[: -len(specials)], np.exp(np.float64(x[: -len(specials)]))
    assert (np.abs(found - exact) / np.spacing(np.float32(exact))).max() < 1.5
    np.testing.assert_array_equal(result[-len(specials) :], [np.inf] * 4 + [0] * 3 + [np.nan] * 2)


@needs_kernel
@pytest.mark.parametrize("loss", ["logistic", "exponential"])
def test_the_slope_of_the_loss_is_exact_at_any_margin(loss, instruction_set):
    """Of networks that are a head bias alone, whose first velocity is that slope."""
    margins = np.concatenate([np.linspace(-87, 87, 4001), [-1e-3, 0, 1e-3]]).astype(np.float32)
    given = networks(len(margins), 1, 1, 1, momentum=True, own=True, learning_rate=1e-9)
    given.params[:] = [[0, 0, 0, 1]] * given.y * margins[:, None]
    found = advance(given, steps=1, loss=loss).velocity[:, -1] * -given.y[:, 0]
    a = margins.astype(np.float64)
    np.testing.assert_allclose(found, 1 / (1 + np.exp(a)) if loss == "logistic" else np.exp(-a), rtol=4e-7)


@needs_kernel
def test_instruction_sets_agree():
    given, found = networks(20, 9, 9, 3, max_steps=100), {}
    limit = fused.library().subspace_adv_limit_instruction_set
    for level in range(len(INSTRUCTION_SETS)):
        limit(level)
        found[fused.instruction_set()] = advance(given)
    assert tuple(found) == INSTRUCTION_SETS[: len(found)]
    for other in found.values():
        np.testing.assert_allclose(other.params, found["generic"].params, rtol=1e-3, atol=1e-4)


@pytest.fixture
def reload() -> Iterator[None]:
    """Loads the library anew in a test, and again after it."""
    fused._load.cache_clear()
    yield
    fused._load.cache_clear()


@pytest.mark.parametrize("built", [False, True])
def test_a_library_that_cannot_be_loaded_gives_its_reason(reload, monkeypatch, tmp_path, built):
    broken = tmp_path / "_fused.so"
    broken.write_bytes(b"built for another processor")
    spec = importlib.util.spec_from_file_location("_fused", broken) if built else None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    reason = fused.unavailable()
    assert reason is not None and "\n" not in reason
    assert ("_fused.so" in reason) if built else ("not built" in reason)
    with pytest.raises(RuntimeError, match="fused trainer"):
        fused.instruction_set()


def test_another_platform_is_a_reason(monkeypatch):
    """The one asked about, or JAX's own."""
    assert "networks are to train on cuda" in str(fused.unavailable("cuda"))
    here = fused.unavailable()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert "gpu" in str(fused.unavailable())
    assert fused.unavailable("cpu") == here


CORES = ("block", "bracket", "rays")  # compiled once per instruction set
OPTIONS = {"generic": [], "avx2": ["-mavx2", "-mfma"]}
OPTIONS["avx512"] = [*OPTIONS["avx2"], "-mavx512f", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"]


@needs_kernel
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_sanitizers_find_nothing(tmp_path, sanitizer):
    """Odd shapes, several threads, networks that diverge, by every instruction set that this machine runs.

    Threads share the same things whatever the instruction set, so one of these is enough for them.
    """
    fastest = INSTRUCTION_SETS.index(fused.instruction_set())
    sets = INSTRUCTION_SETS[: 1 if sanitizer == "thread" else fastest + 1]
    flags = "-std=c++17 -g -O0 -ffp-contract=fast -fno-sanitize-recover=all".split()
    compiler = ["g++", *flags, f"-fsanitize={sanitizer}", f"-I{KERNELS}"]

    def compiled(part: tuple[str, str]) -> str:
        name, core = part
        built = str(tmp_path / f"{name}_{core}.o")
        source = [f"-DINSTRUCTION_SET={name}", "-c", str(KERNELS / f"{core}.cpp")]
        subprocess.run([*compiler, *OPTIONS[name], *source, "-o", built], check=True)
        return built

    with ThreadPoolExecutor(2) as side_by_side:
        objects = list(side_by_side.map(compiled, itertools.product(sets, CORES)))
    driver, main = str(tmp_path / "driver"), str(Path(__file__).parent / "sanitize_fused.cpp")
    subprocess.run([*compiler, f"-DSETS={','.join(sets)}", "-pthread", main, *objects, "-o", driver], check=True)
    told = subprocess.run([driver], check=True, capture_output=True, text=True).stdout
    assert tuple(told.split()) == sets


@needs_kernel
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("loss", ["logistic", "exponential"])
def test_points_without_a_label_change_no_bit(own, loss):
    """Networks of several numbers of points side by side: each as with its points alone, whatever stands for others."""
    given = networks(40, 6, 9, 2, own=True, momentum=True, max_steps=60) if own else networks(40, 6, 9, 2, max_steps=60)
    rng = np.random.default_rng(0)
    y, x = given.y.copy(), given.x.copy()
    counts = rng.integers(1, 10, 40) if own else np.full(1, 5)
    for row, count in enumerate(counts):
        y.reshape(-1, 9)[row, count:] = 0
        x.reshape(-1, 9, 2)[row, count:] = rng.choice([0, 1e30, 5])
    found = advance(given._replace(x=x, y=y), loss=loss)
    for count in np.unique(counts):
        chosen = np.flatnonzero(counts == count) if own else slice(None)
        alone = rows(given, chosen)
        alone = alone._replace(x=alone.x[..., :count, :], y=alone.y[..., :count])
        assert_same(rows(found, chosen), advance(alone, loss=loss))
