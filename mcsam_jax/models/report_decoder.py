"""Writes the report: a causal transformer over learnable memory tokens and words, reading the patches.

Sequence: N_p prompts, then words. Every position sees all prompts; a word sees
itself and the words before it; prompts see prompts only. Two ways through the
same weights: `__call__` reads a whole report at once (training), `begin` and
`step` write one word at a time.

What `step` has written never moves. A beam that takes another's place would
have to take its keys and values along; instead each beam knows which nodes of
the cache are its own past, and sees these alone. Beams share what they have in
common, and a node that no beam sees any more is written over: a study's cache
holds the tree of its beams' words, which is little larger than one report.

Shapes: B studies, K beams, N patches, T words, N_p prompts, C nodes of the
cache (prompts first), G trees of nodes, H heads, D width.
"""

from collections.abc import Sequence

from flax import linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from mcsam_jax.models import layers
from mcsam_jax.models.dropout import Dropout


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
    self.drop = Dropout(self.dropout)

  def own(self, x: jax.Array, mask: jax.Array | None = None) -> layers.KeysValues:
    """Returns the keys and values by which later positions will see x [..., L, D]."""
    return self.self_attention.keys_values(self.norm_self(x), mask)

  def __call__(self, x: jax.Array, seen: layers.KeysValues, patches: layers.KeysValues, train: bool) -> jax.Array:
    """Returns [B, L, D] for positions x [B, L, D] that see `seen` and the patches."""
    x += self.drop(self.self_attention(self.norm_self(x), seen, train), deterministic=not train)
    return self.look(x, patches, train)

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
  num_memory_tokens: int                # 0: none
  dropout: float = 0.0
  norm: str = "layernorm"
  dtype: jnp.dtype = jnp.float32
  remat: bool = False             # keep a layer's input alone for the gradient, see `layers.Encoder`

  def setup(self):
    make = nn.remat(DecoderLayer, static_argnums=4) if self.remat else DecoderLayer
    self.layers = [make(self.width, self.num_heads, self.feedforward_width, self.dropout, self.norm, self.dtype)
                   for _ in range(self.num_layers)]
    self.final_norm = layers.Norm(self.norm, self.dtype)
    self.logits = nn.Dense(self.vocab_size, kernel_init=layers.xavier, dtype=self.dtype)
    if self.num_memory_tokens:
      self.prompts = self.param("prompts", nn.initializers.normal(1.0), (self.num_memory_tokens, self.width))

  def __call__(self, words: jax.Array, patches: jax.Array, patch_mask: jax.Array, train: bool) -> jax.Array:
    """Returns logits [B, T, vocabulary] for embedded words [B, T, D], patches [B, N, D], patch_mask [B, N]."""
    length = words.shape[1]
    x = jnp.concatenate([self.prompt_embeddings(words.shape[0]), words], axis=1)  # [B, N_p + T, D]
    place = jnp.arange(self.num_memory_tokens + length)
    causal = (place[None, :] < self.num_memory_tokens) | (place[None, :] <= place[:, None])
    for layer in self.layers:
      shown = layer.cross_attention.keys_values(patches, patch_mask[:, None, None, :])
      x = layer(x, layer.own(x, causal), shown, train)
    return self.logits(self.final_norm(x[:, self.num_memory_tokens:]))

  def begin(self, patches: jax.Array, patch_mask: jax.Array) -> Study:
    """Returns what all words of a report will see of its patches [B, N, D] and of the prompts."""
    x = self.prompt_embeddings(patches.shape[0])
    study = Study([], [])
    for layer in self.layers:
      study.patches.append(layer.cross_attention.keys_values(patches, patch_mask[:, None, None, :]))
      study.prompts.append(layer.own(x))
      if self.num_memory_tokens:
        x = layer(x, study.prompts[-1], study.patches[-1], train=False)
    return study

  def init_cache(self, study: Study, num_beams: int, exchange: bool) -> dict:
    """Returns the cache before the first word: the prompts are its nodes, and there is no room for words yet.

    Args:
      exchange: whether beams of a study take each other's place, as `decoding/greedy.py` describes it. Beams that
        never do have trees of their own, G = B * K of them; else a study's beams share one, G = B.

    Returns:
      words: a layer's keys [G, H, D/H, C] and values [G, H, C, D/H].
      position: of the next word, N_p at first.
      beams: with `exchange` bool [B, K, C], the nodes that a beam sees; else None: all up to its position.
    """
    words = study.prompts
    if not exchange:
      words = jax.tree.map(lambda leaf: jnp.repeat(leaf, num_beams, axis=0), words)
    visible = jnp.ones((study.patches[0].keys.shape[0], num_beams, self.num_memory_tokens), bool)
    return {"words": words, "position": jnp.int32(self.num_memory_tokens), "beams": visible if exchange else None}

  def grow(self, cache: dict, room: int) -> dict:
    """Returns the cache with room for `room` nodes beside the prompts."""
    visible, new = cache["beams"], self.num_memory_tokens + room - cache["words"][0].values.shape[2]

    def widen(past):
      return layers.KeysValues(jnp.pad(past.keys, ((0, 0), (0, 0), (0, 0), (0, new))),
                               jnp.pad(past.values, ((0, 0), (0, 0), (0, new), (0, 0))))
    if visible is not None:
      visible = jnp.pad(visible, ((0, 0), (0, 0), (0, new)))
    return cache | {"words": [widen(past) for past in cache["words"]], "beams": visible}

  def full(self, cache: dict) -> jax.Array:
    """Returns whether `step` would find no room for a word of each beam (bool scalar)."""
    visible, num_nodes = cache["beams"], cache["words"][0].values.shape[2]
    if visible is None:
      return cache["position"] >= num_nodes
    return jnp.any(num_nodes - visible.any(1).sum(-1) < visible.shape[1])

  def projections(self) -> list[dict[str, jax.Array]]:
    """Returns the weights by which words become queries, keys and values in `step`, a layer each."""
    return [layer.self_attention.joined() for layer in self.layers]

  def step(self, words: jax.Array, cache: dict, study: Study,
           projections: Sequence[dict[str, jax.Array]]) -> tuple[jax.Array, dict]:
    """Returns logits [B, K, vocabulary] after the embedded words [B, K, D] at the cache's position, and the cache."""
    position, visible = cache["position"], cache["beams"]
    groups, _, num_nodes, _ = cache["words"][0].values.shape
    if visible is None:
      mask, free = jnp.arange(num_nodes) <= position, None
    else:
      free = first_free(visible.any(1), visible.shape[1])                         # [B, K]
      visible |= free[..., None] == np.arange(num_nodes)
      mask = visible[:, None]                                                     # [B, 1, K, C]

    written, x = [], words                                                        # [B, K, D]
    for layer, past, patches, weights in zip(self.layers, cache["words"], study.patches, projections):
      query, new = layer.self_attention.project(layer.norm_self(x.reshape(groups, -1, self.width)), weights)
      past = write_at(past, new, position, free)
      x += layer.self_attention.attend(query, past.replace(mask=mask), train=False).reshape(words.shape)
      x = layer.look(x, patches, train=False)
      written.append(past)
    return self.logits(self.final_norm(x)), {"words": written, "position": position + 1, "beams": visible}

  def prompt_embeddings(self, batch_size: int) -> jax.Array:
    """Returns the learnable memory tokens [B, N_p, D]."""
    if not self.num_memory_tokens:
      return jnp.zeros((batch_size, 0, self.width), self.dtype)
    return jnp.broadcast_to(self.prompts.astype(self.dtype), (batch_size, self.num_memory_tokens, self.width))


def first_free(used: jax.Array, count: int) -> jax.Array:
  """Returns the numbers int32 [B, count] of the first nodes that aren't used, for used [B, C]."""
  nth = jnp.cumsum(~used, axis=-1)                                                # at a free node: how many up to it
  return jnp.argmax(nth[:, None] == np.arange(1, count + 1)[:, None], axis=-1)


def write_at(past: layers.KeysValues, new: layers.KeysValues, position: jax.Array,
             nodes: jax.Array | None) -> layers.KeysValues:
  """Returns the C nodes of `past` with K `new` ones: at `nodes` [G, K], or, where that is None, at `position`."""
  if nodes is None:
    return layers.KeysValues(jax.lax.dynamic_update_slice_in_dim(past.keys, new.keys, position, axis=3),
                             jax.lax.dynamic_update_slice_in_dim(past.values, new.values, position, axis=2))
  known = {"mode": "promise_in_bounds", "unique_indices": True}
  return layers.KeysValues(
      jax.vmap(lambda past, new, nodes: past.at[:, :, nodes].set(new, **known))(past.keys, new.keys, nodes),
      jax.vmap(lambda past, new, nodes: past.at[:, nodes].set(new, **known))(past.values, new.values, nodes))
