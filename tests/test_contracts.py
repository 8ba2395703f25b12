"""Names that users and other programs hold on to."""

import inspect
import tomllib
from pathlib import Path

import pytest
from shell import COMMAND, read

import subspace_adv
from subspace_adv import cli, measures
from subspace_adv.sweep import TABLES

PACKAGE = Path(subspace_adv.__file__).parent


def test_names_of_the_package():
    assert set(subspace_adv.__all__) == {
        "Network",
        "Plan",
        "Sweep",
        "UserError",
        "load_networks",
        "open_results",
        "plan",
        "run",
    }
    for name in subspace_adv.__all__:
        assert getattr(subspace_adv, name).__doc__


def test_signatures():
    def parameters(function: object) -> list[str]:
        return list(inspect.signature(function).parameters)  # pyright: ignore[reportArgumentType]

    assert parameters(subspace_adv.Sweep.from_toml) == ["path", "overrides"]
    assert parameters(subspace_adv.plan)[:2] == ["sweep", "trainer"]
    assert parameters(subspace_adv.run)[:2] == ["sweep", "out"]
    assert parameters(subspace_adv.open_results) == ["folder"]
    assert parameters(subspace_adv.load_networks) == ["folder", "coordinates"]
    assert subspace_adv.Network._fields == ("weight", "bias", "head", "head_bias")


def test_tables_and_fields_of_the_sweep_file():
    fields = {table: set(model.model_fields) for table, model in TABLES.items()}
    assert fields == {
        "data": {
            "kind",
            "ambient_dim",
            "subspace_dim",
            "samples",
            "basis",
            "distribution",
            "labels",
            "data_seed",
        },
        "network": {"init", "trainable", "width", "init_scale", "seed"},
        "training": {
            "loss",
            "optimizer",
            "learning_rate",
            "weight_decay",
            "momentum",
            "batch_size",
            "stop_margin",
            "max_steps",
        },
        "measure": {"regions", "norms", "attack_steps", "restarts"},
    }
    leaves = [leaf for leaves in fields.values() for leaf in leaves]
    assert len(leaves) == len(set(leaves))  # so that an axis is a leaf's bare name


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("kind", ["line", "chessboard", "subspace"]),
        ("init", ["theory", "paper-code", "torch"]),
        ("trainable", ["all", "hidden"]),
        ("loss", ["logistic", "exponential"]),
        ("optimizer", ["gd", "momentum", "sgd", "adam"]),
    ],
)
def test_named_choices(field, values):
    assert read(f"[axes]\n{field} = {values}\n").axes[field] == tuple(values)


def test_recorded_variables():
    assert set(measures.variables(("off", "full"), ("l2",))) == {
        "loss",
        "margin",
        "output",
        "gradient_norm_off",
        "gradient_norm_on",
        "head_norm_active",
        "head_sum_active",
        "distance_universal",
        "distance_universal_heldout",
        "distance_random",
        "distance_random_heldout",
        "distance_off_l2_upper",
        "distance_off_l2_lower",
        "distance_full_l2_upper",
        "distance_full_l2_lower",
    }


def test_commands():
    assert {name for name in cli.app if not name.startswith("-")} >= {
        *("run", "plan", "status", "table", "check", "plot")
    }
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["scripts"] == {COMMAND.name: "subspace_adv.cli:main"}
