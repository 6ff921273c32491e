"""The forward and backward kernels of `memory_attention.py`, and how they select slots.

Each grid step holds the slots of one head and a block of queries, which it processes in tiles of 128. Within a tile the
slots are visited in 32 groups: group b holds the slots whose dropout mask is bit b of each mask row.

Shapes: S slots, d width of a head, 128 queries of a tile along the lanes.
"""

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp
import numpy as np

from mcsam_jax.models.kernels.sorting_network import merge_largest, sort_descending

LANES, SUBLANES = 128, 8          # sizes of a vector register; a tile is 128 queries
MASK_BITS = 32                    # slots whose dropout mask shares one int32

Slice = pl.Slice | slice          # as `pl.ds` returns it


def forward_kernel(queries, keys, values, *refs, top_k, keep_rate, unroll):
  """Writes outputs, thresholds, last kept ties and log2-sum-exps of a block of queries."""
  *masks, outputs, thresholds, last_ties, lses, scores, weights = refs
  num_slots = keys.shape[1]
  scale = exp2_scale(keys.shape[2])

  @pl.loop(0, queries.shape[2] // LANES)
  def process_tile(number):
    tile = pl.ds(pl.multiple_of(number * LANES, LANES), LANES)
    threshold, max_score = compute_scores(queries[0, :, tile], keys, scores, top_k)      # [1, 128] each

    def write_outputs(last_tie: jax.Array | None = None):
      """Writes the outputs of the tile; returns how many slots each query attends to [1, 128]."""
      def add_slots(bit, sums):
        slots = slots_of_bit(bit, num_slots)
        masked = scores[slots] < threshold                                     # False for NaN, which must propagate
        if last_tie is not None:
          masked |= after_last_kept(scores[slots], threshold, slots.start, last_tie)
        exps = jnp.where(masked, 0.0, jnp.exp2(scores[slots] * scale - max_score * scale))
        weights[slots] = apply_dropout(exps, masks, tile, bit).astype(weights.dtype)     # not yet normalized
        return sums[0] + sum_registers(exps), sums[1] + sum_registers(jnp.where(masked, 0.0, 1.0))
      sum_exp, count = lax.fori_loop(0, MASK_BITS, add_slots, (jnp.zeros((SUBLANES, LANES)),) * 2, unroll=unroll)
      sum_exp = sum_exp.sum(0, keepdims=True)
      weighted = jnp.dot(values[0], weights[...], preferred_element_type=jnp.float32)
      outputs[0, :, tile] = (weighted * (1 / (sum_exp * np.float32(keep_rate)))).astype(outputs.dtype)
      lses[0, :, tile] = max_score * scale + jnp.log2(sum_exp)
      return count.sum(0, keepdims=True)

    thresholds[0, :, tile] = threshold
    last_ties[0, :, tile] = jnp.full((1, LANES), num_slots, jnp.int32)
    count = write_outputs()

    @pl.when((count > top_k).any())                                            # rare: it may take twice as long
    def resolve_ties():
      last_ties[0, :, tile] = find_last_kept_tie(scores, threshold, top_k)
      write_outputs(last_ties[0, :, tile])


def backward_kernel(queries, outputs, cotangents, keys, keys_transposed, values, thresholds, last_ties, lses, *refs,
                    keep_rate, unroll):
  """Writes the gradient of a block of queries, and adds those of the keys and values."""
  *masks, query_grad, key_grad, value_grad, weights, score_grads = refs
  num_slots = keys.shape[1]
  scale = exp2_scale(keys.shape[2])

  @pl.when(pl.program_id(1) == 0)
  def clear():
    key_grad[...] = jnp.zeros_like(key_grad)
    value_grad[...] = jnp.zeros_like(value_grad)

  @pl.loop(0, queries.shape[2] // LANES)
  def process_tile(number):
    tile = pl.ds(pl.multiple_of(number * LANES, LANES), LANES)
    query, cotangent = queries[0, :, tile], cotangents[0, :, tile]             # [d, 128]
    threshold, last_tie, lse = thresholds[0, :, tile], last_ties[0, :, tile], lses[0, :, tile]
    mean = (outputs[0, :, tile].astype(jnp.float32) * cotangent.astype(jnp.float32)).sum(0, keepdims=True)
    mean *= np.float32(keep_rate)

    def add_gradients(has_ties: bool):
      def recompute_slots(bit, carry):
        slots = slots_of_bit(bit, num_slots)
        scores = jnp.dot(keys[0, slots], query, preferred_element_type=jnp.float32)
        weight_grads = jnp.dot(values[0, slots], cotangent, preferred_element_type=jnp.float32)
        masked = scores < threshold
        if has_ties:
          masked |= after_last_kept(scores, threshold, slots.start, last_tie)
        softmax = jnp.where(masked, 0.0, jnp.exp2(scores * scale - lse))
        weights[slots] = apply_dropout(softmax, masks, tile, bit).astype(weights.dtype)
        weight_grads = apply_dropout(weight_grads, masks, tile, bit)
        score_grads[slots] = (softmax * (weight_grads - mean)).astype(score_grads.dtype)
        return carry
      lax.fori_loop(0, MASK_BITS, recompute_slots, 0, unroll=unroll)
      query_grad[0, :, tile] = jnp.dot(keys_transposed[0], score_grads[...], preferred_element_type=jnp.float32)
      key_grad[0] += sum_over_queries(query, score_grads[...])
      value_grad[0] += sum_over_queries(cotangent, weights[...])

    has_ties = (last_tie < num_slots).any()
    pl.when(has_ties)(lambda: add_gradients(has_ties=True))
    pl.when(~has_ties)(lambda: add_gradients(has_ties=False))


# Parts of both kernels.

def exp2_scale(width: int) -> np.float32:
  """Returns the factor of scores in 2^x, which the hardware computes, for the softmax of scores / sqrt(width)."""
  return np.float32(np.log2(np.e) / np.sqrt(width))


def slots_of_bit(bit: jax.Array, num_slots: int) -> Slice:
  """Returns the slots whose dropout mask is in this bit."""
  rows = num_slots // MASK_BITS
  return pl.ds(pl.multiple_of(bit * rows, rows), rows)


def apply_dropout(x: jax.Array, masks: list, tile: Slice, bit: jax.Array) -> jax.Array:
  """Returns x [S/32, 128] of the slots of one bit, with 0 where dropout says so; not rescaled."""
  return jnp.where((masks[0][0, :, tile] & lax.shift_left(jnp.int32(1), bit)) != 0, x, 0.0) if masks else x


def sum_registers(x: jax.Array) -> jax.Array:
  """Returns the sum [8, 128] of the registers of x [n, 128]."""
  return x.reshape(-1, SUBLANES, LANES).sum(0)


def sum_over_queries(a: jax.Array, b: jax.Array) -> jax.Array:
  """Returns a b^T in float32 [d, S] for a [d, 128], b [S, 128]."""
  return lax.dot_general(a, b, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)


# Selection of the best slots.

def sorted_list_length(top_k: int) -> int:
  """Returns the smallest power of two that is at least `top_k`."""
  return 1 << (top_k - 1).bit_length()


def compute_scores(query: jax.Array, keys, scores, top_k: int) -> tuple[jax.Array, jax.Array]:
  """Writes scores [S, 128] of a query [d, 128]; returns the k-th largest and the largest of them [1, 128]."""
  length = sorted_list_length(top_k)

  def merge_group(number, best):
    first = pl.multiple_of(number * length * SUBLANES, length * SUBLANES)
    slots = pl.ds(first, length * SUBLANES)
    scores[slots] = jnp.dot(keys[0, slots], query, preferred_element_type=jnp.float32)
    group = [scores[pl.ds(first + row * SUBLANES, SUBLANES)] for row in range(length)]
    return tuple(merge_largest(best, sort_descending(group)))

  lowest = jnp.full((SUBLANES, LANES), -jnp.inf)
  best = lax.fori_loop(0, scores.shape[0] // (length * SUBLANES), merge_group, (lowest,) * length)
  for shift in (4, 2, 1):                                                      # over the eight rows of a register
    best = merge_largest(best, [pltpu.roll(row, shift, 0) for row in best])
  return best[top_k - 1][:1], best[0][:1]


def find_last_kept_tie(scores, threshold: jax.Array, top_k: int) -> jax.Array:
  """Returns int32 [1, 128], the last slot to keep among those whose score is the threshold, found bit by bit."""
  index = lax.broadcasted_iota(jnp.int32, scores.shape, 0)
  num_kept_ties = top_k - jnp.where(scores[...] > threshold, 1.0, 0.0).sum(0, keepdims=True)
  num_bits = scores.shape[0].bit_length()

  def set_bit(bit, prefix):
    """Grows `prefix`, a number of first slots that have at most `num_kept_ties` ties among them."""
    candidate = prefix | lax.shift_left(jnp.int32(1), num_bits - 1 - bit)
    num_ties = jnp.where((scores[...] == threshold) & (index < candidate), 1.0, 0.0).sum(0, keepdims=True)
    return jnp.where(num_ties <= num_kept_ties, candidate, prefix)
  return lax.fori_loop(0, num_bits, set_bit, jnp.zeros(threshold.shape, jnp.int32)) - 1


def after_last_kept(scores: jax.Array, threshold: jax.Array, first: int | jax.Array, last_tie: jax.Array) -> jax.Array:
  """Returns which scores [n, 128], of slots from `first` on, tie with the threshold but come after `last_tie`."""
  return (scores == threshold) & (lax.broadcasted_iota(jnp.int32, scores.shape, 0) + first > last_tie)
