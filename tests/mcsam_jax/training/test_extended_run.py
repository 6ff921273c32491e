"""A finished run is extended by raising train.num_steps."""

import jax
import numpy as np
import pytest

from input_pipeline.builder.prepare import prepare
from mcsam_jax import config as configs
from mcsam_jax.checkpoints.checkpoint import Checkpoints
from mcsam_jax.errors import UserError
from mcsam_jax.training.train import train
from tests.testing.tiny import make_arguments, NETWORK, PHANTOMS
from tests.testing.training_run import read_params

# Without memory and alignment, which compile longest and which extending a run doesn't depend on.
PLAIN = NETWORK | PHANTOMS | {
    "model.use_memory": False, "model.use_alignment": False, "train.eval_every": 100, "train.log_every": 8,
    "train.eval_studies": 2, "decode.beam_size": 1, "eval.labeler": "none", "optimizer.ema_decay": 0.9,
}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  directory = tmp_path_factory.mktemp("data")
  prepare(configs.load_config("phantom", make_arguments(PLAIN, {"data.data_dir": directory})), log=lambda line: None)
  return directory


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_an_extended_run_resumes_at_its_last_checkpoint(data_dir, tmp_path, schedule):
  """With a constant schedule it equals an uninterrupted run bit for bit; else one log line says that it doesn't."""
  def train_steps(workdir, num_steps):
    overrides = make_arguments(PLAIN, {"data.data_dir": data_dir}, train__num_steps=num_steps,
                               optimizer__schedule=schedule)
    lines = []
    train(configs.load_config("phantom", overrides), str(tmp_path / workdir), log=lines.append)
    return lines

  train_steps("uninterrupted", 16)
  first, extended = train_steps("extended", 8), train_steps("extended", 16)
  assert Checkpoints(tmp_path / "extended", read_only=True).latest() == 16
  assert "resumed at step 8" in extended and not any(line.startswith("step 8/") for line in extended)
  assert any(line.startswith("step 16/16") for line in extended)
  notices = [line for line in extended if "optimizer.schedule" in line]
  assert len(notices) == (schedule != "constant") and not any("optimizer.schedule" in line for line in first)
  states = [jax.tree.leaves(read_params(tmp_path / workdir)) for workdir in ("extended", "uninterrupted")]
  assert all(map(np.array_equal, *states)) == (schedule == "constant")

  with pytest.raises(UserError, match="train.num_steps"):           # the run can't be shortened
    train_steps("extended", 8)
  assert any("already trained" in line for line in train_steps("extended", 16))
