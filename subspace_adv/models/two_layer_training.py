"""How two-layer networks train: their layout, their gradient by hand, and the kernel that takes many at once."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from subspace_adv.contracts import Form, Kernel, named
from subspace_adv.models import compiled, fused
from subspace_adv.network import Network
from subspace_adv.optimizers import Hyper


def trained_fields(init: str, trainable: str) -> tuple[str, ...]:
    """Names of the `Network` fields trained; init "theory" has no biases, and trains none."""
    hidden, head = (("weight",), ("head",)) if init == "theory" else (("weight", "bias"), ("head", "head_bias"))
    return hidden + (head if trainable == "all" else ())


def step_flops(shapes: Network, samples: int, trained: tuple[str, ...]) -> int:
    """Floating-point operations of one gradient step of one network; a bias counts as one more input."""
    width, r = shapes.weight.shape[0], shapes.weight.shape[1] + ("bias" in trained)
    return samples * width * (4 * r + 5) + width * (4 * r + 6)


# Layout and gradient ---------------------------------------------------------------------------------------------


def _to_training(network: Network) -> Network:
    """Neurons are the fast axis: weight (d, m)."""
    return network._replace(weight=network.weight.mT)


def _outputs_and_pullback(held: Network, x: jax.Array) -> tuple[jax.Array, Callable[[jax.Array], Network]]:
    z = _preactivations(held, x)
    outputs = jax.nn.relu(z) @ held.head + held.head_bias
    return outputs, lambda output_gradient: _gradient(held, x, z, output_gradient)


# XLA on CPU runs sums written out over a few inputs or points as fused vector code, several times faster than
# the batched products they replace; past these sizes the product wins.
_MAX_INPUTS_WRITTEN_OUT = 8
_MAX_TERMS_WRITTEN_OUT = 128


def _preactivations(held: Network, x: jax.Array) -> jax.Array:
    """Inputs of the ReLUs at every point, (n, m)."""
    weight, bias = held.weight, held.bias
    if x.shape[1] > _MAX_INPUTS_WRITTEN_OUT:
        return x @ weight + bias[None, :]
    return sum((x[:, r, None] * weight[r][None, :] for r in range(x.shape[1])), bias[None, :])


def _gradient(held: Network, x: jax.Array, z: jax.Array, output_gradient: jax.Array) -> Network:
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
    return Network(
        weight=held.head[None, :] * of_inputs,
        bias=held.head * of_bias,
        head=jnp.sum(of_inputs * held.weight, axis=0) + of_bias * held.bias,
        head_bias=jnp.sum(output_gradient),
    )


FORM = Form(_to_training, _to_training, _outputs_and_pullback)

# The kernel ------------------------------------------------------------------------------------------------------


def _advance(state: Any, x: jax.Array, y: jax.Array, hyper: Hyper, recipe: Any, steps: int) -> Any:
    """`training.advance` of a batch by the kernel, which holds the parameters of a network as one row."""
    size = len(state.step)

    def to_rows(arrays: dict[str, jax.Array]) -> jax.Array:
        held = [arrays[name] if name in arrays else jnp.zeros_like(leaf) for name, leaf in named(state.params).items()]
        return jnp.concatenate([leaf.reshape(size, -1) for leaf in held], axis=1)

    def from_rows(rows: jax.Array) -> Network:
        ends = np.cumsum([leaf[0].size for leaf in state.params])[:-1]
        parts = zip(jnp.split(rows, ends, axis=1), state.params, strict=True)
        return Network(*(part.reshape(leaf.shape) for part, leaf in parts))

    # The one thing that an optimizer the kernel knows keeps of each trained field is its velocity.
    leaves, structure = jax.tree.flatten(state.opt_state)
    trained = sorted(recipe.trained)
    velocity = to_rows(dict(zip(trained, leaves, strict=True))) if leaves else jnp.zeros((size, 0), jnp.float32)
    given = fused.Networks(
        params=to_rows(named(state.params)),
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
    kept = [named(from_rows(found.velocity))[name] for name in trained] if leaves else []
    residue = named(from_rows(found.residue))
    return state._replace(
        params=from_rows(found.params),
        change={name: residue[name] for name in recipe.trained},
        opt_state=jax.tree.unflatten(structure, kept),
        step=found.step,
        status=found.status,
    )


KERNEL = Kernel(fused.unavailable, fused.instruction_set, _advance, compiled.serves, compiled.bracket)
