"""Intervals are what statistics says they should be, where statistics has an answer."""

import time

import numpy as np
import pytest

from mcsam_jax.metrics.bootstrap import compute_differences, compute_intervals, compute_point_estimates, resample
from mcsam_jax.metrics.ngram_stats import NgramStats
from mcsam_jax.metrics.nlg import compute_nlg, aggregate_nlg


def mean_of(values):
  return lambda weights: {"mean": weights @ values / weights.sum(1)}


def width(values, subjects, seed=0):
  found = compute_intervals(mean_of(values), resample(subjects, seed))["mean"]
  return found["high"] - found["low"]


def test_the_interval_of_a_mean_is_the_one_of_the_t_distribution():
  values = np.random.default_rng(0).normal(3.0, 2.0, 200)
  found = compute_intervals(mean_of(values), resample(range(200), seed=0, num_samples=4000))["mean"]
  half = 1.972 * values.std(ddof=1) / 200 ** 0.5                  # 97.5 % quantile of t, 199 degrees of freedom
  assert found == pytest.approx({"low": values.mean() - half, "high": values.mean() + half}, abs=0.05 * half)
  assert compute_point_estimates(mean_of(values), 200)["mean"] == pytest.approx(values.mean())


def test_95_of_100_intervals_hold_the_truth():
  rng = np.random.default_rng(1)
  weights = resample(range(60), seed=0, num_samples=400)
  data = rng.exponential(1.0, (1500, 60))                         # skewed, as scores are
  low, high = np.quantile(data @ weights.T / 60, [0.025, 0.975], axis=1)
  covered = ((low <= 1) & (1 <= high)).mean()
  assert 0.915 < covered < 0.96              # percentile intervals of 60 skewed values are a little short


def test_coverage_of_clustered_studies_needs_their_subjects():
  """30 subjects with 8 studies each that resemble each other."""
  rng = np.random.default_rng(2)
  subjects = np.repeat(np.arange(30), 8)
  data = np.repeat(rng.normal(0, 1, (600, 30)), 8, axis=1) + rng.normal(0, 0.5, (600, 240))
  covered = []
  for weights in (resample(subjects, 0, 400), resample(np.arange(240), 0, 400)):
    low, high = np.quantile(data @ weights.T / weights.sum(1), [0.025, 0.975], axis=1)
    covered.append(((low <= 0) & (0 <= high)).mean())
  assert covered[0] > 0.9                                         # 30 subjects: the t interval's 95 % less a little
  assert covered[1] < 0.6


def test_clusters_widen_the_interval_by_the_design_effect():
  """By the square root of 1 + (m - 1) rho for m studies a subject, rho the share of variance between subjects."""
  rng = np.random.default_rng(3)
  subjects = np.repeat(np.arange(300), 6)
  values = np.repeat(rng.normal(0, 1, 300), 6) + rng.normal(0, 1, 1800)
  ratio = width(values, subjects) / width(values, np.arange(1800))
  assert ratio == pytest.approx((1 + 5 * 0.5) ** 0.5, rel=0.1)
  alone = rng.normal(0, 1, 1800)                                  # nothing is shared: subjects don't matter
  assert width(alone, subjects) / width(alone, np.arange(1800)) == pytest.approx(1, rel=0.1)


def test_studies_of_a_subject_are_drawn_together_and_so_many_subjects_as_there_are():
  subjects = ["b", "a", "b", "c", "a"]
  weights = resample(subjects, seed=5, num_samples=50)
  assert (weights[:, 0] == weights[:, 2]).all() and (weights[:, 1] == weights[:, 4]).all()
  assert (weights[:, 0] + weights[:, 1] + weights[:, 3] == 3).all()
  assert weights.std(0).min() > 0


def test_draws_depend_on_the_seed_and_not_on_the_order_of_studies():
  subjects = np.array(["b", "a", "b", "c", "a", "d"])
  order = np.array([3, 1, 5, 0, 2, 4])
  np.testing.assert_array_equal(resample(subjects[order], 7), resample(subjects, 7)[:, order])
  assert (resample(subjects, 7) != resample(subjects, 8)).any()


def test_a_single_subject_is_not_drawn():
  weights = resample(["a"] * 4, seed=0)
  assert weights.shape == (0, 4)
  score = mean_of(np.arange(4.0))
  assert compute_intervals(score, weights) == {"mean": None}
  assert compute_differences(score, mean_of(np.zeros(4)), weights) == {"mean": {"difference": 1.5, "low": None, "high": None}}


def test_bleu_of_a_resample_is_the_one_of_its_reports():
  references = ["the heart is big .", "no effusion is seen .", "lungs are clear . heart is normal ."]
  hypotheses = ["the heart is normal .", "small left effusion .", "lungs are clear . heart is big ."]
  counts = compute_nlg(references, hypotheses, metrics=["BLEU_4"]).counts
  weights = resample(range(3), seed=0, num_samples=20)
  found = aggregate_nlg(counts, weights)["BLEU_2"]
  for value, times in zip(found, weights.astype(int)):
    drawn = np.repeat(np.arange(3), times)
    expected = compute_nlg([references[i] for i in drawn], [hypotheses[i] for i in drawn], metrics=["BLEU_2"])
    assert value == pytest.approx(expected.corpus["BLEU_2"], rel=1e-9)


def test_a_system_does_not_differ_from_itself_and_pairs_narrow_the_interval():
  rng = np.random.default_rng(4)
  base = rng.normal(0, 1, 300)
  weights = resample(range(300), seed=0)
  assert compute_differences(mean_of(base), mean_of(base), weights)["mean"] == {"difference": 0, "low": 0, "high": 0}
  better = compute_differences(mean_of(base + 0.1 + rng.normal(0, 0.1, 300)), mean_of(base), weights)["mean"]
  assert 0.05 < better["low"] < better["difference"] < better["high"] < 0.15
  assert better["difference"] == pytest.approx(0.1, abs=0.02)
  nothing = compute_differences(lambda weights: {"METEOR": None}, lambda weights: {"METEOR": None}, weights)
  assert nothing == {"METEOR": None}


def test_draws_without_anything_to_score_do_not_count():
  """Of two among 100 subjects alone the mean is asked: 1 and 2, so it is 1, 2 or between, and never 0."""
  part = np.zeros(100)
  part[:2] = 1
  values, weights = part * np.array([1, 2] * 50), resample(range(100), seed=0)
  def mean(of):
    with np.errstate(invalid="ignore"):
      return {"mean": of @ values / (of @ part)}
  assert np.isnan(mean(weights)["mean"]).sum() > 50
  assert compute_intervals(mean, weights) == {"mean": {"low": 1, "high": 2}}
  found = compute_differences(lambda of: {"mean": mean(of)["mean"] + 1}, mean, weights)["mean"]
  assert found == pytest.approx({"difference": 1, "low": 1, "high": 1})
  part[1] = values[1] = 0                                         # a single subject tells nothing of others
  assert compute_intervals(mean, weights) == {"mean": None}
  assert compute_differences(mean, mean, weights) == {"mean": {"difference": 0, "low": None, "high": None}}


def test_a_thousand_resamples_of_4000_studies_take_seconds():
  rng = np.random.default_rng(0)
  said = rng.integers(20, 60, (4000, 4)).astype(float)
  counts = NgramStats(said[:, :2], said, said // 2, rng.random(4000), rng.random(4000), None)
  began = time.process_time()
  found = compute_intervals(lambda weights: aggregate_nlg(counts, weights), resample(rng.integers(0, 300, 4000), seed=0))
  assert time.process_time() - began < 10                         # 0.3 s where nothing else runs
  assert found["CIDEr"]["low"] < found["CIDEr"]["high"]
