"""Runs on two hosts that are killed or stopped at random moments end in the same state as an uninterrupted run.

MCSAM_KILLS sets the number of kills. MCSAM_KILL_DIR names a folder that keeps the data, the compilation cache and the
uninterrupted run, so that a large number of kills can be split over several calls.
"""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
import tensorflow as tf

from tests.testing.training_run import (
  assert_same_final_state,
  FIELDS,
  make_environment,
  NUM_STEPS,
  read_last_state,
  run_to_end,
  TrainingRun,
)

NUM_KILLS = int(os.environ.get("MCSAM_KILLS", "20"))
SEED = int(os.environ.get("MCSAM_KILL_SEED", "0"))
pytestmark = pytest.mark.slow


def read_losses(workdir) -> dict[int, float]:
  """Returns the logged loss of each step."""
  logs = EventAccumulator(str(workdir / "logs"), size_guidance={"tensors": 0}).Reload()
  return {event.step: float(tf.make_ndarray(event.tensor_proto)) for event in logs.Tensors("train/loss")}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
  """Returns a folder with data and an uninterrupted run of two hosts in the workdir `uninterrupted`."""
  base = pathlib.Path(os.environ.get("MCSAM_KILL_DIR") or tmp_path_factory.mktemp("kill"))
  if not (base / "uninterrupted" / "checkpoints" / str(NUM_STEPS) / "manifest.json").exists():
    run_to_end(base, "", verb="prepare", num_hosts=1)
    run_to_end(base, "uninterrupted")
  return base


def test_a_run_killed_at_random_moments_ends_in_the_same_state_bit_for_bit(base):
  rng, workdir, num_killed = random.Random(SEED), None, 0
  while num_killed < NUM_KILLS:
    if workdir is None:
      workdir = base / f"killed-{SEED}-{num_killed}"
    run = TrainingRun(base, workdir.name)
    victim, moment = rng.randrange(2), rng.choice(["while starting", "while training", "while saving"])
    if moment == "while saving":
      num_saves, saves = rng.randrange(1, 4), set()

      def is_saving():
        saves.update(workdir.glob("checkpoints/*tmp*"))
        return len(saves) >= num_saves
      ended = not run.wait_until(is_saving)
      delay = rng.uniform(0, 0.2)
    elif moment == "while training":
      ended = not run.wait_until(lambda: "\nstep " in run.text)
      delay = rng.uniform(0, 4)
    else:
      ended = not run.wait_until(lambda: len(run.host_pids()) == 2)
      delay = rng.uniform(0, 15)
    time.sleep(delay)
    pids = run.host_pids()
    if ended or len(pids) < 2:
      assert run.wait() == 0, run.text
      assert_same_final_state(base / "uninterrupted", workdir)
      workdir = None
      continue
    os.kill(pids[victim], signal.SIGKILL)
    killed_at = time.monotonic()
    assert run.wait() not in (0, 75), run.text
    num_killed += 1
    lines = [line for line in run.text.splitlines() if line.startswith(("resumed", "step ", "checkpoint "))]
    first, last = (lines[0], lines[-1].split("  ")[0]) if lines else ("no step", "-")
    print(f"kill {num_killed}: host {victim} {moment} (+{delay:.2f} s), {first}, last {last}; "
          f"the other host ended after {time.monotonic() - killed_at:.1f} s", flush=True)
  if workdir is not None:
    run_to_end(base, workdir.name)
    assert_same_final_state(base / "uninterrupted", workdir)


@pytest.mark.parametrize("to", ["host 0", "host 1", "all", "host 1 in val", "host 0 twice", "one machine twice"])
def test_sigterm_loses_no_step(base, to):
  name, num_hosts = f"terminated {to}".replace(" ", "-"), 1 if "machine" in to else 2
  subprocess.run(["rm", "-rf", str(base / name)], check=True)
  run = TrainingRun(base, name, num_hosts=num_hosts)
  last_line = "\nstep 25/" if "val" in to else "\nstep 7/"
  assert run.wait_until(lambda: last_line in run.text), run.text
  if to == "all":
    run.process.terminate()                                # the launcher forwards it
  else:
    pid = run.process.pid if num_hosts == 1 else run.host_pids()[int(to.split()[1])]
    for _ in range(1 + ("twice" in to)):
      os.kill(pid, signal.SIGTERM)
      time.sleep(0.05)
  assert run.wait() == 75, run.text
  steps = [int(line.split()[1].split("/")[0]) for line in run.text.splitlines() if line.startswith("step ")]
  assert f"stopped at step {steps[-1]}/" in run.text, run.text
  print(to, "stopped at step", steps[-1])
  resumed = run_to_end(base, name, num_hosts=num_hosts)
  assert f"resumed at step {steps[-1]}\n" in resumed, resumed
  assert ("  val  " in resumed.split("step ")[1]) == ("val" in to and "  val  " not in run.text)
  if num_hosts == 2:                                       # a single host sums in another order
    assert_same_final_state(base / "uninterrupted", base / name)


def test_sigterm_during_decoding_leaves_no_partial_file(base):
  for num_hosts in (2, 1):
    run = TrainingRun(base, "uninterrupted", verb="evaluate", num_hosts=num_hosts)
    assert run.wait_until(lambda: " 8 reports " in run.text), run.text
    os.kill(run.host_pids()[num_hosts - 1] if num_hosts > 1 else run.process.pid, signal.SIGTERM)
    assert run.wait() == 75, run.text
    workdir = base / "uninterrupted"
    assert not list(workdir.glob("eval/test-*")) and not list(workdir.glob("**/*.unfinished"))


def test_two_hosts_generate_the_same_reports_as_one(base):
  lines = []
  for num_hosts in (2, 1):
    run_to_end(base, "uninterrupted", verb="evaluate", num_hosts=num_hosts)
    table = base / "uninterrupted" / "eval" / f"test-{NUM_STEPS}.jsonl"
    lines.append(table.read_text().splitlines())
    table.unlink()
    table.with_suffix(".json").unlink()
  assert len(lines[0]) == len(lines[1]) == 8
  for ours, theirs in zip(*(map(json.loads, side) for side in lines)):
    assert ours["id"] == theirs["id"] and ours["generated"] == theirs["generated"]


@pytest.mark.parametrize("compute_dtype, ten_steps, limit", [("float64", 1e-6, 1e-10), ("float32", 1e-4, 5e-3)])
def test_a_run_saved_on_eight_devices_resumes_on_two_and_on_one(base, compute_dtype, ten_steps, limit):
  """Compares the losses of ten steps (logged in float32) and the final parameters with an uninterrupted run's.

  In float64 they are equal up to rounding; in float32, 53 steps of AdamW amplify the rounding errors.
  """
  eight, two, one, uninterrupted = (f"{name}-{compute_dtype}" for name in ("eight", "two", "one", "uninterrupted"))
  subprocess.run(["rm", "-rf", *(str(base / name) for name in (eight, two, one, uninterrupted))], check=True)
  dtype = {"train__compute_dtype": compute_dtype}
  run_to_end(base, uninterrupted, **dtype)
  run = TrainingRun(base, eight, num_hosts=2, num_devices=4, **dtype)
  assert run.wait_until(lambda: "\nstep 7/" in run.text), run.text
  run.process.terminate()
  assert run.wait() == 75, run.text
  for name in (two, one):
    subprocess.run(["cp", "-r", str(base / eight), str(base / name)], check=True)
  with jax.enable_x64(compute_dtype == "float64"):
    expected = read_last_state(base / uninterrupted)
    for name, num_devices in ((two, 2), (one, 1)):
      assert "resumed at step " in run_to_end(base, name, num_hosts=1, num_devices=num_devices, **dtype)
      state = read_last_state(base / name)
      assert state["step"] == expected["step"] == NUM_STEPS
      losses, expected_losses = read_losses(base / name), read_losses(base / uninterrupted)
      resumed = max(int(path.name) for path in (base / eight / "checkpoints").iterdir() if path.name.isdigit())
      differences = [abs(losses[step] / expected_losses[step] - 1) for step in range(resumed + 1, resumed + 11)]
      print(f"{name}: largest relative difference of ten losses", max(differences))
      assert max(differences) < ten_steps
      worst = max(np.abs(a - b).max() for a, b in zip(
          jax.tree.leaves(state["params"]), jax.tree.leaves(expected["params"]), strict=True))
      print(f"{name}: largest difference of a parameter", worst)
      assert all(leaf.dtype == compute_dtype for leaf in jax.tree.leaves(state["params"])) and worst < limit


def test_a_host_ends_soon_after_the_other_host_died(base):
  """Missing heartbeats end it: each host is a process of its own, without a launcher that would stop it."""
  program = ("import sys; from mcsam_jax.distributed import multihost; multihost.HEARTBEAT_SECONDS = 10; "
             "from mcsam_jax import cli; sys.exit(cli.main())")
  for victim in (0, 1):
    subprocess.run(["rm", "-rf", str(base / "one-host-died")], check=True)
    fields = FIELDS | {"data.data_dir": base / "data", "train.num_steps": 100_000}
    port = str(random.randrange(20_000, 32_000))
    processes = [subprocess.Popen(
        [sys.executable, "-c", program, "train", "--config", "phantom", "--workdir", str(base / "one-host-died"),
         *(f"--config.{field}={value}" for field, value in fields.items())],
        env=make_environment(base, 1) | {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": "2",
                                    "JAX_PROCESS_ID": str(host)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for host in range(2)]
    for line in processes[0].stdout:
      if line.startswith("step 7/"):
        break
    processes[victim].kill()
    killed_at = time.monotonic()
    text, _ = processes[1 - victim].communicate(timeout=120)
    seconds = time.monotonic() - killed_at
    print(f"host {victim} died, the other ended after {seconds:.1f} s with status {processes[1 - victim].returncode}: "
          f"{text.strip().splitlines()[-1][:200]}")
    assert processes[1 - victim].returncode not in (0, 75) and seconds < 60 and text.strip()
