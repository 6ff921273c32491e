"""Greedy search equals a loop in Python over the same tables of logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcsam_jax.decoding.greedy import greedy_search

SHARED_IDS = dict(bos_id=0, eos_id=0, pad_id=0)
SEPARATE_IDS = dict(bos_id=1, eos_id=2, pad_id=0)


def python_greedy(table, *, bos_id, eos_id, pad_id, min_length):
  """Returns the tokens of one study and their summed log-probability under `table` [T, vocabulary, vocabulary]."""
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


@pytest.mark.parametrize("special_ids", [SHARED_IDS, SEPARATE_IDS])
def test_greedy_search_equals_a_loop_in_python(special_ids):
  studies, length, vocabulary = 30, 8, 6
  tables = np.random.RandomState(0).standard_normal((studies, length, vocabulary, vocabulary))
  tables[..., special_ids["eos_id"]] += 0.5                    # so that reports end at different lengths

  def decode_step(tokens, position):
    current = jnp.asarray(tables, jnp.float32)[:, position]    # [B, vocabulary, vocabulary]
    return jax.vmap(lambda table, tokens: table[tokens])(current, tokens), position + 1

  search = jax.jit(lambda min_length: greedy_search(
      decode_step, jnp.int32(0), batch_size=studies, max_length=length, min_length=min_length, **special_ids))
  for min_length in (0, 3, 8):
    result = jax.device_get(search(min_length))
    for study, table in enumerate(tables):
      ids, log_prob = python_greedy(table, min_length=min_length, **special_ids)
      assert result.ids[study].tolist() == ids
      assert result.log_probs[study] == pytest.approx(log_prob, rel=1e-5, abs=1e-5)
