"""Measures the images per second of the input pipeline on this machine, with three references.

The loops below read the same prepared images in alternation; each figure is the median over all repeats:
  pipeline      `train_batches`: random access to records, JPEG decoding, resizing, batching, tokenized reports
  bare_decoder  TensorFlow's JPEG decoder on the same images in memory, on all cores; pixels are dropped
  one_thread    `images.decode` in a Python loop: decoding and resizing on one core
  data_loader   PyTorch's DataLoader from files, with two workers and R2Gen's transforms; null without PyTorch

The clock starts at the first batch of each loop, so that neither the construction of a graph nor the start of worker
processes counts.
"""

from collections.abc import Iterator
import importlib.util
import itertools
import os
import statistics
import tempfile
import time

from ml_collections import ConfigDict
import numpy as np

from input_pipeline import images
from input_pipeline.builder.tokenizer import load_or_build_tokenizer
from input_pipeline.pipeline import train_batches
from input_pipeline.splits import open_split, Split
from input_pipeline.tokenizer import Tokenizer
from mcsam_jax.benchmark.machine import find_instruction_set

NUM_DECODED = 2000           # images per repeat of the two loops that only decode


def benchmark_input(config: ConfigDict, num_steps: int, repeats: int) -> dict:
  """Returns the images per second of each loop, and ratios of the pipeline to its references.

  Args:
    config: its data must be prepared; the pipeline uses `train.batch_size` and `train.host_threads`.
    num_steps: batches per repeat of the pipeline and the DataLoader.
    repeats: timed repeats of each loop.
  """
  split, tokenizer = open_split(config, "train"), load_or_build_tokenizer(config)
  num_views, steps = config.data.num_views, itertools.count(0, num_steps)
  # The DataLoader stacks studies, so all must have the same number of views.
  complete = (jpegs for jpegs in (record["images"][:num_views] for record in split) if len(jpegs) == num_views)
  studies = list(itertools.islice(complete, max((num_steps + 1) * config.train.batch_size, NUM_DECODED)))
  jpegs = list(itertools.islice(itertools.chain.from_iterable(studies), NUM_DECODED))
  loops = {"pipeline": lambda: _read_batches(split, tokenizer, config, next(steps), num_steps + 1),
           "bare_decoder": lambda: decode_bare(jpegs),
           "one_thread": lambda: _decode_in_one_thread(jpegs, config.data.image_size)}
  with tempfile.TemporaryDirectory() as folder:
    if importlib.util.find_spec("torch"):
      from mcsam_jax.benchmark.data_loader import make_data_loader
      loops["data_loader"] = make_data_loader(studies, folder, config.train.batch_size, num_steps + 1)
    for loop in loops.values():
      _measure_rate(loop())                         # warms up file caches and libraries
    rates = {name: [] for name in loops}
    for _ in range(repeats):
      for name, loop in loops.items():
        rates[name].append(round(_measure_rate(loop()), 1))
  medians = {name: statistics.median(values) for name, values in rates.items()}
  peer = medians.get("data_loader")
  return {"cores": os.cpu_count(), "instruction_set": find_instruction_set(), "image_size": config.data.image_size,
          "batch_size": config.train.batch_size,
          "host_threads": config.train.host_threads, "mean_jpeg_bytes": round(float(np.mean(list(map(len, jpegs))))),
          "images_per_second": {"data_loader": None} | medians,
          **({} if peer else {"data_loader_skipped": "PyTorch isn't installed (extra bench)"}),
          "pipeline_to_bare_decoder": round(medians["pipeline"] / medians["bare_decoder"], 3),
          "pipeline_to_data_loader": round(medians["pipeline"] / peer, 2) if peer else None,
          "all_images_per_second": rates}


def _measure_rate(counts: Iterator[int]) -> float:
  """Returns the images per second of a loop that yields the number of images of each batch."""
  next(counts)
  started = time.perf_counter()
  return sum(counts) / (time.perf_counter() - started)


def _read_batches(split: Split, tokenizer: Tokenizer, config: ConfigDict, start: int, num_steps: int) -> Iterator[int]:
  """Yields the number of images of `num_steps` training batches."""
  return (int(batch["view_mask"].sum()) for batch in train_batches(split, tokenizer, config, start, num_steps))


def _decode_in_one_thread(jpegs: list[bytes], image_size: int) -> Iterator[int]:
  """Yields 1 for each JPEG after decoding and resizing it."""
  return (len(images.decode(jpeg, image_size)[:1]) for jpeg in jpegs)


def decode_bare(jpegs: list[bytes]) -> Iterator[int]:
  """Decodes `jpegs` with TensorFlow on all cores; yields the number of images of each batch."""
  import tensorflow as tf
  height = lambda jpeg: tf.shape(tf.io.decode_jpeg(jpeg, channels=1))[0]
  options = tf.data.Options()
  options.autotune.enabled = False             # it may delay the end, see input_pipeline/pipeline.py
  data = tf.data.Dataset.from_tensor_slices(jpegs).map(height, os.cpu_count(), deterministic=False).batch(64)
  return (len(batch) for batch in data.with_options(options))
