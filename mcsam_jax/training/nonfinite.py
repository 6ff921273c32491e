"""What is said and kept when the loss or its gradient is no number any more.

The records of a step are a pure function of the seed and the step, so nothing has to be remembered to name them.
Their numbers say nothing by themselves; who may see the records can look them up:

    split = open_split(read_config(W / "config.json"), "train")       # input_pipeline.splits, mcsam_jax.config
    split[number]                                                     # images, sections, ids
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

CHECKED = ("loss", "gradient_norm")     # of every step; every term and every parameter's gradient is in them


class NonFinite(UserError):
  """A step whose loss or gradient is no finite number; every host meets it at the same step."""


def is_finite(metrics: Mapping[str, float]) -> bool:
  return bool(np.isfinite([metrics[name] for name in CHECKED]).all())


def report(workdir: epath.Path, config: ConfigDict, step: int, metrics: Mapping[str, float],
           num_records: int) -> NonFinite:
  """Writes which records step `step` was made of (process 0 does), and returns the exception to raise.

  `nonfinite-STEP.json` holds the step's figures and each record's number in split train and its epoch, in the order of
  the global batch; no id and no text.

  Args:
    step: the first is 1.
    metrics: of that step.
    num_records: of split train.
  """
  path = workdir / f"nonfinite-{step}.json"
  records, epochs = record_order(config.seed, step - 1, config.train.batch_size, num_records)
  if jax.process_index() == 0:
    atomic_write(path, json.dumps({
        "step": step, "metrics": {name: str(value) for name, value in metrics.items()}, "split": "train",
        "record": records.tolist(), "epoch": epochs.tolist(),
        "look_up": "input_pipeline.splits.open_split(mcsam_jax.config.read_config(WORKDIR / 'config.json'), 'train')"
                   "[record]"}) + "\n")
  wrong = ", ".join(f"{name} is {metrics[name]}" for name in CHECKED if not np.isfinite(metrics[name]))
  return NonFinite(
      f"step {step}: {wrong}; stopped, no state of this step or after it is saved, and {path} lists the numbers of the "
      "records in its batch. Start again to go on from the last checkpoint: a passing fault of the hardware is over "
      "then. If it stops at the same step, look at these records, or train in a new workdir with a lower "
      "optimizer.learning_rate"
      + (" or train.compute_dtype=float32" if config.train.compute_dtype != "float32" else ""))
