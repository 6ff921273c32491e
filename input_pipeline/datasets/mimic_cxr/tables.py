"""Reads the csv files of MIMIC-CXR-JPG: studies, splits, views and labels of the images.

The file names contain "2.0.0" in both releases, 2.0.0 and 2.1.0. Each file may be compressed (.csv.gz) or not (.csv).
Errors name files and rows but never subjects or studies, because access to the data set is restricted.
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
RADIOLOGIST_LABELS = "mimic-cxr-2.1.0-test-set-labeled.csv"   # test studies only; since 2.1.0
# Values of the record field `labels_from`.
TOOL_LABELS_SOURCE = {name: f"impression (if absent, findings or last paragraph), by {tool}"
                      for name, tool in (("chexpert", "the CheXpert labeler"), ("negbio", "NegBio"))}
RADIOLOGIST_LABELS_SOURCE = "report, by radiologists"
_SPLIT_NAMES = {"train": "train", "validate": "val", "test": "test"}
_VALUES = {"1.0": "positive", "0.0": "negative", "-1.0": "uncertain", "": "absent",
           "1": "positive", "0": "negative", "-1": "uncertain"}
_READ_ERRORS = (EOFError, OSError, UnicodeDecodeError, csv.Error, zlib.error)
_OTHER_NAMES = {"Lung Opacity": "Airspace Opacity"}           # column names in the radiologists' labels
_POSITION_TO_VIEW = {"AP": "frontal", "PA": "frontal", "AP AXIAL": "frontal", "LL": "lateral", "RL": "lateral",
                     "LATERAL": "lateral", "XTABLE LATERAL": "lateral"}
_MEANING_TO_VIEW = {"antero-posterior": "frontal", "postero-anterior": "frontal", "lateral": "lateral",
                    "left lateral": "lateral", "right lateral": "lateral"}


class CxrImage(NamedTuple):
  """An image: its row of the split file, joined with its row of the metadata, which may be missing."""
  dicom_id: str
  subject_id: str
  study_id: str
  split: str             # train | val | test
  view: str              # frontal | lateral | other
  source_view: str       # ViewPosition, or else the meaning of the view code
  acquired_at: str       # ISO 8601, "" if unknown
  has_metadata: bool


def read_images(source: epath.Path) -> list[CxrImage]:
  """Returns the images of the split file, in its order.

  Raises:
    UserError: a file or column is missing, a value is invalid, a dicom_id is duplicated, or a subject or study is in
      two splits.
  """
  metadata = {row["dicom_id"]: row for _, row in read_rows(
      source / METADATA, ("dicom_id", "ViewPosition", "ViewCodeSequence_CodeMeaning", "StudyDate", "StudyTime"))}
  path = find_table(source / SPLIT)
  images, split_of, first_row, seen = [], {}, {}, {}
  for number, row in read_rows(path, ("dicom_id", "study_id", "subject_id", "split")):
    split = _SPLIT_NAMES.get(row["split"])
    if split is None:
      raise UserError(f"{path}, row {number}: invalid split, expected one of {', '.join(_SPLIT_NAMES)}")
    for kind in ("subject_id", "study_id"):
      key = (kind, row[kind])
      if split_of.setdefault(key, split) != split:
        raise UserError(f"{path}, rows {first_row[key]} and {number}: the same {kind} is in the splits "
                        f"{split_of[key]} and {split}; keep it in one")
      first_row.setdefault(key, number)
    if row["dicom_id"] in seen:
      raise UserError(f"{path}, rows {seen[row['dicom_id']]} and {number}: duplicate dicom_id")
    seen[row["dicom_id"]] = number
    meta = metadata.get(row["dicom_id"], {})
    view, source_view = classify_view(meta.get("ViewPosition", ""), meta.get("ViewCodeSequence_CodeMeaning", ""))
    images.append(CxrImage(row["dicom_id"], row["subject_id"], row["study_id"], split, view, source_view,
                           format_datetime(meta.get("StudyDate", ""), meta.get("StudyTime", "")), bool(meta)))
  if not images:
    raise UserError(f"{path} has no rows")
  return images


def classify_view(position: str, meaning: str) -> tuple[str, str]:
  """Returns the view of an image (frontal | lateral | other) and the value from which it was determined.

  Args:
    position: ViewPosition; takes precedence unless it is blank.
    meaning: the code meaning in ViewCodeSequence.
  """
  if position.strip():
    return _POSITION_TO_VIEW.get(position.strip().upper(), "other"), position.strip()
  return _MEANING_TO_VIEW.get(meaning.strip().lower(), "other"), meaning.strip()


def format_datetime(date: str, time: str) -> str:
  """Returns StudyDate (YYYYMMDD) and StudyTime (HHMMSS.FFF, without leading zeros) as ISO 8601; "" if unknown."""
  try:
    day = datetime.datetime.strptime(date.strip().partition(".")[0], "%Y%m%d")
    clock = time.strip().partition(".")[0].zfill(6)
    return day.replace(hour=int(clock[:2]), minute=int(clock[2:4]), second=int(clock[4:6])).isoformat()
  except ValueError:
    return ""


def read_labels(path: epath.Path) -> dict[str, dict[str, str]]:
  """Returns the labels of each study, {study_id: {finding: value}}, without findings that are absent.

  Raises:
    UserError: the file or the column of a finding is missing, or a value isn't 1, 0, -1 or empty.
  """
  path = find_table(path)
  columns = read_header(path)
  named = {finding: finding if finding in columns else _OTHER_NAMES.get(finding, finding) for finding in FINDINGS}
  labels = {}
  for number, row in read_rows(path, ("study_id", *named.values())):
    values = {finding: _VALUES.get(row[column].strip()) for finding, column in named.items()}
    for finding, value in values.items():
      if value is None:
        raise UserError(f"{path}, row {number}: invalid value of {named[finding]}, expected 1.0, 0.0, -1.0 or empty")
    labels[row["study_id"]] = {finding: value for finding, value in values.items() if value != "absent"}
  return labels


def read_rows(path: epath.Path, columns: tuple[str, ...]):
  """Yields (row number, row) of a csv file; the header is row 1.

  Raises:
    UserError: the file is missing, truncated or damaged, or lacks one of `columns`.
  """
  found = find_table(path)
  header = read_header(path)
  for column in columns:
    if column not in header:                        # don't print the header: it may be a row of ids
      close = difflib.get_close_matches(column, header, 1, .7)
      problem = f" (did you mean {close[0]!r}?)" if close else "" if header else ": it is empty"
      raise UserError(f"{found} has no column {column!r}{problem}; use the original file from PhysioNet")
  with _open(found) as file:
    rows = csv.DictReader(file)
    try:
      for number, row in enumerate(rows, 2):
        if None in row.values() or None in row:
          raise UserError(f"{found}, row {number}: expected {len(header)} columns; the file is truncated or modified")
        yield number, row
    except _READ_ERRORS as error:
      raise UserError(f"{found} is damaged after row {rows.line_num} ({type(error).__name__}); download it again from "
                      "PhysioNet") from error


def read_header(path: epath.Path) -> list[str]:
  """Returns the column names of a csv file; empty if the file is."""
  found = find_table(path)
  with _open(found) as file:
    try:
      return next(csv.reader(file), [])
    except _READ_ERRORS as error:
      raise UserError(f"{found} is damaged ({type(error).__name__}); download it again from PhysioNet") from error


def find_table(path: epath.Path) -> epath.Path:
  """Returns `path` or its compressed version with the suffix .gz.

  Raises:
    UserError: neither exists.
  """
  found = find_optional_table(path)
  if found is None:
    raise UserError(f"{path}.gz not found: it is part of MIMIC-CXR-JPG; set --config.data.source_dir to the folder "
                    "that contains it")
  return found


def find_optional_table(path: epath.Path) -> epath.Path | None:
  """Returns `path` or its compressed version with the suffix .gz, or None if neither exists."""
  for candidate in (path, path.with_name(path.name + ".gz")):
    if candidate.exists():
      return candidate
  return None


def _open(path: epath.Path) -> io.TextIOBase:
  """Opens a csv file, decompressing it if its name ends with .gz."""
  raw = path.open("rb")
  return io.TextIOWrapper(gzip.GzipFile(fileobj=raw) if path.name.endswith(".gz") else raw, "utf-8-sig", newline="")
