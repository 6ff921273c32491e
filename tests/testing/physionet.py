"""A synthetic copy of PhysioNet's MIMIC-CXR folders of any size, and the record counts that a builder should find.

File names, csv columns and report headers are those of MIMIC-CXR; subjects, studies, images and texts are invented.
Images are a few phantoms, repeated with some pixels changed so that no two files are equal. Everything about a study
is a function of its number, so that the expected counts are known without reading a file.
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
import pydicom.dataset
import pydicom.uid

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
class SyntheticStudy:
  """A study of the synthetic data set."""
  number: int
  subject: str
  study: str
  split: str                    # train | validate | test
  kind: str                     # which sections the report has, see `make_report`
  views: list[tuple[str, str]]  # ViewPosition, ViewCodeSequence_CodeMeaning
  labeled: bool

  @property
  def folder(self) -> str:
    return f"p{self.subject[:2]}/p{self.subject}/s{self.study}"

  def dicom_id(self, view: int) -> str:
    return f"{self.number:08x}-{view:08x}-mimic-00000000-made0up0"


KINDS = ("both", "both", "findings", "impression", "both", "short", "nothing", "both", "both", "findings")
VIEWS = ([("PA", ""), ("LATERAL", "")], [("AP", "")], [("", "postero-anterior"), ("LL", "left lateral")],
         [("LATERAL", "")], [("AP", ""), ("PA", "")], [("", "")], [("AP", ""), ("AP", ""), ("LL", "")])


def make_studies(count: int) -> list[SyntheticStudy]:
  """Returns `count` studies; each subject has up to three, all in one split."""
  studies = []
  for number in range(count):
    subject = number // 3 if number % 30 < 15 else number
    fold = subject % 20
    studies.append(SyntheticStudy(
        number=number, subject=f"{10000000 + 7 * subject + 10**6 * (subject % 10)}", study=f"{50000000 + 13 * number}",
        split="validate" if fold == 3 else "test" if fold == 4 else "train", kind=KINDS[number % len(KINDS)],
        views=VIEWS[number % len(VIEWS)], labeled=number % 50 != 7))
  return studies


def make_report(study: SyntheticStudy) -> str:
  """Returns the text of a report with the sections that `study.kind` names."""
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


def expected_counts(studies: list[SyntheticStudy], target: str = "findings",
                    required: str = "any") -> dict[str, collections.Counter]:
  """Returns, for each split, the number of studies that are kept and that are skipped for each reason.

  Args:
    studies: all studies.
    target: value of `data.target`; reports need at least three words.
    required: value of `data.mimic_cxr.required_views`.
  """
  counts = {split: collections.Counter() for split in ("train", "val", "test")}
  for study in studies:
    counter = counts[{"train": "train", "validate": "val", "test": "test"}[study.split]]
    frontal = any(p in ("AP", "PA") or m == "postero-anterior" for p, m in study.views)
    lateral = any(p in ("LL", "LATERAL") for p, _ in study.views)
    missing = [name for name, has in (("frontal", frontal), ("lateral", lateral))
               if required in (name, "both") and not has]
    has = {"both": 2, "findings": 1, "impression": 1, "short": 1, "nothing": 0}[study.kind]
    if missing:
      counter[f"no {' and no '.join(missing)} view"] += 1
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


def write_tree(folder: pathlib.Path, count: int, images: str = "jpg", zipped: bool = True) -> list[SyntheticStudy]:
  """Writes the folders of MIMIC-CXR-JPG and the reports of MIMIC-CXR, and returns the `count` studies.

  Args:
    folder: the folder to write.
    count: number of studies.
    images: jpg, or dcm (12 bits, every other file MONOCHROME1).
    zipped: whether to write reports to mimic-cxr-reports.zip rather than below mimic-cxr-reports/files.
  """
  studies = make_studies(count)
  pictures = [_draw(number) for number in range(NUM_PICTURES)]
  folder.mkdir(parents=True, exist_ok=True)
  for study in studies:
    image_folder = folder / "files" / study.folder
    image_folder.mkdir(parents=True, exist_ok=True)
    for view in range(len(study.views)):
      pixels = pictures[(study.number + view) % NUM_PICTURES].copy()
      pixels[0, :8] = [255 * (study.number >> bit & 1) for bit in range(8)]
      path = image_folder / f"{study.dicom_id(view)}.{images}"
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
        (study.subject, study.study, *(label_value(study, finding) for finding in sorted(FINDINGS)))
        for study in studies if study.labeled])
  return studies


def label_value(study: SyntheticStudy, finding: str) -> str:
  """Returns the value in the csv file of labels."""
  return ("", "1.0", "0.0", "-1.0")[(study.number + FINDINGS.index(finding)) % 4]


def write_radiologist_labels(folder: pathlib.Path, studies: list[SyntheticStudy]) -> None:
  """Writes the file that release 2.1.0 adds: labels of test studies, with Airspace Opacity for Lung Opacity."""
  names = ["Airspace Opacity" if finding == "Lung Opacity" else finding for finding in sorted(FINDINGS)]
  with (folder / "mimic-cxr-2.1.0-test-set-labeled.csv").open("w", newline="") as file:
    rows = csv.writer(file)
    rows.writerow(("study_id", *names))
    rows.writerows((study.study, *("1.0" if name == "Airspace Opacity" else "" for name in names))
                   for study in studies if study.split == "test")


def make_r2gen_annotation(studies: list[SyntheticStudy]) -> dict:
  """Returns an annotation in R2Gen's format: one entry for each image of the studies that have findings."""
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


def _write_reports(folder: pathlib.Path, studies: list[SyntheticStudy], zipped: bool) -> None:
  if zipped:
    with zipfile.ZipFile(folder / "mimic-cxr-reports.zip", "w") as archive:
      for study in studies:
        archive.writestr(f"files/{study.folder}.txt", make_report(study))
    return
  for study in studies:
    path = folder / "mimic-cxr-reports" / "files" / f"{study.folder}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(make_report(study))


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
  twelve_bit = pixels.astype("<u2") * 16
  dicom.PixelData = (4095 - twelve_bit if photometric == "MONOCHROME1" else twelve_bit).tobytes()
  dicom.file_meta = pydicom.dataset.FileMetaDataset()
  dicom.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
  dicom.save_as(path, enforce_file_format=True)
