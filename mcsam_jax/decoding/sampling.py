"""Sampling: at each step a token drawn from the model's distribution, after temperature, top-k and nucleus filtering.

Every sample of a study is drawn with the study's own random key, so it does not depend on the other studies in the
batch. The loop, `decode_step` and the layout of the cache are described in `loop.py`.

Shapes: B studies, K samples, T tokens.
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


class SampleResult(NamedTuple):
  """K reports per study, in the order in which they were drawn."""
  ids: jax.Array        # int32 [B, K, T], tokens after bos: up to and including eos if it was reached, then pad
  log_probs: jax.Array  # float32 [B, K], of the unfiltered model (temperature 1), summed over the tokens, eos included
  draw_log_probs: jax.Array  # float32 [B, K], of the distribution that was drawn from: after temperature and filters


class SamplingState(NamedTuple):
  """The state of the decoding loop."""
  cur_index: jax.Array     # int32 [], tokens generated so far
  last_tokens: jax.Array   # int32 [B, K], input of the next step
  ids: jax.Array           # int32 [B, K, T]
  log_probs: jax.Array     # float32 [B, K]
  draw_log_probs: jax.Array      # float32 [B, K]
  ended: jax.Array         # bool [B, K], eos has been generated
  cache: Cache


def temperature_sample(decode_step: DecodeStep, cache: Cache, *, keys: jax.Array, num_samples: int, max_length: int,
                       bos_id: int, eos_id: int, pad_id: int, temperature: float = 1.0, top_k: int = 0,
                       top_p: float = 1.0, min_length: int = 0, no_repeat_ngram_size: int = 0,
                       cache_resizer: CacheResizer | None = None) -> SampleResult:
  """Draws `num_samples` (K) reports per study, each of at most `max_length` tokens (T), eos included.

  Args:
    decode_step, cache, cache_resizer: the model, see `loop.py`; the cache is for B studies with K samples each.
    keys: one random key per study [B].
    num_samples: K.
    max_length: T.
    bos_id, eos_id, pad_id: special tokens; they may share one id.
    temperature: divides the log-probabilities; below 1 sharpens the distribution.
    top_k, top_p: limit the tokens that may be drawn, see `filter_logits`.
    min_length: tokens that a report has before eos is allowed.
    no_repeat_ngram_size: no n-gram of this size occurs twice in a report; 0: no limit.
  """
  batch_size = keys.shape[0]

  def cond_fn(state: SamplingState):
    return (state.cur_index < max_length) & ~jnp.all(state.ended)

  def body_fn(state: SamplingState):
    logits, cache = decode_step(state.last_tokens, state.cache)
    log_probs = next_token_log_probs(logits, state.cur_index, bos_id=bos_id, eos_id=eos_id, pad_id=pad_id,
                                     min_length=min_length)                            # [B, K, vocabulary]
    log_probs = ban_repeated_ngrams(log_probs, state.ids, state.cur_index, no_repeat_ngram_size)
    sample = jax.vmap(lambda key, logits: jax.random.categorical(jax.random.fold_in(key, state.cur_index), logits))
    filtered = filter_logits(log_probs / temperature, top_k, top_p)
    tokens = sample(keys, filtered).astype(jnp.int32)                                  # [B, K]

    def add_to(totals, log_probs):
      token_log_probs = jnp.take_along_axis(log_probs, tokens[..., None], -1)[..., 0]
      return totals + jnp.where(state.ended, 0.0, token_log_probs)

    ids = state.ids.at[:, :, state.cur_index].set(jnp.where(state.ended, pad_id, tokens))
    return SamplingState(state.cur_index + 1, tokens, ids, add_to(state.log_probs, log_probs),
                         add_to(state.draw_log_probs, jax.nn.log_softmax(filtered)),
                         state.ended | (tokens == eos_id), cache)

  shape = (batch_size, num_samples)
  init_state = SamplingState(
      cur_index=jnp.int32(0), last_tokens=jnp.full(shape, bos_id, jnp.int32),
      ids=jnp.full((*shape, max_length), pad_id, jnp.int32), log_probs=jnp.zeros(shape, jnp.float32),
      draw_log_probs=jnp.zeros(shape, jnp.float32), ended=jnp.zeros(shape, bool), cache=cache)
  state = while_loop_with_growing_cache(cond_fn, body_fn, init_state, cache_resizer, max_length)
  return SampleResult(state.ids, state.log_probs, state.draw_log_probs)


def filter_logits(logits: jax.Array, top_k: int, top_p: float) -> jax.Array:
  """Returns the logits [..., vocabulary] with -inf for each token that may not be drawn.

  Args:
    logits: float32 [..., vocabulary].
    top_k: exactly this many of the most likely tokens are kept; of equally likely ones those with the lower id. 0
      keeps all.
    top_p: of these, the smallest set of most likely tokens whose probabilities sum to at least `top_p` is kept
      (nucleus sampling, Holtzman et al., ICLR 2020), and all tokens as likely as its last one. 1 keeps all.
  """
  vocab_size = logits.shape[-1]
  if 0 < top_k < vocab_size:
    _, tokens = jax.lax.top_k(logits, top_k)                                           # [..., top_k]
    kept = jax.nn.one_hot(tokens, vocab_size, dtype=bool).any(-2)                      # no scatter, as B may be sharded
    logits = jnp.where(kept, logits, -jnp.inf)
  if top_p < 1:
    ranked = -jnp.sort(-jax.nn.softmax(logits), axis=-1)                               # most likely first
    mass_before = jnp.cumsum(ranked, -1) - ranked                                    # mass of the tokens ranked higher
    threshold = jnp.where(mass_before < top_p, ranked, jnp.inf).min(-1, keepdims=True)
    logits = jnp.where(jax.nn.softmax(logits) >= threshold, logits, -jnp.inf)
  return logits
