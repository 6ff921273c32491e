"""Random variables for a network without compiling its initialization, which takes longer than most tests of it."""

from collections.abc import Callable

import jax
import numpy as np


def draw_variables(init: Callable, *args):
  """Returns arrays of the shapes that `init(*args)` would return, filled at random.

  Kernels keep the variance of their inputs, scales and other statistics are near 1, biases near 0, and everything else
  is normal. Integers are 0.
  """
  rng = np.random.default_rng(0)

  def draw(path, leaf):
    name = str(getattr(path[-1], "key", path[-1]))
    if not np.issubdtype(leaf.dtype, np.floating):
      return np.zeros(leaf.shape, leaf.dtype)
    values = rng.normal(size=leaf.shape)
    if name == "kernel":
      values /= np.sqrt(np.prod(leaf.shape[:-1]))
    elif name in ("scale", "var", "positive_weight", "log_scale"):
      values = 1 + 0.1 * np.abs(values)
    elif name in ("bias", "mean"):
      values *= 0.1
    return values.astype(leaf.dtype)

  return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(init, *args))
