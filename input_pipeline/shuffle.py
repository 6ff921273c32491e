"""The order of training records: a pure function of the seed and the step.

With n records, batch size B and batch slot j, the position p = step * B + j numbers all examples of a run. Example p
is shown in epoch p // n and is record permutation(seed, epoch)[p mod n]. Batches may therefore span two epochs, and
neither restarts nor the number of hosts change the order: a run resumes at any step without replaying earlier ones.

Where augmented versions of the images are cached, `choose_versions` says which of them an epoch shows.
"""

import functools

import numpy as np


def record_order(seed: int, step: int, batch_size: int, num_records: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns the records of global step `step` and the epoch of each, both int64 [batch_size]."""
  positions = step * batch_size + np.arange(batch_size, dtype=np.int64)
  epochs, offsets = np.divmod(positions, num_records)
  indices = np.empty_like(positions)
  for epoch in np.unique(epochs):
    in_epoch = epochs == epoch
    indices[in_epoch] = permutation(seed, int(epoch), num_records)[offsets[in_epoch]]
  return indices, epochs


def choose_versions(seed: int, records: np.ndarray, epochs: np.ndarray, num_versions: int,
                    num_records: int) -> np.ndarray:
  """Returns which of the `num_versions` versions of each record is shown in its epoch, int64 [B].

  A record starts with a version drawn from the seed; each epoch shows the next one.

  Args:
    records: int [B].
    epochs: int [B].
    num_records: number of records of the split.
  """
  return (_first_versions(seed, num_versions, num_records)[records] + epochs) % num_versions


@functools.lru_cache(maxsize=4)
def _first_versions(seed: int, num_versions: int, num_records: int) -> np.ndarray:
  """Returns the version of each record in epoch 0, int64 [num_records]."""
  no_epoch = 2**64 - 1                # a stream that no permutation uses
  stream = np.random.Philox(key=np.array([seed % 2**64, no_epoch], np.uint64)).random_raw(num_records)
  return (stream % np.uint64(num_versions)).astype(np.int64)


@functools.lru_cache(maxsize=4)
def permutation(seed: int, epoch: int, num_records: int) -> np.ndarray:
  """Returns the order of the records in an epoch, int64 [num_records], read-only.

  It is the argsort of the raw 64-bit stream of Philox with the key (seed, epoch). NumPy guarantees that this stream
  never changes, and gives no such guarantee for `Generator.permutation`.
  """
  stream = np.random.Philox(key=np.array([seed % 2**64, epoch], np.uint64)).random_raw(num_records)
  order = np.argsort(stream, kind="stable")
  order.flags.writeable = False
  return order
