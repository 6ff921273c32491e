"""BLEU-1..4, METEOR, ROUGE-L and CIDEr of written reports: pycocoevalcap's numbers, as the literature counts them.

The scores of a corpus are not means of the scores of its studies for BLEU and METEOR, so both are given: the first is
what papers report. What a resample of studies scores is `aggregate_nlg` with its weights.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mcsam_jax.metrics.meteor import JavaUnavailable, Meteor, compute_meteor
from mcsam_jax.metrics.ngram_stats import NgramStats, ORDERS, ReferenceSet

METRICS = ("BLEU_1", "BLEU_2", "BLEU_3", "BLEU_4", "METEOR", "ROUGE_L", "CIDEr")


class NlgScores(NamedTuple):
  """Scores of n studies: `corpus` a number a metric, `per_study` an array [n] a metric.

  A metric that could not be computed is None in both, and `notes` says why. `counts` is what `aggregate_nlg` takes.
  """
  corpus: dict[str, float | None]
  per_study: dict[str, np.ndarray | None]
  notes: dict[str, str]
  counts: NgramStats | None = None


def compute_nlg(references: Sequence[str] | ReferenceSet, hypotheses: Sequence[str], meteor: Meteor | None = None,
               metrics: Sequence[str] = METRICS) -> NlgScores:
  """Scores one hypothesis a study against its one reference, both of words with spaces between.

  Args:
    references: n reports, study by study; `ReferenceSet` where they are scored against more than once.
    hypotheses: n reports, in the same order; an empty one is a score of zero.
    meteor: a running METEOR that is shared by several calls; None starts one for this call.
    metrics: those that are wanted; METEOR costs milliseconds a study, the rest a tenth of one.
  """
  if len(references) != len(hypotheses) or not len(references):
    raise ValueError(f"{len(references)} references and {len(hypotheses)} hypotheses: give one pair a study")
  if not isinstance(references, ReferenceSet):
    references = ReferenceSet(references)
  asked, notes = None, {}
  if "METEOR" in metrics:
    try:
      if meteor is None:
        with Meteor() as own:
          asked = own.counts(references.reports, hypotheses)
      else:
        asked = meteor.counts(references.reports, hypotheses)
    except JavaUnavailable as reason:
      notes["METEOR"] = str(reason)
  counts = references.count(hypotheses, asked)
  corpus = aggregate_nlg(counts, np.ones(len(references)))
  per_study = _per_study(counts)
  return NlgScores({metric: None if corpus[metric] is None else float(corpus[metric]) for metric in metrics},
                   {metric: per_study[metric] for metric in metrics}, notes, counts)


def aggregate_nlg(counts: NgramStats, weights: np.ndarray) -> dict[str, np.ndarray | None]:
  """Returns each metric [...] of the studies weighted by `weights` [..., n], which are how often each one counts.

  METEOR is None where it could not be computed. Where all weights are 0 the scores are NaN.
  """
  total = weights.sum(-1)                                                       # [...]
  means = weights @ np.stack([counts.rouge_l, counts.cider], 1) / np.maximum(total, 1e-300)[..., None]
  scores = {**_bleu(*(weights @ part for part in (counts.words, counts.said, counts.shared))),
            "METEOR": None if counts.meteor is None else compute_meteor(weights @ counts.meteor),
            "ROUGE_L": means[..., 0], "CIDEr": means[..., 1]}
  return {metric: None if values is None else np.where(total > 0, values, np.nan)
          for metric, values in scores.items()}


def _per_study(counts: NgramStats) -> dict[str, np.ndarray | None]:
  return {**_bleu(counts.words, counts.said, counts.shared),
          "METEOR": None if counts.meteor is None else compute_meteor(counts.meteor),
          "ROUGE_L": counts.rouge_l, "CIDEr": counts.cider}


def _bleu(words: np.ndarray, said: np.ndarray, shared: np.ndarray) -> dict[str, np.ndarray]:
  """Returns BLEU-1..4 [...] from sums [..., 2], [..., 4] and [..., 4].

  The small numbers are pycocoevalcap's, which keep a score of 0 from being a division by 0.
  """
  precision = np.cumprod((shared + 1e-15) / (said + 1e-9), axis=-1)             # [..., 4]
  ratio = (words[..., 0] + 1e-15) / (words[..., 1] + 1e-9)
  brevity = np.exp(np.minimum(0, 1 - 1 / ratio))
  return {f"BLEU_{n}": precision[..., n - 1] ** (1 / n) * brevity for n in range(1, ORDERS + 1)}
