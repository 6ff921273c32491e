"""The record that every data set is turned into, whatever it came from, and the builder that a source is.

A record is one study (all views together) or one image. What is unknown is an
empty string, so that a reader needs no second code path.
"""

import abc
from collections.abc import Iterator, Mapping
import dataclasses

import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from mcsam_jax.findings import FINDINGS, LABEL_VALUES, VIEWS

SPLITS = ("train", "val", "test")
TEXTS = ("id", "study_id", "subject_id", "findings", "impression", "indication", "history", "technique",
         "comparison", "study_datetime", "labels_from")
LISTS = ("images", "dicom_ids", "views", "source_views")
_FIELDS = (*TEXTS, *LISTS, "labels")
_LABEL_KEYS = tuple((finding, f"labels/{finding}") for finding in FINDINGS)


def features() -> tfds.features.FeaturesDict:
  """Returns the features of a record.

  `images`, `dicom_ids`, `views` and `source_views` have one entry a view, in
  the same order, the frontal first where there is one. Images are grayscale
  JPEGs [height, width, 1] of uint8.
  """
  text = tfds.features.Text()
  return tfds.features.FeaturesDict({
      "id": text,                      # unique over all splits
      "study_id": text,
      "subject_id": text,              # no two splits share one
      "images": tfds.features.Sequence(
          tfds.features.Image(shape=(None, None, 1), encoding_format="jpeg")),
      "dicom_ids": tfds.features.Sequence(text),
      "views": tfds.features.Sequence(tfds.features.ClassLabel(names=VIEWS)),
      "source_views": tfds.features.Sequence(text),    # the source's own word: PA, LL, ...
      "findings": text,
      "impression": text,
      "indication": text,
      "history": text,
      "technique": text,
      "comparison": text,
      "study_datetime": text,          # ISO 8601
      "labels": tfds.features.FeaturesDict(
          {finding: tfds.features.ClassLabel(names=LABEL_VALUES) for finding in FINDINGS}),
      "labels_from": text,             # the text or the person that the labels were read from
  })


def empty_record() -> dict:
  """Returns a record with every field present and nothing known."""
  return {**{field: "" for field in TEXTS}, **{field: [] for field in LISTS},
          "labels": {finding: "absent" for finding in FINDINGS}}


def serialize(record: dict) -> bytes:
  """Returns the bytes of a record, as TFDS reads them: a tf.train.Example, its fields in alphabetic order.

  Args:
    record: as `empty_record` has it; `images` are JPEG bytes.
  """
  example = tf_example_pb2.Example()
  fields = example.features.feature
  for field in TEXTS:
    fields[field].bytes_list.value.append(record[field].encode())
  fields["images"].bytes_list.value.extend(record["images"])
  for field in ("dicom_ids", "source_views"):
    fields[field].bytes_list.value.extend(text.encode() for text in record[field])
  fields["views"].int64_list.value.extend(VIEWS.index(view) for view in record["views"])
  for finding in FINDINGS:
    fields[f"labels/{finding}"].int64_list.value.append(LABEL_VALUES.index(record["labels"][finding]))
  return example.SerializeToString(deterministic=True)


class Record(Mapping):
  """A record as it is read: images as JPEG bytes, everything else as str or list of str.

  A field is decoded when it is asked for: training asks for few.
  """

  def __init__(self, serialized: bytes):
    self._fields = tf_example_pb2.Example.FromString(serialized).features.feature

  def __getitem__(self, field: str):
    if field == "labels":
      return {finding: LABEL_VALUES[self._fields[key].int64_list.value[0]] for finding, key in _LABEL_KEYS}
    if field == "views":
      return [VIEWS[view] for view in self._fields[field].int64_list.value]
    if field not in _FIELDS:
      raise KeyError(field)
    values = self._fields[field].bytes_list.value
    if field == "images":
      return list(values)
    return values[0].decode() if field in TEXTS else [text.decode() for text in values]

  def __iter__(self):
    return iter(_FIELDS)

  def __len__(self) -> int:
    return len(_FIELDS)


def num_words(report: str) -> int:
  """Returns how many words a text has once "_", which stands for what was taken out of it, is gone."""
  return len(report.replace("_", " ").split())


class SkipRecord(Exception):
  """A study is left out because it lacks what the config asks for; the message is the reason, as the table has it."""


@dataclasses.dataclass(frozen=True)
class Plan:
  """What a source will be built into, known before any image is read.

  Attributes:
    entries: of each split, in order; whatever JSON can hold, and `RecordBuilder.record` understands.
    left: of each split, how many studies were left out so far, by reason.
    notes: lines that are shown with the table at the end.
  """
  entries: dict[str, list]
  left: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)
  notes: list[str] = dataclasses.field(default_factory=list)


class RecordBuilder(tfds.core.GeneratorBasedBuilder):
  """A source of records: a TFDS builder that says what is to be built, and builds one record at a time.

  `build.build` writes the shards; TFDS's own `download_and_prepare` gives the same records.
  """

  @abc.abstractmethod
  def plan(self) -> Plan:
    """Returns the plan of all splits.

    Raises:
      UserError: the source is at fault; nothing has been written.
    """

  @abc.abstractmethod
  def record(self, entry) -> dict:
    """Returns the record of an entry of the plan.

    Raises:
      Left: the study lacks what the config asks for.
      Unreadable: a file of it is missing or damaged.
    """

  def name_of(self, entry) -> str:
    """Returns how a user would look an entry up."""
    return str(entry)

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(builder=self, features=features(), disable_shuffling=True,
                                 description="Chest X-rays and their reports.")

  def _split_generators(self, dl_manager):
    del dl_manager                                  # nothing is downloaded
    return {split: self._generate_examples(entries) for split, entries in self.plan().entries.items()}

  def _generate_examples(self, entries: list) -> Iterator[tuple[int, dict]]:
    for number, entry in enumerate(entries):
      try:
        yield number, self.record(entry)
      except SkipRecord:
        pass
