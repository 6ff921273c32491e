"""Rewards are the scores of pycocoevalcap and of the clinical F1, for each sample against its study's reference."""

import numpy as np
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
import pytest

from input_pipeline.tokenizer import WordTokenizer
from mcsam_jax.labelers.rules import make_rules_labeler
from mcsam_jax.metrics.clinical_f1 import compute_clinical_f1
from mcsam_jax.training.reward.rewards import compute_f1, RewardScorer
from tests.testing.tiny import make_config, NETWORK

LENGTH = 20
TRAIN_REPORTS = (
    "The heart is normal in size. The lungs are clear.",
    "The heart is enlarged. There is a small left pleural effusion.",
    "No pleural effusion or pneumothorax. The lungs are clear. The heart is normal.",
    "Large pleural effusion. Mild cardiomegaly. No pneumothorax.")
STUDIES = (3, 0, 1)                      # their references
SAMPLES = (("large pleural effusion . cardiomegaly .", "the lungs are clear .", "cardiomegaly . pneumothorax ."),
           ("the heart is normal in size . the lungs are clear .", "", "pleural effusion ."),
           ("there is a small left pleural effusion .", "the heart is enlarged .", "the the the the ."))


@pytest.fixture(scope="module")
def scored():
  config = make_config(NETWORK, reward__rouge_l=0.5, tokenizer__max_length=LENGTH, train__init_from="w",
                       train__objective="reward")
  tokenizer = WordTokenizer.train(TRAIN_REPORTS, "iu_xray", 1, False)
  scorer = RewardScorer(config, tokenizer, TRAIN_REPORTS)
  references = np.stack([tokenizer.encode_for_training(TRAIN_REPORTS[study], LENGTH) for study in STUDIES])
  ids = np.array([[tokenizer.encode_for_training(sample, LENGTH)[1:] if sample else
                   np.r_[tokenizer.eos_id, np.zeros(LENGTH - 1, int)] for sample in study] for study in SAMPLES])
  return tokenizer, dict(zip(scorer.terms, np.moveaxis(scorer.score(ids, references), -1, 0)))


def test_cider_has_the_document_frequencies_of_the_training_reports(scored):
  tokenizer, terms = scored
  references = {number: [" ".join(tokenizer.clean(report).split())] for number, report in enumerate(TRAIN_REPORTS)}
  for number in range(3):
    samples = {study: [SAMPLES[row][number]] for row, study in enumerate(STUDIES)} | {2: ["x"]}
    _, scores = Cider().compute_score(references, samples)
    np.testing.assert_allclose(terms["cider"][:, number], np.array(scores)[list(STUDIES)] / 10, rtol=1e-6, atol=1e-7)
  assert terms["cider"][0, 0] > 0.1 and terms["cider"][1, 0] == pytest.approx(1)


def test_rouge_l(scored):
  tokenizer, terms = scored
  for row, study in enumerate(STUDIES):
    reference = " ".join(tokenizer.clean(TRAIN_REPORTS[study]).split())
    expected = [Rouge().calc_score([sample], [reference]) for sample in SAMPLES[row]]
    np.testing.assert_allclose(terms["rouge_l"][row], expected, rtol=1e-6)


def test_f1_of_stated_findings(scored):
  """By the example-based F1 of the metrics, which counts a pair without any finding as 0 instead of 1."""
  _, terms = scored
  labeler = make_rules_labeler()
  findings = [finding for finding in labeler.findings if finding != "No Finding"]
  for row, study in enumerate(STUDIES):
    for number, sample in enumerate(SAMPLES[row]):
      labels = [labeler.label([report]) for report in (TRAIN_REPORTS[study], sample)]
      score = compute_clinical_f1(*labels, findings)["uncertain_negative"]["all_findings"]["samples"]["f1"]
      stated = any(label[finding] == "positive" for (label,) in labels for finding in findings)
      assert terms["findings"][row, number] == pytest.approx(score if stated else 1)
  np.testing.assert_allclose(terms["findings"][:2], [[1, 0, 0.5], [1, 1, 0]])


def test_f1_by_hand():
  assert compute_f1({"a", "b"}, {"b", "c", "d"}) == pytest.approx(0.4)
  assert compute_f1(set(), {"a"}) == compute_f1({"a"}, set()) == 0
  assert compute_f1(set(), set()) == 1


def test_a_term_without_weight_is_not_computed():
  config = make_config(NETWORK, reward__cider=0.0, train__init_from="w", train__objective="reward")
  assert RewardScorer(config, WordTokenizer.train(TRAIN_REPORTS, "iu_xray", 1, False), ()).terms == ("findings",)
