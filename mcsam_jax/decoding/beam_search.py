"""Beam search that keeps finished reports apart from live ones, as one compiled loop.

Each step extends the K live beams of a study by one token. What becomes of the candidates:

  separate  Of the 2K likeliest, those that end with eos compete for the K finished places, and the K best of the
           others live on. A beam has one way to end, so at least K of the 2K go on, and a finished report never
           takes a live one's place (t5x does the same).
  in_place  Only the K likeliest stay. One that ends is noted as finished and keeps its place for that step; then it
           goes on with OCCUPIED off its log-probability, so that live beams take the place if they can (R2GenCMN
           does the same). A beam that `max_length` cuts off counts as finished.

Reports are ranked by  log_prob / ((5 + length) / 6) ** length_penalty  (Wu et al. 2016), length with eos.

`step` and the layout of the cache are described in `greedy.py`.

Shapes: B studies, K beams, T tokens.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mcsam_jax.decoding.greedy import (
  ban_repeated_ngrams,
  Cache,
  CacheResizer,
  greedy_search,
  next_token_log_probs,
  Step,
  while_loop_with_growing_cache,
)

# Log-probability and score of a place for which no report exists: finite, as JSON knows no -inf.
NO_HYPOTHESIS = -1e9
FINISHED_PENALTY = 1000.0           # R2GenCMN's


class BeamResult(NamedTuple):
  """The K best reports of each study, best first.

  Finished reports come before those that `max_length` cut off: these only fill the places that no finished
  one takes, ranked by score among themselves. A place may stay empty (more beams than possible reports): only
  pad, length 0, both numbers NO_HYPOTHESIS.
  """
  ids: jax.Array        # int32 [B, K, T], tokens after bos, with eos where it was reached and pad behind it
  log_probs: jax.Array  # float32 [B, K], summed over the tokens, eos included
  scores: jax.Array     # float32 [B, K], the same with the length penalty
  lengths: jax.Array    # int32 [B, K], eos counts


class _Search(NamedTuple):
  """What goes round the loop. All live beams are `num_written` tokens long and sorted, best first."""
  num_written: jax.Array     # int32 []
  live_ids: jax.Array        # int32 [B, K, T]
  live_log_probs: jax.Array  # float32 [B, K]; -inf: no such beam
  last: jax.Array            # int32 [B, K], the token that the next step reads
  finished: BeamResult       # sorted; a score of -inf: place still free
  cache: Cache


def gather_beams(tree, beams: jax.Array):
  """Picks `beams` int32 [B, L] from the second axis of every leaf [B, K, ...].

  With `take_along_axis`, as x[study, beam] makes XLA gather a sharded cache onto every device.
  """
  def take(leaf):
    index = beams.reshape(beams.shape + (1,) * (leaf.ndim - 2))
    return jnp.take_along_axis(leaf, index, axis=1, mode="promise_in_bounds")
  return jax.tree.map(take, tree)


def beam_search(step: Step, cache: Cache, *, batch_size: int, beam_size: int, max_length: int, bos_id: int,
                eos_id: int, pad_id: int, min_length: int = 0, length_penalty: float = 0.0,
                no_repeat_ngram_size: int = 0, finished_beams: str = "separate", early_stop: bool = True,
                room: CacheResizer | None = None) -> BeamResult:
  """Returns the `beam_size` (K) best reports a study, each of at most `max_length` (T) tokens, eos included.

  A beam of one is greedy search.

  Args:
    step, cache, room: the model, see `greedy.py`; the cache is for B studies of K beams.
    min_length: tokens that are written before eos may be.
    length_penalty: exponent of the formula above; 0: none.
    no_repeat_ngram_size: no run of so many tokens stands twice in a report; 0: anything may.
    finished_beams: separate | in_place, see above.
    early_stop: ends the loop once no live beam of any study can still displace a finished report: the result is
      the same, sooner.
  """
  in_place = {"separate": False, "in_place": True}[finished_beams]
  # Entry l belongs to a report of l tokens.
  penalties = ((5.0 + jnp.arange(max_length + 1, dtype=jnp.float32)) / 6.0) ** length_penalty       # [T + 1]
  # The kindest penalty of this length or any later one, whichever way `length_penalty` pulls.
  kindest = jax.lax.cummax(penalties, reverse=True)

  if beam_size == 1:
    # The scheme above would also finish a report whose eos is merely runner-up: a wider search than greedy.
    ids, log_probs = greedy_search(step, cache, batch_size=batch_size, max_length=max_length, bos_id=bos_id,
                                   eos_id=eos_id, pad_id=pad_id, min_length=min_length, no_repeat_ngram_size=no_repeat_ngram_size,
                                   room=room)
    is_eos = ids == eos_id
    lengths = jnp.where(is_eos.any(-1), jnp.argmax(is_eos, -1) + 1, max_length).astype(jnp.int32)
    only = BeamResult(ids, log_probs, log_probs / penalties[lengths], lengths)
    return _clear_empty(jax.tree.map(lambda leaf: leaf[:, None], only), pad_id)

  def searching(search):
    more = search.num_written < max_length
    if not early_stop:
      return more
    # A log-probability only falls as tokens are added, so this is the most that the best live beam can reach.
    # An equal score would not displace a finished report either: ties keep the earlier one.
    reachable = search.live_log_probs[:, 0] / kindest[jnp.minimum(search.num_written + 1, max_length)]
    return more & jnp.any(reachable > search.finished.scores[:, -1])

  def extend(search):
    logits, cache = step(search.last, search.cache)
    options = next_token_log_probs(logits, search.num_written, bos_id=bos_id, eos_id=eos_id, pad_id=pad_id,
                                   min_length=min_length)                         # [B, K, vocabulary]
    options = ban_repeated_ngrams(options, search.live_ids, search.num_written, no_repeat_ngram_size)
    vocabulary = options.shape[-1]
    totals = (search.live_log_probs[:, :, None] + options).reshape(batch_size, -1)  # [B, K * vocabulary]
    log_probs, flat = jax.lax.top_k(totals, beam_size if in_place else 2 * beam_size)   # both [B, C], C = K or 2K
    parents, tokens = flat // vocabulary, flat % vocabulary
    ids = gather_beams(search.live_ids, parents).at[:, :, search.num_written].set(tokens)  # [B, C, T]
    length = search.num_written + 1
    ends = tokens == eos_id
    counts = ends | (length == max_length) if in_place else ends

    ended = BeamResult(ids, log_probs, jnp.where(counts, log_probs / penalties[length], -jnp.inf),
                       jnp.full_like(tokens, length))
    contest = jax.tree.map(lambda old, new: jnp.concatenate([old, new], axis=1), search.finished, ended)
    _, best = jax.lax.top_k(contest.scores, beam_size)                           # [B, K] of K + C
    live = log_probs - jnp.where(ends, FINISHED_PENALTY if in_place else jnp.inf, 0.0)
    live_log_probs, on = jax.lax.top_k(live, beam_size)                           # [B, K] of C
    moved = cache | {"beams": gather_beams(cache["beams"], gather_beams(parents, on))}
    return _Search(length, gather_beams(ids, on), live_log_probs, gather_beams(tokens, on), gather_beams(contest, best),
                   moved)

  places = (batch_size, beam_size)
  no_ids = jnp.full(places + (max_length,), pad_id, jnp.int32)
  none = jnp.full(places, -jnp.inf, jnp.float32)
  # All beams begin alike: only the first may be extended, or all K would stay the same.
  start = _Search(jnp.int32(0), no_ids, none.at[:, 0].set(0.0), jnp.full(places, bos_id, jnp.int32),
                  BeamResult(no_ids, none, none, jnp.zeros(places, jnp.int32)), cache)
  search = while_loop_with_growing_cache(searching, extend, start, room, max_length, beam_size)

  cut_off = BeamResult(search.live_ids, search.live_log_probs,
                       search.live_log_probs / penalties[search.num_written],
                       jnp.full(places, search.num_written))
  both = jax.tree.map(lambda first, then: jnp.concatenate([first, then], axis=1), search.finished, cut_off)
  num_finished = jnp.sum(search.finished.scores > -jnp.inf, axis=1, keepdims=True)  # [B, 1]
  place = jnp.arange(beam_size)
  # Both halves are sorted, free places last: the cut-off ones follow the last finished one.
  chosen = jnp.where(place < num_finished, place, beam_size + place - num_finished)  # [B, K] of 2K
  return _clear_empty(gather_beams(both, chosen), pad_id)


def _clear_empty(result: BeamResult, pad_id: int) -> BeamResult:
  """Makes places of probability zero empty, as `BeamResult` describes them."""
  empty = result.log_probs == -jnp.inf
  return BeamResult(jnp.where(empty[:, :, None], pad_id, result.ids),
                    jnp.where(empty, NO_HYPOTHESIS, result.log_probs),
                    jnp.where(empty, NO_HYPOTHESIS, result.scores),
                    jnp.where(empty, 0, result.lengths))
