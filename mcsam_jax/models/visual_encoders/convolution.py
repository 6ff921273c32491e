"""Convolutions whose kernel gradient is fast on CPUs, too.

The gradient of a 1x1 kernel is one matrix product. XLA derives it as a convolution with a window as large as the image,
which takes a CPU about seven times as long as the product. All else, and everything on accelerators, is left to XLA:
for 3x3 and 7x7 kernels, products of shifted copies take as long as XLA's gradient (docs/benchmarks.md).

Shapes: M images, h x w positions of the input, r x c of the output, I and O channels.
"""

import functools

import jax
from jax import lax
import jax.numpy as jnp

Padding = str | tuple[tuple[int, int], ...]


def convolve(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
  """Returns the convolution [M, r, c, O] of x [M, h, w, I] with a kernel [k, k, I, O].

  Args:
    stride: of both axes.
    padding: "SAME" (TensorFlow's), or the zeros before and after each axis.
  """
  return _convolve_1x1(x, kernel, stride) if kernel.shape[:2] == (1, 1) else _convolve(x, kernel, stride, padding)


def _convolve(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
  return lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolve_1x1(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
  return _convolve(x, kernel, stride, "VALID")


def _forward(x: jax.Array, kernel: jax.Array, stride: int) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
  return _convolve_1x1(x, kernel, stride), (x, kernel)


def _backward(stride: int, saved: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
  x, kernel = saved

  def multiply(x, gradient):
    return jnp.einsum("mhwi,mhwo->io", x[:, ::stride, ::stride], gradient)[None, None]

  def derive(x, gradient):
    return jax.vjp(lambda kernel: _convolve(x, kernel, stride, "VALID"), kernel)[1](gradient)[0]

  x_gradient, = jax.vjp(lambda x: _convolve(x, kernel, stride, "VALID"), x)[1](gradient)
  return x_gradient, lax.platform_dependent(x, gradient, cpu=multiply, default=derive)


_convolve_1x1.defvjp(_forward, _backward)
