"""What a model knows of a finding: how well its probabilities rank the studies, and how well they are calibrated.

Shapes: B studies.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

MIN_STUDIES = 8        # of either kind; with fewer, an AUC is mostly chance


def compute_auc(scores: np.ndarray, positive: np.ndarray) -> float | None:
  """Returns the probability that a positive study has a higher score than a negative one; ties count half.

  This is the area under the ROC curve (Hanley and McNeil, Radiology 1982).

  Args:
    scores: [B].
    positive: bool [B].

  Returns:
    From 0 to 1, 0.5 for a score that knows nothing; None if all studies are positive, or none is.
  """
  num_positive, num_negative = int(positive.sum()), int((~positive).sum())
  if not num_positive or not num_negative:
    return None
  ranks = stats.rankdata(scores)
  return float((ranks[positive].sum() - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative))


def compute_mean_auc(reference_labels: Sequence[Mapping[str, str]],
                     probabilities: Sequence[Mapping[str, float]]) -> float | None:
  """Returns the mean AUC of the abnormal findings that at least `MIN_STUDIES` studies have, and as many don't.

  Args:
    reference_labels: for each study, {finding: label}.
    probabilities: for each study, the probability of each finding. Findings without one don't count.

  Returns:
    None if no finding is frequent enough.
  """
  aucs = []
  for finding in reference_labels[0] if reference_labels else ():
    scores, positive = _read_scores(probabilities, finding), _find_positive(reference_labels, finding)
    if finding != "No Finding" and scores is not None and min(positive.sum(), (~positive).sum()) >= MIN_STUDIES:
      aucs.append(compute_auc(scores, positive))
  return float(np.mean(aucs)) if aucs else None


def compute_calibration_error(probabilities: np.ndarray, positive: np.ndarray, num_bins: int = 10) -> float:
  """Returns the mean distance between the predicted probability and the rate of positive studies.

  This is the expected calibration error (Naeini et al., AAAI 2015) over bins with equal numbers of studies.

  Args:
    probabilities: [B].
    positive: bool [B].
    num_bins: number of bins, at most B of which are used.
  """
  order = np.argsort(probabilities, kind="stable")
  bins = [bin for bin in np.array_split(order, num_bins) if len(bin)]
  return float(sum(abs(probabilities[bin].sum() - positive[bin].sum()) for bin in bins) / len(probabilities))


def compare_known_and_said(reference_labels: Sequence[Mapping[str, str]], per_finding: Mapping[str, Mapping],
                           **sources: Sequence[Mapping[str, float]]) -> dict[str, dict]:
  """Returns for each finding how well the model knows it and how well its reports say it.

  Args:
    reference_labels: for each study, {finding: label}.
    per_finding: {finding: {"f1", "support", ...}}, as `compute_clinical_f1` returns it.
    sources: what the model knows, by name: for each study, the probability of each finding.

  Returns:
    {finding: {"f1", "support", source: {"auc", "calibration_error", "mean_probability"}, ...}} for the findings that at
    least one source knows.
  """
  known = {}
  for finding, rates in per_finding.items():
    positive = _find_positive(reference_labels, finding)
    knowledge = {}
    for name, probabilities in sources.items():
      scores = _read_scores(probabilities, finding)
      if scores is not None:
        knowledge[name] = {"auc": compute_auc(scores, positive), "mean_probability": float(scores.mean()),
                           "calibration_error": compute_calibration_error(scores, positive)}
    if knowledge:
      known[finding] = {"f1": rates["f1"], "support": int(positive.sum()), **knowledge}
  return known


def _find_positive(reference_labels: Sequence[Mapping[str, str]], finding: str) -> np.ndarray:
  """Returns bool [B], which studies have a finding."""
  return np.array([labels[finding] == "positive" for labels in reference_labels], bool)


def _read_scores(probabilities: Sequence[Mapping[str, float]], finding: str) -> np.ndarray | None:
  """Returns the probabilities [B] of a finding, None if a study lacks it."""
  if all(finding in study for study in probabilities):
    return np.array([study[finding] for study in probabilities], float)
  return None
