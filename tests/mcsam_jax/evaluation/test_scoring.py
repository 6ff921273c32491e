"""The scores of a small split, of which every number is known beforehand."""

import json
import subprocess
import sys

import numpy as np
import pytest

from input_pipeline.tokenizer import WordTokenizer
from mcsam_jax.errors import UserError
from mcsam_jax.evaluation.baselines import find_constants, find_label_constants
from mcsam_jax.evaluation.score_table import format_table
from mcsam_jax.evaluation.scoring import derangements, score_reports, shuffle_hypotheses
from mcsam_jax.findings import FINDINGS
from mcsam_jax.html_report.scores import list_statistics, make_main_table
from mcsam_jax.labelers.labeler import Labeler
from mcsam_jax.metrics.nlg import compute_nlg, METRICS

HEART, FLUID = "The heart is enlarged. No effusion.", "There is an effusion."
NORMAL = "Lungs are clear. No effusion."
TRAIN = [HEART, FLUID, NORMAL, NORMAL] * 3
SPLIT = [HEART, FLUID, NORMAL, NORMAL, FLUID, HEART]
WRITTEN = ["the heart is enlarged . no effusion .", "there is an effusion .",
           "lungs are clear . no effusion .", "lungs are clear . no effusion .",
           "there is an <unk> .", "the heart is enlarged . no effusion ."]


def read_labels(report):
  positive = {"Cardiomegaly": "enlarged" in report, "Pleural Effusion": "an effusion" in report}
  return {finding: "positive" if positive.get(finding) else "absent" for finding in FINDINGS}


LABELER = Labeler.from_function("keywords", FINDINGS, read_labels)


@pytest.fixture(autouse=True)
def no_java(monkeypatch, tmp_path):
  monkeypatch.setenv("PATH", str(tmp_path))          # METEOR takes seconds to start and is tested by itself


def find_all_constants(val, tokenizer):
  return find_constants(TRAIN, val, tokenizer, "iu_xray", 60) | find_label_constants(
      TRAIN, val, tokenizer, "iu_xray", 60, LABELER)


@pytest.fixture
def arguments():
  tokenizer = WordTokenizer.train(TRAIN, "iu_xray", 1, False)
  directions = {HEART: [1, 0, 0], FLUID: [0, 1, 0], NORMAL: [0, 0, 1]}
  return dict(
      ids=[f"study-{i}" for i in range(6)], references=SPLIT, hypotheses=WRITTEN,
      shuffled_hypotheses=[WRITTEN[1:] + WRITTEN[:1], WRITTEN[3:] + WRITTEN[:3]], train_reports=TRAIN,
      initial_features={"train": np.array([directions[report] for report in TRAIN]),
              "split": np.array([directions[report] for report in SPLIT])},
      constants=find_all_constants(SPLIT, tokenizer),
      tokenizer=tokenizer, cleaning="iu_xray", max_length=60, labeler=LABELER)


def test_every_number_of_a_small_split(arguments):
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
  near = scores["baselines"]["nearest"]           # equal reports have equal features
  assert near["nlg"]["BLEU_4"] == pytest.approx(1, abs=1e-6)
  assert near["labels"]["micro"]["f1"] == 1
  constant = scores["baselines"]["constant"]
  for metric in METRICS:
    if metric != "METEOR":                                  # val is the split here
      assert constant["nlg"][metric] == pytest.approx(constant["chosen_for"][metric]["val_score"])
  # Given to all six studies, either finding is right twice: F1 is 4/10 over both findings, and 4/8 of one, which the
  # mean over findings halves.
  assert [constant["labels"][average]["f1"] for average in ("micro", "macro")] == pytest.approx([4 / 10, 2 / 8])
  assert constant["chosen_for"]["micro_F1"]["val_score"] == pytest.approx(4 / 10)
  assert constant["chosen_for"]["macro_F1"]["val_score"] == pytest.approx(2 / 8)
  control = scores["controls"]["shuffled_images"]
  assert control["nlg"]["r2gen"]["CIDEr"] < scores["nlg"]["r2gen"]["CIDEr"]
  assert control["labels"]["micro"]["f1"] < scores["labels"]["micro"]["f1"]
  assert 0 < control["CIDEr_difference"]["low"] < control["CIDEr_difference"]["mean"]


def test_the_constant_report_of_the_findings_is_chosen_on_val(arguments):
  """One val study has an effusion and one has no finding; all studies of the split have an enlarged heart."""
  arguments |= {"references": [HEART] * 6, "constants": find_all_constants([FLUID, NORMAL], arguments["tokenizer"])}
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


def test_every_score_is_inside_its_interval(arguments):
  scores = score_reports(**arguments)[0]
  def check(value, interval):
    if isinstance(value, dict):
      for key in value.keys() & interval.keys():
        check(value[key], interval[key])
    elif value is None:
      assert interval is None
    elif interval is None:
      assert value in (0, 1)                              # a rare finding, undefined in too many resamples
    else:
      assert interval["low"] - 1e-9 <= value <= interval["high"] + 1e-9
  bounds = scores["intervals"]
  for part in ("nlg", "labels", "baselines", "controls", "unk_fraction"):
    check(scores[part], bounds[part])
  for path in (("labels", "uncertain_positive", "five_findings", "samples", "f1"), ("copied_from_train_fraction",),
               ("baselines", "constant", "nlg", "CIDEr"), ("controls", "shuffled_images", "nlg", "r2gen", "BLEU_1")):
    interval = bounds
    for key in path:
      interval = interval[key]
    assert interval["low"] < interval["high"]
  assert bounds["resampled"] == "subjects" and bounds["num_samples"] == 1000


def test_subjects_are_resampled_and_not_studies(arguments):
  def rouge_l(subjects):
    scores = score_reports(**arguments, subjects=subjects)[0]
    assert (scores["num_studies"], scores["num_subjects"]) == (6, len(set(subjects)))
    return scores["intervals"]["nlg"]["clean"]["ROUGE_L"]
  # Two subjects can be drawn in three ways; the second has the only report with an error, one word of five.
  assert rouge_l(["a", "a", "a", "b", "b", "b"]) == pytest.approx({"low": (1 + 0.8 + 1) / 3, "high": 1})


def test_a_single_subject_gives_no_intervals(arguments):
  scores = score_reports(**arguments, subjects=["a"] * 6)[0]
  assert scores["nlg"]["clean"]["ROUGE_L"] == pytest.approx(5.8 / 6)
  assert scores["intervals"]["nlg"]["clean"]["ROUGE_L"] is None and scores["intervals"]["num_samples"] == 0
  difference = scores["baselines"]["constant"]["model_minus_this"]["nlg"]["CIDEr"]
  assert difference["difference"] > 0 and difference["low"] is None and difference["high"] is None
  assert "one subject" in scores["notes"]["intervals"]
  assert json.loads(json.dumps(scores, allow_nan=False)) == scores
  table = format_table(scores)
  assert "compared with" not in table and "(95% interval" not in table
  assert list_statistics(scores) and make_main_table(scores)        # the HTML report shows it too


def test_the_model_is_compared_with_each_baseline(arguments):
  scores = score_reports(**arguments)[0]
  for system in (*scores["baselines"].values(), *scores["controls"].values()):
    nlg = system["nlg"].get("r2gen", system["nlg"])
    for metric in ("BLEU_4", "CIDEr"):
      assert system["model_minus_this"]["nlg"][metric]["difference"] == pytest.approx(
          scores["nlg"]["r2gen"][metric] - nlg[metric])
    assert system["model_minus_this"]["labels"]["micro"]["f1"]["difference"] == pytest.approx(
        scores["labels"]["micro"]["f1"] - system["labels"]["micro"]["f1"])


def test_model_features_add_baselines_of_their_own(arguments):
  rolled = {"train": arguments["initial_features"]["train"],
            "split": np.roll(arguments["initial_features"]["split"], 1, 0)}
  scores = score_reports(**arguments, model_features=rolled)[0]
  assert scores["baselines"]["nearest"]["nlg"]["BLEU_4"] == pytest.approx(1, abs=1e-6)
  assert scores["baselines"]["nearest_model_features"]["nlg"]["BLEU_4"] < 0.9
  assert "medoid_model_features" in scores["baselines"]
  assert "nearest (model features)" in format_table(scores)


def test_on_train_no_study_is_its_own_neighbor(arguments):
  arguments |= dict(ids=[f"t{i}" for i in range(12)], references=TRAIN, hypotheses=TRAIN, shuffled_hypotheses=[],
                    initial_features=dict.fromkeys(("train", "split"), np.eye(12)))
  included, excluded = (score_reports(**arguments, train_subjects=subjects)[0]["baselines"]["nearest"]["nlg"]["ROUGE_L"]
                        for subjects in (None, arguments["ids"]))
  assert included == pytest.approx(1) and excluded < 0.9


def test_references_that_are_not_in_train_are_scored_separately(arguments):
  assert score_reports(**arguments)[0]["unseen_references"] == {"num_studies": 0}
  new = ["Lungs are small.", "The heart is enlarged. There is an effusion."]
  arguments["references"] = [*SPLIT[:4], *new]
  scores = score_reports(**arguments)[0]
  unseen = scores["unseen_references"]
  assert unseen["num_studies"] == 2
  tokenizer = arguments["tokenizer"]
  prepared = [tokenizer.decode(tokenizer.encode(report)) for report in new]
  expected = compute_nlg(prepared, WRITTEN[4:], metrics=["BLEU_2", "ROUGE_L"]).corpus
  assert {metric: unseen["nlg"][metric] for metric in expected} == pytest.approx(expected)
  assert unseen["labels"]["micro"]["f1"] == pytest.approx(2 / 3)          # one of two findings: the heart
  assert scores["intervals"]["unseen_references"]["nlg"]["ROUGE_L"]["low"] <= unseen["nlg"]["ROUGE_L"]
  assert scores["reference_statistics"]["copied_from_train_fraction"] == pytest.approx(4 / 6)
  arguments["references"] = [*SPLIT[:5], new[1]]                         # a single study: no interval
  scores = score_reports(**arguments)[0]
  assert scores["intervals"]["unseen_references"]["nlg"]["CIDEr"] is None
  assert any(line.startswith("1 studies") and "BLEU-4" in line for line in format_table(scores).splitlines())


def test_fractions_of_reports_that_say_what_images_cannot_show(arguments):
  arguments["hypotheses"] = ["the heart is xxxx .", "unchanged effusion .", *WRITTEN[2:]]
  scores = score_reports(**arguments)[0]
  assert scores["redacted_fraction"] == scores["prior_mention_fraction"] == pytest.approx(1 / 6)
  references = scores["reference_statistics"]
  assert references["prior_mention_fraction"] == references["redacted_fraction"] == 0
  assert format_table(scores).count("16.7% (references: 0.0%)") == 2


def test_labels_of_both_reports_are_returned_per_study(arguments):
  labels = score_reports(**arguments)[2]
  assert labels is not None
  assert labels[4] == {"reference": read_labels(FLUID), "generated": read_labels(WRITTEN[4])}
  assert labels[4]["reference"]["Pleural Effusion"] == "positive" != labels[4]["generated"]["Pleural Effusion"]
  calls = []
  batched = Labeler("batched", FINDINGS, lambda reports: calls.append(len(reports)) or list(map(read_labels, reports)))
  scores = score_reports(**{**arguments, "labeler": batched})
  assert scores[0]["labels"] == score_reports(**arguments)[0]["labels"] and scores[2] == labels
  assert len(calls) < 10                                                  # in batches, and no text twice
  assert sum(calls) == len(set(SPLIT) | set(WRITTEN) | {
      entry["report"] for entry in arguments["constants"].values() if entry})


def test_the_table_leaves_out_statistics_that_scores_lack(arguments):
  scores = score_reports(**arguments)[0]
  for key in ("intervals", "num_subjects", "unseen_references", "reference_statistics", "redacted_fraction",
              "prior_mention_fraction"):
    del scores[key]
  for system in (*scores["baselines"].values(), *scores["controls"].values()):
    del system["model_minus_this"]
  del scores["preparation"]["main_protocol"]
  assert "this model" in format_table(scores) and "95% interval" not in format_table(scores).splitlines()[3]


def test_the_control_is_the_mean_over_its_permutations(arguments):
  lists = arguments["shuffled_hypotheses"]
  both, *single = (score_reports(**{**arguments, "shuffled_hypotheses": subset})[0]["controls"]["shuffled_images"]
                   for subset in (lists, lists[:1], lists[1:]))
  assert [control["num_permutations"] for control in (both, *single)] == [2, 1, 1]
  for metric in ("BLEU_4", "ROUGE_L", "CIDEr"):
    assert both["nlg"]["r2gen"][metric] == pytest.approx(
        np.mean([control["nlg"]["r2gen"][metric] for control in single]))
  assert both["CIDEr_difference"]["mean"] == pytest.approx(
      np.mean([control["CIDEr_difference"]["mean"] for control in single]))
  assert len({control["CIDEr_difference"]["mean"] for control in single}) == 2


def test_every_permutation_gives_each_study_another_one():
  permutations = derangements(7, 4, seed=1)
  assert permutations.shape == (4, 7)
  assert all(sorted(row) == list(range(7)) for row in permutations)
  assert all(len(set(column)) == 4 and study not in column for study, column in enumerate(permutations.T.tolist()))
  assert derangements(3, 10, seed=0).shape == (2, 3)              # three studies have no more
  assert shuffle_hypotheses("abcdefg", 4, seed=1) == [["abcdefg"[study] for study in row] for row in permutations]


def test_a_copy_of_a_training_report_may_have_unk_for_its_rare_word(arguments):
  arguments["train_reports"] = [*TRAIN, "There is an oddity."]   # the tokenizer shows it as: there is an <unk> .
  arguments["initial_features"]["train"] = np.concatenate([arguments["initial_features"]["train"], [[1, 1, 1]]])
  assert score_reports(**arguments)[0]["copied_from_train_fraction"] == 1


def test_the_order_of_studies_does_not_matter(arguments):
  order = [3, 1, 5, 0, 2, 4]
  features = arguments["initial_features"]
  reordered = {**arguments, **{name: [arguments[name][i] for i in order]
                               for name in ("ids", "references", "hypotheses")},
               "shuffled_hypotheses": [[reports[i] for i in order] for reports in arguments["shuffled_hypotheses"]],
               "initial_features": {**features, "split": features["split"][order]}}
  (scores, rows, _), (reordered_scores, reordered_rows, _) = score_reports(**arguments), score_reports(**reordered)
  rounded, reordered_rounded = (json.loads(json.dumps(each), parse_float=lambda text: round(float(text), 9))
                                for each in (scores, reordered_scores))
  assert reordered_rounded == rounded
  assert [row["CIDEr"] for row in reordered_rows] == pytest.approx([rows[i]["CIDEr"] for i in order])


def test_scores_of_restricted_data_hold_no_text(arguments):
  text = json.dumps(score_reports(**arguments, restricted=True)[0])
  assert "effusion ." not in text and "study-" not in text
  assert "effusion ." in json.dumps(score_reports(**arguments)[0])


def test_given_reference_labels_replace_predicted_ones(arguments):
  known = [read_labels("")] * 6
  assert score_reports(**arguments, reference_labels=known)[0]["labels"]["micro"]["precision"] == 0


def test_without_a_labeler_labels_are_null(arguments):
  scores, *_ = score_reports(**{**arguments, "labeler": None})
  assert scores["labels"] is None and scores["baselines"]["nearest"]["labels"] is None
  assert "micro-F1" not in format_table(scores)


def test_the_table_has_a_row_for_the_model_its_control_and_each_baseline(arguments):
  table = format_table(score_reports(**arguments)[0])
  rows = [line.split("  ")[0] for line in table.splitlines()]
  assert [name for name in rows if name][1:7] == [
      "this model", "95% interval", "shuffled images", "constant report", "nearest image", "medoid of nearest images"]
  assert any(line.startswith("METEOR: ") for line in table.splitlines())


def test_errors_say_what_is_wrong_with_the_input(arguments):
  with pytest.raises(UserError, match="1 of 6 reports"):
    score_reports(**{**arguments, "ids": [*arguments["ids"][:5], "study-0"]})
  with pytest.raises(UserError, match="5 hypotheses for 6 studies"):
    score_reports(**{**arguments, "hypotheses": WRITTEN[:5]})
  with pytest.raises(UserError, match="split is empty"):
    score_reports(**{**arguments, "ids": []})


def test_scoring_imports_neither_jax_nor_tensorflow():
  code = ("import sys, mcsam_jax.evaluation.scoring, mcsam_jax.evaluation.baselines; "
          "sys.exit(str({'jax', 'tensorflow', 'tensorflow_datasets'} & set(sys.modules)))")
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
  assert done.stderr.strip() == "set()"


def test_a_single_study_has_no_control(arguments):
  one = {name: values[:1] if isinstance(values, list) and len(values) == 6 else values
         for name, values in arguments.items()}
  for features in ("initial_features", "model_features"):
    if one.get(features):
      one[features] = {**one[features], "split": one[features]["split"][:1]}
  one["shuffled_hypotheses"] = shuffle_hypotheses(one["hypotheses"], 10, seed=0)
  assert one["shuffled_hypotheses"] == [] and derangements(1, 10, seed=0).shape == (0, 1)
  scores, rows, _ = score_reports(**one)
  assert scores["num_studies"] == len(rows) == 1 and scores["controls"] == {"shuffled_images": None}
  assert "shuffled_images" in scores["notes"] and json.loads(json.dumps(scores, allow_nan=False)) == scores
  assert "1.000" in format_table(scores) and list_statistics(scores) and make_main_table(scores)
