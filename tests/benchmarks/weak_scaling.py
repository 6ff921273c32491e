"""Two hosts of one core each against one host of one core: examples a second, in turn, on this machine (Linux).

  python tests/benchmarks/weak_scaling.py [--studies 16] [--steps 4] [--repeats 3] [--config.x.y=v]

Each host trains ResNet-50 and all behind it on `studies` phantoms of one view, so two hosts do twice the work a step
and sum their gradients over gloo. The time is that between the results of the first step and the last, by the clock of
whoever started them. Prints JSON.
"""

import argparse
import json
import os
import pathlib
import socket
import statistics
import subprocess
import sys
import tempfile
import time

FIELDS = {"encoder.name": "resnet50", "encoder.weights": "", "encoder.frozen": False, "data.num_views": 1,
          "data.image_size": 224, "memory_init.kind": "random", "optimizer.warmup_steps": 1, "train.log_every": 1,
          "train.eval_every": 10**6, "train.eval_studies": 1, "data.phantom.num_train": 200, "data.phantom.num_val": 2,
          "data.phantom.num_test": 2}


def mcsam(verb: str, fields: dict, core: int, workdir: str | None = None, **environment: str) -> subprocess.Popen:
  """Starts a verb that may use one core."""
  arguments = [f"--config.{name}={value}" for name, value in fields.items()] + (["--workdir", workdir] if workdir else [])
  return subprocess.Popen(
      [sys.executable, "-u", "-m", "mcsam_jax", verb, "--config", "phantom", *arguments], text=True,
      stdout=subprocess.PIPE, env=os.environ | {"JAX_PLATFORMS": "cpu"} | environment,
      preexec_fn=lambda: os.sched_setaffinity(0, {core}))


def examples_per_second(hosts: int, studies: int, steps: int, fields: dict, cores: list[int]) -> float:
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  fields = fields | {"train.batch_size": hosts * studies, "train.num_steps": steps + 1}
  with tempfile.TemporaryDirectory() as folder:
    started = [mcsam("train", fields, cores[host], f"{folder}/run", **({} if hosts == 1 else {
        "JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": str(hosts), "JAX_PROCESS_ID": str(host)}))
        for host in range(hosts)]
    arrived = []
    for line in started[0].stdout:
      if line.startswith("step "):
        arrived.append(time.monotonic())
      if len(arrived) == steps + 1:                  # what follows, a look at val and a checkpoint, isn't timed
        break
    for process in started:
      process.kill()
      process.wait()
  if len(arrived) < steps + 1:
    sys.exit(f"{hosts} host(s) left after {len(arrived)} of {steps + 1} steps; its message stands above")
  rate = hosts * studies * steps / (arrived[-1] - arrived[0])
  print(f"{hosts} host(s): {rate:.3f} examples a second", file=sys.stderr, flush=True)
  return rate


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--studies", type=int, default=16, help="of each host and step (16)")
  parser.add_argument("--steps", type=int, default=4, help="that are timed, behind a first one (4)")
  parser.add_argument("--repeats", type=int, default=3, help="turns, of which the median is taken (3)")
  args, overrides = parser.parse_known_args()
  cores = sorted(os.sched_getaffinity(0))
  if len(cores) < 2:
    sys.exit("this comparison takes two cores")
  with tempfile.TemporaryDirectory() as data:
    fields = FIELDS | {"data.data_dir": data} | dict(
        override.removeprefix("--config.").split("=", 1) for override in overrides)
    if mcsam("prepare", fields, cores[0]).wait():
      sys.exit("mcsam prepare failed; its message stands above")
    one, two = [], []
    for _ in range(args.repeats):
      one.append(examples_per_second(1, args.studies, args.steps, fields, cores))
      two.append(examples_per_second(2, args.studies, args.steps, fields, cores))
  print(json.dumps({"studies_a_host": args.studies, "one_host": one, "two_hosts": two,
                    "ratio": round(statistics.median(two) / statistics.median(one), 3)}, indent=2))


if __name__ == "__main__":
  main()
