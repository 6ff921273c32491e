"""One training step and one validation step: pure functions of state and batch, jitted over the mesh.

A batch is a dict of arrays with a leading axis B: `images` uint8 [B, V, S, S, 1]
or `features` [B, V, P, C], `view_mask` [B, V], `view_ids` [B, V], `tokens`
[B, T + 1], `labels` [B, 14], `record`, `epoch` and `valid` [B].
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict, FrozenConfigDict
import optax

from input_pipeline.datasets.findings import LABEL_VALUES
from mcsam_jax.models.mcsam import MCSAM
from mcsam_jax.models.semantic_alignment import Alignment, alignment_targets
from mcsam_jax.training.optimizer import average_decay, make_optimizer
from mcsam_jax.training.preprocess import augment, preprocess


@flax.struct.dataclass
class TrainState:
  """All that changes in training; a checkpoint is exactly this."""
  step: jax.Array          # steps done, int32
  params: Any
  batch_stats: Any         # of the visual encoder; {} where its features are cached
  opt_state: Any
  average: Any             # moving average of params; None where optimizer.average_decay is 0

  @property
  def variables(self) -> dict:
    """What writes reports: the averaged parameters where there are such."""
    return {"params": self.params if self.average is None else self.average, "batch_stats": self.batch_stats}


def make_model(config: ConfigDict, vocab_size: int, grid: int) -> MCSAM:
  return MCSAM(FrozenConfigDict(config), vocab_size, config.tokenizer.max_length, config.data.num_views, grid)


def init_state(model: MCSAM, config: ConfigDict, batch: dict) -> TrainState:
  """Returns the state at step 0; a pure function of config.seed and the shapes of `batch`."""
  def whole(module):
    outputs = module(*model_inputs(config, batch, eos_id=-1), train=False)
    if config.model.use_alignment:
      count = outputs.image_code.shape[0]
      module.align(outputs.image_code, outputs.report_code, jnp.eye(count), jnp.ones(count, bool))
  variables = model.init(jax.random.key(config.seed), method=whole)
  return first_state(config, variables["params"], variables.get("batch_stats", {}))


def first_state(config: ConfigDict, params, batch_stats) -> TrainState:
  """Returns the state of step 0 with these parameters and batch statistics."""
  average = jax.tree.map(jnp.copy, params) if config.optimizer.average_decay else None
  return TrainState(jnp.zeros((), jnp.int32), params, batch_stats, make_optimizer(config).init(params), average)


def model_inputs(config: ConfigDict, batch: dict, eos_id: int, augmented: bool = False) -> tuple:
  """Returns the arguments of the model for a batch; see `MCSAM.__call__`."""
  return (*visual_inputs(config, batch, augmented), batch["tokens"], token_mask(batch["tokens"], eos_id))


def visual_inputs(config: ConfigDict, batch: dict, augmented: bool = False) -> tuple:
  """Returns what the model sees of a batch: images or features, view_mask, view_ids."""
  if "features" in batch:
    images = batch["features"].astype(jnp.float32)
  else:
    images = batch["images"]
    if augmented and config.data.augment:
      images = augment(images, config.seed, batch["record"], batch["epoch"])
    images = preprocess(images, config.encoder.name)
  return images, batch["view_mask"], batch["view_ids"]


def token_mask(tokens: jax.Array, eos_id: int) -> jax.Array:
  """Returns [B, T]: which of tokens[:, 1:] belong to the report, the first eos included (ids may be shared)."""
  ends = tokens[:, 1:] == eos_id
  return jnp.cumsum(ends, axis=-1) - ends == 0


def token_losses(logits: jax.Array, targets: jax.Array, smoothing: float) -> jax.Array:
  """Returns the cross-entropy [B, T] of targets [B, T] under logits [B, T, vocabulary], in float32.

  Smoothing gives every word of the vocabulary an equal share of `smoothing` (Szegedy et al., CVPR 2016).
  """
  log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
  target = jnp.take_along_axis(log_probs, targets[..., None], -1)[..., 0]
  return -(1 - smoothing) * target - smoothing * log_probs.mean(-1)


def losses(model: MCSAM, config: ConfigDict, eos_id: int, params, batch_stats, batch: dict, rng=None):
  """Returns the token loss, the alignment loss, and (metrics, new batch_stats).

  Both losses are means over the whole global batch: of tokens, and of studies. With
  `rng` the model trains: augmentation, dropout, smoothing.
  """
  train = rng is not None
  inputs = model_inputs(config, batch, eos_id, augmented=train)
  outputs, updated = model.apply({"params": params, "batch_stats": batch_stats}, *inputs, train,
                                 rngs={"dropout": rng} if train else None, mutable=["batch_stats"])
  targets, mask = batch["tokens"][:, 1:], inputs[-1] & batch["valid"][:, None]
  count = jnp.maximum(mask.sum(), 1)
  smoothed = token_losses(outputs.logits, targets, config.optimizer.label_smoothing if train else 0.0)
  token_loss = jnp.where(mask, smoothed, 0).sum() / count
  plain = jax.lax.stop_gradient(token_losses(outputs.logits, targets, 0.0))
  metrics = {"token_loss": jnp.where(mask, plain, 0).sum() / count, "tokens": mask.sum()}
  align_loss = jnp.zeros(())
  if config.model.use_alignment:
    aligned = align(model, config, params, outputs.image_code, outputs.report_code, batch, inputs[-1])
    align_loss = aligned.loss
    metrics |= {"align_loss": aligned.loss, "align_accuracy": aligned.accuracy, "temperature": aligned.temperature}
  return token_loss, align_loss, (metrics, updated.get("batch_stats", {}))


def align(model: MCSAM, config: ConfigDict, params, image_code, report_code, batch: dict, mask) -> Alignment:
  """Returns the alignment of the codes [B, D] of a batch, whose report tokens are where mask [B, T]."""
  positive = (batch["labels"] == LABEL_VALUES.index("positive")).astype(jnp.float32)
  targets = alignment_targets(config.model.align_targets, jnp.where(mask, batch["tokens"][:, 1:], -1), positive)
  return model.apply({"params": params}, image_code, report_code, targets, batch["valid"], method="align")


def make_train_step(model: MCSAM, config: ConfigDict, eos_id: int):
  """Returns train_step(state, batch) -> (state, metrics)."""
  optimizer = make_optimizer(config)

  def train_step(state: TrainState, batch: dict) -> tuple[TrainState, dict]:
    rng = jax.random.fold_in(jax.random.key(config.seed + 1), state.step)   # the same after a restart

    def total(params):
      token_loss, align_loss, extra = losses(model, config, eos_id, params, state.batch_stats, batch, rng)
      return token_loss + config.model.align_weight * align_loss, extra

    (loss, (metrics, batch_stats)), gradient = jax.value_and_grad(total, has_aux=True)(state.params)
    metrics |= {"loss": loss, "gradient_norm": optax.tree.norm(gradient)}
    if config.model.use_alignment:
      logged = ((state.step + 1) % config.train.log_every == 0) | (state.step + 1 == config.train.num_steps)
      metrics |= term_norms(model, config, eos_id, state, batch, rng, gradient, logged)
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    average = state.average
    if average is not None:
      average = optax.incremental_update(params, average, 1 - average_decay(config, state.step))
    return TrainState(state.step + 1, params, batch_stats, opt_state, average), metrics

  return train_step


def term_norms(model: MCSAM, config: ConfigDict, eos_id: int, state: TrainState, batch: dict, rng, gradient,
               logged: jax.Array) -> dict:
  """Returns the norm of the gradient that each term of the loss sends, weights included; zeros unless `logged`.

  Only the alignment's gradient is taken again; the tokens' is what is left of the whole.
  """
  def alignment_loss(params):
    return config.model.align_weight * losses(model, config, eos_id, params, state.batch_stats, batch, rng)[1]

  def norms():
    of_alignment = jax.grad(alignment_loss)(state.params)
    of_tokens = jax.tree.map(jnp.subtract, gradient, of_alignment)
    return {"gradient_norm_align": optax.tree.norm(of_alignment), "gradient_norm_token": optax.tree.norm(of_tokens)}

  zeros = {"gradient_norm_align": jnp.zeros(()), "gradient_norm_token": jnp.zeros(())}
  return jax.lax.cond(logged, norms, lambda: zeros)


def make_eval_step(model: MCSAM, config: ConfigDict, eos_id: int):
  """Returns eval_step(variables, batch) -> (sum of token losses, number of tokens) over the valid studies."""
  def eval_step(variables: dict, batch: dict) -> tuple[jax.Array, jax.Array]:
    _, _, (metrics, _) = losses(model, config, eos_id, variables["params"], variables["batch_stats"], batch)
    return metrics["token_loss"] * metrics["tokens"], metrics["tokens"]
  return eval_step
