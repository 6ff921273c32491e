"""The record schema shared by all data sets, and the base class of their builders.

A record is one study with all its views, or one image. Unknown fields are empty
strings, so that readers need no special case.
"""

import abc
import collections
from collections.abc import Iterator, Mapping
import dataclasses
import functools
from typing import Any

from etils import epath
from ml_collections import ConfigDict
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from input_pipeline import images
from mcsam_jax.errors import printable, UserError
from mcsam_jax.files.json_text import replace_surrogates
from mcsam_jax.findings import FINDINGS, LABEL_VALUES, VIEWS

SPLITS = ("train", "val", "test")
TEXT_FIELDS = ("id", "study_id", "subject_id", "findings", "impression", "indication", "history", "technique",
               "comparison", "study_datetime", "labels_from")
LIST_FIELDS = ("images", "dicom_ids", "views", "source_views")
_Example = tf_example_pb2.Example  # pyright: ignore[reportAttributeAccessIssue]  (generated at import)
_FIELDS = (*TEXT_FIELDS, *LIST_FIELDS, "labels")
_LABEL_KEYS = tuple((finding, f"labels/{finding}") for finding in FINDINGS)


def record_features() -> tfds.features.FeaturesDict:
  """Returns the TFDS features of a record.

  `images`, `dicom_ids`, `views` and `source_views` have one entry per view, in
  the same order, with the frontal view first if the study has one. Images are
  grayscale JPEGs, uint8 [height, width, 1].
  """
  text = tfds.features.Text()
  return tfds.features.FeaturesDict({
      "id": text,                      # unique over all splits
      "study_id": text,
      "subject_id": text,              # belongs to one split only
      "images": tfds.features.Sequence(
          tfds.features.Image(shape=(None, None, 1), encoding_format="jpeg")),
      "dicom_ids": tfds.features.Sequence(text),
      "views": tfds.features.Sequence(tfds.features.ClassLabel(names=VIEWS)),
      "source_views": tfds.features.Sequence(text),    # the view as the source names it: PA, LL, ...
      "findings": text,
      "impression": text,
      "indication": text,
      "history": text,
      "technique": text,
      "comparison": text,
      "study_datetime": text,          # ISO 8601
      "labels": tfds.features.FeaturesDict(
          {finding: tfds.features.ClassLabel(names=LABEL_VALUES) for finding in FINDINGS}),
      "labels_from": text,             # source of the labels: a section of the report, a tool, a person
  })


def make_empty_record() -> dict:
  """Returns a record in which every field is present and empty."""
  return {**{field: "" for field in TEXT_FIELDS}, **{field: [] for field in LIST_FIELDS},
          "labels": {finding: "absent" for finding in FINDINGS}}


def serialize(record: dict) -> bytes:
  """Returns a record as a serialized tf.train.Example, the format that TFDS reads.

  The serialization is deterministic: fields are in alphabetical order.

  Args:
    record: a dictionary with the fields of `make_empty_record`; `images` are JPEG bytes.
  """
  example = _Example()
  fields = example.features.feature
  for field in TEXT_FIELDS:
    fields[field].bytes_list.value.append(replace_surrogates(record[field]).encode())
  fields["images"].bytes_list.value.extend(record["images"])
  for field in ("dicom_ids", "source_views"):
    fields[field].bytes_list.value.extend(replace_surrogates(text).encode() for text in record[field])
  fields["views"].int64_list.value.extend(VIEWS.index(view) for view in record["views"])
  for finding in FINDINGS:
    fields[f"labels/{finding}"].int64_list.value.append(LABEL_VALUES.index(record["labels"][finding]))
  return example.SerializeToString(deterministic=True)


class Record(Mapping):
  """A read-only view of a serialized record: images as JPEG bytes, all other fields as str or list of str.

  Fields are decoded on access, because training uses only a few of them.
  """

  def __init__(self, serialized: bytes):
    self._fields = _Example.FromString(serialized).features.feature

  def check(self) -> None:
    """Raises ValueError, which names the field, unless every field has values as `serialize` writes them."""
    for field in _FIELDS:
      try:
        self[field]
      except (IndexError, UnicodeDecodeError):
        raise ValueError(f"field {field} is damaged") from None
    views = self._fields["views"].int64_list.value
    if min(views, default=0) < 0 or any(self._fields[key].int64_list.value[0] < 0 for _, key in _LABEL_KEYS):
      raise ValueError("field views or labels is damaged")
    if len(views) != len(self._fields["images"].bytes_list.value):
      raise ValueError("fields views and images have another length")

  def __getitem__(self, field: str) -> Any:
    if field == "labels":
      return {finding: LABEL_VALUES[self._fields[key].int64_list.value[0]] for finding, key in _LABEL_KEYS}
    if field == "views":
      return [VIEWS[view] for view in self._fields[field].int64_list.value]
    if field not in _FIELDS:
      raise KeyError(field)
    values = self._fields[field].bytes_list.value
    if field == "images":
      return list(values)
    return values[0].decode() if field in TEXT_FIELDS else [text.decode() for text in values]

  def __iter__(self):
    return iter(_FIELDS)

  def __len__(self) -> int:
    return len(_FIELDS)


def count_words(report: str) -> int:
  """Returns the number of words of a report, not counting "_", which marks text removed by de-identification."""
  return len(report.replace("_", " ").split())


class SkipRecord(Exception):
  """Raised for a study that lacks what the config requires.

  The message is the reason under which `mcsam prepare` counts the skipped study.
  """


@dataclasses.dataclass(frozen=True)
class BuildPlan:
  """The records to build, determined before any image is read.

  Attributes:
    entries: for each split, one JSON-serializable entry per record, in order; the argument of
      `RecordBuilder.build_record`.
    skipped: for each split, the number of studies skipped while planning, by reason.
    notes: lines to print below the summary table.
  """
  entries: dict[str, list]
  skipped: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)
  notes: list[str] = dataclasses.field(default_factory=list)


class RecordBuilder(tfds.core.GeneratorBasedBuilder):
  """Base class of the data sets: a TFDS builder that plans all records first and then builds them one at a time.

  `input_pipeline.builder.build` writes the shards; `download_and_prepare` of TFDS gives the same records.
  """

  def __init__(self, **kwargs):
    """Takes the arguments of TFDS.

    Raises:
      UserError: dataset_info.json of the prepared records is damaged.
    """
    try:
      super().__init__(**kwargs)
    except Exception as error:                       # TFDS raises many types for a damaged file
      path = self.data_path / "dataset_info.json"
      if isinstance(error, OSError) or not path.exists():
        raise
      raise UserError(f"{path} is damaged ({type(error).__name__}: {printable(str(error))}): delete its folder and run "
                      "`mcsam prepare`") from error

  @abc.abstractmethod
  def plan(self) -> BuildPlan:
    """Returns the plan for all splits.

    Raises:
      UserError: the source is invalid; nothing has been written.
    """

  @abc.abstractmethod
  def build_record(self, entry) -> dict:
    """Returns the record for one entry of the plan.

    Raises:
      SkipRecord: the study lacks what the config requires.
      UnreadableFile: one of its files is missing or damaged.
    """

  @functools.cached_property
  def warnings(self) -> collections.Counter[str]:
    """What was odd about the images that `load_image` has read, with the number of images."""
    return collections.Counter()

  def load_image(self, path: epath.Path, data: ConfigDict) -> bytes:
    """Returns an image file as records store it (`images.load_jpeg`).

    Args:
      path: the file.
      data: `config.data`.

    Raises:
      UnreadableFile: it is missing, damaged or too large.
    """
    return images.load_jpeg(path, data.short_side, data.dicom_rendering, data.max_image_pixels,
                            lambda warning: self.warnings.update([warning]))

  def describe_entry(self, entry) -> str:
    """Returns a name by which a user can find the entry in the source."""
    return str(entry)

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(builder=self, features=record_features(), disable_shuffling=True,
                                 description="Chest X-rays and their reports.")

  def _split_generators(self, dl_manager):
    del dl_manager                                  # unused: nothing is downloaded
    return {split: self._generate_examples(entries) for split, entries in self.plan().entries.items()}

  def _generate_examples(self, entries: list) -> Iterator[tuple[int, dict]]:
    for number, entry in enumerate(entries):
      try:
        yield number, self.build_record(entry)
      except SkipRecord:
        pass
