"""The rules of the package's structure: imports point one way, and each concern has one home."""

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

import subspace_adv

# A module imports only from modules to its left on its line, or from lines above.
LINES = [
    ["subspace", "data", "network", "training"],
    ["attacks", "certificates", "theory", "measures"],
    ["sweep", "planning", "engine", "store", "predictions", "results", "runner"],
    ["checks", "tables", "plots", "cli"],
]
ORDER = [module for line in LINES for module in line]
FOLDER = Path(subspace_adv.__file__).parent
FILES = {
    ".".join(path.relative_to(FOLDER).with_suffix("").parts): path
    for path in sorted(FOLDER.rglob("*.py"))
    if path != FOLDER / "__init__.py"
}
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
    """The package's modules that a file imports."""
    parts = (name.split(".") for name in imported(tree))
    return {part[1] for part in parts if part[0] == "subspace_adv"}


def called(tree: ast.AST) -> set[str]:
    """Dotted names of all that a file calls or refers to."""
    return {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute | ast.Name)}


def module(name: str) -> str:
    """The module that a file belongs to: its own, or the folder's that it lies in."""
    return name.split(".")[0]


def test_every_module_has_its_place_and_folders_hold_no_folders():
    assert {module(name) for name in FILES} <= set(ORDER)
    assert all(name.count(".") <= 1 for name in FILES)


@pytest.mark.parametrize("name", FILES)
def test_imports_point_one_way(name):
    allowed = set(ORDER[: ORDER.index(module(name))])
    assert siblings(TREES[name]) - ({module(name)} if "." in name else set()) <= allowed


def test_imports_within_a_folder_do_not_go_round():
    graph = {
        name: {other for other in FILES if any(f"subspace_adv.{other}" in full for full in imported(tree))}
        for name, tree in TREES.items()
        if "." in name and not name.endswith("__init__")
    }
    graphlib.TopologicalSorter(graph).prepare()


def test_imports_are_seen_in_every_form():
    """The rules above hold nothing up if the parser misses a form of import."""
    source = (
        "import subspace_adv.cli\nfrom subspace_adv import plots as p\ndef f():\n from subspace_adv.store import Store"
    )
    assert siblings(ast.parse(source)) == {"cli", "plots", "store"}
    assert siblings(TREES["measures"]) >= {"attacks", "certificates", "network"}


@pytest.mark.parametrize("name", sorted(set(FILES) - {"engine"}))
def test_only_the_engine_compiles(name):
    names = called(TREES[name]) | set(imported(TREES[name]))
    assert not names & {"jax.jit", "jax.pmap", "jit", "pmap", "jax.shard_map"}


def test_the_engine_compiles():
    assert "jax.jit" in called(TREES["engine"])


@pytest.mark.parametrize("name", FILES)
def test_only_the_store_knows_orbax(name):
    knows = any(full.split(".")[0] == "orbax" for full in imported(TREES[name]))
    assert knows == (name == "store")


@pytest.mark.parametrize("name", sorted(set(FILES) - {"cli"}))
def test_only_the_command_line_prints(name):
    assert not called(TREES[name]) & {"print", "sys.stdout", "sys.stderr"}


@pytest.mark.parametrize("name", FILES)
def test_nothing_is_pickled(name):
    assert not {full.split(".")[0] for full in imported(TREES[name])} & {"pickle", "cloudpickle", "dill", "joblib"}


CORE = [name for name in FILES if module(name) in LINES[0] + LINES[1]]


@pytest.mark.parametrize("name", CORE)
def test_the_numeric_core_does_no_input_or_output(name):
    outside = {full.split(".")[0] for full in imported(TREES[name])} & {"os", "pathlib", "logging", "sys", "xarray"}
    assert not outside and not called(TREES[name]) & {"open", "input"}
