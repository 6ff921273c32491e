"""From prepared records to batches of NumPy arrays, always the same ones for the same config and step.

`train_batches` follows `order.record_order`, `eval_batches` takes each record of
a split once. Threads make a few batches ahead. A batch holds what a step needs
and no more: images as uint8 (crops, brightness, normalisation and channels are
the step's business) or the cached features of a frozen encoder.

A batch of B studies, V views, S pixels, T tokens, P patches, C channels:
  images     uint8 [B, V, S, S, 1], absent views black; or
  features   of the cache's type [B, V, P, C]
  view_mask  bool  [B, V], True where there is a view
  view_ids   int32 [B, V], index in VIEWS
  tokens     int32 [B, T + 1], bos first; the last T are the targets
  labels     int8  [B, 14], index in LABEL_VALUES, in the order of FINDINGS
  record     int32 [B], number of the record in its split
  epoch      int32 [B]
  valid      bool  [B], False where a last batch is filled up
"""

from collections.abc import Iterator

from ml_collections import ConfigDict
import numpy as np

from input_pipeline import images, token_table
from input_pipeline.prefetch import ordered_map
from input_pipeline.shuffle import record_order
from input_pipeline.splits import open_split, Split
from input_pipeline.tokenizer import Tokenizer

__all__ = ["Split", "eval_batches", "make_batch", "open_split", "record_order", "train_batches"]
Batch = dict[str, np.ndarray]
ALL_ROWS = slice(None)


def make_batch(split: Split, indices: np.ndarray, epochs: np.ndarray, tokenizer: Tokenizer,
               config: ConfigDict, features: np.ndarray | None = None,
               valid: np.ndarray | None = None) -> Batch:
  """Returns the batch of some records.

  Args:
    indices, epochs: [B] records of `split` and the epochs that they are shown in.
    features: [len(split), V, P, C] what a frozen encoder gave, instead of images; may be a memory map.
    valid: bool [B]; None: all are.
  """
  known = token_table.load_or_build(split, tokenizer)
  num_views = config.data.num_views
  views = np.full((len(indices), num_views), -1)
  stored = known.views[indices, :num_views]
  views[:, :stored.shape[1]] = stored
  pixels = {"features": np.asarray(features[indices])} if features is not None else {
      "images": _decode_views(split.read(indices), num_views, config.data.image_size)}
  return pixels | {
      "view_mask": views >= 0,
      "view_ids": np.maximum(views, 0).astype(np.int32),
      "tokens": known.tokens(indices, tokenizer, config.tokenizer.max_length),
      "labels": known.labels[indices],
      "record": np.asarray(indices, np.int32),
      "epoch": np.asarray(epochs, np.int32),
      "valid": np.ones(len(indices), bool) if valid is None else valid,
  }


def train_batches(split: Split, tokenizer: Tokenizer, config: ConfigDict, start_step: int, num_steps: int,
                  features: np.ndarray | None = None, batch_slice: slice = ALL_ROWS) -> Iterator[Batch]:
  """Yields the batches of global steps start_step, ..., start_step + num_steps - 1.

  Args:
    features: see `make_batch`.
    batch_slice: the rows of the global batch that this host feeds.
  """
  token_table.load_or_build(split, tokenizer)             # once, before threads ask for it

  def batch_of(step: int) -> Batch:
    indices, epochs = record_order(config.seed, step, config.train.batch_size, len(split))
    return make_batch(split, indices[batch_slice], epochs[batch_slice], tokenizer, config, features)

  return ordered_map(batch_of, range(start_step, start_step + num_steps), config.train.host_threads)


def eval_batches(split: Split, tokenizer: Tokenizer, config: ConfigDict, batch_size: int,
                 features: np.ndarray | None = None, limit: int = 0,
                 batch_slice: slice = ALL_ROWS) -> Iterator[Batch]:
  """Yields each record of a split once, in order; the last batch is filled up with record 0, not valid.

  Args:
    batch_size: studies of a (global) batch.
    features: see `make_batch`.
    limit: only the first so many records; 0: all.
    batch_slice: the rows of the global batch that this host takes.
  """
  token_table.load_or_build(split, tokenizer)
  num_records = min(limit or len(split), len(split))

  def batch_from(start: int) -> Batch:
    indices = np.arange(start, start + batch_size)[batch_slice]
    valid = indices < num_records
    filled = np.where(valid, indices, 0)
    return make_batch(split, filled, np.zeros_like(filled), tokenizer, config, features, valid)

  return ordered_map(batch_from, range(0, num_records, batch_size), config.train.host_threads)


def _decode_views(shown: list[dict], num_views: int, image_size: int) -> np.ndarray:
  """Returns the first `num_views` images of each record, uint8 [B, V, S, S, 1]; absent ones are black."""
  decoded = np.empty((len(shown), num_views, image_size, image_size, 1), np.uint8)
  for row, record in enumerate(shown):
    jpegs = record["images"][:num_views]
    for view, jpeg in enumerate(jpegs):
      images.decode(jpeg, image_size, decoded[row, view])
    decoded[row, len(jpegs):] = 0
  return decoded
