"""Strict JAX for every test: no silent broadcasting over ranks, no implicit promotion of types."""

from collections.abc import Iterator

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


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
