"""A process that hangs leaves with a message; one that moves is left alone."""

import os
import subprocess
import sys
import textwrap
import time

from mcsam_jax.distributed.watchdog import Watchdog

LIMIT = 1 / 60                    # minutes


def leaves(program):
  """Returns the status, stderr and seconds of a program that is watched; nothing heavy is imported in it."""
  start = time.monotonic()
  done = subprocess.run([sys.executable, "-c", f"LIMIT = {LIMIT}\n" + textwrap.dedent(program)], capture_output=True,
                        text=True, timeout=60, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
  return done.returncode, done.stderr, time.monotonic() - start


def test_a_thread_that_never_comes_back_is_left_with_its_stack_and_the_phase():
  status, err, _ = leaves("""
      import threading
      from mcsam_jax.distributed.watchdog import Watchdog
      def collective_that_never_returns():
        threading.Lock().acquire() and threading.Event().wait()
      with Watchdog(LIMIT) as watchdog:
        watchdog.beat("waiting for the results of step 7")
        try:
          collective_that_never_returns()
        finally:
          print("an exception would have come here")
      """)
  assert status == 75
  assert "collective_that_never_returns" in err and "exception" not in err
  message = err.splitlines()[-1]
  assert "waiting for the results of step 7" in message and "status 75" in message and "train.watchdog_timeout_minutes" in message


def test_one_that_keeps_pythons_lock_is_left_too():
  """`re` holds the lock for the whole of one match; no other thread of Python runs meanwhile."""
  status, err, seconds = leaves("""
      import re
      from mcsam_jax.distributed.watchdog import Watchdog
      with Watchdog(LIMIT):
        re.match("(a*)*b", 64 * "a")
      """)
  assert status == 1 and "Timeout" in err and seconds < 30


def test_a_processor_at_work_keeps_it_going_and_one_that_rests_does_not():
  status, err, _ = leaves("""
      import time
      from mcsam_jax.distributed.watchdog import Watchdog
      with Watchdog(LIMIT) as watchdog, watchdog.busy("scoring"):
        end = time.monotonic() + 2
        while time.monotonic() < end:
          sum(range(1000))
        print("still there", flush=True, file=__import__("sys").stderr)
        time.sleep(60)
      """)
  assert status == 75 and "still there" in err and "the last was: scoring" in err


def test_signs_of_life_keep_it_going_and_it_ends_with_its_block():
  left = []
  shown = []
  with Watchdog(LIMIT, left.append) as watchdog:
    log = watchdog.beat_on_log(shown.append)
    for item in watchdog.beat_each(range(4), "val loss"):
      time.sleep(0.4)
      log(f"line {item}")
    with watchdog.paused("waiting for host 0"):
      time.sleep(1.4)
  time.sleep(1.6)                 # nothing watches any more
  assert not left and shown == [f"line {item}" for item in range(4)]
