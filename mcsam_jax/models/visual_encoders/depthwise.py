"""Depthwise convolution: one k x k filter per channel, with TensorFlow's padding SAME.

Accelerators use XLA's grouped convolution, which on a CPU is two orders of magnitude slower than what is here: sums of
shifted copies, which XLA fuses into vectorized loops, image by image, so that the padded copy of an image stays in the
cache. The gradients are written down because those that JAX derives are slow there: XLA computes each of the k * k sums
over all positions with one pass that jumps from position to position and isn't vectorized.

Shapes: M images, h x w positions of the input, r x c of the output, C channels.
"""

import functools

import jax
from jax import lax
import jax.numpy as jnp

MAX_UNROLLED_ROWS = 8      # output rows per pass of the kernel's gradient: more take longer to compile


def depthwise_conv(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
  """Returns the depthwise convolution [M, r, c, C] of x [M, h, w, C] with a kernel [k, k, 1, C]."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return conv_by_image(x, kernel, stride)
  # A loop over images that are split over devices would gather them all on every device.
  return lax.platform_dependent(x, kernel, cpu=lambda x, kernel: shifted_sum(x, kernel, stride),
                                default=lambda x, kernel: grouped_conv(x, kernel, stride))


def grouped_conv(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
  """Returns the same as `depthwise_conv`, by XLA's convolution."""
  return lax.conv_general_dilated(x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"),
                                  feature_group_count=x.shape[-1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def conv_by_image(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
  """Returns the same as `depthwise_conv`, on a CPU by loops over the images, forward and backward."""
  def loop(x, kernel):
    return lax.map(lambda image: shifted_sum(image[None], kernel, stride)[0], x)

  return lax.platform_dependent(x, kernel, cpu=loop, default=lambda x, kernel: grouped_conv(x, kernel, stride))


def shifted_sum(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
  """Returns the same as `depthwise_conv`, as a sum of shifted copies of all images."""
  size = len(kernel)
  rows, columns = (-(-length // stride) for length in x.shape[1:3])
  x = jnp.pad(x, ((0, 0), *_same_padding(x.shape[1:3], size, stride), (0, 0)))
  total = jnp.zeros((), x.dtype)
  for i in range(size):
    for j in range(size):
      total += kernel[i, j, 0] * _window(x, i, j, rows, columns, stride)
  return total


def _forward(x: jax.Array, kernel: jax.Array, stride: int) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
  return conv_by_image(x, kernel, stride), (x, kernel)


def _backward(stride: int, saved: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
  def derive(x, kernel, gradient):
    return jax.vjp(lambda x, kernel: grouped_conv(x, kernel, stride), x, kernel)[1](gradient)

  return lax.platform_dependent(*saved, gradient, cpu=functools.partial(_gradients_by_image, stride=stride),
                                default=derive)


def _gradients_by_image(x: jax.Array, kernel: jax.Array, gradient: jax.Array, *,
                        stride: int) -> tuple[jax.Array, jax.Array]:
  size, columns, dtype = len(kernel), gradient.shape[2], jnp.promote_types(x.dtype, jnp.float32)

  def add_image(sums: list[jax.Array], pair: tuple[jax.Array, jax.Array]) -> tuple[list[jax.Array], jax.Array]:
    image, image_gradient = pair
    sums = add_products(sums, image.astype(dtype), image_gradient.astype(dtype), stride)
    return sums, input_gradient(image_gradient, kernel, image.shape[:2], stride)

  zeros = [jnp.zeros((size, columns, x.shape[-1]), dtype)] * size
  sums, x_gradient = lax.scan(add_image, zeros, (x, gradient))
  return x_gradient, jnp.stack(sums).sum(2)[:, :, None].astype(kernel.dtype)


conv_by_image.defvjp(_forward, _backward)


def add_products(sums: list[jax.Array], image: jax.Array, gradient: jax.Array, stride: int) -> list[jax.Array]:
  """Adds one image's part of the kernel's gradient, still apart by output column.

  Args:
    sums: one array [k, c, C] per row of the kernel.
    image: [h, w, C].
    gradient: of the output [r, c, C].
    stride: of the convolution.
  """
  size, (rows, columns) = len(sums), gradient.shape[:2]
  num_passes = -(-rows // MAX_UNROLLED_ROWS)
  rows_per_pass = -(-rows // num_passes)
  # Zero rows below, so that every pass has the same number.
  missing = num_passes * rows_per_pass - rows
  gradient = jnp.pad(gradient, ((0, missing), (0, 0), (0, 0)))
  (top, bottom), sides = _same_padding(image.shape[:2], size, stride)
  image = jnp.pad(image, ((top, bottom + stride * missing), sides, (0, 0)))

  def add_rows(sums: list[jax.Array], start: jax.Array) -> tuple[list[jax.Array], None]:
    output_rows = lax.dynamic_slice_in_dim(gradient, start, rows_per_pass)
    input_rows = lax.dynamic_slice_in_dim(image, stride * start, stride * (rows_per_pass - 1) + size)[None]
    products = lambda i, j: sum(_window(input_rows, i + stride * row, j, 1, columns, stride)[0, 0] * output_rows[row]
                                for row in range(rows_per_pass))
    return [total + jnp.stack([products(i, j) for j in range(size)]) for i, total in enumerate(sums)], None

  return lax.scan(add_rows, sums, rows_per_pass * jnp.arange(num_passes))[0]


def input_gradient(gradient: jax.Array, kernel: jax.Array, size: tuple[int, ...], stride: int) -> jax.Array:
  """Returns the gradient of one image [h, w, C] from that of its output [r, c, C].

  Input positions with the same remainder by the stride take part in the same entries of the kernel: each such set is a
  sum of shifted copies of the output's gradient, and the sets are interleaved at the end.
  """
  (top, _), (left, _) = _same_padding(size, len(kernel), stride)
  margin = (len(kernel) - 1) // stride + 1
  rows, columns = (-(-length // stride) for length in size)
  padded = jnp.pad(gradient, ((margin, margin), (margin, margin), (0, 0)))[None]

  def sum_shifted(row_phase: int, column_phase: int) -> jax.Array:
    total = jnp.zeros((1, rows, columns, gradient.shape[-1]), gradient.dtype)
    for i in range(len(kernel)):
      for j in range(len(kernel)):
        row, row_rest = divmod(row_phase + top - i, stride)
        column, column_rest = divmod(column_phase + left - j, stride)
        if not row_rest and not column_rest:
          total += kernel[i, j, 0] * _window(padded, margin + row, margin + column, rows, columns, 1)
    return total[0]

  phases = jnp.stack([jnp.stack([sum_shifted(i, j) for j in range(stride)], 2) for i in range(stride)], 1)
  return phases.reshape(rows * stride, columns * stride, -1)[:size[0], :size[1]]


def _same_padding(size: tuple[int, ...], kernel_size: int, stride: int) -> list[tuple[int, int]]:
  """Returns the rows above and below, and the columns left and right, that padding SAME adds."""
  return list(lax.padtype_to_pads(size, (kernel_size, kernel_size), (stride, stride), "SAME"))


def _window(x: jax.Array, row: int, column: int, rows: int, columns: int, stride: int) -> jax.Array:
  """Returns every `stride`-th position of x [M, h, w, C] from a corner on: [M, rows, columns, C]."""
  return x[:, row:row + stride * (rows - 1) + 1:stride, column:column + stride * (columns - 1) + 1:stride]
