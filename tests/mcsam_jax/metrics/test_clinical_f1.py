"""Precision, recall and F1 of findings agree with counts by hand and with scikit-learn."""

import time

import numpy as np
import pytest

from mcsam_jax.findings import FINDINGS as ALL
from mcsam_jax.findings import LABEL_VALUES
from mcsam_jax.metrics.bootstrap import compute_intervals, replace_nan_with_zero, resample
from mcsam_jax.metrics.clinical_f1 import (
  aggregate_clinical_f1,
  average_counts,
  compute_clinical_f1,
  count_labels,
  encode_labels,
  estimate_clinical_f1,
  FIVE_FINDINGS,
  UNCERTAIN,
)

FINDINGS = ("Edema", "Fracture", "Pneumonia")
ZERO = {"precision": 0, "recall": 0, "f1": 0}


def make_labels(*positive, **other_labels):
  return {**dict.fromkeys(FINDINGS, "absent"), **other_labels, **dict.fromkeys(positive, "positive")}


def random_labels(seed, count):
  values = np.random.default_rng(seed).choice(LABEL_VALUES, (count, len(ALL)), p=[0.5, 0.2, 0.1, 0.2])
  return [dict(zip(ALL, row)) for row in values.tolist()]


def select_positive(labels, findings, positive):
  return np.array([[row[finding] in positive for finding in findings] for row in labels])


def count(references, hypotheses):
  return count_labels(encode_labels(references, ALL), encode_labels(hypotheses, ALL))


def test_counts_agree_with_those_by_hand():
  references = [make_labels("Edema"), make_labels("Edema", "Fracture"), make_labels(Edema="negative"),
                make_labels("Edema")]
  hypotheses = [make_labels("Edema"), make_labels("Edema", "Pneumonia"), make_labels("Edema"),
                make_labels(Edema="uncertain")]
  scores = compute_clinical_f1(references, hypotheses, FINDINGS)
  # Edema: 2 of 3 positive found, 3 stated. Fracture: 0 of 1, 0 stated. Pneumonia: 0 of 0, 1 stated.
  assert scores["micro"] == pytest.approx({"precision": 2 / 4, "recall": 2 / 4, "f1": 4 / 8})
  assert scores["macro"] == pytest.approx({"precision": 1 / 3, "recall": 1 / 3, "f1": 1 / 3})
  assert scores["per_finding"]["Edema"] == pytest.approx(
      {"precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3, "support": 3})
  assert scores["per_finding"]["Pneumonia"]["support"] == 0


def test_averages_agree_with_those_by_hand():
  references = [make_labels("Edema"), make_labels("Edema", "Fracture"), make_labels(Edema="negative"),
                make_labels("Edema")]
  hypotheses = [make_labels("Edema"), make_labels("Edema", "Pneumonia"), make_labels("Edema"),
                make_labels(Edema="uncertain")]
  scores = compute_clinical_f1(references, hypotheses, FINDINGS)
  strict = scores["uncertain_negative"]["all_findings"]
  assert scores["micro"] == strict["micro"] and scores["macro"] == strict["macro_present"]
  assert strict["macro_all"] == pytest.approx({"precision": 2 / 9, "recall": 2 / 9, "f1": 2 / 9})
  assert strict["weighted"] == pytest.approx({"precision": 3 / 4 * 2 / 3, "recall": 3 / 4 * 2 / 3, "f1": 3 / 4 * 2 / 3})
  # Studies: all correct; 1 of 2 found, 2 stated; nothing to find, 1 stated; 1 to find, none stated.
  assert strict["samples"] == pytest.approx(
      {"precision": (1 + 1 / 2) / 4, "recall": (1 + 1 / 2) / 4, "f1": (1 + 1 / 2) / 4})
  # If uncertain counts as positive, the last report's "possible edema" is correct: 3 of 3 found, 4 stated.
  lenient = scores["uncertain_positive"]
  assert lenient["per_finding"]["Edema"] == pytest.approx({"precision": 3 / 4, "recall": 1, "f1": 6 / 7, "support": 3})
  assert lenient["all_findings"]["micro"] == pytest.approx({"precision": 3 / 5, "recall": 3 / 4, "f1": 6 / 9})
  assert scores["uncertain_negative"]["five_findings"] is None         # Cardiomegaly is not among these


def test_five_findings_are_scored_like_a_set_of_their_own():
  assert set(FIVE_FINDINGS) < set(ALL)
  references, hypotheses = random_labels(0, 50), random_labels(1, 50)
  five = compute_clinical_f1(references, hypotheses)["uncertain_positive"]["five_findings"]
  expected = compute_clinical_f1(references, hypotheses, FIVE_FINDINGS)["uncertain_positive"]
  for average, rates in expected["all_findings"].items():
    assert five[average] == pytest.approx(rates)


def test_perfect_and_empty_hypotheses():
  references = [make_labels("Edema"), make_labels("Fracture"), make_labels()]
  assert compute_clinical_f1(references, references, FINDINGS)["micro"]["f1"] == 1
  assert compute_clinical_f1(references, references, FINDINGS)["macro"]["f1"] == 1      # Pneumonia occurs nowhere
  assert compute_clinical_f1(references, [make_labels()] * 3, FINDINGS)["micro"] == ZERO
  without_findings = [make_labels()] * 3
  averages = compute_clinical_f1(without_findings, without_findings, FINDINGS)["uncertain_negative"]["all_findings"]
  assert all(rates == ZERO for rates in averages.values())                     # scikit-learn's zero_division=0
  averages = compute_clinical_f1(references, references, FINDINGS)["uncertain_negative"]["all_findings"]
  assert averages["samples"]["f1"] == pytest.approx(2 / 3)                     # the third study has nothing to find


def test_unknown_labels_and_unequal_lengths_are_errors():
  with pytest.raises(ValueError, match="Fracture.*'yes'"):
    compute_clinical_f1([make_labels()], [{**make_labels(), "Fracture": "yes"}], FINDINGS)
  with pytest.raises(ValueError, match="2 .* and 1 "):
    compute_clinical_f1([make_labels()] * 2, [make_labels()], FINDINGS)


@pytest.mark.parametrize("seed", [0, 1])
def test_agrees_with_scikit_learn(seed):
  metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
  references, hypotheses = random_labels(seed, 60), random_labels(seed + 10, 60)
  for row in references:
    row["Fracture"] = "negative"                                                 # a finding that no reference has
  scores = compute_clinical_f1(references, hypotheses)
  for uncertain, positive in UNCERTAIN.items():
    for name, findings in (("all_findings", ALL), ("five_findings", FIVE_FINDINGS)):
      truth, stated = (select_positive(rows, findings, positive) for rows in (references, hypotheses))
      for average in ("micro", "macro_all", "weighted", "samples"):
        sklearn_average = average.removesuffix("_all")
        expected = metrics.precision_recall_fscore_support(truth, stated, average=sklearn_average, zero_division=0)[:3]
        assert list(scores[uncertain][name][average].values()) == pytest.approx(expected)
    expected = metrics.precision_recall_fscore_support(select_positive(references, ALL, positive),
                                                       select_positive(hypotheses, ALL, positive), zero_division=0)
    for finding, *rates in zip(ALL, *expected):
      assert list(scores[uncertain]["per_finding"][finding].values()) == pytest.approx(rates)


def test_a_weight_of_k_equals_repeating_the_study_k_times():
  references, hypotheses, repeats = random_labels(2, 12), random_labels(3, 12), np.arange(12) % 4
  weighted = aggregate_clinical_f1(count(references, hypotheses), repeats[None].astype(float))
  weighted = replace_nan_with_zero(weighted)["uncertain_positive"]
  drawn = np.repeat(np.arange(12), repeats)
  repeated = compute_clinical_f1([references[i] for i in drawn], [hypotheses[i] for i in drawn])["uncertain_positive"]
  for findings in ("all_findings", "five_findings", "per_finding"):
    for key, rates in weighted[findings].items():
      assert {name: rate[0] for name, rate in rates.items()} == pytest.approx(
          {name: repeated[findings][key][name] for name in rates})


def test_resamples_without_a_finding_are_left_out_of_its_interval():
  """Three of 100 subjects have Edema, one Fracture, and all are found: no resample scores less than 1."""
  references = [make_labels("Edema")] * 3 + [make_labels("Fracture")] + [make_labels()] * 96
  codes = encode_labels(references, FINDINGS)
  counts = count_labels(codes, codes, FINDINGS)
  intervals = compute_intervals(lambda weights: aggregate_clinical_f1(counts, weights),
                                resample(np.arange(100), seed=0))
  for rates in (intervals["per_finding"]["Edema"], intervals["macro"]):
    assert all(interval == {"low": 1, "high": 1} for interval in rates.values())
  assert set(intervals["per_finding"]["Fracture"].values()) == {None}       # 37 % of the resamples have none
  assert set(intervals["per_finding"]["Pneumonia"].values()) == {None}
  assert estimate_clinical_f1(counts)["per_finding"]["Pneumonia"] == {**ZERO, "support": 0}
  empty = aggregate_clinical_f1(counts, np.zeros((1, 100)))["uncertain_positive"]
  assert all(np.isnan(rate).all() for average in empty["all_findings"].values() for rate in average.values())


def test_average_counts_pool_systems():
  references, one, other = random_labels(2, 12), random_labels(3, 12), random_labels(4, 12)
  pooled = estimate_clinical_f1(average_counts([count(references, one), count(references, other)]))
  joint = compute_clinical_f1(references * 2, one + other)
  assert pooled["micro"] == pytest.approx(joint["micro"])
  for average, rates in joint["uncertain_positive"]["five_findings"].items():
    assert pooled["uncertain_positive"]["five_findings"][average] == pytest.approx(rates)


def test_a_thousand_resamples_of_4000_studies_take_seconds():
  counts = count(random_labels(4, 4000), random_labels(5, 4000))
  weights = resample(np.arange(4000), seed=0)
  start = time.process_time()
  intervals = compute_intervals(lambda weights: aggregate_clinical_f1(counts, weights), weights)
  assert time.process_time() - start < 5                                         # 0.3 s on an idle machine
  assert intervals["micro"]["f1"]["low"] < intervals["micro"]["f1"]["high"]
