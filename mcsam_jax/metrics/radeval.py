"""Scores by other people's models, through the package RadEval (Xu et al., EMNLP 2025) where it is installed.

RadEval (2.2 and newer; extra `clinical`) runs on PyTorch and fetches the models of a score from their hub when that is
first asked for, so nothing here happens unless `eval.radeval` names a score. Reports stay on this machine: of its
scores those that ask a service over the network (crimson, radfact_ct, mammo_green) are not offered, and neither are
those of other kinds of images, nor those that `mcsam evaluate` computes itself (bleu, rouge, f1chexbert).

Every score here is a mean over the studies that RadEval has a score for, with an interval; baselines and controls have
none, as each would take the models as long again. For RadCliQ, a distance, lower is better; RadEval itself gives one
over it.
"""

from collections.abc import Mapping, Sequence
import contextlib
import difflib
import importlib.util
import os

import numpy as np

from mcsam_jax.errors import UserError
from mcsam_jax.metrics.bootstrap import compute_intervals, compute_point_estimates, ScoreFn

SCORES = {
    "radgraph": "F1 of the entities and relations that RadGraph-XL finds: simple, partial, complete",
    "radgraph_radcliq": "RadGraph's F1 as RadCliQ counts it",
    "radcliq": "RadCliQ-v1, of BLEU, BERTScore, CheXbert's embedding and RadGraph; lower is better",
    "ratescore": "RaTEScore, of entities and their synonyms",
    "srrbert": "F1, precision and recall of 55 findings with their status, by SRR-BERT",
    "temporal": "F1 of entities that tell of a change",
    "green": "GREEN, by a language model of 7 billion parameters",
    "bertscore": "BERTScore of distilbert-base-uncased",
    "radeval_bertscore": "BERTScore of a ModernBERT that was trained on radiology",
}
SERVICES = ("crimson", "radfact_ct", "mammo_green")
INSTALL = "pip install -e '.[clinical]' (or 'radeval>=2.2')"


def parse_score_names(field: str) -> list[str]:
  """Returns the scores that `eval.radeval` names, checked before any work is done.

  Raises:
    UserError: one is unknown or not offered, or the package isn't installed.
  """
  names = [name.strip() for name in field.split(",") if name.strip()]
  for name in names:
    if name in SERVICES:
      raise UserError(f"radeval={name}: asks a service over the network, or is of other images, and is not "
                      f"offered; one of {', '.join(SCORES)}")
    if name not in SCORES:
      close = difflib.get_close_matches(name, SCORES, 1)
      raise UserError(f"radeval={name}: " + (f"did you mean {close[0]}? " if close else "") +
                      f"known are {', '.join(SCORES)}")
  if names and importlib.util.find_spec("radeval") is None:
    raise UserError(f"radeval={field} needs the package RadEval, which is not installed: {INSTALL}")
  return names


def add_radeval(scores: dict, rows: Sequence[dict], names: Sequence[str], references: Sequence[str],
                hypotheses: Sequence[str], weights: np.ndarray, log) -> None:
  """Adds what the package RadEval says to the scores and to those of each study, or a note on why it can't.

  Args:
    scores, rows: as `scoring.score_reports` returns them.
    names: of `SCORES`.
    weights: [R, n], of the draws that intervals are of.
  """
  log(f"scores by RadEval: {', '.join(names)}")
  try:
    per_study = compute_radeval(names, references, hypotheses)
  except UserError as error:                            # hours of writing must not be lost to a download
    scores["radeval"], scores["notes"]["radeval"] = None, str(error)
    return
  means = make_mean_score(per_study)
  scores["radeval"], scores["intervals"]["radeval"] = compute_point_estimates(means, len(references)), compute_intervals(means, weights)
  for number, row in enumerate(rows):
    row.update({key: float(values[number]) if np.isfinite(values[number]) else None
                for key, values in per_study.items()})


def make_mean_score(per_study: Mapping[str, np.ndarray]) -> ScoreFn:
  """Returns the score that is the mean over the studies [n] that have one (others are NaN), None where none has."""
  def means(weights: np.ndarray) -> dict:
    known = {key: np.isfinite(values) for key, values in per_study.items()}
    count = {key: weights @ of for key, of in known.items()}
    return {key: weights @ np.where(known[key], values, 0) / np.where(count[key], count[key], np.nan)
            if known[key].any() else None for key, values in per_study.items()}
  return means


def compute_radeval(names: Sequence[str], references: Sequence[str], hypotheses: Sequence[str]
                   ) -> dict[str, np.ndarray]:
  """Returns the score of each study [n] by the names of RadEval's results.

  Args:
    names: of `SCORES`; one may have several results.
    references: n reports, as they were written.
    hypotheses: n reports.

  Raises:
    UserError: a model can't be fetched, or RadEval is of another version. Says nothing of the reports.
  """
  per_study = {}
  for name in names:
    try:
      from radeval import RadEval
      with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):     # it prints, reports among that
        found = RadEval(metrics=[name], per_sample=True, show_progress=False)(
            refs=list(references), hyps=list(hypotheses))
    except Exception as error:         # of a download, of PyTorch, of a score's own package; its text may hold a report
      raise UserError(f"radeval={name}: RadEval can't compute it ({type(error).__name__}); its models come from "
                      f"huggingface.co when first used. Try RadEval(metrics=['{name}']) alone, or {INSTALL}") from error
    for key, values in found.items():
      values = np.asarray(values, float)
      if values.shape != (len(references),):
        raise UserError(f"radeval={name}: {key} has {values.size} scores for {len(references)} reports; "
                        f"is RadEval 2.2 or newer? {INSTALL}")
      per_study[key] = values
  return per_study
