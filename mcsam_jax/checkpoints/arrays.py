"""Checks of the arrays in a checkpoint, before and after they are restored."""

from collections.abc import Mapping
from typing import Any

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np


def check_same_arrays(saved: Mapping, expected: Mapping) -> None:
  """Raises ValueError unless both trees have the same names, shapes and real numbers.

  A partial restore would ignore further names, and convert complex numbers.
  """
  saved_leaves: dict[str, Any]
  expected_leaves: dict[str, Any]
  saved_leaves, expected_leaves = (traverse_util.flatten_dict(tree, sep="/") for tree in (saved, expected))
  differences = [f"missing {name}" for name in sorted(set(expected_leaves) - set(saved_leaves))]
  differences += [f"unexpected {name}" for name in sorted(set(saved_leaves) - set(expected_leaves))]
  for name in set(saved_leaves) & set(expected_leaves):
    shape, dtype = saved_leaves[name].shape, saved_leaves[name].dtype
    if tuple(shape) != expected_leaves[name].shape or not jnp.issubdtype(dtype, jnp.floating):
      differences.append(f"{name} is {dtype} {list(shape)}, expected {list(expected_leaves[name].shape)}")
  if differences:
    raise ValueError(", ".join(differences))


def count_nonfinite(tree) -> int:
  """Returns the number of arrays with values that are NaN or infinite."""
  leaves = jax.tree.leaves(tree)
  if all(leaf.is_fully_replicated for leaf in leaves):              # no program to compile for a single device
    return sum(not np.isfinite(leaf.addressable_data(0)).all() for leaf in leaves)
  finite = jax.jit(lambda leaves: [jnp.isfinite(leaf).all() for leaf in leaves])(leaves)
  return sum(not leaf for leaf in jax.device_get(finite))
