"""Bootstrap intervals agree with theory and with simulation."""

import time

import numpy as np
import pytest

from mcsam_jax.metrics.bootstrap import compute_differences, compute_intervals, compute_point_estimates, resample
from mcsam_jax.metrics.ngram_stats import NgramStats
from mcsam_jax.metrics.nlg import aggregate_nlg, compute_nlg


def make_mean_score(values):
  return lambda weights: {"mean": weights @ values / weights.sum(1)}


def compute_width(values, subjects, seed=0):
  interval = compute_intervals(make_mean_score(values), resample(subjects, seed))["mean"]
  return interval["high"] - interval["low"]


def test_the_interval_of_a_mean_is_that_of_the_t_distribution():
  values = np.random.default_rng(0).normal(3.0, 2.0, 200)
  interval = compute_intervals(make_mean_score(values), resample(range(200), seed=0, num_samples=4000))["mean"]
  half = 1.972 * values.std(ddof=1) / 200 ** 0.5                  # 97.5 % quantile of t, 199 degrees of freedom
  assert interval == pytest.approx({"low": values.mean() - half, "high": values.mean() + half}, abs=0.05 * half)
  assert compute_point_estimates(make_mean_score(values), 200)["mean"] == pytest.approx(values.mean())


def test_95_of_100_intervals_contain_the_true_mean():
  rng = np.random.default_rng(1)
  weights = resample(range(60), seed=0, num_samples=400)
  data = rng.exponential(1.0, (1500, 60))                         # skewed, as scores are
  low, high = np.quantile(data @ weights.T / 60, [0.025, 0.975], axis=1)
  covered = ((low <= 1) & (1 <= high)).mean()
  assert 0.915 < covered < 0.96              # percentile intervals of 60 skewed values are a little short


def test_intervals_of_clustered_studies_need_their_subjects():
  """30 subjects with 8 similar studies each."""
  rng = np.random.default_rng(2)
  subjects = np.repeat(np.arange(30), 8)
  data = np.repeat(rng.normal(0, 1, (600, 30)), 8, axis=1) + rng.normal(0, 0.5, (600, 240))
  covered = []
  for weights in (resample(subjects, 0, 400), resample(np.arange(240), 0, 400)):
    low, high = np.quantile(data @ weights.T / weights.sum(1), [0.025, 0.975], axis=1)
    covered.append(((low <= 0) & (0 <= high)).mean())
  assert covered[0] > 0.9                                         # a little less than 95 %, as 30 subjects are few
  assert covered[1] < 0.6


def test_clusters_widen_the_interval_by_the_design_effect():
  """sqrt(1 + (m - 1) rho) for m studies per subject and a share rho of the variance between subjects."""
  rng = np.random.default_rng(3)
  subjects = np.repeat(np.arange(300), 6)
  values = np.repeat(rng.normal(0, 1, 300), 6) + rng.normal(0, 1, 1800)
  ratio = compute_width(values, subjects) / compute_width(values, np.arange(1800))
  assert ratio == pytest.approx((1 + 5 * 0.5) ** 0.5, rel=0.1)
  independent = rng.normal(0, 1, 1800)                            # subjects don't matter
  assert compute_width(independent, subjects) / compute_width(independent, np.arange(1800)) == pytest.approx(1, rel=0.1)


def test_studies_of_a_subject_are_drawn_together():
  subjects = ["b", "a", "b", "c", "a"]
  weights = resample(subjects, seed=5, num_samples=50)
  assert (weights[:, 0] == weights[:, 2]).all() and (weights[:, 1] == weights[:, 4]).all()
  assert (weights[:, 0] + weights[:, 1] + weights[:, 3] == 3).all()             # as many subjects as there are
  assert weights.std(0).min() > 0


def test_draws_depend_on_the_seed_and_not_on_the_order_of_studies():
  subjects = np.array(["b", "a", "b", "c", "a", "d"])
  order = np.array([3, 1, 5, 0, 2, 4])
  np.testing.assert_array_equal(resample(subjects[order], 7), resample(subjects, 7)[:, order])
  assert (resample(subjects, 7) != resample(subjects, 8)).any()


def test_a_single_subject_gets_no_intervals():
  weights = resample(["a"] * 4, seed=0)
  assert weights.shape == (0, 4)
  score = make_mean_score(np.arange(4.0))
  assert compute_intervals(score, weights) == {"mean": None}
  differences = compute_differences(score, make_mean_score(np.zeros(4)), weights)
  assert differences == {"mean": {"difference": 1.5, "low": None, "high": None}}


def test_bleu_of_a_resample_is_that_of_its_reports():
  references = ["the heart is big .", "no effusion is seen .", "lungs are clear . heart is normal ."]
  hypotheses = ["the heart is normal .", "small left effusion .", "lungs are clear . heart is big ."]
  stats = compute_nlg(references, hypotheses, metrics=["BLEU_4"]).stats
  weights = resample(range(3), seed=0, num_samples=20)
  scores = aggregate_nlg(stats, weights)["BLEU_2"]
  for value, repeats in zip(scores, weights.astype(int)):
    drawn = np.repeat(np.arange(3), repeats)
    expected = compute_nlg([references[i] for i in drawn], [hypotheses[i] for i in drawn], metrics=["BLEU_2"])
    assert value == pytest.approx(expected.corpus["BLEU_2"], rel=1e-9)


def test_paired_differences_of_equal_and_of_slightly_better_systems():
  rng = np.random.default_rng(4)
  base = rng.normal(0, 1, 300)
  weights = resample(range(300), seed=0)
  base_score = make_mean_score(base)
  assert compute_differences(base_score, base_score, weights)["mean"] == {"difference": 0, "low": 0, "high": 0}
  better_score = make_mean_score(base + 0.1 + rng.normal(0, 0.1, 300))
  better = compute_differences(better_score, base_score, weights)["mean"]
  assert 0.05 < better["low"] < better["difference"] < better["high"] < 0.15
  assert better["difference"] == pytest.approx(0.1, abs=0.02)
  undefined = compute_differences(lambda weights: {"METEOR": None}, lambda weights: {"METEOR": None}, weights)
  assert undefined == {"METEOR": None}


def test_resamples_with_nothing_to_score_are_left_out():
  """The mean is over two of 100 subjects, with values 1 and 2, so it is between 1 and 2, and never 0."""
  part = np.zeros(100)
  part[:2] = 1
  values, weights = part * np.array([1, 2] * 50), resample(range(100), seed=0)

  def mean(weights):
    with np.errstate(invalid="ignore"):
      return {"mean": weights @ values / (weights @ part)}

  assert np.isnan(mean(weights)["mean"]).sum() > 50
  assert compute_intervals(mean, weights) == {"mean": {"low": 1, "high": 2}}
  difference = compute_differences(lambda weights: {"mean": mean(weights)["mean"] + 1}, mean, weights)["mean"]
  assert difference == pytest.approx({"difference": 1, "low": 1, "high": 1})
  part[1] = values[1] = 0                                         # depends on a single subject
  assert compute_intervals(mean, weights) == {"mean": None}
  assert compute_differences(mean, mean, weights) == {"mean": {"difference": 0, "low": None, "high": None}}


def test_a_thousand_resamples_of_4000_studies_take_seconds():
  rng = np.random.default_rng(0)
  num_ngrams = rng.integers(20, 60, (4000, 4)).astype(float)
  stats = NgramStats(num_ngrams[:, :2], num_ngrams, num_ngrams // 2, rng.random(4000), rng.random(4000), None)
  start = time.process_time()
  weights = resample(rng.integers(0, 300, 4000), seed=0)
  intervals = compute_intervals(lambda weights: aggregate_nlg(stats, weights), weights)
  assert time.process_time() - start < 10                         # 0.3 s on an idle machine
  assert intervals["CIDEr"]["low"] < intervals["CIDEr"]["high"]
