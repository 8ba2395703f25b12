"""A cell of a grid equals the same cell run alone, whatever its neighbours; and how often programs are compiled."""

import atexit
import functools
import itertools
import platform
import shutil
import tempfile
import warnings
import weakref
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest
from deep import ROW
from jax.experimental.compilation_cache import compilation_cache
from shell import in_its_stead

from subspace_adv import engine, measures, training
from subspace_adv.data import LineData
from subspace_adv.engine import chunks, programs
from subspace_adv.engine import kept as kept_programs
from subspace_adv.engine.pinned import pinned
from subspace_adv.initialization import init_network
from subspace_adv.measures import Rounding
from subspace_adv.models import MODELS, compiled, fused
from subspace_adv.network import Network
from subspace_adv.optimizers import Hyper
from subspace_adv.planning import plan
from subspace_adv.program import Program
from subspace_adv.settings import leaves, role
from subspace_adv.sweep import Sweep
from subspace_adv.training import CONVERGED, DIVERGED, STEP_LIMIT, Trainer

MAPPINGS = Path("/proc/self/maps")

Cell = dict[str, np.ndarray]

# Off a line in the plane every distance is an exact crossing, which compiles fastest.
BASE = {
    "kind": "line",
    "width": 50,
    "loss": "exponential",
    "regions": ("off",),
    "max_steps": 20,
    "stop_margin": 50.0,
    "learning_rate": 0.1,
}


def sweep(settings: dict, axes: dict | None = None) -> Sweep:
    tables: dict[str, dict] = {}
    for leaf, value in (BASE | settings).items():
        tables.setdefault(leaves()[leaf], {})[leaf] = value
    return Sweep("batching", **tables, axes=axes)


def run(whole: Sweep, trainer: Trainer | None = None) -> list[Cell]:
    """What every cell of a grid yields, by flat index."""
    cells: list[Cell] = [{} for _ in range(whole.cells)]
    for chunk in plan(whole, trainer).chunks:
        recorded = engine.train_and_measure(whole, chunk)
        for row, cell in enumerate(chunk.cells):
            cells[cell] = {name: values[row] for name, values in recorded.items()}
    return cells


@functools.cache
def _run_alone(settings: tuple, trainer: Trainer | None) -> Cell:
    return run(sweep(dict(settings)), trainer)[0]


def alone(settings: dict, trainer: Trainer | None = None) -> Cell:
    """What one cell yields in a sweep of its own."""
    return _run_alone(tuple(sorted(settings.items())), trainer)


def cells_of(axes: dict) -> list[dict]:
    """Axis values of every cell, last axis fastest."""
    places = np.ndindex(*(len(values) for values in axes.values()))
    return [{leaf: values[i] for (leaf, values), i in zip(axes.items(), place, strict=True)} for place in places]


def assert_same(found: Cell, expected: Cell) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name, strict=True)


def assert_close(found: Cell, expected: Cell, rtol: float = 1e-4) -> None:
    """Equal up to the order of summation."""
    assert found.keys() == expected.keys()
    assert found["status"] == expected["status"] and found["steps"] == expected["steps"]
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=rtol, atol=1e-5, err_msg=name)


def differ(cells: list[Cell]) -> bool:
    """Whether all cells that did not diverge trained to different networks."""
    networks = [cell["weight"].tobytes() + cell["head"].tobytes() for cell in cells if cell["status"] != DIVERGED]
    return len(set(networks)) == len(networks)


MIXED = {
    "seed": (0, 1),
    "width": (3, 50),
    "init_scale": (1.0, 0.3),
    "weight_decay": (0.0, 0.01),
    "learning_rate": (0.02, 1e6),  # the second diverges
}


@pytest.mark.slow
def test_a_cell_of_a_mixed_grid_equals_itself_alone_bit_by_bit():
    together = run(sweep({"max_steps": 300}, MIXED))
    for cell, values in zip(together, cells_of(MIXED), strict=True):
        assert_same(cell, alone({"max_steps": 300} | values))
    assert differ(together)


SUBSPACE = {"kind": "subspace", "ambient_dim": 4, "subspace_dim": 3, "samples": 5}
SEARCHED = {"kind": "subspace", "ambient_dim": 5, "subspace_dim": 2, "samples": 8, "width": 6}  # a plane needs none
SMALL = {"samples": 4, "data_seed": 1, "width": 4, "attack_steps": 4, "restarts": 2}
PATCHES = SMALL | {"kind": "patches", "patches": 2, "patch_size": 3}
WAVES = SMALL | {"kind": "band-limited", "ambient_dim": 9, "frequencies": 1}
FOLDER = Path(tempfile.mkdtemp())
atexit.register(shutil.rmtree, FOLDER)
_DRAWN = np.random.default_rng(0).standard_normal((3, 9, 4)).round(3)
for _name, _points in zip(("one.npz", "other.npz"), _DRAWN[:2], strict=True):
    np.savez(FOLDER / _name, x=_points, y=np.arange(9) % 3)
(FOLDER / "table.csv").write_text(
    "a,b,label,other\n" + "".join(f"{a},{b},{i % 2},{i // 4 % 2}\n" for i, (a, b, *_) in enumerate(_DRAWN[2][:8]))
)
OWN = {"kind": "file", "path": str(FOLDER / "one.npz"), "classes": (0, 2), "width": 4, "subspace_dim": 2}
CONVOLUTION = WAVES | {"architecture": "cnn", "depth": 2, "mixing": 2}
DEEP = {
    "seed": (0, 1),
    "width": (3, 4),
    "init_scale": (1.0, 0.7),
    "learning_rate": (0.02, 1e6),  # the second diverges
}


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["mlp", "cnn"])
def test_a_cell_of_a_grid_of_depths_equals_itself_alone_and_notices_no_neighbour(architecture):
    settings = {"architecture": architecture, "init": "torch"} | (WAVES if architecture == "cnn" else {})
    settings.pop("width", None)
    axes = DEEP | {"depth": (1, 2) if architecture == "cnn" else (1, 3)}
    whole = sweep(settings, axes)
    together, calm = run(whole), run(sweep(settings, axes | {"learning_rate": (0.02, 0.01)}))
    lanes = {cell: (group.lanes, group.tail_lanes) for group in plan(whole).groups for cell in group.cells}
    for index, (cell, other, at) in enumerate(zip(together, calm, cells_of(axes), strict=True)):
        assert (cell["status"] == DIVERGED) == (at["learning_rate"] == 1e6)
        if at["learning_rate"] == 0.02:
            assert_same(cell, other)
        # A cell alone trains in as many lanes as the last ones of a group; other numbers add up in other orders.
        first, last = lanes[index]
        (assert_same if first == last else assert_close)(cell, alone(settings | at))
    assert len({cell["margin"].tobytes() for cell in calm}) == len(calm)


FIELDS = {  # values of each field that may be an axis, beside other settings
    "kind": ({}, ("line", "chessboard")),
    "ambient_dim": (SUBSPACE, (4, 3)),
    "subspace_dim": (SUBSPACE, (3, 4)),
    "samples": (SUBSPACE, (6, 7, 9)),  # the first two padded alike
    "basis": (SUBSPACE | {"init": "torch"}, ("random", "axis-aligned")),
    "distribution": (SUBSPACE, ("sphere", "gaussian")),
    "spacing": ({"kind": "subspace", "ambient_dim": 4, "distribution": "circles", "samples": 5}, ("random", "even")),
    "labels": (SUBSPACE, ("random", "clusters")),
    "data_seed": (SUBSPACE, (0, 1)),
    "patches": (PATCHES, (2, 3)),
    "patch_size": (PATCHES, (2, 3)),
    "patch_dim": (PATCHES, (1, 2)),
    "frequencies": (WAVES, (1, 2)),
    "path": (OWN, tuple(str(FOLDER / name) for name in ("one.npz", "other.npz"))),
    "label_column": ({"kind": "file", "path": str(FOLDER / "table.csv"), "width": 4}, ("label", "other")),
    "classes": (OWN, ((0, 2), (1, 0))),
    "center": (OWN, (False, True)),
    "scale": (OWN, ("length", "columns")),
    "fit": (OWN, ("project", "keep")),
    "architecture": ({}, ("mlp", "deep")),
    "init": ({"stop_margin": float("inf")}, ("theory", "torch", "paper-code")),
    "trainable": ({}, ("hidden", "all")),
    "parametrization": ({"trainable": "all"}, ("standard", "ntk", "mean-field")),
    "depth": (WAVES, (1, 2, 3)),
    "kernel": (CONVOLUTION, (3, 2)),
    "stride": (CONVOLUTION, (1, 3)),
    "mixing": (CONVOLUTION, (2, 1)),
    "padding": (CONVOLUTION, ("circular", "valid")),
    "layout": (CONVOLUTION, ("signal", "image")),
    "width": ({}, (3, 41, 50)),
    "init_scale": ({}, (1.0, 0.1, 3.0)),
    "seed": ({}, (0, 7, 2**32 - 1)),
    "loss": ({}, ("logistic", "exponential")),
    "optimizer": ({}, ("sgd", "gd", "momentum")),
    "learning_rate": ({}, (0.1, 1e-4, 2.0)),
    "weight_decay": ({}, (0.0, 0.003, 1.0)),
    "momentum": ({"optimizer": "momentum"}, (0.9, 0.5)),
    "batch_size": ({"optimizer": "sgd"}, (1, 3)),
    "stop_margin": ({"max_steps": 700}, (50.0, -2.0, -0.1)),
    "max_steps": ({}, (20, 0, 1, 700)),
    "attack_steps": (SEARCHED | {"restarts": 1}, (1, 30)),
    "restarts": (SEARCHED | {"attack_steps": 1}, (1, 30)),
    "gap": (SEARCHED | {"attack_steps": 1, "restarts": 1}, (0.0, 1.0)),
    "redraws": ({}, (2, 5)),
}
QUICK = ("init_scale", "seed", "learning_rate", "weight_decay", "stop_margin", "max_steps")  # all by one program


@pytest.mark.parametrize(
    "leaf", [pytest.param(leaf, marks=[pytest.mark.slow] * (leaf not in QUICK)) for leaf in FIELDS]
)
def test_cells_that_differ_in_one_field_each_equal_themselves_alone(leaf, monkeypatch):
    """To the bit by one program; up to the order of summation by the one that gives each network its own points."""
    monkeypatch.setitem(MODELS, "deep", ROW)
    settings, values = FIELDS[leaf]
    axes = {leaf: values} if leaf == "seed" else {"seed": (0, 1), leaf: values}
    whole = sweep({name: value for name, value in settings.items() if name not in axes}, axes)
    groups = plan(whole).groups
    assert all(len(group.cells) <= group.lanes == group.tail_lanes for group in groups)  # one cell takes as many lanes
    agree = assert_same if all(group.program.shared_data for group in groups) else assert_close
    together = run(whole)
    for cell, at in zip(together, cells_of(axes), strict=True):
        agree(cell, alone(settings | at))
    of_values = ([cell for cell, at in zip(together, cells_of(axes), strict=True) if at[leaf] == v] for v in values)
    for first, second in itertools.combinations(of_values, 2):
        assert any(
            one[name].tobytes() != other[name].tobytes()
            for one, other in zip(first, second, strict=True)
            for name in one.keys() & other.keys()
        )


def test_every_field_that_may_be_an_axis_is_tried():
    assert set(FIELDS) == {leaf for leaf in leaves() if role(leaf).axis}


@pytest.mark.slow
def test_adam_cells_equal_themselves_alone_bit_by_bit(standard_promotion):
    axes = {"optimizer": ("adam",), "seed": (0, 1), "learning_rate": (0.02, 1e30)}
    together = run(sweep({}, axes))
    for cell, values in zip(together, cells_of(axes), strict=True):
        assert_same(cell, alone(values))
    assert differ(together)


MANY = {
    "seed": (0, 1, 2),
    "width": (41, 50),
    "init_scale": (1.0, 0.3),
    "learning_rate": (0.02, 1e6),  # the second diverges
    "stop_margin": (-0.15, 40.0),
    "max_steps": (300, 5),
}


class Many(NamedTuple):
    """A large grid, run."""

    trainer: Trainer
    cells: list[Cell]

    def assert_agree(self, found: Cell, expected: Cell) -> None:
        """To the last bit by the kernel; of XLA, up to the order of summation that each number of lanes has."""
        (assert_same if self.trainer == "fused" else assert_close)(found, expected)


@pytest.fixture(scope="module", params=[pytest.param(trainer, marks=pytest.mark.slow) for trainer in ("xla", "fused")])
def many(request) -> Many:
    """A grid of calm cells among diverging ones, in more lanes than a cell alone, refilled and packed at the end."""
    if request.param == "fused" and fused.unavailable():
        pytest.skip(str(fused.unavailable()))
    whole = sweep({}, MANY)
    [group] = plan(whole, request.param).groups
    assert len(group.cells) > group.lanes and (request.param == "fused" or group.lanes > group.tail_lanes)
    return Many(request.param, run(whole, request.param))


def test_a_cell_of_a_large_grid_equals_itself_alone(many):
    for cell, values in zip(many.cells, cells_of(MANY), strict=True):
        many.assert_agree(cell, alone(values, many.trainer))


def test_diverging_cells_are_nan_and_their_neighbours_are_not(many):
    statuses = set()
    for cell, values in zip(many.cells, cells_of(MANY), strict=True):
        diverged = cell["status"] == DIVERGED
        statuses.add(int(cell["status"]))
        assert diverged == (values["learning_rate"] == 1e6)
        for name in measures.variables(("off",), ("l2",)):
            assert np.isnan(cell[name]).all() if diverged else not np.isnan(cell[name]).any()
        assert not cell["weight"][values["width"] :].any()
    assert statuses == {CONVERGED, STEP_LIMIT, DIVERGED}


def test_calm_cells_do_not_notice_whether_their_neighbours_diverge(many):
    calm = run(sweep({}, MANY | {"learning_rate": (0.02, 0.01)}), many.trainer)
    for cell, other, values in zip(many.cells, calm, cells_of(MANY), strict=True):
        if values["learning_rate"] == 0.02:
            many.assert_agree(cell, other)


def test_the_order_of_the_axes_changes_no_cell():
    settings, axes = {}, {"seed": (0, 1), "init_scale": (1.0, 0.5, 0.1)}
    one = run(sweep(settings, axes))
    other = run(sweep(settings, dict(reversed(axes.items()))))
    for cell, values in zip(other, cells_of(dict(reversed(axes.items()))), strict=True):
        assert_same(cell, one[cells_of(axes).index({leaf: values[leaf] for leaf in axes})])


def test_the_engine_yields_what_training_one_network_yields():
    """Lanes, refills and calls of many steps change nothing of `training.train` and `measures.measure`."""
    # Small steps: two compiled programs add up in different orders, and large steps amplify that without bound.
    whole = sweep({"learning_rate": 0.005}, {"seed": (0, 1, 2), "max_steps": (0, 20, 600)})
    chunk = plan(whole).chunks[0]
    program = chunk.group.program
    for cell, values in zip(run(whole), cells_of(whole.axes), strict=True):
        rates, stop = (np.float32(v) for v in (0.005, 0, 0.9)), (np.float32(50), np.int32(values["max_steps"]))
        hyper = Hyper(*rates, np.int32(1), *stop)
        trained, status, steps = _train_alone(values["seed"], hyper, program)
        assert (cell["status"], cell["steps"]) == (status, steps)
        for name, expected in trained._asdict().items():
            np.testing.assert_allclose(cell[name], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_measurements_are_the_same_to_the_bit_by_any_number_of_threads():
    whole = sweep({}, {"seed": tuple(range(60))})
    [chunk] = plan(whole).chunks
    [(_, trained)] = engine.train(whole, chunk.group, [chunk])
    one, three = (engine.measure(whole, chunk, trained, threads=threads) for threads in (1, 3))
    assert_same(three, one)
    assert len(np.unique(one["margin"])) == 60


LINE = LineData().draw()


@functools.partial(jax.jit, static_argnums=2)
def _train_alone(seed: jax.Array, hyper: Hyper, program: Program) -> tuple[Network, jax.Array, jax.Array]:
    init_key, order_key = jax.random.split(jax.random.key(seed))
    start = init_network(init_key, np.int32(BASE["width"]), np.float32(1), law=program.law)
    return training.train(start, LINE.x, LINE.y, hyper, order_key, recipe=program.recipe)


@pytest.fixture
def counts(monkeypatch) -> Counter:
    """How often the engine traced training and measurement and compiled a program."""
    counter = Counter()

    def count(owner: object, name: str) -> None:
        original = getattr(owner, name)

        @functools.wraps(original)
        def counted(*args: object, **kwargs: object) -> object:
            counter[name] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, counted)

    count(training, "step")
    count(measures, "measure")
    count(jax.stages.Lowered, "compile")
    return counter


@pytest.mark.parametrize(
    ("trainer", "attack_steps", "shapes", "snapshots"),
    [
        pytest.param("xla", 39, {"width": (3, 6)}, {}, marks=pytest.mark.slow),
        pytest.param(None, 37, {"depth": (2, 3), "width": (3,)}, {}, marks=pytest.mark.slow),
        (None, 38, {"width": (3,)}, {}),
        (None, 36, {"width": (3,)}, {"at_steps": (0, 1, 2), "at_margins": (-1.0, 0.0)}),
        pytest.param("xla", 35, {"width": (3,)}, {"at_steps": (0, 1, 2)}, marks=pytest.mark.slow),
    ],
)
def test_programs_are_traced_and_compiled_once_whatever_the_number_of_chunks(
    counts, trainer, attack_steps, shapes, snapshots
):
    # An attack effort that no other test has, so that nothing is compiled already.
    settings = {"attack_steps": attack_steps, "max_steps": 2, "trainable": "all"} | snapshots
    whole = sweep(settings, shapes | {"seed": tuple(range(522)), "init_scale": (1.0, 0.5)})
    planned = plan(whole, trainer)
    groups = np.prod([len(values) for values in shapes.values()])
    assert len(planned.groups) == groups and len(planned.chunks) >= 3 * groups
    for _ in range(2):
        for chunk in planned.chunks:
            engine.train_and_measure(whole, chunk)
        assert counts["compile"] == planned.programs
        assert counts["measure"] == len(planned.groups) * (2 if snapshots else 1)
        # A batching rule is traced beside the function of one network.
        advances = sum(1 + (group.lanes != group.tail_lanes) for group in planned.groups)
        by_kernel = planned.groups[0].program.recipe.trainer == "fused"
        compensated = planned.groups[0].program.recipe.model.form.compensated
        assert counts["step"] == advances * (1 if by_kernel else 2 if compensated else 4)


@pytest.mark.slow
@pytest.mark.skipif(not MAPPINGS.exists(), reason="a limit of Linux")
def test_the_programs_loaded_at_once_leave_a_process_mappings_to_spare(monkeypatch):
    """All as large as those that measure three norms in three regions without a kernel, which take the most."""
    monkeypatch.setitem(MODELS._rows, "mlp", in_its_stead(kernel=None))
    monkeypatch.setattr(compiled, "crosses", lambda z: False)
    everywhere = {"kind": "subspace", "basis": "axis-aligned", "samples": 3, "data_seed": 1}
    measured = {"regions": ("off", "on", "full"), "norms": ("l2", "linf", "l1")}
    [group] = plan(sweep(everywhere | measured)).groups
    before = MAPPINGS.read_text().count("\n")
    program = engine.compiled("measure", group.program, group.measured)
    taken = MAPPINGS.read_text().count("\n") - before
    assert program and 1000 < taken and programs._LOADED_PROGRAMS["measure"] * taken < 0.8 * 65_530


def test_programs_are_not_kept_where_xla_would_tell_of_each(monkeypatch, tmp_path):
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "0")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    try:
        jax.config.update("jax_compilation_cache_dir", None)
        kept_programs.keep_compiled.__wrapped__()
        assert jax.config.values["jax_compilation_cache_dir"] is None
        assert not list(tmp_path.iterdir())
    finally:
        jax.config.update("jax_compilation_cache_dir", folder)
        compilation_cache.reset_cache()


@pytest.mark.slow
def test_programs_of_former_groups_are_unloaded(monkeypatch):
    class Loaded:
        """Stands for a compiled program."""

    programs._loaded["ambient"].cache_clear()
    monkeypatch.setattr(programs, "compiled_or_kept", lambda *_: Loaded())
    program = plan(sweep({})).groups[0].program
    most = programs._LOADED_PROGRAMS["ambient"]
    loaded = [weakref.ref(engine.compiled("ambient", program, 1, steps)) for steps in range(most + 3)]
    assert [one() is None for one in loaded] == 3 * [True] + most * [False]
    programs._loaded["ambient"].cache_clear()


def test_widths_that_pad_alike_and_hyperparameters_share_programs():
    axes = {"seed": (0, 1), "width": (41, 50), "init_scale": (1.0, 0.5), "learning_rate": (0.1, 0.2)}
    assert len(plan(sweep({}, axes)).groups) == 1
    assert plan(sweep({}, axes)).programs == 3


def test_bounds_are_rounded_outwards_to_float32():
    """Certified bounds to the next number below, found ones to the next above, all else to the nearest."""
    exact = np.float32([0, 1, 0.1, 3.4028235e38, 1e-45]).astype(np.float64)
    for rounding in Rounding:
        assert np.array_equal(chunks._rounded(exact, rounding), exact)
        assert np.array_equal(chunks._rounded(np.array([np.inf]), rounding), [np.inf])
        assert np.isnan(chunks._rounded(np.array([np.nan]), rounding)).all()
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.lognormal(0, 20, 1000), [1e-46, 1e39, 1 + 2.0**-30, 1 - 2.0**-30]])
    rows = measures.variables(("off",), ("l2",))
    lower, upper, found, nearest = (
        chunks._rounded(values, rows[name].rounding)
        for name in ("distance_off_l2_lower", "distance_off_l2_upper", "distance_universal_heldout", "output")
    )
    assert {array.dtype for array in (lower, upper, nearest)} == {np.dtype(np.float32)}
    with np.errstate(over="ignore"):
        above, below = np.nextafter(lower, np.float32(np.inf)), np.nextafter(upper, np.float32(0))
    assert (lower < values).all() and (values < above).all()
    assert (below < values).all() and (values < upper).all()
    assert np.array_equal(found, upper)
    nearer = np.where((values - lower < upper.astype(np.float64) - values) & (values < 1e39), lower, upper)
    assert np.array_equal(nearest, nearer)


def test_what_is_measured_is_recorded_rounded(monkeypatch):
    recorded = []
    original = chunks._rounded

    def rounded(values: np.ndarray, rounding: Rounding) -> np.ndarray:
        recorded.append((values, rounding))
        return original(values, rounding)

    monkeypatch.setattr(chunks, "_rounded", rounded)
    cells = run(sweep({}, {"seed": (0, 1, 2)}))
    rows = measures.variables(("off",), ("l2",))
    for (name, row), (values, rounding) in zip(rows.items(), recorded, strict=True):
        assert values.dtype == np.float64 and rounding is row.rounding
        assert np.array_equal([cell[name] for cell in cells], original(values, rounding)[:3])


# Values of JAX's global settings that change numbers, or break programs, where nothing guards against them.
HOSTILE = {
    "jax_default_prng_impl": "rbg",
    "jax_threefry_partitionable": False,
    "jax_random_seed_offset": 7,
    "jax_enable_custom_prng": True,
    "jax_legacy_prng_key": "error",
    "jax_default_matmul_precision": "bfloat16",
    "jax_numpy_dtype_promotion": "strict",
    "jax_numpy_rank_promotion": "raise",
    "jax_enable_x64": True,
    "jax_softmax_custom_jvp": False,
    "jax_disable_jit": True,
    "jax_debug_nans": True,
    "jax_debug_infs": True,
    "jax_debug_key_reuse": True,
    "jax_check_tracer_leaks": True,
    "jax_transfer_guard": "disallow",
    "jax_disable_most_optimizations": True,
    "jax_default_device": "cpu",
}
DRAWN = {
    "kind": "subspace",
    "ambient_dim": 3,
    "subspace_dim": 2,
    "samples": 4,
    "data_seed": 1,
    "width": 3,
    "max_steps": 5,
}
DRAWN_AXES = {"seed": (0, 1), "init_scale": (1.0, 1e38)}  # of the second, outputs are infinite


def everything(optimizer: str, *, measured: bool, **flags: object) -> dict[str, bytes]:
    """Bytes of all that a small grid yields under flags of JAX: trained, and in ambient coordinates; traced anew."""
    programs._loaded["ambient"].cache_clear()
    set_flags(flags)
    whole = sweep(DRAWN | {"optimizer": optimizer}, DRAWN_AXES)
    [chunk] = plan(whole).chunks
    [(_, trained)] = engine.train(whole, chunk.group, [chunk])
    networks = engine.ambient_networks(whole, chunk, trained)._asdict()
    assert set(trained["status"] == DIVERGED) == {False, True}
    parts = {"trained": trained, "networks": networks}
    if measured:
        parts["measured"] = engine.measure(whole, chunk, trained, threads=2)
    return {f"{part} {name}": array.tobytes() for part, arrays in parts.items() for name, array in arrays.items()}


@pytest.fixture
def restored_flags() -> Iterator[None]:
    before = {flag: jax.config.values[flag] for flag in HOSTILE}
    yield
    set_flags(before)


def set_flags(flags: dict) -> None:
    for flag, value in flags.items():
        jax.config.update(flag, value)


@pytest.mark.slow
def test_networks_do_not_depend_on_global_settings_of_jax(restored_flags):
    """All at once, after which what is compiled is traced again: keys, types, precisions and guards are pinned."""
    expected = everything("sgd", measured=False)
    assert everything("sgd", measured=False, **HOSTILE) == expected


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_results_do_not_depend_on_global_settings_of_jax(optimizer, restored_flags):
    expected = everything(optimizer, measured=True)
    assert everything(optimizer, measured=True, **HOSTILE) == expected


def test_settings_of_the_user_are_as_they_were_afterwards(restored_flags):
    set_flags(HOSTILE)
    with pinned(x64=False):
        assert jax.config.jax_debug_nans is False
    assert {flag: getattr(jax.config, flag, jax.config.values[flag]) for flag in HOSTILE} == HOSTILE


@pytest.fixture
def kept(tmp_path, monkeypatch) -> Iterator[Path]:
    """A folder for compiled programs."""
    flags = {"jax_compilation_cache_dir": str(tmp_path / "kept"), "jax_persistent_cache_min_compile_time_secs": 0.0}
    before = {flag: jax.config.values[flag] for flag in flags}
    monkeypatch.setattr(kept_programs, "keep_compiled", lambda: None)
    for flag, value in flags.items():
        jax.config.update(flag, value)
    compilation_cache.reset_cache()
    kept_programs._tell_unkept.cache_clear()
    yield tmp_path / "kept"
    for flag, value in before.items():
        jax.config.update(flag, value)
    compilation_cache.reset_cache()


def small_program(name: str) -> jax.stages.Lowered:
    def function(x: jax.Array) -> jax.Array:
        return x * 2

    function.__name__ = name
    return jax.jit(function).lower(np.float32(1))


def entries(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {path.name: (path.stat().st_ino, path.read_bytes()) for path in folder.glob("jit_o*")}


def test_only_a_damaged_entry_of_the_compiled_programs_is_replaced(kept):
    """Neither another program's nor one of the same name that another kind of machine keeps in the folder."""
    for name in ("one", "other"):
        kept_programs.compiled_or_kept(small_program(name), {})
    (kept / "jit_one-0123-cache").write_bytes(b"of another machine")
    whole = entries(kept)
    [damaged] = (path for path in whole if path.startswith("jit_one-") and path != "jit_one-0123-cache")
    (kept / damaged).write_bytes(whole[damaged][1][:20])
    found = []
    for _ in range(2):
        for name in ("one", "other"):
            assert kept_programs.compiled_or_kept(small_program(name), {})(np.float32(2)) == 4
        found.append(entries(kept))
    assert found[0].keys() == whole.keys() and len(whole) == 3
    assert {name for name in whole if found[0][name] != whole[name]} == {damaged}
    assert len(found[0][damaged][1]) > 0.9 * len(whole[damaged][1])
    assert found[1] == found[0] and all(path.is_file() for path in kept.iterdir())


def test_whoever_is_writing_an_entry_and_whoever_meets_it_do_not_disturb_each_other(kept):
    kept_programs.compiled_or_kept(small_program("one"), {})
    [(name, (_, content))] = entries(kept).items()
    with (kept / name).open("wb") as writer:  # as JAX does: in place
        writer.write(content[:20])
        writer.flush()
        assert kept_programs.compiled_or_kept(small_program("one"), {})(np.float32(2)) == 4
        writer.write(content[20:40])
    assert len(entries(kept)[name][1]) > 0.9 * len(content)
    assert jax.config.values["jax_compilation_cache_dir"] == str(kept)


def test_a_damaged_entry_of_a_folder_that_cannot_be_written_is_left(kept, monkeypatch):
    def refused(*_: object, **__: object) -> None:
        raise PermissionError("read-only")

    kept_programs.compiled_or_kept(small_program("one"), {})
    [file] = kept.glob("jit_one-*")
    file.write_bytes(b"in part")
    monkeypatch.setattr(tempfile, "TemporaryDirectory", refused)
    assert kept_programs.compiled_or_kept(small_program("one"), {})(np.float32(2)) == 4
    assert file.read_bytes() == b"in part"


def test_programs_of_a_group_have_entries_of_their_own(kept):
    program = plan(sweep({"max_steps": 3})).groups[0].program
    names = [programs._compile("advance", program, lanes, 7).as_text()[:200] for lanes in (2, 2, 3)]
    modules = [name.split(",")[0] for name in names]
    assert modules[0] == modules[1] != modules[2] and "jit_advance_" in modules[0]


def test_processors_of_other_features_keep_their_compiled_programs_apart(tmp_path):
    def processor(text: str) -> str:
        (tmp_path / "cpuinfo").write_text(text)
        return kept_programs._processor(tmp_path / "cpuinfo")

    one = processor("processor: 0\nmodel name: a\nMHz: 2000\nflags: sse avx\n\nprocessor: 1\nflags: sse avx\n")
    assert one == processor("processor: 0\nmodel name: a\nMHz: 3000\nflags: sse avx\n")
    others = ("model name: a\nflags: sse\n", "model name: b\nflags: sse avx\n", "Features: neon\n", "Features: sve\n")
    assert len({one, *map(processor, others)}) == 5
    assert platform.machine() in one and platform.machine() in kept_programs._processor(tmp_path / "none")


def test_that_compiled_programs_cannot_be_kept_is_told_once(kept):
    kept_programs.compiled_or_kept(small_program("one"), {})
    shutil.rmtree(kept)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for name in ("two", "three"):
            kept_programs.compiled_or_kept(small_program(name), {})
    reason = "FileNotFoundError: [Errno 2] No such file or directory"
    assert [str(warning.message) for warning in told] == [
        f"{kept}: compiled programs cannot be kept there, and each run compiles anew: {reason}"
    ]


def test_other_warnings_of_the_compiler_are_passed_on():
    class Telling:
        def compile(self, compiler_options: dict) -> str:
            warnings.warn("of another kind", DeprecationWarning, stacklevel=1)
            return "compiled"

    with pytest.warns(DeprecationWarning, match="of another kind"):
        assert kept_programs.compiled_or_kept(Telling(), {}) == "compiled"  # pyright: ignore[reportArgumentType]
