"""CIDEr-D (Vedantam et al., CVPR 2015): agreement of reports by their tf-idf weighted 1- to 4-grams.

For each order, the cosine of the tf-idf vectors of hypothesis and reference, with the hypothesis's counts clipped to
those of the reference; then the mean over orders, lowered by a Gaussian penalty on the difference in length. All
numbers agree with pycocoevalcap.

  score_pair   one hypothesis against its reference, for evaluation
  CiderCorpus  many hypotheses against many references at once, for the best constant report and for minimum Bayes risk
               decoding

Shapes: K reports, R reports of the corpus, G columns of the corpus (occurrences of n-grams), E entries.
"""

import array
import collections
from collections.abc import Iterable, Mapping, Sequence
import math
from typing import NamedTuple

import numpy as np
from scipy import sparse

from mcsam_jax.metrics.ngrams import count_ngrams, MAX_ORDER, Ngram, NgramCounts

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
  """Sparse vectors [K, G] of reports; the product of two of them, summed over the columns, is a similarity."""
  hypotheses: sparse.csr_array     # for CIDEr-D
  references: sparse.csr_array     # for CIDEr-D
  matches: sparse.csr_array        # for the overlap, as hypotheses
  occurrences: sparse.csr_array    # for the overlap, as references


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
    self._columns: dict[Ngram, int] = {}                 # columns of first occurrences
    encoded = _EncodedReports(reports, self._columns, add_columns=True)
    unseen = math.log(max(encoded.num_reports, min_documents))
    frequencies = np.bincount(encoded.columns, minlength=len(self._columns))
    idf = compute_idf(frequencies, max(encoded.num_reports, min_documents))
    self._idf = np.append(idf, unseen)                   # [-1] is the idf of n-grams that the corpus lacks
    self._repeat_columns: dict[tuple[int, int], int] = {}
    self._weights, self._overlap_recall = (cider_weight, overlap_weight), overlap_recall
    self._lengths = encoded.lengths                      # [R]
    self._corpus = encoded.vectorize(self._idf, self._repeat_columns, overlap_recall, add_columns=True)

  def compare_with_corpus(self, reports: Sequence[Sequence[str]], rows: np.ndarray | None = None) -> np.ndarray:
    """Returns similarities [K, R] of hypotheses with the reports of the corpus as their references.

    Args:
      reports: K hypotheses as lists of words.
      rows: indices of the R corpus reports to compare with; None: all.
    """
    encoded = _EncodedReports(reports, self._columns, add_columns=False)
    vectors = encoded.vectorize(self._idf, self._repeat_columns, self._overlap_recall, add_columns=False)
    corpus, lengths = self._corpus, self._lengths
    if rows is not None:
      corpus, lengths = ReportVectors(*(matrix[rows] for matrix in corpus)), lengths[rows]
    return self._compute_similarities(vectors, corpus, encoded.lengths, lengths)

  def compare_pairwise(self, reports: Sequence[Sequence[str]]) -> np.ndarray:
    """Returns similarities [K, K] of K reports as hypotheses (rows) with themselves as references (columns)."""
    columns: dict[Ngram, int] = {}
    encoded = _EncodedReports(reports, columns, add_columns=True)
    idf = self._idf[np.fromiter((self._columns.get(ngram, -1) for ngram in columns), np.int64, len(columns))]
    vectors = encoded.vectorize(idf, {}, self._overlap_recall, add_columns=True)
    return self._compute_similarities(vectors, vectors, encoded.lengths, encoded.lengths)

  def _compute_similarities(self, hypotheses: ReportVectors, references: ReportVectors, lengths: np.ndarray,
                            reference_lengths: np.ndarray) -> np.ndarray:
    """Returns similarities [K, R] of K hypotheses and R references."""
    cider_weight, overlap_weight = self._weights
    similarities = np.zeros((len(lengths), len(reference_lengths)))
    if cider_weight:
      penalty = compute_length_penalty(lengths[:, None], reference_lengths[None])
      similarities += cider_weight * (_mean_over_orders(hypotheses.hypotheses, references.references) * penalty)
    if overlap_weight:
      similarities += overlap_weight * _mean_over_orders(hypotheses.matches, references.occurrences)
    return similarities


class _EncodedReports:
  """N-gram counts of K reports as arrays with one entry per report and different n-gram.

  Attributes:
    columns: int [E], the column of each entry's n-gram; -1: it has none.
    counts: int [E], how often the n-gram occurs in the report.
    segments: int [E], MAX_ORDER * (index of the report) + (order - 1); ascending.
    lengths: int [K], words of each report.
  """

  def __init__(self, reports: Iterable[Sequence[str]], columns: dict[Ngram, int], add_columns: bool):
    """Looks up the columns of all n-grams.

    Args:
      reports: K reports as lists of words.
      columns: column of each n-gram.
      add_columns: whether new n-grams get a column.
    """
    entry_columns, counts, segment_sizes = array.array("q"), array.array("q"), array.array("q")
    lengths = []
    for report in reports:
      lengths.append(len(report))
      for order_counts in count_ngrams(report):
        if add_columns:
          entry_columns.extend([columns.setdefault(ngram, len(columns)) for ngram in order_counts])
        else:
          entry_columns.extend([columns.get(ngram, -1) for ngram in order_counts])
        counts.extend(order_counts.values())
        segment_sizes.append(len(order_counts))
    self.num_reports, self.num_columns = len(lengths), len(columns)
    self.columns, self.counts = np.array(entry_columns, np.int64), np.array(counts, np.int64)
    self.segments = np.repeat(np.arange(len(segment_sizes)), np.array(segment_sizes, np.int64))
    self.lengths = np.array(lengths, np.int64)

  def vectorize(self, idf: np.ndarray, repeat_columns: dict[tuple[int, int], int], overlap_recall: float,
                add_columns: bool) -> ReportVectors:
    """Returns the vectors of the reports.

    Args:
      idf: by column; that of n-grams without a column is the last one.
      repeat_columns: column of the k-th occurrence, k > 1, of the n-gram with a column: (column, k) -> its column.
      overlap_recall: weight of recall in the overlap.
      add_columns: whether new repetitions get a column; without one they count in the norms only.
    """
    entry_idf = idf[self.columns]
    squared_norms = np.bincount(self.segments, (self.counts * entry_idf) ** 2, MAX_ORDER * self.num_reports)
    norms = np.sqrt(squared_norms)
    norms[norms == 0] = 1                       # all idf are 0 then, and so is every product
    hypothesis_weights = 1 / norms[self.segments]
    reference_weights = self.counts * entry_idf ** 2 * hypothesis_weights
    num_ngrams = np.bincount(self.segments, self.counts, MAX_ORDER * self.num_reports)
    num_ngrams = num_ngrams[self.segments]
    match_weights, occurrence_weights = num_ngrams ** (overlap_recall - 1), num_ngrams ** -overlap_recall

    known = np.flatnonzero(self.columns >= 0)
    repeat_entries, later_columns = array.array("q"), array.array("q")
    for entry in known[self.counts[known] > 1].tolist():
      for k in range(2, self.counts[entry] + 1):
        key, new_column = (int(self.columns[entry]), k), self.num_columns + len(repeat_columns)
        column = repeat_columns.setdefault(key, new_column) if add_columns else repeat_columns.get(key)
        if column is not None:
          repeat_entries.append(entry)
          later_columns.append(column)
    entries = np.concatenate([known, np.array(repeat_entries, np.int64)])
    columns = np.concatenate([self.columns[known], np.array(later_columns, np.int64)])
    coordinates = self.segments[entries] // MAX_ORDER, columns
    shape = self.num_reports, self.num_columns + len(repeat_columns)
    return ReportVectors(*(sparse.csr_array((weights[entries], coordinates), shape=shape)
                           for weights in (hypothesis_weights, reference_weights, match_weights, occurrence_weights)))


def _mean_over_orders(hypotheses: sparse.csr_array, references: sparse.csr_array) -> np.ndarray:
  """Returns products [K, R] of vectors [K, G] and [R, G], divided by the number of orders."""
  return (references @ hypotheses.T.tocsr()).toarray().T / MAX_ORDER        # transposes the smaller matrix
