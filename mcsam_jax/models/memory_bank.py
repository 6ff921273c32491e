"""The long-term clinical memory: slots of knowledge that patches and words both query.

A query's best `top_k` slots of each head answer it, and nothing else does.
Keys and values depend on the slots alone, so `project` makes them once a step
and every later call shares them.
"""

import functools
import math

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mcsam_jax.models import layers
from mcsam_jax.models.dropout import Dropout
from mcsam_jax.models.kernels import memory_attention
from mcsam_jax.partitioning import BATCH


class MemoryBank(nn.Module):
  """Slots [S, D_M], their projections, and the responses that they give.

  Shapes: B rows, L patches or words, D width, S slots, H heads.
  """
  num_slots: int
  slot_width: int                 # D_M
  width: int                      # D
  num_heads: int
  top_k: int                      # slots that may answer one query, per head
  consolidation: str = "residual"   # residual | gate
  dropout: float = 0.0            # of the weights of the slots
  dtype: jnp.dtype = jnp.float32

  def setup(self):
    self.slots = self.param("slots", nn.initializers.normal(1.0), (self.num_slots, self.slot_width))
    self.query, self.key, self.value, self.output = (
        nn.Dense(self.width, kernel_init=layers.xavier, dtype=self.dtype) for _ in range(4))
    self.drop = Dropout(self.dropout)                               # heads share what is dropped
    if self.consolidation == "gate":
      self.gate = nn.Dense(self.width, kernel_init=layers.xavier, dtype=self.dtype)

  def project(self) -> layers.KeysValues:
    """Returns keys [H, D/H, S] and values [H, S, D/H] of all slots."""
    slots = self.slots.astype(self.dtype)
    return layers.KeysValues(layers.split_keys(self.key(slots), self.num_heads),
                             layers.split_heads(self.value(slots), self.num_heads))

  def __call__(self, features: jax.Array, memory: layers.KeysValues, train: bool) -> jax.Array:
    """Returns the responses [..., L, D] of `memory` (from `project`) to `features` [..., L, D]."""
    queries = self.query(features.reshape(-1, features.shape[-1]))     # [R, D]: all rows and positions alike
    kept = self.kept_by_dropout(queries, train)                        # [R, S], or None
    axes = split_over(features)
    if self.is_mutable_collection("intermediates") or axes is None or not memory_attention.supports(
        self.num_slots, self.width // self.num_heads, self.top_k, self.dtype):
      answers, weights = self.answer(queries, memory, kept)
      self.sow("intermediates", "slot_weights", self.by_row(weights, features))
    else:
      answers = jax.lax.platform_dependent(queries, memory, kept, tpu=functools.partial(self.answer_on_tpu, axes=axes),
                                           default=lambda *arrays: self.answer(*arrays)[0])
    return self.output(answers).reshape(*features.shape[:-1], self.width)

  @nn.nowrap
  def answer(self, queries: jax.Array, memory: layers.KeysValues, kept: jax.Array | None):
    """Returns the values [R, D] that answer queries [R, D], and the weights float32 [H, R, S] of the slots."""
    query = layers.split_heads(queries, self.num_heads)                # [H, R, D/H]
    scores = layers.products(query, memory.keys)                       # [H, R, S]
    weights = jax.nn.softmax(top_k_mask(scores, self.top_k) / np.sqrt(query.shape[-1]), axis=-1)
    used = weights.astype(self.dtype)
    if kept is not None:
      used = jnp.where(kept, used / (1 - self.dropout), 0)
    return layers.merge_heads(used @ memory.values), weights

  @nn.nowrap
  def answer_on_tpu(self, queries: jax.Array, memory: layers.KeysValues, kept: jax.Array | None,
                    axes: tuple[str, ...]) -> jax.Array:
    """Returns the same values; rows R are split over `axes` of the mesh."""
    turned = queries.T.reshape(self.num_heads, -1, queries.shape[0])   # [H, D/H, R]
    words = None if kept is None else memory_attention.pack(kept)
    keep_rate = 1.0 if kept is None else 1 - self.dropout
    answers = memory_attention.respond(turned, memory.keys, memory.values, words, self.top_k, keep_rate, axes)
    return answers.reshape(self.width, -1).T

  def kept_by_dropout(self, queries: jax.Array, train: bool) -> jax.Array | None:
    """Returns which slots queries [R, D] may hear, bool [R, S]; None for all of them."""
    if not train or not self.dropout:
      return None
    return self.drop.kept((len(queries), self.num_slots))

  def by_row(self, weights: jax.Array, features: jax.Array) -> jax.Array:
    """[H, R, S] -> [..., H, L, S], as the features [..., L, D] lie."""
    return jnp.moveaxis(weights.reshape(self.num_heads, *features.shape[:-1], -1), 0, -3)

  def consolidate(self, features: jax.Array, responses: jax.Array) -> jax.Array:
    """Returns the features [..., L, D] with what the memory answered worked in."""
    if self.consolidation == "gate":
      responses *= nn.sigmoid(self.gate(jnp.concatenate([features, responses], -1)))
    return features + responses


def split_over(features: jax.Array) -> tuple[str, ...] | None:
  """Returns the axes of the ambient mesh over which the rows of features [..., L, D] are split.

  None where kernels can't be used: without a mesh that says how to divide their work, which the compiler can't, and
  where 64-bit numbers are on, which they don't know. A table [vocabulary, D], or studies that can't be dealt out
  evenly, are whole on each device.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if jax.config.jax_enable_x64 or mesh.empty or set(mesh.auto_axes) != set(mesh.axis_names):
    return None
  axes = tuple(axis for axis in BATCH if axis in mesh.axis_names)
  devices = math.prod(mesh.shape[axis] for axis in axes)
  return axes if features.ndim > 2 and features.shape[0] % devices == 0 else ()


def top_k_mask(scores: jax.Array, k: int) -> jax.Array:
  """Returns scores [..., S] with all but the k largest at -inf; ties go to the lower index, so exactly k stay.

  A mask beats gathering the chosen values: it keeps the product with them a dense
  matrix multiplication and its gradient free of scatters.
  """
  if k >= scores.shape[-1]:
    return scores
  still = jax.lax.stop_gradient(scores).astype(jnp.float32)
  # How often `narrow` loops hangs on the scores: over several chips that would be a collective a turn.
  kept = jax.lax.platform_dependent(still, cpu=lambda scores: by_narrowing(scores, k),
                                    default=lambda scores: by_bits(scores, k))
  return jnp.where(kept, scores, -jnp.inf)


def by_bits(scores: jax.Array, k: int) -> jax.Array:
  """Returns which of scores [..., S] are the k largest: the k-th is found bit by bit."""
  keys = ordered_keys(scores)
  threshold = kth_largest(keys, k)                                     # [..., 1]
  kept = keys >= threshold

  def without_surplus(kept):
    tied = keys == threshold
    places = k - (keys > threshold).sum(-1, keepdims=True)             # left for the tied ones
    return kept & (~tied | (jnp.cumsum(tied, -1) <= places))

  # Ties at the threshold are rare, and counting them out costs as much as the rest.
  return jax.lax.cond(kept.sum(-1).max() > k, without_surplus, lambda kept: kept, kept)


def by_narrowing(scores: jax.Array, k: int) -> jax.Array:
  """Returns the same as `by_bits`, on a CPU in less than half the time: few of its passes read all scores."""
  kept = scores >= narrow(scores, k)
  exact = (count(kept) == k).all()
  return jax.lax.cond(exact, lambda: kept, lambda: by_bits(scores, k))   # ties, or NaN


def narrow(scores: jax.Array, k: int) -> jax.Array:
  """Returns the k-th largest of float32 scores [..., S] as [..., 1]; with ties it may return a larger one.

  The k-th largest of the maxima of groups of four is a lower bound that few more than k scores reach. The smallest
  of these are dropped one by one.
  """
  size = scores.shape[-1]
  if size % 4 or size <= 256 or size // 4 < k:
    return from_keys(kth_largest(ordered_keys(scores), k))
  bound = narrow(scores.reshape(*scores.shape[:-1], 4, size // 4).max(-2), k)
  surplus = count(scores >= bound) - k

  def drop_smallest(state):
    bound, surplus = state
    next_larger = jnp.where(scores > bound, scores, jnp.inf).min(-1, keepdims=True)
    return jnp.where(surplus > 0, next_larger, bound), surplus - 1
  return jax.lax.while_loop(lambda state: (state[1] > 0).any(), drop_smallest, (bound, surplus))[0]


def count(true: jax.Array) -> jax.Array:
  """Returns float32 [..., 1], how many of bool [..., S] hold, exact to 2^24: XLA:CPU adds floats faster than integers."""
  return jnp.where(true, 1.0, 0.0).sum(-1, keepdims=True)


def ordered_keys(scores: jax.Array) -> jax.Array:
  """Returns uint32 keys that are ordered as the floats [...] are (-0 below 0, NaN above all)."""
  bits = jax.lax.bitcast_convert_type(scores.astype(jnp.float32), jnp.uint32)
  sign = jnp.uint32(1 << 31)
  return jnp.where(bits & sign, ~bits, bits | sign)


def from_keys(keys: jax.Array) -> jax.Array:
  """Returns the float32 that `ordered_keys` made the keys [...] of."""
  sign = jnp.uint32(1 << 31)
  return jax.lax.bitcast_convert_type(jnp.where(keys & sign, keys ^ sign, ~keys), jnp.float32)


def kth_largest(keys: jax.Array, k: int) -> jax.Array:
  """Returns the k-th largest of uint32 keys [..., S] as [..., 1], found bit by bit from the highest.

  32 passes of compare and count: exact, without the sort that `jax.lax.top_k` is on a
  CPU (five times as long for 512 slots).
  """
  def set_bit(bit, threshold):
    higher = threshold | (jnp.uint32(1) << (31 - bit).astype(jnp.uint32))
    return jnp.where(count(keys >= higher) >= k, higher, threshold)
  return jax.lax.fori_loop(0, 32, set_bit, jnp.zeros((*keys.shape[:-1], 1), jnp.uint32))
