"""Fields that move together, and draws from ranges: in a sweep, in its results, and in what tells of these."""

import itertools
import math
import re
import shutil
import time
import tomllib
import warnings
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from scipy.stats import qmc
from shell import BASE, COMMAND, call, chunk_states, content, read, write

from subspace_adv import Sweep, UserError, compare, load_networks, load_points, open_results, plan, plots, run
from subspace_adv.checks import check
from subspace_adv.datasets import grid_data
from subspace_adv.devices import local
from subspace_adv.frozen import frozen_part, over_grid
from subspace_adv.manifest import sweep_difference
from subspace_adv.pitfalls import warn_of_pitfalls
from subspace_adv.planning import _program
from subspace_adv.plots.panels import COLOURS, panels
from subspace_adv.reports import print_results
from subspace_adv.runner import how_to_resume
from subspace_adv.sweep import DESIGNED
from subspace_adv.tables import arms, repetitions, replicate_dimensions, settings_of, summarize

ARMS = {"init_scale": (1.0, 0.5, 1.0), "weight_decay": (0.0, 0.0, 0.001)}
ZIPPED = f"""{BASE}
[axes]
seed = "0:24"
[[zip]]
name = "arm"
init_scale = [1, 0.5, 1.0]
weight_decay = [0.0, 0.0, 1e-3]
"""
PAIRS = f"""{BASE}
[axes]
init_scale = [1.0, 0.5]
[[zip]]
name = "pair"
seed = "0:24"
"""
SAMPLED = """
[sample]
n = {n}
method = "{method}"
draw_seed = 3
init_scale = {{log = [0.001, 1]}}
learning_rate = {{lin = [0.01, 0.1]}}
max_steps = {{lin = [10, 90]}}
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Results of zips, and of the products of the same values."""
    product = f'{BASE}[axes]\nseed = "0:24"\ninit_scale = [1.0, 0.5]\nweight_decay = [0.0, 0.001]\n'
    scales, seeds = (24 * [1, 0.5])[:47], [i // 2 for i in range(47)]
    mixed = f'{BASE}[[zip]]\nname = "each"\nseed = {seeds}\ninit_scale = {scales}\n'
    made = {}
    for name, text in {"zipped": ZIPPED, "product": product, "pairs": PAIRS, "mixed": mixed}.items():
        made[name] = tmp_path_factory.mktemp("results") / name
        run(read(text), made[name])
    return made


FORMS = {
    "lists": ("arm", {"init_scale": "[1.0, 0.5]", "weight_decay": "[0, 0.1]"}, [(1.0, 0.0), (0.5, 0.1)]),
    "ranges": ("arm", {"seed": '"0:3"', "width": '"4:10:2"'}, [(0, 4), (1, 6), (2, 8)]),
    "spacings": (
        "arm",
        {"init_scale": "{log = [0.01, 1], n = 3}", "depth": "{lin = [1, 3], n = 3}"},
        [(0.01, 1), (0.1, 2), (1.0, 3)],
    ),
    "words": (
        "arm",
        {"init": '["theory", "torch"]', "optimizer": '["gd", "adam"]'},
        [("theory", "gd"), ("torch", "adam")],
    ),
    "one field": ("arm", {"width": "[4, 7]"}, [(4,), (7,)]),
    "a name like a sample's": ("sample", {"width": "[4, 7]"}, [(4,), (7,)]),
    "repeated values": ("arm", {"width": "[4, 4, 7]", "seed": "[0, 1, 0]"}, [(4, 0), (4, 1), (7, 0)]),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_zip_is_one_dimension_and_reads_back_equal(form):
    name, fields, expected = FORMS[form]
    told = "".join(f"{leaf} = {values}\n" for leaf, values in fields.items())
    sweep = read(f'[axes]\nrestarts = [1, 2]\n[[zip]]\nname = "{name}"\n{told}')
    assert list(zip(*sweep.dimensions[name].values(), strict=True)) == expected
    assert list(sweep.dimensions) == ["restarts", name] and list(sweep.dimensions[name]) == list(fields)
    assert sweep.shape == (2, len(expected))
    again = read(sweep.to_toml())
    assert again == sweep and again.dimensions == sweep.dimensions
    parsed = {leaf: tomllib.loads(f"v = {values}")["v"] for leaf, values in fields.items()}
    assert Sweep("sweep", axes={"restarts": [1, 2]}, zips=[{"name": name, **parsed}]) == sweep


def test_cells_are_the_product_of_the_dimensions_in_their_order():
    sweep = read(
        '[[zip]]\nname = "two"\nwidth = [4, 7]\nseed = [3, 1]\n[[zip]]\nname = "three"\ninit_scale = [1, 2, 3]\n'
        "[axes]\ninit = ['torch', 'theory']\n[sample]\nn = 5\nlearning_rate = {log = [0.1, 1]}\n"
    )
    assert list(sweep.dimensions) == ["init", "two", "three", "sample"] and sweep.cells == math.prod(sweep.shape) == 60
    rows = [list(zip(*of.values(), strict=True)) for of in sweep.dimensions.values()]
    cells = [dict(zip(sweep.axes, sum(places, ()), strict=True)) for places in itertools.product(*rows)]
    some = np.random.default_rng(0).permutation(sweep.cells)
    for leaf in sweep.axes:
        assert sweep.column(leaf, some).tolist() == [cells[cell][leaf] for cell in some]
    assert sweep.column("depth", some).tolist() == 60 * [1]


@pytest.mark.parametrize("method", ["sobol", "random"])
def test_samples_are_those_of_scipy_and_grow_at_their_end(method):
    sweep = read(SAMPLED.format(n=37, method=method))
    drawn = sweep.dimensions["sample"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 37 points of a Sobol sequence are not balanced
        scrambled = qmc.Sobol(3, scramble=True, seed=np.random.default_rng(3)).random(37)
    shares = scrambled if method == "sobol" else np.random.default_rng(3).random((37, 3))
    assert np.allclose(np.log10(drawn["init_scale"]), -3 + 3 * shares[:, 0], rtol=1e-6)
    assert np.allclose(drawn["learning_rate"], 0.01 + 0.09 * shares[:, 1], rtol=1e-6)
    assert np.abs(np.array(drawn["max_steps"]) - (10 + 80 * shares[:, 2])).max() <= 0.5
    assert {type(value) for value in drawn["max_steps"]} == {int}
    for value in drawn["init_scale"] + drawn["learning_rate"]:
        assert repr(value) == str(np.float32(value))  # shortly, and what float32 holds
    more = read(SAMPLED.format(n=300, method=method)).dimensions["sample"]
    assert {leaf: values[:37] for leaf, values in more.items()} == drawn
    assert read(SAMPLED.format(n=37, method=method).replace("draw_seed = 3", "")).dimensions["sample"] != drawn


def test_a_sample_is_written_as_what_was_drawn():
    sweep = read(SAMPLED.format(n=9, method="sobol"))
    [zipped] = tomllib.loads(sweep.to_toml())["zip"]
    assert zipped == {"name": "sample"} | {leaf: list(values) for leaf, values in sweep.axes.items()}
    assert read(sweep.to_toml()) == sweep
    ranges = {"init_scale": {"log": [0.001, 1]}, "learning_rate": {"lin": [0.01, 0.1]}, "max_steps": {"lin": [10, 90]}}
    assert Sweep(sample={"n": 9, "draw_seed": 3, **ranges}) == sweep


def test_an_axis_is_overridden_beside_a_zip(tmp_path):
    sweep = read(ZIPPED, "seed=7", "depth=1,2")
    assert {name: list(of) for name, of in sweep.dimensions.items()} == {
        "seed": ["seed"],
        "depth": ["depth"],
        "arm": ["init_scale", "weight_decay"],
    }
    assert sweep.axes["seed"] == (7,)


def test_what_an_override_leaves_unread_of_a_zip_is_dropped_with_a_warning():
    text = '[data]\nkind = "subspace"\n[[zip]]\nname = "arm"\nambient_dim = [4, 9]\nseed = [3, 1]\n'
    with pytest.warns(UserWarning, match=r"zip\.arm\.ambient_dim: left out, as read only where kind = 'subspace'"):
        line = read(text, "kind=line")
    assert line.dimensions == {"arm": {"seed": (3, 1)}}
    with pytest.raises(UserError, match=r"zip\.arm: numbers 0 and 1 \(from 0\) are alike, seed = 3"), pytest.warns():
        read(text.replace("[3, 1]", "[3, 3]"), "kind=line")


def test_paths_in_a_zip_are_relative_to_the_file(tmp_path):
    for name, n in (("a", 3), ("b", 4)):
        np.savez(tmp_path / f"{name}.npz", x=np.random.default_rng(0).standard_normal((n, 3)), y=[1, -1, 1, -1][:n])
    text = '[data]\nkind = "file"\n[[zip]]\nname = "arm"\npath = ["a.npz", "b.npz"]\ninit_scale = [1, 0.5]\n'
    sweep = Sweep.from_toml(write(tmp_path, text))
    assert sweep.values("path") == (str(tmp_path / "a.npz"), str(tmp_path / "b.npz"))
    assert [dataset.shape.samples for dataset in sweep.datasets_but_for_replicates()] == [3, 4]


ARM = '[[zip]]\nname = "arm"\n'
DRAWN = "[sample]\nn = 8\n"
BAD = {
    "unequal lengths": (
        f"{ARM}init_scale = [1, 2, 3]\nweight_decay = [0, 1]\n",
        "zip.arm: init_scale has 3 values and weight_decay has 2; they move together, so give both as many",
    ),
    "an empty zip": ("[[zip]]\n", "zip number 1: has no name; name the dimension that it is"),
    "a zip without a name": (f"{ARM}seed = [1, 2]\n[[zip]]\nwidth = [3, 4]\n", "zip number 2: has no name"),
    "a zip without fields": (ARM, "zip.arm: has no fields; list values of some, such as init_scale = [1, 0.5]"),
    "an empty field": (f"{ARM}seed = []\n", "zip.arm.seed = []: no values; list at least one"),
    "a table": ("[zip]\nname = 'arm'\n", "zip = {'name': 'arm'}: must be tables, [[zip]]"),
    "a word": ("zip = 'arm'\n", "zip = 'arm': must be tables, [[zip]]"),
    "a name of two words": ("[[zip]]\nname = 'an arm'\nseed = [1]\n", "zip number 1: name = 'an arm': must be a word"),
    "a keyword": ("[[zip]]\nname = 'class'\nseed = [1]\n", "zip number 1: name = 'class': must be a word"),
    "a number as a name": ("[[zip]]\nname = 3\nseed = [1]\n", "zip number 1: name = 3: must be a word"),
    "a field's name": ("[[zip]]\nname = 'seed'\nseed = [1]\n", "zip number 1: name = 'seed': is the name of a field"),
    "a name used twice": (
        f"{ARM}seed = [1]\n{ARM}width = [2]\n",
        "zip number 2: name = 'arm': is the name of another zip; give it another one",
    ),
    "a sample beside a zip of its name": (
        f"[[zip]]\nname = 'sample'\nseed = [1]\n{DRAWN}width = {{lin = [1, 100]}}\n",
        "sample: there is a zip of this name; give that another one",
    ),
    "no field": (f"{ARM}sede = [1, 2]\n", "zip.arm.sede: no such field; did you mean 'seed'?"),
    "no axis": (f"{ARM}regions = [['off'], ['on']]\n", "zip.arm.regions: cannot be an axis; regions is a list already"),
    "a bad value": (f"{ARM}init_scale = [1, -1]\n", "zip.arm.init_scale = -1: must be greater than 0"),
    "a bad form": (f"{ARM}init_scale = 'log:1:2:3x'\n", "zip.arm.init_scale = 'log:1:2:3x': "),
    "a logarithm of 0": (
        f"{ARM}init_scale = {{log = [0, 1], n = 3}}\n",
        "zip.arm.init_scale = {'log': [0, 1], 'n': 3}: 0 has no place on a logarithmic scale",
    ),
    "an end past all floats": (f"{ARM}seed = {{lin = [0, 1{'0' * 400}], n = 3}}\n", "zip.arm.seed = 1"),
    "a huge step number": (f"[measure]\nat_steps = {{log = [1, 1{'0' * 400}], n = 3}}\n", "measure.at_steps = "),
    "a range past all sizes": (f"{ARM}seed = '0:1{'0' * 40}'\n", "zip.arm.seed = '0:1", "at most 10,000,000 are"),
    "what is 0 in float32 between the ends": (
        f"{ARM}weight_decay = {{lin = [0, 1.3e-38], n = 3}}\n",
        "zip.arm.weight_decay = 6.5e-39: is 0 in float32",
    ),
    "a draw that is 0 in float32": (
        f"{DRAWN}weight_decay = {{lin = [-0.0, 1.2e-38]}}\n",
        "sample.weight_decay = ",
        "is 0 in float32",
    ),
    "in axes and a zip": (f"{ARM}seed = [1, 2]\n[axes]\nseed = [3]\n", "zip.arm.seed: is in axes already; leave one"),
    "in two zips": (
        f"{ARM}seed = [1, 2]\n[[zip]]\nname = 'other'\nseed = [3]\n",
        "zip.other.seed: is in zip.arm already; leave one of the two out",
    ),
    "in a zip and the sample": (
        f"{ARM}width = [1, 2]\n{DRAWN}width = {{lin = [1, 100]}}\n",
        "sample.width: is in zip.arm already; leave one of the two out",
    ),
    "what no cell reads": (f"{ARM}seed = [1, 2]\nmomentum = [0.1, 0.2]\n", "zip.arm.momentum = [0.1, 0.2]: changes no"),
    "a sampled field that no cell reads": (
        f"{DRAWN}momentum = {{lin = [0.1, 0.2]}}\n",
        "sample.momentum = {'lin': [0.1, 0.2]}: changes nothing; it is read where optimizer = 'momentum'",
    ),
    "places alike": (
        f"{ARM}seed = [1, 2, 1]\ninit_scale = [1, 1, 1]\n",
        "zip.arm: numbers 0 and 2 (from 0) are alike, seed = 1, init_scale = 1.0; leave one of them out",
    ),
    "places alike in float32": (f"{ARM}init_scale = [1, 1.00000001]\n", "zip.arm: numbers 0 and 1 (from 0) are alike"),
    "draws alike": (f"{DRAWN}width = {{lin = [1, 3]}}\n", "sample: numbers 0 and ", "draw fewer, or from wider ranges"),
    "no draw": ("[sample]\nn = 0\nwidth = {lin = [1, 3]}\n", "sample.n = 0: must be a whole number from 2 to 10,000"),
    "one draw": ("[sample]\nn = 1\nwidth = {lin = [1, 3]}\n", "sample.n = 1: must be a whole number from 2 to 10,000"),
    "half a draw": ("[sample]\nn = 2.5\nwidth = {lin = [1, 3]}\n", "sample.n = 2.5: must be a whole number from 2 to"),
    "draws not counted": (
        "[sample]\nwidth = {lin = [1, 3]}\n",
        "sample.n is not set: must be a whole number from 2 to",
    ),
    "a negative seed of draws": (f"{DRAWN}draw_seed = -1\n", "sample.draw_seed = -1: must be a whole number from 0 to"),
    "an unknown method": (
        f"{DRAWN}method = 'sobel'\n",
        "sample.method = 'sobel': must be 'sobol' or 'random'; did",
    ),
    "a sample without fields": (DRAWN, "sample: draws no field; give ranges of some, such as init_scale = {log = ["),
    "no sampled field": (f"{DRAWN}sede = {{lin = [0, 9]}}\n", "sample.sede: no such field; did you mean 'seed'?"),
    "a sampled list": (
        f"{DRAWN}seed = [1, 2]\n",
        "sample.seed = [1, 2]: must be a range, {log = [a, b]} or",
    ),
    "a number of one range": (
        f"{DRAWN}seed = {{lin = [0, 9], n = 3}}\n",
        "sample.seed = {'lin': [0, 9], 'n': 3}: must",
    ),
    "a sampled logarithm of 0": (
        f"{DRAWN}init_scale = {{log = [0, 1]}}\n",
        "sample.init_scale = {'log': [0, 1]}: 0 has no",
    ),
    "a sampled word": (f"{DRAWN}init = {{lin = [0, 1]}}\n", "sample.init = 0: must be 'theory'"),
    "an end out of bounds": (f"{DRAWN}momentum = {{lin = [0, 2]}}\n", "sample.momentum = 2: must be less than 1"),
    "a sample that is no table": ("sample = 3\n", "sample = 3: must be a table, [sample]"),
    "a combination that occurs": (
        f"[data]\nkind = 'subspace'\n{ARM}ambient_dim = [9, 5]\nsubspace_dim = [2, 6]\n",
        "zip.arm.subspace_dim = 6: over ambient_dim = 5; at most 5 is possible",
    ),
    "a batch over the points": (
        f"[data]\nkind = 'subspace'\n[training]\noptimizer = 'sgd'\n{ARM}samples = [3, 9]\nbatch_size = [5, 5]\n",
        "zip.arm.batch_size = 5: over the 3 points of the data; at most 3 is possible",
    ),
    "too many cells": (
        f"{ARM}seed = '0:2000'\n[axes]\ninit_scale = {{log = [1, 2], n = 10000}}\n",
        "axes.init_scale: 20,000,000 cells with the other axes; at most 10,000,000 are possible",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_in_one_line(tmp_path, case):
    text, start, *words = BAD[case]
    path = write(tmp_path, text)
    with pytest.raises(UserError) as refused:
        Sweep.from_toml(path)
    message = str(refused.value)
    assert message.startswith(f"{path}: {start}") and "\n" not in message and len(message) < 400
    assert all(word in message for word in words)


@pytest.mark.parametrize(
    "name",
    [
        *("point", "heldout", "feature", "step", "margin_level", "status", "steps", "margin", "label", "input"),
        *("span_dim", "heldout_input", "loss_value", "steps_at_margin", "distance_off_l2_upper", "predicted_decay"),
        *("rank_gradient_norm_off", "distance_tangent_linf_lower", "gradient_off_whitened", "module", "folder"),
    ],
)
def test_no_dimension_has_a_name_that_results_have(name):
    with pytest.raises(UserError, match=f"name = '{name}': is a name that results have already"):
        read(f"[[zip]]\nname = '{name}'\nseed = [1, 2]\n")


def test_all_names_of_results_are_taken(folders):
    dataset = open_results(folders["zipped"])
    for name in dataset.variables.keys() - dataset.attrs.keys() - {"arm", "seed", "init_scale", "weight_decay"}:
        with pytest.raises(UserError, match=r"results have already|is the name of a field"):
            read(f"[[zip]]\nname = '{name}'\nseed = [1, 2]\n")


def test_overrides_of_what_moves_together_name_the_zip():
    for text, told in ((ZIPPED, "zip 'arm'"), (SAMPLED.format(n=8, method="sobol"), "sample")):
        with pytest.raises(UserError) as refused:
            read(text, "init_scale=1")
        assert str(refused.value) == f"command line: init_scale: is in the file's {told}; change it there"


@pytest.mark.parametrize("zips", [3, "arm", {"name": "arm"}, [3], ["arm"]])
def test_zips_in_python_are_mappings(zips):
    with pytest.raises(UserError, match=r"^Sweep: zips = .*: must be a "):
        Sweep(zips=zips)


def test_bad_input_ends_with_status_2_and_nothing_written(tmp_path):
    write(tmp_path, BAD["unequal lengths"][0])
    code, out, err = call(COMMAND, "run", "sweep.toml", cwd=tmp_path)
    assert (code, out) == (2, "") and err.startswith("subspace-adv: sweep.toml: zip.arm: ") and err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.toml"]


def test_combinations_that_do_not_occur_are_no_mistake():
    sweep = read(
        '[[zip]]\nname = "arm"\nkind = ["line", "subspace", "patches"]\nambient_dim = [20, 9, 20]\n'
        'subspace_dim = [1, 9, 1]\narchitecture = ["mlp", "mlp", "cnn"]\nsamples = [9, 5, 7]\ninit_scale = [1, 2, 3]\n'
        '[axes]\ndata_seed = [0, 1]\noptimizer = ["gd", "sgd"]\ndepth = [1, 2]\n'
    )
    kinds = [(type(one).__name__, one.shape.samples) for one in sweep.datasets_but_for_replicates()]
    assert kinds == [("LineData", 7), ("SubspaceData", 5), ("PatchesData", 7)]
    designs = {(type(one).__name__, design.architecture, design.depth) for one, design in sweep.designs()}
    assert designs == {
        (kind, architecture, depth)
        for kind, architecture in (("LineData", "mlp"), ("SubspaceData", "mlp"), ("PatchesData", "cnn"))
        for depth in (1, 2)
    }
    datasets, which = grid_data(sweep)
    assert which.shape == (2, 1, 1, 3) and len(datasets) == 5  # the line has no seed
    todo = plan(sweep)
    assert sorted(np.concatenate([group.cells for group in todo.groups]).tolist()) == list(range(sweep.cells))


def test_fields_are_read_where_a_combination_that_occurs_reads_them():
    with pytest.raises(UserError, match=r"frequencies = 3: changes nothing"):
        read(
            '[data]\nfrequencies = 3\n[[zip]]\nname = "arm"\nkind = ["line", "subspace"]\n'
            'distribution = ["curve", "sphere"]\n'
        )


def test_pitfalls_are_those_of_combinations_that_occur():
    def told(text: str) -> list[str]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            warn_of_pitfalls(read(text))
        return [str(warning.message) for warning in caught]

    both = "init = ['torch', 'theory']\nkind = ['line', 'subspace']\n"
    assert len(told(f"[axes]\n{both}")) == 1 and told(f"{ARM}{both}") == []
    [text] = told("[data]\nkind = 'subspace'\n[axes]\ndata_seed = '0:40'\nsamples = [2, 40]\n")
    found = [int(seed) for seed in re.findall(r"data_seed = (\d+)", text)]
    others = [seed for seed in range(40) if seed not in found]
    zipped = (
        f"[data]\nkind = 'subspace'\n{ARM}data_seed = {[found[0], *others]}\nsamples = {[2, *(40 for _ in others)]}\n"
    )
    assert told(zipped) == [
        f"all points have one label, which is no task, at data_seed = {found[0]} and samples = 2; take more samples or "
        "other seeds"
    ]
    assert told(zipped.replace("[2, 40", "[40, 40")) == []


def test_cells_share_a_program_as_they_do_one_by_one():
    sweep = read(
        '[data]\nkind = "subspace"\n[[zip]]\nname = "arm"\noptimizer = ["adam", "gd", "adam", "momentum"]\n'
        'weight_decay = [0.0, 0.1, 0.2, 0.3]\nbasis = ["axis-aligned", "random", "axis-aligned", "random"]\n'
        "[axes]\nwidth = [3, 5, 9]\nseed = [0, 1]\n"
        "[sample]\nn = 6\ninit_scale = {log = [0.1, 1]}\nsamples = {lin = [3, 99]}\n"
    )
    todo, device = plan(sweep), local()
    alone = {}
    for cell in range(sweep.cells):
        values = {leaf: sweep.column(leaf, np.array([cell])).tolist()[0] for leaf in sweep.axes}
        alone.setdefault(_program(sweep, values, None, device)[0], []).append(cell)
    assert list(alone.values()) == [group.cells.tolist() for group in todo.groups]
    assert list(alone) == [group.program._replace(shared_data=True) for group in todo.groups]


def test_draws_of_what_shapes_nothing_cost_no_programs(monkeypatch):
    made = []
    monkeypatch.setattr("subspace_adv.planning._program", lambda *given: made.append(given) or _program(*given))
    text = "[sample]\nn = 10000\ninit_scale = {log = [1e-3, 1]}\nweight_decay = {log = [1e-5, 1]}\n"
    assert plan(read(text, "depth=1,2")).cells == 20_000
    assert len(made) == 2


def test_a_large_grid_with_zips_and_logarithmic_axes_is_planned_soon():
    text = ZIPPED.replace("0:24", "0:33333")
    text = text.replace("[axes]", "[axes]\nlearning_rate = {log = [1e-3, 0.1], n = 100}")
    begun = time.process_time()
    assert plan(read(text)).cells == 9_999_900
    assert time.process_time() - begun < 5  # a third of a second on an idle core


def same(one: xr.DataArray, other: xr.DataArray) -> None:
    assert one.dtype == other.dtype and one.values.tobytes() == other.values.tobytes()


def test_a_zipped_cell_is_that_of_the_product_and_that_of_its_own(folders, tmp_path):
    zipped, product = (open_results(folders[name]) for name in ("zipped", "product"))
    assert set(zipped.data_vars) == set(product.data_vars)
    for place, (scale, decay) in enumerate(zip(*ARMS.values(), strict=True)):
        for name in zipped.data_vars:
            same(zipped[name].isel(arm=place), product[name].sel(init_scale=scale, weight_decay=decay))
    alone = run(read(BASE, "seed=5", "init_scale=0.5"), tmp_path / "alone")
    for name in alone.data_vars:
        same(alone[name], zipped[name].sel(seed=5, arm=1))


def test_a_zip_is_a_dimension_of_the_dataset_and_its_fields_coordinates(folders):
    dataset = open_results(folders["zipped"])
    assert dataset["status"].dims == ("seed", "arm")
    assert dataset["distance_off_l2_upper"].dims == ("seed", "arm", "point")
    assert dataset["arm"].values.tolist() == [0, 1, 2]
    assert dataset["arm"].attrs["fields"] == "init_scale, weight_decay"
    for leaf, values in ARMS.items():
        assert dataset[leaf].dims == ("arm",) and dataset[leaf].values.tolist() == list(values)
    assert not ARMS.keys() & dataset.attrs.keys()
    assert (dataset["distance_off_l2_upper"].where(dataset["init_scale"] == 1, drop=True)).sizes["arm"] == 2


@pytest.mark.slow
def test_zipped_data_and_losses_are_told_along_the_zip(tmp_path):
    text = BASE + (
        '[[zip]]\nname = "arm"\nkind = ["line", "subspace", "subspace"]\nsamples = [9, 5, 6]\n'
        'loss = ["logistic", "exponential", "logistic"]\ninit = ["torch", "theory", "he"]\n'
    )
    dataset = run(read(text), tmp_path / "out")
    assert dataset["loss"].dims == ("arm",) and dataset["loss_value"].dims == ("arm",)
    assert dataset["trainable"].dims == ("arm",) and dataset["trainable"].values.tolist() == ["all", "hidden", "all"]
    assert dataset["ambient_dim"].dims == ("arm",) and dataset["ambient_dim"].values.tolist() == [2, 20, 20]
    assert dataset["label"].dims == ("arm", "point")
    assert (dataset["label"] != 0).sum("point").values.tolist() == [7, 5, 6]
    points = load_points(tmp_path / "out")
    assert points.x.shape == (3, 7, 20) and (points.y != 0).sum(1).tolist() == [7, 5, 6]
    print_results(dataset)
    assert plots.plot(tmp_path / "out")


def test_networks_are_selected_by_their_place_along_a_zip(folders):
    everything, product = load_networks(folders["zipped"]), folders["product"]
    assert everything.weight.shape == (24, 3, 3, 2)
    one = load_networks(folders["zipped"], arm=1)
    assert np.array_equal(one.weight, load_networks(product, init_scale=0.5, weight_decay=0.0).weight)
    two = load_networks(folders["zipped"], arm=[2, 0], seed=[3])
    assert np.array_equal(two.weight, everything.weight[[3]][:, [2, 0]])
    for wrong, told in (
        (
            {"init_scale": 0.5},
            "init_scale: varies along arm, with which networks are selected, by their place: ",
        ),
        ({"arm": 3}, "arm = 3: not a value of this axis; the nearest is 2"),
        ({"arm": "x"}, "arm = 'x': not a value of this axis"),
        ({"amr": 1}, "amr: no such axis; did you mean 'arm'?"),
    ):
        with pytest.raises(UserError) as refused:
            load_networks(folders["zipped"], **wrong)
        assert str(refused.value).startswith(told)


def test_tables_tell_the_arms_of_a_zip(folders, capsys):
    zipped, product = (open_results(folders[name]) for name in ("zipped", "product"))
    by_settings = {tuple(row.arm.values()): row for row in summarize(product)}
    rows = summarize(zipped)
    assert [row.arm for row in rows] == [{"arm": 0}, {"arm": 1}, {"arm": 2}]
    for row in rows:
        told = settings_of(zipped, row.arm)
        assert told == {leaf: values[row.arm["arm"]] for leaf, values in ARMS.items()}
        assert row[1:] == by_settings[tuple(told.values())][1:] and row.networks == 24
    print_results(zipped)
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["init_scale", "weight_decay", "networks"]
    assert [line.split()[:3] for line in lines[:3]] == [["1", "0", "24"], ["0.5", "0", "24"], ["1", "0.001", "24"]]


def test_a_zip_of_seeds_alone_is_one_of_replicates(folders):
    pairs, product = (open_results(folders[name]) for name in ("pairs", "product"))
    assert replicate_dimensions(pairs) == ["pair"] and repetitions(pairs) == 24
    assert list(arms(pairs)) == [{"init_scale": 1.0}, {"init_scale": 0.5}]
    as_product = product.sel(weight_decay=0.0)
    assert [row[1:] for row in summarize(pairs)] == [row[1:] for row in summarize(as_product)]
    assert check(pairs) == check(as_product)
    assert plots.plot(folders["pairs"])


def test_seeds_that_vary_with_the_arm(folders):
    """Networks of one seed are dependent, whatever else they are told by: the law is tested on one of each."""
    mixed, product = (open_results(folders[name]) for name in ("mixed", "product"))
    by_seed = product.sel(weight_decay=0.0).transpose("seed", "init_scale", ...)
    found = check(mixed)
    assert found.exponents == () and found.networks == 47
    assert found.at_points is not None and found.at_points.sample == 24
    whole = by_seed.copy(deep=True)
    for name in ("predicted_off_deviation", "predicted_bound_probability"):
        whole[name][{"seed": 23, "init_scale": 1}] = np.nan
    for name in (one for one in whole.data_vars if str(one).startswith("predicted_") and "point" in whole[one].dims):
        whole[name][{"seed": 23, "init_scale": 1}] = np.nan
    expected = check(whole)
    assert found.at_points == expected.at_points and found.whitened == expected.whitened
    assert found.bounds == expected.bounds
    rows = summarize(mixed)
    assert rows[0].gain == {} and rows[1].gain and not rows[2].gain  # paired with networks of the same seed alone


def test_figures_of_a_zip_have_a_panel_for_each_arm(folders):
    dataset = open_results(folders["zipped"])
    shown = panels(dataset)
    assert [(panel.name, panel.arm) for panel in shown] == [
        ("standard", {"arm": 0}),
        ("arm 1", {"arm": 1}),
        ("arm 2", {"arm": 2}),
    ]
    assert [panel.settings for panel in shown] == [settings_of(dataset, {"arm": place}) for place in range(3)]
    names = {path.stem for path in plots.plot(folders["zipped"])}
    assert {"boundaries", "robust_accuracy", "fooling_rate"} <= names


@pytest.mark.slow
def test_a_sample_has_no_more_panels_than_there_are_colours(tmp_path):
    sampled = "[sample]\nn = 40\ninit_scale = {log = [0.1, 1]}\nlearning_rate = {log = [0.01, 0.1]}\n"
    dataset = run(read(BASE + sampled), tmp_path / "out")
    assert dataset["status"].dims == ("sample",) and dataset.sizes["sample"] == 40
    shown = [panel.arm["sample"] for panel in panels(dataset)]
    assert len(shown) == len(COLOURS) and shown[0] == 0 and shown[-1] == 39 and shown == sorted(set(shown))
    print_results(dataset)
    assert plots.plot(tmp_path / "out")


def test_zips_and_samples_grow_at_what_they_are_told(tmp_path):
    small = f"{BASE}{ARM}init_scale = [1, 0.5]\nseed = [3, 4]\n"
    small += "[sample]\nn = {}\nlearning_rate = {{lin = [0.01, 0.1]}}\n"
    before, larger = small.format(4), small.format(7).replace("[1, 0.5]", "[2, 1, 0.5]").replace("[3, 4]", "[9, 3, 4]")
    run(read(before), tmp_path / "out")
    held = chunk_states(tmp_path / "out")
    run(read(larger), tmp_path / "out", grow=True)
    assert chunk_states(tmp_path / "out").items() > held.items()
    run(read(larger), tmp_path / "fresh")
    assert content(tmp_path / "out") == content(tmp_path / "fresh")
    with pytest.raises(
        UserError, match=r"would drop results: init_scale = 0.5 with seed = 4 is not among the values here"
    ):
        run(read(before.replace("[3, 4]", "[3, 5]")), tmp_path / "out", grow=True)


def test_sweeps_that_differ_in_a_zip_are_told_apart():
    zipped = read(ZIPPED)
    assert sweep_difference(zipped, read(zipped.to_toml())) is None
    for text, told in (
        (ZIPPED.replace("1e-3", "2e-3"), "holds another sweep: zip.arm.weight_decay is [0.0, 0.0, 0.001] there and"),
        (
            ZIPPED.replace('"arm"', '"other"'),
            "holds another sweep: zip.arm.init_scale is [1.0, 0.5, 1.0] there and not set",
        ),
        (BASE, "holds another sweep: "),
    ):
        difference = sweep_difference(zipped, read(text))
        assert difference is not None and difference.startswith(told)


def test_what_never_learns_is_told_of_designs_on_the_data_that_their_networks_have():
    """No perceptron is on signals here, and no convolution on the line, of which nothing could be told."""
    assert {"architecture", "kernel", "stride"} <= set(DESIGNED)
    sweep = read(
        '[[zip]]\nname = "arm"\nkind = ["line", "patches", "line"]\narchitecture = ["mlp", "cnn", "mlp"]\n'
        "kernel = [3, 8, 3]\nstride = [1, 8, 1]\ndepth = [1, 2, 3]\n[axes]\nseed = [0, 1]\npatch_dim = [1, 2]\n"
    )
    found = over_grid(sweep, *grid_data(sweep), lambda frozen: frozen.freedom, -1)
    lines = ["kind=line", "depth=1"], ["kind=line", "depth=3"]
    patches = [["kind=patches", "architecture=cnn", "kernel=8", "stride=8", f"patch_dim={k}"] for k in (1, 2)]
    alone = {}
    for overrides in (*lines, *patches):
        [(dataset, design)] = read("", *overrides).designs()
        alone[tuple(overrides)] = frozen_part(design, dataset).freedom
    assert found.shape == (1, 2, 3)
    for k, of_patches in enumerate(patches):
        assert found[0, k].tolist() == [alone[tuple(one)] for one in (lines[0], of_patches, lines[1])]
    assert len(set(alone.values())) == 3


def test_moved_files_of_a_zip_are_told_of(tmp_path):
    """The command line cannot say where they are; another sweep file can."""
    rng, labels = np.random.default_rng(0), np.array([1, -1, 1])
    for name in ("a", "b"):
        np.savez(tmp_path / f"{name}.npz", x=rng.standard_normal((3, 2)), y=labels)
    text = f'[data]\nkind = "file"\n{BASE}{ARM}path = ["a.npz", "b.npz"]\ninit_scale = [1, 0.5]\n'
    run(write(tmp_path, text), tmp_path / "out")
    assert how_to_resume(tmp_path / "out").startswith("resume with: ")
    folder = tmp_path / "further" / "away" / "out"
    shutil.copytree(tmp_path / "out", folder)
    files = f"{tmp_path / 'a.npz'}, {tmp_path / 'b.npz'}"
    told = f"files have moved, and path is in a zip; run a copy of {folder / 'sweep.toml'} that tells {files}"
    assert how_to_resume(folder) == f"cannot be resumed as it is: {told}, with --out {folder}"
    again = write(tmp_path, (folder / "sweep.toml").read_text().replace("../", f"{tmp_path}/"), "again.toml")
    held = chunk_states(folder)
    run(again, folder)
    assert chunk_states(folder) == held


def test_folders_are_compared_by_the_fields_of_their_zips(folders):
    found = compare(folders["zipped"], folders["product"])
    assert [gain.arm for gain in found.gains] == [
        dict(zip(ARMS, arm, strict=True)) for arm in zip(*ARMS.values(), strict=True)
    ]
    for gain in found.gains:
        assert gain.pairs == 24 and all(tuple(told) == (0, 0, 0) for told in gain.gains.values())
    for name, along in (("pairs", "pair"), ("mixed", "each")):
        refused = compare(folders[name], folders["product"])
        assert not refused.gains
        assert refused.paired == [f"nothing can be paired: seed moves together with other fields in A, along {along}"]
