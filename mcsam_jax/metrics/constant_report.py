"""What one fixed report scores on many references: all of it at once, for any number of candidates.

pycocoevalcap compares pair by pair, which for 1,500 candidates and 300
references is hours. With the same hypothesis everywhere the sums can be
reordered, and the scores stay the same numbers:

  Count the k-th occurrence of an n-gram in a report as a thing of its own, (n-gram, k). Then
  min(count in a, count in b) is the number of things that a and b share, and any sum of such minima
  over references is a look-up of each thing of the candidate in a table made from the references once.
"""

import collections
from collections.abc import Sequence
import math

import numpy as np

_ORDERS = 4                   # n-grams of 1 to 4 words, in BLEU and in CIDEr
_SIGMA = 6.0                  # of CIDEr's penalty on a difference in length
_BETA = 1.2                   # of ROUGE-L's F measure


def score_constant_reports(candidates: Sequence[str], references: Sequence[str]) -> dict[str, np.ndarray]:
  """Returns for each metric but METEOR an array [C]: the corpus score of each candidate, said of all."""
  bleu, cider = _Bleu(references), _Cider(references)
  padded = _pad(references)
  rows = [(*bleu.score(report), _rouge_l(report, padded), cider.score(report)) for report in candidates]
  names = ("BLEU_1", "BLEU_2", "BLEU_3", "BLEU_4", "ROUGE_L", "CIDEr")
  return dict(zip(names, np.array(rows, np.float64).reshape(len(candidates), len(names)).T))


def compute_word_f1(candidates: Sequence[str], references: Sequence[str]) -> np.ndarray:
  """Returns [C]: the F1 of the words of each candidate with those of all references, pooled."""
  shared = collections.Counter(thing for report in references for thing in _things(report, 1)[0])
  total = sum(shared.values())
  scores = []
  for report in candidates:
    things = _things(report, 1)[0]
    scores.append(2 * sum(shared[thing] for thing in things) / max(1, total + len(things) * len(references)))
  return np.array(scores)


def _things(report: str, orders: int = _ORDERS) -> list[list[tuple]]:
  """Returns for n = 1..orders the (n-gram, k) of a report: k counts the occurrences of that n-gram."""
  words = report.split()
  result = []
  for n in range(1, orders + 1):
    seen = collections.Counter()
    result.append([])
    for gram in zip(*(words[i:] for i in range(n))):
      seen[gram] += 1
      result[-1].append((gram, seen[gram]))
  return result


class _Bleu:
  """Corpus BLEU-1..4: the n-grams that candidate and references share, over all n-grams that were said."""

  def __init__(self, references):
    self._count = len(references)
    self._words = sum(len(report.split()) for report in references)
    self._shared = collections.Counter(
        thing for report in references for things in _things(report) for thing in things)

  def score(self, report: str) -> list[float]:
    written = self._count * len(report.split())
    # The small numbers are pycocoevalcap's, which keep a score of 0 from being a division by 0.
    ratio = (written + 1e-15) / (self._words + 1e-9)
    brevity = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    product, scores = 1.0, []
    for n, things in enumerate(_things(report), 1):
      product *= (sum(self._shared[thing] for thing in things) + 1e-15) / (self._count * len(things) + 1e-9)
      scores.append(product ** (1 / n) * brevity)
    return scores


class _Cider:
  """CIDEr: for each order the cosine of tf-idf vectors, the candidate's weights clipped to the reference's.

  Clipped, a reference of weights b gives sum over n-grams of min(a, b) b idf^2: each thing that
  it shares with the candidate adds b idf^2, which is kept in a list of (references, weights) a thing.
  """

  def __init__(self, references):
    self._count = len(references)
    counts = [collections.Counter(gram for things in _things(report) for gram, _ in things)
              for report in references]
    self._frequency = collections.Counter(gram for report in counts for gram in report)
    self._bigrams = np.array([max(0, len(report.split()) - 1) for report in references])
    lists = collections.defaultdict(lambda: ([], []))
    for row, report in enumerate(counts):
      norms = self._norms(report)
      for gram, count in report.items():
        weight = count * self._idf(gram) ** 2 / (norms[len(gram) - 1] or 1.0)
        for k in range(1, count + 1):
          rows, weights = lists[gram, k]
          rows.append(row)
          weights.append(weight)
    self._lists = {thing: (np.array(rows), np.array(weights)) for thing, (rows, weights) in lists.items()}

  def _idf(self, gram: tuple) -> float:
    return math.log(self._count) - math.log(max(1, self._frequency[gram]))

  def _norms(self, counts: collections.Counter) -> np.ndarray:
    squares = np.zeros(_ORDERS)
    for gram, count in counts.items():
      squares[len(gram) - 1] += (count * self._idf(gram)) ** 2
    return np.sqrt(squares)

  def score(self, report: str) -> float:
    things = _things(report)
    norms = self._norms(collections.Counter(gram for order in things for gram, _ in order))
    similarity = np.zeros(self._count)
    for order, norm in zip(things, norms):
      for thing in order:
        if norm and thing in self._lists:
          rows, weights = self._lists[thing]
          similarity[rows] += weights / norm                 # a thing stands once in a reference
    penalty = np.exp(-(len(things[1]) - self._bigrams) ** 2 / (2 * _SIGMA ** 2))
    return 10 / _ORDERS * float(np.mean(similarity * penalty))


def _pad(references: Sequence[str]) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
  """Returns word numbers [R, T] (-1 is padding), lengths [R] and the number of each word."""
  split = [report.split(" ") for report in references]
  number = {}
  padded = np.full((len(split), max(map(len, split))), -1, np.int32)
  for row, words in enumerate(split):
    padded[row, :len(words)] = [number.setdefault(word, len(number)) for word in words]
  return padded, np.array([len(words) for words in split]), number


def _rouge_l(report: str, references: tuple[np.ndarray, np.ndarray, dict[str, int]]) -> float:
  """Mean ROUGE-L: the longest common subsequences with all references, one row of the table a word."""
  padded, lengths, number = references
  words = report.split(" ")
  longest = np.zeros((padded.shape[0], padded.shape[1] + 1), np.int16)      # [R, T + 1]
  for word in words:
    match = padded == number.get(word, -2)
    longest[:, 1:] = np.maximum(longest[:, 1:], longest[:, :-1] + match)
    np.maximum.accumulate(longest, axis=1, out=longest)
  common = longest[:, -1]
  precision, recall = common / len(words), common / lengths
  with np.errstate(invalid="ignore"):
    scores = (1 + _BETA ** 2) * precision * recall / (recall + _BETA ** 2 * precision)
  return float(np.mean(np.where(common > 0, scores, 0.0)))
