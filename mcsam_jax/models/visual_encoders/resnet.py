"""Residual networks: from images to the feature map before the average pool.

`ResNet` with bottleneck blocks follows torchvision (He et al. 2016, "v1.5": the 3x3 convolution has the stride, padding
is symmetric), so that weights trained there give the same numbers here; submodules have torchvision's names for the
same reason. With basic blocks it is the small network that learns phantoms from scratch on a CPU.

Shapes: M images, h x w patches (or pixels at a layer's resolution), C channels.
"""

from collections.abc import Callable
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from mcsam_jax.models.visual_encoders.convolution import convolve
from mcsam_jax.models.visual_encoders.folded_norm import ConvKernel, FrozenBatchNorm

HE = nn.initializers.variance_scaling(2.0, "fan_out", "truncated_normal")
BATCH_NORM_EPSILON = 1e-5
SHORTCUT_NAMES = ("downsample_0", "downsample_1")     # names of the projection where a block changes its input's shape


def conv_norm(x: jax.Array, features: int, kernel: int, stride: int, train: bool, names: tuple[str, str],
              scale_init: Any = nn.initializers.ones,
              pool: Callable[[jax.Array], jax.Array] | None = None) -> jax.Array:
  """Returns convolution and batch norm of x, in its type; called inside a compact method.

  A norm with frozen statistics is folded into the kernel, see `folded_norm.py`.

  Args:
    x: [M, h, w, C].
    features: output channels.
    kernel: size k of the kernel.
    stride: of the convolution.
    train: normalize by the batch and update the statistics.
    names: of the convolution's and the norm's variables.
    scale_init: initializer of the norm's scale.
    pool: max pooling of the result; None for none.
  """
  pool = pool or (lambda y: y)
  weights = ConvKernel((kernel, kernel, x.shape[-1], features), HE, name=names[0])()
  pad = kernel // 2                  # PyTorch's padding, the same on all four sides
  convolution = lambda weights: convolve(x, weights.astype(x.dtype), stride, ((pad, pad),) * 2)
  if train:
    y = convolution(weights)
    return pool(nn.BatchNorm(use_running_average=False, momentum=0.9, epsilon=BATCH_NORM_EPSILON, dtype=x.dtype,
                             scale_init=scale_init, name=names[1])(y))
  factor, shift = FrozenBatchNorm(features, BATCH_NORM_EPSILON, scale_init, name=names[1])()
  # Max pooling commutes with adding a constant. Added after the pool, its gradient is a sum over fewer elements.
  return (pool(convolution(weights * factor)) + shift).astype(x.dtype)


class BasicBlock(nn.Module):
  """Two 3x3 convolutions with a shortcut: [M, h, w, C] -> [M, h/stride, w/stride, width]."""
  width: int
  stride: int

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    y = nn.relu(conv_norm(x, self.width, 3, self.stride, train, ("conv1", "bn1")))
    # The last scale of a branch is initialized to zero, so that a deep stack starts as the identity.
    y = conv_norm(y, self.width, 3, 1, train, ("conv2", "bn2"), nn.initializers.zeros)
    if x.shape != y.shape:
      x = conv_norm(x, self.width, 1, self.stride, train, SHORTCUT_NAMES)
    return nn.relu(y + x)


class Bottleneck(nn.Module):
  """1x1, 3x3 and 1x1 convolutions with a shortcut: [M, h, w, C] -> [M, h/stride, w/stride, 4 width]."""
  width: int
  stride: int

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    y = nn.relu(conv_norm(x, self.width, 1, 1, train, ("conv1", "bn1")))
    y = nn.relu(conv_norm(y, self.width, 3, self.stride, train, ("conv2", "bn2")))
    y = conv_norm(y, 4 * self.width, 1, 1, train, ("conv3", "bn3"), nn.initializers.zeros)
    if x.shape != y.shape:
      x = conv_norm(x, 4 * self.width, 1, self.stride, train, SHORTCUT_NAMES)
    return nn.relu(y + x)


class ResNet(nn.Module):
  """Normalized images [M, height, width, 3] -> features [M, h, w, C], or some stages of that.

  The stem is a part of the first stage.
  """
  block: type[nn.Module]
  depths: tuple[int, ...]           # number of blocks per stage
  widths: tuple[int, ...]
  strides: tuple[int, ...]          # stride of each stage's first block
  stem_width: int = 64
  stem_stride: int = 2              # 2: a max pool halves again; 4: no pool (its gradient is slow on a CPU)
  dtype: Any = jnp.float32
  remat: bool = False               # recompute each block's activations in the backward pass
  first_stage: int = 0              # from 0; the input of a later stage is the output of the one before
  end_stage: int = 4                # the stage after the last one

  @nn.compact
  def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
    x = images.astype(self.dtype)
    if self.first_stage == 0:
      x = conv_norm(x, self.stem_width, 7, self.stem_stride, train, ("conv1", "bn1"),
                    pool=max_pool if self.stem_stride == 2 else None)                      # [M, height/4, width/4, C]
      # ReLU commutes with max pooling; after the pool it has a quarter of the elements.
      x = nn.relu(x)
    block = nn.remat(self.block, static_argnums=2) if self.remat else self.block
    stages = list(zip(self.depths, self.widths, self.strides))[:self.end_stage]
    for stage in range(self.first_stage, len(stages)):
      depth, width, stride = stages[stage]
      for i in range(depth):
        x = block(width, stride if i == 0 else 1, name=f"layer{stage + 1}_{i}")(x, train)
    return x


def max_pool(x: jax.Array) -> jax.Array:
  # Flax infers the type of `padding` from its default, a string.
  return nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))   # pyright: ignore[reportArgumentType]
