"""metrics.jsonl of a workdir: one line per logged step with all of its metrics, for people and scripts.

    {"step": 30, "time": "2026-01-31T12:00:00+00:00", "train/loss": 2.1, "speed/mfu": 0.2, "val/CIDEr": 0.4}

A resumed run drops the lines after the step that it resumes at, because it takes these steps again. So each step is
there once, however often the run was interrupted, and the lines are those of the steps that led to the last checkpoint.
"""

from collections.abc import Callable, Mapping
import datetime
import json
import math

from etils import epath

from mcsam_jax.atomic_io import atomic_write

NAME = "metrics.jsonl"


class MetricsFile:
  """Appends a line as soon as a step is logged. In a bucket, which can't append, lines are written by `flush`."""

  def __init__(self, workdir: epath.Path, first_step: int, log: Callable[[str], None]):
    """Reads the file of an earlier start of the run.

    Args:
      first_step: number of steps completed before this start; later lines are dropped.
      log: receives a line when the file can't be written, which doesn't stop the run.
    """
    self._path, self._log = workdir / NAME, log
    self._can_append = "://" not in str(workdir)
    self._has_failed, self.rows = False, {}
    self._is_current = not self._path.exists()       # whether the file holds all rows and nothing else
    if not self._is_current:
      self.rows = {step: row for step, row in read_metrics(self._path).items() if step <= first_step}
      self.flush()

  def add(self, step: int, metrics: Mapping[str, float]) -> None:
    """Adds metrics of a step, to its line if it has one."""
    is_new = step not in self.rows
    self.rows.setdefault(step, {"step": step, "time": datetime.datetime.now(datetime.UTC).isoformat("T", "seconds")})
    self.rows[step] |= {name: float(value) if math.isfinite(value) else None for name, value in metrics.items()}
    if self._can_append and is_new and self._is_current:
      self._write(lambda: self._append(self.rows[step]))
    else:
      self._is_current = False

  def flush(self) -> None:
    """Writes all rows that the file lacks."""
    if not self._is_current:
      lines = "".join(map(_format_row, self.rows.values()))
      self._write(lambda: atomic_write(self._path, lines))

  def _append(self, row: Mapping) -> None:
    with self._path.open("a") as file:
      file.write(_format_row(row))

  def _write(self, write: Callable[[], object]) -> None:
    try:
      write()
      self._is_current = True
    # A failing disk or bucket must not stop the run here; a lasting failure stops it at the next checkpoint.
    except Exception as error:
      self._is_current = False
      if not self._has_failed:
        self._log(f"{self._path} can't be written ({' '.join(str(error).split())[:200]}); the run goes on")
      self._has_failed = True


def read_metrics(path: epath.Path) -> dict[int, dict]:
  """Returns {step: row} of a file, by step. Lines that were cut by a crash are left out."""
  rows = {}
  for line in path.read_bytes().decode("utf-8", "replace").splitlines():
    try:
      row = json.loads(line)
      rows[int(row["step"])] = row
    except (ValueError, TypeError, KeyError):
      continue
  return dict(sorted(rows.items()))


def _format_row(row: Mapping) -> str:
  return json.dumps(row, allow_nan=False) + "\n"
