"""Samples follow the model's distribution, and those of a study depend on its own key alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcsam_jax.decoding.greedy import greedy_search
from mcsam_jax.decoding.sampling import filter_logits, temperature_sample

PAD, BOS, EOS = 0, 1, 2
TABLE = jnp.asarray(np.random.default_rng(0).normal(size=(7, 7)) * 2, jnp.float32)   # logits after each token


def decode_step(tokens, cache):
  return TABLE[tokens], cache


@functools.partial(jax.jit, static_argnames=("num_samples", "max_length", "top_k", "top_p", "no_repeat_ngram_size"))
def sample(keys, num_samples=8, max_length=5, temperature=1.0, min_length=0, **filters):
  return temperature_sample(decode_step, {}, keys=keys, num_samples=num_samples, max_length=max_length, bos_id=BOS,
                            eos_id=EOS, pad_id=PAD, temperature=temperature, min_length=min_length, **filters)


def make_keys(*studies):
  return jax.vmap(lambda study: jax.random.fold_in(jax.random.key(3), study))(jnp.array(studies))


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_first_tokens_are_as_frequent_as_their_probabilities(temperature):
  first = np.asarray(sample(make_keys(0), num_samples=20000, max_length=1, temperature=temperature).ids)[0, :, 0]
  logits = np.array(TABLE[BOS])
  logits[[PAD, BOS]] = -np.inf                                   # never generated
  expected = np.exp(logits / temperature)
  np.testing.assert_allclose(np.bincount(first, minlength=7) / 20000, expected / expected.sum(), atol=0.015)


def test_top_k_and_top_p_on_a_known_distribution():
  log_probs = jnp.log(jnp.array([0.1, 0.4, 0.2, 0.3]))
  def kept(top_k=0, top_p=1.0):
    return np.isfinite(filter_logits(log_probs, top_k, top_p)).tolist()
  assert kept() == [True] * 4
  assert kept(top_k=2) == [False, True, False, True]
  assert kept(top_p=0.39) == kept(top_k=1) == [False, True, False, False]      # at least one token is kept
  assert kept(top_p=0.75) == [False, True, True, True]
  assert kept(top_k=3, top_p=0.75) == [False, True, False, True]               # top_p sees .44 .33 .22
  np.testing.assert_allclose(filter_logits(log_probs, 0, 0.75)[1:], log_probs[1:])


@pytest.mark.parametrize("top_k", [1, 2, 3, 5])
def test_top_k_keeps_exactly_k_of_equally_likely_tokens(top_k):
  """Ties are broken by the lower id, in every row by itself; a k of the vocabulary's size or more keeps all."""
  logits = jnp.array([[0.0, 0.0, 0.0, 0.0], [1.0, 2.0, 1.0, 1.0]])
  order = [[0, 1, 2, 3], [1, 0, 2, 3]]
  filtered = np.asarray(jax.jit(filter_logits, static_argnums=(1, 2))(logits, top_k, 1.0))
  for row, ranked in enumerate(order):
    assert set(np.flatnonzero(np.isfinite(filtered[row])).tolist()) == set(ranked[:top_k])
  np.testing.assert_array_equal(filtered[np.isfinite(filtered)], np.asarray(logits)[np.isfinite(filtered)])


def test_top_k_samples_come_from_the_most_likely_tokens():
  logits = np.array(TABLE[BOS])
  logits[[PAD, BOS]] = -np.inf
  most_likely = np.argsort(-logits)[:2]
  first = np.asarray(sample(make_keys(0), num_samples=5000, max_length=1, top_k=2).ids)[0, :, 0]
  assert set(first.tolist()) == set(most_likely.tolist())
  share = 1 / (1 + np.exp(logits[most_likely[1]] - logits[most_likely[0]]))
  assert np.mean(first == most_likely[0]) == pytest.approx(share, abs=0.02)


def test_no_token_is_sampled_twice_when_repeated_unigrams_are_banned():
  ids = np.asarray(sample(make_keys(0, 1), num_samples=100, no_repeat_ngram_size=1).ids).reshape(-1, 5)
  assert all(len(set(row[row > EOS])) == (row > EOS).sum() for row in ids)
  assert any(len(set(row[row > EOS])) < (row > EOS).sum()
             for row in np.asarray(sample(make_keys(0, 1), num_samples=100).ids).reshape(-1, 5))


def test_samples_do_not_depend_on_the_rest_of_the_batch():
  joint, alone = sample(make_keys(5, 9)), sample(make_keys(9))
  np.testing.assert_array_equal(joint.ids[1], alone.ids[0])
  assert (np.asarray(joint.ids[0]) != np.asarray(joint.ids[1])).any()


def test_samples_at_low_temperature_equal_greedy_search():
  greedy = greedy_search(decode_step, {}, batch_size=1, max_length=5, bos_id=BOS, eos_id=EOS, pad_id=PAD)
  cold = sample(make_keys(1), temperature=1e-4)
  np.testing.assert_array_equal(cold.ids[0], np.tile(greedy.ids, (8, 1)))
  np.testing.assert_allclose(cold.log_probs[0], np.tile(greedy.log_probs, 8), rtol=1e-5)


def test_log_probs_are_those_of_the_unfiltered_model_up_to_eos():
  result = sample(make_keys(0, 1), temperature=0.7)
  table = np.asarray(jax.nn.log_softmax(TABLE))
  for row, log_prob in zip(np.asarray(result.ids).reshape(-1, 5), np.asarray(result.log_probs).reshape(-1)):
    end = list(row).index(EOS) + 1 if EOS in row else 5
    assert (row[end:] == PAD).all()
    assert log_prob == pytest.approx(sum(table[a, b] for a, b in zip([BOS, *row], row[:end])), rel=1e-5)


def test_no_report_ends_before_min_length():
  ids = np.asarray(sample(make_keys(0), num_samples=200, min_length=3).ids)[0]
  assert (ids[:, :3] != EOS).all() and (ids[:, 3] == EOS).any()
