"""Prepared records, read by their number.

`open_split` gives a sequence of records (datasets/records.py) whose images are
still JPEG bytes and whose texts, views and labels are strings. A file of records
that is missing or was cut shows as empty without an error in ArrayRecord, so the
files are counted against the metadata before anything is read.
"""

import functools

from array_record.python import array_record_module
from ml_collections import ConfigDict
import tensorflow_datasets as tfds

from input_pipeline import datasets
from input_pipeline.datasets.findings import LABEL_VALUES, VIEWS
from mcsam_jax.errors import UserError


class Split:
  """The records of one split.

  Attributes:
    name: train, val or test.
  """

  def __init__(self, source, name: str, target: str):
    """`source` is a TFDS data source that leaves images encoded, `target` the section that is written."""
    self.name = name
    self._source = source
    self._target = target

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> dict:
    """Returns record `index`: images as JPEG bytes, all else as str or list of str.

    Raises:
      IndexError: there is no such record.
      UserError: the file is damaged.
    """
    if not 0 <= index < len(self):
      raise IndexError(index)
    try:
      return _readable(self._source[int(index)])
    except RuntimeError as error:     # ArrayRecord: a checksum is wrong
      directory = self._source.dataset_info.data_dir
      raise UserError(f"record {index} of split {self.name} in {directory} is damaged ({error}); delete that "
                      "folder and run `mcsam prepare`") from error

  @functools.cached_property
  def without_images(self) -> list[dict]:
    """All records but their `images`, read once; small enough to stay in memory."""
    return [{field: value for field, value in record.items() if field != "images"} for record in self]

  @property
  def reports(self) -> list[str]:
    """The target section of each record, raw."""
    return [self.target(record) for record in self.without_images]

  @property
  def ids(self) -> list[str]:
    return [record["id"] for record in self.without_images]

  def target(self, record: dict) -> str:
    """Returns the section of `record` that is to be written."""
    return record[self._target]


class _KeepEncoded(tfds.decode.SkipDecoding):
  """SkipDecoding for a sequence, which TFDS lacks where it reads without TensorFlow."""

  def decode_batch_example_np(self, serialized_examples):
    return serialized_examples


def open_split(config: ConfigDict, split: str) -> Split:
  """Returns a split of the prepared records.

  Raises:
    UserError: not prepared, no such split, files missing or cut, or no such section.
  """
  builder = datasets.make_builder(config)
  if not is_prepared(builder):
    raise UserError(f"no records in {builder.data_dir}: run `mcsam prepare` with this config first")
  if split not in builder.info.splits:
    raise UserError(f"no split {split} in {builder.data_dir}, there are {', '.join(builder.info.splits)}")
  if config.data.target not in ("findings", "impression"):
    raise UserError(f"data.target={config.data.target}: expected findings or impression")
  verify_files(builder, split)
  source = builder.as_data_source(split, decoders={"images": _KeepEncoded()})
  return Split(source, split, config.data.target)


def is_prepared(builder: tfds.core.DatasetBuilder) -> bool:
  return (builder.data_path / "dataset_info.json").exists()


def verify_files(builder: tfds.core.DatasetBuilder, split: str) -> None:
  """Raises UserError unless each file of a split holds as many records as the metadata says."""
  info = builder.info.splits[split]
  for path, expected in zip(info.filepaths, info.shard_lengths, strict=True):
    try:
      reader = array_record_module.ArrayRecordReader(str(path))
      found = reader.num_records()
      reader.close()
    except (RuntimeError, ValueError, OSError):
      found = 0
    if found != expected:
      raise UserError(f"{path} holds {found} records instead of {expected}, it is missing or was cut: delete "
                      f"{builder.data_dir} and run `mcsam prepare`")


def _readable(record: dict) -> dict:
  """Returns a record as TFDS reads it with bytes and class numbers turned into strings."""
  text = lambda value: value.decode() if isinstance(value, bytes) else str(value)
  texts = {field: text(value) for field, value in record.items() if isinstance(value, (bytes, str))}
  return {
      **texts,
      "images": list(record["images"]),
      "dicom_ids": [text(name) for name in record["dicom_ids"]],
      "views": [VIEWS[view] for view in record["views"]],
      "source_views": [text(view) for view in record["source_views"]],
      "labels": {finding: LABEL_VALUES[value] for finding, value in record["labels"].items()},
  }
