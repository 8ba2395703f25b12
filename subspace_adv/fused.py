"""The fused trainer: whole training runs in one call of a C++ kernel, many networks at a time, on the CPU.

The kernel repeats what `training` defines with networks across the lanes of vectors and all their parameters in
cache. Its sources are in kernels/; where no compiler was found the package is installed without it, and
`unavailable` says so.
"""

import ctypes
import functools
import importlib.util
from typing import Literal

import jax
import numpy as np

_TARGET = "subspace_adv_advance"


@functools.cache
def _load() -> tuple[ctypes.CDLL | None, str]:
    """The library with its handler registered, or why there is none."""
    spec = importlib.util.find_spec(f"{__package__}._fused")
    if spec is None or spec.origin is None:
        return None, "the fused trainer was not built; reinstall the package where there is a C++ compiler"
    jax.devices("cpu")  # a handler that JAX refuses while it starts would keep it from starting
    try:
        library = ctypes.CDLL(spec.origin)
        jax.ffi.register_ffi_target(_TARGET, jax.ffi.pycapsule(library.subspace_adv_advance), platform="cpu")
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


def label() -> str:
    """The trainer with what decides its rounding, "fused (avx512)"."""
    return f"fused ({instruction_set()})"


def advance(
    params: jax.Array,
    residue: jax.Array,
    velocity: jax.Array,
    step: jax.Array,
    status: jax.Array,
    x: jax.Array,
    y: jax.Array,
    learning_rate: jax.Array,
    weight_decay: jax.Array,
    momentum: jax.Array,
    stop_margin: jax.Array,
    max_steps: jax.Array,
    *,
    steps: int,
    loss: Literal["logistic", "exponential"],
    has_bias: bool,
    train_head: bool,
) -> tuple[jax.Array, ...]:
    """Train networks, each until its own stop rule holds or for `steps` more steps.

    Leading axes batch networks, as `vmap` does. The points may lack the last or all of these axes, and are then
    shared without being copied. A network whose status is not PENDING is left as it is, and each comes out the
    same to the last bit whatever networks, and how many, are trained beside it.

    Args:
        params: (..., P) float32, P = m·(r + 2) + 1: weights (r × m, neurons fastest), biases (m), head (m), head bias.
        residue: (..., P) float32, what rounding has kept from the parameters; zeros to begin with.
        velocity: (..., P) float32 for momentum, (..., 0) for plain gradient descent.
        step: (...) int32, gradient steps done.
        status: (...) int8, of `training`.
        x: (..., n, r) float32 points.
        y: (..., n) float32 labels.
        learning_rate: (...) float32, as are `weight_decay`, `momentum` and `stop_margin`.
        weight_decay: λ, adds λθ to the gradient of every trained θ.
        momentum: read if there is a velocity.
        stop_margin: training stops when all margins exceed it after a step.
        max_steps: (...) int32.
        steps: the most gradient steps each network takes.
        loss: of signed outputs.
        has_bias: biases exist and are trained with their layers; otherwise they must be zero, and stay so.
        train_head: the head is trained, not only the hidden layer.

    Returns:
        params, residue, velocity, step and status after the steps; a network neither stopped nor done is PENDING.
    """
    library()
    results = tuple(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (params, residue, velocity, step, status))
    call = jax.ffi.ffi_call(
        _TARGET, results, vmap_method="broadcast_all", input_output_aliases={i: i for i in range(len(results))}
    )
    return tuple(
        call(
            params,
            residue,
            velocity,
            step,
            status,
            x,
            y,
            learning_rate,
            weight_decay,
            momentum,
            stop_margin,
            max_steps,
            steps=np.int64(steps),
            loss=np.int64(("logistic", "exponential").index(loss)),
            has_bias=has_bias,
            train_head=train_head,
        )
    )
