"""Which checkpoints stay, and which is the best."""

import jax.numpy as jnp
import pytest

from mcsam_jax.checkpoints.checkpoint import Checkpoints

SCORES = {10: {"token_loss": 1.9, "CIDEr": 0.2}, 20: {"token_loss": 1.5, "CIDEr": 0.3},
          30: {"token_loss": 1.7, "CIDEr": 0.5}, 40: {"token_loss": 1.8, "CIDEr": 0.4}}


@pytest.mark.parametrize("metric, best, kept", [("token_loss", 20, [20, 40]), ("CIDEr", 30, [30, 40]), ("", 40, [40])])
def test_the_last_and_the_best_stay(tmp_path, metric, best, kept):
  checkpoints = Checkpoints(tmp_path, keep_last=1, best_metric=metric)
  for step, scores in SCORES.items():
    checkpoints.save(step, {"step": jnp.int32(step)}, scores)
  checkpoints.close()
  opened = Checkpoints(tmp_path, best_metric=metric, read_only=True)
  assert opened.best() == best and sorted(opened.manager.all_steps()) == kept
