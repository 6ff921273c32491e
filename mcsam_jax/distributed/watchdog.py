"""Ends a run that hangs, so that it can be started again.

When one of many hosts stops, the others wait for it in a collective, in C++, forever: no exception is raised, no line
is printed, and the chips are still paid for. The watchdog is a thread that receives heartbeats and exits the process
when there was none for too long, whatever the main thread is blocked in.
"""

from collections.abc import Callable, Iterable, Iterator
import contextlib
import faulthandler
import os
import socket
import threading
import time

import jax

MIN_CPU_USE = 0.1                 # share of one CPU core that a computing process uses
STDERR = 2                        # the file descriptor, in case sys.stderr was replaced


class Watchdog:
  """Exits the process with status 75 (EX_TEMPFAIL, "run again") when there was no heartbeat for too long.

  It first prints the stacks of all threads to stderr, with the current phase and the host's name. On a pod every host
  that waits for a lost one does so; the host with a different stack is the one to look at. If a library keeps even
  this thread from running (by holding Python's global interpreter lock), `faulthandler` prints the stacks and exits
  with status 1, after twice the time.
  """

  def __init__(self, timeout_minutes: float, exit_process: Callable[[int], None] = os._exit):
    """Creates an inactive watchdog; `with` starts its thread.

    Args:
      timeout_minutes: time without a heartbeat after which the process exits; 0: never.
      exit_process: called with the exit status. The default is os._exit, because a blocked main thread would not
        handle an exception.
    """
    self._timeout, self._exit_process = 60 * timeout_minutes, exit_process
    self._closed, self._is_paused, self._cpu_use_counts = threading.Event(), False, False
    self.beat("starting")

  def __enter__(self) -> "Watchdog":
    if self._timeout:
      threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
    return self

  def __exit__(self, *_) -> None:
    self._closed.set()
    if self._timeout:
      faulthandler.cancel_dump_traceback_later()

  def beat(self, phase: str) -> None:
    """Records a heartbeat, and the phase that begins now."""
    self._last_beat = (time.monotonic(), phase)

  def beat_each(self, items: Iterable, phase: str) -> Iterator:
    """Yields the items, with a heartbeat at each."""
    self.beat(phase)
    for item in items:
      self.beat(phase)
      yield item

  @contextlib.contextmanager
  def paused(self, phase: str) -> Iterator[None]:
    """Doesn't expect heartbeats inside the context; for waiting on another host, whose own watchdog is active."""
    self._is_paused = True
    try:
      yield
    finally:
      self.beat(f"after {phase}")
      self._is_paused = False

  @contextlib.contextmanager
  def watch_cpu(self, phase: str) -> Iterator[None]:
    """Counts CPU use as a heartbeat inside the context; for long computations without other heartbeats."""
    self.beat(phase)
    self._cpu_use_counts = True
    try:
      yield
    finally:
      self._cpu_use_counts = False
      self.beat(f"after {phase}")

  def paused_unless_host0(self) -> contextlib.AbstractContextManager:
    """Pauses the watchdogs of all hosts but host 0, which creates files (features, a memory bank) in the meantime."""
    return self.paused("waiting for host 0") if jax.process_index() else contextlib.nullcontext()

  def beat_on_log(self, log: Callable[[str], None]) -> Callable[[str], None]:
    """Returns a log function that records a heartbeat with each line."""
    def log_and_beat(line: str) -> None:
      self.beat(f"after the log line {line.strip()[:60]!r}")
      log(line)
    return log_and_beat

  def _watch(self) -> None:
    interval, cpu_time = min(self._timeout / 4, 10), time.process_time()
    while True:
      faulthandler.dump_traceback_later(2 * self._timeout, exit=True, file=STDERR)   # restarts its timer
      if self._closed.wait(interval):
        return faulthandler.cancel_dump_traceback_later()
      previous, cpu_time = cpu_time, time.process_time()
      if self._cpu_use_counts and cpu_time - previous > interval * MIN_CPU_USE:
        self.beat(self._last_beat[1])
      since, phase = self._last_beat
      if time.monotonic() - since > self._timeout and not self._is_paused:
        break
    faulthandler.dump_traceback(file=STDERR)
    os.write(STDERR, (f"mcsam: {socket.gethostname()}: no progress for {self._timeout / 60:g} minutes "
                      f"(train.watchdog_timeout_minutes) in phase: {phase}. See above for the stacks of all threads. "
                      f"Exiting with status {os.EX_TEMPFAIL}: run the same command again; training resumes from its "
                      "last checkpoint\n").encode())
    self._exit_process(os.EX_TEMPFAIL)
