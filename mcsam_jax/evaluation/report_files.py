"""Reads reports from files, whichever program wrote them: one prediction or reference per study.

  .jsonl         one object per line with an id and a text; also what `mcsam evaluate` writes
  .json          R2Gen's annotation.json (one of its splits), a list of such objects, or {id: text}
  .csv, .tsv     a header, then one row per study
  .txt           one report per line, without ids

Errors name the file and the line or entry, never an id or a text: the data set may be restricted.
"""

from collections.abc import Iterator, Mapping, Sequence
import csv
import io
from typing import NamedTuple

from etils import epath

from mcsam_jax.errors import UserError
from mcsam_jax.files.home import expand_home
from mcsam_jax.files.json_text import decode_text, list_names, parse_json, replace_surrogates, SURROGATE_NOTE
from mcsam_jax.findings import LABEL_VALUES

ID_FIELDS = ("id", "study_id", "image_id", "dicom_id", "uid", "name", "filename")
SUBJECT_FIELDS = ("subject", "subject_id", "patient_id", "patient")
TEXT_FIELDS = {
    "predictions": ("generated", "prediction", "predicted", "pred", "hypothesis", "hyp", "candidate",
                    "generated_report", "output", "res", "report", "text", "caption", "findings"),
    "references": ("reference", "ref", "ground_truth", "gt", "gts", "target", "original", "report", "text", "caption",
                   "findings"),
    "subjects": (*SUBJECT_FIELDS, "text"),
}
_FIX_TEXT_FIELD = {"predictions": "name it with --prediction-field", "references": "name it with --reference-field",
                   "subjects": "name it with --subject-field"}


class MissingSplit(UserError):
  """An annotation.json lacks the requested split, or the split has no reports."""


class ReportTable(NamedTuple):
  """The B reports of one file, in its order."""
  path: str
  ids: list[str] | None             # None: the file has none
  texts: list[str]
  subjects: list[str] | None        # None: the file has none; a study with a blank subject is a subject of its own
  rows: list[Mapping]               # all fields of each study
  locations: list[str]              # where each study is in the file: "line 7", "entry 7 of test"
  text_field: str                   # the field that the texts were read from
  id_field: str | None              # the field that the ids were read from
  notes: dict[str, str] = {}        # what a reader of the scores has to know about the file


def read_reports(path: str, role: str, split: str = "test", text_field: str | None = None,
                 id_field: str | None = None) -> ReportTable:
  """Reads a file of predictions, references or subjects.

  Args:
    path: the file; its ending says how it is read.
    role: predictions | references | subjects; decides which fields may hold the text.
    split: which split of an annotation.json.
    text_field: the field of the text; None: the first of TEXT_FIELDS[role] that the first row has.
    id_field: the field of the id; None: the first of ID_FIELDS that the first row has.

  Raises:
    UserError: the file or a field is missing, an id occurs twice, or a text is not a string.
  """
  rows, locations = [], []
  for location, row in _read_rows(expand_home(path), split):
    if not isinstance(row, Mapping):
      raise UserError(f"{path} {location}: expected an object with an id and a report, found {type(row).__name__}")
    rows.append(row)
    locations.append(location)
  if not rows:
    raise UserError(f"{path} holds no reports")
  text_field = _find_field(path, locations[0], rows[0], text_field, TEXT_FIELDS[role], f"the {role}",
                           _FIX_TEXT_FIELD[role])
  if id_field or any(name in rows[0] for name in ID_FIELDS):
    id_field = _find_field(path, locations[0], rows[0], id_field, ID_FIELDS, "the ids", "name it with --id-field")
  ids = None
  if id_field:
    ids = [_read_text(path, location, row, id_field) for location, row in zip(locations, rows)]
    _check_unique(path, ids, locations)
  subject_field = text_field if role == "subjects" else next((name for name in SUBJECT_FIELDS if name in rows[0]), None)
  subjects = _read_subjects(path, rows, locations, subject_field, ids or locations) if subject_field else None
  if role == "subjects":
    texts = subjects or ids or locations
  else:
    texts = [_read_text(path, location, row, text_field) for location, row in zip(locations, rows)]
  num_replaced = 0 if role == "subjects" else sum(text != row[text_field] for text, row in zip(texts, rows)
                                                  if isinstance(row[text_field], str))
  return ReportTable(str(path), ids, texts, subjects, rows, locations, text_field, id_field,
                     {str(path): SURROGATE_NOTE.format(count=num_replaced)} if num_replaced else {})


def _read_rows(path: epath.Path, split: str) -> Iterator[tuple[str, object]]:
  """Yields (location, row) of a file of any supported kind."""
  try:
    content = decode_text(path.read_bytes(), path)
  except FileNotFoundError as error:
    raise UserError(f"{path} not found") from error
  except IsADirectoryError as error:
    raise UserError(f"{path} is a folder: give a file of reports") from error
  suffix = path.suffix.lower()
  if suffix == ".txt":
    for number, line in enumerate(content.removesuffix("\n").split("\n") if content else (), 1):
      yield f"line {number}", {"text": line.removesuffix("\r")}
  elif suffix == ".jsonl":
    for number, line in enumerate(content.split("\n"), 1):
      if line.strip():
        yield f"line {number}", parse_json(line, path, f"line {number}")
  elif suffix in (".csv", ".tsv"):
    yield from _read_csv_rows(path, content, "\t" if suffix == ".tsv" else ",")
  elif suffix == ".json":
    yield from _read_json_rows(path, parse_json(content, path), split)
  else:
    raise UserError(f"{path}: reports are read from .jsonl, .json, .csv, .tsv or .txt, not from "
                    f"{suffix or 'a file without such an ending'}")


def _read_csv_rows(path: epath.Path, content: str, delimiter: str) -> Iterator[tuple[str, object]]:
  # Strict: otherwise an unclosed quote makes a single report of everything that follows.
  reader = csv.DictReader(io.StringIO(content, newline=""), delimiter=delimiter, strict=True)
  first_line = 1                                                # line of the row that is read next
  try:
    if reader.fieldnames:
      first_line = reader.line_num + 1
    for row in reader:
      if None in row or None in row.values():
        raise UserError(f"{path} line {reader.line_num}: the row has another number of fields than the header; put "
                        "texts with commas or line breaks in quotes")
      yield f"line {reader.line_num}", row
      first_line = reader.line_num + 1
  except csv.Error as error:
    raise UserError(f"{path} line {first_line}: the row that begins there can't be read ({error}); put texts with "
                    "commas or line breaks in quotes, and double every quote inside them") from error


def _read_json_rows(path: epath.Path, content: object, split: str) -> Iterator[tuple[str, object]]:
  if isinstance(content, Mapping) and isinstance(content.get("train"), list):
    if not isinstance(content.get(split), list):
      raise MissingSplit(f"{path} has no split {split}, it has {list_names(content)}: choose with --split")
    if not content[split]:
      raise MissingSplit(f"{path} holds no reports in its split {split}")
    rows, suffix = content[split], f" of {split}"
  elif isinstance(content, Mapping):
    if {"nlg", "baselines"} <= content.keys():
      raise UserError(f"{path} holds scores: give the .jsonl beside it, which has the reports")
    rows, suffix = [{"id": key, "text": text} for key, text in content.items()], ""
  elif isinstance(content, list):
    rows, suffix = content, ""
  else:
    raise UserError(f"{path}: expected a list of reports, or R2Gen's splits, found {type(content).__name__}")
  for number, row in enumerate(rows, 1):
    yield f"entry {number}{suffix}", row


def _find_field(path: str, location: str, row: Mapping, requested: str | None, candidates: Sequence[str], role: str,
                fix: str) -> str:
  """Returns the requested field, or the first candidate that the row has; `fix` is what the user can do."""
  if requested is None:
    field = next((name for name in candidates if name in row), None)
  else:
    field = requested if requested in row else None
  if field is None:
    problem = f"no field {requested or 'any of ' + ', '.join(candidates)} for {role}"
    if epath.Path(path).suffix.lower() in (".csv", ".tsv"):          # without a header its fields are a report's text
      raise UserError(f"{path} line 1: {problem} among its {len(row)} columns: give it a header, or {fix}")
    raise UserError(f"{path} {location}: {problem}; its fields are {list_names(row)}: {fix}")
  return field


def _read_text(path: str, location: str, row: Mapping, field: str) -> str:
  """Returns the text in a field of a row, in a form that can be encoded."""
  value = row.get(field)
  if isinstance(value, list) and len(value) == 1:               # pycocoevalcap's format: a list of one text
    value = value[0]
  if isinstance(value, int):                                    # an id
    value = str(value)
  if not isinstance(value, str):
    problem = ("is missing" if field not in row else "is null: give an empty text for an empty report"
               if value is None else f"is not a text but {type(value).__name__}")
    raise UserError(f"{path} {location}: field {field} {problem}")
  return replace_surrogates(value)


def _read_subjects(path: str, rows: Sequence[Mapping], locations: Sequence[str], field: str,
                   own_subjects: Sequence[str]) -> list[str] | None:
  """Returns the subject of each study; None where the field is blank in all of them.

  Args:
    own_subjects: B names; a study with a blank field gets its own.
  """
  subjects = ["" if row.get(field, "") is None else _read_text(path, location, row, field).strip()
              for location, row in zip(locations, rows)]
  return [subject or own for subject, own in zip(subjects, own_subjects)] if any(subjects) else None


def _check_unique(path: str, ids: Sequence[str], locations: Sequence[str]) -> None:
  first = {}
  for name, location in zip(ids, locations):
    if name in first:
      num_more = len(ids) - len(set(ids)) - 1
      more = f" (and {num_more} more like this)" if num_more else ""
      raise UserError(f"{path} {location}: its id is already that of {first[name]}{more}; give one report per study")
    first[name] = location


def read_stored_labels(row: Mapping) -> Mapping | None:
  """Returns the labels that `mcsam evaluate` stored with a study; None for a row without them or with other ones."""
  labels = row.get("labels")
  if not isinstance(labels, Mapping):
    return None
  sides = labels.get("reference"), labels.get("generated")
  if not all(isinstance(side, Mapping) and side and all(value in LABEL_VALUES for value in side.values())
             for side in sides):
    return None
  return labels if labels["reference"].keys() == labels["generated"].keys() else None


def warn_of_copies(references: ReportTable, predictions: ReportTable, order: Sequence[int]) -> dict[str, str]:
  """Returns a note if all predictions equal their references, which mostly means that the wrong field was read."""
  if any(reference != predictions.texts[row] for reference, row in zip(references.texts, order)):
    return {}
  return {f"field {predictions.text_field} of {predictions.path}": "all of its reports equal their references, word "
          "for word: did the model write them?"}


def match_studies(references: ReportTable, other: ReportTable, what: str = "prediction") -> list[int]:
  """Returns for each reference the index of its row in another table, by id, or by order if one table has no ids.

  Args:
    what: what the other table holds one of per study, for errors.

  Raises:
    UserError: a reference without a row, a row without a reference, or tables of different lengths.
  """
  if references.ids is None or other.ids is None:
    if len(references.texts) != len(other.texts):
      without_ids = references.path if references.ids is None else other.path
      raise UserError(f"{len(references.texts)} reports in {references.path} and {len(other.texts)} in {other.path}: "
                      f"{without_ids} has no ids, so both must hold the same studies in the same order")
    return list(range(len(references.texts)))
  row_by_id = {name: row for row, name in enumerate(other.ids)}
  reference_ids = set(references.ids)
  if not row_by_id.keys() & reference_ids:
    raise UserError(f"{references.path} (ids in field {references.id_field}) and {other.path} (ids in field "
                    f"{other.id_field}) have no id in common: if these are the wrong fields, name the right one with "
                    "--id-field")
  missing = [location for name, location in zip(references.ids, references.locations) if name not in row_by_id]
  if missing:
    raise UserError(f"{other.path} has no {what} for {len(missing)} of the {len(references.ids)} studies of "
                    f"{references.path} (the first: {missing[0]}): add them, with an empty text for an empty report, "
                    "or remove them from both files")
  extra = [location for name, location in zip(other.ids, other.locations) if name not in reference_ids]
  if extra:
    raise UserError(f"{other.path} has {len(extra)} studies that {references.path} lacks (the first: {extra[0]}): "
                    "remove them, or choose another split with --split")
  return [row_by_id[name] for name in references.ids]
