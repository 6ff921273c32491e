"""Prepared records, read by their number.

`open_split` gives a sequence of records (datasets/records.py) whose images are
still JPEG bytes and whose texts, views and labels are strings. A file of records
that is missing or was cut shows as empty without an error in ArrayRecord, so the
files are counted against the metadata before anything is read.

A record whose bytes aren't what was written is damaged. A disk or bucket that
doesn't answer says nothing about its records: it is asked again a few times,
and then the run ends with an error that another start may not meet.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import functools
import itertools
import re
import time

from array_record.python import array_record_module
from etils import epath
from ml_collections import ConfigDict
import numpy as np
import tensorflow_datasets as tfds

from input_pipeline import datasets
from input_pipeline.corrupt_records import DamagedRecord, DamagedRecords
from input_pipeline.datasets import records
from mcsam_jax.atomic_io import NPZ_ERRORS
from mcsam_jax.errors import UserError

TARGETS = ("findings", "impression", "both")
# What ArrayRecord says of bytes that aren't what was written, and what a disk says of a bad sector, or a network of
# a fault that mostly passes.
_DAMAGE, _BAD_SECTOR = re.compile(r"Riegeli/records file|[Cc]orrupt"), "Input/output error"
_NO_RECORDS = re.compile(_DAMAGE.pattern + "|at least 64KB|No such file|[Oo]ut of (range|bound)")
_PAUSES = (1, 5, 20)         # seconds before what didn't answer is asked again
READ_AT_ONCE = 256           # records, in a pass over all of them
SECONDS_A_LINE = 10          # between two lines of progress of such a pass
_OPTIONS = "readahead_buffer_size:0,max_parallelism:1"    # records are read at random, by threads of our own


class Split:
  """The records of one split.

  Attributes:
    name: train, val or test.
    directory: that holds the records.
    chosen_by: what decides which of them belong to the split, and which text is theirs.
    tables: of each tokenizer, what table.py keeps of the records.
  """

  def __init__(self, builder: tfds.core.DatasetBuilder, name: str, target: str, min_words: int = 0,
               max_damaged: int = 0):
    """Opens the files of a split.

    Args:
      target: the section that is written, one of TARGETS.
      min_words: records whose target is shorter, or empty, are passed over.
      max_damaged: so many damaged records may be met; the next one stands in for each, which a file tells.

    Raises:
      UserError: a file doesn't hold as many records as the metadata says, or no record is long enough.
    """
    self.name, self.directory = name, builder.data_dir
    self.chosen_by, self.tables = (target, min_words), {}
    self._note_damage = DamagedRecords(builder.data_path / f"damaged-{name}.jsonl", max_damaged)
    self._target = target
    info = builder.info.splits[name]
    self._readers = [_open(path, expected, builder.data_dir)
                     for path, expected in zip(info.filepaths, info.shard_lengths, strict=True)]
    self._ends = np.cumsum(info.shard_lengths)
    self._stored = np.arange(self._ends[-1])        # number of each record among all that are stored
    if min_words or (builder.data_path / "words.npz").exists():
      self._stored = self._stored[target_words(builder, name, target) >= max(min_words, 1)]
    if not self._stored.size:
      raise UserError(f"no record of split {name} in {builder.data_dir} has {target} of {max(min_words, 1)} words: "
                      "set another --config.data.target, or a lower data.min_words")

  def __len__(self) -> int:
    return len(self._stored)

  def __getitem__(self, index: int) -> records.Record:
    """Returns record `index`: images as JPEG bytes, all else as str or list of str.

    Raises:
      IndexError: there is no such record.
      UserError, TimeoutError: see `read`.
    """
    if not 0 <= index < len(self):
      raise IndexError(index)
    return self.read([index])[0]

  def read(self, indices: Sequence[int]) -> list[records.Record]:
    """Returns some records, in the order of `indices`, with one look-up for each file that holds any of them.

    Raises:
      UserError: a file is damaged, more often than may be.
      TimeoutError: a disk or bucket didn't answer, however often it was asked.
    """
    stored = self._stored[np.asarray(indices)]
    shards = np.searchsorted(self._ends, stored, side="right")
    found = [None] * len(stored)
    for shard in np.unique(shards):
      rows = np.flatnonzero(shards == shard)
      first = self._ends[shard - 1] if shard else 0
      try:
        serialized = self._readers[shard].read((stored[rows] - first).tolist())
      except RuntimeError:              # ArrayRecord: something is wrong with one of them
        return [self._read_or_next(int(index)) for index in indices]
      for row, data in zip(rows, serialized, strict=True):
        found[row] = records.Record(data)
    return found

  def _read_or_next(self, index: int) -> records.Record:
    """Returns record `index`, or the first behind it that can be read, if the damage may pass."""
    for number in itertools.chain(range(index, len(self)), range(index)):
      try:
        return self._read_one(number)
      except DamagedRecord as damage:
        self._note_damage(self.name, self.directory, damage)
    raise UserError(f"no record of split {self.name} in {self.directory} can be read")

  def _read_one(self, index: int) -> records.Record:
    """Returns record `index`, or raises DamagedRecord, or TimeoutError."""
    stored = self._stored[index]
    shard = np.searchsorted(self._ends, stored, side="right")
    place = int(stored - (self._ends[shard - 1] if shard else 0))
    for pause in (*_PAUSES, None):
      try:
        return records.Record(self._readers[shard].read([place])[0])
      except RuntimeError as error:
        if _DAMAGE.search(str(error)) or (pause is None and _BAD_SECTOR in str(error)):
          raise DamagedRecord(index, str(error)) from error
        if pause is None:
          raise TimeoutError(f"record {index} of split {self.name} in {self.directory} can't be read now "
                             f"({error})") from error
        time.sleep(pause)

  @functools.cached_property
  def metadata(self) -> list[dict]:
    """All records but their `images`, read once; small enough to stay in memory."""
    return [{field: value for field, value in record.items() if field != "images"}
            for block in self.blocks() for record in block]

  @functools.cached_property
  def reports(self) -> list[str]:
    """The target of each record, raw."""
    return self.read_reports()

  def read_reports(self, log: Callable[[str], None] = lambda line: None) -> list[str]:
    """Returns `reports` by a pass over all records; `log` receives lines of progress."""
    return [self.target(record) for block in self.blocks(log) for record in block]

  def blocks(self, log: Callable[[str], None] = lambda line: None) -> Iterator[list[records.Record]]:
    """Yields all records, in order, READ_AT_ONCE at a time; `log` receives lines of progress, signs of life."""
    shown = time.monotonic()
    for start in range(0, len(self), READ_AT_ONCE):
      end = min(start + READ_AT_ONCE, len(self))
      yield self.read(range(start, end))
      if time.monotonic() - shown > SECONDS_A_LINE:
        log(f"reading the records of {self.name}: {end}/{len(self)}")
        shown = time.monotonic()

  @property
  def ids(self) -> list[str]:
    return [record["id"] for record in self.metadata]

  def target(self, record: dict) -> str:
    """Returns the text of `record` that is to be written."""
    return target_of(record, self._target)


def target_of(record: dict, target: str) -> str:
  """Returns the findings, the impression, or both with a blank between them."""
  if target == "both":
    return f"{record['findings']} {record['impression']}".strip()
  return record[target]


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
  if config.data.target not in TARGETS:
    raise UserError(f"data.target={config.data.target}: expected one of {', '.join(TARGETS)}")
  # What is learned from may lack a few records, what is scored may not.
  max_damaged = config.train.max_corrupt_records if split == "train" else 0
  return Split(builder, split, config.data.target, config.data.min_words, max_damaged)


def skipped(builder: tfds.core.DatasetBuilder, split: str, data: ConfigDict) -> dict[str, int]:
  """Returns how many records of a split `data.target` and `data.min_words` leave unused, by reason."""
  if not data.min_words and not (builder.data_path / "words.npz").exists():
    return {}
  words = target_words(builder, split, data.target)
  named = "findings or impression" if data.target == "both" else data.target
  counts = {f"no {named}": int((words == 0).sum()),
            f"{named} of fewer than {data.min_words} words": int(((words > 0) & (words < data.min_words)).sum())}
  return {reason: count for reason, count in counts.items() if count}


def target_words(builder: tfds.core.DatasetBuilder, split: str, target: str) -> np.ndarray:
  """Returns the number of words of each stored record's target, int [n].

  Raises:
    UserError: the records were built before anybody counted.
  """
  try:
    with (builder.data_path / "words.npz").open("rb") as file, np.load(file) as words:
      findings, impression = words[split].T
  except NPZ_ERRORS as error:
    raise UserError(f"{builder.data_path / 'words.npz'} can't be read ({error}), and data.min_words needs it: delete "
                    f"{builder.data_dir} and run `mcsam prepare`") from error
  return {"findings": findings, "impression": impression, "both": findings + impression}[target]


def is_prepared(builder: tfds.core.DatasetBuilder) -> bool:
  return (builder.data_path / "dataset_info.json").exists()


def _open(path, expected: int, directory) -> array_record_module.ArrayRecordReader:
  """Returns the reader of a file once it is known to hold as many records as expected.

  Raises:
    UserError: it doesn't, or ArrayRecord has no way to it.
    OSError, or TensorFlow's for a bucket: it can't be told now.
  """
  try:
    reader = array_record_module.ArrayRecordReader(str(path), options=_OPTIONS)
    found = reader.num_records()
  except (RuntimeError, ValueError, OSError):
    found = 0
  if found != expected:
    # ArrayRecord says the same of a disk or bucket that doesn't answer, which raises here.
    with contextlib.suppress(FileNotFoundError, IsADirectoryError), epath.Path(path).open("rb") as file:
      file.read(1)
      if (why := _why_not(path)) and not _NO_RECORDS.search(why):
        raise UserError(f"{path} is there, but ArrayRecord can't read it: {why}")
    raise UserError(f"{path} holds {found} records instead of {expected}, it is missing or was cut: delete "
                    f"{directory} and run `mcsam prepare`")
  return reader


def _why_not(path) -> str:
  """Returns what ArrayRecord says when asked for the first record; "" where it gives it."""
  try:
    array_record_module.ArrayRecordReader(str(path), options=_OPTIONS).read([0])
  except (RuntimeError, ValueError, OSError, IndexError) as error:
    return " ".join(str(error).split())[:300]
  return ""
