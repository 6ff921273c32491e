"""Reads a whole report, both ways, so that it can be compared with its image. Training only."""

from flax import linen as nn
import jax
import jax.numpy as jnp

from mcsam_jax.models import layers


class TextEncoder(nn.Module):
  """Bidirectional transformer over embedded words: [B, T, D], mask [B, T] -> [B, T, D].

  Nothing of it reaches the decoder: its states only query the memory for the
  report's code.
  """
  num_layers: int
  width: int
  num_heads: int
  feedforward_width: int
  max_length: int
  dropout: float = 0.0
  norm: str = "layernorm"
  dtype: jnp.dtype = jnp.float32
  remat: bool = False             # see `layers.Encoder`

  @nn.compact
  def __call__(self, words: jax.Array, mask: jax.Array, train: bool) -> jax.Array:
    positions = self.param("positions", nn.initializers.normal(0.02), (self.max_length, self.width))
    x = words + positions[:words.shape[1]].astype(self.dtype)
    return layers.Encoder(self.num_layers, self.width, self.num_heads, self.feedforward_width, self.dropout,
                          self.norm, self.dtype, self.remat, name="encoder")(x, mask, train)
