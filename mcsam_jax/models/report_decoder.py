"""The report decoder: a causal transformer over learnable memory tokens and report tokens that attends to patches.

The sequence is M memory tokens (learned ones, then one per finding if there is a findings head), then the report. Every
position sees all memory tokens; a report token also sees itself and the tokens before it; memory tokens see each other
only. The same weights run in two ways: `__call__` reads
a whole report at once (training), `project_study` and `decode_step` write one token at a time (generation, with the
cache of `decode_cache.py`).

Shapes: B studies, K beams, N patches, T tokens, M memory tokens, G trees and C slots of the cache, H heads, D width.
"""

from collections.abc import Mapping
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from mcsam_jax.models import layers
from mcsam_jax.models.decode_cache import allocate_slots, StudyKV, write_slots
from mcsam_jax.models.dropout import Dropout
from mcsam_jax.models.step_dense import stack_dense, step_dense, StepWeights

DecoderStepWeights = dict[str, Any]   # see `ReportDecoder.step_weights`


class DecoderLayer(nn.Module):
  """Self-attention, cross-attention to the patches, and feed-forward; pre-norm with residuals."""
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
    self.norm_self, self.norm_cross, self.norm_feedforward = (layers.LayerNorm(self.norm, self.dtype) for _ in range(3))
    self.drop = Dropout(self.dropout)

  def self_kv(self, x: jax.Array, mask: jax.Array | None = None) -> layers.KeysValues:
    """Returns the self-attention keys and values of positions x [..., L, D]."""
    return self.self_attention.project_kv(self.norm_self(x), mask)

  def __call__(self, x: jax.Array, kv: layers.KeysValues, patches: layers.KeysValues, train: bool) -> jax.Array:
    """Returns [B, L, D] for positions x [B, L, D] with self-attention keys and values `kv`."""
    x += self.drop(self.self_attention(self.norm_self(x), kv, train), deterministic=not train)
    x += self.drop(self.cross_attention(self.norm_cross(x), patches, train), deterministic=not train)
    return x + self.drop(self.feedforward(self.norm_feedforward(x), train), deterministic=not train)

  def step_weights(self) -> dict[str, StepWeights]:
    """Returns the weights of the layer's matrix products, an argument of `decode_step`."""
    own, cross, feedforward = (module.variables["params"] for module in
                               (self.self_attention, self.cross_attention, self.feedforward))
    products = {"self_qkv": [own["query"], own["key"], own["value"]], "self_output": [own["output"]],
                "cross_query": [cross["query"]], "cross_output": [cross["output"]],
                "hidden": [feedforward["hidden"]], "output": [feedforward["output"]]}
    return {name: stack_dense(parts, self.dtype) for name, parts in products.items()}

  def decode_step(self, x: jax.Array, kv: layers.KeysValues, position: jax.Array, slots: jax.Array | None,
                  mask: jax.Array, patches: layers.KeysValues,
                  weights: Mapping[str, StepWeights]) -> tuple[jax.Array, layers.KeysValues]:
    """Returns [B, K, D] for the tokens x [B, K, D] that the beams read, and the cache `kv` with these added.

    This is `__call__` for one token per beam. `slots` and `mask` are from `allocate_slots`, and go with `position` and
    the cache [G, ...] of this layer; `patches` are the keys and values of the patches [B, ...].
    """
    num_trees = kv.values.shape[0]
    normed = self.norm_self(x.reshape(num_trees, -1, self.width))                  # [G, B * K / G, D]
    query, key, value = jnp.split(step_dense(normed, weights["self_qkv"]), 3, axis=-1)
    new = layers.KeysValues(layers.split_heads_transposed(key, self.num_heads),
                            layers.split_heads(value, self.num_heads))
    kv = write_slots(kv, new, position, slots)
    attended = layers.attend(layers.split_heads(query, self.num_heads), layers.KeysValues(kv.keys, kv.values, mask))
    x += step_dense(attended, weights["self_output"]).reshape(x.shape)
    query = layers.split_heads(step_dense(self.norm_cross(x), weights["cross_query"]), self.num_heads)
    x += step_dense(layers.attend(query, patches), weights["cross_output"])
    hidden = nn.relu(step_dense(self.norm_feedforward(x), weights["hidden"]))
    return x + step_dense(hidden, weights["output"]), kv


class ReportDecoder(nn.Module):
  """Decoder layers, a final norm, and logits over the vocabulary."""
  num_layers: int
  width: int
  num_heads: int
  feedforward_width: int
  vocab_size: int
  num_memory_tokens: int          # learned ones; 0 for none
  dropout: float = 0.0
  norm: str = "layernorm"
  dtype: jnp.dtype = jnp.float32
  remat: bool = False             # recompute each layer's activations in the backward pass

  def setup(self):
    layer = nn.remat(DecoderLayer, static_argnums=4) if self.remat else DecoderLayer
    self.layers = [layer(self.width, self.num_heads, self.feedforward_width, self.dropout, self.norm, self.dtype)
                   for _ in range(self.num_layers)]
    self.final_norm = layers.LayerNorm(self.norm, self.dtype)
    self.logits = nn.Dense(self.vocab_size, kernel_init=layers.xavier, dtype=self.dtype)
    if self.num_memory_tokens:
      self.memory_tokens = self.param("memory_tokens", nn.initializers.normal(1.0),
                                      (self.num_memory_tokens, self.width))

  def __call__(self, x: jax.Array, patches: jax.Array, patch_mask: jax.Array, study_tokens: jax.Array | None,
               train: bool) -> jax.Array:
    """Returns logits [B, T, vocabulary].

    Args:
      x: embedded tokens [B, T, D].
      patches: encoded patches [B, N, D].
      patch_mask: bool [B, N].
      study_tokens: further memory tokens, which depend on the study [B, F, D]; None: no further ones.
      train: whether to apply dropout.
    """
    memory_tokens = self.embed_memory_tokens(x.shape[0], study_tokens)             # [B, M, D]
    num_memory_tokens = memory_tokens.shape[1]
    x = jnp.concatenate([memory_tokens, x], axis=1)                                # [B, M + T, D]
    position = jnp.arange(x.shape[1])
    causal = (position[None, :] < num_memory_tokens) | (position[None, :] <= position[:, None])
    for layer in self.layers:
      patch_kv = layer.cross_attention.project_kv(patches, patch_mask[:, None, None, :])
      x = layer(x, layer.self_kv(x, causal), patch_kv, train)
    return self.logits(self.final_norm(x[:, num_memory_tokens:]))

  def embed_memory_tokens(self, batch_size: int, study_tokens: jax.Array | None) -> jax.Array:
    """Returns the memory tokens [B, M, D]: the learned ones, then those of the study [B, F, D]."""
    tokens = jnp.zeros((batch_size, 0, self.width), self.dtype)
    if self.num_memory_tokens:
      tokens = jnp.broadcast_to(self.memory_tokens.astype(self.dtype), (batch_size, self.num_memory_tokens, self.width))
    return tokens if study_tokens is None else jnp.concatenate([tokens, study_tokens], axis=1)

  def project_study(self, patches: jax.Array, patch_mask: jax.Array, study_tokens: jax.Array | None) -> StudyKV:
    """Returns the keys and values of a study's patches and memory tokens in every layer; see `__call__`."""
    x = self.embed_memory_tokens(patches.shape[0], study_tokens)
    patch_kv, memory_token_kv = [], []
    for layer in self.layers:
      patch_kv.append(layer.cross_attention.project_kv(patches, patch_mask[:, None, None, :]))
      memory_token_kv.append(layer.self_kv(x))
      if x.shape[1]:
        x = layer(x, memory_token_kv[-1], patch_kv[-1], False)       # by position: `nn.remat` marks it as static
    return StudyKV(patch_kv, memory_token_kv)

  def read_reports(self, x: jax.Array, study_kv: StudyKV) -> jax.Array:
    """Returns logits [B, K, T, vocabulary] for embedded tokens x [B, K, T, D] of K whole reports per study.

    The reports of a study share its keys and values; dropout is off.
    """
    shared = jax.tree.map(lambda leaf: leaf[:, None], study_kv)                     # [B, 1, ...]
    position = jnp.arange(x.shape[2])
    visible = jnp.concatenate([jnp.ones((x.shape[2], study_kv.num_memory_tokens), bool),
                               position[None, :] <= position[:, None]], axis=1)    # [T, M + T]
    for layer, patch_kv, memory_token_kv in zip(self.layers, shared.patches, shared.memory_tokens):
      own_kv = layer.self_kv(x)
      keys, values = (jnp.concatenate([jnp.broadcast_to(first, (*rest.shape[:3], *first.shape[3:])), rest], axis)
                      for first, rest, axis in ((memory_token_kv.keys, own_kv.keys, -1),
                                                (memory_token_kv.values, own_kv.values, -2)))
      x = layer(x, layers.KeysValues(keys, values, visible), patch_kv, False)
    return self.logits(self.final_norm(x))

  def step_weights(self) -> DecoderStepWeights:
    """Returns the weights of all matrix products, an argument of `decode_step`."""
    return {"layers": [layer.step_weights() for layer in self.layers],
            "logits": stack_dense([self.logits.variables["params"]], self.dtype)}

  def decode_step(self, x: jax.Array, cache: dict, study_kv: StudyKV,
                  weights: DecoderStepWeights) -> tuple[jax.Array, dict]:
    """Returns the logits [B, K, vocabulary] after embedded tokens x [B, K, D], and the cache with these added."""
    slots, beams, mask = allocate_slots(cache)
    updated = []
    for layer, kv, patch_kv, layer_weights in zip(self.layers, cache["layers"], study_kv.patches, weights["layers"]):
      x, kv = layer.decode_step(x, kv, cache["position"], slots, mask, patch_kv, layer_weights)
      updated.append(kv)
    cache = {"layers": updated, "position": cache["position"] + 1, "beams": beams}
    return step_dense(self.final_norm(x), weights["logits"]), cache
