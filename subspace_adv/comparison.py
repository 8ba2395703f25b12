"""Two results folders compared: settings that differ, and what networks of the same seeds gain between them."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from subspace_adv.errors import brief
from subspace_adv.manifest import made_with
from subspace_adv.measures import distance_name
from subspace_adv.results import dataset_of
from subspace_adv.settings import leaves, replicates, role
from subspace_adv.snapshots import final
from subspace_adv.store import Store
from subspace_adv.sweep import Sweep, compact
from subspace_adv.training import PENDING

if TYPE_CHECKING:
    import xarray as xr

    from subspace_adv.tables import Arm, Estimate


MADE_WITH = "made with"
"""What stands for the table of versions and the like, which are no settings."""


class Difference(NamedTuple):
    """A setting, or something else that results are made with, which differs between two folders."""

    table: str  # of the sweep file; "axes" of the grid as a whole; else `MADE_WITH`
    field: str
    a: str  # as it is told of A
    b: str


class Gain(NamedTuple):
    """What the networks of an arm gain from A to B: by the differences of those that share their seeds."""

    arm: "Arm"  # setting → value, of those that vary in A or in B
    pairs: int  # of networks trained in both
    gains: "dict[str, Estimate]"  # variable → median of the differences B − A of each network's median over its points


class Comparison(NamedTuple):
    """What differs between two results folders, A and B."""

    differences: list[Difference]
    paired: list[str]  # what was compared with what, in sentences; where nothing is, one that says why
    gains: list[Gain]  # arm by arm


class _Side(NamedTuple):
    """One of the folders."""

    dataset: "xr.Dataset"  # at the stop
    arms: "list[tuple[Arm, Arm]]"  # dimension → value, and setting → value, of the settings that vary
    varying: dict[str, list[Any]]  # the values of each
    fixed: dict[str, Any]  # the other settings that cells read


def compare(a: str | Path, b: str | Path) -> Comparison:
    """Compare two results folders: their settings, and arm by arm the gains of networks that share their seeds.

    Arms are compared that have equal values of the settings that vary in both. A setting that varies in one folder
    alone is taken at the other's value where that is among its values, and at each of them elsewhere. Networks are
    paired by `seed` and `data_seed`. A gain is the median, with its interval, of the differences B − A of each
    network's median over its points.

    Args:
        a: a results folder, complete or not.
        b: another one, or the same.

    Raises:
        UserError: if one of them is no results folder, or cannot be read.
    """
    stores = Store.open(a), Store.open(b)
    one, other = (_side(final(dataset_of(store))) for store in stores)
    differences = [*_settings(*(store.sweep for store in stores)), *_grids(one, other), *_origins(*stores)]
    shared, why = _shared_replicates(one, other)
    if why:
        return Comparison(differences, [why], [])
    pairs, told = _matched(one, other)
    if not pairs:
        return Comparison(differences, told, [])
    counts = " and ".join(f"{name} ({len(values):,} in both)" for name, values in shared.items())
    told.insert(0, f"networks are paired by {counts}")
    measured = [name for name in _compared(one.dataset) if name in other.dataset]
    mine, theirs = (_aligned(side.dataset[["status", *measured]], shared) for side in (one, other))
    return Comparison(differences, told, [_gain(mine, theirs, measured, *pair) for pair in pairs])


def _settings(a: Sweep, b: Sweep) -> Iterator[Difference]:
    """The fields of which cells read other values, table by table."""
    same_files = list(a.files().values()) == list(b.files().values())
    for leaf, table in leaves().items():
        read = [sweep.values(leaf) if sweep.reads(leaf) else () for sweep in (a, b)]
        if read[0] != read[1] and not (role(leaf).is_file and same_files):
            told = [_values(values) for values in read]
            yield Difference(table, leaf, *(told if told[0] != told[1] else _where_they_differ(*read)))


def _values(values: Sequence[Any]) -> str:
    """The one value of a setting, or all of an axis, as a sweep file has them; of many, the first."""
    if len(values) <= 1:
        return "not read" if not values else "not set" if values[0] is None else brief(values[0])
    written = compact(tuple(values))
    return written if isinstance(written, str) else brief(written)


def _where_they_differ(a: tuple, b: tuple) -> tuple[str, str]:
    """Two long axes that begin alike: by the first value that differs, or by their lengths."""
    place = next((i for i, (one, other) in enumerate(zip(a, b, strict=False)) if one != other), None)
    if place is None:
        return f"{len(a):,} values", f"{len(b):,} values"
    return f"{a[place]!r} as value number {place + 1:,}", f"{b[place]!r} there"


def _grids(one: _Side, other: _Side) -> Iterator[Difference]:
    """How the grids differ where values do not tell it: by the order of axes, or by those that move together."""
    told = [" × ".join(str(name) for name in side.dataset["status"].dims) for side in (one, other)]
    if sorted(one.varying) == sorted(other.varying) and told[0] != told[1]:
        yield Difference("axes", "dimensions", *told)


def _origins(a: Store, b: Store) -> Iterator[Difference]:
    """Versions, machine and the user's commit, where they are others."""
    made = [made_with(store.manifest) | store.manifest["begun"] for store in (a, b)]
    for name in dict.fromkeys([*made[0], *made[1]]):
        told = [str(one.get(name) or "not told") for one in made]
        if told[0] != told[1] and name not in ("command", "started"):
            yield Difference(MADE_WITH, name, *told)


def _side(dataset: "xr.Dataset") -> _Side:
    """A folder's Dataset, with its arms told by settings: a dimension is one, or has those that move along it."""
    from subspace_adv import tables  # takes long to import, as pandas does

    along: dict[Any, dict[str, dict[Any, Any]]] = {}  # dimension → setting → value of the setting by the dimension's
    for dimension in dataset["status"].dims:
        names = [name for name, one in dataset.coords.items() if one.dims == (dimension,) and name in leaves()]
        told = [dimension] if dimension in leaves() else names
        places = dataset[dimension].values.tolist()
        along[dimension] = {str(name): dict(zip(places, dataset[name].values.tolist(), strict=True)) for name in told}
    fixed = {leaf: value for leaf, value in dataset.attrs.items() if leaf in leaves()}
    varying: dict[str, list[Any]] = {}
    repeated = tables.replicate_dimensions(dataset)
    for dimension, settings in along.items():
        for leaf, values in settings.items():
            distinct = list(dict.fromkeys(values.values()))
            if dimension not in repeated and len(distinct) > 1:
                varying[leaf] = distinct
            elif len(distinct) == 1:
                [fixed[leaf]] = distinct
    arms = []
    for arm in tables.arms(dataset):
        settings = {leaf: by[place] for dimension, place in arm.items() for leaf, by in along[dimension].items()}
        arms.append((arm, {leaf: settings[leaf] for leaf in varying}))
    return _Side(dataset, arms, varying, fixed)


def _shared_replicates(one: _Side, other: _Side) -> tuple[dict[str, list[Any]], str | None]:
    """The values of seeds that both folders have, by name; and why nothing can be paired, if so, in words."""
    shared = {}
    for name in replicates():
        for side, place in ((one, "A"), (other, "B")):
            if name in side.dataset.coords and name not in side.dataset["status"].dims:
                along = side.dataset[name].dims[0]
                return {}, f"nothing can be paired: {name} moves together with other fields in {place}, along {along}"
        mine, theirs = (_seeds(side, name) for side in (one, other))
        if mine is None or theirs is None:
            if max(len(mine or ()), len(theirs or ())) > 1:
                place = "A" if theirs is None else "B"
                return {}, f"nothing can be paired: {name} is an axis of {place} alone, and the other does not read it"
            continue
        known = set(theirs)
        shared[name] = [value for value in mine if value in known]
        if not shared[name]:
            told = f"{_values(mine)} and {_values(theirs)}"
            return {}, f"nothing can be paired: A and B share no {name}; they have {told}"
    return shared, None


def _seeds(side: _Side, name: str) -> list[Any] | None:
    """The values of a replicate that a folder has; None where cells do not read it."""
    if name in side.dataset["status"].dims:
        return side.dataset[name].values.tolist()
    return [side.fixed[name]] if name in side.fixed else None


def _matched(one: _Side, other: _Side) -> "tuple[list[tuple[Arm, Arm, Arm]], list[str]]":
    """The arms to compare: by dimensions of A, by those of B, and by settings; and which these are, in words."""
    alike = [leaf for leaf in one.varying if leaf in other.varying]
    told = []
    for leaf in alike:
        mine, theirs = one.varying[leaf], other.varying[leaf]
        common = [value for value in mine if value in theirs]
        if not common:
            have = f"{_values(mine)} and {_values(theirs)}"
            return [], [f"nothing can be paired: A and B share no value of {leaf}; they have {have}"]
        if len(common) < max(len(mine), len(theirs)):
            told.append(f"of {leaf} both have {_values(common)} alone")
    mine, said = _narrowed(one, other.fixed, other.varying, "A", "B")
    theirs, said_too = _narrowed(other, one.fixed, one.varying, "B", "A")
    counterparts: dict[tuple, list[tuple[Arm, Arm]]] = {}
    for arm, settings in theirs:
        counterparts.setdefault(tuple(settings[leaf] for leaf in alike), []).append((arm, settings))
    pairs = [
        (arm, counterpart, settings | others)
        for arm, settings in mine
        for counterpart, others in counterparts.get(tuple(settings[leaf] for leaf in alike), ())
    ]
    if not pairs:
        return [], [f"nothing can be paired: no arm of A has the {', '.join(alike)} of one of B"]
    return pairs, [*told, *said, *said_too]


def _narrowed(
    side: _Side, fixed: dict[str, Any], varying: dict[str, list[Any]], name: str, other: str
) -> "tuple[list[tuple[Arm, Arm]], list[str]]":
    """The arms of a folder that have the settings of the other one, where these are among its values; in words."""
    arms, told = side.arms, []
    for leaf, values in side.varying.items():
        if leaf in varying:
            continue
        if leaf in fixed and fixed[leaf] in values:
            arms = [(arm, settings) for arm, settings in arms if settings[leaf] == fixed[leaf]]
            told.append(f"{leaf} varies in {name} alone, and is compared at {fixed[leaf]}, as {other} has it")
        else:
            is_there = f"where it is {fixed[leaf]}" if leaf in fixed else "which does not have it as one setting"
            told.append(f"{leaf} varies in {name} alone, and each of its values is compared with {other}, {is_there}")
    return arms, told


def _compared(dataset: "xr.Dataset") -> list[str]:
    """The variables of which gains are told."""
    from subspace_adv import tables

    distances = [distance_name(region, norm, "upper") for region, norm in tables.regions_and_norms(dataset)]
    return ["gradient_norm_off", *distances]


def _aligned(dataset: "xr.Dataset", shared: dict[str, list[Any]]) -> "xr.Dataset":
    """The networks of some seeds, in one order, which comes before all other dimensions."""
    chosen = {name: values for name, values in shared.items() if name in dataset.dims}
    return dataset.sel(chosen).transpose(*chosen, ...)


def _gain(
    a: "xr.Dataset", b: "xr.Dataset", measured: list[str], arm_of_a: "Arm", arm_of_b: "Arm", settings: "Arm"
) -> Gain:
    """The gains of one arm."""
    from subspace_adv import tables

    trained = [one["status"].sel(arm).values.ravel() != PENDING for one, arm in ((a, arm_of_a), (b, arm_of_b))]
    gains = {}
    for name in measured:
        with np.errstate(invalid="ignore"):  # where neither can be flipped, there is no difference to tell
            difference = tables.per_network(b, name, arm_of_b) - tables.per_network(a, name, arm_of_a)
        gains[name] = tables.median_interval(difference)
    return Gain(settings, int((trained[0] & trained[1]).sum()), gains)
