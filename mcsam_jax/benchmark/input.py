"""Measures the images per second of the input pipeline on this machine, with three references.

The loops below read the same prepared images in alternation; each figure is the median over all repeats:
  pipeline      `train_batches`: random access to records, JPEG decoding, resizing, batching, tokenized reports
  bare_decoder  TensorFlow's JPEG decoder on the same images in memory, on all cores; pixels are dropped
  one_thread    `images.decode` in a Python loop: decoding and resizing on one core
  data_loader   PyTorch's DataLoader from files, with two workers and R2Gen's transforms; null without PyTorch
"""

from collections.abc import Callable
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
from input_pipeline.splits import open_split

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
  studies = list(itertools.islice(complete, max(num_steps * config.train.batch_size, NUM_DECODED)))
  jpegs = list(itertools.islice(itertools.chain.from_iterable(studies), NUM_DECODED))
  loops = {"pipeline": lambda: _read_batches(split, tokenizer, config, next(steps), num_steps),
           "bare_decoder": make_bare_decoder(jpegs),
           "one_thread": lambda: sum(images.decode(jpeg, config.data.image_size).ndim == 3 for jpeg in jpegs)}
  with tempfile.TemporaryDirectory() as folder:
    if importlib.util.find_spec("torch"):
      from mcsam_jax.benchmark.data_loader import make_data_loader
      loops["data_loader"] = make_data_loader(studies, folder, config.train.batch_size, num_steps)
    rates = {name: [] for name in loops}
    for loop in loops.values():
      loop()                                        # warms up file caches and libraries
    for _ in range(repeats):
      for name, loop in loops.items():
        started = time.perf_counter()
        count = loop()
        rates[name].append(round(count / (time.perf_counter() - started), 1))
  medians = {name: statistics.median(values) for name, values in rates.items()}
  peer = medians.get("data_loader")
  return {"cores": os.cpu_count(), "image_size": config.data.image_size, "batch_size": config.train.batch_size,
          "host_threads": config.train.host_threads, "mean_jpeg_bytes": round(float(np.mean(list(map(len, jpegs))))),
          "images_per_second": {"data_loader": None} | medians,
          **({} if peer else {"data_loader_skipped": "PyTorch isn't installed (extra bench)"}),
          "pipeline_to_bare_decoder": round(medians["pipeline"] / medians["bare_decoder"], 3),
          "pipeline_to_data_loader": round(medians["pipeline"] / peer, 2) if peer else None,
          "all_images_per_second": rates}


def _read_batches(split, tokenizer, config: ConfigDict, start: int, num_steps: int) -> int:
  """Iterates over `num_steps` training batches; returns their number of images."""
  return sum(int(batch["view_mask"].sum()) for batch in train_batches(split, tokenizer, config, start, num_steps))


def make_bare_decoder(jpegs: list[bytes]) -> Callable[[], int]:
  """Returns a function that decodes all of `jpegs` with TensorFlow on all cores and returns their number."""
  import tensorflow as tf
  rows = lambda jpeg: tf.shape(tf.io.decode_jpeg(jpeg, channels=1))[0]
  data = tf.data.Dataset.from_tensor_slices(jpegs).map(rows, os.cpu_count(), deterministic=False).batch(256)
  return lambda: sum(len(batch) for batch in data)
