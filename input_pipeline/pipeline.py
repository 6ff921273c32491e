"""Turns prepared records into batches of NumPy arrays (see batch.py).

`train_batches` yields the batches of consecutive training steps. Which records a step takes depends only on the seed,
the step, the batch size and the number of records (shuffle.py), so a run that resumes at step k gets exactly the
batches that an uninterrupted run gets.
`eval_batches` yields every record of a split once, in order, and pads the last batch.

Each batch has two parts. Images are stored as JPEGs and decoded here, unless the features of a frozen encoder are given
instead. Everything else comes from the split's token table (token_table.py), which is kept in memory.
A few threads prepare batches ahead of the consumer (prefetch.py).

On several hosts `batch_slice` selects the rows of the global batch that this host reads.

Shapes: B studies, V views, H = W = `data.image_size`, P patches per view, C channels.
"""

from collections.abc import Iterator, Sequence

from ml_collections import ConfigDict
import numpy as np

from input_pipeline import images, token_table
from input_pipeline.batch import Batch, make_batch
from input_pipeline.datasets.records import Record
from input_pipeline.prefetch import ordered_map
from input_pipeline.shuffle import record_order
from input_pipeline.splits import Split
from input_pipeline.tokenizer import Tokenizer

ALL_ROWS = slice(None)


def train_batches(split: Split, tokenizer: Tokenizer, config: ConfigDict, start_step: int, num_steps: int,
                  features: np.ndarray | None = None, batch_slice: slice | np.ndarray = ALL_ROWS) -> Iterator[Batch]:
  """Yields the batches of the `num_steps` training steps after the first `start_step`.

  Args:
    split: the records.
    tokenizer: encodes the reports.
    config: `seed`, `data`, `tokenizer.max_length`, `train.batch_size` and `train.host_threads` are read.
    start_step: number of completed steps; the first batch is that of step start_step + 1 in training's counting.
    num_steps: number of batches.
    features: see `read_batch`.
    batch_slice: rows of the global batch that this host reads.
  """
  token_table.load_token_table(split, tokenizer)             # now, or each thread would build it

  def read_step(step: int) -> Batch:
    indices, epochs = record_order(config.seed, step, config.train.batch_size, len(split))
    return read_batch(split, indices[batch_slice], epochs[batch_slice], tokenizer, config, features)

  return ordered_map(read_step, range(start_step, start_step + num_steps), config.train.host_threads)


def eval_batches(split: Split, tokenizer: Tokenizer, config: ConfigDict, batch_size: int,
                 features: np.ndarray | None = None, limit: int = 0,
                 batch_slice: slice | np.ndarray = ALL_ROWS) -> Iterator[Batch]:
  """Yields each record of a split once, in order; the last batch is padded with record 0, for which `valid` is False.

  Args:
    split: the records.
    tokenizer: encodes the reports.
    config: `data`, `tokenizer.max_length` and `train.host_threads` are read.
    batch_size: studies per global batch.
    features: see `read_batch`.
    limit: number of records to yield, from the first on; 0: all.
    batch_slice: rows of the global batch that this host reads.
  """
  token_table.load_token_table(split, tokenizer)
  num_records = min(limit or len(split), len(split))

  def read_from(start: int) -> Batch:
    indices = np.arange(start, start + batch_size)[batch_slice]
    valid = indices < num_records
    padded = np.where(valid, indices, 0)
    return read_batch(split, padded, np.zeros_like(padded), tokenizer, config, features, valid)

  return ordered_map(read_from, range(0, num_records, batch_size), config.train.host_threads)


def read_batch(split: Split, indices: np.ndarray, epochs: np.ndarray, tokenizer: Tokenizer, config: ConfigDict,
               features: np.ndarray | None = None, valid: np.ndarray | None = None) -> Batch:
  """Returns the batch of the given records.

  Args:
    split: the records.
    indices: int [B], records of `split`.
    epochs: int [B], epoch in which each record is shown.
    tokenizer: encodes the reports.
    config: `data` and `tokenizer.max_length` are read.
    features: [len(split), V, P, C], of a frozen encoder, used instead of decoding images; may be a memory map.
    valid: bool [B], False for padding; None: all True.
  """
  table, num_views = token_table.load_token_table(split, tokenizer), config.data.num_views
  if features is not None:
    inputs = {"features": np.asarray(features[indices])}
  else:
    inputs = {"images": _decode_views(split.read(indices), num_views, config.data.image_size)}
  views = np.full((len(indices), num_views), -1)     # -1: absent
  stored_views = table.views[indices, :num_views]         # [B, V or fewer]
  views[:, :stored_views.shape[1]] = stored_views
  tokens = table.make_tokens(indices, tokenizer, config.tokenizer.max_length)
  return make_batch(inputs, views, tokens, labels=table.labels[indices], record=indices, epoch=epochs, valid=valid)


def _decode_views(records: Sequence[Record], num_views: int, image_size: int) -> np.ndarray:
  """Returns the first V views of each record as uint8 [B, V, H, W, 1]; absent views are black."""
  decoded = np.empty((len(records), num_views, image_size, image_size, 1), np.uint8)
  for row, record in enumerate(records):
    jpegs = record["images"][:num_views]
    for view, jpeg in enumerate(jpegs):
      images.decode(jpeg, image_size, decoded[row, view])
    decoded[row, len(jpegs):] = 0
  return decoded
