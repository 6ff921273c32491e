"""The threaded map keeps the order, bounds its lookahead, and raises errors when their result is due."""

import threading
import time

import pytest

from input_pipeline.prefetch import ordered_map


def test_order_is_kept_and_lookahead_is_bounded():
  started = []

  def slow_first(item):
    started.append(item)
    time.sleep(0.02 if item % 4 == 0 else 0)
    return item * item

  results = ordered_map(slow_first, range(1000), num_threads=2)
  assert [next(results) for _ in range(10)] == [item * item for item in range(10)]
  results.close()
  assert len(started) <= 10 + 2 * 2


def test_error_is_raised_when_its_result_is_due():
  results = ordered_map(lambda item: 1 // (item - 2), range(5), num_threads=3)
  assert [next(results), next(results)] == [-1, -1]
  with pytest.raises(ZeroDivisionError):
    next(results)


def test_threads_run_at_the_same_time():
  barrier = threading.Barrier(3, timeout=5)         # times out unless three calls wait at once
  assert len(list(ordered_map(lambda _: barrier.wait(), range(6), num_threads=3))) == 6
