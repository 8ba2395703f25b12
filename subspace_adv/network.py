"""The two-layer ReLU network N(x) = Σᵢ uᵢ·relu(wᵢ·x + bᵢ) + c, and networks of flax layers: pytrees, and what they say.

Both can be made of the arrays of a network that was trained elsewhere.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen, struct

from subspace_adv.contracts import affine, named
from subspace_adv.errors import UserError
from subspace_adv.flax_layers import Layers
from subspace_adv.receptive_fields import DENSE
from subspace_adv.state_dict import Layer, layers_of


class Network(NamedTuple):
    """Parameters of one network of width m on R^d; leading axes batch networks."""

    weight: jax.Array  # (m, d), rows wᵢ
    bias: jax.Array  # (m,), bᵢ
    head: jax.Array  # (m,), uᵢ
    head_bias: jax.Array  # (), c

    @classmethod
    def from_state_dict(
        cls, arrays: Mapping[str, Any], *, mean: Any = None, std: Any = None, x: Any = None, outputs: Any = None
    ) -> "Network | Networks":
        """A network trained elsewhere: dense layers with ReLUs between, of any depth.

        Arrays do not tell what is between layers. With points `x` and the network's own `outputs` there it is checked.
        What goes before the first layer, `mean` and `std`, is folded into it. Of two logits the network is the
        difference, the second less the first: positive where the second class is predicted.

        Args:
            arrays: by name, of anything that NumPy reads: `weight` (out, in) and `bias` (out,) of each layer, as of
                PyTorch's `state_dict()`, or `kernel` (in, out) and `bias`, as of flax, also in mappings within
                mappings. A layer may be without bias. Numbers in names tell the order of layers, and their shapes the
                order of those that have none.
            mean: taken from every input, a number for all or (d,).
            std: by which inputs are divided then, likewise.
            x: points (n, d), as they are before that.
            outputs: at these points, (n,) or (n, 1), or logits (n, 2); must agree to 10⁻⁵ of the largest.

        Returns:
            Float64 host arrays. Of one hidden layer a `Network`, of more `Networks`, one of them.

        Raises:
            UserError: naming the array that is missing, too many, transposed or not of numbers, or the point at which
                outputs differ.
        """
        return of_layers(layers_of(arrays, mean=mean, std=std, x=x, outputs=outputs, where="from_state_dict"))

    def apply(self, x: Any) -> jax.Array:
        """Outputs (...) of one network at points (..., d).

        Raises:
            UserError: if these are points of another space.
        """
        points, d = jnp.asarray(x), jnp.shape(self.weight)[-1]
        if points.ndim < 1 or points.shape[-1] != d:
            raise UserError(f"apply: x of shape {points.shape}; must be points (…, {d}), as this network takes")
        return output(self, points)


@struct.dataclass
class Networks:
    """Networks of flax layers; a pytree, leading axes batch networks."""

    params: Any  # as flax has them: arrays by layer and name
    module: linen.Module | None = struct.field(pytree_node=False)  # None of a class that was not handed over
    ambient_dim: int = struct.field(pytree_node=False)  # d, coordinates of a point

    def apply(self, x: Any) -> jax.Array:
        """Outputs (...) of one network at points (..., d).

        Raises:
            UserError: if their class is not known, these are several networks, or points of another space.
        """
        module, d = self.one("apply"), self.ambient_dim
        points = jnp.asarray(x)
        if points.ndim < 1 or points.shape[-1] != d:
            raise UserError(f"apply: x of shape {points.shape}; must be points (…, {d}), as these networks take")
        apply: Any = functools.partial(module.apply, {"params": self.params})
        outputs = jax.vmap(lambda point: jnp.reshape(apply(point), ()))(points.reshape(-1, points.shape[-1]))
        return outputs.reshape(points.shape[:-1])

    def one(self, what: str) -> linen.Module:
        """The class of one network, with its fields.

        Args:
            what: is done with it, as messages begin.

        Raises:
            UserError: if the class is not known, or these are several networks.
        """
        if self.module is None:
            told = "of which class these networks are is not known; load_networks(…, module=) takes it"
            raise UserError(f"{what}: {told}")
        point = jnp.zeros(self.ambient_dim, jnp.float32)
        for name, leaf in named(jax.eval_shape(self.module.init, jax.random.key(0), point)["params"]).items():
            if (given := named(self.params)[name].shape) != leaf.shape:
                told = f"{what}: takes one network; select one, or map over several with jax.vmap"
                raise UserError(f"{told}: {name} is of shape {given}, and of one network {leaf.shape}")
        return self.module


def of_layers(layers: Sequence[Layer]) -> Network | Networks:
    """A network of a chain of layers, the last of which yields one number."""
    (first, *_), (*hidden, head) = layers, layers
    if len(hidden) == 1:
        return Network(first.weight, first.bias, head.weight[0], head.bias[0])  # pyright: ignore[reportArgumentType]
    params = {f"hidden_{k}": {"kernel": layer.weight.T, "bias": layer.bias} for k, layer in enumerate(hidden)}
    params["head"] = {"kernel": head.weight.T, "bias": head.bias}
    widths = tuple(len(layer.bias) for layer in hidden)
    return Networks(params, Layers(widths, len(hidden), DENSE), first.weight.shape[1])


def preactivations(network: Network, x: jax.Array) -> jax.Array:
    """Inputs w·x + b of the ReLUs, (..., m), for x (..., d)."""
    return affine(network.weight, network.bias, x)


def output(network: Network, x: jax.Array) -> jax.Array:
    """Network outputs N(x), (...), for x (..., d)."""
    return rest(network, preactivations(network, x))


def rest(network: Network, z: jax.Array) -> jax.Array:
    """Outputs (...) where the preactivations are z (..., m)."""
    return jax.nn.relu(z) @ network.head + network.head_bias


def input_gradient(network: Network, x: jax.Array) -> jax.Array:
    """Gradient of N at x, (..., d), for x (..., d); a ReLU at its kink counts as off."""
    active = preactivations(network, x) > 0
    return active.astype(x.dtype) @ (network.head[:, None] * network.weight)


def padded_size(size: int) -> int:
    """Least of 2^k, 1.25·2^k and 1.5625·2^k (rounded up) that holds a number of neurons or of points.

    Networks are padded with inert neurons (F11 in docs/theory.md), and data with points without a label, up to this
    number, so that neighbouring widths and samples share a compiled program. It depends on the number alone, so the
    other cells of a sweep cannot change a cell's rounding. At most 28 % is padding; 20, 25, 50, 100, 200, 400, 800 and
    powers of two have none.
    """
    power = 1
    while 2 * power <= size:
        power *= 2
    steps = (power, -(-5 * power // 4), -(-25 * power // 16), 2 * power)
    return next(step for step in steps if step >= size)
