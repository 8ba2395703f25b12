"""Plans: every cell is in exactly one chunk, equal programs are shared, and the estimates hold."""

import itertools
import random
import time

import numpy as np
import pytest
from shell import TINY, read

from subspace_adv import engine, plan
from subspace_adv.measures import variables
from subspace_adv.network import padded_width
from subspace_adv.planning import _MAX_CHUNK_CELLS, Plan, cell_data, data_leaves, load_data, load_span

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
    return '[data]\nkind = "subspace"\n[training]\noptimizer = "sgd"\n[axes]\n' + "\n".join(lines)


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
        assert {padded_width(width) for width in sweep.column("width", group.cells).tolist()} == {
            program.law.padded_width
        }
        assert group.max_steps == sweep.column("max_steps", group.cells).max()
        datasets, which = cell_data(sweep, group.cells)
        assert program.shared_data == (len(datasets) == 1)
        assert set(which) == set(range(len(datasets)))
        n, d, k, r = program.shape
        for settings in datasets:
            data = load_data(settings)
            assert (*data.x.shape, *data.heldout.shape) == (n, r, 16, r)
            assert data.subspace.basis.shape == (r, k)
            assert load_span(settings).basis.shape == (d, r) == program.law[2:]


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
        ("init", ["torch", "theory"]),
        ("trainable", ["all", "hidden"]),
        ("optimizer", ["gd", "adam"]),
        ("loss", ["logistic", "exponential"]),
        ("attack_steps", [10, 20]),
        ("restarts", [1, 2]),
        ("width", [4, 5]),
        ("kind", ["line", "chessboard"]),
    ],
)
def test_what_shapes_a_program_has_groups(axis, values):
    assert len(plan(read(f"[axes]\n{axis} = {values}\nseed = [0, 1]\n")).groups) == 2


@pytest.mark.parametrize("trainer", [pytest.param("xla", marks=pytest.mark.slow), None])
def test_programs_are_counted(trainer):
    planned = plan(read(TINY), trainer)
    distinct = set()
    for group in planned.groups:
        for lanes in (group.lanes, group.tail_lanes):
            distinct.add(id(engine.compiled("advance", group.program, lanes, group.steps_per_call)))
        distinct |= {id(engine.compiled(name, group.program, group.lanes)) for name in ("fill", "measure")}
    expected = sum(3 + (group.lanes != group.tail_lanes) for group in planned.groups)
    assert planned.programs == len(distinct) == expected


def test_data_depend_on_the_axes_of_their_table_alone():
    sweep = read('[data]\nsamples = 4\n[axes]\nseed = [0, 1]\nkind = ["subspace", "line"]\ndata_seed = [5, 6]\n')
    assert data_leaves(sweep) == ("kind", "data_seed")
    datasets, which = cell_data(sweep, np.arange(sweep.cells))
    assert which.tolist() == [0, 1, 2, 2, 0, 1, 2, 2]  # a line has no data seed
    points = [load_data(settings).x for settings in datasets]
    assert [x.shape for x in points] == [(4, 2), (4, 2), (7, 1)]
    assert not np.array_equal(points[0], points[1])
    subspace, line = plan(sweep).groups
    assert (subspace.program.shared_data, line.program.shared_data) == (False, True)


def test_bytes_are_those_of_the_arrays():
    text = '[data]\nkind = "subspace"\nsubspace_dim = 1\n[measure]\nregions = ["on", "full"]\n[axes]\nwidth = [3, 6]\n'
    planned = plan(read(text + "ambient_dim = [2, 5]\nsamples = [3, 4]\n"))
    expected = 0
    for width, _, samples in itertools.product((3, 7), (2, 5), (3, 4)):  # 6 is padded to 7
        network = width * 1 + width + width + 1  # in coordinates of the span
        recorded = variables(("on", "full"), ("l2",)).values()
        assert [variable.per_heldout for variable in recorded].count(True) == 2
        measured = sum(samples if v.per_point else 16 if v.per_heldout else 1 for v in recorded)
        expected += 4 * (network + measured) + 1 + 4  # status and steps
    assert planned.bytes == expected


def test_steps_and_time_are_summed_over_the_cells():
    planned = plan(read("[axes]\nmax_steps = [10, 30]\nwidth = [3, 5]\nseed = [0, 1, 2]\n"))
    assert planned.max_net_steps == 6 * 10 + 6 * 30
    assert planned.max_seconds(1) == pytest.approx(2 * planned.max_seconds(2))
    assert plan(read("[training]\nmax_steps = 0\n")).max_seconds(1) == 0


def test_chunks_are_neither_tiny_nor_huge():
    for text in ("", "[network]\nwidth = 10000\n[training]\nmax_steps = 1000000\n", "[training]\nmax_steps = 0\n"):
        for group in plan(read(text, "seed=0:30000")).groups:
            assert 1 <= group.chunk_cells <= _MAX_CHUNK_CELLS
            seconds_each = group.max_steps * group.step_seconds
            assert group.chunk_cells == 1 or group.chunk_cells * seconds_each <= 40
            assert group.chunk_cells >= 256 or (group.chunk_cells + 1) * seconds_each > 40


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
