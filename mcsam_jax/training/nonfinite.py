"""Stops a run whose loss or gradient norm is NaN or infinite, and records which batch caused it.

The records of a step are a pure function of the seed and the step, so they can be named afterwards. Only their indices
are written; whoever may see the data set can look them up:

    split = open_split(read_config(W / "config.json"), "train")       # input_pipeline.splits, mcsam_jax.config
    split[index]                                                      # images, sections, ids
"""

from collections.abc import Mapping
import json

from etils import epath
import jax
from ml_collections import ConfigDict
import numpy as np

from input_pipeline.shuffle import record_order
from mcsam_jax.atomic_io import atomic_write
from mcsam_jax.errors import UserError

CHECKED_METRICS = ("loss", "gradient_norm")     # checked at every step; they include every loss term and parameter


class NonFiniteError(UserError):
  """A step's loss or gradient norm is NaN or infinite; all hosts raise this at the same step."""


def is_finite(metrics: Mapping[str, float]) -> bool:
  """Returns whether the loss and the gradient norm are finite."""
  return bool(np.isfinite([metrics[name] for name in CHECKED_METRICS]).all())


def write_nonfinite_report(workdir: epath.Path, config: ConfigDict, step: int, metrics: Mapping[str, float],
                           num_records: int) -> NonFiniteError:
  """Writes `nonfinite-STEP.json` on host 0 and returns the exception to raise on all hosts.

  The file holds the step's metrics and, in the order of the global batch, the index and the epoch of each record. It
  holds no ids and no text.

  Args:
    step: number of the failed step; the first step is 1.
    metrics: metrics of that step.
    num_records: size of the training split.
  """
  path = workdir / f"nonfinite-{step}.json"
  records, epochs = record_order(config.seed, step - 1, config.train.batch_size, num_records)
  if jax.process_index() == 0:
    atomic_write(path, json.dumps({
        "step": step, "metrics": {name: str(value) for name, value in metrics.items()}, "split": "train",
        "record": records.tolist(), "epoch": epochs.tolist(),
        "look_up": "input_pipeline.splits.open_split(mcsam_jax.config.read_config(WORKDIR / 'config.json'), 'train')"
                   "[record]"}) + "\n")
  problems = ", ".join(f"{name} is {metrics[name]}" for name in CHECKED_METRICS if not np.isfinite(metrics[name]))
  return NonFiniteError(
      f"step {step}: {problems}. Training stopped; no state from this step on is saved, and {path} lists the records "
      "of its batch. Run the same command to resume from the last checkpoint: a transient hardware fault won't recur. "
      "If it fails at the same step, inspect these records, or train in a new workdir with a lower "
      "optimizer.learning_rate"
      + (" or train.compute_dtype=float32" if config.train.compute_dtype != "float32" else ""))
