"""Scores any number of systems on the same studies, each of which wrote one report a study.

What the systems have in common is done once: references are prepared for each protocol, a text is cleaned once however
many systems wrote it, its labels are read once, and METEOR's Java runs once.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from mcsam_jax.metrics.clinical_f1 import count_labels, label_codes, LabelCounts, read_all
from mcsam_jax.metrics.meteor import JavaUnavailable, Meteor
from mcsam_jax.metrics.ngram_stats import References
from mcsam_jax.metrics.nlg import METRICS, nlg_scores, nlg_values, NlgScores
from mcsam_jax.metrics.protocols import apply_protocol


class Scorer:
  """Of n studies.

  Attributes:
    main: the protocol whose scores stand in tables: r2gen, or clean where no tokenizer is known.
    notes: why a protocol or a metric is missing.
  """

  def __init__(self, references: Sequence[str], *, tokenizer, cleaning: str, max_length: int, meteor: Meteor,
               read_labels=None, reference_labels: Sequence[Mapping[str, str]] | None = None,
               findings: Sequence[str] = ()):
    """Args:
      references: n reports, as they were written.
      tokenizer: for the protocol r2gen; None leaves that out.
      read_labels: reads {finding: label} from a report; or has a method `read` for many at once; None: no labels.
      reference_labels: n, where they are known better than from the reports.
      findings: those that count.
    """
    self.references, self.findings = list(references), tuple(findings)
    self.main = "r2gen" if tokenizer else "clean"
    self.notes = {}
    self._preparation = tokenizer, cleaning, max_length
    self._meteor, self._read_labels = meteor, read_labels
    self._prepared = {}                 # protocol -> (References or None, {text: as the protocol has it})
    self._labels = {}                   # of each text
    self.reference_labels = reference_labels
    if read_labels and reference_labels is None:
      self.reference_labels = self.stated(self.references)
    if read_labels:
      self._reference_codes = label_codes(self.reference_labels, self.findings)

  def __len__(self) -> int:
    return len(self.references)

  def nlg(self, protocol: str, hypotheses: Sequence[str], metrics: Sequence[str] = METRICS) -> NlgScores:
    """Returns the scores of n reports under a protocol; all is None where that can't be applied."""
    references = self._prepare(protocol, hypotheses)
    if references is None:
      return NlgScores(None, None, {protocol: self.notes[protocol]})
    of = self._prepared[protocol][1]
    scores = nlg_scores(references, [of[text] for text in hypotheses], self._meteor, metrics)
    self.notes.update(scores.notes)
    return scores

  def _prepare(self, protocol: str, hypotheses: Sequence[str]) -> References | None:
    """Lets a protocol see all texts that it hasn't seen; returns its references, None where it can't be applied."""
    references, known = self._prepared.get(protocol, (None, {}))
    new = [text for text in dict.fromkeys(hypotheses) if text not in known]
    if protocol not in self.notes and (references is None or new):
      if protocol == "r2gen" and self._preparation[0] is None:
        self.notes[protocol] = "needs the vocabulary of the training reports"
      else:
        try:
          meant, said = apply_protocol(protocol, [] if references else self.references, new, *self._preparation)
          references = references or References(meant)
          known.update(zip(new, said))
        except JavaUnavailable as reason:
          self.notes[protocol] = str(reason)
          references = None
    self._prepared[protocol] = references, known
    return references

  def labels(self, hypotheses: Sequence[str]) -> LabelCounts | None:
    """Returns the counts of n reports' labels; None without a labeler."""
    if not self._read_labels:
      return None
    return count_labels(self._reference_codes, label_codes(self.stated(hypotheses), self.findings), self.findings)

  def stated(self, reports: Sequence[str]) -> list[Mapping[str, str]] | None:
    """Returns the labels of reports; None without a labeler."""
    if not self._read_labels:
      return None
    new = [text for text in dict.fromkeys(reports) if text not in self._labels]
    self._labels.update(zip(new, read_all(self._read_labels, new)))
    return [self._labels[text] for text in reports]


def nlg_of(*systems: NlgScores) -> Callable[[np.ndarray], dict]:
  """Returns the score that is the mean over systems; a metric that some of them lack is the mean over the others."""
  def values(weights: np.ndarray) -> dict:
    of_each = [nlg_values(system.counts, weights) for system in systems]
    known = {metric: [of[metric] for of in of_each if of[metric] is not None] for metric in of_each[0]}
    return {metric: np.mean(arrays, 0) if arrays else None for metric, arrays in known.items()}
  return values
