"""Greedy search against a loop in Python over the same tables of logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcsam_jax.decoding.greedy import ban_repeated_ngrams, cache_schedule, greedy_search, next_token_log_probs

APART = dict(bos_id=1, eos_id=2, pad_id=0)


def python_greedy(table, *, bos_id, eos_id, pad_id, min_length):
  """One study: tokens and summed log-probability under `table` [T, V, V]."""
  ids, last, total = [], bos_id, 0.0
  for position, logits in enumerate(table.astype(np.float64)):
    log_probs = logits[last] - np.log(np.exp(logits[last]).sum())
    banned = {bos_id, pad_id} - {eos_id} | ({eos_id} if position < min_length else set())
    last = max(set(range(len(log_probs))) - banned, key=lambda token: log_probs[token])
    ids.append(last)
    total += log_probs[last]
    if last == eos_id:
      break
  return ids + [pad_id] * (len(table) - len(ids)), total


@pytest.mark.parametrize("special_ids", [dict(bos_id=0, eos_id=0, pad_id=0), APART])
def test_equals_a_loop_in_python(special_ids):
  studies, length, vocabulary = 30, 8, 6
  tables = np.random.RandomState(0).standard_normal((studies, length, vocabulary, vocabulary))
  tables[..., special_ids["eos_id"]] += 0.5                    # so that reports end at different lengths

  def step(ids, position):
    now = jnp.asarray(tables, jnp.float32)[:, position]        # [B, V, V]
    return jax.vmap(lambda table, last: table[last])(now, ids), position + 1

  search = jax.jit(lambda min_length: greedy_search(
      step, jnp.int32(0), batch_size=studies, max_length=length, min_length=min_length, **special_ids))
  for min_length in (0, 3, 8):
    result = jax.device_get(search(min_length))
    for study, table in enumerate(tables):
      ids, log_prob = python_greedy(table, min_length=min_length, **special_ids)
      assert result.ids[study].tolist() == ids
      assert result.log_probs[study] == pytest.approx(log_prob, rel=1e-5, abs=1e-5)


def test_forbidden_tokens_keep_their_share_of_probability():
  """What is left is the model's own probability, not scaled up to 1."""
  logits = jnp.log(jnp.array([.1, .2, .3, .4]))
  for num_written, expected in [(0, [0, 0, 0, .4]), (1, [0, 0, .3, .4])]:
    log_probs = next_token_log_probs(logits, num_written, min_length=1, **APART)
    np.testing.assert_allclose(jnp.exp(log_probs), expected, rtol=1e-5)


@pytest.mark.parametrize("size, blocked", [(0, []), (1, [3, 4, 5]), (2, [4]), (3, [4]), (4, []), (9, [])])
def test_what_would_repeat_is_blocked(size, blocked):
  """After 3 5 4 3 5: 4 would make 5 4 and 3 5 4 stand twice. What lies behind the written tokens doesn't count."""
  ids = jnp.array([[3, 5, 4, 3, 5, 3, 3, 3]])
  log_probs = ban_repeated_ngrams(jnp.zeros((1, 7)), ids, jnp.int32(5), size)
  assert np.flatnonzero(np.isneginf(log_probs[0])).tolist() == blocked


def test_a_cache_grows_to_all_that_beams_can_need():
  assert cache_schedule(100, 100) == [25, 50, 75, 100]                 # one beam, or beams that share nothing
  assert cache_schedule(100, 300) == [41, 66, 91, 116, 232, 300]
  assert cache_schedule(6, 18) == [18] and cache_schedule(20, 20) == [20]
  for usual in range(1, 130):
    for beams in (1, 2, 5, 128):
      sizes = cache_schedule(usual, usual * beams)
      assert sizes[-1] == usual * beams and sorted(set(sizes)) == sizes
