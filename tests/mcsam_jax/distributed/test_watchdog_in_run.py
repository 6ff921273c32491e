"""Small training runs under a watchdog: TensorBoard's content, a loss that is not finite, hosts that hang."""

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap

import jax.numpy as jnp
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from input_pipeline.builder.prepare import prepare
from input_pipeline.splits import open_split
from mcsam_jax import cli
from mcsam_jax import config as configs
from mcsam_jax.checkpoints.checkpoint import Checkpoints
from mcsam_jax.training import optimizer
from tests.testing.tiny import make_arguments, NETWORK, PHANTOMS

FIELDS = NETWORK | PHANTOMS | {"data.restricted": True, "train.num_steps": 30, "train.eval_every": 10,
                               "train.log_every": 5, "train.log_term_norms": True, "train.profile_steps": 3}
NONFINITE_STEP = 25               # its loss is not finite, because a huge learning rate spoiled the step before


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
  arguments = make_arguments(FIELDS, data__data_dir=tmp_path_factory.mktemp("data"))
  prepare(configs.load_config("phantom", arguments), log=lambda line: None)
  return arguments


def start_process(program, *arguments, **environment):
  return subprocess.Popen([sys.executable, "-c", textwrap.dedent(program), *arguments], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True, env=os.environ | environment | {
                              "PYTHONPATH": os.pathsep.join(sys.path), "JAX_PLATFORMS": "cpu"})


@pytest.mark.slow
def test_a_nonfinite_loss_leaves_the_last_good_checkpoint_and_the_records(arguments, tmp_path, capsys, monkeypatch):
  run = lambda: cli.main(["train", "--config", "phantom", "--workdir", str(tmp_path), *arguments])
  schedule = optimizer.learning_rate
  monkeypatch.setattr(optimizer, "learning_rate", lambda config, peak: (
      lambda done: jnp.where(done == NONFINITE_STEP - 2, 1e30, schedule(config, peak)(done))))
  assert run() == 2
  err = capsys.readouterr().err.strip()
  assert f"step {NONFINITE_STEP}:" in err and len(err.splitlines()) == 1
  config = configs.read_config(tmp_path / "config.json")
  saved = json.loads((tmp_path / f"nonfinite-{NONFINITE_STEP}.json").read_text())
  records = [open_split(config, "train")[record] for record in saved["record"]]      # as the file explains
  assert len(records) == 4 and len(set(saved["record"])) == 4 and saved["epoch"] == [4] * 4
  assert Checkpoints(tmp_path, read_only=True).latest() == 20
  monkeypatch.undo()

  assert run() == 0                                      # with the normal learning rate
  out = capsys.readouterr().out
  assert "resumed at step 20" in out and "trained 30 steps" in out
  scalars = EventAccumulator(str(tmp_path / "logs"), size_guidance={"tensors": 0}).Reload().Tags()["tensors"]
  assert {"train/loss", "train/gradient_norm", "train/gradient_norm_align", "train/gradient_norm_token",
          "train/learning_rate", "train/learning_rate_encoder", "train/align_accuracy", "train/temperature",
          "speed/examples_per_second", "speed/examples_per_second_per_chip", "speed/input_wait_share",
          "val/token_loss"} <= set(scalars) and "speed/mfu" not in scalars             # a CPU has no published peak

  logs = [path for path in (tmp_path / "logs").rglob("*") if path.is_file()]
  assert any(path.name.endswith(".xplane.pb") for path in logs)
  contents = b"".join(path.read_bytes() for path in logs) + (tmp_path / f"nonfinite-{NONFINITE_STEP}.json").read_bytes()
  for split in ("train", "val"):
    for record in open_split(config, split).metadata:
      for secret in (record["id"], record["findings"], record["findings"].lower()[:40]):
        assert secret.encode() not in contents


@pytest.mark.slow
def test_input_that_never_arrives_ends_the_run_with_status_75(arguments, tmp_path):
  run = start_process("""
      import sys, threading
      from mcsam_jax import cli
      from mcsam_jax.training import train
      def never(*_):
        threading.Event().wait()
        yield
      train.train_batches = never
      sys.exit(cli.main(["train", "--config", "phantom", *sys.argv[1:]]))
      """, "--workdir", str(tmp_path), *arguments, "--config.train.watchdog_timeout_minutes=2")
  _, err = run.communicate(timeout=500)
  assert run.returncode == 75, err
  assert "in never" in err and "waiting for the batch of step 1" in err.splitlines()[-1]


@pytest.mark.slow
def test_hosts_that_wait_for_a_stopped_host_in_a_collective_exit():
  with socket.socket() as unused:
    unused.bind(("localhost", 0))
    port = unused.getsockname()[1]
  hosts = [start_process("""
      import os, signal, sys
      import jax, jax.numpy as jnp
      from mcsam_jax.distributed.watchdog import Watchdog
      jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
      with Watchdog(0.25) as watchdog:
        mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
        rows = jax.make_array_from_process_local_data(
            jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data")), jnp.ones(1))
        step = jax.jit(lambda x: x.sum(), out_shardings=jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
        for number in range(1, 100):
          watchdog.beat(f"waiting for the results of step {number}")
          assert float(step(rows)) == 2
          print(number, flush=True)
          if number == 3 and jax.process_index() == 1:
            os.kill(os.getpid(), signal.SIGSTOP)
      """, f"localhost:{port}", str(index), JAX_CPU_COLLECTIVES_IMPLEMENTATION="gloo") for index in range(2)]
  try:
    out, err = hosts[0].communicate(timeout=300)
    assert hosts[0].returncode == 75 and out.split()[-1] == "3", err
    assert "waiting for the results of step 4" in err.splitlines()[-1]
  finally:
    for host in hosts:
      host.send_signal(signal.SIGCONT)
      host.kill()
