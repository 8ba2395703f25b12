"""What the compiled programs of a group are given: shapes and types, points, and where their span lies."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from subspace_adv import training
from subspace_adv.data import HELDOUT, Data, DataSettings, padded
from subspace_adv.datasets import load_data, load_patch_span, load_span
from subspace_adv.engine.networks import Spans, fresh, hyper_of
from subspace_adv.engine.pinned import pinned
from subspace_adv.geometry import Subspace
from subspace_adv.program import Program
from subspace_adv.receptive_fields import Dense
from subspace_adv.settings import entries


@functools.lru_cache(maxsize=64)
@pinned(x64=True)
def arguments(name: str, program: Program, lanes: int) -> tuple:
    """Shapes and dtypes of a compiled program's arguments."""

    def array(dtype: Any, *shape: int) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype)

    f64 = array(jnp.float64, lanes)
    lane = {leaf: array(entry, lanes) for leaf, entry in entries().items()}
    own = () if program.shared_data else (lanes,)
    n, d, k, r, t = program.shape

    def arrays_of(shapes: Spans) -> Spans:
        return jax.tree.map(lambda shape: array(jnp.float64, *own, *shape), shapes, is_leaf=_is_shape)

    spans = arrays_of(_span_shapes(name, program))
    whole = Spans((program.law.ambient_dim, program.law.span_dim), Subspace((d, r), (d, 0)))  # pyright: ignore
    state = jax.eval_shape(
        jax.vmap(functools.partial(fresh, program), in_axes=(0, None if program.shared_data else 0)),
        lane,
        arrays_of(whole),
    )
    trained = jax.eval_shape(functools.partial(training.finish, model=program.recipe.model), state)
    subspace = Subspace(array(jnp.float64, *own, r, k), array(jnp.float64, *own, r, r - k))
    tangent = t and Subspace(array(jnp.float64, *own, n, r, t), array(jnp.float64, *own, n, r, r - t))
    x, heldout = (array(jnp.float32, *own, number, r) for number in (n, HELDOUT))
    data = Data(x, array(jnp.float32, *own, n), subspace, heldout, tangent)  # pyright: ignore[reportArgumentType]
    points = (array(jnp.float32, *own, *program.input_shape), array(jnp.float32, *own, n))
    return {
        "fill": (state, lane, spans, array(jnp.bool_, lanes)),
        "advance": (state, *points, hyper_of(lane)),
        "measure": (trained, lane, f64, data, spans),
        "ambient": (trained, lane, f64, spans),
    }[name]


def _is_shape(tree: Any) -> bool:
    return type(tree) is tuple


def _span_shapes(name: str, program: Program) -> Spans:
    """Shapes of the bases that a compiled program reads; of size 0 if it reads none."""
    d, r, inputs = program.shape.ambient_dim, program.shape.span_dim, (program.law.ambient_dim, program.law.span_dim)
    none = (0, 0)
    data = (d, r), (d, d - r)
    if name != "measure" or program.canonical:
        data = none, none
    if not program.reads_basis and name != "ambient":
        inputs = none
    return Spans(inputs, Subspace(*data))  # pyright: ignore[reportArgumentType]


def spans_of(name: str, program: Program, settings: DataSettings) -> Spans:
    """Where what networks see lies, as far as a compiled program reads it."""
    shapes = _span_shapes(name, program)
    inputs, data = np.zeros(shapes.inputs), Subspace(*map(np.zeros, shapes.data))  # pyright: ignore
    if shapes.inputs[0]:
        inputs = _input_basis(program, settings)
    if shapes.data.basis[0]:
        data = load_span(settings, complete=bool(shapes.data.complement[1] > 0))
    return Spans(inputs, data)  # pyright: ignore[reportArgumentType]


def _input_basis(program: Program, settings: DataSettings) -> np.ndarray:
    fields = program.recipe.model.fields
    return np.asarray(load_span(settings).basis) if isinstance(fields, Dense) else load_patch_span(settings, fields)


def data_of(program: Program, settings: DataSettings) -> Data:
    """A dataset, padded to the program's number of points."""
    return padded(load_data(settings), program.shape.samples)


def points_of(program: Program, settings: DataSettings) -> tuple[np.ndarray, np.ndarray]:
    """What the first layer sees of the training points, in the coordinates that networks train in, and labels."""
    data, fields = data_of(program, settings), program.recipe.model.fields
    if program.reduced and isinstance(fields, Dense):
        return data.x, data.y
    seen: Any = fields.patches(data.x @ load_span(settings).basis.T)  # pyright: ignore[reportArgumentType]
    return np.asarray(seen @ _input_basis(program, settings) if program.reduced else seen, np.float32), data.y
