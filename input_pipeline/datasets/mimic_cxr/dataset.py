"""Records from the files of MIMIC-CXR and MIMIC-CXR-JPG that PhysioNet distributes.

`data.source_dir` is the folder of MIMIC-CXR-JPG 2.0.0 or 2.1.0 (Johnson et al.,
2019, arXiv 1901.07042):

  mimic-cxr-2.0.0-{split,metadata,chexpert,negbio}.csv.gz
  mimic-cxr-2.1.0-test-set-labeled.csv                     in release 2.1.0; optional
  files/p10/p10000032/s50414267/<dicom_id>.jpg             or .dcm from MIMIC-CXR (`images: dcm`)

The reports are part of MIMIC-CXR, as mimic-cxr-reports.zip or extracted
(`reports`). With `unit: study` a record is a study with all its views and the
sections of its report. With `unit: image` the records are those of R2Gen's
annotation.json in the same folder: one per image, with R2Gen's report text.

Every study with findings or impression is kept, whatever `data.target` is.
Reports that are too short to train on are skipped when records are read
(splits.py), so that half a terabyte of images needn't be read again for another
target.

The labels come from the csv files, whose authors extracted them from the
impression if there is one (see the field `labels_from`). They are not a reference
for generated findings.
"""

import collections
import functools
import hashlib
import json

from etils import epath
from ml_collections import ConfigDict
import tensorflow_datasets as tfds

from input_pipeline.datasets import r2gen_json, records
from input_pipeline.datasets.mimic_cxr import sections, tables
from input_pipeline.datasets.mimic_cxr.reports import find_report_archive, open_report_archive, ReportArchive
from input_pipeline.datasets.records import SPLITS
from mcsam_jax.errors import UserError

R2GEN_COUNTS = {"train": 270790, "val": 2130, "test": 3858}      # records in R2Gen's annotation (Chen et al., 2020)
_REQUIRED_VIEWS = {"any": set(), "frontal": {"frontal"}, "lateral": {"lateral"}, "both": {"frontal", "lateral"}}


class MimicCxr(records.RecordBuilder):
  """Builds one record per study or per image; create it with `make_builder`."""
  name = "mimic_cxr"
  VERSION = tfds.core.Version("1.0.0")
  data: ConfigDict                       # config.data
  source: epath.Path
  show_ids: bool                         # whether errors name records, studies and subjects

  def plan(self) -> records.BuildPlan:
    by_image = self.data.mimic_cxr.unit == "image"
    plan = _plan_images(self.source, self.data, self.show_ids) if by_image else _plan_studies(self.source, self.data)
    self._check_files_exist(plan.entries["train"][:20])
    return plan

  def _check_files_exist(self, entries: list[dict]) -> None:
    """Raises UserError if no image or no report of `entries` exists, which means that a path is configured wrongly."""
    kind = self.data.mimic_cxr.images
    exists = {suffix: any((self.source / "files" / _study_folder(entry) / f"{image['id']}.{suffix}").exists()
                          for entry in entries for image in entry["images"]) for suffix in ("jpg", "dcm")}
    if entries and not exists[kind]:
      other = {"jpg": "dcm", "dcm": "jpg"}[kind]
      hint = (f"there are .{other} files: set --config.data.mimic_cxr.images={other}" if exists[other] else
              "set --config.data.source_dir to the folder that contains files/p10 ... p19")
      raise UserError(f"none of the first images is in {self.source / 'files'} as .{kind}; {hint}")
    if entries and "report" not in entries[0] and not any(map(self._reports.has, map(_study_folder, entries))):
      raise UserError(f"none of the first reports is in {self._reports.path}; set --config.data.mimic_cxr.reports to "
                      "mimic-cxr-reports.zip of MIMIC-CXR, or to the folder with its contents")

  def describe_entry(self, entry: dict) -> str:
    return f"p{entry['subject']}/s{entry['study']}"

  def build_record(self, entry: dict) -> dict:
    report = {"findings": entry["report"]} if "report" in entry else self._read_sections(entry)
    folder = self.source / "files" / _study_folder(entry)
    kind = self.data.mimic_cxr.images
    return records.make_empty_record() | report | {
        "id": entry["id"],
        "study_id": entry["study"],
        "subject_id": entry["subject"],
        "images": [self.load_image(folder / f"{image['id']}.{kind}", self.data) for image in entry["images"]],
        "dicom_ids": [image["id"] for image in entry["images"]],
        "views": [image["view"] for image in entry["images"]],
        "source_views": [image["source_view"] for image in entry["images"]],
        "study_datetime": entry["acquired_at"],
        "labels": records.make_empty_record()["labels"] | entry["labels"],
        "labels_from": entry["labels_from"],
    }

  def _read_sections(self, entry: dict) -> dict[str, str]:
    text = self._reports.read(_study_folder(entry))
    report = sections.extract_sections(text, f"s{entry['study']}")
    if not report["findings"] and not report["impression"]:
      raise records.SkipRecord("neither findings nor impression")
    return report

  @functools.cached_property
  def _reports(self) -> ReportArchive:
    return open_report_archive(self.source, self.data.mimic_cxr.reports)


def make_builder(config: ConfigDict) -> MimicCxr:
  """Returns the builder for a config; its name contains digests of the settings and of the source files.

  On a host that has the records but not the source, the prepared records in `data.data_dir` with the same settings
  are used.

  Raises:
    UserError: the settings contradict each other, or neither the source nor exactly one matching set of records exists.
  """
  data, source = config.data, epath.Path(config.data.source_dir)
  if data.mimic_cxr.images == "jpg" and data.dicom_rendering != "mimic_cxr_jpg":
    raise UserError(f"data.dicom_rendering={data.dicom_rendering}: the JPGs of MIMIC-CXR-JPG are already rendered; "
                    "set data.dicom_rendering=mimic_cxr_jpg or data.mimic_cxr.images=dcm")
  by_image = data.mimic_cxr.unit == "image"
  if by_image and data.target != "findings":
    raise UserError(f"data.target={data.target}: R2Gen's annotation has undivided reports, so unit=image needs "
                    "data.target=findings")
  if by_image and data.mimic_cxr.required_views != "any":
    raise UserError(f"data.mimic_cxr.required_views={data.mimic_cxr.required_views}: must be any with unit=image, "
                    "where each record has one view")
  settings = {**data.mimic_cxr.to_dict(), "short_side": data.short_side, "rendering": data.dicom_rendering}
  for field in ("reports", *(["view_order", "required_views"] if by_image else [])):
    del settings[field]
  prefix = f"{data.mimic_cxr.unit}-{data.short_side or 'original'}-{_digest(json.dumps(settings, sort_keys=True))}"
  files = _list_source_files(source, data)
  if all(path.exists() for path in files):
    contents = [_hash_file(str(path), path.stat().mtime) for path in files]
    reports = None if by_image else find_report_archive(source, data.mimic_cxr.reports)
    if reports is not None:
      in_zip = reports.suffix == ".zip"
      contents.append(_hash_file(str(reports), reports.stat().mtime) if in_zip else str(reports))
    name = f"{prefix}-{_digest(''.join(contents))}"
  else:
    prepared = list((epath.Path(data.data_dir) / MimicCxr.name).glob(f"{prefix}-*/{MimicCxr.VERSION}"))
    if len(prepared) != 1:
      missing = next(path for path in files if not path.exists())
      raise UserError(f"{missing} not found; set --config.data.source_dir to the folder that contains it"
                      + (f" ({len(prepared)} sets of records in {data.data_dir} match these settings)"
                         if prepared else ""))
    name = prepared[0].parent.name
  builder = MimicCxr(data_dir=data.data_dir, file_format="array_record",
                     config=tfds.core.BuilderConfig(name=name, version=MimicCxr.VERSION))
  builder.data, builder.source, builder.show_ids = data, source, config.prepare.show_ids or not data.restricted
  return builder


def _list_source_files(source: epath.Path, data: ConfigDict) -> list[epath.Path]:
  """Returns the files that determine the records: all required ones, and those optional ones that exist."""
  required, optional = [tables.SPLIT, tables.METADATA], []
  if data.mimic_cxr.labels != "none":
    required.append(tables.LABELS[data.mimic_cxr.labels])
    optional.append(tables.RADIOLOGIST_LABELS)
  if data.mimic_cxr.unit == "image":
    required, optional = [], required + optional
  found = [tables.find_optional_table(source / name) or source / f"{name}.gz" for name in required]
  found_optional = [tables.find_optional_table(source / name) for name in optional]
  return [source / "annotation.json"] * (not required) + found + [path for path in found_optional if path is not None]


def _digest(text: str) -> str:
  return hashlib.sha256(text.encode()).hexdigest()[:10]


@functools.lru_cache
def _hash_file(path: str, modified: float) -> str:
  del modified                                      # part of the cache key: a changed file is hashed again
  return hashlib.sha256(epath.Path(path).read_bytes()).hexdigest()


def _plan_studies(source: epath.Path, data: ConfigDict) -> records.BuildPlan:
  """Plans one record for each study that has the required views."""
  studies = collections.defaultdict(list)
  for image in tables.read_images(source):
    studies[image.split, image.study_id].append(image)
  labels = _Labels(source, data.mimic_cxr.labels)
  entries, skipped = {split: [] for split in SPLITS}, {split: collections.Counter() for split in SPLITS}
  num_unlabeled = 0
  for (split, study), study_images in studies.items():
    missing = _REQUIRED_VIEWS[data.mimic_cxr.required_views] - {image.view for image in study_images}
    if missing:
      skipped[split][f"no {' and no '.join(sorted(missing))} view"] += 1
      continue
    num_unlabeled += not labels.has(study)
    entries[split].append({
        "id": f"s{study}", "study": study, "subject": study_images[0].subject_id,
        "images": [{"id": image.dicom_id, "view": image.view, "source_view": image.source_view}
                   for image in order_images(study_images, data.mimic_cxr.view_order)],
        "acquired_at": min(image.acquired_at for image in study_images),
        **labels.make_fields(study)})
  notes = []
  if data.mimic_cxr.labels != "none" and num_unlabeled:
    notes.append(f"{num_unlabeled:,} studies, dropped ones included, have no row of labels")
  num_without_metadata = sum(not image.has_metadata for study_images in studies.values() for image in study_images)
  if num_without_metadata:
    notes.append(f"{num_without_metadata:,} images have no row in the metadata, so their view is unknown")
  return records.BuildPlan(entries, {split: dict(counts) for split, counts in skipped.items()}, notes)


def order_images(study_images: list[tables.CxrImage], rule: str) -> list[tables.CxrImage]:
  """Returns the images of a study with the best frontal first and the best lateral second, then all others.

  Args:
    study_images: the images in any order.
    rule: which image of a view is best. `acquisition`: the earliest, with ties resolved by dicom_id. `pa_first`: PA
      images before AP images, then as in `acquisition`.
  """
  def rank(image):
    return (rule == "pa_first" and not image.source_view.lower().startswith(("pa", "postero")), image.acquired_at,
            image.dicom_id)

  ranked = sorted(study_images, key=rank)
  best = [next((image for image in ranked if image.view == view), None) for view in ("frontal", "lateral")]
  best = [image for image in best if image is not None]
  views = ("frontal", "lateral", "other")
  return best + sorted((image for image in ranked if image not in best), key=lambda image: views.index(image.view))


class _Labels:
  """The labels of all studies: the radiologists' if there are any for a study, else those of a tool."""

  def __init__(self, source: epath.Path, tool: str):
    """Reads the csv files of a tool (chexpert | negbio | none) and of the radiologists, if there is one."""
    self._tool = tool
    self._by_tool, self._by_radiologists = {}, {}
    if tool != "none":
      self._by_tool = tables.read_labels(source / tables.LABELS[tool])
      if tables.find_optional_table(source / tables.RADIOLOGIST_LABELS):
        self._by_radiologists = tables.read_labels(source / tables.RADIOLOGIST_LABELS)

  def has(self, study: str) -> bool:
    return study in self._by_radiologists or study in self._by_tool

  def make_fields(self, study: str) -> dict:
    """Returns the label fields of a study's entry; both are empty if the study has no labels."""
    if study in self._by_radiologists:
      return {"labels": self._by_radiologists[study], "labels_from": tables.RADIOLOGIST_LABELS_SOURCE}
    if study in self._by_tool:
      return {"labels": self._by_tool[study], "labels_from": tables.TOOL_LABELS_SOURCE[self._tool]}
    return {"labels": {}, "labels_from": ""}


def _plan_images(source: epath.Path, data: ConfigDict, show_ids: bool) -> records.BuildPlan:
  """Plans one record for each entry of R2Gen's annotation, with views and labels from the csv files if they exist."""
  annotation = r2gen_json.read_annotation(source / "annotation.json", show_ids=show_ids)
  images_by_id, labels = {}, _Labels(source, "none")
  if all(tables.find_optional_table(source / name) for name in (tables.SPLIT, tables.METADATA)):
    images_by_id = {image.dicom_id: image for image in tables.read_images(source)}
    labels = _Labels(source, data.mimic_cxr.labels)
  entries = {split: [] for split in SPLITS}
  for split in SPLITS:
    for position, entry in enumerate(annotation[split]):
      if not {"study_id", "subject_id"} <= entry.keys():
        raise UserError(f"{source / 'annotation.json'}: entry {position} of split {split} has no study_id or "
                        "subject_id; for an annotation of another data set use data.name=r2gen_json")
      study, subject = str(entry["study_id"]), str(entry["subject_id"])
      entry_images = []
      for path in entry["image_path"]:
        dicom_id = epath.Path(path).stem
        image = images_by_id.get(dicom_id)
        entry_images.append({"id": dicom_id, "view": image.view if image else "other",
                             "source_view": image.source_view if image else ""})
      first = images_by_id.get(entry_images[0]["id"])
      entries[split].append({
          "id": str(entry["id"]), "study": study, "subject": subject, "images": entry_images,
          "report": entry["report"], "acquired_at": first.acquired_at if first else "", **labels.make_fields(study)})
  expected = " / ".join(f"{R2GEN_COUNTS[split]:,}" for split in SPLITS)
  found = " / ".join(f"{len(entries[split]):,}" for split in SPLITS)
  notes = [f"records of R2Gen's protocol (train / val / test): {expected} expected, {found} found in the annotation"]
  if not images_by_id:
    notes.append("all views are unknown, because the split and metadata files are missing")
  if data.min_words or data.num_views != 1:
    notes.append(f"R2Gen's protocol uses data.min_words=0 and data.num_views=1, but this config uses {data.min_words} "
                 f"and {data.num_views}")
  return records.BuildPlan(entries, notes=notes)


def _study_folder(entry: dict) -> str:
  """Returns the path of a study relative to files/, for example p10/p10000032/s50414267."""
  return f"p{entry['subject'][:2]}/p{entry['subject']}/s{entry['study']}"
