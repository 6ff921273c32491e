"""CIDEr-D (Vedantam et al., CVPR 2015): agreement of reports by their tf-idf weighted 1- to 4-grams.

For each order, the cosine of the tf-idf vectors of hypothesis and reference, with the hypothesis's counts clipped to
those of the reference; then the mean over orders, lowered by a Gaussian penalty on the difference in length. All
numbers agree with pycocoevalcap.

  score_pair   one hypothesis against its reference, for evaluation
  CiderCorpus  many hypotheses against many references at once, for the best constant report and for minimum Bayes risk
               decoding

Shapes: K reports, R reports of the corpus, G columns (occurrences of n-grams), E entries.
"""

import array
import collections
from collections.abc import Iterable, Mapping, Sequence
import math
from typing import cast, NamedTuple

import numpy as np
from scipy import sparse

from mcsam_jax.metrics.ngrams import MAX_ORDER, Ngram, NgramCounts

SCALE = 10.0                  # CIDEr is reported from 0 to 10
SIGMA = 6.0                   # standard deviation of the length penalty, in words


def compute_idf(frequencies: np.ndarray, num_documents: int) -> np.ndarray:
  """Returns the inverse document frequency of n-grams that occur in `frequencies` (at least 1) of the documents."""
  return math.log(num_documents) - np.log(frequencies)


def compute_length_penalty(num_words: np.ndarray | int, other_num_words: np.ndarray | int) -> np.ndarray:
  """Returns the factor in (0, 1] for two report lengths, or for arrays of them that broadcast.

  pycocoevalcap measures lengths in bigrams: an empty report is as long as a single word.
  """
  difference = np.maximum(num_words, 1) - np.maximum(other_num_words, 1)
  return np.exp(-difference ** 2 / (2 * SIGMA ** 2))


class Idf(dict[Ngram, float]):
  """Inverse document frequency of each n-gram, also of those that no document contains."""

  def __init__(self, documents: Iterable[NgramCounts]):
    """Counts the documents that contain each n-gram.

    Args:
      documents: the n-gram counts of each document.
    """
    frequencies: collections.Counter[Ngram] = collections.Counter()
    num_documents = 0
    for counts in documents:
      num_documents += 1
      for order_counts in counts:
        frequencies.update(order_counts.keys())
    num_documents = max(num_documents, 1)
    self.unseen = math.log(num_documents)
    idf = compute_idf(np.fromiter(frequencies.values(), float, len(frequencies)), num_documents)
    super().__init__(zip(frequencies, idf.tolist()))

  def __missing__(self, ngram: Ngram) -> float:
    """Returns the idf of an n-gram that no document contains."""
    return self.unseen


def compute_norms(counts: NgramCounts, idf: Idf) -> list[float]:
  """Returns the length of a report's tf-idf vector for each order."""
  return [math.sqrt(sum((count * idf[ngram]) ** 2 for ngram, count in order_counts.items()))
          for order_counts in counts]


def score_pair(clipped_counts: Sequence[Mapping[Ngram, int]], reference_counts: NgramCounts,
               hypothesis_norms: Sequence[float], reference_norms: Sequence[float], num_hypothesis_words: int,
               num_reference_words: int, idf: Idf) -> float:
  """Returns CIDEr-D, 0 to 10, of one hypothesis against its reference.

  Args:
    clipped_counts: `clip_counts` of hypothesis and reference, for each order.
    reference_counts: n-gram counts of the reference.
    hypothesis_norms, reference_norms: `compute_norms` of both.
    num_hypothesis_words, num_reference_words: words of both.
    idf: document frequencies of the references.
  """
  cosine_sum = 0.0
  for clipped, counts, hypothesis_norm, reference_norm in zip(clipped_counts, reference_counts, hypothesis_norms,
                                                              reference_norms):
    if not hypothesis_norm or not reference_norm:
      continue
    product = 0.0
    for ngram, count in clipped.items():       # in text order, so that every process sums in the same order
      product += count * counts[ngram] * idf[ngram] ** 2
    cosine_sum += product / (hypothesis_norm * reference_norm)
  return SCALE / MAX_ORDER * cosine_sum * float(compute_length_penalty(num_hypothesis_words, num_reference_words))


class ReportVectors(NamedTuple):
  """K reports as sparse vectors [K, G]; the product of two of them, summed over the columns, is a similarity.

  A pair of vectors is None if its similarity isn't used.
  """
  lengths: np.ndarray                                         # words of each report [K]
  cider: tuple[sparse.csr_array, sparse.csr_array] | None     # of hypotheses, of references
  overlap: tuple[sparse.csr_array, sparse.csr_array] | None   # the same for the n-gram overlap

  def select(self, rows: np.ndarray) -> "ReportVectors":
    """Returns the vectors of some of the reports."""
    pick = lambda pair: pair and (pair[0][rows], pair[1][rows])
    return ReportVectors(self.lengths[rows], pick(self.cider), pick(self.overlap))


class CiderCorpus:
  """CIDEr-D of reports against a corpus, whose document frequencies weight the n-grams.

  Similarities are CIDEr-D divided by 10, hence between 0 and 1, or a weighted sum of that and the n-gram overlap. The
  overlap is the mean over orders 1 to 4 of precision^(1 - a) * recall^a, where a is `overlap_recall`. It knows neither
  document frequencies nor a length penalty.

  The k-th occurrence of an n-gram has a column of its own, so that two reports share min(count in one, count in the
  other) columns of that n-gram. For CIDEr-D a reference has the weight count * idf^2 / norm there and a hypothesis
  1 / norm, and all similarities are one product of sparse matrices.
  """

  def __init__(self, reports: Iterable[Sequence[str]], min_documents: int = 1, cider_weight: float = 1.0,
               overlap_weight: float = 0.0, overlap_recall: float = 0.5):
    """Counts the n-grams of the corpus.

    Args:
      reports: R reports as lists of words.
      cider_weight, overlap_weight: weights of CIDEr-D / 10 and of the n-gram overlap in similarities.
      min_documents: lower bound of the number of documents in the idf; with 2, the n-grams of a single document do not
        all weigh 0.
      overlap_recall: a, from 0 (precision alone) to 1 (recall alone).
    """
    self._weights, self._overlap_recall = (cider_weight, overlap_weight), overlap_recall
    entries, self._ngrams = _count_entries(reports, _EMPTY_TABLE)
    num_documents = max(len(entries.lengths), min_documents)
    self._idf = compute_idf(np.bincount(entries.columns), num_documents)             # of n-grams of the corpus
    self._unseen_idf = math.log(num_documents)
    self._corpus = self._vectorize(entries)

  def encode(self, reports: Iterable[Sequence[str]]) -> ReportVectors:
    """Counts the n-grams of K reports, lists of words, once for any number of comparisons."""
    return self._vectorize(_count_entries(reports, self._ngrams)[0])

  def compare_with_corpus(self, hypotheses: ReportVectors, rows: np.ndarray | None = None) -> np.ndarray:
    """Returns similarities [K, R] of hypotheses with the reports of the corpus as their references.

    Args:
      hypotheses: K reports from `encode`.
      rows: indices of the R corpus reports to compare with; None: all.
    """
    return self._compare(hypotheses, self._corpus if rows is None else self._corpus.select(rows))

  def compare_pairwise(self, reports: ReportVectors) -> np.ndarray:
    """Returns similarities [K, K] of K reports from `encode` as hypotheses (rows) with themselves as references."""
    return self._compare(reports, reports)

  def _compare(self, hypotheses: ReportVectors, references: ReportVectors) -> np.ndarray:
    """Returns similarities [K, R] of K hypotheses and R references."""
    cider_weight, overlap_weight = self._weights
    similarities = np.zeros((len(hypotheses.lengths), len(references.lengths)))
    if hypotheses.cider and references.cider:
      penalty = compute_length_penalty(hypotheses.lengths[:, None], references.lengths[None])
      similarities += cider_weight * (_mean_over_orders(hypotheses.cider[0], references.cider[1]) * penalty)
    if hypotheses.overlap and references.overlap:
      similarities += overlap_weight * _mean_over_orders(hypotheses.overlap[0], references.overlap[1])
    return similarities

  def _vectorize(self, entries: "_Entries") -> ReportVectors:
    """Returns the vectors of K reports."""
    num_segments = MAX_ORDER * len(entries.lengths)
    # The first occurrence of each n-gram, then all others.
    selected = np.concatenate([np.arange(len(entries.columns)), entries.repeated])
    coordinates = entries.segments[selected] // MAX_ORDER, np.concatenate([entries.columns, entries.repeat_columns])

    def make_pair(weights: np.ndarray, reference_weights: np.ndarray) -> tuple[sparse.csr_array, sparse.csr_array]:
      shape = len(entries.lengths), entries.num_columns
      first, second = (sparse.csr_array((values[selected], coordinates), shape=shape)
                       for values in (weights, reference_weights))
      return first, second

    cider = overlap = None
    if self._weights[0]:
      idf = np.full(len(entries.columns), self._unseen_idf)
      known = entries.columns < len(self._idf)
      idf[known] = self._idf[entries.columns[known]]
      norms = np.sqrt(np.bincount(entries.segments, (entries.counts * idf) ** 2, num_segments))
      norms[norms == 0] = 1                     # all idf are 0 then, and so is every product
      weights = 1 / norms[entries.segments]
      cider = make_pair(weights, entries.counts * idf ** 2 * weights)
    if self._weights[1]:
      num_ngrams = np.bincount(entries.segments, entries.counts, num_segments)[entries.segments]
      overlap = make_pair(num_ngrams ** (self._overlap_recall - 1), num_ngrams ** -self._overlap_recall)
    return ReportVectors(entries.lengths, cider, overlap)


class _NgramTable(NamedTuple):
  """The columns of the n-grams of some reports: order by order, followed by those of repeated occurrences.

  Each n-gram has a number within its order. Words are numbered in the order in which they appear. A longer n-gram has a
  code (the number of all its words but the last, times 2^32, plus the number of its last word), and its number is the
  position of that code.
  """
  words: dict[str, int]         # the number of each word
  codes: list[np.ndarray]       # for each order from 2 on, the codes of its n-grams in ascending order
  repeat_codes: np.ndarray      # column * 2^32 + k for the k-th occurrence of that column's n-gram, in ascending order
  num_columns: int


_EMPTY_TABLE = _NgramTable({}, [np.zeros(0, np.int64)] * (MAX_ORDER - 1), np.zeros(0, np.int64), 0)


class _Entries(NamedTuple):
  """N-gram counts of K reports as arrays with one entry per report and different n-gram."""
  columns: np.ndarray           # int [E], the column of each entry's n-gram (of its first occurrence)
  counts: np.ndarray            # int [E], how often the n-gram occurs in the report
  segments: np.ndarray          # int [E], MAX_ORDER * (index of the report) + (order - 1)
  lengths: np.ndarray           # int [K], words of each report
  repeated: np.ndarray          # for each occurrence after the first: its entry
  repeat_columns: np.ndarray    # for each occurrence after the first: its column
  num_columns: int              # G


def _count_entries(reports: Iterable[Sequence[str]], known: _NgramTable) -> tuple[_Entries, _NgramTable]:
  """Returns the n-gram counts of K reports, lists of words, and the table of the n-grams that `known` lacks.

  The columns of new n-grams follow those of `known`.
  """
  word_numbers, lengths, new_words = _number_words(reports, known.words)
  report_of_word = np.repeat(np.arange(len(lengths)), lengths)
  report_end = np.cumsum(lengths)[report_of_word]
  # The position of the first word and the number of every n-gram, one order at a time.
  starts, numbers = np.arange(len(word_numbers)), word_numbers
  num_known, num_new, new_codes = len(known.words), len(new_words), []
  offset, new_offset = 0, known.num_columns              # columns of the first known and new n-gram of the order
  entries = []
  for order in range(1, MAX_ORDER + 1):
    if order > 1:
      inside = starts + order - 1 < report_end[starts]
      starts, numbers = starts[inside], numbers[inside]
      known_codes = known.codes[order - 2]
      numbers, added = _find_numbers(numbers << 32 | word_numbers[starts + order - 1], known_codes)
      num_known, num_new = len(known_codes), len(added)
      new_codes.append(added)
    columns = numbers + np.where(numbers < num_known, offset, new_offset - num_known)
    offset, new_offset = offset + num_known, new_offset + num_new
    pairs, counts = np.unique(report_of_word[starts] * new_offset + columns, return_counts=True)
    entries.append((pairs % max(new_offset, 1), counts, MAX_ORDER * (pairs // max(new_offset, 1)) + order - 1))
  columns, counts, segments = (np.concatenate(arrays) for arrays in zip(*entries))
  repeated = np.repeat(np.arange(len(counts)), counts - 1)
  first_repetition = np.repeat(np.cumsum(counts - 1) - (counts - 1), counts - 1)
  repetition = np.arange(len(repeated)) - first_repetition + 2             # k, from 2 on
  numbers, repeat_codes = _find_numbers(columns[repeated] << 32 | repetition, known.repeat_codes)
  num_known = len(known.repeat_codes)
  repeat_columns = numbers + np.where(numbers < num_known, offset, new_offset - num_known)
  num_columns = new_offset + len(repeat_codes)
  return (_Entries(columns, counts, segments, lengths, repeated, repeat_columns, num_columns),
          _NgramTable(new_words, new_codes, repeat_codes, num_columns))


def _number_words(reports: Iterable[Sequence[str]], known: Mapping[str, int]
                  ) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
  """Returns the numbers of all words of K reports, the words of each report [K], and the numbers of new words."""
  lengths, numbers, new = array.array("q"), array.array("q"), {}
  for report in reports:
    lengths.append(len(report))
    for word in report:
      number = known.get(word)
      numbers.append(new.setdefault(word, len(known) + len(new)) if number is None else number)
  return np.array(numbers, np.int64), np.array(lengths, np.int64), new


def _find_numbers(codes: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns the number of each code and the new codes in ascending order.

  The number of a known code is its position in `known`, which is sorted; new codes are numbered after these.
  """
  numbers = np.searchsorted(known, codes)
  is_new = np.append(known, -1)[numbers] != codes
  new, positions = np.unique(codes[is_new], return_inverse=True)
  numbers[is_new] = len(known) + positions
  return numbers, new


def _mean_over_orders(hypotheses: sparse.csr_array, references: sparse.csr_array) -> np.ndarray:
  """Returns products [K, R] of vectors, divided by the number of orders; columns that references lack don't count."""
  _, num_columns = cast(tuple[int, int], references.shape)
  transposed = hypotheses.T.tocsr()[:num_columns]             # the smaller matrix
  return (references @ transposed).toarray().T / MAX_ORDER
