"""The installed jaxlib compiles batched CPU programs to right numbers."""

import jax
import jax.numpy as jnp
import numpy as np

from subspace_adv.engine.pinned import compiler_options


def test_a_batched_sum_of_relus_is_right_in_every_row():
    """Hundreds of these 33,000 rows are wrong with jaxlib 0.10.2 on CPU (jax issue 39103)."""
    rng = np.random.default_rng(0)
    matrix, x = rng.standard_normal((3, 3)).astype(np.float32), rng.standard_normal((33_000, 3)).astype(np.float32)
    of_rows = jax.vmap(lambda row: jnp.sum(jax.nn.relu(matrix @ row)))
    found = jax.jit(of_rows, compiler_options=compiler_options(quick=True))(x)  # as measuring is compiled
    expected = np.maximum(x.astype(np.float64) @ matrix.T.astype(np.float64), 0).sum(axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
