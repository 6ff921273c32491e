"""A finished run is extended by raising train.num_steps."""

import jax
import numpy as np
import pytest

from input_pipeline.builder.prepare import prepare
from mcsam_jax.checkpoints.checkpoint import Checkpoints
from mcsam_jax.checkpoints.encoder_weights import init_encoder_variables
from mcsam_jax.checkpoints.weights import save_weights
from mcsam_jax.errors import UserError
from mcsam_jax.training.train import open_or_create_workdir, train
from tests.testing.tiny import make_config, NETWORK, PHANTOMS
from tests.testing.training_run import read_params

# A frozen encoder, no memory and no alignment: they compile longest, and extending a run doesn't depend on them.
PLAIN = NETWORK | PHANTOMS | {
    "encoder.frozen": True,
    "model.use_memory": False, "model.use_alignment": False, "train.eval_every": 100, "train.log_every": 8,
    "train.eval_studies": 2, "decode.beam_size": 1, "eval.labeler": "none", "optimizer.ema_decay": 0.9,
}


@pytest.fixture(scope="module")
def fields(tmp_path_factory):
  """Returns --config arguments for prepared data and a frozen encoder."""
  directory = tmp_path_factory.mktemp("data")
  fields = PLAIN | {"data.data_dir": directory, "encoder.weights": directory / "encoder.npz"}
  config = make_config(fields)
  save_weights(directory / "encoder.npz", init_encoder_variables(config), {"pretraining_data": "none"})
  prepare(config, log=lambda line: None)
  return fields


@pytest.fixture
def train_steps(fields, tmp_path):
  """Returns a function that trains in a workdir up to a step, and returns the lines of its log."""
  def train_steps(workdir, num_steps):
    lines = []
    config = make_config(fields, train__num_steps=num_steps, optimizer__schedule="constant")
    train(config, str(tmp_path / workdir), log=lines.append)
    return lines
  return train_steps


def test_an_extended_run_equals_an_uninterrupted_one_with_a_constant_schedule(train_steps, tmp_path):
  train_steps("uninterrupted", 16)
  train_steps("extended", 8)
  extended = train_steps("extended", 16)
  assert Checkpoints(tmp_path / "extended", read_only=True).latest() == 16
  assert "resumed at step 8" in extended and not any(line.startswith("step 8/") for line in extended)
  assert any(line.startswith("step 16/16") for line in extended)
  assert not any("optimizer.schedule" in line for line in extended)
  states = [read_params(tmp_path / workdir) for workdir in ("extended", "uninterrupted")]
  jax.tree.map(np.testing.assert_array_equal, *states)

  with pytest.raises(UserError, match="train.num_steps"):           # the run can't be shortened
    train_steps("extended", 8)
  assert any("already trained" in line for line in train_steps("extended", 16))


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_a_schedule_that_depends_on_the_length_is_announced(fields, tmp_path, schedule):
  def open_workdir(num_steps):
    lines = []
    config = make_config(fields, train__num_steps=num_steps, optimizer__schedule=schedule)
    open_or_create_workdir(str(tmp_path / "run"), config, lines.append)
    return [line for line in lines if "optimizer.schedule" in line]

  assert not open_workdir(8) and not open_workdir(8)
  assert len(open_workdir(10)) == (schedule == "cosine")
