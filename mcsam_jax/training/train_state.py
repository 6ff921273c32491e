"""The training state: everything that changes from step to step, and exactly what a checkpoint holds."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mcsam_jax.models.initialize import init_variables
from mcsam_jax.models.mcsam import MCSAM
from mcsam_jax.training.optimizer import make_optimizer


@flax.struct.dataclass
class TrainState:
  """Parameters, batch statistics and optimizer state after `step` steps.

  Attributes:
    step: number of completed steps, int32 scalar.
    params: parameters that are trained.
    batch_stats: batch-norm statistics of the visual encoder; {} if its features are cached.
    opt_state: state of the optimizer.
    ema_params: exponential moving average of `params`; None if `optimizer.ema_decay` is 0.
  """
  step: jax.Array
  params: Any
  batch_stats: Any
  opt_state: Any
  ema_params: Any

  @property
  def variables(self) -> dict:
    """Returns the variables for evaluation, with the averaged parameters if the state has them."""
    return {"params": self.params if self.ema_params is None else self.ema_params, "batch_stats": self.batch_stats}


def init_train_state(model: MCSAM, config: ConfigDict, batch: dict) -> TrainState:
  """Returns a randomly initialized state at step 0; a pure function of config.seed and the shapes of `batch`."""
  variables = init_variables(model, config, batch)
  return create_train_state(config, variables["params"], variables.get("batch_stats", {}))


def create_train_state(config: ConfigDict, params, batch_stats) -> TrainState:
  """Returns a state at step 0 with the given parameters and batch statistics.

  Both are cast to float32, or to float64 if `train.compute_dtype` is float64.
  """
  dtype = jnp.promote_types(config.train.compute_dtype, jnp.float32)
  params, batch_stats = jax.tree.map(lambda leaf: leaf.astype(dtype), (params, batch_stats))
  ema_params = jax.tree.map(jnp.copy, params) if config.optimizer.ema_decay else None
  return TrainState(jnp.zeros((), jnp.int32), params, batch_stats, make_optimizer(config).init(params), ema_params)
