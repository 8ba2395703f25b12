"""Training one two-layer ReLU network by gradient descent until its own stop rule.

`train` is the definition. The engine runs the same `start`, `advance` and `finish` over a batch of networks.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import random

from subspace_adv import fused, streams
from subspace_adv.initialization import Init
from subspace_adv.network import Network
from subspace_adv.optimizers import OPTIMIZERS, Hyper

Loss = Literal["logistic", "exponential"]
Trainable = Literal["all", "hidden"]
Trainer = Literal["fused", "xla"]
SETTLING_STEPS = 256
"""Steps after which XLA's program adds the changes to the parameters."""

PENDING, CONVERGED, STEP_LIMIT, DIVERGED = range(4)
STATUS_MEANINGS = ("pending", "converged", "step_limit", "diverged")


class Recipe(NamedTuple):
    """What shapes the training program: static under jit."""

    loss: Loss
    optimizer: str  # a row of `OPTIMIZERS`
    trained: tuple[str, ...]  # names of the `Network` fields that are trained
    trainer: Trainer = "xla"  # what advances a batch: the kernel of `fused`, or the program that XLA compiles


class TrainState(NamedTuple):
    """A network under training."""

    params: dict[str, jax.Array]  # the fields of `Network`, but weight as (d, m): neurons are the fast axis
    change: dict[str, jax.Array]  # of the trained fields, to be added to `params`
    opt_state: optax.OptState  # of the trained fields
    step: jax.Array  # int32, gradient steps done
    status: jax.Array  # int8: PENDING while training goes on
    key: jax.Array  # (2,) uint32, data of the PRNG key of the minibatch order


def trained_fields(law: Init, trainable: Trainable) -> tuple[str, ...]:
    """Names of the `Network` fields trained; "theory" has no biases, and trains none."""
    hidden, head = (("weight",), ("head",)) if law == "theory" else (("weight", "bias"), ("head", "head_bias"))
    return hidden + (head if trainable == "all" else ())


def loss_value(margins: jax.Array, loss: Loss) -> jax.Array:
    """Loss of signed outputs y·N(x), elementwise: log(1 + e^−yN) or e^−yN."""
    return jax.nn.softplus(-margins) if loss == "logistic" else jnp.exp(-margins)


def loss_slope(margins: jax.Array, loss: Loss) -> jax.Array:
    """Derivative of `loss_value` with respect to the signed output."""
    return -jax.nn.sigmoid(-margins) if loss == "logistic" else -jnp.exp(-margins)


def transformation(hyper: Hyper, optimizer: str) -> optax.GradientTransformation:
    """The optimizer as an optax transformation; weight decay enters before momentum or Adam's moments."""
    return optax.chain(optax.add_decayed_weights(hyper.weight_decay), OPTIMIZERS[optimizer].make(hyper))


def train(
    network: Network, x: jax.Array, y: jax.Array, hyper: Hyper, key: jax.Array, *, recipe: Recipe
) -> tuple[Network, jax.Array, jax.Array]:
    """Train a network until its margin exceeds `stop_margin` after a step, or for `max_steps` steps.

    Args:
        network: initial parameters, weight (m, d).
        x: points (n, d).
        y: labels (n,), −1 or +1.
        hyper: learning rate, weight decay, stop rule.
        key: of the minibatch order, as from `streams.training_keys` (read by optimizers on minibatches).
        recipe: loss, optimizer and trained fields; static.

    Returns:
        The trained network, its status (CONVERGED, STEP_LIMIT or DIVERGED) and the number of steps.
    """

    def go_on(state: TrainState) -> TrainState:
        return advance(state, x, y, hyper, recipe=recipe, steps=SETTLING_STEPS)

    state = start(network, hyper, key, recipe=recipe)
    state = jax.lax.while_loop(lambda state: state.status == PENDING, go_on, state)
    return finish(state), state.status, state.step


def start(network: Network, hyper: Hyper, key: jax.Array, *, recipe: Recipe) -> TrainState:
    """Training state of a fresh network."""
    params = network._replace(weight=network.weight.T)._asdict()
    trained = {name: params[name] for name in recipe.trained}
    opt_state = transformation(hyper, recipe.optimizer).init(trained)
    return TrainState(
        params, jax.tree.map(jnp.zeros_like, trained), opt_state, jnp.int32(0), jnp.int8(PENDING), random.key_data(key)
    )


def finish(state: TrainState) -> Network:
    """The network held by a training state; leading axes are kept."""
    network = Network(**_changed(state))
    return network._replace(weight=network.weight.mT)


def advance(state: TrainState, x: jax.Array, y: jax.Array, hyper: Hyper, *, recipe: Recipe, steps: int) -> TrainState:
    """Take gradient steps until the network stops, `steps` at most.

    Batched by `vmap`, the networks go to the kernel of `fused` or advance together until the last one is done; either
    way each ends as it would alone, up to rounding.
    """

    @jax.custom_batching.custom_vmap
    def run(state: TrainState, x: jax.Array, y: jax.Array, hyper: Hyper) -> TrainState:
        return _loop(lambda state: step(state, x, y, hyper, recipe=recipe), state, steps)

    @run.def_vmap  # pyright: ignore[reportFunctionMemberAccess]
    def run_batch(size: int, in_batched: list, *arguments: Any) -> tuple[TrainState, Any]:
        def batch(leaf: jax.Array, batched: bool) -> jax.Array:
            return leaf if batched else jnp.broadcast_to(leaf, (size, *leaf.shape))

        state, x, y, hyper = arguments
        state, hyper = (jax.tree.map(batch, arguments[i], in_batched[i]) for i in (0, 3))
        if recipe.trainer == "fused":
            state = _advance_fused(state, x, y, hyper, recipe, steps)
        else:
            own = [0 if batched else None for batched in in_batched[1:3]]
            one = jax.vmap(functools.partial(step, recipe=recipe), in_axes=(0, *own, 0))
            state = _loop(lambda state: one(state, x, y, hyper), state, steps)
        return state, jax.tree.map(lambda _: True, state)

    state = run(state, x, y, hyper)
    finite = jnp.all(jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in _changed(state).values()]))
    # A step may overflow weights of neurons that it puts to sleep everywhere: no output shows that.
    return state._replace(status=jnp.where((state.status == PENDING) | finite, state.status, jnp.int8(DIVERGED)))


def _advance_fused(
    state: TrainState, x: jax.Array, y: jax.Array, hyper: Hyper, recipe: Recipe, steps: int
) -> TrainState:
    """`advance` of a batch by the kernel, which holds the parameters of a network as one row."""
    fields = ("weight", "bias", "head", "head_bias")
    size = len(state.step)

    def to_rows(tree: dict[str, jax.Array]) -> jax.Array:
        held = [tree[name] if name in tree else jnp.zeros_like(state.params[name]) for name in fields]
        return jnp.concatenate([leaf.reshape(size, -1) for leaf in held], axis=1)

    def from_rows(rows: jax.Array) -> dict[str, jax.Array]:
        ends = np.cumsum([state.params[name][0].size for name in fields])[:-1]
        parts = dict(zip(fields, jnp.split(rows, ends, axis=1), strict=True))
        return {name: part.reshape(state.params[name].shape) for name, part in parts.items()}

    # The one thing that an optimizer the kernel knows keeps of each trained field is its velocity.
    leaves, structure = jax.tree.flatten(state.opt_state)
    trained = sorted(recipe.trained)
    velocity = to_rows(dict(zip(trained, leaves, strict=True))) if leaves else jnp.zeros((size, 0), jnp.float32)
    given = fused.Networks(
        params=to_rows(state.params),
        residue=to_rows(state.change),
        velocity=velocity,
        step=state.step,
        status=state.status,
        x=x,
        y=y,
        learning_rate=hyper.learning_rate,
        weight_decay=hyper.weight_decay,
        momentum=hyper.momentum,
        stop_margin=hyper.stop_margin,
        max_steps=hyper.max_steps,
    )
    has_bias, train_head = "bias" in recipe.trained, "head" in recipe.trained
    found = fused.advance(given, steps=steps, loss=recipe.loss, has_bias=has_bias, train_head=train_head)
    opt_state = jax.tree.unflatten(structure, [from_rows(found.velocity)[name] for name in trained] if leaves else [])
    change = {name: from_rows(found.residue)[name] for name in recipe.trained}
    return TrainState(from_rows(found.params), change, opt_state, found.step, found.status, state.key)


def _loop(take: Callable[[TrainState], TrainState], state: TrainState, steps: int) -> TrainState:
    """Steps of one network or of several, until all have stopped."""

    def busy(carry: tuple) -> jax.Array:
        count, state = carry
        return (count < steps) & jnp.any(state.status == PENDING)

    def body(carry: tuple) -> tuple:
        count, state = carry
        return count + 1, take(state)

    return _settle(jax.lax.while_loop(busy, body, (jnp.int32(0), state))[1])


def _changed(state: TrainState) -> dict[str, jax.Array]:
    """Parameters with their changes."""
    return state.params | {name: state.params[name] + change for name, change in state.change.items()}


def _settle(state: TrainState) -> TrainState:
    """Add the changes to the parameters; what rounding keeps from them remains a change (Kahan 1965).

    A step changes a parameter by some ten-thousandth of itself: added to it one by one, in float32, changes would lose
    more to rounding in thousands of steps than everything else together.
    """
    params = _changed(state)
    change = {name: change - (params[name] - state.params[name]) for name, change in state.change.items()}
    return state._replace(params=params, change=change)


def step(state: TrainState, x: jax.Array, y: jax.Array, hyper: Hyper, *, recipe: Recipe) -> TrainState:
    """Check the stop rule, then take one gradient step unless the network has stopped.

    The outputs that decide whether the last step was the final one are those the next gradient needs, so the
    check is free; a network that stops is never touched again.
    """
    params = _changed(state)
    z = _preactivations(params, x)
    margins = y * (jax.nn.relu(z) @ params["head"] + params["head_bias"])
    status = _status(state, margins, hyper)

    output_gradient = _point_weights(state, hyper, len(y), recipe) * y * loss_slope(margins, recipe.loss)
    gradient = _gradient(params, x, z, output_gradient)
    trained = {name: params[name] for name in recipe.trained}
    updates, opt_state = transformation(hyper, recipe.optimizer).update(
        {name: gradient[name] for name in recipe.trained}, state.opt_state, trained
    )
    going_on = status == PENDING
    change, opt_state, taken = jax.tree.map(
        lambda new, old: jnp.where(going_on, new, old),
        (optax.apply_updates(state.change, updates), opt_state, state.step + 1),
        (state.change, state.opt_state, state.step),
    )
    return state._replace(change=change, opt_state=opt_state, step=taken, status=status)  # pyright: ignore


def _status(state: TrainState, margins: jax.Array, hyper: Hyper) -> jax.Array:
    status = jnp.where(state.step >= hyper.max_steps, STEP_LIMIT, PENDING)
    status = jnp.where((state.step > 0) & (jnp.min(margins) > hyper.stop_margin), CONVERGED, status)
    status = jnp.where(jnp.all(jnp.isfinite(margins)), status, DIVERGED)
    return jnp.where(state.status == PENDING, status, state.status).astype(jnp.int8)


def _point_weights(state: TrainState, hyper: Hyper, n: int, recipe: Recipe) -> jax.Array | float:
    """Weight of each point in the loss: 1/n, or the mean over this step's minibatch of a shuffled epoch."""
    if OPTIMIZERS[recipe.optimizer].full_batch:
        return 1 / n
    batches = -(-n // hyper.batch_size)
    epoch, batch = jnp.divmod(state.step, batches)
    rank = random.permutation(streams.epoch_key(state.key, epoch), n)
    chosen = (rank // hyper.batch_size == batch).astype(jnp.float32)
    return chosen / jnp.sum(chosen)


# XLA on CPU runs sums written out over a few inputs or points as fused vector code, several times faster than
# the batched products they replace; past these sizes the product wins.
_MAX_INPUTS_WRITTEN_OUT = 8
_MAX_TERMS_WRITTEN_OUT = 128


def _preactivations(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """Inputs of the ReLUs at every point, (n, m)."""
    weight, bias = params["weight"], params["bias"]
    if x.shape[1] > _MAX_INPUTS_WRITTEN_OUT:
        return x @ weight + bias[None, :]
    return sum((x[:, r, None] * weight[r][None, :] for r in range(x.shape[1])), bias[None, :])


def _gradient(
    params: dict[str, jax.Array], x: jax.Array, z: jax.Array, output_gradient: jax.Array
) -> dict[str, jax.Array]:
    """Gradient of the loss in all parameters, given its derivative (n,) in the outputs.

    With a = output_gradient at the active neurons (n, m), S = xᵀa and s = Σₙ a, the gradients are u∘S for the
    weights, u∘s for the biases and Σᵣ Sᵣ∘Wᵣ + s∘b for the head: no further pass over n × m is needed.
    """
    n, d = x.shape
    active = jnp.where(z > 0, output_gradient[:, None], 0.0)
    if n * d > _MAX_TERMS_WRITTEN_OUT:
        of_inputs = x.T @ active
        of_bias = jnp.sum(active, axis=0)
    else:
        sums = [sum(active[i] * x[i, r] for i in range(n)) for r in range(d)]
        sums = jnp.stack([*sums, sum(active[i] for i in range(n))])  # pyright: ignore
        sums = jax.lax.optimization_barrier(sums)  # or XLA would take each sum again for each gradient that has it
        of_inputs, of_bias = sums[:d], sums[d]
    head = params["head"]
    return {
        "weight": head[None, :] * of_inputs,
        "bias": head * of_bias,
        "head": jnp.sum(of_inputs * params["weight"], axis=0) + of_bias * params["bias"],
        "head_bias": jnp.sum(output_gradient),
    }
