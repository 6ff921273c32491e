"""How many images a second the input pipeline gives on this machine, beside what decoding alone reaches, and a peer.

Loops over the same prepared images take turns, and each figure is the median of its turns:
  pipeline      `train_batches`: records read at random, JPEGs decoded, scaled and put into batches, reports as ids
  bare_decoder  TensorFlow's JPEG decoder over the bytes of the same images, in memory, on all cores, pixels dropped
  one_thread    `images.decode` in a plain loop: what one core decodes and scales
  data_loader   PyTorch's, with two workers and R2Gen's transforms, from files; null where PyTorch isn't installed
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

DECODED = 2000               # images of the two loops that only decode


def benchmark_input(config: ConfigDict, num_steps: int, repeats: int) -> dict:
  """Returns images a second of each loop, and how the pipeline compares.

  Args:
    config: its data must be prepared; `train.batch_size` and `train.host_threads` are the pipeline's.
    num_steps: batches a turn of the pipeline and of the DataLoader.
    repeats: turns.
  """
  split, tokenizer = open_split(config, "train"), load_or_build_tokenizer(config)
  num_views, steps = config.data.num_views, itertools.count(0, num_steps)
  # The DataLoader stacks studies, so all must have the same number of views.
  whole = (jpegs for jpegs in (record["images"][:num_views] for record in split) if len(jpegs) == num_views)
  studies = list(itertools.islice(whole, max(num_steps * config.train.batch_size, DECODED)))
  jpegs = list(itertools.islice(itertools.chain.from_iterable(studies), DECODED))
  turns = {"pipeline": lambda: _pipeline(split, tokenizer, config, next(steps), num_steps),
           "bare_decoder": bare_decoder(jpegs),
           "one_thread": lambda: sum(images.decode(jpeg, config.data.image_size).ndim == 3 for jpeg in jpegs)}
  with tempfile.TemporaryDirectory() as folder:
    if importlib.util.find_spec("torch"):
      from mcsam_jax.benchmark.data_loader import data_loader
      turns["data_loader"] = data_loader(studies, folder, config.train.batch_size, num_steps)
    rates = {name: [] for name in turns}
    for turn in turns.values():
      turn()                                        # files into memory, libraries loaded
    for _ in range(repeats):
      for name, turn in turns.items():
        started = time.perf_counter()
        count = turn()
        rates[name].append(round(count / (time.perf_counter() - started), 1))
  medians = {name: statistics.median(found) for name, found in rates.items()}
  peer = medians.get("data_loader")
  return {"cores": os.cpu_count(), "image_size": config.data.image_size, "batch_size": config.train.batch_size,
          "host_threads": config.train.host_threads, "mean_jpeg_bytes": round(float(np.mean(list(map(len, jpegs))))),
          "images_per_second": {"data_loader": None} | medians,
          **({} if peer else {"no_data_loader_because": "PyTorch isn't installed (extra bench)"}),
          "pipeline_of_bare_decoder": round(medians["pipeline"] / medians["bare_decoder"], 3),
          "pipeline_of_data_loader": round(medians["pipeline"] / peer, 2) if peer else None,
          "all_images_per_second": rates}


def _pipeline(split, tokenizer, config: ConfigDict, start: int, num_steps: int) -> int:
  """Walks through some training batches; returns how many images they show."""
  return sum(int(batch["view_mask"].sum()) for batch in train_batches(split, tokenizer, config, start, num_steps))


def bare_decoder(jpegs: list[bytes]) -> Callable[[], int]:
  """Returns a function that decodes all of `jpegs` with TensorFlow on all cores, and returns how many they are."""
  import tensorflow as tf
  rows = lambda jpeg: tf.shape(tf.io.decode_jpeg(jpeg, channels=1))[0]
  data = tf.data.Dataset.from_tensor_slices(jpegs).map(rows, os.cpu_count(), deterministic=False).batch(256)
  return lambda: sum(len(batch) for batch in data)
