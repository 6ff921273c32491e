"""Residual networks: images in, the feature map before the average pool out.

`ResNet` with bottleneck blocks follows torchvision (He et al. 2016, "v1.5": the stride sits in the
3x3 convolution, padding is symmetric), so that weights trained there give the same numbers here;
submodules carry torchvision's names for the same reason. With basic blocks it is the small network
that learns phantoms from scratch on a CPU.

Shapes: M images, H x W pixels, h x w patches, C channels.
"""

from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

HE = nn.initializers.variance_scaling(2.0, "fan_out", "truncated_normal")


def conv(features: int, kernel: int, stride: int, dtype: Any, name: str) -> nn.Conv:
  """Returns a convolution without bias whose padding is PyTorch's: the same on all four sides."""
  return nn.Conv(features, (kernel, kernel), (stride, stride), padding=kernel // 2, use_bias=False,
                 kernel_init=HE, dtype=dtype, name=name)


def batch_norm(train: bool, dtype: Any, name: str, **kwargs) -> nn.BatchNorm:
  """Returns a batch normalisation that keeps 0.9 of its running statistics at each training step."""
  return nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=dtype, name=name,
                      **kwargs)


class BasicBlock(nn.Module):
  """Two 3x3 convolutions and a shortcut: [M, h, w, C] -> [M, h/stride, w/stride, width]."""
  width: int
  stride: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    y = conv(self.width, 3, self.stride, self.dtype, "conv1")(x)
    y = nn.relu(batch_norm(train, self.dtype, "bn1")(y))
    y = conv(self.width, 3, 1, self.dtype, "conv2")(y)
    # The last scale of a branch starts at zero, so that a deep stack starts as its shortcuts.
    y = batch_norm(train, self.dtype, "bn2", scale_init=nn.initializers.zeros)(y)
    return nn.relu(y + shortcut(x, y.shape, self.stride, train, self.dtype))


class Bottleneck(nn.Module):
  """1x1, 3x3 and 1x1 convolutions and a shortcut: [M, h, w, C] -> [M, h/stride, w/stride, 4 width]."""
  width: int
  stride: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    y = conv(self.width, 1, 1, self.dtype, "conv1")(x)
    y = nn.relu(batch_norm(train, self.dtype, "bn1")(y))
    y = conv(self.width, 3, self.stride, self.dtype, "conv2")(y)
    y = nn.relu(batch_norm(train, self.dtype, "bn2")(y))
    y = conv(4 * self.width, 1, 1, self.dtype, "conv3")(y)
    y = batch_norm(train, self.dtype, "bn3", scale_init=nn.initializers.zeros)(y)
    return nn.relu(y + shortcut(x, y.shape, self.stride, train, self.dtype))


def shortcut(x: jax.Array, shape: tuple[int, ...], stride: int, train: bool, dtype: Any) -> jax.Array:
  """Returns `x`, projected where a block changes its shape; called inside a block's compact method."""
  if x.shape == shape:
    return x
  x = conv(shape[-1], 1, stride, dtype, "downsample_0")(x)
  return batch_norm(train, dtype, "downsample_1")(x)


class ResNet(nn.Module):
  """Normalised images [M, H, W, 3] -> features [M, h, w, C]."""
  block: type[nn.Module]
  depths: tuple[int, ...]           # blocks of each stage
  widths: tuple[int, ...]
  strides: tuple[int, ...]          # of the first block of each stage
  stem_width: int = 64
  stem_stride: int = 2              # 2: a max pool halves again; 4: no pool, whose gradient is slow on a CPU
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
    x = conv(self.stem_width, 7, self.stem_stride, self.dtype, "conv1")(images)
    x = nn.relu(batch_norm(train, self.dtype, "bn1")(x))
    if self.stem_stride == 2:
      x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))                  # [M, H/4, W/4, C]
    for stage, (depth, width, stride) in enumerate(zip(self.depths, self.widths, self.strides), 1):
      for i in range(depth):
        x = self.block(width, stride if i == 0 else 1, self.dtype, name=f"layer{stage}_{i}")(x, train)
    return x
