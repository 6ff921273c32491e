"""The area under the ROC curve agrees with scikit-learn and counts by hand."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from mcsam_jax.metrics.auc import compare_known_and_said, compute_auc


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
  known = compare_known_and_said(probabilities, labels, {"Edema": {"f1": 0.0}, "Fracture": {"f1": 0.0},
                                                         "Pneumonia": {"f1": 0.5}})
  assert known == {"Edema": {"auc": 1.0, "f1": 0.0, "support": 1, "mean_probability": pytest.approx(0.35)},
                   "Fracture": {"auc": None, "f1": 0.0, "support": 0, "mean_probability": pytest.approx(0.3)}}
