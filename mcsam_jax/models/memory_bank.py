"""The long-term clinical memory: slots of knowledge that both patches and tokens query.

Each head of a query attends to its best `top_k` slots only. Keys and values depend on the slots alone, so
`project_slots` computes them once per step and all later calls share them.

Shapes: B studies, L positions (patches or tokens), R = B * L queries, S slots, H heads, D width.
"""

import functools
import math
from typing import cast

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mcsam_jax.models import layers
from mcsam_jax.models.dropout import Dropout
from mcsam_jax.models.kernels import memory_attention
from mcsam_jax.models.kernels.top_k import top_k_mask
from mcsam_jax.partitioning import BATCH

SLOTS_PER_CHUNK, MAX_QUERIES_IN_CHUNKS = 256, 128   # see `weigh_values`


class MemoryBank(nn.Module):
  """Memory slots [S, D_M] and attention to them: features [..., L, D] -> responses [..., L, D]."""
  num_slots: int
  slot_width: int                 # D_M
  width: int                      # D
  num_heads: int
  top_k: int                      # slots attended to per query and head
  consolidation: str = "residual"   # residual | gate
  dropout: float = 0.0            # rate for the attention weights
  dtype: jnp.dtype = jnp.float32

  def setup(self):
    self.slots = self.param("slots", nn.initializers.normal(1.0), (self.num_slots, self.slot_width))
    self.query, self.key, self.value, self.output = (
        nn.Dense(self.width, kernel_init=layers.xavier, dtype=self.dtype) for _ in range(4))
    self.drop = Dropout(self.dropout)
    if self.consolidation == "gate":
      self.gate = nn.Dense(self.width, kernel_init=layers.xavier, dtype=self.dtype)

  def project_slots(self) -> layers.KeysValues:
    """Returns keys [H, D/H, S] and values [H, S, D/H] of all slots."""
    slots = self.slots.astype(self.dtype)
    return layers.KeysValues(layers.split_heads_transposed(self.key(slots), self.num_heads),
                             layers.split_heads(self.value(slots), self.num_heads))

  def __call__(self, features: jax.Array, memory: layers.KeysValues, train: bool) -> jax.Array:
    """Returns the responses [..., L, D] of `memory` (from `project_slots`) to `features` [..., L, D]."""
    queries = self.query(features.reshape(-1, features.shape[-1]))     # [R, D]
    keep_mask = self.dropout_mask(queries, train)                      # [R, S], or None
    axes = kernel_batch_axes(features)
    if self.is_mutable_collection("intermediates") or axes is None or not memory_attention.supports(
        self.num_slots, self.width // self.num_heads, self.top_k, self.dtype):
      responses, weights = self.attend(queries, memory, keep_mask)
      self.sow("intermediates", "slot_weights", self.unflatten_weights(weights, features))
    else:
      responses = jax.lax.platform_dependent(queries, memory, keep_mask,
                                             tpu=functools.partial(self.attend_on_tpu, axes=axes),
                                             default=lambda *arrays: self.attend(*arrays)[0])
    return self.output(responses).reshape(*features.shape[:-1], self.width)

  @nn.nowrap
  def attend(self, queries: jax.Array, memory: layers.KeysValues,
             keep_mask: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """Returns the weighted values [R, D] for queries [R, D], and the weights of the slots, float32 [H, R, S]."""
    query = layers.split_heads(queries, self.num_heads)                # [H, R, D/H]
    scores = layers.qk_scores(query, memory.keys)                      # [H, R, S]
    weights = jax.nn.softmax(top_k_mask(scores, self.top_k) / np.sqrt(query.shape[-1]), axis=-1)
    dropped = weights.astype(self.dtype)
    if keep_mask is not None:                                          # one mask for all heads
      dropped = jnp.where(keep_mask, dropped / (1 - self.dropout), 0)
    return layers.merge_heads(weigh_values(dropped, memory.values)), weights

  @nn.nowrap
  def attend_on_tpu(self, queries: jax.Array, memory: layers.KeysValues, keep_mask: jax.Array | None,
                    axes: tuple[str, ...]) -> jax.Array:
    """Returns the same values as `attend`, by a kernel; rows R are split over `axes` of the mesh."""
    transposed = queries.T.reshape(self.num_heads, -1, queries.shape[0])   # [H, D/H, R]
    keep_bits = None if keep_mask is None else memory_attention.pack_keep_mask(keep_mask)
    keep_rate = 1.0 if keep_mask is None else 1 - self.dropout
    responses = cast(jax.Array, memory_attention.memory_attention(
        transposed, memory.keys, memory.values, keep_bits, self.top_k, keep_rate, axes))
    return responses.reshape(self.width, -1).T

  def dropout_mask(self, queries: jax.Array, train: bool) -> jax.Array | None:
    """Returns which weights of queries [R, D] dropout keeps, bool [R, S]; None for all."""
    if not train or not self.dropout:
      return None
    return self.drop.keep_mask((len(queries), self.num_slots))

  def unflatten_weights(self, weights: jax.Array, features: jax.Array) -> jax.Array:
    """Returns weights [H, R, S] of the slots as [..., H, L, S], for features [..., L, D]."""
    return jnp.moveaxis(weights.reshape(self.num_heads, *features.shape[:-1], -1), 0, -3)

  def consolidate(self, features: jax.Array, responses: jax.Array) -> jax.Array:
    """Returns features [..., L, D] plus the responses, gated if so configured."""
    if self.consolidation == "gate":
      responses *= nn.sigmoid(self.gate(jnp.concatenate([features, responses], -1)))
    return features + responses


def weigh_values(weights: jax.Array, values: jax.Array) -> jax.Array:
  """Returns weights [H, R, S] times values [H, S, D/H].

  For the few queries of a decode step, a CPU multiplies chunks of the slots faster than all of them at once.
  """
  num_heads, num_queries, num_slots = weights.shape
  if not isinstance(num_queries, int) or num_queries > MAX_QUERIES_IN_CHUNKS or num_slots % SLOTS_PER_CHUNK:
    return weights @ values              # `num_queries` isn't a number in a program exported for any number of studies

  def multiply_chunks(weights, values):
    num_chunks = num_slots // SLOTS_PER_CHUNK
    products = jnp.einsum("hrcs,hcsd->hcrd", weights.reshape(num_heads, num_queries, num_chunks, -1),
                          values.reshape(num_heads, num_chunks, SLOTS_PER_CHUNK, -1),
                          preferred_element_type=jnp.promote_types(values.dtype, jnp.float32))
    return products.sum(1).astype(values.dtype)
  return jax.lax.platform_dependent(weights, values, cpu=multiply_chunks, default=jnp.matmul)


def kernel_batch_axes(features: jax.Array) -> tuple[str, ...] | None:
  """Returns the axes of the ambient mesh over which a kernel splits the rows of features [..., L, D].

  None means that kernels can't be used: without a mesh that says how to divide their work, which the compiler can't do,
  and with 64-bit numbers, which they don't support. A table [vocabulary, D], or studies that can't be divided evenly,
  are replicated on every device: ().
  """
  mesh = jax.sharding.get_abstract_mesh()
  if jnp.result_type(float) == jnp.float64 or mesh.empty or set(mesh.auto_axes) != set(mesh.axis_names):
    return None
  axes = tuple(axis for axis in BATCH if axis in mesh.axis_names)
  num_devices = math.prod(mesh.shape[axis] for axis in axes)
  return axes if features.ndim > 2 and features.shape[0] % num_devices == 0 else ()
