"""Starts `mcsam` in processes of its own, on one or several hosts, and reads what a run leaves behind.

Each start on several hosts is `launch/local_hosts.sh N mcsam VERB`: real processes, joined by jax.distributed,
collectives by gloo.
"""

from collections.abc import Callable
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np
import orbax.checkpoint as ocp

from mcsam_jax.checkpoints.checkpoint import Checkpoints
from tests.testing.tiny import NETWORK, PHANTOMS

ROOT = pathlib.Path(__file__).parents[2]
TIMEOUT_SECONDS = 420                           # for one start, on a machine that is busy with other work, too
FIELDS = NETWORK | PHANTOMS | {
    "data.phantom.num_val": 8, "data.phantom.num_test": 8, "data.augment": True, "optimizer.ema_decay": 0.9,
    "train.batch_size": 8, "train.num_steps": 60, "train.eval_every": 25, "train.checkpoint_every": 3,
    "train.log_every": 1, "train.eval_studies": 8, "decode.batch_size": 8, "eval.num_permutations": 2,
}
NUM_STEPS = FIELDS["train.num_steps"]


def make_environment(base, num_devices: int, float64: bool = False) -> dict[str, str]:
  """Returns the environment of a host with `num_devices` CPU devices.

  XLA optimizes little, so that compilation takes seconds, and compiled programs are kept for the next start.
  """
  return os.environ | {
      "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]), "PYTHONUNBUFFERED": "1",
      "JAX_PLATFORMS": "cpu", "DEVICES_PER_HOST": str(num_devices), "JAX_NUM_CPU_DEVICES": str(num_devices),
      "GRACE": "3", "JAX_COMPILATION_CACHE_DIR": str(base / "xla"),
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
      "JAX_ENABLE_X64": str(int(float64))}


class TrainingRun:
  """One start of `mcsam`, whose output can be read while it runs."""

  def __init__(self, base, workdir: str, num_hosts: int = 2, num_devices: int = 1, verb: str = "train",
               environment: dict[str, str] | None = None, **changes):
    """Starts the command.

    Args:
      base: folder, or bucket, of the data and the workdirs.
      workdir: name of the workdir in it.
      num_devices: devices per host.
      environment: variables to add.
      changes: config fields that differ from FIELDS, with `__` for the dot.
    """
    fields = FIELDS | {"data.data_dir": base / "data"}
    fields |= {name.replace("__", "."): value for name, value in changes.items()}
    arguments = ["--config", "phantom"] if verb != "evaluate" else []
    if verb != "prepare":
      arguments += ["--workdir", str(base / workdir)]
    if verb != "evaluate":
      arguments += [f"--config.{field}={value}" for field, value in fields.items()]
    launcher = ["bash", str(ROOT / "launch" / "local_hosts.sh"), str(num_hosts)] if num_hosts > 1 else []
    self.output = tempfile.NamedTemporaryFile("w+", delete=False)
    self.process = subprocess.Popen(
        [*launcher, sys.executable, "-m", "mcsam_jax", verb, *arguments],
        env=make_environment(base, num_devices, fields.get("train.compute_dtype") == "float64") | (environment or {}),
        stdout=self.output, stderr=subprocess.STDOUT, start_new_session=True)

  @property
  def text(self) -> str:
    """Returns the output so far."""
    return pathlib.Path(self.output.name).read_text()

  def host_pids(self) -> list[int]:
    """Returns the process ids of the hosts."""
    found = subprocess.run(["pgrep", "-P", str(self.process.pid), "-f", "mcsam_jax"], capture_output=True, text=True,
                           check=False)
    return [int(line) for line in found.stdout.split()]

  def wait_until(self, condition: Callable[[], bool]) -> bool:
    """Returns whether the condition became true before the run ended."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while time.monotonic() < deadline:
      if condition():
        return True
      if self.process.poll() is not None:
        return False
      time.sleep(0.002)
    os.killpg(self.process.pid, signal.SIGKILL)
    raise TimeoutError(self.text)

  def wait(self) -> int:
    """Returns the exit status of the run when it has ended."""
    try:
      return self.process.wait(TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
      self.process.terminate()
      raise


def run_to_end(base, workdir: str, **arguments) -> str:
  """Returns the output of a run that has to succeed; the arguments are those of `TrainingRun`."""
  run = TrainingRun(base, workdir, **arguments)
  status = run.wait()
  assert status == 0, run.text
  return run.text


def read_last_state(workdir) -> dict:
  """Returns the state of the newest checkpoint, whatever devices it was saved from."""
  manager = Checkpoints(workdir, read_only=True).manager
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return jax.tree.map(np.asarray, manager.restore(manager.latest_step(), args=ocp.args.StandardRestore(
      fallback_sharding=device)))


def assert_same_final_state(workdir, other) -> None:
  """Asserts that two runs of NUM_STEPS steps ended in the same state, bit for bit."""
  states = [read_last_state(workdir), read_last_state(other)]
  assert states[0]["step"] == states[1]["step"] == NUM_STEPS
  jax.tree.map(np.testing.assert_array_equal, *states)


def read_params(workdir):
  """Returns the parameters of the newest checkpoint and their moving average."""
  manager = Checkpoints(workdir, read_only=True).manager
  state = manager.restore(manager.latest_step())
  return jax.tree.map(np.asarray, (state["params"], state["ema_params"]))
