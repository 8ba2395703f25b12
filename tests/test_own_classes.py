"""Networks of a class that is the user's own: run, read again with and without it, and refused in one line."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from shell import COMMAND, TINY, call, read

from subspace_adv import Networks, Sweep, UserError, load_networks, load_points, open_results, plan, run
from subspace_adv.manifest import describe
from subspace_adv.models import module as own
from subspace_adv.settings import leaves
from subspace_adv.store import Store
from subspace_adv.streams import training_keys

# Imported here under one name only, so that other processes meet it anew.
FILE = """
import flax.linen as nn
import jax
import jax.numpy as jnp


class Waves(nn.Module):
    width: int = 8

    @nn.compact
    def __call__(self, x):
        h = jnp.sin(nn.Dense(self.width, bias_init=nn.initializers.normal(0.5))(x))
        return nn.Dense(1)(nn.relu(h))


class Chain(nn.Module):
    depth: int = 1

    @nn.compact
    def __call__(self, x):
        for _ in range(self.depth):
            x = nn.relu(nn.Dense(4)(x))
        return nn.Dense(1, bias_init=nn.initializers.normal(0.5))(x)[0]


class Fixed(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(x)


class Two(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(x)


class Counting(nn.Module):
    @nn.compact
    def __call__(self, x):
        self.variable("batch_stats", "mean", jnp.zeros, 2)
        return nn.Dense(1)(x)


class Nothing(nn.Module):
    def __call__(self, x):
        return jnp.sum(x)


class Broken(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(x) @ jnp.ones((3, 3))


class Needy(nn.Module):
    hidden: int

    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(x)


class Steps(nn.Module):
    @nn.compact
    def __call__(self, x):
        return jnp.sum(self.param("steps", nn.initializers.ones, (2,)) * x)


class Whole(nn.Module):
    @nn.compact
    def __call__(self, x):
        return (nn.Dense(1)(x) > 0).astype(int)


class Dotted(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(1, name="a.b")(x)


class Empty(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(x) + self.param("e", nn.initializers.ones, (0,)).sum()


class Exiting(nn.Module):
    @nn.compact
    def __call__(self, x):
        raise SystemExit("bye")


class Picky(nn.Module):
    width: int = 8

    def __post_init__(self):
        raise ValueError("no")


class SingleOnly(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(nn.relu(jax.lax.add(nn.Dense(5)(x), jnp.ones(5, jnp.float32))))


class OwnArrays(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(nn.relu(jax.lax.add(nn.Dense(5)(x), jnp.ones(5))))


class Single(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(1, dtype=jnp.float32)(nn.relu(nn.Dense(4, dtype=jnp.float32)(x)))


class Brain(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(1, dtype=jnp.bfloat16)(nn.relu(nn.Dense(4, dtype=jnp.bfloat16)(x)))


class Groups(nn.Module):
    @nn.compact
    def __call__(self, x):
        h = nn.relu(nn.Conv(4, (3,))(x[:, None]))
        return nn.Dense(1)(nn.relu(nn.Conv(4, (3,), feature_group_count=2)(h)).ravel())


Plain = dict
FUNCTION = jnp.sum
TABLE = {number: "a long table of numbers" for number in range(100)}
"""
NAME = "wavy_nets"
SWEEP = f"""
name = "own"
[data]
kind = "line"
[network]
architecture = "{NAME}:Waves"
[training]
learning_rate = 0.1
max_steps = 40
[measure]
regions = ["off"]
attack_steps = 4
restarts = 2
[axes]
seed = "0:6"
width = [5]
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory with the file of classes, and nothing of it imported before or after."""
    found = tmp_path_factory.mktemp("own")
    (found / f"{NAME}.py").write_text(FILE)
    yield found
    sys.modules.pop(NAME, None)
    for name in [name for name in own._classes if name.startswith(NAME)]:
        del own._classes[name]


@pytest.fixture(autouse=True)
def there(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


@pytest.fixture(scope="module")
def folder(place: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        run(read(SWEEP), place / "results")
    return place / "results"


def outputs(params: dict, x: np.ndarray) -> np.ndarray:
    """Of `Waves`, in float64."""
    first, head = (params[f"Dense_{i}"] for i in range(2))
    h = np.sin(x @ np.float64(first["kernel"]) + first["bias"])
    return (np.maximum(h, 0) @ np.float64(head["kernel"]) + head["bias"])[..., 0]


def test_networks_of_a_class_are_trained_measured_and_loaded_with_it(folder):
    waves = sys.modules[NAME].Waves
    dataset, points = open_results(folder), load_points(folder, seed=0, width=5)
    assert dataset.attrs["architecture"] == f"{NAME}:Waves"
    assert (dataset["status"] > 0).all() and (dataset["steps"] > 0).all()
    networks = load_networks(folder, module=waves)
    assert isinstance(networks, Networks) and networks.module == waves(5)
    assert networks.params["Dense_0"]["kernel"].shape == (6, 1, 2, 5)
    for seed in range(6):
        one = load_networks(folder, module=waves, width=5, seed=seed)
        expected = outputs(one.params, points.x)
        np.testing.assert_allclose(dataset["output"].sel(width=5, seed=seed), expected, rtol=1e-5, atol=1e-6)
        x = np.float32(np.random.default_rng(0).standard_normal((2, 4, 2)))
        np.testing.assert_allclose(one.apply(x), outputs(one.params, x), rtol=1e-4, atol=1e-5)
    upper, lower = (dataset[f"distance_off_l2_{side}"] for side in ("upper", "lower"))
    assert not lower.where(upper > 0, 0).any() and (np.isfinite(upper) & (upper > 0)).any()
    assert lower.attrs["long_name"].endswith(f"; no certificate, and so 0, for architecture {NAME}:Waves")
    for name in [name for name in dataset.data_vars if str(name).startswith("predicted")]:
        assert np.isnan(dataset[name]).all()


@pytest.mark.slow
def test_a_class_of_layers_with_relus_between_is_certified(place, tmp_path):
    run(read(SWEEP, f"architecture={NAME}:Chain", "seed=0:3", "width=100", "depth=2"), tmp_path)
    dataset = open_results(tmp_path)
    upper, lower = (dataset[f"distance_off_l2_{side}"] for side in ("upper", "lower"))
    assert lower.attrs["long_name"].endswith("; exact, rounding apart")
    assert (np.isfinite(upper) & (upper > 0)).any()
    np.testing.assert_allclose(lower, upper, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["OwnArrays", "Single", "Brain", "Groups"])
def test_numbers_of_any_type_and_arrays_of_its_own_are_measured(kind, tmp_path):
    run(read(SWEEP, f"architecture={NAME}:{kind}", "seed=0:2", "width=100"), tmp_path)
    dataset = open_results(tmp_path)
    upper, lower = (dataset[f"distance_off_l2_{side}"] for side in ("upper", "lower"))
    assert (dataset["status"] > 0).all() and not upper.isnull().any() and (lower <= upper).all()
    assert "no certificate" in lower.attrs["long_name"]


def test_a_class_of_other_parameters_is_refused_and_the_right_one_taken(folder):
    waves = sys.modules[NAME].Waves
    told = (
        r"module: parameter Dense_0\.bias: Chain has one of shape \(4,\), and these networks have one of shape \(6, 5\)"
    )
    with pytest.raises(UserError, match=told):
        load_networks(folder, module=sys.modules[NAME].Chain, width=5)
    networks = load_networks(folder, module=waves, width=5)
    told = r"takes one network; select one, or map .*: Dense_0\.bias is of shape \(6, 5\), and of one network \(5,\)"
    with pytest.raises(UserError, match=told):
        networks.apply(np.ones(2))
    told = r"x of shape \(4, 3\); must be points \(…, 2\), as these networks take"
    with pytest.raises(UserError, match=told):
        load_networks(folder, width=5, seed=0, module=waves).apply(np.ones((4, 3)))
    mapped = jax.vmap(lambda one: one.apply(np.ones((4, 2), np.float32)))(networks)
    np.testing.assert_array_equal(mapped[3], load_networks(folder, width=5, seed=3).apply(np.ones((4, 2), np.float32)))


def test_flips_are_flips(folder):
    """Along the normal of the line, where the signs of outputs in NumPy change."""
    points = load_points(folder, seed=0, width=5)
    off, seen = np.array([1, -1]) / 2**0.5, 0
    for seed in range(6):
        params = load_networks(folder, width=5, seed=seed).params
        upper = open_results(folder)["distance_off_l2_upper"].sel(width=5, seed=seed).values
        for x, y, distance in zip(points.x, points.y, upper, strict=True):
            if np.isfinite(distance) and distance > 0:
                beyond = outputs(params, x + np.array([[0], [1], [-1]]) * (1 + 1e-5) * distance * off)
                short = outputs(params, x + np.linspace(-1, 1, 20001)[:, None] * (1 - 1e-5) * distance * off)
                assert beyond[0] * y > 0 > (beyond[1:] * y).min()
                assert (short * y <= 0).mean() < 1e-3  # but for a flip so short that a scan steps over it
                seen += 1
    assert seen > 5


def test_networks_are_drawn_as_the_class_draws_them_and_weights_scaled(place, tmp_path):
    run(read(SWEEP, "max_steps=0", "init_scale=1.0,0.5"), tmp_path)
    for seed in range(6):
        key, _ = training_keys(seed)
        drawn = sys.modules[NAME].Waves(5).init(key, np.zeros(2, np.float32))["params"]
        for scale in (1.0, 0.5):
            found = load_networks(tmp_path, seed=seed, init_scale=scale, width=5).params
            expected = jax.tree.map(lambda a, scale=scale: a * (scale if a.ndim > 1 else 1), drawn)
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, expected)


@pytest.mark.slow
def test_networks_of_several_shapes_are_loaded_one_by_one(folder, tmp_path):
    run(read(SWEEP, "width=5,9"), tmp_path)
    for width in (5, 9):
        kernel = load_networks(tmp_path, width=width).params["Dense_0"]["kernel"]
        assert kernel.shape == (6, 2, width) and len(np.unique(kernel)) == kernel.size
    narrow = load_networks(tmp_path, width=5).params, load_networks(folder, width=5).params
    assert all(np.array_equal(*pair) for pair in zip(*map(jax.tree.leaves, narrow), strict=True))
    folder = tmp_path
    with pytest.raises(UserError, match="width: networks of width 5 and 9 are selected, whose parameters differ; sel"):
        load_networks(folder)


def test_a_class_is_told_the_width_and_the_depth_where_it_has_them():
    def shapes(*overrides: str) -> list[set[str]]:
        return [set(group.program.parameters) for group in plan(read(SWEEP, *overrides)).groups]

    groups = plan(read(SWEEP, "width=5,9")).groups
    widths = [group.program.parameters["Dense_0"]["kernel"].shape for group in groups]
    assert widths == [(2, 5), (2, 9)]
    layers = [{f"Dense_{i}" for i in range(depth + 1)} for depth in (1, 3)]
    assert shapes(f"architecture={NAME}:Chain", "depth=1,3", "width=100") == layers


def settings(**given) -> Sweep:
    tables: dict[str, dict] = {}
    for leaf, value in given.items():
        tables.setdefault(leaves()[leaf], {})[leaf] = value
    return Sweep("bad", **tables)


BAD = {
    "no such file": ("nowhere_nets:Waves", {}, "cannot be imported: No module named 'nowhere_nets'; /"),
    "no such class": (f"{NAME}:Wave", {}, f"cannot be imported: module '{NAME}' has no attribute 'Wave'"),
    "no module of flax": (f"{NAME}:Plain", {}, "must be a class of flax.linen.Module, not dict"),
    "a function": (f"{NAME}:FUNCTION", {}, "must be a class of flax.linen.Module, not sum"),
    "two outputs": (
        f"{NAME}:Two",
        {},
        r"takes a point of shape (2,) to (2,); must take it to one real number, of shape () or (1,), as R^d → R",
    ),
    "another collection": (
        f"{NAME}:Counting",
        {},
        "holds batch_stats; must hold parameters alone, as a function R^d → R does",
    ),
    "no parameters": (f"{NAME}:Nothing", {}, "holds no parameters; must hold parameters alone"),
    "an error of its own": (f"{NAME}:Broken", {}, "cannot take a point of shape (2,): "),
    "a table": (f"{NAME}:TABLE", {}, "must be a class of flax.linen.Module, not {0: 'a long table of numbers', "),
    "a whole number": (f"{NAME}:Whole", {}, "to (1,) of int32; must take it to one real number, of shape () or (1,)"),
    "a dot in a name": (f"{NAME}:Dotted", {}, "calls a layer or a parameter 'a.b/bias'; names must be without dots"),
    "an empty parameter": (f"{NAME}:Empty", {}, "holds a parameter 'e' of shape (0,), which is empty"),
    "a class that exits": (f"{NAME}:Exiting", {}, "cannot take a point of shape (2,): bye"),
    "a class that cannot be made": (f"{NAME}:Picky", {}, "cannot be made of {'width': 100}: no"),
    "arrays of one type": (
        f"{NAME}:SingleOnly",
        {},
        "cannot take a point of float64, in which networks are measured: ",
    ),
    "a parameter with the name of a variable": (f"{NAME}:Steps", {}, "calls a parameter 'steps', as what is recorded"),
    "a field without a default": (
        f"{NAME}:Needy",
        {},
        "cannot be made of nothing: ",
    ),
    "a width that it has not": (
        f"{NAME}:Fixed",
        {"width": 7},
        f"network.width = 7: changes nothing, as {NAME}:Fixed has no field of this name; leave it out",
    ),
    "a depth that it has not": (
        f"{NAME}:Waves",
        {"depth": 3},
        f"network.depth = 3: changes nothing, as {NAME}:Waves has no field of this name; leave it out",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_classes_are_refused_in_one_line(case):
    name, given, words = BAD[case]
    with pytest.raises(UserError) as told:
        plan(settings(architecture=name, **given))
    message = str(told.value)
    assert words in message and "\n" not in message and len(message) < 500
    assert given or message.startswith(f"architecture {name!r}: ")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"init": "torch"}, "changes nothing; it is read where architecture = 'mlp' or 'cnn'; leave it out"),
        ({"parametrization": "ntk"}, "changes nothing; it is read where architecture = 'mlp' or 'cnn'; leave it out"),
        ({"kernel": 5}, "changes nothing; it is read where architecture = 'cnn'; leave it out"),
    ],
)
def test_settings_of_other_architectures_are_refused(given, words):
    with pytest.raises(UserError, match=words):
        settings(architecture=f"{NAME}:Waves", **given)


@pytest.mark.parametrize(
    "name", ["nets", ":Waves", "nets:", "../nets:Waves", "nets.py:Waves:x", "1nets:Waves", "a b:C"]
)
def test_what_is_no_name_of_a_class_is_none(name):
    with pytest.raises(UserError, match=r"network\.architecture = .*: must be 'mlp', 'cnn' or 'package\.module:Class'"):
        settings(architecture=name)


def test_an_axis_that_the_class_is_not_told_is_refused():
    with pytest.raises(
        UserError, match=rf"axes\.width = \[7, 8\]: changes nothing, as {NAME}:Fixed has no field of this"
    ):
        plan(read(SWEEP, f"architecture={NAME}:Fixed", "width=7,8"))


def test_a_class_is_handed_over_for_networks_of_its_own_alone(folder, tmp_path):
    Store.create(tmp_path / "tiny", describe(plan(read(TINY)))).close()
    with pytest.raises(UserError, match="module: is of networks of your own class, and these are of mlp; leave it"):
        load_networks(tmp_path / "tiny", module=sys.modules[NAME].Waves)
    with pytest.raises(UserError, match=r"must be a class of flax\.linen\.Module, not dict"):
        load_networks(folder, module=dict, width=5)  # pyright: ignore[reportArgumentType]


def test_a_changed_file_is_not_resumed(folder, place):
    path = place / f"{NAME}.py"
    assert run(read(SWEEP), folder).identical(open_results(folder))
    try:
        path.write_text(FILE + "\n# Nothing else.\n")
        with pytest.raises(UserError, match=f"was made with class {NAME}:Waves of a file with SHA-256 [0-9a-f]+, and"):
            run(read(SWEEP), folder)
    finally:
        path.write_text(FILE)
    open_results(folder)


READING = """
import sys, warnings
import numpy as np
import subspace_adv as sa

folder, module = sys.argv[1:3]
dataset = sa.open_results(folder)
networks = sa.load_networks(folder, width=5, seed=1)
assert module not in sys.modules and networks.module is None
try:
    networks.apply(np.zeros(2, np.float32))
except sa.UserError as error:
    print(error)
import wavy_nets
told = sa.load_networks(folder, module=wavy_nets.Waves, width=5, seed=1)
found = told.apply(sa.load_points(folder, seed=0, width=5).x.astype(np.float32))
assert np.allclose(found, dataset["output"].sel(width=5, seed=1), rtol=1e-4, atol=1e-5)
"""


@pytest.mark.slow
def test_reading_imports_nothing(folder, place):
    status, out, err = call(sys.executable, "-c", READING, folder, NAME, cwd=place)
    assert (status, err) == (0, "")
    assert out == "apply: of which class these networks are is not known; load_networks(…, module=) takes it\n"


@pytest.mark.slow
def test_commands_on_a_folder_of_a_class_import_nothing(folder, place, tmp_path):
    """Not even where its file lies, which would tell: figures of the input space are left out."""
    copy = shutil.copytree(folder, tmp_path / "results")
    (tmp_path / f"{NAME}.py").write_text("raise SystemExit('imported')\n")
    status, out, err = call(COMMAND, "status", copy, cwd=tmp_path)
    assert (status, err) == (0, "") and "6 of 6 networks done" in out
    status, out, err = call(COMMAND, "plot", copy, cwd=tmp_path)
    assert (status, err) == (0, "")
    drawn = {path.stem for path in (copy / "figures").iterdir()}
    assert "fooling_rate" in drawn and "boundaries" not in drawn
    status, out, err = call(COMMAND, "check", copy, cwd=tmp_path)
    assert status == 2 and err.count("\n") == 1 and "nothing to check: no cell has a prediction" in err


@pytest.mark.slow
def test_the_command_line_runs_a_class_of_the_working_directory(folder, place, tmp_path):
    """Resumes it, draws its boundaries, and tells what is wrong in a line."""
    (tmp_path / f"{NAME}.py").write_text(FILE)
    (tmp_path / "own.toml").write_text(SWEEP)
    status, _, err = call(COMMAND, "run", "own.toml", cwd=tmp_path)
    assert (status, err) == (0, "")
    assert (tmp_path / "results" / "own" / "figures" / "boundaries.png").exists()
    ours, theirs = open_results(folder), open_results(tmp_path / "results" / "own")
    for name in ours.data_vars:
        assert ours[name].values.tobytes() == theirs[name].values.tobytes(), name
    status, out, err = call(COMMAND, "status", "results/own", cwd=tmp_path)
    assert (status, err) == (0, "") and "6 of 6 networks done" in out
    (tmp_path / f"{NAME}.py").write_text(FILE.replace("sin", "cos"))
    status, _, err = call(COMMAND, "run", "own.toml", cwd=tmp_path)
    assert status == 2 and err.count("\n") == 1 and "was made with class" in err
    status, _, err = call(COMMAND, "run", "own.toml", f"architecture={NAME}:Wave", cwd=tmp_path)
    assert status == 2 and err.count("\n") == 1 and "has no attribute 'Wave'" in err
