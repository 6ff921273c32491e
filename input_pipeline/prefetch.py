"""An ordered, threaded map with bounded lookahead, for data that does not fit in memory."""

import collections
from collections.abc import Callable, Generator, Iterable
from concurrent import futures
import itertools
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def ordered_map(function: Callable[[Item], Result], items: Iterable[Item],
                num_threads: int) -> Generator[Result, None, None]:
  """Yields function(item) for each item, in order, computed by threads.

  At most 2 * num_threads results are computed ahead of the consumer. An exception is raised when its result is due.
  Closing the generator lets running calls finish and starts no new ones.
  """
  items = iter(items)
  with futures.ThreadPoolExecutor(num_threads) as pool:
    try:
      first = itertools.islice(items, 2 * num_threads)
      pending = collections.deque(pool.submit(function, item) for item in first)
      while pending:
        result = pending.popleft().result()
        pending.extend(pool.submit(function, item) for item in itertools.islice(items, 1))
        yield result
    finally:
      pool.shutdown(wait=False, cancel_futures=True)
