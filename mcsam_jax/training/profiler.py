"""A profile of a few steps, where the config or a file in the workdir asks for one.

    mcsam train ... --config.train.profile_steps=5         # of every start, once it is warm
    echo 5 > W/profile                                     # of a run that is under way; W may be a bucket

TensorBoard shows it (tab Profile, `pip install xprof`): `tensorboard --logdir W/logs`. It holds names of functions and
operations, shapes and times, and no value of any array: nothing of images, reports or ids.
"""

from collections.abc import Callable
import pathlib
import tempfile

from etils import epath
import jax
from ml_collections import ConfigDict

WARM_UP = 10                      # steps after a start before the profile that the config asks for
DEFAULT = 5                       # steps, where the file is empty


class Profiler:
  """Profiles whole steps of this process, which is to be the first: its own chips stand for those of all hosts."""

  def __init__(self, workdir: epath.Path, config: ConfigDict, first_step: int, log: Callable[[str], None],
               settle: Callable[[], None]):
    """Args:
      first_step: done before this start of the run.
      settle: waits until the devices have done what they were given, so that a profile holds whole steps.
    """
    self._request, self._logs = workdir / "profile", workdir / "logs"
    self._config, self._warm, self._show, self._settle = config, first_step + WARM_UP, log, settle
    self._first = self._end = None                         # steps that the running profile holds: after, up to
    self._copied = None                                    # a local folder, where the logs are in a bucket

  def __call__(self, step: int) -> bool:
    """Starts or ends a profile behind step `step`, which the devices have been given; returns whether it did either."""
    if self._first is not None:
      if step < self._end:
        return False
      self._settle()
      self.stop(step)
      return True
    count = self._asked(step)
    if count:
      self._settle()
      self._start(step, count)
    return bool(count)

  def stop(self, step: int | None = None) -> None:
    """Writes the running profile, if there is one; before its time where something else than a step is to follow."""
    if self._first is None:
      return
    first, self._first = self._first, None
    jax.profiler.stop_trace()
    if self._copied:
      copy_files(pathlib.Path(self._copied.name), self._logs)
      self._copied.cleanup()
    self._show(f"profile of the steps from {first + 1} to {step or 'here'}: tensorboard --logdir {self._logs}, "
               "tab Profile")

  def _asked(self, step: int) -> int:
    """Returns how many steps from here are to be profiled; the file is looked for at steps that are logged."""
    if step == self._warm:
      return self._config.train.profile_steps
    if step % self._config.train.log_every or not self._request.exists():
      return 0
    text = self._request.read_text().strip()
    self._request.unlink()
    if text and (not text.isdecimal() or not int(text)):
      self._show(f"{self._request} asked for {text[:20]!r}: it holds a number of steps, or nothing")
      return 0
    return int(text or DEFAULT)

  def _start(self, step: int, count: int) -> None:
    self._copied = tempfile.TemporaryDirectory() if "://" in str(self._logs) else None
    try:
      jax.profiler.start_trace(self._copied.name if self._copied else str(self._logs))
    except RuntimeError as error:                          # somebody else's is running; no reason to stop
      return self._show(f"no profile: {error}")
    self._first, self._end = step, step + count


def copy_files(source: pathlib.Path, destination: epath.Path) -> None:
  """Copies all files below a local folder to the same places below another, which may be in a bucket."""
  for file in source.rglob("*"):
    if not file.is_dir():
      target = destination / file.relative_to(source)
      target.parent.mkdir(parents=True, exist_ok=True)
      target.write_bytes(file.read_bytes())
