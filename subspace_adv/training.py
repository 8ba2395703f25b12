"""Training one network, of whatever model, by gradient descent until its own stop rule.

`train` is the definition. The engine runs the same `start`, `advance` and `finish` over a batch of networks.
"""

import functools
import math
import operator
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import random

from subspace_adv import streams
from subspace_adv.contracts import Model, named, renamed
from subspace_adv.optimizers import OPTIMIZERS, Hyper

Loss = Literal["logistic", "exponential"]
Trainable = Literal["all", "hidden"]
Trainer = Literal["fused", "xla"]
SETTLING_STEPS = 256
"""Of these steps of a network each, XLA's program adds the changes to its parameters after the last."""

PENDING, CONVERGED, STEP_LIMIT, DIVERGED = range(4)
STATUS_MEANINGS = ("pending", "converged", "step_limit", "diverged")


class Recipe(NamedTuple):
    """What shapes the training program: static under jit."""

    model: Model
    loss: Loss
    optimizer: str  # a row of `OPTIMIZERS`
    trained: tuple[str, ...]  # names of the parameters that are trained
    trainer: Trainer = "xla"  # what advances a batch: the model's kernel, or the program that XLA compiles


class TrainState(NamedTuple):
    """A network under training."""

    params: Any  # pytree of the model's parameters, as its form holds them in training
    change: dict[str, jax.Array]  # of the trained ones by name, to be added to `params`; none if not compensated
    opt_state: optax.OptState  # of the trained ones
    step: jax.Array  # int32, gradient steps done
    status: jax.Array  # int8: PENDING while training goes on
    key: jax.Array  # (2,) uint32, data of the PRNG key of the minibatch order


def loss_value(margins: jax.Array, loss: Loss) -> jax.Array:
    """Loss of signed outputs y·N(x), elementwise: log(1 + e^−yN) or e^−yN."""
    return jax.nn.softplus(-margins) if loss == "logistic" else jnp.exp(-margins)


def loss_slope(margins: jax.Array, loss: Loss) -> jax.Array:
    """Derivative of `loss_value` with respect to the signed output."""
    return -jax.nn.sigmoid(-margins) if loss == "logistic" else -jnp.exp(-margins)


def signed_outputs(y: jax.Array, outputs: jax.Array) -> jax.Array:
    """y·N(x), (n,); inf where there is no point, of label 0, which so has neither loss nor margin."""
    return jnp.where(y == 0, jnp.inf, y * outputs)


def transformation(hyper: Hyper, optimizer: str) -> optax.GradientTransformation:
    """The optimizer as an optax transformation; weight decay enters before momentum or Adam's moments."""
    return optax.chain(optax.add_decayed_weights(hyper.weight_decay), OPTIMIZERS[optimizer].make(hyper))


def train(
    network: Any, x: jax.Array, y: jax.Array, hyper: Hyper, key: jax.Array, *, recipe: Recipe
) -> tuple[Any, jax.Array, jax.Array]:
    """Train a network until its margin exceeds `stop_margin` after a step, or for `max_steps` steps.

    Args:
        network: initial parameters, a pytree of the model's.
        x: points (n, d).
        y: labels (n,), −1 or +1; 0 of points that only fill up the arrays.
        hyper: learning rate, weight decay, stop rule.
        key: of the minibatch order, as from `streams.training_keys` (read by optimizers on minibatches).
        recipe: model, loss, optimizer and trained parameters; static.

    Returns:
        The trained network, its status (CONVERGED, STEP_LIMIT or DIVERGED) and the number of steps.
    """

    def go_on(state: TrainState) -> TrainState:
        return advance(state, x, y, hyper, recipe=recipe, steps=SETTLING_STEPS)

    state = start(network, hyper, key, recipe=recipe)
    state = jax.lax.while_loop(lambda state: state.status == PENDING, go_on, state)
    status = jnp.where(are_finite(state), state.status, jnp.int8(DIVERGED))
    return finish(state, recipe.model), status, state.step


def start(network: Any, hyper: Hyper, key: jax.Array, *, recipe: Recipe) -> TrainState:
    """Training state of a fresh network."""
    form = recipe.model.form
    params = form.to_training(network)
    trained = _trained(params, recipe)
    opt_state = transformation(hyper, recipe.optimizer).init(trained)
    change = jax.tree.map(jnp.zeros_like, trained) if form.compensated else {}
    return TrainState(params, change, opt_state, jnp.int32(0), jnp.int8(PENDING), random.key_data(key))


def finish(state: TrainState, model: Model) -> Any:
    """The parameters held by a training state; leading axes are kept."""
    return model.form.from_training(_changed(_settled(state)))


def are_finite(state: TrainState) -> Any:
    """Whether all parameters held by a training state are finite; of JAX's arrays or NumPy's, leading axes are kept.

    Else a network that has stopped has diverged: a step may overflow weights of neurons that it puts to sleep
    everywhere, which no output shows.
    """
    leading = state.step.shape
    each = [(abs(leaf) < math.inf).reshape(*leading, -1).all(-1) for leaf in jax.tree.leaves(_changed(state))]
    return functools.reduce(operator.and_, each)


def advance(state: TrainState, x: jax.Array, y: jax.Array, hyper: Hyper, *, recipe: Recipe, steps: int) -> TrainState:
    """Take gradient steps until the network stops, `steps` at most, and by XLA's program up to where it settles.

    Where a call ends changes nothing in the steps that follow, to the last bit: a network can be made to stop sooner,
    by another `hyper`, looked at, set to PENDING and advanced further.

    Batched by `vmap`, the networks go to the model's kernel or advance together until the last one is done; either
    way each ends as it would alone, up to rounding.
    """

    @jax.custom_batching.custom_vmap
    def run(state: TrainState, x: jax.Array, y: jax.Array, hyper: Hyper) -> TrainState:
        return _loop(lambda state, turn: step(state, x, y, hyper, turn, recipe=recipe), state, steps, recipe)

    @run.def_vmap  # pyright: ignore[reportFunctionMemberAccess]
    def run_batch(size: int, in_batched: list, *arguments: Any) -> tuple[TrainState, Any]:
        def batch(leaf: jax.Array, batched: bool) -> jax.Array:
            return leaf if batched else jnp.broadcast_to(leaf, (size, *leaf.shape))

        state, x, y, hyper = arguments
        state, hyper = (jax.tree.map(batch, arguments[i], in_batched[i]) for i in (0, 3))
        if recipe.trainer == "fused":
            assert recipe.model.kernel
            state = recipe.model.kernel.advance(state, x, y, hyper, recipe, steps)
        else:
            own = [0 if batched else None for batched in in_batched[1:3]]
            one = jax.vmap(functools.partial(step, recipe=recipe), in_axes=(0, *own, 0, 0))
            state = _loop(lambda state, turn: one(state, x, y, hyper, turn), state, steps, recipe)
        return state, jax.tree.map(lambda _: True, state)

    return run(state, x, y, hyper)


def _loop(
    take: Callable[[TrainState, jax.Array], TrainState], state: TrainState, steps: int, recipe: Recipe
) -> TrainState:
    """Steps of one network or of several, until each has stopped, has taken `steps` or settles.

    Parameters that are not compensated change in every step. XLA copies them in every round of a loop, so two steps
    are taken in one. Which of the two a step is depends on its number alone, not on where the call began: compiled
    code of the two may round differently.
    """
    together = 1 if recipe.model.form.compensated else 2
    begin = state.step
    end = begin + jnp.minimum(steps, SETTLING_STEPS - begin % SETTLING_STEPS)

    def goes_on(state: TrainState) -> jax.Array:
        return (state.status == PENDING) & (state.step < end)

    def body(state: TrainState) -> TrainState:
        for turn in range(together):
            state = take(state, goes_on(state) & (state.step % together == turn))
        return state

    state = jax.lax.while_loop(lambda state: jnp.any(goes_on(state)), body, state)
    if not recipe.model.form.compensated:
        return state
    # Once at each: where it rounds a tie, settling again may change the last bit.
    return _where((state.step > begin) & (state.step % SETTLING_STEPS == 0), _settled(state), state)


def _trained(params: Any, recipe: Recipe) -> dict[str, jax.Array]:
    """The parameters that are trained, or what is of their shape, by name."""
    arrays = named(params)
    return {name: arrays[name] for name in recipe.trained}


def _changed(state: TrainState) -> Any:
    """Parameters with their changes."""
    held = named(state.params)
    return renamed(state.params, held | {name: held[name] + change for name, change in state.change.items()})


def _settled(state: TrainState) -> TrainState:
    """Add the changes to the parameters; what rounding keeps from them remains a change (Kahan 1965).

    A step changes a parameter by some ten-thousandth of itself: added to it one by one, in float32, changes would lose
    more to rounding in thousands of steps than everything else together.
    """
    params = _changed(state)
    new, old = named(params), named(state.params)
    change = {name: change - (new[name] - old[name]) for name, change in state.change.items()}
    return state._replace(params=params, change=change)


def _where(now: jax.Array, one: TrainState, other: TrainState) -> TrainState:
    """A state whose parameters and changes are those of one where it is time, else of the other."""

    def choose(one: jax.Array, other: jax.Array) -> jax.Array:
        return jnp.where(now.reshape(now.shape + (1,) * (one.ndim - now.ndim)), one, other)

    params, change = jax.tree.map(choose, (one.params, one.change), (other.params, other.change))
    return other._replace(params=params, change=change)


def step(
    state: TrainState, x: jax.Array, y: jax.Array, hyper: Hyper, turn: jax.Array | bool = True, *, recipe: Recipe
) -> TrainState:
    """Check the stop rule, then take one gradient step unless the network has stopped; nothing if it is not its turn.

    The outputs that decide whether the last step was the final one are those the next gradient needs, so the
    check is free; a network that stops is never touched again.
    """
    params = _changed(state)
    outputs, pullback = recipe.model.form.outputs_and_pullback(params, x)
    margins = signed_outputs(y, outputs)
    status = jnp.where(turn, _status(state, margins, y, hyper), state.status)

    output_gradient = _point_weights(state, hyper, y, recipe) * y * loss_slope(margins, recipe.loss)
    gradient = _trained(pullback(output_gradient), recipe)
    updates, opt_state = transformation(hyper, recipe.optimizer).update(
        gradient, state.opt_state, _trained(params, recipe)
    )
    if recipe.model.rates is not None:
        assert hyper.width is not None
        rates = recipe.model.rates(hyper.width)
        updates = {name: rates[name] * update for name, update in updates.items()}  # pyright: ignore
    moving = state.change if recipe.model.form.compensated else _trained(params, recipe)
    going_on = turn & (status == PENDING)
    moved, opt_state, taken = jax.tree.map(
        lambda new, old: jnp.where(going_on, new, old),
        (optax.apply_updates(moving, updates), opt_state, state.step + 1),
        (moving, state.opt_state, state.step),
    )
    state = state._replace(opt_state=opt_state, step=taken, status=status)  # pyright: ignore
    if recipe.model.form.compensated:
        return state._replace(change=moved)
    return state._replace(params=renamed(params, named(params) | moved))


def _status(state: TrainState, margins: jax.Array, y: jax.Array, hyper: Hyper) -> jax.Array:
    status = jnp.where(state.step >= hyper.max_steps, STEP_LIMIT, PENDING)
    status = jnp.where((state.step > 0) & (jnp.min(margins) > hyper.stop_margin), CONVERGED, status)
    status = jnp.where(jnp.all(jnp.abs(margins) < jnp.inf, where=y != 0), status, DIVERGED)
    return jnp.where(state.status == PENDING, status, state.status).astype(jnp.int8)


def _point_weights(state: TrainState, hyper: Hyper, y: jax.Array, recipe: Recipe) -> jax.Array:
    """Weight of each point in the loss: 1/n, or the mean over this step's minibatch of a shuffled epoch."""
    if OPTIMIZERS[recipe.optimizer].full_batch:
        return 1 / jnp.sum(jnp.abs(y))
    n = len(y)  # no data on minibatches are padded
    batches = -(-n // hyper.batch_size)
    epoch, batch = jnp.divmod(state.step, batches)
    rank = random.permutation(streams.epoch_key(state.key, epoch), n)
    chosen = (rank // hyper.batch_size == batch).astype(jnp.float32)
    return chosen / jnp.sum(chosen)
