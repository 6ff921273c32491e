"""Reads reports from files, whichever program wrote them: a prediction or a reference a study.

  .jsonl         an object a line with an id and a text; also what `mcsam evaluate` writes
  .json          R2Gen's annotation.json (one of its splits), a list of such objects, or {id: text}
  .csv, .tsv     a header, then a row a study
  .txt           a report a line, without ids

Faults are told by file and line or entry, never by an id or a text: the data set may be restricted.
"""

from collections.abc import Iterator, Mapping, Sequence
import csv
import io
import json
import re
from typing import NamedTuple

from etils import epath

from mcsam_jax.errors import UserError
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
_FLAGS = {"predictions": "name it with --prediction-field", "references": "name it with --reference-field",
          "subjects": "rename the field"}


class NoSplit(UserError):
  """An annotation.json lacks the split that was asked for, or has no reports in it."""


class Reports(NamedTuple):
  """n reports of one file, in its order."""
  path: str
  ids: list[str] | None             # None: the file has none
  texts: list[str]
  subjects: list[str] | None        # None: the file has none; of a study without one its id or place, as of its own
  rows: list[Mapping]               # what else stands there
  places: list[str]                 # where each stands: "line 7", "entry 7 of test"
  text_field: str                   # that the texts were read from
  id_field: str | None              # likewise


def read_reports(path: str, role: str, split: str = "test", text_field: str | None = None,
                 id_field: str | None = None) -> Reports:
  """Reads a file of predictions or references.

  Args:
    role: predictions | references | subjects, which decides what fields may hold the text.
    split: of an annotation.json.
    text_field: that holds the text; None: the first of TEXT_FIELDS[role] that the first row has.
    id_field: that holds the id; None: the first of ID_FIELDS that the first row has.

  Raises:
    UserError: no such file, no such field, an id that stands twice, a text that is none.
  """
  rows, places = [], []
  for place, row in _rows(epath.Path(path), split):
    if not isinstance(row, Mapping):
      raise UserError(f"{path} {place}: expected an object with an id and a report, found {type(row).__name__}")
    rows.append(row)
    places.append(place)
  if not rows:
    raise UserError(f"{path} holds no reports")
  text_field = _field(path, places[0], rows[0], text_field, TEXT_FIELDS[role], f"the {role}",
                      _FLAGS[role])
  if id_field or any(name in rows[0] for name in ID_FIELDS):
    id_field = _field(path, places[0], rows[0], id_field, ID_FIELDS, "the ids", "name it with --id-field")
  subject_field = text_field if role == "subjects" else next((name for name in SUBJECT_FIELDS if name in rows[0]), None)
  ids = id_field and [_text(path, place, row, id_field) for place, row in zip(places, rows)]
  if ids:
    _refuse_twice(path, ids, places)
  subjects = subject_field and _subjects(path, rows, places, subject_field, ids or places)
  if role == "subjects":
    texts = subjects or ids or places
  else:
    texts = [_text(path, place, row, text_field) for place, row in zip(places, rows)]
  return Reports(str(path), ids, texts, subjects, rows, places, text_field, id_field)


def _rows(path: epath.Path, split: str) -> Iterator[tuple[str, object]]:
  """Yields (where it stands, row) of a file of any kind."""
  try:
    content = path.read_bytes().decode("utf-8-sig")
  except FileNotFoundError as error:
    raise UserError(f"{path} not found") from error
  except IsADirectoryError as error:
    raise UserError(f"{path} is a folder: give a file of reports") from error
  except UnicodeDecodeError as error:
    raise UserError(f"{path} is not UTF-8 text (byte {error.start}): save it as UTF-8") from error
  kind = path.suffix.lower()
  if kind == ".txt":
    for number, line in enumerate(content.removesuffix("\n").split("\n") if content else (), 1):
      yield f"line {number}", {"text": line.removesuffix("\r")}
  elif kind == ".jsonl":
    for number, line in enumerate(content.split("\n"), 1):
      if line.strip():
        yield f"line {number}", _parse(path, f"line {number}", line)
  elif kind in (".csv", ".tsv"):
    yield from _rows_of_table(path, content, "\t" if kind == ".tsv" else ",")
  elif kind == ".json":
    yield from _rows_of_json(path, _parse(path, "", content), split)
  else:
    raise UserError(f"{path}: reports are read from .jsonl, .json, .csv, .tsv or .txt, not from "
                    f"{kind or 'a file without such an ending'}")


def _rows_of_table(path, content: str, delimiter: str):
  # Strict: else a quote that nobody closes makes one report of all that follow.
  reader = csv.DictReader(io.StringIO(content, newline=""), delimiter=delimiter, strict=True)
  begin = 1
  try:
    if reader.fieldnames:
      begin = reader.line_num + 1
    for row in reader:
      if None in row or None in row.values():
        raise UserError(f"{path} line {reader.line_num}: it has another number of fields than the header; put texts "
                        "with commas or line breaks in quotes")
      yield f"line {reader.line_num}", row
      begin = reader.line_num + 1
  except csv.Error as error:
    raise UserError(f"{path} line {begin}: the row that begins there can't be read ({error}); put texts with commas or "
                    "line breaks in quotes, and write a quote inside them twice") from error


def _rows_of_json(path, content, split: str):
  if isinstance(content, Mapping) and "train" in content and isinstance(content["train"], list):
    if not isinstance(content.get(split), list):
      raise NoSplit(f"{path} has no split {split}, it has {_names(content)}: choose with --split")
    if not content[split]:
      raise NoSplit(f"{path} holds no reports in its split {split}")
    content, of = content[split], f" of {split}"
  elif isinstance(content, Mapping):
    if {"nlg", "baselines"} <= content.keys():
      raise UserError(f"{path} holds scores: give the .jsonl beside it, which has the reports")
    content, of = [{"id": key, "text": text} for key, text in content.items()], ""
  elif isinstance(content, list):
    of = ""
  else:
    raise UserError(f"{path}: expected a list of reports, or R2Gen's splits, found {type(content).__name__}")
  for number, row in enumerate(content, 1):
    yield f"entry {number}{of}", row


def _parse(path, place: str, content: str):
  try:
    return json.loads(content, object_pairs_hook=lambda pairs: _object(path, place, pairs))
  except ValueError as error:
    raise UserError(f"{path}{place and ' ' + place}: not JSON ({error})") from error


def _object(path, place: str, pairs: Sequence[tuple[str, object]]) -> dict:
  """Returns an object of JSON, of which `json` itself would keep the last where a name stands twice."""
  found = {}
  for number, (name, value) in enumerate(pairs, 1):
    if name in found:
      raise UserError(f"{path}{place and ' ' + place}: entry {number} of an object has the name of an earlier one; "
                      "a study is scored once")
    found[name] = value
  return found


def _field(path, place, row: Mapping, asked: str | None, usual: Sequence[str], what: str, way_out: str) -> str:
  """Returns the name of the field that holds something."""
  found = asked if asked in row else None if asked else next((name for name in usual if name in row), None)
  if found is None:
    wanted = f"no field {asked or 'any of ' + ', '.join(usual)} for {what}"
    if epath.Path(path).suffix.lower() in (".csv", ".tsv"):          # without a header its names are a report's
      raise UserError(f"{path} line 1: {wanted} among its {len(row)} columns: give it a header, or {way_out}")
    raise UserError(f"{path} {place}: {wanted}, there are {_names(row)}: {way_out}")
  return found


def _names(row: Mapping) -> str:
  """Returns the names of fields, but for those that could be an id or a text."""
  names = [name for name in row if re.fullmatch("[A-Za-z_]{1,30}", name)][:10]
  more = len(row) - len(names)
  return ", ".join([*names, *([f"{more} that aren't shown"] if more else [])])


def _text(path, place: str, row: Mapping, field: str) -> str:
  value = row.get(field)
  if isinstance(value, list) and len(value) == 1:               # pycocoevalcap's habit: a list of one
    value = value[0]
  if isinstance(value, int):                                    # an id
    value = str(value)
  if not isinstance(value, str):
    what = ("is missing" if field not in row else "is null: give an empty text where nothing was written"
            if value is None else f"is no text but {type(value).__name__}")
    raise UserError(f"{path} {place}: field {field} {what}")
  return value


def _subjects(path, rows: Sequence[Mapping], places: Sequence[str], field: str, own: Sequence[str]) -> list[str] | None:
  """Returns the subject of each study, its `own` name where the field is blank; None where it is in all of them."""
  named = ["" if row.get(field, "") is None else _text(path, place, row, field).strip()
           for place, row in zip(places, rows)]
  return [name or instead for name, instead in zip(named, own)] if any(named) else None


def _refuse_twice(path, ids: Sequence[str], places: Sequence[str]) -> None:
  first = {}
  for name, place in zip(ids, places):
    if name in first:
      more = len(ids) - len(set(ids)) - 1
      such = f" (and {more} more such)" if more else ""
      raise UserError(f"{path} {place}: its id stands in {first[name]} already{such}; a study is scored once")
    first[name] = place


def stored_labels(row: Mapping) -> Mapping | None:
  """Returns the labels that `mcsam evaluate` stored with a study, None where there are none or something else."""
  labels = row.get("labels")
  both = [labels.get(of) for of in ("reference", "generated")] if isinstance(labels, Mapping) else [None]
  if not all(isinstance(of, Mapping) and of and all(value in LABEL_VALUES for value in of.values()) for of in both):
    return None
  return labels if both[0].keys() == both[1].keys() else None


def note_of_copies(references: Reports, written: Reports, order: Sequence[int]) -> dict[str, str]:
  """Returns a note where all predictions are their references: then mostly the wrong field was read."""
  if any(meant != written.texts[row] for meant, row in zip(references.texts, order)):
    return {}
  return {f"field {written.text_field} of {written.path}": "all of its reports equal their references, word for word: "
          "is it what the model wrote?"}


def match(references: Reports, others: Reports, what: str = "prediction") -> list[int]:
  """Returns for each reference the number of its row in `others`: by id, or by order where one file has no ids.

  Raises:
    UserError: a reference without a row, a row without a reference, or files of different lengths.
  """
  if references.ids is None or others.ids is None:
    if len(references.texts) != len(others.texts):
      without = references.path if references.ids is None else others.path
      raise UserError(f"{len(references.texts)} reports in {references.path} and {len(others.texts)} in {others.path}: "
                      f"{without} has no ids, so both must hold the same studies in the same order")
    return list(range(len(references.texts)))
  number = {name: row for row, name in enumerate(others.ids)}
  if not number.keys() & set(references.ids):
    raise UserError(f"no id stands in both {references.path} (field {references.id_field}) and {others.path} (field "
                    f"{others.id_field}): if these are the wrong fields, name the right one with --id-field")
  missing = [place for name, place in zip(references.ids, references.places) if name not in number]
  if missing:
    raise UserError(f"{others.path} has no {what} for {len(missing)} of the {len(references.ids)} studies of "
                    f"{references.path} (the first: its {missing[0]}): add them, with an empty text where nothing was "
                    "written, or take them out of both files")
  known = set(references.ids)
  extra = [place for name, place in zip(others.ids, others.places) if name not in known]
  if extra:
    raise UserError(f"{others.path} has {len(extra)} studies that {references.path} hasn't (the first: {extra[0]}): "
                    "take them out, or choose another split with --split")
  return [number[name] for name in references.ids]
