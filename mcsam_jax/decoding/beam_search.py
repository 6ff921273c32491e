"""Beam search in one compiled loop, with finished reports kept apart from live beams.

A study has K live beams, which are all `cur_index` tokens long, and up to K finished reports. Each step:

  1. The model gives log-probabilities for the next token of each live beam: K * vocabulary candidates per study.
  2. The C candidates with the highest total log-probability are kept.
  3. Candidates that end with eos compete with those already finished; the K best by score are kept.
  4. The K best candidates that may continue become the new live beams, and the cache is reordered to match.

`finished_beams` decides what C is and which candidates may continue:

  separate  C = 2K, and only candidates without eos continue. Each beam yields only one candidate with eos, so at most
           K of the 2K end, and a finished report never displaces a live beam (as in t5x).
  in_place  C = K, and all continue. A candidate that ends is recorded as finished but keeps its beam, with
           FINISHED_PENALTY subtracted from its log-probability, so that candidates of live beams displace it in the
           next step (as in R2GenCMN). Beams that `max_length` cuts off count as finished.

The loop ends after `max_length` steps, or earlier when no live beam can still enter the finished list. Reports are
ranked by  log_prob / ((5 + length) / 6) ** length_penalty  (Wu et al. 2016), where the length includes eos.

The loop, `decode_step` and the layout of the cache are described in `loop.py`.

Shapes: B studies, K beams, C candidates per study, T tokens.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mcsam_jax.decoding.greedy import greedy_search
from mcsam_jax.decoding.loop import (
  ban_repeated_ngrams,
  Cache,
  CacheResizer,
  DecodeStep,
  next_token_log_probs,
  while_loop_with_growing_cache,
)

EMPTY_BEAM_LOG_PROB = -1e9   # the score of an empty beam, too; finite, as JSON has no -inf
FINISHED_PENALTY = 1000.0    # R2GenCMN's


class BeamResult(NamedTuple):
  """The K best reports of each study: finished reports first, then cut-off ones, each best first.

  Reports are cut off by `max_length`. Where there are fewer possible reports than beams, the last are empty beams: only
  pad, length 0, log-probability and score EMPTY_BEAM_LOG_PROB.
  """
  ids: jax.Array        # int32 [B, K, T], tokens after bos: up to and including eos if it was reached, then pad
  log_probs: jax.Array  # float32 [B, K], summed over the tokens, eos included
  scores: jax.Array     # float32 [B, K], log_probs with the length penalty
  lengths: jax.Array    # int32 [B, K], eos included


class BeamState(NamedTuple):
  """The state of the decoding loop. Live beams and finished reports are sorted, best first."""
  cur_index: jax.Array       # int32 [], tokens generated so far, the same for all live beams
  live_ids: jax.Array        # int32 [B, K, T]
  live_log_probs: jax.Array  # float32 [B, K]; -inf: empty beam
  last_tokens: jax.Array     # int32 [B, K], input of the next step
  finished: BeamResult       # a score of -inf: empty beam
  cache: Cache


def gather_beams(tree: Any, beam_indices: jax.Array) -> Any:
  """Returns the tree with `beam_indices` int32 [B, L] picked from the second axis of each leaf [B, K, ...].

  It uses `take_along_axis`: indexing with x[batch, beam] would make XLA all-gather a sharded cache.
  """
  def gather(leaf):
    indices = beam_indices.reshape(beam_indices.shape + (1,) * (leaf.ndim - 2))
    return jnp.take_along_axis(leaf, indices, axis=1, mode="promise_in_bounds")
  return jax.tree.map(gather, tree)


def beam_search(decode_step: DecodeStep, cache: Cache, *, batch_size: int, beam_size: int, max_length: int, bos_id: int,
                eos_id: int, pad_id: int, min_length: int = 0, length_penalty: float = 0.0,
                no_repeat_ngram_size: int = 0, finished_beams: str = "separate", early_stop: bool = True,
                cache_resizer: CacheResizer | None = None) -> BeamResult:
  """Returns the `beam_size` (K) best reports per study, each of at most `max_length` tokens (T), eos included.

  With one beam this is greedy search.

  Args:
    decode_step, cache, cache_resizer: the model, see `loop.py`; the cache is for B studies with K beams each.
    batch_size: B.
    beam_size: K.
    max_length: T.
    bos_id, eos_id, pad_id: special tokens; they may share one id.
    min_length: tokens that a report has before eos is allowed.
    length_penalty: exponent in the module's formula; 0: no penalty.
    no_repeat_ngram_size: no n-gram of this size occurs twice in a report; 0: no limit.
    finished_beams: separate | in_place, see above.
    early_stop: end the loop when no live beam of any study can still enter the finished list. The result is the same.
  """
  in_place = {"separate": False, "in_place": True}[finished_beams]
  # length_divisors[l] belongs to a report of l tokens.
  length_divisors = ((5.0 + jnp.arange(max_length + 1, dtype=jnp.float32)) / 6.0) ** length_penalty   # [T + 1]
  # The largest divisor at this length or any later one: it brings a negative log-probability closest to zero.
  max_later_divisors = jax.lax.cummax(length_divisors, reverse=True)

  if beam_size == 1:
    # With K = 1 the loop below would also finish on an eos that is only the second most likely token.
    ids, log_probs = greedy_search(decode_step, cache, batch_size=batch_size, max_length=max_length, bos_id=bos_id,
                                   eos_id=eos_id, pad_id=pad_id, min_length=min_length,
                                   no_repeat_ngram_size=no_repeat_ngram_size, cache_resizer=cache_resizer)
    is_eos = ids == eos_id
    lengths = jnp.where(is_eos.any(-1), jnp.argmax(is_eos, -1) + 1, max_length).astype(jnp.int32)
    result = BeamResult(ids, log_probs, log_probs / length_divisors[lengths], lengths)
    return _clear_empty_beams(jax.tree.map(lambda leaf: leaf[:, None], result), pad_id)

  def cond_fn(state: BeamState):
    more_tokens = state.cur_index < max_length
    if not early_stop:
      return more_tokens
    # Adding tokens only lowers a log-probability, so this bounds the score that the best live beam can reach. On
    # equal scores the earlier report stays, so a live beam has to exceed the worst finished one.
    best_reachable = state.live_log_probs[:, 0] / max_later_divisors[jnp.minimum(state.cur_index + 1, max_length)]
    return more_tokens & jnp.any(best_reachable > state.finished.scores[:, -1])

  def body_fn(state: BeamState):
    # 1. Log-probabilities of the next token.
    logits, cache = decode_step(state.last_tokens, state.cache)
    log_probs = next_token_log_probs(logits, state.cur_index, bos_id=bos_id, eos_id=eos_id, pad_id=pad_id,
                                     min_length=min_length)                                   # [B, K, vocabulary]
    log_probs = ban_repeated_ngrams(log_probs, state.live_ids, state.cur_index, no_repeat_ngram_size)
    vocab_size = log_probs.shape[-1]
    totals = (state.live_log_probs[:, :, None] + log_probs).reshape(batch_size, -1)           # [B, K * vocabulary]

    # 2. The best candidates: C = K or 2K.
    candidate_log_probs, flat_indices = jax.lax.top_k(totals, beam_size if in_place else 2 * beam_size)   # [B, C]
    parents, tokens = flat_indices // vocab_size, flat_indices % vocab_size
    candidate_ids = gather_beams(state.live_ids, parents).at[:, :, state.cur_index].set(tokens)   # [B, C, T]
    length = state.cur_index + 1
    ends = tokens == eos_id

    # 3. Finished reports: the K best of those before and those that end now.
    finishes = (ends | (length == max_length)) if in_place else ends
    new_finished = BeamResult(candidate_ids, candidate_log_probs,
                              jnp.where(finishes, candidate_log_probs / length_divisors[length], -jnp.inf),
                              jnp.full_like(tokens, length))
    all_finished = _concatenate(state.finished, new_finished)                                 # K + C
    _, best = jax.lax.top_k(all_finished.scores, beam_size)                                   # [B, K]
    finished = gather_beams(all_finished, best)

    # 4. Live beams: the K best candidates that continue.
    continuing_log_probs = candidate_log_probs - jnp.where(ends, FINISHED_PENALTY if in_place else jnp.inf, 0.0)
    live_log_probs, survivors = jax.lax.top_k(continuing_log_probs, beam_size)                # [B, K] of C
    beams = gather_beams(cache["beams"], gather_beams(parents, survivors))
    return BeamState(length, gather_beams(candidate_ids, survivors), live_log_probs, gather_beams(tokens, survivors),
                     finished, cache | {"beams": beams})

  shape = (batch_size, beam_size)
  no_ids = jnp.full(shape + (max_length,), pad_id, jnp.int32)
  all_empty = jnp.full(shape, -jnp.inf, jnp.float32)
  # All beams start with bos. All but the first are empty beams, as K equal beams would stay equal.
  init_state = BeamState(
      cur_index=jnp.int32(0), live_ids=no_ids, live_log_probs=all_empty.at[:, 0].set(0.0),
      last_tokens=jnp.full(shape, bos_id, jnp.int32),
      finished=BeamResult(no_ids, all_empty, all_empty, jnp.zeros(shape, jnp.int32)), cache=cache)
  state = while_loop_with_growing_cache(cond_fn, body_fn, init_state, cache_resizer, max_length, beam_size)

  cut_off = BeamResult(state.live_ids, state.live_log_probs, state.live_log_probs / length_divisors[state.cur_index],
                       jnp.full(shape, state.cur_index))
  # Both are sorted, with empty beams last: the cut-off reports follow the last finished one.
  num_finished = jnp.sum(state.finished.scores > -jnp.inf, axis=1, keepdims=True)             # [B, 1]
  rank = jnp.arange(beam_size)
  chosen = jnp.where(rank < num_finished, rank, beam_size + rank - num_finished)              # [B, K] of 2K
  return _clear_empty_beams(gather_beams(_concatenate(state.finished, cut_off), chosen), pad_id)


def _concatenate(first: BeamResult, second: BeamResult) -> BeamResult:
  """Returns the reports of both along the axis of the beams."""
  return jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis=1), first, second)


def _clear_empty_beams(result: BeamResult, pad_id: int) -> BeamResult:
  """Returns the result with reports of probability zero replaced by empty beams, see `BeamResult`."""
  empty = result.log_probs == -jnp.inf
  return BeamResult(jnp.where(empty[:, :, None], pad_id, result.ids),
                    jnp.where(empty, EMPTY_BEAM_LOG_PROB, result.log_probs),
                    jnp.where(empty, EMPTY_BEAM_LOG_PROB, result.scores),
                    jnp.where(empty, 0, result.lengths))
