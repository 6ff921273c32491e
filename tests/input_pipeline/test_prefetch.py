"""The threaded map keeps order, stays close to its reader, and passes errors on in their place."""

import threading
import time

import pytest

from input_pipeline.prefetch import ordered_map


def test_order_and_bounded_lookahead():
  started = []
  def slow_first(item):
    started.append(item)
    time.sleep(0.02 if item % 4 == 0 else 0)
    return item * item
  results = ordered_map(slow_first, range(1000), threads=2)
  assert [next(results) for _ in range(10)] == [item * item for item in range(10)]
  results.close()
  assert len(started) <= 10 + 2 * 2


def test_an_error_stands_where_its_result_would():
  results = ordered_map(lambda item: 1 // (item - 2), range(5), threads=3)
  assert [next(results), next(results)] == [-1, -1]
  with pytest.raises(ZeroDivisionError):
    next(results)


def test_threads_work_at_the_same_time():
  barrier = threading.Barrier(3, timeout=5)         # breaks unless three calls wait together
  assert len(list(ordered_map(lambda _: barrier.wait(), range(6), threads=3))) == 6
