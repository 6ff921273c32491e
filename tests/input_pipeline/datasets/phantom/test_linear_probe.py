"""Phantoms aren't trivial: a linear model on the pixels of thumbnails fails to classify most findings."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import rankdata

from input_pipeline.datasets.phantom.anatomy import draw_study
from input_pipeline.datasets.phantom.patient import PHANTOM_FINDINGS

TRAIN, VAL, TEST = slice(0, 1500), slice(1500, 1800), slice(1800, 2200)
PENALTIES = (10.0, 100.0, 1000.0)


def thumbnails_and_labels(count):
  """Returns standardized frontal views [count, 32 * 32] and their findings, bool [count, num_findings]."""
  pixels, labels = np.zeros((count, 32 * 32)), np.zeros((count, len(PHANTOM_FINDINGS)), bool)
  for i in range(count):
    study = draw_study((0, 0, i))
    pixels[i] = study.images[0].reshape(32, 8, 32, 8).mean((1, 3)).ravel()
    labels[i] = [name in {finding.name for finding in study.findings} for name in PHANTOM_FINDINGS]
  pixels -= pixels[TRAIN].mean(0)
  return pixels / (pixels[TRAIN].std(0) + 1e-3), labels


def fit_logistic(x, y, penalty):
  """Returns the weights [D + 1] of a logistic regression; the bias is last and has no L2 penalty."""
  x = np.pad(x, ((0, 0), (0, 1)), constant_values=1)
  sign = np.where(y, 1.0, -1.0)

  def loss(w):
    margin = sign * (x @ w)
    shrunk = np.append(w[:-1], 0)
    gradient = penalty * shrunk - x.T @ (sign / (1 + np.exp(np.clip(margin, -30, 30))))
    return np.logaddexp(0, -margin).sum() + penalty / 2 * shrunk @ shrunk, gradient

  return minimize(loss, np.zeros(x.shape[1]), jac=True, method="L-BFGS-B", options={"maxiter": 60}).x


def auc(y, scores):
  """Returns the area under the ROC curve."""
  positives = y.sum()
  ranks = rankdata(scores)[y].sum() - positives * (positives + 1) / 2
  return ranks / (positives * (len(y) - positives))


@pytest.mark.slow
def test_linear_probe_on_thumbnails_fails_for_most_findings():
  pixels, labels = thumbnails_and_labels(TEST.stop)
  scores = {}
  for name, y in zip(PHANTOM_FINDINGS, labels.T):
    fits = [fit_logistic(pixels[TRAIN], y[TRAIN], penalty) for penalty in PENALTIES]
    best = max(fits, key=lambda w: auc(y[VAL], pixels[VAL] @ w[:-1]))
    scores[name] = auc(y[TEST], pixels[TEST] @ best[:-1])
  assert sum(score < 0.9 for score in scores.values()) >= 5, scores
  print(scores)
