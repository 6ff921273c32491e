"""Constant reports agree with a search by pycocoevalcap; nearest images are found where they were planted."""

import json
from typing import cast

import numpy as np
import pytest

from input_pipeline.tokenizer import WordTokenizer
from mcsam_jax.evaluation import baselines
from mcsam_jax.evaluation.baselines import (
  find_constants,
  find_label_constants,
  find_medoid,
  find_nearest,
  nearest_reports,
)
from mcsam_jax.labelers.labeler import Labeler
from mcsam_jax.metrics.clinical_f1 import compute_clinical_f1
from mcsam_jax.metrics.constant_report import compute_word_f1, score_constant_reports
from mcsam_jax.metrics.nlg import compute_nlg, METRICS

WITHOUT_JAVA = [metric for metric in METRICS if metric != "METEOR"]


def draw_reports(seed, count):
  """Returns random reports of 0 to 30 words from a small vocabulary."""
  rng = np.random.default_rng(seed)
  words = np.array("the heart lungs are is clear normal . no effusion seen".split())
  return [" ".join(rng.choice(words, rng.integers(0, 30))) for _ in range(count)]


def test_scores_of_constant_reports_are_those_of_pycocoevalcap():
  references = draw_reports(0, 25)
  candidates = [*draw_reports(1, 12), "", ".", "words of another vocabulary", "the the the the ."]
  scores = score_constant_reports(candidates, references)
  for i, report in enumerate(candidates):
    expected = compute_nlg(references, [report] * len(references), metrics=WITHOUT_JAVA).corpus
    fast = {metric: scores[metric][i] for metric in WITHOUT_JAVA}
    assert fast == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_word_f1_is_that_computed_by_hand():
  # "a a b" shares a, a with the first reference and b with the second: 3 of 2 * 3 words and of 4 + 1 words.
  assert compute_word_f1(["a a b", "z"], ["a a a c", "b"]) == pytest.approx([2 * 3 / (5 + 6), 0])


@pytest.fixture
def no_java(monkeypatch, tmp_path):
  monkeypatch.setenv("PATH", str(tmp_path))


def test_the_constant_report_of_each_metric_is_the_best_on_val(no_java):
  train, val = draw_reports(2, 40), draw_reports(3, 20)
  tokenizer = WordTokenizer.train(train, "iu_xray", 1, False)
  chosen = find_constants(train, val, tokenizer, "iu_xray", 60)
  assert json.loads(json.dumps(chosen)) == chosen
  assert list(chosen) == list(METRICS) and chosen["METEOR"] is None
  references = [tokenizer.decode(tokenizer.encode(text)) for text in val]
  scores = {report: compute_nlg(references, [report] * len(val), metrics=WITHOUT_JAVA).corpus
            for report in {tokenizer.decode(tokenizer.encode(text)) for text in train if text}}
  for metric in WITHOUT_JAVA:
    best = chosen[metric]
    assert best is not None
    assert best["val_score"] == pytest.approx(max(cast(float, corpus[metric]) for corpus in scores.values()))
    assert scores[best["report"]][metric] == pytest.approx(best["val_score"])


def test_constant_reports_do_not_depend_on_the_order_of_the_data(no_java):
  train, val = draw_reports(2, 40), draw_reports(3, 20)
  tokenizer = WordTokenizer.train(train, "iu_xray", 1, False)
  assert (find_constants(train[::-1], val[::-1], tokenizer, "iu_xray", 60)
          == find_constants(train, val, tokenizer, "iu_xray", 60))


def test_of_many_reports_the_frequent_and_the_typical_ones_are_tried(no_java, monkeypatch):
  monkeypatch.setattr(baselines, "MAX_CANDIDATES", 4)
  monkeypatch.setattr(baselines, "MAX_REFERENCES", 3)
  common, typical = "rare words only .", "the heart is normal ."
  train = [common] * 5 + [typical] + draw_reports(4, 50)
  tokenizer = WordTokenizer.train(train, "iu_xray", 1, False)
  chosen = find_constants(train, [typical] * 30, tokenizer, "iu_xray", 60)
  assert chosen["BLEU_4"] == {"report": typical, "val_score": pytest.approx(1, abs=1e-6)}


def test_the_constant_report_of_the_findings_is_the_best_on_val(monkeypatch):
  words = {"Edema": "effusion", "Fracture": "heart", "Pneumonia": "clear", "Lung Lesion": "absent"}
  def read_labels(report):
    return {finding: ("absent", "positive")[word in report.split()] for finding, word in words.items()}
  train, val = draw_reports(2, 40), draw_reports(3, 20)
  tokenizer = WordTokenizer.train(train, "iu_xray", 1, False)
  arguments = tokenizer, "iu_xray", 60, Labeler.from_function("words", tuple(words), read_labels)
  chosen = find_label_constants(train, val, *arguments)
  scores = {report: compute_clinical_f1(list(map(read_labels, val)), [read_labels(report)] * len(val), tuple(words))
            for report in {tokenizer.decode(tokenizer.encode(text)) for text in train}}
  for average in ("micro", "macro"):
    best = chosen[f"{average}_F1"]
    assert best["val_score"] == pytest.approx(max(labels[average]["f1"] for labels in scores.values()))
    assert scores[best["report"]][average]["f1"] == pytest.approx(best["val_score"])
  assert find_label_constants(train[::-1], val[::-1], *arguments) == chosen
  known = [read_labels("heart")] * len(val)
  assert "heart" in find_label_constants(train, val, *arguments, known)["micro_F1"]["report"]
  monkeypatch.setattr(baselines, "MAX_LABELED", 4)
  assert find_label_constants(train, val, *arguments)["micro_F1"]["val_score"] > 0


def test_planted_neighbors_are_found_nearest_first():
  rng = np.random.default_rng(0)
  train = rng.standard_normal((700, 16))
  features = train[[5, 400, 699]] * [[3.0], [0.5], [10.0]]         # the cosine ignores lengths
  train[17] = train[5] + 0.05 * train[6]
  nearest = find_nearest(features, train, 4)
  assert nearest[:, 0].tolist() == [5, 400, 699]
  assert nearest[0, 1] == 17
  assert find_nearest(features, train[:2], 30).shape == (3, 2)


def test_images_of_the_same_subject_are_skipped():
  train = np.array([[1, 0], [1, 0.1], [1, 0.2], [0, 1]])
  reports, subjects = ["own", "own again", "alike", "unlike"], ["a", "a", "b", "c"]
  nearest = find_nearest(train[:1], train, 3, ["a"], subjects)
  assert nearest.tolist() == [[2, 3, -1]]
  assert find_nearest(train[:1], train, 2, ["d"], subjects).tolist() == [[0, 1]]
  assert find_nearest(train[:1], train, 2).tolist() == [[0, 1]]
  assert nearest_reports(train, train, reports)[0] == reports
  assert nearest_reports(train, train, reports, subjects, subjects)[0] == ["alike", "alike", "own again", "alike"]
  assert nearest_reports(train, train, reports, ["a"] * 4, ["a"] * 4) == ([""] * 4, [""] * 4)


def test_the_medoid_is_the_report_that_shares_most_words():
  assert find_medoid(["a b", "a b c d", "c d e", "x"]) == 1
  assert find_medoid(["a a a", "a", "a a a"]) == 0                      # ties: the nearest


def test_nearest_and_medoid_reports_of_two_clusters():
  # Two clusters of images; in each, the nearest image has the only unusual report.
  directions = np.eye(2).repeat(31, 0)
  train = directions + 0.01 * np.arange(62)[:, None]
  reports = ["odd one"] + ["clear lungs ."] * 30 + ["strange one"] + ["big heart ."] * 30
  near, typical = nearest_reports(train[[0, 31]], train, reports)
  assert near == ["odd one", "strange one"]
  assert typical == ["clear lungs .", "big heart ."]
  with pytest.raises(ValueError, match="62 train images for 3 reports"):
    nearest_reports(train[:2], train, reports[:3])
