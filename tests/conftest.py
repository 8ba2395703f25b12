"""Strict JAX for every test; and what one process of a test run compiles, the others load."""

import atexit
import gc
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # the first process; the others inherit it
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder = tempfile.mkdtemp(prefix="subspace-adv-compiled-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # as subspace_adv/__init__.py has it

# What tests compile themselves runs shortly, so XLA is not to polish it. The engine tells XLA its own levels, whatever
# the flags say.
if "--xla_backend_optimization_level" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=0"

import jax
import pytest

# No silent broadcasting over ranks, no implicit promotion of types.
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture(scope="module", autouse=True)
def unloaded() -> Iterator[None]:
    """What tests compiled is unloaded after a file of them, where it is much: Linux maps 65,530 pieces of code."""
    yield
    mappings = Path("/proc/self/maps")
    if mappings.exists() and mappings.read_text().count("\n") > 20_000:
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def x64() -> Iterator[None]:
    """Float64 arrays in JAX, as measurements use them."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def standard_promotion() -> Iterator[None]:
    """For Adam: optax raises a Python float to the power of an integer count, which strict promotion forbids."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(params=("generic", "avx2", "avx512"))
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs a test with each instruction set of the kernel that this machine has."""
    from subspace_adv.models import fused

    limit = fused.library().subspace_adv_limit_instruction_set
    limit(request.param_index)
    if fused.instruction_set() == request.param:
        yield request.param
        limit(2)
    else:
        limit(2)
        pytest.skip(f"no {request.param} here")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of a tiny sweep, which tests of several files read."""
    from shell import TINY, read

    from subspace_adv import run

    folder = tmp_path_factory.mktemp("results") / "tiny"
    run(read(TINY), folder)
    return folder
