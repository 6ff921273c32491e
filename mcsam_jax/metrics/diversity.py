"""Diversity of reports, overlap with the training reports, and statements that no model can know from one study.

Shapes: B studies, R resamples.
"""

import collections
from collections.abc import Sequence

import numpy as np

from mcsam_jax.labelers.prior_mentions import find_prior_mentions
from mcsam_jax.metrics.protocols import UNKNOWN

DE_IDENTIFIED = "xxxx"        # replaces removed words in the reports of IU X-Ray


class Diversity:
  """Diversity statistics of B reports, as a `bootstrap.ScoreFn`.

  Attributes:
    most_common_report: the most frequent cleaned report; of equally frequent ones the alphabetically first.
    num_distinct: number of different cleaned reports.
  """

  def __init__(self, reports: Sequence[str], cleaned: Sequence[str], train_reports: set[str] | None = None):
    """Computes the statistics of each report.

    Args:
      reports: B reports, as they were written.
      cleaned: the same reports, cleaned.
      train_reports: cleaned training reports; None if they aren't known.
    """
    (self.most_common_report, _), = collections.Counter(sorted(cleaned)).most_common(1)
    self.num_distinct = len(set(cleaned))
    words = [report.split() for report in cleaned]
    self._copied = None if train_reports is None else np.array([report in train_reports for report in cleaned], float)
    self._columns = {name: np.array(column, float) for name, column in {
        "most_common_report_fraction": [report == self.most_common_report for report in cleaned],
        "redacted_fraction": [DE_IDENTIFIED in row for row in words],
        "prior_mention_fraction": [bool(find_prior_mentions(report)) for report in reports],
        "empty_fraction": [not row for row in words],
        "mean_num_words": [len(row) for row in words],
    }.items()}
    self._has_unknown = np.array([UNKNOWN in row for row in words], float)
    self._num_unknown = np.array([row.count(UNKNOWN) for row in words], float)

  def aggregate(self, weights: np.ndarray) -> dict:
    """Returns arrays [R] for studies that count `weights` [R, B] times; `copied_from_train_fraction` may be None.

    The most common report remains that of all studies. The largest fraction within a resample would on average be
    larger, and its number of distinct reports smaller, than for other patients.
    """
    total = np.maximum(weights.sum(1), 1e-300)
    means = {name: weights @ column / total for name, column in self._columns.items()}
    num_words = np.maximum(means["mean_num_words"], 1e-300)
    return {**means,
            "copied_from_train_fraction": None if self._copied is None else weights @ self._copied / total,
            "unk_fraction": {"reports": weights @ self._has_unknown / total,
                             "words": weights @ self._num_unknown / total / num_words}}
