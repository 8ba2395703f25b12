"""Names that users and other programs hold on to."""

import functools
import importlib
import inspect
import os
import sys
import tomllib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shell import COMMAND, read

import subspace_adv
from subspace_adv import attacks, cli, measures, models, norms
from subspace_adv.settings import tables
from subspace_adv.streams import key_of

PACKAGE = Path(subspace_adv.__file__).parent


def test_names_of_the_package():
    assert set(subspace_adv.__all__) == {
        "Comparison",
        "Network",
        "Networks",
        "Plan",
        "Points",
        "Subspace",
        "Sweep",
        "Trained",
        "UserError",
        "attack",
        "bracket",
        "certify",
        "compare",
        "export",
        "load_networks",
        "load_points",
        "measure",
        "open_results",
        "plan",
        "read_network",
        "run",
        "train",
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
    assert parameters(subspace_adv.load_networks) == ["folder", "module", "step", "margin_level", "coordinates"]
    assert parameters(subspace_adv.load_points) == ["folder", "coordinates"]
    assert parameters(subspace_adv.Sweep) == [
        *["name", "data", "network", "training", "measure", "axes", "zips", "sample"],
    ]
    assert parameters(subspace_adv.train) == ["x", "y", "network", "settings"]
    where = ["subspace", "basis", "region", "norm", "effort"]
    assert parameters(subspace_adv.attack) == parameters(subspace_adv.certify) == ["network", "x", *where]
    regions = ["subspace", "basis", "regions", "norms", "progress", "effort"]
    assert parameters(subspace_adv.bracket) == ["network", "x", "y", *regions]
    measured = ["subspace", "heldout", "regions", "norms", "loss", "progress", "effort"]
    assert parameters(subspace_adv.measure) == ["network", "x", "y", *measured]
    given = ["arrays", "mean", "std", "x", "outputs"]
    assert parameters(subspace_adv.Network.from_state_dict) == given
    assert parameters(subspace_adv.read_network) == ["path"]
    assert subspace_adv.Network._fields == ("weight", "bias", "head", "head_bias")


def test_tables_and_fields_of_the_sweep_file():
    fields = {table: set(model.model_fields) for table, model in tables().items()}
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
            *("patches", "patch_size", "patch_dim", "frequencies", "radii", "spacing"),
            *("path", "label_column", "classes", "center", "scale", "fit"),
        },
        "network": {
            *("architecture", "init", "trainable", "parametrization", "width", "depth"),
            *("kernel", "stride", "mixing", "padding", "layout", "init_scale", "seed"),
        },
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
        "measure": {
            *("regions", "norms", "attack_steps", "restarts", "gap", "redraws"),
            *("at_steps", "at_margins", "brackets_during", "keep_networks"),
        },
    }
    leaves = [leaf for leaves in fields.values() for leaf in leaves]
    assert len(leaves) == len(set(leaves))  # so that an axis is a leaf's bare name


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("kind", ["line", "chessboard", "subspace", "patches", "band-limited"]),
        ("architecture", ["mlp", "package.module:Class"]),
        ("init", ["theory", "paper-code", "torch", "he", "lecun"]),
        ("parametrization", ["standard", "ntk", "mean-field"]),
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
        "gradient_norm_off_learned",
        "head_norm_active",
        "head_sum_active",
        "gradient_off_whitened",
        "gradient_off_freedom",
        "distance_universal",
        "distance_universal_heldout",
        "distance_random",
        "distance_random_heldout",
        "distance_off_l2_upper",
        "distance_off_l2_lower",
        "distance_full_l2_upper",
        "distance_full_l2_lower",
    }


def a_network() -> subspace_adv.Network:
    """Of NumPy arrays, as `load_networks` yields it."""
    rng = np.random.default_rng(0)
    shapes = ((4, 3), (4,), (4,), ())
    return subspace_adv.Network(*(np.float32(rng.standard_normal(shape)) for shape in shapes))  # pyright: ignore


def certify(network, x, basis, **norm):
    return models.crown_certificate(network, x, basis, upper=np.float32(9), **norm)


BASIS = np.eye(3, dtype=np.float32)[:, :2]
POINTS = np.random.default_rng(1).standard_normal((2, 3)).astype(np.float32)
OF_A_BASIS = {
    "crown_certificate": certify,
    "kink_certificate": models.kink_certificate,
    **{
        name: functools.partial(getattr(attacks, name), steps=2, restarts=2, key=key_of(0))
        for name in ("fmn_attack", "fab_attack", "minimal_norm_attack", "universal_attack")
    },
}


@pytest.mark.parametrize(
    "name",
    [
        "kink_certificate",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("crown_certificate", "universal_attack", "fab_attack")
        ),
    ],
)
def test_arrays_of_numpy_serve_as_those_of_jax(name):
    def over_points(network: subspace_adv.Network, basis: np.ndarray) -> list[np.ndarray]:
        return jax.tree.leaves(jax.vmap(lambda x: OF_A_BASIS[name](network, x, basis))(POINTS))

    found = over_points(a_network(), BASIS)
    expected = over_points(jax.tree.map(jnp.asarray, a_network()), jnp.asarray(BASIS))
    assert all(np.array_equal(*pair) for pair in zip(found, expected, strict=True))
    # Points of another type are those of the network's.
    wide = OF_A_BASIS[name](a_network(), POINTS[0].astype(np.float64), BASIS.astype(np.float64))
    assert all(np.array_equal(a, b[0]) for a, b in zip(jax.tree.leaves(wide), found, strict=True))


@pytest.mark.parametrize("name", OF_A_BASIS)
def test_what_is_no_norm_or_no_basis_is_refused(name):
    attack = OF_A_BASIS[name]
    for norm, hint in (("L2", "did you mean 'l2'"), ("l3", "known: l1, l2, linf"), ("Linf", "did you mean 'linf'")):
        with pytest.raises(ValueError, match=f"norm '{norm}': there is none of this name; {hint}"):
            attack(a_network(), POINTS[0], BASIS, norm=norm)
    with pytest.raises(ValueError, match=r"basis 'full': give an array \(d, r\)"):
        attack(a_network(), POINTS[0], "full")
    for basis in (BASIS[:, 0], BASIS.T, BASIS[None]):
        with pytest.raises(ValueError, match=r"basis of shape .* give one \(d, r\)"):
            attack(a_network(), POINTS[0], basis)


def test_no_function_of_norms_falls_through_to_another():
    v = np.float32([3, 4])
    project = functools.partial(norms.project, v, np.float32(1))
    of_v = [functools.partial(f, v) for f in (norms.length, norms.dual_length, norms.unit, norms.steepest)]
    for function in (*of_v, project, lambda norm: attacks.line_distance(a_network(), POINTS[0], POINTS[1], norm)):
        for norm in ("l3", "L1", "", None, 2):
            with pytest.raises(ValueError, match="there is none of this name"):
                function(norm)
        assert all(jax.eval_shape(functools.partial(function, norm)) is not None for norm in norms.NORMS)


@pytest.mark.parametrize(("level", "then"), [(None, "3"), ("1", "3"), ("0", "0"), ("2", "2"), ("3", "3")])
def test_what_the_user_asks_of_the_log_of_xla_is_heeded(level, then, monkeypatch):
    """JAX itself sets 1."""
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", level or "")
    if level is None:
        monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL")
    monkeypatch.delitem(sys.modules, "jaxlib")
    importlib.reload(subspace_adv)
    assert os.environ["TF_CPP_MIN_LOG_LEVEL"] == then


def test_commands():
    assert {name for name in cli.app if not name.startswith("-")} >= {
        *("run", "plan", "status", "table", "check", "plot")
    }
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["scripts"] == {COMMAND.name: "subspace_adv.cli:main"}
