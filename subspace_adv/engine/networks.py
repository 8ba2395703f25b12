"""One cell's network, from its settings alone: drawn, in ambient or canonical coordinates, and measured."""

from typing import Any

import jax
import jax.numpy as jnp

from subspace_adv import initialization, measures, streams, training
from subspace_adv.data import Data
from subspace_adv.geometry import Subspace, beside_span, canonical_coordinates, in_ambient
from subspace_adv.network import Network
from subspace_adv.optimizers import Hyper
from subspace_adv.program import Program
from subspace_adv.training import TrainState

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


def fresh(program: Program, lane: Lane, span: Subspace) -> TrainState:
    """Training state of a cell's network, not yet trained."""
    draw, order_key = _draw(program, lane)
    basis = span.basis if program.reads_basis else None
    drawn = initialization.init_network(**draw, basis=basis)
    if not program.reduced:
        weight = drawn.weight.astype(jnp.float64) @ span.basis.T + initialization.ambient_off_weights(
            **draw, basis=span.basis
        )
        drawn = drawn._replace(weight=weight)
    drawn = jax.tree.map(lambda a: a.astype(jnp.float32), drawn)
    return training.start(drawn, hyper_of(lane), order_key, recipe=program.recipe)


def ambient(program: Program, trained: Network, lane: Lane, decay: jax.Array, span: Subspace) -> Network:
    """A trained network in ambient coordinates: what training left alone is drawn again, times its decay."""
    if not program.reduced:
        return trained
    draw, _ = _draw(program, lane)
    off = decay * initialization.ambient_off_weights(**draw, basis=span.basis)
    return trained._replace(weight=trained.weight.astype(jnp.float64) @ span.basis.T + off)


def _in_canonical(program: Program, trained: Network, lane: Lane, decay: jax.Array, span: Subspace) -> Network:
    """A trained network in canonical coordinates (F6 in docs/theory.md)."""
    if not program.reduced:
        return trained._replace(weight=canonical_coordinates(trained.weight, span.basis))
    draw, _ = _draw(program, lane)
    off = initialization.off_weights(**draw, basis=span.basis if program.reads_basis else None)
    off = decay * off.astype(jnp.float64)
    return trained._replace(weight=jnp.concatenate([trained.weight, off], axis=1))


def measured(
    program: Program, trained: Network, lane: Lane, decay: jax.Array, data: Data, span: Subspace
) -> dict[str, jax.Array]:
    """All that is recorded of a trained network, in float64."""
    key = streams.measuring_key(lane["seed"])
    trained, (x, y, subspace, heldout) = jax.tree.map(lambda a: a.astype(jnp.float64), (trained, data))
    law = program.law
    if program.canonical:
        net = _in_canonical(program, trained, lane, decay, span)
        x, heldout = (jnp.pad(points, ((0, 0), (0, law.off_dim))) for points in (x, heldout))
        subspace, unseen = beside_span(subspace, law.off_dim), law.ambient_dim - law.span_dim - law.off_dim
    else:
        net = ambient(program, trained, lane, decay, span)
        x, heldout = x @ span.basis.T, heldout @ span.basis.T
        subspace, unseen = in_ambient(subspace, span), 0
    return measures.measure(net, x, y, subspace, heldout, key, recording=program.recording, unseen=unseen)
