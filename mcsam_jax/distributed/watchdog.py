"""Ends a run that hangs, so that it can be started again.

When one host of many stops, the others wait for it in a collective, in C++, for ever: no exception comes, no line is
printed, and the chips are paid for. The watchdog is a thread that is told of every sign of life and leaves the process
when there was none for too long, whatever the main thread is stuck in.
"""

from collections.abc import Callable, Iterable, Iterator
import contextlib
import faulthandler
import os
import socket
import threading
import time

import jax

BUSY_SHARE = 0.1                  # of one processor, used by a process that computes
STDERR = 2                        # the file descriptor: nothing that stands in for sys.stderr can be in the way


class Watchdog:
  """Leaves the process with status 75 (EX_TEMPFAIL, 'run again') when nothing has moved for too long.

  The stacks of all threads go to stderr first, with the phase and this host's name: on a pod every host that waits for
  the lost one says so, and the one whose stack is elsewhere is to be looked at. If some library keeps even this thread
  from running (it would have to hold Python's lock), `faulthandler` prints the stacks and leaves with status 1, after
  twice the time.
  """

  def __init__(self, minutes: float, leave: Callable[[int], None] = os._exit):
    """Args:
      minutes: without any sign of life before the process is left; 0: never.
      leave: gets the status; os._exit, as a stuck main thread answers to no exception.
    """
    self._limit, self._leave = 60 * minutes, leave
    self._closed, self._paused, self._busy = threading.Event(), False, False
    self.beat("starting")

  def __enter__(self) -> "Watchdog":
    if self._limit:
      threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
    return self

  def __exit__(self, *_) -> None:
    self._closed.set()
    if self._limit:
      faulthandler.cancel_dump_traceback_later()

  def beat(self, phase: str) -> None:
    """Notes a sign of life, and what is being done from now on."""
    self._last = (time.monotonic(), phase)

  def beat_each(self, items: Iterable, phase: str) -> Iterator:
    """Yields the items, each a sign of life."""
    self.beat(phase)
    for item in items:
      self.beat(phase)
      yield item

  @contextlib.contextmanager
  def paused(self, phase: str) -> Iterator[None]:
    """Inside, silence is as it should be: another host has hours of work, and its own watchdog over it."""
    self._paused = True
    try:
      yield
    finally:
      self.beat(f"what followed {phase}")
      self._paused = False

  @contextlib.contextmanager
  def watch_cpu(self, phase: str) -> Iterator[None]:
    """Inside, a processor that works is a sign of life: long computations of this process that tell nothing."""
    self.beat(phase)
    self._busy = True
    try:
      yield
    finally:
      self._busy = False
      self.beat(f"what followed {phase}")

  def paused_unless_host0(self) -> contextlib.AbstractContextManager:
    """Inside, host 0 makes files (features, a memory bank) and the others wait for it without being watched."""
    return self.paused("waiting for host 0") if jax.process_index() else contextlib.nullcontext()

  def beat_on_log(self, log: Callable[[str], None]) -> Callable[[str], None]:
    """Returns `log` such that each line is a sign of life too."""
    def show_and_beat(line: str) -> None:
      self.beat(f"what followed the line {line.strip()[:60]!r}")
      log(line)
    return show_and_beat

  def _watch(self) -> None:
    pause, used = min(self._limit / 4, 10), time.process_time()
    while True:
      faulthandler.dump_traceback_later(2 * self._limit, exit=True, file=STDERR)   # set back at each turn
      if self._closed.wait(pause):
        return faulthandler.cancel_dump_traceback_later()
      before, used = used, time.process_time()
      if self._busy and used - before > pause * BUSY_SHARE:
        self.beat(self._last[1])
      since, phase = self._last
      if time.monotonic() - since > self._limit and not self._paused:
        break
    faulthandler.dump_traceback(file=STDERR)
    os.write(STDERR, (f"mcsam: {socket.gethostname()}: nothing has moved for {self._limit / 60:g} minutes "
                      f"(train.watchdog_timeout_minutes), the last was: {phase}. The stacks of all threads stand above. Leaving "
                      f"with status {os.EX_TEMPFAIL}: start the same command again; training goes on from its last "
                      "checkpoint\n").encode())
    self._leave(os.EX_TEMPFAIL)
