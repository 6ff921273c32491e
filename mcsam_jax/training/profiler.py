"""Profiles a few training steps when the config or a file in the workdir requests it.

    mcsam train ... --config.train.profile_steps=5         # after every start, once the run has warmed up
    echo 5 > W/profile                                     # while the run is in progress; W may be in a bucket

View the profile in TensorBoard (tab Profile, `pip install xprof`): `tensorboard --logdir W/logs`. A profile holds names
of functions and operations, shapes and times, but no array values: no images, reports or ids.
"""

from collections.abc import Callable
import pathlib
import tempfile

from etils import epath
import jax
from ml_collections import ConfigDict

WARMUP_STEPS = 10                 # steps after a start before the profile that the config requests
DEFAULT_STEPS = 5                 # number of steps to profile if the request file is empty


class Profiler:
  """Profiles whole steps of this process only; meant for host 0, whose chips are representative of all others."""

  def __init__(self, workdir: epath.Path, config: ConfigDict, first_step: int, log: Callable[[str], None],
               flush: Callable[[], None]):
    """Creates a profiler that has not started yet.

    Args:
      first_step: number of steps completed before this start of the run.
      log: receives one line per profile.
      flush: waits until the devices have completed all dispatched steps, so that a profile holds whole steps.
    """
    self._request_file, self._logs = workdir / "profile", workdir / "logs"
    self._config, self._warm_step, self._log, self._flush = config, first_step + WARMUP_STEPS, log, flush
    self._started_after: int | None = None                 # step after which the running profile started
    self._last_step = 0                                    # last step that the running profile shall hold
    self._local_logs: tempfile.TemporaryDirectory | None = None     # used if the logs are in a bucket

  def after_step(self, step: int) -> bool:
    """Starts or ends a profile if one is due after `step` was dispatched; returns whether it did either."""
    if self._started_after is not None:
      if step < self._last_step:
        return False
      self._flush()
      self.stop(step)
      return True
    num_steps = self._read_request(step)
    if num_steps:
      self._flush()
      self._start(step, num_steps)
    return bool(num_steps)

  def stop(self, step: int | None = None) -> None:
    """Writes the running profile, if there is one.

    Args:
      step: last step of the profile; None if it is ended early because something other than a step follows.
    """
    if self._started_after is None:
      return
    started_after, self._started_after = self._started_after, None
    jax.profiler.stop_trace()
    if self._local_logs:
      copy_files(pathlib.Path(self._local_logs.name), self._logs)
      self._local_logs.cleanup()
    last = f" to {step}" if step else ", ended early"
    self._log(f"profile from step {started_after + 1}{last}: tensorboard --logdir {self._logs}, tab Profile")

  def _read_request(self, step: int) -> int:
    """Returns how many steps to profile from here, 0 for none; the request file is read at logged steps only."""
    if step == self._warm_step:
      return self._config.train.profile_steps
    if step % self._config.train.log_every or not self._request_file.exists():
      return 0
    text = self._request_file.read_text().strip()
    self._request_file.unlink()
    if text and (not text.isdecimal() or not int(text)):
      self._log(f"{self._request_file} contains {text[:20]!r}; expected a positive number of steps, or nothing for "
                f"{DEFAULT_STEPS}")
      return 0
    return int(text or DEFAULT_STEPS)

  def _start(self, step: int, num_steps: int) -> None:
    self._local_logs = tempfile.TemporaryDirectory() if "://" in str(self._logs) else None
    try:
      jax.profiler.start_trace(self._local_logs.name if self._local_logs else str(self._logs))
    except RuntimeError as error:                          # another profile is running: no reason to stop the run
      return self._log(f"no profile: {error}")
    self._started_after, self._last_step = step, step + num_steps


def copy_files(source: pathlib.Path, destination: epath.Path) -> None:
  """Copies all files below a local folder to the same relative paths below another, which may be in a bucket."""
  for file in source.rglob("*"):
    if not file.is_dir():
      target = destination / file.relative_to(source)
      target.parent.mkdir(parents=True, exist_ok=True)
      target.write_bytes(file.read_bytes())
