"""The dictionary of scores on a small split whose every number can be told beforehand."""

import json
import subprocess
import sys

import numpy as np
import pytest

from input_pipeline.datasets.findings import FINDINGS
from input_pipeline.tokenizer import WordTokenizer
from mcsam_jax.errors import UserError
from mcsam_jax.evaluation.baselines import constant_baseline
from mcsam_jax.evaluation.evaluate import other_studies
from mcsam_jax.evaluation.nlg import METRICS
from mcsam_jax.evaluation.scoring import format_table, paired_difference, score_reports

HEART, FLUID = "The heart is enlarged. No effusion.", "There is an effusion."
NORMAL = "Lungs are clear. No effusion."
TRAIN = [HEART, FLUID, NORMAL, NORMAL] * 3
SPLIT = [HEART, FLUID, NORMAL, NORMAL, FLUID, HEART]
WRITTEN = ["the heart is enlarged . no effusion .", "there is an effusion .",
           "lungs are clear . no effusion .", "lungs are clear . no effusion .",
           "there is an <unk> .", "the heart is enlarged . no effusion ."]


def read_labels(report):
  stated = {"Cardiomegaly": "enlarged" in report, "Pleural Effusion": "an effusion" in report}
  return {finding: "positive" if stated.get(finding) else "absent" for finding in FINDINGS}


@pytest.fixture(autouse=True)
def no_java(monkeypatch, tmp_path):
  monkeypatch.setenv("PATH", str(tmp_path))          # METEOR takes seconds to start and is tested by itself


@pytest.fixture
def arguments():
  tokenizer = WordTokenizer.train(TRAIN, "iu_xray", 1, False)
  directions = {HEART: [1, 0, 0], FLUID: [0, 1, 0], NORMAL: [0, 0, 1]}
  return dict(
      ids=[f"study-{i}" for i in range(6)], references=SPLIT, hypotheses=WRITTEN,
      shuffled_hypotheses=[WRITTEN[1:] + WRITTEN[:1], WRITTEN[3:] + WRITTEN[:3]], train_reports=TRAIN,
      pooled={"train": np.array([directions[report] for report in TRAIN]),
              "split": np.array([directions[report] for report in SPLIT])},
      constant=constant_baseline(TRAIN, SPLIT, tokenizer, "iu_xray", 60),
      tokenizer=tokenizer, cleaning="iu_xray", max_length=60, read_labels=read_labels)


def test_the_numbers(arguments):
  scores, per_study = score_reports(**arguments)
  assert json.loads(json.dumps(scores)) == scores
  assert scores["num_studies"] == len(per_study) == 6
  assert scores["nlg"]["raw"] is None and scores["nlg"]["r2gen"]["METEOR"] is None
  assert set(scores["notes"]) == {"raw", "METEOR"}
  assert scores["nlg"]["r2gen"]["BLEU_1"] == pytest.approx(39 / 40, abs=1e-6)       # one word of 40 is <unk>
  assert [row["ROUGE_L"] == pytest.approx(1) for row in per_study] == [True, True, True, True, False, True]
  assert scores["labels"]["micro"] == pytest.approx({"precision": 1, "recall": 3 / 4, "f1": 6 / 7})
  assert scores["distinct_reports"] == 4
  assert scores["most_common_share"] == pytest.approx(2 / 6)
  assert scores["copied_from_train"] == pytest.approx(5 / 6)
  assert scores["unk_share"] == pytest.approx({"reports": 1 / 6, "words": 1 / 40})
  assert scores["mean_length"] == pytest.approx(40 / 6)


def test_baselines_and_control(arguments):
  scores, _ = score_reports(**arguments)
  near = scores["baselines"]["nearest"]           # the features tell all
  assert near["nlg"]["BLEU_4"] == pytest.approx(1, abs=1e-6)
  assert near["labels"]["micro"]["f1"] == 1
  constant = scores["baselines"]["constant"]
  for metric in METRICS:
    if metric != "METEOR":                                  # val is the split here
      assert constant["nlg"][metric] == pytest.approx(constant["chosen_for"][metric]["val_score"])
  control = scores["controls"]["shuffled_images"]
  assert control["nlg"]["r2gen"]["CIDEr"] < scores["nlg"]["r2gen"]["CIDEr"]
  assert control["labels"]["micro"]["f1"] < scores["labels"]["micro"]["f1"]
  assert 0 < control["CIDEr_difference"]["low"] < control["CIDEr_difference"]["mean"]


def test_the_control_is_the_mean_over_its_permutations(arguments):
  lists = arguments["shuffled_hypotheses"]
  both, *single = (score_reports(**{**arguments, "shuffled_hypotheses": some})[0]["controls"]["shuffled_images"]
                   for some in (lists, lists[:1], lists[1:]))
  assert [control["num_permutations"] for control in (both, *single)] == [2, 1, 1]
  for metric in ("BLEU_4", "ROUGE_L", "CIDEr"):
    assert both["nlg"]["r2gen"][metric] == pytest.approx(
        np.mean([control["nlg"]["r2gen"][metric] for control in single]))
  assert both["CIDEr_difference"]["mean"] == pytest.approx(
      np.mean([control["CIDEr_difference"]["mean"] for control in single]))
  assert len({control["CIDEr_difference"]["mean"] for control in single}) == 2


def test_every_permutation_shows_each_study_another_one():
  others = other_studies(7, 4, seed=1)
  assert others.shape == (4, 7)
  assert all(sorted(row) == list(range(7)) for row in others)
  assert all(len(set(column)) == 4 and study not in column for study, column in enumerate(others.T.tolist()))
  assert other_studies(3, 10, seed=0).shape == (2, 3)              # there are no more


def test_a_report_is_copied_also_where_train_has_an_unknown_word(arguments):
  arguments["train_reports"] = [*TRAIN, "There is an oddity."]   # as the model saw it: there is an <unk> .
  arguments["pooled"]["train"] = np.concatenate([arguments["pooled"]["train"], [[1, 1, 1]]])
  assert score_reports(**arguments)[0]["copied_from_train"] == 1


def test_order_of_studies_does_not_matter(arguments):
  order = [3, 1, 5, 0, 2, 4]
  turned = {**arguments, **{name: [arguments[name][i] for i in order]
                            for name in ("ids", "references", "hypotheses")},
            "shuffled_hypotheses": [[reports[i] for i in order] for reports in arguments["shuffled_hypotheses"]],
            "pooled": {**arguments["pooled"], "split": arguments["pooled"]["split"][order]}}
  (there, rows), (back, turned_rows) = score_reports(**arguments), score_reports(**turned)
  for scores in (there, back):
    scores["flat"] = json.loads(json.dumps(scores), parse_float=lambda text: round(float(text), 9))
  assert back["flat"] == there["flat"]
  assert [row["CIDEr"] for row in turned_rows] == pytest.approx([rows[i]["CIDEr"] for i in order])


def test_restricted_data_leaves_no_text(arguments):
  text = json.dumps(score_reports(**arguments, restricted=True)[0])
  assert "effusion ." not in text and "study-" not in text
  assert "effusion ." in json.dumps(score_reports(**arguments)[0])


def test_known_labels_go_before_read_ones(arguments):
  known = [read_labels("")] * 6
  assert score_reports(**arguments, reference_labels=known)[0]["labels"]["micro"]["precision"] == 0


def test_without_a_labeler_labels_are_null(arguments):
  scores, _ = score_reports(**{**arguments, "read_labels": None})
  assert scores["labels"] is None and scores["baselines"]["nearest"]["labels"] is None
  assert "micro-F1" not in format_table(scores)


def test_the_table_shows_the_model_beside_the_rest(arguments):
  table = format_table(score_reports(**arguments)[0])
  rows = [line.split("  ")[0] for line in table.splitlines()]
  assert [name for name in rows if name][1:6] == [
      "this model", "images shuffled", "constant report", "nearest image's", "medoid of nearest"]
  assert "METEOR needs Java, which is not installed" in table


def test_bad_input_is_named(arguments):
  with pytest.raises(UserError, match="1 of 6 reports belong to a study that stands there already"):
    score_reports(**{**arguments, "ids": [*arguments["ids"][:5], "study-0"]})
  with pytest.raises(UserError, match="5 hypotheses for 6 studies"):
    score_reports(**{**arguments, "hypotheses": WRITTEN[:5]})
  with pytest.raises(UserError, match="the split is empty"):
    score_reports(**{**arguments, "ids": []})


def test_paired_difference_has_the_right_sign_and_width():
  rng = np.random.default_rng(0)
  base = rng.standard_normal(400)
  better = paired_difference(base + 1 + rng.standard_normal(400), base, seed=0)
  assert better["low"] < better["mean"] < better["high"] and better["low"] > 0
  assert better["high"] - better["low"] == pytest.approx(2 * 1.96 / 400 ** 0.5, rel=0.15)
  worse = paired_difference(base, base + 1, seed=0)
  assert worse == pytest.approx({"mean": -1, "low": -1, "high": -1})
  equal = paired_difference(base, rng.permutation(base), seed=0)
  assert equal["low"] < 0 < equal["high"]
  assert paired_difference(base, base, seed=3) == {"mean": 0, "low": 0, "high": 0}


def test_scoring_imports_neither_jax_nor_tensorflow():
  code = ("import sys, mcsam_jax.evaluation.scoring, mcsam_jax.evaluation.baselines; "
          "sys.exit(str({'jax', 'tensorflow', 'tensorflow_datasets'} & set(sys.modules)))")
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
  assert done.stderr.strip() == "set()"
