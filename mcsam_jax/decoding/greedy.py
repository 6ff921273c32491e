"""Greedy decoding: the most likely allowed token at each step, until every report has ended.

The loop, `decode_step` and the layout of the cache are described in `loop.py`; here K is 1.

Shapes: B studies, T tokens.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mcsam_jax.decoding.loop import (
  ban_repeated_ngrams,
  Cache,
  CacheResizer,
  DecodeStep,
  next_token_log_probs,
  while_loop_with_growing_cache,
)


class GreedyResult(NamedTuple):
  """One report per study."""
  ids: jax.Array        # int32 [B, T], tokens after bos: up to and including eos if it was reached, then pad
  log_probs: jax.Array  # float32 [B], summed over the tokens, eos included


class GreedyState(NamedTuple):
  """The state of the decoding loop."""
  cur_index: jax.Array     # int32 [], tokens generated so far
  last_tokens: jax.Array   # int32 [B], input of the next step
  ids: jax.Array           # int32 [B, T]
  log_probs: jax.Array     # float32 [B]
  ended: jax.Array         # bool [B], eos has been generated
  cache: Cache


def greedy_search(decode_step: DecodeStep, cache: Cache, *, batch_size: int, max_length: int, bos_id: int, eos_id: int,
                  pad_id: int, min_length: int = 0, no_repeat_ngram_size: int = 0,
                  cache_resizer: CacheResizer | None = None) -> GreedyResult:
  """Returns one report per study, each of at most `max_length` tokens (T), eos included.

  Args:
    decode_step, cache, cache_resizer: the model, see `loop.py`.
    batch_size: B.
    max_length: T.
    bos_id, eos_id, pad_id: special tokens; they may share one id.
    min_length: tokens that a report has before eos is allowed.
    no_repeat_ngram_size: no n-gram of this size occurs twice in a report; 0: no limit.
  """
  def cond_fn(state: GreedyState):
    return (state.cur_index < max_length) & ~jnp.all(state.ended)

  def body_fn(state: GreedyState):
    logits, cache = decode_step(state.last_tokens[:, None], state.cache)
    log_probs = next_token_log_probs(logits[:, 0], state.cur_index, bos_id=bos_id, eos_id=eos_id, pad_id=pad_id,
                                     min_length=min_length)                          # [B, vocabulary]
    log_probs = ban_repeated_ngrams(log_probs, state.ids, state.cur_index, no_repeat_ngram_size)
    tokens = jnp.argmax(log_probs, axis=-1).astype(jnp.int32)
    totals = state.log_probs + jnp.where(state.ended, 0.0, jnp.max(log_probs, axis=-1))
    ids = state.ids.at[:, state.cur_index].set(jnp.where(state.ended, pad_id, tokens))
    return GreedyState(state.cur_index + 1, tokens, ids, totals, state.ended | (tokens == eos_id), cache)

  init_state = GreedyState(
      cur_index=jnp.int32(0), last_tokens=jnp.full([batch_size], bos_id, jnp.int32),
      ids=jnp.full([batch_size, max_length], pad_id, jnp.int32), log_probs=jnp.zeros([batch_size], jnp.float32),
      ended=jnp.zeros([batch_size], bool), cache=cache)
  state = while_loop_with_growing_cache(cond_fn, body_fn, init_state, cache_resizer, max_length)
  return GreedyResult(state.ids, state.log_probs)
