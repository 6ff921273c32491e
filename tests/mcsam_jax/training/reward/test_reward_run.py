"""Whole runs: training, then reward fine-tuning of its model; the same on one device and on eight."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from input_pipeline.builder.prepare import prepare
from mcsam_jax.checkpoints.checkpoint import Checkpoints
from mcsam_jax.config import load_config, read_config
from mcsam_jax.training.train import train
from tests.testing import simulated_devices
from tests.testing.tiny import make_arguments, NETWORK, PHANTOMS
from tests.testing.training_run import read_last_state

SCRIPT = pathlib.Path(__file__).with_name("reward_on_mesh.py")
FIELDS = NETWORK | PHANTOMS | {"train.num_steps": 6, "train.eval_every": 3, "train.log_every": 1,
                               "optimizer.warmup_steps": 1, "optimizer.ema_decay": 0.5, "data.augment": True}
REWARD = {"train__objective": "reward", "reward__num_samples": 3, "reward__rouge_l": 0.5,
          "reward__labeler": "phantom", "reward__kl_weight": 0.1}


@pytest.mark.slow
def test_eight_devices_and_one_agree_in_float64():
  environment = os.environ | {
      "JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": "1", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
      "XLA_FLAGS": simulated_devices.make_xla_flags(8),
      "PYTHONPATH": os.pathsep.join([str(SCRIPT.parents[4]), os.environ.get("PYTHONPATH", "")]),
      "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir)}
  result = subprocess.run([sys.executable, SCRIPT, "3", "1,1,1", "2,2,2", "8,1,1"], env=environment,
                          capture_output=True, text=True, check=False)
  assert result.returncode == 0, result.stderr[-2000:]
  results = json.loads(result.stdout.splitlines()[-1])
  expected = results["1,1,1"]
  for mesh in ("2,2,2", "8,1,1"):
    assert results[mesh]["ids"] == expected["ids"]
    for ours, theirs in zip(results[mesh]["metrics"], expected["metrics"], strict=True):
      assert ours == pytest.approx(theirs, rel=1e-6, abs=1e-9)
    for ours, theirs in zip(results[mesh]["params"], expected["params"], strict=True):
      np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_a_run_from_another_one_is_resumed_bit_for_bit_and_stops_early(tmp_path):
  def start(workdir, **changes):
    lines = []
    config = load_config("phantom", make_arguments(FIELDS, {"data.data_dir": tmp_path / "data"}, **changes))
    train(config, str(tmp_path / workdir), lines.append)
    return lines

  prepare(load_config("phantom", make_arguments(FIELDS, {"data.data_dir": tmp_path / "data"})), lambda line: None)
  start("likelihood")
  lines = start("reward", train__init_from=tmp_path / "likelihood", **REWARD)
  assert any("step 6/6" in line and "reward" in line and "KL" in line for line in lines)
  first_scores = [line for line in lines if "val" in line and "token_loss" in line][0]
  start_loss = Checkpoints(tmp_path / "likelihood", read_only=True).scores[6]["token_loss"]
  assert f"token_loss {start_loss:.3f}" in first_scores

  shutil.copytree(tmp_path / "reward", tmp_path / "resumed")
  shutil.rmtree(tmp_path / "resumed" / "checkpoints" / "6")
  shutil.rmtree(tmp_path / "likelihood")                              # no longer needed
  lines = start("resumed", train__init_from=tmp_path / "likelihood", **REWARD)
  assert "resumed at step 3" in lines
  states = [read_last_state(tmp_path / name) for name in ("reward", "resumed")]
  assert states[0]["step"] == states[1]["step"] == 6
  jax.tree.map(np.testing.assert_array_equal, *states)
  assert read_config(tmp_path / "resumed" / "config.json").train.init_from == str(tmp_path / "likelihood")

  # A learning rate that is far too high makes the model worse.
  lines = start("patient", train__init_from=tmp_path / "reward@3", train__num_steps=60, train__patience=2,
                train__best_metric="token_loss", optimizer__learning_rate=5.0, optimizer__encoder_learning_rate=5.0)
  assert any("train.patience" in line for line in lines)
  checkpoints = Checkpoints(tmp_path / "patient", best_metric="token_loss", read_only=True)
  best, last = checkpoints.best(), checkpoints.latest()
  assert last == best + 6 and last < 60
  assert "already trained" in start("patient", train__init_from=tmp_path / "reward@3", train__num_steps=60,
                                    train__patience=2, train__best_metric="token_loss", optimizer__learning_rate=5.0,
                                    optimizer__encoder_learning_rate=5.0)[-1]
