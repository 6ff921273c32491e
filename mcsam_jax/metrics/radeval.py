"""Scores of the package RadEval (Xu et al., EMNLP 2025), which apply other groups' models.

RadEval (2.2 and newer; extra `clinical`) runs on PyTorch and downloads the models of a score when it is first used, so
nothing here runs unless `eval.radeval` names a score. Reports never leave this machine: scores that query a service
over the network (crimson, radfact_ct, mammo_green) are not offered. Nor are scores for other kinds of images, or those
that `mcsam evaluate` computes itself (bleu, rouge, f1chexbert).

Every score is a mean over the studies for which RadEval returns a value, with an interval. Baselines and controls are
not scored, because each would take the models as long again. RadCliQ is a distance, so lower is better; RadEval itself
reports its reciprocal.

Shapes: B studies, R resamples.
"""

from collections.abc import Callable, Mapping, Sequence
import contextlib
import difflib
import importlib
import importlib.util
import os

import numpy as np

from mcsam_jax.errors import UserError
from mcsam_jax.metrics.bootstrap import compute_intervals, compute_point_estimates, ScoreFn

SCORES = {
    "radgraph": "F1 of the entities and relations found by RadGraph-XL: simple, partial, complete",
    "radgraph_radcliq": "RadGraph's F1 as RadCliQ computes it",
    "radcliq": "RadCliQ-v1, from BLEU, BERTScore, CheXbert's embedding and RadGraph; lower is better",
    "ratescore": "RaTEScore, of entities and their synonyms",
    "srrbert": "F1, precision and recall of 55 findings with their status, by SRR-BERT",
    "temporal": "F1 of entities that describe a change",
    "green": "GREEN, by a language model with 7 billion parameters",
    "bertscore": "BERTScore of distilbert-base-uncased",
    "radeval_bertscore": "BERTScore of a ModernBERT trained on radiology reports",
}
NOT_OFFERED = ("crimson", "radfact_ct", "mammo_green")
INSTALL = "pip install -e '.[clinical]' (or 'radeval>=2.2')"


def parse_score_names(field: str) -> list[str]:
  """Returns the scores that `eval.radeval` names; checks them before any other work is done.

  Args:
    field: names of `SCORES`, separated by commas; may be empty.

  Raises:
    UserError: a name is unknown or not offered, or the package is not installed.
  """
  names = [name.strip() for name in field.split(",") if name.strip()]
  for name in names:
    if name in NOT_OFFERED:
      raise UserError(f"radeval={name}: not offered, because it queries a service over the network or is meant for "
                      f"other images; expected one of {', '.join(SCORES)}")
    if name not in SCORES:
      close = difflib.get_close_matches(name, SCORES, 1)
      raise UserError(f"radeval={name}: " + (f"did you mean {close[0]}? " if close else "") +
                      f"expected one of {', '.join(SCORES)}")
  if names and importlib.util.find_spec("radeval") is None:
    raise UserError(f"radeval={field}: the package RadEval is not installed: {INSTALL}")
  return names


def add_radeval(scores: dict, rows: Sequence[dict], names: Sequence[str], references: Sequence[str],
                hypotheses: Sequence[str], weights: np.ndarray, log: Callable[[str], None]) -> None:
  """Adds RadEval's results to the scores of the split and of each study, or a note if they can't be computed.

  Args:
    scores, rows: as `scoring.score_reports` returns them.
    names: of `SCORES`.
    references: B reports, as they were written.
    hypotheses: B reports.
    weights: [R, B], the resamples for the intervals.
    log: receives one line of progress.
  """
  log(f"scores by RadEval: {', '.join(names)}")
  try:
    per_study = compute_radeval(names, references, hypotheses)
  except UserError as error:                  # a failed download must not discard the reports, which took hours
    scores["radeval"], scores["notes"]["radeval"] = None, str(error)
    return
  add_study_scores(scores, rows, "radeval", per_study, weights)


def add_study_scores(scores: dict, rows: Sequence[dict], key: str, per_study: Mapping[str, np.ndarray],
                     weights: np.ndarray) -> None:
  """Adds scores that are known per study: their means and intervals to `scores`, the values to the studies' rows.

  Args:
    scores, rows: as `scoring.score_reports` returns them.
    key: name of the group in `scores`.
    per_study: for each score its values [B]; NaN where a study has none.
    weights: [R, B], the resamples for the intervals.
  """
  mean_score = make_mean_score(per_study)
  scores[key] = compute_point_estimates(mean_score, len(rows))
  scores["intervals"][key] = compute_intervals(mean_score, weights)
  for study, row in enumerate(rows):
    row.update({name: float(values[study]) if np.isfinite(values[study]) else None
                for name, values in per_study.items()})


def make_mean_score(per_study: Mapping[str, np.ndarray]) -> ScoreFn:
  """Returns the score that is the mean over the studies [B] with a value (not NaN); None if no study has one."""
  def mean_score(weights: np.ndarray) -> dict:
    means = {}
    for name, values in per_study.items():
      known = np.isfinite(values)
      count = weights @ known
      means[name] = weights @ np.where(known, values, 0) / np.where(count, count, np.nan) if known.any() else None
    return means
  return mean_score


def compute_radeval(names: Sequence[str], references: Sequence[str], hypotheses: Sequence[str]
                    ) -> dict[str, np.ndarray]:
  """Returns the values [B] of each study, under the names of RadEval's results.

  Args:
    names: of `SCORES`; a score may have several results.
    references: B reports, as they were written.
    hypotheses: B reports.

  Raises:
    UserError: a model can't be downloaded, or RadEval has another version. The message contains no report text.
  """
  per_study = {}
  for name in names:
    try:
      radeval = importlib.import_module("radeval")
      with open(os.devnull, "w") as devnull, contextlib.redirect_stdout(devnull):       # RadEval prints reports
        results = radeval.RadEval(metrics=[name], per_sample=True, show_progress=False)(
            refs=list(references), hyps=list(hypotheses))
    except Exception as error:         # from a download, PyTorch or a score's own package; its text may hold a report
      raise UserError(f"radeval={name}: RadEval can't compute it ({type(error).__name__}); its models are downloaded "
                      f"from huggingface.co at first use. Try RadEval(metrics=['{name}']) alone, or {INSTALL}"
                      ) from error
    for result_name, values in results.items():
      values = np.asarray(values, float)
      if values.shape != (len(references),):
        raise UserError(f"radeval={name}: {result_name} has {values.size} values for {len(references)} reports; "
                        f"expected RadEval 2.2 or newer: {INSTALL}")
      per_study[result_name] = values
  return per_study
