"""Which records make up a global step: a pure function of the seed and the step.

With n records, batch B and slot j, p = step * B + j counts every example ever
shown; its epoch is p // n and its record is permutation(seed, epoch)[p mod n].
So batches run across the end of an epoch, and neither a restart nor the number
of hosts changes what is seen: a run resumes at any step without replaying.
"""

import functools

import numpy as np


def record_order(seed: int, step: int, batch_size: int, num_records: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns the records and the epochs of global step `step`, both int64 [batch_size]."""
  positions = step * batch_size + np.arange(batch_size, dtype=np.int64)
  epochs, places = np.divmod(positions, num_records)
  indices = np.empty_like(positions)
  for epoch in np.unique(epochs):
    here = epochs == epoch
    indices[here] = permutation(seed, int(epoch), num_records)[places[here]]
  return indices, epochs


@functools.lru_cache(maxsize=4)
def permutation(seed: int, epoch: int, num_records: int) -> np.ndarray:
  """Returns the order of an epoch's records, int64 [num_records], read-only.

  It ranks the raw 64-bit stream of Philox keyed by (seed, epoch). NumPy promises
  that stream for good, and does not promise `Generator.permutation`.
  """
  stream = np.random.Philox(key=np.array([seed % 2**64, epoch], np.uint64)).random_raw(num_records)
  order = np.argsort(stream, kind="stable")
  order.flags.writeable = False
  return order
