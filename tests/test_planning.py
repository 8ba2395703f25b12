"""Plans: every cell is in exactly one chunk, equal programs are shared, and the estimates hold."""

import itertools
import random
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from shell import TINY, in_its_stead, read

from subspace_adv import Sweep, UserError, engine, plan
from subspace_adv.data import HELDOUT, KINDS, SubspaceData
from subspace_adv.datasets import cell_data, data_fields, grid_data, input_span, load_data, load_span
from subspace_adv.devices import Device, filling
from subspace_adv.measures import variables
from subspace_adv.models import MODELS, fused
from subspace_adv.network import padded_size
from subspace_adv.optimizers import Hyper
from subspace_adv.planning import _MAX_CHUNK_NETWORKS, Group, Plan
from subspace_adv.receptive_fields import DENSE
from subspace_adv.reduction import reduction
from subspace_adv.training import SETTLING_STEPS, Trainer, transformation

AXES = {
    "seed": range(5),
    "width": [3, 5, 100, 101, 7],
    "init_scale": [1.0, 0.5, 0.25],
    "kind": ["line", "subspace", "chessboard"],
    "ambient_dim": [4, 9],
    "data_seed": [0, 1, 2],
    "optimizer": ["gd", "sgd"],
    "init": ["torch", "theory"],
    "trainable": ["all", "hidden"],
    "max_steps": [10, 500],
    "weight_decay": [0.0, 0.1],
    "restarts": [1, 2],
}


def random_axes(seed: int) -> str:
    """Some of the axes in some order, with their values in some order."""
    rng = random.Random(seed)
    lines = []
    for axis in rng.sample(list(AXES), rng.randint(2, 6)):
        values = rng.sample(list(AXES[axis]), rng.randint(1, len(AXES[axis])))
        lines.append(f"{axis} = {values}")
    return '[data]\nkind = "subspace"\n[training]\noptimizer = "sgd"\nstop_margin = inf\n[axes]\n' + "\n".join(lines)


def random_plans() -> list[Plan]:
    plans = []
    for seed in itertools.count():
        text = random_axes(seed)
        if (
            "kind" in text.partition("[axes]")[2]
            and "'subspace'" not in text
            and any(axis in text.partition("[axes]")[2] for axis in ("ambient_dim", "data_seed"))
        ):
            continue  # these axes would change nothing
        plans.append(plan(read(text)))
        if len(plans) == 25:
            return plans


@pytest.mark.parametrize("planned", random_plans())
def test_cells_are_partitioned(planned):
    everything = np.arange(planned.cells)
    for parts in (planned.groups, planned.chunks):
        assert np.array_equal(np.sort(np.concatenate([part.cells for part in parts])), everything)
    assert [chunk.number for chunk in planned.chunks] == list(range(len(planned.chunks)))
    for group in planned.groups:
        assert (np.diff(group.cells) > 0).all()
        chunks = [chunk.cells for chunk in planned.chunks if chunk.group is group]
        assert np.array_equal(np.concatenate(chunks), group.cells)
        assert all(len(cells) == group.chunk_cells for cells in chunks[:-1])
        assert len(chunks[-1]) <= group.chunk_cells


@pytest.mark.parametrize("planned", random_plans())
def test_groups_are_the_cells_of_one_program(planned):
    sweep = planned.sweep
    assert len({group.program for group in planned.groups}) == len(planned.groups)
    for group in planned.groups:
        program = group.program

        def only(leaf: str, cells: np.ndarray = group.cells) -> object:
            (value,) = set(sweep.column(leaf, cells).tolist())
            return value

        assert program.law.init == only("init")
        assert program.recipe.optimizer == only("optimizer")
        assert program.recording.restarts == only("restarts")
        assert {padded_size(width) for width in sweep.column("width", group.cells).tolist()} == {
            program.law.padded_width
        }
        assert group.max_steps == sweep.column("max_steps", group.cells).max()
        datasets, which = cell_data(sweep, group.cells)
        assert program.shared_data == (len(datasets) == 1)
        assert set(which) == set(range(len(datasets)))
        n, d, k, r, _ = program.shape
        for settings in datasets:
            data = load_data(settings)
            padded = padded_size(len(data.x)) if settings.pads and program.recipe.optimizer != "sgd" else len(data.x)
            assert (padded, data.x.shape[1], *data.heldout.shape) == (n, r, 16, r)
            assert data.subspace.basis.shape == (r, k)
            assert load_span(settings).basis.shape == (d, r) == program.law[2:4]


def test_the_order_of_axes_only_renames_cells():
    def grouped(order: tuple[str, ...]) -> set:
        axes = {"seed": [0, 1, 2], "width": [3, 5, 101, 120], "data_seed": [0, 1], "ambient_dim": [4, 9]}
        sweep = read('[data]\nkind = "subspace"\n[axes]\n' + "\n".join(f"{axis} = {axes[axis]}" for axis in order))
        return {
            (group.program, frozenset(zip(*(sweep.column(axis, group.cells).tolist() for axis in axes), strict=True)))
            for group in plan(sweep).groups
        }

    orders = list(itertools.permutations(("seed", "width", "data_seed", "ambient_dim")))
    assert all(grouped(order) == grouped(orders[0]) for order in orders[1:])


def test_samples_that_are_padded_alike_share_a_program():
    """But where minibatches are drawn of them."""
    text = '[data]\nkind = "subspace"\n[axes]\nsamples = "5:81"\n'
    groups = plan(read(text)).groups
    assert [group.program.shape.samples for group in groups] == [5, 7, 8, 10, 13, 16, 20, 25, 32, 40, 50, 64, 80]
    assert sum(len(group.cells) for group in groups) == 76
    assert len(plan(read(text, "optimizer=sgd")).groups) == 76
    assert len(plan(read('[axes]\nkind = ["line", "chessboard"]\n')).groups) == 2  # of 7 and 25 points


def test_widths_that_are_padded_alike_share_a_program():
    planned = plan(read("[axes]\nwidth = [96, 100, 97, 101]\nseed = [0, 1]\n"))
    assert [group.program.law.padded_width for group in planned.groups] == [100, 128]
    assert [len(group.cells) for group in planned.groups] == [6, 2]


def test_what_a_cell_reads_at_run_time_needs_no_program_of_its_own():
    axes = "seed = [0, 1]\ninit_scale = [1, 2]\nlearning_rate = [0.1, 0.2]\nweight_decay = [0, 1]\n"
    rest = "stop_margin = [0, 1]\nmax_steps = [10, 20]\nwidth = [6, 7]\n"
    (group,) = plan(read(f"[axes]\n{axes}{rest}")).groups
    assert len(group.cells) == 2**7


@pytest.mark.parametrize(
    ("axis", "values"),
    [
        ("init", ["torch", "paper-code"]),
        ("trainable", ["all", "hidden"]),
        ("optimizer", ["gd", "adam"]),
        ("loss", ["logistic", "exponential"]),
        ("attack_steps", [10, 20]),
        ("restarts", [1, 2]),
        ("gap", [0.1, 0.2]),
        ("width", [4, 5]),
        ("kind", ["line", "chessboard"]),
    ],
)
def test_what_shapes_a_program_has_groups(axis, values):
    assert len(plan(read(f"[axes]\n{axis} = {values}\nseed = [0, 1]\n")).groups) == 2


@pytest.mark.slow
@pytest.mark.parametrize("trainer", ["xla", None])
def test_programs_are_counted(trainer):
    planned = plan(read(TINY), trainer)
    distinct = set()
    for group in planned.groups:
        for lanes in (group.lanes, group.tail_lanes):
            distinct.add(id(engine.compiled("advance", group.program, lanes, group.steps_per_call)))
        distinct |= {id(engine.compiled(name, group.program, group.lanes)) for name in ("fill", "measure")}
    expected = sum(3 + (group.lanes != group.tail_lanes) for group in planned.groups)
    assert planned.programs == len(distinct) == expected


@pytest.mark.parametrize("optimizers", [("gd", "adam"), ("adam", "gd")])
def test_adam_with_decay_trains_in_all_coordinates_wherever_it_stands_on_the_axis(optimizers):
    text = """
[data]
kind = "subspace"
ambient_dim = 5
basis = "axis-aligned"
[axes]
weight_decay = [0.0, 0.1]
"""
    planned = plan(read(f"{text}optimizer = {list(optimizers)}"))
    reduced = {}
    for group in planned.groups:
        for cell in group.cells:
            decay, optimizer = (planned.sweep.column(leaf, cell) for leaf in ("weight_decay", "optimizer"))
            reduced[str(optimizer), float(decay) > 0] = group.program.reduced
    assert reduced == {("gd", False): True, ("gd", True): True, ("adam", False): True, ("adam", True): False}


def test_data_depend_on_the_axes_of_their_table_alone():
    sweep = read('[data]\nsamples = 4\n[axes]\nseed = [0, 1]\nkind = ["subspace", "line"]\ndata_seed = [5, 6]\n')
    assert data_fields(sweep) == ("kind", "data_seed")
    datasets, which = cell_data(sweep, np.arange(sweep.cells))
    assert which.tolist() == [0, 1, 2, 2, 0, 1, 2, 2]  # a line has no data seed
    points = [load_data(settings).x for settings in datasets]
    assert [x.shape for x in points] == [(4, 2), (4, 2), (7, 1)]
    assert not np.array_equal(points[0], points[1])
    subspace, line = plan(sweep).groups
    assert (subspace.program.shared_data, line.program.shared_data) == (False, True)


def test_bytes_are_those_of_the_arrays():
    text = '[data]\nkind = "subspace"\nsubspace_dim = 1\ndata_seed = 1\n'
    text += '[measure]\nregions = ["on", "full"]\n[axes]\nwidth = [3, 6]\n'
    planned = plan(read(text + "ambient_dim = [2, 5]\nsamples = [3, 4]\n"))
    expected = 0
    for width, _, samples in itertools.product((3, 7), (2, 5), (3, 4)):  # 6 is padded to 7
        network = width * 1 + width + width + 1  # in coordinates of the span
        recorded = variables(("on", "full"), ("l2",)).values()
        assert [variable.dimensions for variable in recorded].count(("heldout",)) == 2
        measured = sum({"point": samples, "heldout": 16}[v.dimensions[0]] if v.dimensions else 1 for v in recorded)
        expected += 4 * (network + measured) + 1 + 4  # status and steps
    assert planned.bytes == expected


def test_what_is_no_sweep_is_refused():
    for given in ("sweeps/line.toml", None):
        with pytest.raises(UserError, match=r"is no Sweep; Sweep.from_toml reads one from a file"):
            plan(given)  # pyright: ignore[reportArgumentType]


def test_steps_are_summed_over_the_cells():
    assert plan(read("[axes]\nmax_steps = [10, 30]\nwidth = [3, 5]\nseed = [0, 1, 2]\n")).max_net_steps == 240


def test_time_is_that_of_its_parts():
    planned = plan(read("[axes]\nmax_steps = [10, 30]\nwidth = [3, 5]\nseed = [0, 1, 2]\n"), "xla", CPU)
    one, two = planned.seconds(1), planned.seconds(2)
    assert one.training_most == pytest.approx(sum((3 * 10 + 3 * 30) * group.step_seconds for group in planned.groups))
    assert (two.starting, two.compiling) == (one.starting, one.compiling)
    assert (2 * two.training_most, 2 * two.training, 2 * two.measuring) == pytest.approx(
        (one.training_most, one.training, one.measuring)
    )
    assert 0 < one.training < one.training_most
    assert one.typical == pytest.approx(one.starting + one.compiling + one.training + one.measuring)
    assert one.most == pytest.approx(one.starting + one.compiling + one.training_most + one.measuring)
    idle = plan(read("[training]\nmax_steps = 0\n")).seconds(1)
    assert idle.training_most == 0 and idle.starting * idle.compiling * idle.measuring > 0


@pytest.mark.parametrize(
    ("text", "more", "grows"),
    [
        ("", "seed=0:9", {"training", "measuring"}),
        ("", "max_steps=50000", {"training"}),
        ("", "width=128", {"training", "measuring"}),
        ('[data]\nkind = "chessboard"\n', "attack_steps=100", {"measuring"}),
        ('[data]\nkind = "chessboard"\n', "restarts=64", {"measuring"}),
        ("", "optimizer=adam", {"training", "compiling"}),  # which the kernel does not know
        ("", "loss=logistic,exponential", {"training", "measuring", "compiling"}),
        ('[measure]\nregions = ["off"]\n', "regions=off,full", {"measuring", "compiling"}),
        ("", "norms=l2,l1", {"measuring", "compiling"}),
        ('[data]\nkind = "subspace"\n', "samples=30", {"training", "measuring"}),
        ('[data]\nkind = "subspace"\n', "ambient_dim=21", {"measuring"}),
    ],
)
def test_time_grows_with_what_takes_it(text, more, grows):
    if fused.unavailable():
        pytest.skip(str(fused.unavailable()))
    less, more = (plan(read(text, *overrides)).seconds(2)._asdict() for overrides in ((), (more,)))
    assert {part for part in more if more[part] > less[part]} - {"training_most"} == grows
    assert all(more[part] >= less[part] for part in more)


@pytest.mark.parametrize(
    ("name", "seconds"),  # of README's table
    [("quickstart", 25), ("line", 30), ("chessboard", 90), ("dimension", 120), ("claims", 90), ("subspace", 60)],
)
def test_time_is_right_within_a_factor_of_two(name, seconds):
    if fused.unavailable():
        pytest.skip(str(fused.unavailable()))
    sweep = Sweep.from_toml(Path(__file__).parent.parent / "sweeps" / f"{name}.toml")
    assert seconds / 2 < plan(sweep).seconds(2).typical < 2 * seconds


def test_regions_that_are_no_line_are_planes_or_searched(monkeypatch):
    """A plane and all of space around it; a plane around a line; planes off a plane, one a point."""
    tables = {
        "chessboard": '[data]\nkind = "chessboard"\n',
        "line": '[data]\nkind = "line"\n',
        "subspace": '[data]\nkind = "subspace"\nambient_dim = 4\nsubspace_dim = 2\nsamples = 9\n',
    }
    programs = {kind: plan(read(table)).groups[0].program for kind, table in tables.items()}
    searched = {kind: [search.dimension for search in program.searches] for kind, program in programs.items()}
    assert searched == {"chessboard": [3], "line": [], "subspace": [4]}
    planes = {kind: program.planes for kind, program in programs.items()}
    assert planes == {"chessboard": [1], "line": [1], "subspace": [10, 1]}
    monkeypatch.setitem(MODELS._rows, "mlp", in_its_stead(plane=None))
    program = plan(read(tables["chessboard"])).groups[0].program
    assert ([search.dimension for search in program.searches], program.planes) == ([2, 3], [])


def test_operations_of_a_step_are_counted():
    """Two inputs, one of them the bias; two without; three, and a bias."""
    line, board = "[data]\nkind = 'line'\n", "[data]\nkind = 'chessboard'\n"
    found = [
        plan(read(table, "width=100", f"init={init}", f"trainable={trainable}")).groups[0].step_flops
        for table, init, trainable in (
            (line, "torch", "all"),
            (board, "theory", "all"),
            (board, "torch", "all"),
            (board, "torch", "hidden"),
        )
    ]
    assert found == [7 * 100 * 13 + 100 * 14, 25 * 100 * 17 + 100 * 18, *[25 * 100 * 21 + 100 * 22] * 2]


CPU = Device("cpu")
GPU = Device("gpu", memory=80 * 2**30)
TPU = Device("tpu", number=4, memory=16 * 2**30)


def group_of(device: Device, *overrides: str, trainer: Trainer | None = None) -> Group:
    [group] = plan(read('[data]\nkind = "subspace"\n', *overrides), trainer, device).groups
    return group


@pytest.mark.parametrize(
    ("samples", "width", "lanes", "tail"),
    [(7, 100, 64, 16), (10, 200, 32, 8), (20, 200, 16, 4), (32, 128, 16, 4), (33, 128, 8, 2), (25, 400, 4, 2)],
)
def test_on_a_cpu_a_step_of_all_lanes_fits_a_cache(samples, width, lanes, tail):
    """A quarter of a megabyte holds the activations of as many networks, a power of two, and not of twice as many."""
    assert lanes == 64 or lanes * samples * width * 4 <= 2**18 < 2 * lanes * samples * width * 4 or lanes == 4
    group = group_of(CPU, f"samples={samples}", f"width={width}", "seed=0:1000", trainer="xla")
    assert (group.lanes, group.tail_lanes) == (lanes, tail)
    few = group_of(CPU, f"samples={samples}", f"width={width}", f"seed=0:{tail}", trainer="xla")
    assert few.lanes == few.tail_lanes == tail
    more = group_of(CPU, f"samples={samples}", f"width={width}", f"seed=0:{tail + 1}", trainer="xla")
    assert (more.lanes, more.tail_lanes) == (lanes, tail)
    two = group_of(Device("cpu", 2), f"samples={samples}", f"width={width}", "seed=0:1000", trainer="xla")
    assert (two.lanes, two.tail_lanes) == (2 * lanes, 2 * tail)


@pytest.mark.parametrize(
    ("cells", "lanes"), [(1, 1), (63, 63), (64, 64), (256, 64), (300, 75), (2047, 511), (2048, 512), (9000, 512)]
)
def test_lanes_of_the_kernel(cells, lanes):
    if fused.unavailable():
        pytest.skip(str(fused.unavailable()))
    group = group_of(CPU, f"seed=0:{cells}", trainer="fused")
    assert group.lanes == group.tail_lanes == lanes
    assert group_of(Device("cpu", 2), f"seed=0:{cells}", trainer="fused").lanes == lanes + lanes % 2


@pytest.mark.parametrize("cells", [1, 31, 32, 1000])
def test_networks_that_a_cpu_measures_in_a_call(cells):
    # Whole blocks of those whose 32 points a core's cache holds: two, or as many as 32 networks are.
    for samples, few, many in ((5, 12, 30), (7, 8, 32), (10, 6, 30), (16, 4, 32), (20, 2, 32), (40, 2, 32)):
        group = group_of(CPU, f"samples={samples}", f"seed=0:{cells}")
        assert group.measured == (few if cells < 32 else many)
        assert group_of(Device("cpu", 3), f"samples={samples}", f"seed=0:{cells}").measured == 3 * group.measured


def test_an_accelerator_trains_thousands_of_networks_side_by_side():
    for device in (GPU, TPU):
        group = group_of(device, "seed=0:100000", "samples=7")
        assert group.program.recipe.trainer == "xla" and "cpu" in group.why[1].lower()
        assert 4096 <= group.lanes // device.number <= 2**14
        assert group.lanes % device.number == group.tail_lanes % device.number == 0
        assert group.chunk_cells >= group.lanes > group.tail_lanes >= 1024
        assert group.measured >= 64 * device.number
    for cells in (1, 2, 100):
        group = group_of(TPU, f"seed=0:{cells}")
        assert cells <= group.lanes < cells + TPU.number
        assert cells <= group.measured < cells + TPU.number
        assert group.lanes % TPU.number == group.tail_lanes % TPU.number == 0
    nowhere = group_of(GPU, "seed=0:100000", "regions=off", "ambient_dim=3", "subspace_dim=2")
    assert not nowhere.program.searches and 2**24 <= nowhere.measured * (20 + HELDOUT) * 100 < 2**25


@pytest.mark.parametrize("overrides", [("samples=7", "width=100"), ("samples=100", "width=1000"), ("width=10000",)])
def test_an_accelerator_has_enough_to_do_or_no_memory_for_more(overrides):
    for optimizer, moments in (("gd", 0), ("momentum", 1), ("adam", 2)):
        wide = (*overrides, f"optimizer={optimizer}", "basis=axis-aligned", "seed=0:100000")
        lanes = []
        for memory in (2**24, 2**28, 2**32, 2**36):
            group = group_of(Device("gpu", memory=memory), *wide)
            n, m, r = group.program.shape.samples, group.program.law.padded_width, group.program.inputs
            state = 4 * (2 + moments) * (m * (r + 2) + 1)  # parameters, their changes, the optimizer's
            step = state + 4 * n * m  # and one array of activations
            assert group.lanes == 1 or group.lanes * step <= memory / 4
            assert group.lanes * n * m >= min(2**24, 2**14 * n * m) or group.lanes * 8 * step > memory / 4
            measured = 4 * n * m * group.program.recording.restarts  # activations of the runs of a search
            assert group.measured == 1 or group.measured * measured <= memory / 4
            lanes.append(group.lanes)
        assert lanes == sorted(lanes) and lanes[0] < lanes[-1]


def test_what_fills_an_accelerator_is_a_power_of_two_that_a_quarter_of_its_memory_holds():
    for holds, lanes in ((100, 64), (64, 64), (63, 32), (3, 2), (1, 1), (0, 1)):
        assert filling(Device("gpu", memory=4 * 1000 * holds), work=1, size=1000) == lanes
    for work, lanes in ((1, 2**14), (2**11, 2**13), (2**24 // 9, 16), (2**24, 1), (2**30, 1)):
        assert filling(GPU, work, size=1) == lanes


def test_memory_holds_what_is_drawn_in_all_dimensions():
    reduced, ambient = (
        group_of(Device("gpu", memory=2**30), "ambient_dim=5000", f"optimizer={optimizer}", "seed=0:100000")
        for optimizer in ("gd", "adam")
    )
    assert reduced.program.reduced and not ambient.program.reduced
    assert ambient.lanes * 8 * 100 * 5000 <= 2**30 / 4  # weights, in float64
    assert reduced.lanes > 100 * ambient.lanes


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("Unable to initialize backend 'cuda': no GPU (set JAX_PLATFORMS='')"), "backend 'cuda': no GPU;"),
        (AssertionError(), "none of these could be started;"),
    ],
)
def test_where_there_is_no_device_its_reason_is_told(error, reason, monkeypatch):
    def none() -> None:
        raise error

    monkeypatch.setattr(jax, "local_devices", none)
    with pytest.raises(UserError, match="JAX finds no device") as told:
        plan(read(""))
    assert reason in str(told.value) and "JAX_PLATFORMS=cpu" in str(told.value) and "\n" not in str(told.value)


def test_a_trainer_that_does_not_exist_is_refused():
    with pytest.raises(UserError, match=r"trainer 'cuda': there is none of this name; known: fused, xla"):
        plan(read(""), "cuda")  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match="did you mean 'fused'"):
        plan(read(""), "fusd")  # pyright: ignore[reportArgumentType]


SPANS = {  # datasets, by where the span lies in R^d
    "diagonal": KINDS["line"](),
    "all axes of the chessboard": KINDS["chessboard"](),
    "rotated": SubspaceData(basis="random", ambient_dim=5),
    "all, rotated": SubspaceData(basis="random", ambient_dim=2),
    "axes": SubspaceData(basis="axis-aligned", ambient_dim=5),
    "all axes": SubspaceData(basis="axis-aligned", ambient_dim=2),
}


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("optimizer", ["gd", "sgd", "momentum", "adam"])
@pytest.mark.parametrize("span", SPANS)
def test_training_is_reduced_exactly_where_that_is_exact(span, optimizer, weight_decay, x64):
    """Gradients within the span, in its coordinates and in all: the part within agrees, and the rest only shrinks."""
    settings = SPANS[span]
    basis = load_span(settings).basis
    rng = np.random.default_rng(0)
    hyper = Hyper(*(np.float64(value) for value in (0.1, weight_decay, 0.9, 1, 0, 0)))

    def trained(weights: np.ndarray, gradients: list[np.ndarray]) -> np.ndarray:
        rule = transformation(hyper, optimizer)
        state = rule.init(weights)
        for gradient in gradients:
            update, state = rule.update(gradient, state, weights)
            weights = weights + np.asarray(update)
        return weights

    begin = rng.standard_normal((4, len(basis)))
    gradients = [rng.standard_normal((4, basis.shape[1])) for _ in range(3)]
    with jax.numpy_dtype_promotion("standard"):
        within = trained(begin @ basis, gradients)
        everywhere = trained(begin, [gradient @ basis.T for gradient in gradients])
    off_begin, off = (weights - weights @ basis @ basis.T for weights in (begin, everywhere))
    shrinks = np.allclose(off, off_begin * np.vdot(off, off_begin) / max(np.vdot(off_begin, off_begin), 1e-9))
    assert reduction(input_span(settings, DENSE), optimizer, weight_decay)[0] == (
        np.allclose(everywhere @ basis, within) and shrinks
    )


def test_every_cell_has_its_own_data():
    text = '[data]\nkind = "subspace"\nsubspace_dim = 2\n[axes]\nsamples = [5, 6]\nseed = [0, 1, 2]\n'
    text += 'data_seed = [3, 4]\nlabels = ["random", "halfspace", "clusters"]\nwidth = [3, 5]\nambient_dim = [4, 3]\n'
    sweep = read(text)
    axes = ("samples", "data_seed", "labels", "ambient_dim")
    assert data_fields(sweep) == axes
    cells = np.random.default_rng(0).permutation(sweep.cells)[:100]
    datasets, which = cell_data(sweep, cells)
    assert len(set(datasets)) == len(datasets)
    values = list(itertools.product(*sweep.axes.values()))  # of all cells, the last axis fastest
    grid, first = grid_data(sweep)
    assert len(grid) == 2 * 2 * 3 * 2 and first.shape == (2, 1, 2, 3, 1, 2)
    of_cell = np.broadcast_to(first, sweep.shape).ravel()
    for cell, dataset in zip(cells, which, strict=True):
        expected = SubspaceData(**{k: v for k, v in zip(sweep.axes, values[cell], strict=True) if k in axes})
        assert datasets[dataset] == grid[of_cell[cell]] == expected


def test_chunks_are_neither_tiny_nor_huge():
    for text in ("", "[network]\nwidth = 10000\n[training]\nmax_steps = 1000000\n", "[training]\nmax_steps = 0\n"):
        for group in plan(read(text, "seed=0:30000")).groups:
            assert 1 <= group.chunk_cells <= _MAX_CHUNK_NETWORKS
            seconds_each = group.max_steps * group.step_seconds
            assert group.chunk_cells == 1 or group.chunk_cells * seconds_each <= 40
            assert group.chunk_cells >= 64 or (group.chunk_cells + 1) * seconds_each > 40


@pytest.mark.parametrize(("cells", "size"), [(1, 64), (1024, 64), (1025, 65), (65_536, 4096), (100_000, 4096)])
def test_a_group_is_shared_by_chunks(cells, size):
    """In sixteen of them, of 64 to 4,096 cells, where its networks take few steps and XLA trains them."""
    [group] = plan(read("[training]\nmax_steps = 10\n", f"seed=0:{cells}"), "xla", CPU).groups
    assert group.chunk_cells == size


def test_calls_of_the_kernel_take_a_quarter_of_a_second():
    if fused.unavailable():
        pytest.skip(str(fused.unavailable()))
    for overrides in (("width=100",), ("width=3", "seed=0:10000")):
        group = group_of(CPU, *overrides, trainer="fused")
        assert 0.24 < group.steps_per_call * group.lanes * group.step_seconds <= 0.25
    assert group_of(CPU, "width=1000000", "samples=1000", trainer="fused").steps_per_call == 1
    assert group_of(CPU, trainer="xla").steps_per_call == SETTLING_STEPS


@pytest.mark.parametrize(
    "overrides", [("seed=0:1000000",), ("seed=0:1000", "init_scale=1:101", "width=3,5,7,100,400", "weight_decay=0,1")]
)
def test_a_million_cells_are_planned_in_seconds(overrides):
    begun = time.perf_counter()
    planned = plan(read("", *overrides))
    assert planned.cells == 1_000_000
    assert planned.bytes > 0
    assert planned.max_net_steps == 40_000 * 1_000_000
    assert time.perf_counter() - begun < 5
