"""Precision, recall and F1 of findings, counted by hand and by scikit-learn."""

import time

import numpy as np
import pytest

from mcsam_jax.findings import FINDINGS as ALL
from mcsam_jax.findings import LABEL_VALUES
from mcsam_jax.metrics.bootstrap import compute_intervals, replace_nan_with_zero, resample
from mcsam_jax.metrics.clinical_f1 import (
  count_labels,
  FIVE_FINDINGS,
  encode_labels,
  compute_clinical_f1,
  aggregate_clinical_f1,
  average_counts,
  estimate_clinical_f1,
  UNCERTAIN,
)

FINDINGS = ("Edema", "Fracture", "Pneumonia")
NOTHING = {"precision": 0, "recall": 0, "f1": 0}


def labels(*positive, **others):
  return {**dict.fromkeys(FINDINGS, "absent"), **others, **dict.fromkeys(positive, "positive")}


def drawn_labels(seed, count):
  values = np.random.default_rng(seed).choice(LABEL_VALUES, (count, len(ALL)), p=[0.5, 0.2, 0.1, 0.2])
  return [dict(zip(ALL, row)) for row in values.tolist()]


def positives(labels, findings, positive):
  return np.array([[row[finding] in positive for finding in findings] for row in labels])


def counts_of(references, hypotheses):
  return count_labels(encode_labels(references, ALL), encode_labels(hypotheses, ALL))


def test_counts_by_hand():
  references = [labels("Edema"), labels("Edema", "Fracture"), labels(Edema="negative"), labels("Edema")]
  hypotheses = [labels("Edema"), labels("Edema", "Pneumonia"), labels("Edema"), labels(Edema="uncertain")]
  scores = compute_clinical_f1(references, hypotheses, FINDINGS)
  # Edema: 2 hits of 3 positive, 3 claimed. Fracture: 0 of 1, 0 claimed. Pneumonia: 0 of 0, 1 claimed.
  assert scores["micro"] == pytest.approx({"precision": 2 / 4, "recall": 2 / 4, "f1": 4 / 8})
  assert scores["macro"] == pytest.approx({"precision": 1 / 3, "recall": 1 / 3, "f1": 1 / 3})
  assert scores["per_finding"]["Edema"] == pytest.approx(
      {"precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3, "support": 3})
  assert scores["per_finding"]["Pneumonia"]["support"] == 0


def test_every_average_by_hand():
  references = [labels("Edema"), labels("Edema", "Fracture"), labels(Edema="negative"), labels("Edema")]
  hypotheses = [labels("Edema"), labels("Edema", "Pneumonia"), labels("Edema"), labels(Edema="uncertain")]
  scores = compute_clinical_f1(references, hypotheses, FINDINGS)
  plain = scores["uncertain_negative"]["all_findings"]
  assert scores["micro"] == plain["micro"] and scores["macro"] == plain["macro_present"]
  assert plain["macro_all"] == pytest.approx({"precision": 2 / 9, "recall": 2 / 9, "f1": 2 / 9})
  assert plain["weighted"] == pytest.approx({"precision": 3 / 4 * 2 / 3, "recall": 3 / 4 * 2 / 3, "f1": 3 / 4 * 2 / 3})
  # Studies: all right; 1 hit of 2, 2 claimed; nothing to find, 1 claimed; 1 to find, nothing claimed.
  assert plain["samples"] == pytest.approx(
      {"precision": (1 + 1 / 2) / 4, "recall": (1 + 1 / 2) / 4, "f1": (1 + 1 / 2) / 4})
  # The last report's "possible edema" is a hit where uncertain counts as positive: 3 hits of 3, 4 claimed.
  hopeful = scores["uncertain_positive"]
  assert hopeful["per_finding"]["Edema"] == pytest.approx({"precision": 3 / 4, "recall": 1, "f1": 6 / 7, "support": 3})
  assert hopeful["all_findings"]["micro"] == pytest.approx({"precision": 3 / 5, "recall": 3 / 4, "f1": 6 / 9})
  assert scores["uncertain_negative"]["five_findings"] is None         # Cardiomegaly is not among these


def test_five_findings_are_counted_alone():
  assert set(FIVE_FINDINGS) < set(ALL)
  references, hypotheses = drawn_labels(0, 50), drawn_labels(1, 50)
  five = compute_clinical_f1(references, hypotheses)["uncertain_positive"]["five_findings"]
  alone = compute_clinical_f1(references, hypotheses, FIVE_FINDINGS)["uncertain_positive"]
  for average, rates in alone["all_findings"].items():
    assert five[average] == pytest.approx(rates)


def test_perfect_and_silent():
  references = [labels("Edema"), labels("Fracture"), labels()]
  assert compute_clinical_f1(references, references, FINDINGS)["micro"]["f1"] == 1
  assert compute_clinical_f1(references, references, FINDINGS)["macro"]["f1"] == 1      # Pneumonia occurs nowhere
  assert compute_clinical_f1(references, [labels()] * 3, FINDINGS)["micro"] == NOTHING
  nothing = compute_clinical_f1([labels()] * 3, [labels()] * 3, FINDINGS)["uncertain_negative"]["all_findings"]
  assert all(rates == NOTHING for rates in nothing.values())                     # scikit-learn's zero_division=0
  assert compute_clinical_f1(references, references, FINDINGS)["uncertain_negative"]["all_findings"]["samples"]["f1"] == (
      pytest.approx(2 / 3))                                                      # the third has nothing to find


def test_refuses_what_is_no_label():
  with pytest.raises(ValueError, match="Fracture is 'yes'"):
    compute_clinical_f1([labels()], [{**labels(), "Fracture": "yes"}], FINDINGS)
  with pytest.raises(ValueError, match="2 labelled references and 1"):
    compute_clinical_f1([labels()] * 2, [labels()], FINDINGS)


@pytest.mark.parametrize("seed", [0, 1])
def test_agrees_with_scikit_learn(seed):
  metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
  references, hypotheses = drawn_labels(seed, 60), drawn_labels(seed + 10, 60)
  for row in references:
    row["Fracture"] = "negative"                                                 # a finding without support
  scores = compute_clinical_f1(references, hypotheses)
  for uncertain, positive in UNCERTAIN.items():
    for name, findings in (("all_findings", ALL), ("five_findings", FIVE_FINDINGS)):
      truth, stated = (positives(rows, findings, positive) for rows in (references, hypotheses))
      for ours in ("micro", "macro_all", "weighted", "samples"):
        theirs = ours.removesuffix("_all")
        expected = metrics.precision_recall_fscore_support(truth, stated, average=theirs, zero_division=0)[:3]
        assert list(scores[uncertain][name][ours].values()) == pytest.approx(expected)
    expected = metrics.precision_recall_fscore_support(positives(references, ALL, positive),
                                                       positives(hypotheses, ALL, positive), zero_division=0)
    for finding, *rates in zip(ALL, *expected):
      assert list(scores[uncertain]["per_finding"][finding].values()) == pytest.approx(rates)


def test_weights_count_a_study_as_often_as_if_it_stood_there_so_often():
  references, hypotheses, times = drawn_labels(2, 12), drawn_labels(3, 12), np.arange(12) % 4
  found = aggregate_clinical_f1(counts_of(references, hypotheses), times[None].astype(float))
  found = replace_nan_with_zero(found)["uncertain_positive"]
  drawn = np.repeat(np.arange(12), times)
  listed = compute_clinical_f1([references[i] for i in drawn], [hypotheses[i] for i in drawn])["uncertain_positive"]
  for findings in ("all_findings", "five_findings", "per_finding"):
    for key, rates in found[findings].items():
      assert {name: rate[0] for name, rate in rates.items()} == pytest.approx(
          {name: listed[findings][key][name] for name in rates})


def test_a_draw_without_a_finding_says_nothing_of_it():
  """Three of 100 subjects have Edema, one Fracture, and all is found: no draw scores less than 1."""
  references = [labels("Edema")] * 3 + [labels("Fracture")] + [labels()] * 96
  codes = encode_labels(references, FINDINGS)
  counts = count_labels(codes, codes, FINDINGS)
  found = compute_intervals(lambda weights: aggregate_clinical_f1(counts, weights), resample(np.arange(100), seed=0))
  for of in (found["per_finding"]["Edema"], found["macro"]):
    assert all(interval == {"low": 1, "high": 1} for interval in of.values())
  assert set(found["per_finding"]["Fracture"].values()) == {None}           # in 37 % of the draws there is none
  assert set(found["per_finding"]["Pneumonia"].values()) == {None}
  assert estimate_clinical_f1(counts)["per_finding"]["Pneumonia"] == {"precision": 0, "recall": 0, "f1": 0, "support": 0}
  nobody = aggregate_clinical_f1(counts, np.zeros((1, 100)))["uncertain_positive"]
  assert all(np.isnan(rate).all() for average in nobody["all_findings"].values() for rate in average.values())


def test_systems_are_pooled():
  references, one, other = drawn_labels(2, 12), drawn_labels(3, 12), drawn_labels(4, 12)
  pooled = estimate_clinical_f1(average_counts([counts_of(references, one), counts_of(references, other)]))
  joint = compute_clinical_f1(references * 2, one + other)
  assert pooled["micro"] == pytest.approx(joint["micro"])
  for average, rates in joint["uncertain_positive"]["five_findings"].items():
    assert pooled["uncertain_positive"]["five_findings"][average] == pytest.approx(rates)


def test_a_thousand_resamples_take_well_under_a_second():
  counts = counts_of(drawn_labels(4, 4000), drawn_labels(5, 4000))
  weights = resample(np.arange(4000), seed=0)
  began = time.process_time()
  found = compute_intervals(lambda weights: aggregate_clinical_f1(counts, weights), weights)
  assert time.process_time() - began < 5                                         # 0.3 s where nothing else runs
  assert found["micro"]["f1"]["low"] < found["micro"]["f1"]["high"]
