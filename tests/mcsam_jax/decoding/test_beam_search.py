"""Beam search on synthetic models: a known best path, exhaustive search, a plain beam search, invariances.

The models are random tables of logits, or functions of all tokens so far; no network is needed.
"""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcsam_jax.decoding.beam_search import beam_search, BeamResult, EMPTY_BEAM_LOG_PROB, gather_beams
from mcsam_jax.decoding.greedy import greedy_search

SHARED_IDS: dict[str, Any] = dict(bos_id=0, eos_id=0, pad_id=0)
SEPARATE_IDS: dict[str, Any] = dict(bos_id=1, eos_id=2, pad_id=0)


def make_decode_step(tables):
  """Returns a model with logits tables[study, position, last token], for tables [B, T, vocabulary, vocabulary]."""
  tables = jnp.asarray(tables)
  def decode_step(tokens, cache):
    position = cache["position"]
    logits = jax.vmap(lambda table, tokens: table[tokens])(tables[:, position], tokens)
    return logits, cache | {"position": position + 1}
  return decode_step


def init_cache():
  return {"position": jnp.int32(0), "beams": None}


@functools.partial(jax.jit, static_argnames=(
    "beam_size", "early_stop", "bos_id", "eos_id", "pad_id", "finished_beams", "no_repeat_ngram_size"))
def compiled_search(tables, min_length, length_penalty, **arguments):
  return beam_search(make_decode_step(tables), init_cache(), batch_size=tables.shape[0], max_length=tables.shape[1],
                     min_length=min_length, length_penalty=length_penalty, **arguments)


def search_tables(tables, min_length=0, length_penalty=0.0, **arguments) -> BeamResult:
  """Returns the result of the compiled search as NumPy arrays."""
  return jax.device_get(compiled_search(tables, min_length, length_penalty, **arguments))


@functools.partial(jax.jit, static_argnames=("bos_id", "eos_id", "pad_id"))
def greedy_tables(tables, min_length=0, **special_ids):
  return greedy_search(make_decode_step(tables), init_cache(), batch_size=tables.shape[0],
                       max_length=tables.shape[1], min_length=min_length, **special_ids)


def random_tables(seed, studies, length, vocabulary, scale=1.5):
  draw = np.random.RandomState(seed).standard_normal((studies, length, vocabulary, vocabulary))
  return (scale * draw).astype(np.float32)


def log_softmax(logits):
  logits = np.asarray(logits, np.float64)
  return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)


def table_log_prob(table, sequence, bos_id):
  """Returns the log-probability of `sequence` under `table` [T, vocabulary, vocabulary], without search or cache."""
  inputs = (bos_id,) + tuple(sequence)
  return sum(log_softmax(table[t, inputs[t]])[token] for t, token in enumerate(sequence))


def penalty(length, alpha):
  return ((5 + length) / 6) ** alpha


def list_words(vocab_size, special_ids):
  """Returns the tokens that are not special."""
  return [token for token in range(vocab_size) if token not in special_ids.values()]


def repeats_ngram(sequence, size):
  """Returns whether the last `size` tokens also occur earlier in the sequence."""
  ngrams = [sequence[start:start + size] for start in range(len(sequence) - size + 1)]
  return size > 0 and len(sequence) >= size and ngrams[-1] in ngrams[:-1]


def python_beam_search(next_log_probs, *, beam_size, max_length, words, eos_id, min_length, alpha, ngram_size=0,
                       in_place=False):
  """Returns the result of the same search on lists, as (sequence, log-probability, score): best first, finished first.

  `next_log_probs(sequence)` [vocabulary] is called for each sequence, so there is no cache.
  """
  live, finished = [((), 0.0)], []
  for length in range(1, max_length + 1):
    candidates = []
    for sequence, log_prob in live:
      log_probs = next_log_probs(sequence)
      allowed = words + ([eos_id] if length > min_length else [])
      candidates += [(sequence + (token,), log_prob + log_probs[token]) for token in allowed
                     if not repeats_ngram(sequence + (token,), ngram_size)]
    candidates = sorted(candidates, key=lambda candidate: -candidate[1])[:beam_size if in_place else 2 * beam_size]
    if in_place:
      finished += [candidate for candidate in candidates if candidate[0][-1] == eos_id or length == max_length]
      live = [(sequence, log_prob - 1000 * (sequence[-1] == eos_id)) for sequence, log_prob in candidates]
      continue
    finished += [candidate for candidate in candidates if candidate[0][-1] == eos_id]
    live = [candidate for candidate in candidates if candidate[0][-1] != eos_id][:beam_size]
  ranked = []
  for group in (finished, [] if in_place else live):
    scored = [(sequence, log_prob, log_prob / penalty(len(sequence), alpha)) for sequence, log_prob in group]
    ranked += sorted(scored, key=lambda hypothesis: -hypothesis[2])
  return ranked[:beam_size]


def list_hypotheses(result: BeamResult, study):
  """Returns the non-empty beams of one study as (sequence, log-probability, score)."""
  return [(tuple(ids[:length].tolist()), float(log_prob), float(score)) for ids, log_prob, score, length
          in zip(*(leaf[study] for leaf in result)) if length]


def assert_equal_hypotheses(actual, expected):
  assert [sequence for sequence, _, _ in actual] == [sequence for sequence, _, _ in expected]
  np.testing.assert_allclose([h[1:] for h in actual], [h[1:] for h in expected], rtol=1e-5, atol=1e-5)


def assert_same(first: BeamResult, second: BeamResult):
  jax.tree.map(np.testing.assert_array_equal, first, second)


def test_finds_the_known_best_path_where_greedy_fails():
  # "3 5 eos" has .4 * .9 * 1. Greedy search picks word 4 with .6, after which no word is likely.
  probabilities = np.full((3, 6, 6), 1e-9)
  probabilities[0, 1, [3, 4]] = .4, .6
  probabilities[1, 3, [5, 3]] = .9, .1
  probabilities[1, 4, [3, 4, 5]] = .35, .33, .32
  probabilities[2, :, 2] = 1.0
  tables = np.log(probabilities)[None].astype(np.float32)
  result = search_tables(tables, beam_size=2, **SEPARATE_IDS)
  greedy = greedy_tables(tables, **SEPARATE_IDS)
  assert result.ids[0].tolist() == [[3, 5, 2], [4, 3, 2]]
  np.testing.assert_allclose(np.exp(result.log_probs[0]), [.36, .21], rtol=1e-4)
  assert greedy.ids[0].tolist() == [4, 3, 2]


@pytest.mark.parametrize("special_ids, vocabulary", [(SHARED_IDS, 4), (SEPARATE_IDS, 6)])
@pytest.mark.parametrize("alpha, min_length", [(0.0, 0), (1.0, 0), (-0.7, 0), (0.6, 2)])
def test_a_wide_beam_equals_exhaustive_search(special_ids, vocabulary, alpha, min_length):
  length, eos = 4, special_ids["eos_id"]
  words = list_words(vocabulary, special_ids)                   # 3 words: 40 finished reports, 81 cut off
  tables = random_tables(0, 6, length, vocabulary)
  result = search_tables(tables, min_length, alpha, beam_size=128, **special_ids)
  finished = [start + (eos,) for n in range(min_length, length)
              for start in itertools.product(words, repeat=n)]
  cut_off = list(itertools.product(words, repeat=length))
  for study, table in enumerate(tables):
    found = list_hypotheses(result, study)
    expected = {sequence: table_log_prob(table, sequence, special_ids["bos_id"])
                for sequence in finished + cut_off}
    assert {h[0] for h in found[:len(finished)]} == set(finished)
    assert {h[0] for h in found[len(finished):]} == set(cut_off)
    for sequence, log_prob, score in found:
      assert log_prob == pytest.approx(expected[sequence], rel=1e-5, abs=1e-5)
      assert score == pytest.approx(expected[sequence] / penalty(len(sequence), alpha), rel=1e-5, abs=1e-5)
    for group in (found[:len(finished)], found[len(finished):]):
      assert all(better[2] >= worse[2] for better, worse in itertools.pairwise(group))
    empty = np.arange(128) >= len(found)
    assert np.all(result.log_probs[study][empty] == EMPTY_BEAM_LOG_PROB)
    assert np.all(result.ids[study][empty] == special_ids["pad_id"])


@pytest.mark.parametrize("special_ids", [SHARED_IDS, SEPARATE_IDS])
def test_cache_is_reordered_with_the_beams(special_ids):
  """Equals a plain beam search on models whose logits depend on all tokens so far and their positions."""
  studies, beam_size, length, vocabulary, width = 40, 3, 6, 7, 5
  random = np.random.RandomState(1)
  embedding = random.standard_normal((length, vocabulary, width)).astype(np.float32)
  context = random.standard_normal((studies, width)).astype(np.float32)
  readout = 2.5 * random.standard_normal((width, vocabulary)).astype(np.float32)

  def decode_step(tokens, cache):
    position = cache["position"]
    history = cache["beams"].at[:, :, position].set(tokens)                      # [B, K, T]
    visible = jnp.arange(length) <= position
    states = jnp.asarray(embedding)[jnp.arange(length), history]                   # [B, K, T, width]
    states = jnp.where(visible[:, None], states, 0.0)
    logits = jnp.tanh(states.sum(2) + context[:, None]) @ readout
    return logits, {"position": position + 1, "beams": history}

  def uncached(study, sequence):
    inputs = (special_ids["bos_id"],) + sequence
    state = sum(embedding[position, token] for position, token in enumerate(inputs)) + context[study]
    return log_softmax(np.tanh(state) @ readout)

  cache = {"position": jnp.int32(0), "beams": jnp.zeros((studies, beam_size, length), jnp.int32)}
  search = jax.jit(lambda min_length, alpha: beam_search(
      decode_step, cache, batch_size=studies, beam_size=beam_size, max_length=length, min_length=min_length,
      length_penalty=alpha, **special_ids))
  for min_length, alpha in [(0, 0.0), (3, 0.8), (0, -0.5)]:
    result = jax.device_get(search(min_length, alpha))
    for study in range(studies):
      expected = python_beam_search(
          functools.partial(uncached, study), beam_size=beam_size, max_length=length,
          words=list_words(vocabulary, special_ids), eos_id=special_ids["eos_id"], min_length=min_length,
          alpha=alpha)
      assert_equal_hypotheses(list_hypotheses(result, study), expected)


@pytest.mark.parametrize("finished_beams", ["separate", "in_place"])
def test_first_report_is_the_best_by_exhaustive_search(finished_beams):
  """100 models with 3 words and 5 tokens: 364 reports each, and a beam that holds every live one."""
  tables = random_tables(9, 100, 5, 5)
  result = search_tables(tables, beam_size=128, finished_beams=finished_beams, **SEPARATE_IDS)
  words = list_words(5, SEPARATE_IDS)
  reports = [start + (2,) for n in range(5) for start in itertools.product(words, repeat=n)]
  if finished_beams == "in_place":                                    # reports that are cut off count as finished
    reports += list(itertools.product(words, repeat=5))
  for study, table in enumerate(tables):
    scored = {report: table_log_prob(table, report, 1) for report in reports}
    best = max(scored, key=lambda report: scored[report])
    sequence, log_prob, score = list_hypotheses(result, study)[0]
    assert sequence == best
    assert log_prob == score == pytest.approx(scored[best], abs=1e-4)


@pytest.mark.parametrize("finished_beams", ["separate", "in_place"])
@pytest.mark.parametrize("special_ids", [SHARED_IDS, SEPARATE_IDS])
@pytest.mark.parametrize("alpha, ngram_size, min_length",
                         [(0.0, 0, 0), (0.8, 0, 0), (0.0, 2, 0), (0.0, 1, 3), (-0.5, 2, 3)])
def test_beam_3_equals_a_plain_beam_search_on_200_models(finished_beams, special_ids, alpha, ngram_size, min_length):
  tables = random_tables(10, 200, 7, 6)
  result = search_tables(tables, min_length, alpha, beam_size=3, finished_beams=finished_beams,
                         no_repeat_ngram_size=ngram_size, **special_ids)
  for study, table in enumerate(tables):
    expected = python_beam_search(
        lambda sequence: log_softmax(table[len(sequence), ((special_ids["bos_id"],) + sequence)[-1]]), beam_size=3,
        max_length=7, words=list_words(6, special_ids), eos_id=special_ids["eos_id"], min_length=min_length,
        alpha=alpha, ngram_size=ngram_size, in_place=finished_beams == "in_place")
    found = list_hypotheses(result, study)
    if finished_beams == "in_place":                 # all but the best beam may hold reports that have ended twice
      found, expected = ([h for h in reports if h[1] > -500] for reports in (found, expected))
    assert_equal_hypotheses(found, expected)
    assert not any(repeats_ngram(sequence[:n], ngram_size) for sequence, _, _ in found for n in range(len(sequence)))


@pytest.mark.parametrize("finished_beams", ["separate", "in_place"])
@pytest.mark.parametrize("special_ids", [SHARED_IDS, SEPARATE_IDS])
def test_early_stop_does_not_change_the_result(special_ids, finished_beams):
  @functools.partial(jax.jit, static_argnames="early_stop")
  @functools.partial(jax.vmap, in_axes=(0, None, None, None))   # each study stops by itself
  def search(table, min_length, alpha, early_stop):
    return compiled_search(table[None], min_length, alpha, beam_size=3, early_stop=early_stop,
                           finished_beams=finished_beams, **special_ids)

  for seed, scale in enumerate([0.3, 1.0, 3.0]):
    tables = random_tables(seed, 64, 8, 6, scale)
    for alpha in (-1.5, -0.4, 0.0, 0.6, 1.0, 2.5):
      for min_length in (0, 3):
        early, late = (search(tables, min_length, alpha, stop) for stop in (True, False))
        assert_same(early, late)


def test_early_stop_ends_the_loop():
  tables = np.zeros((2, 50, 4, 4), np.float32)
  tables[:, :, :, 0] = 20.0                                   # eos, nearly certain at every step

  def count_steps(early_stop):
    steps = []
    def decode_step(tokens, cache):
      jax.debug.callback(lambda: steps.append(1))
      return make_decode_step(tables)(tokens, cache)
    jax.jit(lambda: beam_search(decode_step, init_cache(), batch_size=2, beam_size=2, max_length=50,
                                early_stop=early_stop, **SHARED_IDS))()
    jax.effects_barrier()
    return len(steps)

  assert count_steps(False) == 50
  assert count_steps(True) <= 3


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_one_beam_equals_greedy_search(alpha):
  tables = random_tables(4, 50, 7, 6)
  greedy = greedy_tables(tables, **SEPARATE_IDS)
  result = search_tables(tables, 0, alpha, beam_size=1, **SEPARATE_IDS)
  np.testing.assert_array_equal(result.ids[:, 0], greedy.ids)
  np.testing.assert_array_equal(result.log_probs[:, 0], greedy.log_probs)
  for study in range(50):
    (sequence, log_prob, score), = list_hypotheses(result, study)
    assert sequence[-1] == SEPARATE_IDS["eos_id"] or len(sequence) == 7
    np.testing.assert_allclose(score, log_prob / penalty(len(sequence), alpha), rtol=1e-5)


def test_a_study_does_not_depend_on_the_rest_of_the_batch():
  tables = random_tables(5, 30, 7, 6)
  joint = search_tables(tables, beam_size=3, **SEPARATE_IDS)
  order = np.random.RandomState(0).permutation(30)
  shuffled = search_tables(tables[order], beam_size=3, **SEPARATE_IDS)
  assert_same(shuffled, jax.tree.map(lambda leaf: leaf[order], joint))
  for study in (0, 7):
    alone = search_tables(tables[study:study + 1], beam_size=3, **SEPARATE_IDS)
    assert_same(alone, jax.tree.map(lambda leaf: leaf[study:study + 1], joint))


@pytest.mark.parametrize("special_ids", [SHARED_IDS, SEPARATE_IDS])
@pytest.mark.parametrize("min_length", [0, 4])
def test_log_probs_belong_to_the_ids(special_ids, min_length):
  """Also: reports differ, eos comes last and not too early, and bos and pad are never generated."""
  tables = random_tables(6, 30, 7, 6)
  tables[..., 0] += 1.0                                       # pad (or eos, if the id is shared) would be likely
  result = search_tables(tables, min_length, 0.5, beam_size=3, **special_ids)
  words = list_words(6, special_ids)
  for study, table in enumerate(tables):
    found = list_hypotheses(result, study)
    assert len(found) == 3 == len({sequence for sequence, _, _ in found})
    for sequence, log_prob, _ in found:
      np.testing.assert_allclose(log_prob, table_log_prob(table, sequence, special_ids["bos_id"]), rtol=1e-5,
                                 atol=1e-5)
      assert set(sequence[:-1]) <= set(words)
      assert sequence[-1] == special_ids["eos_id"] and len(sequence) > min_length or len(sequence) == 7
  after = np.arange(7) >= result.lengths[:, :, None]
  assert np.all(result.ids[after] == special_ids["pad_id"])


@pytest.mark.parametrize("eos_logit", [-1e4, -np.inf])
def test_live_beams_are_returned_when_eos_is_impossible(eos_logit):
  tables = random_tables(7, 5, 5, 6)
  tables[..., 2] = eos_logit
  result = search_tables(tables, 5, 0.7, beam_size=3, **SEPARATE_IDS)
  assert np.all(result.lengths == 5) and not np.any(result.ids == 2)
  assert all(np.all(np.isfinite(leaf)) for leaf in result)
  assert np.all(np.diff(result.scores, axis=1) <= 0)
  for study, table in enumerate(tables):
    expected = python_beam_search(
        lambda sequence: log_softmax(table[len(sequence), ((1,) + sequence)[-1]]), beam_size=3, max_length=5,
        words=[3, 4, 5], eos_id=2, min_length=5, alpha=0.7)
    assert_equal_hypotheses(list_hypotheses(result, study), expected)


def test_finished_reports_come_before_more_likely_ones_that_were_cut_off():
  probabilities = np.full((2, 2, 2), [.01, .99])              # eos, and the only word
  result = search_tables(np.log(probabilities)[None].astype(np.float32), beam_size=3, **SHARED_IDS)
  assert result.ids[0].tolist() == [[0, 0], [1, 0], [1, 1]]
  np.testing.assert_allclose(np.exp(result.log_probs[0]), [.01, .0099, .9801], rtol=1e-4)


def test_bfloat16_logits_are_normalized_in_float32():
  tables = random_tables(8, 4, 5, 300).astype(jnp.bfloat16)
  result = search_tables(tables, beam_size=3, **SEPARATE_IDS)
  for study, table in enumerate(np.asarray(tables, np.float64)):
    for sequence, log_prob, _ in list_hypotheses(result, study):
      np.testing.assert_allclose(log_prob, table_log_prob(table, sequence, 1), rtol=1e-5, atol=1e-5)


def test_gather_beams_picks_from_the_second_axis():
  keys = jnp.arange(24).reshape(2, 3, 4)
  taken = gather_beams({"keys": keys, "last": keys[..., 0]}, jnp.array([[2, 2, 0], [1, 0, 1]]))
  np.testing.assert_array_equal(taken["keys"][:, :, 0], [[8, 8, 0], [16, 12, 16]])
  np.testing.assert_array_equal(taken["last"], [[8, 8, 0], [16, 12, 16]])
