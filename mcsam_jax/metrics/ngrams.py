"""N-grams of reports, as BLEU and CIDEr count them."""

import collections
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import TypeVar

MAX_ORDER = 4                 # BLEU and CIDEr use n-grams of 1 to 4 words

Item = TypeVar("Item", bound=Hashable)
Ngram = tuple[str, ...]
NgramCounts = list[collections.Counter[Ngram]]      # one counter per order, from 1 to MAX_ORDER


def count_ngrams(words: Sequence[str]) -> NgramCounts:
  """Returns how often each n-gram occurs; iterating over a counter follows the order of the text."""
  return [collections.Counter(zip(*(words[start:] for start in range(order)))) for order in range(1, MAX_ORDER + 1)]


def clip_counts(hypothesis: Mapping[Ngram, int], reference: Mapping[Ngram, int]) -> dict[Ngram, int]:
  """Returns min(count in the hypothesis, count in the reference) of their common n-grams, in the hypothesis's order."""
  return {ngram: min(count, reference[ngram]) for ngram, count in hypothesis.items() if ngram in reference}


def number_occurrences(counts: Mapping[Item, int]) -> Iterator[tuple[Item, int]]:
  """Yields (item, k) for the k-th occurrence of each item (a word or an n-gram), k = 1, 2, ...

  Two reports have min(count in one, count in the other) of these pairs in common. A sum of such minima over many
  references is therefore a sum of look-ups.
  """
  for item, count in counts.items():
    for k in range(1, count + 1):
      yield item, k
