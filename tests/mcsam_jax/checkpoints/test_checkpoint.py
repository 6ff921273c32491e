"""Which checkpoints are kept, which one is the best, and what evaluation reads from them."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mcsam_jax.checkpoints.checkpoint import Checkpoints, to_shape_dtype_struct
from mcsam_jax.errors import UserError
from mcsam_jax.training.train_state import TrainState

SCORES = {10: {"token_loss": 1.9, "CIDEr": 0.2}, 20: {"token_loss": 1.5, "CIDEr": 0.3},
          30: {"token_loss": 1.7, "CIDEr": 0.5}, 40: {"token_loss": 1.8, "CIDEr": 0.4}}
PARAMS = {"words": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}}
BATCH_STATS = {"norm": {"mean": np.full(3, 0.5, np.float32)}}


@pytest.mark.parametrize("metric, best, steps", [("token_loss", 20, [20, 40]), ("CIDEr", 30, [30, 40]), ("", 40, [40])])
def test_the_last_and_the_best_checkpoint_are_kept(tmp_path, metric, best, steps):
  checkpoints = Checkpoints(tmp_path, keep_last=1, best_metric=metric)
  for step, scores in SCORES.items():
    checkpoints.save(step, {"step": jnp.int32(step)}, scores)
  checkpoints.close()
  opened = Checkpoints(tmp_path, best_metric=metric, read_only=True)
  assert opened.best() == best and sorted(opened.manager.all_steps()) == steps


def test_a_manifest_holds_scores_and_data_position(tmp_path):
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(10, {"step": jnp.int32(10)}, SCORES[10], {"examples": 80, "seed": 0})
  checkpoints.close()
  manifest = json.loads((tmp_path / "checkpoints" / "10" / "manifest.json").read_text())
  assert manifest["metadata"].pop("software")["mcsam_jax"]
  assert manifest["metadata"] == {"step": 10, "scores": SCORES[10], "data_position": {"examples": 80, "seed": 0}}


def make_state(ema: bool) -> TrainState:
  params = jax.tree.map(jnp.asarray, PARAMS)
  average = jax.tree.map(lambda leaf: leaf + 100, params) if ema else None
  batch_stats, opt_state = jax.tree.map(jnp.asarray, BATCH_STATS), optax.adam(1e-3).init(params)
  return TrainState(jnp.int32(7), params, batch_stats, opt_state, average)


def make_abstract_variables(params) -> dict:
  variables = {"params": params, "batch_stats": BATCH_STATS}
  here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return to_shape_dtype_struct(variables, jax.tree.map(lambda leaf: here, variables))


@pytest.mark.parametrize("ema", [False, True])
def test_evaluation_reads_the_parameters_or_their_average_without_the_optimizer_state(tmp_path, ema):
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(7, make_state(ema), {})
  checkpoints.close()
  variables = Checkpoints(tmp_path, read_only=True).restore_variables(7, make_abstract_variables(PARAMS), ema)
  expected = {"params": jax.tree.map(lambda leaf: leaf + 100 * ema, PARAMS), "batch_stats": BATCH_STATS}
  jax.tree.map(np.testing.assert_array_equal, variables, expected)
  assert jax.tree.structure(variables) == jax.tree.structure(expected)


@pytest.mark.parametrize("params, ema", [
    ({"words": {"kernel": np.zeros((2, 4), np.float32)}}, False),                # another shape
    (PARAMS | {"gate": np.zeros(3, np.float32)}, False),                         # an additional array
    ({"gate": np.zeros(3, np.float32)}, False),                                  # other names
    ({}, False),                                                                 # the checkpoint has more arrays
    (PARAMS, True)])                                                             # the checkpoint holds no average
def test_parameters_of_another_model_are_one_clear_error(tmp_path, params, ema):
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(7, make_state(ema=False), {})
  checkpoints.close()
  with pytest.raises(UserError, match="another model") as error:
    Checkpoints(tmp_path, read_only=True).restore_variables(7, make_abstract_variables(params), ema)
  assert str(tmp_path / "checkpoints" / "7") in str(error.value) and "\n" not in str(error.value)


def test_a_missing_step_is_an_error_that_lists_the_available_ones(tmp_path):
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(7, make_state(ema=False), {})
  checkpoints.close()
  with pytest.raises(UserError, match="step 8; .*7"):
    Checkpoints(tmp_path, read_only=True).restore_variables(8, make_abstract_variables(PARAMS), ema=False)


def test_the_fields_that_evaluation_reads_exist_in_a_training_state():
  assert {"params", "ema_params", "batch_stats"} <= {field.name for field in dataclasses.fields(TrainState)}
