"""Do the reports state the right findings? Precision, recall and F1 of labels that were read from them.

A label is one of `LABEL_VALUES`; a finding counts where it is positive, so that
neither "no effusion" nor "possible effusion" is a hit or a miss of a stated
effusion.
"""

from typing import Mapping, Sequence

import numpy as np

from input_pipeline.datasets.findings import FINDINGS, LABEL_VALUES


def label_scores(references: Sequence[Mapping[str, str]], hypotheses: Sequence[Mapping[str, str]],
                 findings: Sequence[str] = FINDINGS) -> dict:
  """Returns `micro`, `macro` and `per_finding`, each with precision, recall and f1.

  `micro` counts all findings of all studies together; `macro` is the mean over
  the findings that are positive in at least one reference; `per_finding` adds
  `support`, the number of references that are positive. A share of nothing is 0.

  Args:
    references: n mappings from finding to label.
    hypotheses: n mappings, in the same order.
    findings: those that count.
  """
  if len(references) != len(hypotheses):
    raise ValueError(f"{len(references)} labelled references and {len(hypotheses)} labelled hypotheses")
  truth, stated = _positives(references, findings), _positives(hypotheses, findings)    # each [n, F]
  hits, positives, claims = (truth & stated).sum(0), truth.sum(0), stated.sum(0)        # each [F]
  rates = [_rates(*counts) for counts in zip(hits, positives, claims)]
  present = [rate for rate, support in zip(rates, positives) if support]
  return {
      "micro": _rates(hits.sum(), positives.sum(), claims.sum()),
      "macro": {key: float(np.mean([rate[key] for rate in present])) if present else 0.0
                for key in ("precision", "recall", "f1")},
      "per_finding": {finding: {**rate, "support": int(support)}
                      for finding, rate, support in zip(findings, rates, positives)},
  }


def _positives(labels: Sequence[Mapping[str, str]], findings: Sequence[str]) -> np.ndarray:
  """Returns bool [n, F]."""
  for row in labels:
    for finding in findings:
      if row[finding] not in LABEL_VALUES:
        raise ValueError(f"{finding} is {row[finding]!r}: expected one of {', '.join(LABEL_VALUES)}")
  return np.array([[row[finding] == "positive" for finding in findings] for row in labels],
                  bool).reshape(len(labels), len(findings))


def _rates(hits: int, positives: int, claims: int) -> dict[str, float]:
  return {"precision": float(hits / claims) if claims else 0.0,
          "recall": float(hits / positives) if positives else 0.0,
          "f1": float(2 * hits / (positives + claims)) if positives + claims else 0.0}
