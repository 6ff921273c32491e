"""Rewards of sampled reports, computed on the hosts: agreement with the reference in words and in findings.

  R = cider * CIDEr-D / 10 + rouge_l * ROUGE-L + findings * F1

CIDEr-D has the document frequencies of the training reports. F1 is that of the abnormal findings which sample and
reference state as present, per report; it is 1 if neither states any. Reports are compared as the protocol `r2gen`
compares them (metrics/protocols.py).

Shapes: B studies, K samples, T tokens, R terms.
"""

from collections.abc import Iterable, Mapping, Sequence

from ml_collections import ConfigDict
import numpy as np

from input_pipeline.tokenizer import Tokenizer
from mcsam_jax.labelers.registry import make_labeler
from mcsam_jax.metrics.cider import compute_norms, Idf, SCALE, score_pair
from mcsam_jax.metrics.ngrams import clip_counts, count_ngrams
from mcsam_jax.metrics.protocols import clean_hypothesis, prepare_r2gen_reference, truncate
from mcsam_jax.metrics.rouge import compute_rouge_l

TERMS = ("cider", "rouge_l", "findings")      # fields of `reward`


def get_term_weights(config: ConfigDict) -> dict[str, float]:
  """Returns the weight of each reward term that has one."""
  return {term: config.reward[term] for term in TERMS if config.reward[term]}


class RewardScorer:
  """Scores samples against the references of their studies.

  Attributes:
    terms: the R terms that have a weight.
  """

  def __init__(self, config: ConfigDict, tokenizer: Tokenizer, train_reports: Iterable[str]):
    """Counts the n-grams of the training reports, and makes the labeler.

    Args:
      config: `reward`, `data.cleaning`, `tokenizer.max_length` and, for CheXbert, `eval.chexbert` are read.
      tokenizer: decodes tokens.
      train_reports: reports of the training split, as they were written; only read if CIDEr-D has a weight.

    Raises:
      UserError: the labeler needs a file that is missing.
    """
    self.terms = tuple(get_term_weights(config))
    self._tokenizer, self._cleaning = tokenizer, config.data.cleaning
    self._max_length = config.tokenizer.max_length
    self._idf = self._labeler = None
    if "cider" in self.terms:
      prepared = (prepare_r2gen_reference(report, tokenizer, self._cleaning, self._max_length)
                  for report in train_reports)
      self._idf = Idf(count_ngrams(report.split()) for report in prepared)
    if "findings" in self.terms:
      with_labeler = config.copy_and_resolve_references()
      with_labeler.eval.labeler = config.reward.labeler
      self._labeler = make_labeler(with_labeler)         # on this host's devices: each host has other reports

  def score(self, samples: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Returns the terms of each sample, float32 [B, K, R].

    Args:
      samples: token ids without bos [B, K, T].
      references: token ids with bos [B, T + 1].
    """
    reference_texts = [self._tokenizer.decode(ids) for ids in references]
    texts = [[self._tokenizer.decode(ids) for ids in study] for study in samples]
    scored = np.zeros((*samples.shape[:2], len(self.terms)), np.float32)
    for number, term in enumerate(self.terms):
      if term == "findings":
        scored[..., number] = self._score_findings(texts, reference_texts)
      else:
        score_study = {"cider": self._score_cider, "rouge_l": _score_rouge_l}[term]
        for row, (study, reference) in enumerate(zip(texts, reference_texts)):
          compared = [truncate(clean_hypothesis(text, self._cleaning), self._max_length) for text in study]
          scored[row, :, number] = score_study(compared, reference)
    return scored

  def _score_cider(self, texts: Sequence[str], reference: str) -> list[float]:
    """Returns CIDEr-D / 10 of K texts against one reference."""
    idf = self._idf
    assert idf is not None
    reference_words = reference.split()
    reference_counts = count_ngrams(reference_words)
    reference_norms = compute_norms(reference_counts, idf)

    def score(text: str) -> float:
      words = text.split()
      counts = count_ngrams(words)
      return score_pair(list(map(clip_counts, counts, reference_counts)), reference_counts,
                        compute_norms(counts, idf), reference_norms, len(words), len(reference_words),
                        idf) / SCALE

    scores = {text: score(text) for text in set(texts)}
    return [scores[text] for text in texts]

  def _score_findings(self, texts: Sequence[Sequence[str]], references: Sequence[str]) -> np.ndarray:
    """Returns F1 [B, K] of the abnormal findings in K texts per study."""
    labeler = self._labeler
    assert labeler is not None
    findings = [finding for finding in labeler.findings if finding != "No Finding"]
    labels = iter(labeler.label([*references, *(text for study in texts for text in study)]))

    def find_stated(labels: Mapping[str, str]) -> set[str]:
      return {finding for finding in findings if labels[finding] == "positive"}

    expected = [find_stated(next(labels)) for _ in references]
    return np.array([[compute_f1(find_stated(next(labels)), stated) for _ in study]
                     for study, stated in zip(texts, expected)])


def _score_rouge_l(texts: Sequence[str], reference: str) -> list[float]:
  """Returns ROUGE-L of K texts against one reference."""
  return [compute_rouge_l(text, reference) for text in texts]


def compute_f1(stated: set[str], expected: set[str]) -> float:
  """Returns the F1 of stated against expected findings; 1 if there are none of either."""
  if not stated and not expected:
    return 1.0
  return 2 * len(stated & expected) / (len(stated) + len(expected))
