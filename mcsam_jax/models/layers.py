"""Transformer building blocks: norm, attention, feed-forward, encoder, positions.

`Attention` separates the projection of keys and values (`project_kv`) from the attention itself, so that keys that
don't change (memory slots, patches, tokens already written) are projected once. Layers are pre-norm, as in R2GenCMN.

Shapes: B studies, L positions (patches or tokens), Q queries, H heads, D width.
"""

import functools

from flax import linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from mcsam_jax.models.dropout import Dropout

xavier = nn.initializers.xavier_uniform()


@flax.struct.dataclass
class KeysValues:
  """Keys [..., H, D/H, L], values [..., H, L, D/H] and a mask [..., 1 or H, 1 or Q, L] (True: visible), or None.

  Keys are stored transposed, as the product with queries reads them, so that keys used many times are transposed once.
  """
  keys: jax.Array
  values: jax.Array
  mask: jax.Array | None = None


class LayerNorm(nn.Module):
  """Layer normalization over the last axis, in float32 or wider.

  kind: `layernorm` (variance over D, epsilon inside the root), or `r2gencmn` (standard deviation over D - 1, epsilon
    added to it), with which published R2GenCMN weights were trained.
  """
  kind: str = "layernorm"
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
    bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
    centered = at_least_float32(x)
    centered -= centered.mean(-1, keepdims=True)
    if self.kind == "layernorm":
      normed = centered * jax.lax.rsqrt(jnp.square(centered).mean(-1, keepdims=True) + 1e-6)
    else:
      deviation = jnp.sqrt(jnp.square(centered).sum(-1, keepdims=True) / (x.shape[-1] - 1))
      normed = centered / (deviation + 1e-6)
    return (normed * scale + bias).astype(self.dtype)


class Attention(nn.Module):
  """Multi-head scaled dot-product attention; scores and softmax in float32."""
  width: int
  num_heads: int
  dropout: float = 0.0
  dtype: jnp.dtype = jnp.float32

  def setup(self):
    self.query, self.key, self.value, self.output = (
        nn.Dense(self.width, kernel_init=xavier, dtype=self.dtype) for _ in range(4))
    self.drop = Dropout(self.dropout, broadcast_dims=(-3,))    # one mask for all heads

  def project_kv(self, x: jax.Array, mask: jax.Array | None = None) -> KeysValues:
    """Returns keys and values of x [..., L, D], with a mask that broadcasts to [..., H, Q, L] (True: visible)."""
    return KeysValues(split_heads_transposed(self.key(x), self.num_heads), split_heads(self.value(x), self.num_heads),
                      mask)

  def __call__(self, x: jax.Array, kv: KeysValues, train: bool) -> jax.Array:
    """Returns [..., Q, D] for queries x [..., Q, D]."""
    weights = attention_weights(split_heads(self.query(x), self.num_heads), kv)   # [..., H, Q, L]
    self.sow("intermediates", "weights", weights)                                 # free unless requested
    weights = self.drop(weights, deterministic=not train)
    return self.output(merge_heads(weights @ kv.values))


class FeedForward(nn.Module):
  """Two linear layers with a ReLU between them: [..., D] -> [..., D]."""
  width: int
  hidden_width: int
  dropout: float = 0.0
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    x = nn.relu(nn.Dense(self.hidden_width, kernel_init=xavier, dtype=self.dtype, name="hidden")(x))
    x = Dropout(self.dropout)(x, deterministic=not train)
    return nn.Dense(self.width, kernel_init=xavier, dtype=self.dtype, name="output")(x)


class EncoderLayer(nn.Module):
  """Self-attention and feed-forward; pre-norm with residuals."""
  width: int
  num_heads: int
  feedforward_width: int
  dropout: float = 0.0
  norm: str = "layernorm"
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array, train: bool) -> jax.Array:
    """Returns [B, L, D] for x [B, L, D], where mask [B, L] is False at absent positions."""
    drop = functools.partial(Dropout(self.dropout), deterministic=not train)
    attention = Attention(self.width, self.num_heads, self.dropout, self.dtype, name="self_attention")
    normed = LayerNorm(self.norm, self.dtype, name="norm_attention")(x)
    x += drop(attention(normed, attention.project_kv(normed, mask[:, None, None, :]), train))
    feedforward = FeedForward(self.width, self.feedforward_width, self.dropout, self.dtype, name="feedforward")
    return x + drop(feedforward(LayerNorm(self.norm, self.dtype, name="norm_feedforward")(x), train))


class TransformerEncoder(nn.Module):
  """Encoder layers and a final norm: [B, L, D], mask [B, L] -> [B, L, D].

  remat: recompute each layer's activations in the backward pass instead of keeping them.
  """
  num_layers: int
  width: int
  num_heads: int
  feedforward_width: int
  dropout: float = 0.0
  norm: str = "layernorm"
  dtype: jnp.dtype = jnp.float32
  remat: bool = False

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array, train: bool) -> jax.Array:
    layer = nn.remat(EncoderLayer, static_argnums=3) if self.remat else EncoderLayer
    for index in range(self.num_layers):
      x = layer(self.width, self.num_heads, self.feedforward_width, self.dropout, self.norm, self.dtype,
                name=f"layers_{index}")(x, mask, train)
    return LayerNorm(self.norm, self.dtype, name="final_norm")(x)


def split_heads(x: jax.Array, num_heads: int) -> jax.Array:
  """Returns [..., H, L, D/H] for x [..., L, D]."""
  return jnp.moveaxis(x.reshape(*x.shape[:-1], num_heads, x.shape[-1] // num_heads), -2, -3)


def split_heads_transposed(x: jax.Array, num_heads: int) -> jax.Array:
  """Returns [..., H, D/H, L] for x [..., L, D], the layout of keys."""
  return jnp.swapaxes(split_heads(x, num_heads), -1, -2)


def merge_heads(x: jax.Array) -> jax.Array:
  """Returns [..., L, D] for x [..., H, L, D/H]."""
  x = jnp.moveaxis(x, -3, -2)
  return x.reshape(*x.shape[:-2], -1)


def at_least_float32(x: jax.Array) -> jax.Array:
  """Returns x in float32, or unchanged if its type is wider."""
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def qk_scores(query: jax.Array, keys: jax.Array) -> jax.Array:
  """Returns q k [..., Q, L], accumulated in float32 or wider, for query [..., Q, D] and keys [..., D, L]."""
  return jnp.matmul(query, keys, preferred_element_type=jnp.promote_types(query.dtype, jnp.float32))


def attention_weights(query: jax.Array, kv: KeysValues) -> jax.Array:
  """Returns softmax(q k / sqrt(D/H)) [..., H, Q, L] over the visible keys, in the queries' type."""
  scores = qk_scores(query, kv.keys) / np.sqrt(query.shape[-1])
  if kv.mask is not None:
    scores = jnp.where(kv.mask, scores, -jnp.inf)
  return jax.nn.softmax(scores, axis=-1).astype(query.dtype)


def attend(query: jax.Array, kv: KeysValues) -> jax.Array:
  """Returns the weighted values [..., Q, D] of all heads, for queries [..., H, Q, D/H]."""
  return merge_heads(attention_weights(query, kv) @ kv.values)


def sinusoidal_positions(length: int, width: int) -> np.ndarray:
  """Returns float32 [length, width]: sines at even, cosines at odd channels (Vaswani et al., 2017)."""
  angles = np.arange(length)[:, None] * np.exp(np.arange(0, width, 2) * (-np.log(10000.0) / width))
  return np.stack([np.sin(angles), np.cos(angles)], -1).reshape(length, width).astype(np.float32)


def masked_mean(x: jax.Array, mask: jax.Array) -> jax.Array:
  """Returns the mean [B, D] of x [B, L, D] over the positions where mask [B, L] is True."""
  weights = mask.astype(x.dtype)[..., None]
  return (x * weights).sum(-2) / jnp.maximum(weights.sum(-2), 1)


def masked_max(x: jax.Array, mask: jax.Array) -> jax.Array:
  """Returns the maximum [B, D] of x [B, L, D] over the positions where mask [B, L] is True; 0 where it never is."""
  maximum = jnp.where(mask[..., None], x, jnp.finfo(x.dtype).min).max(-2)
  return jnp.where(mask.any(-1, keepdims=True), maximum, 0)
