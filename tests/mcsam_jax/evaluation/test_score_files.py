"""Files of any model's reports are scored, whatever their kind; what can't be computed is left out with a note."""

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from mcsam_jax.errors import UserError
from mcsam_jax.evaluation.score_files import score_files
from mcsam_jax.findings import FINDINGS
from mcsam_jax.labelers.labeler import Labeler

HEART, FLUID, NORMAL = "The heart is enlarged. No effusion.", "There is an effusion.", "Lungs are clear. No effusion."
NORMAL_CLEANED = "lungs are clear . no effusion ."
REFERENCES = {"s1": HEART, "s2": FLUID, "s3": NORMAL, "s4": NORMAL}
WRITTEN = {"s2": "there is an effusion .", "s1": "the heart is big . no effusion .",
           "s4": "lungs are clear . no effusion .", "s3": "lungs are clear . no effusion ."}
SUBJECTS = {"s1": "p1", "s2": "p1", "s3": "p2", "s4": "p3"}


def read_labels(report):
  positive = {"Cardiomegaly": "enlarged" in report, "Pleural Effusion": "an effusion" in report}
  return {finding: "positive" if positive.get(finding) else "absent" for finding in FINDINGS}


@pytest.fixture(autouse=True)
def no_java_and_a_labeler(monkeypatch, tmp_path):
  monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
  monkeypatch.setattr("mcsam_jax.evaluation.score_files.make_rules_labeler",
                      lambda: Labeler.from_function("rules", FINDINGS, read_labels))


@pytest.fixture
def folder(tmp_path):
  """Returns a folder with the same reports in every kind of file."""
  rows = [{"id": name, "report": text, "subject_id": SUBJECTS[name]} for name, text in REFERENCES.items()]
  write = lambda name, text: (tmp_path / name).write_text(text)
  lines = lambda rows: "".join(json.dumps(row) + "\n" for row in rows)
  write("references.jsonl", lines(rows))
  write("references.txt", "".join(text + "\n" for text in REFERENCES.values()))
  write("references.csv", "study_id,report\n" + "".join(f'{name},"{text}"\n' for name, text in REFERENCES.items()))
  write("annotation.json", json.dumps({"train": [{"id": f"t{i}", "report": text} for i, text in enumerate(
      [HEART, FLUID, NORMAL] * 4)], "val": [{"id": "v", "report": NORMAL}], "test": rows}))
  write("predictions.jsonl", lines({"id": name, "generated": text} for name, text in WRITTEN.items()))
  write("predictions.json", json.dumps(WRITTEN))
  write("list.json", json.dumps([{"image_id": name, "pred": [text]} for name, text in WRITTEN.items()]))
  write("predictions.tsv", "id\tprediction\n" + "".join(f"{name}\t{text}\n" for name, text in WRITTEN.items()))
  write("predictions.txt", "".join(WRITTEN[name] + "\n" for name in REFERENCES))
  return tmp_path


def score(folder: pathlib.Path, predictions="predictions.jsonl", references="references.jsonl", **options: Any) -> dict:
  """Returns the scores of two files of a folder."""
  options = {name: str(folder / value) if name in ("train", "subjects") else value for name, value in options.items()}
  return score_files(str(folder / predictions), str(folder / references), log=lambda line: None, **options)


@pytest.mark.parametrize("predictions", ["predictions.json", "list.json", "predictions.tsv", "predictions.txt"])
def test_every_kind_of_file_gives_the_same_scores(folder, predictions):
  expected = score(folder)
  assert expected["nlg"]["clean"]["BLEU_1"] == pytest.approx(26 / 27, abs=1e-6)         # one word of 27 is another
  assert score(folder, predictions)["nlg"] == expected["nlg"]
  without_ids = ["references.txt"] * predictions.endswith(".txt")        # must be in the same order
  for references in ("references.csv", "annotation.json", *without_ids):
    assert score(folder, predictions, references)["nlg"] == expected["nlg"]


def test_scores_that_need_training_reports_are_left_out_with_a_note(folder):
  scores = score(folder)
  assert scores["nlg"]["r2gen"] is None and scores["baselines"] == {} and scores["copied_from_train_fraction"] is None
  assert {"r2gen", "constant"} <= scores["notes"].keys()
  assert scores["labels"]["micro"] == pytest.approx({"precision": 1, "recall": 1 / 2, "f1": 2 / 3})
  assert score(folder, labeler="none")["labels"] is None
  assert json.loads(json.dumps(scores)) == scores


def test_training_reports_add_r2gen_the_constant_baseline_and_copies(folder):
  scores = score(folder, references="annotation.json", train="annotation.json", json_path=str(folder / "scores.json"),
                 with_texts=True)
  assert scores["nlg"]["r2gen"]["BLEU_1"] == pytest.approx(26 / 27, abs=1e-6)
  assert scores["baselines"]["constant"]["chosen_for"]["BLEU_4"]["report"] == NORMAL_CLEANED      # val's
  assert scores["baselines"]["constant"]["model_minus_this"]["nlg"]["CIDEr"]["difference"] > 0
  assert scores["copied_from_train_fraction"] == 3 / 4
  assert scores["unseen_references"] == {"num_studies": 0}
  assert json.loads((folder / "scores.json").read_text())["nlg"] == scores["nlg"]
  # "heart" occurs 4 times in train: with a threshold of 5 the reference has <unk> and the generated word is a miss.
  rare = score(folder, references="annotation.json", train="annotation.json", threshold=5)
  assert rare["nlg"]["r2gen"]["BLEU_1"] < scores["nlg"]["r2gen"]["BLEU_1"]
  assert rare["nlg"]["clean"] == scores["nlg"]["clean"]


@pytest.mark.parametrize("train", ["no_val.json", "empty_val.json", "references.jsonl"])
def test_without_val_the_constant_is_chosen_on_train_with_a_note(folder, train):
  splits = json.loads((folder / "annotation.json").read_text())
  (folder / "no_val.json").write_text(json.dumps({"train": splits["train"], "test": splits["test"]}))
  (folder / "empty_val.json").write_text(json.dumps({**splits, "val": []}))
  options: dict[str, Any] = dict(references="annotation.json", threshold=1)
  scores = score(folder, train=train, **options)
  constant = scores["baselines"]["constant"]
  assert constant["chosen_on"] == "train" and train in scores["notes"]["constant"]
  assert constant["chosen_for"]["BLEU_4"]["train_score"] > 0 and "val_score" not in constant["chosen_for"]["BLEU_4"]
  with_val = score(folder, train="annotation.json", **options)
  constant = with_val["baselines"]["constant"]
  assert constant["chosen_on"] == "val" and constant["chosen_for"]["BLEU_4"]["val_score"] == pytest.approx(1, abs=1e-6)
  assert "constant" not in with_val["notes"]


@pytest.mark.parametrize("options, message", [
    ({"threshold": 0}, "--threshold 0: .* 1"), ({"threshold": -3}, "--threshold -3: .* 1"),
    ({"max_length": 0}, "--max-length 0: .* 2"), ({"max_length": 1}, "--max-length 1: .* 2")])
def test_values_below_the_minimum_are_refused(folder, options, message):
  with pytest.raises(UserError, match=message):
    score(folder, **options)


@pytest.mark.parametrize("cleaning", [None, "mimic_cxr"])
def test_report_texts_are_written_only_on_request(folder, cleaning):
  options: dict[str, Any] = dict(references="annotation.json", train="annotation.json", threshold=1, cleaning=cleaning)
  path = folder / "scores.json"
  score(folder, **options, json_path=str(path))
  assert "effusion" not in path.read_text().lower().replace("pleural effusion", "")
  score(folder, **options, json_path=str(path), with_texts=True)
  scores = json.loads(path.read_text())
  assert scores["most_common_report"] == NORMAL_CLEANED
  assert scores["baselines"]["constant"]["chosen_for"]["BLEU_4"]["report"] == NORMAL_CLEANED


def test_subjects_come_from_the_references_or_a_file(folder):
  assert score(folder)["num_subjects"] == 3
  assert score(folder, references="references.csv")["num_subjects"] == 4
  (folder / "subjects.csv").write_text("id,subject\ns4,x\ns3,x\ns2,x\ns1,y\n")
  assert score(folder, references="references.csv", subjects="subjects.csv")["num_subjects"] == 2
  (folder / "subjects.csv").write_text("id,subject\ns4,x\ns3,\ns2, \ns1,x\n")          # s2 and s3 are unknown
  assert score(folder, references="references.csv", subjects="subjects.csv")["num_subjects"] == 3
  (folder / "blank.csv").write_text("study_id,report,subject_id\n" + "".join(
      f'{name},"{text}",\n' for name, text in REFERENCES.items()))
  scores = score(folder, references="blank.csv")
  assert scores["num_subjects"] == 4
  interval = scores["intervals"]["nlg"]["clean"]["CIDEr"]
  assert interval["low"] < interval["high"]
  (folder / "subjects.txt").write_text("x\nx\n")
  with pytest.raises(UserError, match="4 reports in .*references.txt and 2 in .*subjects.txt"):
    score(folder, "predictions.txt", "references.txt", subjects="subjects.txt")
  (folder / "subjects.txt").write_text("x\nx\nx\ny\n")
  assert score(folder, "predictions.txt", "references.txt", subjects="subjects.txt")["num_subjects"] == 2


def test_subjects_are_matched_by_the_named_id_field(folder):
  rows = "study,subject\ns4,x\ns3,x\ns2,y\ns1,z\n"
  (folder / "subjects.csv").write_text(rows)
  with pytest.raises(UserError, match="subjects.csv has no ids .*references.jsonl.* --id-field"):
    score(folder, subjects="subjects.csv")
  for name, field in (("predictions", "generated"), ("references", "report")):
    lines = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
    (folder / f"{name}_by_study.jsonl").write_text("".join(
        json.dumps({"study": row["id"], field: row[field]}) + "\n" for row in lines))
  compute_interval = lambda subjects: score(
      folder, "predictions_by_study.jsonl", "references_by_study.jsonl", subjects=subjects,
      id_field="study")["intervals"]["nlg"]["clean"]["ROUGE_L"]
  interval = compute_interval("subjects.csv")
  (folder / "ordered.csv").write_text("study,subject\ns1,z\ns2,y\ns3,x\ns4,x\n")
  assert interval == compute_interval("ordered.csv")
  (folder / "by_order.csv").write_text("study,subject\ns1,x\ns2,x\ns3,y\ns4,z\n")     # as matched by order alone
  assert interval != compute_interval("by_order.csv")


def test_the_fields_are_logged_and_copies_of_the_references_are_noted(folder):
  lines = []
  write = lambda field: (folder / "x.jsonl").write_text("".join(json.dumps(
      {"id": name, "report": text, field: WRITTEN[name]}) + "\n" for name, text in REFERENCES.items()))
  run = lambda: score_files(str(folder / "x.jsonl"), str(folder / "references.jsonl"), log=lines.append)
  write("unknown_name")
  scores = run()
  assert scores["fields"] == {"predictions": "report", "references": "report"}
  assert f"field report of {folder / 'x.jsonl'}" in lines[0]
  assert f"field report of {folder / 'x.jsonl'}" in scores["notes"] and "field report of" in lines[-1]
  write("candidate")
  scores = run()
  assert scores["fields"]["predictions"] == "candidate" and scores["nlg"] == score(folder)["nlg"]
  assert not any(key.startswith("field") for key in scores["notes"])


def test_unknown_words_of_references_and_empty_reports_are_reported(folder):
  """Of the 27 words of four references, two never occur in train: enlarged, an."""
  (folder / "few.jsonl").write_text("".join(json.dumps({"id": i, "report": text}) + "\n" for i, text in enumerate(
      ["the heart is big . no effusion .", "there is effusion .", "lungs are clear . no effusion ."])))
  (folder / "empty.json").write_text(json.dumps(WRITTEN | {"s1": "", "s2": " . "}))
  lines = []
  run = lambda threshold: score_files(str(folder / "empty.json"), str(folder / "references.jsonl"), threshold=threshold,
                                      train=str(folder / "few.jsonl"), log=lines.append)
  words = [*NORMAL_CLEANED.split() * 2, *"the heart is enlarged . no effusion . there is an effusion .".split()]
  scores = run(1)
  assert scores["preparation"]["reference_unk_fraction"] == pytest.approx(2 / len(words))
  assert "r2gen" not in scores["notes"]
  assert scores["empty_fraction"] == 0.25                           # a report of a single full stop is not empty
  assert "7.4%" in lines[-1] and "25.0%" in lines[-1]
  scores = run(2)
  assert scores["preparation"]["reference_unk_fraction"] > 0.1
  assert all(part in scores["notes"]["r2gen"] for part in ("less than 2 times", "the 3 training", "--threshold 1"))


def test_a_note_says_that_stored_labels_are_not_used(folder):
  rows = [{"id": name, "reference": text, "generated": WRITTEN[name],
           "labels": {"reference": read_labels(text), "generated": read_labels(WRITTEN[name])}}
          for name, text in REFERENCES.items()]
  (folder / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  lines = []
  scores = score_files(str(folder / "eval.jsonl"), str(folder / "eval.jsonl"), log=lines.append)
  assert str(folder / "eval.jsonl") in scores["notes"]["labels"] and "labeler: rules" in lines[-1]
  assert "labels" not in score(folder)["notes"] and "labels" not in score(folder, labeler="none")["notes"]


def test_the_verb_imports_neither_jax_nor_tensorflow(folder):
  code = ("import sys; from mcsam_jax.cli import main; status = main(sys.argv[1:]); "
          "heavy = {'jax', 'tensorflow', 'tensorflow_datasets', 'torch'} & set(sys.modules); "
          "sys.exit(status or str(heavy))")
  root = pathlib.Path(__file__).parents[3]
  run = lambda *arguments: subprocess.run(
      [sys.executable, "-c", code, *map(str, arguments), "--labeler", "none"], capture_output=True, text=True,
      env={**os.environ, "PYTHONPATH": str(root), "PATH": ""})
  done = run("score", "--predictions", folder / "predictions.jsonl", "--references", folder / "annotation.json",
             "--train", folder / "annotation.json", "--page", folder / "page.html", "--with-texts")
  assert (folder / "page.html").exists()
  assert done.stderr.strip() == "set()" and "4 studies of 3 subjects, protocol r2gen" in done.stdout
  done = run("compare", folder / "predictions.jsonl", folder / "predictions.json", "--references",
             folder / "references.jsonl")
  assert done.stderr.strip() == "set()" and "+0.000 to +0.000" in done.stdout


def test_output_of_evaluate_serves_as_predictions_and_references(folder):
  (folder / "eval.jsonl").write_text("".join(json.dumps(
      {"id": name, "subject": SUBJECTS[name], "reference": text, "generated": WRITTEN[name]}) + "\n"
      for name, text in REFERENCES.items()))
  scores = score(folder, "eval.jsonl", "eval.jsonl")
  assert scores["nlg"] == score(folder)["nlg"] and scores["num_subjects"] == 3
  np.testing.assert_array_less(0, scores["nlg"]["clean"]["CIDEr"])


@pytest.mark.parametrize("train", [None, "annotation.json"])
def test_one_study_is_scored(folder, train):
  """Identical texts: every n-gram matches, and CIDEr weights all words by log(1 / 1) = 0, as pycocoevalcap does."""
  (folder / "one.json").write_text(json.dumps({"s3": NORMAL}))
  options = {"train": train} if train else {}
  scores = score(folder, "one.json", "one.json", json_path=str(folder / "out.json"), **options)
  nlg = scores["nlg"]["clean"]
  assert [nlg[metric] for metric in ("BLEU_1", "BLEU_4", "ROUGE_L", "CIDEr")] == pytest.approx([1, 1, 1, 0], abs=1e-6)
  assert scores["num_studies"] == 1 and scores["controls"] == {"shuffled_images": None}
  assert scores["intervals"]["nlg"]["clean"]["BLEU_4"] is None and scores["intervals"]["num_samples"] == 0
  assert {"shuffled_images", "intervals", "CIDEr"} <= scores["notes"].keys()
  assert json.loads((folder / "out.json").read_text()) == scores


def test_lone_surrogates_are_scored_and_noted(folder):
  (folder / "h.json").write_text(r'{"a": "The heart is enlarged. \ud83d", "b": "No effusion.", "c": "Clear."}')
  scores = score(folder, "h.json", "h.json", json_path=str(folder / "out.json"), with_texts=True)
  assert scores["nlg"]["clean"]["BLEU_1"] == pytest.approx(1) and str(folder / "h.json") in scores["notes"]
  assert json.loads((folder / "out.json").read_text(encoding="utf-8")) == scores


def test_a_threshold_above_every_count_is_refused(folder):
  with pytest.raises(UserError, match="threshold 99"):
    score(folder, train="annotation.json", threshold=99)
def test_reports_are_matched_by_order_after_a_warning_in_the_first_line_or_when_told_to(folder):
  def run(predictions, references, **options):
    lines = []
    scores = score_files(str(folder / predictions), str(folder / references), log=lines.append, **options)
    return scores, lines[0].startswith("WARNING") and "order" in lines[0]

  expected, warned = run("predictions.jsonl", "references.jsonl")
  assert not warned and "order" not in expected["notes"]
  for predictions, references in (("predictions.txt", "references.txt"), ("predictions.txt", "references.jsonl")):
    scores, warned = run(predictions, references)
    assert warned and "order" in scores["notes"] and scores["nlg"] == expected["nlg"]
    scores, warned = run(predictions, references, by_order=True)
    assert not warned and "order" in scores["notes"] and scores["nlg"] == expected["nlg"]
  (folder / "other_ids.jsonl").write_text("".join(
      json.dumps({"id": f"x{name}", "generated": WRITTEN[name]}) + "\n" for name in REFERENCES))
  with pytest.raises(UserError, match="no id in common"):
    run("other_ids.jsonl", "references.jsonl")
  scores, _ = run("other_ids.jsonl", "references.jsonl", by_order=True)
  assert scores["nlg"] == expected["nlg"] and scores["num_subjects"] == 3
  with pytest.raises(UserError, match="--by-order.*predictions.jsonl.*another order"):
    run("predictions.jsonl", "references.jsonl", by_order=True)


def test_each_file_may_name_its_fields_differently(folder):
  write = lambda name, rows: (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
  write("p.jsonl", ({"key": name, "text": "not this", "ours": text} for name, text in WRITTEN.items()))
  write("r.jsonl", ({"number": name, "text": "nor this", "truth": text} for name, text in REFERENCES.items()))
  write("t.jsonl", ({"note": "nor that", "report_of_train": text} for text in (HEART, FLUID, NORMAL)))
  write("s.jsonl", ({"study": name, "patient": "one", "person": person} for name, person in SUBJECTS.items()))
  scores = score(folder, "p.jsonl", "r.jsonl", train="t.jsonl", subjects="s.jsonl", threshold=1,
                 prediction_field="ours", reference_field="truth", train_field="report_of_train",
                 subject_field="person", prediction_id_field="key", reference_id_field="number",
                 subject_id_field="study")
  assert scores["nlg"]["clean"] == score(folder)["nlg"]["clean"] and scores["num_subjects"] == 3
  assert scores["nlg"]["r2gen"]["BLEU_1"] > 0.9


def test_a_page_shows_the_studies_only_on_request(folder):
  for with_texts in (False, True):
    score(folder, page_path=str(folder / "page.html"), with_texts=with_texts)
    page = (folder / "page.html").read_text()
    assert "Pleural Effusion" in page and "Protocol clean" in page
    assert all((report in page) == with_texts for report in (HEART, *WRITTEN.values()))
    assert ("--with-texts" in page) != with_texts
  with pytest.raises(UserError, match="page.txt"):
    score(folder, page_path=str(folder / "page.txt"))
