"""Annotations in R2Gen's format: errors are found before any image is read, and entries become records."""

import json

import pytest

from input_pipeline import datasets, splits
from input_pipeline.builder.prepare import prepare
from input_pipeline.datasets import r2gen_json
from input_pipeline.datasets.annotation_fields import order_images
from mcsam_jax.errors import UserError


def rewrite(folder, change):
  path = folder / "annotation.json"
  annotation = json.loads(path.read_text())
  change(annotation)
  path.write_text(json.dumps(annotation))


def move_to_val(annotation):
  annotation["val"].append({**annotation["train"][1], "split": "val"})


def share_subject(annotation):
  annotation["train"][1]["subject_id"] = annotation["test"][1]["subject_id"] = 77


def empty_two_reports(annotation):
  annotation["train"][1]["report"] = annotation["train"][2]["report"] = " "


@pytest.mark.parametrize("change,message", [
    (lambda a: a["train"][1].pop("split"), "record train1 has no field 'split'"),
    (lambda a: a["train"][1].update(split="test"), "record train1 .*train.*'split'"),
    (lambda a: a.pop("val"), "split 'val'.* train, test"),
    (lambda a: a.update(val=[]), "split 'val'"),
    (move_to_val, r"study train1 .*train and val.* \(and 1 more"),
    (share_subject, "subject 77 .*train and test"),
    (lambda a: a["train"].append(a["train"][3]), "record train3 is listed 2 times"),
    (lambda a: a["test"][2].update(report=""), "record test2 has an empty report"),
    (lambda a: a["test"][2].update(report=" _ . ... ,"), "record test2 has an empty report"),
    (empty_two_reports, r"record train1 has an empty report.*\(and 1 more"),
    (lambda a: a["test"][2].update(image_path=[]), "record test2 has no images"),
    (lambda a: a["test"][2].update(image_path="x.jpg"), "record test2 has no images"),
    (lambda a: a["test"][2].pop("id"), "entry 2 of split test .*'id'"),
])
def test_errors_are_found_before_images_are_read(source, change, message, monkeypatch):
  folder, config = source
  rewrite(folder, change)
  monkeypatch.setattr("input_pipeline.images.load_jpeg", lambda *_: pytest.fail("an image was read"))
  with pytest.raises(UserError, match=message) as error:
    prepare(config, log=lambda line: None)
  assert "\n" not in str(error.value) and "annotation.json" in str(error.value)


@pytest.mark.parametrize("content,message", [(None, "annotation.json not found"), ("{", "annotation.json: not JSON"),
                                             ("[]", "annotation.json: .*train, val, test")])
def test_unreadable_annotation(source, content, message):
  folder, config = source
  (folder / "annotation.json").unlink()
  if content is not None:
    (folder / "annotation.json").write_text(content)
  with pytest.raises(UserError, match=message):
    prepare(config, log=lambda line: None)


@pytest.mark.parametrize("content,message", [
    (None, r"record test3: .*test3_1.jpg can't be read \(No such file"),
    (b"text", r"record test3: .*test3_1.jpg can't be read \(.*unknown format")])
def test_image_errors_name_record_and_file_and_leave_no_records(source, content, message):
  folder, config = source
  path = folder / "images" / "test3_1.jpg"
  original = path.read_bytes()
  path.unlink()
  if content is not None:
    path.write_bytes(content)
  with pytest.raises(UserError, match=message):
    prepare(config, log=lambda line: None)
  builder = datasets.make_builder(config)
  assert not builder.is_prepared() and not builder.data_path.exists()
  path.write_bytes(original)
  prepare(config, log=lambda line: None)


def test_entries_of_mimic_cxr(source):
  folder, config = source
  def like_mimic(annotation):
    annotation["val"][1].update(study_id=50, subject_id=7, image_path=["val1_0.jpg"])
    annotation["val"][2].update(study_id=50, subject_id=7,
                                image_path=["val2_0.jpg", "val2_1.jpg", "val1_1.jpg"])
  rewrite(folder, like_mimic)
  (folder / "images" / "val1_0.jpg").rename(folder / "val1_0.jpg")         # beside the annotation
  prepare(config, log=lambda line: None)
  _, single, triple = splits.open_split(config, "val")
  assert (single["id"], single["study_id"], single["subject_id"]) == ("val1", "50", "7")
  assert single["views"] == ["other"] and single["dicom_ids"] == ["val1_0"]
  assert triple["views"] == ["frontal", "lateral", "other"] and triple["source_views"] == [""] * 3


def test_records_are_usable_without_their_source(source):
  folder, config = source
  prepare(config, log=lambda line: None)
  (folder / "annotation.json").rename(folder / "elsewhere.json")
  assert len(splits.open_split(config, "train")) == 11


def test_another_annotation_has_another_folder(source):
  folder, config = source
  first = r2gen_json.make_builder(config).data_dir
  rewrite(folder, lambda annotation: annotation["train"][0].update(report="Something else."))
  assert r2gen_json.make_builder(config).data_dir != first


@pytest.mark.parametrize("change, message", [
    (lambda a: a["train"][1].update(id=None), "entry 1 of split train.*'id'"),
    (lambda a: a["train"][1].update(id={"a": 1}), "entry 1 of split train.*'id'"),
    (lambda a: a["train"][1].update(subject_id=[]), "entry 1 of split train.*'subject_id'"),
    (lambda a: a["train"][1].update(study_id=True), "entry 1 of split train.*'study_id'"),
    (lambda a: a["test"][2].update(image_path=["a\0.jpg"]), "record test2 has no images"),
    (lambda a: a["test"][2].update(image_path=["\ud83d.jpg"]), "record test2 has no images"),
    (lambda a: a["test"][2].update(image_path=["a" * 5000]), "record test2 has no images"),
    (lambda a: a["test"][2].update(report=["text"]), "record test2 has an empty report")])
def test_fields_of_another_type_are_named(source, change, message):
  folder, _ = source
  rewrite(folder, change)
  with pytest.raises(UserError, match=message):
    r2gen_json.read_annotation(folder / "annotation.json")


@pytest.mark.parametrize("content, part", [
    ("[" * 3000, "annotation.json"), ('{"train": [], "train": []}', "entry 2"), ('{"The heart is big.": 1}', "1 that")])
def test_annotations_that_cannot_be_read_as_one(tmp_path, content, part):
  (tmp_path / "annotation.json").write_text(content)
  with pytest.raises(UserError, match=part) as error:
    r2gen_json.read_annotation(tmp_path / "annotation.json")
  assert "heart" not in str(error.value) and "\n" not in str(error.value)


def test_byte_order_mark_surrogates_and_rare_words(source):
  """An annotation with a byte-order mark is read; halves of surrogate pairs are replaced; <unk> is warned of."""
  folder, config = source
  def change(annotation):
    annotation["train"][1].update(id="train1\ud83d", report="Lungs \ud83d clear.", extra=[[[]]])
    annotation["test"][2]["report"] = "Quite unusual words stand here instead."
  rewrite(folder, change)
  path = folder / "annotation.json"
  path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
  lines = []
  summary = prepare(config, log=lines.append)
  record = splits.open_split(config, "train")[1]
  assert record["id"] == "train1\ufffd" and record["findings"] == "Lungs \ufffd clear."
  assert any("U+FFFD" in line and "1." in line for line in lines)
  # Of four reports of 9 words only the number 1 is unknown, which stood in train1; of a report of 7 words only the full
  # stop is known.
  cleaned = ["the lungs are clear . size is 0 ."] * 4 + ["quite unusual words stand here instead ."]
  assert sum(map(len, map(str.split, cleaned))) == 43
  assert summary["test"]["unk_fraction"] == pytest.approx(7 / 43) and summary["train"]["unk_fraction"] == 0
  assert [line.split()[-1] for line in lines if line.startswith("warning")] and sum(
      line.startswith("warning: 16% of the words of test") for line in lines) == 1


def test_a_threshold_above_every_count_leaves_no_tokenizer(source):
  _, config = source
  config.tokenizer.threshold = 1000
  with pytest.raises(UserError, match="threshold 1000"):
    prepare(config, log=lambda line: None)
def test_views_and_labels_of_an_entry_become_those_of_the_record(source):
  folder, config = source
  entry_of = lambda annotation: annotation["val"][1]
  before = r2gen_json.make_builder(config).data_dir
  rewrite(folder, lambda annotation: entry_of(annotation).update(
      views=["LL", "PA"], labels={"Edema": "uncertain", "Pneumonia": 1, "Fracture": 0, "No Finding": None}))
  rewrite(folder, lambda annotation: annotation["val"][2].update(views=["frontal", "Frontal"]))
  assert r2gen_json.make_builder(config).data_dir != before
  prepare(config, log=lambda line: None)
  without, record, twice = splits.open_split(config, "val")
  assert (record["views"], record["source_views"]) == (["frontal", "lateral"], ["PA", "LL"])
  assert record["dicom_ids"] == ["val1_1", "val1_0"]                          # the frontal image comes first
  assert record["images"][0] == splits.open_split(config, "val")[1]["images"][0] != record["images"][1]
  stated = {finding: label for finding, label in record["labels"].items() if label != "absent"}
  assert stated == {"Edema": "uncertain", "Pneumonia": "positive", "Fracture": "negative"}
  assert record["labels_from"] and not without["labels_from"]
  assert set(without["labels"].values()) == {"absent"} and without["views"] == ["other"]
  assert twice["views"] == ["frontal", "frontal"] and twice["dicom_ids"] == ["val2_0", "val2_1"]


@pytest.mark.parametrize("views, order", [
    (["lateral", "frontal"], [1, 0]), (["frontal", "frontal", "lateral"], [0, 2, 1]), (["other"], [0]),
    (["other", "lateral", "frontal", "lateral"], [2, 1, 3, 0])])
def test_the_first_images_of_a_record_are_of_different_views(views, order):
  assert order_images(views) == order


@pytest.mark.parametrize("fields, part", [
    ({"views": ["PA"]}, "views"), ({"views": "PA"}, "views"), ({"views": ["PA", "frntal"]}, "views"),
    ({"views": ["PA", 3]}, "views"), ({"labels": ["Edema"]}, "labels"), ({"labels": {"Oedema": 1}}, "unknown finding"),
    ({"labels": {"Edema": "yes"}}, "Edema"), ({"labels": {"Edema": 2}}, "Edema"),
    ({"labels": {"Edema": True}}, "Edema")])
def test_invalid_views_and_labels_are_refused_before_images_are_read(source, fields, part, monkeypatch):
  folder, config = source
  rewrite(folder, lambda annotation: annotation["test"][2].update(fields))
  monkeypatch.setattr("input_pipeline.images.load_jpeg", lambda *_: pytest.fail("an image was read"))
  with pytest.raises(UserError, match=f"record test2.*{part}") as error:
    prepare(config, log=lambda line: None)
  assert "frntal" not in str(error.value) and "Oedema" not in str(error.value)
