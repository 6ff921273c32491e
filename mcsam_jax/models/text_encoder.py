"""The text encoder: reads a whole report bidirectionally for its alignment with the image (training only)."""

from flax import linen as nn
import jax
import jax.numpy as jnp

from mcsam_jax.models import layers


class TextEncoder(nn.Module):
  """Bidirectional transformer over embedded tokens: [B, T, D], mask [B, T] -> [B, T, D].

  Its states only query the memory for the report embedding; they never reach the decoder.
  """
  num_layers: int
  width: int
  num_heads: int
  feedforward_width: int
  max_length: int
  dropout: float = 0.0
  norm: str = "layernorm"
  dtype: jnp.dtype = jnp.float32
  remat: bool = False             # see `layers.TransformerEncoder`

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array, train: bool) -> jax.Array:
    positions = self.param("position_embedding", nn.initializers.normal(0.02), (self.max_length, self.width))
    x = x + positions[:x.shape[1]].astype(self.dtype)
    return layers.TransformerEncoder(self.num_layers, self.width, self.num_heads, self.feedforward_width, self.dropout,
                                     self.norm, self.dtype, self.remat, name="encoder")(x, mask, train)
