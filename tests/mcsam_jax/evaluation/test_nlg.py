"""The metrics are pycocoevalcap's to the last digit, and nothing that Java does takes them away."""

import json
import os
import shutil
import time

import numpy as np
import pytest

from mcsam_jax.evaluation.java import JavaUnavailable, Meteor, ptb_tokenize
from mcsam_jax.evaluation.nlg import METRICS, nlg_scores

WITHOUT_JAVA = [metric for metric in METRICS if metric != "METEOR"]
REFERENCES = ["the heart is big .", "no effusion is seen .", "lungs are clear . heart is normal ."]
HYPOTHESES = ["the heart is normal .", "small left effusion .", "lungs are clear . heart is big ."]

needs_java = pytest.mark.skipif(not shutil.which("java"), reason="METEOR: Java is not installed")


@pytest.fixture(scope="module")
def meteor():
  with Meteor() as process:
    yield process


@pytest.fixture(scope="module")
def expected(shared):
  return json.loads(shared("parity/nlg_scores.json").read_text())


def fake_java(folder, script, monkeypatch):
  """Puts a program named java first, which does what `script` says."""
  program = folder / "java"
  program.write_text(f"#!/bin/sh\n{script}\n")
  program.chmod(0o755)
  monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)


def test_agrees_with_reference_numbers(expected):
  scores = nlg_scores([pair["reference"] for pair in expected["pairs"]],
                      [pair["hypothesis"] for pair in expected["pairs"]], metrics=WITHOUT_JAVA)
  for metric in WITHOUT_JAVA:
    assert scores.corpus[metric] == pytest.approx(expected["corpus"][metric], rel=1e-12)
  for metric in ("BLEU_4", "ROUGE_L", "CIDEr"):
    np.testing.assert_allclose(scores.per_study[metric], expected["per_pair"][metric], rtol=1e-9, atol=1e-15)


@needs_java
def test_meteor_agrees_with_reference_numbers(meteor, expected):
  scores = nlg_scores([pair["reference"] for pair in expected["pairs"]],
                      [pair["hypothesis"] for pair in expected["pairs"]], meteor, ["METEOR"])
  assert scores.corpus["METEOR"] == pytest.approx(expected["corpus"]["METEOR"], abs=1e-6)
  np.testing.assert_allclose(scores.per_study["METEOR"], expected["per_pair"]["METEOR"], atol=1e-6)


def test_known_answers():
  same = nlg_scores(REFERENCES, REFERENCES, metrics=WITHOUT_JAVA)
  for metric in ("BLEU_1", "BLEU_4", "ROUGE_L"):
    assert same.corpus[metric] == pytest.approx(1.0, abs=1e-6)
  assert same.corpus["CIDEr"] == pytest.approx(10.0)
  # 4 of 5 words and 2 of 4 pairs stand in the reference: (4/5 * 2/4) ** 1/2.
  one = nlg_scores(["a b c d e"], ["a b x d e"], metrics=["BLEU_1", "BLEU_2", "ROUGE_L"])
  assert one.corpus["BLEU_1"] == pytest.approx(0.8, abs=1e-6)
  assert one.corpus["BLEU_2"] == pytest.approx(0.4 ** 0.5, abs=1e-6)
  assert one.corpus["ROUGE_L"] == pytest.approx(0.8)
  # Half as long as the reference and all of it right: the brevity penalty exp(1 - 2) is left.
  half = nlg_scores(["a b c d"], ["a b"], metrics=["BLEU_1"])
  assert half.corpus["BLEU_1"] == pytest.approx(np.exp(-1), abs=1e-6)


def test_order_of_studies_does_not_matter():
  order = [2, 0, 1]
  there = nlg_scores(REFERENCES, HYPOTHESES, metrics=WITHOUT_JAVA)
  back = nlg_scores([REFERENCES[i] for i in order], [HYPOTHESES[i] for i in order], metrics=WITHOUT_JAVA)
  for metric in WITHOUT_JAVA:
    assert back.corpus[metric] == pytest.approx(there.corpus[metric], rel=1e-12)
    np.testing.assert_allclose(back.per_study[metric], there.per_study[metric][order], rtol=1e-12)


def test_empty_hypotheses_score_zero_and_spoil_nothing():
  scores = nlg_scores(REFERENCES, ["", HYPOTHESES[1], HYPOTHESES[2]], metrics=WITHOUT_JAVA)
  for metric in WITHOUT_JAVA:
    assert scores.per_study[metric][0] == pytest.approx(0, abs=1e-9)
    assert np.isfinite(scores.per_study[metric]).all()


def test_unequal_lists_are_refused():
  with pytest.raises(ValueError, match="3 references and 2 hypotheses"):
    nlg_scores(REFERENCES, HYPOTHESES[:2])
  with pytest.raises(ValueError, match="0 references"):
    nlg_scores([], [])


def test_says_nothing(capfd):
  nlg_scores(REFERENCES, HYPOTHESES, metrics=WITHOUT_JAVA)
  assert capfd.readouterr() == ("", "")


@needs_java
def test_meteor_survives_texts_that_break_its_lines(meteor):
  references = ["the heart is big", "", "lungs are clear", "x"]
  hypotheses = ["", "", "lungs ||| are\nclear\r\n", "|||"]
  _, per_study = meteor.score(references, hypotheses)
  assert per_study == [0, 0, 1, 0]


def test_without_java_only_meteor_is_missing(monkeypatch, tmp_path):
  monkeypatch.setenv("PATH", str(tmp_path))
  scores = nlg_scores(REFERENCES, HYPOTHESES)
  assert scores.corpus["METEOR"] is None and scores.per_study["METEOR"] is None
  assert scores.notes == {"METEOR": "METEOR needs Java, which is not installed"}
  others = nlg_scores(REFERENCES, HYPOTHESES, metrics=WITHOUT_JAVA).corpus
  assert {metric: scores.corpus[metric] for metric in WITHOUT_JAVA} == others
  with pytest.raises(JavaUnavailable, match="not installed"):
    ptb_tokenize(REFERENCES)


@pytest.mark.parametrize("script", ["exit 1", "read line; echo what; exit 0", "echo Bad option >&2; exit 1"])
def test_java_that_crashes_loses_meteor_alone(script, monkeypatch, tmp_path):
  fake_java(tmp_path, script, monkeypatch)
  scores = nlg_scores(REFERENCES, HYPOTHESES)
  assert scores.corpus["METEOR"] is None and "ended early" in scores.notes["METEOR"]
  assert scores.corpus["BLEU_1"] > 0
  with pytest.raises(JavaUnavailable):
    ptb_tokenize(REFERENCES)


def test_java_that_hangs_is_ended_and_not_asked_again(monkeypatch, tmp_path):
  fake_java(tmp_path, "exec sleep 60", monkeypatch)
  with Meteor(start_seconds=0.5) as process:
    for _ in range(2):
      began = time.monotonic()
      assert "took more than" in nlg_scores(REFERENCES, HYPOTHESES, process).notes["METEOR"]
      assert time.monotonic() - began < 10
  with pytest.raises(JavaUnavailable, match="took more than"):
    ptb_tokenize(REFERENCES, seconds=0.5)


def test_the_process_ends_with_its_block(monkeypatch, tmp_path):
  answers = "read pair; echo counts; read question; echo 0.25; echo 0.5; exec sleep 60"
  fake_java(tmp_path, answers, monkeypatch)
  with Meteor() as process:
    assert process.score(["a b"], ["a b"]) == (0.5, [0.25])
    child = process._process.meteor_p
    assert child.poll() is None
  assert child.poll() is not None
