"""The record order follows its formula and does not depend on the batch size."""

import numpy as np
import pytest

from input_pipeline.shuffle import permutation, record_order


def show_examples(seed, batch_size, num_records, examples):
  """Returns the records and epochs of the first `examples` examples, int64 [2, examples]."""
  steps = [record_order(seed, step, batch_size, num_records) for step in range(-(-examples // batch_size))]
  return np.concatenate(steps, axis=1)[:, :examples]


def test_record_order_follows_the_formula():
  for step in range(9):
    indices, epochs = record_order(3, step, 5, 7)
    assert indices.dtype == epochs.dtype == np.int64
    for slot in range(5):
      position = step * 5 + slot
      assert epochs[slot] == position // 7
      assert indices[slot] == permutation(3, position // 7, 7)[position % 7]


def test_epochs_and_seeds_have_different_permutations():
  indices, epochs = show_examples(seed=0, batch_size=6, num_records=50, examples=200)
  orders = [tuple(indices[epochs == epoch]) for epoch in range(4)]
  assert all(sorted(order) == list(range(50)) for order in orders) and len(set(orders)) == 4
  assert tuple(show_examples(1, 6, 50, 50)[0]) not in orders


@pytest.mark.parametrize("batch_size", [1, 3, 13, 32])         # 32: one batch spans several epochs
def test_batch_size_does_not_change_the_order(batch_size):
  np.testing.assert_array_equal(show_examples(5, batch_size, 13, 100), show_examples(5, 7, 13, 100))


def test_permutation_is_the_same_on_every_machine_and_cannot_be_modified():
  assert permutation(0, 0, 8).tolist() == [0, 2, 1, 5, 4, 3, 6, 7]
  with pytest.raises(ValueError):
    permutation(0, 0, 8)[0] = 1                     # shared by all callers
