"""The batch: one dictionary of arrays for training, evaluation, inference and precompilation.

  images     uint8   [B, V, H, W, 1], grayscale; absent views are black, or instead of images
  features   float16 [B, V, P, C], of a frozen image encoder or of its frozen stages; absent views are zeros
  view_mask  bool    [B, V], True for views that are present
  view_ids   int32   [B, V], index in VIEWS; 0 for absent views
  tokens     int32   [B, T + 1], bos first; the last T are the targets
  labels     int8    [B, 14], index in LABEL_VALUES, in the order of FINDINGS
  record     int32   [B], index of the record in its split
  epoch      int32   [B]
  valid      bool    [B], False for the padding of a last batch

Shapes: B studies, V views, H = W = `data.image_size`, P patches per view, C channels, T = `tokenizer.max_length`.
Images are neither cropped nor normalized here; the jitted step does that.
"""

from typing import NamedTuple

from ml_collections import ConfigDict
import numpy as np

from mcsam_jax.findings import FINDINGS

Batch = dict[str, np.ndarray]
# Cached features float16 [n, V, P, C] of n records, or several versions of them, of which each epoch reads one.
Features = np.ndarray | list[np.ndarray]


class ArraySpec(NamedTuple):
  """Shape and type of an array."""
  shape: tuple[int, ...]
  dtype: np.dtype


def batch_spec(config: ConfigDict, batch_size: int,
               feature_shape: tuple[int, int] | None = None) -> dict[str, ArraySpec]:
  """Returns shape and type of each array of a batch.

  Args:
    feature_shape: (P, C) if the batch holds features; None if it holds images.
  """
  num_views, image_size = config.data.num_views, config.data.image_size
  if feature_shape is None:
    inputs = {"images": ((num_views, image_size, image_size, 1), np.uint8)}
  else:
    inputs = {"features": ((num_views, *feature_shape), np.float16)}
  per_study = inputs | {
      "view_mask": ((num_views,), np.bool_),
      "view_ids": ((num_views,), np.int32),
      "tokens": ((config.tokenizer.max_length + 1,), np.int32),
      "labels": ((len(FINDINGS),), np.int8),
      "record": ((), np.int32),
      "epoch": ((), np.int32),
      "valid": ((), np.bool_),
  }
  return {name: ArraySpec((batch_size, *shape), np.dtype(dtype)) for name, (shape, dtype) in per_study.items()}


def empty_batch(config: ConfigDict, batch_size: int, feature_shape: tuple[int, int] | None = None) -> Batch:
  """Returns a batch of zeros in which every study is valid and has all its views.

  It has the shapes of `batch_spec` and serves to initialize a model.
  """
  specs = batch_spec(config, batch_size, feature_shape)
  batch = {name: np.zeros(spec.shape, spec.dtype) for name, spec in specs.items()}
  batch["view_mask"][:] = True
  batch["valid"][:] = True
  return batch


def make_batch(inputs: Batch, views: np.ndarray, tokens: np.ndarray, *, record: np.ndarray,
               labels: np.ndarray | None = None, epoch: np.ndarray | None = None,
               valid: np.ndarray | None = None) -> Batch:
  """Returns a batch from its parts.

  Args:
    inputs: {"images": uint8 [B, V, H, W, 1]} or {"features": float16 [B, V, P, C]}.
    views: int [B, V], index in VIEWS; -1 for absent views.
    tokens: int32 [B, T + 1].
    record: int [B].
    labels: int8 [B, 14]; None: all "absent".
    epoch: int [B]; None: 0.
    valid: bool [B]; None: all True.
  """
  batch_size = len(views)
  return inputs | {
      "view_mask": views >= 0,
      "view_ids": np.maximum(views, 0).astype(np.int32),
      "tokens": tokens,
      "labels": np.zeros((batch_size, len(FINDINGS)), np.int8) if labels is None else labels,
      "record": np.asarray(record, np.int32),
      "epoch": np.zeros(batch_size, np.int32) if epoch is None else np.asarray(epoch, np.int32),
      "valid": np.ones(batch_size, bool) if valid is None else valid,
  }
