"""train.log of a workdir: what `mcsam train` printed, with the time, over all starts of the run.

It holds the lines of the terminal and nothing else, so the same rules keep it free of a restricted data set's texts.
"""

from collections.abc import Callable
import datetime
import traceback

from etils import epath

from mcsam_jax.atomic_io import atomic_write
from mcsam_jax.checkpoints.provenance import describe_software
from mcsam_jax.errors import Preempted, UserError

NAME = "train.log"


class ConsoleLog:
  """Passes lines on and keeps them; those before `open` wait in memory. A file that can't be written stops nothing.

  Use it as a context: an exception that ends the run gets a line, too.
  """

  def __init__(self, log: Callable[[str], None]):
    self._log, self._path, self._pending, self._earlier = log, None, [], ""
    self._started, self._has_failed = datetime.datetime.now(datetime.UTC), False

  def __call__(self, line: str) -> None:
    """Logs a line."""
    self._log(line)
    self._keep(line)

  def open(self, workdir: epath.Path, details: str) -> None:
    """Appends the lines so far to the workdir's file, and from now on each line at once.

    The lines of each start are below a line that names the version, the commit and `details`.

    In a bucket, which can't append, lines are written by `flush`.
    """
    self._path = workdir / NAME
    if self._is_bucket:
      try:
        self._earlier = self._path.read_text()
      except FileNotFoundError:
        pass
    software = describe_software()
    self._pending.insert(0, _stamp(f"== mcsam train {software['mcsam_jax']}, commit {software['commit'] or 'unknown'}, "
                                   f"jax {software['packages'].get('jax')}, {details}", self._started))
    self._append()

  def flush(self) -> None:
    """Writes the lines that a bucket lacks."""
    if self._path is not None and self._is_bucket and self._pending:
      self._earlier += "".join(self._pending)
      self._pending.clear()
      self._try(lambda path: atomic_write(path, self._earlier))

  @property
  def _is_bucket(self) -> bool:
    return "://" in str(self._path)

  def _keep(self, line: str) -> None:
    if not self._has_failed:
      self._pending.append(_stamp(line))
      self._append()

  def _append(self) -> None:
    if self._path is None or self._is_bucket:
      return
    lines = "".join(self._pending)
    self._pending.clear()

    def append(path: epath.Path) -> None:
      with path.open("a") as file:
        file.write(lines)
    self._try(append)

  def _try(self, write: Callable[[epath.Path], object]) -> None:
    assert self._path is not None
    try:
      write(self._path)
    except Exception as error:
      self._log(f"{self._path} can't be written ({' '.join(str(error).split())[:200]}); the run goes on without it")
      self._has_failed = True

  def __enter__(self):
    return self

  def __exit__(self, kind, error, trace) -> None:
    if isinstance(error, (UserError, Preempted)):
      self._keep(f"stopped: {error}".replace("stopped: stopped", "stopped"))
    elif error is not None:                            # its message may quote a record, so the terminal alone shows it
      self._keep(f"stopped by {kind.__name__}\n{''.join(traceback.format_tb(trace)).rstrip()}")
    self.flush()


def _stamp(line: str, time: datetime.datetime | None = None) -> str:
  """Returns a line with the time, by default now, in UTC."""
  return f"{time or datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M:%S}  {line}\n"
