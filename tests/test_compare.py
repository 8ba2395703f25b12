"""Two results folders compared: with NumPy's own paired medians, and in words what was compared with what."""

from pathlib import Path

import numpy as np
import pytest
from shell import TINY, read
from test_cli import Command, assert_refused, command  # noqa: F401

from subspace_adv import Comparison, compare, open_results, plan, run
from subspace_adv.comparison import MADE_WITH
from subspace_adv.manifest import describe
from subspace_adv.store import Store
from subspace_adv.tables import median_interval


@pytest.fixture(scope="module")
def decayed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny sweep with a remedy, one width, and other seeds of which some are the tiny one's."""
    folder = tmp_path_factory.mktemp("results") / "decayed"
    run(read(TINY, "weight_decay=0.1", "seed=7:15", "width=5", "init_scale=0.5,0.25"), folder)
    return folder


@pytest.fixture
def made(tmp_path):
    """Makes a folder of a sweep of which nothing has been computed."""

    def make(name: str, *overrides: str, text: str = TINY) -> Path:
        Store.create(tmp_path / name, describe(plan(read(text, *overrides)))).close()
        return tmp_path / name

    return make


def settings(found: Comparison) -> dict[str, tuple[str, str]]:
    return {f"{one.table}.{one.field}": (one.a, one.b) for one in found.differences if one.table != MADE_WITH}


def test_a_folder_gains_nothing_on_itself(tiny):
    found = compare(tiny, tiny)
    assert found.differences == [] and found.paired == ["networks are paired by seed (12 in both)"]
    arms = [{"width": width, "init_scale": scale} for width in (3, 5) for scale in (1.0, 0.5)]
    assert [gain.arm for gain in found.gains] == arms
    for gain in found.gains:
        assert gain.pairs == 12 and gain.gains.keys() == {"gradient_norm_off", "distance_off_l2_upper"}
        assert set(gain.gains.values()) == {(0, 0, 0)}


def test_gains_are_the_medians_of_differences_of_networks_of_one_seed(tiny, decayed):
    found = compare(tiny, decayed)
    assert settings(found) == {
        "network.width": ("[3, 5]", "5"),
        "network.init_scale": ("[1.0, 0.5]", "[0.5, 0.25]"),
        "network.seed": ("0:12", "7:15"),
        "training.weight_decay": ("0.0", "0.1"),
    }
    assert found.paired == [
        "networks are paired by seed (5 in both)",
        "of init_scale both have 0.5 alone",
        "width varies in A alone, and is compared at 5, as B has it",
    ]
    [gain] = found.gains
    assert gain.arm == {"width": 5, "init_scale": 0.5} and gain.pairs == 5
    before = open_results(tiny).sel(width=5, init_scale=0.5, seed=range(7, 12))
    after = open_results(decayed).sel(width=5, init_scale=0.5, seed=range(7, 12))
    for name, told in gain.gains.items():
        per_network = [one[name].transpose("seed", "point").values.astype(float) for one in (before, after)]
        with np.errstate(invalid="ignore"):
            differences = np.subtract(*(np.median(values, axis=1) for values in per_network[::-1]))
        known = differences[~np.isnan(differences)]
        assert told.median == pytest.approx(np.median(known), rel=1e-6)
        assert (told.low, told.high) == pytest.approx(median_interval(known)[1:], rel=1e-6)
    assert gain.gains["gradient_norm_off"].median != 0


def test_the_other_way_round_gains_are_losses(tiny, decayed):
    [there], [back] = (compare(*pair).gains for pair in ((tiny, decayed), (decayed, tiny)))
    assert there.arm.items() == back.arm.items() and there.pairs == back.pairs
    for name, gain in there.gains.items():
        assert back.gains[name] == pytest.approx((-gain.median, -gain.high, -gain.low))


def test_the_order_of_axes_is_told_and_does_not_matter(tmp_path, tiny):
    text = TINY.replace("width = [3, 5]\n", "").replace(
        "init_scale = [1.0, 0.5]", "init_scale = [0.5, 1.0]\nwidth = [5, 3]"
    )
    run(read(text), tmp_path / "out")
    found = compare(tiny, tmp_path / "out")
    assert settings(found) == {
        "network.width": ("[3, 5]", "[5, 3]"),
        "network.init_scale": ("[1.0, 0.5]", "[0.5, 1.0]"),
        "axes.dimensions": ("width × seed × init_scale", "seed × init_scale × width"),
    }
    assert [gain.pairs for gain in found.gains] == [12] * 4
    assert all(set(gain.gains.values()) == {(0, 0, 0)} for gain in found.gains)


def test_a_setting_that_varies_in_one_folder_alone_is_compared_at_each_value(made):
    fixed, varied = made("fixed", "width=3", "init_scale=1"), made("varied", "width=3", "init_scale=0.5,0.25")
    found = compare(fixed, varied)
    told = "init_scale varies in B alone, and each of its values is compared with A, where it is 1.0"
    assert told in found.paired
    assert [gain.arm for gain in found.gains] == [{"init_scale": 0.5}, {"init_scale": 0.25}]
    assert [gain.pairs for gain in found.gains] == [0, 0] and np.isnan(found.gains[0].gains["gradient_norm_off"]).all()
    again = compare(varied, made("another", "width=3", "init_scale=0.25"))
    assert "init_scale varies in A alone, and is compared at 0.25, as B has it" in again.paired
    assert [gain.arm for gain in again.gains] == [{"init_scale": 0.25}]


def test_axes_of_one_value_are_settings(made):
    """As the overrides of a command line leave them: the comparison that is asked for most."""
    found = compare(made("a", "init_scale=1", "width=3"), made("b", "init_scale=0.5", "width=3"))
    assert settings(found) == {"network.init_scale": ("1.0", "0.5")}
    assert [gain.arm for gain in found.gains] == [{}]


def test_long_axes_that_begin_alike_are_told_apart(made):
    scales = [round(0.01 * i, 2) for i in range(1, 31)]
    other = [*scales[:20], 0.555, *scales[21:]]
    a, b, longer = (
        made(name, f"init_scale={','.join(map(str, values))}")
        for name, values in (("a", scales), ("b", other), ("longer", [*scales, 0.9]))
    )
    assert settings(compare(a, b)) == {"network.init_scale": ("0.21 as value number 21", "0.555 there")}
    assert settings(compare(a, longer)) == {"network.init_scale": ("30 values", "31 values")}
    assert len(compare(a, b).gains) == 2 * 29


def test_settings_that_move_together_are_matched_by_their_values(tiny, monkeypatch):
    """A dimension that is no setting itself: its index tells nothing, the settings along it do."""
    from subspace_adv import comparison

    whole = open_results(tiny)
    stacked = whole.stack(group=["width", "init_scale"]).transpose("seed", "group", ...)
    places = [(name, stacked[name].values) for name in ("width", "init_scale")]
    stacked = stacked.drop_vars(["group", "width", "init_scale"]).assign_coords(
        group=range(4), **{name: ("group", values) for name, values in places}
    )
    other = stacked.isel(group=[2, 0]).assign_coords(group=[0, 1])
    given = iter([stacked, other])
    monkeypatch.setattr(comparison, "dataset_of", lambda _: next(given))
    found = compare(tiny, tiny)
    arms = [{"width": 3, "init_scale": 1.0}, {"width": 5, "init_scale": 1.0}]
    assert [gain.arm for gain in found.gains] == arms
    assert all(set(gain.gains.values()) == {(0, 0, 0)} for gain in found.gains)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["seed=100:112"], "nothing can be paired: A and B share no seed; they have 0:12 and 100:112"),
        (["width=7,9"], "nothing can be paired: A and B share no value of width; they have [3, 5] and [7, 9]"),
        (
            ["kind=subspace", "data_seed=0:3"],
            "nothing can be paired: data_seed is an axis of B alone, and the other does not read it",
        ),
    ],
)
def test_what_cannot_be_paired_is_told_in_one_sentence(tiny, made, command, overrides, told):  # noqa: F811
    other = made("other", *overrides)
    found = compare(tiny, other)
    assert found.paired == [told] and found.gains == [] and found.differences
    status, out, err = command("compare", tiny, other)
    assert (status, err) == (0, "") and out.splitlines()[-1] == told


def test_versions_machine_and_commit_are_told_beside_settings(tiny, made, command, monkeypatch):  # noqa: F811
    other = made("other")
    opened = Store.open

    def elsewhere(folder: Path) -> Store:
        store = opened(folder)
        if Path(folder) == other:
            monkeypatch.setitem(store.manifest["versions"], "jax", "0.0.1")
            monkeypatch.setitem(store.manifest["begun"], "commit", "abc")
        return store

    monkeypatch.setattr(Store, "open", elsewhere)
    told = {one.field: one.b for one in compare(tiny, other).differences if one.table == MADE_WITH}
    assert told == {"jax": "0.0.1", "commit": "abc"}
    status, out, err = command("compare", tiny, other)
    assert (status, err) == (0, "")
    assert "made with.jax" in out and "no settings differ" in out


def test_the_command_tells_settings_gains_and_what_was_paired(tiny, decayed, command: Command):  # noqa: F811
    status, out, err = command("compare", tiny, decayed)
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[:2] == [f"A  {tiny}", f"B  {decayed}"]
    assert ["training.weight_decay", "0.0", "0.1"] in [line.split() for line in lines]
    assert "networks are paired by seed (5 in both)" in lines
    begin = next(i for i, line in enumerate(lines) if line.startswith("width  init_scale  pairs"))
    gain = compare(tiny, decayed).gains[0].gains["gradient_norm_off"]
    assert lines[begin + 1].split()[:6] == [
        "5",
        "0.5",
        "5",
        f"{gain.median:+.3g}",
        f"[{gain.low:+.3g},",
        f"{gain.high:+.3g}]",
    ]
    status, out, _ = command("compare", tiny, tiny)
    assert status == 0 and "no settings differ" in out and out.count("+0 [+0, +0]") == 8


def test_folders_that_are_none_are_refused(tmp_path, tiny, command):  # noqa: F811
    for pair in ((tiny, tmp_path), (tmp_path / "missing", tiny)):
        assert_refused(command("compare", *pair), str(next(one for one in pair if one != tiny)))
    assert_refused(command("compare", tiny), "B requires an argument")
