"""The estimator's expectation is the gradient of the expected reward, computed over all reports of a tabular policy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcsam_jax.training.reward.policy_gradient import (
  compute_entropy,
  compute_kl,
  compute_policy_log_probs,
  compute_policy_loss,
  MAX_WEIGHT,
  subtract_baseline,
  sum_over_tokens,
)

PAD, EOS, FIRST, SECOND = range(4)
LENGTH, TEMPERATURE = 3, 0.7


def list_reports():
  """Returns all reports of at most LENGTH tokens, int [15, LENGTH], and the mask of their tokens."""
  words, reports = (FIRST, SECOND), []
  for length in range(LENGTH + 1):
    ends = [(EOS,)] if length < LENGTH else [()]
    reports += [prefix + end for prefix in itertools.product(words, repeat=length) for end in ends]
  tokens = np.array([report + (PAD,) * (LENGTH - len(report)) for report in reports])
  return tokens, np.array([[index < len(report) for index in range(LENGTH)] for report in reports])


TOKENS, MASK = list_reports()
REWARDS = np.random.default_rng(1).normal(size=len(TOKENS))


@jax.jit
def compute_log_probs(table):
  """Returns the log-probability [15] of each report, for logits [4 ** LENGTH, 4] of the next token by prefix."""
  prefixes = np.zeros_like(TOKENS)
  for position in range(1, LENGTH):
    prefixes[:, position] = prefixes[:, position - 1] * 4 + TOKENS[:, position - 1]
  log_probs = compute_policy_log_probs(table[np.arange(LENGTH) * 16 + prefixes], TEMPERATURE, (PAD,))
  return sum_over_tokens(jnp.take_along_axis(log_probs, TOKENS[..., None], -1)[..., 0], MASK)


def compute_gradient(function, argument):
  """Returns the gradient of a function, compiled as one program."""
  return jax.jit(jax.grad(function))(argument)


@pytest.fixture(autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


@pytest.fixture
def table():
  return jnp.asarray(np.random.default_rng(0).normal(size=(64, 4)))


def test_probabilities_of_all_reports_sum_to_one(table):
  assert len(TOKENS) == 15
  np.testing.assert_allclose(jnp.exp(compute_log_probs(table)).sum(), 1, rtol=1e-12)


@pytest.mark.parametrize("num_samples", [2, 3])
@pytest.mark.parametrize("drift", [0.0, 0.05])
def test_expectation_of_the_estimator_is_the_analytic_gradient(table, num_samples, drift):
  """Over all tuples of reports, weighted by the probability with which older parameters draw them."""
  drawn_from = table + drift * np.random.default_rng(2).normal(size=table.shape)
  draw_log_probs = compute_log_probs(drawn_from)
  assert jnp.exp(compute_log_probs(table) - draw_log_probs).max() < MAX_WEIGHT
  tuples = np.array(list(itertools.product(range(len(TOKENS)), repeat=num_samples)))      # [15 ** K, K]

  def loss(table):
    log_probs = compute_log_probs(table)
    return compute_policy_loss(log_probs[tuples], draw_log_probs[tuples], REWARDS[tuples],
                               jnp.exp(draw_log_probs[tuples].sum(1)))

  expected = compute_gradient(lambda table: (jnp.exp(compute_log_probs(table)) * REWARDS).sum(), table)
  np.testing.assert_allclose(-compute_gradient(loss, table), expected, rtol=0, atol=1e-14)
  assert np.abs(expected).max() > 0.01


@pytest.mark.parametrize("reward", [0.1, 1 / 3, -7.0])
def test_a_constant_reward_moves_nothing(table, reward):
  rewards = jnp.full((5, 3), reward)

  def loss(table):
    log_probs = compute_log_probs(table).reshape(5, 3)
    return compute_policy_loss(log_probs, log_probs - 0.1, rewards, jnp.full(5, 0.2))

  assert not compute_gradient(loss, table).any()


def test_each_sample_is_compared_with_the_mean_of_the_others():
  np.testing.assert_allclose(subtract_baseline(jnp.array([[1.0, 2.0, 6.0]])), [[1 - 4, 2 - 3.5, 6 - 1.5]])


def test_weight_of_a_sample_is_bounded(table):
  log_probs = jnp.array([[0.0, 0.0]])

  def gradient(drift):
    draw_log_probs = jnp.array([[-drift, 0.0]])
    loss = lambda x: compute_policy_loss(x, draw_log_probs, jnp.array([[1.0, 0.0]]), jnp.ones(1))
    return compute_gradient(loss, log_probs)

  np.testing.assert_allclose(gradient(0.1), [[-0.5 * np.exp(0.1), 0.5]])
  np.testing.assert_allclose(gradient(5000.0), [[-0.5 * MAX_WEIGHT, 0.5]])


def test_studies_without_weight_do_not_count(table):
  def gradient(rewards):
    log_probs = lambda table: compute_log_probs(table)[:4].reshape(2, 2)
    loss = lambda table: compute_policy_loss(log_probs(table), log_probs(table), rewards, jnp.array([1.0, 0.0]))
    return compute_gradient(loss, table)

  np.testing.assert_array_equal(gradient(jnp.array([[1.0, 2.0], [3.0, 4.0]])),
                                gradient(jnp.array([[1.0, 2.0], [9.0, -9.0]])))


def test_entropy_and_divergence_by_hand():
  p, q = np.array([0.5, 0.5, 0.0]), np.array([0.25, 0.75, 0.0])
  log_p, log_q = (compute_policy_log_probs(jnp.log(jnp.asarray(x + (x == 0))), 1.0, (2,)) for x in (p, q))
  np.testing.assert_allclose(compute_entropy(log_p), np.log(2))
  np.testing.assert_allclose(compute_kl(log_p, log_q), 0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75))
