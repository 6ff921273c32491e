"""Masks all but the k largest scores, exactly, without sorting.

Shapes: S scores (memory slots, or tokens of the vocabulary).
"""

import math

import jax
import jax.numpy as jnp
import numpy as np


def top_k_mask(scores: jax.Array, k: int) -> jax.Array:
  """Returns scores [..., S] with all but the k largest at -inf; ties go to the lower index, so exactly k remain.

  A mask beats gathering the selected values: the product with them stays a dense matrix multiplication, and its
  gradient is free of scatters.
  """
  if k >= scores.shape[-1]:
    return scores
  constant = jax.lax.stop_gradient(scores).astype(jnp.float32)
  # The trip count of `_pruned_select` is data-dependent; when sharded, it would cost one collective per iteration.
  selected = jax.lax.platform_dependent(constant, cpu=lambda scores: _pruned_select(scores, k),
                                        default=lambda scores: _radix_select(scores, k))
  return jnp.where(selected, scores, -jnp.inf)


def _radix_select(scores: jax.Array, k: int) -> jax.Array:
  """Returns bool [..., S], which scores are the k largest: finds the k-th largest bit by bit."""
  keys = _float_to_ordered_uint(scores)
  threshold = _kth_largest(keys, k)                                    # [..., 1]
  selected = keys >= threshold

  def drop_surplus_ties(selected):
    tied = keys == threshold
    num_kept_ties = k - (keys > threshold).sum(-1, keepdims=True)
    return selected & (~tied | (jnp.cumsum(tied, -1) <= num_kept_ties))

  # Ties at the threshold are rare, and resolving them costs as much as the rest.
  return jax.lax.cond(selected.sum(-1).max() > k, drop_surplus_ties, lambda selected: selected, selected)


def _pruned_select(scores: jax.Array, k: int) -> jax.Array:
  """Returns the same as `_radix_select`, on a CPU in less than half the time: few of its passes read all scores."""
  selected = scores >= _pruned_threshold(scores, k)
  is_exact = (_count(selected) == k).all()                             # False with ties, or NaN
  return jax.lax.cond(is_exact, lambda: selected, lambda: _radix_select(scores, k))


def _pruned_threshold(scores: jax.Array, k: int) -> jax.Array:
  """Returns the k-th largest of float32 scores [..., S] as [..., 1]; with ties it may return a larger one.

  The k-th largest of the maxima of groups of four is a lower bound that few more than k scores reach. The smallest
  of these are dropped one by one.
  """
  size = scores.shape[-1]
  if size % 4 or size <= 256 or size // 4 < k:
    return _ordered_uint_to_float(_kth_largest(_float_to_ordered_uint(scores), k))
  bound = _pruned_threshold(scores.reshape(*scores.shape[:-1], 4, size // 4).max(-2), k)
  surplus = _count(scores >= bound) - k

  def drop_smallest(state):
    bound, surplus = state
    return jnp.where(surplus > 0, _next_larger(scores, bound), bound), surplus - 1
  return jax.lax.while_loop(lambda state: (state[1] > 0).any(), drop_smallest, (bound, surplus))[0]


def _next_larger(scores: jax.Array, bound: jax.Array) -> jax.Array:
  """Returns the smallest of float32 scores [..., S] above bound [..., 1] as [..., 1]; inf if there is none.

  Reduced to a few columns first, and by a function that XLA:CPU doesn't recognize as the minimum: it then reads the
  scores once, several at a time. For a plain minimum it writes the selected scores to memory first.
  """
  columns = math.gcd(scores.shape[-1], 64)
  larger = jnp.where(scores > bound, scores, jnp.inf).reshape(*scores.shape[:-1], -1, columns)
  smallest = jax.lax.reduce(larger, np.float32(np.inf), lambda a, b: jnp.where(a < b, a, b), (larger.ndim - 2,))
  return smallest.min(-1, keepdims=True)


def _count(mask: jax.Array) -> jax.Array:
  """Returns the number of True in bool [..., S] as float32 [..., 1], exact to 2^24.

  XLA:CPU adds floats faster than integers.
  """
  return jnp.where(mask, 1.0, 0.0).sum(-1, keepdims=True)


def _float_to_ordered_uint(scores: jax.Array) -> jax.Array:
  """Returns uint32 keys in the order of the floats [...] (-0 below 0, NaN above all)."""
  bits = jax.lax.bitcast_convert_type(scores.astype(jnp.float32), jnp.uint32)
  sign = jnp.uint32(1 << 31)
  return jnp.where(bits & sign, ~bits, bits | sign)


def _ordered_uint_to_float(keys: jax.Array) -> jax.Array:
  """Returns the float32 [...] from which `_float_to_ordered_uint` made the keys."""
  sign = jnp.uint32(1 << 31)
  return jax.lax.bitcast_convert_type(jnp.where(keys & sign, keys ^ sign, ~keys), jnp.float32)


def _kth_largest(keys: jax.Array, k: int) -> jax.Array:
  """Returns the k-th largest of uint32 keys [..., S] as [..., 1], found bit by bit from the highest.

  32 passes of compare and count: exact, without the sort that `jax.lax.top_k` runs on a CPU (five times as long for
  512 slots).
  """
  def set_bit(bit, threshold):
    candidate = threshold | (jnp.uint32(1) << (31 - bit).astype(jnp.uint32))
    return jnp.where(_count(keys >= candidate) >= k, candidate, threshold)
  return jax.lax.fori_loop(0, 32, set_bit, jnp.zeros((*keys.shape[:-1], 1), jnp.uint32))
