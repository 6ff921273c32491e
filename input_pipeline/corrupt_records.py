"""Prepared records that turn out to be corrupt when they are read: written to a file, counted, and limited."""

import json
import threading

from etils import epath

from mcsam_jax.errors import UserError


class CorruptRecordError(Exception):
  """Record `index` of a split is stored with wrong bytes; the message is the reason."""

  def __init__(self, index: int, reason: str):
    super().__init__(reason)
    self.index = index


class CorruptRecordLog:
  """Writes one JSON line per corrupt record to a file, and stops the run when there are too many. Thread-safe.

  A line contains the split, the index of the record and the reason, but nothing from the record itself.
  """

  def __init__(self, path: epath.PathLike, max_records: int):
    self.path, self.max_records = epath.Path(path), max_records
    self._indices, self._lock = set(), threading.Lock()

  def add(self, split: str, directory: str, error: CorruptRecordError) -> None:
    """Notes a corrupt record.

    Raises:
      UserError: there are now more than `max_records`.
    """
    with self._lock:
      if error.index not in self._indices:
        self._indices.add(error.index)
        line = json.dumps({"split": split, "record": error.index, "reason": str(error)}) + "\n"
        if self.max_records:
          content = self.path.read_text() if self.path.exists() else ""
          if line not in content:
            self.path.write_text(content + line)
      if len(self._indices) > self.max_records:
        total = (f"; {len(self._indices)} corrupt records, listed in {self.path}, are more than "
                 f"train.max_corrupt_records={self.max_records}" if self.max_records else "")
        raise UserError(f"record {error.index} of split {split} in {directory} is corrupt ({error}); delete that "
                        f"folder and run `mcsam prepare`{total}")
