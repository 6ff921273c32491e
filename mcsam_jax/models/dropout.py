"""Dropout with random bits that are cheap to generate and to compile, and that don't depend on the sharding.

`nn.Dropout` draws with Threefry, a cipher: about sixty operations per number, inlined into each of the loops that XLA
fuses it into. On a TPU that is a large part of the time to compile a training step. Dropout needs no cipher: here a
number is a hash of a key and of the element's position in the array, a dozen operations.
"""

from collections.abc import Sequence

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np


class Dropout(nn.Module):
  """Sets a fraction `rate` of the elements to zero and divides the others by 1 - rate.

  broadcast_dims: axes along which all elements share one draw.
  """
  rate: float
  broadcast_dims: tuple[int, ...] = ()

  @nn.compact
  def __call__(self, x: jax.Array, deterministic: bool) -> jax.Array:
    if deterministic or not self.rate:
      return x
    shape = list(x.shape)
    for axis in self.broadcast_dims:
      shape[axis] = 1
    return jnp.where(self.keep_mask(shape), x / (1 - self.rate), 0)

  def keep_mask(self, shape: Sequence[int]) -> jax.Array:
    """Returns bool [*shape], False for elements to drop; each call draws anew."""
    return random_bits(self.make_rng("dropout"), shape) >= np.uint32(round(self.rate * 2**32))


def random_bits(key: jax.Array, shape: Sequence[int]) -> jax.Array:
  """Returns uint32 [*shape], a hash of the key and of each element's row and column.

  Rows are numbered through all axes but the last.
  """
  key = jax.lax.optimization_barrier(jax.random.key_data(key).astype(jnp.uint32))     # computed once, not at every use
  index = lambda axis, shape: jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
  rows = (*shape[:-1], 1)
  row = sum((index(axis, rows) * np.uint32(np.prod(shape[axis + 1:-1], dtype=np.int64) % 2**32)
             for axis in range(len(shape) - 1)), jnp.zeros(rows, jnp.uint32))
  row_hash = mix_bits(mix_bits(row ^ key[0]) + key[-1])
  column = index(len(shape) - 1, (1,) * (len(shape) - 1) + (shape[-1],))
  return mix_bits(mix_bits(column + key[0]) ^ row_hash)


def mix_bits(x: jax.Array) -> jax.Array:
  """Returns uint32 numbers in which each bit depends on all bits of x: a bijection (lowbias32, Wellons, 2018).

  The constants are those of https://github.com/skeeto/hash-prospector.
  """
  for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
    x = (x ^ (x >> shift)) * np.uint32(factor)
  return x ^ (x >> 16)
