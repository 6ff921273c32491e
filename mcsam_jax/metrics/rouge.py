"""ROUGE-L (Lin, 2004): F-measure of the longest common subsequence of words, as pycocoevalcap computes it.

An empty report counts as one empty word, as in pycocoevalcap.

Shapes: R references, T words.
"""

import collections
from collections.abc import Sequence
from typing import Any

import numpy as np

BETA = 1.2                    # weight of recall relative to precision


def compute_f_measure(precision: Any, recall: Any) -> Any:
  """Returns the F-measure of ROUGE-L, of floats or of arrays."""
  return (1 + BETA ** 2) * precision * recall / (recall + BETA ** 2 * precision)


def compute_rouge_l(hypothesis: str, reference: str) -> float:
  """Returns ROUGE-L of a hypothesis against its reference."""
  hypothesis_words, reference_words = hypothesis.split(" "), reference.split(" ")
  common = find_lcs_length(hypothesis_words, reference_words)
  if not common:
    return 0.0
  return compute_f_measure(common / len(hypothesis_words), common / len(reference_words))


def find_lcs_length(first: Sequence, second: Sequence) -> int:
  """Returns the length of the longest common subsequence of two sequences of hashable elements.

  Neighboring cells of a row in the usual dynamic-programming table differ by 0 or 1, so a row is stored as the bits of
  one integer, and each word takes four operations on it (Hyyrö, Bit-parallel LCS-length computation revisited, 2004).
  """
  positions = collections.defaultdict(int)                # word -> its positions in `first`, as bits
  for i, word in enumerate(first):
    positions[word] |= 1 << i
  all_bits = (1 << len(first)) - 1
  row = all_bits                                          # a bit is 0 where the row increases
  for word in second:
    matches = row & positions.get(word, 0)
    row = ((row + matches) | (row - matches)) & all_bits
  return len(first) - row.bit_count()


class RougeReferences:
  """References that many hypotheses are each compared with."""

  def __init__(self, references: Sequence[str]):
    """Numbers the words of R references."""
    words = [reference.split(" ") for reference in references]
    self._word_ids: dict[str, int] = {}
    self._lengths = np.array([len(row) for row in words])                                  # [R]
    self._ids = np.full((len(words), max(map(len, words))), -1, np.int32)                  # [R, T], -1 is padding
    for row, reference_words in enumerate(words):
      self._ids[row, :len(reference_words)] = [self._word_ids.setdefault(word, len(self._word_ids))
                                               for word in reference_words]

  def compute_mean(self, hypothesis: str) -> float:
    """Returns the mean ROUGE-L of one hypothesis against all references."""
    words = hypothesis.split(" ")
    row = np.zeros((self._ids.shape[0], self._ids.shape[1] + 1), np.int16)                 # [R, T + 1]
    for word in words:
      matches = self._ids == self._word_ids.get(word, -2)
      row[:, 1:] = np.maximum(row[:, 1:], row[:, :-1] + matches)
      np.maximum.accumulate(row, axis=1, out=row)
    common = row[:, -1]
    with np.errstate(invalid="ignore"):
      scores = compute_f_measure(common / len(words), common / self._lengths)
    return float(np.mean(np.where(common > 0, scores, 0.0)))
