"""A process that hangs exits with a message; one that makes progress is left alone."""

import os
import subprocess
import sys
import textwrap
import time

from mcsam_jax.distributed.watchdog import Watchdog

TIMEOUT_MINUTES = 1 / 60


def run_watched(program):
  """Returns the exit status, stderr and duration in seconds of a program, which imports nothing heavy."""
  start = time.monotonic()
  process = subprocess.run(
      [sys.executable, "-c", f"TIMEOUT_MINUTES = {TIMEOUT_MINUTES}\n" + textwrap.dedent(program)],
      capture_output=True, text=True, timeout=60, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
  return process.returncode, process.stderr, time.monotonic() - start


def test_a_blocked_main_thread_is_ended_with_its_stack_and_the_phase():
  status, err, _ = run_watched("""
      import threading
      from mcsam_jax.distributed.watchdog import Watchdog
      def collective_that_never_returns():
        threading.Lock().acquire() and threading.Event().wait()
      with Watchdog(TIMEOUT_MINUTES) as watchdog:
        watchdog.beat("waiting for the results of step 7")
        try:
          collective_that_never_returns()
        finally:
          print("an exception would have come here")
      """)
  assert status == 75
  assert "collective_that_never_returns" in err and "exception" not in err
  message = err.splitlines()[-1]
  assert all(part in message for part in ("waiting for the results of step 7", "75", "train.watchdog_timeout_minutes"))


def test_a_thread_that_holds_the_interpreter_lock_is_ended_too():
  """`re` holds the lock for the whole of one match; no other Python thread runs meanwhile."""
  status, err, seconds = run_watched("""
      import re
      from mcsam_jax.distributed.watchdog import Watchdog
      with Watchdog(TIMEOUT_MINUTES):
        re.match("(a*)*b", 64 * "a")
      """)
  assert status == 1 and "Timeout" in err and seconds < 30


def test_cpu_use_counts_as_progress_and_idling_does_not():
  status, err, _ = run_watched("""
      import sys, time
      from mcsam_jax.distributed.watchdog import Watchdog
      with Watchdog(TIMEOUT_MINUTES) as watchdog, watchdog.watch_cpu("scoring"):
        end = time.monotonic() + 2
        while time.monotonic() < end:
          sum(range(1000))
        print("still running", flush=True, file=sys.stderr)
        time.sleep(60)
      """)
  assert status == 75 and "still running" in err and "scoring" in err.splitlines()[-1]


def test_heartbeats_keep_a_run_alive_and_its_watchdog_ends_with_the_context():
  statuses = []
  lines = []
  with Watchdog(TIMEOUT_MINUTES, statuses.append) as watchdog:
    log = watchdog.beat_on_log(lines.append)
    for item in watchdog.beat_each(range(4), "val loss"):
      time.sleep(0.4)
      log(f"line {item}")
    with watchdog.paused("waiting for host 0"):
      time.sleep(1.4)
  time.sleep(1.6)                 # the watchdog has ended
  assert not statuses and lines == [f"line {item}" for item in range(4)]
