"""Residual networks: images in, the feature map before the average pool out.

`ResNet` with bottleneck blocks follows torchvision (He et al. 2016, "v1.5": the stride sits in the
3x3 convolution, padding is symmetric), so that weights trained there give the same numbers here;
submodules carry torchvision's names for the same reason. With basic blocks it is the small network
that learns phantoms from scratch on a CPU.

Shapes: M images, H x W pixels, h x w patches, C channels.
"""

from collections.abc import Callable
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

HE = nn.initializers.variance_scaling(2.0, "fan_out", "truncated_normal")
EPSILON = 1e-5                                  # of batch norm
SHORTCUT = ("downsample_0", "downsample_1")     # where a block changes the shape of its input


class Kernel(nn.Module):
  """The kernel [k, k, C in, C out] of a convolution."""
  shape: tuple[int, int, int, int]

  @nn.compact
  def __call__(self) -> jax.Array:
    return self.param("kernel", HE, self.shape)


class FrozenNorm(nn.Module):
  """Batch norm by its running statistics: the factor and the shift [C] that it then is for each channel."""
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


def convolve(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
  """Returns the convolution in the type of `x`; the padding is PyTorch's, the same on all four sides."""
  pad = kernel.shape[0] // 2
  return jax.lax.conv_general_dilated(x, kernel.astype(x.dtype), (stride, stride), [(pad, pad)] * 2,
                                      dimension_numbers=("NHWC", "HWIO", "NHWC"))


def conv_norm(x: jax.Array, features: int, kernel: int, stride: int, train: bool, names: tuple[str, str],
              scale_init: Any = nn.initializers.ones,
              pool: Callable[[jax.Array], jax.Array] | None = None) -> jax.Array:
  """Returns a convolution and batch norm of `x`, in its type; called inside a compact method.

  By frozen statistics, a norm is a factor and a shift for each channel. The factor goes into the kernel: then the
  gradients of kernel and scale are both taken over that small array. Behind the convolution, the scale's gradient
  would keep its output in memory and read it once more.

  Args:
    names: of the convolution's and the norm's variables.
    pool: takes maxima of the result.
  """
  pool = pool or (lambda y: y)
  weights = Kernel((kernel, kernel, x.shape[-1], features), name=names[0])()
  if train:
    y = convolve(x, weights, stride)
    return pool(nn.BatchNorm(use_running_average=False, momentum=0.9, epsilon=EPSILON, dtype=x.dtype,
                             scale_init=scale_init, name=names[1])(y))
  factor, shift = FrozenNorm(features, EPSILON, scale_init, name=names[1])()
  # Maxima don't mind whether a constant is added before or behind them. Behind, its gradient is a sum of fewer.
  return (pool(convolve(x, weights * factor, stride)) + shift).astype(x.dtype)


class BasicBlock(nn.Module):
  """Two 3x3 convolutions and a shortcut: [M, h, w, C] -> [M, h/stride, w/stride, width]."""
  width: int
  stride: int

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    y = nn.relu(conv_norm(x, self.width, 3, self.stride, train, ("conv1", "bn1")))
    # The last scale of a branch starts at zero, so that a deep stack starts as its shortcuts.
    y = conv_norm(y, self.width, 3, 1, train, ("conv2", "bn2"), nn.initializers.zeros)
    if x.shape != y.shape:
      x = conv_norm(x, self.width, 1, self.stride, train, SHORTCUT)
    return nn.relu(y + x)


class Bottleneck(nn.Module):
  """1x1, 3x3 and 1x1 convolutions and a shortcut: [M, h, w, C] -> [M, h/stride, w/stride, 4 width]."""
  width: int
  stride: int

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    y = nn.relu(conv_norm(x, self.width, 1, 1, train, ("conv1", "bn1")))
    y = nn.relu(conv_norm(y, self.width, 3, self.stride, train, ("conv2", "bn2")))
    y = conv_norm(y, 4 * self.width, 1, 1, train, ("conv3", "bn3"), nn.initializers.zeros)
    if x.shape != y.shape:
      x = conv_norm(x, 4 * self.width, 1, self.stride, train, SHORTCUT)
    return nn.relu(y + x)


class ResNet(nn.Module):
  """Normalised images [M, H, W, 3] -> features [M, h, w, C]."""
  block: type[nn.Module]
  depths: tuple[int, ...]           # blocks of each stage
  widths: tuple[int, ...]
  strides: tuple[int, ...]          # of the first block of each stage
  stem_width: int = 64
  stem_stride: int = 2              # 2: a max pool halves again; 4: no pool, whose gradient is slow on a CPU
  dtype: Any = jnp.float32
  remat: bool = False               # keep a block's input alone for the gradient, and compute the rest of it again

  @nn.compact
  def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
    x = conv_norm(images.astype(self.dtype), self.stem_width, 7, self.stem_stride, train, ("conv1", "bn1"),
                  pool=max_pool if self.stem_stride == 2 else None)                        # [M, H/4, W/4, C]
    # A maximum of ReLUs is the ReLU of the maximum, which has a quarter of the values.
    x = nn.relu(x)
    block = nn.remat(self.block, static_argnums=2) if self.remat else self.block
    for stage, (depth, width, stride) in enumerate(zip(self.depths, self.widths, self.strides), 1):
      for i in range(depth):
        x = block(width, stride if i == 0 else 1, name=f"layer{stage}_{i}")(x, train)
    return x


def max_pool(x: jax.Array) -> jax.Array:
  return nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
