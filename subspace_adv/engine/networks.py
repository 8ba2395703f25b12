"""One cell's network, from its settings alone: drawn, in ambient or canonical coordinates, and measured."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from subspace_adv import initialization, measures, streams, training
from subspace_adv.data import Data
from subspace_adv.geometry import Subspace, beside_span, canonical_coordinates, in_ambient
from subspace_adv.measures import rank_name
from subspace_adv.optimizers import Hyper
from subspace_adv.program import Program
from subspace_adv.receptive_fields import Dense
from subspace_adv.training import TrainState


class Spans(NamedTuple):
    """Where what networks see lies, as far as a compiled program reads it; of size 0 else."""

    inputs: jax.Array  # (fan-in, r): basis of the span of what the first layer sees, whose coordinates weights are in
    data: Subspace  # (d, r) and (d, d − r): of the span of the data, whose coordinates points are in


Lane = dict[str, Any]
"""Settings of the cell that a lane trains, by name: those of a run-time role; leading axis: lanes."""


def hyper_of(lane: Lane) -> Hyper:
    """What training reads of a lane's settings."""
    return Hyper(**{name: lane[name] for name in Hyper._fields})


def _draw(program: Program, lane: Lane) -> tuple[dict[str, Any], jax.Array]:
    """Arguments that draw the cell's network, and the key of its minibatch order."""
    init_key, order_key = streams.training_keys(lane["seed"])
    draw = {"key": init_key, "width": lane["width"], "init_scale": lane["init_scale"], "law": program.law}
    return draw, order_key


def _off_draw(program: Program, lane: Lane, off_key: jax.Array | None) -> dict[str, Any]:
    """Arguments that draw the network's weights off the span: by its own key, or by another one."""
    draw, _ = _draw(program, lane)
    return draw if off_key is None else draw | {"key": off_key}


def fresh(program: Program, lane: Lane, spans: Spans) -> TrainState:
    """Training state of a cell's network, not yet trained."""
    draw, order_key = _draw(program, lane)
    model = program.recipe.model
    drawn = model.init(**draw, basis=spans.inputs if program.reads_basis else None)
    if not program.reduced and model.has_frozen_part:
        weight, _ = model.first(drawn)
        off = initialization.ambient_off_weights(**draw, basis=spans.inputs)
        drawn = model.with_first_weight(drawn, weight.astype(jnp.float64) @ spans.inputs.T + off)
    drawn = jax.tree.map(lambda a: a.astype(jnp.float32), drawn)
    return training.start(drawn, hyper_of(lane), order_key, recipe=program.recipe)


def ambient(
    program: Program, trained: Any, lane: Lane, decay: jax.Array, spans: Spans, off_key: jax.Array | None = None
) -> Any:
    """A trained network in ambient coordinates: what training left alone is drawn again, times its decay.

    By its own key, or by another one.
    """
    if not program.reduced:
        return trained
    draw = _off_draw(program, lane, off_key)
    off = decay * initialization.ambient_off_weights(**draw, basis=spans.inputs)
    weight, _ = program.recipe.model.first(trained)
    return program.recipe.model.with_first_weight(trained, weight.astype(jnp.float64) @ spans.inputs.T + off)


def _in_canonical(
    program: Program, trained: Any, lane: Lane, decay: jax.Array, spans: Spans, off_key: jax.Array | None
) -> Any:
    """A trained network in canonical coordinates (F6 in docs/theory.md)."""
    model = program.recipe.model
    weight, _ = model.first(trained)
    if not program.reduced:
        return model.with_first_weight(trained, canonical_coordinates(weight, spans.inputs))
    draw = _off_draw(program, lane, off_key)
    off = initialization.off_weights(**draw, basis=spans.inputs if program.reads_basis else None)
    off = decay * off.astype(jnp.float64)
    return model.with_first_weight(trained, jnp.concatenate([weight, off], axis=1))


def measured(
    program: Program, trained: Any, lane: Lane, decay: jax.Array, data: Data, spans: Spans
) -> dict[str, jax.Array]:
    """All that is recorded of a trained network, in float64."""
    trained, data = jax.tree.map(lambda a: a.astype(jnp.float64), (trained, data))
    of_key = functools.partial(_measured, program, trained, lane, decay, data, spans)
    recording, law = program.recording, program.law
    if not recording.redraws:
        return of_key(None)
    ranked = [name for name, row in recording.measured.items() if row.off]
    if not (program.reduced and law.is_gaussian and law.off_dim):  # what is off the span is no fresh draw
        record = of_key(None)
        return record | {rank_name(name): jnp.full_like(record[name], jnp.nan) for name in ranked}
    init_key, _ = streams.training_keys(lane["seed"])
    records = jax.lax.map(of_key, streams.off_keys(init_key, recording.redraws))
    tie_keys = jax.random.split(streams.tie_key(streams.measuring_key(lane["seed"])), len(ranked))
    ranks = {rank_name(name): _rank(records[name], key) for name, key in zip(ranked, tie_keys, strict=True)}
    return {name: values[0] for name, values in records.items()} | ranks


def _rank(values: jax.Array, key: jax.Array) -> jax.Array:
    """Rank of the first of some values (k, ...) among all, from 0 on; ties are broken at random."""
    own, others = values[0], values[1:]
    below, ties = (jnp.sum(which, axis=0) for which in (others < own, others == own))
    rank = below + jnp.floor(jax.random.uniform(key, own.shape, own.dtype) * (ties + 1))
    return jnp.where(jnp.isnan(own), jnp.nan, rank)


def _measured(
    program: Program,
    trained: Any,
    lane: Lane,
    decay: jax.Array,
    data: Data,
    spans: Spans,
    off_key: jax.Array | None,
) -> dict[str, jax.Array]:
    """What is measured of a network whose weights off the span a key draws; without one, its own."""
    points: Any = data  # traced
    (x, y, subspace, heldout, tangent), law = points, program.law
    heldout = heldout if program.recording.has_heldout else heldout[:0]
    if program.canonical:
        net = _in_canonical(program, trained, lane, decay, spans, off_key)
        x, heldout = (jnp.pad(points, ((0, 0), (0, law.off_dim))) for points in (x, heldout))
        unseen = law.ambient_dim - law.span_dim - law.off_dim
        placed = functools.partial(beside_span, dimension=law.off_dim)
    else:
        net = ambient(program, trained, lane, decay, spans, off_key)
        x, heldout, unseen = x @ spans.data.basis.T, heldout @ spans.data.basis.T, 0
        placed = functools.partial(in_ambient, span=spans.data)
    what = {"recording": program.recording, "model": program.recipe.model, "unseen": unseen, "beside": False}
    what["learned"] = subspace.complement.shape[1]  # in coordinates of the span, nothing is off it
    if tangent is not None:
        what["tangent"] = placed(tangent)
    if not isinstance(program.recipe.model.fields, Dense):
        what["frozen"] = jnp.eye(law.ambient_dim) - spans.inputs @ spans.inputs.T
    key = streams.measuring_key(lane["seed"])
    return measures.measure(net, x, y, placed(subspace), heldout, key, **what)
