"""MIMIC-CXR records from synthetic files: counts, labels, views, and errors, which contain no ids of the data set."""

import gzip
import json
import re
import zipfile

import numpy as np
import pytest

from input_pipeline import splits
from input_pipeline.builder.prepare import prepare
from input_pipeline.builder.tokenizer import tokenizer_dir
from input_pipeline.datasets import make_builder
from input_pipeline.datasets.mimic_cxr import dataset, tables
from input_pipeline.images import decode
from mcsam_jax.config import load_config
from mcsam_jax.errors import UserError
from tests.testing import physionet

COUNT = 210


def load_mimic_config(folder, data_dir, *overrides):
  return load_config("mimic_cxr", [f"--config.data.source_dir={folder}", f"--config.data.data_dir={data_dir}",
                                   "--config.tokenizer.threshold=1", "--config.prepare.max_corrupt_records=0",
                                   *overrides])


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
  folder = tmp_path_factory.mktemp("mimic-cxr-jpg")
  return folder, physionet.write_tree(folder, COUNT)


@pytest.fixture(scope="module")
def built(tree, tmp_path_factory):
  config = load_mimic_config(tree[0], tmp_path_factory.mktemp("data"))
  lines = []
  prepare(config, log=lines.append)
  return config, tree[1], "\n".join(lines)


@pytest.fixture
def small(tmp_path):
  """Returns a source folder that a test may damage, and the config for it."""
  physionet.write_tree(tmp_path / "source", 30)
  return tmp_path / "source", load_mimic_config(tmp_path / "source", tmp_path / "data")


def rewrite(path, change):
  text = gzip.decompress(path.read_bytes()).decode()
  path.write_bytes(gzip.compress(change(text).encode()))


def table_row(table, reason):
  found = re.search(rf"^{re.escape(reason)} +([\d,]+) +([\d,]+) +([\d,]+)$", table, re.MULTILINE)
  return [int(count.replace(",", "")) for count in found.groups()] if found else [0, 0, 0]


@pytest.mark.parametrize("target", ["findings", "impression"])
def test_kept_and_skipped_studies_are_counted_by_reason(built, target):
  config, studies, _ = built
  config = load_mimic_config(config.data.source_dir, config.data.data_dir, f"--config.data.target={target}")
  lines = []
  prepare(config, log=lines.append)
  assert lines[0].startswith("Records are in"), "another target must not read the images again"
  counts = physionet.expected_counts(studies, target)
  for reason in set().union(*counts.values()):
    assert table_row("\n".join(lines), reason) == [counts[split][reason] for split in ("train", "val", "test")], reason
  stored = json.loads((tokenizer_dir(config) / "summary.json").read_text())
  assert {split: row["study_counts"] for split, row in stored.items()} == {
      split: {reason: count for reason, count in row.items() if count} for split, row in counts.items()}
  assert {split: len(splits.open_split(config, split)) for split in counts} == {
      split: count["kept"] for split, count in counts.items()}


def test_target_both_joins_findings_and_impression(built):
  config, studies, _ = built
  config = load_mimic_config(config.data.source_dir, config.data.data_dir, "--config.data.target=both")
  split = splits.open_split(config, "train")
  assert len(split) == sum(study.split == "train" and study.kind in ("both", "findings", "impression")
                           for study in studies)
  assert any("No pneumothorax. Stable appearance" in report for report in split.reports)


def test_studies_without_required_views_are_skipped(tree, tmp_path):
  folder, studies = tree
  config = load_mimic_config(folder, tmp_path, "--config.data.mimic_cxr.required_views=both")
  lines = []
  prepare(config, log=lines.append)
  counts = physionet.expected_counts(studies, required="both")
  for reason in ("no lateral view", "no frontal view", "no frontal and no lateral view", "kept"):
    assert table_row("\n".join(lines), reason) == [counts[split][reason] for split in ("train", "val", "test")], reason
    assert counts["train"][reason]


def test_record_fields(built):
  config, studies, output = built
  test, by_id = splits.open_split(config, "test"), {f"s{study.study}": study for study in studies}
  seen = set()
  for number in range(len(test)):
    record = test[number]
    study = by_id[record["id"]]
    views = {"PA": "frontal", "AP": "frontal", "postero-anterior": "frontal", "LL": "lateral", "LATERAL": "lateral"}
    source_views = {study.dicom_id(view): position or meaning for view, (position, meaning) in enumerate(study.views)}
    assert dict(zip(record["dicom_ids"], record["source_views"])) == source_views
    assert record["views"] == [views.get(word, "other") for word in record["source_views"]]
    in_order = sorted(record["views"], key=("frontal", "lateral", "other").index)
    assert record["views"] == in_order or len(source_views) > 2
    assert record["study_datetime"].startswith("2180-05-") and record["study_datetime"].endswith("T09:00:00")
    assert record["indication"].endswith("year old with cough.") and record["comparison"] == "None."
    values = {"1.0": "positive", "0.0": "negative", "-1.0": "uncertain", "": "absent"}
    assert record["labels"] == {finding: values[physionet.label_value(study, finding)] if study.labeled else "absent"
                                for finding in record["labels"]}
    assert record["labels_from"].startswith("impression") if study.labeled else record["labels_from"] == ""
    seen.add(tuple(record["source_views"]))
  assert ("PA", "AP") in seen, "a PA image comes before an AP image"
  num_unlabeled = sum(not study.labeled for study in studies)
  assert num_unlabeled and re.search(rf"\b{num_unlabeled} studies.*labels", output)


def test_labels_of_radiologists_take_precedence(tree, tmp_path):
  folder = tmp_path / "source"
  studies = physionet.write_tree(folder, 60)
  physionet.write_radiologist_labels(folder, studies)
  config = load_mimic_config(folder, tmp_path / "data")
  prepare(config, log=lambda line: None)
  for split in ("train", "test"):
    for record in splits.open_split(config, split):
      assert (record["labels_from"] == tables.RADIOLOGIST_LABELS_SOURCE) == (split == "test")
      if split == "test":
        assert [finding for finding, value in record["labels"].items() if value == "positive"] == ["Lung Opacity"]


def test_dicom_files_give_the_images_of_the_jpgs(tmp_path):
  records = []
  for kind in ("jpg", "dcm"):
    physionet.write_tree(tmp_path / kind, 20, images=kind, zipped=kind == "jpg")
    config = load_mimic_config(tmp_path / kind, tmp_path / "data", f"--config.data.mimic_cxr.images={kind}",
                               "--config.data.dicom_rendering=mimic_cxr_jpg")
    prepare(config, log=lambda line: None)
    split = splits.open_split(config, "train")
    records.append([split[number] for number in range(len(split))])
  for jpg, dcm in zip(*records, strict=True):
    assert jpg["id"] == dcm["id"] and jpg["findings"] == dcm["findings"]
    pairs = [[decode(image, 64)[..., 0].astype(float).ravel() for image in record["images"]] for record in (jpg, dcm)]
    for plain, equalized in zip(*pairs, strict=True):
      assert np.corrcoef(plain, equalized)[0, 1] > .8       # dark stays dark, also for MONOCHROME1


def test_unit_image_follows_r2gens_annotation(tree, tmp_path):
  folder, studies = tree
  annotation = physionet.make_r2gen_annotation(studies)
  (folder / "annotation.json").write_text(json.dumps(annotation))
  config = load_mimic_config(folder, tmp_path, "--config.data.mimic_cxr.unit=image", "--config.data.min_words=0",
                             "--config.data.num_views=1")
  lines = []
  prepare(config, log=lines.append)
  counts = {split: len(entries) for split, entries in annotation.items()}
  note = next(line for line in "\n".join(lines).splitlines() if "270,790 / 2,130 / 3,858" in line)
  assert f"{counts['train']} / {counts['val']} / {counts['test']}" in note
  val = splits.open_split(config, "val")
  assert val.ids == [entry["id"] for entry in annotation["val"]] and val.reports == [
      entry["report"] for entry in annotation["val"]]
  records = [val[number] for number in range(len(val))]
  assert all(len(record["images"]) == 1 for record in records)
  assert {record["source_views"][0] for record in records} > {"PA", "LATERAL"}       # from the csv files


@pytest.mark.parametrize("spoil,message", [
    (lambda source: (source / tables.SPLIT).with_suffix(".csv.gz").unlink(),
     "split.csv.gz not found.*--config.data.source_dir"),
    (lambda source: rewrite(source / "mimic-cxr-2.0.0-metadata.csv.gz", lambda t: t.replace("ViewPosition", "view")),
     "metadata.csv.gz has no column 'ViewPosition'"),
    (lambda source: rewrite(source / "mimic-cxr-2.0.0-chexpert.csv.gz", lambda t: t.replace("Edema", "Oedema")),
     "chexpert.csv.gz has no column 'Edema'.*'Oedema'"),
    (lambda source: rewrite(source / "mimic-cxr-2.0.0-chexpert.csv.gz", lambda t: t.replace("-1.0", "maybe", 1)),
     "chexpert.csv.gz, row 2: .*1.0, 0.0, -1.0"),
    (lambda source: rewrite(source / "mimic-cxr-2.0.0-split.csv.gz", lambda t: t.replace("train", "training", 1)),
     "split.csv.gz, row 2: .*train, validate, test"),
    (lambda source: rewrite(source / "mimic-cxr-2.0.0-split.csv.gz", lambda t: t.partition("\n")[2]),
     "split.csv.gz has no column 'dicom_id'"),
    (lambda source: rewrite(source / "mimic-cxr-2.0.0-negbio.csv.gz", lambda t: "") or
     rewrite(source / "mimic-cxr-2.0.0-chexpert.csv.gz", lambda t: ""), "chexpert.csv.gz has no column .*empty"),
    (lambda source: flip_bits(source / "mimic-cxr-2.0.0-split.csv.gz"), "split.csv.gz is damaged"),
    (lambda source: (source / "files").rename(source / "pictures"),
     "first images.*files as .jpg; set --config.data.source_dir"),
    (lambda source: rewrite(source / "mimic-cxr-2.0.0-split.csv.gz", lambda t: t.replace("train", "test", 1)),
     "split.csv.gz, rows 2 and 3: .*subject_id.* test and train"),
    (lambda source: (source / "mimic-cxr-2.0.0-split.csv.gz").write_bytes(
        (source / "mimic-cxr-2.0.0-split.csv.gz").read_bytes()[:-300]), "split.csv.gz is damaged"),
    (lambda source: (source / "mimic-cxr-reports.zip").unlink(),
     "no reports at .*mimic-cxr-reports.zip.*--config.data.mimic_cxr.reports"),
    (lambda source: (source / "mimic-cxr-reports.zip").write_bytes(b"PK"), "mimic-cxr-reports.zip.*zip file"),
])
def test_errors_in_source_files_are_one_line_without_ids(small, spoil, message):
  source, config = small
  spoil(source)
  with pytest.raises(UserError, match=message) as error:
    prepare(config, log=lambda line: None)
  assert "\n" not in str(error.value)
  assert_no_ids(str(error.value).replace(str(source), ""), physionet.make_studies(30))


def flip_bits(path):
  data = bytearray(path.read_bytes())
  data[100:104] = bytes(255 - byte for byte in data[100:104])
  path.write_bytes(data)


def assert_no_ids(text, studies):
  for study in studies:
    for name in (study.subject, study.study, study.dicom_id(0)):
      assert name not in text


def spoil_image(source, studies):
  path = next((source / "files" / studies[1].folder).glob("*.jpg"))
  path.write_bytes(path.read_bytes()[:900])


def remove_report(source, studies):
  del studies
  with zipfile.ZipFile(source / "mimic-cxr-reports.zip") as archive:
    reports = {name: archive.read(name) for name in archive.namelist()}
  del reports[list(reports)[1]]
  with zipfile.ZipFile(source / "mimic-cxr-reports.zip", "w") as archive:
    for name, text in reports.items():
      archive.writestr(name, text)


@pytest.mark.parametrize("spoil,reason", [
    (spoil_image, ".*SHA-256 of the file [0-9a-f]{16}"), (remove_report, "no report")])
def test_build_stops_at_more_corrupt_records_than_allowed(small, spoil, reason):
  source, config = small
  studies = physionet.make_studies(30)
  spoil(source, studies)
  with pytest.raises(UserError, match=f"record 1 of split train can't be read \\({reason}") as error:
    prepare(config, log=lambda line: None)
  assert_no_ids(str(error.value), studies)
  config = load_mimic_config(source, config.data.data_dir, "--config.prepare.show_ids=true")
  with pytest.raises(UserError, match=studies[1].study):
    prepare(config, log=lambda line: None)
  config = load_mimic_config(source, config.data.data_dir, "--config.prepare.max_corrupt_records=1")
  lines = []
  prepare(config, log=lines.append)
  assert table_row("\n".join(lines), "unreadable file") == [1, 0, 0]
  assert_no_ids("\n".join(lines), studies)
  corrupt, = map(json.loads, (splits.dataset_dir(config) / "corrupt_records.jsonl").read_text().splitlines())
  assert corrupt["split"] == "train" and corrupt["position"] == 1 and studies[1].study in corrupt["file"]


def test_damaged_report_in_a_compressed_archive_is_a_corrupt_record(small):
  source, config = small
  with zipfile.ZipFile(source / "mimic-cxr-reports.zip") as archive:
    reports = {name: archive.read(name) for name in archive.namelist()}
  with zipfile.ZipFile(source / "mimic-cxr-reports.zip", "w", zipfile.ZIP_DEFLATED) as archive:
    for name, text in reports.items():
      archive.writestr(name, text)
    offset = archive.getinfo(list(reports)[1]).header_offset + 30 + len(list(reports)[1]) + 20
  data = bytearray((source / "mimic-cxr-reports.zip").read_bytes())
  data[offset:offset + 8] = b"\xff" * 8
  (source / "mimic-cxr-reports.zip").write_bytes(data)
  with pytest.raises(UserError, match="record 1 of split train can't be read .damaged report") as error:
    prepare(config, log=lambda line: None)
  assert_no_ids(str(error.value), physionet.make_studies(30))


@pytest.mark.parametrize("field,value", [("target", "impression"), ("mimic_cxr.required_views", "frontal")])
def test_settings_that_contradict_unit_image_are_refused(small, field, value):
  source, config = small
  with pytest.raises(UserError, match=f"data.{field}"):
    make_builder(load_mimic_config(source, config.data.data_dir, "--config.data.mimic_cxr.unit=image",
                                   f"--config.data.{field}={value}"))


def test_error_suggests_the_image_format_that_exists(tmp_path):
  physionet.write_tree(tmp_path / "source", 6, images="dcm")
  with pytest.raises(UserError, match=r"\.dcm files.*--config.data.mimic_cxr.images=dcm"):
    prepare(load_mimic_config(tmp_path / "source", tmp_path / "data"), log=lambda line: None)


def test_other_dicom_rendering_of_jpgs_is_refused(small):
  source, config = small
  with pytest.raises(UserError, match="data.dicom_rendering=voi.*mimic_cxr_jpg"):
    make_builder(load_mimic_config(source, config.data.data_dir, "--config.data.dicom_rendering=voi"))


def test_records_are_usable_without_their_source(small, tmp_path):
  source, config = small
  prepare(config, log=lambda line: None)
  source.rename(tmp_path / "elsewhere")
  assert len(splits.open_split(config, "train"))


@pytest.mark.parametrize("position,meaning,view", [
    ("PA", "lateral", "frontal"), ("ap", "", "frontal"), ("LL", "", "lateral"), ("", "antero-posterior", "frontal"),
    ("", "Left Lateral", "lateral"), ("LAO", "antero-posterior", "other"), ("", "", "other")])
def test_classify_view(position, meaning, view):
  assert tables.classify_view(position, meaning) == (view, position or meaning)


def test_format_datetime():
  assert tables.format_datetime("21800506", "213014.531") == "2180-05-06T21:30:14"
  assert tables.format_datetime("21800506", "90000.0") == "2180-05-06T09:00:00"
  assert tables.format_datetime("", "") == tables.format_datetime("2180", "x") == ""


def test_order_images():
  make_image = lambda name, view, source_view, acquired_at: tables.CxrImage(
      name, "1", "2", "train", view, source_view, acquired_at, True)
  images = [make_image("c", "lateral", "LL", "1"), make_image("b", "frontal", "AP", "1"),
            make_image("a", "frontal", "PA", "2"),
            make_image("d", "other", "", "0"), make_image("e", "lateral", "LATERAL", "0")]
  names = lambda rule: "".join(image.dicom_id for image in dataset.order_images(images, rule))
  assert names("pa_first") == "aebcd" and names("acquisition") == "beacd"
