"""Every example and every script of docs/howto.md runs as it stands, and prints what it should."""

import importlib
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import test_architecture
from shell import call

ROOT = Path(__file__).parent.parent
HOWTO = (ROOT / "docs/howto.md").read_text(encoding="utf-8")
SCRIPTS = {
    section.partition("\n")[0]: re.findall(r"^```python\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    for section in HOWTO.split("\n## ")[1:]
}


def printed(*arguments: str | Path, cwd: Path) -> str:
    status, out, err = call(sys.executable, "-W", "error", *arguments, cwd=cwd)
    assert status == 0, err
    return out


def script(section: str, folder: Path) -> str:
    """What the one script of a section prints."""
    [text] = SCRIPTS[section]
    path = folder / "script.py"
    path.write_text(text, encoding="utf-8")
    return printed(path, cwd=folder)


def numbers(line: str) -> np.ndarray:
    return np.array(re.findall(r"(?:-?\d+\.\d*(?:e[+-]\d+)?|\binf\b|-?\b\d+\b)", line), np.float64)


def line_of(out: str, begin: str) -> str:
    [line] = [line for line in out.splitlines() if line.startswith(begin)]
    return line.removeprefix(begin)


def test_every_example_and_section_is_tested_here():
    assert {path.name for path in (ROOT / "examples").glob("*.py")} == {"one_network.py", "read_results.py", "panel.py"}
    sections = ["A kind of data", "Data of your own", "A model", "A flax network of your own"]
    sections += ["A network trained elsewhere", "An optimizer", "A norm", "An attack"]
    assert list(SCRIPTS) == [*sections, "A measure", "During training"]
    assert all(len(found) == 1 for found in SCRIPTS.values())


def section(title: str) -> str:
    """A section of docs/architecture.md."""
    return (ROOT / "docs/architecture.md").read_text(encoding="utf-8").split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_the_import_order_is_told_as_it_is():
    told = re.findall(r"^    (\w+)(/?) +(.+)", section("Import order"), re.MULTILINE)
    assert [name for name, _, _ in told] == test_architecture.ORDER
    assert {name for name, folder, _ in told if folder} == set(test_architecture.PARTS)
    parts = {name: phrase.split("      ")[-1].split(" > ") for name, folder, phrase in told if folder}
    assert parts == test_architecture.PARTS


@pytest.mark.parametrize("title", ["A cell's life", "Where to find things"])
def test_what_is_told_to_be_somewhere_is_there(title):
    names = re.findall(r"`([a-z_]+(?:\.\w+)+)`", section(title))
    assert len(names) > 8
    for name in names:
        outer, *rest = name.split(".")
        module = importlib.import_module(f"subspace_adv.{outer}")
        for part in rest:
            if hasattr(module, part):
                module = getattr(module, part)
            else:
                module = importlib.import_module(f"{module.__name__}.{part}")


def test_links_of_the_guides_lead_somewhere():
    for name in ("README.md", "CONTRIBUTING.md", "docs/architecture.md", "docs/howto.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        for path, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)#?([^)\s]*)\)", text):
            target = (ROOT / name).parent / path if path else ROOT / name
            assert target.exists(), (name, path)
            if anchor:
                titles = re.findall(r"^#+ (.+)", target.read_text(encoding="utf-8"), re.MULTILINE)
                assert anchor in {title.lower().replace(" ", "-") for title in titles}, (name, anchor)


@pytest.mark.slow
def test_the_network_of_the_readme_is_bracketed(tmp_path):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    [text] = [
        text for text in re.findall(r"^```python\n(.*?)^```", readme, re.DOTALL | re.MULTILINE) if "bracket(" in text
    ]
    (tmp_path / "script.py").write_text(text, encoding="utf-8")
    assert (numbers(printed(tmp_path / "script.py", cwd=tmp_path)) > 0).sum() == 4


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_an_example_begins_with_what_it_does_and_how_it_is_run(path):
    text = path.read_text(encoding="utf-8")
    assert re.match(rf'"""[A-Z].*\.\n\nuv run examples/{path.name}\b', text)
    assert path.name != "one_network.py" or len(text.splitlines()) <= 30


@pytest.mark.slow
def test_one_network_is_attacked_no_nearer_than_is_certified(tmp_path):
    out = printed(ROOT / "examples/one_network.py", cwd=tmp_path)
    assert line_of(out, "training: ").startswith("converged after")
    found, along = line_of(out, "attack: ").split("off the plane, along")
    distances, radii = numbers(found), numbers(line_of(out, "certificate: "))
    assert distances.shape == radii.shape == (4,) and (radii <= distances + 1e-4).all() and np.isfinite(distances[0])
    move = numbers(along)
    assert not move[:2].any() and np.isclose(np.abs(move[2]), distances[0])
    lower, upper = np.split(numbers(line_of(out, "bracket on the plane: ")), 2)
    # The points are as far from one another as √2, and every other one has the other label.
    assert (lower > 0).all() and (lower <= upper + 1e-4).all() and (upper < np.sqrt(2)).all()


@pytest.mark.slow
def test_results_are_read_from_a_small_sweep_and_from_a_folder(tmp_path):
    import subspace_adv as sa

    out = printed(ROOT / "examples/read_results.py", cwd=tmp_path)
    assert line_of(out, "axes: ") == "{'init_scale': 2, 'seed': 10}"
    assert float(line_of(out, "largest difference from those recorded: ")) < 1e-5
    standard, small = (numbers(line_of(out, scale))[0] for scale in ("1.0 ", "0.5 "))
    assert small < standard
    sweep = sa.Sweep("own", network={"width": 50}, measure={"regions": ["off"]}, axes={"seed": range(3)})
    gradient = sa.run(sweep, tmp_path / "own")["gradient_norm_off"].values
    out = printed(ROOT / "examples/read_results.py", tmp_path / "own", cwd=tmp_path)
    assert line_of(out, "axes: ") == "{'seed': 3}"
    assert float(line_of(out, "largest difference from those recorded: ")) < 1e-5
    told = out.splitlines()[out.splitlines().index("median of the gradient off the subspace, by arm:") + 1]
    assert np.isclose(float(told), np.median(np.median(gradient, axis=1)))


@pytest.mark.slow
def test_a_panel_is_drawn_where_it_is_told(tmp_path):
    from PIL import Image

    out = printed(ROOT / "examples/panel.py", "own.png", cwd=tmp_path)
    standard, small = (
        numbers(line_of(out, f"{arm} initialization: median distance to a flip off the line"))[0]
        for arm in ("standard", "small")
    )
    assert 0 < standard < small
    with Image.open(tmp_path / "own.png") as image:
        assert image.size == (1050, 570) and len(image.convert("RGB").getcolors(2**20) or []) > 50


@pytest.mark.slow
def test_a_kind_of_data_can_be_added_as_told(tmp_path):
    out = script("A kind of data", tmp_path)
    for radius in (1.0, 2.0):
        assert numbers(line_of(out, f"radius {radius}: ")).tolist() == [6, radius, radius, 0]


@pytest.mark.slow
def test_data_of_ones_own_are_a_file(tmp_path):
    """Projected onto a plane the law is known at all points of all networks, and nowhere where they are kept."""
    project, keep = script("Data of your own", tmp_path).splitlines()
    assert project.startswith("project: rank 2, ") and project.endswith("law known at 120 points")
    assert keep.startswith("keep: rank 6, ") and keep.endswith("law known at 0 points")
    assert all(0 < numbers(line)[1] < np.inf for line in (project, keep))


@pytest.mark.slow
def test_a_model_can_be_added_as_told(tmp_path):
    out = script("A model", tmp_path)
    assert numbers(line_of(out, "weights of the second layer ")).tolist() == [2, 4, 8, 8]
    plain, decayed = numbers(out.splitlines()[-1])
    assert 0 < plain < decayed < np.inf


@pytest.mark.slow
def test_an_optimizer_can_be_added_as_told(tmp_path):
    moved = numbers(line_of(script("An optimizer", tmp_path), "moved by "))
    np.testing.assert_allclose(moved, 4 * [0.01 / np.sqrt(0.1)], atol=2e-5)


@pytest.mark.slow
def test_a_norm_can_be_added_as_told(tmp_path):
    flips, told = script("A norm", tmp_path).split(" flips, L3 over L2: ")
    assert int(flips) > 5
    np.testing.assert_allclose(numbers(told), 3 * [2 ** (-1 / 6)], atol=2e-5)


@pytest.mark.slow
def test_an_attack_can_be_added_as_told(tmp_path):
    out = script("An attack", tmp_path)
    for seed in range(2):
        assert line_of(out, f"seed {seed}: at ").startswith("7 of 7 points")


@pytest.mark.slow
def test_a_measure_can_be_added_as_told(tmp_path):
    out = script("A measure", tmp_path)
    recorded, counted = (
        numbers(line_of(out, f"number of neurons active at the point by {by}:")) for by in ("the sweep", "NumPy")
    )
    assert len(recorded) == 7 and recorded.tolist() == counted.tolist() and 0 < recorded.max() <= 3


@pytest.mark.slow
def test_a_network_trained_elsewhere(tmp_path):
    """Its flips are flips where it was trained."""
    out = script("A network trained elsewhere", tmp_path)
    found, flipped = numbers(out.splitlines()[0])
    assert 0 < found == flipped <= 20
    assert "network.npz: 100% of 20 points classified correctly" in out
    *_, certified, attacked = re.split(r"\s{2,}", re.findall(r"l2 +off.*", out)[0])
    assert 0 < float(certified) <= float(attacked)


@pytest.mark.slow
def test_a_flax_network_of_ones_own(tmp_path):
    """What it is applied to yields what was recorded."""
    told = script("A flax network of your own", tmp_path)
    assert "weights of three networks (3, 2, 6)" in told
    first, recorded = (
        [float(number) for number in re.findall(r"-?\d+\.\d*", told.split(words)[1].split("]")[0])]
        for words in ("outputs of the first", "as recorded")
    )
    assert len(first) == 7 and first == pytest.approx(recorded, abs=0.011)


@pytest.mark.slow
def test_networks_are_looked_at_during_training(tmp_path):
    """The off gradient shrinks as its weights decay, and is as predicted."""
    out = script("During training", tmp_path)
    rows = [numbers(line_of(out, f"at step {step}: ")) for step in ("0", "10", "100", "inf")]
    for measured, predicted in rows:
        assert measured == pytest.approx(predicted, rel=0.05)
    first, second = numbers(line_of(out, "steps to a margin of 0 and of 0.5: "))
    assert 1 <= first < second <= 1000
    recorded, computed = (numbers(line_of(out, f"outputs at step 10, {by}: ")) for by in ("recorded", "by NumPy"))
    assert len(recorded) == 6 and np.abs(recorded).max() > 0.001
    np.testing.assert_allclose(recorded, computed, atol=0.0011)
