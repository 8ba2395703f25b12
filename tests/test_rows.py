"""Tables: lookups fail closed, and a row that is added at run time serves a whole sweep without an edit elsewhere."""

import numpy as np
import optax
import pytest
from shell import TINY, read

from subspace_adv import Sweep, load_networks, open_results, plan, run
from subspace_adv.norms import NORMS
from subspace_adv.optimizers import OPTIMIZERS, OffPart, Optimizer
from subspace_adv.rows import Rows, UnknownName


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


@pytest.mark.parametrize(("table", "field"), [(NORMS, "norms"), (OPTIMIZERS, "optimizer")], ids=["norms", "optimizers"])
def test_a_field_of_a_sweep_takes_the_names_of_its_table(table, field):
    for name in table:
        assert np.ravel(small(f"{field}={name}").values(field)).tolist() == [name]
    with pytest.raises(ValueError, match=f"must be {', '.join(map(repr, list(table)[:-1]))} or "):
        small(f"{field}=l3")


def test_another_name_of_a_norm_is_measured_and_drawn_as_the_norm_is(tmp_path, monkeypatch):
    monkeypatch.setitem(NORMS, "sup", NORMS["linf"])
    run(small("norms=linf,sup"), tmp_path / "both")
    dataset = open_results(tmp_path / "both")
    for side in ("lower", "upper"):
        found = dataset[f"distance_off_sup_{side}"].values
        np.testing.assert_array_equal(found, dataset[f"distance_off_linf_{side}"].values)
        assert (found > 0).any()


def test_an_optimizer_that_does_not_say_what_it_does_to_the_off_part_is_never_reduced(tmp_path, monkeypatch):
    """Not even where the span is of coordinate axes, or where it is the whole space; and nothing is predicted of it."""
    row = Optimizer(make=lambda hyper: optax.rmsprop(hyper.learning_rate), off=OffPart.UNKNOWN, moments=1)
    monkeypatch.setitem(OPTIMIZERS, "rmsprop", row)
    subspace = ["kind=subspace", "ambient_dim=3", "data_seed=1", "basis=axis-aligned"]
    for overrides in ([], [*subspace, "subspace_dim=2"], [*subspace, "subspace_dim=3"]):
        [group] = plan(small("optimizer=rmsprop", *overrides)).groups
        assert not group.program.reduced
        assert group.why[0] == "what rmsprop does to weights off the span of the data is not known"
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


def load_start(folder) -> np.ndarray:
    """Weights of the same networks before training."""
    run(small("max_steps=0"), folder)
    return load_networks(folder).weight
