"""BLEU-1..4, METEOR, ROUGE-L and CIDEr of generated reports: pycocoevalcap's numbers, as the literature reports them.

BLEU and METEOR of a corpus are not means over its studies, so both corpus and per-study scores are returned; papers
report the former. `aggregate_nlg` gives the corpus scores of resampled studies.

Shapes: B studies.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mcsam_jax.metrics.meteor import compute_meteor, JavaUnavailable, Meteor
from mcsam_jax.metrics.ngram_stats import compute_bleu, NgramStats, ReferenceSet

METRICS = ("BLEU_1", "BLEU_2", "BLEU_3", "BLEU_4", "METEOR", "ROUGE_L", "CIDEr")


class NlgScores(NamedTuple):
  """Scores of B studies; a metric that could not be computed is None, and `notes` gives the reason."""
  corpus: dict[str, float | None]
  per_study: dict[str, np.ndarray | None]      # each [B]
  notes: dict[str, str]
  stats: NgramStats | None = None              # for `aggregate_nlg`


def compute_nlg(references: Sequence[str] | ReferenceSet, hypotheses: Sequence[str], meteor: Meteor | None = None,
                metrics: Sequence[str] = METRICS) -> NlgScores:
  """Returns the scores of one hypothesis per study against its one reference.

  Args:
    references: B reports, words separated by spaces; a `ReferenceSet` if they are used more than once.
    hypotheses: B reports in the same order; an empty one scores zero.
    meteor: a running METEOR, to share it between calls; None starts one for this call.
    metrics: the metrics to return. METEOR takes milliseconds per study, the others together a tenth of one.

  Raises:
    ValueError: there is no study, or the numbers of references and hypotheses differ.
  """
  if len(references) != len(hypotheses) or not len(references):
    raise ValueError(f"{len(references)} references and {len(hypotheses)} hypotheses: expected one of each per study")
  if not isinstance(references, ReferenceSet):
    references = ReferenceSet(references)
  meteor_stats, notes = None, {}
  if "METEOR" in metrics:
    try:
      if meteor is None:
        with Meteor() as own_meteor:
          meteor_stats = own_meteor.compute_stats(references.reports, hypotheses)
      else:
        meteor_stats = meteor.compute_stats(references.reports, hypotheses)
    except JavaUnavailable as error:
      notes["METEOR"] = str(error)
  stats = references.compute_stats(hypotheses, meteor_stats)
  corpus = aggregate_nlg(stats, np.ones(len(references)))
  per_study = {**compute_bleu(stats.num_words, stats.num_ngrams, stats.num_matches),
               "METEOR": None if stats.meteor is None else compute_meteor(stats.meteor),
               "ROUGE_L": stats.rouge_l, "CIDEr": stats.cider}
  return NlgScores({metric: None if (score := corpus[metric]) is None else float(score) for metric in metrics},
                   {metric: per_study[metric] for metric in metrics}, notes, stats)


def aggregate_nlg(stats: NgramStats, weights: np.ndarray) -> dict[str, np.ndarray | None]:
  """Returns each corpus score [...] of studies that count `weights` [..., B] times.

  METEOR is None if it could not be computed. If all weights are 0, the scores are NaN.
  """
  total = weights.sum(-1)                                                       # [...]
  means = weights @ np.stack([stats.rouge_l, stats.cider], 1) / np.maximum(total, 1e-300)[..., None]
  scores = {**compute_bleu(weights @ stats.num_words, weights @ stats.num_ngrams, weights @ stats.num_matches),
            "METEOR": None if stats.meteor is None else compute_meteor(weights @ stats.meteor),
            "ROUGE_L": means[..., 0], "CIDEr": means[..., 1]}
  return {metric: None if values is None else np.where(total > 0, values, np.nan)
          for metric, values in scores.items()}
