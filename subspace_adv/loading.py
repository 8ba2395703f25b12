"""Trained networks of a results folder, and what they were trained on, as arrays."""

import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen
from flax.traverse_util import unflatten_dict

from subspace_adv import devices, engine
from subspace_adv.chunkfiles import DamagedChunk
from subspace_adv.contracts import Design, named, renamed
from subspace_adv.data import HELDOUT
from subspace_adv.datasets import cell_data, load_data, load_span
from subspace_adv.dimensions import is_axis
from subspace_adv.errors import UserError, brief
from subspace_adv.initialization import Law
from subspace_adv.measures import TRAINED, variables
from subspace_adv.models import architecture_of, hand_over, is_class_name, must_fit
from subspace_adv.network import Networks
from subspace_adv.planning import Chunk, cut
from subspace_adv.program import parameter_shapes
from subspace_adv.receptive_fields import Dense
from subspace_adv.rows import nearest
from subspace_adv.settings import role
from subspace_adv.snapshots import MARGIN_LEVEL, NEVER, STEP, during, snapshots_of
from subspace_adv.store import Store
from subspace_adv.sweep import DESIGNED, Sweep

Arrays = dict[str, np.ndarray]


def load_networks(
    folder: str | Path,
    *,
    module: type[linen.Module] | None = None,
    step: float | None = None,
    margin_level: float | None = None,
    **coordinates: Any,
) -> Any:
    """Trained networks of a results folder.

    Args:
        folder: a results folder.
        module: of networks of your own class, that class: nothing that a folder names is imported.
        step: one of `at_steps`, if the sweep says `keep_networks`: as they were then. By default as at their stop.
        margin_level: or one of `at_margins`.
        **coordinates: an axis by name, with the value to select (the axis is dropped) or a list of values (it is
            kept). Axes not named are kept whole. Where values are lists, one is a list, as in the sweep file, or text,
            as in the Dataset. Of a zip or a sample the value is the place along it, from 0 on.

    Returns:
        Of architecture "mlp" with depth 1 a `Network`, weight (…, m, d), bias (…, m), head (…, m), head_bias (…); of
        others `Networks`, their `params` as flax has them, and `apply`. Float32 host arrays with leading axes as in the
        Dataset. Widths and dimensions are those of the largest network selected; smaller ones are padded with zeros,
        which changes no output. Networks not yet trained are NaN, and so are those that stopped before a snapshot.

    Raises:
        UserError: for an unknown axis or value, networks of several architectures, or a folder that cannot be read.
    """
    store = Store.open(folder)
    snapshot = _snapshot(store, {STEP: step, MARGIN_LEVEL: margin_level})
    _start_jax()
    selected, shape = _select(store.sweep, coordinates)
    chosen, back = np.unique(selected, return_inverse=True)
    design = _one_design(store.sweep, chosen)
    if module is not None and not is_class_name(design.architecture):
        raise UserError(
            f"module: is of networks of your own class, and these are of {design.architecture}; leave it out"
        )
    read = _as_saved if is_class_name(design.architecture) else _in_ambient
    found = read(store, chosen, design, snapshot)
    if found is None:
        raise UserError(f"{folder}: none of the networks selected is trained yet; run the sweep to its end")
    if module is not None:
        must_fit(design, module, found)
        hand_over(design.architecture, module)
    params = jax.tree.map(lambda values: values[back].reshape((*shape, *values.shape[1:])), found)
    row = architecture_of(design.architecture)
    made_of = row.module(design)
    return (
        params
        if made_of is None and not is_class_name(design.architecture)
        else Networks(params, made_of, design.ambient_dim)
    )


def _snapshot(store: Store, wanted: dict[str, float | None]) -> int | None:
    """Which snapshot is wanted, of those that every network has; None of networks at their stop."""
    given = {dimension: value for dimension, value in wanted.items() if value is not None}
    if not given:
        return None
    snapshots = snapshots_of(store.sweep.measure)
    if len(given) > 1:
        raise UserError(f"{STEP} and {MARGIN_LEVEL}: select networks by one of the two")
    [(dimension, value)] = given.items()
    if dimension not in snapshots.dimensions:
        leaf = {STEP: "at_steps", MARGIN_LEVEL: "at_margins"}[dimension]
        raise UserError(f"{dimension} = {brief(value)}: networks were not measured so; that takes measure.{leaf}")
    if not snapshots.networks:
        told = "no networks were saved but those at their stop; that takes measure.keep_networks = true"
        raise UserError(f"{dimension} = {brief(value)}: {told}")
    values = snapshots.values(dimension)
    place = _position(dimension, values, value)
    return None if place == len(values) - 1 else snapshots.dimensions[dimension].start + place


def _at(arrays: Arrays, snapshot: int | None) -> Arrays:
    """What was saved of networks at their stop, or before it, by its name at the stop."""
    before = {during(name) for name in arrays}
    at_stop = {name: values for name, values in arrays.items() if name not in before}
    if snapshot is None:
        return at_stop
    return {
        name: arrays[during(name)][:, snapshot] if during(name) in arrays else values
        for name, values in at_stop.items()
    }


def _one_design(sweep: Sweep, cells: np.ndarray) -> Design:
    """Of networks that have parameters of one structure; as wide, and for as large a space, as any of them.

    Raises:
        UserError: if they have not.
    """
    at: dict[str, Any] = {}
    for leaf in DESIGNED:
        values = sorted(set(sweep.column(leaf, cells).tolist()))
        pads = leaf == "width" and architecture_of(at["architecture"]).pads
        if len(values) > 1 and not pads and leaf != "parametrization":
            told = f"networks of {leaf} {' and '.join(map(str, values))} are selected, whose parameters differ"
            raise UserError(f"{leaf}: {told}; select one, such as {leaf}={values[0]!r}")
        at[leaf] = values[-1]
    shape = max((settings.shape for settings in cell_data(sweep, cells)[0]), key=lambda shape: shape.ambient_dim)
    return sweep.design(at, shape)._replace(width=at["width"])


def _in_ambient(store: Store, cells: np.ndarray, design: Design, snapshot: int | None) -> Any:
    """Parameters of cells (ascending), in ambient coordinates; None if none is trained."""
    sweep, model = store.sweep, architecture_of(design.architecture).model(design)
    fan_in = design.ambient_dim if isinstance(model.fields, Dense) else model.fields.fan_in
    like = parameter_shapes(model, Law(sweep.column("init", cells)[0], design.width, fan_in, fan_in))
    found = {name: np.full((len(cells), *leaf.shape), np.nan, np.float32) for name, leaf in named(like).items()}
    groups, any_trained = cut(sweep).groups, False
    for number, of_chunk, arrays in committed(store, cells):
        any_trained = True
        mine = np.isin(of_chunk, cells)
        place = np.searchsorted(cells, of_chunk[mine])
        trained = {name: values[mine] for name, values in _at(arrays, snapshot).items()}
        never = trained["steps"] == NEVER
        trained["steps"] = np.where(never, 0, trained["steps"])  # of no network
        group = next(group for group in groups if of_chunk[0] in group.cells)
        networks = engine.ambient_networks(sweep, Chunk(number, group, of_chunk[mine]), trained)
        for name, held in named(networks).items():
            found[name][place] = 0
            sizes = tuple(map(min, held.shape[1:], found[name].shape[1:]))  # neurons beyond are padding
            within = tuple(map(slice, sizes))
            found[name][(place, *within)] = held[(slice(None), *within)]
            found[name][place[never]] = np.nan
    return renamed(like, found) if any_trained else None


def _as_saved(store: Store, cells: np.ndarray, design: Design, snapshot: int | None) -> Any:
    """Parameters of cells (ascending) of the user's own class, without it; None if none is trained."""
    found: dict[str, np.ndarray] = {}
    measure, redraws = store.sweep.measure, max(store.sweep.values("redraws"))
    recorded = {*TRAINED, *variables(measure.regions, measure.norms, redraws)}
    for _, of_chunk, arrays in committed(store, cells):
        mine, then = np.isin(of_chunk, cells), _at(arrays, snapshot)
        for name in then.keys() - recorded:
            values = then[name]
            all_of_them = found.setdefault(name, np.full((len(cells), *values.shape[1:]), np.nan, np.float32))
            if all_of_them.shape[1:] != values.shape[1:]:
                raise UserError(f"{design.architecture}: parameters {name} of several shapes are selected; select one")
            all_of_them[np.searchsorted(cells, of_chunk[mine])] = values[mine]
    return unflatten_dict(found, sep=".") if found else None


class Points(NamedTuple):
    """Data in ambient coordinates; leading axes batch datasets."""

    x: np.ndarray  # (n, d) float64, training points
    y: np.ndarray  # (n,) int8, labels −1 or +1; 0 where a smaller dataset has no such point
    heldout: np.ndarray  # (h, d) float64
    basis: np.ndarray  # (d, k) float64, orthonormal columns: directions of the subspace


def load_points(folder: str | Path, **coordinates: Any) -> Points:
    """What the networks of a results folder were trained on, in their own coordinates.

    `Subspace.from_directions(points.basis)` is the subspace of one dataset.

    Args:
        folder: a results folder.
        **coordinates: as of `load_networks`.

    Returns:
        Host arrays with leading axes as in the Dataset; of kinds file and digits centred and scaled, as networks were
        trained on them. Sizes are those of the largest dataset selected: points that a smaller one does not have are
        NaN, as are held-out points that there are not; further coordinates and directions are zero.

    Raises:
        UserError: for an unknown axis or value, or a folder that cannot be read.
    """
    sweep = Store.open(folder).sweep
    selected, shape = _select(sweep, coordinates)
    datasets, which = cell_data(sweep, selected)
    n, d, k = (max(getattr(s.shape, size) for s in datasets) for size in ("samples", "ambient_dim", "subspace_dim"))
    number = len(datasets)
    x, y = np.full((number, n, d), np.nan), np.zeros((number, n), np.int8)
    heldout, bases = np.zeros((number, HELDOUT, d)), np.zeros((number, d, k))
    for i, settings in enumerate(datasets):
        data, span = load_data(settings), np.asarray(load_span(settings).basis)
        points, of_one = len(data.x), len(span)
        x[i, :points] = 0
        x[i, :points, :of_one], y[i, :points] = data.x.astype(np.float64) @ span.T, data.y
        heldout[i, :, :of_one] = data.heldout.astype(np.float64) @ span.T
        bases[i, :of_one, : settings.shape.subspace_dim] = span @ np.asarray(data.subspace.basis)
    return Points(*(part[which].reshape((*shape, *part.shape[1:])) for part in (x, y, heldout, bases)))


def committed(store: Store, only: np.ndarray | None = None) -> Iterator[tuple[int, np.ndarray, Arrays]]:
    """(number, cells, arrays) of every committed chunk with some of the cells `only`; damaged ones are warned of."""
    for entry in store.entries:
        if not store.has(entry.number) or (only is not None and not np.isin(entry.cells, only).any()):
            continue
        try:
            yield entry.number, entry.cells, store.load(entry.number)
        except DamagedChunk as damage:
            warnings.warn(f"{damage}; run the sweep again to recompute it", stacklevel=3)


def _start_jax() -> None:
    """Start JAX, on the CPU where what it is told to start on is not there: to rebuild networks takes no more."""
    try:
        devices.local()
    except UserError as error:
        warnings.warn(f"{error}; networks are rebuilt on the CPU", stacklevel=3)
        jax.config.update("jax_platforms", "cpu")


def _select(sweep: Sweep, coordinates: dict[str, Any]) -> tuple[np.ndarray, tuple[int, ...]]:
    """Flat indices of the selected cells and the shape they keep."""
    for name in coordinates:
        if name in sweep.axes and name not in sweep.dimensions:
            along = next(one for one, of in sweep.dimensions.items() if name in of)
            told = f"varies along {along}, with which networks are selected, by their place: {along}=0 to "
            raise UserError(f"{name}: {told}{along}={len(sweep.axes[name]) - 1}")
        if name not in sweep.dimensions:
            raise UserError(f"{name}: no such axis{nearest(name, sweep.dimensions)}")
    index: list[Any] = []
    for axis, size in zip(sweep.dimensions, sweep.shape, strict=True):
        is_list = is_axis(axis) and role(axis).is_list
        values = tuple(sweep.coordinate(axis).tolist()) if is_list else sweep.axes.get(axis, tuple(range(size)))
        if axis not in coordinates:
            index.append(np.arange(len(values)))
            continue
        wanted = np.asarray(_lists_as_text(coordinates[axis], values) if is_list else coordinates[axis])
        if wanted.ndim > 1 or not wanted.size:
            raise UserError(f"{axis} = {brief(coordinates[axis])}: must be one value of this axis, or a list of some")
        found = [_position(axis, values, value) for value in np.atleast_1d(wanted).tolist()]
        index.append(np.array(found) if wanted.ndim else found[0])
    grid = np.arange(sweep.cells).reshape(sweep.shape)
    lists = [np.atleast_1d(i) for i in index]
    chosen = grid[np.ix_(*lists)] if lists else grid
    return chosen.ravel(), tuple(len(i) for i in index if isinstance(i, np.ndarray))


def _lists_as_text(wanted: Any, values: tuple) -> Any:
    """A value of an axis whose values are lists, or several, as results tell them: one as text, or a list of such."""

    def text(one: Any) -> Any:
        return ", ".join(map(str, one)) if isinstance(one, list | tuple) else one

    wanted = wanted.tolist() if isinstance(wanted, np.ndarray) else wanted
    several = isinstance(wanted, list | tuple) and text(wanted) not in values
    if several and any(isinstance(one, list | tuple) or one in values for one in wanted):
        return [text(one) for one in wanted]
    return text(wanted)


def _position(axis: str, values: tuple, wanted: Any) -> int:
    numeric = isinstance(wanted, (int, float)) and not isinstance(values[0], str)
    if wanted in values:
        return values.index(wanted)
    if not numeric:
        names = [] if not isinstance(values[0], str) else values
        quoted = [f"'{name}'" if "," in name else name for name in names]
        raise UserError(f"{axis} = {brief(wanted)}: not a value of this axis{nearest(str(wanted), quoted)}")
    near = min(range(len(values)), key=lambda i: abs(values[i] - wanted))
    if isinstance(values[near], float) and math.isclose(values[near], wanted, rel_tol=1e-6):  # given in float32
        return near
    raise UserError(f"{axis} = {wanted}: not a value of this axis; the nearest is {values[near]}")
