"""Warnings of data on which training cannot do what it is meant to."""

import time
import warnings

import pytest
from shell import COMMAND, call, read, write

from subspace_adv import UserError, plan, run
from subspace_adv.datasets import load_data
from subspace_adv.pitfalls import warn_of_pitfalls
from subspace_adv.sweep import Sweep


def told(sweep: Sweep) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_pitfalls(sweep)
    return [str(warning.message) for warning in caught]


def one_class(sweep: Sweep, **at: object) -> bool:
    return len(set(load_data(sweep.dataset(at)).y)) == 1


@pytest.mark.parametrize("labels", ["random", "halfspace", "clusters"])
@pytest.mark.parametrize("samples", [1, 2, 3, 5, 9])
def test_datasets_of_one_class_are_named(labels, samples):
    for seed in range(40):
        sweep = read("", "kind=subspace", f"labels={labels}", f"samples={samples}", f"data_seed={seed}")
        expected = f"all points have one label, which is no task, at data_seed = {seed} and samples = {samples}; take"
        texts = told(sweep)
        assert len(texts) == one_class(sweep)
        assert all(text.startswith(expected) for text in texts)


def test_of_many_datasets_of_one_class_a_few_are_named_and_all_are_counted():
    sweep = read("", "kind=line,subspace", "samples=3,4,20", "data_seed=0:200", "labels=random,halfspace", "seed=0:9")
    laws = sweep.values("labels")
    found = [
        (seed, n)
        for seed in range(200)
        for n in (3, 4)
        if any(one_class(sweep, kind="subspace", data_seed=seed, samples=n, labels=law) for law in laws)
    ]
    [text] = told(sweep)
    named = "; ".join(f"data_seed = {seed} and samples = {n}" for seed, n in found[:3])
    assert text.startswith(f"all points have one label, which is no task, at {named}; and {len(found) - 3} more; take")


def test_the_look_at_a_large_grid_is_short():
    few = ("kind=subspace", "samples=4,63,64,16777216")
    begun = time.perf_counter()
    [text] = told(read("", *few, "data_seed=0:1000000", "ambient_dim=5000", "subspace_dim=5000"))
    assert " more among the first 2,000 datasets; take" in text
    [text] = told(read("", *few, "data_seed=0:100000", "labels=halfspace", "ambient_dim=5000", "subspace_dim=5000"))
    assert " among the first 31 datasets; take" in text
    assert told(read("", *few, "labels=halfspace", "ambient_dim=16777216", "subspace_dim=16777216")) == []
    assert time.perf_counter() - begun < 20


@pytest.mark.parametrize(
    ("overrides", "stop"),
    [
        (["init=theory"], "0.3"),
        (["init=torch,theory", "kind=chessboard,line"], "0.3"),
        (["init=theory", "stop_margin=inf,-1,0.0,2"], "0.0"),
        (["init=theory", "trainable=all"], "0.3"),
        (["init=theory", "kind=chessboard"], None),
        (["init=theory", "kind=subspace"], None),
        (["init=torch,paper-code"], None),
        (["init=theory", "stop_margin=inf"], None),
        (["init=theory", "stop_margin=-0.1,inf"], None),
    ],
)
def test_networks_that_cannot_converge_are_told_of(overrides, stop):
    """Without biases, N(0) = 0: a margin over 0 is out of reach where a point is 0."""
    sweep = read("", *overrides)
    without_biases = "theory" in sweep.values("init")
    zeros = [kind for kind in sweep.values("kind") if not load_data(sweep.dataset({"kind": kind})).x.any(1).all()]
    assert bool(stop) == (without_biases and bool(zeros) and any(0 <= m < 1e9 for m in sweep.values("stop_margin")))
    texts = told(sweep)
    assert [text[:56] for text in texts] == ["no network of init 'theory' converges on kind 'line': wi"] * bool(stop)
    assert all(f"no margin exceeds stop_margin = {stop}; " in text for text in texts)


def test_planning_and_running_warn_once(tmp_path):
    sweep = read("", "init=theory", "kind=line,subspace", "samples=1")
    with pytest.warns(UserWarning) as planned:
        plan(sweep)
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning) as ran, pytest.raises(UserError, match="file"):
        run(sweep, tmp_path / "file")
    texts = ["all points have one label", "no network of init 'theory' converges"]
    for warned in (planned, ran):
        for warning, text in zip(warned, texts, strict=True):
            assert str(warning.message).startswith(text)


def test_the_command_line_tells_each_in_one_line(tmp_path):
    path = write(tmp_path, '[data]\nkind = "subspace"\nsamples = 9\n')
    code, out, err = call(COMMAND, "plan", path, "kind=line", "init=theory", cwd=tmp_path)
    assert (code, "cells      1\n" in out) == (0, True)
    dropped, unreached = err.splitlines()
    assert dropped.endswith(
        "sweep.toml: data.samples: left out, as read only where kind = 'subspace' or 'patches' or 'band-limited' or "
        "'file' or 'digits'"
    )
    assert unreached.startswith("subspace-adv: no network of init 'theory' converges on kind 'line'")
