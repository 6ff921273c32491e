"""Measures the speed of training: throughput, model FLOP utilization, and the time spent waiting for input."""

from collections.abc import Callable, Iterable, Iterator
import time
from typing import TypeVar

_Batch = TypeVar("_Batch")


class Throughput:
  """Measures step time and throughput with this host's clock.

  Calls of a jitted step return immediately, so all times are measured between steps whose *results* have arrived
  (`MetricsLogger` reads them with a lag of a few steps). This also makes the time spent in `next(batches)` meaningful:
  if the devices are the bottleneck, this host waits for their results, the next batches are ready, and the share is
  near zero; if the input is the bottleneck, this host waits for batches. Without the bounded lag this host would run
  ahead until no batch is left, and attribute the devices' time to the input.

  The share is an upper bound on what the devices lose, because they still have those few steps to do while the host
  waits. A copy to the devices that is unfinished when its step starts isn't counted; a profile shows it.
  """

  def __init__(self, batch_size: int, first_step: int, num_chips: float, step_flops: float | None,
               peak_flops: float | None,
               clock: Callable[[], float] = time.monotonic):
    """Starts the clock at `first_step`.

    Args:
      batch_size: studies per step, all devices together.
      first_step: number of steps completed before this start of the run.
      num_chips: number of chips of all hosts.
      step_flops: operations per step of the global batch, as counted by `flops.train_flops`; None leaves out the
        utilization.
      peak_flops: operations per second and chip; None, if no figure is published, leaves it out, too.
      clock: returns the time in seconds.
    """
    self._batch_size, self._clock = batch_size, clock
    self._num_chips, self._step_flops, self._peak_flops = num_chips, step_flops, peak_flops
    self.restart(first_step)

  def restart(self, step: int) -> None:
    """Restarts the clock now that the results of `step` have arrived."""
    self._start_step, self._start_time, self._input_wait = step, self._clock(), 0.0

  def time_input(self, batches: Iterable[_Batch]) -> Iterator[_Batch]:
    """Yields the batches and adds up the time spent waiting for them."""
    iterator = iter(batches)
    while True:
      start = self._clock()
      try:
        batch = next(iterator)
      except StopIteration:
        return
      self._input_wait += self._clock() - start
      yield batch

  def measure(self, step: int) -> dict[str, float]:
    """Returns the figures since the clock was started, given that the results of `step` have just arrived.

    Returns:
      seconds_per_step, examples_per_second, examples_per_second_per_chip, input_wait_share (0 to 1) and, if the peak is
      known, mfu (model FLOP utilization, 0 to 1); {} if no step was completed since.
    """
    steps, seconds = step - self._start_step, self._clock() - self._start_time
    if not steps or not seconds:
      return {}
    examples_per_second = steps * self._batch_size / seconds
    figures = {"seconds_per_step": seconds / steps, "examples_per_second": examples_per_second,
               "examples_per_second_per_chip": examples_per_second / self._num_chips,
               "input_wait_share": min(self._input_wait / seconds, 1.0)}
    if self._peak_flops and self._step_flops is not None:
      figures["mfu"] = self._step_flops * steps / seconds / (self._peak_flops * self._num_chips)
    return figures
