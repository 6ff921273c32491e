"""EfficientNet-Lite0 (Tan & Le 2019, without squeeze-and-excitation, with ReLU6): a light image encoder.

A stack of inverted residual blocks: expansion by a 1x1 convolution, depthwise convolution, projection. Padding is
TensorFlow's SAME and the epsilon of batch norm is 1e-3, as its ImageNet weights expect.

Shapes: M images, h x w patches (or pixels at a layer's resolution), C channels.
"""

from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from mcsam_jax.models.visual_encoders.convolution import convolve
from mcsam_jax.models.visual_encoders.depthwise import depthwise_conv
from mcsam_jax.models.visual_encoders.folded_norm import ConvKernel, FrozenBatchNorm

# Stages of Lite0: (number of blocks, kernel size, stride of the first block, expansion, output channels).
STAGES = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80),
          (3, 5, 1, 6, 112), (4, 5, 2, 6, 192), (1, 3, 1, 6, 320))
HE = nn.initializers.variance_scaling(2.0, "fan_out", "truncated_normal")
DEPTHWISE_HE = nn.initializers.variance_scaling(2.0, "fan_in", "truncated_normal")
BATCH_NORM_EPSILON = 1e-3


def conv_norm(x: jax.Array, features: int, kernel: int, stride: int, train: bool, names: tuple[str, str],
              depthwise: bool = False) -> jax.Array:
  """Returns convolution and batch norm of x, in its type; called inside a compact method.

  A norm with frozen statistics is folded into the kernel, see `folded_norm.py`.

  Args:
    x: [M, h, w, C].
    features: output channels.
    kernel: size k of the kernel.
    stride: of the convolution.
    train: normalize by the batch and update the statistics.
    names: of the convolution's and the norm's variables.
    depthwise: one filter per channel; `features` is C.
  """
  shape = (kernel, kernel, 1 if depthwise else x.shape[-1], features)
  weights = ConvKernel(shape, DEPTHWISE_HE if depthwise else HE, name=names[0])()

  def convolution(weights: jax.Array) -> jax.Array:
    weights = weights.astype(x.dtype)
    return depthwise_conv(x, weights, stride) if depthwise else convolve(x, weights, stride, "SAME")

  if train:
    return nn.BatchNorm(use_running_average=False, momentum=0.9, epsilon=BATCH_NORM_EPSILON, dtype=x.dtype,
                        name=names[1])(convolution(weights))
  factor, shift = FrozenBatchNorm(features, BATCH_NORM_EPSILON, name=names[1])()
  return (convolution(weights * factor) + shift).astype(x.dtype)


class InvertedResidual(nn.Module):
  """Expansion, depthwise convolution and projection: [M, h, w, C] -> [M, h/stride, w/stride, width]."""
  width: int
  kernel: int
  stride: int
  expansion: int

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    y, channels = x, self.expansion * x.shape[-1]
    if self.expansion > 1:
      y = nn.relu6(conv_norm(y, channels, 1, 1, train, ("expand_conv", "bn0")))
    y = nn.relu6(conv_norm(y, channels, self.kernel, self.stride, train, ("depthwise_conv", "bn1"), depthwise=True))
    y = conv_norm(y, self.width, 1, 1, train, ("project_conv", "bn2"))
    return x + y if x.shape == y.shape else y


class EfficientNetLite(nn.Module):
  """Normalized images [M, height, width, 3] -> features [M, height/32, width/32, 1280], or some stages of that.

  The stem is a part of the first stage, the head of the last.
  """
  dtype: Any = jnp.float32
  first_stage: int = 0               # from 0; the input of a later stage is the output of the one before
  end_stage: int = len(STAGES)       # the stage after the last one

  @nn.compact
  def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
    x = images.astype(self.dtype)
    if self.first_stage == 0:
      x = nn.relu6(conv_norm(x, 32, 3, 2, train, ("conv_stem", "bn0")))              # [M, height/2, width/2, 32]
    index = sum(depth for depth, *_ in STAGES[:self.first_stage])
    for depth, kernel, stride, expansion, width in STAGES[self.first_stage:self.end_stage]:
      for i in range(depth):
        x = InvertedResidual(width, kernel, stride if i == 0 else 1, expansion,
                             name=f"blocks_{index}")(x, train)
        index += 1
    if self.end_stage < len(STAGES):
      return x
    return nn.relu6(conv_norm(x, 1280, 1, 1, train, ("conv_head", "bn1")))            # [M, height/32, width/32, 1280]
