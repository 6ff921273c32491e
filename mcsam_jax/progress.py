"""Progress of a long task as log lines: a count, a rate and the time left, at most one line every few seconds."""

from collections.abc import Callable
import time


class ProgressLog:
  """Logs how far a task is, at most one line every `every_seconds`, and a line for its end.

  Example:
    progress = ProgressLog(log, "features of train", total=2000, unit="studies", rate_unit="images")
    progress.update(120, work=170)    # features of train: 120/2000 studies  35.1 images/s  2.1 min left
  """

  def __init__(self, log: Callable[[str], None], label: str, total: int, unit: str, rate_unit: str = "", done: int = 0,
               log_last: bool = True, every_seconds: float = 10.0, clock: Callable[[], float] = time.monotonic):
    """Starts the clock.

    Args:
      log: receives the lines.
      label: name of the task, the start of each line; may be empty.
      total: number of units of the task.
      unit: plural name of what `done` and `total` count.
      rate_unit: plural name of what the rate counts; empty: `unit`.
      done: number of units that were finished before the clock started. They count in neither rate nor time left.
      log_last: whether the last update gets a line even if `every_seconds` have not passed. False keeps a task
        that takes less than `every_seconds` silent.
      every_seconds: least time between two lines, except before the last.
      clock: returns seconds.
    """
    self.log, self.label, self.total, self.unit, self.rate_unit = log, label, total, unit, rate_unit or unit
    self.log_last, self.every_seconds, self._clock = log_last, every_seconds, clock
    self._initial_done = done
    self._start_time = self._last_time = clock()

  def update(self, done: int, work: float | None = None) -> None:
    """Notes that `done` of `total` units are finished, and logs a line if one is due.

    Args:
      done: units finished so far, those from before the clock started included.
      work: amount of work since the clock started, in `rate_unit`; None: the units since then.
    """
    now = self._clock()
    due = now - self._last_time > self.every_seconds
    if not due and not (self.log_last and done >= self.total):
      return
    self._last_time = now
    seconds, new = now - self._start_time, done - self._initial_done
    parts = [f"{done}/{self.total} {self.unit}"]
    if seconds > 0:
      parts.append(f"{(new if work is None else work) / seconds:.1f} {self.rate_unit}/s")
      if new > 0:
        parts.append(f"{seconds / new * (self.total - done) / 60:.1f} min left")
    self.log((f"{self.label}: " if self.label else "") + "  ".join(parts))
