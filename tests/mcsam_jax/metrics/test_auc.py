"""The area under the ROC curve agrees with scikit-learn and counts by hand."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from mcsam_jax.metrics.auc import compare_known_and_said, compute_auc, compute_calibration_error, compute_mean_auc


def test_by_hand():
  scores, positive = np.array([0.1, 0.4, 0.4, 0.9]), np.array([False, True, False, True])
  assert compute_auc(scores, positive) == 3.5 / 4                    # of four pairs three are right and one is tied
  assert compute_auc(scores, ~positive) == 0.5 / 4
  assert compute_auc(np.zeros(4), positive) == 0.5
  assert compute_auc(scores, np.ones(4, bool)) is None and compute_auc(scores, np.zeros(4, bool)) is None


def test_agrees_with_scikit_learn():
  rng = np.random.default_rng(0)
  for _ in range(20):
    scores, positive = rng.integers(0, 9, 50) / 8, rng.random(50) < 0.3
    assert compute_auc(scores, positive) == pytest.approx(roc_auc_score(positive, scores))


def test_known_and_said_stand_side_by_side():
  labels = [{"Edema": "positive", "Fracture": "absent"}, {"Edema": "uncertain", "Fracture": "negative"}]
  probabilities = [{"Edema": 0.6, "Fracture": 0.2}, {"Edema": 0.1, "Fracture": 0.4}]
  head = [{"Edema": 0.5, "Pneumonia": 0.1}, {"Edema": 0.5, "Pneumonia": 0.1}]
  labels = [each | {"Pneumonia": "absent", "Lung Lesion": "absent"} for each in labels]
  rates = {finding: {"f1": 0.0} for finding in ("Edema", "Fracture", "Pneumonia", "Lung Lesion")}
  known = compare_known_and_said(labels, rates, samples=probabilities, head=head)
  assert known == {
      "Edema": {"f1": 0.0, "support": 1, "head": {"auc": 0.5, "mean_probability": 0.5, "calibration_error": 0.5},
                "samples": {"auc": 1.0, "mean_probability": pytest.approx(0.35),
                            "calibration_error": pytest.approx((0.4 + 0.1) / 2)}},
      "Fracture": {"f1": 0.0, "support": 0, "samples": {"auc": None, "mean_probability": pytest.approx(0.3),
                                                        "calibration_error": pytest.approx(0.3)}},
      "Pneumonia": {"f1": 0.0, "support": 0, "head": {"auc": None, "mean_probability": pytest.approx(0.1),
                                                      "calibration_error": pytest.approx(0.1)}}}


def test_calibration_error_by_hand():
  probabilities, positive = np.array([0.1, 0.3, 0.8, 0.8]), np.array([False, True, True, True])
  # Two bins of two studies: 0.2 predicted and half of them positive, 0.8 predicted and all positive.
  assert compute_calibration_error(probabilities, positive, 2) == pytest.approx((0.3 + 0.2) / 2)
  assert compute_calibration_error(np.full(1000, 0.25), np.arange(1000) % 4 == 0) == 0
  assert compute_calibration_error(np.zeros(3), np.zeros(3, bool)) == 0


def test_mean_auc_counts_the_abnormal_findings_that_are_frequent_enough():
  positive = np.arange(20) < 8
  labels = [{"No Finding": "absent" if each else "positive", "Edema": "positive" if each else "negative",
             "Fracture": "positive" if study < 7 else "absent", "Pneumonia": "positive" if each else "absent",
             "Atelectasis": "positive" if study % 2 else "uncertain"} for study, each in enumerate(positive)]
  # The head has no opinion on Pneumonia, ranks Edema without error, Atelectasis by chance, and Fracture is too rare.
  probabilities = [{"No Finding": 0.5, "Edema": 1 - study / 20, "Fracture": study / 20, "Atelectasis": 0.3}
                   for study in range(20)]
  assert compute_mean_auc(labels, probabilities) == (1.0 + 0.5) / 2
  assert compute_mean_auc(labels[:7], probabilities[:7]) is None and compute_mean_auc([], []) is None
