"""What the compiled programs of a group are given: shapes and types, points, and where their span lies."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from subspace_adv import training
from subspace_adv.data import HELDOUT, Data, DataSettings
from subspace_adv.datasets import load_data, load_span
from subspace_adv.engine.networks import fresh, hyper_of
from subspace_adv.engine.pinned import pinned
from subspace_adv.geometry import Subspace
from subspace_adv.program import Program
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
    (n, d, k, r), inputs = program.shape, program.inputs
    basis, complement = _span_shapes(name, program)
    span = Subspace(array(jnp.float64, *own, *basis), array(jnp.float64, *own, *complement))
    state = jax.eval_shape(
        jax.vmap(functools.partial(fresh, program), in_axes=(0, None if program.shared_data else 0)),
        lane,
        Subspace(array(jnp.float64, *own, d, r), array(jnp.float64, *own, d, 0)),
    )
    trained = jax.eval_shape(functools.partial(training.finish, model=program.recipe.model), state)
    subspace = Subspace(array(jnp.float64, *own, r, k), array(jnp.float64, *own, r, r - k))
    data = Data(
        array(jnp.float32, *own, n, r), array(jnp.float32, *own, n), subspace, array(jnp.float32, *own, HELDOUT, r)
    )
    points = (array(jnp.float32, *own, n, inputs), array(jnp.float32, *own, n))
    return {
        "fill": (state, lane, span, array(jnp.bool_, lanes)),
        "advance": (state, *points, hyper_of(lane)),
        "measure": (trained, lane, f64, data, span),
        "ambient": (trained, lane, f64, span),
    }[name]


def _span_shapes(name: str, program: Program) -> tuple[tuple[int, int], tuple[int, int]]:
    """Shapes of the bases that a compiled program reads of the span and its complement; of size 0 if it reads none."""
    d, r = program.shape.ambient_dim, program.shape.span_dim
    if not program.reads_basis and name != "ambient":
        return (0, 0), (0, 0)
    return (d, r), (d, d - r) if name == "measure" and not program.canonical else (d, 0)


def span_of(name: str, program: Program, settings: DataSettings) -> Subspace:
    """Where the data's span lies, as far as a compiled program reads it."""
    basis, complement = _span_shapes(name, program)
    if not basis[0]:
        return Subspace(np.zeros(basis), np.zeros(complement))  # pyright: ignore[reportArgumentType]
    return load_span(settings, complete=complement[1] > 0)


def points_of(program: Program, settings: DataSettings) -> tuple[np.ndarray, np.ndarray]:
    """Training points in the coordinates that networks train in, and labels."""
    data = load_data(settings)
    if program.reduced:
        return data.x, data.y
    return (data.x @ load_span(settings).basis.T).astype(np.float32), data.y
