"""What saving every 100 steps costs a training, on this machine.

  python tests/benchmarks/checkpoint_cost.py [--config phantom] [--every 100] [--saves 5] [--config.x.y=v]

One run saves every 2 * `every` steps. So of its stretches of `every` steps each second one begins with a save and has
its writing beside it, and the others have none: as the machine's speed drifts, neighbours are compared. The first two
stretches, with compilation and the first save, don't count. The data must be prepared. Prints JSON.
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


def seconds_of_stretches(config: str, overrides: list[str], every: int, saves: int) -> list[float]:
  """Returns the seconds of 2 * `saves` stretches, of which each second one, from the first on, begins with a save."""
  steps = (2 * saves + 2) * every + 1
  fields = {"train.num_steps": steps, "train.eval_every": steps, "train.log_every": every, "train.eval_studies": 1,
            "train.checkpoint_every": 2 * every}
  shown = {}

  def log(line):
    if line.startswith("step "):
      shown[int(line.split()[1].split("/")[0])] = time.monotonic()

  with tempfile.TemporaryDirectory() as folder:
    train(load_config(config, [*overrides, *(f"--config.{name}={value}" for name, value in fields.items())]),
          str(pathlib.Path(folder) / "run"), log)
    assert Checkpoints(pathlib.Path(folder) / "run", read_only=True).latest() == steps
  ends = [shown[number * every] for number in range(2, 2 * saves + 3)]
  return [end - begin for begin, end in zip(ends, ends[1:])]


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--config", default="phantom")
  parser.add_argument("--every", type=int, default=100, help="steps between two saves (100)")
  parser.add_argument("--saves", type=int, default=5, help="that are measured (5)")
  args, overrides = parser.parse_known_args()
  seconds = seconds_of_stretches(args.config, overrides, args.every, args.saves)
  with_save, without = seconds[::2], seconds[1::2]
  # Each save against the mean of the stretches before and behind it; the first has none before.
  costs = [this / statistics.mean(without[max(number - 1, 0):number + 1]) - 1 for number, this in enumerate(with_save)]
  print(json.dumps({"steps_a_stretch": args.every, "seconds_with_a_save": [round(of, 2) for of in with_save],
                    "seconds_without": [round(of, 2) for of in without],
                    "cost_of_each": [round(cost, 4) for cost in costs],
                    "cost": round(statistics.median(costs), 4)}, indent=2))


if __name__ == "__main__":
  main()
