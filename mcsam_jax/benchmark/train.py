"""Measures the speed of a training step on this machine: the whole step, then its parts.

The step is the jitted program that `mcsam train` runs with cross-entropy, on a random batch of the config's shapes and
with random weights; no data set is needed. Step and parts are called in turn and medians are reported, so that other
programs on the machine slow all of them alike.

The step's operations are those that the model needs (`training/flops.py`), and the utilization divides them by what
the devices reach in one large matrix product in the same type. How a part is obtained is in `train_parts.py`.
"""

from collections.abc import Callable
import statistics
import time

import jax
from ml_collections import ConfigDict
import numpy as np

from input_pipeline.batch import Batch, empty_batch
from mcsam_jax.benchmark.machine import describe_machine, measure_matmul, measure_seconds
from mcsam_jax.benchmark.train_parts import count_part_flops, make_parts
from mcsam_jax.distributed.mesh import (
  check_train_batch_size,
  local_rows,
  make_mesh,
  replicated,
  shard_batch,
  state_shardings,
)
from mcsam_jax.models.initialize import make_model
from mcsam_jax.models.visual_encoders.registry import find_encoder, frozen_feature_shape
from mcsam_jax.training.flops import train_flops
from mcsam_jax.training.train_state import init_train_state, TrainState
from mcsam_jax.training.train_step import make_train_step

EOS, FIRST_WORD = 2, 4


def benchmark_train(config: ConfigDict, vocab_size: int, repeats: int, by_part: bool = True) -> dict:
  """Returns the speed of a training step, of its parts, and of a matrix product.

  Args:
    config: `train.batch_size` and `train.compute_dtype`, the mesh, and the sizes of images, reports and network are
      used. With `encoder.frozen` the step reads cached features.
    repeats: number of timed calls of each program; the median is reported.
    by_part: also time the parts.

  Raises:
    UserError: the batch can't be split over the mesh.
  """
  batch_size, num_devices = config.train.batch_size, jax.device_count()
  side = 1024 if jax.default_backend() == "cpu" else 8192      # a chip needs a large product to reach its peak
  peak = measure_matmul(side, side, 1, iterations=10 * (side // 24), dtype=config.train.compute_dtype)
  mesh = make_mesh(config)
  check_train_batch_size(config, mesh.shape)
  with jax.set_mesh(mesh):
    runner = TrainStepRunner(config, vocab_size)
    programs = {"step": runner.run}
    if by_part:
      programs |= make_parts(config, EOS, runner)
    for run in programs.values():
      run()                                                    # compiles
    seconds = {name: [] for name in programs}
    for _ in range(repeats):
      for name, run in programs.items():
        seconds[name].append(measure_seconds(run))
  median, flops = statistics.median(seconds["step"]), train_flops(config, vocab_size)
  return {
      **describe_machine(), "encoder": config.encoder.name, "cached_features": bool(config.encoder.frozen),
      "image_size": config.data.image_size, "views": config.data.num_views, "batch_size": batch_size,
      "tokens": config.tokenizer.max_length, "vocabulary": vocab_size, "compute_dtype": config.train.compute_dtype,
      "matmul_gflops": round(peak / 1e9, 1), "compile_seconds": round(runner.compile_seconds, 1),
      "seconds": round(median, 4), "all_seconds": [round(each, 4) for each in seconds["step"]],
      "steps_per_second": round(1 / median, 4), "examples_per_second": round(batch_size / median, 3),
      "step_gflop": None if flops is None else round(flops / 1e9, 4),
      "gflops": None if flops is None else round(flops / median / 1e9, 1),
      "utilization": None if flops is None else round(flops / median / (peak * num_devices), 3),
      **({"parts": _summarize_parts(config, vocab_size, seconds)} if by_part else {})}


class TrainStepRunner:
  """A compiled training step with its state and a random batch, all on the ambient mesh.

  Attributes:
    model: the network.
    batch: global arrays of `input_pipeline.batch`.
    state: the training state after the last call of `run`; donated to the next one.
    shardings: of the state.
    compile_seconds: time to compile the step.
  """

  def __init__(self, config: ConfigDict, vocab_size: int):
    """Initializes the state and compiles the step."""
    mesh, feature_shape = make_mesh(config), frozen_feature_shape(config)
    grid = config.data.image_size // find_encoder(config.encoder.name).stride
    self.model = make_model(config, vocab_size, grid)
    example = empty_batch(config, 1, feature_shape)
    init: Callable[[], TrainState] = lambda: init_train_state(self.model, config, example)
    self.shardings = state_shardings(mesh, jax.eval_shape(init))
    self.state = jax.jit(init, out_shardings=self.shardings)()
    rows = local_rows(mesh, config.train.batch_size)
    self.batch = shard_batch(mesh, make_random_batch(config, vocab_size, rows, feature_shape))
    start = time.perf_counter()
    self._step = jax.jit(make_train_step(self.model, config, EOS), donate_argnums=0,
                         out_shardings=(self.shardings, replicated(mesh))).lower(self.state, self.batch).compile()
    self.compile_seconds = time.perf_counter() - start

  def run(self) -> dict[str, jax.Array]:
    """Runs one step to its end and returns its metrics."""
    self.state, metrics = self._step(self.state, self.batch)
    return jax.block_until_ready((self.state, metrics))[1]


def make_random_batch(config: ConfigDict, vocab_size: int, rows: np.ndarray,
                      feature_shape: tuple[int, int] | None) -> Batch:
  """Returns a batch of random images or features and of reports of the full length; every view is present."""
  rng, batch = np.random.default_rng(config.seed), empty_batch(config, len(rows), feature_shape)
  if feature_shape is None:
    batch["images"] = rng.integers(0, 256, batch["images"].shape, np.uint8)
  else:
    batch["features"] = rng.standard_normal(batch["features"].shape, np.float32).astype(batch["features"].dtype)
  batch["tokens"] = rng.integers(FIRST_WORD, vocab_size, batch["tokens"].shape, np.int32)
  batch["tokens"][:, -1] = EOS
  batch["record"] = rows.astype(np.int32)
  return batch


def _summarize_parts(config: ConfigDict, vocab_size: int, seconds: dict[str, list[float]]) -> dict[str, dict]:
  """Returns the seconds of each part, its share of the step, and the operations of its forward pass."""
  medians = {name: statistics.median(values) for name, values in seconds.items()}
  flops, parts = count_part_flops(config, vocab_size), {}
  for program in medians:
    name, _, direction = program.partition(": ")
    if not direction:
      continue
    part = parts.setdefault(name, {})
    # The program of the backward pass runs the forward pass, too.
    part[direction] = round(max(medians[program] - (part.get("forward", 0) if direction == "backward" else 0), 0), 4)
  for name, part in parts.items():
    part["share_of_step"] = round(sum(part.values()) / medians["step"], 3)
    if flops.get(name):
      part["forward_gflop"] = round(flops[name] / 1e9, 4)
  return parts
