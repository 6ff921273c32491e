"""EfficientNet-Lite0 (Tan & Le 2019, without squeeze-and-excitation, with ReLU6): a light image encoder.

A stack of inverted residual blocks: expansion by a 1x1 convolution, depthwise convolution, projection. Padding is
TensorFlow's SAME and the epsilon of batch norm is 1e-3, as its ImageNet weights expect.

Shapes: M images, h x w patches (or pixels at a layer's resolution), C channels.
"""

from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

# Stages of Lite0: (number of blocks, kernel size, stride of the first block, expansion, output channels).
STAGES = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80),
          (3, 5, 1, 6, 112), (4, 5, 2, 6, 192), (1, 3, 1, 6, 320))
HE = nn.initializers.variance_scaling(2.0, "fan_out", "truncated_normal")


class DepthwiseConv(nn.Module):
  """One k x k filter per channel: [M, h, w, C] -> [M, h/stride, w/stride, C].

  On a CPU this is a sum of shifted copies, which XLA fuses into one vectorized loop; XLA's grouped convolution is two
  orders of magnitude slower there. Accelerators use the convolution.
  """
  kernel: int
  stride: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    channels = x.shape[-1]
    weight = self.param("kernel", nn.initializers.variance_scaling(2.0, "fan_in", "truncated_normal"),
                        (self.kernel, self.kernel, 1, channels)).astype(self.dtype)
    if jax.default_backend() == "cpu":
      return shifted_sum(x, weight, self.stride)
    return jax.lax.conv_general_dilated(
        x, weight, (self.stride, self.stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=channels)


def shifted_sum(x: jax.Array, weight: jax.Array, stride: int) -> jax.Array:
  """Returns the depthwise convolution of x [M, h, w, C] with weight [k, k, 1, C], padding SAME."""
  kernel = weight.shape[0]
  rows, columns = (-(-size // stride) for size in x.shape[1:3])
  pads = jax.lax.padtype_to_pads(x.shape[1:3], (kernel, kernel), (stride, stride), "SAME")
  x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
  total = jnp.zeros((), x.dtype)
  for i in range(kernel):
    for j in range(kernel):
      total += weight[i, j, 0] * x[:, i:i + stride * (rows - 1) + 1:stride,
                                   j:j + stride * (columns - 1) + 1:stride]
  return total


class InvertedResidual(nn.Module):
  """Expansion, depthwise convolution and projection: [M, h, w, C] -> [M, h/stride, w/stride, width]."""
  width: int
  kernel: int
  stride: int
  expansion: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    y = x
    if self.expansion > 1:
      y = conv(self.expansion * x.shape[-1], 1, 1, self.dtype, "expand_conv")(y)
      y = nn.relu6(batch_norm(train, self.dtype, "bn0")(y))
    y = DepthwiseConv(self.kernel, self.stride, self.dtype, name="depthwise_conv")(y)
    y = nn.relu6(batch_norm(train, self.dtype, "bn1")(y))
    y = conv(self.width, 1, 1, self.dtype, "project_conv")(y)
    y = batch_norm(train, self.dtype, "bn2")(y)
    return x + y if x.shape == y.shape else y


class EfficientNetLite(nn.Module):
  """Normalized images [M, height, width, 3] -> features [M, height/32, width/32, 1280]."""
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
    x = conv(32, 3, 2, self.dtype, "conv_stem")(images)                             # [M, height/2, width/2, 32]
    x = nn.relu6(batch_norm(train, self.dtype, "bn0")(x))
    index = 0
    for depth, kernel, stride, expansion, width in STAGES:
      for i in range(depth):
        x = InvertedResidual(width, kernel, stride if i == 0 else 1, expansion, self.dtype,
                             name=f"blocks_{index}")(x, train)
        index += 1
    x = conv(1280, 1, 1, self.dtype, "conv_head")(x)                                # [M, height/32, width/32, 1280]
    return nn.relu6(batch_norm(train, self.dtype, "bn1")(x))


def conv(features: int, kernel: int, stride: int, dtype: Any, name: str) -> nn.Conv:
  return nn.Conv(features, (kernel, kernel), (stride, stride), padding="SAME", use_bias=False,
                 kernel_init=HE, dtype=dtype, name=name)


def batch_norm(train: bool, dtype: Any, name: str) -> nn.BatchNorm:
  return nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-3, dtype=dtype, name=name)
