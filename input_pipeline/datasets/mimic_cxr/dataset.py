"""Records from what PhysioNet gives of MIMIC-CXR.

`data.source_dir` is the folder of MIMIC-CXR-JPG 2.0.0 or 2.1.0 (Johnson et al.,
2019, arXiv 1901.07042):

  mimic-cxr-2.0.0-{split,metadata,chexpert,negbio}.csv.gz
  mimic-cxr-2.1.0-test-set-labeled.csv                     of 2.1.0; used where it is there
  files/p10/p10000032/s50414267/<dicom_id>.jpg             or .dcm, of MIMIC-CXR (`images: dcm`)

The reports come with MIMIC-CXR, as mimic-cxr-reports.zip or extracted
(`reports`). With `unit: study` a record is a study with all its views and the
sections of its report. With `unit: image` R2Gen's annotation.json, in the same
folder, says what the records are: one an image, with the report as R2Gen took it.

Every study that says something is kept, whatever `data.target` is: what is too
short to be learned from is left out when the records are read (splits.py), so
that nobody reads half a terabyte a second time for another target.

The labels are read from the impression first, by their makers, and stay that:
`labels_from` tells. They are no reference for generated findings.
"""

import collections
import functools
import hashlib
import json

from etils import epath
from ml_collections import ConfigDict
import tensorflow_datasets as tfds

from input_pipeline import images
from input_pipeline.datasets import r2gen_json, records
from input_pipeline.datasets.mimic_cxr import sections, tables
from input_pipeline.datasets.mimic_cxr.reports import find_report_archive, open_report_archive, ReportArchive
from input_pipeline.datasets.records import SPLITS
from mcsam_jax.errors import UserError

R2GEN_COUNTS = {"train": 270790, "val": 2130, "test": 3858}      # records of R2Gen's annotation (Chen et al., 2020)
_NEEDED = {"any": set(), "frontal": {"frontal"}, "lateral": {"lateral"}, "both": {"frontal", "lateral"}}


class MimicCxr(records.RecordBuilder):
  """Builds the records; `make_builder` makes it."""
  name = "mimic_cxr"
  VERSION = tfds.core.Version("1.0.0")
  data: ConfigDict                       # config.data
  source: epath.Path
  show_ids: bool                         # faults of the annotation name records

  def plan(self) -> records.BuildPlan:
    by_image = self.data.mimic_cxr.unit == "image"
    made = _annotated_plan(self.source, self.data, self.show_ids) if by_image else _plan(self.source, self.data)
    self._look(made.entries["train"][:20])
    return made

  def _look(self, entries: list[dict]) -> None:
    """Raises UserError where no image of some entries, or no report, is in its place: then settings are wrong."""
    kind = self.data.mimic_cxr.images
    there = {suffix: any((self.source / "files" / _folder_of(entry) / f"{image['id']}.{suffix}").exists()
                         for entry in entries for image in entry["images"]) for suffix in ("jpg", "dcm")}
    if entries and not there[kind]:
      other = {"jpg": "dcm", "dcm": "jpg"}[kind]
      hint = (f"there are .{other} files: set --config.data.mimic_cxr.images={other}" if there[other] else
              "set --config.data.source_dir to the folder that holds files/p10 ... p19")
      raise UserError(f"none of the first images is in {self.source / 'files'} as .{kind}; {hint}")
    if entries and "report" not in entries[0] and not any(map(self._reports.has, map(_folder_of, entries))):
      raise UserError(f"none of the first reports is in {self._reports.path}; set --config.data.mimic_cxr.reports to "
                      "mimic-cxr-reports.zip of MIMIC-CXR, or to the folder that it was extracted to")

  def describe_entry(self, entry: dict) -> str:
    return f"p{entry['subject']}/s{entry['study']}"

  def build_record(self, entry: dict) -> dict:
    report = {"findings": entry["report"]} if "report" in entry else self._sections(entry)
    folder = self.source / "files" / _folder_of(entry)
    kind = self.data.mimic_cxr.images
    return records.make_empty_record() | report | {
        "id": entry["id"],
        "study_id": entry["study"],
        "subject_id": entry["subject"],
        "images": [images.load_jpeg(folder / f"{image['id']}.{kind}", self.data.short_side, self.data.dicom_rendering)
                   for image in entry["images"]],
        "dicom_ids": [image["id"] for image in entry["images"]],
        "views": [image["view"] for image in entry["images"]],
        "source_views": [image["source_view"] for image in entry["images"]],
        "study_datetime": entry["acquired_at"],
        "labels": records.make_empty_record()["labels"] | entry["labels"],
        "labels_from": entry["labels_from"],
    }

  def _sections(self, entry: dict) -> dict[str, str]:
    text = self._reports.read(_folder_of(entry))
    found = sections.extract_sections(text, f"s{entry['study']}")
    if not found["findings"] and not found["impression"]:
      raise records.SkipRecord("neither findings nor impression")
    return found

  @functools.cached_property
  def _reports(self) -> ReportArchive:
    return open_report_archive(self.source, self.data.mimic_cxr.reports)


def make_builder(config: ConfigDict) -> MimicCxr:
  """Returns the builder of a config, its records in a folder named after the settings and the csv files.

  On a host that has the records but not the source, the one set with these settings is taken.

  Raises:
    UserError: settings that contradict each other, or neither source nor records.
  """
  data, source = config.data, epath.Path(config.data.source_dir)
  if data.mimic_cxr.images == "jpg" and data.dicom_rendering != "mimic_cxr_jpg":
    raise UserError(f"data.dicom_rendering={data.dicom_rendering}: the JPGs of MIMIC-CXR-JPG are rendered as "
                    "mimic_cxr_jpg already; set that, or data.mimic_cxr.images=dcm")
  by_image = data.mimic_cxr.unit == "image"
  if by_image and data.target != "findings":
    raise UserError(f"data.target={data.target}: the reports of R2Gen's annotation aren't divided, its target is "
                    "findings")
  if by_image and data.mimic_cxr.required_views != "any":
    raise UserError("data.mimic_cxr.required_views goes with unit=study: an image is one view")
  settings = {**data.mimic_cxr.to_dict(), "short_side": data.short_side, "rendering": data.dicom_rendering}
  for field in ("reports", *(["view_order", "required_views"] if by_image else [])):
    del settings[field]
  prefix = f"{data.mimic_cxr.unit}-{data.short_side or 'original'}-{_digest(json.dumps(settings, sort_keys=True))}"
  files = _sources(source, data)
  if all(path.exists() for path in files):
    contents = [_digest_of_file(str(path), path.stat().mtime) for path in files]
    reports = None if by_image else find_report_archive(source, data.mimic_cxr.reports)
    if reports is not None:
      in_zip = reports.suffix == ".zip"
      contents.append(_digest_of_file(str(reports), reports.stat().mtime) if in_zip else str(reports))
    name = f"{prefix}-{_digest(''.join(contents))}"
  else:
    prepared = list((epath.Path(data.data_dir) / MimicCxr.name).glob(f"{prefix}-*/{MimicCxr.VERSION}"))
    if len(prepared) != 1:
      missing = next(path for path in files if not path.exists())
      raise UserError(f"{missing} not found; set --config.data.source_dir to the folder that holds it"
                      + (f" ({len(prepared)} sets of records in {data.data_dir} could be meant)" if prepared else ""))
    name = prepared[0].parent.name
  builder = MimicCxr(data_dir=data.data_dir, file_format="array_record",
                     config=tfds.core.BuilderConfig(name=name, version=MimicCxr.VERSION))
  builder.data, builder.source, builder.show_ids = data, source, config.prepare.show_ids or not data.restricted
  return builder


def _sources(source: epath.Path, data: ConfigDict) -> list[epath.Path]:
  """Returns the files that decide what the records are."""
  names, may_lack = [tables.SPLIT, tables.METADATA], []
  if data.mimic_cxr.labels != "none":
    names.append(tables.LABELS[data.mimic_cxr.labels])
    may_lack.append(tables.MANUAL_LABELS)
  if data.mimic_cxr.unit == "image":
    names, may_lack = [], names + may_lack
  found = [tables.find_table(source / name, required=False) or source / f"{name}.gz" for name in names]
  optional = [tables.find_table(source / name, required=False) for name in may_lack]
  return [source / "annotation.json"] * (not names) + found + [path for path in optional if path is not None]


def _digest(text: str) -> str:
  return hashlib.sha256(text.encode()).hexdigest()[:10]


@functools.lru_cache
def _digest_of_file(path: str, changed: float) -> str:
  del changed                                       # a file that was written again is read again
  return hashlib.sha256(epath.Path(path).read_bytes()).hexdigest()


def _plan(source: epath.Path, data: ConfigDict) -> records.BuildPlan:
  """Returns an entry for each study that has the views it needs."""
  studies = collections.defaultdict(list)
  for image in tables.read_images(source):
    studies[image.split, image.study_id].append(image)
  labels, manual = _labels(source, data)
  entries, left = {split: [] for split in SPLITS}, {split: collections.Counter() for split in SPLITS}
  unlabelled = 0
  for (split, study), found in studies.items():
    lacking = _NEEDED[data.mimic_cxr.required_views] - {image.view for image in found}
    if lacking:
      left[split][f"no {' and no '.join(sorted(lacking))} view"] += 1
      continue
    by_whom = tables.RADIOLOGIST_LABELS_SOURCE if study in manual else tables.TOOL_LABELS_SOURCE.get(data.mimic_cxr.labels, "")
    known = manual.get(study, labels.get(study))
    unlabelled += known is None
    entries[split].append({
        "id": f"s{study}", "study": study, "subject": found[0].subject_id,
        "images": [{"id": image.dicom_id, "view": image.view, "source_view": image.source_view}
                   for image in order_images(found, data.mimic_cxr.view_order)],
        "acquired_at": min(image.acquired_at for image in found),
        "labels": known or {}, "labels_from": by_whom if known is not None else ""})
  notes = []
  if data.mimic_cxr.labels != "none" and unlabelled:
    notes.append(f"{unlabelled:,} studies, dropped ones included, have no row of labels")
  undescribed = sum(not image.has_metadata for found in studies.values() for image in found)
  if undescribed:
    notes.append(f"{undescribed:,} images have no row in the metadata, so their view is unknown")
  return records.BuildPlan(entries, {split: dict(counts) for split, counts in left.items()}, notes)


def order_images(found: list[tables.CxrImage], rule: str) -> list[tables.CxrImage]:
  """Returns the images of a study, the best frontal first, the best lateral next, then all others.

  Args:
    rule: which of several is best. pa_first: a PA film before an AP one, then as `acquisition`, which takes the
      earliest, and of those taken at the same time the one whose dicom_id comes first in the alphabet.
  """
  def rank(image):
    return (rule == "pa_first" and not image.source_view.lower().startswith(("pa", "postero")), image.acquired_at,
            image.dicom_id)

  ranked = sorted(found, key=rank)
  first = [next((image for image in ranked if image.view == view), None) for view in ("frontal", "lateral")]
  first = [image for image in first if image is not None]
  kinds = ("frontal", "lateral", "other")
  return first + sorted((image for image in ranked if image not in first), key=lambda image: kinds.index(image.view))


def _labels(source: epath.Path, data: ConfigDict) -> tuple[dict, dict]:
  """Returns the labels of all studies by a tool, and those of a few by radiologists."""
  if data.mimic_cxr.labels == "none":
    return {}, {}
  manual = source / tables.MANUAL_LABELS
  return (tables.read_labels(source / tables.LABELS[data.mimic_cxr.labels]),
          tables.read_labels(manual) if tables.find_table(manual, required=False) else {})


def _annotated_plan(source: epath.Path, data: ConfigDict, show_ids: bool) -> records.BuildPlan:
  """Returns an entry for each image of R2Gen's annotation, with what the csv files tell of it, if they are there."""
  annotation = r2gen_json.read_annotation(source / "annotation.json", show_ids=show_ids)
  known, labels, manual = {}, {}, {}
  if all(tables.find_table(source / name, required=False) for name in (tables.SPLIT, tables.METADATA)):
    known = {image.dicom_id: image for image in tables.read_images(source)}
    labels, manual = _labels(source, data)
  entries = {split: [] for split in SPLITS}
  for split in SPLITS:
    for position, entry in enumerate(annotation[split]):
      if not {"study_id", "subject_id"} <= entry.keys():
        raise UserError(f"{source / 'annotation.json'}: entry {position} of split {split} lacks study_id or "
                        "subject_id; for an annotation of another data set use data.name=r2gen_json")
      study, subject = str(entry["study_id"]), str(entry["subject_id"])
      found = []
      for path in entry["image_path"]:
        name = epath.Path(path).stem
        image = known.get(name)
        found.append({"id": name, "view": image.view if image else "other",
                      "source_view": image.source_view if image else ""})
      own = manual.get(study, labels.get(study))
      by_whom = tables.RADIOLOGIST_LABELS_SOURCE if study in manual else tables.TOOL_LABELS_SOURCE.get(data.mimic_cxr.labels, "")
      entries[split].append({
          "id": str(entry["id"]), "study": study, "subject": subject, "images": found, "report": entry["report"],
          "acquired_at": known[found[0]["id"]].acquired_at if found[0]["id"] in known else "",
          "labels": own or {}, "labels_from": by_whom if own is not None else ""})
  expected = " / ".join(f"{R2GEN_COUNTS[split]:,}" for split in SPLITS)
  here = " / ".join(f"{len(entries[split]):,}" for split in SPLITS)
  notes = [f"records of R2Gen's protocol (train / val / test): {expected} expected, {here} found in the annotation"]
  if not known:
    notes.append("without the split and metadata files beside it no view is known")
  if data.min_words or data.num_views != 1:
    notes.append(f"R2Gen's protocol has data.min_words=0 and data.num_views=1, this config {data.min_words} and "
                 f"{data.num_views}")
  return records.BuildPlan(entries, notes=notes)


def _folder_of(entry: dict) -> str:
  """Returns the folder of a study below files/, without a slash: p10/p10000032/s50414267."""
  return f"p{entry['subject'][:2]}/p{entry['subject']}/s{entry['study']}"
