"""What each report has in common with its reference, as numbers from which the scores of any set of studies follow.

BLEU and METEOR of a set come from sums of rows, ROUGE-L and CIDEr are means of rows. So the score of a resample, of a
part of the split, or of a study alone is a product of weights and rows, and no text is read twice.

The numbers are pycocoevalcap's. It compares a pair in milliseconds, of which an evaluation has tens of thousands; here
n-grams of a text are counted once, and the longest common subsequence takes one step a word.
"""

import collections
from collections.abc import Sequence
import math
from typing import NamedTuple

import numpy as np

ORDERS = 4                    # n-grams of 1 to 4 words, in BLEU and in CIDEr
_SIGMA = 6.0                  # of CIDEr's penalty on a difference in length
_BETA = 1.2                   # of ROUGE-L's F measure


class NgramStats(NamedTuple):
  """Of n studies, float64."""
  words: np.ndarray           # [n, 2], words written, words of the reference
  said: np.ndarray            # [n, 4], n-grams written
  shared: np.ndarray          # [n, 4], those of them that the reference has, each at most as often as there
  rouge_l: np.ndarray         # [n]
  cider: np.ndarray           # [n], by document frequencies of all references, whichever studies are weighted later
  meteor: np.ndarray | None   # [n, 23], METEOR's own counts (java.py); None where it could not be asked


class _Text:
  """A report in n-grams."""

  def __init__(self, report: str):
    self.words = report.split()
    self.grams = [collections.Counter(zip(*(self.words[i:] for i in range(n)))) for n in range(1, ORDERS + 1)]
    self.norms = None         # of the tf-idf vector of each order, once they are needed


class ReferenceSet:
  """The references of a split, counted once for any number of systems."""

  def __init__(self, reports: Sequence[str]):
    """Args:
      reports: n, of words with spaces between.
    """
    self.reports = list(reports)
    self._texts = {report: _Text(report) for report in set(reports)}      # hypotheses join them as they are met
    frequency = collections.Counter()                     # studies whose reference has an n-gram
    for report, times in collections.Counter(reports).items():
      for grams in self._texts[report].grams:
        frequency.update(dict.fromkeys(grams, times))
    self._rarest = math.log(max(1, len(self.reports)))    # the idf of what no reference has
    self._idf = {gram: self._rarest - math.log(count) for gram, count in frequency.items()}

  def __len__(self) -> int:
    return len(self.reports)

  def count(self, hypotheses: Sequence[str], meteor: np.ndarray | None = None) -> NgramStats:
    """Returns what n hypotheses share with the references, in the same order.

    Raises:
      ValueError: there are not as many hypotheses as references.
    """
    if len(hypotheses) != len(self):
      raise ValueError(f"{len(self)} references and {len(hypotheses)} hypotheses: give one pair a study")
    rows = [self._pair(self._text(said), self._text(meant)) for said, meant in zip(hypotheses, self.reports)]
    table = np.array(rows, np.float64).reshape(len(self), 2 + 2 * ORDERS + 1)
    rouge_l = np.array([rouge_l_of_pair(*pair) for pair in zip(hypotheses, self.reports)])
    return NgramStats(table[:, :2], table[:, 2:2 + ORDERS], table[:, 2 + ORDERS:-1], rouge_l, table[:, -1], meteor)

  def _text(self, report: str) -> _Text:
    text = self._texts.get(report)
    if text is None:
      text = self._texts[report] = _Text(report)
    if text.norms is None:
      idf, rarest = self._idf, self._rarest
      text.norms = [math.sqrt(sum((count * idf.get(gram, rarest)) ** 2 for gram, count in grams.items()))
                    for grams in text.grams]
    return text

  def _pair(self, said: _Text, meant: _Text) -> list[float]:
    shared, cosines, idf = [], 0.0, self._idf
    for a, b, norm_a, norm_b in zip(said.grams, meant.grams, said.norms, meant.norms):
      overlap, product = 0, 0.0
      for gram in a:                                      # in the order of the text: so a sum is the same in each run
        there = b.get(gram)
        if there is None:
          continue
        both = min(a[gram], there)
        overlap += both
        product += both * there * idf[gram] ** 2          # CIDEr: the weights of what was said are clipped
      shared.append(overlap)
      if norm_a and norm_b:
        cosines += product / (norm_a * norm_b)
    said, meant = len(said.words), len(meant.words)
    bigrams = max(0, said - 1) - max(0, meant - 1)        # their number is CIDEr's measure of length
    cider = 10 / ORDERS * cosines * math.exp(-bigrams ** 2 / (2 * _SIGMA ** 2))
    return [said, meant, *(max(0, said - n) for n in range(ORDERS)), *shared, cider]


def rouge_l_of_pair(hypothesis: str, reference: str) -> float:
  """Returns ROUGE-L of a pair; an empty text counts as one empty word, as in pycocoevalcap."""
  said, meant = hypothesis.split(" "), reference.split(" ")
  common = longest_common_subsequence(said, meant)
  if not common:
    return 0.0
  precision, recall = common / len(said), common / len(meant)
  return (1 + _BETA ** 2) * precision * recall / (recall + _BETA ** 2 * precision)


def longest_common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
  """Returns the length of the longest common subsequence.

  A row of the usual table grows by 0 or 1 from cell to cell, so it is kept as bits of one integer, and a word costs
  four operations on it (Hyyrö, Bit-parallel LCS-length computation revisited, 2004).
  """
  places = collections.defaultdict(int)                   # of each word in `first`, as bits
  for i, word in enumerate(first):
    places[word] |= 1 << i
  every = (1 << len(first)) - 1
  row = every                                             # a bit is 0 where the row grows
  for word in second:
    met = row & places.get(word, 0)
    row = ((row + met) | (row - met)) & every
  return len(first) - row.bit_count()
