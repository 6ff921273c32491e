"""What saving every 100 steps costs: training time with and without, in turn, on this machine.

  python tests/benchmarks/checkpoint_cost.py [--config phantom] [--every 100] [--saves 3] [--repeats 3] [--config.x.y=v]

The time is that of the steps behind the first save's, so without compilation, and with `saves` whole saves in it (the
last one's writing goes on behind the steps and is waited for). The data must be prepared. Prints JSON.
"""

import argparse
import json
import pathlib
import statistics
import tempfile
import time

from mcsam_jax.config import load_config
from mcsam_jax.training.checkpoint import Checkpoints
from mcsam_jax.training.train import train


def seconds_of(config: str, overrides: list[str], every: int, saves: int, saving: bool) -> float:
  """Returns the seconds of `saves` * `every` steps."""
  steps = (saves + 1) * every
  fields = {"train.num_steps": steps + 1, "train.eval_every": steps + 1, "train.log_every": every,
            "train.eval_studies": 1, "train.checkpoint_every": every if saving else 0}
  shown = {}

  def show(line):
    if line.startswith("step "):
      shown[int(line.split()[1].split("/")[0])] = time.monotonic()

  with tempfile.TemporaryDirectory() as folder:
    train(load_config(config, [*overrides, *(f"--config.{name}={value}" for name, value in fields.items())]),
          str(pathlib.Path(folder) / "run"), show)
    assert not saving or Checkpoints(pathlib.Path(folder) / "run", read_only=True).latest() == steps + 1
  return shown[steps + 1] - shown[every]


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--config", default="phantom")
  parser.add_argument("--every", type=int, default=100, help="steps between two saves (100)")
  parser.add_argument("--saves", type=int, default=3, help="in the time that is measured (3)")
  parser.add_argument("--repeats", type=int, default=3, help="turns, of which the median is taken (3)")
  args, overrides = parser.parse_known_args()
  with_saves, without = [], []
  for _ in range(args.repeats):
    without.append(seconds_of(args.config, overrides, args.every, args.saves, False))
    with_saves.append(seconds_of(args.config, overrides, args.every, args.saves, True))
  cost = statistics.median(with_saves) / statistics.median(without) - 1
  print(json.dumps({"steps": args.every * args.saves, "seconds": without, "seconds_with_saves": with_saves,
                    "cost": round(cost, 4)}, indent=2))


if __name__ == "__main__":
  main()
