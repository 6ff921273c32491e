"""Lays texts of different lengths into rows of few lengths, so that a compiled network wastes little on padding.

The longest text is laid first, each into the row whose free space it fills best; where none has room, into a new row of
the shortest length that holds it.

Shapes: R rows, T tokens of a row, P texts of a row.
"""

import bisect
from collections.abc import Iterator, Sequence
import dataclasses

import numpy as np

TOKENS_A_TEXT = 8       # a row of T tokens holds at most T / 8 texts, however short they are


@dataclasses.dataclass
class Row:
  """One row while it is filled."""
  length: int
  free: int
  texts: list[int]      # numbers of the texts in it


@dataclasses.dataclass
class Packed:
  """A batch of rows, as `models.bert.Bert` takes it, and which texts lie where."""
  ids: np.ndarray         # int32 [R, T]; 0 behind the last text
  positions: np.ndarray   # int32 [R, T], of a token in its text
  texts: np.ndarray       # int32 [R, T], the number of a token's text in its row; -1 behind the last
  firsts: np.ndarray      # int32 [R, P], where the row's texts begin; 0 behind the last
  numbers: np.ndarray     # int64 [R, P], which of all texts they are; -1 behind the last


def pack(texts: Sequence[Sequence[int]], lengths: Sequence[int], tokens_a_batch: int, multiple: int = 1
         ) -> Iterator[Packed]:
  """Yields batches with all texts, each once.

  A batch has `tokens_a_batch` tokens, and a quarter of that where there are too few rows left for a whole one: so a
  network is compiled for two shapes a length at most.

  Args:
    texts: ids of each text, 1 to `lengths[-1]` of them.
    lengths: T that rows may have, rising.
    tokens_a_batch: at least 4 rows of each length are taken.
    multiple: of which the rows of a batch are.
  """
  rows = fill_rows([len(ids) for ids in texts], lengths)
  for length in lengths:
    waiting = [row for row in rows if row.length == length]
    quarter = -(-max(1, tokens_a_batch // length // 4) // multiple) * multiple
    while waiting:
      size = 4 * quarter if len(waiting) > 3 * quarter else quarter
      yield lay_out(waiting[:size], texts, length, size)
      del waiting[:size]


def fill_rows(sizes: Sequence[int], lengths: Sequence[int]) -> list[Row]:
  """Returns rows that hold texts of these sizes."""
  rows = []
  open_rows = []                                            # (free tokens, number of the row), rising
  for number in sorted(range(len(sizes)), key=lambda number: -sizes[number]):
    place = bisect.bisect_left(open_rows, (sizes[number], -1))
    if place < len(open_rows):
      row_number = open_rows.pop(place)[1]
    else:
      length = lengths[bisect.bisect_left(lengths, sizes[number])]
      row_number = len(rows)
      rows.append(Row(length, length, []))
    row = rows[row_number]
    row.texts.append(number)
    row.free -= sizes[number]
    if row.free and len(row.texts) < row.length // TOKENS_A_TEXT:
      bisect.insort(open_rows, (row.free, row_number))
  return rows


def lay_out(rows: Sequence[Row], texts: Sequence[Sequence[int]], length: int, num_rows: int) -> Packed:
  """Returns a batch of `num_rows` rows; those behind the given ones are empty."""
  per_row = length // TOKENS_A_TEXT
  batch = Packed(*(np.full((num_rows, width), fill, kind) for width, fill, kind in (
      (length, 0, np.int32), (length, 0, np.int32), (length, -1, np.int32), (per_row, 0, np.int32),
      (per_row, -1, np.int64))))
  for index, row in enumerate(rows):
    start = 0
    for order, number in enumerate(row.texts):
      end = start + len(texts[number])
      batch.ids[index, start:end] = texts[number]
      batch.positions[index, start:end] = np.arange(end - start)
      batch.texts[index, start:end] = order
      batch.firsts[index, order], batch.numbers[index, order] = start, number
      start = end
  return batch
