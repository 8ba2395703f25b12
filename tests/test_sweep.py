"""The sweep file: what is read, how overrides are applied, and what is refused and in which words."""

import math
import os
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from shell import read, write

from subspace_adv import Sweep, UserError
from subspace_adv.sweep import nearest

READY_MADE = sorted((Path(__file__).parents[1] / "sweeps").glob("*.toml"))

SUBSPACE = '[data]\nkind = "subspace"\n'

# name: (sweep file, overrides, (start of the message, more of it …))
BAD: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "unknown table": ("[optimiser]\n", (), ("FILE: optimiser: no such table", "known: axes, data, measure")),
    "misspelt table": ("[trainig]\n", (), ("FILE: trainig: no such table", "did you mean 'training'?")),
    "field outside its table": ("width = 5\n", (), ("FILE: width: no such table", "it belongs in [network]")),
    "field in another table": ("[data]\nwidth = 5\n", (), ("FILE: data.width: no such field", "belongs in [network]")),
    "unknown field": ("[network]\nqqq = 5\n", (), ("FILE: network.qqq: no such field", "known: init, init_scale")),
    "misspelt field": ("[network]\nwidht = 5\n", (), ("FILE: network.widht: no such field", "did you mean 'width'?")),
    "unknown axis": ("[axes]\nqqq = [1]\n", (), ("FILE: axes.qqq: no such axis", "known: ambient_dim, attack_steps")),
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
        ("FILE: network.init = 'qqq': must be 'theory', 'paper-code' or 'torch'",),
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
    "list for a scalar": ("[network]\nwidth = [5]\n", (), ("FILE: network.width = [5]: must be a whole number",)),
    "list for a scalar on an axis": (
        "[axes]\nwidth = [[5]]\n",
        (),
        ("FILE: axes.width = [5]: must be a whole number",),
    ),
    "scalar for a list": ("[measure]\nregions = 'off'\n", (), ("FILE: measure.regions = 'off': must be a list",)),
    "empty list": ("[measure]\nregions = []\n", (), ("FILE: measure.regions = []: must have at least 1 item",)),
    "table for a scalar": ("[network.width]\nx = 1\n", (), ("FILE: network.width = {'x': 1}: must be a whole number",)),
    "scalar for a table": ("network = 3\n", (), ("FILE: network = 3: must be a table, [network]",)),
    "scalar for a table with an override": ("network = 3\n", ("width=3",), ("FILE: network = 3: must be a table",)),
    "scalar for the axes with an override": ("axes = 3\n", ("seed=0:3",), ("FILE: axes = 3: must be a table, [axes]",)),
    "list of tables": ("[[network]]\nwidth = 3\n", (), ("FILE: network = [{'width': 3}]: must be a table",)),
    "scalar for an axis": ("[axes]\nwidth = 3\n", (), ("FILE: axes.width = 3: must be a list or a range",)),
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
        ("command line: network.init_scale = 1e+39: must be less than",),
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
    "empty range": ("", ("seed=5:5",), ('command line: axes.seed = "5:5": no values; stop must be over start',)),
    "range out of bounds": ("", ("width=0:5",), ("command line: axes.width = 0: must be greater than or equal to 1",)),
    "range of names": ("", ("init=0:3",), ("command line: axes.init = 0: must be 'theory'",)),
    "malformed range": ("[axes]\nseed = '0:'\n", (), ("FILE: axes.seed = '0:': must be a list or a range",)),
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
        ('command line: axes.seed = "0:100000000": 100,000,000 values; at most 10,000,000 are possible',),
    ),
    "grid beyond memory": (
        "",
        ("seed=0:1000000", "width=1:21"),
        ("command line: axes.seed: 20,000,000 cells with the other axes",),
    ),
    "axis that nothing reads": (
        "",
        ("samples=3,4",),
        ("command line: axes.samples: changes nothing", "kind = 'subspace'"),
    ),
    "axis that no optimizer reads": (
        "",
        ("momentum=0.1,0.9",),
        ("command line: axes.momentum", "optimizer = 'momentum'"),
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
    assert len(message) < 500
    assert message.startswith(start.replace("FILE", str(path)))
    for some in words:
        assert some in message


def test_files_that_cannot_be_read(tmp_path):
    def refusal(path: Path) -> str:
        with pytest.raises(UserError) as refused:
            Sweep.from_toml(path)
        assert str(refused.value).startswith(f"{path}: ")
        return str(refused.value)

    good = write(tmp_path, "", "quickstart.toml")
    assert "no such file; did you mean 'quickstart.toml'?" in refusal(tmp_path / "quikstart.toml")
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


def test_a_sweep_is_frozen():
    sweep = read("[axes]\nseed = [1, 2]\n")
    with pytest.raises(ValidationError, match="frozen"):
        sweep.name = "other"
    with pytest.raises(ValidationError, match="frozen"):
        sweep.network.width = 5


def test_nearest():
    assert nearest("widht", ["width", "seed"]) == "; did you mean 'width'?"
    assert nearest("qqq", ["width", "seed"]) == "; known: seed, width"
    assert nearest("qqq", ["width"], otherwise_all=False) == ""
    assert nearest("qqq", []) == ""
