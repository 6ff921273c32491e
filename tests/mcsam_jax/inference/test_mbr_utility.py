"""The composed utility of minimum Bayes risk decoding chooses as its formula says."""

import numpy as np
import pytest

from input_pipeline.tokenizer import WordTokenizer
from mcsam_jax.findings import FINDINGS
from mcsam_jax.inference.mbr_utility import MbrUtility
from mcsam_jax.labelers.rules import label_report
from mcsam_jax.metrics.cider import CiderCorpus
from mcsam_jax.metrics.rouge import compute_rouge_l
from tests.testing.tiny import make_config

NORMAL, EFFUSION, EDEMA = ("the lungs are clear . the heart is normal .", "there is a pleural effusion .",
                           "there is pulmonary edema .")
TRAIN = [NORMAL, EFFUSION, EDEMA, "the lungs are clear . no effusion .", NORMAL]
TOKENIZER = WordTokenizer.train(TRAIN, "iu_xray", 1, False)


def make_utility(train=TRAIN, **fields):
  """Returns the utility with fields of `decode` (or `model__...`), with `__` for a dot."""
  config = make_config(**{name if name.startswith("model__") else f"decode__{name}": value
                          for name, value in fields.items()})
  return MbrUtility(config, TOKENIZER, train)


def test_the_default_is_the_expected_cider_over_all_samples():
  rng = np.random.default_rng(0)
  corpus = CiderCorpus([TOKENIZER.clean(report).split() for report in TRAIN], min_documents=2)
  utility = make_utility()
  for _ in range(20):
    samples = [TRAIN[index] for index in rng.integers(0, len(TRAIN), 8)]
    expected = corpus.compare_pairwise(corpus.encode([TOKENIZER.clean(sample).split() for sample in samples])).mean(1)
    chosen = utility.choose(samples, None)
    assert chosen.train_report is None and samples[chosen.sample] == samples[expected.argmax()]
    assert chosen.sample == samples.index(samples[chosen.sample])                    # the first of equal ones


def test_findings_are_stated_if_their_share_exceeds_the_threshold():
  samples = [NORMAL] * 5 + [EFFUSION] * 3 + [EDEMA]
  chosen = make_utility(utility__findings=3.0).choose(samples, None)
  assert samples[chosen.sample] == EFFUSION                                                      # 3/9 > .2 > 1/9
  stated = {finding: prob for finding, prob in chosen.finding_probs.items() if prob}
  assert stated == {"Pleural Effusion": pytest.approx(3 / 9, abs=1e-4), "Edema": pytest.approx(1 / 9, abs=1e-4)}
  high = make_utility(utility__findings=3.0, utility__finding_threshold=0.4)
  assert samples[high.choose(samples, None).sample] == NORMAL
  assert samples[make_utility().choose(samples, None).sample] == NORMAL


def test_the_utility_is_the_formula():
  fields = {"retrieval_weight": 0.3, "retrieved_candidates": 2, "utility__cider": 0.7, "utility__ngram_overlap": 0.4,
            "utility__overlap_recall": 0.7, "utility__rouge_l": 0.6, "utility__findings": 0.2,
            "utility__finding_threshold": 0.1, "utility__rarity_exponent": 0.5, "utility__head_weight": 0.25,
            "model__findings_head": True}
  train = [*TRAIN, EFFUSION, EFFUSION, EFFUSION]                                 # four state effusion, one edema
  utility, rng = make_utility(train, **fields), np.random.default_rng(1)
  rarity = {"Pleural Effusion": 1.0, "Edema": 2.0}
  head = {finding: 0.15 for finding in FINDINGS} | {"Edema": 0.3}
  corpus = CiderCorpus([TOKENIZER.clean(report).split() for report in train], 2, 0.7, 0.4, 0.7)
  words = lambda report: TOKENIZER.clean(report).split()

  def states(report):
    return {finding for finding, label in label_report(report).items() if label == "positive"} - {"No Finding"}

  for _ in range(20):
    samples, probs = [TRAIN[index] for index in rng.integers(0, 4, 6)], rng.random(len(train))
    probs /= probs.sum()
    similarity = {pair: corpus.compare_pairwise(corpus.encode([words(pair[0]), words(pair[1])]))[0, 1]
                  + 0.6 * compute_rouge_l(*map(TOKENIZER.clean, pair))
                  for pair in {(a, b) for a in TRAIN for b in TRAIN}}
    expect = lambda f: 0.7 * np.mean([f(sample) for sample in samples]) + 0.3 * sum(
        p * f(report) for p, report in zip(probs, train))
    candidates = samples + [train[index] for index in np.argsort(-probs)[:2]]
    known = {finding: 0.75 * expect(lambda report: finding in states(report)) + 0.25 * head[finding]
             for finding in rarity}
    expected = [expect(lambda report: similarity[candidate, report])
                + 0.2 * sum(rarity[finding] * known[finding] - 0.1 for finding in states(candidate))
                for candidate in candidates]
    choice = utility.choose(samples, probs, head)
    assert {finding: choice.finding_probs[finding] for finding in known} == pytest.approx(known, abs=1e-4)
    chosen = train[choice.train_report] if choice.sample is None else samples[choice.sample]
    assert expected[candidates.index(chosen)] == pytest.approx(max(expected))


def test_a_retrieved_report_may_be_chosen_itself():
  probs = np.array([0.0, 0.9, 0.1, 0.0, 0.0])
  chosen = make_utility(retrieval_weight=0.9, retrieved_candidates=1).choose([NORMAL, EDEMA], probs)
  assert chosen.sample is None and chosen.train_report == 1 and chosen.finding_probs is None
  assert make_utility(retrieval_weight=0.9).choose([NORMAL, EDEMA], probs).train_report is None
