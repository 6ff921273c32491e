"""A made-up tree of what PhysioNet gives of MIMIC-CXR, of any size, and what a builder should find in it.

Names of files, columns of csv files and the headers of reports are MIMIC-CXR's; subjects, studies, images and words
are invented. Images are a few drawn phantoms, repeated with a pixel changed so that no two files are the same.
Study number i decides everything about study i, so that a count is known without reading a file.
"""

import collections
import csv
import dataclasses
import gzip
import io
import pathlib
import zipfile

import numpy as np
import PIL.Image
import pydicom

from input_pipeline.datasets.phantom.dataset import make_record
from mcsam_jax.findings import FINDINGS

SPLIT_HEADER = ("dicom_id", "study_id", "subject_id", "split")
METADATA_HEADER = ("dicom_id", "subject_id", "study_id", "PerformedProcedureStepDescription", "ViewPosition", "Rows",
                   "Columns", "StudyDate", "StudyTime", "ProcedureCodeSequence_CodeMeaning",
                   "ViewCodeSequence_CodeMeaning", "PatientOrientationCodeSequence_CodeMeaning")
LABEL_HEADER = ("subject_id", "study_id", *sorted(FINDINGS))
NUM_PICTURES = 8
ROWS, COLUMNS = 304, 288
HEADER = "                                 FINAL REPORT\n"


@dataclasses.dataclass
class Study:
  number: int
  subject: str
  study: str
  split: str                    # in MIMIC-CXR's words
  kind: str                     # of report, see `report_of`
  views: list[tuple[str, str]]  # ViewPosition, ViewCodeSequence_CodeMeaning
  labelled: bool

  @property
  def folder(self) -> str:
    return f"p{self.subject[:2]}/p{self.subject}/s{self.study}"

  def dicom_id(self, view: int) -> str:
    return f"{self.number:08x}-{view:08x}-mimic-00000000-made0up0"


KINDS = ("both", "both", "findings", "impression", "both", "short", "nothing", "both", "both", "findings")
VIEWS = ([("PA", ""), ("LATERAL", "")], [("AP", "")], [("", "postero-anterior"), ("LL", "left lateral")],
         [("LATERAL", "")], [("AP", ""), ("PA", "")], [("", "")], [("AP", ""), ("AP", ""), ("LL", "")])


def make_studies(count: int) -> list[Study]:
  """Returns `count` studies; a subject has up to three, all in one split."""
  studies = []
  for number in range(count):
    subject = number // 3 if number % 30 < 15 else number
    place = subject % 20
    studies.append(Study(
        number=number, subject=f"{10000000 + 7 * subject + 10**6 * (subject % 10)}", study=f"{50000000 + 13 * number}",
        split="validate" if place == 3 else "test" if place == 4 else "train", kind=KINDS[number % len(KINDS)],
        views=VIEWS[number % len(VIEWS)], labelled=number % 50 != 7))
  return studies


def report_of(study: Study) -> str:
  """Returns the text of a report; `kind` says what is in it."""
  findings = f"Frontal view of patient ___.  There is finding number {study.number % 97}.\n No pneumothorax."
  impression = f"Stable appearance, number {study.number % 89}."
  if study.kind == "nothing":
    return HEADER + " INDICATION:  ___ year old with cough.\n"
  if study.kind == "short":
    findings, impression = "___ normal ___.", ""
  parts = {"EXAMINATION": "CHEST (PA AND LAT)", "INDICATION": "___ year old with cough.", "COMPARISON": "None."}
  if study.kind in ("both", "findings", "short"):
    parts["FINDINGS"] = findings
  if study.kind in ("both", "impression"):
    parts["IMPRESSION"] = impression
  return HEADER + "".join(f" {header}:  {text}\n \n" for header, text in parts.items())


def expected(studies: list[Study], target: str = "findings", required: str = "any") -> dict[str, collections.Counter]:
  """Returns for each of our splits how many studies are kept, and left out for which reason, three words needed."""
  counts = {split: collections.Counter() for split in ("train", "val", "test")}
  for study in studies:
    counter = counts[{"train": "train", "validate": "val", "test": "test"}[study.split]]
    frontal = any(p in ("AP", "PA") or m == "postero-anterior" for p, m in study.views)
    lateral = any(p in ("LL", "LATERAL") for p, _ in study.views)
    lacking = [name for name, has in (("frontal", frontal), ("lateral", lateral))
               if required in (name, "both") and not has]
    has = {"both": 2, "findings": 1, "impression": 1, "short": 1, "nothing": 0}[study.kind]
    if lacking:
      counter[f"no {' and no '.join(lacking)} view"] += 1
    elif not has:
      counter["neither findings nor impression"] += 1
    elif study.kind not in ("both", "short", target):
      counter[f"no {target}"] += 1
    elif study.kind == "short" and target == "findings":
      counter["findings of fewer than 3 words"] += 1
    elif study.kind == "short":
      counter[f"no {target}"] += 1
    else:
      counter["kept"] += 1
  return counts


def write_tree(folder: pathlib.Path, count: int, images: str = "jpg", zipped: bool = True) -> list[Study]:
  """Writes the tree of `count` studies.

  Args:
    images: jpg, or dcm (12 bits, every other file MONOCHROME1).
    zipped: reports in mimic-cxr-reports.zip; else below mimic-cxr-reports/files.
  """
  studies = make_studies(count)
  pictures = [_draw(number) for number in range(NUM_PICTURES)]
  folder.mkdir(parents=True, exist_ok=True)
  for study in studies:
    place = folder / "files" / study.folder
    place.mkdir(parents=True, exist_ok=True)
    for view in range(len(study.views)):
      pixels = pictures[(study.number + view) % NUM_PICTURES].copy()
      pixels[0, :8] = [255 * (study.number >> bit & 1) for bit in range(8)]
      path = place / f"{study.dicom_id(view)}.{images}"
      if images == "jpg":
        PIL.Image.fromarray(pixels).save(path, quality=95)
      else:
        _write_dicom(path, pixels, "MONOCHROME1" if study.number % 2 else "MONOCHROME2")
  _write_reports(folder, studies, zipped)
  _write_csv(folder / "mimic-cxr-2.0.0-split.csv.gz", SPLIT_HEADER,
             [(study.dicom_id(view), study.study, study.subject, study.split)
              for study in studies for view in range(len(study.views))])
  _write_csv(folder / "mimic-cxr-2.0.0-metadata.csv.gz", METADATA_HEADER,
             [(study.dicom_id(view), study.subject, study.study, "CHEST (PA AND LAT)", position, ROWS, COLUMNS,
               21800506 + study.number % 20, f"{90000 + view}.5", "CHEST (PA AND LAT)", meaning, "Erect")
              for study in studies for view, (position, meaning) in enumerate(study.views)])
  for tool in ("chexpert", "negbio"):
    _write_csv(folder / f"mimic-cxr-2.0.0-{tool}.csv.gz", LABEL_HEADER, [
        (study.subject, study.study, *(label_of(study, finding) for finding in sorted(FINDINGS)))
        for study in studies if study.labelled])
  return studies


def label_of(study: Study, finding: str) -> str:
  return ("", "1.0", "0.0", "-1.0")[(study.number + FINDINGS.index(finding)) % 4]


def write_manual_labels(folder: pathlib.Path, studies: list[Study]) -> None:
  """Writes what release 2.1.0 adds: labels of test studies, with Airspace Opacity for Lung Opacity."""
  names = ["Airspace Opacity" if finding == "Lung Opacity" else finding for finding in sorted(FINDINGS)]
  with (folder / "mimic-cxr-2.1.0-test-set-labeled.csv").open("w", newline="") as file:
    rows = csv.writer(file)
    rows.writerow(("study_id", *names))
    rows.writerows((study.study, *("1.0" if name == "Airspace Opacity" else "" for name in names))
                   for study in studies if study.split == "test")


def annotation_of(studies: list[Study]) -> dict:
  """Returns R2Gen's annotation: an entry an image, of the studies that have findings."""
  annotation = {"train": [], "val": [], "test": []}
  for study in studies:
    split = {"train": "train", "validate": "val", "test": "test"}[study.split]
    if study.kind in ("both", "findings"):
      annotation[split] += [{"id": study.dicom_id(view), "study_id": int(study.study), "subject_id": int(study.subject),
                             "report": f"Finding number {study.number % 97} .", "split": split,
                             "image_path": [f"{study.folder}/{study.dicom_id(view)}.jpg"]}
                            for view in range(len(study.views))]
  return annotation


def _draw(number: int) -> np.ndarray:
  picture = PIL.Image.open(io.BytesIO(make_record(0, "train", number)["images"][0]))
  return np.asarray(picture.resize((COLUMNS, ROWS)))


def _write_reports(folder: pathlib.Path, studies: list[Study], zipped: bool) -> None:
  if zipped:
    with zipfile.ZipFile(folder / "mimic-cxr-reports.zip", "w") as archive:
      for study in studies:
        archive.writestr(f"files/{study.folder}.txt", report_of(study))
    return
  for study in studies:
    path = folder / "mimic-cxr-reports" / "files" / f"{study.folder}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(report_of(study))


def _write_csv(path: pathlib.Path, header: tuple, rows: list[tuple]) -> None:
  with gzip.open(path, "wt", newline="") as file:
    table = csv.writer(file)
    table.writerow(header)
    table.writerows(rows)


def _write_dicom(path: pathlib.Path, pixels: np.ndarray, photometric: str) -> None:
  dicom = pydicom.Dataset()
  dicom.SOPClassUID, dicom.SOPInstanceUID = pydicom.uid.DigitalXRayImageStorageForPresentation, "1.2.3"
  dicom.Rows, dicom.Columns, dicom.SamplesPerPixel, dicom.PixelRepresentation = *pixels.shape, 1, 0
  dicom.BitsAllocated, dicom.BitsStored, dicom.HighBit = 16, 12, 11
  dicom.PhotometricInterpretation = photometric
  deep = pixels.astype("<u2") * 16
  dicom.PixelData = (4095 - deep if photometric == "MONOCHROME1" else deep).tobytes()
  dicom.file_meta = pydicom.dataset.FileMetaDataset()
  dicom.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
  dicom.save_as(path, enforce_file_format=True)
