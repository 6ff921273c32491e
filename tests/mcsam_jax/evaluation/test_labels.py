"""Precision, recall and F1 of findings, counted by hand."""

import pytest

from mcsam_jax.evaluation.labels import label_scores

FINDINGS = ("Edema", "Fracture", "Pneumonia")


def labels(*positive, **others):
  return {**dict.fromkeys(FINDINGS, "absent"), **others, **dict.fromkeys(positive, "positive")}


def test_counts_by_hand():
  references = [labels("Edema"), labels("Edema", "Fracture"), labels(Edema="negative"), labels("Edema")]
  hypotheses = [labels("Edema"), labels("Edema", "Pneumonia"), labels("Edema"), labels(Edema="uncertain")]
  scores = label_scores(references, hypotheses, FINDINGS)
  # Edema: 2 hits of 3 positive, 3 claimed. Fracture: 0 of 1, 0 claimed. Pneumonia: 0 of 0, 1 claimed.
  assert scores["micro"] == pytest.approx({"precision": 2 / 4, "recall": 2 / 4, "f1": 4 / 8})
  assert scores["macro"] == pytest.approx({"precision": 1 / 3, "recall": 1 / 3, "f1": 1 / 3})
  assert scores["per_finding"]["Edema"] == pytest.approx(
      {"precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3, "support": 3})
  assert scores["per_finding"]["Pneumonia"]["support"] == 0


def test_perfect_and_silent():
  references = [labels("Edema"), labels("Fracture"), labels()]
  assert label_scores(references, references, FINDINGS)["micro"]["f1"] == 1
  assert label_scores(references, references, FINDINGS)["macro"]["f1"] == 1      # Pneumonia occurs nowhere
  assert label_scores(references, [labels()] * 3, FINDINGS)["micro"] == {"precision": 0, "recall": 0, "f1": 0}


def test_refuses_what_is_no_label():
  with pytest.raises(ValueError, match="Fracture is 'yes'"):
    label_scores([labels()], [{**labels(), "Fracture": "yes"}], FINDINGS)
  with pytest.raises(ValueError, match="2 labelled references and 1"):
    label_scores([labels()] * 2, [labels()], FINDINGS)
