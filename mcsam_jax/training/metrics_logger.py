"""Follows the steps of a run: what they measured is checked and written, without ever waiting for the newest.

A step's call returns before the step is done, and reading a figure of it waits for it. So figures are read `IN_FLIGHT`
steps later: the devices always have that many steps to do, and this host is never further ahead. Every step's loss and
gradient norm are looked at, all else of those that are logged. What has been given to the devices and not been looked
at is never more than these few steps, and `settle` looks at them: before a state is saved, evaluated or left.
"""

import collections
from collections.abc import Iterable, Iterator, Mapping

from clu import metric_writers
from etils import epath
import jax
from ml_collections import ConfigDict
import numpy as np

from mcsam_jax.distributed.watchdog import Watchdog
from mcsam_jax.training import nonfinite
from mcsam_jax.training.optimizer import learning_rate
from mcsam_jax.training.profiler import Profiler
from mcsam_jax.training.throughput import Progress

IN_FLIGHT = 2                     # steps given to the devices whose results weren't looked at: one runs, one waits
SPEED = "speed"                   # of the figures that Progress gives


class Watch:
  """Looks at the results of the steps of one run, in order. Every host does; the first one writes."""

  def __init__(self, config: ConfigDict, workdir: epath.Path, first_step: int, num_records: int,
               writer: metric_writers.MetricWriter, progress: Progress, watchdog: Watchdog):
    """Args:
      first_step: done before this start of the run.
      num_records: of split train.
    """
    self._config, self._workdir, self._num_records = config, workdir, num_records
    self._writer, self._progress, self._watchdog = writer, progress, watchdog
    self._first_step, self._pending = first_step, collections.deque()      # of (step, metrics)
    self._rates = learning_rates(config, first_step)
    self._profiler = None
    if jax.process_index() == 0:
      self._profiler = Profiler(workdir, config, first_step, progress.log, self._look_at_all)

  def steps(self, batches: Iterable) -> Iterator[tuple[int, dict]]:
    """Yields the number of each step with its batch."""
    step = self._first_step + 1
    self._watchdog.beat(f"waiting for the batch of step {step}")
    for batch in self._progress.timed(batches):
      self._watchdog.beat(f"step {step}" + (", compiling" if step == self._first_step + 1 else ""))
      yield step, batch
      step += 1
      self._watchdog.beat(f"waiting for the batch of step {step}")

  def follow(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
    """Takes the metrics of a step that has been given to the devices, and looks at those of an earlier one.

    Raises:
      NonFinite: an earlier step's loss or gradient was no number.
    """
    kept = metrics if logged(self._config, step) else {name: metrics[name] for name in nonfinite.CHECKED}
    for value in kept.values():
      value.copy_to_host_async()
    self._pending.append((step, kept))
    while len(self._pending) > IN_FLIGHT:
      self._look_at(*self._pending.popleft())
    if self._profiler and self._profiler(step):
      self._progress.restart_clock(step)                 # a profile takes its time to be written

  def settle(self) -> None:
    """Looks at all steps that have been given to the devices; then the state is known to be good, and nothing is lost.

    Raises:
      NonFinite: it isn't.
    """
    self._look_at_all()
    if self._profiler:
      self._profiler.stop()

  def restart_clock(self, step: int) -> None:
    """Leaves the time since the last step out of the speed: it went into something else."""
    self._progress.restart_clock(step)

  def close(self) -> None:
    """Ends what is running, also after an exception, and waits for nothing that the devices do."""
    if self._profiler:
      self._profiler.stop()
    self._writer.close()

  def _look_at_all(self) -> None:
    while self._pending:
      self._look_at(*self._pending.popleft())

  def _look_at(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
    self._watchdog.beat(f"waiting for the results of step {step}")
    metrics = {name: float(value) for name, value in metrics.items()}
    if not nonfinite.is_finite(metrics):
      self._pending.clear()
      raise nonfinite.report(self._workdir, self._config, step, metrics, self._num_records)
    if step == self._first_step + 1:
      self._progress.restart_clock(step)                 # it was compiled first
    if logged(self._config, step):
      figures = self._progress.line(step, metrics)
      self._writer.write_scalars(step, {f"train/{name}": value for name, value in (metrics | self._rates[step]).items()}
                                 | {f"{SPEED}/{name}": value for name, value in figures.items()})


def logged(config: ConfigDict, step: int) -> bool:
  return step % config.train.log_every == 0 or step == config.train.num_steps


def learning_rates(config: ConfigDict, first_step: int) -> dict[int, dict[str, float]]:
  """Returns the learning rates of each step that will be logged.

  All at once and before training: a schedule is computed by JAX, behind whatever the devices were given before.
  """
  steps = [step for step in range(first_step + 1, config.train.num_steps + 1) if logged(config, step)]
  peaks = {"learning_rate": config.optimizer.learning_rate}
  if not config.encoder.frozen:
    peaks["learning_rate_encoder"] = config.optimizer.encoder_learning_rate
  done = np.array(steps, np.int32) - 1                   # the schedule of step k is asked with k - 1 steps done
  rates = {name: np.broadcast_to(learning_rate(config, peak)(done), done.shape) for name, peak in peaks.items()}
  return {step: {name: float(values[row]) for name, values in rates.items()} for row, step in enumerate(steps)}
