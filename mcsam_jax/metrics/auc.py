"""Area under the ROC curve: how well a score ranks the studies that have a finding above those that don't."""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats


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


def compare_known_and_said(probabilities: Sequence[Mapping[str, float]], reference_labels: Sequence[Mapping[str, str]],
                           per_finding: Mapping[str, Mapping]) -> dict[str, dict]:
  """Returns for each finding how well the model knows it (AUC of its probabilities) and says it (F1 of its reports).

  Args:
    probabilities: for each study, the probability of each finding.
    reference_labels: for each study, {finding: label}.
    per_finding: {finding: {"f1", "support", ...}}, as `compute_clinical_f1` returns it.

  Returns:
    {finding: {"auc", "f1", "support", "mean_probability"}} for the findings that have all of these.
  """
  known = {}
  for finding, rates in per_finding.items():
    if all(finding in study for study in probabilities):
      scores = np.array([study[finding] for study in probabilities], float)
      positive = np.array([labels[finding] == "positive" for labels in reference_labels], bool)
      known[finding] = {"auc": compute_auc(scores, positive), "f1": rates["f1"], "support": int(positive.sum()),
                        "mean_probability": float(scores.mean())}
  return known
