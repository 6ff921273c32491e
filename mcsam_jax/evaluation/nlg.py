"""BLEU-1..4, METEOR, ROUGE-L and CIDEr of written reports, by pycocoevalcap, as the literature counts them.

The scores of a corpus are not means of the scores of its studies for BLEU and
METEOR, so both are given: the first is what papers report, the second is what
comparisons between systems resample.
"""

from typing import NamedTuple, Sequence

import numpy as np
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from mcsam_jax.evaluation.java import JavaUnavailable, Meteor

METRICS = ("BLEU_1", "BLEU_2", "BLEU_3", "BLEU_4", "METEOR", "ROUGE_L", "CIDEr")


class NlgScores(NamedTuple):
  """Scores of n studies: `corpus` a number a metric, `per_study` an array [n] a metric.

  A metric that could not be computed is None in both, and `notes` says why.
  """
  corpus: dict[str, float | None]
  per_study: dict[str, np.ndarray | None]
  notes: dict[str, str]


def nlg_scores(references: Sequence[str], hypotheses: Sequence[str], meteor: Meteor | None = None,
               metrics: Sequence[str] = METRICS) -> NlgScores:
  """Scores one hypothesis a study against its one reference, both of words with spaces between.

  Args:
    references: n reports, study by study.
    hypotheses: n reports, in the same order; an empty one is a score of zero.
    meteor: a running METEOR that is shared by several calls; None starts one for this call.
    metrics: those that are wanted; METEOR costs seconds, the rest milliseconds a study.
  """
  if len(references) != len(hypotheses) or not references:
    raise ValueError(f"{len(references)} references and {len(hypotheses)} hypotheses: give one pair a study")
  truth = {i: [text] for i, text in enumerate(references)}
  written = {i: [text] for i, text in enumerate(hypotheses)}
  corpus, per_study, notes = dict.fromkeys(metrics), dict.fromkeys(metrics), {}

  def keep(metric, score, scores):
    if metric in corpus:
      corpus[metric], per_study[metric] = float(score), np.asarray(scores, np.float64)

  if any(metric.startswith("BLEU") for metric in metrics):
    for n, (score, scores) in enumerate(zip(*Bleu(4).compute_score(truth, written, verbose=0)), 1):
      keep(f"BLEU_{n}", score, scores)
  if "ROUGE_L" in metrics:
    keep("ROUGE_L", *Rouge().compute_score(truth, written))
  if "CIDEr" in metrics:
    keep("CIDEr", *Cider().compute_score(truth, written))
  if "METEOR" in metrics:
    try:
      if meteor is None:
        with Meteor() as own:
          keep("METEOR", *own.score(references, hypotheses))
      else:
        keep("METEOR", *meteor.score(references, hypotheses))
    except JavaUnavailable as reason:
      notes["METEOR"] = str(reason)
  return NlgScores(corpus, per_study, notes)
