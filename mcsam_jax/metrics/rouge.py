"""ROUGE-L (Lin, 2004): F-measure of the longest common subsequence of words, as pycocoevalcap computes it.

An empty report counts as one empty word, as in pycocoevalcap.

Shapes: K hypotheses, R references, T words.
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
  """References that many hypotheses are compared with at once."""

  def __init__(self, references: Sequence[Sequence[str]]):
    """Numbers the words of R references, lists of words."""
    self._word_ids: dict[str, int] = {}
    self._lengths = np.array([len(words) for words in references], np.int64)               # [R]
    self._ids = np.full((len(references), max(self._lengths, default=0)), -1, np.int32)    # [R, T], -1 is padding
    for row, words in enumerate(references):
      self._ids[row, :len(words)] = [self._word_ids.setdefault(word, len(self._word_ids)) for word in words]

  def compare(self, hypotheses: Sequence[Sequence[str]], rows: np.ndarray | None = None) -> np.ndarray:
    """Returns ROUGE-L [K, R] of K hypotheses, lists of words, against the references.

    All pairs are computed at once in the way of `find_lcs_length`, with 64 bits of a row in each integer.

    Args:
      hypotheses: K lists of words.
      rows: indices of the R references to compare with; None: all.
    """
    ids, lengths = (self._ids, self._lengths) if rows is None else (self._ids[rows], self._lengths[rows])
    positions, numbers = self._find_positions(ids, hypotheses)
    hypothesis_lengths = np.array([len(words) for words in hypotheses], np.int64)
    longest_first = np.argsort(-hypothesis_lengths, kind="stable")
    num_words = max(hypothesis_lengths, default=0)
    word_numbers = np.zeros((num_words, len(hypotheses)), np.int64)                        # [T, K], longest first
    for column, hypothesis in enumerate(longest_first):
      words = hypotheses[int(hypothesis)]
      word_numbers[:len(words), column] = [numbers.get(word, 0) for word in words]
    rows_of_bits = np.full((len(positions), len(hypotheses), len(ids)), ~np.uint64(0))     # [chunks, K, R]
    all_matches, all_totals = np.empty((2, *rows_of_bits.shape[1:]), np.uint64)
    for position in range(num_words):
      count, carry = int((hypothesis_lengths > position).sum()), None                      # hypotheses with a word here
      matches, total = all_matches[:count], all_totals[:count]
      for chunk in range(len(positions)):
        bits = rows_of_bits[chunk, :count]                  # changes in place
        np.take(positions[chunk], word_numbers[position, :count], axis=0, out=matches, mode="clip")
        matches &= bits
        np.add(bits, matches, out=total)
        if carry is not None:
          total += carry
        if chunk + 1 < len(positions):
          carry = (total < bits) if carry is None else (total < bits) | carry & (total == bits)
        bits -= matches
        bits |= total
    common = np.empty((len(hypotheses), len(ids)), np.int64)                               # [K, R]
    common[longest_first] = np.bitwise_count(~rows_of_bits).sum(0, dtype=np.int64)
    with np.errstate(divide="ignore", invalid="ignore"):
      scores = compute_f_measure(common / hypothesis_lengths[:, None], common / lengths)
    return np.where(common > 0, scores, 0.0)

  def _find_positions(self, ids: np.ndarray, hypotheses: Sequence[Sequence[str]]) -> tuple[np.ndarray, dict[str, int]]:
    """Finds where the words of hypotheses occur in references.

    Args:
      ids: [R, T], of the words of the references.
      hypotheses: K lists of words.

    Returns:
      Positions as bits, uint64 [chunks of 64 positions, number of words, R], and the number of each word that occurs;
      number 0, of all others, occurs nowhere.
    """
    words = dict.fromkeys(word for hypothesis in hypotheses for word in hypothesis if word in self._word_ids)
    numbers = {word: number for number, word in enumerate(words, 1)}
    number_of_id = np.zeros(len(self._word_ids) + 1, np.int64)                             # the last one is of padding
    for word, number in numbers.items():
      number_of_id[self._word_ids[word]] = number
    num_references, length = ids.shape
    positions = np.zeros((max(-(-length // 64), 1), len(numbers) + 1, num_references), np.uint64)
    references = np.arange(num_references)
    for position in range(length):
      positions[position // 64, number_of_id[ids[:, position]], references] |= np.uint64(1) << np.uint64(position % 64)
    positions[:, 0] = 0
    return positions, numbers
