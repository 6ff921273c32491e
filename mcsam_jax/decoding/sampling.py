"""Draws reports from the model: at every step a word with the probability that the model gives it, sharpened or cut.

A study's draws depend on its own key alone, never on its place in a batch.
`step` and the layout of the cache are described in `greedy.py`.

Shapes: B studies, K draws a study, T tokens.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mcsam_jax.decoding.greedy import (
  ban_repeated_ngrams,
  Cache,
  CacheResizer,
  next_token_log_probs,
  Step,
  while_loop_with_growing_cache,
)
from mcsam_jax.models.memory_bank import top_k_mask


class SampleResult(NamedTuple):
  """`ids` hold the tokens after bos, with eos where it was reached and pad behind it."""
  ids: jax.Array        # int32 [B, K, T]
  log_probs: jax.Array  # float32 [B, K], by the model itself (temperature 1), summed over the tokens, eos included


class _Search(NamedTuple):
  """What goes round the loop."""
  num_written: jax.Array   # int32 []
  last: jax.Array          # int32 [B, K], the token that the next step reads
  ids: jax.Array           # int32 [B, K, T]
  log_probs: jax.Array     # float32 [B, K]
  ended: jax.Array         # bool [B, K]
  cache: Cache


def sample_search(step: Step, cache: Cache, *, keys: jax.Array, num_samples: int, max_length: int, bos_id: int,
                  eos_id: int, pad_id: int, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0,
                  min_length: int = 0, no_repeat_ngram_size: int = 0, room: CacheResizer | None = None) -> SampleResult:
  """Draws `num_samples` (K) reports a study, each of at most `max_length` tokens (T), eos included.

  Args:
    keys: one random key a study [B].
    temperature: log-probabilities are divided by it before a draw; below 1 sharpens.
    top_k: only so many of the likeliest words may be drawn; 0: all.
    top_p: only the likeliest words may be drawn that together have this probability, after temperature and top_k
      (nucleus sampling, Holtzman et al., ICLR 2020); 1: all.
    no_repeat_ngram_size: no run of so many tokens stands twice in a report; 0: anything may.
  """
  batch_size = keys.shape[0]

  def unfinished(search):
    return (search.num_written < max_length) & ~jnp.all(search.ended)

  def write_one(search):
    logits, cache = step(search.last, search.cache)
    options = next_token_log_probs(logits, search.num_written, bos_id=bos_id, eos_id=eos_id, pad_id=pad_id,
                                   min_length=min_length)                              # [B, K, vocabulary]
    options = ban_repeated_ngrams(options, search.ids, search.num_written, no_repeat_ngram_size)
    draw = jax.vmap(lambda key, row: jax.random.categorical(jax.random.fold_in(key, search.num_written), row))
    chosen = draw(keys, filter_logits(options / temperature, top_k, top_p)).astype(jnp.int32)   # [B, K]
    gained = jnp.take_along_axis(options, chosen[..., None], -1)[..., 0]
    log_probs = search.log_probs + jnp.where(search.ended, 0.0, gained)
    ids = search.ids.at[:, :, search.num_written].set(jnp.where(search.ended, pad_id, chosen))
    return _Search(search.num_written + 1, chosen, ids, log_probs, search.ended | (chosen == eos_id), cache)

  start = _Search(jnp.int32(0), jnp.full([batch_size, num_samples], bos_id, jnp.int32),
                  jnp.full([batch_size, num_samples, max_length], pad_id, jnp.int32),
                  jnp.zeros([batch_size, num_samples], jnp.float32), jnp.zeros([batch_size, num_samples], bool), cache)
  search = while_loop_with_growing_cache(unfinished, write_one, start, room, max_length)
  return SampleResult(search.ids, search.log_probs)


def filter_logits(log_probs: jax.Array, top_k: int, top_p: float) -> jax.Array:
  """Returns log-probabilities [..., vocabulary], up to a constant, with -inf for the words that may not be drawn."""
  if top_k:
    log_probs = top_k_mask(log_probs, top_k)
  if top_p < 1:
    ranked = -jnp.sort(-jax.nn.softmax(log_probs), axis=-1)                            # likeliest first
    likelier = jnp.cumsum(ranked, -1) - ranked                                         # probability of all before it
    threshold = jnp.where(likelier < top_p, ranked, jnp.inf).min(-1, keepdims=True)
    log_probs = jnp.where(jax.nn.softmax(log_probs) >= threshold, log_probs, -jnp.inf)
  return log_probs
