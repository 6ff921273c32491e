"""Prepared records that turn out to be corrupt when they are read: written to a file, counted, and limited."""

import contextlib
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

  A line contains the split, the numbers of the record and the reason, but nothing from the record itself.
  """

  def __init__(self, path: epath.PathLike, max_records: int):
    self.path, self.max_records = epath.Path(path), max_records
    self._stored, self._lock = set(), threading.Lock()

  def load(self, split: str) -> list[int]:
    """Returns the stored records of a split that earlier runs noted, in ascending order; they count, too."""
    for line in self.path.read_text().splitlines() if self.path.exists() else []:
      # A damaged line: the record is noted again.
      with contextlib.suppress(ValueError, TypeError, KeyError, OverflowError, RecursionError):
        noted = json.loads(line)
        if noted["split"] == split:
          self._stored.add(int(noted["stored"]))
    return sorted(self._stored)

  def add(self, split: str, directory: str, error: CorruptRecordError, stored: int) -> None:
    """Notes a corrupt record.

    Args:
      stored: its number among all stored records, whatever records the config selects.

    Raises:
      UserError: there are now more than `max_records`.
    """
    with self._lock:
      if stored not in self._stored:
        self._stored.add(stored)
        line = json.dumps({"split": split, "record": error.index, "stored": stored, "reason": str(error)}) + "\n"
        if self.max_records:
          content = self.path.read_text() if self.path.exists() else ""
          if line not in content:
            self.path.write_text(content + line)
      if len(self._stored) > self.max_records:
        total = (f"; {len(self._stored)} corrupt records, listed in {self.path}, are more than "
                 f"train.max_corrupt_records={self.max_records}" if self.max_records else "")
        raise UserError(f"record {error.index} of split {split} in {directory} is corrupt ({error}); delete that "
                        f"folder and run `mcsam prepare`{total}")
