"""Packs texts of different lengths into rows of a few fixed lengths, so that little computation is spent on padding.

Best-fit decreasing: the longest texts are placed first, each in the row whose free space it fills best; a text that
fits no open row opens a new row of the shortest sufficient length.

Shapes: R rows, T tokens per row, P texts per row.
"""

import bisect
from collections.abc import Iterator, Sequence
import dataclasses

import numpy as np

MIN_TOKENS_PER_TEXT = 8       # a row of T tokens holds at most T / 8 texts, however short they are


@dataclasses.dataclass
class PackedRow:
  """The texts assigned to one row."""
  length: int           # tokens
  free: int             # tokens
  text_indices: list[int]


@dataclasses.dataclass
class PackedBatch:
  """The inputs of `models.text_labeler.bert.Bert` for a batch of rows, and the index of each text."""
  ids: np.ndarray             # int32 [R, T]; 0 after the last text
  positions: np.ndarray       # int32 [R, T], of each token in its text
  text_ids: np.ndarray        # int32 [R, T], which of its row's texts each token belongs to; -1 after the last text
  first_tokens: np.ndarray    # int32 [R, P], where each text begins in its row; 0 after the last text
  text_indices: np.ndarray    # int64 [R, P], index of each text in the argument of `pack`; -1 after the last text


def pack(texts: Sequence[Sequence[int]], row_lengths: Sequence[int], tokens_per_batch: int, row_multiple: int = 1
         ) -> Iterator[PackedBatch]:
  """Yields batches that together contain every text once.

  A batch has `tokens_per_batch` tokens, or a quarter of that when few rows are left. Hence a network is compiled for at
  most two shapes per row length.

  Args:
    texts: token ids of each text, 1 to `row_lengths[-1]` of them.
    row_lengths: the allowed T, ascending.
    tokens_per_batch: target size of a batch; a full batch has at least 4 rows.
    row_multiple: R is a multiple of this.
  """
  rows = fill_rows([len(ids) for ids in texts], row_lengths)
  for length in row_lengths:
    pending = [row for row in rows if row.length == length]
    quarter = -(-max(1, tokens_per_batch // length // 4) // row_multiple) * row_multiple
    while pending:
      num_rows = 4 * quarter if len(pending) > 3 * quarter else quarter
      yield make_batch(pending[:num_rows], texts, length, num_rows)
      del pending[:num_rows]


def fill_rows(text_lengths: Sequence[int], row_lengths: Sequence[int]) -> list[PackedRow]:
  """Returns rows that together hold texts of these lengths."""
  rows: list[PackedRow] = []
  open_rows: list[tuple[int, int]] = []                     # (free tokens, index of the row), ascending
  for text_index in sorted(range(len(text_lengths)), key=lambda index: -text_lengths[index]):
    text_length = text_lengths[text_index]
    best_fit = bisect.bisect_left(open_rows, (text_length, -1))
    if best_fit < len(open_rows):
      row_index = open_rows.pop(best_fit)[1]
    else:
      row_length = row_lengths[bisect.bisect_left(row_lengths, text_length)]
      row_index = len(rows)
      rows.append(PackedRow(row_length, row_length, []))
    row = rows[row_index]
    row.text_indices.append(text_index)
    row.free -= text_length
    if row.free and len(row.text_indices) < row.length // MIN_TOKENS_PER_TEXT:
      bisect.insort(open_rows, (row.free, row_index))
  return rows


def make_batch(rows: Sequence[PackedRow], texts: Sequence[Sequence[int]], length: int, num_rows: int) -> PackedBatch:
  """Returns a batch of `num_rows` rows of `length` tokens: the given rows, then empty ones."""
  max_texts = length // MIN_TOKENS_PER_TEXT
  batch = PackedBatch(
      ids=np.zeros((num_rows, length), np.int32),
      positions=np.zeros((num_rows, length), np.int32),
      text_ids=np.full((num_rows, length), -1, np.int32),
      first_tokens=np.zeros((num_rows, max_texts), np.int32),
      text_indices=np.full((num_rows, max_texts), -1, np.int64))
  for row_index, row in enumerate(rows):
    start = 0
    for text_id, text_index in enumerate(row.text_indices):
      end = start + len(texts[text_index])
      batch.ids[row_index, start:end] = texts[text_index]
      batch.positions[row_index, start:end] = np.arange(end - start)
      batch.text_ids[row_index, start:end] = text_id
      batch.first_tokens[row_index, text_id] = start
      batch.text_indices[row_index, text_id] = text_index
      start = end
  return batch
