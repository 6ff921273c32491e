"""Convolution kernels and frozen batch norms as arrays, so that the one can be multiplied into the other.

Both have the variables of `nn.Conv` and `nn.BatchNorm`. With frozen statistics, a norm is a factor and a shift per
channel. The factor is multiplied into the kernel: then the gradients of kernel and scale are both taken over that small
array. After the convolution, the scale's gradient would keep the convolution's output in memory and read it once more.

Shapes: k x k kernel, C channels.
"""

from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp


class ConvKernel(nn.Module):
  """Returns the kernel [k, k, C_in, C_out] of a convolution."""
  shape: tuple[int, int, int, int]
  init: Any

  @nn.compact
  def __call__(self) -> jax.Array:
    return self.param("kernel", self.init, self.shape)


class FrozenBatchNorm(nn.Module):
  """Returns batch norm by its running statistics as a factor and a shift per channel, both [C]."""
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
