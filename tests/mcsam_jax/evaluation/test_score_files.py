"""Files of any model's reports are read, matched and scored; what is wrong with them is told by file and line."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from mcsam_jax.errors import UserError
from mcsam_jax.evaluation.report_files import match_studies, read_reports
from mcsam_jax.evaluation.score_files import score_files
from mcsam_jax.findings import FINDINGS

HEART, FLUID, NORMAL = "The heart is enlarged. No effusion.", "There is an effusion.", "Lungs are clear. No effusion."
NORMAL_CLEANED = "lungs are clear . no effusion ."
REFERENCES = {"s1": HEART, "s2": FLUID, "s3": NORMAL, "s4": NORMAL}
WRITTEN = {"s2": "there is an effusion .", "s1": "the heart is big . no effusion .",
           "s4": "lungs are clear . no effusion .", "s3": "lungs are clear . no effusion ."}
SUBJECTS = {"s1": "p1", "s2": "p1", "s3": "p2", "s4": "p3"}


def read_labels(report):
  stated = {"Cardiomegaly": "enlarged" in report, "Pleural Effusion": "an effusion" in report}
  return {finding: "positive" if stated.get(finding) else "absent" for finding in FINDINGS}


@pytest.fixture(autouse=True)
def no_java_and_a_labeler(monkeypatch, tmp_path):
  monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
  monkeypatch.setattr("mcsam_jax.evaluation.score_files.read_labels", read_labels)


@pytest.fixture
def folder(tmp_path):
  """The same reports in every kind of file."""
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


def score(folder, predictions="predictions.jsonl", references="references.jsonl", **options):
  options = {name: str(folder / value) if name in ("train", "subjects") else value for name, value in options.items()}
  return score_files(str(folder / predictions), str(folder / references), log=lambda line: None, **options)


@pytest.mark.parametrize("predictions", ["predictions.json", "list.json", "predictions.tsv", "predictions.txt"])
def test_the_kind_of_file_does_not_matter(folder, predictions):
  expected = score(folder)
  assert expected["nlg"]["clean"]["BLEU_1"] == pytest.approx(26 / 27, abs=1e-6)         # one word of 27 is another
  assert score(folder, predictions)["nlg"] == expected["nlg"]
  without_ids = ["references.txt"] * predictions.endswith(".txt")        # must be in the same order
  for references in ("references.csv", "annotation.json", *without_ids):
    assert score(folder, predictions, references)["nlg"] == expected["nlg"]


def test_without_train_what_needs_it_is_left_out_and_said(folder):
  scores = score(folder)
  assert scores["nlg"]["r2gen"] is None and scores["baselines"] == {} and scores["copied_from_train_fraction"] is None
  assert {"r2gen", "constant"} <= scores["notes"].keys()
  assert scores["labels"]["micro"] == pytest.approx({"precision": 1, "recall": 1 / 2, "f1": 2 / 3})
  assert score(folder, labeler="none")["labels"] is None
  assert json.loads(json.dumps(scores)) == scores


def test_with_train_come_r2gen_the_constant_and_the_copies(folder):
  scores = score(folder, references="annotation.json", train="annotation.json", json_path=str(folder / "scores.json"),
                 with_texts=True)
  assert scores["nlg"]["r2gen"]["BLEU_1"] == pytest.approx(26 / 27, abs=1e-6)
  assert scores["baselines"]["constant"]["chosen_for"]["BLEU_4"]["report"] == NORMAL_CLEANED      # val's
  assert scores["baselines"]["constant"]["model_minus_this"]["nlg"]["CIDEr"]["difference"] > 0
  assert scores["copied_from_train_fraction"] == 3 / 4
  assert scores["unseen_references"] == {"num_studies": 0}
  assert json.loads((folder / "scores.json").read_text())["nlg"] == scores["nlg"]
  # "heart" stands 4 times in train: with a threshold of 5 the reference's is <unk> and the written one a miss.
  rare = score(folder, references="annotation.json", train="annotation.json", threshold=5)
  assert rare["nlg"]["r2gen"]["BLEU_1"] < scores["nlg"]["r2gen"]["BLEU_1"]
  assert rare["nlg"]["clean"] == scores["nlg"]["clean"]


@pytest.mark.parametrize("train", ["no_val.json", "empty_val.json", "references.jsonl"])
def test_without_val_the_constant_is_chosen_on_train_and_that_is_said(folder, train):
  splits = json.loads((folder / "annotation.json").read_text())
  (folder / "no_val.json").write_text(json.dumps({"train": splits["train"], "test": splits["test"]}))
  (folder / "empty_val.json").write_text(json.dumps({**splits, "val": []}))
  options = dict(references="annotation.json", threshold=1)
  scores = score(folder, train=train, **options)
  constant = scores["baselines"]["constant"]
  assert constant["chosen_on"] == "train" and "has none of val" in scores["notes"]["constant"]
  assert constant["chosen_for"]["BLEU_4"]["train_score"] > 0 and "val_score" not in constant["chosen_for"]["BLEU_4"]
  with_val = score(folder, train="annotation.json", **options)
  constant = with_val["baselines"]["constant"]
  assert constant["chosen_on"] == "val" and constant["chosen_for"]["BLEU_4"]["val_score"] == pytest.approx(1, abs=1e-6)
  assert "constant" not in with_val["notes"]


@pytest.mark.parametrize("options, message", [
    ({"threshold": 0}, "--threshold 0: at least 1"), ({"threshold": -3}, "--threshold -3: at least 1"),
    ({"max_length": 0}, "--max-length 0: at least 2"), ({"max_length": 1}, "--max-length 1: at least 2")])
def test_values_that_leave_nothing_are_refused(folder, options, message):
  with pytest.raises(UserError, match=message):
    score(folder, **options)


@pytest.mark.parametrize("cleaning", [None, "mimic_cxr"])
def test_no_text_is_written_unless_it_is_asked_for(folder, cleaning):
  options = dict(references="annotation.json", train="annotation.json", threshold=1, cleaning=cleaning)
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
  (folder / "subjects.csv").write_text("id,subject\ns4,x\ns3,\ns2, \ns1,x\n")          # who s2 and s3 are isn't known
  assert score(folder, references="references.csv", subjects="subjects.csv")["num_subjects"] == 3
  (folder / "blank.csv").write_text("study_id,report,subject_id\n" + "".join(
      f'{name},"{text}",\n' for name, text in REFERENCES.items()))
  scores = score(folder, references="blank.csv")
  assert scores["num_subjects"] == 4 and read_reports(str(folder / "blank.csv"), "references").subjects is None
  interval = scores["intervals"]["nlg"]["clean"]["CIDEr"]
  assert interval["low"] < interval["high"]
  (folder / "null.jsonl").write_text("".join(json.dumps(
      {"id": name, "report": text, "subject_id": {"s1": "p", "s2": "p"}.get(name)}) + "\n"
      for name, text in REFERENCES.items()))
  assert read_reports(str(folder / "null.jsonl"), "references").subjects == ["p", "p", "s3", "s4"]
  (folder / "subjects.txt").write_text("x\nx\n")
  with pytest.raises(UserError, match="4 reports in .*references.txt and 2 in .*subjects.txt: .*txt has no ids"):
    score(folder, "predictions.txt", "references.txt", subjects="subjects.txt")
  (folder / "subjects.txt").write_text("x\nx\nx\ny\n")
  assert score(folder, "predictions.txt", "references.txt", subjects="subjects.txt")["num_subjects"] == 2


def test_subjects_are_matched_by_the_named_id(folder):
  rows = "study,subject\ns4,x\ns3,x\ns2,y\ns1,z\n"
  (folder / "subjects.csv").write_text(rows)
  with pytest.raises(UserError, match="subjects.csv has no ids, which .*references.jsonl has: .* name their field"):
    score(folder, subjects="subjects.csv")
  for name, field in (("predictions", "generated"), ("references", "report")):
    lines = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
    (folder / f"{name}_of.jsonl").write_text("".join(
        json.dumps({"study": row["id"], field: row[field]}) + "\n" for row in lines))
  of = lambda subjects: score(folder, "predictions_of.jsonl", "references_of.jsonl", subjects=subjects,
                              id_field="study")["intervals"]["nlg"]["clean"]["ROUGE_L"]
  named = of("subjects.csv")
  (folder / "ordered.csv").write_text("study,subject\ns1,z\ns2,y\ns3,x\ns4,x\n")
  assert named == of("ordered.csv")
  (folder / "turned.csv").write_text("study,subject\ns1,x\ns2,x\ns3,y\ns4,z\n")       # as the order alone would have it
  assert named != of("turned.csv")


@pytest.mark.parametrize("name, content, message", [
    ("x.jsonl", '{"id": "s1", "generated": "a"}\n{"id": "s1", "generated": "b"}\n',
     "x.jsonl line 2: its id stands in line 1 already; a study is scored once"),
    ("x.jsonl", '{"id": "s1", "generated": "a"}\n{"id": ', "x.jsonl line 2: not JSON"),
    ("x.jsonl", '{"id": "s1", "words": "a"}\n', "x.jsonl line 1: no field any of generated, .* there are id, words: "
     "name it with --prediction-field"),
    ("x.jsonl", '{"id": "s1", "generated": "a"}\n{"id": "s2"}\n', "x.jsonl line 2: field generated is missing"),
    ("x.jsonl", '{"id": "s1", "generated": null}\n', "x.jsonl line 1: field generated is null: give an empty text"),
    ("x.jsonl", '{"id": "s1", "generated": "a"}\n',
     "x.jsonl has no prediction for 3 of the 4 studies of .*references.jsonl .the first: its line 2.: add them"),
    ("x.json", json.dumps({**WRITTEN, "s5": "a", "s6": "b"}),
     "x.json has 2 studies that .*references.jsonl hasn't .the first: entry 5.: take them out"),
    ("x.json", json.dumps({"train": [], "val": []}),
     "x.json has no split test, it has train, val: choose with --split"),
    ("x.json", json.dumps({"nlg": {}, "baselines": {}}), "x.json holds scores: give the .jsonl beside it"),
    ("x.csv", "id,report\ns1,a, b\n", "x.csv line 2: it has another number of fields than the header"),
    ("x.txt", "a\nb\n", "4 reports in .*references.jsonl and 2 in .*x.txt: .*x.txt has no ids, so both must hold"),
    ("x.txt", "", "x.txt holds no reports"),
    ("x.csv", "s1,A text of s1\ns2,Another\n", "x.csv line 1: no field any of generated, .* for the predictions among "
     "its 2 columns: give it a header, or name it with --prediction-field"),
    ("x.jsonl", '{"s1": "A text of s1", "hint": 1, "A text of s1": 2}\n',
     "x.jsonl line 1: no field any of .*, there are hint, 2 that aren't shown: name it"),
    ("x.csv", 'id,report\n"s1",a\ns2,"b\ns3,c\ns4,d\n', "x.csv line 3: the row that begins there can't be read"),
    ("x.csv", "id,report\ns1," + 200_000 * "a", "x.csv line 2: the row that begins there can't be read"),
    ("x.json", '{"s2": "a", "s1": "b", "s3": "c", "s1": "d"}', "x.json: entry 4 of an object has the name of an"),
    ("x.jsonl", '{"id": "s1", "pred": "b", "pred": "s1"}', "x.jsonl line 1: entry 3 of an object has the name of an"),
    ("x.csv", "uid,pred\nu1,a\nu2,b\n", r"no id stands in both .*references.jsonl \(field id\) and .*x.csv \(field uid\)"),
    ("x.pkl", "", "x.pkl: reports are read from .jsonl, .json, .csv, .tsv or .txt, not from .pkl"),
    ("absent.jsonl", None, "absent.jsonl not found"),
])
def test_faults_are_told_by_file_and_line(folder, name, content, message):
  if content is not None:
    (folder / name).write_text(content)
  with pytest.raises(UserError, match=message) as found:
    score(folder, name)
  assert "s1" not in str(found.value).replace(str(folder), "")          # an id may be restricted
  assert "\n" not in str(found.value)


def test_a_line_ends_at_a_line_break_alone(folder):
  (folder / "x.txt").write_bytes("a\u2028b\r\nc\x0cd\n\ne\n".encode())
  assert read_reports(str(folder / "x.txt"), "predictions").texts == ["a\u2028b", "c\x0cd", "", "e"]


def test_a_named_field_goes_before_the_usual_ones(folder):
  (folder / "x.jsonl").write_text('{"id": "a", "uid": "b", "report": "wrong", "mine": "right"}\n')
  found = read_reports(str(folder / "x.jsonl"), "predictions", text_field="mine", id_field="uid")
  assert (found.texts, found.ids) == (["right"], ["b"])
  assert match_studies(found, found) == [0]


def test_the_fields_are_said_and_a_copy_of_the_references_is_noticed(folder):
  said = []
  write = lambda field: (folder / "x.jsonl").write_text("".join(json.dumps(
      {"id": name, "report": text, field: WRITTEN[name]}) + "\n" for name, text in REFERENCES.items()))
  run = lambda: score_files(str(folder / "x.jsonl"), str(folder / "references.jsonl"), log=said.append)
  write("ours")
  scores = run()
  assert scores["fields"] == {"predictions": "report", "references": "report"}
  assert any("predictions: field report of" in line for line in said)
  assert f"field report of {folder / 'x.jsonl'}: all of its reports equal their references" in said[-1]
  write("candidate")
  scores = run()
  assert scores["fields"]["predictions"] == "candidate" and scores["nlg"] == score(folder)["nlg"]
  assert not any(key.startswith("field") for key in scores["notes"])


def test_unknown_words_of_references_and_blank_reports_are_told(folder):
  """Of the 27 words of four references, two stand nowhere in train: enlarged, an."""
  (folder / "few.jsonl").write_text("".join(json.dumps({"id": i, "report": text}) + "\n" for i, text in enumerate(
      ["the heart is big . no effusion .", "there is effusion .", "lungs are clear . no effusion ."])))
  (folder / "blank.json").write_text(json.dumps(WRITTEN | {"s1": "", "s2": " . "}))
  said = []
  run = lambda threshold: score_files(str(folder / "blank.json"), str(folder / "references.jsonl"), threshold=threshold,
                                      train=str(folder / "few.jsonl"), log=said.append)
  meant = [*NORMAL_CLEANED.split() * 2, *"the heart is enlarged . no effusion . there is an effusion .".split()]
  scores = run(1)
  assert scores["preparation"]["reference_unk_fraction"] == pytest.approx(2 / len(meant)) and "r2gen" not in scores["notes"]
  assert scores["empty_fraction"] == 0.25                              # a full stop alone is no blank report
  assert "of the references' words 7.4% are <unk>, under the protocol r2gen" in said[-1]
  assert "25.0% are blank" in said[-1]
  scores = run(2)
  assert scores["preparation"]["reference_unk_fraction"] > 0.1
  assert "stand less than 2 times in the 3 training reports: --threshold 1 keeps" in scores["notes"]["r2gen"]


def test_who_read_the_findings_is_told(folder):
  rows = [{"id": name, "reference": text, "generated": WRITTEN[name],
           "labels": {"reference": read_labels(text), "generated": read_labels(WRITTEN[name])}}
          for name, text in REFERENCES.items()]
  (folder / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  said = []
  scores = score_files(str(folder / "eval.jsonl"), str(folder / "eval.jsonl"), log=said.append)
  assert "those that `mcsam evaluate` stored in" in scores["notes"]["labels"] and "; labeler: rules" in said[-1]
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
             "--train", folder / "annotation.json")
  assert done.stderr.strip() == "set()" and "4 studies of 3 subjects, protocol r2gen" in done.stdout
  done = run("compare", folder / "predictions.jsonl", folder / "predictions.json", "--references",
             folder / "references.jsonl")
  assert done.stderr.strip() == "set()" and "+0.000 to +0.000" in done.stdout


def test_other_outputs_score_as_our_own_do(folder):
  """A line a study of `mcsam evaluate` is read for either role."""
  (folder / "eval.jsonl").write_text("".join(json.dumps(
      {"id": name, "subject": SUBJECTS[name], "reference": text, "generated": WRITTEN[name]}) + "\n"
      for name, text in REFERENCES.items()))
  ours = score(folder, "eval.jsonl", "eval.jsonl")
  assert ours["nlg"] == score(folder)["nlg"] and ours["num_subjects"] == 3
  np.testing.assert_array_less(0, ours["nlg"]["clean"]["CIDEr"])
