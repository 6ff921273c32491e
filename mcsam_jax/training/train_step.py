"""One training step and one validation step: pure functions of state and batch, jitted over the mesh by the caller.

The batch's fields and the letters of its axes are listed in `losses.py`.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any, TypeVar

import jax
from ml_collections import ConfigDict
import optax

from mcsam_jax import partitioning
from mcsam_jax.models.mcsam import MCSAM
from mcsam_jax.training.grad_cache import accumulate_gradient
from mcsam_jax.training.losses import (
  BatchSize,
  compute_alignment,
  compute_metrics,
  forward,
  LossWeights,
  make_loss_weights,
  measure_batch,
)
from mcsam_jax.training.optimizer import ema_decay, make_optimizer
from mcsam_jax.training.train_state import TrainState

State = TypeVar("State", bound=TrainState)


def make_train_step(model: MCSAM, config: ConfigDict, eos_id: int) -> Callable:
  """Returns train_step(state, batch) -> (state, metrics), with `metrics` a dict of scalars."""
  def train_step(state: TrainState, batch: dict) -> tuple[TrainState, dict[str, jax.Array]]:
    weights = make_loss_weights(config)
    gradient, (loss, metrics, batch_stats) = compute_gradient(model, config, eos_id, state, batch,
                                                              make_dropout_key(config, state.step), weights)
    metrics |= {"loss": loss, "gradient_norm": optax.tree.norm(gradient)}
    return apply_gradient(config, state, gradient, batch_stats), metrics

  return train_step


def apply_gradient(config: ConfigDict, state: State, gradient, batch_stats) -> State:
  """Returns the state after one step of the optimizer."""
  updates, opt_state = make_optimizer(config).update(gradient, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  ema_params = state.ema_params
  if ema_params is not None:
    ema_params = optax.incremental_update(params, ema_params, 1 - ema_decay(config, state.step))
  return dataclasses.replace(state, step=state.step + 1, params=params, batch_stats=batch_stats, opt_state=opt_state,
                             ema_params=ema_params)


def make_dropout_key(config: ConfigDict, step: jax.Array) -> jax.Array:
  """Returns the dropout key of a step: a function of seed and step, hence the same after a restart."""
  return jax.random.fold_in(jax.random.key(config.seed + 1), step)


def compute_gradient(model: MCSAM, config: ConfigDict, eos_id: int, state: TrainState, batch: dict, rng: jax.Array,
                     weights: LossWeights) -> tuple[Any, tuple[jax.Array, dict[str, jax.Array], Any]]:
  """Returns the gradient of the weighted loss over the global batch, and (loss, metrics, new batch_stats)."""
  size, params = measure_batch(batch, eos_id), partitioning.gather_params(state.params)
  if config.train.grad_accum_steps > 1:
    gradient, aux = accumulate_gradient(model, config, eos_id, params, state.batch_stats, batch, size, rng, weights)
    return partitioning.shard_params(gradient), aux

  def loss_fn(params):
    return compute_loss(model, config, eos_id, params, state.batch_stats, batch, size, rng, weights)

  (loss, (metrics, batch_stats)), gradient = jax.value_and_grad(loss_fn, has_aux=True)(params)
  return partitioning.shard_params(gradient), (loss, metrics, batch_stats)


def compute_loss(model: MCSAM, config: ConfigDict, eos_id: int, params, batch_stats, batch: dict, size: BatchSize,
                 rng: jax.Array, weights: LossWeights) -> tuple[jax.Array, tuple[dict[str, jax.Array], Any]]:
  """Returns the weighted loss over the global batch, and (metrics, new batch_stats)."""
  output = forward(model, config, eos_id, params, batch_stats, batch, size, rng)
  alignment = compute_alignment(model, config, eos_id, params, output.embeddings, batch)
  loss = (weights.token * output.token_loss + weights.findings * output.finding_loss
          + (weights.align * alignment.loss if alignment else 0.0))
  metrics = compute_metrics(config, output.unsmoothed_token_loss, output.finding_loss, size, alignment)
  return loss, (metrics, output.batch_stats)


def make_term_gradient_norms(model: MCSAM, config: ConfigDict, eos_id: int, out_shardings=None) -> Callable:
  """Returns term_gradient_norms(state, batch) -> {name: gradient norm of one weighted loss term}.

  Meant for logged steps. One jitted program is called once per term, so it needs no more memory than the training step
  itself; computing both terms in one loop would also make convolutions on a CPU four times slower.
  """
  @functools.partial(jax.jit, out_shardings=out_shardings)
  def gradient_norm(state: TrainState, batch: dict, weights: LossWeights) -> jax.Array:
    rng = make_dropout_key(config, state.step)
    return optax.tree.norm(compute_gradient(model, config, eos_id, state, batch, rng, weights)[0])

  weights = make_loss_weights(config)
  terms = {"gradient_norm_token": LossWeights(weights.token, 0.0, 0.0),
           "gradient_norm_align": LossWeights(0.0, weights.align, 0.0)}
  if config.model.findings_head:
    terms["gradient_norm_findings"] = LossWeights(0.0, 0.0, weights.findings)
  return lambda state, batch: {name: gradient_norm(state, batch, weights) for name, weights in terms.items()}


def make_eval_step(model: MCSAM, config: ConfigDict, eos_id: int) -> Callable:
  """Returns eval_step(variables, batch) -> (sum of token losses, number of tokens) over the valid studies."""
  def eval_step(variables: dict, batch: dict) -> tuple[jax.Array, jax.Array]:
    size = measure_batch(batch, eos_id)
    output = forward(model, config, eos_id, variables["params"], variables["batch_stats"], batch, size)
    return output.token_loss * size.tokens, size.tokens
  return eval_step
