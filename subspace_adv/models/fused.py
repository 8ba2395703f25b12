"""The fused trainer: whole training runs in one call of a C++ kernel, many networks at a time, on the CPU.

The kernel repeats what `training` defines with networks across the lanes of vectors and all their parameters in
cache. Its sources are in kernels/; where no compiler was found the package is installed without it, and
`unavailable` says so.
"""

import ctypes
import functools
import importlib.util
from typing import Literal, NamedTuple

import jax
import numpy as np

_TARGET = "subspace_adv_advance"
BRACKET, CROSS = "subspace_adv_bracket", "subspace_adv_cross"
"""Names of the handlers that `compiled` calls."""


@functools.cache
def _load() -> tuple[ctypes.CDLL | None, str]:
    """The library with its handlers registered, or why there is none."""
    spec = importlib.util.find_spec("subspace_adv._fused")
    if spec is None or spec.origin is None:
        return None, "the fused trainer was not built; reinstall the package where there is a C++ compiler"
    jax.devices("cpu")  # a handler that JAX refuses while it starts would keep it from starting
    try:
        library = ctypes.CDLL(spec.origin)
        for name in (_TARGET, BRACKET, CROSS):
            jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(getattr(library, name)), platform="cpu")
    except (OSError, RuntimeError) as error:
        return None, f"the fused trainer cannot be loaded: {str(error).splitlines()[0]}"
    library.subspace_adv_instruction_set.restype = ctypes.c_char_p
    return library, ""


def library() -> ctypes.CDLL:
    """The loaded library.

    Raises:
        RuntimeError: it cannot be loaded; the message says why.
    """
    loaded, reason = _load()
    if loaded is None:
        raise RuntimeError(reason)
    return loaded


def unavailable(platform: str | None = None) -> str | None:
    """Why the fused trainer cannot serve, in one line; None if it can.

    Args:
        platform: of the devices that networks are to train on; JAX's default backend here, where none is given.
    """
    platform = platform or jax.default_backend()
    if platform != "cpu":
        return f"the fused trainer runs on the CPU, and networks are to train on {platform}"
    return _load()[1] or None


def instruction_set() -> str:
    """The vector instructions the kernel uses on this machine: "avx512", "avx2" or "generic"."""
    return library().subspace_adv_instruction_set().decode()


class Networks(NamedTuple):
    """Networks under training, their points and their settings, as the kernel reads them; leading axes batch networks.

    The points may lack the last or all of these axes, and are then shared without being copied.
    """

    params: jax.Array  # (..., P) float32, P = m·(r + 2) + 1: weights (r × m, neurons fastest), biases, head, head bias
    residue: jax.Array  # (..., P) float32, what rounding has kept from the parameters; zeros to begin with
    velocity: jax.Array  # (..., P) float32 for momentum, (..., 0) for plain gradient descent
    step: jax.Array  # (...) int32, gradient steps done
    status: jax.Array  # (...) int8, of `training`; one that is not PENDING is left as it is
    x: jax.Array  # (..., n, r) float32, points
    y: jax.Array  # (..., n) float32, labels
    learning_rate: jax.Array  # (...) float32
    weight_decay: jax.Array  # (...) float32, λ: adds λθ to the gradient of every trained θ
    momentum: jax.Array  # (...) float32, read if there is a velocity
    stop_margin: jax.Array  # (...) float32, exceeded by all margins after the last step
    max_steps: jax.Array  # (...) int32


_CHANGED = ("params", "residue", "velocity", "step", "status")
"""Fields that training changes: the first ones, and the kernel's results, in this order."""


def advance(
    networks: Networks, *, steps: int, loss: Literal["logistic", "exponential"], has_bias: bool, train_head: bool
) -> Networks:
    """Train networks, each until its own stop rule holds or for `steps` more steps.

    Each comes out the same to the last bit whatever networks, and how many, are trained beside it.

    Args:
        networks: batched by leading axes, as `vmap` does.
        steps: the most gradient steps each network takes.
        loss: of signed outputs.
        has_bias: biases exist and are trained with their layers; otherwise they must be zero, and stay so.
        train_head: the head is trained, not only the hidden layer.

    Returns:
        The same after the steps; a network neither stopped nor done is PENDING.
    """
    library()
    results = tuple(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in networks[: len(_CHANGED)])
    call = jax.ffi.ffi_call(
        _TARGET, results, vmap_method="broadcast_all", input_output_aliases={i: i for i in range(len(results))}
    )
    changed = call(
        *networks,
        steps=np.int64(steps),
        loss=np.int64(("logistic", "exponential").index(loss)),
        has_bias=has_bias,
        train_head=train_head,
    )
    return networks._replace(**dict(zip(_CHANGED, changed, strict=True)))
