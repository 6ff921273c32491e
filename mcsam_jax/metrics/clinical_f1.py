"""Do the reports state the right findings? Precision, recall and F1 of labels that were read from them.

Papers compare numbers under the name "F1" that differ in three ways, so all of them are given, each by its name:

  uncertain   `uncertain_negative`: a finding counts where it is positive, so that neither "no effusion" nor "possible
              effusion" is a hit or a miss of a stated effusion (R2GenCMN, PromptMRG).
              `uncertain_positive`: "possible effusion" counts as an effusion, on either side (RadEval's F1CheXbert).
  findings    `all_findings`, and `five_findings`, those of CheXpert's competition, which most papers add.
  average     `micro`          hits of all findings of all studies together.
              `macro_all`      mean over the findings, as scikit-learn, R2GenCMN and RadEval count it: a finding that
                               no reference has gives 0 and drags the mean down.
              `macro_present`  mean over the findings that at least one reference has.
              `weighted`       mean over the findings, each weighing as much as references have it (scikit-learn).
              `samples`        example-based: of each study by itself, then the mean over studies (PromptMRG).

A share of nothing (no claim: precision; nothing to find: recall; neither: F1) is 0, which is scikit-learn's
zero_division=0; by itself, not as a part of a mean, it is undefined in the draws of an interval (bootstrap.py). So a
study without any finding scores 0 in `samples` even where nothing is the right answer; "No Finding", one of the 14,
mostly saves it from that among all findings and never among the five.
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
  """Of n studies and F findings, by the names in UNCERTAIN."""
  findings: tuple[str, ...]
  counts: dict[str, np.ndarray]           # float64 [n, 3, F]: hits, findings of the reference, findings stated
  samples: dict[str, np.ndarray]          # float64 [n, 2, 3]: a study's own rates, of all and of the five findings


def compute_clinical_f1(references: Sequence[Mapping[str, str]], hypotheses: Sequence[Mapping[str, str]],
                 findings: Sequence[str] = FINDINGS) -> dict:
  """Returns precision, recall and f1 in all averages.

  Returns:
    {"micro", "macro", "per_finding",                        of all findings, uncertain not positive;
     "uncertain_negative": {"all_findings": {"micro", "macro_all", "macro_present", "weighted", "samples"},
                            "five_findings": the same, or None where `findings` lack one of the five,
                            "per_finding": {finding: ...}},
     "uncertain_positive": the same}
    "macro" is macro_present. Each holds "precision", "recall" and "f1"; those of `per_finding` also "support", the
    number of references that have the finding.

  Args:
    references: n mappings from finding to label.
    hypotheses: n mappings, in the same order.
    findings: those that count.

  Raises:
    ValueError: unequal numbers of studies, or a label that isn't one of LABEL_VALUES.
  """
  if len(references) != len(hypotheses):
    raise ValueError(f"{len(references)} labelled references and {len(hypotheses)} labelled hypotheses")
  return estimate_clinical_f1(count_labels(encode_labels(references, findings), encode_labels(hypotheses, findings), findings))


def encode_labels(labels: Sequence[Mapping[str, str]], findings: Sequence[str]) -> np.ndarray:
  """Returns int8 [n, F]: the number of each label in LABEL_VALUES.

  Raises:
    ValueError: a label that isn't one of them.
  """
  for row in labels:
    for finding in findings:
      if row[finding] not in LABEL_VALUES:
        raise ValueError(f"{finding} is {row[finding]!r}: expected one of {', '.join(LABEL_VALUES)}")
  return np.array([[LABEL_VALUES.index(row[finding]) for finding in findings] for row in labels],
                  np.int8).reshape(len(labels), len(findings))


def count_labels(references: np.ndarray, hypotheses: np.ndarray, findings: Sequence[str] = FINDINGS) -> LabelCounts:
  """Returns what `aggregate_clinical_f1` needs, from codes [n, F] of references and hypotheses."""
  five = _five(findings)
  counts, samples = {}, {}
  for uncertain, positive in UNCERTAIN.items():
    truth, stated = (np.isin(codes, [LABEL_VALUES.index(value) for value in positive])
                     for codes in (references, hypotheses))
    counts[uncertain] = np.stack([truth & stated, truth, stated], 1).astype(np.float64)
    subsets = [counts[uncertain], counts[uncertain][..., five]]
    samples[uncertain] = np.nan_to_num(
        np.stack([np.stack([*_rates(*subset.sum(-1).T).values()], 1) for subset in subsets], 1))
  return LabelCounts(tuple(findings), counts, samples)


def average_counts(several: Sequence[LabelCounts]) -> LabelCounts:
  """Returns the counts of an average system: what several systems state about the same studies, pooled."""
  first = several[0]
  counts, samples = ({uncertain: np.mean([getattr(system, part)[uncertain] for system in several], 0)
                      for uncertain in UNCERTAIN} for part in ("counts", "samples"))
  return LabelCounts(first.findings, counts, samples)


def estimate_clinical_f1(counts: LabelCounts, values: ScoreFn | None = None) -> dict:
  """Returns what `compute_clinical_f1` does; where `values` are given, theirs instead of the `aggregate_clinical_f1` of the counts."""
  num_studies = len(next(iter(counts.counts.values())))
  scores = compute_point_estimates(values or (lambda weights: aggregate_clinical_f1(counts, weights)), num_studies)
  for uncertain in UNCERTAIN:
    supports = counts.counts[uncertain][:, 1].sum(0)
    for (finding, rates), support in zip(scores[uncertain]["per_finding"].items(), supports):
      rates["support"] = int(support)
  scores["per_finding"] = scores["uncertain_negative"]["per_finding"]
  return scores


def aggregate_clinical_f1(counts: LabelCounts, weights: np.ndarray) -> dict:
  """Returns what `compute_clinical_f1` does, but for supports, as arrays [R] of the studies weighted by `weights` [R, n].

  In a resample, too, `macro_present` is over the findings that its references have. NaN is a share of nothing.
  """
  five = _five(counts.findings)
  studies = weights.sum(1)                                                              # [R]
  scores = {}
  for uncertain in UNCERTAIN:
    summed = np.tensordot(weights, counts.counts[uncertain], 1)                       # [R, 3, F]
    samples = np.tensordot(weights, counts.samples[uncertain], 1)                     # [R, 2, 3]
    per_finding = _rates(*np.moveaxis(summed, 1, 0))                                  # each [R, F]
    scores[uncertain] = {
        "all_findings": _averages(summed, samples[:, 0], studies),
        "five_findings": _averages(summed[..., five], samples[:, 1], studies) if five else None,
        "per_finding": {finding: {name: rate[:, i] for name, rate in per_finding.items()}
                        for i, finding in enumerate(counts.findings)}}
  plain = scores["uncertain_negative"]
  return {"micro": plain["all_findings"]["micro"], "macro": plain["all_findings"]["macro_present"],
          "per_finding": plain["per_finding"], **scores}


def compute_constant_f1(references: np.ndarray, candidates: np.ndarray) -> dict[str, np.ndarray]:
  """Returns F1 by "micro" and "macro" [C] of each candidate, codes [C, F], said of all references, codes [n, F]."""
  supports, stated = ((codes == LABEL_VALUES.index("positive")).astype(float) for codes in (references, candidates))
  supports = np.broadcast_to(supports.sum(0), stated.shape)
  counts = np.stack([stated * supports, supports, stated * len(references)], 1)         # [C, 3, F]
  averages = _averages(counts, np.zeros((len(stated), 3)), np.full(len(stated), len(references)))
  return {name: np.nan_to_num(averages[of]["f1"]) for name, of in (("micro", "micro"), ("macro", "macro_present"))}


def _five(findings: Sequence[str]) -> list[int]:
  """Returns the places of FIVE_FINDINGS, or none where one of them is missing."""
  return [list(findings).index(finding) for finding in FIVE_FINDINGS] if {*FIVE_FINDINGS} <= {*findings} else []


def _averages(counts: np.ndarray, samples: np.ndarray, studies: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
  """Returns each average's rates [R] of counts [R, 3, F] as in LabelCounts, and sums [R, 3] of the studies' own rates.

  `studies` [R]: how many there are. In a mean over findings a share of nothing is 0.
  """
  rates = {name: np.nan_to_num(rate) for name, rate in _rates(*np.moveaxis(counts, 1, 0)).items()}       # each [R, F]
  supports = counts[:, 1]
  def mean(weights):                                                            # [R, F] or [R, 1]
    total = np.broadcast_to(weights, supports.shape).sum(1)
    return {name: _share((rate * weights).sum(1), total) for name, rate in rates.items()}
  return {"micro": _rates(*counts.sum(-1).T), "macro_all": mean((studies > 0)[:, None]),
          "macro_present": mean(supports > 0), "weighted": mean(supports),
          "samples": {name: _share(total, studies) for name, total in zip(RATES, samples.T)}}


def _rates(hits: np.ndarray, to_find: np.ndarray, claims: np.ndarray) -> dict[str, np.ndarray]:
  """Returns precision, recall and F1; a share of nothing is NaN."""
  return {"precision": _share(hits, claims), "recall": _share(hits, to_find), "f1": _share(2 * hits, claims + to_find)}


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
  return part / np.where(whole, whole, np.nan)
