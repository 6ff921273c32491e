"""The record order follows its formula and does not depend on the batch size."""

import numpy as np
import pytest

from input_pipeline.shuffle import choose_versions, permutation, record_order


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


def test_consecutive_epochs_show_all_versions_of_each_record():
  versions = np.stack([choose_versions(3, np.arange(50), np.full(50, epoch), 4, 50) for epoch in range(6)])
  assert (np.sort(versions[:4], axis=0) == np.arange(4)[:, None]).all()
  np.testing.assert_array_equal(versions[4:], versions[:2])
  assert set(versions[0]) == {0, 1, 2, 3}                     # records don't all start with the same version
  assert not choose_versions(3, np.arange(50), np.arange(50), 1, 50).any()


def test_versions_depend_on_seed_record_and_epoch_alone():
  records, epochs = np.array([7, 2, 7]), np.array([0, 0, 5])
  assert choose_versions(0, np.arange(8), np.zeros(8, int), 5, 8).tolist() == [4, 4, 1, 1, 2, 0, 0, 0]
  together = choose_versions(0, records, epochs, 5, 8)
  apart = [choose_versions(0, records[i:i + 1], epochs[i:i + 1], 5, 8).item() for i in range(3)]
  assert together.tolist() == apart
  other = choose_versions(1, np.arange(50), np.zeros(50, int), 4, 50)
  assert (other != choose_versions(0, np.arange(50), np.zeros(50, int), 4, 50)).any()
