"""Measures how much saving a checkpoint every 100 steps slows down training on this machine.

  python tests/benchmarks/checkpoint_cost.py [--config phantom] [--every 100] [--saves 5] [--config.x.y=v]

Trains once and saves every 2 * `every` steps. The run is divided into intervals of `every` steps; every second interval
begins with a save and includes its asynchronous write, the others include neither. Each interval with a save is
compared with its neighbors, because the machine's speed drifts. The first two intervals, which include compilation and
the first save, are not counted. The data must be prepared beforehand. Prints JSON.
"""

import argparse
import json
import pathlib
import statistics
import tempfile
import time

from mcsam_jax.checkpoints.checkpoint import Checkpoints
from mcsam_jax.config import load_config
from mcsam_jax.training.train import train


def measure_intervals(config_name: str, overrides: list[str], every: int, num_saves: int) -> list[float]:
  """Returns the seconds of 2 * `num_saves` consecutive intervals; those with an even index begin with a save."""
  num_steps = (2 * num_saves + 2) * every + 1
  fields = {"train.num_steps": num_steps, "train.eval_every": num_steps, "train.log_every": every,
            "train.eval_studies": 1, "train.checkpoint_every": 2 * every}
  log_times = {}

  def log(line):
    if line.startswith("step "):
      log_times[int(line.split()[1].split("/")[0])] = time.monotonic()

  with tempfile.TemporaryDirectory() as folder:
    workdir = pathlib.Path(folder) / "run"
    train(load_config(config_name, [*overrides, *(f"--config.{name}={value}" for name, value in fields.items())]),
          str(workdir), log)
    assert Checkpoints(workdir, read_only=True).latest() == num_steps
  times = [log_times[index * every] for index in range(2, 2 * num_saves + 3)]
  return [end - begin for begin, end in zip(times, times[1:])]


def main() -> None:
  parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
  parser.add_argument("--config", default="phantom")
  parser.add_argument("--every", type=int, default=100, help="steps per interval (default: 100)")
  parser.add_argument("--saves", type=int, default=5, help="number of saves to measure (default: 5)")
  args, overrides = parser.parse_known_args()
  seconds = measure_intervals(args.config, overrides, args.every, args.saves)
  with_save, without_save = seconds[::2], seconds[1::2]
  # Baseline: the mean of the intervals before and after; the first interval has only the one after it.
  costs = [saving / statistics.mean(without_save[max(index - 1, 0):index + 1]) - 1
           for index, saving in enumerate(with_save)]
  print(json.dumps({"steps_per_interval": args.every,
                    "seconds_with_save": [round(value, 2) for value in with_save],
                    "seconds_without_save": [round(value, 2) for value in without_save],
                    "relative_costs": [round(cost, 4) for cost in costs],
                    "median_relative_cost": round(statistics.median(costs), 4)}, indent=2))


if __name__ == "__main__":
  main()
