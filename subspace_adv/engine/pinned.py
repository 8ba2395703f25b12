"""JAX's global settings that change numbers or break programs: pinned here for all that the engine does.

They belong to the user, who may set them by `jax.config`, by environment variables or by contexts, at any time. So each
call of the engine's into JAX runs in a context of its own, in its own thread, and keys are made by `streams`.
Settings that only tell, check or cache are left alone. Out of reach are XLA's own flags (XLA_FLAGS), but for those in
`compiler_options`, and what a process begins with: platforms and devices.
"""

import contextlib
from collections.abc import Iterator

import jax

from subspace_adv.streams import KEY_IMPLEMENTATION


@contextlib.contextmanager
def pinned(*, x64: bool) -> Iterator[None]:
    """A context in which nothing depends on JAX's global settings; not to be left open where a generator yields.

    Args:
        x64: whether arrays may be of 64 bits, as measuring takes.
    """
    contexts = (
        jax.enable_x64(x64),
        jax.default_prng_impl(KEY_IMPLEMENTATION),
        jax.threefry_partitionable(True),
        jax.enable_custom_prng(False),
        # Float32 stands for itself on accelerators too, which would multiply in less by default.
        jax.default_matmul_precision("highest"),
        jax.numpy_dtype_promotion("standard"),  # Optax's Adam mixes types
        jax.numpy_rank_promotion("allow"),
        jax.softmax_custom_jvp(True),
        jax.disable_jit(False),
        jax.default_device(None),
        jax.transfer_guard("allow"),
        # A network that diverges is a value: NaN.
        jax.debug_nans(False),
        jax.debug_infs(False),
        jax.debug_key_reuse(False),
        jax.check_tracer_leaks(False),
    )
    with contextlib.ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        yield


def compiler_options(*, quick: bool) -> dict[str, str | bool]:
    """What XLA is told of every program on CPU, whatever its flags say.

    Args:
        quick: compile sooner to slightly slower code.
    """
    return {
        "xla_backend_optimization_level": "1" if quick else "3",
        "xla_llvm_disable_expensive_passes": False,
        "xla_cpu_enable_fast_math": False,  # which would break what is safe against rounding
    }
