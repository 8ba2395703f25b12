"""What people hand over in Python, checked: each mistake is one sentence, of which argument, what it was and must be.

`what` is always the function that was called, as messages begin.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from subspace_adv.arrays import array
from subspace_adv.contracts import Model, named, renamed
from subspace_adv.errors import UserError, brief
from subspace_adv.fields import Table, checked
from subspace_adv.flax_layers import Layers
from subspace_adv.geometry import Subspace
from subspace_adv.models import TWO_LAYER, as_given
from subspace_adv.network import Network, Networks
from subspace_adv.norms import NORMS
from subspace_adv.rows import nearest, one_of
from subspace_adv.settings import read_where, where_read

_ORTHONORMAL = 1e-6  # how far the products of a basis's columns may be from those of orthonormal ones
_ROUNDED = 1e-13  # and how far without being made so


def points(what: str, x: Any, name: str = "x", d: int | None = None) -> np.ndarray:
    """Points (n, d), of the coordinates of others where `d` tells them."""
    found = array(f"{what}: {name}", x, 2, f"(n, {d or 'd'})")
    if d and found.shape[1] != d:
        raise UserError(f"{what}: {name}: is of shape {found.shape}; must be (n, {d}), as x is")
    if not found.size:
        raise UserError(f"{what}: {name}: is of shape {found.shape}; must hold at least one point and one coordinate")
    return found


def labels(what: str, y: Any, n: int) -> np.ndarray:
    """Labels (n,), −1 or +1."""
    found = array(f"{what}: y", y, 1, f"({n},)")
    if len(found) != n:
        raise UserError(f"{what}: y: holds {len(found)} labels; must hold one for each of the {n} points")
    if not np.isin(found, (-1, 1)).all():
        other = next(value for value in found if value not in (-1, 1))
        raise UserError(f"{what}: y: holds {other:g}; labels must be -1 or 1")
    return found


def network(what: str, given: Any, d: int, dtype: type) -> Network:
    """One network of R^d, in arrays of a type."""
    if not isinstance(given, Network):
        told = f"must be a Network(weight, bias, head, head_bias), not {type(given).__name__}"
        raise UserError(f"{what}: network: {told}")
    weight = np.asarray(given.weight)
    if weight.ndim > 2:
        held = " × ".join(map(str, weight.shape[:-2]))
        raise UserError(f"{what}: network: holds {held} networks; choose one, as load_networks(folder, seed=0) does")
    width = len(weight) if weight.ndim else 0
    shapes = {"weight": (width, d), "bias": (width,), "head": (width,), "head_bias": ()}
    parts = {}
    for name, shape in shapes.items():
        parts[name] = array(f"{what}: network.{name}", getattr(given, name), len(shape), str(shape))
        if parts[name].shape != shape:
            told = f"is of shape {parts[name].shape}; must be {shape}, of {width} neurons on points of {d} coordinates"
            raise UserError(f"{what}: network.{name}: {told}")
    return Network(**{name: part.astype(dtype) for name, part in parts.items()})  # pyright: ignore


def measured_network(what: str, given: Any, d: int) -> tuple[Any, Model]:
    """Parameters of one network of R^d, float64, and its model."""
    if not isinstance(given, Networks):
        return network(what, given, d, np.float64), TWO_LAYER
    module = given.one(f"{what}: network")
    if not isinstance(module, Layers):
        told = f"is of the class {type(module).__name__}; must be of dense or convolutional layers with ReLUs between"
        raise UserError(f"{what}: network: {told}, as of architecture 'mlp' or 'cnn', or as of from_state_dict")
    if given.ambient_dim != d:
        raise UserError(f"{what}: network: takes points of {given.ambient_dim} coordinates, and x has {d}")
    arrays = {
        name: array(f"{what}: network.{name}", leaf, np.ndim(leaf), str(np.shape(leaf)))
        for name, leaf in named(given.params).items()
    }
    return renamed(given.params, arrays), as_given(module.depth, module.fields)


def subspace(what: str, given: Any, d: int, regions: Sequence[str] = ()) -> Subspace:
    """A subspace of R^d; where distances are asked in the full space alone, it need not be given."""
    if given is None and set(regions) == {"full"}:
        return Subspace.axis_aligned(d, d)
    if given is None:
        raise UserError(f"{what}: give subspace=, the data's, or basis=, the directions allowed; one of the two")
    if not isinstance(given, Subspace):
        told = f"must be a Subspace, such as Subspace.from_directions(directions (d, k)), not {type(given).__name__}"
        raise UserError(f"{what}: subspace: {told}")
    bases = [array(f"{what}: subspace", part, 2, f"({d}, k)") for part in given]
    if any(len(part) != d for part in bases) or sum(part.shape[1] for part in bases) != d:
        shapes = " and ".join(str(part.shape) for part in bases)
        raise UserError(f"{what}: subspace: has bases of shapes {shapes}; must be of R^{d}, as the points are")
    both = np.concatenate(bases, axis=1)
    told = "its basis and its complement are not orthonormal; Subspace.from_directions(directions) makes both"
    parts = np.split(_orthonormal(f"{what}: subspace: {told}", both), [bases[0].shape[1]], axis=1)
    return Subspace(*parts)  # pyright: ignore[reportArgumentType]


def frames(what: str, basis: Any, n: int, d: int) -> np.ndarray:
    """Orthonormal columns, (d, r) for all points or (n, d, r), some for each."""
    try:
        each = np.ndim(basis) == 3
    except ValueError:  # lists of different lengths
        each = False
    found = array(f"{what}: basis", basis, 3 if each else 2, f"({d}, r), or ({n}, {d}, r) for a basis of each point")
    if found.shape[:-1] != ((n, d) if each else (d,)):
        told = f"must be ({d}, r), or ({n}, {d}, r) for a basis of each of the {n} points"
        raise UserError(f"{what}: basis: is of shape {found.shape}; {told}")
    told = "its columns are not orthonormal; Subspace.from_directions(columns).basis makes those of one basis so"
    return _orthonormal(f"{what}: basis: {told}", found)


def _orthonormal(refusal: str, columns: np.ndarray) -> np.ndarray:
    """The orthonormal columns nearest to (…, d, r), in which certified radii are lengths; none if they are not near."""
    gap = np.abs(columns.mT @ columns - np.eye(columns.shape[-1])).max(initial=0)
    if gap > _ORTHONORMAL:
        raise UserError(refusal)
    if gap < _ROUNDED:
        return columns
    left, _, right = np.linalg.svd(columns, full_matrices=False)
    return left @ right


def word(what: str, name: str, given: object, known: Collection[str]) -> None:
    """Refuse what is none of some words."""
    try:
        one_of(given, known)
    except ValueError as error:
        raise UserError(f"{what}: {name} = {brief(given)}: {error}") from None


def names(what: str, name: str, given: object) -> list:
    """A list of words, which one alone is not."""
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise UserError(f"{what}: {name} = {brief(given)}: must be a list of names, such as [{given!r}]")
    return list(given)


def check_coordinates(what: str, norm: str, basis: np.ndarray) -> None:
    """Refuse norms but L2 in directions that are neither those of axes nor a single one: they are of coordinates."""
    on_axes = (np.count_nonzero(basis, axis=-2) == 1).all()
    if not NORMS[norm].is_euclidean and basis.shape[-1] > 1 and not on_axes:
        told = "cannot be measured in directions off the coordinate axes: its norm is not that of coordinates there"
        raise UserError(f"{what}: norm {norm!r}: {told}; take 'l2', the region 'full', or a subspace of axes")


def settings(what: str, given: Mapping[str, Any], homes: Mapping[str, type[Table]]) -> dict[str, Any]:
    """Values of fields of a sweep file, as given or by default.

    Args:
        what: the function.
        given: values by field.
        homes: the fields that it reads, and their tables.
    """
    values = {leaf: home.model_fields[leaf].default for leaf, home in homes.items()}
    for leaf, value in given.items():
        if leaf not in homes:
            raise UserError(f"{what}: {leaf}: no such argument{nearest(leaf, homes)}")
        values[leaf] = checked(homes[leaf], leaf, value, f"{what}: {leaf}")
    for leaf in given:
        conditions = read_where(leaf)
        if conditions and not any(all(values[name] in some for name, some in one.items()) for one in conditions):
            told = f"changes nothing; it is {where_read(leaf)}; leave it out"
            raise UserError(f"{what}: {leaf} = {brief(given[leaf])}: {told}")
    return values


def fields(*tables: type[Table], but: Sequence[str] = ()) -> dict[str, type[Table]]:
    """The fields of some tables but for a few, and the table of each."""
    return {leaf: table for table in tables for leaf in table.model_fields if leaf not in but}
