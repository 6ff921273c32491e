"""The utility of minimum Bayes risk decoding, composed of similarity and stated findings (`decode.utility`).

  U(c) = E_r[cider * CIDEr-D(c, r) / 10 + ngram_overlap * overlap(c, r) + rouge_l * ROUGE-L(c, r)]
         + findings * sum_f (v_f p_f - finding_threshold)

r is the true report, represented by samples and retrieved training reports (decoding/mbr.py), f runs over the abnormal
findings that the candidate c states, and p_f is the probability of f: E_r[r states f], mixed with the findings head's
if `head_weight` asks for it. v_f values rare findings more (`rarity_exponent`). docs/decoding.md explains it.

Shapes: C candidates, K distinct samples, R training reports, F findings.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from ml_collections import ConfigDict
import numpy as np

from input_pipeline.tokenizer import Tokenizer
from mcsam_jax.decoding.mbr import compute_findings_gain, expect_over_reports, retrieve_most_probable
from mcsam_jax.labelers.registry import make_labeler
from mcsam_jax.metrics.cider import CiderCorpus, ReportVectors
from mcsam_jax.metrics.rouge import RougeReferences


class Choice(NamedTuple):
  """The chosen report: a sample, or a training report where these are candidates."""
  sample: int | None            # index of the sample
  train_report: int | None      # index of the training report
  finding_probs: dict[str, float] | None      # probability of each abnormal finding, if findings count


class MbrUtility:
  """Chooses the report of a study among samples, and training reports if `decode.retrieved_candidates` asks for them.

  A study is chosen with the same result whatever other studies are in its batch.
  """

  def __init__(self, config: ConfigDict, tokenizer: Tokenizer, train_reports: Sequence[str]):
    """Counts the n-grams of the training reports, and labels them if findings count.

    Args:
      config: `decode` is read, and `eval.chexbert` for the labeler `chexbert`.
      tokenizer: cleans reports.
      train_reports: R reports.

    Raises:
      UserError: `decode.utility.labeler` needs a file that is missing.
    """
    self._decode, self._utility, self._tokenizer = config.decode, config.decode.utility, tokenizer
    self.cleaned_train_reports = [tokenizer.clean(report) for report in train_reports]
    self._corpus = CiderCorpus((report.split() for report in self.cleaned_train_reports), min_documents=2,
                               cider_weight=self._utility.cider, overlap_weight=self._utility.ngram_overlap,
                               overlap_recall=self._utility.overlap_recall)
    self._rouge = (RougeReferences([report.split() for report in self.cleaned_train_reports])
                   if self._utility.rouge_l else None)
    self._findings_reader = _FindingsReader(config, self.cleaned_train_reports) if self._utility.findings else None

  def choose(self, samples: Sequence[str], train_report_probs: np.ndarray | None,
             head_probs: Mapping[str, float] | None = None) -> Choice:
    """Returns the candidate with the highest expected utility; the arguments are those of `rank`."""
    return self.rank(samples, train_report_probs, 1, head_probs)[0]

  def rank(self, samples: Sequence[str], train_report_probs: np.ndarray | None, count: int,
           head_probs: Mapping[str, float] | None = None) -> list[Choice]:
    """Returns the `count` candidates with the highest expected utility, fewer if there are fewer different texts.

    Of candidates with the same utility the first sample comes first.

    Args:
      samples: texts of all samples; equal ones count as often as they occur.
      train_report_probs: [R], probabilities of the training reports for the study's images; None: not used.
      count: number of candidates to return, at most.
      head_probs: probability of each finding by the findings head; used if `head_weight` is above 0.
    """
    first_of = {}
    for number, text in enumerate(samples):
      first_of.setdefault(self._tokenizer.clean(text), []).append(number)
    distinct = list(first_of)                                                                       # K texts
    sample_weights = np.array([len(numbers) for numbers in first_of.values()]) / len(samples)
    candidates, retrieved, weights, added = distinct, None, None, np.zeros(0, int)
    if train_report_probs is not None:
      retrieved, weights = retrieve_most_probable(train_report_probs)
      added = retrieved[:self._decode.retrieved_candidates]
      candidates = [*distinct, *(self.cleaned_train_reports[index] for index in added)]             # C texts
    words = [candidate.split() for candidate in candidates]
    vectors = self._corpus.encode(words)
    utilities = self._expect(self._compare_with_samples(words, vectors, len(distinct)), sample_weights,
                             lambda: self._compare_with_train_reports(words, vectors, retrieved), weights)    # [C]
    finding_probs = None
    if (reader := self._findings_reader) is not None:
      stated = np.concatenate([reader.find_stated(distinct), reader.train_stated[added]])           # [C, F]
      probabilities = self._expect(stated[:len(distinct)].T.astype(float), sample_weights,
                                   lambda: reader.train_stated[retrieved].T.astype(float), weights)     # [F]
      if (head_weight := self._utility.head_weight) and head_probs is not None:
        by_head = np.array([head_probs[finding] for finding in reader.findings])
        probabilities = (1 - head_weight) * probabilities + head_weight * by_head
      gain = compute_findings_gain(stated, reader.values * probabilities, self._utility.finding_threshold)
      utilities = utilities + self._utility.findings * gain
      finding_probs = dict(zip(reader.findings, probabilities.round(4).tolist()))
    return [Choice(first_of[distinct[index]][0], None, finding_probs) if index < len(distinct) else
            Choice(None, int(added[index - len(distinct)]), finding_probs)
            for index in np.argsort(-utilities, kind="stable")[:count].tolist()]

  def _compare_with_samples(self, words: Sequence[Sequence[str]], vectors: ReportVectors,
                            num_samples: int) -> np.ndarray:
    """Returns the similarities [C, K] of candidates, as lists of words and as vectors, with the first K of them."""
    similarities = self._corpus.compare_pairwise(vectors)[:, :num_samples]
    if self._rouge is not None:
      similarities = similarities + self._utility.rouge_l * RougeReferences(words[:num_samples]).compare(words)
    return similarities

  def _compare_with_train_reports(self, words: Sequence[Sequence[str]], vectors: ReportVectors,
                                  rows: np.ndarray | None) -> np.ndarray:
    """Returns the similarities of C candidates, as lists of words and as vectors, with these training reports."""
    similarities = self._corpus.compare_with_corpus(vectors, rows)
    if self._rouge is not None:
      similarities = similarities + self._utility.rouge_l * self._rouge.compare(words, rows)
    return similarities

  def _expect(self, values: np.ndarray, sample_weights: np.ndarray, get_retrieved_values: Callable[[], np.ndarray],
              weights: np.ndarray | None) -> np.ndarray:
    """Returns the expectation over samples and, if there are any, retrieved reports."""
    if weights is None:
      return expect_over_reports(values, sample_weights=sample_weights)
    return expect_over_reports(values, get_retrieved_values(), weights, self._decode.retrieval_weight, sample_weights)


class _FindingsReader:
  """Reads which abnormal findings reports state as present.

  Attributes:
    findings: the F abnormal findings of the labeler.
    train_stated: bool [R, F], those of the training reports.
    values: [F], (largest rate / rate of a finding) ** `rarity_exponent`, by their rates in the training reports.
  """

  def __init__(self, config: ConfigDict, train_reports: Sequence[str]):
    """Makes the labeler `decode.utility.labeler` and labels the training reports."""
    with_labeler = config.copy_and_resolve_references()
    with_labeler.eval.labeler = config.decode.utility.labeler
    labeler = make_labeler(with_labeler)
    assert labeler is not None, "config rules allow no other value"
    self._label = labeler.label
    self.findings = tuple(finding for finding in labeler.findings if finding != "No Finding")
    self.train_stated = self.find_stated(train_reports)
    rates = np.maximum(self.train_stated.sum(0), 1)           # a finding that no report states counts as stated once
    self.values = (rates.max() / rates) ** config.decode.utility.rarity_exponent

  def find_stated(self, reports: Sequence[str]) -> np.ndarray:
    """Returns bool [number of reports, F]."""
    stated = [[labels[finding] == "positive" for finding in self.findings] for labels in self._label(reports)]
    return np.array(stated, bool).reshape(len(reports), len(self.findings))
