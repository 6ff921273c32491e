"""Metrics of the user's own: functions that `eval.metrics` names as `package.module:function`.

A function takes the references and the hypotheses, both a list of B reports, and returns one number per study, NaN
where it has none. The score is the mean over the studies with a number, with an interval.

Shapes: B studies, R resamples.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from mcsam_jax.errors import UserError
from mcsam_jax.extensions.by_name import load_by_name
from mcsam_jax.metrics.radeval import add_study_scores

OwnMetric = Callable[[Sequence[str], Sequence[str]], np.ndarray]


def load_own_metrics(field: str) -> dict[str, OwnMetric]:
  """Returns the functions of `eval.metrics` by their names, without those of their modules.

  Raises:
    UserError: a function can't be imported, or two have the same name.
  """
  metrics = {}
  for value in filter(None, (part.strip() for part in field.split(","))):
    name = value.rpartition(":")[2]
    if name in metrics:
      raise UserError(f"eval.metrics={field}: two metrics have the name {name}; rename one")
    metrics[name] = load_by_name("eval.metrics", value)
  return metrics


def add_own_metrics(scores: dict, rows: Sequence[dict], metrics: Mapping[str, OwnMetric], references: Sequence[str],
                    hypotheses: Sequence[str], weights: np.ndarray) -> None:
  """Adds the results of metrics to the scores of the split and of each study, or a note where one fails.

  Args:
    scores, rows: as `scoring.score_reports` returns them.
    metrics: functions by name.
    references: B reports, as they were written.
    hypotheses: B reports.
    weights: [R, B], the resamples for the intervals.
  """
  per_study = {}
  for name, metric in metrics.items():
    try:
      values = np.asarray(metric(list(references), list(hypotheses)), float)
    # Whatever the user's code raises must not discard the reports. The error's text isn't shown: it may quote a report.
    except Exception as error:
      scores["notes"][name] = f"eval.metrics: {name} failed with {type(error).__name__}"
      continue
    if values.shape != (len(references),):
      scores["notes"][name] = (f"eval.metrics: {name} returned an array {list(values.shape)}, expected one number for "
                               f"each of {len(references)} studies")
      continue
    per_study[name] = values
  if not per_study:
    return
  add_study_scores(scores, rows, "own_metrics", per_study, weights)
