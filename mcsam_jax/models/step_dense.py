"""Dense layers of a decode step, which multiply few rows by large kernels.

A step uses each kernel for one token per beam only, so the time goes into reading the kernel. These layers store it
transposed, once for the whole search, so that a CPU can take it as the left factor: it then reads the kernel's rows in
order, and needn't rearrange it first as it does with a right factor (docs/benchmarks.md). Accelerators treat both
alike.

Shapes: D width of the input, O width of the output.
"""

from collections.abc import Mapping, Sequence

import jax
from jax import lax
import jax.numpy as jnp

StepWeights = dict[str, jax.Array]

MAX_ROWS_ON_RIGHT = 48   # from 64 on a right factor is read often enough to pay for rearranging it


def stack_dense(parts: Sequence[Mapping[str, jax.Array]], dtype: jnp.dtype) -> StepWeights:
  """Returns the weights of several dense layers with the same input as those of one: kernel [O, D], bias [O].

  For few rows, one product of three times the width is faster than three products.

  Args:
    parts: parameters of `nn.Dense`: kernels [D, O_i] and biases [O_i].
    dtype: in which to compute.
  """
  return {"kernel": jnp.concatenate([part["kernel"].T for part in parts]).astype(dtype),
          "bias": jnp.concatenate([part["bias"] for part in parts]).astype(dtype)}


def step_dense(x: jax.Array, weights: StepWeights) -> jax.Array:
  """Returns the outputs [..., O] of a dense layer with weights of `stack_dense`, for x [..., D]."""
  rows, kernel = x.reshape(-1, x.shape[-1]), weights["kernel"]
  num_rows = rows.shape[0]                              # not a number in a program exported for any number of studies
  if isinstance(num_rows, int) and num_rows <= MAX_ROWS_ON_RIGHT:
    product = lax.platform_dependent(rows, kernel, cpu=_multiply_from_left, default=_multiply)
  else:
    product = _multiply(rows, kernel)
  return product.reshape(*x.shape[:-1], -1) + weights["bias"]


def _multiply(rows: jax.Array, kernel: jax.Array) -> jax.Array:
  return rows @ kernel.T


def _multiply_from_left(rows: jax.Array, kernel: jax.Array) -> jax.Array:
  # Without the barrier XLA would exchange the factors, to save transposing the small product.
  return lax.optimization_barrier(kernel @ rows.T).T
