"""Tables: lookups fail closed, and a row that is added at run time serves a whole sweep without an edit elsewhere."""

import dataclasses
import itertools
from typing import Annotated, Literal

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from deep import DEEP, ROW, Deep
from shell import TINY, read, write

from subspace_adv import Sweep, UserError, brackets, load_networks, load_points, open_results, plan, run, tables
from subspace_adv.attacks import ATTACKS, AttackResult, minimal_norm_attack
from subspace_adv.contracts import Architecture, Model
from subspace_adv.data import HELDOUT, KINDS, Data, DataSettings, Shape, as_data
from subspace_adv.fields import DATA, DATA_REPLICATE, PLACE, Count, Level, Positive, Seed
from subspace_adv.geometry import Subspace
from subspace_adv.measures import MEASURES, Measure, Rounding, distance_name, distance_parts, variables
from subspace_adv.models import MODELS
from subspace_adv.network import Network
from subspace_adv.norms import NORMS
from subspace_adv.optimizers import OPTIMIZERS, OffPart, Optimizer
from subspace_adv.rows import Rows, UnknownName
from subspace_adv.settings import read_where, replicates
from subspace_adv.streams import key_of


def small(*overrides: str) -> Sweep:
    """A dozen networks of one width, of whose program other tests have need too."""
    return read(TINY, "width=3", "init_scale=1.0", *overrides)


def test_an_unknown_name_is_an_error_that_tells_the_nearest():
    table = Rows("fruit", {"apple": 1, "banana": 2})
    assert table["banana"] == 2 and list(table) == ["apple", "banana"] and len(table) == 2
    for name, hint in (("Apple", "did you mean 'apple'?"), ("kiwi", "known: apple, banana"), (3, "known: ")):
        with pytest.raises(UnknownName) as told:
            table[name]
        assert str(told.value).startswith(f"fruit {name!r}: there is none of this name; {hint}")
    with pytest.raises(ValueError, match="fruit 'apple': there is one of this name already"):
        table["apple"] = 3
    assert table.name("apple") == "apple"
    with pytest.raises(ValueError, match=r"must be 'apple' or 'banana'; did you mean 'banana'\?"):
        table.name("bananas")
    del table["apple"]
    assert "apple" not in table and ["banana"] not in table


@pytest.mark.parametrize(
    ("table", "field"),
    [(NORMS, "norms"), (OPTIMIZERS, "optimizer"), (KINDS, "kind"), (MODELS, "architecture")],
    ids=["norms", "optimizers", "kinds", "models"],
)
def test_a_field_of_a_sweep_takes_the_names_of_its_table(table, field, tmp_path):
    np.savez(tmp_path / "points.npz", x=np.eye(3), y=[0, 1, 1])
    needs = {
        "cnn": ["kind=band-limited"],  # which sees signals
        "file": [f"path={tmp_path / 'points.npz'}"],
        "digits": ["classes=3,8"],
    }
    for name in table:
        assert np.ravel(small(f"{field}={name}", *needs.get(name, [])).values(field)).tolist() == [name]
    with pytest.raises(ValueError, match=f"must be {', '.join(map(repr, list(table)[:-1]))}"):
        small(f"{field}=l3")


@pytest.mark.slow
def test_another_name_of_a_norm_is_measured_and_drawn_as_the_norm_is(tmp_path, monkeypatch):
    monkeypatch.setitem(NORMS, "sup", NORMS["linf"])
    run(small("norms=linf,sup"), tmp_path / "both")
    dataset = open_results(tmp_path / "both")
    for side in ("lower", "upper"):
        found = dataset[f"distance_off_sup_{side}"].values
        np.testing.assert_array_equal(found, dataset[f"distance_off_linf_{side}"].values)
        assert (found > 0).any()


RMSPROP = Optimizer(make=lambda hyper: optax.rmsprop(hyper.learning_rate), off=OffPart.UNKNOWN, moments=1)


def test_an_optimizer_that_does_not_say_what_it_does_to_the_off_part_is_never_reduced(monkeypatch):
    """Not even where the span is of coordinate axes, or where it is the whole space."""
    monkeypatch.setitem(OPTIMIZERS, "rmsprop", RMSPROP)
    subspace = ["kind=subspace", "ambient_dim=3", "data_seed=1", "basis=axis-aligned"]
    for overrides in ([], [*subspace, "subspace_dim=2"], [*subspace, "subspace_dim=3"]):
        [group] = plan(small("optimizer=rmsprop", *overrides)).groups
        assert not group.program.reduced
        assert group.why[0] == "what rmsprop does to weights off the span of the data is not known"


@pytest.mark.slow
def test_an_optimizer_that_is_added_trains_and_nothing_is_predicted_of_it(tmp_path, monkeypatch):
    monkeypatch.setitem(OPTIMIZERS, "rmsprop", RMSPROP)
    run(small("optimizer=rmsprop"), tmp_path)
    dataset = open_results(tmp_path)
    assert np.isnan(dataset["predicted_decay"]).all()
    fresh = load_start(tmp_path / "start")
    assert (np.abs(load_networks(tmp_path).weight - fresh) > 1e-3).any()


def test_a_setting_is_read_by_every_optimizer_that_says_so(monkeypatch):
    monkeypatch.setitem(OPTIMIZERS, "heavier", OPTIMIZERS["momentum"])
    for optimizer in ("momentum", "heavier"):
        sweep = small(f"optimizer={optimizer}", "momentum=0.5")
        assert sweep.reads("momentum") and not sweep.reads("batch_size")
    with pytest.raises(ValueError, match="it is read where optimizer = 'momentum' or 'heavier'; leave it out"):
        small("momentum=0.5")


class RingData(DataSettings, frozen=True):
    """Points evenly on a circle around 0, in one of the planes of R³ that two axes span, labels in turn."""

    points: Annotated[Count, DATA] = 4
    radius: Annotated[Positive, DATA] = 1.0
    turn: Annotated[Seed, DATA_REPLICATE] = 0
    plane: Annotated[Literal["first", "last"], PLACE] = "first"

    @property
    def shape(self) -> Shape:
        """Of the circle."""
        return Shape(self.points, 3, 2, 2)

    def draw(self) -> Data:
        """Held out: the first point, again and again."""
        angle = 2 * np.pi * np.arange(self.points) / self.points + self.turn
        x = self.radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        return as_data(
            x, 1 - 2 * (np.arange(self.points) % 2), Subspace.axis_aligned(2, 2), x[:1].repeat(HELDOUT, axis=0)
        )

    def span(self) -> np.ndarray:
        """The plane."""
        return np.eye(3, 2, -1 if self.plane == "last" else 0)

    @property
    def is_axis_aligned(self) -> bool:
        """Always."""
        return True


@pytest.mark.slow
def test_a_kind_of_data_with_settings_of_its_own_serves_a_whole_sweep(tmp_path, monkeypatch):
    monkeypatch.setitem(KINDS, "ring", RingData)
    sweep = small("kind=ring,line", "radius=2.0,0.5", "turn=0,1", "plane=last", "seed=0,1")
    assert sweep.dataset({"kind": "line"}).shape.samples == 7 and sweep.dataset({}).shape.samples == 4
    assert Sweep.from_toml(write(tmp_path, sweep.to_toml())) == sweep
    assert len(plan(sweep).groups) == 2 and replicates() == ("seed", "data_seed", "turn")
    dataset = run(sweep, tmp_path / "ring")
    assert dataset["input"].dims == ("kind", "radius", "turn", "point", "feature")
    ring = dataset.sel(kind="ring")
    for (i, radius), (j, turn) in itertools.product(enumerate((2.0, 0.5)), enumerate((0, 1))):
        angle = np.pi / 2 * np.arange(4) + turn
        points = np.stack([0 * angle, radius * np.cos(angle), radius * np.sin(angle)], axis=1)
        np.testing.assert_allclose(ring["input"].values[i, j, :4], points, atol=1e-6)
        for seed in (0, 1):
            at = {"width": 3, "init_scale": 1.0, "kind": "ring", "radius": radius, "turn": turn, "seed": seed}
            network = load_networks(tmp_path / "ring", **at)
            outputs = np.maximum(points @ network.weight.T + network.bias, 0) @ network.head + network.head_bias
            np.testing.assert_allclose(dataset["output"].sel(at)[:4], outputs, atol=1e-4)
    assert [row.networks for row in tables.summarize(dataset)] == 4 * [4]


def test_a_kind_that_leaves_something_out_is_refused(monkeypatch):
    class Half(DataSettings, frozen=True):
        def draw(self) -> Data:
            """Never."""
            raise NotImplementedError

    with pytest.raises(TypeError, match="kind 'half': Half leaves out is_axis_aligned, shape, span"):
        KINDS["half"] = Half
    assert "half" not in KINDS


def test_fields_of_kinds_have_roles_and_names_of_one_meaning(monkeypatch):
    with pytest.raises(TypeError, match=r"Loose\.size: has 0 roles; annotate it with one: DATA, "):

        class Loose(RingData, frozen=True):
            size: Count = 3

    class Other(RingData, frozen=True):
        samples: Annotated[Level, DATA] = 3.0

    class Wide(RingData, frozen=True):
        width: Annotated[Count, DATA] = 3

    for row, message in (
        (Other, "kind 'toy': its field samples is not that of another kind; give it another name"),
        (Wide, r"network\.width: there is a field of this name in \[data\]; give it another name"),
    ):
        with monkeypatch.context() as context, pytest.raises(TypeError, match=message):
            context.setitem(KINDS, "toy", row)
            read("")


def axes(local, norm, steps, restarts, key, goal):
    """An attack that looks along the coordinate axes, both ways."""
    ahead = jnp.eye(local.dimension, dtype=local.dtype)
    return jnp.concatenate([ahead, -ahead])


def find_nothing(network, x, basis, **effort):
    """In place of `further_attack`."""
    return AttackResult(jnp.zeros_like(x), jnp.full((), jnp.inf, x.dtype), jnp.zeros((), bool))


@pytest.mark.slow
def test_an_attack_that_is_added_counts_beside_the_others(tmp_path, monkeypatch):
    """In a full space of three dimensions, as in a plane nothing is searched; and no further where none finds any."""
    monkeypatch.setattr(brackets, "further_attack", find_nothing)
    effort = ("kind=subspace", "ambient_dim=3", "regions=full", "attack_steps=6", "restarts=2")
    monkeypatch.setattr(ATTACKS, "_rows", {"fab": ATTACKS["fab"]})  # which takes long to compile
    run(small(*effort), tmp_path / "before")
    monkeypatch.setitem(ATTACKS, "axes", axes)
    run(small(*effort), tmp_path / "beside")
    before, beside = (open_results(tmp_path / name)["distance_full_l2_upper"] for name in ("before", "beside"))
    assert (beside <= before).all() and (beside < before).any()


def attacked(*names: str):
    network = Network(*map(jnp.asarray, (np.eye(2, 3), np.ones(2), np.array([1.0, -2]), 0.5)))
    return minimal_norm_attack(network, jnp.zeros(3), jnp.eye(3), steps=2, restarts=2, key=key_of(0), attacks=names)


def test_a_field_of_every_kind_is_read_by_all_cells(monkeypatch):
    assert read_where("samples") == ({"kind": ("subspace", "patches", "band-limited", "file", "digits")},)
    monkeypatch.setattr(KINDS, "_rows", {"subspace": KINDS["subspace"]})
    assert read_where("samples") == ()


def test_an_unknown_attack_is_an_error():
    with pytest.raises(UnknownName, match="attack 'fnm': there is none of this name; did you mean 'fmn'"):
        attacked("fmn", "fnm")


def test_an_attack_that_leaves_something_out_is_refused(monkeypatch):
    monkeypatch.setitem(ATTACKS, "flat", lambda local, *_: jnp.zeros(local.dimension))
    with pytest.raises(ValueError, match=r"attack 'flat': found \(3,\) and float32, not \(k, 3\) and float32"):
        attacked("flat")
    monkeypatch.setitem(ATTACKS, "half", lambda *_: jnp.eye(3, dtype=jnp.float16))
    with pytest.raises(ValueError, match=r"attack 'half': found \(3, 3\) and float16, not \(k, 3\) and float32"):
        attacked("half")


def told(**changed) -> Measure:
    """A measure that is a third for every point."""
    fields = {
        "dimensions": ("point",),
        "unit": "1",
        "meaning": "a third",
        "rounding": Rounding.NEAREST,
        "off": False,
        "compute": lambda of: jnp.full(len(of.x), 1 / 3),
    }
    return Measure(**fields | changed)


@pytest.mark.slow
def test_a_measure_that_is_added_is_recorded_and_rounded_as_it_says(tmp_path, monkeypatch):
    """And a family of them, for every region and norm."""
    for rounding in Rounding:
        monkeypatch.setitem(MEASURES, f"third_{rounding.value}", told(rounding=rounding))
    monkeypatch.setitem(MEASURES, "points", told(dimensions=(), compute=lambda of: jnp.float64(len(of.x))))
    heldout = told(dimensions=("heldout",), compute=lambda of: of.heldout[:, 0])
    monkeypatch.setitem(MEASURES, "first_coordinate", heldout)
    width = told(
        unit="input length",
        meaning="how far the ends of the {norm} distance {region} lie apart",
        compute=lambda of, region, norm: of.brackets[region, norm].upper - of.brackets[region, norm].lower,
    )
    monkeypatch.setitem(MEASURES, "gap_{region}_{norm}", width)
    run(small("norms=l2,linf"), tmp_path)
    dataset = open_results(tmp_path)
    down, nearest, up = (dataset[f"third_{side}"].values for side in ("down", "nearest", "up"))
    third = np.float32(1 / 3)  # above the number
    assert down.dtype == np.float32 and dataset["third_up"].dims[-1] == "point"
    assert (down == np.nextafter(third, np.float32(0))).all() and (up == third).all() and (nearest == third).all()
    assert dataset["points"].dims == dataset["status"].dims and (dataset["points"] == dataset.sizes["point"]).all()
    assert dataset["first_coordinate"].dims[-1] == "heldout"
    assert dataset["third_up"].attrs == {"long_name": "a third", "units": "1"}
    for norm in ("l2", "linf"):
        gap = dataset[f"gap_off_{norm}"]
        meaning = f"how far the ends of the {norm.upper()} distance orthogonal to the data's subspace lie apart"
        assert gap.attrs == {"long_name": meaning, "units": "input length"}
        upper, lower = (dataset[distance_name("off", norm, side)] for side in ("upper", "lower"))
        flips = np.isfinite(upper.values) & (upper.values > 0)
        assert (gap.values[flips] >= 0).all() and flips.sum() > 5
        np.testing.assert_allclose(gap.values[flips], (upper - lower).values[flips], atol=1e-5)


@pytest.mark.slow
def test_results_without_a_measure_are_refused_once_it_is_added(tmp_path, monkeypatch):
    run(small("seed=0:2"), tmp_path)
    monkeypatch.setitem(MEASURES, "third", told())
    with pytest.raises(UserError, match="was measured without third; run the sweep into another folder"):
        open_results(tmp_path)


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Measure)])
def test_a_measure_that_leaves_something_out_is_refused(field):
    fields = dataclasses.asdict(told())
    del fields[field]
    if field != "of_region":  # recorded in all regions where it is left out
        with pytest.raises(TypeError, match=f"missing 1 required .*argument: '{field}'"):
            Measure(**fields)
    with pytest.raises(ValueError, match=field):
        told(**{field: ""})


def test_a_measure_that_computes_another_shape_or_takes_a_name_is_refused(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(MEASURES, "third", told(dimensions=()))
        with pytest.raises(ValueError, match=r"measure 'third': is of shape \(.*\), and by its dimensions of \(\)"):
            run(small("seed=0:2"), tmp_path)
    for name in ("steps", "distance_off_l2_lower"):
        with monkeypatch.context() as patch:
            patch.setitem(MEASURES, name, told())
            with pytest.raises(ValueError, match=f"measure '{name}': there is a variable of this name already"):
                variables(("off",), ("l2",))


def test_the_name_of_a_distance_tells_its_region_norm_and_side():
    for parts in (("off", "l2", "lower"), ("full", "linf", "upper"), ("on", "my_norm", "lower")):
        assert distance_parts(distance_name(*parts)) == parts
    for name in ("distance_universal", "distance_random_heldout", "distance_off_l2", "gap_off_l2_lower"):
        assert distance_parts(name) is None
    assert {name for name in variables(("off",), ("l2",)) if distance_parts(name)} == {
        "distance_off_l2_lower",
        "distance_off_l2_upper",
    }


def load_start(folder) -> np.ndarray:
    """Weights of the same networks before training."""
    run(small("max_steps=0"), folder)
    return load_networks(folder).weight


def deep(*overrides: str, architecture: str = "deep", steps: int = 60) -> Sweep:
    """A few deep networks in a random plane of a larger space."""
    subspace = ("kind=subspace", "ambient_dim=5", "samples=3", "data_seed=1")
    effort = ("regions=off", "attack_steps=8", "restarts=4", f"max_steps={steps}", "learning_rate=0.05")
    return small(f"architecture={architecture}", *subspace, *effort, *overrides)


@pytest.mark.slow
def test_a_model_that_is_added_trains_and_is_measured(tmp_path, monkeypatch):
    """Its steps, distances and files against NumPy in float64, in all coordinates."""
    monkeypatch.setitem(MODELS, "deep", ROW)
    sweep = deep("weight_decay=0.1")
    [group] = plan(sweep).groups
    assert group.program.reduced and group.program.recipe.trainer == "xla"
    assert group.why[1] == "there is no kernel of architecture deep"
    with pytest.raises(UserError, match="'fused' cannot serve: there is no kernel of architecture deep"):
        plan(sweep, "fused")
    run(sweep, tmp_path / "deep")
    run(deep("weight_decay=0.1", steps=0), tmp_path / "fresh")
    points = load_points(tmp_path / "deep")
    fresh, trained = load_networks(tmp_path / "fresh"), load_networks(tmp_path / "deep")
    assert isinstance(trained, Deep) and trained.weight.shape == (*sweep.shape, 3, 5)
    dataset = open_results(tmp_path / "deep")
    for seed in range(sweep.cells):
        at = np.unravel_index(seed, sweep.shape)
        data = points.x[at], points.y[at]
        expected = descended(Deep(*(part[at] for part in fresh)), *data, steps=60, rate=0.05, decay=0.1)
        for name, part in expected._asdict().items():
            np.testing.assert_allclose(getattr(trained, name)[at], part, rtol=1e-3, atol=1e-5, err_msg=name)
        outputs = deep_output(expected, points.x[at])
        np.testing.assert_allclose(dataset["output"].values[at], outputs, rtol=1e-3, atol=1e-5)
    lower = dataset["distance_off_l2_lower"]
    assert not lower.values.any() and lower.attrs["long_name"].endswith(
        "; no certificate, and so 0, for architecture deep"
    )
    assert np.isfinite(dataset["distance_off_l2_upper"]).mean() > 0.5
    law = dataset["gradient_norm_off"] / dataset["predicted_gradient_norm_off"]
    assert 0.2 < law.median() < 5


def deep_output(network: Deep, x: np.ndarray) -> np.ndarray:
    """Outputs (n,), in float64."""
    hidden = np.maximum(x @ network.weight.T + network.bias, 0)
    return np.maximum(hidden @ network.hidden.T, 0) @ network.head


def descended(network: Deep, x: np.ndarray, y: np.ndarray, *, steps: int, rate: float, decay: float) -> Deep:
    """Gradient descent on the logistic loss, the head held fixed."""
    weight, bias, hidden, head = (part.astype(np.float64) for part in network)
    for _ in range(steps):
        z = x @ weight.T + bias
        first = np.maximum(z, 0)
        second = first @ hidden.T
        slope = -y / (1 + np.exp(y * (np.maximum(second, 0) @ head))) / len(y)
        of_second = slope[:, None] * (second > 0) * head
        of_first = (of_second @ hidden) * (z > 0)
        weight = weight - rate * (of_first.T @ x + decay * weight)
        bias = bias - rate * (of_first.sum(axis=0) + decay * bias)
        hidden = hidden - rate * (of_second.T @ first + decay * hidden)
    return Deep(weight, bias, hidden, head)


@pytest.mark.slow
def test_networks_of_several_architectures_are_loaded_one_by_one(tmp_path, monkeypatch):
    monkeypatch.setitem(MODELS, "deep", ROW)
    run(deep(architecture="mlp,deep"), tmp_path)
    with pytest.raises(
        UserError,
        match="architecture: networks of architecture deep and mlp are selected, whose parameters differ; select one",
    ):
        load_networks(tmp_path)
    for name, kind in (("mlp", Network), ("deep", Deep)):
        assert isinstance(load_networks(tmp_path, architecture=name), kind)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"rest": None}, "rest None: must be a Callable"),
        ({"form": None}, "form None: must be a Form"),
        ({"kernel": "fused"}, "kernel 'fused': must be a Kernel"),
        ({"certificate": 0.0}, "certificate 0.0: must be a Callable"),
    ],
)
def test_a_model_that_leaves_something_out_is_refused(change, told):
    with pytest.raises(TypeError, match=told):
        dataclasses.replace(DEEP, **change)
    with pytest.raises(TypeError, match="missing 1 required keyword-only argument: 'rest'"):
        Model(**{field.name: getattr(DEEP, field.name) for field in dataclasses.fields(DEEP) if field.name != "rest"})


def row(**changes) -> Architecture:
    """Of networks that differ from `DEEP`."""
    changed = dataclasses.replace(DEEP, **changes)
    return Architecture(lambda design: changed)


def test_a_row_that_is_no_architecture_and_names_that_clash_are_refused(monkeypatch):
    with pytest.raises(TypeError, match="architecture 'none': must be an Architecture, not function"):
        MODELS["none"] = lambda params, x: x
    monkeypatch.setitem(MODELS, "deep", row(trained=lambda init, trainable: ("weights",)))
    with pytest.raises(ValueError, match="architecture 'deep': trains 'weights'; did you mean 'weight'"):
        plan(deep())
    for change, told in (
        ({"trained": lambda init, trainable: ["hidden"]}, "does not train its first weight"),
        ({"rest": lambda params, z: z}, r"its rest makes \(3,\) of preactivations \(3,\); must make \(\)"),
        ({"first": lambda params: (params.weight.T, params.bias)}, r"its first weight is of shape \(2, 3\)"),
    ):
        monkeypatch.setitem(MODELS._rows, "deep", row(**change))  # pyright: ignore
        with pytest.raises(ValueError, match=f"architecture 'deep': {told}"):
            plan(deep())
    takes_a_name = row(
        init=lambda *told, **more: {"weight": (old := DEEP.init(*told, **more)).weight, "steps": old.bias},
        first=lambda params: (params["weight"], params["steps"]),
        with_first_weight=lambda params, weight: params | {"weight": weight},
        rest=lambda params, z: z.sum(-1),
        trained=lambda init, trainable: ("weight",),
    )
    monkeypatch.setitem(MODELS._rows, "deep", takes_a_name)  # pyright: ignore
    with pytest.raises(ValueError, match="architecture 'deep': calls a parameter 'steps', as what is recorded is"):
        plan(deep())
    clash = dataclasses.replace(MEASURES["margin"])
    monkeypatch.setattr(MEASURES, "_rows", {**MEASURES, "head": clash})
    with pytest.raises(ValueError, match="architecture 'mlp': calls a parameter 'head', as what is recorded is"):
        plan(small())
