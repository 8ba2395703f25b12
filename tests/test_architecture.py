"""The rules of the package's structure: imports point one way, and each concern has one home."""

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

import subspace_adv

# A module imports only from modules to its left on its line, or from lines above.
LINES = [
    [
        "errors",
        "rows",
        "spacing",
        "pointfile",
        "fields",
        "streams",
        "norms",
        "geometry",
        "receptive_fields",
        "contracts",
    ],
    [
        "data",
        "arrays",
        "flax_layers",
        "state_dict",
        "network",
        "chi",
        "parametrizations",
        "initialization",
        "optimizers",
        "models",
        "reduction",
        "training",
    ],
    ["attacks", "brackets", "whitening", "subject", "measures", "theory"],
    [
        "settings",
        "snapshots",
        "dimensions",
        "sweepfile",
        "sweep",
        "classes",
        "pitfalls",
        "datasets",
        "devices",
        "costs",
        "program",
        "planning",
        "shards",
    ],
    [
        "engine",
        "arguments",
        "single",
        "networkfile",
        "assessment",
        "identity",
        "manifest",
        "growing",
        "locks",
        "files",
        "chunkfiles",
        "store",
        "process",
        "tasks",
        "driver",
        "frozen",
        "predictions",
        "loading",
        "results",
        "runner",
        "cluster",
    ],
    ["checks", "tables", "plots", "comparison", "formats", "exports", "bench", "progress", "reports", "cli"],
]
ORDER = [module for line in LINES for module in line]
# A module may be a folder. Its files import from those to their left, and nobody else imports them.
PARTS = {
    "data": [
        *["kind", "line", "chessboard", "manifolds", "drawn", "subspace", "patches", "band_limited"],
        *["labels", "leading", "given", "file", "digits"],
    ],
    "models": [
        "fused",
        "compiled",
        "two_layer",
        "two_layer_training",
        "concave",
        "relaxation",
        "certificates",
        "planes",
        "boundary",
        "autodiff",
        "rays",
        "crown",
        "chain",
        "layers",
        "mlp",
        "cnn",
        "splitting",
        "module",
    ],
    "attacks": ["crossing", "universal", "fmn", "fab", "pgd"],
    "engine": ["pinned", "kept", "networks", "inputs", "programs", "pauses", "chunks"],
    "plots": ["panels", "line", "chessboard", "medians", "phase", "robustness", "tightness", "trajectories"],
}
FOLDER = Path(subspace_adv.__file__).parent


def module(path: Path) -> str:
    """Name of a file within the package; that of a folder stands for its __init__."""
    return ".".join(part for part in path.relative_to(FOLDER).with_suffix("").parts if part != "__init__")


MAIN = FOLDER / "__main__.py"  # `python -m`
FILES = {module(path): path for path in sorted(FOLDER.rglob("*.py")) if module(path) and path != MAIN}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}


def imported(tree: ast.AST) -> Iterator[str]:
    """Full names of all modules and objects imported anywhere in a file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def siblings(tree: ast.AST) -> set[str]:
    """The package's modules that a file imports, and files of their folders."""
    parts = (name.split(".") for name in imported(tree))
    names = [(part[1], ".".join(part[1:3])) for part in parts if part[0] == "subspace_adv"]
    return {inner if inner in FILES else outer for outer, inner in names}


def before(name: str) -> set[str]:
    """What a file may import from."""
    outer, _, inner = name.partition(".")
    parts = PARTS.get(outer, [])
    visible = parts[: parts.index(inner)] if inner else parts
    return {*ORDER[: ORDER.index(outer)], *(f"{outer}.{part}" for part in visible)}


def called(tree: ast.AST) -> set[str]:
    """Dotted names of all that a file calls or refers to."""
    return {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute | ast.Name)}


def test_every_module_has_its_place_and_folders_hold_no_folders():
    parts = {f"{outer}.{inner}" for outer, inners in PARTS.items() for inner in inners}
    assert parts <= set(FILES) <= {*ORDER, *parts}
    assert siblings(ast.parse(MAIN.read_text(encoding="utf-8"))) == {"cli"}
    assert all((FOLDER / outer / "__init__.py").exists() and not (FOLDER / f"{outer}.py").exists() for outer in PARTS)


@pytest.mark.parametrize("name", FILES)
def test_imports_point_one_way(name):
    assert siblings(TREES[name]) <= before(name)


def test_imports_are_seen_in_every_form():
    """The rules above hold nothing up if the parser misses a form of import."""
    source = (
        "import subspace_adv.cli\nfrom subspace_adv import plots as p\ndef f():\n from subspace_adv.store import Store"
    )
    assert siblings(ast.parse(source)) == {"cli", "plots", "store"}
    assert siblings(TREES["measures"]) >= {"attacks", "brackets", "subject"}
    inside = "from subspace_adv.plots.panels import a\nfrom subspace_adv.plots import line\nimport subspace_adv.plots"
    assert siblings(ast.parse(inside)) == {"plots.panels", "plots.line", "plots"}


def test_the_files_of_a_folder_are_its_own():
    assert "plots" in before("cli")
    assert not {name for name in before("cli") if "." in name}
    assert before("plots.line") - before("tables") == {"tables", "plots.panels"}


@pytest.mark.parametrize("name", sorted(set(FILES) - {"engine.programs"}))
def test_only_the_programs_of_the_engine_compile(name):
    names = called(TREES[name]) | set(imported(TREES[name]))
    assert not names & {"jax.jit", "jax.pmap", "jit", "pmap", "jax.shard_map"}


def test_the_programs_of_the_engine_compile():
    assert {"jax.jit", "jax.shard_map"} <= called(TREES["engine.programs"])


@pytest.mark.parametrize("name", FILES)
def test_only_the_files_of_chunks_know_orbax(name):
    knows = any(module.split(".")[0] == "orbax" for module in imported(TREES[name]))
    assert knows == (name == "chunkfiles")


@pytest.mark.parametrize("name", FILES)
def test_only_the_cluster_knows_ray(name):
    knows = any(module.split(".")[0] == "ray" for module in imported(TREES[name]))
    assert knows == (name == "cluster")


@pytest.mark.parametrize("name", sorted(set(FILES) - {"reports", "cli"}))
def test_only_the_command_line_prints(name):
    assert not called(TREES[name]) & {"print", "sys.stdout", "sys.stderr"}


@pytest.mark.parametrize("name", FILES)
def test_nothing_is_pickled(name):
    assert not {module.split(".")[0] for module in imported(TREES[name])} & {"pickle", "cloudpickle", "dill", "joblib"}


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("attacks.")])
def test_attacks_know_a_network_by_its_contract_alone(name):
    names = set(imported(TREES[name]))
    assert not {other for other in names if other.startswith("subspace_adv.models")}
    assert not {other for other in names if other.startswith("subspace_adv.network")}


@pytest.mark.parametrize("name", sorted({*FILES} - {name for name in FILES if name.partition(".")[0] == "models"}))
def test_the_kernel_is_reached_through_the_model(name):
    assert "subspace_adv.models.fused" not in set(imported(TREES[name]))


@pytest.mark.parametrize("name", ["training", "subject", "measures", "brackets", "program", "planning"])
def test_what_is_general_knows_no_model_s_parameters(name):
    assert not {other for other in imported(TREES[name]) if other.endswith((".Network", ".TWO_LAYER"))}


@pytest.mark.parametrize("name", sorted(set(FILES) - {"models", "models.certificates"}))
def test_certificates_are_reached_through_the_model(name):
    assert not {"kink_certificate", "crown_certificate"} & called(TREES[name])


CORE = [name for name in FILES if name.partition(".")[0] in LINES[0] + LINES[1]]


@pytest.mark.parametrize("name", sorted(set(CORE) - {"pointfile"}))
def test_the_numeric_core_does_no_input_or_output(name):
    outside = {module.split(".")[0] for module in imported(TREES[name])} & {"os", "pathlib", "logging", "sys", "xarray"}
    assert not outside and not called(TREES[name]) & {"open", "input"}


@pytest.mark.parametrize("path", sorted((FOLDER.parent / "benchmarks").glob("*.py")), ids=lambda path: path.name)
def test_what_benchmarks_import_is_there(path):
    """They are not run by any test: what moves would leave them behind."""
    ours = [name for name in imported(ast.parse(path.read_text(encoding="utf-8"))) if name.startswith("subspace_adv.")]
    assert ours
    for module, _, name in (full.rpartition(".") for full in ours):
        assert f"{module}.{name}".removeprefix("subspace_adv.") in FILES or hasattr(
            importlib.import_module(module), name
        )
