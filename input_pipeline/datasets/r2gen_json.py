"""Records from R2Gen's annotation.json, which its users have for IU X-Ray and MIMIC-CXR.

The file is {"train": [...], "val": [...], "test": [...]}; an entry has `id`,
`report`, `image_path` (a list) and `split`, and in the MIMIC-CXR one also
`study_id` and `subject_id`. It stands in `data.source_dir`, images in `images/`
beside it or beside it directly. Reports are kept as they are, in `findings`.

The file doesn't say what a view is. Of two images the first is taken for the
frontal and the second for the lateral one, which is how R2Gen lists IU X-Ray
(where a study has no lateral image, the second is a frontal one all the same).
An image alone (MIMIC-CXR) and a third one are `other`.

All faults of the annotation are found before the first image is read.
"""

import collections
import hashlib
import json
import re

from etils import epath
from ml_collections import ConfigDict
import tensorflow_datasets as tfds

from input_pipeline import images
from input_pipeline.datasets import records
from input_pipeline.datasets.records import SPLITS
from mcsam_jax.errors import UserError


class R2GenJson(records.RecordBuilder):
  """Builds the records, in the order of the annotation; `make_builder` makes it."""
  name = "r2gen_json"
  VERSION = tfds.core.Version("1.0.0")
  source_dir: epath.Path
  data: ConfigDict                       # config.data
  show_ids: bool                         # faults of the annotation name records

  def plan(self) -> records.Plan:
    return records.Plan(read_annotation(self.source_dir / "annotation.json", named=self.show_ids))

  def name_of(self, entry: dict) -> str:
    return str(entry["id"])

  def record(self, entry: dict) -> dict:
    paths = entry["image_path"]
    return {
        **records.empty_record(),
        "id": str(entry["id"]),
        "study_id": _study(entry),
        "subject_id": str(entry.get("subject_id", entry["id"])),
        "images": [images.load_jpeg(self._find(path), self.data.short_side, self.data.dicom_rendering)
                   for path in paths],
        "dicom_ids": [epath.Path(path).name.partition(".")[0] for path in paths],
        "views": ["other"] if len(paths) == 1 else ["frontal", "lateral", *["other"] * (len(paths) - 2)],
        "source_views": [""] * len(paths),
        "findings": entry["report"],
    }

  def _find(self, path: str) -> epath.Path:
    in_images = self.source_dir / "images" / path
    beside = self.source_dir / path
    return beside if not in_images.exists() and beside.exists() else in_images


def make_builder(config: ConfigDict) -> R2GenJson:
  """Returns the builder of `config.data.source_dir`, under a name that tells one source from another.

  The name holds a digest of annotation.json. Where that file isn't at hand (a
  host that has the records but not the source), the name is looked for among
  the records below data_dir.
  """
  path = epath.Path(config.data.source_dir) / "annotation.json"
  stem = re.sub(r"\W+", "_", path.parent.name) or "source"
  prefix = f"{stem}-{config.data.short_side or 'original'}-"
  if config.data.dicom_rendering != "voi":
    prefix += f"{config.data.dicom_rendering}-"
  if path.exists():
    name = prefix + hashlib.sha256(path.read_bytes()).hexdigest()[:10]
  else:
    below = epath.Path(config.data.data_dir) / R2GenJson.name
    prepared = list(below.glob(f"{prefix}*/{R2GenJson.VERSION}"))
    if len(prepared) != 1:
      raise UserError(f"{path} not found; set --config.data.source_dir to the folder that holds it"
                      + (f" ({len(prepared)} sets of records in {below} could be meant)" if prepared else ""))
    name = prepared[0].parent.name
  builder = R2GenJson(data_dir=config.data.data_dir, file_format="array_record",
                      config=tfds.core.BuilderConfig(name=name, version=R2GenJson.VERSION))
  builder.source_dir, builder.data = path.parent, config.data
  builder.show_ids = config.prepare.show_ids or not config.data.restricted
  return builder


def read_annotation(path: epath.Path, named: bool = True) -> dict[str, list[dict]]:
  """Returns the entries of each split.

  Args:
    named: faults name records, studies and subjects; else only where they stand, as a restricted set asks.

  Raises:
    UserError: the file cannot be read, or entries are at fault; the first is named, the others counted.
  """
  try:
    annotation = json.loads(path.read_text())
  except FileNotFoundError as error:
    raise UserError(f"{path} not found; set --config.data.source_dir to the folder that holds it") from error
  except ValueError as error:
    raise UserError(f"{path} is not JSON ({error})") from error
  faults = list(_faults(annotation, named))
  if faults:
    more = f" (and {len(faults) - 1} more faults in this file)" if len(faults) > 1 else ""
    raise UserError(f"{path}: {faults[0]}{more}")
  return {split: annotation[split] for split in SPLITS}


def _faults(annotation, named: bool):
  """Yields a line for all that is wrong with the parsed file."""
  if not isinstance(annotation, dict):
    yield f"expected an object with the splits {', '.join(SPLITS)}, found a {type(annotation).__name__}"
    return
  places = collections.defaultdict(list)        # of each record, study and subject: (split, where it stands)
  for split in SPLITS:
    if not isinstance(annotation.get(split), list) or not annotation[split]:
      found = ", ".join(map(repr, annotation)) or "none"
      yield f"no split {split!r}, or it is no list with entries; found {found}"
      continue
    for position, entry in enumerate(annotation[split]):
      place = f"entry {position} of split {split}"
      if not isinstance(entry, dict) or str(entry.get("id", "")) == "":
        yield f"{place} has no id"
        continue
      yield from _faults_of_entry(entry, split, f"record {entry['id']}" if named else place)
      places["record", str(entry["id"])].append((split, place))
      places["study", _study(entry)].append((split, place))
      if "subject_id" in entry:
        places["subject", str(entry["subject_id"])].append((split, place))
  for (kind, name), found in sorted(places.items(), key=lambda item: item[0][0] == "record"):     # stable
    name = f"{kind} {name}" if named else f"the {kind} of {found[0][1]}"
    splits = list(dict(found))
    if kind == "record" and len(found) > 1:
      yield f"{name} is listed {len(found)} times; ids must differ"
    elif kind != "record" and len(splits) > 1:
      yield f"{name} is in the splits {' and '.join(splits)}; keep it in one"


def _faults_of_entry(entry: dict, split: str, name: str):
  if "split" not in entry:
    yield f"{name} has no field 'split'; give it train, val or test"
  elif entry["split"] != split:
    yield f"{name} stands under {split} but its field 'split' says something else"
  report, paths = entry.get("report"), entry.get("image_path")
  if not isinstance(report, str) or not re.search(r"[^\W_]", report):      # nor is "..." a report
    yield f"{name} has an empty report; give it a text or take the record out"
  if not isinstance(paths, list) or not paths or not all(isinstance(path, str) and path for path in paths):
    yield f"{name} has no images: image_path must be a list of file names"


def _study(entry: dict) -> str:
  return str(entry.get("study_id", entry["id"]))
