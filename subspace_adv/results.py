"""A results folder as labelled arrays, and its trained networks."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from subspace_adv.brackets import exactness
from subspace_adv.data import HELDOUT, DataSettings
from subspace_adv.datasets import grid_data, load_data, load_span
from subspace_adv.dimensions import FIELDS, is_axis
from subspace_adv.errors import UserError
from subspace_adv.loading import committed
from subspace_adv.manifest import certified_classes, made_with
from subspace_adv.measures import TRAINED, Variable, distance_parts, variables, variables_during
from subspace_adv.models import architecture_of, is_class_name
from subspace_adv.predictions import PREDICTIONS, predict, predict_during
from subspace_adv.settings import leaves, resolved_trainable, role
from subspace_adv.snapshots import MARGIN_LEVEL, NEVER, STEP, Snapshots, at_margin, during, snapshots_of
from subspace_adv.store import Store
from subspace_adv.sweep import Sweep
from subspace_adv.training import PENDING, STATUS_MEANINGS

if TYPE_CHECKING:
    import xarray as xr


def open_results(folder: str | Path) -> "xr.Dataset":
    """Everything measured in a results folder and predicted of it, by cell and point, trained on or held out.

    Args:
        folder: a results folder, complete or not.

    Returns:
        A Dataset with one dimension per axis of the sweep, in its order, then one per zip, and one of the sample, along
        which what varies are coordinates, then `point` and `heldout`. What was measured
        before networks stopped too is along `step` or `margin_level`, and last, at inf, as it was at their stop:
        `final` takes that. Cells not yet done
        have status 0 and NaN; so have points beyond a smaller dataset's. Each variable's attrs tell its meaning and
        unit; coordinates `label` and `input` are the training points, `heldout_input` those held out. What the
        theory predicts of a cell stands beside, as `predicted_…`; NaN where it predicts nothing. Where `loss` is an
        axis, its measured value is `loss_value`.

    Raises:
        UserError: if the folder is no results folder, or cannot be read.
    """
    return dataset_of(Store.open(folder))


def outcomes(store: Store) -> dict[str, int]:
    """How many networks have each outcome of training; read chunk by chunk.

    Raises:
        UserError: if the folder cannot be read.
    """
    counts = np.zeros(len(STATUS_MEANINGS), np.int64)
    for _, _, arrays in committed(store):
        counts += np.bincount(arrays["status"], minlength=len(counts))
    counts[PENDING] += store.sweep.cells - counts.sum()
    return dict(zip(STATUS_MEANINGS, counts.tolist(), strict=True))


def dataset_of(store: Store) -> "xr.Dataset":
    """As `open_results`, of a store that is open."""
    import xarray as xr  # pandas takes long to import, and a run needs neither before its end

    store.check_files()
    sweep = store.sweep
    datasets, which = grid_data(sweep)
    labels, inputs, heldout = _points(datasets)
    table = variables(sweep.measure.regions, sweep.measure.norms, max(sweep.values("redraws")))
    arrays = _recorded(store, labels.shape[1])
    with np.errstate(all="ignore"):  # beyond float32's range predictions are inf
        arrays |= predict(sweep, arrays, datasets, which, labels)
        snapshots = snapshots_of(sweep.measure)
        if snapshots.number:
            arrays |= predict_during(sweep, arrays, datasets, which, labels, snapshots.number)
    axes, fields = list(sweep.dimensions), list(sweep.axes)
    shared, along = _settings(sweep, datasets, which)
    # Where a subspace lies changes neither labels nor coordinates within it.
    along_data = [
        axis
        for axis, of in sweep.dimensions.items()
        if any(leaves()[leaf] == "data" and not role(leaf).tells_place for leaf in of)
    ]
    which = which[tuple(slice(None) if axis in along_data else 0 for axis in axes)]
    dataset = xr.Dataset(
        {
            name: ((*axes, *dimensions), values.reshape((*sweep.shape, *values.shape[1:])))
            for name, dimensions, values in _variables(table | PREDICTIONS, arrays, fields, snapshots)
        },
        coords={
            **_coordinates(sweep),
            **{dimension: np.array(snapshots.values(dimension)) for dimension in snapshots.dimensions},
            **along,
            "label": ((*along_data, "point"), labels[which]),
            "input": ((*along_data, "point", "feature"), inputs[which]),
            "heldout_input": ((*along_data, "heldout", "feature"), heldout[which]),
        },
        attrs={
            "name": sweep.name,
            **shared,
            **{leaf: v for leaf, v in _measured(sweep).items() if leaf not in fields},
            **_origin(store),
        },
    )
    for name, variable in (table | PREDICTIONS).items():
        meaning = variable.meaning + (_how_exact(store, name) if name.startswith("distance_") else "")
        for shown in {_shown(name, fields), at_margin(_shown(name, fields))} & dataset.data_vars.keys():
            dataset[shown].attrs = {"long_name": meaning, "units": variable.unit}
    for name, attrs in _TOLD.items():
        if name in dataset.variables:
            dataset[name].attrs = attrs
    return dataset


def _coordinates(sweep: Sweep) -> dict[str, Any]:
    """What tells places along the dimensions: values along axes; of zips and a sample numbers, and values of fields."""
    found: dict[str, Any] = {}
    for (name, of), size in zip(sweep.dimensions.items(), sweep.shape, strict=True):
        if not is_axis(name):
            attrs = {"long_name": "place along fields that vary together", FIELDS: ", ".join(of)}
            found[name] = name, np.arange(size), attrs
        found |= {leaf: (name, sweep.coordinate(leaf)) for leaf in of}
    return found


def _recorded(store: Store, points: int) -> dict[str, np.ndarray]:
    """What was recorded of all cells, (cells, …), by name; NaN where pending, or stopped before a snapshot."""
    sweep = store.sweep
    measure, count = sweep.measure, snapshots_of(sweep.measure).number
    arrays: dict[str, np.ndarray] = {
        "status": np.full(sweep.cells, PENDING, np.int8),
        "steps": np.full(sweep.cells, np.nan, np.float64),
    }
    for name, variable in variables(measure.regions, measure.norms, max(sweep.values("redraws"))).items():
        arrays[name] = np.full((sweep.cells, *variable.shape(points)), np.nan, np.float32)
    then = {"steps"}
    if count:
        then |= variables_during(measure.regions, measure.norms, brackets=measure.brackets_during).keys()
        for name in then:
            arrays[during(name)] = np.full((sweep.cells, count, *arrays[name].shape[1:]), np.nan, arrays[name].dtype)
    for _, cells, chunk in committed(store):
        redraws = int(sweep.column("redraws", cells)[0])
        recorded = {*TRAINED, *variables(measure.regions, measure.norms, redraws)}
        recorded |= {during(name) for name in then} if count else set()
        if missing := recorded - chunk.keys():
            without = ", ".join(sorted(missing))
            raise UserError(f"{store.folder}: was measured without {without}; run the sweep into another folder")
        for name in recorded:
            values, found = arrays[name], chunk[name]
            both = [slice(min(sizes)) for sizes in zip(values.shape[1:], found.shape[1:], strict=True)]
            values[(cells, *both)] = found[(slice(None), *both)]  # points that fill up either are left out
    if count:
        steps = arrays[during("steps")]
        steps[steps == NEVER] = np.nan
    return arrays


def _variables(
    table: dict[str, Variable], arrays: dict[str, np.ndarray], fields: list[str], snapshots: Snapshots
) -> Iterator[tuple[str, tuple[str, ...], np.ndarray]]:
    """Name, dimensions beside the axes, and values (cells, …) of every variable: of its snapshots, then of the stop."""
    at_stop = {name: values for name, values in arrays.items() if name in table or name in TRAINED}
    for name, values in at_stop.items():
        inner = table[name].dimensions if name in table else ()
        along = snapshots.dimensions if during(name) in arrays else {}
        if name == "steps":
            along = {dimension: part for dimension, part in along.items() if dimension == MARGIN_LEVEL}
        if not along or (name == "steps" and STEP in snapshots.dimensions):
            yield _shown(name, fields), inner, values
        for dimension, part in along.items():
            shown = _shown(name, fields)
            if dimension == MARGIN_LEVEL and STEP in snapshots.dimensions:
                shown = at_margin(shown)
            all_of_them = np.concatenate([arrays[during(name)][:, part], values[:, None]], axis=1)
            yield shown, (dimension, *inner), all_of_them


def _how_exact(store: Store, name: str) -> str:
    """What there is to say of distances that are exact, or of those of models that certify nothing."""
    designs = [design for _, design in store.sweep.designs()]
    # A user's own class is not imported here: whether it is certified was kept.
    own = {kind for design in designs if is_class_name(kind := design.architecture)}
    models = {
        design: architecture_of(design.architecture).model(design)
        for design in designs
        if design.architecture not in own
    }
    none = {design.architecture for design, model in models.items() if model.certificate is None}
    none |= own and own - certified_classes(store.manifest)
    parts = distance_parts(name)
    if none:
        told = (
            "no certificate, and so 0," if parts and parts[-1] == "lower" else "by a search along rays, and not exact,"
        )
        return f"; {told} for architecture {' and '.join(sorted(none))}"
    if parts is None:
        return ""
    shapes = [settings.shape for settings in store.sweep.datasets_but_for_replicates()]
    dimensions = {shape.region_dim(parts[0]) for shape in shapes}
    return exactness(dimensions, [*models.values(), *(None for _ in own)])


_COORDINATES = (
    "in ambient coordinates; of kinds subspace, patches and band-limited, in coordinates of the subspace, and of kinds "
    "file and digits, centred and scaled, in those of the span of the training points"
)
_STEPS_TAKEN = {"long_name": "gradient steps taken", "units": "1"}
_TOLD: dict[str, dict[str, Any]] = {
    "status": {
        "long_name": "outcome of training",
        "flag_values": np.arange(len(STATUS_MEANINGS), dtype=np.int8),
        "flag_meanings": " ".join(STATUS_MEANINGS),
    },
    "steps": _STEPS_TAKEN,
    at_margin("steps"): _STEPS_TAKEN,
    "label": {"long_name": "training label, −1 or +1; 0 where there is no such point"},
    "input": {"long_name": f"training point, {_COORDINATES}", "units": "input length"},
    "heldout_input": {"long_name": f"held-out point, {_COORDINATES}", "units": "input length"},
    STEP: {
        "long_name": "gradient steps after which networks were measured; NaN after their stop; inf: at their stop",
        "units": "1",
    },
    MARGIN_LEVEL: {
        "long_name": "networks were measured after the first step at which their margin exceeded this; NaN where it "
        "never did; inf: at their stop",
        "units": "output",
    },
}


def _shown(name: str, fields: list[str]) -> str:
    """Name of a variable in the Dataset: a field of the same name that varies keeps it."""
    return f"{name}_value" if name in fields else name


def _settings(
    sweep: Sweep, datasets: list[DataSettings], which: np.ndarray
) -> tuple[dict[str, Any], dict[str, tuple[Any, np.ndarray]]]:
    """What cells read, as it was for them: what they all share, and coordinates along the axis that decides it.

    Args:
        sweep: the sweep.
        datasets: the distinct ones of the grid.
        which: the dataset of each cell, as from `datasets.grid_data`.
    """
    shared, along = _sizes(sweep, datasets, which)
    for leaf, table in leaves().items():
        if leaf in (*sweep.axes, *_SIZES) or table == "measure":
            continue
        values = _as_read(sweep, leaf)
        if len(set(values)) == 1:
            shared[leaf] = values[0]
        elif values:
            decider = "init" if leaf == "trainable" else "kind"
            along[leaf] = (next(name for name, of in sweep.dimensions.items() if decider in of), np.array(values))
    return shared, along


_SIZES = ("samples", "ambient_dim", "subspace_dim", "span_dim")


def _sizes(
    sweep: Sweep, datasets: list[DataSettings], which: np.ndarray
) -> tuple[dict[str, Any], dict[str, tuple[Any, np.ndarray]]]:
    """Sizes of the data that are no axes: those that all cells share, and coordinates along the axes they follow from.

    Arguments as of `_settings`.
    """
    shared, along = {}, {}
    for size in _SIZES:
        if size in sweep.axes:
            continue
        values = np.array([getattr(dataset.shape, size) for dataset in datasets])[which]
        varying = [i for i in range(values.ndim) if (values != values.take([0], axis=i)).any()]
        if varying:
            values = values[tuple(slice(None) if i in varying else 0 for i in range(values.ndim))]
            along[size] = tuple(axis for i, axis in enumerate(sweep.dimensions) if i in varying), values
        else:
            shared[size] = int(values.flat[0])
    return shared, along


def _as_read(sweep: Sweep, leaf: str) -> list:
    """Values of a leaf that is no axis, one for each value of what decides it, and none where no cell reads it."""
    [value] = sweep.values(leaf)
    if leaf == "trainable":
        return [resolved_trainable(init, value) for init in sweep.values("init")]
    if leaves()[leaf] == "data" and leaf != "kind" and sweep.reads(leaf):
        datasets = sweep.datasets_but_for_replicates()
        found = {dataset.told(leaf) for dataset in datasets if leaf in type(dataset).model_fields}
        return list(found) if len(found) == 1 else []
    return [value] if sweep.reads(leaf) else []


def _measured(sweep: Sweep) -> dict[str, Any]:
    """`[measure]`, as the attrs of any file format can hold it."""
    read = {leaf: value for leaf, value in sweep.measure.model_dump(exclude_none=True).items() if sweep.reads(leaf)}
    return {leaf: _plain(value) for leaf, value in read.items()}


def _plain(value: Any) -> Any:
    """A setting as a number or a text."""
    return ", ".join(map(str, value)) if isinstance(value, tuple) else int(value) if isinstance(value, bool) else value


def _origin(store: Store) -> dict[str, str]:
    """With what the results were made."""
    made, begun = made_with(store.manifest), store.manifest["begun"]
    begun = begun | {"finished": store.manifest.get("finished")}
    versions = {f"{name.replace('-', '_')}_version": made.pop(name) for name in store.manifest["versions"]}
    return versions | made | {name: told for name, told in begun.items() if told is not None}


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
