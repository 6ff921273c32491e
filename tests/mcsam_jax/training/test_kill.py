"""Two hosts, of which one is killed again and again, come to the parameters of a run that was left alone.

Each start is `launch/local_hosts.sh 2 mcsam train`: real processes, joined by jax.distributed, collectives by gloo.
MCSAM_KILLS sets how many kills there are; MCSAM_KILL_DIR a folder that keeps data, the compilation cache and the
undisturbed run, so that many can be done in pieces.
"""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
import tensorflow as tf

from mcsam_jax.checkpoints.checkpoint import Checkpoints

ROOT = pathlib.Path(__file__).parents[3]
KILLS = int(os.environ.get("MCSAM_KILLS", "20"))
SEED = int(os.environ.get("MCSAM_KILL_SEED", "0"))
SECONDS = 420                                   # that a start may take, on a machine that does other things too
SMALL = {
    "data.phantom.num_train": 24, "data.phantom.num_val": 8, "data.phantom.num_test": 8, "data.image_size": 32,
    "encoder.name": "resnet_tiny", "encoder.weights": "", "encoder.frozen": False, "model.width": 16,
    "model.feedforward_width": 16, "model.num_heads": 2, "model.encoder_layers": 0, "model.decoder_layers": 1,
    "model.num_memory_tokens": 2, "data.augment": True, "optimizer.ema_decay": 0.9, "memory.num_heads": 2, "memory.num_slots": 12,
    "memory.slot_width": 8, "memory.top_k": 3, "memory_init.kind": "random", "tokenizer.threshold": 1,
    "tokenizer.max_length": 12, "train.batch_size": 8, "train.num_steps": 60, "train.eval_every": 25,
    "train.checkpoint_every": 3, "train.log_every": 1, "train.eval_studies": 8, "train.host_threads": 1,
    "train.best_metric": "", "optimizer.warmup_steps": 5, "decode.batch_size": 8, "decode.beam_size": 2,
    "eval.num_permutations": 2,
}
pytestmark = pytest.mark.slow


def environment(base, devices, float64=False) -> dict[str, str]:
  """Returns that of a host; little is optimised, so that compiling takes seconds, and kept for the next start."""
  return os.environ | {
      "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]), "PYTHONUNBUFFERED": "1",
      "JAX_PLATFORMS": "cpu", "DEVICES_PER_HOST": str(devices), "JAX_NUM_CPU_DEVICES": str(devices), "GRACE": "3",
      "JAX_COMPILATION_CACHE_DIR": str(base / "xla"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
      "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "JAX_ENABLE_X64": str(int(float64))}


class Run:
  """A start of `mcsam train` whose lines of output are read as they come."""

  def __init__(self, base, workdir, hosts=2, devices=1, verb="train", environ=None, **changes):
    fields = SMALL | {"data.data_dir": base / "data"}
    fields |= {name.replace("__", "."): value for name, value in changes.items()}
    config = ["--config", "phantom"] if verb != "evaluate" else []
    workdir = ["--workdir", str(base / workdir)] if verb != "prepare" else []
    overrides = [f"--config.{field}={value}" for field, value in fields.items()] if verb != "evaluate" else []
    launcher = ["bash", str(ROOT / "launch" / "local_hosts.sh"), str(hosts)] if hosts > 1 else []
    self.output = tempfile.NamedTemporaryFile("w+", delete=False)
    self.process = subprocess.Popen(
        [*launcher, sys.executable, "-m", "mcsam_jax", verb, *config, *workdir, *overrides],
        env=environment(base, devices, fields.get("train.compute_dtype") == "float64") | (environ or {}),
        stdout=self.output, stderr=subprocess.STDOUT, start_new_session=True)

  @property
  def text(self) -> str:
    return pathlib.Path(self.output.name).read_text()

  def hosts(self) -> list[int]:
    """Returns the process ids of the hosts."""
    found = subprocess.run(["pgrep", "-P", str(self.process.pid), "-f", "mcsam_jax"], capture_output=True, text=True)
    return [int(line) for line in found.stdout.split()]

  def wait_for(self, ready) -> bool:
    """Returns whether ready() was so before the run ended."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
      if ready():
        return True
      if self.process.poll() is not None:
        return False
      time.sleep(0.002)
    os.killpg(self.process.pid, signal.SIGKILL)
    raise TimeoutError(self.text)

  def end(self) -> int:
    try:
      return self.process.wait(SECONDS)
    except subprocess.TimeoutExpired:
      self.process.terminate()
      raise


def finished(base, workdir, **arguments) -> str:
  run = Run(base, workdir, **arguments)
  status = run.end()
  assert status == 0, run.text
  return run.text


def last_state(workdir) -> dict:
  manager = Checkpoints(workdir, read_only=True).manager
  here = jax.sharding.SingleDeviceSharding(jax.devices()[0])         # whatever devices it was saved from
  return jax.tree.map(np.asarray, manager.restore(manager.latest_step(), args=ocp.args.StandardRestore(
      fallback_sharding=here)))


def losses(workdir) -> dict[int, float]:
  """Returns the loss of each step, as it was logged."""
  logs = EventAccumulator(str(workdir / "logs"), size_guidance={"tensors": 0}).Reload()
  return {event.step: float(tf.make_ndarray(event.tensor_proto)) for event in logs.Tensors("train/loss")}


def assert_equal(workdir, other):
  ours, theirs = last_state(workdir), last_state(other)
  assert ours["step"] == theirs["step"] == SMALL["train.num_steps"]
  jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
  """A folder with data and the run `whole` of two hosts that nobody disturbed."""
  base = pathlib.Path(os.environ.get("MCSAM_KILL_DIR") or tmp_path_factory.mktemp("kill"))
  if not (base / "whole" / "checkpoints" / str(SMALL["train.num_steps"]) / "manifest.json").exists():
    finished(base, "", verb="prepare", hosts=1)
    finished(base, "whole")
  return base


def test_killed_at_random_moments_it_comes_to_the_same_parameters_bit_for_bit(base):
  rng, workdir, killed = random.Random(SEED), None, 0
  while killed < KILLS:
    if workdir is None:
      workdir = base / f"killed-{SEED}-{killed}"
    run = Run(base, workdir.name)
    victim, moment = rng.randrange(2), rng.choice(["while it starts", "between", "while it saves"])
    if moment == "while it saves":
      count = rng.randrange(1, 4)
      seen = set()
      def ready():
        seen.update(workdir.glob("checkpoints/*tmp*"))
        return len(seen) >= count
      ended = not run.wait_for(ready)
      delay = rng.uniform(0, 0.2)
    elif moment == "between":
      ended = not run.wait_for(lambda: "\nstep " in run.text)
      delay = rng.uniform(0, 4)
    else:
      ended = not run.wait_for(lambda: len(run.hosts()) == 2)
      delay = rng.uniform(0, 15)
    time.sleep(delay)
    hosts = run.hosts()
    if ended or len(hosts) < 2:
      assert run.end() == 0, run.text
      assert_equal(base / "whole", workdir)
      workdir = None
      continue
    os.kill(hosts[victim], signal.SIGKILL)
    begun = time.monotonic()
    assert run.end() not in (0, 75), run.text
    killed += 1
    lines = [line for line in run.text.splitlines() if line.startswith(("resumed", "step ", "checkpoint "))]
    first, last = (lines[0], lines[-1].split("  ")[0]) if lines else ("no step", "-")
    print(f"kill {killed}: host {victim} {moment} (+{delay:.2f} s), {first}, last {last}; "
          f"the other ended after {time.monotonic() - begun:.1f} s", flush=True)
  if workdir is not None:
    finished(base, workdir.name)
    assert_equal(base / "whole", workdir)


@pytest.mark.parametrize("to", ["host 0", "host 1", "all", "host 1 in val", "host 0 twice", "one machine twice"])
def test_sigterm_loses_no_step(base, to):
  name, hosts = f"terminated {to}".replace(" ", "-"), 1 if "machine" in to else 2
  subprocess.run(["rm", "-rf", str(base / name)], check=True)
  run = Run(base, name, hosts=hosts)
  sign = "\nstep 25/" if "val" in to else "\nstep 7/"
  assert run.wait_for(lambda: sign in run.text), run.text
  if to == "all":
    run.process.terminate()                                # the launcher passes it on
  else:
    victim = run.process.pid if hosts == 1 else run.hosts()[int(to.split()[1])]
    for _ in range(1 + ("twice" in to)):
      os.kill(victim, signal.SIGTERM)
      time.sleep(0.05)
  assert run.end() == 75, run.text
  steps = [int(line.split()[1].split("/")[0]) for line in run.text.splitlines() if line.startswith("step ")]
  assert f"stopped at step {steps[-1]}/" in run.text, run.text
  print(to, "stopped at step", steps[-1])
  rest = finished(base, name, hosts=hosts)
  assert f"resumed at step {steps[-1]}\n" in rest, rest
  assert ("  val  " in rest.split("step ")[1]) == ("val" in to and "  val  " not in run.text)
  if hosts == 2:                                           # one machine sums in another order
    assert_equal(base / "whole", base / name)


def test_sigterm_while_decoding_leaves_nothing_half_written(base):
  for hosts in (2, 1):
    run = Run(base, "whole", verb="evaluate", hosts=hosts)
    assert run.wait_for(lambda: "writing 8 reports" in run.text), run.text
    os.kill(run.hosts()[hosts - 1] if hosts > 1 else run.process.pid, signal.SIGTERM)
    assert run.end() == 75, run.text
    assert not list((base / "whole").glob("eval/test-*")) and not list((base / "whole").glob("**/*.unfinished"))


def test_two_hosts_write_the_reports_of_one(base):
  lines = []
  for hosts in (2, 1):
    finished(base, "whole", verb="evaluate", hosts=hosts)
    table = base / "whole" / "eval" / f"test-{SMALL['train.num_steps']}.jsonl"
    lines.append(table.read_text().splitlines())
    table.unlink()
    table.with_suffix(".json").unlink()
  assert len(lines[0]) == len(lines[1]) == 8
  for ours, theirs in zip(*(map(json.loads, side) for side in lines)):
    assert ours["id"] == theirs["id"] and ours["generated"] == theirs["generated"]


@pytest.mark.parametrize("compute_dtype, ten_steps, limit", [("float64", 1e-6, 1e-10), ("float32", 1e-4, 5e-3)])
def test_saved_on_eight_devices_it_goes_on_on_two_and_on_one(base, compute_dtype, ten_steps, limit):
  """In float64 as if nothing had happened; in float32 with what 53 steps of AdamW make of rounding.

  Ten steps' losses (logged in float32), and all parameters at the end.
  """
  eight, two, one, whole = (f"{name}-{compute_dtype}" for name in ("eight", "two", "one", "whole"))
  subprocess.run(["rm", "-rf", *(str(base / name) for name in (eight, two, one, whole))], check=True)
  typed = {"train__compute_dtype": compute_dtype}
  finished(base, whole, **typed)
  run = Run(base, eight, hosts=2, devices=4, **typed)
  assert run.wait_for(lambda: "\nstep 7/" in run.text), run.text
  run.process.terminate()
  assert run.end() == 75, run.text
  for name in (two, one):
    subprocess.run(["cp", "-r", str(base / eight), str(base / name)], check=True)
  with jax.enable_x64(compute_dtype == "float64"):
    expected = last_state(base / whole)
    for name, devices in ((two, 2), (one, 1)):
      assert "resumed at step " in finished(base, name, hosts=1, devices=devices, **typed)
      found = last_state(base / name)
      assert found["step"] == expected["step"] == SMALL["train.num_steps"]
      ours, theirs = losses(base / name), losses(base / whole)
      resumed = max(int(path.name) for path in (base / eight / "checkpoints").iterdir() if path.name.isdigit())
      differences = [abs(ours[step] / theirs[step] - 1) for step in range(resumed + 1, resumed + 11)]
      print(f"{name}: largest relative difference of ten losses", max(differences))
      assert max(differences) < ten_steps
      worst = max(np.abs(a - b).max() for a, b in zip(
          jax.tree.leaves(found["params"]), jax.tree.leaves(expected["params"]), strict=True))
      print(f"{name}: largest difference of a parameter", worst)
      assert all(leaf.dtype == compute_dtype for leaf in jax.tree.leaves(found["params"])) and worst < limit


def test_a_host_that_died_ends_the_other_within_its_heartbeat(base):
  """Without the launcher's help: each host is a process of its own."""
  program = ("import sys; from mcsam_jax.training import hosts; hosts.HEARTBEAT_SECONDS = 10; "
             "from mcsam_jax import cli; sys.exit(cli.main())")
  for victim in (0, 1):
    subprocess.run(["rm", "-rf", str(base / "deserted")], check=True)
    fields = SMALL | {"data.data_dir": base / "data", "train.num_steps": 100_000}
    port = str(random.randrange(20_000, 32_000))
    started = [subprocess.Popen(
        [sys.executable, "-c", program, "train", "--config", "phantom", "--workdir", str(base / "deserted"),
         *(f"--config.{field}={value}" for field, value in fields.items())],
        env=environment(base, 1) | {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": "2",
                                    "JAX_PROCESS_ID": str(host)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for host in range(2)]
    for line in started[0].stdout:
      if line.startswith("step 7/"):
        break
    started[victim].kill()
    begun = time.monotonic()
    text, _ = started[1 - victim].communicate(timeout=120)
    seconds = time.monotonic() - begun
    print(f"host {victim} died, the other left after {seconds:.1f} s with {started[1 - victim].returncode}: "
          f"{text.strip().splitlines()[-1][:200]}")
    assert started[1 - victim].returncode not in (0, 75) and seconds < 60 and text.strip()
