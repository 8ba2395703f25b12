"""Points of your own: what is read of a file, which points are chosen, and the subspace that is fitted to them."""

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import ml_dtypes
import numpy as np
import pandas as pd
import pytest
from shell import PRINT_PEAK, environment, files, read, write
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.preprocessing import StandardScaler

from subspace_adv import Sweep, UserError, cli, engine, load_networks, load_points, open_results, plan, run
from subspace_adv.data import HELDOUT, Data
from subspace_adv.datasets import load_data, load_span
from subspace_adv.manifest import describe
from subspace_adv.store import Store

SMALL = """
name = "own"
[data]
kind = "file"
path = "points.npz"
[network]
width = 3
[training]
max_steps = 30
learning_rate = 0.5
[measure]
regions = ["off"]
[axes]
seed = "0:3"
"""


def drawn(n: int = 24, d: int = 6, *, seed: int = 0, labels: tuple = (0, 1)) -> tuple[np.ndarray, np.ndarray]:
    """Points that are not centred, longer along some directions than others, and labels."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d)) * np.geomspace(4, 0.5, d) @ np.linalg.qr(rng.standard_normal((d, d)))[0] + 1.5
    return x, np.array(labels)[np.arange(n) % len(labels)]


def saved(folder: Path, x: np.ndarray, y: np.ndarray, ending: str = ".npz", **others: np.ndarray) -> Path:
    """A file of points as NumPy or pandas writes it."""
    path = folder / f"points{ending}"
    table = pd.DataFrame(x, columns=[f"x{i}" for i in range(x.shape[1])])
    table.insert(1, "label", y)
    if ending == ".npz":
        np.savez(path, x=x, y=y, **others)  # pyright: ignore[reportArgumentType]
    elif ending == ".csv":
        table.to_csv(path, index=False)
    else:
        table.to_parquet(path)
    return path


def dataset(path: Path, **fields: object) -> tuple[Data, np.ndarray]:
    """A dataset of a file, and the basis (d, r) of its span."""
    sweep = Sweep(data={"kind": "file", "path": str(path), **fields})
    settings = sweep.dataset({})
    data, span = load_data(settings), np.asarray(load_span(settings).basis)
    np.testing.assert_allclose(span.T @ span, np.eye(span.shape[1]), atol=1e-12)
    shape = settings.shape
    assert (shape.samples, shape.ambient_dim, shape.span_dim) == (len(data.x), *span.shape)
    assert np.asarray(data.subspace.basis).shape == (shape.span_dim, shape.subspace_dim)
    whole = np.concatenate([np.asarray(part) for part in data.subspace], axis=1)
    np.testing.assert_allclose(whole.T @ whole, np.eye(shape.span_dim), atol=1e-12)
    return data, span


def projector(basis: np.ndarray) -> np.ndarray:
    return basis @ np.linalg.pinv(basis)


SHAPES = {"n > d": (24, 6), "n < d": (10, 40), "n = d": (6, 6)}


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_centred_fit_is_that_of_pca(tmp_path, shape, k):
    """Affine: in the file's coordinates, projections are what scikit-learn takes the points back to."""
    x, y = drawn(*SHAPES[shape])
    pca = PCA(k).fit(x)
    for fit, expected in (("project", pca.inverse_transform(pca.transform(x))), ("keep", x)):
        data, span = dataset(saved(tmp_path, x, y), subspace_dim=k, center=True, fit=fit)
        np.testing.assert_allclose(data.x @ span.T + x.mean(axis=0), expected, atol=1e-6 * np.abs(x).max())
        found = projector(span @ np.asarray(data.subspace.basis))
        np.testing.assert_allclose(found, projector(pca.components_.T), atol=1e-6)
        assert np.asarray(data.subspace.complement).shape[1] == (0 if fit == "project" else span.shape[1] - k)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_fit_that_is_not_centred_is_that_of_a_singular_value_decomposition(tmp_path, shape, k):
    x, y = drawn(*SHAPES[shape])
    svd = TruncatedSVD(k, algorithm="arpack", random_state=0).fit(x)
    data, span = dataset(saved(tmp_path, x, y), subspace_dim=k)
    expected = svd.inverse_transform(svd.transform(x))
    np.testing.assert_allclose(data.x @ span.T, expected, atol=1e-6 * np.abs(x).max())
    _, _, vh = np.linalg.svd(x)
    np.testing.assert_allclose(projector(span), projector(vh[:k].T), atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_points_that_repeat_and_columns_that_do_not_vary_have_the_rank_that_they_have(tmp_path, shape):
    n, d = SHAPES[shape]
    x, y = drawn(n, d)
    x[:, 2] = 0.1
    x[n // 2 :] = x[: n - n // 2]
    for center in (False, True):
        moved = x - x.mean(axis=0) if center else x
        rank = int(np.linalg.matrix_rank(moved))
        for fit in ("project", "keep"):
            data, span = dataset(saved(tmp_path, x, y), center=center, fit=fit)
            assert span.shape == (d, rank)
            np.testing.assert_allclose(data.x @ span.T, moved, atol=1e-6 * np.abs(x).max())
        with pytest.raises(UserError, match=rf"subspace_dim = {rank + 1}: the {n} points.*at most {rank} is possible"):
            dataset(tmp_path / "points.npz", center=center, subspace_dim=rank + 1)


def test_points_in_a_subspace_but_for_the_rounding_of_float32_span_it(tmp_path):
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((50, 3)) @ rng.standard_normal((3, 20))).astype(np.float32)
    assert np.linalg.matrix_rank(x.astype(np.float64)) == 20
    _, span = dataset(saved(tmp_path, x, np.arange(50) % 2), fit="keep")
    assert span.shape == (20, 3)


def test_scales_are_those_of_scikit_learn_after_centring_and_held_out_points_are_moved_alike(tmp_path):
    x, y = drawn(20)
    x[:, 3] = 0.1
    further = drawn(9, seed=1)
    path = saved(tmp_path, x, y, heldout_x=further[0], heldout_y=further[1])
    for center in (False, True):
        origin = x.mean(axis=0) if center else 0
        length = np.sqrt(np.mean(np.sum((x - origin) ** 2, axis=1)))
        deviation = StandardScaler().fit(x).scale_
        for scale, factor in ((2.5, 2.5), ("length", 1 / length), ("columns", 1 / np.asarray(deviation))):
            data, span = dataset(path, center=center, scale=scale, fit="keep")
            np.testing.assert_allclose(data.x @ span.T, (x - origin) * factor, rtol=1e-5, atol=1e-5)
            expected = (further[0] - origin) * factor @ projector(span)
            np.testing.assert_allclose(data.heldout[:9] @ span.T, expected, rtol=1e-5, atol=1e-5)
            assert np.isnan(data.heldout[9:]).all() and data.heldout.shape[0] == HELDOUT


@pytest.mark.parametrize("fit", ["project", "keep"])
def test_a_basis_that_is_given_is_the_subspace(tmp_path, fit):
    x, y = drawn()
    basis = np.random.default_rng(3).standard_normal((6, 2))
    path = saved(tmp_path, x, y, basis=basis)
    for scale, stretched in ((1.0, basis), ("columns", basis / x.std(axis=0)[:, None])):
        data, span = dataset(path, center=True, scale=scale, fit=fit)
        moved = (x - x.mean(axis=0)) / (1 if scale == 1.0 else x.std(axis=0))
        np.testing.assert_allclose(projector(span @ np.asarray(data.subspace.basis)), projector(stretched), atol=1e-9)
        expected = moved @ projector(stretched) if fit == "project" else moved
        np.testing.assert_allclose(data.x @ span.T, expected, atol=1e-5)
    assert dataset(path, subspace_dim=2)[1].shape == (6, 2)
    with pytest.raises(UserError, match="subspace_dim = 3: the basis that is given with the points has 2 columns"):
        dataset(path, subspace_dim=3)


def test_a_span_of_coordinate_axes_is_told_as_such(tmp_path):
    x, y = drawn(12, 4)
    x[:, 1] = 0
    path = saved(tmp_path, x, y)
    settings = Sweep(data={"kind": "file", "path": path}).dataset({})
    assert settings.is_axis_aligned
    np.testing.assert_array_equal(load_span(settings).basis, np.eye(4)[:, [0, 2, 3]])
    assert not Sweep(data={"kind": "file", "path": path, "subspace_dim": 2}).dataset({}).is_axis_aligned
    x[:, 2] *= 1e-3  # the subspace is of two axes within a span of three
    x[:, 0], x[:, 3] = np.tile([3.0, 0.0, -3.0, 0.0], 3), np.tile([0.0, 1.0, 0.0, -1.0], 3)
    x[:, 2] = np.tile([1e-3, 1e-3, 1e-3, 1e-3], 3)
    keep = Sweep(data={"kind": "file", "path": saved(tmp_path, x, y), "subspace_dim": 2, "fit": "keep"}).dataset({})
    assert keep.is_axis_aligned and keep.shape[1:4] == (4, 2, 3)
    data, span = load_data(keep), load_span(keep).basis
    np.testing.assert_array_equal(projector(span @ np.asarray(data.subspace.basis)), np.diag([1.0, 0, 0, 1]))
    np.testing.assert_allclose(data.x @ span.T, x, atol=1e-7)


def test_a_smaller_sample_is_the_first_of_a_larger_one_as_are_its_labels(tmp_path):
    x, y = drawn(30, labels=(3, 8, 8))  # 10 and 20
    path = saved(tmp_path, x, y)
    fields = {"classes": [8, 3], "fit": "keep", "data_seed": 4}
    whole, span = dataset(path, samples=21, **fields)
    points = whole.x @ span.T
    assert [np.sum(whole.y == sign) for sign in (-1, 1)] == [11, 10]
    rows = [int(np.abs(x - point).sum(axis=1).argmin()) for point in points]
    np.testing.assert_allclose(points, x[rows], atol=1e-5)
    assert len(set(rows)) == 21 and (np.where(y[rows] == 8, -1, 1) == whole.y).all()
    assert rows != sorted(rows)
    for n in (1, 2, 7, 20):
        data, basis = dataset(path, samples=n, **fields)
        np.testing.assert_allclose(data.x @ basis.T, points[:n], atol=1e-5)
        np.testing.assert_array_equal(data.y, whole.y[:n])
        assert abs(data.y.sum()) == n % 2
    # Held out are others, projected onto the span.
    data, basis = dataset(path, samples=20, **fields)
    beyond = data.heldout[:10] @ basis.T
    assert np.isnan(data.heldout[10:]).all()
    assert {int(np.abs(x - point).sum(axis=1).argmin()) for point in beyond}.isdisjoint(rows[:20])
    other, _ = dataset(path, samples=21, **fields | {"data_seed": 5})
    assert not np.allclose(np.sort(np.abs(other.x), axis=None), np.sort(np.abs(whole.x), axis=None))
    with pytest.raises(UserError, match=r"samples = 22: there are 20 points of one class and 10 of the other.*most 21"):
        dataset(path, samples=22, **fields)


def test_all_points_are_taken_in_the_order_of_the_file_and_classes_are_two_labels_of_any_type(tmp_path):
    x, _ = drawn(9)
    for labels, classes, signs in (
        ((0, 1), None, (-1, 1)),
        ((7.5, -2.0), None, (1, -1)),
        (("cat", "ant"), None, (1, -1)),
        ((3, 8), [8, 3], (1, -1)),
        ((3.0, 8.0), [3, 8], (-1, 1)),
        (("3", "8"), [3, 8], (-1, 1)),
        ((True, False), None, (1, -1)),
    ):
        y = np.array(labels)[np.arange(9) % 2]
        for ending in (".npz", ".csv", ".parquet"):
            data, span = dataset(saved(tmp_path, x, y, ending), **{"classes": classes} if classes else {})
            np.testing.assert_array_equal(data.y, np.array(signs)[np.arange(9) % 2])
            np.testing.assert_allclose(data.x @ span.T, x, atol=1e-5)
            assert np.isnan(data.heldout).all()


def test_digits_are_those_of_scikit_learn():
    digits = load_digits()
    sweep = Sweep(data={"kind": "digits", "classes": [3, 8]})
    settings = sweep.dataset({})
    which = np.isin(digits.target, (3, 8))
    data = load_data(settings)
    np.testing.assert_allclose(data.x @ load_span(settings).basis.T, digits.data[which], atol=1e-4)
    np.testing.assert_array_equal(data.y, np.where(digits.target[which] == 8, 1, -1))
    with pytest.raises(
        UserError, match=r"kind = digits: points have 10 labels, 0, 1, .*; choose two of them, as classes"
    ):
        Sweep(data={"kind": "digits"})


@pytest.mark.slow
def test_results_are_the_same_whatever_the_format_and_those_of_the_digits_themselves(tmp_path):
    digits = load_digits()
    fields = {"classes": [3, 8], "samples": 12, "center": True, "scale": "length", "subspace_dim": 3}
    found = []
    for kind in ("digits", ".npz", ".csv", ".parquet"):
        given = {"kind": "digits"}
        if kind != "digits":
            folder = tmp_path / kind[1:]
            folder.mkdir()
            given = {"kind": "file", "path": saved(folder, digits.data, digits.target, kind)}
        sweep = Sweep(
            "own",
            data=given | fields,
            network={"width": 3},
            training={"max_steps": 300, "learning_rate": 0.5},
            measure={"regions": ["off", "on"]},
            axes={"seed": range(3), "fit": ["project", "keep"]},
        )
        found.append(run(sweep, tmp_path / "results" / kind))
    first = found[0]
    assert set(first.attrs) - {"kind"} <= set(found[1].attrs)
    assert first.attrs["classes"] == "3, 8" and first.attrs["samples"] == 12 and first.attrs["ambient_dim"] == 64
    assert np.isfinite(first["predicted_gradient_norm_off"]).all()  # off the span nothing learns, whatever the fit
    assert (first["gradient_norm_off_learned"].sel(fit="keep") > 0).any()  # but where no neuron is active
    assert (first["gradient_norm_off_learned"].sel(fit="project") == 0).all()
    assert np.isnan(first["predicted_distance_universal"].sel(fit="keep")).all()
    assert np.isfinite(first["distance_universal_heldout"]).any()
    for other in found[1:]:
        assert first.equals(other)


LATER = [{"kind": "file"}, {"kind": "digits", "classes": [3, 8], "samples": 12}]


def bad_files(folder: Path) -> None:
    """Files with something wrong, beside a good one."""
    x, y = drawn(8)
    saved(folder, x, y)
    whole = (folder / "points.npz").read_bytes()
    (folder / "half.npz").write_bytes(whole[: len(whole) // 2])
    (folder / "bit.npz").write_bytes(whole[:200] + bytes([whole[200] ^ 255]) + whole[201:])
    (folder / "text.npz").write_text("x y")
    (folder / "text.parquet").write_text("x y")
    (folder / "empty.csv").write_text("")
    (folder / "points.txt").write_text("1 2")
    (folder / "latin.csv").write_bytes(b"a,label\n\xff,1\n")
    (folder / "rows.csv").write_text("a,label\n1,2,3\n")
    (folder / "numbered.csv").write_text("a,label\n1,2,1\n2,3,-1\n3,4,1\n")  # which pandas takes for rows' numbers
    (folder / "twice.csv").write_text("a,a,label\n1,2,3\n")
    (folder / "none.csv").write_text("a,label\n")
    (folder / "unlabelled.csv").write_text("a,label\n1,2\n3,\n")
    pd.DataFrame({"a": [1.0, 2.0], "label": [1, 2]}).to_csv(folder / "index.csv")
    pd.DataFrame({"a": [1.0, 2.0], "b": ["p", "q"], "label": [1, 2]}).to_parquet(folder / "words.parquet")
    pd.DataFrame({"a": [1.0, None], "label": [1, 2]}).to_csv(folder / "missing.csv", index=False)
    (folder / "semicolons.csv").write_text("a;b;label\n1;2;3\n")
    (folder / "lost.npz").symlink_to("nowhere.npz")
    holes, three = x.copy(), np.arange(8) % 3
    holes[3, 1] = np.nan
    arrays = {
        "no_y": {"x": x},
        "no_x": {"inputs": x, "y": y},
        "flat": {"x": x[:, 0], "y": y},
        "short": {"x": x, "y": y[:5]},
        "nan": {"x": holes, "y": y},
        "inf": {"x": x / 0, "y": y},
        "objects": {"x": x, "y": np.array([None] * 8)},
        "complex": {"x": x + 1j, "y": y},
        "three": {"x": x, "y": three},
        "one": {"x": x, "y": y * 0},
        "zero": {"x": x * 0, "y": y},
        "huge": {"x": x * 1e30, "y": y},
        "basis": {"x": x, "y": y, "basis": np.ones((6, 2))},
        "brain": {"x": x.astype(ml_dtypes.bfloat16), "y": y},
        "heldout": {"x": x, "y": y, "heldout_x": x},
        "more": {"x": x, "y": y, "bassis": np.ones((6, 2))},
        "strangers": {"x": x, "y": y, "heldout_x": x, "heldout_y": y + 7},
        "narrow": {"x": x, "y": y, "heldout_x": x[:, :2], "heldout_y": y},
    }
    with np.errstate(divide="ignore"):
        for name, content in arrays.items():
            np.savez(folder / f"{name}.npz", **content)


BAD_FILES = {
    "point.npz": "no such file; did you mean 'points.npz'?",
    "half.npz": "damaged, or no .npz file",
    "bit.npz": "damaged, or no .npz file",
    "text.npz": "damaged, or no .npz file: no archive of arrays, as numpy.savez",
    "text.parquet": "damaged, or no .parquet file",
    "empty.csv": "is empty; its first line must name the columns",
    "points.txt": "has the ending '.txt'; points are read from files that end in .npz, .csv, .parquet",
    "latin.csv": "not UTF-8 text (byte",
    "rows.csv": "rows have more values than the first line names columns",
    "numbered.csv": "rows have more values than the first line names columns",
    "twice.csv": "has two columns 'a'",
    "none.csv": "has 0 rows and 1 columns of coordinates",
    "unlabelled.csv": "row 2 has no label",
    "index.csv": "column number 1 has no name; where it holds the rows' numbers, leave it out by DataFrame.to_csv(",
    "words.parquet": "column 'b' holds 'p': must be numbers",
    "missing.csv": "row 2, column 'a' is nan: must be a finite number",
    "more.npz": "has an array 'bassis', which is not read; leave it out; did you mean 'basis'?",
    "semicolons.csv": "has one column, 'a;b;label'; separate columns by commas, not by ';'",
    "lost.npz": "links to nowhere.npz, which is no file",
    "strangers.npz": "no held-out point has a label of the two classes; there: [7, 8]",
    "no_y.npz": "has no y; numpy.savez(path, x=…, y=…) saves both; there: x",
    "no_x.npz": "has no x; numpy.savez(path, x=…, y=…) saves both; there: inputs, y",
    "flat.npz": "x is of shape (8,): must be (n, d), a row for each point",
    "short.npz": "y is of shape (5,): must be (8,), a label for each point",
    "nan.npz": "x[3, 1] is nan: must be a finite number",
    "inf.npz": "x[0, 0] is inf: must be a finite number",
    "objects.npz": "y is of type object, of Python objects; save numbers, or labels as text by y.astype(str)",
    "brain.npz": "x is of type |V2, as bfloat16 and other types that NumPy lacks are saved; save it as float32",
    "complex.npz": "x is of type complex128: must be real numbers",
    "three.npz": "points have 3 labels, 0, 1, 2; choose two of them, as classes",
    "one.npz": "points have 1 label, 0; there must be two",
    "zero.npz": "all are 0; there is no subspace",
    "huge.npz": "too far from 1 for float32, in which networks train; scale the points",
    "basis.npz": "basis: must be finite, and its columns linearly independent",
    "heldout.npz": "has one of heldout_x and heldout_y; save both, or none",
    "narrow.npz": "heldout_x is of shape (8, 2), and x of (8, 6): must have as many columns",
}

BAD_FIELDS = {
    "no path": ('kind = "file"', "FILE: data.path = '': no file is named; set it, such as path = 'points.npz'"),
    "a path that is no text": ('kind = "file"\npath = 3', "FILE: data.path = 3: must be text"),
    "too few": (
        'kind = "file"\npath = "points.npz"\nsamples = 9',
        "FILE: data.samples = 9: there are 4 points of one class and 4 of the other, of which as",
    ),
    "over the rank": (
        'kind = "file"\npath = "points.npz"\nsubspace_dim = 7',
        "FILE: data.subspace_dim = 7: the 8 points span 6 dimensions; at most 6 is possible",
    ),
    "over the rank of a sample on an axis": (
        'kind = "file"\npath = "points.npz"\ncenter = true\n[axes]\nsubspace_dim = [1, 3]\nsamples = [8, 3]',
        "FILE: axes.subspace_dim = 3: the 3 points less their mean span 2 dimensions; at most 2 is possible",
    ),
    "a class that is not there": (
        'kind = "file"\npath = "points.npz"\nclasses = [0, 9]',
        "FILE: data.classes = [0, 9]: no point has the label 9; there: 0, 1",
    ),
    "a class that is not there on an axis": (
        'kind = "digits"\n[axes]\nclasses = [[3, 8], [3, 11]]',
        "FILE: axes.classes = [3, 11]: no point has the label 11; there: 0, 1, 2",
    ),
    "three classes": (
        'kind = "digits"\nclasses = [1, 2, 3]',
        "FILE: data.classes = [1, 2, 3]: must be a list of two labels",
    ),
    "one class twice": ('kind = "digits"\nclasses = [1, 1]', "FILE: data.classes = [1, 1]: 1 is listed twice"),
    "classes on an axis that are no pairs": (
        'kind = "digits"\n[axes]\nclasses = [3, 8]',
        "FILE: axes.classes = 3: must be a list of two labels, such as [3, 8]",
    ),
    "a column of an npz": (
        'kind = "file"\npath = "points.npz"\nlabel_column = "y"',
        "FILE: data.label_column = y: changes nothing; an .npz has its labels in y",
    ),
    "a column that is not there": (
        'kind = "file"\npath = "missing.csv"\nlabel_column = "lable"',
        "missing.csv: has no column 'lable' of labels; did you mean 'label'?",
    ),
    "scale": (
        'kind = "digits"\nscale = "lenght"',
        "FILE: data.scale = 'lenght': must be a positive number, 'length' or ",
    ),
    "no scale": ('kind = "digits"\nscale = 0', "FILE: data.scale = 0: must be a number between"),
    "a mixed axis": (
        'kind = "digits"\n[axes]\nscale = [1.0, "length"]',
        "FILE: axes.scale: must be all numbers or all",
    ),
    "center": ('kind = "digits"\ncenter = "yes"', "FILE: data.center = 'yes': "),
    "seeds of all points": (
        'kind = "digits"\nclasses = [3, 8]\n[axes]\ndata_seed = [0, 1]',
        "FILE: axes.data_seed = [0, 1]: changes nothing, as all points are taken; set samples",
    ),
    **{
        f"{leaf} of a synthetic kind": (
            f'kind = "subspace"\n{leaf} = {value}',
            f"FILE: data.{leaf} = ",
            "changes nothing; it is read where kind = 'file'",
            "; leave it out",
        )
        for leaf, value in {
            "fit": '"keep"',
            "path": '"points.npz"',
            "label_column": '"y"',
            "classes": "[3, 8]",
            "center": "true",
            "scale": "2.0",
        }.items()
    },
}


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What the command line says, in this process."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        cli.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert (ended.value.code, out, err.count("\n")) == (2, "", 1) and err.endswith("\n")
    return err.removeprefix("subspace-adv: ").rstrip("\n")


@pytest.mark.filterwarnings("ignore:divide by zero")
def test_whatever_is_wrong_with_a_file_is_told_in_one_line_and_nothing_is_written(tmp_path, capsys):
    bad_files(tmp_path)
    for name, words in BAD_FILES.items():
        sweep = write(tmp_path, SMALL.replace("points.npz", name))
        there = files(tmp_path)
        message = refused(capsys, "run", sweep, "--out", tmp_path / "out")
        assert message.startswith(f"{sweep}: data.path = {tmp_path / name}: "), message
        assert words in message and len(message) < 500, message
        assert files(tmp_path) == there


@pytest.mark.filterwarnings("ignore:divide by zero")
@pytest.mark.parametrize("verb", ["run", "plan"])
def test_fields_that_do_not_fit_the_points_are_refused(tmp_path, capsys, monkeypatch, verb):
    bad_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    for case, (text, start, *words) in BAD_FIELDS.items():
        sweep = write(tmp_path, f"[data]\n{text}\n")
        there = files(tmp_path)
        message = refused(capsys, verb, sweep)
        assert start.replace("FILE", str(sweep)) in message, (case, message)
        assert all(some in message for some in words), (case, message)
        assert files(tmp_path) == there


@pytest.mark.parametrize(
    ("module", "data"), [("pyarrow", {"kind": "file", "path": "x.parquet"}), ("sklearn", LATER[1])]
)
def test_without_a_library_what_to_install_is_told(tmp_path, monkeypatch, module, data):
    """As where it is not installed; in a process that has read nothing yet."""
    saved(tmp_path, *drawn(), ".parquet").rename(tmp_path / "x.parquet")
    text = (
        f"import sys; sys.modules[{module!r}] = None\nimport subspace_adv\n"
        f"try:\n    subspace_adv.Sweep(data={data!r})\nexcept subspace_adv.UserError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", text], cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert done.stdout.endswith("install it by pip install 'subspace-adv[data]'\n"), done.stderr
    assert done.stdout.count("\n") == 1


def test_a_path_is_relative_to_where_it_is_written(tmp_path, monkeypatch):
    (tmp_path / "sweeps").mkdir()
    saved(tmp_path / "sweeps", *drawn())
    saved(tmp_path, *drawn(26))
    sweep = write(tmp_path / "sweeps", SMALL)
    monkeypatch.chdir(tmp_path)
    of_file, of_line = Sweep.from_toml(sweep), Sweep.from_toml(sweep, "path=points.npz")
    in_python = Sweep(data={"kind": "file", "path": Path("points.npz")})
    paths = [each.values("path") for each in (of_file, of_line, in_python)]
    assert paths == [(str(tmp_path / "sweeps" / "points.npz"),), *[(str(tmp_path / "points.npz"),)] * 2]
    assert [each.dataset({}).shape.samples for each in (of_file, of_line, in_python)] == [24, 26, 26]
    several = write(tmp_path / "sweeps", SMALL + 'path = ["points.npz", "../points.npz"]\n', "two.toml")
    assert Sweep.from_toml(several).values("path") == (*paths[0], *paths[1])
    assert read(of_file.to_toml()) == of_file


def test_lists_as_axes_are_written_in_the_file_and_one_is_set_on_the_command_line():
    text = '[data]\nkind = "digits"\nsamples = 10\n[axes]\nclasses = [[3, 8], [1, 7]]\nsubspace_dim = [1, 2]\n'
    sweep = read(text)
    assert sweep.axes["classes"] == ((3, 8), (1, 7)) and sweep.cells == 4
    assert read(sweep.to_toml()) == sweep
    assert sweep.coordinate("classes").tolist() == ["3, 8", "1, 7"]
    assert sweep.column("classes", np.arange(4)).tolist() == [(3, 8)] * 2 + [(1, 7)] * 2
    assert read(text, "classes=4,9").axes["classes"] == ((4, 9),)
    assert read('[data]\nkind = "digits"\nclasses = [3, 8]\n', "classes=4,9").values("classes") == ((4, 9),)


@pytest.mark.slow
def test_networks_and_points_are_selected_by_lists_as_the_sweep_file_has_them(tmp_path):
    text = """
        [data]
        kind = "digits"
        samples = 10
        [network]
        width = 3
        [training]
        max_steps = 2
        [measure]
        regions = ["off"]
        restarts = 1
        [axes]
        classes = [[3, 8], [1, 7], [7, 1]]
        seed = [0, 1]
    """
    run(read(textwrap.dedent(text)), tmp_path)
    points, networks = load_points(tmp_path), load_networks(tmp_path)
    for i, classes in enumerate([[3, 8], [1, 7], [7, 1]]):
        for one in (classes, tuple(classes), np.array(classes), ", ".join(map(str, classes))):
            np.testing.assert_array_equal(load_points(tmp_path, classes=one, seed=0).x, points.x[i, 0])
            assert load_networks(tmp_path, classes=one).weight.shape == networks.weight.shape[1:]
    for several in ([[7, 1], [3, 8]], np.array([[7, 1], [3, 8]]), ["7, 1", "3, 8"], [(7, 1), "3, 8"]):
        np.testing.assert_array_equal(load_points(tmp_path, classes=several).x, points.x[[2, 0]])
    np.testing.assert_array_equal(load_points(tmp_path, classes=[[1, 7]]).x, points.x[[1]])
    for wrong in ([8, 3], [3], 3, [[3, 8], [8, 3]], [[[3, 8]]]):
        with pytest.raises(UserError, match=r"^classes = .*axis"):
            load_networks(tmp_path, classes=wrong)


def test_fields_of_points_that_are_given_are_written_where_they_are_read(tmp_path):
    path = saved(tmp_path, *drawn())
    for kind, more in (("digits", ["classes=0,1"]), ("file", [f"path={path}"])):
        for kinds in (kind, f"line,{kind}", f"subspace,{kind}"):
            told = read("", f"kind={kinds}", *more).to_toml()
            assert "\ncenter = false\n" in told and "\nscale = 1.0\n" in told and '\nfit = "project"\n' in told
            assert ("\nlabel_column = " in told) == (kind == "file")
            assert "\nsamples = " not in told and "\nsubspace_dim = " not in told
    mixed = read("", "kind=subspace,digits", "classes=0,1")
    assert [mixed.dataset({"kind": kind}).shape.samples for kind in ("subspace", "digits")] == [20, 360]


def test_a_file_that_changes_in_a_process_is_another_dataset(tmp_path):
    x, y = drawn()
    for factor in (1.0, 2.0, 3.0):
        data, span = dataset(saved(tmp_path, x * factor, y))
        np.testing.assert_allclose(data.x @ span.T, x * factor, atol=1e-5)


@pytest.fixture
def ran(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A sweep file, its points, and the results of both."""
    points, sweep, folder = saved(tmp_path, *drawn()), write(tmp_path, SMALL), tmp_path / "results"
    run(Sweep.from_toml(sweep), folder)
    return sweep, points, folder


def test_results_are_of_one_file_wherever_it_lies_and_are_not_resumed_or_read_with_another(ran, tmp_path, capsys):
    sweep, points, folder = ran
    dataset = open_results(folder)
    assert dataset.attrs["path"] == str(points) and load_points(folder).x.shape == (3, 24, 6)
    np.testing.assert_array_equal(load_points(folder, seed=0).x, load_points(folder).x[1])
    before = {path: path.stat().st_mtime_ns for path in files(folder) if path.name != ".lock"}
    # The same content at another place.
    (tmp_path / "elsewhere").mkdir()
    copy = saved(tmp_path / "elsewhere", *drawn())
    copy.write_bytes(points.read_bytes())
    assert run(Sweep.from_toml(sweep, f"path={copy}"), folder).equals(dataset)
    # Its own sweep.toml can be run again.
    assert run(Sweep.from_toml(folder / "sweep.toml"), folder).equals(dataset)
    # Another file of another name, then another content of the same name.
    other = saved(tmp_path / "elsewhere", *drawn(seed=1))
    message = refused(capsys, "run", sweep, f"path={other}", "--out", folder)
    assert message.startswith(f"{folder}: holds another sweep: data.path is '{str(points)[:39]} … there and '")
    whole = points.read_bytes()
    changed = f"{points} has changed since the results were made; restore it"
    run_both = [["run", which, "--out", folder] for which in (sweep, folder / "sweep.toml")]
    for change, words in (
        (lambda: points.write_bytes(other.read_bytes()), changed),
        (points.unlink, f"{points}: no such file"),
    ):
        change()
        for verb in (*run_both, ["status", folder]):
            message = refused(capsys, *verb)
            assert words in message, message
        for reader in (open_results, load_networks, load_points):
            with pytest.raises(UserError) as error:
                reader(folder)
            assert str(error.value).startswith(f"{folder}: {words}") and "\n" not in str(error.value)
    points.write_bytes(whole)
    assert open_results(folder).equals(dataset)
    assert {path: path.stat().st_mtime_ns for path in files(folder) if path.name != ".lock"} == before


def remove_chunk(folder: Path) -> None:
    shutil.rmtree(min((folder / "chunks").iterdir()))


def test_a_folder_moves_with_its_file_and_is_read_and_resumed_from_anywhere(tmp_path, monkeypatch, capsys):
    (tmp_path / "project" / "data").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    saved(tmp_path / "project" / "data", *drawn())
    sweep = write(tmp_path / "project", SMALL.replace("points.npz", "data/points.npz"))
    dataset = run(Sweep.from_toml(sweep), tmp_path / "project" / "results")
    (tmp_path / "project").rename(tmp_path / "moved")
    folder, points = tmp_path / "moved" / "results", tmp_path / "moved" / "data" / "points.npz"
    for place in (tmp_path / "elsewhere", folder):
        monkeypatch.chdir(place)
        found = open_results(os.path.relpath(folder))
        assert found.equals(dataset) and found.attrs == dataset.attrs | {"path": str(points)}
        assert load_points(folder).x.shape == (3, 24, 6)
    remove_chunk(folder)
    with pytest.raises(SystemExit) as ended:
        cli.main(["status", str(folder)])
    resume = capsys.readouterr().out.splitlines()[-1]
    assert ended.value.code == 0 and resume == f"resume with: subspace-adv run {folder / 'sweep.toml'} --out {folder}"
    for file in (folder / "sweep.toml", tmp_path / "moved" / sweep.name):
        assert run(Sweep.from_toml(file), folder).equals(dataset)
        remove_chunk(folder)
    points.write_bytes(saved(tmp_path / "elsewhere", *drawn(seed=1)).read_bytes())
    message = refused(capsys, "run", tmp_path / "moved" / sweep.name, "--out", folder)
    assert message.startswith(f"{folder}: {points} has changed since the results were made; restore it, or run into")


def test_results_that_move_alone_find_the_file_where_it_was_or_where_they_are_told(ran, tmp_path, monkeypatch, capsys):
    sweep, points, folder = ran
    dataset, content = open_results(folder), hashlib.sha256(points.read_bytes()).hexdigest()
    (tmp_path / "far" / "away").mkdir(parents=True)
    alone = folder.rename(tmp_path / "far" / "away" / "results")
    assert open_results(alone).identical(dataset)
    remove_chunk(alone)
    with pytest.raises(SystemExit):
        cli.main(["status", str(alone)])
    resume = capsys.readouterr().out.splitlines()[-1].removeprefix("resume with: subspace-adv ")
    with pytest.raises(SystemExit) as ended:
        cli.main(shlex.split(resume))
    assert ended.value.code == 0 and open_results(alone).equals(dataset)
    # The file is gone, and there are others of its content, and of another one.
    copy = points.rename(tmp_path / "far" / "copy.npz")
    for reader in (open_results, load_points):
        with pytest.raises(UserError) as error:
            reader(alone)
        assert "points.npz: no such file" in str(error.value) and "\n" not in str(error.value)
        assert "; put it back, or run the sweep again with path=… into the same --out; " in str(error.value)
        assert str(error.value).endswith(f"; the results were made with a file of SHA-256 {content}")
    other, before = saved(tmp_path / "far", *drawn(seed=1)), (alone / "manifest.json").read_bytes()
    given = f"{alone}: the file given, {other}, has other content; give the right one, or choose another --out; the res"
    for words in ([sweep, f"path={other}"], [write(tmp_path / "far", SMALL)]):
        message = refused(capsys, "run", *words, "--out", alone)
        assert message.startswith(given) and content in message, message
    assert (alone / "manifest.json").read_bytes() == before
    # A run that finds the file lets it be found from then on: also where the folder moves alone, or with the file.
    remove_chunk(alone)
    assert run(Sweep.from_toml(sweep, f"path={copy}"), alone).equals(dataset)
    prints = [entry.fingerprint for entry in Store.open(alone).entries]
    copy.rename(tmp_path / "far" / "away" / "again.npz")
    with pytest.raises(UserError, match="no such file"):
        open_results(alone)
    copy = tmp_path / "far" / "away" / "again.npz"
    run(Sweep.from_toml(sweep, f"path={copy}"), alone)
    nearer = alone.rename(tmp_path / "nearer")
    assert open_results(nearer).attrs["path"] == str(copy)
    alone = nearer.rename(alone)
    (tmp_path / "far").rename(tmp_path / "farther")
    alone, copy = (tmp_path / "farther" / path.relative_to(tmp_path / "far") for path in (alone, copy))
    assert open_results(alone).equals(dataset) and load_points(alone, seed=0).x.shape == (24, 6)
    assert [entry.fingerprint for entry in Store.open(alone).entries] == prints
    with pytest.raises(SystemExit) as ended:
        cli.main(["status", str(alone)])
    assert ended.value.code == 0
    # What is known of the file serves a run as well, which writes nothing of it again.
    before = (alone / "manifest.json").stat().st_mtime_ns
    assert run(Sweep.from_toml(sweep, f"path={copy}"), alone).equals(dataset)
    assert (alone / "manifest.json").stat().st_mtime_ns == before


def test_chunks_are_known_by_the_content_of_files_and_not_by_their_places(tmp_path):
    entries = []
    for i, place in enumerate(("here", "there/too", "other")):
        (tmp_path / place).mkdir(parents=True)
        saved(tmp_path / place, *drawn(seed=i // 2))
        sweep = Sweep.from_toml(write(tmp_path / place, SMALL))
        store = Store.create(tmp_path / place / "deep" / "results", describe(plan(sweep)))
        store.close()
        entries.append([entry.fingerprint for entry in store.entries])
    assert entries[0] == entries[1] and set(entries[0]).isdisjoint(entries[2])


@pytest.mark.parametrize("content", ["as many points", "fewer points"])
def test_a_file_that_changes_during_a_run_ends_it(tmp_path, monkeypatch, content):
    points, folder = saved(tmp_path, *drawn()), tmp_path / "results"
    sweep = Sweep.from_toml(write(tmp_path, SMALL))
    train = engine.train

    def meanwhile(*arguments, **options):
        saved(tmp_path, *drawn(24 if content == "as many points" else 8, seed=1))
        yield from train(*arguments, **options)

    monkeypatch.setattr(engine, "train", meanwhile)
    with pytest.raises(UserError, match="has changed since the results were made"):
        run(sweep, folder)
    assert not list((folder / "chunks").iterdir())
    monkeypatch.undo()
    saved(tmp_path, *drawn())
    assert points.exists() and (run(sweep, folder)["status"] > 0).all()


@pytest.mark.slow
def test_many_points_of_many_coordinates_are_held_in_little_memory(tmp_path):
    """60,000 points of 784 coordinates, as large as MNIST: all are reduced, and networks trained on a sample."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (60_000, 784)).astype(np.float32)
    np.savez(tmp_path / "points.npz", x=x, y=rng.integers(0, 10, 60_000))
    del x
    text = f"""
        import numpy as np
        import subspace_adv as sa
        from subspace_adv.datasets import load_data, load_span
        for fit, r in (("keep", 784), ("project", 20)):
            for label in (None, "all"):
                path = {str(tmp_path / "points.npz")!r}
                settings = sa.Sweep(data=dict(kind="file", path=path, classes=[0, 1], center=True, subspace_dim=20,
                                              fit=fit)).dataset({{}})
            data = load_data(settings)
            assert data.x.shape[1] == r and len(data.x) > 11_000 and load_span(settings).basis.shape == (784, r)
        two = np.load(path)
        np.savez({str(tmp_path / "two.npz")!r}, x=two["x"].astype(np.uint8), y=two["y"] % 2)
        for fit in ("keep", "project"):
            settings = sa.Sweep(data=dict(kind="file", path={str(tmp_path / "two.npz")!r}, subspace_dim=20,
                                          fit=fit)).dataset({{}})
            assert len(load_data(settings).x) == 60_000
        sweep = sa.Sweep(
            data=dict(kind="file", path=path, classes=[3, 8], samples=200, subspace_dim=20, scale="length"),
            network=dict(width=100), training=dict(max_steps=50), measure=dict(regions=["off"], restarts=2),
            axes=dict(seed=range(64)))
        assert (sa.run(sweep, {str(tmp_path / "out")!r})["status"] > 0).sum() == 64
        {PRINT_PEAK}
    """
    command = [sys.executable, "-c", textwrap.dedent(text)]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) * 1024 < 2e9, done.stdout


def test_where_no_points_are_held_out_nothing_is_told_of_them(ran, capsys):
    """And tables and figures are made without them."""
    *_, folder = ran
    dataset = open_results(folder)
    assert np.isnan(dataset["heldout_input"]).all()
    names = [str(name) for name in dataset.data_vars if "heldout" in dataset[name].dims]
    assert names and all(np.isnan(dataset[name]).all() for name in names)
    assert np.isfinite(dataset["distance_universal"]).any()
    for verb in ("table", "plot", "status"):
        with pytest.raises(SystemExit) as ended:
            cli.main([verb, str(folder)])
        assert ended.value.code == 0, verb
    assert "nan" not in capsys.readouterr().out
