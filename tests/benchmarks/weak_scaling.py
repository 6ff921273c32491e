"""Two hosts of one core each against one host of one core: examples a second, in turn, on this machine (Linux).

  python tests/benchmarks/weak_scaling.py [--studies 16] [--steps 2] [--repeats 2] [--config.x.y=v]

Each host trains ResNet-50 and all behind it on `studies` phantoms of one view, so two hosts do twice the work a step
and sum their gradients over gloo. What is timed are `steps` steps behind as many others, with the norms of the loss
terms, which a run logs with the last of them, by the clock of whoever started the hosts. Two hosts that train apart, at
the same time, show what the machine itself allows: its cores share memory and caches. Prints JSON; a step takes half a
minute and longer.
"""

import argparse
import concurrent.futures
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
          "data.image_size": 224, "memory_init.kind": "random", "optimizer.warmup_steps": 1,
          "train.eval_every": 10**6, "train.eval_studies": 1, "data.phantom.num_train": 200, "data.phantom.num_val": 2,
          "data.phantom.num_test": 2}


def mcsam(verb: str, fields: dict, core: int, workdir: str | None = None, **environment: str) -> subprocess.Popen:
  """Starts a verb that may use one core."""
  arguments = [f"--config.{name}={value}" for name, value in fields.items()] + (["--workdir", workdir] if workdir else [])
  return subprocess.Popen(
      [sys.executable, "-u", "-m", "mcsam_jax", verb, "--config", "phantom", *arguments], text=True,
      stdout=subprocess.PIPE, env=os.environ | {"JAX_PLATFORMS": "cpu"} | environment,
      preexec_fn=lambda: os.sched_setaffinity(0, {core}))


def examples_per_second(hosts: int, studies: int, steps: int, fields: dict, cores: list[int], cache: str,
                        joined: bool = True) -> float:
  """Returns the rate of hosts that train together or, not `joined`, each for itself at the same time."""
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  cluster = {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": str(hosts)}
  joined = joined and hosts > 1
  fields = fields | {"train.batch_size": (hosts if joined else 1) * studies, "train.num_steps": 2 * steps,
                     "train.log_every": steps}
  with tempfile.TemporaryDirectory() as folder:
    started = [mcsam("train", fields, cores[host], f"{folder}/{0 if joined else host}",
                     JAX_COMPILATION_CACHE_DIR=f"{cache}/{host}",
                     **(cluster | {"JAX_PROCESS_ID": str(host)} if joined else {})) for host in range(hosts)]
    logging = started[:1] if joined else started
    with concurrent.futures.ThreadPoolExecutor(hosts) as pool:
      seconds = list(pool.map(seconds_between_logs, logging))
    for process in started:
      process.kill()
      process.wait()
  if None in seconds:
    sys.exit(f"{hosts} host(s) left before step {2 * steps}; the message stands above")
  rate = sum(hosts / len(logging) * studies * steps / each for each in seconds)
  print(f"{hosts} host(s){'' if joined or hosts == 1 else ' apart'}: {rate:.3f} examples a second", file=sys.stderr,
        flush=True)
  return rate


def seconds_between_logs(process: subprocess.Popen) -> float | None:
  """Returns the time between a run's first two logged steps; what follows, a look at val and a checkpoint, isn't in it."""
  arrived = []
  for line in process.stdout:
    if line.startswith("step "):
      arrived.append(time.monotonic())
    if len(arrived) == 2:
      return arrived[1] - arrived[0]
  return None


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--studies", type=int, default=16, help="of each host and step (16)")
  parser.add_argument("--steps", type=int, default=2, help="that are timed, behind as many that aren't (2)")
  parser.add_argument("--repeats", type=int, default=2, help="turns, of which the median is taken (2)")
  args, overrides = parser.parse_known_args()
  cores = sorted(os.sched_getaffinity(0))
  if len(cores) < 2:
    sys.exit("this comparison takes two cores")
  with tempfile.TemporaryDirectory() as data, tempfile.TemporaryDirectory() as cache:      # programs: compiled once
    fields = FIELDS | {"data.data_dir": data} | dict(
        override.removeprefix("--config.").split("=", 1) for override in overrides)
    if mcsam("prepare", fields, cores[0]).wait():
      sys.exit("mcsam prepare failed; its message stands above")
    one, two, apart = [], [], []
    for _ in range(args.repeats):
      for rates, hosts, joined in ((one, 1, False), (two, 2, True), (apart, 2, False)):
        rates.append(examples_per_second(hosts, args.studies, args.steps, fields, cores, cache, joined))
  one_host, two_hosts, two_apart = map(statistics.median, (one, two, apart))
  print(json.dumps({"studies_a_host": args.studies, "one_host": one, "two_hosts": two, "two_hosts_apart": apart,
                    "ratio": round(two_hosts / one_host, 3), "ratio_apart": round(two_apart / one_host, 3)}, indent=2))


if __name__ == "__main__":
  main()
