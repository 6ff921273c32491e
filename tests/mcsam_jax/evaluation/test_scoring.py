"""The dictionary of scores on a small split whose every number can be told beforehand."""

import json
import subprocess
import sys
import types

import numpy as np
import pytest

from input_pipeline.tokenizer import WordTokenizer
from mcsam_jax.errors import UserError
from mcsam_jax.evaluation.baselines import find_constants, find_label_constants
from mcsam_jax.evaluation.score_table import format_table
from mcsam_jax.evaluation.scoring import derangements, score_reports
from mcsam_jax.findings import FINDINGS
from mcsam_jax.html_report.scores import facts, main_table
from mcsam_jax.metrics.nlg import METRICS, compute_nlg

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


def constants(val, tokenizer):
  return find_constants(TRAIN, val, tokenizer, "iu_xray", 60) | find_label_constants(
      TRAIN, val, tokenizer, "iu_xray", 60, read_labels, FINDINGS)


@pytest.fixture
def arguments():
  tokenizer = WordTokenizer.train(TRAIN, "iu_xray", 1, False)
  directions = {HEART: [1, 0, 0], FLUID: [0, 1, 0], NORMAL: [0, 0, 1]}
  return dict(
      ids=[f"study-{i}" for i in range(6)], references=SPLIT, hypotheses=WRITTEN,
      shuffled_hypotheses=[WRITTEN[1:] + WRITTEN[:1], WRITTEN[3:] + WRITTEN[:3]], train_reports=TRAIN,
      initial_features={"train": np.array([directions[report] for report in TRAIN]),
              "split": np.array([directions[report] for report in SPLIT])},
      constants=constants(SPLIT, tokenizer),
      tokenizer=tokenizer, cleaning="iu_xray", max_length=60, read_labels=read_labels)


def test_the_numbers(arguments):
  scores, per_study, labels = score_reports(**arguments)
  assert json.loads(json.dumps(scores)) == scores
  assert scores["num_studies"] == len(per_study) == 6
  assert scores["nlg"]["raw"] is None and scores["nlg"]["r2gen"]["METEOR"] is None
  assert set(scores["notes"]) == {"raw", "METEOR"}
  assert scores["nlg"]["r2gen"]["BLEU_1"] == pytest.approx(39 / 40, abs=1e-6)       # one word of 40 is <unk>
  assert [row["ROUGE_L"] == pytest.approx(1) for row in per_study] == [True, True, True, True, False, True]
  assert scores["labels"]["micro"] == pytest.approx({"precision": 1, "recall": 3 / 4, "f1": 6 / 7})
  assert scores["distinct_reports"] == 4
  assert scores["most_common_report_fraction"] == pytest.approx(2 / 6)
  assert scores["copied_from_train_fraction"] == pytest.approx(5 / 6)
  assert scores["unk_fraction"] == pytest.approx({"reports": 1 / 6, "words": 1 / 40})
  assert scores["mean_num_words"] == pytest.approx(40 / 6)


def test_baselines_and_control(arguments):
  scores, *_ = score_reports(**arguments)
  near = scores["baselines"]["nearest"]           # the features tell all
  assert near["nlg"]["BLEU_4"] == pytest.approx(1, abs=1e-6)
  assert near["labels"]["micro"]["f1"] == 1
  constant = scores["baselines"]["constant"]
  for metric in METRICS:
    if metric != "METEOR":                                  # val is the split here
      assert constant["nlg"][metric] == pytest.approx(constant["chosen_for"][metric]["val_score"])
  # Said of all six, either finding is right twice: of both together F1 is 4/10, of the one 4/8, which halves.
  assert [constant["labels"][average]["f1"] for average in ("micro", "macro")] == pytest.approx([4 / 10, 2 / 8])
  assert constant["chosen_for"]["micro_F1"]["val_score"] == pytest.approx(4 / 10)
  assert constant["chosen_for"]["macro_F1"]["val_score"] == pytest.approx(2 / 8)
  control = scores["controls"]["shuffled_images"]
  assert control["nlg"]["r2gen"]["CIDEr"] < scores["nlg"]["r2gen"]["CIDEr"]
  assert control["labels"]["micro"]["f1"] < scores["labels"]["micro"]["f1"]
  assert 0 < control["CIDEr_difference"]["low"] < control["CIDEr_difference"]["mean"]


def test_the_constants_findings_are_chosen_on_val(arguments):
  """Of val one has an effusion and one nothing; of the split all have an enlarged heart."""
  arguments |= {"references": [HEART] * 6, "constants": constants([FLUID, NORMAL], arguments["tokenizer"])}
  constant = score_reports(**arguments)[0]["baselines"]["constant"]
  assert constant["chosen_for"]["micro_F1"]["report"] == "there is an effusion ."
  assert constant["labels"]["micro"]["f1"] == constant["labels"]["macro"]["f1"] == 0
  heart, fluid = ({"report": text, "val_score": 0.0} for text in (WRITTEN[0], WRITTEN[1]))
  arguments["constants"] |= {"micro_F1": heart, "macro_F1": fluid}
  labels = score_reports(**arguments)[0]["baselines"]["constant"]["labels"]
  plain = labels["uncertain_negative"]["all_findings"]
  assert [labels["micro"]["f1"], labels["macro"]["f1"]] == [plain["micro"]["f1"], plain["macro_all"]["f1"]] == [1, 0]
  del arguments["constants"]["micro_F1"]
  assert score_reports(**arguments)[0]["baselines"]["constant"]["labels"] is None


def test_every_score_has_an_interval_that_holds_it(arguments):
  scores = score_reports(**arguments)[0]
  def check(value, interval):
    if isinstance(value, dict):
      for key in value.keys() & interval.keys():
        check(value[key], interval[key])
    elif value is None:
      assert interval is None
    elif interval is None:
      assert value in (0, 1)                              # a finding that few or none have: too few draws hold it
    else:
      assert interval["low"] - 1e-9 <= value <= interval["high"] + 1e-9
  sure = scores["intervals"]
  for part in ("nlg", "labels", "baselines", "controls", "unk_fraction"):
    check(scores[part], sure[part])
  for place in (("labels", "uncertain_positive", "five_findings", "samples", "f1"), ("copied_from_train_fraction",),
                ("baselines", "constant", "nlg", "CIDEr"), ("controls", "shuffled_images", "nlg", "r2gen", "BLEU_1")):
    low_high = sure
    for key in place:
      low_high = low_high[key]
    assert low_high["low"] < low_high["high"]
  assert sure["resampled"] == "subjects" and sure["num_samples"] == 1000


def test_subjects_are_drawn_and_not_studies(arguments):
  def rouge_l(subjects):
    scores = score_reports(**arguments, subjects=subjects)[0]
    assert (scores["num_studies"], scores["num_subjects"]) == (6, len(set(subjects)))
    return scores["intervals"]["nlg"]["clean"]["ROUGE_L"]
  # Two subjects can be drawn in three ways; the second has the one report with a word of five wrong.
  assert rouge_l(["a", "a", "a", "b", "b", "b"]) == pytest.approx({"low": (1 + 0.8 + 1) / 3, "high": 1})


def test_a_single_subject_gives_no_intervals(arguments):
  scores = score_reports(**arguments, subjects=["a"] * 6)[0]
  assert scores["nlg"]["clean"]["ROUGE_L"] == pytest.approx(5.8 / 6)
  assert scores["intervals"]["nlg"]["clean"]["ROUGE_L"] is None and scores["intervals"]["num_samples"] == 0
  lead = scores["baselines"]["constant"]["model_minus_this"]["nlg"]["CIDEr"]
  assert lead["difference"] > 0 and lead["low"] is None and lead["high"] is None
  assert scores["notes"]["intervals"].startswith("left out: all studies are of one subject")
  assert json.loads(json.dumps(scores, allow_nan=False)) == scores
  table = format_table(scores)
  assert "ahead" not in table and "(95 % interval" not in table
  facts(scores), main_table(scores)                  # the page shows it too


def test_the_model_is_compared_with_each_baseline(arguments):
  scores = score_reports(**arguments)[0]
  for of in (*scores["baselines"].values(), *scores["controls"].values()):
    nlg = of["nlg"].get("r2gen", of["nlg"])
    for metric in ("BLEU_4", "CIDEr"):
      assert of["model_minus_this"]["nlg"][metric]["difference"] == pytest.approx(
          scores["nlg"]["r2gen"][metric] - nlg[metric])
    assert of["model_minus_this"]["labels"]["micro"]["f1"]["difference"] == pytest.approx(
        scores["labels"]["micro"]["f1"] - of["labels"]["micro"]["f1"])


def test_the_models_own_features_give_baselines_of_their_own(arguments):
  turned = {"train": arguments["initial_features"]["train"], "split": np.roll(arguments["initial_features"]["split"], 1, 0)}
  scores = score_reports(**arguments, model_features=turned)[0]
  assert scores["baselines"]["nearest"]["nlg"]["BLEU_4"] == pytest.approx(1, abs=1e-6)
  assert scores["baselines"]["nearest_model_features"]["nlg"]["BLEU_4"] < 0.9 and "medoid_model_features" in scores["baselines"]
  assert "nearest, own" in format_table(scores)


def test_on_train_no_study_is_its_own_neighbour(arguments):
  arguments |= dict(ids=[f"t{i}" for i in range(12)], references=TRAIN, hypotheses=TRAIN, shuffled_hypotheses=[],
                    initial_features=dict.fromkeys(("train", "split"), np.eye(12)))
  seen, unseen = (score_reports(**arguments, train_subjects=who)[0]["baselines"]["nearest"]["nlg"]["ROUGE_L"]
                  for who in (None, arguments["ids"]))
  assert seen == pytest.approx(1) and unseen < 0.9


def test_references_that_stand_in_train_are_told_apart(arguments):
  assert score_reports(**arguments)[0]["unseen_references"] == {"num_studies": 0}
  new = ["Lungs are small.", "The heart is enlarged. There is an effusion."]
  arguments["references"] = [*SPLIT[:4], *new]
  scores = score_reports(**arguments)[0]
  unseen = scores["unseen_references"]
  assert unseen["num_studies"] == 2
  tokenizer = arguments["tokenizer"]
  meant = [tokenizer.decode(tokenizer.encode(report)) for report in new]
  alone = compute_nlg(meant, WRITTEN[4:], metrics=["BLEU_2", "ROUGE_L"]).corpus
  assert {metric: unseen["nlg"][metric] for metric in alone} == pytest.approx(alone)
  assert unseen["labels"]["micro"]["f1"] == pytest.approx(2 / 3)          # the heart is said, one of two findings
  assert scores["intervals"]["unseen_references"]["nlg"]["ROUGE_L"]["low"] <= unseen["nlg"]["ROUGE_L"]
  assert scores["reference_statistics"]["copied_from_train_fraction"] == pytest.approx(4 / 6)
  arguments["references"] = [*SPLIT[:5], new[1]]                         # one study: no draw tells of another
  scores = score_reports(**arguments)[0]
  assert scores["intervals"]["unseen_references"]["nlg"]["CIDEr"] is None
  assert "1 studies whose reference doesn't stand in train: BLEU-4" in format_table(scores)


def test_shares_of_what_nobody_can_know(arguments):
  arguments["hypotheses"] = ["the heart is xxxx .", "unchanged effusion .", *WRITTEN[2:]]
  scores = score_reports(**arguments)[0]
  assert scores["redacted_fraction"] == scores["prior_mention_fraction"] == pytest.approx(1 / 6)
  assert scores["reference_statistics"]["prior_mention_fraction"] == scores["reference_statistics"]["redacted_fraction"] == 0
  assert "a claim about an earlier study: 16.7% (references 0.0%)" in format_table(scores)


def test_labels_of_both_reports_come_with_each_study(arguments):
  labels = score_reports(**arguments)[2]
  assert labels[4] == {"reference": read_labels(FLUID), "generated": read_labels(WRITTEN[4])}
  assert labels[4]["reference"]["Pleural Effusion"] == "positive" != labels[4]["generated"]["Pleural Effusion"]
  calls = []
  batched = types.SimpleNamespace(read=lambda reports: calls.append(len(reports)) or list(map(read_labels, reports)))
  scores = score_reports(**{**arguments, "read_labels": batched})
  assert scores[0]["labels"] == score_reports(**arguments)[0]["labels"] and scores[2] == labels
  assert len(calls) < 10                                                  # many at once, and none twice
  assert sum(calls) == len(set(SPLIT) | set(WRITTEN) | {
      entry["report"] for entry in arguments["constants"].values() if entry})


def test_a_table_of_scores_that_an_earlier_version_stored(arguments):
  scores = score_reports(**arguments)[0]
  for key in ("intervals", "num_subjects", "unseen_references", "reference_statistics", "redacted_fraction", "prior_mention_fraction"):
    del scores[key]
  for of in (*scores["baselines"].values(), *scores["controls"].values()):
    del of["model_minus_this"]
  del scores["preparation"]["main_protocol"]
  assert "this model" in format_table(scores) and "95 % interval" not in format_table(scores).splitlines()[3]


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
  others = derangements(7, 4, seed=1)
  assert others.shape == (4, 7)
  assert all(sorted(row) == list(range(7)) for row in others)
  assert all(len(set(column)) == 4 and study not in column for study, column in enumerate(others.T.tolist()))
  assert derangements(3, 10, seed=0).shape == (2, 3)              # there are no more


def test_a_report_is_copied_also_where_train_has_an_unknown_word(arguments):
  arguments["train_reports"] = [*TRAIN, "There is an oddity."]   # as the model saw it: there is an <unk> .
  arguments["initial_features"]["train"] = np.concatenate([arguments["initial_features"]["train"], [[1, 1, 1]]])
  assert score_reports(**arguments)[0]["copied_from_train_fraction"] == 1


def test_order_of_studies_does_not_matter(arguments):
  order = [3, 1, 5, 0, 2, 4]
  turned = {**arguments, **{name: [arguments[name][i] for i in order]
                            for name in ("ids", "references", "hypotheses")},
            "shuffled_hypotheses": [[reports[i] for i in order] for reports in arguments["shuffled_hypotheses"]],
            "initial_features": {**arguments["initial_features"], "split": arguments["initial_features"]["split"][order]}}
  (there, rows, _), (back, turned_rows, _) = score_reports(**arguments), score_reports(**turned)
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
  scores, *_ = score_reports(**{**arguments, "read_labels": None})
  assert scores["labels"] is None and scores["baselines"]["nearest"]["labels"] is None
  assert "micro-F1" not in format_table(scores)


def test_the_table_shows_the_model_beside_the_rest(arguments):
  table = format_table(score_reports(**arguments)[0])
  rows = [line.split("  ")[0] for line in table.splitlines()]
  assert [name for name in rows if name][1:7] == [
      "this model", "95 % interval", "images shuffled", "constant report", "nearest image's", "medoid of nearest"]
  assert "METEOR needs Java, which is not installed" in table


def test_bad_input_is_named(arguments):
  with pytest.raises(UserError, match="1 of 6 reports belong to a study that stands there already"):
    score_reports(**{**arguments, "ids": [*arguments["ids"][:5], "study-0"]})
  with pytest.raises(UserError, match="5 hypotheses for 6 studies"):
    score_reports(**{**arguments, "hypotheses": WRITTEN[:5]})
  with pytest.raises(UserError, match="the split is empty"):
    score_reports(**{**arguments, "ids": []})


def test_scoring_imports_neither_jax_nor_tensorflow():
  code = ("import sys, mcsam_jax.evaluation.scoring, mcsam_jax.evaluation.baselines; "
          "sys.exit(str({'jax', 'tensorflow', 'tensorflow_datasets'} & set(sys.modules)))")
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
  assert done.stderr.strip() == "set()"
