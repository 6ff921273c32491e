"""Random access to the prepared records of a split.

`open_split` returns a sequence of records (datasets/records.py), in which images are JPEG bytes and texts, views and
labels are strings. ArrayRecord reads a missing or truncated file as an empty one without an error, so the number of
records in each file is compared with the metadata before anything is read.

A record is corrupt if its bytes are not those that were written. A disk or bucket that does not answer says nothing
about its records: reading is retried a few times, and then the run ends with a retryable error.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import functools
import itertools
import re
import time
from typing import TYPE_CHECKING

from array_record.python import array_record_module
from etils import epath
from google.protobuf.message import DecodeError
from ml_collections import ConfigDict
import numpy as np

from input_pipeline import datasets
from input_pipeline.corrupt_records import CorruptRecordError, CorruptRecordLog
from mcsam_jax.errors import printable, UserError
from mcsam_jax.files.untrusted import open_npz
from mcsam_jax.progress import ProgressLog

if TYPE_CHECKING:                                   # TensorFlow Datasets takes a second to import
  from tensorflow_datasets.core import DatasetBuilder

  from input_pipeline.datasets.records import Record

TARGETS = ("findings", "impression", "both")
# Messages of ArrayRecord for bytes that differ from those written, and of the operating system for a bad sector; the
# latter may also be a network error, which usually passes.
_CORRUPT, _BAD_SECTOR = re.compile(r"Riegeli/records file|[Cc]orrupt"), "Input/output error"
_NO_RECORDS = re.compile(_CORRUPT.pattern + "|at least 64KB|No such file|[Oo]ut of (range|bound)")
_RETRY_DELAYS = (1, 5, 20)   # seconds
READ_BLOCK = 256             # records per read in a pass over all of them
_READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:1"    # reads are random, and threaded by the caller


class Split:
  """A sequence of the records of one split.

  Attributes:
    name: train, val or test.
    directory: folder of the records.
    selection: (target, min_words), the settings that select the records of the split and their target text.
    token_tables: the TokenTable of each tokenizer that was used with the split (token_table.py).
    substitutes: {corrupt record: the record that replaces it}; images, report and labels are all those of the latter.
  """

  def __init__(self, builder: "DatasetBuilder", name: str, target: str, min_words: int = 0,
               max_corrupt_records: int = 0):
    """Opens the files of a split.

    Args:
      target: section to generate, one of TARGETS.
      min_words: records with fewer words in the target are not part of the split; those without target never are.
      max_corrupt_records: number of corrupt records to tolerate. Each is replaced by the next record and noted in
        corrupt_records-<split>.jsonl.

    Raises:
      UserError: a file does not hold as many records as the metadata says, or no record has enough words.
    """
    self.name, self.directory = name, builder.data_dir
    self.selection, self.token_tables = (target, min_words), {}
    self._corrupt_record_log = CorruptRecordLog(builder.data_path / f"corrupt_records-{name}.jsonl",
                                                max_corrupt_records)
    self._target = target
    info = builder.info.splits[name]
    try:
      files = list(zip(info.filepaths, info.shard_lengths, strict=True))
    except (ValueError, TypeError, LookupError):                # TFDS makes the names from a template in its metadata
      files = []
    if not files or any("\0" in str(path) or path.parent != builder.data_path for path, _ in files):
      raise UserError(f"{builder.data_path / 'dataset_info.json'} is damaged, it names no files of split {name}: "
                      "delete its folder and run `mcsam prepare`")
    self._readers = [_open_reader(path, expected, builder.data_dir) for path, expected in files]
    self._shard_ends = np.cumsum(info.shard_lengths)
    self._stored_index = np.arange(self._shard_ends[-1])        # record of the split -> stored record
    if min_words or (builder.data_path / "words.npz").exists():
      self._stored_index = self._stored_index[load_target_words(builder, name, target) >= max(min_words, 1)]
    self.substitutes: dict[int, int] = {}
    known = self._corrupt_record_log.load(name) if max_corrupt_records else []
    for index in np.flatnonzero(np.isin(self._stored_index, known)).tolist():
      self.substitutes[index] = (index + 1) % len(self)
    if not self._stored_index.size:
      raise UserError(f"no record of split {name} in {builder.data_dir} has {target} with at least "
                      f"{max(min_words, 1)} words: set another --config.data.target, or a smaller data.min_words")

  def __len__(self) -> int:
    return len(self._stored_index)

  def __iter__(self) -> Iterator["Record"]:
    return (self[index] for index in range(len(self)))

  def __getitem__(self, index: int) -> "Record":
    """Returns record `index`: images as JPEG bytes, all other fields as str or list of str.

    Raises:
      IndexError: there is no such record.
      UserError, TimeoutError: see `read`.
    """
    if not 0 <= index < len(self):
      raise IndexError(index)
    return self.read([index])[0]

  def read(self, indices: Sequence[int] | np.ndarray) -> list["Record"]:
    """Returns the records `indices` in that order; errors are those of `read_serialized`."""
    return [self._parse(int(index), serialized) for index, serialized in zip(indices, self.read_serialized(indices))]

  def _parse(self, index: int, serialized: bytes) -> "Record":
    """Returns a record, or the first one after it that can be parsed, if that is tolerated."""
    from input_pipeline.datasets.records import Record
    for _ in range(len(self)):
      try:
        record = Record(serialized)
        record.check()
        return record
      except (ValueError, DecodeError) as error:
        index = int(self.resolve([index])[0])
        self._corrupt_record_log.add(self.name, self.directory, CorruptRecordError(index, str(error)),
                                     int(self._stored_index[index]))
        self.substitutes[index] = (index + 1) % len(self)
        serialized, = self.read_serialized([index])
    raise UserError(f"no record of split {self.name} in {self.directory} can be read")

  def resolve(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
    """Returns the records `indices`, int64, with the substitutes of those that are known to be corrupt."""
    resolved = np.array(indices, np.int64)
    for _ in range(len(self.substitutes)):                     # a substitute may be corrupt itself
      resolved = np.array([self.substitutes.get(index, index) for index in resolved.tolist()], np.int64)
    return resolved

  def read_serialized(self, indices: Sequence[int] | np.ndarray) -> list[bytes]:
    """Returns the records `indices` in that order as serialized tf.train.Example, with one read per file.

    Raises:
      UserError: more records are corrupt than allowed.
      TimeoutError: a disk or bucket did not answer after several attempts.
    """
    indices = self.resolve(indices)
    stored = self._stored_index[indices]
    shards = np.searchsorted(self._shard_ends, stored, side="right")
    by_row = {}
    for shard in np.unique(shards):
      rows = np.flatnonzero(shards == shard)
      first = self._shard_ends[shard - 1] if shard else 0
      try:
        serialized = self._readers[shard].read((stored[rows] - first).tolist())
      except RuntimeError:              # ArrayRecord does not say which record caused it
        return [self._read_or_substitute(int(index)) for index in indices]
      by_row.update(zip(rows, serialized, strict=True))
    return [by_row[row] for row in range(len(stored))]

  def _read_or_substitute(self, index: int) -> bytes:
    """Returns record `index`, or if it is corrupt and that is tolerated, the first readable record after it."""
    for candidate in itertools.chain(range(index, len(self)), range(index)):
      try:
        serialized = self._read_one(candidate)
      except CorruptRecordError as error:
        self._corrupt_record_log.add(self.name, self.directory, error, int(self._stored_index[candidate]))
      else:
        if candidate != index:
          self.substitutes[index] = candidate
        return serialized
    raise UserError(f"no record of split {self.name} in {self.directory} can be read")

  def _read_one(self, index: int) -> bytes:
    """Returns record `index`, or raises CorruptRecordError or TimeoutError."""
    stored = self._stored_index[index]
    shard = np.searchsorted(self._shard_ends, stored, side="right")
    position = int(stored - (self._shard_ends[shard - 1] if shard else 0))
    for attempt in itertools.count():
      try:
        return self._readers[shard].read([position])[0]
      except RuntimeError as error:
        last = attempt == len(_RETRY_DELAYS)
        if _CORRUPT.search(str(error)) or (last and _BAD_SECTOR in str(error)):
          raise CorruptRecordError(index, str(error)) from error
        if last:
          raise TimeoutError(f"record {index} of split {self.name} in {self.directory} can't be read now "
                             f"({error})") from error
        time.sleep(_RETRY_DELAYS[attempt])
    raise AssertionError("unreachable")

  @functools.cached_property
  def metadata(self) -> list[dict]:
    """All fields of all records except `images`; read once and kept in memory."""
    return [{field: value for field, value in record.items() if field != "images"}
            for block in self.read_blocks() for record in block]

  @functools.cached_property
  def reports(self) -> list[str]:
    """The target text of each record, as it is stored (not cleaned); read once and kept in memory."""
    return self.read_reports()

  def read_reports(self, log: Callable[[str], None] = lambda line: None) -> list[str]:
    """Reads all records and returns the target text of each; `log` receives lines of progress."""
    return [self.get_target(record) for block in self.read_blocks(log) for record in block]

  def read_blocks(self, log: Callable[[str], None] = lambda line: None) -> Iterator[list["Record"]]:
    """Yields all records in order, READ_BLOCK at a time; `log` receives lines of progress."""
    progress = ProgressLog(log, f"reading the records of {self.name}", len(self), "records", log_last=False)
    for start in range(0, len(self), READ_BLOCK):
      end = min(start + READ_BLOCK, len(self))
      yield self.read(range(start, end))
      progress.update(end)

  @property
  def ids(self) -> list[str]:
    return [record["id"] for record in self.metadata]

  def get_target(self, record: Mapping) -> str:
    """Returns the target text of a record: its findings, its impression, or both separated by a space."""
    if self._target == "both":
      return f"{record['findings']} {record['impression']}".strip()
    return record[self._target]


def open_split(config: ConfigDict, split: str) -> Split:
  """Returns a split of the prepared records.

  Raises:
    UserError: the records are not prepared, there is no such split, files are missing or truncated, or `data.target`
      is no section.
  """
  builder = datasets.make_builder(config)
  if not is_prepared(builder):
    raise UserError(f"no records in {builder.data_dir}: run `mcsam prepare` with this config first")
  if split not in builder.info.splits:
    raise UserError(f"no split {split} in {builder.data_dir}, expected one of {', '.join(builder.info.splits)}")
  if config.data.target not in TARGETS:
    raise UserError(f"data.target={config.data.target}: expected one of {', '.join(TARGETS)}")
  # Training may tolerate a few corrupt records; evaluation may not, because its scores would cover other studies.
  max_corrupt_records = config.train.max_corrupt_records if split == "train" else 0
  return Split(builder, split, config.data.target, config.data.min_words, max_corrupt_records)


def dataset_dir(config: ConfigDict) -> epath.Path:
  """Returns the folder of the prepared records, which may not exist yet."""
  return epath.Path(datasets.make_builder(config).data_dir)


def is_prepared(builder: "DatasetBuilder") -> bool:
  """Returns whether the records are completely built."""
  return (builder.data_path / "dataset_info.json").exists()


def count_skipped(builder: "DatasetBuilder", split: str, data: ConfigDict) -> dict[str, int]:
  """Returns how many stored records of a split are unused because of `data.target` and `data.min_words`, by reason."""
  if not data.min_words and not (builder.data_path / "words.npz").exists():
    return {}
  words = load_target_words(builder, split, data.target)
  section = "findings or impression" if data.target == "both" else data.target
  counts = {f"no {section}": int((words == 0).sum()),
            f"{section} of fewer than {data.min_words} words": int(((words > 0) & (words < data.min_words)).sum())}
  return {reason: count for reason, count in counts.items() if count}


def load_target_words(builder: "DatasetBuilder", split: str, target: str) -> np.ndarray:
  """Returns the number of words in the target of each stored record, int [number of stored records].

  Raises:
    UserError: words.npz is missing or damaged.
  """
  path = builder.data_path / "words.npz"
  try:
    with open_npz(path) as file:
      words = file.read(split)
    if words.dtype.kind != "i" or words.shape != (builder.info.splits[split].num_examples, 2):
      raise ValueError(f"{split} isn't a pair of numbers per record")
  except (OSError, ValueError) as error:
    raise UserError(f"{path} can't be read ({printable(str(error))}), and data.min_words needs it: delete "
                    f"{builder.data_dir} and run `mcsam prepare`") from error
  findings, impression = words.T
  return {"findings": findings, "impression": impression, "both": findings + impression}[target]


def _open_reader(path: epath.PathLike, expected: int,
                 directory: epath.PathLike) -> array_record_module.ArrayRecordReader:
  """Returns the reader of a file after checking that it holds `expected` records.

  Raises:
    UserError: the file holds another number of records, or ArrayRecord has no access to it.
    OSError, or an error of TensorFlow for a bucket: the disk or bucket does not answer.
  """
  reader = None
  try:
    reader = array_record_module.ArrayRecordReader(str(path), options=_READER_OPTIONS)
    num_records = reader.num_records()
  except (RuntimeError, ValueError, OSError):
    num_records = 0
  if reader is None or num_records != expected:
    # ArrayRecord reports a disk or bucket that does not answer in the same way; opening the file raises then.
    with contextlib.suppress(FileNotFoundError, IsADirectoryError), epath.Path(path).open("rb") as file:
      file.read(1)
      reason = _try_first_record(path)
      if reason and not _NO_RECORDS.search(reason):
        raise UserError(f"{path} exists, but ArrayRecord can't read it: {reason}")
    raise UserError(f"{path} holds {num_records} records instead of {expected}, it is missing or truncated: delete "
                    f"{directory} and run `mcsam prepare`")
  return reader


def _try_first_record(path: epath.PathLike) -> str:
  """Returns the message of ArrayRecord when it fails to read the first record, "" if it can read it."""
  try:
    array_record_module.ArrayRecordReader(str(path), options=_READER_OPTIONS).read([0])
  except (RuntimeError, ValueError, OSError, IndexError) as error:
    return " ".join(str(error).split())[:300]
  return ""
