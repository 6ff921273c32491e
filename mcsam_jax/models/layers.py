"""The parts that every transformer here is made of: norms, attention, feed-forward, positions.

Attention is split into `keys_values` and `__call__`, so that a caller who knows
that keys don't change (memory slots, patches, words already written) projects
them once. Layers are pre-norm, as R2GenCMN's are.
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
  """What a query may attend to: keys [..., H, D/H, L], values [..., H, L, D/H], mask [..., 1 or H, 1 or Q, L] or None.

  Keys lie as the product with queries reads them, so that those that are used many times are turned once.
  """
  keys: jax.Array
  values: jax.Array
  mask: jax.Array | None = None


class Norm(nn.Module):
  """Layer normalisation over the last axis, in float32 or wider.

  kind: `layernorm` (variance over D, epsilon inside the root), or `r2gencmn`
    (standard deviation over D - 1, epsilon added to it), which published
    R2GenCMN weights were trained with.
  """
  kind: str = "layernorm"
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
    bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
    centred = at_least_float32(x)
    centred -= centred.mean(-1, keepdims=True)
    if self.kind == "layernorm":
      normed = centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-6)
    else:
      deviation = jnp.sqrt(jnp.square(centred).sum(-1, keepdims=True) / (x.shape[-1] - 1))
      normed = centred / (deviation + 1e-6)
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
    self.drop = Dropout(self.dropout, (-3,))   # heads share what is dropped

  def keys_values(self, x: jax.Array, mask: jax.Array | None = None) -> KeysValues:
    """Projects x [..., L, D], with a mask that broadcasts to [..., H, Q, L] (True: may be seen)."""
    return KeysValues(split_keys(self.key(x), self.num_heads), split_heads(self.value(x), self.num_heads), mask)

  def __call__(self, x: jax.Array, seen: KeysValues, train: bool) -> jax.Array:
    """Returns [..., Q, D]: queries x [..., Q, D] attend to what is `seen`."""
    return self.attend(split_heads(self.query(x), self.num_heads), seen, train)

  def attend(self, query: jax.Array, seen: KeysValues, train: bool) -> jax.Array:
    """Returns [..., Q, D] for projected queries [..., H, Q, D/H]."""
    weights = attention_weights(query, seen)                                      # [..., H, Q, L]
    self.sow("intermediates", "weights", weights)                                 # free unless asked for
    weights = self.drop(weights, deterministic=not train)
    return self.output(merge_heads(weights @ seen.values))

  def joined(self) -> dict[str, jax.Array]:
    """Returns the weights of the three projections side by side: kernel [D, 3D], bias [3D].

    For a few rows at a time one product of three times the width is faster than three.
    """
    parts = [dense.variables["params"] for dense in (self.query, self.key, self.value)]
    return {name: jnp.concatenate([part[name] for part in parts], -1).astype(self.dtype) for name in ("kernel", "bias")}

  def project(self, x: jax.Array, joined: dict[str, jax.Array]) -> tuple[jax.Array, KeysValues]:
    """Returns the queries [..., H, L, D/H], and keys and values, of x [..., L, D]; `joined` is of `joined()`."""
    query, key, value = jnp.split(x @ joined["kernel"] + joined["bias"], 3, axis=-1)
    return split_heads(query, self.num_heads), KeysValues(split_keys(key, self.num_heads),
                                                          split_heads(value, self.num_heads))


class FeedForward(nn.Module):
  """Two linear layers with a ReLU: [..., D] -> [..., D]."""
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
  """Self-attention and feed-forward, each behind a norm and beside a residual."""
  width: int
  num_heads: int
  feedforward_width: int
  dropout: float = 0.0
  norm: str = "layernorm"
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array, train: bool) -> jax.Array:
    """Returns [B, L, D] for x [B, L, D], where mask [B, L] says which positions exist."""
    drop = functools.partial(Dropout(self.dropout), deterministic=not train)
    attention = Attention(self.width, self.num_heads, self.dropout, self.dtype, name="self_attention")
    normed = Norm(self.norm, self.dtype, name="norm_attention")(x)
    x += drop(attention(normed, attention.keys_values(normed, mask[:, None, None, :]), train))
    feedforward = FeedForward(self.width, self.feedforward_width, self.dropout, self.dtype, name="feedforward")
    return x + drop(feedforward(Norm(self.norm, self.dtype, name="norm_feedforward")(x), train))


class Encoder(nn.Module):
  """`num_layers` encoder layers and a last norm: [B, L, D] -> [B, L, D].

  remat: keep each layer's input alone for the gradient, and compute the rest of it again.
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
    make = nn.remat(EncoderLayer, static_argnums=3) if self.remat else EncoderLayer
    for layer in range(self.num_layers):
      x = make(self.width, self.num_heads, self.feedforward_width, self.dropout, self.norm, self.dtype,
               name=f"layer_{layer}")(x, mask, train)
    return Norm(self.norm, self.dtype, name="norm")(x)


def split_heads(x: jax.Array, num_heads: int) -> jax.Array:
  """[..., L, D] -> [..., H, L, D/H]."""
  return jnp.moveaxis(x.reshape(*x.shape[:-1], num_heads, x.shape[-1] // num_heads), -2, -3)


def split_keys(x: jax.Array, num_heads: int) -> jax.Array:
  """[..., L, D] -> [..., H, D/H, L]."""
  return jnp.swapaxes(split_heads(x, num_heads), -1, -2)


def merge_heads(x: jax.Array) -> jax.Array:
  """[..., H, L, D/H] -> [..., L, D]."""
  x = jnp.moveaxis(x, -3, -2)
  return x.reshape(*x.shape[:-2], -1)


def at_least_float32(x: jax.Array) -> jax.Array:
  """Returns x in float32, or as it is where it is wider."""
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def products(query: jax.Array, keys: jax.Array) -> jax.Array:
  """Returns q k, summed in float32 or wider: [..., Q, D] and [..., D, L] -> [..., Q, L]."""
  return jnp.matmul(query, keys, preferred_element_type=jnp.promote_types(query.dtype, jnp.float32))


def attention_weights(query: jax.Array, seen: KeysValues) -> jax.Array:
  """Returns softmax(q k / sqrt(D/H)) [..., H, Q, L] over the keys that may be seen, in the queries' type."""
  scores = products(query, seen.keys) / np.sqrt(query.shape[-1])
  if seen.mask is not None:
    scores = jnp.where(seen.mask, scores, -jnp.inf)
  return jax.nn.softmax(scores, axis=-1).astype(query.dtype)


def sinusoidal_positions(length: int, width: int) -> np.ndarray:
  """Returns float32 [length, width]: sines at even, cosines at odd channels (Vaswani et al., 2017)."""
  angles = np.arange(length)[:, None] * np.exp(np.arange(0, width, 2) * (-np.log(10000.0) / width))
  return np.stack([np.sin(angles), np.cos(angles)], -1).reshape(length, width).astype(np.float32)


def masked_mean(x: jax.Array, mask: jax.Array) -> jax.Array:
  """Returns the mean [B, D] of x [B, L, D] over the positions where mask [B, L]."""
  weights = mask.astype(x.dtype)[..., None]
  return (x * weights).sum(-2) / jnp.maximum(weights.sum(-2), 1)
