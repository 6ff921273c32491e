"""Stops a run at the same step on all hosts when any of them is asked to.

Cloud machines are taken back, and jobs reach their time limit, with a SIGTERM and some seconds' notice; it comes to
all hosts or to one, and never to all at the same step. So before each step every host casts a vote: was I asked? The
vote is an all-reduce of one number behind the steps that the devices have yet to do, and is read two steps later,
when it is long there: the host never waits for it, and all hosts read the same answer before the same step.

JAX has such an agreement of its own (`multihost_utils.reached_preemption_sync_point`). It is not used: its notice
takes SIGTERM away from Python, looks for it once a second, counts training steps alone (a look at val takes minutes,
a spot TPU leaves 30 seconds), and doesn't exist on a single machine.
"""

import collections
from collections.abc import Iterable, Iterator
import contextlib
import signal
import threading

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

from mcsam_jax.errors import Preempted

SIGNALS = (signal.SIGINT, signal.SIGTERM)      # by rank: where hosts were asked differently, the last one counts
VOTE_LAG = 2                                # between a vote and its reading


class PreemptionGuard:
  """Inside `with Stop() as stop`, SIGTERM and Ctrl-C end the run in an orderly way.

  On one machine a signal raises `Preempted` at once, except inside `deferred`. On many hosts, and inside
  `deferred`, it waits for the next vote. A further SIGTERM changes nothing; a second Ctrl-C ends the process.
  """

  def __init__(self):
    self.asked_by: signal.Signals | None = None          # of this host
    self._at_once = jax.process_count() == 1
    self._voting = _Voting() if jax.process_count() > 1 else None
    self._before: dict = {}

  def __enter__(self) -> "PreemptionGuard":
    if threading.current_thread() is threading.main_thread():         # others may not set handlers
      self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
    return self

  def __exit__(self, *_) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def _handle(self, number, frame) -> None:
    again = self.asked_by is not None
    self.asked_by = signal.Signals(number)
    if self._at_once:
      raise Preempted(self.asked_by)
    if again and number == signal.SIGINT:
      raise KeyboardInterrupt

  @contextlib.contextmanager
  def immediate(self) -> Iterator[None]:
    """Inside, a signal raises `Preempted` wherever the program is; for work that one host does alone."""
    yield from self._with(True)

  @contextlib.contextmanager
  def deferred(self) -> Iterator[None]:
    """Inside, a signal is kept for `check`; for work that has to come to the end of a step."""
    yield from self._with(False)

  def _with(self, immediate: bool) -> Iterator[None]:
    before, self._at_once = self._at_once, immediate
    try:
      if immediate and self.asked_by is not None:
        raise Preempted(self.asked_by)
      yield
    finally:
      self._at_once = before

  def check(self, lag: int = 0) -> None:
    """Votes, and raises `Preempted` on all hosts if any was asked to stop before its vote `lag` calls ago.

    All hosts must call it equally often, in the same order as their other work on devices.
    """
    asked_by = self._voting.read(self.asked_by, lag) if self._voting else self.asked_by
    if asked_by is not None:
      raise Preempted(asked_by)

  def check_before_each(self, batches: Iterable, lag: int = 0) -> Iterator:
    """Yields the batches, and checks before each one."""
    for batch in batches:
      self.check(lag)
      yield batch


class _Voting:
  """One number a host; the largest is the result.

  It has a mesh of its own, as JAX compiles nothing for other devices, or another order of them, than those of the mesh
  that it works under: on TPU the run's follows the wires.
  """

  def __init__(self):
    self.mesh = Mesh(np.array(jax.devices()), ("hosts",))
    split = NamedSharding(self.mesh, PartitionSpec("hosts"))
    self.ballots = [jax.make_array_from_process_local_data(split, np.full(jax.local_device_count(), rank, np.int32))
                    for rank in range(len(SIGNALS) + 1)]              # made once: a vote copies nothing to a device
    self.largest = jax.jit(jnp.max, out_shardings=NamedSharding(self.mesh, PartitionSpec()))
    self.cast = collections.deque()

  def read(self, asked_by: signal.Signals | None, lag: int) -> signal.Signals | None:
    rank = 0 if asked_by is None else SIGNALS.index(asked_by) + 1
    with jax.set_mesh(self.mesh):
      self.cast.append(self.largest(self.ballots[rank]))
    result = 0
    while len(self.cast) > lag:
      result = max(result, int(self.cast.popleft()))
    return SIGNALS[result - 1] if result else None
