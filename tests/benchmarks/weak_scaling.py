"""Measures weak scaling: training throughput of two single-core hosts relative to one (Linux, CPU).

  python tests/benchmarks/weak_scaling.py [--studies 16] [--steps 1] [--repeats 4] [--config.x.y=v]

Each host trains ResNet-50 and the complete network after it on `studies` random images of 224 px per step, so two hosts
do twice the work per step; they sum their gradients over gloo. The same two processes run all rounds. Each of the
`repeats` rounds measures three setups, one after the other:

  single       host 0 trains alone for `steps` steps while host 1 waits
  independent  both hosts train at the same time, independently of each other. This is the most that the machine allows,
               because its cores share memory and caches
  joint        both hosts take the steps of one training run

The machine's speed drifts, so each setup is compared with `single` of the same round, and the median of these ratios
over the rounds is reported. `independent_in_step` is what `independent` would reach if each host waited for the slower
one, as hosts that sum their gradients must. Input is not included: batches are on the devices before a step begins.
Prints JSON, with the wall-clock and CPU seconds of each host. A round takes about two minutes, and compiling the
programs beforehand about five.
"""

import argparse
from collections.abc import Callable, Sequence
import json
import os
import socket
import statistics
import subprocess
import sys
import time

FIELDS = {"encoder.name": "resnet50", "encoder.weights": "", "encoder.frozen": False, "data.num_views": 1,
          "data.image_size": 224, "memory_init.kind": "random", "optimizer.warmup_steps": 1}
VOCAB_SIZE, EOS = 106, 2
SETUPS = ("single", "independent", "joint")
NUM_HOSTS = 2


def main() -> None:
  parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
  parser.add_argument("--studies", type=int, default=16, help="studies per host and step (default: 16)")
  parser.add_argument("--steps", type=int, default=1, help="steps per setup and round (default: 1)")
  parser.add_argument("--repeats", type=int, default=4, help="rounds; the median is reported (default: 4)")
  args, overrides = parser.parse_known_args()
  if "JAX_PROCESS_ID" in os.environ:
    seconds = measure(args, overrides)
    if os.environ["JAX_PROCESS_ID"] == "0":
      print(json.dumps(summarize(seconds, args.steps * args.studies), indent=2))
    return
  cores = sorted(os.sched_getaffinity(0))
  if len(cores) < NUM_HOSTS:
    sys.exit(f"weak_scaling.py: this process may use {len(cores)} CPU core; expected at least {NUM_HOSTS}, "
             "one per host")
  with socket.socket() as free_port:
    free_port.bind(("localhost", 0))
    port = free_port.getsockname()[1]
  processes = [subprocess.Popen(
      [sys.executable, __file__, *sys.argv[1:]], preexec_fn=lambda core=cores[host]: os.sched_setaffinity(0, {core}),
      env=os.environ | {"JAX_PLATFORMS": "cpu", "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
                        "JAX_NUM_PROCESSES": str(NUM_HOSTS), "JAX_PROCESS_ID": str(host)})
      for host in range(NUM_HOSTS)]
  sys.exit(max(process.wait() for process in processes))


def summarize(seconds: dict[str, list], num_examples: int) -> dict:
  """Returns examples per second and their ratios to `single`.

  Args:
    seconds: as returned by `measure`.
    num_examples: number of examples that each host processes per setup and round.
  """
  wall = {setup: [[host[0] for host in hosts] for hosts in rounds] for setup, rounds in seconds.items()}
  throughput = {"single": [num_examples / hosts[0] for hosts in wall["single"]],
                "independent": [sum(num_examples / host for host in hosts) for hosts in wall["independent"]],
                "independent_in_step": [NUM_HOSTS * num_examples / max(hosts) for hosts in wall["independent"]],
                "joint": [NUM_HOSTS * num_examples / max(hosts) for hosts in wall["joint"]]}
  return {"wall_and_cpu_seconds": seconds,
          "examples_per_second": {setup: [round(rate, 4) for rate in rates] for setup, rates in throughput.items()},
          "median_ratio": {setup: round(statistics.median(rate / single
                                                          for rate, single in zip(rates, throughput["single"])), 3)
                           for setup, rates in throughput.items()}}


def measure(args: argparse.Namespace, overrides: list[str]) -> dict[str, list]:
  """Returns for each setup, round and host [wall-clock seconds, CPU seconds]."""
  import jax
  from jax.experimental import multihost_utils
  import numpy as np

  from mcsam_jax.distributed import multihost
  multihost.initialize()
  independent, joint = (make_trainer(args.studies, overrides, devices)
                        for devices in (jax.local_devices(), jax.devices()))
  trainers = {"single": independent if jax.process_index() == 0 else None, "independent": independent, "joint": joint}
  for trainer in (independent, joint):
    trainer()                                                       # compiles
  seconds = {setup: [] for setup in SETUPS}
  for index in range(args.repeats):
    for setup, trainer in trainers.items():
      multihost_utils.sync_global_devices(f"{setup} {index}")
      wall_start, cpu_start = time.monotonic(), time.process_time()
      if trainer:
        for _ in range(args.steps):
          trainer()
      local_seconds = np.array([time.monotonic() - wall_start, time.process_time() - cpu_start])
      seconds[setup].append([[round(value, 2) for value in host]
                             for host in multihost_utils.process_allgather(local_seconds).tolist()])
      if jax.process_index() == 0:
        print(f"round {index + 1}, {setup}: {seconds[setup][-1]}", file=sys.stderr, flush=True)
  return seconds


def make_trainer(studies_per_device: int, overrides: list[str], devices: Sequence) -> Callable[[], None]:
  """Returns a blocking function that takes one training step on `devices`."""
  import jax
  import numpy as np

  from input_pipeline.batch import empty_batch
  from mcsam_jax.config import load_config
  from mcsam_jax.distributed.mesh import local_rows, make_mesh, replicated, shard_batch, state_shardings
  from mcsam_jax.models.initialize import make_model
  from mcsam_jax.training.train_state import init_train_state
  from mcsam_jax.training.train_step import make_train_step
  batch_size = studies_per_device * len(devices)
  config = load_config("phantom", [*(f"--config.{name}={value}" for name, value in FIELDS.items()),
                                   f"--config.train.batch_size={batch_size}", *overrides])
  image_size, length, num_views = config.data.image_size, config.tokenizer.max_length, config.data.num_views
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (batch_size, num_views, image_size, image_size, 1)).astype(np.uint8)
  tokens = rng.integers(3, VOCAB_SIZE, (batch_size, length + 1)).astype(np.int32)
  batch = empty_batch(config, batch_size) | {
      "images": images, "tokens": tokens, "record": np.arange(batch_size, dtype=np.int32)}
  mesh = make_mesh(config, devices)
  with jax.set_mesh(mesh):
    model = make_model(config, VOCAB_SIZE, image_size // 32)
    init = lambda: init_train_state(model, config, {name: array[:1] for name, array in batch.items()})
    shardings = state_shardings(mesh, jax.eval_shape(init))
    state = jax.jit(init, out_shardings=shardings)()
    rows = local_rows(mesh, batch_size)
    local_batch = shard_batch(mesh, {name: array[rows] for name, array in batch.items()})
    step = jax.jit(make_train_step(model, config, EOS), donate_argnums=0, out_shardings=(shardings, replicated(mesh)))

  def train_one_step() -> None:
    nonlocal state
    with jax.set_mesh(mesh):
      state, metrics = jax.block_until_ready(step(state, local_batch))
    assert np.isfinite(float(metrics["loss"]))
  return train_one_step


if __name__ == "__main__":
  main()
