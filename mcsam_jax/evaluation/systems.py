"""Systems that are scored on the same studies: the model, its shuffled-images control and the baselines.

A system is anything that gives every study one report. Its scores are functions of study weights (`bootstrap.ScoreFn`),
so points, intervals and paired differences all come from the same object.

Shapes: B studies, R resamples.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mcsam_jax.evaluation.baselines import LABEL_METRICS
from mcsam_jax.evaluation.scorer import mean_nlg_score, Scorer
from mcsam_jax.metrics.bootstrap import compute_intervals, compute_point_estimates, ScoreFn
from mcsam_jax.metrics.clinical_f1 import (
  aggregate_clinical_f1,
  average_counts,
  estimate_clinical_f1,
  LabelCounts,
)
from mcsam_jax.metrics.nlg import METRICS
from mcsam_jax.metrics.protocols import PROTOCOLS

METEOR_PERMUTATIONS = 2       # METEOR takes ten times as long as the other metrics together, so the control computes it
                              # for this many permutations, under the main protocol only
FAST_METRICS = [metric for metric in METRICS if metric != "METEOR"]


class System(NamedTuple):
  """The scores of one system on B studies, as functions of study weights [R, B]."""
  nlg: ScoreFn                          # metric -> [R], or protocol -> metric -> [R]
  main_nlg: ScoreFn                     # metric -> [R], under the main protocol
  label_counts: LabelCounts | None    # None without a labeler
  label_score: ScoreFn | None           # takes the label counts; nested as `aggregate_clinical_f1` returns it
  num_studies: int


def score_model(scorer: Scorer, hypotheses: Sequence[str]) -> tuple[System, list[dict]]:
  """Returns the system under every protocol, and one {metric: score} per study under the main protocol."""
  scores = {protocol: scorer.score_nlg(protocol, hypotheses) for protocol in PROTOCOLS}
  per_study = scores[scorer.main_protocol].per_study
  rows = [{metric: None if values is None else float(values[study]) for metric, values in per_study.items()}
          for study in range(len(hypotheses))]
  system = _make_system(scorer, {protocol: [score] for protocol, score in scores.items()},
                        scorer.count_labels(hypotheses))
  return system, rows


def score_control(scorer: Scorer, hypothesis_lists: Sequence[Sequence[str]]) -> System:
  """Returns the system whose scores are the means over several lists of B reports."""
  def metrics(protocol: str, permutation: int) -> Sequence[str]:
    return METRICS if protocol == scorer.main_protocol and permutation < METEOR_PERMUTATIONS else FAST_METRICS

  scores = {protocol: [scorer.score_nlg(protocol, hypotheses, metrics(protocol, permutation))
                       for permutation, hypotheses in enumerate(hypothesis_lists)] for protocol in PROTOCOLS}
  label_counts = [counts for counts in map(scorer.count_labels, hypothesis_lists) if counts is not None]
  return _make_system(scorer, scores, average_counts(label_counts) if label_counts else None)


def _make_system(scorer: Scorer, scores: Mapping[str, Sequence], label_counts: LabelCounts | None) -> System:
  """Returns a system from {protocol: [NlgScores]}; a protocol that can't be applied has None for its scores."""
  by_protocol = {protocol: None if runs[0].stats is None else mean_nlg_score(*runs)
                 for protocol, runs in scores.items()}
  main_nlg = by_protocol[scorer.main_protocol]
  assert main_nlg is not None         # r2gen is the main protocol only if there is a tokenizer; clean always applies
  return System(lambda weights: {protocol: score and score(weights) for protocol, score in by_protocol.items()},
                main_nlg, label_counts, _make_label_score(label_counts), len(scorer))


def score_baseline(scorer: Scorer, reports: Sequence[str], metrics: Sequence[str] = METRICS) -> System:
  """Returns the system of B reports under the main protocol alone."""
  nlg = mean_nlg_score(scorer.score_nlg(scorer.main_protocol, reports, metrics))
  label_counts = scorer.count_labels(reports)
  return System(nlg, nlg, label_counts, _make_label_score(label_counts), len(scorer))


def _make_label_score(counts: LabelCounts | None) -> ScoreFn | None:
  return None if counts is None else lambda weights: aggregate_clinical_f1(counts, weights)


def combine_constants(constants: Mapping[str, dict | None], systems: Mapping[str, System]) -> System:
  """Returns the constant baseline: each metric is that of the constant report that was chosen for this metric.

  The macro averages of the labels are those of the report chosen for macro_F1; all other label scores are those of
  the report chosen for micro_F1.

  Args:
    constants: metric -> {"report", "val_score"}, as `baselines.find_constants` returns them.
    systems: report -> the system that gives every study this report.
  """
  def nlg(weights: np.ndarray) -> dict:
    scores = {report: system.main_nlg(weights) for report, system in systems.items()}
    return {metric: chosen and scores[chosen["report"]][metric] for metric, chosen in constants.items()
            if metric in METRICS}

  micro, macro = (systems[chosen["report"]] if (chosen := constants.get(metric)) else None for metric in LABEL_METRICS)
  num_studies = next(iter(systems.values())).num_studies
  if micro is None or macro is None or micro.label_score is None or macro.label_score is None:
    return System(nlg, nlg, None, None, num_studies)
  micro_score, macro_score = micro.label_score, macro.label_score
  return System(nlg, nlg, micro.label_counts,
                lambda weights: _replace_macro(micro_score(weights), macro_score(weights)), num_studies)


def _replace_macro(labels: Mapping, macro_labels: Mapping) -> dict:
  """Returns nested label scores whose macro averages are taken from `macro_labels`."""
  return {key: macro_labels[key] if key.startswith("macro") else
          _replace_macro(value, macro_labels[key]) if isinstance(value, Mapping) else value
          for key, value in labels.items()}


def compute_system_points(system: System) -> dict:
  """Returns {"nlg", "labels"} of a system on all studies, as floats."""
  labels = None
  if system.label_counts is not None and system.label_score is not None:
    labels = estimate_clinical_f1(system.label_counts, system.label_score)
  return {"nlg": compute_point_estimates(system.nlg, system.num_studies), "labels": labels}


def compute_system_intervals(system: System, weights: np.ndarray) -> dict:
  """Returns {"nlg", "labels"} of a system with {"low", "high"} instead of each number, from resamples [R, B]."""
  return {"nlg": compute_intervals(system.nlg, weights),
          "labels": system.label_score and compute_intervals(system.label_score, weights)}


def make_headline_score(system: System) -> ScoreFn:
  """Returns the score by which systems are compared: the NLG metrics, and micro- and macro-F1 of the findings."""
  def headline(weights: np.ndarray) -> dict:
    labels = system.label_score and system.label_score(weights)
    return {"nlg": system.main_nlg(weights),
            "labels": labels and {average: {"f1": labels[average]["f1"]} for average in ("micro", "macro")}}
  return headline
