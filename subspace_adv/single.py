"""One network by hand, without a sweep: train it, attack it, certify it, measure it.

Two-layer networks can be trained; networks of any depth and of convolutions are attacked, certified and measured too.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import jax
import numpy as np

from subspace_adv import arguments, brackets, engine, measures, streams, training
from subspace_adv.attacks import ATTACKS, AttackResult, universal_attack
from subspace_adv.brackets import Beginnings, Brackets, Effort
from subspace_adv.contracts import Design, Model
from subspace_adv.errors import UserError
from subspace_adv.fields import checked
from subspace_adv.geometry import LINEAR_REGIONS, Region, Subspace, region_basis
from subspace_adv.initialization import Law
from subspace_adv.measures import MEASURES, Recording, Side, distance_name, distance_parts
from subspace_adv.models import TWO_LAYER
from subspace_adv.network import Network, Networks
from subspace_adv.norms import NORMS
from subspace_adv.optimizers import OPTIMIZERS, Hyper
from subspace_adv.receptive_fields import Dense
from subspace_adv.settings import MeasureSettings, NetworkSettings, TrainingSettings, entries, resolved_trainable
from subspace_adv.training import STATUS_MEANINGS, Recipe

if TYPE_CHECKING:
    import xarray as xr

_GIVEN_BASIS = "basis"  # in names of distances, where a region would stand
_DESIGNED = tuple(leaf for leaf in Design._fields if leaf != "width")  # what makes other networks
_DRAWN = ("init", "width", "init_scale")  # what tells the law of a network
_EFFORT = arguments.fields(MeasureSettings, but=("regions", "norms")) | {"seed": NetworkSettings}
_SIDES: tuple[Side, Side] = ("lower", "upper")
_AT_ONCE = 64  # points that are bracketed together: what memory holds, and as often as progress should be told
_LEAVE_OUT = "leave it out where basis=, the directions allowed, is given"


Found = TypeVar("Found")
Progress = Callable[[Sequence[int]], Iterable[int]]
"""What batches of points are drawn through, one by one, such as `tqdm.tqdm`."""


class Trained(NamedTuple):
    """Outcome of `train`."""

    network: Network  # float32 host arrays
    status: str  # "converged", "step_limit" or "diverged"
    steps: int  # gradient steps taken


def train(x: Any, y: Any, *, network: Network | None = None, **settings: Any) -> Trained:
    """Train one two-layer ReLU network until its margin exceeds `stop_margin`, or for `max_steps` steps.

    Args:
        x: points (n, d).
        y: labels (n,), −1 or +1.
        network: where training begins, weight (m, d); drawn by `init`, `width`, `init_scale` and `seed` if left out.
        **settings: fields of `[network]` and `[training]`, as in a sweep file, such as width=50, learning_rate=0.1.

    Returns:
        The trained network, how training ended, and after how many steps.

    Raises:
        UserError: naming the argument, what it was and what it must be.
    """
    points = arguments.points("train", x)
    n, d = points.shape
    labels = arguments.labels("train", y, n)
    unread = (*_DESIGNED, *(() if network is None else _DRAWN))
    homes = arguments.fields(NetworkSettings, TrainingSettings, but=unread)
    values = arguments.settings("train", settings, homes)
    if not OPTIMIZERS[values["optimizer"]].full_batch and values["batch_size"] > n:
        raise UserError(f"train: batch_size = {values['batch_size']}: over the {n} points; at most {n} is possible")
    init, seed = values.get("init", "paper-code"), np.uint32(values["seed"])
    trained = TWO_LAYER.trained(init, resolved_trainable(init, values["trainable"]))
    recipe = Recipe(TWO_LAYER, values["loss"], values["optimizer"], trained)
    types = entries()
    hyper = Hyper(**{name: types[name](values[name]) for name in Hyper._fields if name in values})
    if network is None:
        law, drawn = Law(init, values["width"], d, d), (types[name](values[name]) for name in _DRAWN[1:])
        start = engine.alone(_draw, seed, *drawn, x64=False, law=law)
    else:
        start = arguments.network("train", network, d, np.float32)
    data = points.astype(np.float32), labels.astype(np.float32)
    found, status, steps = engine.alone(_train, start, *data, hyper, seed, x64=False, recipe=recipe)
    return Trained(found, STATUS_MEANINGS[int(status)], int(steps))


def attack(
    network: Network | Networks,
    x: Any,
    *,
    subspace: Subspace | None = None,
    basis: Any = None,
    region: Region | None = None,
    norm: str = "l2",
    **effort: Any,
) -> AttackResult:
    """Find the least perturbation of each point that flips the network's prediction.

    Args:
        network: of points of d coordinates, and one.
        x: points (n, d), or one (d,).
        subspace: the data's; perturbations may lie in a region of it. Not needed for the region "full".
        basis: or the directions allowed themselves, orthonormal columns: (d, r) for all points, or (n, d, r), one basis
            a point.
        region: "off" (by default), "on" or "full", of the subspace.
        norm: "l2", "linf" or "l1"; the last two in the full space, on coordinate axes or along one direction alone.
        **effort: `attack_steps`, `restarts` and `gap`, as in a sweep file; `seed` of random starts.

    Returns:
        Perturbations (n, d), their norms (n,), a flip whatever the rounding, and whether there is one, float64; inf and
        zeros where none was found.

    Raises:
        UserError: naming the argument, what it was and what it must be.
    """
    _, found = _bracketed("attack", network, x, subspace, basis, region, norm, effort)
    return AttackResult(*(values[0] for values in found)) if np.ndim(x) == 1 else found


def certify(
    network: Network | Networks,
    x: Any,
    *,
    subspace: Subspace | None = None,
    basis: Any = None,
    region: Region | None = None,
    norm: str = "l2",
    **effort: Any,
) -> np.ndarray:
    """Radii within which no perturbation flips the network's prediction: arguments as of `attack`.

    Returns:
        (n,), or () for one point; safe against rounding, 0 where nothing is certified.

    Raises:
        UserError: naming the argument, what it was and what it must be.
    """
    lower, _ = _bracketed("certify", network, x, subspace, basis, region, norm, effort)
    return lower[0] if np.ndim(x) == 1 else lower


def bracket(
    network: Network | Networks,
    x: Any,
    y: Any = None,
    *,
    subspace: Subspace | None = None,
    basis: Any = None,
    regions: Sequence[Region] | None = None,
    norms: Sequence[str] = ("l2",),
    progress: Progress = iter,
    **effort: Any,
) -> "xr.Dataset":
    """Distances of points to a flip, from below and above, in several regions and norms.

    Args:
        network: of points of d coordinates, and one.
        x: points (n, d).
        y: labels (n,), −1 or +1, where a misclassified point is to be at distance 0; the network's predictions if left
            out.
        subspace: the data's. Not needed where "full" is the only region.
        basis: or the directions allowed themselves, orthonormal columns: (d, r) for all points, or (n, d, r), one basis
            a point.
        regions: of the subspace; "off", "on" and "full" by default.
        norms: of the distances.
        progress: what batches of 64 points are drawn through, such as `tqdm.tqdm`.
        **effort: `attack_steps`, `restarts` and `gap`, as in a sweep file; `seed` of random starts.

    Returns:
        Along `point`: `output`, and `distance_{region}_{norm}_lower` and `_upper`, named as by `open_results`;
        `distance_basis_…` where a basis is given. Meaning and unit are in their attrs.

    Raises:
        UserError: naming the argument, what it was and what it must be.
    """
    if basis is None:
        names = ("output", *(distance_name("{region}", "{norm}", side) for side in _SIDES))
        given, asked = (network, x, y, None), (regions, norms, "logistic")
        return _measured("bracket", given, subspace, asked, names, effort, progress)
    if subspace is not None or regions is not None:
        raise UserError(f"bracket: {'subspace' if regions is None else 'regions'}: {_LEAVE_OUT}")
    points = arguments.points("bracket", x)
    net, model = arguments.measured_network("bracket", network, points.shape[1])
    outputs = engine.alone(model.output, net, points, x64=True)
    right = np.ones(len(points), bool) if y is None else arguments.labels("bracket", y, len(points)) * outputs > 0
    told = {"output": (MEASURES["output"].unit, MEASURES["output"].meaning, outputs)}
    exact = brackets.exactness([np.shape(basis)[-1]], [model])
    for norm in checked(MeasureSettings, "norms", arguments.names("bracket", "norms", norms), "bracket: norms"):
        lower, found = _bracketed("bracket", network, x, None, basis, None, norm, effort, progress)
        for side, distances in zip(_SIDES, (lower, found.distance), strict=True):
            row = MEASURES[distance_name("{region}", "{norm}", side)]
            meaning = row.meaning.format(norm=norm.upper(), region="along the basis given") + exact
            told[distance_name(_GIVEN_BASIS, norm, side)] = row.unit, meaning, np.where(right, distances, 0)
    return _dataset({name: (("point",), *rest) for name, rest in told.items()})


def measure(
    network: Network | Networks,
    x: Any,
    y: Any,
    *,
    subspace: Subspace,
    heldout: Any = None,
    regions: Sequence[Region] | None = None,
    norms: Sequence[str] = ("l2",),
    loss: str = "logistic",
    progress: Progress = iter,
    **effort: Any,
) -> "xr.Dataset":
    """All that a sweep records of a trained network, of one.

    Args:
        network: of points of d coordinates, and one.
        x: training points (n, d).
        y: labels (n,), −1 or +1.
        subspace: the data's.
        heldout: further points (h, d); what is measured at them is left out where there are none.
        regions: of the distances; "off", "on" and "full" by default.
        norms: of the distances.
        loss: "logistic" or "exponential".
        progress: what batches of 64 points are drawn through, such as `tqdm.tqdm`.
        **effort: `attack_steps`, `restarts` and `gap`, as in a sweep file; `seed` of all that is drawn.

    Returns:
        The variables of `open_results` but for predictions, in float64, along `point` and `heldout`.

    Raises:
        UserError: naming the argument, what it was and what it must be.
    """
    if y is None:
        raise UserError("measure: y: is None; must be the labels (n,), -1 or 1, of the points")
    names = [name for name, row in MEASURES.items() if heldout is not None or "heldout" not in row.dimensions]
    given, asked = (network, x, y, heldout), (regions, norms, loss)
    return _measured("measure", given, subspace, asked, names, effort, progress)


def _draw(seed: jax.Array, width: jax.Array, init_scale: jax.Array, *, law: Law) -> Network:
    init_key, _ = streams.training_keys(seed)
    return TWO_LAYER.init(init_key, width, init_scale, law=law)


def _train(network: Network, x: jax.Array, y: jax.Array, hyper: Hyper, seed: jax.Array, *, recipe: Recipe) -> tuple:
    _, order_key = streams.training_keys(seed)
    return training.train(network, x, y, hyper, order_key, recipe=recipe)


def _begin(network: Any, x: jax.Array, seed: jax.Array, *, model: Model) -> Beginnings:
    """What attacks begin with, of the keys their data (n, 2), which host arrays can hold."""
    begin = Beginnings.of(network, x, streams.measuring_key(seed), model)
    return begin._replace(keys=jax.random.key_data(begin.keys))


def _with_keys(begin: Beginnings) -> Beginnings:
    """As `_begin` was before."""
    return begin._replace(keys=jax.random.wrap_key_data(begin.keys, impl=streams.KEY_IMPLEMENTATION))


def _bracket(
    network: Any,
    x: jax.Array,
    basis: jax.Array,
    begin: Beginnings,
    *,
    norm: str,
    effort: Effort,
    model: Model,
) -> tuple[jax.Array, AttackResult]:
    what = {"norm": norm, "effort": effort, "model": model, "shared": x.shape[1] == 2}
    return brackets.bracket(network, x, basis, _with_keys(begin), **what)


def _universal_weights(network: Any, x: jax.Array, *, model: Model) -> jax.Array:
    """What preactivations (k,) weigh in the one direction off the subspace that serves all points."""
    return model.universal_weights(network, model.sensitivity(network, x))


def _brackets(
    network: Any,
    x: jax.Array,
    subspace: Subspace,
    weights: jax.Array,
    begin: Beginnings,
    *,
    recording: Recording,
    model: Model,
) -> Brackets:
    along = functools.partial(universal_attack, model=model, weights=weights)
    universal = jax.vmap(along, in_axes=(None, 0, None))(network, x, subspace.complement)
    what = {"regions": recording.regions, "norms": recording.norms, "effort": recording.effort}
    return brackets.brackets(
        network, x, subspace, universal, _with_keys(begin), **what, model=model, beside=True, tangent=None
    )


def _measure(
    network: Any,
    x: jax.Array,
    y: jax.Array,
    subspace: Subspace,
    heldout: jax.Array,
    seed: jax.Array,
    known: Brackets | None,
    *,
    recording: Recording,
    model: Model,
) -> dict[str, jax.Array]:
    key = streams.measuring_key(seed)
    return measures.measure(network, x, y, subspace, heldout, key, recording=recording, model=model, known=known)


def _in_batches(points: int, progress: Progress, of_batch: Callable[[np.ndarray], Found]) -> Found:
    """What is found of points by their indices, (points, …), a few at a time and always as many."""
    size = min(points, _AT_ONCE)
    found = [
        of_batch(np.minimum(np.arange(begin, begin + size), points - 1)) for begin in progress(range(0, points, size))
    ]
    return jax.tree.map(lambda *parts: np.concatenate(parts)[:points], *found)


def _of(begin: Beginnings, i: np.ndarray) -> Beginnings:
    """Of some points by their indices."""
    return jax.tree.map(lambda part: part[i], begin)


def _bracketed(
    what: str,
    network: Network | Networks,
    x: Any,
    subspace: Subspace | None,
    basis: Any,
    region: Region | None,
    norm: str,
    effort: Mapping[str, Any],
    progress: Progress = iter,
) -> tuple[np.ndarray, AttackResult]:
    """Certified radii (n,) and flips found, of all points in one region and norm."""
    points = arguments.points(what, np.atleast_2d(x) if np.ndim(x) == 1 else x)
    n, d = points.shape
    net, model = arguments.measured_network(what, network, d)
    arguments.word(what, "norm", norm, NORMS)
    if basis is None:
        space = arguments.subspace(what, subspace, d, [region or "off"])
        arguments.word(what, "region", region or "off", LINEAR_REGIONS)
        directions = np.asarray(region_basis(space, region or "off"))
    elif subspace is not None or region is not None:
        raise UserError(f"{what}: {'subspace' if region is None else 'region'}: {_LEAVE_OUT}")
    else:
        directions = arguments.frames(what, basis, n, d)
    arguments.check_coordinates(what, norm, directions)
    values = arguments.settings(what, effort, _EFFORT)
    run = Effort(values["attack_steps"], values["restarts"], tuple(ATTACKS), values["gap"])
    begin = engine.alone(_begin, net, points, np.uint32(values["seed"]), x64=True, model=model)
    bracket = functools.partial(engine.alone, _bracket, net, x64=True, norm=norm, effort=run, model=model)

    def of_batch(i: np.ndarray) -> tuple[np.ndarray, AttackResult]:
        return bracket(points[i], directions if directions.ndim == 2 else directions[i], _of(begin, i))

    return _in_batches(n, progress, of_batch)


def _known(
    network: Any,
    x: np.ndarray,
    subspace: Subspace,
    seed: np.uint32,
    recording: Recording,
    model: Model,
    progress: Progress,
) -> Brackets:
    """Distances of all points by region and norm."""
    begin = engine.alone(_begin, network, x, seed, x64=True, model=model)
    weights = engine.alone(_universal_weights, network, x, x64=True, model=model)
    found = functools.partial(engine.alone, _brackets, network, x64=True, recording=recording, model=model)

    def of_batch(i: np.ndarray) -> Brackets:
        return found(x[i], subspace, weights, _of(begin, i))

    return _in_batches(len(x), progress, of_batch)


def _measured(
    what: str,
    given: tuple[Network | Networks, Any, Any, Any],
    subspace: Subspace | None,
    asked: tuple[Sequence[Region] | None, Sequence[str], str],
    names: Sequence[str],
    effort: Mapping[str, Any],
    progress: Progress,
) -> "xr.Dataset":
    """Some rows of `MEASURES`, by name.

    Args:
        what: the function that was called.
        given: network, points, labels and held-out points; None for predictions as labels, and for none held out.
        subspace: the data's.
        asked: regions, norms and loss.
        names: of the rows.
        effort: further arguments.
        progress: what batches of points are drawn through.
    """
    network, x, y, heldout = given
    points = arguments.points(what, x)
    n, d = points.shape
    net, model = arguments.measured_network(what, network, d)
    if "gradient_off_whitened" in names and not isinstance(model.fields, Dense):
        raise UserError(
            f"{what}: network: is convolutional, and not all of its measures are known here; bracket takes it"
        )
    words = {"regions": LINEAR_REGIONS if asked[0] is None else asked[0], "norms": asked[1]}
    regions, norms = (
        checked(MeasureSettings, name, arguments.names(what, name, given), f"{what}: {name}")
        for name, given in words.items()
    )
    space = arguments.subspace(what, subspace, d, regions if what == "bracket" else ())
    for region in regions:
        for norm in norms:
            arguments.check_coordinates(what, norm, np.asarray(region_basis(space, region)))
    values = arguments.settings(what, effort, _EFFORT)
    loss = checked(TrainingSettings, "loss", asked[2], f"{what}: loss")
    further = np.zeros((0, d)) if heldout is None else arguments.points(what, heldout, "heldout", d)
    if y is None:
        labels = np.where(engine.alone(model.output, net, points, x64=True) < 0, -1.0, 1.0)
    else:
        labels = arguments.labels(what, y, n)
    efforts, seed = (values["attack_steps"], values["restarts"], values["gap"]), np.uint32(values["seed"])
    recording = Recording(regions, norms, *efforts, loss, measures=tuple(names))
    known = _known(net, points, space, seed, recording, model, progress)
    record = engine.alone(
        _measure, net, points, labels, space, further, seed, known, x64=True, recording=recording, model=model
    )
    dimensions = {region: np.shape(region_basis(space, region))[1] for region in regions}
    told = {}
    for name, row in recording.variables.items():
        parts = distance_parts(name)
        exact = brackets.exactness([dimensions[parts[0]]], [model]) if parts else ""
        told[name] = row.dimensions, row.unit, row.meaning + exact, record[name]
    return _dataset(told)


def _dataset(variables: Mapping[str, tuple[tuple[str, ...], str, str, np.ndarray]]) -> "xr.Dataset":
    """Named arrays, each with its dimensions, unit and meaning."""
    import xarray as xr  # takes long to import, as pandas does

    told = {
        name: (dimensions, values, {"long_name": meaning, "units": unit})
        for name, (dimensions, unit, meaning, values) in variables.items()
    }
    return xr.Dataset(told)
