"""Convolutions with gradients of their own against those that JAX derives for XLA's convolution."""

import jax
import numpy as np
import pytest

from mcsam_jax.models.visual_encoders.convolution import convolve


@pytest.mark.parametrize("size, kernel_size, stride, padding", [
    (7, 1, 1, "SAME"), (7, 1, 2, ((0, 0), (0, 0))), (8, 1, 2, "SAME"), (6, 3, 2, ((1, 1), (1, 1)))])
def test_equals_xlas_convolution_and_its_gradients(size, kernel_size, stride, padding):
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)
  x, kernel = draw(2, size, size + 1, 3), draw(kernel_size, kernel_size, 3, 5)
  expected, pull_back = jax.vjp(lambda x, kernel: jax.lax.conv_general_dilated(
      x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")), x, kernel)
  computed, own_pull_back = jax.vjp(lambda x, kernel: convolve(x, kernel, stride, padding), x, kernel)
  gradient = draw(*expected.shape)
  for ours, theirs in zip((computed, *own_pull_back(gradient)), (expected, *pull_back(gradient)), strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
