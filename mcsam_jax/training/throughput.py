"""How fast a run goes: throughput, utilisation, and whether it waits for its input."""

from collections.abc import Callable, Iterable, Iterator
import time

from ml_collections import ConfigDict

WORTH_A_WORD = 0.1                # of the time waiting for input, from which on the line tells


class Progress:
  """Step time, throughput and time left, by the clock of this host.

  Calls of a step return at once and say nothing of its time, so all times here lie between steps whose *results* have
  arrived (see `Watch`, which never is more than a few steps ahead of them). For the same reason the time spent in
  `next(batches)` tells what it seems to: where the devices are the slower part, this host waits for their results, the
  batches are there when it asks, and the share is near zero; where batches are, it waits for them. Without such a limit
  it would run ahead until no batch is left and take the devices' time for the input's. The share is an upper bound of
  what the devices lose: they still have those few steps to do while the host waits. A copy to the devices that isn't
  over when its step starts doesn't show in it; a profile shows that.
  """

  def __init__(self, config: ConfigDict, step: int, log: Callable[[str], None], num_chips: float, step_flops: float,
               peak_flops: float | None, clock: Callable[[], float] = time.monotonic):
    """Args:
      step: done before this start of the run.
      num_chips: of all hosts.
      step_flops: of the global batch, as `flops.train_flops` counts.
      peak_flops: a second and chip; None: not published for these devices, and no utilisation is given.
    """
    self.config, self.log, self.clock = config, log, clock
    self.num_chips, self.step_flops, self.peak_flops = num_chips, step_flops, peak_flops
    self.restart_clock(step)

  def restart_clock(self, step: int) -> None:
    """Counts from now: the results of `step` have arrived, and something else may have taken time."""
    self._step, self._time, self._waited = step, self.clock(), 0.0

  def timed(self, batches: Iterable) -> Iterator:
    """Yields the batches, and counts the time that each is waited for."""
    batches = iter(batches)
    while True:
      asked = self.clock()
      try:
        batch = next(batches)
      except StopIteration:
        return
      self._waited += self.clock() - asked
      yield batch

  def line(self, step: int, metrics: dict[str, float]) -> dict[str, float]:
    """Shows a line on `step`, whose results have just arrived, and returns its figures; the clock starts again."""
    figures = self.figures(step)
    words = [f"step {step}/{self.config.train.num_steps}", f"loss {metrics['loss']:.3f}",
             f"token {metrics['token_loss']:.3f}"]
    if "align_loss" in metrics:
      words.append(f"align {metrics['align_loss']:.3f}")
    if figures:
      seconds = figures["seconds_per_step"]
      words += [f"{1000 * seconds:.0f} ms/step", f"{figures['examples_per_second']:.0f} examples/s"]
      if "mfu" in figures:
        words.append(f"mfu {figures['mfu']:.1%}")
      if figures["input_wait_share"] >= WORTH_A_WORD:
        words.append(f"waiting for input {figures['input_wait_share']:.0%}")
      words.append(f"{seconds * (self.config.train.num_steps - step) / 60:.1f} min left")
    self.log("  ".join(words))
    self.restart_clock(step)
    return figures

  def figures(self, step: int) -> dict[str, float]:
    """Returns the speed since the clock was started; nothing where no step has passed."""
    steps, seconds = step - self._step, self.clock() - self._time
    if not steps or not seconds:
      return {}
    rate = steps * self.config.train.batch_size / seconds
    figures = {"seconds_per_step": seconds / steps, "examples_per_second": rate,
               "examples_per_second_per_chip": rate / self.num_chips,
               "input_wait_share": min(self._waited / seconds, 1.0)}
    if self.peak_flops:
      figures["mfu"] = self.step_flops * steps / seconds / (self.peak_flops * self.num_chips)
    return figures
