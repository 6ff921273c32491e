"""Packing several texts into one row."""

import numpy as np
import pytest

from mcsam_jax.labelers.packing import fill_rows, MIN_TOKENS_PER_TEXT, pack


@pytest.mark.parametrize("row_multiple", [1, 4])
def test_every_text_is_packed_once_and_uncut(row_multiple):
  rng = np.random.default_rng(0)
  texts = [list(rng.integers(1, 99, size)) for size in (64, 1, 2, 33, 32, 31, *rng.integers(1, 65, 200))]
  unpacked, shapes = {}, set()
  for batch in pack(texts, (32, 64), 512, row_multiple):
    shapes.add(batch.ids.shape)
    for row, text_id in np.argwhere(batch.text_indices >= 0):
      tokens = batch.text_ids[row] == text_id
      assert tokens.argmax() == batch.first_tokens[row, text_id]
      assert batch.positions[row, tokens].tolist() == list(range(tokens.sum()))
      assert batch.text_indices[row, text_id] not in unpacked
      unpacked[batch.text_indices[row, text_id]] = batch.ids[row, tokens].tolist()
    packed = batch.text_indices[batch.text_indices >= 0]
    assert (batch.text_ids >= 0).sum() == sum(len(texts[index]) for index in packed)
  assert [unpacked[index] for index in range(len(texts))] == texts
  assert shapes <= {1: {(16, 32), (4, 32), (8, 64), (2, 64)}, 4: {(16, 32), (4, 32), (16, 64), (4, 64)}}[row_multiple]


def test_rows_have_little_padding():
  lengths = np.random.default_rng(1).lognormal(np.log(60), 0.5, 1000).clip(2, 512).astype(int)
  rows = fill_rows(list(lengths), (128, 256, 512))
  assert sum(row.length for row in rows) < 1.02 * lengths.sum()
  assert all(row.free >= 0 and len(row.text_indices) <= row.length // MIN_TOKENS_PER_TEXT for row in rows)


def test_the_number_of_short_texts_per_row_is_bounded():
  rows = fill_rows([2] * 20, (32, 64))
  assert [(row.length, len(row.text_indices)) for row in rows] == [(32, 4)] * 5
  assert list(pack([], (32, 64), 128)) == []
