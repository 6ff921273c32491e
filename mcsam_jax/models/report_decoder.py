"""Writes the report: a causal transformer over learnable memory tokens and words, reading the patches.

Sequence: N_p prompts, then words. Every position sees all prompts; a word sees
itself and the words before it; prompts see prompts only. Two ways through the
same weights: `__call__` reads a whole report at once (training), `begin` and
`step` write one word at a time.

What `step` has written never moves. A beam that takes another's place would
have to take its keys and values along; instead each beam knows its ancestors,
the place in which each of its words was written, and looks at these alone.

Shapes: B studies, K beams, N patches, T words, N_p prompts, L = N_p + T
positions, H heads, D width.
"""

from collections.abc import Sequence

from flax import linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from mcsam_jax.models import layers


@flax.struct.dataclass
class Study:
  """What one study shows to every word of its report, a layer each."""
  patches: Sequence[layers.KeysValues]   # of B studies: keys [B, H, D/H, N], mask [B, 1, 1, N]
  prompts: Sequence[layers.KeysValues]   # keys [B, H, D/H, N_p]


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

  def __call__(self, x: jax.Array, seen: layers.KeysValues, patches: layers.KeysValues, train: bool) -> jax.Array:
    """Returns [B, L, D] for positions x [B, L, D] that see `seen` and the patches."""
    return self.look(self.listen(x, seen, train), patches, train)

  def listen(self, x: jax.Array, seen: layers.KeysValues, train: bool) -> jax.Array:
    """Self-attention: returns [..., L, D] for positions x [..., L, D] that see `seen`."""
    return x + self.drop(self.self_attention(self.norm_self(x), seen, train), deterministic=not train)

  def look(self, x: jax.Array, patches: layers.KeysValues, train: bool) -> jax.Array:
    """Cross-attention and feed-forward: returns [B, L, D] for positions x [B, L, D] of studies with these patches."""
    keep = not train
    x += self.drop(self.cross_attention(self.norm_cross(x), patches, train), deterministic=keep)
    return x + self.drop(self.feedforward(self.norm_feedforward(x), train), deterministic=keep)


class ReportDecoder(nn.Module):
  """`num_layers` decoder layers, a last norm, and logits over the vocabulary."""
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
      x = layer(x, layer.own(x, causal), shown, train)
    return self.logits(self.final_norm(x[:, self.num_prompts:]))

  def begin(self, patches: jax.Array, patch_mask: jax.Array) -> Study:
    """Returns what all words of a report will see of its patches [B, N, D] and of the prompts."""
    x = self.prompt_embeddings(patches.shape[0])
    study = Study([], [])
    for layer in self.layers:
      study.patches.append(layer.cross_attention.keys_values(patches, patch_mask[:, None, None, :]))
      study.prompts.append(layer.own(x))
      if self.num_prompts:
        x = layer(x, study.prompts[-1], study.patches[-1], train=False)
    return study

  def first_cache(self, study: Study, num_beams: int, exchange: bool) -> dict:
    """Returns the cache before the first word: the prompts, and no room for words yet.

    Args:
      exchange: whether beams of a study take each other's place, as `decoding/greedy.py` describes it. Beams that
        never do are cheaper as groups of one: G = B * K groups of K' = 1, else G = B of K' = K.

    Returns:
      words: a layer's keys [G, H, D/H, L * K'] and values [G, H, L * K', D/H], by position, then by the place that
        wrote them.
      position: of the next word, N_p at first.
      beams: with `exchange` the ancestors int32 [B, K, L], -1 where nothing is written yet; else None.
    """
    places = num_beams if exchange else 1

    def spread(prompts, axis):                    # the axis of positions; prompts stand in place 0
      grouped = prompts if exchange else jnp.repeat(prompts, num_beams, axis=0)
      others = [(0, places - 1) if each == axis + 1 else (0, 0) for each in range(5)]
      wide = jnp.pad(jnp.expand_dims(grouped, axis + 1), others)
      return wide.reshape(*wide.shape[:axis], -1, *wide.shape[axis + 2:])

    words = [layers.KeysValues(spread(prompts.keys, 3), spread(prompts.values, 2)) for prompts in study.prompts]
    ancestors = jnp.zeros((study.patches[0].keys.shape[0], num_beams, self.num_prompts), jnp.int32)
    return {"words": words, "position": jnp.int32(self.num_prompts), "beams": ancestors if exchange else None}

  def grow(self, cache: dict, room: int) -> dict:
    """Returns the cache with room for `room` words in all."""
    ancestors, old = cache["beams"], cache["words"][0].values.shape[2]
    places = 1 if ancestors is None else ancestors.shape[1]
    new = (self.num_prompts + room) * places - old

    def widen(past):
      return layers.KeysValues(jnp.pad(past.keys, ((0, 0), (0, 0), (0, 0), (0, new))),
                               jnp.pad(past.values, ((0, 0), (0, 0), (0, new), (0, 0))))
    if ancestors is not None:
      ancestors = jnp.pad(ancestors, ((0, 0), (0, 0), (0, new // places)), constant_values=-1)
    return cache | {"words": [widen(past) for past in cache["words"]], "beams": ancestors}

  def step(self, words: jax.Array, cache: dict, study: Study) -> tuple[jax.Array, dict]:
    """Returns logits [B, K, vocabulary] after the embedded words [B, K, D] at the cache's position, and the cache."""
    position, ancestors = cache["position"], cache["beams"]
    groups, _, size, _ = cache["words"][0].values.shape
    places = words.shape[0] * words.shape[1] // groups
    length = size // places
    if ancestors is None:
      mask = jnp.arange(length) <= position
    else:
      ancestors = ancestors.at[:, :, position].set(np.arange(places))             # a word stands where it is written
      mask = (ancestors[..., None] == np.arange(places)).reshape(groups, 1, places, length * places)

    written, x = [], words                                                        # [B, K, D]
    for layer, past, patches in zip(self.layers, cache["words"], study.patches):
      mine = x.reshape(groups, places, self.width)
      new = layer.own(mine)
      past = layers.KeysValues(
          jax.lax.dynamic_update_slice_in_dim(past.keys, new.keys, position * places, axis=3),
          jax.lax.dynamic_update_slice_in_dim(past.values, new.values, position * places, axis=2))
      x = layer.listen(mine, past.replace(mask=mask), train=False).reshape(words.shape)
      x = layer.look(x, patches, train=False)
      written.append(past)
    return self.logits(self.final_norm(x)), {"words": written, "position": position + 1, "beams": ancestors}

  def prompt_embeddings(self, batch_size: int) -> jax.Array:
    """Returns the learnable memory tokens [B, N_p, D]."""
    if not self.num_prompts:
      return jnp.zeros((batch_size, 0, self.width), self.dtype)
    return jnp.broadcast_to(self.prompts.astype(self.dtype), (batch_size, self.num_prompts, self.width))

