"""One training step and one validation step: pure functions of state and batch, jitted over the mesh.

A batch is a dict of arrays with a leading axis B: `images` uint8 [B, V, S, S, 1]
or `features` [B, V, P, C], `view_mask` [B, V], `view_ids` [B, V], `tokens`
[B, T + 1], `labels` [B, 14], `record`, `epoch` and `valid` [B].
"""

import functools
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import optax

from mcsam_jax import partitioning
from mcsam_jax.models.initialize import init_variables
from mcsam_jax.models.inputs import make_contrastive_pairs, model_inputs, token_mask
from mcsam_jax.models.layers import at_least_float32
from mcsam_jax.models.mcsam import MCSAM
from mcsam_jax.models.semantic_alignment import Alignment
from mcsam_jax.training.augment import augment
from mcsam_jax.training.optimizer import ema_decay, make_optimizer


@flax.struct.dataclass
class TrainState:
  """All that changes in training; a checkpoint is exactly this."""
  step: jax.Array          # steps done, int32
  params: Any
  batch_stats: Any         # of the visual encoder; {} where its features are cached
  opt_state: Any
  average: Any             # moving average of params; None where optimizer.ema_decay is 0

  @property
  def variables(self) -> dict:
    """What writes reports: the averaged parameters where there are such."""
    return {"params": self.params if self.average is None else self.average, "batch_stats": self.batch_stats}


def init_train_state(model: MCSAM, config: ConfigDict, batch: dict) -> TrainState:
  """Returns the state at step 0; a pure function of config.seed and the shapes of `batch`."""
  variables = init_variables(model, config, batch)
  return create_train_state(config, variables["params"], variables.get("batch_stats", {}))


def create_train_state(config: ConfigDict, params, batch_stats) -> TrainState:
  """Returns the state of step 0 with these parameters (float32, or float64 to compute in it) and batch statistics."""
  dtype = jnp.promote_types(config.train.compute_dtype, jnp.float32)
  params, batch_stats = jax.tree.map(lambda leaf: leaf.astype(dtype), (params, batch_stats))
  average = jax.tree.map(jnp.copy, params) if config.optimizer.ema_decay else None
  return TrainState(jnp.zeros((), jnp.int32), params, batch_stats, make_optimizer(config).init(params), average)


def token_losses(logits: jax.Array, targets: jax.Array, smoothing: float) -> jax.Array:
  """Returns the cross-entropy [B, T] of targets [B, T] under logits [B, T, vocabulary], in float32 or wider.

  Smoothing gives every word of the vocabulary an equal share of `smoothing` (Szegedy et al., CVPR 2016).
  """
  log_probs = jax.nn.log_softmax(at_least_float32(logits))
  target = jnp.take_along_axis(log_probs, targets[..., None], -1)[..., 0]
  return -(1 - smoothing) * target - smoothing * log_probs.mean(-1)


@flax.struct.dataclass
class Read:
  """What the network says of a batch, or of a part of one."""
  token_loss: jax.Array            # sum over the tokens, divided by the number of tokens in the whole batch
  plain_token_loss: jax.Array      # the same without smoothing
  codes: Any                       # image codes and report codes, both [B, D]; None without alignment
  batch_stats: Any                 # as this batch changed them


def read(model: MCSAM, config: ConfigDict, eos_id: int, params, batch_stats, batch: dict, count: jax.Array,
         rng=None) -> Read:
  """Reads a batch, or a part of one whose batch has `count` tokens; with `rng` in training."""
  train = rng is not None
  if train and config.data.augment and "images" in batch:
    batch = batch | {"images": augment(batch["images"], config.seed, batch["record"], batch["epoch"])}
  inputs = model_inputs(config, batch, eos_id)
  outputs, updated = model.apply({"params": params, "batch_stats": batch_stats}, *inputs, train,
                                 rngs={"dropout": rng} if train else None, mutable=["batch_stats"])
  targets, mask = batch["tokens"][:, 1:], inputs[-1] & batch["valid"][:, None]
  smoothed = token_losses(outputs.logits, targets, config.optimizer.label_smoothing if train else 0.0)
  plain = jax.lax.stop_gradient(token_losses(outputs.logits, targets, 0.0))
  codes = (outputs.image_embedding, outputs.report_embedding) if config.model.use_alignment else None
  return Read(jnp.where(mask, smoothed, 0).sum() / count, jnp.where(mask, plain, 0).sum() / count, codes,
              updated.get("batch_stats", {}))


def count_tokens(batch: dict, eos_id: int) -> jax.Array:
  """Returns the number of tokens that the loss of a batch is a mean over; at least 1."""
  return jnp.maximum((token_mask(batch["tokens"], eos_id) & batch["valid"][:, None]).sum(), 1)


def align(model: MCSAM, config: ConfigDict, eos_id: int, params, codes, batch: dict) -> Alignment | None:
  """Returns the alignment of the image and report codes, both [B, D], of a whole batch; None without."""
  if codes is None:
    return None
  return model.apply({"params": params}, *codes, make_contrastive_pairs(batch, token_mask(batch["tokens"], eos_id)), method="align")


def compute_metrics(token_loss: jax.Array, count: jax.Array, aligned: Alignment | None) -> dict:
  metrics = {"token_loss": token_loss, "tokens": count}
  if aligned:
    metrics |= {"align_loss": aligned.loss, "align_accuracy": aligned.accuracy, "temperature": aligned.temperature}
  return metrics


class Weights(NamedTuple):
  """Of the terms of the loss."""
  token: float | jax.Array
  align: float | jax.Array


def loss_gradient(model: MCSAM, config: ConfigDict, eos_id: int, state: "TrainState", batch: dict, rng,
                  weights: Weights):
  """Returns the gradient of the weighted loss, and (loss, metrics, new batch_stats).

  Both terms are means over the whole global batch: of tokens, and of studies.
  """
  count, params = count_tokens(batch, eos_id), partitioning.gather_params(state.params)
  if config.train.grad_accum_steps > 1:
    gradient, extra = accumulate_gradient(model, config, eos_id, params, state.batch_stats, batch, count, rng, weights)
    return partitioning.shard_params(gradient), extra

  def total(params):
    found = read(model, config, eos_id, params, state.batch_stats, batch, count, rng)
    aligned = align(model, config, eos_id, params, found.codes, batch)
    loss = weights.token * found.token_loss + (weights.align * aligned.loss if aligned else 0.0)
    return loss, (compute_metrics(found.plain_token_loss, count, aligned), found.batch_stats)

  (loss, extra), gradient = jax.value_and_grad(total, has_aux=True)(params)
  return partitioning.shard_params(gradient), (loss, *extra)


def accumulate_gradient(model: MCSAM, config: ConfigDict, eos_id: int, params, batch_stats, batch: dict, count: jax.Array, rng,
             weights: Weights):
  """Returns the same as `loss_gradient`, with the activations of one part of the batch in memory at a time.

  The alignment compares all studies of the batch, so its loss needs the codes of all before the gradient of any: they
  are computed first, then each part is read again with the gradient of its own codes (GradCache: Gao et al., RepL4NLP
  2021). It is the gradient of the whole batch, up to rounding; dropout draws per part.
  """
  parts = split_in_turns(batch, config.train.grad_accum_steps)
  rngs = jax.random.split(rng, config.train.grad_accum_steps)

  def read_part(params, part, rng):
    return read(model, config, eos_id, params, batch_stats, part, count, rng)

  aligned, of_codes, gradient, loss = None, None, jax.tree.map(jnp.zeros_like, params), 0.0
  if config.model.use_alignment:
    _, codes = jax.lax.scan(lambda _, turn: (None, read_part(params, *turn).codes), None, (parts, rngs))

    def alignment_loss(params, codes):
      aligned = align(model, config, eos_id, params, jax.tree.map(join_turns, codes), batch)
      return weights.align * aligned.loss, aligned

    (loss, aligned), (gradient, of_codes) = jax.value_and_grad(alignment_loss, (0, 1), has_aux=True)(params, codes)

  def turn(carry, given):
    gradient, loss, plain = carry
    part, rng, of_codes = given

    def total(params):
      found = read_part(params, part, rng)
      token_loss = weights.token * found.token_loss
      through_codes = sum(jax.tree.leaves(jax.tree.map(jnp.vdot, found.codes, of_codes)))
      return token_loss + through_codes, (token_loss, found.plain_token_loss)

    (_, (token_loss, plain_token_loss)), more = jax.value_and_grad(total, has_aux=True)(params)
    return (jax.tree.map(jnp.add, gradient, more), loss + token_loss, plain + plain_token_loss), None

  zero = jnp.zeros((), jax.tree.leaves(params)[0].dtype)
  (gradient, loss, plain), _ = jax.lax.scan(turn, (gradient, zero + loss, zero), (parts, rngs, of_codes))
  return gradient, (loss, compute_metrics(plain, count, aligned), batch_stats)


def split_in_turns(tree, turns: int):
  """Returns arrays [B, ...] as [turns, B / turns, ...]; every turn has its share of each device's rows."""
  return jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, turns, *x.shape[1:]), 1, 0), tree)


def join_turns(x: jax.Array) -> jax.Array:
  """Returns [B, ...] of `split_in_turns`' [turns, B / turns, ...]."""
  return jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:])


def step_rng(config: ConfigDict, step: jax.Array) -> jax.Array:
  """Returns the key of all that is drawn in a step (dropout): a function of seed and step, the same after a restart."""
  return jax.random.fold_in(jax.random.key(config.seed + 1), step)


def make_train_step(model: MCSAM, config: ConfigDict, eos_id: int):
  """Returns train_step(state, batch) -> (state, metrics)."""
  optimizer = make_optimizer(config)

  def train_step(state: TrainState, batch: dict) -> tuple[TrainState, dict]:
    weights = Weights(1.0, config.model.align_weight)
    gradient, (loss, metrics, batch_stats) = loss_gradient(model, config, eos_id, state, batch,
                                                           step_rng(config, state.step), weights)
    metrics |= {"loss": loss, "gradient_norm": optax.tree.norm(gradient)}
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    average = state.average
    if average is not None:
      average = optax.incremental_update(params, average, 1 - ema_decay(config, state.step))
    return TrainState(state.step + 1, params, batch_stats, opt_state, average), metrics

  return train_step


def make_term_norms(model: MCSAM, config: ConfigDict, eos_id: int, out_shardings=None):
  """Returns term_norms(state, batch): the norm of the gradient that each term of the loss, weighted, sends in a step.

  For the steps that are logged: one program, compiled at its first call, which is called for one term after the other.
  So it needs no more memory than the step itself, and a CPU isn't left with convolutions inside a loop, where they take
  four times as long.
  """
  @functools.partial(jax.jit, out_shardings=out_shardings)
  def norm(state: TrainState, batch: dict, weights: Weights) -> jax.Array:
    return optax.tree.norm(loss_gradient(model, config, eos_id, state, batch, step_rng(config, state.step), weights)[0])

  terms = {"gradient_norm_token": Weights(1.0, 0.0), "gradient_norm_align": Weights(0.0, config.model.align_weight)}
  return lambda state, batch: {name: norm(state, batch, weights) for name, weights in terms.items()}


def make_eval_step(model: MCSAM, config: ConfigDict, eos_id: int):
  """Returns eval_step(variables, batch) -> (sum of token losses, number of tokens) over the valid studies."""
  def eval_step(variables: dict, batch: dict) -> tuple[jax.Array, jax.Array]:
    count = count_tokens(batch, eos_id)
    found = read(model, config, eos_id, variables["params"], variables["batch_stats"], batch, count)
    return found.token_loss * count, count
  return eval_step
