"""The metrics are pycocoevalcap's to the last digit, for any weights, and nothing that Java does takes them away."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest

from mcsam_jax.metrics.meteor import JavaUnavailable, Meteor, ptb_tokenize
from mcsam_jax.metrics.ngram_stats import longest_common_subsequence
from mcsam_jax.metrics.nlg import METRICS, compute_nlg, aggregate_nlg

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
  scores = compute_nlg([pair["reference"] for pair in expected["pairs"]],
                      [pair["hypothesis"] for pair in expected["pairs"]], metrics=WITHOUT_JAVA)
  for metric in WITHOUT_JAVA:
    assert scores.corpus[metric] == pytest.approx(expected["corpus"][metric], rel=1e-12)
  for metric in ("BLEU_4", "ROUGE_L", "CIDEr"):
    np.testing.assert_allclose(scores.per_study[metric], expected["per_pair"][metric], rtol=1e-9, atol=1e-15)


@needs_java
def test_meteor_agrees_with_reference_numbers(meteor, expected):
  scores = compute_nlg([pair["reference"] for pair in expected["pairs"]],
                      [pair["hypothesis"] for pair in expected["pairs"]], meteor, ["METEOR"])
  assert scores.corpus["METEOR"] == pytest.approx(expected["corpus"]["METEOR"], abs=1e-6)
  np.testing.assert_allclose(scores.per_study["METEOR"], expected["per_pair"]["METEOR"], atol=1e-6)


@needs_java
def test_meteor_sums_as_its_java_does(meteor, expected):
  """Also where texts are equal, short, or share nothing: its own command for a corpus gives the same."""
  references = [pair["reference"] for pair in expected["pairs"][:40]] + ["a", "the heart is big", "no effusion"]
  hypotheses = [pair["hypothesis"] for pair in expected["pairs"][:40]] + ["a", "the heart is big", "clear lungs"]
  found = meteor.score(references, hypotheses)
  corpus, per_study = meteor._process.compute_score(               # pycocoevalcap's own, in the same process
      {i: [text] for i, text in enumerate(references)}, {i: [text] for i, text in enumerate(hypotheses)})
  assert found[0] == pytest.approx(corpus, abs=1e-14) and found[1] == pytest.approx(per_study, abs=1e-14)


def drawn_reports(seed, count):
  rng = np.random.default_rng(seed)
  words = np.array("the heart lungs are is clear normal . no effusion seen".split())
  return [" ".join(rng.choice(words, rng.integers(0, 30))) for _ in range(count)]


@pytest.mark.parametrize("count", [1, 40])
def test_agrees_with_pycocoevalcap_on_any_text(count):
  from pycocoevalcap.bleu.bleu import Bleu
  from pycocoevalcap.cider.cider import Cider
  from pycocoevalcap.rouge.rouge import Rouge
  references, hypotheses = drawn_reports(0, count), drawn_reports(1, count)
  hypotheses[0] = ""
  truth, said = ({i: [text] for i, text in enumerate(reports)} for reports in (references, hypotheses))
  found = compute_nlg(references, hypotheses, metrics=WITHOUT_JAVA)
  bleus = zip(*Bleu(4).compute_score(truth, said, verbose=0))
  peers = {**{f"BLEU_{n}": both for n, both in enumerate(bleus, 1)},
           "ROUGE_L": Rouge().compute_score(truth, said), "CIDEr": Cider().compute_score(truth, said)}
  for metric, (corpus, per_study) in peers.items():
    assert found.corpus[metric] == pytest.approx(corpus, rel=1e-12, abs=1e-15)
    np.testing.assert_allclose(found.per_study[metric], per_study, rtol=1e-12, atol=1e-15)


def test_every_process_finds_the_same_bits():
  code = ("from mcsam_jax.metrics.nlg import nlg_scores; from test_nlg import WITHOUT_JAVA, drawn_reports\n"
          "found = nlg_scores(drawn_reports(4, 60), drawn_reports(5, 60), metrics=WITHOUT_JAVA)\n"
          "print({name: float(value).hex() for name, value in found.corpus.items()})")
  here = pathlib.Path(__file__)
  path = os.pathsep.join(map(str, (here.parents[3], here.parent)))
  found = {subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": path}).stdout for seed in "1234"}
  assert len(found) == 1 and "CIDEr" in found.pop()


def test_weights_count_a_study_as_often_as_if_it_stood_there_so_often():
  references, hypotheses, times = drawn_reports(2, 12), drawn_reports(3, 12), np.arange(12) % 4
  counts = compute_nlg(references, hypotheses, metrics=WITHOUT_JAVA).counts
  found = aggregate_nlg(counts, times.astype(float))
  repeated = np.repeat(np.arange(12), times)
  listed = compute_nlg([references[i] for i in repeated], [hypotheses[i] for i in repeated], metrics=WITHOUT_JAVA)
  for metric in ("BLEU_1", "BLEU_2", "BLEU_3", "BLEU_4", "ROUGE_L"):
    assert found[metric] == pytest.approx(listed.corpus[metric], rel=1e-9)
  assert found["CIDEr"] == pytest.approx(counts.cider[repeated].mean())           # its idf stays that of all 12
  assert found["METEOR"] is None


def test_longest_common_subsequence():
  assert longest_common_subsequence("a b c b d a b".split(), "b d c a b a".split()) == 4      # b c b a: the textbook's
  assert longest_common_subsequence([], ["a"]) == longest_common_subsequence(["a"], []) == longest_common_subsequence(["a"], ["b"]) == 0
  rng = np.random.default_rng(0)
  for _ in range(30):
    first, second = (list(rng.integers(0, 4, rng.integers(0, 90))) for _ in range(2))
    table = np.zeros((len(first) + 1, len(second) + 1), int)
    for i, j in np.ndindex(len(first), len(second)):
      table[i + 1, j + 1] = table[i, j] + 1 if first[i] == second[j] else max(table[i, j + 1], table[i + 1, j])
    assert longest_common_subsequence(first, second) == table[-1, -1]


def test_known_answers():
  same = compute_nlg(REFERENCES, REFERENCES, metrics=WITHOUT_JAVA)
  for metric in ("BLEU_1", "BLEU_4", "ROUGE_L"):
    assert same.corpus[metric] == pytest.approx(1.0, abs=1e-6)
  assert same.corpus["CIDEr"] == pytest.approx(10.0)
  # 4 of 5 words and 2 of 4 pairs stand in the reference: (4/5 * 2/4) ** 1/2.
  one = compute_nlg(["a b c d e"], ["a b x d e"], metrics=["BLEU_1", "BLEU_2", "ROUGE_L"])
  assert one.corpus["BLEU_1"] == pytest.approx(0.8, abs=1e-6)
  assert one.corpus["BLEU_2"] == pytest.approx(0.4 ** 0.5, abs=1e-6)
  assert one.corpus["ROUGE_L"] == pytest.approx(0.8)
  # Half as long as the reference and all of it right: the brevity penalty exp(1 - 2) is left.
  half = compute_nlg(["a b c d"], ["a b"], metrics=["BLEU_1"])
  assert half.corpus["BLEU_1"] == pytest.approx(np.exp(-1), abs=1e-6)


def test_order_of_studies_does_not_matter():
  order = [2, 0, 1]
  there = compute_nlg(REFERENCES, HYPOTHESES, metrics=WITHOUT_JAVA)
  back = compute_nlg([REFERENCES[i] for i in order], [HYPOTHESES[i] for i in order], metrics=WITHOUT_JAVA)
  for metric in WITHOUT_JAVA:
    assert back.corpus[metric] == pytest.approx(there.corpus[metric], rel=1e-12)
    np.testing.assert_allclose(back.per_study[metric], there.per_study[metric][order], rtol=1e-12)


def test_empty_hypotheses_score_zero_and_spoil_nothing():
  scores = compute_nlg(REFERENCES, ["", HYPOTHESES[1], HYPOTHESES[2]], metrics=WITHOUT_JAVA)
  for metric in WITHOUT_JAVA:
    assert scores.per_study[metric][0] == pytest.approx(0, abs=1e-9)
    assert np.isfinite(scores.per_study[metric]).all()


def test_unequal_lists_are_refused():
  with pytest.raises(ValueError, match="3 references and 2 hypotheses"):
    compute_nlg(REFERENCES, HYPOTHESES[:2])
  with pytest.raises(ValueError, match="0 references"):
    compute_nlg([], [])


def test_says_nothing(capfd):
  compute_nlg(REFERENCES, HYPOTHESES, metrics=WITHOUT_JAVA)
  assert capfd.readouterr() == ("", "")


@needs_java
def test_meteor_survives_texts_that_break_its_lines(meteor):
  references = ["the heart is big", "", "lungs are clear", "x"]
  hypotheses = ["", "", "lungs ||| are\nclear\r\n", "|||"]
  _, per_study = meteor.score(references, hypotheses)
  assert per_study == [0, 0, 1, 0]


def test_without_java_only_meteor_is_missing(monkeypatch, tmp_path):
  monkeypatch.setenv("PATH", str(tmp_path))
  scores = compute_nlg(REFERENCES, HYPOTHESES)
  assert scores.corpus["METEOR"] is None and scores.per_study["METEOR"] is None
  assert scores.notes == {"METEOR": "METEOR needs Java, which is not installed"}
  others = compute_nlg(REFERENCES, HYPOTHESES, metrics=WITHOUT_JAVA).corpus
  assert {metric: scores.corpus[metric] for metric in WITHOUT_JAVA} == others
  with pytest.raises(JavaUnavailable, match="not installed"):
    ptb_tokenize(REFERENCES)


@pytest.mark.parametrize("script", ["exit 1", "read line; echo what; exit 0", "echo Bad option >&2; exit 1"])
def test_java_that_crashes_loses_meteor_alone(script, monkeypatch, tmp_path):
  fake_java(tmp_path, script, monkeypatch)
  scores = compute_nlg(REFERENCES, HYPOTHESES)
  assert scores.corpus["METEOR"] is None and "ended early" in scores.notes["METEOR"]
  assert scores.corpus["BLEU_1"] > 0
  with pytest.raises(JavaUnavailable):
    ptb_tokenize(REFERENCES)


def test_java_that_hangs_is_ended_and_not_asked_again(monkeypatch, tmp_path):
  fake_java(tmp_path, "exec sleep 60", monkeypatch)
  with Meteor(start_seconds=0.5) as process:
    for _ in range(2):
      began = time.monotonic()
      assert "took more than" in compute_nlg(REFERENCES, HYPOTHESES, process).notes["METEOR"]
      assert time.monotonic() - began < 10
  with pytest.raises(JavaUnavailable, match="took more than"):
    ptb_tokenize(REFERENCES, seconds=0.5)


def test_the_process_ends_with_its_block(monkeypatch, tmp_path):
  counts = "2 4 0 0 2 2 0 0 0 0 0 0 0 0 0 0 0 0 0 0 1 2 2"         # 2 of 4 words, in one piece
  fake_java(tmp_path, f"read pair; echo {counts}; exec sleep 60", monkeypatch)
  expected = 1 / (0.15 / 1 + 0.85 / 0.5) * (1 - 0.6 * 0.5 ** 0.2)
  with Meteor() as process:
    score, per_study = process.score(["a b c d"] * 2, ["a b"] * 2)        # a pair is asked for once
    assert [score, *per_study] == pytest.approx([expected] * 3)
    child = process._process.meteor_p
    assert child.poll() is None
  assert child.poll() is not None
