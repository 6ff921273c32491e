"""Minimum Bayes risk decoding on known utilities and probabilities."""

import numpy as np

from mcsam_jax.decoding.mbr import (
  compute_findings_gain,
  expect_over_reports,
  MAX_RETRIEVED,
  retrieve_most_probable,
)

# Samples 0 and 1 agree with each other, sample 2 with neither.
UTILITIES = np.array([[1.0, 1.0, 0.2], [1.0, 1.0, 0.2], [0.2, 0.2, 1.0]])


def select_sample(utilities, *retrieved):
  """Returns the sample with the highest expected utility."""
  return int(expect_over_reports(utilities, *retrieved).argmax())


def test_the_sample_that_agrees_with_most_others_is_selected():
  assert select_sample(UTILITIES[::-1, ::-1]) == 1
  assert select_sample(np.array([[1, 0, 0], [0.4, 1, 0.4], [0, 0, 1]])) == 1


def test_the_first_of_equally_good_samples_is_selected():
  assert select_sample(UTILITIES) == 0
  assert select_sample(np.ones((4, 4))) == 0


def test_rows_are_hypotheses_and_columns_references():
  assert select_sample(np.array([[0.0, 0.0], [0.9, 0.0]])) == 1
  assert select_sample(np.array([[0.0, 0.9], [0.0, 0.0]])) == 0


def test_retrieved_reports_count_with_their_weights():
  retrieved = np.array([[0.1, 0.0], [0.1, 0.0], [0.0, 1.0]])       # [K, R]: sample 2 agrees with the second report
  weights = np.array([0.1, 0.9])
  # Means 2.2 / 3 and 1.4 / 3 over the samples, 0.01 and 0.9 over the retrieved reports: equal at 0.2305.
  selected = [select_sample(UTILITIES, retrieved, weights, weight) for weight in (0.0, 0.1, 0.23, 0.231, 0.9, 1.0)]
  assert selected == [0, 0, 0, 2, 2, 2]
  assert select_sample(UTILITIES, retrieved, weights[::-1], 0.231) == 0


def test_the_most_probable_reports_are_retrieved_with_normalized_weights():
  indices, weights = retrieve_most_probable(np.array([1.0, 4.0, 1.0, 4.0, 0.5]), max_retrieved=3)
  assert indices.tolist() == [1, 3, 0]                              # ties: the first
  np.testing.assert_allclose(weights, [4 / 9, 4 / 9, 1 / 9])
  assert len(retrieve_most_probable(np.ones(MAX_RETRIEVED + 1))[0]) == MAX_RETRIEVED


def test_samples_count_with_their_weights():
  expected = expect_over_reports(UTILITIES, sample_weights=np.array([0.25, 0.25, 0.5]))
  np.testing.assert_allclose(expected, [0.6, 0.6, 0.6])
  np.testing.assert_allclose(expected, expect_over_reports(UTILITIES[:, [0, 1, 2, 2]]))


def test_a_finding_pays_off_above_the_threshold():
  stated = np.array([[False, False], [True, False], [True, True]])
  np.testing.assert_allclose(compute_findings_gain(stated, np.array([0.5, 0.1]), 0.2), [0, 0.3, 0.2])


def test_half_of_f1_is_the_threshold_that_maximizes_f1():
  """Of 1,000 findings with known probabilities, stating those above half of the reached F1 reaches the highest F1."""
  probabilities = np.sort(np.random.default_rng(0).beta(0.5, 2, 1000))[::-1]
  num_stated = np.arange(1, 1001)
  f1 = 2 * np.cumsum(probabilities) / (probabilities.sum() + num_stated)          # if the k most probable are stated
  best = f1.argmax()
  assert probabilities[best] > f1[best] / 2 > probabilities[best + 1]
