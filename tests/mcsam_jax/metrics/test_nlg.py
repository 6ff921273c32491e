"""The metrics agree with pycocoevalcap for any weights, and a Java failure costs METEOR alone."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import threading
import time

import numpy as np
from pycocoevalcap.meteor import meteor as pycoco_meteor
import pytest

from mcsam_jax.metrics import meteor as meteor_module
from mcsam_jax.metrics.meteor import JavaUnavailable, Meteor, ptb_tokenize
from mcsam_jax.metrics.nlg import aggregate_nlg, compute_nlg, METRICS
from mcsam_jax.metrics.rouge import compute_rouge_l, find_lcs_length, RougeReferences

OWN_METEOR = True
WITHOUT_JAVA = [metric for metric in METRICS if metric != "METEOR"]
REFERENCES = ["the heart is big .", "no effusion is seen .", "lungs are clear . heart is normal ."]
HYPOTHESES = ["the heart is normal .", "small left effusion .", "lungs are clear . heart is big ."]

needs_java = pytest.mark.skipif(not shutil.which("java"), reason="METEOR: Java is not installed")


@pytest.fixture(scope="module")
def meteor(tmp_path_factory):
  """A METEOR that runs in a folder with blanks and letters outside ASCII, in a locale that knows ASCII alone."""
  folder = tmp_path_factory.mktemp("an installed package \u00e9\u00fc \u80ba", numbered=False)
  for name in (pycoco_meteor.METEOR_JAR, "data"):
    (folder / name).symlink_to(pathlib.Path(pycoco_meteor.__file__).absolute().with_name(name))
  with pytest.MonkeyPatch.context() as patch, Meteor() as process:
    patch.setattr(meteor_module, "_JAR_FOLDER", folder)
    patch.setenv("LC_ALL", "C")
    yield process


class PycocoMeteor(pycoco_meteor.Meteor):
  """pycocoevalcap's METEOR on a process that runs already."""

  def __init__(self, process):
    self.meteor_p, self.lock = process, threading.Lock()

  def __del__(self):
    """Leaves the process to the fixture."""


@pytest.fixture(scope="module")
def expected(shared):
  return json.loads(shared("parity/nlg_scores.json").read_text())


def fake_java(folder, script, monkeypatch):
  """Puts a program named java, which runs a shell script, first in the PATH."""
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
def test_summed_meteor_statistics_give_the_score_of_its_java(meteor, expected):
  """Compares with pycocoevalcap's call for a corpus, also for equal and short texts and those without a match."""
  references = [pair["reference"] for pair in expected["pairs"][:40]] + ["a", "the heart is big", "no effusion"]
  hypotheses = [pair["hypothesis"] for pair in expected["pairs"][:40]] + ["a", "the heart is big", "clear lungs"]
  score, scores = meteor.score(references, hypotheses)
  corpus, per_study = PycocoMeteor(meteor._process).compute_score(
      {i: [text] for i, text in enumerate(references)}, {i: [text] for i, text in enumerate(hypotheses)})
  assert score == pytest.approx(corpus, abs=1e-14) and scores == pytest.approx(per_study, abs=1e-14)


def random_reports(seed, count):
  rng = np.random.default_rng(seed)
  words = np.array("the heart lungs are is clear normal . no effusion seen".split())
  return [" ".join(rng.choice(words, rng.integers(0, 30))) for _ in range(count)]


@pytest.mark.parametrize("count", [1, 40])
def test_agrees_with_pycocoevalcap_on_random_text(count):
  from pycocoevalcap.bleu.bleu import Bleu
  from pycocoevalcap.cider.cider import Cider
  from pycocoevalcap.rouge.rouge import Rouge
  references, hypotheses = random_reports(0, count), random_reports(1, count)
  hypotheses[0] = ""
  pairs = [{i: [text] for i, text in enumerate(reports)} for reports in (references, hypotheses)]
  scores = compute_nlg(references, hypotheses, metrics=WITHOUT_JAVA)
  bleus = zip(*Bleu(4).compute_score(*pairs, verbose=0))
  expected = {**{f"BLEU_{n}": bleu for n, bleu in enumerate(bleus, 1)},
              "ROUGE_L": Rouge().compute_score(*pairs), "CIDEr": Cider().compute_score(*pairs)}
  for metric, (corpus, per_study) in expected.items():
    assert scores.corpus[metric] == pytest.approx(corpus, rel=1e-12, abs=1e-15)
    np.testing.assert_allclose(scores.per_study[metric], per_study, rtol=1e-12, atol=1e-15)


def test_every_process_finds_the_same_bits():
  code = ("from test_nlg import compute_nlg, random_reports, WITHOUT_JAVA\n"
          "scores = compute_nlg(random_reports(4, 60), random_reports(5, 60), metrics=WITHOUT_JAVA)\n"
          "print({name: float(value).hex() for name, value in scores.corpus.items()})")
  here = pathlib.Path(__file__)
  path = os.pathsep.join(map(str, (here.parents[3], here.parent)))
  outputs = {subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": path}).stdout for seed in "1234"}
  assert len(outputs) == 1 and "CIDEr" in outputs.pop()


def test_a_weight_of_k_equals_repeating_the_study_k_times():
  references, hypotheses, repeats = random_reports(2, 12), random_reports(3, 12), np.arange(12) % 4
  stats = compute_nlg(references, hypotheses, metrics=WITHOUT_JAVA).stats
  weighted = aggregate_nlg(stats, repeats.astype(float))
  repeated = np.repeat(np.arange(12), repeats)
  expected = compute_nlg([references[i] for i in repeated], [hypotheses[i] for i in repeated], metrics=WITHOUT_JAVA)
  for metric in ("BLEU_1", "BLEU_2", "BLEU_3", "BLEU_4", "ROUGE_L"):
    assert weighted[metric] == pytest.approx(expected.corpus[metric], rel=1e-9)
  assert weighted["CIDEr"] == pytest.approx(stats.cider[repeated].mean())           # the idf remains that of all 12
  assert weighted["METEOR"] is None


def test_length_of_the_longest_common_subsequence():
  assert find_lcs_length("a b c b d a b".split(), "b d c a b a".split()) == 4      # b c b a
  assert find_lcs_length([], ["a"]) == find_lcs_length(["a"], []) == find_lcs_length(["a"], ["b"]) == 0
  rng = np.random.default_rng(0)
  for _ in range(30):
    first, second = (list(rng.integers(0, 4, rng.integers(0, 90))) for _ in range(2))
    table = np.zeros((len(first) + 1, len(second) + 1), int)
    for i, j in np.ndindex(len(first), len(second)):
      table[i + 1, j + 1] = table[i, j] + 1 if first[i] == second[j] else max(table[i, j + 1], table[i + 1, j])
    assert find_lcs_length(first, second) == table[-1, -1]


def test_known_answers():
  same = compute_nlg(REFERENCES, REFERENCES, metrics=WITHOUT_JAVA)
  for metric in ("BLEU_1", "BLEU_4", "ROUGE_L"):
    assert same.corpus[metric] == pytest.approx(1.0, abs=1e-6)
  assert same.corpus["CIDEr"] == pytest.approx(10.0)
  # 4 of 5 words and 2 of 4 bigrams are in the reference: (4/5 * 2/4) ** 1/2.
  one = compute_nlg(["a b c d e"], ["a b x d e"], metrics=["BLEU_1", "BLEU_2", "ROUGE_L"])
  assert one.corpus["BLEU_1"] == pytest.approx(0.8, abs=1e-6)
  assert one.corpus["BLEU_2"] == pytest.approx(0.4 ** 0.5, abs=1e-6)
  assert one.corpus["ROUGE_L"] == pytest.approx(0.8)
  # Half as long as the reference and correct: the score is the brevity penalty, exp(1 - 2).
  half = compute_nlg(["a b c d"], ["a b"], metrics=["BLEU_1"])
  assert half.corpus["BLEU_1"] == pytest.approx(np.exp(-1), abs=1e-6)


def test_order_of_studies_does_not_matter():
  order = [2, 0, 1]
  scores = compute_nlg(REFERENCES, HYPOTHESES, metrics=WITHOUT_JAVA)
  permuted = compute_nlg([REFERENCES[i] for i in order], [HYPOTHESES[i] for i in order], metrics=WITHOUT_JAVA)
  for metric in WITHOUT_JAVA:
    assert permuted.corpus[metric] == pytest.approx(scores.corpus[metric], rel=1e-12)
    np.testing.assert_allclose(permuted.per_study[metric], scores.per_study[metric][order], rtol=1e-12)


def test_empty_hypotheses_score_zero_and_leave_the_others_finite():
  scores = compute_nlg(REFERENCES, ["", HYPOTHESES[1], HYPOTHESES[2]], metrics=WITHOUT_JAVA)
  for metric in WITHOUT_JAVA:
    assert scores.per_study[metric][0] == pytest.approx(0, abs=1e-9)
    assert np.isfinite(scores.per_study[metric]).all()


def test_unequal_or_empty_lists_are_errors():
  with pytest.raises(ValueError, match="3 .* 2 "):
    compute_nlg(REFERENCES, HYPOTHESES[:2])
  with pytest.raises(ValueError, match="0 "):
    compute_nlg([], [])


def test_prints_nothing(capfd):
  compute_nlg(REFERENCES, HYPOTHESES, metrics=WITHOUT_JAVA)
  assert capfd.readouterr() == ("", "")


@needs_java
def test_meteor_scores_texts_that_its_protocol_cannot_transmit(meteor):
  references = ["the heart is big", "", "lungs are clear", "x"]
  hypotheses = ["", "", "lungs ||| are\nclear\r\n", "|||"]
  _, per_study = meteor.score(references, hypotheses)
  assert per_study == [0, 0, 1, 0]
  _, per_study = meteor.score(["\u00e9 lung", "caf\u00e9", "a \ud83d b"], ["\u00fc lung", "caf\u00e9", "a \ud83d b"])
  assert per_study[1:] == [1, 1] and 0 < per_study[0] < 0.5       # "\u00e9" and "\u00fc" are different words


def test_without_java_only_meteor_is_missing(monkeypatch, tmp_path):
  monkeypatch.setenv("PATH", str(tmp_path))
  scores = compute_nlg(REFERENCES, HYPOTHESES)
  assert scores.corpus["METEOR"] is None and scores.per_study["METEOR"] is None
  assert scores.notes.keys() == {"METEOR"} and "not installed" in scores.notes["METEOR"]
  others = compute_nlg(REFERENCES, HYPOTHESES, metrics=WITHOUT_JAVA).corpus
  assert {metric: scores.corpus[metric] for metric in WITHOUT_JAVA} == others
  with pytest.raises(JavaUnavailable, match="not installed"):
    ptb_tokenize(REFERENCES)


@pytest.mark.parametrize("script", ["exit 1", "read line; echo what; exit 0", "echo Bad option >&2; exit 1"])
def test_a_java_crash_costs_meteor_alone(script, monkeypatch, tmp_path):
  fake_java(tmp_path, script, monkeypatch)
  scores = compute_nlg(REFERENCES, HYPOTHESES)
  assert scores.corpus["METEOR"] is None and "ended early" in scores.notes["METEOR"]
  assert scores.corpus["BLEU_1"] > 0
  with pytest.raises(JavaUnavailable) as failure:
    ptb_tokenize(REFERENCES)
  if "Bad option" in script:                                            # Java's own words
    assert "Bad option" in scores.notes["METEOR"] and "Bad option" in str(failure.value)


def test_a_missing_jar_is_named(monkeypatch, tmp_path):
  monkeypatch.setattr(meteor_module, "_JAR_FOLDER", tmp_path)
  if shutil.which("java"):
    assert pycoco_meteor.METEOR_JAR in compute_nlg(REFERENCES, HYPOTHESES).notes["METEOR"]


def test_javas_words_hold_no_report(monkeypatch, tmp_path):
  fake_java(tmp_path, "read line; echo \"Error in $line\" >&2; echo Error: out of memory >&2; exit 1", monkeypatch)
  note = compute_nlg(REFERENCES, HYPOTHESES).notes["METEOR"]
  assert "out of memory" in note and "heart" not in note


def test_a_hanging_java_is_killed_and_not_started_again(monkeypatch, tmp_path):
  fake_java(tmp_path, "exec sleep 60", monkeypatch)
  with Meteor(start_seconds=0.5) as process:
    for _ in range(2):
      start = time.monotonic()
      assert "took more than" in compute_nlg(REFERENCES, HYPOTHESES, process).notes["METEOR"]
      assert time.monotonic() - start < 10
  with pytest.raises(JavaUnavailable, match="took more than"):
    ptb_tokenize(REFERENCES, seconds=0.5)


def test_the_process_ends_with_the_context(monkeypatch, tmp_path):
  counts = "2 4 0 0 2 2 0 0 0 0 0 0 0 0 0 0 0 0 0 0 1 2 2"         # 2 of 4 words, in one chunk
  fake_java(tmp_path, f"read pair; echo {counts}; exec sleep 60", monkeypatch)
  expected = 1 / (0.15 / 1 + 0.85 / 0.5) * (1 - 0.6 * 0.5 ** 0.2)
  with Meteor() as process:
    score, per_study = process.score(["a b c d"] * 2, ["a b"] * 2)        # an equal pair is sent once
    assert [score, *per_study] == pytest.approx([expected] * 3)
    child = process._process
    assert child.poll() is None
  assert child.poll() is not None


@pytest.mark.parametrize("max_words", [5, 64, 65, 200])
def test_rouge_of_all_pairs_at_once(max_words):
  rng = np.random.default_rng(max_words)
  hypotheses, references = ([" ".join(rng.choice(list("abcdef"), rng.integers(0, max_words + 1))) for _ in range(count)]
                            for count in (9, 12))
  references.append(" ".join(["a"] * max_words))
  split = lambda reports: [report.split(" ") for report in reports]
  expected = np.array([[compute_rouge_l(hypothesis, reference) for reference in references]
                       for hypothesis in hypotheses])
  together = RougeReferences(split(references))
  np.testing.assert_allclose(together.compare(split(hypotheses)), expected, rtol=1e-15)
  np.testing.assert_allclose(together.compare(split(hypotheses), np.array([12, 3])), expected[:, [12, 3]], rtol=1e-15)
  assert together.compare([[], ["not in any reference"]]).tolist() == [[0.0] * 13] * 2
