"""Records that turn out to be damaged while a run reads them: counted, written down, and at last too many."""

import json
import threading

from etils import epath

from mcsam_jax.errors import UserError


class DamagedRecord(Exception):
  """Record `index` of a split can't be read; the message is the reason."""

  def __init__(self, index: int, reason: str):
    super().__init__(reason)
    self.index = index


class DamagedRecords:
  """Keeps a line for each damaged record in a file, by its number alone, and stops the run past a limit.

  Threads may share it.
  """

  def __init__(self, path: epath.PathLike, limit: int):
    self.path, self.limit = epath.Path(path), limit
    self._seen, self._lock = set(), threading.Lock()

  def __call__(self, split: str, directory: str, damage: DamagedRecord) -> None:
    """Notes a damaged record.

    Raises:
      UserError: there are more than the limit.
    """
    with self._lock:
      if damage.index not in self._seen:
        self._seen.add(damage.index)
        line = json.dumps({"split": split, "record": damage.index, "reason": str(damage)}) + "\n"
        if self.limit:
          before = self.path.read_text() if self.path.exists() else ""
          if line not in before:
            self.path.write_text(before + line)
      if len(self._seen) > self.limit:
        more = f"; {len(self._seen)} such, listed in {self.path}, are more than the limit" if self.limit else ""
        raise UserError(f"record {damage.index} of split {split} in {directory} is damaged ({damage}); delete that "
                        f"folder and run `mcsam prepare`{more}")
