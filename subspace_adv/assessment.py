"""How robust a network in a file is on labelled points in a file, as the command line asks: it names its options."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from subspace_adv.data import Label, Leading, signs, two_classes
from subspace_adv.errors import UserError, brief
from subspace_adv.geometry import Region, Subspace
from subspace_adv.network import Networks
from subspace_adv.networkfile import read_network
from subspace_adv.pointfile import PointFile, read_points
from subspace_adv.single import Progress, bracket, measure

if TYPE_CHECKING:
    import xarray as xr


def assess(
    network: Path,
    data: Path,
    *,
    label_column: str | None = None,
    classes: Sequence[str] | None = None,
    subspace_dim: int | None = None,
    regions: Sequence[Region] | None = None,
    norms: Sequence[str] = ("l2",),
    progress: Progress = iter,
) -> "xr.Dataset":
    """All that is measured of a network on the points of two classes; distances alone where no subspace is known.

    Args:
        network: as of `read_network`.
        data: as of `read_points`.
        label_column: of a table, by default "label".
        classes: labels that become −1 and +1; by default the lesser and the greater of two that there are. Where all
            points have one label, it must be one of them.
        subspace_dim: dimension of the linear subspace nearest to the points; by default that of the basis in the file.
        regions: of the distances; "off", "on" and "full" by default, and "full" alone where no subspace is known.
        norms: of the distances.
        progress: what batches of points are drawn through.

    Returns:
        As of `measure`, or of `bracket`, and `label` along `point`.

    Raises:
        UserError: naming the file or the option, what it was and what it must be.
    """
    if label_column is not None and data.suffix.lower() == ".npz":
        told = f"{brief(label_column)} changes nothing; an .npz has its labels in y; leave it out"
        raise UserError(f"command line: --label: {told}")
    given, points = read_network(network), read_points(data, label_column or "label")
    d = given.ambient_dim if isinstance(given, Networks) else given.weight.shape[1]
    if points.x.shape[1] != d:
        raise UserError(f"{data}: points have {points.x.shape[1]} coordinates, and {network} takes {d}")
    names = _classes(data, points.y, classes)
    label = signs(points.y, names)
    x, y = points.x[label != 0].astype(np.float64), label[label != 0]
    subspace = _subspace(data, points, x, subspace_dim)
    regions = list(regions or (("full",) if subspace is None else ("off", "on", "full")))
    if subspace is None and regions != ["full"]:
        told = f"{','.join(regions)} takes a subspace; give --subspace-dim, or a basis in {data}, or take full alone"
        raise UserError(f"command line: --regions: {told}")
    what: Any = {"regions": regions, "norms": norms, "progress": progress}
    if subspace is None:
        dataset = bracket(given, x, y, **what)
    else:
        dataset = measure(given, x, y, subspace=subspace, heldout=_heldout(points, names), **what)
    dataset["label"] = ("point", y, {"long_name": f"label: −1 of {names[0]}, +1 of {names[1]}"})
    return dataset.assign_attrs(network=str(network), data=str(data))


def _classes(data: Path, labels: np.ndarray, asked: Sequence[str] | None) -> tuple[Label, Label]:
    """The labels that become −1 and +1, as points have them."""
    if asked is not None and (len(asked) != 2 or asked[0] == asked[1]):
        told = f"{brief(','.join(asked))}: must be two labels, of which the first becomes −1"
        raise UserError(f"command line: --classes: {told}, such as 3,8")
    there = np.unique(labels).tolist()
    named = asked and [text if labels.dtype.kind == "U" else _number(text) for text in asked]
    if len(there) == 1 and named and there[0] in named:
        return named[0], named[1]
    if len(there) == 1 and not named:
        told = f"all points have the label {there[0]!r}; tell by --classes whether it is the first of two, −1, or not"
        raise UserError(f"{data}: {told}")
    try:
        return two_classes(labels, named)
    except ValueError as error:
        raise UserError(f"{data}: {error}") from None


def _number(text: str) -> Label:
    """The number that a text tells; if it is none, the text."""
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


def _heldout(points: PointFile, classes: tuple[Label, Label]) -> np.ndarray | None:
    """Further points of the two classes; None where there are none."""
    if points.heldout_x is None or points.heldout_y is None:
        return None
    of_both = points.heldout_x[signs(points.heldout_y, classes) != 0]
    return of_both.astype(np.float64) if len(of_both) else None


def _subspace(data: Path, points: PointFile, x: np.ndarray, dimension: int | None) -> Subspace | None:
    """That of the basis in the file, or the linear subspace of a dimension nearest to the points."""
    if points.basis is not None:
        if dimension not in (None, points.basis.shape[1]):
            told = f"{data} has a basis of {points.basis.shape[1]} columns; leave it out"
            raise UserError(f"command line: --subspace-dim {dimension}: {told}")
        return Subspace.from_directions(points.basis)
    if dimension is None:
        return None
    leading = Leading.of(lambda rows, columns: x[rows, columns], *x.shape)
    if not 1 <= dimension <= leading.rank:
        told = f"the {len(x)} points span {leading.rank} dimensions; must be from 1 to {leading.rank}"
        told = told if leading.rank else f"all points of {data} are 0, and span nothing; leave it out"
        raise UserError(f"command line: --subspace-dim {dimension}: {told}")
    return Subspace.from_directions(leading.directions(dimension))
