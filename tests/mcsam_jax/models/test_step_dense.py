"""Dense layers of a decode step agree with NumPy, for as few rows as a search has and for more."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcsam_jax.models.step_dense import MAX_ROWS_ON_RIGHT, stack_dense, step_dense


@pytest.mark.parametrize("shape", [(1, 1, 16), (2, 3, 16), (MAX_ROWS_ON_RIGHT + 1, 16)])
def test_stacked_layers_are_computed_side_by_side(shape):
  rng = np.random.default_rng(0)
  x = rng.normal(size=shape).astype(np.float32)
  parts = [{"kernel": rng.normal(size=(16, width)).astype("float32"), "bias": rng.normal(size=width).astype("float32")}
           for width in (5, 8)]
  expected = np.concatenate([x @ part["kernel"] + part["bias"] for part in parts], -1)
  outputs = jax.jit(lambda x, parts: step_dense(x, stack_dense(parts, jnp.float32)))(x, parts)
  assert outputs.shape == (*shape[:-1], 13)
  np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-5)


def test_weights_have_the_type_of_the_network():
  parts = [{"kernel": np.ones((4, 2), np.float32), "bias": np.zeros(2, np.float32)}]
  weights = stack_dense(parts, jnp.bfloat16)
  assert weights["kernel"].shape == (2, 4) and weights["kernel"].dtype == weights["bias"].dtype == jnp.bfloat16
  assert step_dense(jnp.ones((3, 4), jnp.bfloat16), weights).dtype == jnp.bfloat16
