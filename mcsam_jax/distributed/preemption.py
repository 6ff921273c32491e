"""Stops a run at the same step on all hosts when one of them receives SIGTERM or Ctrl-C.

Cloud machines are preempted, and jobs reach their time limit, with a SIGTERM and some seconds' notice. It arrives at
one host or at all of them, but never during the same step. So before each step every host votes whether it has
received a signal. The vote is an all-reduce of one number, queued behind the steps that the devices have yet to run,
and it is read two steps later, when it has long been computed: the host never waits for it, and all hosts read the
same result before the same step.

JAX has a similar agreement (`multihost_utils.reached_preemption_sync_point`). It isn't used, because it takes SIGTERM
away from Python, looks for it only once a second, counts only training steps (an evaluation takes minutes; a spot TPU
gives 30 seconds), and doesn't exist on a single machine.
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

SIGNALS = (signal.SIGINT, signal.SIGTERM)      # in ascending priority, for hosts that received different signals
VOTE_LAG = 2                                   # steps between a vote and its reading


class PreemptionGuard:
  """Inside `with PreemptionGuard() as guard`, SIGTERM and Ctrl-C end the run in an orderly way.

  On one machine a signal raises `Preempted` at once, except inside `deferred`. On several hosts, and inside
  `deferred`, it takes effect at the next `check`. A second SIGTERM changes nothing; a second Ctrl-C ends the process.
  """

  def __init__(self):
    """Creates an inactive guard; `with` installs its signal handlers."""
    self.received: signal.Signals | None = None          # by this host
    self._raise_at_once = jax.process_count() == 1
    self._votes = _SignalVotes() if jax.process_count() > 1 else None
    self._previous_handlers: dict = {}

  def __enter__(self) -> "PreemptionGuard":
    if threading.current_thread() is threading.main_thread():         # other threads can't set handlers
      self._previous_handlers = {number: signal.signal(number, self._handle) for number in SIGNALS}
    return self

  def __exit__(self, *_) -> None:
    for number, handler in self._previous_handlers.items():
      signal.signal(number, handler)

  def _handle(self, number, frame) -> None:
    is_second = self.received is not None
    self.received = signal.Signals(number)
    if self._raise_at_once:
      raise Preempted(self.received)
    if is_second and number == signal.SIGINT:
      raise KeyboardInterrupt

  @contextlib.contextmanager
  def immediate(self) -> Iterator[None]:
    """Makes a signal raise `Preempted` at once inside the context; for work that one host does alone."""
    with self._set_mode(raise_at_once=True):
      yield

  @contextlib.contextmanager
  def deferred(self) -> Iterator[None]:
    """Defers signals to the next `check` inside the context; for steps that have to be completed."""
    with self._set_mode(raise_at_once=False):
      yield

  @contextlib.contextmanager
  def _set_mode(self, raise_at_once: bool) -> Iterator[None]:
    previous, self._raise_at_once = self._raise_at_once, raise_at_once
    try:
      if raise_at_once and self.received is not None:
        raise Preempted(self.received)
      yield
    finally:
      self._raise_at_once = previous

  def check(self, lag: int = 0) -> None:
    """Votes, and raises `Preempted` on all hosts if any had received a signal when it voted `lag` calls ago.

    All hosts must call it equally often, and in the same order relative to their other device computations.
    """
    received = self._votes.vote(self.received, lag) if self._votes else self.received
    if received is not None:
      raise Preempted(received)

  def check_before_each(self, batches: Iterable, lag: int = 0) -> Iterator:
    """Yields the batches, and calls `check` before each."""
    for batch in batches:
      self.check(lag)
      yield batch


class _SignalVotes:
  """All-reduces the signals that hosts have received; the one with the highest priority is the result.

  It uses a mesh of its own. JAX refuses to compile for other devices, or another device order, than those of the
  current mesh, and on TPU the run's mesh follows the physical topology.
  """

  def __init__(self):
    """Copies all possible votes to the devices once, so that voting copies nothing."""
    self.mesh = Mesh(np.array(jax.devices()), ("hosts",))
    sharding = NamedSharding(self.mesh, PartitionSpec("hosts"))
    self.ballots = [jax.make_array_from_process_local_data(sharding, np.full(jax.local_device_count(), rank, np.int32))
                    for rank in range(len(SIGNALS) + 1)]
    self.max = jax.jit(jnp.max, out_shardings=NamedSharding(self.mesh, PartitionSpec()))
    self.pending = collections.deque()

  def vote(self, received: signal.Signals | None, lag: int) -> signal.Signals | None:
    """Casts this host's vote and returns the result of all votes but the last `lag`, None if no host voted to stop."""
    rank = 0 if received is None else SIGNALS.index(received) + 1
    with jax.set_mesh(self.mesh):
      self.pending.append(self.max(self.ballots[rank]))
    result = 0
    while len(self.pending) > lag:
      result = max(result, int(self.pending.popleft()))
    return SIGNALS[result - 1] if result else None
