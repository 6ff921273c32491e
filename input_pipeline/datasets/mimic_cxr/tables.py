"""The csv files of MIMIC-CXR-JPG: which image belongs to which study and split, how it was taken, and its labels.

Their names keep "2.0.0" in releases 2.0.0 and 2.1.0. Each may be compressed (.csv.gz) or not (.csv). What is wrong
in one is said by file and row, never by subject or study: the data set is restricted.
"""

import csv
import datetime
import difflib
import gzip
import io
from typing import NamedTuple
import zlib

from etils import epath

from mcsam_jax.errors import UserError
from mcsam_jax.findings import FINDINGS

SPLIT, METADATA = "mimic-cxr-2.0.0-split.csv", "mimic-cxr-2.0.0-metadata.csv"
LABELS = {"chexpert": "mimic-cxr-2.0.0-chexpert.csv", "negbio": "mimic-cxr-2.0.0-negbio.csv"}
MANUAL_LABELS = "mimic-cxr-2.1.0-test-set-labeled.csv"        # of release 2.1.0, by radiologists, of test studies
TOOL_LABELS_SOURCE = {name: f"impression, or where there is none the findings or the last paragraph, by {tool}"
               for name, tool in (("chexpert", "the CheXpert labeler"), ("negbio", "NegBio"))}
RADIOLOGIST_LABELS_SOURCE = "the report, by radiologists"
_SPLIT_NAMES = {"train": "train", "validate": "val", "test": "test"}
_VALUES = {"1.0": "positive", "0.0": "negative", "-1.0": "uncertain", "": "absent",
           "1": "positive", "0": "negative", "-1": "uncertain"}
_DAMAGE = (EOFError, OSError, UnicodeDecodeError, csv.Error, zlib.error)
_OTHER_NAMES = {"Lung Opacity": "Airspace Opacity"}           # in the manual labels
_VIEW_OF_POSITION = {"AP": "frontal", "PA": "frontal", "AP AXIAL": "frontal", "LL": "lateral", "RL": "lateral",
                     "LATERAL": "lateral", "XTABLE LATERAL": "lateral"}
_VIEW_OF_MEANING = {"antero-posterior": "frontal", "postero-anterior": "frontal", "lateral": "lateral",
                    "left lateral": "lateral", "right lateral": "lateral"}


class CxrImage(NamedTuple):
  """A row of the split file and, where there is one, of the metadata."""
  dicom_id: str
  subject_id: str
  study_id: str
  split: str             # train | val | test
  view: str              # frontal | lateral | other
  source_view: str       # ViewPosition, or the meaning of the view code, in the source's words
  acquired_at: str             # ISO 8601, "" where unknown
  has_metadata: bool        # there is a row of metadata


def read_images(source: epath.Path) -> list[CxrImage]:
  """Returns the images of the split file, in its order.

  Raises:
    UserError: a file or column is missing, a value isn't one of those it may be, a subject is in two splits.
  """
  how = {row["dicom_id"]: row for _, row in read_rows(
      source / METADATA, ("dicom_id", "ViewPosition", "ViewCodeSequence_CodeMeaning", "StudyDate", "StudyTime"))}
  path = find_table(source / SPLIT)
  images, split_of, first_row, seen = [], {}, {}, {}
  for number, row in read_rows(path, ("dicom_id", "study_id", "subject_id", "split")):
    split = _SPLIT_NAMES.get(row["split"])
    if split is None:
      raise UserError(f"{path}, row {number}: split is none of {', '.join(_SPLIT_NAMES)}")
    for kind in ("subject_id", "study_id"):
      key = (kind, row[kind])
      if split_of.setdefault(key, split) != split:
        raise UserError(f"{path}, rows {first_row[key]} and {number}: the same {kind} is in the splits "
                        f"{split_of[key]} and {split}; keep it in one")
      first_row.setdefault(key, number)
    if row["dicom_id"] in seen:
      raise UserError(f"{path}, rows {seen[row['dicom_id']]} and {number}: the same dicom_id twice")
    seen[row["dicom_id"]] = number
    meta = how.get(row["dicom_id"], {})
    view, source_view = classify_view(meta.get("ViewPosition", ""), meta.get("ViewCodeSequence_CodeMeaning", ""))
    images.append(CxrImage(row["dicom_id"], row["subject_id"], row["study_id"], split, view, source_view,
                        format_datetime(meta.get("StudyDate", ""), meta.get("StudyTime", "")), bool(meta)))
  if not images:
    raise UserError(f"{path} has no rows")
  return images


def classify_view(position: str, meaning: str) -> tuple[str, str]:
  """Returns the view (frontal | lateral | other) of an image, and the source's word that tells it.

  Args:
    position: ViewPosition, which counts where there is one.
    meaning: of the code in ViewCodeSequence.
  """
  if position.strip():
    return _VIEW_OF_POSITION.get(position.strip().upper(), "other"), position.strip()
  return _VIEW_OF_MEANING.get(meaning.strip().lower(), "other"), meaning.strip()


def format_datetime(date: str, time: str) -> str:
  """Returns StudyDate (YYYYMMDD) and StudyTime (HHMMSS.FFF, zeros in front left out) as ISO 8601, "" if unknown."""
  try:
    day = datetime.datetime.strptime(date.strip().partition(".")[0], "%Y%m%d")
    clock = time.strip().partition(".")[0].zfill(6)
    return day.replace(hour=int(clock[:2]), minute=int(clock[2:4]), second=int(clock[4:6])).isoformat()
  except ValueError:
    return ""


def read_labels(path: epath.Path) -> dict[str, dict[str, str]]:
  """Returns the labels of each study, {study_id: {finding: value}}, those that are absent left out.

  Raises:
    UserError: the file or a finding's column is missing, a value isn't 1, 0, -1 or empty.
  """
  path = find_table(path)
  columns = read_header(path)
  named = {finding: finding if finding in columns else _OTHER_NAMES.get(finding, finding) for finding in FINDINGS}
  labels = {}
  for number, row in read_rows(path, ("study_id", *named.values())):
    values = {finding: _VALUES.get(row[column].strip()) for finding, column in named.items()}
    for finding, value in values.items():
      if value is None:
        raise UserError(f"{path}, row {number}: {named[finding]} is none of 1.0, 0.0, -1.0 and nothing")
    labels[row["study_id"]] = {finding: value for finding, value in values.items() if value != "absent"}
  return labels


def read_rows(path: epath.Path, columns: tuple[str, ...]):
  """Yields (row number, row) of a csv file; the header is row 1.

  Raises:
    UserError: no such file, it is cut off, or it lacks one of `columns`.
  """
  found = find_table(path)
  has = read_header(path)
  for column in columns:
    if column not in has:                           # what it has instead may be a row of ids
      close = difflib.get_close_matches(column, has, 1, .7)
      raise UserError(f"{found} has no column {column!r}{f', but {close[0]!r}' if close else ''}"
                      f"{'' if has else ', it is empty'}; take the file as PhysioNet gives it")
  with _opened(found) as file:
    rows = csv.DictReader(file)
    try:
      for number, row in enumerate(rows, 2):
        if None in row.values() or None in row:
          raise UserError(f"{found}, row {number}: {len(has)} columns expected; the file was cut off or changed")
        yield number, row
    except _DAMAGE as error:
      raise UserError(f"{found} is damaged after row {rows.line_num} ({type(error).__name__}); get it again from "
                      "PhysioNet") from error


def read_header(path: epath.Path) -> list[str]:
  """Returns the names of a csv file's columns."""
  found = find_table(path)
  with _opened(found) as file:
    try:
      return next(csv.reader(file), [])
    except _DAMAGE as error:
      raise UserError(f"{found} is damaged ({type(error).__name__}); get it again from PhysioNet") from error


def find_table(path: epath.Path, required: bool = True) -> epath.Path | None:
  """Returns the csv file at `path`, or beside it with .gz; None where there is neither and it isn't required.

  Raises:
    UserError: there is neither.
  """
  for candidate in (path, path.with_name(path.name + ".gz")):
    if candidate.exists():
      return candidate
  if not required:
    return None
  raise UserError(f"{path}.gz not found: it comes with MIMIC-CXR-JPG; set --config.data.source_dir to the folder "
                  "that holds it")


def _opened(path: epath.Path) -> io.TextIOBase:
  raw = path.open("rb")
  return io.TextIOWrapper(gzip.GzipFile(fileobj=raw) if path.name.endswith(".gz") else raw, "utf-8-sig", newline="")
