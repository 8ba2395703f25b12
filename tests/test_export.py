"""Exported results as other programs read them, and the table of arms in every format: the Dataset's numbers."""

import csv
import io
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from shell import call, files, read, write
from test_cli import Command, assert_refused, command  # noqa: F401

import subspace_adv as sa
from subspace_adv import UserError, exports, formats, open_results, plan, reports, tables
from subspace_adv.formats import FORMATS, Column
from subspace_adv.manifest import describe
from subspace_adv.store import Store
from subspace_adv.tables import Estimate

# Everything that a Dataset may hold but numbers: two kinds of snapshots, an axis of lists, and data of several sizes.
WIDE = """
name = "wide"
[data]
kind = "digits"
center = true
[network]
width = 3
[training]
stop_margin = inf
[measure]
regions = ["off"]
at_steps = [0, 5]
at_margins = [0.1]
[axes]
seed = [0, 4294967295]
classes = [[3, 8], [1, 7]]
samples = [4, 6]
"""
AXES = ["width", "seed", "init_scale"]
PARTS = ["cells", "heldout", "heldout-features", "points", "points-features"]


@pytest.fixture
def wide(tmp_path) -> xr.Dataset:
    pytest.importorskip("sklearn", reason="the digits are scikit-learn's, of the extra `data`")
    Store.create(tmp_path / "wide", describe(plan(read(WIDE)))).close()
    return open_results(tmp_path / "wide")


def frame(dataset: xr.Dataset, names: list[str]) -> pd.DataFrame:
    """Some variables as xarray itself makes a table of them."""
    return dataset[names].reset_coords().to_dataframe().reset_index()


def assert_holds(table: pd.DataFrame, dataset: xr.Dataset, names: list[str]) -> None:
    """A table has the rows of a Dataset, in any order."""
    expected = frame(dataset, names)
    keys = [name for name in expected.columns if name in dataset.dims]
    assert len(table) == len(expected) and {*keys, *names} <= set(table.columns)
    for one, other in zip(*(one.sort_values(keys)[[*keys, *names]].T.values for one in (table, expected)), strict=True):
        np.testing.assert_array_equal(np.asarray(one, float), np.asarray(other, float))


@pytest.mark.parametrize("ending", ["nc", "zarr"])
def test_whole_datasets_are_read_back_equal(tmp_path, tiny, ending):
    dataset, path = open_results(tiny), tmp_path / f"tiny.{ending}"
    [written] = sa.export(tiny, path)
    sizes = [one.stat().st_size for one in (path, *path.rglob("*")) if one.is_file()]
    assert written == (path, None, sum(sizes))
    with xr.open_dataset(path) as found:
        xr.testing.assert_equal(found, dataset)
        assert found.attrs == dataset.attrs
        for name, variable in dataset.variables.items():
            assert found[name].dtype.kind == variable.dtype.kind
            np.testing.assert_equal(found[name].attrs, variable.attrs)


@pytest.mark.parametrize("ending", ["nc", "zarr"])
def test_text_large_seeds_infinite_settings_and_snapshots_are_kept(tmp_path, wide, ending):
    sa.export(wide, tmp_path / f"wide.{ending}")
    with xr.open_dataset(tmp_path / f"wide.{ending}") as found:
        xr.testing.assert_equal(found, wide)
        assert found.attrs["stop_margin"] == np.inf and found.sizes["step"] == 3


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_pandas_finds_the_numbers_in_tables(tmp_path, tiny, ending):
    dataset = open_results(tiny)
    written = sa.export(dataset, tmp_path / f"tiny.{ending}")
    rows = {path.stem.removeprefix("tiny-"): rows for path, rows, _ in written if path.suffix == f".{ending}"}
    assert rows == {"cells": 48, "points": 336, "heldout": 768, "points-features": 14, "heldout-features": 32}
    assert all(one.bytes == one.path.stat().st_size for one in written)
    assert {one.path for one in written} == files(tmp_path)
    found = {name: getattr(pd, f"read_{ending}")(tmp_path / f"tiny-{name}.{ending}") for name in rows}
    for name, inner in {"cells": (), "points": ("point",), "heldout": ("heldout",)}.items():
        dims = {*AXES, *inner}
        own = [str(one) for one, values in dataset.data_vars.items() if set(values.dims) == dims]
        assert list(found[name].columns[: len(dims)]) == [*AXES, *inner]
        assert set(found[name].columns) == {*dims, *own, *(["label"] if inner == ("point",) else [])}
        if ending == "csv":  # decimals of float32
            found[name][own] = found[name][own].astype(np.float32)
        assert_holds(found[name], dataset, own)
    labels = found["points"].set_index([*AXES, "point"])["label"].unstack("point")
    assert len(labels) == 48 and (labels == dataset["label"].values).all(axis=None)
    inputs = found["points-features"]
    assert np.array_equal(inputs["input"].astype(np.float32), dataset["input"].values.ravel())
    assert np.isinf(found["points"]["distance_off_l2_upper"]).any()


def test_every_variable_is_in_one_table_and_coordinates_where_they_belong(wide):
    made = exports.tables_of(wide)
    names = ["cells", "steps", "margins", "steps-points", "margins-points", "heldout", "points"]
    assert sorted(table.name for table in made) == sorted([*names, "points-features", "heldout-features"])
    inner = {"step": "steps", "margin_level": "margins", "point": "points", "heldout": "heldout", "feature": "features"}
    for name, variable in wide.data_vars.items():
        [table] = [table for table in made if name in table.columns]
        assert set(table.sizes) == set(variable.dims)
        told = {inner[one] for one in map(str, variable.dims) if one in inner}
        assert set(table.name.split("-")) == (told or {"cells"})
    for table in made:
        assert list(table.columns)[: len(table.sizes)] == list(table.sizes)
        assert ("label" in table.columns) == ("point" in table.sizes)
        assert table.rows == sum(len(block) for block in table.blocks())


def test_tables_of_many_rows_are_written_in_parts(tmp_path, tiny, monkeypatch):
    dataset = open_results(tiny)
    for rows, name in ((exports._ROWS, "whole"), (100, "parts")):
        monkeypatch.setattr(exports, "_ROWS", rows)
        for ending in ("csv", "parquet"):
            sa.export(dataset, tmp_path / f"{name}.{ending}")
    for part in PARTS:
        assert (tmp_path / f"parts-{part}.csv").read_bytes() == (tmp_path / f"whole-{part}.csv").read_bytes()
        pd.testing.assert_frame_equal(*(pd.read_parquet(tmp_path / f"{n}-{part}.parquet") for n in ("parts", "whole")))
    parquet = pytest.importorskip("pyarrow.parquet", reason="of the extra `export`")
    assert parquet.ParquetFile(tmp_path / "parts-points.parquet").num_row_groups == 4


def test_polars_finds_the_numbers(tmp_path, tiny):
    polars = pytest.importorskip("polars", reason="of the group `readers`")
    dataset = open_results(tiny)
    for ending, reader in (("csv", polars.read_csv), ("parquet", polars.read_parquet)):
        sa.export(dataset, tmp_path / f"tiny.{ending}")
        table = reader(tmp_path / f"tiny-points.{ending}")
        picked = table.filter((polars.col("width") == 5) & (polars.col("init_scale") == 0.5)).sort("seed", "point")
        values = dataset["distance_off_l2_upper"].sel(width=5, init_scale=0.5).values.ravel()
        assert np.array_equal(picked["distance_off_l2_upper"].to_numpy().astype(np.float32), values)


def test_duckdb_finds_the_numbers(tmp_path, tiny):
    duckdb = pytest.importorskip("duckdb", reason="of the group `readers`")
    dataset = open_results(tiny)
    means = dataset["gradient_norm_off"].astype(float).mean(["seed", "point"]).values.ravel()
    for ending in ("csv", "parquet"):
        sa.export(dataset, tmp_path / f"tiny.{ending}")
        found = duckdb.sql(
            f"SELECT avg(gradient_norm_off) FROM '{tmp_path / f'tiny-points.{ending}'}' "
            "GROUP BY width, init_scale ORDER BY width, init_scale DESC"
        ).fetchall()
        assert np.array(found).ravel() == pytest.approx(means)


def test_what_is_missing_is_null(tmp_path, wide):
    """And never NaN, which averages of SQL would not pass over."""
    sa.export(wide, tmp_path / "wide.parquet")
    parquet = pytest.importorskip("pyarrow.parquet", reason="of the extra `export`")
    cells = parquet.read_table(tmp_path / "wide-cells.parquet")
    assert parquet.read_table(tmp_path / "wide-steps.parquet")["loss"].null_count == 24
    assert cells["status"].null_count == 0
    assert cells["classes"].to_pylist()[:4] == 2 * ["3, 8"] + 2 * ["1, 7"]


def test_what_the_dataset_says_of_itself_goes_along(tmp_path, tiny, wide):
    dataset = open_results(tiny)
    sa.export(dataset, tmp_path / "tiny.csv")
    sa.export(dataset, tmp_path / "tiny.parquet")
    beside = json.loads((tmp_path / "tiny-attrs.json").read_text())
    within = pd.read_parquet(tmp_path / "tiny-points.parquet").attrs
    for told in (beside, within):
        assert {name: value for name, value in told.items() if name != "variables"} == dataset.attrs
        assert told["variables"]["output"] == dataset["output"].attrs
    assert set(beside["variables"]) == set(map(str, dataset.variables))
    sa.export(wide, tmp_path / "wide.csv")
    text = (tmp_path / "wide-attrs.json").read_text()
    assert json.loads(text, parse_constant=lambda name: pytest.fail(name))["stop_margin"] == "inf"


def test_measures_of_one_network_are_exported(tmp_path):
    """They have no axes."""
    network = sa.Network(*(np.array(values, float) for values in ([[1, 2], [2, -1]], [0, 0.1], [1, -1], 0)))
    x, y = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.5]]), np.array([1, -1, 1])
    found = sa.bracket(network, x, y, regions=["full"])
    [written] = sa.export(found, tmp_path / "one.parquet")
    assert (written.path.name, written.rows) == ("one-points.parquet", 3)
    table = pd.read_parquet(written.path)
    assert np.array_equal(table["distance_full_l2_upper"], found["distance_full_l2_upper"])


@pytest.mark.parametrize("ending", ["nc", "zarr", "parquet", "csv"])
def test_what_is_there_is_replaced_and_nothing_else_is_left(tmp_path, tiny, wide, ending, command):  # noqa: F811
    path = tmp_path / "out" / f"tiny.{ending}"
    path.parent.mkdir()
    sa.export(wide, path)
    status, out, err = command("export", tiny, path)
    assert (status, err) == (0, "")
    told = dict(re.fullmatch(r"(.*): (?:([\d,]+) rows, )?[\d.]+ k?B", line).groups() for line in out.splitlines())
    assert all(Path(one).exists() for one in told)
    if ending in ("nc", "zarr"):
        with xr.open_dataset(path) as found:
            xr.testing.assert_equal(found, open_results(tiny))
        assert told == {str(path): None} and list(path.parent.iterdir()) == [path]
    else:
        assert told[str(path.with_name(f"tiny-points.{ending}"))] == "336"
        assert not [one for one in path.parent.iterdir() if one.name.endswith((".partial", ".former"))]


@pytest.mark.parametrize("ending", ["nc", "zarr", "parquet", "csv"])
def test_an_export_that_fails_leaves_all_as_it_was(tmp_path, tiny, ending, monkeypatch):
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    sa.export(tiny, tmp_path / f"tiny.{ending}")
    before = {path: path.read_bytes() for path in files(tmp_path) if path.is_file()}
    monkeypatch.setattr(exports, "_bytes", full)
    with pytest.raises(UserError, match=rf"tiny\.{ending}: cannot be written: No space left on device"):
        sa.export(tiny, tmp_path / f"tiny.{ending}")
    assert {path: path.read_bytes() for path in files(tmp_path) if path.is_file()} == before


@pytest.mark.parametrize(
    ("file", "told"),
    [
        ("out.xlsx", "out.xlsx: has the ending '.xlsx'; must be '.nc', '.zarr', '.parquet' or '.csv'"),
        ("out.cvs", "must be '.nc', '.zarr', '.parquet' or '.csv'; did you mean '.csv'?"),
        ("out", "out: has the ending ''; must be"),
        ("nowhere/out.csv", "nowhere/out.csv: cannot be written: No such file or directory"),
        ("nowhere/out.zarr", "nowhere/out.zarr: cannot be written: No such file or directory"),
        ("file/out.nc", "file/out.nc: cannot be written: Not a directory"),
        ("folder.zarr", "folder.zarr: is a folder that is no Zarr store; choose another name"),
        ("folder.nc", "folder.nc: is a folder; choose another name"),
        ("store.nc", "store.nc: is a folder; choose another name"),
        ("folder.csv", "folder-points.csv: is a folder; choose another name"),
        ("folder.parquet", "folder-cells.parquet: is a folder; choose another name"),
    ],
)
def test_places_that_are_none_are_refused(tmp_path, tiny, command, monkeypatch, file, told):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    for name in ("folder.zarr", "folder.nc", "store.nc", "folder-points.csv", "folder-cells.parquet"):
        Path(name).mkdir()
        Path(name, "mine.txt").write_text("kept")
    Path("store.nc", "zarr.json").write_text("kept")
    Path("file").write_text("kept")
    before = files(tmp_path)
    assert_refused(command("export", tiny, file), told)
    assert files(tmp_path) == before


def test_what_is_no_results_folder_is_refused(tmp_path, command):  # noqa: F811
    assert_refused(command("export", tmp_path, tmp_path / "out.csv"), str(tmp_path))
    assert files(tmp_path) == set()


@pytest.mark.parametrize(("ending", "library"), [("zarr", "zarr"), ("parquet", "pyarrow")])
def test_what_must_be_installed_is_told(tmp_path, tiny, command, monkeypatch, ending, library):  # noqa: F811
    monkeypatch.setitem(sys.modules, library, None)
    told = f"needs {library} to be written; install it by pip install 'subspace-adv[export]'"
    assert_refused(command("export", tiny, tmp_path / f"out.{ending}"), told)


def test_csv_and_json_hold_the_numbers_unrounded(tiny, command: Command):  # noqa: F811
    expected = tables.summarize(open_results(tiny))
    told = {form: command("table", tiny, "--format", form) for form in ("csv", "json")}
    assert all((status, err) == (0, "") for status, _, err in told.values())
    of_csv = list(csv.DictReader(io.StringIO(told["csv"][1])))
    of_json = json.loads(told["json"][1], parse_constant=lambda name: pytest.fail(name))
    assert [list(row) for row in of_json] == [list(row) for row in of_csv]
    assert pd.read_json(io.StringIO(told["json"][1])).shape == pd.read_csv(io.StringIO(told["csv"][1])).shape
    for row, *both in zip(expected, of_csv, of_json, strict=True):
        for found in both:
            number = {name: float(value) if value not in (None, "") else np.nan for name, value in found.items()}
            assert (number["width"], number["init_scale"]) == (row.arm["width"], row.arm["init_scale"])
            assert (number["networks"], number["converged"], number["steps"]) == (12, row.converged, row.steps)
            gain = row.gain.get(("off", "l2"), (np.nan,) * 3)
            told_of = {"gradient_norm_off": row.gradient_off, "distance_off_l2_upper": row.distance["off", "l2"]}
            for name, estimate in (told_of | {"gain_off_l2": gain}).items():
                here = [number[f"{name}_{part}"] for part in Estimate._fields]
                np.testing.assert_array_equal(here, estimate)


def latex_tables(text: str) -> list[list[list[str]]]:
    """The cells of each tabular, by a parser of LaTeX, as plain text."""
    walker = pytest.importorskip("pylatexenc.latexwalker", reason="of the group `readers`")
    plain = pytest.importorskip("pylatexenc.latex2text", reason="of the group `readers`").LatexNodes2Text()
    nodes, _, _ = walker.LatexWalker(text, tolerant_parsing=False).get_latex_nodes()
    made = []
    for node in nodes:
        if node.isNodeType(walker.LatexEnvironmentNode):
            assert node.environmentname == "tabular"
            body = "".join(one.latex_verbatim() for one in node.nodelist[1 if node.nodeargd is None else 0 :])
            body = re.sub(r"\\(top|mid|bottom)rule", "", re.sub(r"^\s*\{r+\}", "", body))
            lines = [line for line in body.split(r"\\") if line.strip()]
            made.append([[plain.latex_to_text(cell).strip() for cell in line.split(" & ")] for line in lines])
    return made


def test_latex_is_parsed_and_holds_what_the_text_tells(tiny, command: Command):  # noqa: F811
    status, out, err = command("table", tiny, "--format", "latex")
    assert (status, err) == (0, "") and out.startswith(
        "% \\usepackage{booktabs}\n\\begin{tabular}{rrrrrrrr}\n\\toprule"
    )
    [table] = latex_tables(out)
    heads, *body = table
    told = [list(row) for row in formats.rows(reports.summary(open_results(tiny)))]
    assert heads == [
        "width",
        "init_scale",
        "networks",
        "converged",
        "steps",
        "gradient off",
        "distance off",
        "gain off",
    ]
    assert [[re.sub(r"\s", "", cell).replace("∞", "inf") for cell in row] for row in body] == [
        [re.sub(r"\s", "", cell) for cell in row] for row in told
    ]


AWKWARD = [
    Column("kind", "a_kind & 100% of #1 {x} ~ ^ $5", ["my_package.a:B", "[x] <b>|*c*", "\\d"]),
    Column("count", "n", [1234567, 0, -3], ",", 0),
    Column("share", "share", [0.001, 0.999, float("nan")], formats.SHARE, 0),
    Column("tiny", "tiny", [Estimate(1.5e-7, -2e-9, 3e12), Estimate(*3 * [np.inf]), None], "+.3g", 0),
    Column("other", "other block", [-np.inf, np.nan, 1.0], ".3g", 1),
    Column("flag", "flag", [True, False, True], "g", 1),
]


def test_what_latex_reads_otherwise_is_escaped():
    first, second = latex_tables(FORMATS["latex"](AWKWARD))
    assert first[0][1:] == ["n", "share", "tiny"] and second[0] == [first[0][0], "other block", "flag"]
    assert [row[0] for row in second[1:]] == ["my_package.a:B", "[x] <b>|*c*", "\\d"]
    assert [row[2] for row in first[1:]] == ["<1%", ">99%", "–"]
    text = FORMATS["latex"](AWKWARD)
    assert r"a\_kind \& 100\% of \#1 \{x\} \textasciitilde{} \textasciicircum{} \$5" in text
    assert r"$+1.5 \times 10^{-7}$ [$-2 \times 10^{-9}$, $+3 \times 10^{12}$]" in text
    assert r"$+\infty$" in text and r"$-\infty$" in text and "$1{,}234{,}567$" in text


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs a TeX distribution to compile")
def test_latex_compiles_as_it_is(tmp_path, tiny):
    told = FORMATS["latex"](reports.summary(open_results(tiny))) + "\n" + FORMATS["latex"](AWKWARD)
    preamble = "\\documentclass{article}\n\\usepackage{booktabs}\n\\begin{document}\n"
    write(tmp_path, f"{preamble}{told}\n\\end{{document}}\n", "table.tex")
    status, out, _ = call("pdflatex", "-interaction=nonstopmode", "-halt-on-error", "table.tex", cwd=tmp_path)
    assert status == 0, out
    assert (tmp_path / "table.pdf").exists() and "Missing character" not in (tmp_path / "table.log").read_text()


def test_markdown_has_as_many_cells_in_each_row():
    tables_told = FORMATS["md"](AWKWARD).split("\n\n")
    assert [table.count("\n") for table in tables_told] == [4, 5]
    for table, columns in zip(tables_told, (4, 3), strict=True):
        heads, rule, *body = [re.split(r"(?<!\\)\|", line)[1:-1] for line in table.strip().splitlines()]
        assert {len(line) for line in (heads, rule, *body)} == {columns} and set(rule) == {" ---: "}
        assert body[1][0] == r" \[x\] \<b>\|\*c\* "


def test_csv_and_json_of_awkward_cells_parse_back():
    rows = list(csv.DictReader(io.StringIO(FORMATS["csv"](AWKWARD))))
    assert [row["kind"] for row in rows] == AWKWARD[0].cells
    assert rows[1]["tiny_median"] == "inf" and rows[2]["tiny_low"] == "" and rows[2]["share"] == ""
    found = json.loads(FORMATS["json"](AWKWARD))
    assert [row["kind"] for row in found] == AWKWARD[0].cells
    assert found[0]["other"] == "-inf" and found[1]["other"] is None and found[0]["flag"] is True
    assert found[1]["tiny_median"] == "inf" and found[2]["tiny_low"] is None


@pytest.mark.parametrize("form", ["md", "latex", "csv", "json"])
def test_every_norm_is_in_every_format(tiny, form):
    dataset = open_results(tiny)
    for side in ("lower", "upper"):
        dataset[f"distance_on_linf_{side}"] = 2 * dataset[f"distance_off_l2_{side}"]
    text = FORMATS[form](reports.summary(dataset))
    assert ("distance on linf" if form in ("md", "latex") else "distance_on_linf_upper_median") in text
    assert text.count("\\begin{tabular}") == (2 if form == "latex" else 0)


def test_formats_that_are_none_and_sizes_without_robust_accuracy_are_refused(tiny, command):  # noqa: F811
    assert_refused(command("table", tiny, "--format", "markdown"), '"markdown"', "--format", '"md"', '"latex"')
    told = "command line: --epsilon: changes nothing with --format csv, which has no robust accuracy"
    assert_refused(command("table", tiny, "--format", "csv", "--epsilon", "0.1"), told)
    assert command("table", tiny, "--format", "text", "--epsilon", "0.1")[0] == 0
