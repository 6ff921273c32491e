"""The order of training records: a pure function of the seed and the step.

With n records, batch size B and batch slot j, the position p = step * B + j numbers all examples of a run. Example p
is shown in epoch p // n and is record permutation(seed, epoch)[p mod n]. Batches may therefore span two epochs, and
neither restarts nor the number of hosts change the order: a run resumes at any step without replaying earlier ones.
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
