"""Files of reports are read and matched by study; errors name the file and the line, and never an id or a text."""

import json

import pytest

from mcsam_jax.errors import UserError
from mcsam_jax.evaluation.report_files import match_studies, read_reports

REFERENCES = {"s1": "The heart is enlarged. No effusion.", "s2": "There is an effusion.",
              "s3": "Lungs are clear. No effusion.", "s4": "Lungs are clear. No effusion."}
PREDICTIONS = {"s2": "there is an effusion .", "s1": "the heart is big . no effusion .",
               "s4": "lungs are clear . no effusion .", "s3": "lungs are clear . no effusion ."}


@pytest.fixture
def references(tmp_path):
  (tmp_path / "references.jsonl").write_text("".join(
      json.dumps({"id": name, "report": text}) + "\n" for name, text in REFERENCES.items()))
  return read_reports(str(tmp_path / "references.jsonl"), "references")


@pytest.mark.parametrize("name, content, parts", [
    ("x.jsonl", '{"id": "s1", "generated": "a"}\n{"id": "s1", "generated": "b"}\n', ["x.jsonl line 2", "of line 1"]),
    ("x.jsonl", '{"id": "s1", "generated": "a"}\n{"id": ', ["x.jsonl line 2", "not JSON"]),
    ("x.jsonl", '{"id": "s1", "words": "a"}\n', ["x.jsonl line 1", "generated", "id, words", "--prediction-field"]),
    ("x.jsonl", '{"id": "s1", "generated": "a"}\n{"id": "s2"}\n', ["x.jsonl line 2", "field generated"]),
    ("x.jsonl", '{"id": "s1", "generated": null}\n', ["x.jsonl line 1", "field generated", "null"]),
    ("x.jsonl", '{"id": "s1", "generated": "a"}\n', ["x.jsonl", "3 of the 4", "references.jsonl", "line 2"]),
    ("x.json", json.dumps({**PREDICTIONS, "s5": "a", "s6": "b"}), ["x.json has 2 ", "references.jsonl", "entry 5"]),
    ("x.json", json.dumps({"train": [], "val": []}), ["x.json", "split test", "train, val", "--split"]),
    ("x.json", json.dumps({"nlg": {}, "baselines": {}}), ["x.json", ".jsonl"]),
    ("x.csv", "id,report\ns1,a, b\n", ["x.csv line 2", "header"]),
    ("x.txt", "a\nb\n", ["4 reports in", "references.jsonl", "2 in", "x.txt has no ids"]),
    ("x.txt", "", ["x.txt"]),
    ("x.csv", "s1,A text of s1\ns2,Another\n", ["x.csv line 1", "generated", "2 columns", "--prediction-field"]),
    ("x.jsonl", '{"s1": "A text of s1", "hint": 1, "A text of s1": 2}\n', ["x.jsonl line 1", "hint, 2 that"]),
    ("x.csv", 'id,report\n"s1",a\ns2,"b\ns3,c\ns4,d\n', ["x.csv line 3"]),
    ("x.csv", "id,report\ns1," + 200_000 * "a", ["x.csv line 2"]),
    ("x.json", '{"s2": "a", "s1": "b", "s3": "c", "s1": "d"}', ["x.json: entry 4"]),
    ("x.jsonl", '{"id": "s1", "pred": "b", "pred": "s1"}', ["x.jsonl line 1: entry 3"]),
    ("x.csv", "uid,pred\nu1,a\nu2,b\n", ["references.jsonl", "field id", "x.csv", "field uid", "--id-field"]),
    ("x.pkl", "", ["x.pkl", ".jsonl, .json, .csv, .tsv or .txt"]),
    ("absent.jsonl", None, ["absent.jsonl"]),
])
def test_errors_name_the_file_and_the_line(tmp_path, references, name, content, parts):
  if content is not None:
    (tmp_path / name).write_text(content)
  with pytest.raises(UserError) as error:
    match_studies(references, read_reports(str(tmp_path / name), "predictions"))
  message = str(error.value)
  assert all(part in message for part in parts), message
  assert "s1" not in message.replace(str(tmp_path), "")                 # an id may be restricted
  assert "\n" not in message


def test_reports_are_matched_by_id_or_by_order(tmp_path, references):
  (tmp_path / "x.json").write_text(json.dumps(PREDICTIONS))
  predictions = read_reports(str(tmp_path / "x.json"), "predictions")
  assert [predictions.texts[row] for row in match_studies(references, predictions)] == [
      PREDICTIONS[name] for name in REFERENCES]
  (tmp_path / "x.txt").write_text("a\nb\nc\nd\n")
  assert match_studies(references, read_reports(str(tmp_path / "x.txt"), "predictions")) == [0, 1, 2, 3]


def test_only_a_line_break_ends_a_line(tmp_path):
  (tmp_path / "x.txt").write_bytes("a\u2028b\r\nc\x0cd\n\ne\n".encode())
  assert read_reports(str(tmp_path / "x.txt"), "predictions").texts == ["a\u2028b", "c\x0cd", "", "e"]


def test_a_named_field_takes_precedence_over_the_default_ones(tmp_path):
  (tmp_path / "x.jsonl").write_text('{"id": "a", "uid": "b", "report": "wrong", "custom": "right"}\n')
  table = read_reports(str(tmp_path / "x.jsonl"), "predictions", text_field="custom", id_field="uid")
  assert (table.texts, table.ids) == (["right"], ["b"])
  assert match_studies(table, table) == [0]


def test_a_study_with_a_blank_subject_is_a_subject_of_its_own(tmp_path):
  (tmp_path / "blank.csv").write_text("study_id,report,subject_id\n" + "".join(
      f'{name},"{text}",\n' for name, text in REFERENCES.items()))
  assert read_reports(str(tmp_path / "blank.csv"), "references").subjects is None
  (tmp_path / "null.jsonl").write_text("".join(json.dumps(
      {"id": name, "report": text, "subject_id": {"s1": "p", "s2": "p"}.get(name)}) + "\n"
      for name, text in REFERENCES.items()))
  assert read_reports(str(tmp_path / "null.jsonl"), "references").subjects == ["p", "p", "s3", "s4"]


@pytest.mark.parametrize("name", ["x.json", "x.jsonl", "x.csv", "x.tsv", "x.txt"])
def test_a_byte_order_mark_changes_nothing(tmp_path, name):
  contents = {"x.json": '[{"id": "a", "pred": "b c"}]', "x.jsonl": '{"id": "a", "pred": "b c"}\n',
              "x.csv": "id,pred\na,b c\n", "x.tsv": "id\tpred\na\tb c\n", "x.txt": "b c\n"}
  tables = []
  for encoding in ("utf-8", "utf-8-sig"):
    (tmp_path / name).write_bytes(contents[name].encode(encoding))
    tables.append(read_reports(str(tmp_path / name), "predictions"))
  assert tables[0] == tables[1] and tables[0].texts == ["b c"]
  (tmp_path / name).write_bytes(contents[name].encode("utf-16"))
  with pytest.raises(UserError, match=f"{name}.*UTF-16"):
    read_reports(str(tmp_path / name), "predictions")


@pytest.mark.parametrize("content", [
    r'{"a\ud83d": "The heart is \ud83d", "b": "clear"}', r'[{"id": "a\ud83d", "pred": "The heart is \ud83d"}, {"id": '
    r'"b", "pred": "clear"}]'])
def test_lone_surrogates_are_replaced_with_a_note(tmp_path, content):
  (tmp_path / "x.json").write_text(content)
  table = read_reports(str(tmp_path / "x.json"), "predictions")
  assert table.texts == ["The heart is \ufffd", "clear"] and table.ids == ["a\ufffd", "b"]
  assert list(table.notes) == [str(tmp_path / "x.json")] and "1" in table.notes[str(tmp_path / "x.json")]


def test_ids_that_a_replacement_makes_equal_are_refused(tmp_path):
  (tmp_path / "x.json").write_text(r'{"a\ud83d": "x", "a\ud83e": "y"}')
  with pytest.raises(UserError, match="x.json entry 2"):
    read_reports(str(tmp_path / "x.json"), "predictions")


@pytest.mark.parametrize("name", ["x.json", "x.jsonl"])
def test_deep_brackets_get_one_line(tmp_path, name):
  for content in ("[" * 3000, '[{"id": "a", "pred": ' + "[" * 3000 + "]" * 3000 + "}]"):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=name):
      read_reports(str(tmp_path / name), "predictions")
