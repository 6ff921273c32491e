"""Scores of one fixed report as the answer for every study, for many candidate reports at once.

pycocoevalcap compares pair by pair, which would take hours for 1,500 candidates and 300 references. If the hypothesis
is the same everywhere, sums over references can be computed once (see `ngrams.number_occurrences`), and the scores are
the same.

Shapes: C candidates, R references.
"""

import collections
from collections.abc import Sequence

import numpy as np

from mcsam_jax.metrics.cider import CiderCorpus, SCALE
from mcsam_jax.metrics.ngram_stats import compute_bleu
from mcsam_jax.metrics.ngrams import count_ngrams, MAX_ORDER, number_occurrences
from mcsam_jax.metrics.rouge import RougeReferences


def score_constant_reports(candidates: Sequence[str], references: Sequence[str]) -> dict[str, np.ndarray]:
  """Returns the corpus score [C] of each candidate for all metrics but METEOR."""
  rouge = RougeReferences([reference.split(" ") for reference in references])
  cider = CiderCorpus(reference.split() for reference in references)
  similarities = cider.compare_with_corpus(cider.encode(candidate.split() for candidate in candidates))  # [C, R]
  return {**_compute_bleu(candidates, references),
          "ROUGE_L": rouge.compare([candidate.split(" ") for candidate in candidates]).mean(axis=1),
          "CIDEr": SCALE * similarities.mean(axis=1)}


def compute_word_f1(candidates: Sequence[str], references: Sequence[str]) -> np.ndarray:
  """Returns [C]: the F1 of the words of each candidate with the words of all references pooled."""
  shared = collections.Counter(occurrence for reference in references
                               for occurrence in number_occurrences(collections.Counter(reference.split())))
  total = sum(shared.values())
  scores = []
  for candidate in candidates:
    words = candidate.split()
    num_matches = sum(shared[occurrence] for occurrence in number_occurrences(collections.Counter(words)))
    scores.append(2 * num_matches / max(1, total + len(words) * len(references)))
  return np.array(scores)


def _compute_bleu(candidates: Sequence[str], references: Sequence[str]) -> dict[str, np.ndarray]:
  """Returns the corpus BLEU-1 to 4 [C] of each candidate."""
  shared = collections.Counter(
      occurrence for reference in references for counts in count_ngrams(reference.split())
      for occurrence in number_occurrences(counts))
  num_reference_words = sum(len(reference.split()) for reference in references)
  num_words, num_ngrams, num_matches = [], [], []                              # sums over all references
  for candidate in candidates:
    words = candidate.split()
    num_words.append((len(references) * len(words), num_reference_words))
    num_ngrams.append([len(references) * max(0, len(words) - n) for n in range(MAX_ORDER)])
    num_matches.append([sum(shared[occurrence] for occurrence in number_occurrences(counts))
                        for counts in count_ngrams(words)])
  return compute_bleu(*(np.array(sums, float) for sums in (num_words, num_ngrams, num_matches)))
