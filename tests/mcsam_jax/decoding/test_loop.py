"""What all searches share: allowed tokens, repeated n-grams, and a cache that grows."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcsam_jax.decoding.loop import (
  ban_repeated_ngrams,
  cache_schedule,
  CacheResizer,
  next_token_log_probs,
  while_loop_with_growing_cache,
)


def test_forbidden_tokens_keep_their_share_of_probability():
  """The probabilities of the allowed tokens are the model's own, not scaled up to sum to 1."""
  logits = jnp.log(jnp.array([.1, .2, .3, .4]))
  for cur_index, expected in [(0, [0, 0, 0, .4]), (1, [0, 0, .3, .4])]:
    log_probs = next_token_log_probs(logits, cur_index, min_length=1, bos_id=1, eos_id=2, pad_id=0)
    np.testing.assert_allclose(jnp.exp(log_probs), expected, rtol=1e-5)


@pytest.mark.parametrize("ngram_size, banned", [(0, []), (1, [3, 4, 5]), (2, [4]), (3, [4]), (4, []), (9, [])])
def test_tokens_that_would_repeat_an_ngram_are_banned(ngram_size, banned):
  """After 3 5 4 3 5, token 4 would repeat both 5 4 and 3 5 4. Entries from `cur_index` on don't count."""
  ids = jnp.array([[3, 5, 4, 3, 5, 3, 3, 3]])
  log_probs = ban_repeated_ngrams(jnp.zeros((1, 7)), ids, jnp.int32(5), ngram_size)
  assert np.flatnonzero(np.isneginf(log_probs[0])).tolist() == banned


def test_cache_schedule_ends_with_all_slots_that_beams_can_need():
  assert cache_schedule(100, 100) == [25, 50, 75, 100]                 # one beam, or beams that share nothing
  assert cache_schedule(100, 300) == [41, 66, 91, 116, 232, 300]
  assert cache_schedule(6, 18) == [18] and cache_schedule(20, 20) == [20]
  for max_length in range(1, 130):
    for num_beams in (1, 2, 5, 128):
      sizes = cache_schedule(max_length, max_length * num_beams)
      assert sizes[-1] == max_length * num_beams and sorted(set(sizes)) == sizes


@pytest.mark.parametrize("stop_at", [0, 1, 25, 26, 60, 100])
def test_loop_grows_its_cache_only_when_it_is_full(stop_at):
  """The cache counts its slots; a step writes its index, which later sizes have to keep."""
  class State(NamedTuple):
    cur_index: jax.Array
    total: jax.Array
    size: jax.Array
    cache: dict | None

  def grow(cache, num_slots):
    return {"slots": jnp.pad(cache["slots"], (0, num_slots - len(cache["slots"]))), "used": cache["used"]}

  def body_fn(state):
    slots = state.cache["slots"].at[state.cur_index].set(state.cur_index + 1, mode="drop")
    cache = {"slots": slots, "used": state.cache["used"] + 1}
    return State(state.cur_index + 1, slots.sum(), jnp.int32(len(slots)), cache)

  def run(cache_resizer, num_slots):
    init_state = State(jnp.int32(0), jnp.int32(0), jnp.int32(0),
                       {"slots": jnp.zeros(num_slots, jnp.int32), "used": jnp.int32(0)})
    cond_fn = lambda state: state.cur_index < stop_at
    return while_loop_with_growing_cache(cond_fn, body_fn, init_state, cache_resizer, 100)

  growing = run(CacheResizer(grow, lambda cache: cache["used"] >= len(cache["slots"])), 0)
  assert growing.cache is None and growing.cur_index == stop_at
  assert growing.total == run(None, 100).total == stop_at * (stop_at + 1) // 2
  assert growing.size == next(size for size in [0, *cache_schedule(100, 100)] if size >= stop_at)
