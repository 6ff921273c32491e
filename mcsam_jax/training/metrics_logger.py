"""Checks and logs the metrics of training steps without waiting for the newest step.

A jitted step returns before the devices have completed it, and reading one of its metrics blocks until they have. So
metrics are read `MAX_IN_FLIGHT` steps late: the devices always have the next steps queued, and the host is never
further ahead than that. The loss and the gradient norm of every step are checked; all metrics are read at logged steps
only. `flush` reads what is outstanding before a state is saved or evaluated.
"""

import collections
from collections.abc import Callable, Iterable, Iterator, Mapping
import time
from typing import TYPE_CHECKING, TypeVar

from clu import metric_writers
from etils import epath
import jax
from ml_collections import ConfigDict
import numpy as np

from mcsam_jax.distributed.watchdog import Watchdog
from mcsam_jax.hardware import detect_chip
from mcsam_jax.models.visual_encoders.registry import has_trained_encoder
from mcsam_jax.training import nonfinite
from mcsam_jax.training.flops import reward_flops, train_flops
from mcsam_jax.training.optimizer import learning_rate
from mcsam_jax.training.profiler import Profiler
from mcsam_jax.training.run_log.curves import draw_curves
from mcsam_jax.training.run_log.metrics_file import MetricsFile
from mcsam_jax.training.throughput import Throughput

if TYPE_CHECKING:
  from mcsam_jax.training.validation import EvalResult

_Batch = TypeVar("_Batch")
MAX_IN_FLIGHT = 2                 # dispatched steps whose metrics weren't read: one is running, one is queued
MIN_WAIT_SHARE_SHOWN = 0.1        # share of time spent waiting for input that the log line mentions


class MetricsLogger:
  """Logs the metrics of one run to TensorBoard, metrics.jsonl and, one line per logged step, the terminal.

  All hosts read and check the metrics; host 0 alone writes them and profiles.
  """

  def __init__(self, config: ConfigDict, workdir: epath.Path, first_step: int, num_records: int,
               writer: metric_writers.MetricWriter, throughput: Throughput, watchdog: Watchdog,
               log: Callable[[str], None]):
    """Prepares logging for the steps after `first_step`; see `make_metrics_logger`.

    Args:
      first_step: number of steps completed before this start of the run.
      num_records: size of the training split.
    """
    self._config, self._workdir, self._num_records = config, workdir, num_records
    self._writer, self._throughput, self._watchdog, self._log = writer, throughput, watchdog, log
    self._first_step = first_step
    self._in_flight: collections.deque[tuple[int, Mapping[str, jax.Array]]] = collections.deque()
    self._learning_rates = compute_learning_rates(config, first_step)
    self._profiler = self._metrics_file = None
    if jax.process_index() == 0:
      self._metrics_file = MetricsFile(workdir, first_step, log)
      self._profiler = Profiler(workdir, config, first_step, log, self._read_all)

  def iterate_steps(self, batches: Iterable[_Batch]) -> Iterator[tuple[int, _Batch]]:
    """Yields (step, batch), measures the time spent waiting for batches, and keeps the watchdog informed."""
    step = self._first_step + 1
    self._watchdog.beat(f"waiting for the batch of step {step}")
    for batch in self._throughput.time_input(batches):
      self._watchdog.beat(f"step {step}" + (", compiling" if step == self._first_step + 1 else ""))
      yield step, batch
      step += 1
      self._watchdog.beat(f"waiting for the batch of step {step}")

  def log_async(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
    """Queues the metrics of a step that was just dispatched, and logs those of an earlier step.

    Raises:
      NonFiniteError: an earlier step's loss or gradient norm is not finite.
    """
    if not is_logged(self._config, step):
      metrics = {name: metrics[name] for name in nonfinite.CHECKED_METRICS}
    for value in metrics.values():
      value.copy_to_host_async()
    self._in_flight.append((step, metrics))
    while len(self._in_flight) > MAX_IN_FLIGHT:
      self._read(*self._in_flight.popleft())
    if self._profiler and self._profiler.after_step(step):
      self.restart_clock(step)                           # writing a profile takes time

  def flush(self) -> None:
    """Logs all steps dispatched so far and ends a running profile; the state is then known to be good.

    Raises:
      NonFiniteError: a step's loss or gradient norm is not finite.
    """
    self._read_all()
    if self._metrics_file:
      self._metrics_file.flush()
    if self._profiler:
      self._profiler.stop()

  def log_eval(self, step: int, result: "EvalResult") -> None:
    """Logs the result of an evaluation on the val split after `step`, and draws the curves of the run so far."""
    result.write(self._writer, step)
    self._log("  val  " + "  ".join(f"{name} {value:.3f}" for name, value in result.scores.items()))
    if self._metrics_file:
      self._metrics_file.add(step, {f"val/{name}": value for name, value in result.scores.items()})
      self._metrics_file.flush()
      draw_curves(self._metrics_file.rows, self._workdir, self._config.train.best_metric, self._log)

  def restart_clock(self, step: int) -> None:
    """Excludes the time since `step` from the throughput, because it was spent on something other than training."""
    self._throughput.restart(step)

  def close(self) -> None:
    """Ends a running profile and closes the files, also after an exception; doesn't wait for the devices."""
    if self._profiler:
      self._profiler.stop()
    self._writer.close()

  def _read_all(self) -> None:
    while self._in_flight:
      self._read(*self._in_flight.popleft())

  def _read(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
    """Waits for a step's metrics, checks them, and writes them if the step is logged."""
    self._watchdog.beat(f"waiting for the results of step {step}")
    scalars = {name: float(value) for name, value in metrics.items()}
    if not nonfinite.is_finite(scalars):
      self._in_flight.clear()
      raise nonfinite.write_nonfinite_report(self._workdir, self._config, step, scalars, self._num_records)
    if step == self._first_step + 1:
      self.restart_clock(step)                           # the first step includes compilation
    if is_logged(self._config, step):
      speed = self._throughput.measure(step)
      self._log(format_progress(step, self._config.train.num_steps, scalars, speed))
      self.restart_clock(step)
      values = ({f"train/{name}": value for name, value in (scalars | self._learning_rates[step]).items()}
                | {f"speed/{name}": value for name, value in speed.items()})
      self._writer.write_scalars(step, values)
      if self._metrics_file:
        self._metrics_file.add(step, values)


def make_metrics_logger(config: ConfigDict, workdir: epath.Path, first_step: int, num_records: int, vocab_size: int,
                        watchdog: Watchdog, log: Callable[[str], None],
                        clock: Callable[[], float] = time.monotonic) -> MetricsLogger:
  """Returns a logger that writes to the workdir's TensorBoard logs, for the chips that JAX reports.

  Args:
    first_step: number of steps completed before this start of the run.
    num_records: size of the training split.
  """
  writer = metric_writers.create_default_writer(workdir / "logs", just_logging=jax.process_index() > 0)
  chip = detect_chip(jax.devices()[0].device_kind)
  num_chips = jax.device_count() / (chip.devices_per_chip if chip else 1)
  count_flops = reward_flops if config.train.objective == "reward" else train_flops
  throughput = Throughput(config.train.batch_size, first_step, num_chips, count_flops(config, vocab_size),
                          chip.flops if chip else None, clock)
  return MetricsLogger(config, workdir, first_step, num_records, writer, throughput, watchdog, log)


def is_logged(config: ConfigDict, step: int) -> bool:
  """Returns whether all metrics of a step are logged."""
  return step % config.train.log_every == 0 or step == config.train.num_steps


def compute_learning_rates(config: ConfigDict, first_step: int) -> dict[int, dict[str, float]]:
  """Returns the learning rates of each step after `first_step` that will be logged.

  All are computed before training: JAX would queue the computation behind the steps that are in flight.
  """
  steps = [step for step in range(first_step + 1, config.train.num_steps + 1) if is_logged(config, step)]
  peaks = {"learning_rate": config.optimizer.learning_rate}
  if has_trained_encoder(config):
    peaks["learning_rate_encoder"] = config.optimizer.encoder_learning_rate
  counts = np.array(steps, np.int32) - 1                 # optax evaluates step k's schedule at k - 1 completed steps
  rates = {name: np.broadcast_to(learning_rate(config, peak)(counts), counts.shape) for name, peak in peaks.items()}
  return {step: {name: float(values[row]) for name, values in rates.items()} for row, step in enumerate(steps)}


def format_progress(step: int, num_steps: int, metrics: Mapping[str, float], speed: Mapping[str, float]) -> str:
  """Returns the terminal's line for a logged step.

  Args:
    speed: figures of `Throughput.measure`; {} leaves them out.
  """
  parts = [f"step {step}/{num_steps}", f"loss {metrics['loss']:.3f}"]
  for metric, name in (("token_loss", "token"), ("align_loss", "align"), ("reward", "reward"), ("kl", "KL")):
    if metric in metrics:
      parts.append(f"{name} {metrics[metric]:.3f}")
  if speed:
    seconds = speed["seconds_per_step"]
    parts += [f"{1000 * seconds:.0f} ms/step", f"{speed['examples_per_second']:.0f} examples/s"]
    if "mfu" in speed:
      parts.append(f"mfu {speed['mfu']:.1%}")
    if speed["input_wait_share"] >= MIN_WAIT_SHARE_SHOWN:
      parts.append(f"waiting for input {speed['input_wait_share']:.0%}")
    parts.append(f"{seconds * (num_steps - step) / 60:.1f} min left")
  return "  ".join(parts)
