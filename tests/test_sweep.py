"""The sweep file: what is read, how overrides are applied, and what is refused and in which words."""

import itertools
import math
import os
import pickle
import tomllib
import warnings
from dataclasses import FrozenInstanceError
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from shell import read, write

from subspace_adv import Sweep, UserError, spacing
from subspace_adv import sweep as sweep_module
from subspace_adv.settings import leaves, read_where, tables
from subspace_adv.sweep import nearest

READY_MADE = sorted((Path(__file__).parents[1] / "sweeps").glob("*.toml"))

SUBSPACE = '[data]\nkind = "subspace"\n'

# name: (sweep file, overrides, (start of the message, more of it …))
BAD: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "unknown table": ("[optimiser]\n", (), ("FILE: optimiser: no such table", "known: axes, data, measure")),
    "misspelt table": ("[trainig]\n", (), ("FILE: trainig: no such table", "did you mean 'training'?")),
    "field outside its table": ("width = 5\n", (), ("FILE: width: no such table", "it belongs in [network]")),
    "field in another table": ("[data]\nwidth = 5\n", (), ("FILE: data.width: no such field", "belongs in [network]")),
    "unknown field": (
        "[network]\nqqq = 5\n",
        (),
        ("FILE: network.qqq: no such field", "known: architecture, depth, init, init_scale"),
    ),
    "misspelt field": ("[network]\nwidht = 5\n", (), ("FILE: network.widht: no such field", "did you mean 'width'?")),
    "unknown axis": ("[axes]\nqqq = [1]\n", (), ("FILE: axes.qqq: no such axis", "known: ambient_dim, architecture")),
    "misspelt axis": ("[axes]\nsede = [1]\n", (), ("FILE: axes.sede: no such axis", "did you mean 'seed'?")),
    "axis that is a list": ("[axes]\nregions = ['on']\n", (), ("FILE: axes.regions: cannot be an axis", "[measure]")),
    "unknown override": ("", ("qqq=5",), ("command line: qqq: no such field", "known: ambient_dim")),
    "misspelt override": ("", ("widht=5",), ("command line: widht: no such field", "did you mean 'width'?")),
    "override without a value": ("", ("width",), ("command line: 'width': write name=value",)),
    "override without a value 2": ("", ("width=",), ("command line: 'width=': write name=value",)),
    "override without a name": ("", ("=5",), ("command line: '=5': write name=value",)),
    "override with an empty value": ("", ("width=5,",), ("command line: axes.width = '': must be a whole number",)),
    "override given twice": ("", ("width=5", "width=6"), ("command line: width is set twice",)),
    "unknown enum value": (
        "[network]\ninit = 'qqq'\n",
        (),
        ("FILE: network.init = 'qqq': must be 'theory', 'paper-code', 'torch', 'he' or 'lecun'",),
    ),
    "misspelt enum value": (
        "[network]\ninit = 'papercode'\n",
        (),
        ("FILE: network.init = 'papercode'", "did you mean 'paper-code'?"),
    ),
    "misspelt enum value on an axis": (
        "[axes]\ninit = ['torch', 'theroy']\n",
        (),
        ("FILE: axes.init = 'theroy'", "did you mean 'theory'?"),
    ),
    "misspelt enum value in a list": ("", ("regions=off,onn",), ("command line: measure.regions", "mean 'on'?")),
    "string for a number": (
        "[network]\ninit_scale = 'big'\n",
        (),
        ("FILE: network.init_scale = 'big': must be a number",),
    ),
    "string for a whole number": (
        "[network]\nwidth = '5'\n",
        (),
        ("FILE: network.width = '5': must be a whole number",),
    ),
    "number for a string": ("[network]\ninit = 5\n", (), ("FILE: network.init = 5: must be 'theory'",)),
    "float for a whole number": ("[network]\nwidth = 9.8\n", (), ("FILE: network.width = 9.8", "did you mean 10?")),
    "bool for a whole number": (
        "[network]\nwidth = true\n",
        (),
        ("FILE: network.width = True: must be a whole number",),
    ),
    "bool for a number": ("[network]\ninit_scale = true\n", (), ("FILE: network.init_scale = True: must be a number",)),
    "date for a number": ("", ("init_scale=2020-01-01",), ("command line: network.init_scale = ", "must be a number")),
    "range without a step": ("", ("seed=0:4:0",), ("command line: axes.seed = '0:4:0': step must be 1 or more",)),
    "log from 0": (
        "",
        ("init_scale=log:0:1:3",),
        ("command line: axes.init_scale = 'log:0:1:3': 0 has no place on a logarithmic scale; both ends must be over",),
    ),
    "one spaced value": ("", ("init_scale=lin:1:2:1",), ("command line: axes.init_scale = 'lin:1:2:1': n is 1; must",)),
    "ends that are nearly one": (
        "",
        ("init_scale=lin:1:1.00000001:3",),
        ("command line: axes.init_scale = 'lin:1:1.00000001:3': only 1 of 3 numbers differ in float32",),
    ),
    "one end twice": ("", ("init_scale=lin:1:1:4",), ("command line: ", "'lin:1:1:4': both ends are 1; they must dif")),
    "no number of values": (
        "",
        ("init_scale=log:1:2",),
        ("command line: ", "must be log:a:b:n, such as log:0.001:1:7"),
    ),
    "text for an end": (
        "",
        ("init_scale=log:a:2:3",),
        ("command line: ", "'a' is no end; both must be finite numbers"),
    ),
    "an end that is refused": (
        "",
        ("init_scale=lin:-1:1:4",),
        ("command line: axes.init_scale = -1: must be greater ",),
    ),
    "half of a table": (
        "[axes]\ninit_scale = {log = [1, 2]}\n",
        (),
        ("FILE: axes.init_scale = {'log': [1, 2]}: must be a list, ", "{log = [a, b], n = 7} or {lin = [a, b], n = 5}"),
    ),
    "range from below 0": ("", ("seed=-1:3",), ("command line: ", "'-1:3': must be a whole number", "from 0 on")),
    "list for a scalar": (
        "[network]\ndepth = [2]\n",
        (),
        ("FILE: network.depth = [2]: must be a whole number; several values are an axis, in [axes]",),
    ),
    "list of numbers": (
        "[network]\ninit_scale = [1.0, 0.5]\n",
        (),
        ("FILE: network.init_scale = [1.0, 0.5]: must be a number; several values are an axis, in [axes]",),
    ),
    "a width of each layer": (
        "[network]\nwidth = [100, 50]\n",
        (),
        (
            "FILE: network.width = [100, 50]: must be one whole number, of all hidden layers; several are an axis",
            "class",
        ),
    ),
    "list for a scalar on an axis": (
        "[axes]\nwidth = [[5]]\n",
        (),
        ("FILE: axes.width = [5]: must be one whole number",),
    ),
    "scalar for a list": ("[measure]\nregions = 'off'\n", (), ("FILE: measure.regions = 'off': must be a list",)),
    "empty list": ("[measure]\nregions = []\n", (), ("FILE: measure.regions = []: must have at least 1 item",)),
    "table for a scalar": ("[network.width]\nx = 1\n", (), ("FILE: network.width = {'x': 1}: must be a whole number",)),
    "scalar for a table": ("network = 3\n", (), ("FILE: network = 3: must be a table, [network]",)),
    "scalar for a table with an override": ("network = 3\n", ("width=3",), ("FILE: network = 3: must be a table",)),
    "scalar for the axes with an override": ("axes = 3\n", ("seed=0:3",), ("FILE: axes = 3: must be a table, [axes]",)),
    "list of tables": ("[[network]]\nwidth = 3\n", (), ("FILE: network = [{'width': 3}]: must be a table",)),
    "scalar for an axis": ("[axes]\nwidth = 3\n", (), ('FILE: axes.width = 3: must be a list, "start:stop"',)),
    "negative width": (
        "[network]\nwidth = -3\n",
        (),
        ("FILE: network.width = -3: must be greater than or equal to 1",),
    ),
    "width of zero": ("", ("width=0",), ("command line: network.width = 0: must be greater than or equal to 1",)),
    "huge width": ("", ("width=" + 99 * "9",), ("command line: network.width = 999", "less than or equal to 16777216")),
    "negative learning rate": (
        "",
        ("learning_rate=-1",),
        ("command line: training.learning_rate = -1: must be greater than 0",),
    ),
    "negative scale": ("", ("init_scale=1,-1",), ("command line: axes.init_scale = -1: must be greater than 0",)),
    "negative weight decay": (
        "",
        ("weight_decay=-1.",),
        ("command line: training.weight_decay = -1.0: must be greater than or equal to 0",),
    ),
    "momentum of one": ("", ("momentum=1.0",), ("command line: training.momentum = 1.0: must be less than 1",)),
    "scale beyond float32": (
        "",
        ("init_scale=1e39",),
        ("command line: network.init_scale = 1e+39: is infinite in float32", "the farthest from 0 is 3.4e+38"),
    ),
    "NaN": ("[network]\ninit_scale = nan\n", (), ("FILE: network.init_scale = nan: must be a finite number",)),
    "NaN margin": (
        "[training]\nstop_margin = nan\n",
        (),
        ("FILE: training.stop_margin = nan: must be a number, not NaN",),
    ),
    "NaN momentum": ("", ("momentum=nan",), ("command line: training.momentum = nan: must be a finite number",)),
    "infinity": ("", ("learning_rate=inf",), ("command line: training.learning_rate = inf: must be a finite number",)),
    "infinity on an axis": (
        "[axes]\nweight_decay = [0, inf]\n",
        (),
        ("FILE: axes.weight_decay = inf: must be a finite",),
    ),
    "seed beyond 32 bits": (
        "",
        ("seed=4294967296",),
        ("command line: network.seed = 4294967296: must be less than 4294967296",),
    ),
    "empty axis": ("[axes]\nseed = []\n", (), ("FILE: axes.seed = []: no values",)),
    "empty range": ("", ("seed=5:5",), ("command line: axes.seed = '5:5': no values; stop must be over start",)),
    "range out of bounds": ("", ("width=0:5",), ("command line: axes.width = 0: must be greater than or equal to 1",)),
    "range of names": ("", ("init=0:3",), ("command line: axes.init = 0: must be 'theory'",)),
    "malformed range": ("[axes]\nseed = '0:'\n", (), ("FILE: axes.seed = '0:': must be a list, \"start:stop\"",)),
    "repeated values": ("[axes]\nseed = [3, 4, 3]\n", (), ("FILE: axes.seed: 3 is listed twice",)),
    "repeated number": ("[axes]\ninit_scale = [1, 1.0]\n", (), ("FILE: axes.init_scale: 1.0 is listed twice",)),
    "repeated region": (
        "",
        ("regions=off,off",),
        ("command line: measure.regions = ['off', 'off']: 'off' is listed twice",),
    ),
    "mixed types": ("[axes]\nseed = [1, 'two']\n", (), ("FILE: axes.seed = 'two': must be a whole number",)),
    "axis beyond memory": (
        "",
        ("seed=0:100000000",),
        ("command line: axes.seed = '0:100000000': 100,000,000 values; at most 10,000,000 are possible",),
    ),
    "grid beyond memory": (
        "",
        ("seed=0:1000000", "width=1:21"),
        ("command line: axes.seed: 20,000,000 cells with the other axes",),
    ),
    "scale beyond float32 on an axis": (
        "",
        ("init_scale=1,1e-46",),
        ("command line: axes.init_scale = 1e-46: is 0 in float32", "the nearest to 0 is 1.2e-38"),
    ),
    "values that are one in float32": (
        "[axes]\nlearning_rate = [0.1, 0.2, 0.10000000001]\n",
        (),
        ("FILE: axes.learning_rate: 0.1 and 0.10000000001 are one number in float32",),
    ),
    "range of numbers that are one in float32": (
        "",
        ("stop_margin=16777215:16777218",),
        ("command line: axes.stop_margin: 16777216.0 and 16777217.0 are one number in float32",),
    ),
    "list in brackets": (
        "",
        ("init_scale=[1, 0.5]",),
        ("command line: 'init_scale=[1, 0.5]': a list has no brackets here; write init_scale=1,0.5",),
    ),
    "list of words in brackets": ("", ('regions=["off","on"]',), ("command line: ", "write regions=off,on")),
    "empty list in brackets": ("", ("seed=[]",), ("command line: 'seed=[]': a list has no", "write seed=a,b")),
    "name in brackets": ("", ("name=[a]",), ("command line: name = '[a]': must be letters",)),
    "misspelt part of a field": (
        "",
        ("dceay=1",),
        ("command line: dceay: no such field; did you mean 'weight_decay'?",),
    ),
    "part of several fields": (
        "",
        ("steps=9",),
        ("command line: steps: ", "mean 'at_steps' or 'attack_steps' or 'max_steps'?"),
    ),
    "norm in capitals": (
        "",
        ("norms=linf,L2",),
        ("command line: measure.norms", "must be 'l2', 'linf' or 'l1'; did you mean 'l2'?"),
    ),
    "one string for the overrides": ("", "width=0", ("command line: network.width = 0: must be greater",)),
    "axis that nothing reads": (
        "",
        ("samples=3,4",),
        (
            "command line: axes.samples = [3, 4]: changes nothing; "
            "it is read where kind = 'subspace' or 'patches' or 'band-limited' or 'file' or 'digits'; leave it out",
        ),
    ),
    "axis that no optimizer reads": (
        "",
        ("momentum=0.1,0.9",),
        ("command line: axes.momentum", "optimizer = 'momentum'"),
    ),
    "field that nothing reads": (
        "[data]\nambient_dim = 100\n",
        (),
        (
            "FILE: data.ambient_dim = 100: changes nothing; "
            "it is read where kind = 'subspace' or 'band-limited'; leave it out",
        ),
    ),
    "field that nothing reads at its default": ("[data]\nlabels = 'random'\n", (), ("FILE: data.labels = 'random': ",)),
    "field that nothing reads on the command line": (
        SUBSPACE,
        ("kind=chessboard", "data_seed=5"),
        (
            "command line: data.data_seed = 5: changes nothing; "
            "it is read where kind = 'subspace' or 'patches' or 'band-limited' or 'file' or 'digits'; leave",
        ),
    ),
    "field that no optimizer of an axis reads": (
        "[training]\nbatch_size = 2\n[axes]\noptimizer = ['gd', 'adam', 'momentum']\n",
        (),
        ("FILE: training.batch_size = 2: changes nothing; it is read where optimizer = 'sgd'",),
    ),
    "field that nothing reads, and an override of another table": (
        "[training]\nmomentum = 0.5\n",
        ("kind=subspace",),
        ("FILE: training.momentum = 0.5: changes nothing; it is read where optimizer = 'momentum'",),
    ),
    "bad value of a field that nothing reads": (
        "[data]\nsamples = 0\n",
        (),
        ("FILE: data.samples = 0: must be greater",),
    ),
    "subspace over its space": (
        SUBSPACE + "ambient_dim = 3\nsubspace_dim = 4\n",
        (),
        ("FILE: data.subspace_dim = 4: over ambient_dim = 3; at most 3 is possible",),
    ),
    "subspace over its space on axes": (
        SUBSPACE,
        ("ambient_dim=9,5,7", "subspace_dim=2,6"),
        ("command line: axes.subspace_dim = 6: over ambient_dim = 5; at most 5 is possible",),
    ),
    "batch over the points": (
        "[training]\noptimizer = 'sgd'\nbatch_size = 8\n",
        (),
        ("FILE: training.batch_size = 8: over the 7 points of the data; at most 7 is possible",),
    ),
    "batch over some points on axes": (
        "[data]\nsamples = 3\n",
        ("kind=line,subspace", "optimizer=gd,sgd", "batch_size=2,5"),
        ("command line: axes.batch_size = 5: over the 3 points of the data; at most 3 is possible",),
    ),
    "batch over some points on an axis": (
        SUBSPACE + "samples = 9\n[training]\noptimizer = 'sgd'\nbatch_size = 5\n",
        ("samples=9,4",),
        ("FILE: training.batch_size = 5: over the 4 points of the data; at most 4 is possible",),
    ),
    "name that is no folder's": ("name = 'a/b'\n", (), ("FILE: name = 'a/b': must be letters, digits",)),
    "name that is no text": ("name = 5\n", (), ("FILE: name = 5: must be text",)),
    "malformed TOML": ("[network\n", (), ("FILE: not valid TOML", "line 1")),
    "TOML that repeats a field": ("[network]\nwidth = 1\nwidth = 2\n", (), ("FILE: not valid TOML", "line 3")),
    "TOML too deep": ("x = " + "[" * 5000, (), ("FILE: not valid TOML",)),
    "TOML number too long": ("x = " + "1" * 5000, (), ("FILE: not valid TOML",)),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_in_one_line(tmp_path, case):
    text, overrides, (start, *words) = BAD[case]
    path = write(tmp_path, text)
    with pytest.raises(UserError) as refused:
        Sweep.from_toml(path, overrides)
    message = str(refused.value)
    assert "\n" not in message
    assert len(message) < 700
    assert message.startswith(start.replace("FILE", str(path)))
    for some in words:
        assert some in message


def test_files_that_cannot_be_read(tmp_path):
    def refusal(path: Path) -> str:
        with pytest.raises(UserError) as refused:
            Sweep.from_toml(path)
        assert str(refused.value).startswith(f"{path}: ")
        return str(refused.value)

    assert refusal(tmp_path / "nope.toml").endswith("nope.toml: no such file")
    assert refusal(tmp_path / "none" / "nope.toml").endswith("nope.toml: no such file")
    good = write(tmp_path, "", "quickstart.toml")
    for mistyped in ("quikstart.toml", "quickstart", "Quickstart.tml"):
        assert refusal(tmp_path / mistyped).endswith("no such file; did you mean 'quickstart.toml'?")
    write(tmp_path, "", "line.toml")
    assert refusal(tmp_path / "nope.toml").endswith("no such file; there: line.toml, quickstart.toml")
    for i in range(9):
        write(tmp_path, "", f"a{i}.toml")
    assert refusal(tmp_path / "nope.toml").endswith("a7.toml, a8.toml, line.toml, …")
    assert "cannot be read: Is a directory" in refusal(tmp_path)
    assert "cannot be read: Not a directory" in refusal(good / "sweep.toml")
    (tmp_path / "latin.toml").write_bytes("name = 'é'".encode("latin-1"))
    assert "not UTF-8 text (byte 8); save the file as UTF-8" in refusal(tmp_path / "latin.toml")
    (tmp_path / "binary.toml").write_bytes(b"\x00\x01\x02")
    assert "not valid TOML" in refusal(tmp_path / "binary.toml")


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
def test_file_without_permission(tmp_path):
    path = write(tmp_path, "")
    path.chmod(0)
    with pytest.raises(UserError, match="cannot be read: Permission denied"):
        Sweep.from_toml(path)


def test_an_empty_file_is_a_sweep_of_one_cell(tmp_path):
    sweep = Sweep.from_toml(write(tmp_path, "", "plain.toml"))
    assert sweep.name == "plain"
    assert sweep.axes == {}
    assert (sweep.shape, sweep.cells) == ((), 1)
    assert sweep.network.width == 100
    assert sweep.training.stop_margin == 0.3


def test_a_byte_order_mark_is_no_mistake(tmp_path):
    path = tmp_path / "notepad.toml"
    path.write_bytes(b"\xef\xbb\xbf[network]\r\nwidth = 7\r\n")
    assert Sweep.from_toml(path).network.width == 7


def test_axes_keep_the_order_of_the_file_and_come_before_settings():
    sweep = read('[network]\nwidth = 3\n[axes]\nwidth = [9, 7]\nseed = "2:5"\ninit = ["torch", "theory"]\n')
    assert list(sweep.axes) == ["width", "seed", "init"]
    assert sweep.axes["seed"] == (2, 3, 4)
    assert sweep.shape == (2, 3, 2)
    assert sweep.values("width") == (9, 7)
    assert sweep.values("loss") == ("logistic",)


def test_columns_follow_the_grid_with_the_last_axis_fastest():
    sweep = read('[axes]\nwidth = [9, 7]\nseed = "2:5"\ninit = ["torch", "theory"]\n')
    cells = np.arange(sweep.cells)
    assert sweep.column("width", cells).tolist() == [9] * 6 + [7] * 6
    assert sweep.column("seed", cells).tolist() == [2, 2, 3, 3, 4, 4] * 2
    assert sweep.column("init", cells[::2]).tolist() == ["torch"] * 6
    assert sweep.column("trainable", cells[:3]).tolist() == [None] * 3
    assert sweep.column("init_scale", cells[:2]).tolist() == [1.0, 1.0]


def test_overrides():
    text = '[network]\nwidth = 3\n[axes]\nseed = "0:9"\ninit_scale = [1.0, 0.5]\n'

    def axes(*overrides: str) -> dict:
        return read(text, *overrides).axes

    assert read(text, "width=4").network.width == 4
    assert "width" not in axes("width=4")
    assert axes("width=4,5")["width"] == (4, 5)
    assert axes("width=4:7")["width"] == (4, 5, 6)
    assert axes("seed=7")["seed"] == (7,)  # an axis stays one
    assert axes("seed=7:8")["seed"] == (7,)
    assert axes("init_scale=2,0.25")["init_scale"] == (2.0, 0.25)
    assert axes("init_scale=1:4")["init_scale"] == (1.0, 2.0, 3.0)
    assert all(isinstance(value, float) for value in axes("init_scale=1:4")["init_scale"])
    assert list(axes("width=4,5", "seed=1")) == ["seed", "init_scale", "width"]  # new axes come last
    assert read(text, "init=torch").network.init == "torch"
    assert read(text, "init='torch'").network.init == "torch"
    assert axes("init=torch,theory")["init"] == ("torch", "theory")
    assert read(text, "regions=on").measure.regions == ("on",)
    assert read(text, "regions=on,off").measure.regions == ("on", "off")
    assert read(text, "name=other").name == "other"
    assert read(text, "stop_margin=-inf").training.stop_margin == -math.inf
    assert read(text, "learning_rate=1e-3").training.learning_rate == 1e-3
    assert read(text, "learning_rate=1").training.learning_rate == 1.0
    assert axes("init_scale=.5,1.")["init_scale"] == (0.5, 1.0)


@pytest.mark.parametrize("overrides", [None, 5, [5], ["seed=1", None], {"seed": "0:5"}])
def test_overrides_are_texts(tmp_path, overrides):
    with pytest.raises(UserError, match=r'overrides: write texts such as \["seed=0:20"\], not '):
        Sweep.from_toml(write(tmp_path, ""), overrides)


def test_overrides_of_any_iterable_are_read(tmp_path):
    assert Sweep.from_toml(write(tmp_path, ""), (f"seed=0:{stop}" for stop in [3])).axes["seed"] == (0, 1, 2)


@pytest.mark.parametrize("path", READY_MADE, ids=lambda path: path.stem)
def test_ready_made_sweeps_read_back_equal(tmp_path, path):
    sweep = Sweep.from_toml(path)
    assert sweep.name == path.stem
    again = Sweep.from_toml(write(tmp_path, sweep.to_toml()))
    assert again == sweep
    assert again.to_toml() == sweep.to_toml()


@pytest.mark.parametrize(
    "overrides",
    [
        ("trainable=hidden,all", "init=theory"),
        ("init_scale=1:3", "seed=4:6"),
        ("init_scale=1:9", "seed=4:60", "learning_rate=0.1,1e-30,3e38"),
        ("kind=subspace,line,chessboard", "labels=clusters,halfspace", "ambient_dim=20:23", "samples=5,4,3"),
        ("optimizer=sgd,momentum", "batch_size=3,1,2", "momentum=0.1,0.5", "stop_margin=-inf,inf,0"),
        ("name=été", "attack_steps=1:4", "restarts=2,1"),
    ],
)
def test_what_is_resolved_reads_back_equal(overrides):
    sweep = read("", *overrides)
    again = read(sweep.to_toml())
    assert again == sweep
    assert list(again.axes) == list(sweep.axes)
    assert again.to_toml() == sweep.to_toml()
    sent = pickle.loads(pickle.dumps(sweep))
    assert sent == sweep
    assert list(sent.axes) == list(sweep.axes)


def test_a_sweep_is_frozen():
    sweep = read("[axes]\nseed = [1, 2]\n")
    with pytest.raises(FrozenInstanceError):
        sweep.name = "other"
    with pytest.raises(ValidationError, match="frozen"):
        sweep.network.width = 5


def test_nearest():
    assert nearest("widht", ["width", "seed"]) == "; did you mean 'width'?"
    assert nearest("qqq", ["width", "seed"]) == "; known: seed, width"
    assert nearest("qqq", ["width"], otherwise_all=False) == ""
    assert nearest("qqq", []) == ""
    assert nearest("WIDTH", ["width", "seed"]) == "; did you mean 'width'?"
    assert nearest("seeds", ["data_seed", "seed"]) == "; did you mean 'seed'?"
    assert nearest("scales", ["init_scale", "samples"]) == "; did you mean 'init_scale'?"  # and not samples
    assert nearest("dim", ["ambient_dim", "subspace_dim"]) == "; did you mean 'ambient_dim' or 'subspace_dim'?"
    assert nearest("papr", ["paper-code", "torch"]) == "; did you mean 'paper-code'?"
    assert nearest("abcd", ["abxy"], otherwise_all=False) == ""  # half alike
    assert nearest("abcde", ["abcxy"], otherwise_all=False) == "; did you mean 'abcxy'?"
    assert nearest("abcd", ["abcx_other"], otherwise_all=False) == "; did you mean 'abcx_other'?"
    assert nearest("abc", ["abx_other"], otherwise_all=False) == ""  # two thirds alike in a part


def dropped(text: str, *overrides: str) -> tuple[Sweep, list[str]]:
    """A sweep, and what the warnings about it say after naming the file."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        sweep = read(text, *overrides)
    return sweep, [str(warning.message).partition("sweep.toml: ")[2] for warning in told]


def test_what_an_override_leaves_unread_is_dropped_with_a_warning():
    text = (
        '[training]\noptimizer = "momentum"\nmomentum = 0.5\n'
        '[data]\nkind = "subspace"\nsamples = 5\n[axes]\nambient_dim = [4, 9]\nseed = [3, 1]\n'
    )
    assert dropped(text) == (read(text), [])
    of_kinds = [
        "data.samples: left out, as read only where kind = 'subspace' or 'patches' or 'band-limited' or 'file' or "
        "'digits'",
        "axes.ambient_dim: left out, as read only where kind = 'subspace' or 'band-limited'",
    ]
    line, told = dropped(text, "kind=line")
    assert told == of_kinds
    assert list(line.axes) == ["seed"]
    assert line.data == read("").data
    assert line.training.momentum == 0.5
    both, told = dropped(text, "kind=line", "optimizer=gd", "seed=3,1")
    assert told == [
        of_kinds[0],
        "training.momentum: left out, as read only where optimizer = 'momentum'",
        of_kinds[1],
    ]
    assert both == read("", "seed=3,1")
    assert dropped(text, "kind=line,subspace", "optimizer=gd,momentum")[1] == []
    assert dropped(text, "samples=6")[1] == []


GIVEN = {"kind", "path", "label_column", "classes", "center", "scale", "fit"}  # in tests/test_own_data.py


@pytest.mark.parametrize("leaf", sorted({"momentum", "batch_size", *tables()["data"].model_fields} - GIVEN))
def test_a_field_is_written_and_told_of_where_it_is_read_and_nowhere_else(leaf):
    decider, value, others = {
        "momentum": ("optimizer", "momentum", "gd,sgd,adam"),
        "batch_size": ("optimizer", "sgd", "gd,momentum,adam"),
        "subspace_dim": ("kind", "subspace", "line,chessboard,patches,band-limited"),
        **dict.fromkeys(("ambient_dim", "basis"), ("kind", "subspace", "line,chessboard")),
        **dict.fromkeys(("patches", "patch_size", "patch_dim"), ("kind", "patches", "line,chessboard,subspace")),
        "frequencies": ("kind", "band-limited", "line,chessboard,subspace,patches"),
        "radii": ("distribution", "circles", "gaussian,sphere,curve"),
        "spacing": ("distribution", "curve", "gaussian,sphere,spheres"),
    }.get(leaf, ("kind", "subspace", "line,chessboard"))
    default = {"samples": 20, "subspace_dim": 2}.get(leaf, getattr(getattr(read(""), leaves()[leaf]), leaf))
    for given in (value, f"{others},{value}", others):
        sweep = read("", f"{decider}={given}", *(["kind=subspace"] if decider == "distribution" else []))
        assert sweep.reads(leaf) == (given != others)
        assert (f"\n{leaf} = " in sweep.to_toml()) == sweep.reads(leaf)
        assert sweep.values(leaf) in ((default,), () if sweep.reads(leaf) else (None,))


def test_what_all_cells_read_is_always_written():
    told = read("", "trainable=all", "at_steps=1", "at_margins=0.1").to_toml()
    of_convolutions = {"kernel", "stride", "mixing", "padding", "layout"}
    others = {"momentum", "batch_size"} | of_convolutions | set(tables()["data"].model_fields)
    for leaf in set(leaves()) - others | {"kind"}:
        assert f"\n{leaf} = " in told


def test_a_field_that_an_axis_replaces_makes_no_difference():
    assert read("[network]\nwidth = 3\n", "width=5,7") == read("", "width=5,7")
    assert read("[network]\nwidth = 3\n[axes]\nwidth = [5, 7]\n") == read("", "width=5,7")
    assert "\nwidth = 100" not in read("", "width=5,7").to_toml()


def test_one_string_is_one_override():
    assert Sweep.from_toml(READY_MADE[0], "seed=0:5") == Sweep.from_toml(READY_MADE[0], ["seed=0:5"])


F32 = np.finfo(np.float32)
LIMITS = {  # leaf: numbers just inside, and the next ones outside
    **dict.fromkeys(("ambient_dim", "samples", "width", "patches", "patch_size"), ((1, 2**24), (0, 2**24 + 1))),
    "patch_dim": ((1, 8), (0, 9)),
    "frequencies": ((1, 10), (0, 11)),
    "redraws": ((0, 999), (-1, 1000)),
    "subspace_dim": ((1, 20), (0, 21)),
    "depth": ((1, 64), (0, 65)),
    "batch_size": ((1, 20), (0, 21)),
    **dict.fromkeys(("seed", "data_seed"), ((0, 2**32 - 1), (-1, 2**32))),
    "max_steps": ((0, 2**31 - 2), (-1, 2**31 - 1)),
    "attack_steps": ((1, 100_000), (0, 100_001)),
    "restarts": ((1, 10_000), (0, 10_001)),
    **dict.fromkeys(("learning_rate", "init_scale"), ((1.2e-38, 3.4e38), (0, -1.2e-38, 1.1e-38, 3.5e38, "inf", "nan"))),
    **dict.fromkeys(("weight_decay", "gap"), ((0, 1.2e-38, 3.4e38), (-1.2e-38, 1.1e-38, 3.5e38, "inf"))),
    "momentum": ((0, 1.2e-38, 0.9999999), (-0.1, 1.1e-38, 0.99999999, 1)),
    "stop_margin": (
        ("-inf", -3.4e38, -1.2e-38, 0, 1.2e-38, 3.4e38, "inf"),
        (-3.5e38, -1.1e-38, 1.1e-38, 3.5e38, "nan"),
    ),
}


@pytest.mark.parametrize("leaf", LIMITS)
def test_limits_hold_on_both_sides_of_each(leaf):
    decider = {"momentum": ["optimizer=momentum"], "batch_size": ["optimizer=sgd", "kind=subspace"]}.get(leaf)
    some = read_where(leaf) if leaves()[leaf] == "data" else ()
    decider = decider or [f"{name}={values[0]}" for name, values in (some[0] if some else {}).items()]
    decider += ["subspace_dim=1"] * (leaf == "ambient_dim")
    inside, outside = LIMITS[leaf]
    for value in inside:
        assert read("", *decider, f"{leaf}={value}").values(leaf) == (float(value),)
        assert read("", *decider, f"{leaf}={value},{inside[0] if value == inside[-1] else inside[-1]}").shape == (2,)
    for value in outside:
        for place, given in ((leaves()[leaf], value), ("axes", f"{value},{inside[0]}")):
            with pytest.raises(UserError) as refused:
                read("", *decider, f"{leaf}={given}")
            assert str(refused.value).startswith(f"command line: {place}.{leaf} = ")


def test_every_number_has_limits():
    values = {leaf: read("", "kind=subspace").values(leaf)[0] for leaf in leaves()}
    numbers = {leaf for leaf, value in values.items() if isinstance(value, int | float) and value is not False}
    # Limits of the first three are those of the data; of the others tests/test_own_data.py knows.
    assert numbers == set(LIMITS) | {"kernel", "stride", "mixing", "scale"}


@pytest.mark.parametrize("leaf", [leaf for leaf, (inside, _) in LIMITS.items() if isinstance(inside[0], float | str)])
def test_what_is_accepted_is_in_float32_what_it_is(leaf):
    """No number becomes 0, 1 or infinite there; and no number that stays what it is is refused."""
    decider = ["optimizer=momentum"] if leaf == "momentum" else []
    for exponent in range(-50, 51):
        for value in (10.0**exponent, 1 - 10.0 ** min(exponent, -1)):
            with np.errstate(over="ignore", under="ignore"):
                held = np.float32(value)
            good = F32.tiny <= held < (1 if leaf == "momentum" else np.inf)
            try:
                read("", *decider, f"{leaf}={value!r}")
                accepted = True
            except UserError:
                accepted = False
            assert accepted == good, value


def test_ranges_hold_their_start_and_not_their_stop():
    for start, stop in ((0, 1), (0, 3), (7, 9), (4294967290, 4294967296)):
        assert read("", f"seed={start}:{stop}").axes["seed"] == tuple(range(start, stop))
        assert read(f'[axes]\nseed = "{start}:{stop}"\n').axes["seed"] == tuple(range(start, stop))
    for bad in ("4:3", "3:3", "0:4294967297", "4294967296:4294967297"):
        with pytest.raises(UserError, match=r"axes\.seed"):
            read("", f"seed={bad}")


@pytest.mark.parametrize(
    ("leaf", "told", "table", "expected"),
    [
        ("init_scale", "log:0.001:1:7", "{log = [1e-3, 1], n = 7}", np.float32(10.0) ** np.arange(-3, 0.1, 0.5)),
        ("init_scale", "log:1:0.125:4", "{log = [1, 0.125], n = 4}", [1, 0.5, 0.25, 0.125]),
        ("weight_decay", "lin:0:0.003:4", "{lin = [0.0, 0.003], n = 4}", [0, 0.001, 0.002, 0.003]),
        ("width", "log:10:1000:5", "{log = [10, 1000], n = 5}", [10, 32, 100, 316, 1000]),
        ("width", "log:1:4:9", "{log = [1, 4], n = 9}", [1, 2, 3, 4]),  # whole numbers, none twice
        ("seed", "5:50:20", '"5:50:20"', [5, 25, 45]),
    ],
)
def test_an_axis_told_by_its_ends(leaf, told, table, expected):
    """However it is written, and read back from the sweep's own file; numbers are float32's, and as short as can be."""
    sweep = read("", f"{leaf}={told}")
    values = sweep.axes[leaf]
    np.testing.assert_allclose(values, expected, rtol=1e-6)
    assert read(f"[axes]\n{leaf} = {table}\n") == read(sweep.to_toml()) == sweep
    assert Sweep(axes={leaf: list(values)}).axes[leaf] == values
    assert all(isinstance(value, int) or str(np.float32(value)) == repr(value) for value in values)


def test_only_three_or_more_whole_numbers_in_a_row_are_written_as_a_range():
    def written(override: str) -> object:
        return tomllib.loads(read("", override).to_toml())["axes"].popitem()[1]

    assert written("seed=4,5") == [4, 5]
    assert written("seed=4,5,6") == "4:7"
    assert written("seed=0:3") == "0:3"
    assert written("seed=0:100") == "0:100"
    assert written("seed=4,5,7") == [4, 5, 7]
    assert written("seed=4,5,6,6000") == [4, 5, 6, 6000]
    assert written("seed=6,5,4") == [6, 5, 4]
    assert written("seed=0,2,4") == [0, 2, 4]
    assert written("init_scale=1:4") == [1.0, 2.0, 3.0]
    assert written("loss=logistic,exponential") == ["logistic", "exponential"]


def test_as_many_cells_as_are_possible(monkeypatch):
    for module in (sweep_module, spacing):
        monkeypatch.setattr(module, "MOST_VALUES", 12)
    assert read("", "seed=0:12").cells == 12
    assert read("", "seed=0:6", "width=3,5").cells == 12
    with pytest.raises(UserError, match=r"axes\.seed = '0:13': 13 values; at most 12 are possible"):
        read("", "seed=0:13")
    with pytest.raises(UserError, match=r"axes\.seed: 14 cells with the other axes; at most 12 are possible"):
        read("", "width=3,5", "seed=0:7")


def test_columns_are_the_coordinates_of_the_grid():
    """Each cell has the values at its place in the product of the axes, whatever cells are asked for."""
    sweep = read("[axes]\ninit = ['torch', 'theory']\nwidth = [9, 7, 8]\nseed = [4, 2]\ninit_scale = [2, 1, 3]\n")
    product = list(itertools.product(*sweep.axes.values()))
    assert sweep.cells == len(product)
    for cells in (np.arange(36), np.array([35, 0, 17, 17, 4]), np.array([], int)):
        for place, axis in enumerate(sweep.axes):
            assert sweep.column(axis, cells).tolist() == [product[cell][place] for cell in cells]
        assert sweep.column("max_steps", cells).tolist() == [40_000] * len(cells)
    assert sweep.values("momentum") == (0.9,)
    single = read("[axes]\nseed = [7]\nstop_margin = [0.0]\n")  # an axis of one value, and one of 0
    assert (single.values("seed"), single.values("stop_margin")) == ((7,), (0.0,))
    assert single.column("seed", np.array([0, 0])).tolist() == [7, 7]


DIMS = [  # values of ambient_dim and of subspace_dim, in the order given
    ([2], [1]),
    ([3], [1]),
    ([3], [2]),
    ([1], [1]),
    ([2], [2]),
    ([3], [3]),
    ([4], [2]),
    ([9, 2], [1]),
    ([2, 9], [1]),
    ([2, 3], [1, 2]),
    ([3, 2], [2, 1]),
    ([2, 3], [2, 1]),
]


@pytest.mark.parametrize(("ambient", "dims"), DIMS)
@pytest.mark.parametrize("region", ["off", "on", "full"])
def test_other_norms_are_refused_in_rotated_regions_of_two_dimensions_or_more(ambient, dims, region):
    """A random subspace has no coordinates in which L∞ is what it is in space, unless the region is a line or all."""
    sizes = [{"off": d - k, "on": k, "full": 0}[region] for d in ambient for k in dims]
    axes = [f"ambient_dim={','.join(map(str, ambient))}", f"subspace_dim={','.join(map(str, dims))}"]

    def refused(*overrides: str) -> bool:
        try:
            read("", "kind=subspace", f"regions={region}", *axes, *overrides)
        except UserError as error:
            message = str(error)
            assert message.startswith("command line: measure.norms = [")
            assert f"cannot be measured in region {region!r} of a subspace off the coordinate axes" in message
            return True
        return False

    for norms in ("linf", "l1", "l2,linf", "l1,linf,l2"):
        assert refused(f"norms={norms}") == any(size > 1 for size in sizes)
        assert not refused(f"norms={norms}", "basis=axis-aligned")
        for basis in ("random,axis-aligned", "axis-aligned,random"):
            assert refused(f"norms={norms}", f"basis={basis}") == any(size > 1 for size in sizes)
    assert not refused("norms=l2")


def test_every_region_is_looked_at_and_the_one_that_fails_is_named():
    settings = ("kind=line,subspace", "ambient_dim=3", "norms=l2,linf")
    read("", *settings, "regions=off,full", "subspace_dim=2,3")
    for regions in ("on,full,off", "off,full,on", "full,on"):
        with pytest.raises(UserError, match=r"'linf' cannot be measured in region 'on'.* leave 'on' out"):
            read("", *settings, f"regions={regions}", "subspace_dim=2")
    for kind in ("line", "chessboard", "line,chessboard"):  # whose regions are lines or of coordinate axes
        read("", f"kind={kind}", "norms=linf,l1,l2")


def test_zero_among_spaced_values_is_zero():
    assert read("", "stop_margin=lin:-0.1:0.2:4").axes["stop_margin"] == (-0.1, 0.0, 0.1, 0.2)
