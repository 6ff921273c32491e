"""Gradient accumulation over microbatches that gives the gradient of the whole batch, contrastive loss included.

The alignment compares all studies of a batch, so the gradient of one microbatch depends on the embeddings of all
others. GradCache (Gao et al., RepL4NLP 2021) gets by without keeping all activations:

  1. The embeddings of all microbatches are computed, without their gradients.
  2. The alignment loss of the whole batch gives the gradient with respect to each embedding.
  3. Each microbatch is run again, and the gradient of its embeddings is propagated through the network together with
     the gradients of its token loss and findings loss.

Shapes: B studies, D width.
"""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mcsam_jax.models.mcsam import MCSAM
from mcsam_jax.training.losses import BatchSize, compute_alignment, compute_metrics, forward, LossWeights


def accumulate_gradient(model: MCSAM, config: ConfigDict, eos_id: int, params, batch_stats, batch: dict,
                        size: BatchSize, rng: jax.Array, weights: LossWeights):
  """Returns the gradient of the weighted loss and (loss, metrics, batch_stats), one microbatch at a time.

  The gradient equals that of the whole batch up to rounding, but only the activations of one microbatch are in memory.
  Each of the `train.grad_accum_steps` microbatches has its own dropout key. Batch statistics are returned unchanged.

  Args:
    size: of the whole batch.
  """
  microbatches = split_into_microbatches(batch, config.train.grad_accum_steps)
  rngs = jax.random.split(rng, config.train.grad_accum_steps)

  def forward_microbatch(params, microbatch, rng):
    return forward(model, config, eos_id, params, batch_stats, microbatch, size, rng)

  alignment, embedding_gradients, gradient, loss = None, None, jax.tree.map(jnp.zeros_like, params), 0.0
  if config.model.use_alignment:
    _, embeddings = jax.lax.scan(lambda _, inputs: (None, forward_microbatch(params, *inputs).embeddings), None,
                                 (microbatches, rngs))

    def alignment_loss(params, embeddings):
      alignment = compute_alignment(model, config, eos_id, params, jax.tree.map(merge_microbatches, embeddings), batch)
      assert alignment is not None
      return weights.align * alignment.loss, alignment

    (loss, alignment), (gradient, embedding_gradients) = jax.value_and_grad(
        alignment_loss, (0, 1), has_aux=True)(params, embeddings)

  def add_microbatch(carry, inputs):
    microbatch, rng, embedding_gradients = inputs

    def surrogate_loss(params):
      output = forward_microbatch(params, microbatch, rng)
      loss = weights.token * output.token_loss + weights.findings * output.finding_loss
      # Its gradient is that of the alignment loss through the embeddings of this microbatch.
      through_embeddings = sum(jax.tree.leaves(jax.tree.map(jnp.vdot, output.embeddings, embedding_gradients)))
      return loss + through_embeddings, (loss, (output.unsmoothed_token_loss, output.finding_loss))

    new, new_gradient = jax.value_and_grad(surrogate_loss, has_aux=True)(params)
    return jax.tree.map(jnp.add, carry, (new_gradient, *new[1])), None

  zero = jnp.zeros((), jax.tree.leaves(params)[0].dtype)
  (gradient, loss, (token_loss, finding_loss)), _ = jax.lax.scan(
      add_microbatch, (gradient, zero + loss, (zero, zero)), (microbatches, rngs, embedding_gradients))
  return gradient, (loss, compute_metrics(config, token_loss, finding_loss, size, alignment), batch_stats)


def split_into_microbatches(tree, num_microbatches: int):
  """Returns arrays [B, ...] as [num_microbatches, B / num_microbatches, ...].

  Each microbatch takes an equal share of every device's rows, so no row moves between devices.
  """
  return jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, num_microbatches, *x.shape[1:]), 1, 0), tree)


def merge_microbatches(x: jax.Array) -> jax.Array:
  """Returns [B, ...] from [num_microbatches, B / num_microbatches, ...]; undoes `split_into_microbatches`."""
  return jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:])
