"""Depthwise convolutions for CPUs against XLA's grouped convolution: values and both gradients."""

import functools

import jax
import numpy as np
import pytest

from mcsam_jax.models.visual_encoders.depthwise import conv_by_image, shifted_sum


def grouped_convolution(x, kernel, stride):
  return jax.lax.conv_general_dilated(x, kernel, (stride, stride), "SAME", feature_group_count=x.shape[-1],
                                      dimension_numbers=("NHWC", "HWIO", "NHWC"))


def values_and_gradients(convolve, x, kernel, gradient):
  def run(x, kernel):
    y, pull_back = jax.vjp(convolve, x, kernel)
    return y, *pull_back(gradient)
  return jax.jit(run)(x, kernel)


# 35 rows take several passes in the kernel's gradient, the last with rows of zeros.
@pytest.mark.parametrize("rows, columns, kernel_size, stride", [
    (7, 9, 3, 1), (8, 8, 3, 2), (9, 7, 3, 2), (8, 10, 5, 2), (35, 6, 5, 1), (70, 5, 3, 2)])
def test_equals_grouped_convolution(rows, columns, kernel_size, stride):
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)
  x, kernel = draw(2, rows, columns, 4), draw(kernel_size, kernel_size, 1, 4)
  gradient = draw(2, -(-rows // stride), -(-columns // stride), 4)
  expected = values_and_gradients(functools.partial(grouped_convolution, stride=stride), x, kernel, gradient)
  computed = values_and_gradients(functools.partial(conv_by_image, stride=stride), x, kernel, gradient)
  for ours, theirs in zip(computed, expected, strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5 * np.abs(theirs).max())
  np.testing.assert_allclose(shifted_sum(x, kernel, stride), expected[0], atol=1e-5)
