"""One ArrayRecord file of a split: checked when it is opened, then read one record at a time.

ArrayRecord reads a missing or truncated file as an empty one without an error, so the number of records is compared
with the metadata before anything is read.
"""

import contextlib
import re
import threading

from array_record.python import array_record_module
from etils import epath

from mcsam_jax.errors import UserError

CORRUPT = re.compile(r"Riegeli/records file|[Cc]orrupt")        # ArrayRecord, of bytes that differ from those written
_NO_RECORDS = re.compile(CORRUPT.pattern + "|at least 64KB|No such file|[Oo]ut of (range|bound)")
_OPTIONS = "readahead_buffer_size:0,max_parallelism:1"          # reads are random, and threaded by the caller


class RecordFile:
  """An ArrayRecord file, which several threads may read.

  A record is read by itself: ArrayRecord hands each record of a list to a thread of its own, which takes twice the
  processor time.
  """

  def __init__(self, path: epath.PathLike, num_records: int, directory: epath.PathLike):
    """Opens a file that should hold `num_records`.

    Args:
      directory: what to delete if it doesn't, for the error.

    Raises:
      UserError: the file holds another number of records, or ArrayRecord has no access to it.
      OSError, or an error of TensorFlow for a bucket: the disk or bucket does not answer.
    """
    self._path, self._num_records, self._lock = path, num_records, threading.Lock()
    self._reader, found = _open(path)
    if found != num_records:
      # ArrayRecord reports a disk or bucket that does not answer in the same way; opening the file raises then.
      with contextlib.suppress(FileNotFoundError, IsADirectoryError), epath.Path(path).open("rb") as file:
        file.read(1)
        reason = _try_first_record(path)
        if reason and not _NO_RECORDS.search(reason):
          raise UserError(f"{path} exists, but ArrayRecord can't read it: {reason}")
      raise UserError(f"{path} holds {found} records instead of {num_records}, it is missing or truncated: delete "
                      f"{directory} and run `mcsam prepare`")

  def read(self, position: int) -> bytes:
    """Returns the record at a position, from 0.

    Raises:
      RuntimeError: it can't be read; the message of ArrayRecord. It may succeed later.
    """
    with self._lock:                                # the reader has one position
      reader, self._reader = self._reader, None
      if reader is None:
        reader, found = _open(self._path)
        if reader is None or found != self._num_records:
          raise RuntimeError(f"{self._path} can't be opened any more")
      reader.seek(position)
      record = reader.read()
      self._reader = reader                         # not after an error: it would read no other record either
      return record


def _open(path: epath.PathLike) -> tuple[array_record_module.ArrayRecordReader | None, int]:
  """Returns the reader of a file and its number of records; (None, 0) if it can't be opened."""
  try:
    reader = array_record_module.ArrayRecordReader(str(path), options=_OPTIONS)
    return reader, reader.num_records()
  except (RuntimeError, ValueError, OSError):
    return None, 0


def _try_first_record(path: epath.PathLike) -> str:
  """Returns the message of ArrayRecord when it fails to read the first record, "" if it can read it."""
  try:
    array_record_module.ArrayRecordReader(str(path), options=_OPTIONS).read([0])
  except (RuntimeError, ValueError, OSError, IndexError) as error:
    return " ".join(str(error).split())[:300]
  return ""
