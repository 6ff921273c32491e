"""Scores any number of systems on the same studies, each with one report per study.

Work that systems share is done once: references are prepared once per protocol, a text is cleaned once however many
systems wrote it, its labels are predicted once, and METEOR's Java process is started once.

Shapes: B studies, R resamples.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from mcsam_jax.labelers.labeler import Labeler
from mcsam_jax.metrics.bootstrap import ScoreFn
from mcsam_jax.metrics.clinical_f1 import count_labels, encode_labels, LabelCounts
from mcsam_jax.metrics.meteor import JavaUnavailable, Meteor
from mcsam_jax.metrics.ngram_stats import ReferenceSet
from mcsam_jax.metrics.nlg import aggregate_nlg, compute_nlg, METRICS, NlgScores
from mcsam_jax.metrics.protocols import apply_protocol


class Scorer:
  """Scores the reports that systems wrote for the same B studies.

  Attributes:
    references: B reports, as they were written.
    reference_labels: B mappings {finding: label}, or None without a labeler.
    findings: the findings that count.
    main_protocol: the protocol that tables show: r2gen, or clean where no tokenizer is known.
    notes: protocol or metric -> why it is missing.
  """

  def __init__(self, references: Sequence[str], *, tokenizer, cleaning: str, max_length: int, meteor: Meteor,
               labeler: Labeler | None = None, reference_labels: Sequence[Mapping[str, str]] | None = None):
    """Creates a scorer for the studies that these references belong to.

    Args:
      references: B reports, as they were written.
      tokenizer: used by the protocol r2gen; None leaves that protocol out.
      cleaning: one of `text.RULES`.
      max_length: tokens of a report under r2gen, end of sequence included.
      meteor: a METEOR process, started by the caller.
      labeler: its findings are those that count; None: no label scores.
      reference_labels: B label mappings that are better than those predicted from the references; None: predict them.
    """
    self.references, self.findings = list(references), labeler.findings if labeler else ()
    self.main_protocol = "r2gen" if tokenizer else "clean"
    self.notes: dict[str, str] = {}
    self._preparation = tokenizer, cleaning, max_length
    self._meteor, self._labeler = meteor, labeler
    self._prepared = {}                 # protocol -> (ReferenceSet or None, {hypothesis: its prepared text})
    self._labels = {}                   # report -> {finding: label}
    self.reference_labels = reference_labels
    if labeler and reference_labels is None:
      self.reference_labels = self.predict_labels(self.references)
    if labeler and self.reference_labels is not None:
      self._reference_codes = encode_labels(self.reference_labels, self.findings)

  def __len__(self) -> int:
    """Returns the number of studies."""
    return len(self.references)

  def score_nlg(self, protocol: str, hypotheses: Sequence[str], metrics: Sequence[str] = METRICS) -> NlgScores:
    """Returns the scores of B reports under a protocol, with `stats` None where the protocol can't be applied."""
    references = self._prepare(protocol, hypotheses)
    if references is None:
      return NlgScores({}, {}, {protocol: self.notes[protocol]})
    _, prepared = self._prepared[protocol]
    scores = compute_nlg(references, [prepared[hypothesis] for hypothesis in hypotheses], self._meteor, metrics)
    self.notes.update(scores.notes)
    return scores

  def _prepare(self, protocol: str, hypotheses: Sequence[str]) -> ReferenceSet | None:
    """Prepares texts that the protocol hasn't seen yet; returns its references, None where it can't be applied."""
    references, prepared = self._prepared.get(protocol, (None, {}))
    new = [hypothesis for hypothesis in dict.fromkeys(hypotheses) if hypothesis not in prepared]
    if protocol not in self.notes and (references is None or new):
      if protocol == "r2gen" and self._preparation[0] is None:
        self.notes[protocol] = "needs the vocabulary of the training reports"
      else:
        try:
          prepared_references, prepared_new = apply_protocol(
              protocol, [] if references else self.references, new, *self._preparation)
          references = references or ReferenceSet(prepared_references)
          prepared.update(zip(new, prepared_new))
        except JavaUnavailable as error:
          self.notes[protocol] = str(error)
          references = None
    self._prepared[protocol] = references, prepared
    return references

  def count_labels(self, hypotheses: Sequence[str]) -> LabelCounts | None:
    """Returns the label counts of B reports against their references; None without a labeler."""
    predicted = self.predict_labels(hypotheses)
    if predicted is None:
      return None
    return count_labels(self._reference_codes, encode_labels(predicted, self.findings), self.findings)

  def predict_labels(self, reports: Sequence[str]) -> list[Mapping[str, str]] | None:
    """Returns {finding: label} for each report; None without a labeler."""
    if self._labeler is None:
      return None
    new = [report for report in dict.fromkeys(reports) if report not in self._labels]
    self._labels.update(zip(new, self._labeler.label(new)))
    return [self._labels[report] for report in reports]


def mean_nlg_score(*runs: NlgScores) -> ScoreFn:
  """Returns the score that is the mean over several runs; runs that lack a metric are left out of its mean."""
  def mean_score(weights: np.ndarray) -> dict:
    by_run = [aggregate_nlg(run.stats, weights) for run in runs if run.stats is not None]
    known = {metric: [array for values in by_run if (array := values[metric]) is not None] for metric in by_run[0]}
    return {metric: np.mean(arrays, 0) if arrays else None for metric, arrays in known.items()}
  return mean_score
