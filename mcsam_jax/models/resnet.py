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


class Kernel(nn.Module):
  """The kernel [k, k, C in, C out] of a convolution, by the name that weights files know."""
  shape: tuple[int, int, int, int]

  @nn.compact
  def __call__(self) -> jax.Array:
    return self.param("kernel", HE, self.shape)


class FrozenNorm(nn.Module):
  """Batch norm by its running statistics, as the factor and the shift [C] that it then is for each channel."""
  channels: int
  epsilon: float
  scale_init: Any = nn.initializers.ones

  @nn.compact
  def __call__(self) -> tuple[jax.Array, jax.Array]:
    shape = (self.channels,)
    scale, bias = self.param("scale", self.scale_init, shape), self.param("bias", nn.initializers.zeros, shape)
    mean = self.variable("batch_stats", "mean", jnp.zeros, shape).value
    var = self.variable("batch_stats", "var", jnp.ones, shape).value
    factor = scale * jax.lax.rsqrt(var + self.epsilon)
    return factor, bias - mean * factor


def conv_norm(x: jax.Array, features: int, kernel: int, stride: int, train: bool, dtype: Any, names: tuple[str, str],
              scale_init: Any = nn.initializers.ones) -> jax.Array:
  """Returns a convolution and its batch norm, whose variables get `names`; called in a compact method.

  The padding is PyTorch's: the same on all four sides.
  """
  weights = Kernel((kernel, kernel, x.shape[-1], features), name=names[0])()
  if train:
    y = convolve(x, weights, stride, kernel // 2, dtype)
    return nn.BatchNorm(use_running_average=False, momentum=0.9, epsilon=1e-5, dtype=dtype, scale_init=scale_init,
                        name=names[1])(y)
  factor, shift = FrozenNorm(features, 1e-5, scale_init, name=names[1])()
  return (convolve(x, weights * factor, stride, kernel // 2, dtype) + shift).astype(dtype)


def convolve(x: jax.Array, kernel: jax.Array, stride: int, pad: int, dtype: Any) -> jax.Array:
  return jax.lax.conv_general_dilated(x.astype(dtype), kernel.astype(dtype), (stride, stride), [(pad, pad)] * 2,
                                      dimension_numbers=("NHWC", "HWIO", "NHWC"))


class BasicBlock(nn.Module):
  """Two 3x3 convolutions and a shortcut: [M, h, w, C] -> [M, h/stride, w/stride, width]."""
  width: int
  stride: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    y = nn.relu(conv_norm(x, self.width, 3, self.stride, train, self.dtype, ("conv1", "bn1")))
    # The last scale of a branch starts at zero, so that a deep stack starts as its shortcuts.
    y = conv_norm(y, self.width, 3, 1, train, self.dtype, ("conv2", "bn2"), nn.initializers.zeros)
    return nn.relu(y + shortcut(x, y.shape, self.stride, train, self.dtype))


class Bottleneck(nn.Module):
  """1x1, 3x3 and 1x1 convolutions and a shortcut: [M, h, w, C] -> [M, h/stride, w/stride, 4 width]."""
  width: int
  stride: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    y = nn.relu(conv_norm(x, self.width, 1, 1, train, self.dtype, ("conv1", "bn1")))
    y = nn.relu(conv_norm(y, self.width, 3, self.stride, train, self.dtype, ("conv2", "bn2")))
    y = conv_norm(y, 4 * self.width, 1, 1, train, self.dtype, ("conv3", "bn3"), nn.initializers.zeros)
    return nn.relu(y + shortcut(x, y.shape, self.stride, train, self.dtype))


def shortcut(x: jax.Array, shape: tuple[int, ...], stride: int, train: bool, dtype: Any) -> jax.Array:
  """Returns `x`, projected where a block changes its shape; called inside a block's compact method."""
  if x.shape == shape:
    return x
  return conv_norm(x, shape[-1], 1, stride, train, dtype, ("downsample_0", "downsample_1"))


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
    x = nn.relu(conv_norm(images, self.stem_width, 7, self.stem_stride, train, self.dtype, ("conv1", "bn1")))
    if self.stem_stride == 2:
      x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))                  # [M, H/4, W/4, C]
    for stage, (depth, width, stride) in enumerate(zip(self.depths, self.widths, self.strides), 1):
      for i in range(depth):
        x = self.block(width, stride if i == 0 else 1, self.dtype, name=f"layer{stage}_{i}")(x, train)
    return x
