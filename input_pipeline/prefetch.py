"""A map over threads that keeps order and looks only a little ahead: for more data than fits in memory."""

import collections
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
import itertools


def ordered_map(function: Callable, items: Iterable, threads: int) -> Iterator:
  """Yields function(item) for each item, in order; up to 2 * threads results wait or are being made.

  The first exception is raised where its result would have stood. Closing the
  generator lets running calls finish and starts no new one.
  """
  items = iter(items)
  with futures.ThreadPoolExecutor(threads) as pool:
    try:
      first = itertools.islice(items, 2 * threads)
      pending = collections.deque(pool.submit(function, item) for item in first)
      while pending:
        result = pending.popleft().result()
        pending.extend(pool.submit(function, item) for item in itertools.islice(items, 1))
        yield result
    finally:
      pool.shutdown(wait=False, cancel_futures=True)
