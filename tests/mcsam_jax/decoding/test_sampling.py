"""Draws follow the model's probabilities, and a study's draws are its own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcsam_jax.decoding.greedy import greedy_search
from mcsam_jax.decoding.sampling import filter_logits, sample_search

PAD, BOS, EOS = 0, 1, 2
TABLE = jnp.asarray(np.random.default_rng(0).normal(size=(7, 7)) * 2, jnp.float32)   # logits after each token


def step(words, cache):
  return TABLE[words], cache


@functools.partial(jax.jit, static_argnames=("num_samples", "max_length", "top_k", "top_p", "no_repeat_ngram_size"))
def draw(keys, num_samples=8, max_length=5, temperature=1.0, min_length=0, **cuts):
  return sample_search(step, {}, keys=keys, num_samples=num_samples, max_length=max_length, bos_id=BOS, eos_id=EOS,
                       pad_id=PAD, temperature=temperature, min_length=min_length, **cuts)


def keys(*studies):
  return jax.vmap(lambda study: jax.random.fold_in(jax.random.key(3), study))(jnp.array(studies))


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_first_words_come_as_often_as_the_model_says(temperature):
  first = np.asarray(draw(keys(0), num_samples=20000, max_length=1, temperature=temperature).ids)[0, :, 0]
  logits = np.array(TABLE[BOS])
  logits[[PAD, BOS]] = -np.inf                                   # never written
  expected = np.exp(logits / temperature)
  np.testing.assert_allclose(np.bincount(first, minlength=7) / 20000, expected / expected.sum(), atol=0.015)


def test_top_k_and_top_p_by_hand():
  log_probs = jnp.log(jnp.array([0.1, 0.4, 0.2, 0.3]))
  kept = lambda **cuts: np.isfinite(filter_logits(log_probs, **{"top_k": 0, "top_p": 1.0} | cuts)).tolist()
  assert kept() == [True] * 4
  assert kept(top_k=2) == [False, True, False, True]
  assert kept(top_p=0.39) == kept(top_k=1) == [False, True, False, False]      # never nothing
  assert kept(top_p=0.75) == [False, True, True, True]
  assert kept(top_k=3, top_p=0.75) == [False, True, False, True]               # of .4 .3 .2 of .9: .44 .33
  np.testing.assert_allclose(filter_logits(log_probs, 0, 0.75)[1:], log_probs[1:])


def test_cut_draws_come_from_the_likeliest_alone():
  logits = np.array(TABLE[BOS])
  logits[[PAD, BOS]] = -np.inf
  likeliest = np.argsort(-logits)[:2]
  first = np.asarray(draw(keys(0), num_samples=5000, max_length=1, top_k=2).ids)[0, :, 0]
  assert set(first.tolist()) == set(likeliest.tolist())
  share = 1 / (1 + np.exp(logits[likeliest[1]] - logits[likeliest[0]]))
  assert np.mean(first == likeliest[0]) == pytest.approx(share, abs=0.02)


def test_no_word_is_drawn_twice_where_that_is_blocked():
  ids = np.asarray(draw(keys(0, 1), num_samples=100, no_repeat_ngram_size=1).ids).reshape(-1, 5)
  assert all(len(set(row[row > EOS])) == (row > EOS).sum() for row in ids)
  assert any(len(set(row[row > EOS])) < (row > EOS).sum()
             for row in np.asarray(draw(keys(0, 1), num_samples=100).ids).reshape(-1, 5))


def test_a_study_draws_the_same_whatever_stands_beside_it():
  joint, alone = draw(keys(5, 9)), draw(keys(9))
  np.testing.assert_array_equal(joint.ids[1], alone.ids[0])
  assert (np.asarray(joint.ids[0]) != np.asarray(joint.ids[1])).any()


def test_cold_draws_are_greedy():
  greedy = greedy_search(step, {}, batch_size=1, max_length=5, bos_id=BOS, eos_id=EOS, pad_id=PAD)
  cold = draw(keys(1), temperature=1e-4)
  np.testing.assert_array_equal(cold.ids[0], np.tile(greedy.ids, (8, 1)))
  np.testing.assert_allclose(cold.log_probs[0], np.tile(greedy.log_probs, 8), rtol=1e-5)


def test_log_probs_are_the_models_own_and_end_with_eos():
  result = draw(keys(0, 1), temperature=0.7)
  table = np.asarray(jax.nn.log_softmax(TABLE))
  for row, log_prob in zip(np.asarray(result.ids).reshape(-1, 5), np.asarray(result.log_probs).reshape(-1)):
    end = list(row).index(EOS) + 1 if EOS in row else 5
    assert (row[end:] == PAD).all()
    assert log_prob == pytest.approx(sum(table[a, b] for a, b in zip([BOS, *row], row[:end])), rel=1e-5)


def test_minimum_length():
  ids = np.asarray(draw(keys(0), num_samples=200, min_length=3).ids)[0]
  assert (ids[:, :3] != EOS).all() and (ids[:, 3] == EOS).any()
