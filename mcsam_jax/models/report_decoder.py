"""Writes the report: a causal transformer over learnable memory tokens and words, reading the patches.

Sequence: N_p prompts, then words. Every position sees all prompts; a word sees
itself and the words before it; prompts see prompts only. Two ways through the
same weights: `__call__` reads a whole report at once (training), `begin` and
`step` write one word at a time. What stays the same for all beams of a study
(projected patches, prompts) is computed by `begin` and lives outside the cache.
"""

from collections.abc import Sequence

from flax import linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from mcsam_jax.models import layers


@flax.struct.dataclass
class Study:
  """What one study shows to every word of its report, a layer each."""
  patches: Sequence[layers.KeysValues]   # [B, H, N, D/H], mask [B, 1, 1, N]
  prompts: Sequence[layers.KeysValues]   # [B, H, N_p, D/H]


class DecoderLayer(nn.Module):
  """Self-attention, cross-attention to the patches, feed-forward; pre-norm with residuals."""
  width: int
  num_heads: int
  feedforward_width: int
  dropout: float = 0.0
  norm: str = "layernorm"
  dtype: jnp.dtype = jnp.float32

  def setup(self):
    self.self_attention, self.cross_attention = (
        layers.Attention(self.width, self.num_heads, self.dropout, self.dtype) for _ in range(2))
    self.feedforward = layers.FeedForward(self.width, self.feedforward_width, self.dropout, self.dtype)
    self.norm_self, self.norm_cross, self.norm_feedforward = (layers.Norm(self.norm, self.dtype) for _ in range(3))
    self.drop = nn.Dropout(self.dropout)

  def own(self, x: jax.Array, mask: jax.Array | None = None) -> layers.KeysValues:
    """Returns the keys and values by which later positions will see x [..., L, D]."""
    return self.self_attention.keys_values(self.norm_self(x), mask)

  def __call__(self, x: jax.Array, seen: Sequence[layers.KeysValues], patches: layers.KeysValues,
               train: bool) -> jax.Array:
    """Returns [..., L, D] for positions x [..., L, D] that see `seen` and the patches."""
    keep = not train
    x += self.drop(self.self_attention(self.norm_self(x), seen, train), deterministic=keep)
    x += self.drop(self.cross_attention(self.norm_cross(x), [patches], train), deterministic=keep)
    return x + self.drop(self.feedforward(self.norm_feedforward(x), train), deterministic=keep)


class ReportDecoder(nn.Module):
  """`num_layers` decoder layers, a last norm, and logits over the vocabulary.

  Shapes: B studies, K beams, N patches, T words, N_p prompts, D width.
  """
  num_layers: int
  width: int
  num_heads: int
  feedforward_width: int
  vocab_size: int
  num_prompts: int                # 0: none
  dropout: float = 0.0
  norm: str = "layernorm"
  dtype: jnp.dtype = jnp.float32

  def setup(self):
    self.layers = [DecoderLayer(self.width, self.num_heads, self.feedforward_width, self.dropout, self.norm,
                                self.dtype) for _ in range(self.num_layers)]
    self.final_norm = layers.Norm(self.norm, self.dtype)
    self.logits = nn.Dense(self.vocab_size, kernel_init=layers.xavier, dtype=self.dtype)
    if self.num_prompts:
      self.prompts = self.param("prompts", nn.initializers.normal(1.0), (self.num_prompts, self.width))

  def __call__(self, words: jax.Array, patches: jax.Array, patch_mask: jax.Array, train: bool) -> jax.Array:
    """Returns logits [B, T, vocabulary] for embedded words [B, T, D], patches [B, N, D], patch_mask [B, N]."""
    length = words.shape[1]
    x = jnp.concatenate([self.prompt_embeddings(words.shape[0]), words], axis=1)  # [B, N_p + T, D]
    place = jnp.arange(self.num_prompts + length)
    causal = (place[None, :] < self.num_prompts) | (place[None, :] <= place[:, None])
    for layer in self.layers:
      shown = layer.cross_attention.keys_values(patches, patch_mask[:, None, None, :])
      x = layer(x, [layer.own(x, causal)], shown, train)
    return self.logits(self.final_norm(x[:, self.num_prompts:]))

  def begin(self, patches: jax.Array, patch_mask: jax.Array) -> Study:
    """Returns what all words of a report will see of its patches [B, N, D] and of the prompts."""
    x = self.prompt_embeddings(patches.shape[0])
    study = Study([], [])
    for layer in self.layers:
      study.patches.append(layer.cross_attention.keys_values(patches, patch_mask[:, None, None, :]))
      study.prompts.append(layer.own(x))
      if self.num_prompts:
        x = layer(x, study.prompts[-1:], study.patches[-1], train=False)
    return study

  def empty_cache(self, batch_size: int, beam_size: int, max_length: int) -> dict:
    """Returns a cache for T words a beam: keys and values [B, K, H, T, D/H] a layer, and the position, 0."""
    shape = (batch_size, beam_size, self.num_heads, max_length, self.width // self.num_heads)
    empty = [layers.KeysValues(jnp.zeros(shape, self.dtype), jnp.zeros(shape, self.dtype)) for _ in self.layers]
    return {"words": empty, "position": jnp.zeros((), jnp.int32)}

  def step(self, words: jax.Array, cache: dict, study: Study) -> tuple[jax.Array, dict]:
    """Returns logits [B, K, vocabulary] after the embedded words [B, K, D] at the cache's position."""
    position = cache["position"]
    written, x = [], words[:, :, None]                                      # [B, K, 1, D]
    for layer, past, patches, prompts in zip(self.layers, cache["words"], study.patches, study.prompts):
      new = layer.own(x)                                                    # [B, K, H, 1, D/H]
      past = layers.KeysValues(
          jax.lax.dynamic_update_slice_in_dim(past.keys, new.keys, position, -2),
          jax.lax.dynamic_update_slice_in_dim(past.values, new.values, position, -2))
      seen = past.replace(mask=jnp.arange(past.keys.shape[-2]) <= position)
      x = layer(x, [beamless(prompts), seen], beamless(patches), train=False)
      written.append(past)
    return self.logits(self.final_norm(x[:, :, 0])), {"words": written, "position": position + 1}

  def prompt_embeddings(self, batch_size: int) -> jax.Array:
    """Returns the learnable memory tokens [B, N_p, D]."""
    if not self.num_prompts:
      return jnp.zeros((batch_size, 0, self.width), self.dtype)
    return jnp.broadcast_to(self.prompts.astype(self.dtype), (batch_size, self.num_prompts, self.width))


def beamless(seen: layers.KeysValues) -> layers.KeysValues:
  """[B, H, L, D/H] -> [B, 1, H, L, D/H], to be broadcast over beams, not copied."""
  return jax.tree.map(lambda leaf: leaf[:, None], seen)
