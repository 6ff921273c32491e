"""Dropout whose draws cost little to make and to compile, and don't depend on how an array lies over devices.

`nn.Dropout` draws with Threefry, a cipher: some sixty operations for a number, written out in each of the loops that
XLA fuses it into. On a TPU that is a good part of the time that a training step takes to compile. What to drop needs no
cipher: here a number is a hash of a key and of the element's place in the array, a dozen operations.
"""

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np


class Dropout(nn.Module):
  """Sets a share of the elements to zero and scales the others up by what is missing.

  broadcast_dims: axes along which all elements share their draw.
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
    return jnp.where(self.kept(shape), x / (1 - self.rate), 0)

  def kept(self, shape: tuple[int, ...]) -> jax.Array:
    """Returns bool [*shape], False for the share that is dropped; another draw at each call."""
    return random_words(self.make_rng("dropout"), shape) >= np.uint32(round(self.rate * 2**32))


def random_words(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Returns uint32 [*shape], a hash of the key and of each element's row and column.

  Rows are numbered through all axes but the last.
  """
  key = jax.lax.optimization_barrier(jax.random.key_data(key).astype(jnp.uint32))     # made once, not at every use
  place = lambda axis, shape: jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
  rows = (*shape[:-1], 1)
  row = sum((place(axis, rows) * np.uint32(np.prod(shape[axis + 1:-1], dtype=np.int64) % 2**32)
             for axis in range(len(shape) - 1)), jnp.zeros(rows, jnp.uint32))
  of_row = scramble(scramble(row ^ key[0]) + key[-1])
  return scramble(scramble(place(len(shape) - 1, (1,) * (len(shape) - 1) + (shape[-1],)) + key[0]) ^ of_row)


def scramble(x: jax.Array) -> jax.Array:
  """Returns uint32 numbers, each bit of which hangs on all of x's: a bijection (lowbias32, Wellons, 2018).

  Its constants are those of https://github.com/skeeto/hash-prospector.
  """
  for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
    x = (x ^ (x >> shift)) * np.uint32(factor)
  return x ^ (x >> 16)
