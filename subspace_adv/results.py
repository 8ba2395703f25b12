"""A results folder as labelled arrays, and its trained networks."""

import itertools
import math
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from subspace_adv import devices, engine
from subspace_adv.brackets import exactness
from subspace_adv.contracts import Model, named, renamed
from subspace_adv.data import HELDOUT, DataSettings, Shape
from subspace_adv.datasets import cell_data, data_axes, grid_data, load_data, load_span
from subspace_adv.errors import UserError, brief
from subspace_adv.geometry import region_dim
from subspace_adv.initialization import Law
from subspace_adv.measures import distance_parts, variables
from subspace_adv.models import architecture_of
from subspace_adv.planning import Chunk, cut
from subspace_adv.predictions import PREDICTIONS, predict
from subspace_adv.program import parameter_shapes
from subspace_adv.receptive_fields import Dense
from subspace_adv.rows import nearest
from subspace_adv.settings import leaves, resolved_trainable, role
from subspace_adv.store import DamagedChunk, Store
from subspace_adv.sweep import DESIGNED, Sweep
from subspace_adv.training import PENDING, STATUS_MEANINGS

if TYPE_CHECKING:
    import xarray as xr


def open_results(folder: str | Path) -> "xr.Dataset":
    """Everything measured in a results folder and predicted of it, by cell and point, trained on or held out.

    Args:
        folder: a results folder, complete or not.

    Returns:
        A Dataset with one dimension per axis of the sweep, in its order, `point` and `heldout`. Cells not yet done
        have status 0 and NaN; so have points beyond a smaller dataset's. Each variable's attrs tell its meaning and
        unit; coordinates `label` and `input` are the training points, `heldout_input` those held out. What the
        theory predicts of a cell stands beside, as `predicted_…`; NaN where it predicts nothing. Where `loss` is an
        axis, its measured value is `loss_value`.

    Raises:
        UserError: if the folder is no results folder, or cannot be read.
    """
    return dataset_of(Store.open(folder))


def dataset_of(store: Store) -> "xr.Dataset":
    """As `open_results`, of a store that is open."""
    import xarray as xr  # pandas takes long to import, and a run needs neither before its end

    sweep = store.sweep
    datasets, which = grid_data(sweep)
    labels, inputs, heldout = _points(datasets)
    table = variables(sweep.measure.regions, sweep.measure.norms)
    arrays: dict[str, np.ndarray] = {
        "status": np.full(sweep.cells, PENDING, np.int8),
        "steps": np.full(sweep.cells, np.nan, np.float64),
    }
    inner = {name: variable.dimensions for name, variable in (table | PREDICTIONS).items()}
    for name, variable in table.items():
        shape = (sweep.cells, variable.values(labels.shape[1])) if inner[name] else (sweep.cells,)
        arrays[name] = np.full(shape, np.nan, np.float32)
    for _, cells, chunk in _committed(store):
        if missing := arrays.keys() - chunk:
            without = ", ".join(sorted(missing))
            raise UserError(f"{store.folder}: was measured without {without}; run the sweep into another folder")
        for name, values in arrays.items():
            place = (cells, slice(chunk[name].shape[1])) if values.ndim == 2 else cells
            values[place] = chunk[name]
    with np.errstate(all="ignore"):  # beyond float32's range predictions are inf
        arrays |= predict(sweep, arrays, datasets, which, labels)
    axes = list(sweep.axes)
    shared, along = _settings(sweep)
    # Where a subspace lies changes neither labels nor coordinates within it.
    along_data = [axis for axis in data_axes(sweep) if not role(axis).tells_place]
    which = which[tuple(slice(None) if axis in along_data else 0 for axis in axes)]
    dataset = xr.Dataset(
        {
            _shown(name, axes): (
                (*axes, *inner.get(name, ())),
                values.reshape((*sweep.shape, *values.shape[1:])),
            )
            for name, values in arrays.items()
        },
        coords={
            **{axis: np.array(values) for axis, values in sweep.axes.items()},
            **along,
            "label": ((*along_data, "point"), labels[which]),
            "input": ((*along_data, "point", "feature"), inputs[which]),
            "heldout_input": ((*along_data, "heldout", "feature"), heldout[which]),
        },
        attrs={
            "name": sweep.name,
            **shared,
            **{leaf: v for leaf, v in _measured(sweep).items() if leaf not in axes},
            **_origin(store),
        },
    )
    for name, variable in (table | PREDICTIONS).items():
        meaning = variable.meaning + (_how_exact(sweep, name) if name.startswith("distance_") else "")
        dataset[_shown(name, axes)].attrs = {"long_name": meaning, "units": variable.unit}
    dataset["status"].attrs = {
        "long_name": "outcome of training",
        "flag_values": np.arange(len(STATUS_MEANINGS), dtype=np.int8),
        "flag_meanings": " ".join(STATUS_MEANINGS),
    }
    dataset["steps"].attrs = {"long_name": "gradient steps taken", "units": "1"}
    dataset["label"].attrs = {"long_name": "training label, −1 or +1; 0 where there is no such point"}
    dataset["input"].attrs = {"long_name": f"training point, {_COORDINATES}", "units": "input length"}
    dataset["heldout_input"].attrs = {"long_name": f"held-out point, {_COORDINATES}", "units": "input length"}
    return dataset


def _models(sweep: Sweep) -> dict[str, Model]:
    """The models of a sweep by the words that tell them apart."""
    found = {}
    leaves = [leaf for leaf in DESIGNED if leaf in sweep.axes and leaf != "width"]
    for values in itertools.product(*(sweep.axes[leaf] for leaf in leaves)):
        at = dict(zip(leaves, values, strict=True))
        for dataset in sweep.datasets_but_for_replicates():
            design = sweep.design(at, dataset.shape)
            found[design.architecture] = architecture_of(design.architecture).model(design)
    return found


def _how_exact(sweep: Sweep, name: str) -> str:
    """What there is to say of distances that are exact, or of those of models that certify nothing."""
    models = _models(sweep)
    parts = distance_parts(name)
    none = [kind for kind, model in models.items() if model.certificate is None]
    if none:
        told = (
            "no certificate, and so 0," if parts and parts[-1] == "lower" else "by a search along rays, and not exact,"
        )
        return f"; {told} for architecture {' and '.join(none)}"
    if parts is None:
        return ""
    shapes = [settings.shape for settings in sweep.datasets_but_for_replicates()]
    dimensions = {region_dim(parts[0], shape.ambient_dim, shape.subspace_dim) for shape in shapes}
    return exactness(dimensions, models.values())


_COORDINATES = "in ambient coordinates; of kind subspace, in coordinates of that subspace"


def _shown(name: str, axes: list[str]) -> str:
    """Name of a variable in the Dataset: an axis of the same name keeps it."""
    return f"{name}_value" if name in axes else name


def load_networks(folder: str | Path, **coordinates: Any) -> Any:
    """Trained networks of a results folder.

    Args:
        folder: a results folder.
        **coordinates: an axis by name, with the value to select (the axis is dropped) or a list of values (it is
            kept). Axes not named are kept whole.

    Returns:
        The parameters of the architecture, of "mlp" a `Network`, weight (…, m, d), bias (…, m), head (…, m), head_bias
        (…): float32 host arrays with leading axes as in the Dataset. Widths and dimensions are those of the largest
        network selected; smaller ones are padded with zeros, which changes no output. Networks not yet trained are NaN.

    Raises:
        UserError: for an unknown axis or value, networks of several architectures, or a folder that cannot be read.
    """
    store = Store.open(folder)
    _start_jax()
    sweep = store.sweep
    selected, shape = _select(sweep, coordinates)
    chosen, back = np.unique(selected, return_inverse=True)
    like = _largest(sweep, chosen)
    found = {name: np.full((len(chosen), *leaf.shape), np.nan, np.float32) for name, leaf in named(like).items()}
    groups = cut(sweep).groups
    any_trained = False
    for number, cells, arrays in _committed(store, chosen):
        any_trained = True
        mine = np.isin(cells, chosen)
        place = np.searchsorted(chosen, cells[mine])
        trained = {name: values[mine] for name, values in arrays.items()}
        group = next(group for group in groups if cells[0] in group.cells)
        networks = engine.ambient_networks(sweep, Chunk(number, group, cells[mine]), trained)
        for name, held in named(networks).items():
            found[name][place] = 0
            sizes = tuple(map(min, held.shape[1:], found[name].shape[1:]))  # neurons beyond are padding
            within = tuple(map(slice, sizes))
            found[name][(place, *within)] = held[(slice(None), *within)]
    if not any_trained:
        raise UserError(f"{folder}: none of the networks selected is trained yet; run the sweep to its end")
    selection = {name: values[back].reshape((*shape, *values.shape[1:])) for name, values in found.items()}
    return renamed(like, selection)


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
        Host arrays with leading axes as in the Dataset. Sizes are those of the largest dataset selected: points that a
        smaller one does not have are NaN, further coordinates and directions zero.

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


def _committed(store: Store, only: np.ndarray | None = None) -> Any:
    """(number, cells, arrays) of every committed chunk with some of the cells `only`; damaged ones are warned of."""
    for entry in store.entries:
        if not store.has(entry.number) or (only is not None and not np.isin(entry.cells, only).any()):
            continue
        try:
            yield entry.number, entry.cells, store.load(entry.number)
        except DamagedChunk as damage:
            warnings.warn(f"{damage}; run the sweep again to recompute it", stacklevel=3)


def _settings(sweep: Sweep) -> tuple[dict[str, Any], dict[str, tuple[str, np.ndarray]]]:
    """What cells read, as it was for them: what they all share, and coordinates along the axis that decides it."""
    shared, along = {}, {}
    for leaf, table in leaves().items():
        if leaf in sweep.axes or table == "measure":
            continue
        values = _as_read(sweep, leaf)
        if len(set(values)) == 1:
            shared[leaf] = values[0]
        elif values:
            along[leaf] = ("init" if leaf == "trainable" else "kind", np.array(values))
    return shared, along


def _as_read(sweep: Sweep, leaf: str) -> list:
    """Values of a leaf that is no axis, one for each value of what decides it, and none where no cell reads it."""
    [value] = sweep.values(leaf)
    if leaf == "trainable":
        return [resolved_trainable(init, value) for init in sweep.values("init")]
    if leaf in Shape._fields:
        return [getattr(sweep.dataset({"kind": kind}).shape, leaf) for kind in sweep.values("kind")]
    return [value] if sweep.reads(leaf) else []


def _measured(sweep: Sweep) -> dict[str, Any]:
    """`[measure]`, as the attrs of any file format can hold it."""
    settings = sweep.measure.model_dump()
    return settings | {leaf: ", ".join(settings[leaf]) for leaf in settings if not role(leaf).axis}


def _origin(store: Store) -> dict[str, str]:
    """With what the results were made."""
    versions = {f"{name.replace('-', '_')}_version": number for name, number in store.manifest["versions"].items()}
    commit = store.manifest["commit"]
    return versions | store.manifest["machine"] | ({"commit": commit} if commit else {})


def _start_jax() -> None:
    """Start JAX, on the CPU where what it is told to start on is not there: to rebuild networks takes no more."""
    try:
        devices.local()
    except UserError as error:
        warnings.warn(f"{error}; networks are rebuilt on the CPU", stacklevel=3)
        jax.config.update("jax_platforms", "cpu")


def _points(tables: list[DataSettings]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels (datasets, n), inputs (datasets, n, d), padded with 0 and NaN, and held-out inputs (datasets, h, d)."""
    datasets = [load_data(settings) for settings in tables]
    frames = [
        np.eye(data.x.shape[1]) if settings.told_in_span else load_span(settings).basis.T
        for settings, data in zip(tables, datasets, strict=True)
    ]
    n, d = max(len(data.x) for data in datasets), max(frame.shape[1] for frame in frames)
    labels, inputs = np.zeros((len(datasets), n), np.int8), np.full((len(datasets), n, d), np.nan, np.float32)
    heldout = np.full((len(datasets), HELDOUT, d), np.nan, np.float32)
    for i, (data, frame) in enumerate(zip(datasets, frames, strict=True)):
        labels[i, : len(data.y)] = data.y
        inputs[i, : len(data.x), : frame.shape[1]] = data.x @ frame
        heldout[i, :, : frame.shape[1]] = data.heldout @ frame
    return labels, inputs, heldout


def _select(sweep: Sweep, coordinates: dict[str, Any]) -> tuple[np.ndarray, tuple[int, ...]]:
    """Flat indices of the selected cells and the shape they keep."""
    for name in coordinates:
        if name not in sweep.axes:
            raise UserError(f"{name}: no such axis{nearest(name, sweep.axes)}")
    index: list[Any] = []
    for axis, values in sweep.axes.items():
        if axis not in coordinates:
            index.append(np.arange(len(values)))
            continue
        wanted = np.asarray(coordinates[axis])
        if wanted.ndim > 1 or not wanted.size:
            raise UserError(f"{axis} = {brief(coordinates[axis])}: must be one value of this axis, or a list of some")
        found = [_position(axis, values, value) for value in np.atleast_1d(wanted).tolist()]
        index.append(np.array(found) if wanted.ndim else found[0])
    grid = np.arange(sweep.cells).reshape(sweep.shape)
    lists = [np.atleast_1d(i) for i in index]
    chosen = grid[np.ix_(*lists)] if lists else grid
    return chosen.ravel(), tuple(len(i) for i in index if isinstance(i, np.ndarray))


def _position(axis: str, values: tuple, wanted: Any) -> int:
    numeric = isinstance(wanted, (int, float)) and not isinstance(values[0], str)
    if wanted in values:
        return values.index(wanted)
    if not numeric:
        names = [] if not isinstance(values[0], str) else values
        raise UserError(f"{axis} = {brief(wanted)}: not a value of this axis{nearest(str(wanted), names)}")
    near = min(range(len(values)), key=lambda i: abs(values[i] - wanted))
    if isinstance(values[near], float) and math.isclose(values[near], wanted, rel_tol=1e-6):  # given in float32
        return near
    raise UserError(f"{axis} = {wanted}: not a value of this axis; the nearest is {values[near]}")


def _largest(sweep: Sweep, cells: np.ndarray) -> Any:
    """Shapes of the parameters of a network as wide, and of a space as large, as some of the cells have."""
    at: dict[str, Any] = {}
    for leaf in ("architecture", "depth", "kernel", "stride", "mixing", "padding", "layout"):
        values = sorted(set(sweep.column(leaf, cells).tolist()))
        if len(values) > 1:
            told = f"networks of {leaf} {' and '.join(map(str, values))} are selected, whose parameters differ"
            raise UserError(f"{leaf}: {told}; select one, such as {leaf}={values[0]!r}")
        at[leaf] = values[0]
    shape = max((settings.shape for settings in cell_data(sweep, cells)[0]), key=lambda shape: shape.ambient_dim)
    at["width"] = int(sweep.column("width", cells).max())
    model = architecture_of(at["architecture"]).model(sweep.design(at, shape))
    fan_in = shape.ambient_dim if isinstance(model.fields, Dense) else model.fields.fan_in
    return parameter_shapes(model, Law(sweep.column("init", cells)[0], at["width"], fan_in, fan_in))
