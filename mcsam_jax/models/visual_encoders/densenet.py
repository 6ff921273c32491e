"""DenseNet-121 (Huang et al., CVPR 2017) with one input channel, as torchxrayvision trains it on chest X-rays.

Every layer reads the concatenated outputs of all layers before it in its block. Normalization and ReLU precede each
convolution, and follow the last one. Submodules have torchvision's names without the prefix `features.`.

Shapes: M images, h x w patches (or pixels at a layer's resolution), C channels.
"""

from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from mcsam_jax.models.visual_encoders.convolution import convolve, Padding

HE = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
BLOCK_DEPTHS = (6, 12, 24, 16)       # layers per block
GROWTH = 32                          # channels that each layer adds
BOTTLENECK = 4 * GROWTH              # channels between the two convolutions of a layer
STEM_WIDTH = 64


class DenseNet(nn.Module):
  """Normalized images [M, height, width, 1] -> features [M, height/32, width/32, 1024], or some stages of that.

  A stage is a block and the transition after it. The stem is a part of the first stage, the last norm of the last one.
  """
  block_depths: tuple[int, ...] = BLOCK_DEPTHS
  dtype: Any = jnp.float32
  remat: bool = False                # recompute each layer's activations in the backward pass
  first_stage: int = 0               # from 0; the input of a later stage is the output of the one before
  end_stage: int = len(BLOCK_DEPTHS) # the stage after the last one

  @nn.compact
  def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
    x = images.astype(self.dtype)
    if self.first_stage == 0:
      x = conv(STEM_WIDTH, 7, self.dtype, "conv0", stride=2)(x)                          # [M, height/2, width/2, C]
      x = norm_relu(x, train, "norm0")
      x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))   # pyright: ignore[reportArgumentType]
    layer = nn.remat(DenseLayer, static_argnums=2) if self.remat else DenseLayer
    for block, depth in list(enumerate(self.block_depths, 1))[self.first_stage:self.end_stage]:
      for index in range(1, depth + 1):
        x = jnp.concatenate([x, layer(name=f"denseblock{block}_denselayer{index}")(x, train)], -1)
      if block == len(self.block_depths):
        return norm_relu(x, train, "norm5")
      x = Transition(name=f"transition{block}")(x, train)
    return x


class DenseLayer(nn.Module):
  """Returns the channels [M, h, w, GROWTH] that a layer adds to its input [M, h, w, C]."""

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    x = conv(BOTTLENECK, 1, x.dtype, "conv1")(norm_relu(x, train, "norm1"))
    return conv(GROWTH, 3, x.dtype, "conv2")(norm_relu(x, train, "norm2"))


class Transition(nn.Module):
  """Halves the channels and the resolution: [M, h, w, C] -> [M, h/2, w/2, C/2]."""

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    x = conv(x.shape[-1] // 2, 1, x.dtype, "conv")(norm_relu(x, train, "norm"))
    return nn.avg_pool(x, (2, 2), (2, 2))


def norm_relu(x: jax.Array, train: bool, name: str) -> jax.Array:
  """Returns ReLU(batch norm(x)), in the type of x; called inside a compact method."""
  return nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=x.dtype, name=name)(x))


def conv(features: int, kernel: int, dtype: Any, name: str, stride: int = 1) -> nn.Conv:
  """Returns a convolution with PyTorch's padding, the same on all four sides."""
  def run(x: jax.Array, weights: jax.Array, strides: tuple[int, ...], padding: Padding, **_) -> jax.Array:
    return convolve(x, weights, strides[0], padding)

  return nn.Conv(features, (kernel, kernel), (stride, stride), padding=kernel // 2, use_bias=False, kernel_init=HE,
                 dtype=dtype, name=name, conv_general_dilated=run)
