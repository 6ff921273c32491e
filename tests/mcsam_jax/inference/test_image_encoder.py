"""Batches of images are encoded by several threads, in order."""

import threading

import pytest

from mcsam_jax.inference.image_encoder import map_in_threads


@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_results_are_in_order_and_threads_work_at_the_same_time(num_threads):
  together = threading.Barrier(num_threads)

  def square(number):
    if number:
      together.wait(timeout=20)           # passes once `num_threads` calls are in progress
    return number ** 2

  assert list(map_in_threads(square, range(1 + 3 * num_threads), num_threads)) == [
      number ** 2 for number in range(1 + 3 * num_threads)]
  assert list(map_in_threads(square, [], num_threads)) == []


def test_first_item_is_finished_before_another_one_starts():
  started = []

  def note(number):
    started.append(number)
    if number == 0:
      threading.Event().wait(0.05)
      assert started == [0]

  assert list(map_in_threads(note, range(4), 2)) == [None] * 4


@pytest.mark.parametrize("wrong", [0, 2])
def test_an_error_in_a_thread_reaches_the_caller(wrong):
  results = []
  with pytest.raises(ZeroDivisionError):
    for result in map_in_threads(lambda number: 1 / (number - wrong), range(6), 2):
      results.append(result)
  assert len(results) == wrong
