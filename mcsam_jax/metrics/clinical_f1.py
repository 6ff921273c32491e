"""Clinical F1: precision, recall and F1 of the findings that reports state, from the labels of a labeler.

Papers report numbers named "F1" that differ in three ways. All of them are computed, each under its own name:

  uncertain   `uncertain_negative`: only positive findings count, so neither "no effusion" nor "possible effusion"
              matches a stated effusion (R2GenCMN, PromptMRG).
              `uncertain_positive`: "possible effusion" counts as an effusion on both sides (RadEval's F1CheXbert).
  findings    `all_findings`, and `five_findings`: those of CheXpert's competition, which most papers report too.
  average     `micro`          over the pooled findings of all studies.
              `macro_all`      mean over the findings as in scikit-learn, R2GenCMN and RadEval: a finding that no
                               reference has counts as 0 and lowers the mean.
              `macro_present`  mean over the findings that at least one reference has.
              `weighted`       mean over the findings, weighted by the number of references that have them
                               (scikit-learn).
              `samples`        example-based: computed for each study, then averaged over studies (PromptMRG).

A ratio with denominator 0 (precision without a stated finding, recall without a finding to state, F1 without either) is
0, which is scikit-learn's zero_division=0. In the resamples of an interval it is undefined (bootstrap.py), except as
part of a mean. So a study without any finding scores 0 in `samples` even if no finding is the right answer. "No
Finding", one of the 14, mostly prevents this among all findings, but not among the five.

Shapes: B studies, R resamples, F findings, C candidates.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mcsam_jax.findings import FINDINGS, LABEL_VALUES
from mcsam_jax.metrics.bootstrap import compute_point_estimates, ScoreFn

FIVE_FINDINGS = ("Cardiomegaly", "Edema", "Consolidation", "Atelectasis", "Pleural Effusion")
UNCERTAIN = {"uncertain_negative": ("positive",), "uncertain_positive": ("positive", "uncertain")}
RATES = ("precision", "recall", "f1")


class LabelCounts(NamedTuple):
  """Counts of B studies and F findings, for each key of UNCERTAIN."""
  findings: tuple[str, ...]
  counts: dict[str, np.ndarray]           # float64 [B, 3, F]: true positives, in the reference, in the hypothesis
  samples: dict[str, np.ndarray]          # float64 [B, 2, 3]: RATES of each study, over all and over the five findings


def compute_clinical_f1(references: Sequence[Mapping[str, str]], hypotheses: Sequence[Mapping[str, str]],
                        findings: Sequence[str] = FINDINGS) -> dict:
  """Returns precision, recall and F1 in all averages.

  Args:
    references: B mappings from finding to label.
    hypotheses: B mappings, in the same order.
    findings: the findings that count.

  Returns:
    {"micro", "macro", "per_finding",                        over all findings, uncertain not positive;
     "uncertain_negative": {"all_findings": {"micro", "macro_all", "macro_present", "weighted", "samples"},
                            "five_findings": the same, or None if `findings` lacks one of the five,
                            "per_finding": {finding: ...}},
     "uncertain_positive": the same}
    "macro" is macro_present. Each entry has "precision", "recall" and "f1"; those of `per_finding` also have "support",
    the number of references with the finding.

  Raises:
    ValueError: the numbers of studies differ, or a label is not one of LABEL_VALUES.
  """
  if len(references) != len(hypotheses):
    raise ValueError(f"{len(references)} labeled references and {len(hypotheses)} labeled hypotheses: expected one of "
                     "each per study")
  return estimate_clinical_f1(count_labels(encode_labels(references, findings), encode_labels(hypotheses, findings),
                                           findings))


def encode_labels(labels: Sequence[Mapping[str, str]], findings: Sequence[str]) -> np.ndarray:
  """Returns int8 [B, F]: the index of each label in LABEL_VALUES.

  Raises:
    ValueError: a label is not one of them.
  """
  for row in labels:
    for finding in findings:
      if row[finding] not in LABEL_VALUES:
        raise ValueError(f"{finding} is {row[finding]!r}: expected one of {', '.join(LABEL_VALUES)}")
  return np.array([[LABEL_VALUES.index(row[finding]) for finding in findings] for row in labels],
                  np.int8).reshape(len(labels), len(findings))


def count_labels(references: np.ndarray, hypotheses: np.ndarray, findings: Sequence[str] = FINDINGS) -> LabelCounts:
  """Returns the counts of encoded labels [B, F], which `aggregate_clinical_f1` takes."""
  five = _find_five_columns(findings)
  counts, samples = {}, {}
  for uncertain, positive_values in UNCERTAIN.items():
    positive_codes = [LABEL_VALUES.index(value) for value in positive_values]
    truth, stated = np.isin(references, positive_codes), np.isin(hypotheses, positive_codes)
    counts[uncertain] = np.stack([truth & stated, truth, stated], 1).astype(np.float64)
    subsets = [counts[uncertain], counts[uncertain][..., five]]
    samples[uncertain] = np.nan_to_num(
        np.stack([np.stack([*_compute_rates(*subset.sum(-1).T).values()], 1) for subset in subsets], 1))
  return LabelCounts(tuple(findings), counts, samples)


def average_counts(systems: Sequence[LabelCounts]) -> LabelCounts:
  """Returns the mean counts of several systems on the same studies, which pools them into an average system."""
  counts, samples = ({uncertain: np.mean([getattr(system, field)[uncertain] for system in systems], 0)
                      for uncertain in UNCERTAIN} for field in ("counts", "samples"))
  return LabelCounts(systems[0].findings, counts, samples)


def estimate_clinical_f1(counts: LabelCounts, score: ScoreFn | None = None) -> dict:
  """Returns the point estimates of all studies, as described in `compute_clinical_f1`.

  Args:
    counts: the label counts of a system.
    score: a score nested like `aggregate_clinical_f1`, to use its values; None: that of `counts`.
  """
  num_studies = len(next(iter(counts.counts.values())))
  scores = compute_point_estimates(score or (lambda weights: aggregate_clinical_f1(counts, weights)), num_studies)
  for uncertain in UNCERTAIN:
    supports = counts.counts[uncertain][:, 1].sum(0)
    for rates, support in zip(scores[uncertain]["per_finding"].values(), supports):
      rates["support"] = int(support)
  scores["per_finding"] = scores["uncertain_negative"]["per_finding"]
  return scores


def aggregate_clinical_f1(counts: LabelCounts, weights: np.ndarray) -> dict:
  """Returns what `compute_clinical_f1` does, without supports, as arrays [R] for study weights [R, B].

  `macro_present` averages over the findings that the references of each resample have. Undefined ratios are NaN.
  """
  five = _find_five_columns(counts.findings)
  num_studies = weights.sum(1)                                                                # [R]
  scores = {}
  for uncertain in UNCERTAIN:
    summed_counts = np.tensordot(weights, counts.counts[uncertain], 1)                        # [R, 3, F]
    summed_samples = np.tensordot(weights, counts.samples[uncertain], 1)                      # [R, 2, 3]
    per_finding = _compute_rates(*np.moveaxis(summed_counts, 1, 0))                           # each [R, F]
    scores[uncertain] = {
        "all_findings": _compute_averages(summed_counts, summed_samples[:, 0], num_studies),
        "five_findings": (_compute_averages(summed_counts[..., five], summed_samples[:, 1], num_studies)
                          if five else None),
        "per_finding": {finding: {name: rate[:, i] for name, rate in per_finding.items()}
                        for i, finding in enumerate(counts.findings)}}
  main = scores["uncertain_negative"]
  return {"micro": main["all_findings"]["micro"], "macro": main["all_findings"]["macro_present"],
          "per_finding": main["per_finding"], **scores}


def compute_constant_f1(references: np.ndarray, candidates: np.ndarray) -> dict[str, np.ndarray]:
  """Returns F1 ("micro" and "macro", each [C]) of each candidate report given as the answer for every study.

  Args:
    references: encoded labels [B, F].
    candidates: encoded labels [C, F].
  """
  truth, stated = ((codes == LABEL_VALUES.index("positive")).astype(float) for codes in (references, candidates))
  supports = np.broadcast_to(truth.sum(0), stated.shape)
  counts = np.stack([stated * supports, supports, stated * len(references)], 1)               # [C, 3, F]
  averages = _compute_averages(counts, np.zeros((len(stated), 3)), np.full(len(stated), len(references)))
  return {"micro": np.nan_to_num(averages["micro"]["f1"]), "macro": np.nan_to_num(averages["macro_present"]["f1"])}


def _find_five_columns(findings: Sequence[str]) -> list[int]:
  """Returns the indices of FIVE_FINDINGS; an empty list if one of them is missing."""
  return [list(findings).index(finding) for finding in FIVE_FINDINGS] if {*FIVE_FINDINGS} <= {*findings} else []


def _compute_averages(counts: np.ndarray, samples: np.ndarray, num_studies: np.ndarray
                      ) -> dict[str, dict[str, np.ndarray]]:
  """Returns {average: {rate: [R]}}; in a mean over findings, undefined ratios are 0.

  Args:
    counts: [R, 3, F], summed over studies as in LabelCounts.
    samples: [R, 3], rates summed over studies.
    num_studies: [R].
  """
  rates = {name: np.nan_to_num(rate)                                                          # each [R, F]
           for name, rate in _compute_rates(*np.moveaxis(counts, 1, 0)).items()}
  supports = counts[:, 1]

  def average(weights: np.ndarray) -> dict[str, np.ndarray]:                                  # [R, F] or [R, 1]
    total = np.broadcast_to(weights, supports.shape).sum(1)
    return {name: _divide((rate * weights).sum(1), total) for name, rate in rates.items()}

  return {"micro": _compute_rates(*counts.sum(-1).T), "macro_all": average((num_studies > 0)[:, None]),
          "macro_present": average(supports > 0), "weighted": average(supports),
          "samples": {name: _divide(total, num_studies) for name, total in zip(RATES, samples.T)}}


def _compute_rates(true_positives: np.ndarray, num_true: np.ndarray, num_stated: np.ndarray) -> dict[str, np.ndarray]:
  """Returns precision, recall and F1; undefined ratios are NaN."""
  return {"precision": _divide(true_positives, num_stated), "recall": _divide(true_positives, num_true),
          "f1": _divide(2 * true_positives, num_stated + num_true)}


def _divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
  """Returns the ratio, NaN where the denominator is 0."""
  return numerator / np.where(denominator, denominator, np.nan)
