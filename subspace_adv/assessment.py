"""How robust a network in a file is on labelled points in a file."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from subspace_adv.errors import UserError, brief
from subspace_adv.geometry import Region, Subspace
from subspace_adv.network import Networks
from subspace_adv.networkfile import read_network
from subspace_adv.pointfile import PointFile, read_points
from subspace_adv.rows import nearest
from subspace_adv.single import Progress, bracket, measure

if TYPE_CHECKING:
    import xarray as xr

_RANK = 1e-6  # of the largest singular value: points reach into directions of which theirs is larger


def assess(
    network: Path,
    data: Path,
    *,
    label_column: str = "label",
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
        label_column: of a table.
        classes: labels that become −1 and +1; by default the lesser and the greater of two that there are.
        subspace_dim: dimension of the linear subspace nearest to the points; by default that of the basis in the file.
        regions: of the distances; "off", "on" and "full" by default, and "full" alone where no subspace is known.
        norms: of the distances.
        progress: what batches of points are drawn through.

    Returns:
        As of `measure`, or of `bracket`, and `label` along `point`.

    Raises:
        UserError: naming the file or the argument, what it was and what it must be.
    """
    given, points = read_network(network), read_points(data, label_column)
    d = given.ambient_dim if isinstance(given, Networks) else given.weight.shape[1]
    if points.x.shape[1] != d:
        raise UserError(f"{data}: points have {points.x.shape[1]} coordinates, and {network} takes {d}")
    names = _classes(data, points.y, classes)
    signs = _signs(points.y, names)
    x, y = points.x[signs != 0].astype(np.float64), signs[signs != 0]
    subspace = _subspace(data, points, x, subspace_dim)
    regions = list(regions or (("full",) if subspace is None else ("off", "on", "full")))
    if subspace is None and regions != ["full"]:
        told = f"regions {brief(regions)[1:-1]} are of a subspace; give subspace_dim, or a basis in {data}"
        raise UserError(f"{told}; or take the region 'full' alone")
    what: Any = {"regions": regions, "norms": norms, "progress": progress}
    if subspace is None:
        dataset = bracket(given, x, y, **what)
    else:
        dataset = measure(given, x, y, subspace=subspace, heldout=_heldout(points, names), **what)
    dataset["label"] = ("point", y, {"long_name": f"label: −1 of {names[0]}, +1 of {names[1]}"})
    return dataset.assign_attrs(network=str(network), data=str(data))


def _classes(data: Path, labels: np.ndarray, asked: Sequence[str] | None) -> tuple[Any, Any]:
    """The labels that become −1 and +1, as points have them."""
    there = np.unique(labels).tolist()
    shown = brief(there)[1:-1]
    if asked is None:
        if len(there) != 2:
            told = f"points have {len(there)} labels, {shown}" if len(there) > 1 else f"all have the label {shown}"
            raise UserError(f"{data}: {told}; {'choose two by classes' if len(there) > 2 else 'must be two'}")
        return there[0], there[1]
    if len(asked) != 2 or asked[0] == asked[1]:
        raise UserError(f"classes {brief(list(asked))}: must be two labels, of which the first becomes −1")
    first, second = (_label(data, labels, there, text) for text in asked)
    return first, second


def _label(data: Path, labels: np.ndarray, there: list, text: str) -> Any:
    """The label that a text names."""
    for label in there:
        if str(label) == text or (labels.dtype.kind != "U" and str(float(label)) == text):
            return label
    raise UserError(
        f"classes: {data} has no point of the label {text!r}{nearest(text, [str(label) for label in there])}"
    )


def _signs(labels: np.ndarray, classes: tuple[Any, Any]) -> np.ndarray:
    """−1 and +1 of points of the two classes, 0 of others."""
    return np.where(labels == classes[1], 1, np.where(labels == classes[0], -1, 0))


def _heldout(points: PointFile, classes: tuple[Any, Any]) -> np.ndarray | None:
    """Further points of the two classes; None where there are none."""
    if points.heldout_x is None or points.heldout_y is None:
        return None
    of_both = points.heldout_x[_signs(points.heldout_y, classes) != 0]
    return of_both.astype(np.float64) if len(of_both) else None


def _subspace(data: Path, points: PointFile, x: np.ndarray, dimension: int | None) -> Subspace | None:
    """That of the basis in the file, or the linear subspace of a dimension nearest to the points."""
    if points.basis is not None:
        if dimension not in (None, points.basis.shape[1]):
            told = f"{data} has a basis of {points.basis.shape[1]} columns; leave it out"
            raise UserError(f"subspace_dim = {dimension}: {told}")
        return Subspace.from_directions(points.basis)
    if dimension is None:
        return None
    _, sizes, directions = np.linalg.svd(x, full_matrices=False)
    rank = int(np.sum(sizes > _RANK * sizes[0]))
    if not 1 <= dimension <= rank:
        told = f"the {len(x)} points span {rank} dimensions; must be from 1 to {rank}"
        raise UserError(f"subspace_dim = {dimension}: {told}")
    return Subspace.from_directions(directions[:dimension].T)
