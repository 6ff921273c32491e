"""The order of records is the formula, restarts anywhere, and doesn't depend on the batch."""

import numpy as np
import pytest

from input_pipeline.shuffle import permutation, record_order


def shown(seed, batch_size, num_records, examples):
  steps = [record_order(seed, step, batch_size, num_records) for step in range(-(-examples // batch_size))]
  return np.concatenate(steps, axis=1)[:, :examples]


def test_formula_example_by_example():
  for step in range(9):
    indices, epochs = record_order(3, step, 5, 7)
    assert indices.dtype == epochs.dtype == np.int64
    for slot in range(5):
      position = step * 5 + slot
      assert epochs[slot] == position // 7
      assert indices[slot] == permutation(3, position // 7, 7)[position % 7]


def test_every_epoch_is_another_permutation():
  indices, epochs = shown(seed=0, batch_size=6, num_records=50, examples=200)
  orders = [tuple(indices[epochs == epoch]) for epoch in range(4)]
  assert all(sorted(order) == list(range(50)) for order in orders) and len(set(orders)) == 4
  assert tuple(shown(1, 6, 50, 50)[0]) not in orders


@pytest.mark.parametrize("batch_size", [1, 3, 13, 32])         # 32: a batch holds several epochs
def test_batch_size_only_cuts_the_order(batch_size):
  np.testing.assert_array_equal(shown(5, batch_size, 13, 100), shown(5, 7, 13, 100))


def test_order_is_the_same_on_every_machine_and_version():
  assert permutation(0, 0, 8).tolist() == [0, 2, 1, 5, 4, 3, 6, 7]
  with pytest.raises(ValueError):
    permutation(0, 0, 8)[0] = 1                     # shared between callers
