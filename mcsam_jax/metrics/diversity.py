"""How different are the reports from each other and from those of train, and what do they say that nobody can know?"""

import collections
from collections.abc import Sequence

import numpy as np

from mcsam_jax.labelers.prior_mentions import find_prior_mentions
from mcsam_jax.metrics.protocols import UNKNOWN

DE_IDENTIFIED = "xxxx"        # stands in IU X-Ray's reports where something was taken out


class Diversity:
  """Shares of n reports, as a score (bootstrap.py) and whole."""

  def __init__(self, reports: Sequence[str], cleaned: Sequence[str], seen: set[str] | None = None):
    """Args:
      reports: n, as they were written.
      cleaned: the same, cleaned.
      seen: cleaned reports of train; None where they aren't known.
    """
    (self.commonest, _), = collections.Counter(sorted(cleaned)).most_common(1)
    self.num_distinct = len(set(cleaned))
    words = [report.split() for report in cleaned]
    self._columns = {name: None if column is None else np.array(column, np.float64) for name, column in {
        "most_common_report_fraction": [report == self.commonest for report in cleaned],
        "copied_from_train_fraction": None if seen is None else [report in seen for report in cleaned],
        "reports": [UNKNOWN in row for row in words],
        "words": [row.count(UNKNOWN) for row in words],
        "redacted_fraction": [DE_IDENTIFIED in row for row in words],
        "prior_mention_fraction": [bool(find_prior_mentions(report)) for report in reports],
        "empty_fraction": [not row for row in words],
        "mean_num_words": [len(row) for row in words],
    }.items()}

  def values(self, weights: np.ndarray) -> dict:
    """Returns arrays [R] of the studies weighted by `weights` [R, n].

    The commonest report stays that of all studies: the largest share of a resample would be larger on average, and
    its number of different reports smaller, than that of other patients.
    """
    total = np.maximum(weights.sum(1), 1e-300)
    mean = {name: None if column is None else weights @ column / total for name, column in self._columns.items()}
    mean["unk_fraction"] = {"reports": mean.pop("reports"),
                         "words": mean.pop("words") / np.maximum(mean["mean_num_words"], 1e-300)}
    return mean
