"""Records from an annotation.json in R2Gen's format, which R2Gen users have for IU X-Ray and MIMIC-CXR.

The file is {"train": [...], "val": [...], "test": [...]}. Each entry has `id`,
`report`, `image_path` (a list) and `split`; those for MIMIC-CXR also have
`study_id` and `subject_id`. The file is in `data.source_dir`; image paths are
relative to its subfolder `images/` or to the folder itself. Reports are stored
unchanged in `findings`.

R2Gen's files don't name the views. Of two images the first is taken as the
frontal and the second as the lateral view, the order of R2Gen's IU X-Ray (where,
in a study without a lateral image, the second one is frontal as well). A single
image (MIMIC-CXR) and every further image are `other`. Entries that have the
fields `views` or `labels` (annotation_fields.py) are read as they say.

The annotation is validated in full before the first image is read.
"""

import collections
from collections.abc import Iterator
import hashlib
import os
import re

from etils import epath
from ml_collections import ConfigDict
import tensorflow_datasets as tfds

from input_pipeline.datasets import records
from input_pipeline.datasets.annotation_fields import find_field_errors, order_images, read_labels, read_views
from input_pipeline.datasets.records import SPLITS
from mcsam_jax.errors import UserError
from mcsam_jax.files.json_text import decode_text, list_names, parse_json, replace_surrogates, SURROGATE_NOTE

# The fields of an entry that are used.
FIELDS = ("id", "study_id", "subject_id", "report", "image_path", "views", "labels", "split")
MAX_PATH_LENGTH = 1000                 # characters


class R2GenJson(records.RecordBuilder):
  """Builds one record per entry, in the order of the annotation; create it with `make_builder`."""
  name = "r2gen_json"
  VERSION = tfds.core.Version("1.0.0")
  source_dir: epath.Path
  data: ConfigDict                       # config.data
  show_ids: bool                         # whether errors name records, studies and subjects

  def plan(self) -> records.BuildPlan:
    entries = read_annotation(self.source_dir / "annotation.json", show_ids=self.show_ids)
    num_replaced = sum(replace_surrogates(entry["report"]) != entry["report"]
                       for rows in entries.values() for entry in rows)
    return records.BuildPlan(entries, notes=[SURROGATE_NOTE.format(count=num_replaced)] if num_replaced else [])

  def describe_entry(self, entry: dict) -> str:
    return _get_name(entry, "id")

  def build_record(self, entry: dict) -> dict:
    views, source_views = read_views(entry)
    order = order_images(views) if "views" in entry else range(len(views))
    paths = [entry["image_path"][index] for index in order]
    return {
        **records.make_empty_record(),
        "id": _get_name(entry, "id"),
        "study_id": _get_name(entry, "study_id"),
        "subject_id": _get_name(entry, "subject_id"),
        "images": [self.load_image(self._find_image(path), self.data) for path in paths],
        "dicom_ids": [epath.Path(path).name.partition(".")[0] for path in paths],
        "views": [views[index] for index in order],
        "source_views": [source_views[index] for index in order],
        "findings": entry["report"],
        "labels": read_labels(entry),
        "labels_from": "annotation.json" if "labels" in entry else "",
    }

  def _find_image(self, path: str) -> epath.Path:
    in_images = self.source_dir / "images" / path
    beside_annotation = self.source_dir / path
    return beside_annotation if not in_images.exists() and beside_annotation.exists() else in_images


def make_builder(config: ConfigDict) -> R2GenJson:
  """Returns the builder for `config.data.source_dir`; its name identifies the source and the image settings.

  The name contains a digest of annotation.json. On a host that has the records
  but not the source, the prepared records in `data.data_dir` with the same
  settings are used.

  Raises:
    UserError: neither annotation.json nor exactly one matching set of records is found.
  """
  path = epath.Path(config.data.source_dir) / "annotation.json"
  stem = re.sub(r"\W+", "_", path.parent.name) or "source"
  prefix = f"{stem}-{config.data.short_side or 'original'}-"
  if config.data.dicom_rendering != "voi":
    prefix += f"{config.data.dicom_rendering}-"
  if path.exists():
    content = path.read_bytes()
    # Records of version 1.0.0 that were built before these fields were read lack them.
    has_new_fields = any(field in content for field in (b'"views"', b'"labels"'))
    name = prefix + hashlib.sha256(content + b"views, labels" * has_new_fields).hexdigest()[:10]
  else:
    records_dir = epath.Path(config.data.data_dir) / R2GenJson.name
    prepared = list(records_dir.glob(f"{prefix}*/{R2GenJson.VERSION}"))
    if len(prepared) != 1:
      raise UserError(f"{path} not found; set --config.data.source_dir to the folder that contains it"
                      + (f" ({len(prepared)} sets of records in {records_dir} match these settings)"
                         if prepared else ""))
    name = prepared[0].parent.name
  builder = R2GenJson(data_dir=config.data.data_dir, file_format="array_record",
                      config=tfds.core.BuilderConfig(name=name, version=R2GenJson.VERSION))
  builder.source_dir, builder.data = path.parent, config.data
  builder.show_ids = config.prepare.show_ids or not config.data.restricted
  return builder


def read_annotation(path: epath.Path, show_ids: bool = True) -> dict[str, list[dict]]:
  """Returns the entries of each split of a validated annotation.json.

  Args:
    path: the file.
    show_ids: whether errors name records, studies and subjects. For restricted data sets they give only the position
      of an entry in its split.

  Raises:
    UserError: the file can't be read or has invalid entries; the message describes the first error and counts the rest.
  """
  try:
    annotation = parse_json(decode_text(path.read_bytes(), path), path)
  except FileNotFoundError as error:
    raise UserError(f"{path} not found; set --config.data.source_dir to the folder that contains it") from error
  errors = list(_find_errors(annotation, show_ids))
  if errors:
    more = f" (and {len(errors) - 1} more errors in this file)" if len(errors) > 1 else ""
    raise UserError(f"{path}: {errors[0]}{more}")
  assert isinstance(annotation, dict)
  return {split: [{field: entry[field] for field in FIELDS if field in entry} for entry in annotation[split]]
          for split in SPLITS}


def _find_errors(annotation, show_ids: bool) -> Iterator[str]:
  """Yields one line for each error in the parsed file."""
  if not isinstance(annotation, dict):
    yield f"expected an object with the splits {', '.join(SPLITS)}, found a {type(annotation).__name__}"
    return
  occurrences = collections.defaultdict(list)   # (kind, id) of record, study, subject -> (split, entry name) pairs
  for split in SPLITS:
    if not isinstance(annotation.get(split), list) or not annotation[split]:
      yield (f"split {split!r} is missing, empty or not a list; the splits of the file are: "
             f"{list_names(annotation)}")
      continue
    for position, entry in enumerate(annotation[split]):
      name = f"entry {position} of split {split}"
      if not isinstance(entry, dict) or str(entry.get("id", "")) == "":
        yield f"{name} has no field 'id'"
        continue
      no_name = next((field for field in ("id", "study_id", "subject_id") if not _is_name(entry.get(field, ""))), None)
      if no_name:
        yield f"{name}: its field {no_name!r} is {type(entry[no_name]).__name__}; expected a text or a number"
        continue
      yield from _find_entry_errors(entry, split, f"record {_get_name(entry, 'id')}" if show_ids else name)
      occurrences["record", _get_name(entry, "id")].append((split, name))
      occurrences["study", _get_name(entry, "study_id")].append((split, name))
      if "subject_id" in entry:
        occurrences["subject", _get_name(entry, "subject_id")].append((split, name))
  # Studies and subjects first: a record that is listed in two splits is reported as its study.
  for (kind, key), where in sorted(occurrences.items(), key=lambda item: item[0][0] == "record"):
    name = f"{kind} {key}" if show_ids else f"the {kind} of {where[0][1]}"
    splits = list(dict(where))
    if kind == "record" and len(where) > 1:
      yield f"{name} is listed {len(where)} times; ids must be unique"
    elif kind != "record" and len(splits) > 1:
      yield f"{name} is in the splits {' and '.join(splits)}; keep it in one"


def _find_entry_errors(entry: dict, split: str, name: str) -> Iterator[str]:
  """Yields one line for each error in an entry that has an id."""
  if "split" not in entry:
    yield f"{name} has no field 'split'; set it to train, val or test"
  elif entry["split"] != split:
    yield f"{name} is listed under {split} but its field 'split' has another value"
  report, paths = entry.get("report"), entry.get("image_path")
  if not isinstance(report, str) or not re.search(r"[^\W_]", report):      # "..." is not a report either
    yield f"{name} has an empty report; add its text or remove the record"
  if not isinstance(paths, list) or not paths or not all(map(_is_file_name, paths)):
    yield f"{name} has no images: image_path must be a list of file names"
  yield from find_field_errors(entry, name)


def _is_name(value: object) -> bool:
  """Returns whether a value can name a record, a study or a subject."""
  return isinstance(value, (str, int, float)) and not isinstance(value, bool) and value == value       # not NaN


def _is_file_name(value: object) -> bool:
  """Returns whether a value can be the path of a file."""
  try:
    return (isinstance(value, str) and 0 < len(value) <= MAX_PATH_LENGTH and "\0" not in value
            and bool(os.fsencode(value)))
  except UnicodeEncodeError:                          # half of a surrogate pair
    return False


def _get_name(entry: dict, field: str) -> str:
  """Returns the name of an entry's record, study or subject; the record's where the entry has no other."""
  return replace_surrogates(str(entry.get(field, entry["id"])))
