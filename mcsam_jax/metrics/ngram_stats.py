"""Sufficient statistics of reports and their references, from which the scores of any set of studies follow.

BLEU and METEOR of a set come from sums over studies, ROUGE-L and CIDEr are means over studies. The scores of a
resample, of a part of the split or of a single study are therefore products of weights and statistics, and no text is
read twice.

The numbers are pycocoevalcap's, which takes milliseconds per pair; an evaluation has tens of thousands of pairs. Here
the n-grams of a text are counted once, and the longest common subsequence takes one step per word.

Shapes: B studies.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mcsam_jax.metrics.cider import compute_norms, Idf, score_pair
from mcsam_jax.metrics.ngrams import clip_counts, count_ngrams, MAX_ORDER
from mcsam_jax.metrics.rouge import compute_rouge_l


class NgramStats(NamedTuple):
  """Statistics of B studies, float64."""
  num_words: np.ndarray            # [B, 2], of the hypothesis and of the reference
  num_ngrams: np.ndarray           # [B, 4], n-grams of the hypothesis, by order
  num_matches: np.ndarray          # [B, 4], those that the reference has too, with clipped counts
  rouge_l: np.ndarray              # [B]
  cider: np.ndarray                # [B], with the document frequencies of all references, whatever the weights
  meteor: np.ndarray | None        # [B, 23], METEOR's own statistics (meteor.py); None if it could not be run


class _CountedReport:
  """A report and its n-gram counts."""

  def __init__(self, report: str):
    """Counts the n-grams of a report."""
    words = report.split()
    self.num_words, self.counts = len(words), count_ngrams(words)
    self.norms: list[float] | None = None                 # norms of the tf-idf vectors, computed when first needed


class ReferenceSet:
  """The references of a split, counted once for any number of systems."""

  def __init__(self, reports: Sequence[str]):
    """Counts the n-grams of the references.

    Args:
      reports: B reports, words separated by spaces.
    """
    self.reports = list(reports)
    self._counted = {report: _CountedReport(report) for report in set(reports)}      # hypotheses are added later
    self._idf = Idf([self._counted[report].counts for report in self.reports])

  def __len__(self) -> int:
    """Returns the number of references."""
    return len(self.reports)

  def compute_stats(self, hypotheses: Sequence[str], meteor: np.ndarray | None = None) -> NgramStats:
    """Returns the statistics of B hypotheses, one per reference.

    Args:
      hypotheses: B reports, in the order of the references.
      meteor: [B, 23], stored unchanged in the result.

    Raises:
      ValueError: the numbers of hypotheses and references differ.
    """
    if len(hypotheses) != len(self):
      raise ValueError(f"{len(self)} references and {len(hypotheses)} hypotheses: expected one of each per study")
    rows = [self._compare(hypothesis, reference) for hypothesis, reference in zip(hypotheses, self.reports)]
    table = np.array(rows, np.float64).reshape(len(self), 2 + 2 * MAX_ORDER + 2)
    num_words, num_ngrams, num_matches, scores = np.split(table, np.cumsum([2, MAX_ORDER, MAX_ORDER]), axis=1)
    return NgramStats(num_words, num_ngrams, num_matches, scores[:, 0], scores[:, 1], meteor)

  def _get_counted(self, report: str) -> tuple[_CountedReport, list[float]]:
    """Returns the counts and tf-idf norms of a report, from the cache if it has been seen before."""
    counted = self._counted.get(report)
    if counted is None:
      counted = self._counted[report] = _CountedReport(report)
    if counted.norms is None:
      counted.norms = compute_norms(counted.counts, self._idf)
    return counted, counted.norms

  def _compare(self, hypothesis: str, reference: str) -> list[float]:
    """Returns the statistics of one study, in the order of the fields of `NgramStats`."""
    counted, norms = self._get_counted(hypothesis)
    reference_counted, reference_norms = self._get_counted(reference)
    clipped = list(map(clip_counts, counted.counts, reference_counted.counts))
    cider = score_pair(clipped, reference_counted.counts, norms, reference_norms, counted.num_words,
                       reference_counted.num_words, self._idf)
    return [counted.num_words, reference_counted.num_words,
            *(max(0, counted.num_words - n) for n in range(MAX_ORDER)), *(sum(counts.values()) for counts in clipped),
            compute_rouge_l(hypothesis, reference), cider]


def compute_bleu(num_words: np.ndarray, num_ngrams: np.ndarray, num_matches: np.ndarray) -> dict[str, np.ndarray]:
  """Returns BLEU-1 to 4 [...] from sums over studies, shaped like the fields of `NgramStats`: [..., 2], [..., 4] twice.

  The small constants are pycocoevalcap's; they avoid divisions by 0.
  """
  precision_products = np.cumprod((num_matches + 1e-15) / (num_ngrams + 1e-9), axis=-1)             # [..., 4]
  length_ratio = (num_words[..., 0] + 1e-15) / (num_words[..., 1] + 1e-9)
  brevity_penalty = np.exp(np.minimum(0, 1 - 1 / length_ratio))
  return {f"BLEU_{n}": precision_products[..., n - 1] ** (1 / n) * brevity_penalty for n in range(1, MAX_ORDER + 1)}
