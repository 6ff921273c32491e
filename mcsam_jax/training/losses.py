"""Forward pass and loss terms of one batch or microbatch.

The loss is the token cross-entropy, plus `model.align_weight` times the alignment loss, plus `model.findings_weight`
times the findings loss. All terms are means over the global batch: the first over its tokens, the others over its
studies. A term of the user's own (`train.loss_term`), a mean over the studies, is part of the first.

A batch is a dict of arrays with a leading axis B: `images` uint8 [B, V, H, W, 1] or `features` [B, V, P, C],
`view_mask` [B, V], `view_ids` [B, V], `tokens` [B, T + 1], `labels` [B, 14], `record`, `epoch` and `valid` [B].

Shapes: B studies, V views, H x W pixels, P patches per view, C channels, T tokens, D width.
"""

from typing import Any, cast, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mcsam_jax.errors import UserError
from mcsam_jax.extensions.by_name import call_by_name
from mcsam_jax.models.augment import augment_batch
from mcsam_jax.models.inputs import contrastive_targets, model_inputs, token_mask
from mcsam_jax.models.layers import at_least_float32
from mcsam_jax.models.mcsam import MCSAM, ModelOutputs
from mcsam_jax.models.semantic_alignment import AlignmentOutput


class LossWeights(NamedTuple):
  """Weights of the loss terms."""
  token: float | jax.Array
  align: float | jax.Array
  findings: float | jax.Array


def make_loss_weights(config: ConfigDict) -> LossWeights:
  """Returns the weights that training uses."""
  return LossWeights(1.0, config.model.align_weight, config.model.findings_weight)


class BatchSize(NamedTuple):
  """Denominators of the loss terms: the size of the whole batch, which may be larger than the part that is run."""
  tokens: jax.Array       # target tokens of the valid studies, at least 1
  studies: jax.Array      # valid studies, at least 1


@flax.struct.dataclass
class ForwardOutput:
  """Forward-pass outputs for one batch or microbatch.

  Attributes:
    token_loss: sum of the token losses divided by the number of tokens in the *whole* batch, scalar; in training plus
      the weighted term of the user's own.
    unsmoothed_token_loss: the same without label smoothing and without a gradient, scalar.
    finding_loss: sum of the findings losses divided by the number of studies in the whole batch, scalar; 0 without
      findings head.
    embeddings: (image embeddings, report embeddings), both [B, D]; None without alignment.
    batch_stats: batch-norm statistics, updated by this batch.
  """
  token_loss: jax.Array
  unsmoothed_token_loss: jax.Array
  finding_loss: jax.Array
  embeddings: tuple[jax.Array, jax.Array] | None
  batch_stats: Any


def forward(model: MCSAM, config: ConfigDict, eos_id: int, params, batch_stats, batch: dict, size: BatchSize,
            rng: jax.Array | None = None) -> ForwardOutput:
  """Runs the network on a batch or microbatch and returns its token loss, findings loss and embeddings.

  Args:
    size: of the whole batch, which may be larger than `batch`.
    rng: dropout key; None for evaluation, which uses neither dropout nor augmentation nor label smoothing.
  """
  train = rng is not None
  inputs = model_inputs(config, augment_batch(config, batch) if train else batch, eos_id)
  outputs, updated = model.apply({"params": params, "batch_stats": batch_stats}, *inputs, train,
                                 rngs={"dropout": rng} if train else None, mutable=["batch_stats"])
  targets, mask = batch["tokens"][:, 1:], inputs[-1] & batch["valid"][:, None]
  smoothed = token_losses(outputs.logits, targets, config.optimizer.label_smoothing if train else 0.0)
  unsmoothed = jax.lax.stop_gradient(token_losses(outputs.logits, targets, 0.0))
  finding_loss = jnp.zeros((), smoothed.dtype)
  if config.model.findings_head:
    loss_sum = model.apply({"params": params}, outputs.finding_logits, batch["labels"], batch["valid"],
                           method="finding_loss")
    finding_loss = cast(jax.Array, loss_sum) / size.studies
  token_loss = jnp.where(mask, smoothed, 0).sum() / size.tokens
  if train and config.train.loss_term:
    token_loss += compute_own_term(config, outputs, batch, mask)
  return ForwardOutput(
      token_loss=token_loss,
      unsmoothed_token_loss=jnp.where(mask, unsmoothed, 0).sum() / size.tokens,
      finding_loss=finding_loss,
      embeddings=(outputs.image_embedding, outputs.report_embedding) if config.model.use_alignment else None,
      batch_stats=updated.get("batch_stats", {}))


def compute_own_term(config: ConfigDict, outputs: ModelOutputs, batch: dict, mask: jax.Array) -> jax.Array:
  """Returns the weighted loss term `train.loss_term` of a batch or microbatch: its share of the whole batch's mean.

  Args:
    outputs: of the network for the batch.
    mask: bool [B, T], True for the target tokens of valid studies.

  Raises:
    UserError: the function fails, or doesn't return one loss per study.
  """
  field, name = "train.loss_term", config.train.loss_term
  per_study = call_by_name(field, name, outputs, batch, mask, returns=jax.Array)
  if per_study.shape != batch["valid"].shape:
    raise UserError(f"{field}={name}: returned {list(per_study.shape)}, expected one loss per study, "
                    f"{list(batch['valid'].shape)}")
  num_studies = per_study.size * config.train.grad_accum_steps
  return config.train.loss_term_weight * jnp.where(batch["valid"], per_study, 0).sum() / num_studies


def token_losses(logits: jax.Array, targets: jax.Array, smoothing: float) -> jax.Array:
  """Returns the cross-entropy [B, T] of targets [B, T] under logits [B, T, vocabulary], in float32 or wider.

  Label smoothing distributes `smoothing` evenly over the vocabulary (Szegedy et al., CVPR 2016).
  """
  log_probs = jax.nn.log_softmax(at_least_float32(logits))
  target = jnp.take_along_axis(log_probs, targets[..., None], -1)[..., 0]
  return -(1 - smoothing) * target - smoothing * log_probs.mean(-1)


def measure_batch(batch: dict, eos_id: int) -> BatchSize:
  """Returns the number of target tokens and of studies of a batch."""
  num_tokens = (token_mask(batch["tokens"], eos_id) & batch["valid"][:, None]).sum()
  return BatchSize(jnp.maximum(num_tokens, 1), jnp.maximum(batch["valid"].sum(), 1))


def compute_alignment(model: MCSAM, config: ConfigDict, eos_id: int, params, embeddings,
                      batch: dict) -> AlignmentOutput | None:
  """Returns loss, accuracy and temperature of the image-report alignment; None if `model.use_alignment` is off.

  Args:
    embeddings: (image embeddings, report embeddings), both [B, D], of the whole batch.
  """
  if not config.model.use_alignment:
    return None
  targets = contrastive_targets(batch, eos_id)
  return cast(AlignmentOutput, model.apply({"params": params}, *embeddings, targets, method="align"))


def compute_metrics(config: ConfigDict, token_loss: jax.Array, finding_loss: jax.Array, size: BatchSize,
                    alignment: AlignmentOutput | None) -> dict[str, jax.Array]:
  """Returns the scalars that a training step logs, by name.

  Args:
    token_loss: mean over the tokens of the batch, without label smoothing.
    finding_loss: mean over the studies of the batch.
  """
  metrics = {"token_loss": token_loss, "tokens": size.tokens}
  if config.model.findings_head:
    metrics["finding_loss"] = finding_loss
  if alignment:
    metrics |= {"align_loss": alignment.loss, "align_accuracy": alignment.accuracy,
                "temperature": alignment.temperature}
  return metrics
