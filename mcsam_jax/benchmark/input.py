"""How many images a second the input pipeline gives on this machine, beside what decoding alone reaches.

Three loops over the same prepared records take turns, and each figure is the median of its turns:
  pipeline      `train_batches`: records read at random, JPEGs decoded, scaled and put into batches, reports to ids
  bare_decoder  TensorFlow's JPEG decoder over the bytes of the same images, in memory, on all cores, its pixels dropped
  one_thread    Python threads apart, what one core decodes and scales: `images.decode` in a plain loop
"""

from collections.abc import Callable
import itertools
import os
import statistics
import time

from ml_collections import ConfigDict
import numpy as np

from input_pipeline import images
from input_pipeline.pipeline import train_batches
from input_pipeline.prepare import load_or_build_tokenizer
from input_pipeline.splits import open_split

DECODED = 2000               # images of the two loops that read no records


def benchmark_input(config: ConfigDict, num_steps: int, repeats: int) -> dict:
  """Returns images a second of each loop, and of the pipeline the studies a second.

  Args:
    config: its data must be prepared; `train.batch_size` and `train.host_threads` are the pipeline's.
    num_steps: batches a turn of the pipeline.
    repeats: turns.
  """
  split, tokenizer = open_split(config, "train"), load_or_build_tokenizer(config)
  jpegs = list(itertools.islice((jpeg for record in split for jpeg in record["images"][:config.data.num_views]), DECODED))
  steps = itertools.count(0, num_steps)
  turns = {"pipeline": lambda: _pipeline(split, tokenizer, config, next(steps), num_steps),
           "bare_decoder": bare_decoder(jpegs),
           "one_thread": lambda: sum(images.decode(jpeg, config.data.image_size).ndim == 3 for jpeg in jpegs)}
  for turn in turns.values():
    turn()                                          # files into memory, libraries loaded
  rates = {name: [] for name in turns}
  for _ in range(repeats):
    for name, turn in turns.items():
      started = time.perf_counter()
      count = turn()
      rates[name].append(count / (time.perf_counter() - started))
  medians = {name: statistics.median(found) for name, found in rates.items()}
  return {"cores": os.cpu_count(), "image_size": config.data.image_size, "batch_size": config.train.batch_size,
          "host_threads": config.train.host_threads, "mean_jpeg_bytes": round(float(np.mean([len(j) for j in jpegs]))),
          "images_per_second": {name: round(rate, 1) for name, rate in medians.items()},
          "of_bare_decoder": round(medians["pipeline"] / medians["bare_decoder"], 3),
          "all_images_per_second": {name: [round(rate, 1) for rate in found] for name, found in rates.items()}}


def _pipeline(split, tokenizer, config: ConfigDict, start: int, num_steps: int) -> int:
  """Walks through some training batches; returns how many images they show."""
  return sum(int(batch["view_mask"].sum()) for batch in train_batches(split, tokenizer, config, start, num_steps))


def bare_decoder(jpegs: list[bytes]) -> Callable[[], int]:
  """Returns a function that decodes all of `jpegs` with TensorFlow on all cores, and returns how many they are."""
  import tensorflow as tf
  rows = lambda jpeg: tf.shape(tf.io.decode_jpeg(jpeg, channels=1))[0]
  data = tf.data.Dataset.from_tensor_slices(jpegs).map(rows, os.cpu_count(), deterministic=False).batch(256)
  return lambda: sum(len(batch) for batch in data)
