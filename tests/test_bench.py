"""The benchmark on small problems: what it counts, and what it reports."""

import json

import jax
import numpy as np
import pytest

from subspace_adv import bench, engine, reports
from subspace_adv.errors import UserError
from subspace_adv.models import fused

TINY = bench.Problem(
    "tiny",
    {
        "data": {"kind": "subspace", "ambient_dim": 9, "subspace_dim": 2, "samples": 4, "data_seed": 2},
        "network": {"width": 5},
    },
    8,
    {"fused": 30, "xla": 20, "ambient": 10},
)


@pytest.fixture
def no_cache_changes():
    before = jax.config.jax_enable_compilation_cache  # pyright: ignore[reportAttributeAccessIssue]
    yield
    jax.config.update("jax_enable_compilation_cache", before)


@pytest.mark.slow
def test_a_run_reports_every_pair(no_cache_changes, capsys):
    paths = [path for path in TINY.steps if path in bench.paths()]
    done = bench.run([(TINY, path) for path in paths], rounds=1)
    assert [(row.problem, row.path, row.networks) for row in done.rows] == [("tiny", path, 8) for path in paths]
    for row in done.rows:
        d = 9 if row.path == "ambient" else 2
        flops = 4 * 5 * (4 * (d + 1) + 5) + 5 * (4 * (d + 1) + 6)
        assert row.flops == pytest.approx(row.net_steps * flops)
        assert row.peak == pytest.approx(row.flops / done.peak_flops)
        assert row.program_bytes > row.network_bytes >= 2 * 4 * (5 * (d + 2) + 1)
    assert json.loads(bench.to_json(done))["rows"][0]["path"] == paths[0]
    reports.print_bench(done)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    printed = [(words[1], words[3]) for words in lines if words[:1] == ["tiny"]]
    assert printed == [(row.path, f"{row.net_steps:,.0f}") for row in done.rows]


def test_the_median_of_the_rounds_is_reported_beside_the_best_peak(monkeypatch, no_cache_changes):
    rates, peaks = iter([5.0, 1.0, 2.0, 7.0, 9.0, 8.0]), iter([30.0, 80.0, 50.0])
    monkeypatch.setattr(bench, "throughput", lambda todo: next(rates))
    monkeypatch.setattr(bench, "matrix_product_flops", lambda: next(peaks))
    monkeypatch.setattr(bench, "_compile", lambda group: (0.5, 20, 10))
    done = bench.run([(TINY, "xla"), (TINY, "ambient")])
    assert [row.net_steps for row in done.rows] == [2.0, 8.0]
    assert done.peak_flops == 80.0


def test_throughput_counts_the_steps_that_networks_took(monkeypatch):
    todo = bench.plan_of(TINY, "xla")
    steps = sum(int(a["steps"].sum()) for _, a in engine.train(todo.sweep, todo.groups[0], todo.chunks))
    clock = iter([10.0, 14.0])
    monkeypatch.setattr(bench.time, "perf_counter", lambda: next(clock))
    assert bench.throughput(todo) == steps / 4


def test_the_peak_is_a_matrix_product(monkeypatch):
    """The fastest of some."""
    clock = iter(np.cumsum([0.0, 4.0, 0.0, 2.0, 0.0, 3.0]))
    monkeypatch.setattr(bench.time, "perf_counter", lambda: next(clock))
    assert bench.matrix_product_flops(size=8, rounds=3) == 2 * 8**3 / 2.0


def test_paths_are_those_of_the_trainer_asked_for():
    assert bench.paths("xla") == ["xla", "ambient"]
    if fused.unavailable():
        with pytest.raises(UserError, match="trainer 'fused' cannot serve"):
            bench.paths("fused")
    else:
        assert bench.paths("fused") == ["fused"]
        assert bench.paths() == ["fused", "xla", "ambient"]
