"""Two hosts of one core each against one host of one core: examples a second of a training step (Linux, CPU).

  python tests/benchmarks/weak_scaling.py [--studies 16] [--steps 1] [--turns 4] [--config.x.y=v]

Each host trains ResNet-50 and all behind it on `studies` made-up images of 224 px, so two hosts do twice the work a
step and sum their gradients over gloo. Two processes live through all turns. In each turn, one after the other:

  one     host 0 takes `steps` steps by itself while host 1 waits
  apart   both do, each by itself, at the same time: what the machine allows, whose cores share memory and caches
  two     both take the steps of one training

A machine's speed drifts, so each arm is compared with `one` of its own turn, and the median of the turns' ratios is
given; `apart_in_step` is what `apart` would give if each host waited for the slower one, as hosts that sum their
gradients must. Input isn't in it: batches are there when a step begins. Prints JSON, with the seconds of each host, by
the clock and of its processor; a turn takes some two minutes, the programs' compilation before the first five.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time

FIELDS = {"encoder.name": "resnet50", "encoder.weights": "", "encoder.frozen": False, "data.num_views": 1,
          "data.image_size": 224, "memory_init.kind": "random", "optimizer.warmup_steps": 1}
VOCABULARY, EOS = 106, 2
ARMS = ("one", "apart", "two")
HOSTS = 2


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--studies", type=int, default=16, help="of each host and step (16)")
  parser.add_argument("--steps", type=int, default=1, help="of each arm and turn (1)")
  parser.add_argument("--turns", type=int, default=4, help="of which the median is taken (4)")
  args, overrides = parser.parse_known_args()
  if "JAX_PROCESS_ID" in os.environ:
    seconds = measure(args, overrides)
    if os.environ["JAX_PROCESS_ID"] == "0":
      print(json.dumps(summary(seconds, args.steps * args.studies), indent=2))
    return
  cores = sorted(os.sched_getaffinity(0))
  if len(cores) < HOSTS:
    sys.exit("this comparison takes two cores")
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  hosts = [subprocess.Popen(
      [sys.executable, __file__, *sys.argv[1:]], preexec_fn=lambda core=cores[host]: os.sched_setaffinity(0, {core}),
      env=os.environ | {"JAX_PLATFORMS": "cpu", "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
                        "JAX_NUM_PROCESSES": str(HOSTS), "JAX_PROCESS_ID": str(host)}) for host in range(HOSTS)]
  sys.exit(max(host.wait() for host in hosts))


def summary(seconds: dict[str, list], examples: int) -> dict:
  """Returns examples a second and ratios of what `measure` returns, where each host works on `examples` a turn."""
  clock = {arm: [[host[0] for host in turn] for turn in turns] for arm, turns in seconds.items()}
  rates = {"one": [examples / turn[0] for turn in clock["one"]],
           "apart": [sum(examples / host for host in turn) for turn in clock["apart"]],
           "apart_in_step": [HOSTS * examples / max(turn) for turn in clock["apart"]],
           "two": [HOSTS * examples / max(turn) for turn in clock["two"]]}
  return {"seconds_and_processor_seconds": seconds,
          "examples_a_second": {arm: [round(rate, 4) for rate in of] for arm, of in rates.items()},
          "ratio": {arm: round(statistics.median(rate / one for rate, one in zip(of, rates["one"])), 3)
                    for arm, of in rates.items()}}


def measure(args, overrides: list[str]) -> dict[str, list]:
  """Returns for each arm, turn and host [seconds, seconds of its processor]."""
  import jax
  from jax.experimental import multihost_utils
  import numpy as np

  from mcsam_jax.distributed import multihost
  multihost.initialize()
  alone, joint = (make_trainer(args.studies, overrides, devices) for devices in (jax.local_devices(), jax.devices()))
  trainers = {"one": alone if jax.process_index() == 0 else None, "apart": alone, "two": joint}
  for trainer in (alone, joint):
    trainer()                                                       # compiles
  seconds = {arm: [] for arm in ARMS}
  for turn in range(args.turns):
    for arm, trainer in trainers.items():
      multihost_utils.sync_global_devices(f"{arm} {turn}")
      clock, processor = time.monotonic(), time.process_time()
      for _ in range(args.steps if trainer else 0):
        trainer()
      mine = np.array([time.monotonic() - clock, time.process_time() - processor])
      seconds[arm].append([[round(value, 2) for value in host]
                           for host in multihost_utils.process_allgather(mine).tolist()])
      if jax.process_index() == 0:
        print(f"turn {turn + 1}, {arm}: {seconds[arm][-1]}", file=sys.stderr, flush=True)
  return seconds


def make_trainer(studies: int, overrides: list[str], devices):
  """Returns what takes a training step of `studies` a device of `devices`, and waits until it is done."""
  import jax
  import numpy as np

  from input_pipeline.batch import empty_batch
  from mcsam_jax.config import load_config
  from mcsam_jax.distributed.mesh import local_rows, make_mesh, replicated, shard_batch, state_shardings
  from mcsam_jax.models.initialize import make_model
  from mcsam_jax.training.train_state import init_train_state
  from mcsam_jax.training.train_step import make_train_step
  size = studies * len(devices)
  config = load_config("phantom", [*(f"--config.{name}={value}" for name, value in FIELDS.items()),
                                   f"--config.train.batch_size={size}", *overrides])
  side, length, views = config.data.image_size, config.tokenizer.max_length, config.data.num_views
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (size, views, side, side, 1)).astype(np.uint8)
  tokens = rng.integers(3, VOCABULARY, (size, length + 1)).astype(np.int32)
  batch = empty_batch(config, size) | {"images": images, "tokens": tokens, "record": np.arange(size, dtype=np.int32)}
  mesh = make_mesh(config, devices)
  with jax.set_mesh(mesh):
    model = make_model(config, VOCABULARY, side // 32)
    start = lambda: init_train_state(model, config, {name: array[:1] for name, array in batch.items()})
    shardings = state_shardings(mesh, jax.eval_shape(start))
    state = jax.jit(start, out_shardings=shardings)()
    rows = local_rows(mesh, size)
    mine = shard_batch(mesh, {name: array[rows] for name, array in batch.items()})
    step = jax.jit(make_train_step(model, config, EOS), donate_argnums=0, out_shardings=(shardings, replicated(mesh)))

  def take_a_step() -> None:
    nonlocal state
    with jax.set_mesh(mesh):
      state, metrics = jax.block_until_ready(step(state, mine))
    assert np.isfinite(float(metrics["loss"]))
  return take_a_step


if __name__ == "__main__":
  main()
