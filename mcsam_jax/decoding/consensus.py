"""Of several reports drawn for a study, the one that agrees best with all others.

Minimum Bayes risk decoding (Kumar and Byrne, NAACL 2004; by samples: Eikema and Aziz, EMNLP 2022): the report
whose mean agreement with what the model might as well have written is highest. Agreement is CIDEr-D (Vedantam
et al., CVPR 2015): cosines of tf-idf weighted 1- to 4-grams, lowered where lengths differ. How rare an n-gram
is comes from the training reports, so that nothing of the split that is written for is used.
"""

import collections
from collections.abc import Iterable, Sequence
import math

import numpy as np

ORDERS = (1, 2, 3, 4)
SIGMA = 6.0               # words of difference in length that are forgiven; CIDEr-D's


class Consensus:
  """Knows how rare each n-gram is in some reports (the training ones), each a list of words."""

  def __init__(self, reports: Iterable[Sequence[str]]):
    self.frequency, count = collections.Counter(), 0
    for report in reports:
      self.frequency.update({gram for order in ORDERS for gram in ngrams(report, order)})
      count += 1
    self.log_count = math.log(max(count, 2))

  def best(self, candidates: Sequence[Sequence[str]]) -> int:
    """Returns the number of the candidate (a list of words) with the highest mean agreement; ties: the first."""
    return int(self.agreement(candidates).mean(axis=1).argmax())

  def agreement(self, candidates: Sequence[Sequence[str]]) -> np.ndarray:
    """Returns the agreement [K, K] of each candidate (rows) with each as its reference (columns)."""
    total = np.zeros((len(candidates), len(candidates)))
    for order in ORDERS:
      counts = [collections.Counter(ngrams(report, order)) for report in candidates]
      column = {gram: number for number, gram in enumerate(dict.fromkeys(gram for row in counts for gram in row))}
      times = np.zeros((len(candidates), len(column)))     # [K, n-grams]
      for row, found in zip(times, counts):
        row[[column[gram] for gram in found]] = list(found.values())
      rareness = np.array([self.log_count - math.log(max(1, self.frequency[gram])) for gram in column])
      # min(a, b) is the number of thresholds t = 1, 2, ... that both a and b reach: a few products of matrices.
      shared = sum(((times >= t) * rareness ** 2) @ ((times >= t) * times).T
                   for t in range(1, int(times.max(initial=0)) + 1))
      norms = np.linalg.norm(times * rareness, axis=1)
      total += shared / np.maximum(norms[:, None] * norms[None], 1e-9)
    lengths = np.array([len(report) for report in candidates])
    return total / len(ORDERS) * np.exp(-(lengths[:, None] - lengths[None]) ** 2 / (2 * SIGMA ** 2))


def ngrams(words: Sequence[str], order: int) -> list[tuple[str, ...]]:
  return [tuple(words[start:start + order]) for start in range(len(words) - order + 1)]
