"""A split in memory, without shards and metadata."""

from collections.abc import Sequence

import numpy as np

from input_pipeline.datasets.records import make_empty_record, Record, serialize


class FakeSplit:
  """Records that consist of images alone; reads like a `Split`."""

  def __init__(self, jpegs: Sequence[Sequence[bytes]], name: str = "val"):
    """Takes the JPEGs of each record."""
    self.name, self.directory = name, "memory"
    self.serialized = [serialize(make_empty_record() | {"images": list(images)}) for images in jpegs]

  def __len__(self) -> int:
    return len(self.serialized)

  def __getitem__(self, index: int) -> Record:
    return Record(self.serialized[index])

  def resolve(self, indices):
    """Returns the records themselves: none is corrupt."""
    return np.asarray(indices)

  def read_serialized(self, indices) -> list[bytes]:
    """Returns the records `indices` in that order."""
    return [self.serialized[index] for index in indices]
