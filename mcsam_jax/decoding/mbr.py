"""Of several reports drawn for a study, the one that agrees best with what its report may be.

Minimum Bayes risk decoding (Kumar and Byrne, NAACL 2004; by samples: Eikema and Aziz, EMNLP 2022): the draw is
written whose expected agreement with the unknown report is highest. Two witnesses say what that report may be: the
other draws, and, where the model aligns images with reports, the training reports, each as likely as the alignment
holds it for these images. Agreement is CIDEr-D (Vedantam et al., CVPR 2015): cosines of tf-idf weighted 1- to
4-grams, lowered where lengths differ. How rare an n-gram is comes from the training reports, so that nothing of
the split that is written for is used.

Shapes: K draws of a study, R training reports, G different n-grams.
"""

import collections
from collections.abc import Iterable, Sequence
import dataclasses
import math

import numpy as np
from scipy import sparse

ORDERS = (1, 2, 3, 4)
SIGMA = 6.0               # words of difference in length that are forgiven; CIDEr-D's
MAX_RECALLED = 2048       # training reports that are heard for a study, the likeliest


@dataclasses.dataclass
class Counts:
  """How often reports hold each n-gram of one order [reports, G], and the tf-idf norms [reports]."""
  times: sparse.csr_array
  norms: np.ndarray


class Consensus:
  """Knows how rare each n-gram is in the training reports, each a list of words, and can ask them."""

  def __init__(self, reports: Iterable[Sequence[str]]):
    reports = list(reports)
    self.log_count = math.log(max(len(reports), 2))
    self.columns, self.rareness = [], []                               # an order each
    for order in ORDERS:
      frequency = collections.Counter(gram for report in reports for gram in set(ngrams(report, order)))
      self.columns.append({gram: column for column, gram in enumerate(frequency)})
      self.rareness.append(self.log_count - np.log(np.fromiter(frequency.values(), float, len(frequency))))
    self.train, self.train_lengths = self._count(reports), np.array([len(report) for report in reports])

  def best(self, draws: Sequence[Sequence[str]], likelihood: np.ndarray | None = None, share: float = 0.0) -> int:
    """Returns the number of the draw (each a list of words) that agrees best; ties: the first.

    Args:
      likelihood: [R] of the training reports given the study's images; any scale.
      share: of the vote that the training reports have, the other draws have the rest.
    """
    votes = self.agreement(draws).mean(axis=1)
    if share and likelihood is not None:
      heard = np.argsort(-likelihood, kind="stable")[:MAX_RECALLED]
      weights = likelihood[heard] / likelihood[heard].sum()
      votes = (1 - share) * votes + share * self.agreement_with_train(draws, heard) @ weights
    return int(votes.argmax())

  def agreement(self, draws: Sequence[Sequence[str]]) -> np.ndarray:
    """Returns the agreement [K, K] of each draw (rows) with each as its reference (columns)."""
    counts, lengths = self._count(draws), np.array([len(report) for report in draws])
    return self._agreement(counts, lengths, counts, lengths)

  def agreement_with_train(self, draws: Sequence[Sequence[str]], rows: np.ndarray) -> np.ndarray:
    """Returns the agreement [K, rows] of each draw with the training reports of these numbers."""
    train = [Counts(counts.times[rows], counts.norms[rows]) for counts in self.train]
    return self._agreement(self._count(draws), np.array([len(report) for report in draws]), train,
                           self.train_lengths[rows])

  def _count(self, reports: Sequence[Sequence[str]]) -> list[Counts]:
    """Counts each order; n-grams that train lacks get columns behind those that it has."""
    counted = []
    for order, known, rareness in zip(ORDERS, self.columns, self.rareness):
      new, rows, columns, values = {}, [], [], []
      for row, report in enumerate(reports):
        for gram, times in collections.Counter(ngrams(report, order)).items():
          column = known.get(gram)
          columns.append(new.setdefault(gram, len(known) + len(new)) if column is None else column)
          rows.append(row)
          values.append(times)
      times = sparse.csr_array((np.array(values, float), (rows, columns)),
                               shape=(len(reports), len(known) + len(new)))
      weights = np.concatenate([rareness, np.full(len(new), self.log_count)])
      counted.append(Counts(times, np.sqrt((times ** 2) @ weights ** 2)))
    return counted

  def _agreement(self, hypotheses: list[Counts], hypothesis_lengths: np.ndarray, references: list[Counts],
                 reference_lengths: np.ndarray) -> np.ndarray:
    total = np.zeros((len(hypothesis_lengths), len(reference_lengths)))
    for mine, theirs, rareness in zip(hypotheses, references, self.rareness):
      size = min(mine.times.shape[1], theirs.times.shape[1])           # behind it one of them has nothing
      weights = np.concatenate([rareness, np.full(size - len(rareness), self.log_count)]) ** 2
      a, b = mine.times[:, :size], theirs.times[:, :size]
      # min(a, b) is the number of thresholds t = 1, 2, ... that both a and b reach: a few products of matrices.
      for t in range(1, int(min(a.max() if a.nnz else 0, b.max() if b.nnz else 0)) + 1):
        shared = (a >= t).astype(float).multiply(weights).tocsr() @ (b >= t).astype(float).multiply(b).T.tocsc()
        total += shared.toarray() / np.maximum(mine.norms[:, None] * theirs.norms[None], 1e-9)
    difference = hypothesis_lengths[:, None] - reference_lengths[None]
    return total / len(ORDERS) * np.exp(-difference ** 2 / (2 * SIGMA ** 2))


def ngrams(words: Sequence[str], order: int) -> list[tuple[str, ...]]:
  return [tuple(words[start:start + order]) for start in range(len(words) - order + 1)]
