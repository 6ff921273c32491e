"""Rows that hold several texts."""

import numpy as np
import pytest

from mcsam_jax.labelers.packing import fill_rows, pack, TOKENS_A_TEXT


@pytest.mark.parametrize("multiple", [1, 4])
def test_every_text_lies_somewhere_once_and_whole(multiple):
  draw = np.random.default_rng(0)
  texts = [list(draw.integers(1, 99, size)) for size in (64, 1, 2, 33, 32, 31, *draw.integers(1, 65, 200))]
  found, shapes = {}, set()
  for batch in pack(texts, (32, 64), 512, multiple):
    shapes.add(batch.ids.shape)
    for row, column in np.argwhere(batch.numbers >= 0):
      here = batch.texts[row] == column
      assert here.argmax() == batch.firsts[row, column]
      assert batch.positions[row, here].tolist() == list(range(here.sum()))
      assert batch.numbers[row, column] not in found
      found[batch.numbers[row, column]] = batch.ids[row, here].tolist()
    assert (batch.texts >= 0).sum() == sum(len(texts[number]) for number in batch.numbers[batch.numbers >= 0])
  assert [found[number] for number in range(len(texts))] == texts
  assert shapes <= {1: {(16, 32), (4, 32), (8, 64), (2, 64)}, 4: {(16, 32), (4, 32), (16, 64), (4, 64)}}[multiple]


def test_rows_are_full():
  sizes = np.random.default_rng(1).lognormal(np.log(60), 0.5, 1000).clip(2, 512).astype(int)
  rows = fill_rows(list(sizes), (128, 256, 512))
  assert sum(row.length for row in rows) < 1.02 * sizes.sum()
  assert all(row.free >= 0 and len(row.texts) <= row.length // TOKENS_A_TEXT for row in rows)


def test_short_texts_wait_for_a_place():
  rows = fill_rows([2] * 20, (32, 64))
  assert [(row.length, len(row.texts)) for row in rows] == [(32, 4)] * 5
  assert list(pack([], (32, 64), 128)) == []
