"""The two programs of a step of reward fine-tuning: one samples reports, the other updates the parameters.

Shapes: B studies, K samples, T tokens, R reward terms.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import optax

from mcsam_jax import partitioning
from mcsam_jax.decoding.loop import CacheResizer
from mcsam_jax.decoding.sampling import temperature_sample
from mcsam_jax.inference.ensemble import Ensemble
from mcsam_jax.inference.search import SpecialIds
from mcsam_jax.inference.token_log_probs import read_reports
from mcsam_jax.models.augment import augment_batch
from mcsam_jax.models.inputs import token_mask, visual_inputs
from mcsam_jax.models.mcsam import MCSAM
from mcsam_jax.training.losses import LossWeights, make_loss_weights, measure_batch
from mcsam_jax.training.reward.policy_gradient import (
  compute_entropy,
  compute_kl,
  compute_policy_log_probs,
  compute_policy_loss,
  sum_over_tokens,
)
from mcsam_jax.training.reward.reward_state import RewardState, Samples
from mcsam_jax.training.reward.rewards import get_term_weights
from mcsam_jax.training.train_step import apply_gradient, compute_loss, make_dropout_key

SampleFn = Callable[[Any, Any, dict], Samples]
UpdateFn = Callable[[RewardState, dict, jax.Array, Any, Samples], tuple[RewardState, dict[str, jax.Array]]]


def make_sample_fn(model: MCSAM, config: ConfigDict, special_ids: SpecialIds) -> SampleFn:
  """Returns sample(params, batch_stats, batch) -> Samples, a pure function to be jitted.

  Each report is drawn with a key that depends on seed, record and epoch alone.

  Args:
    special_ids: usually the tokenizer.
  """
  ensemble, options = Ensemble([model]), config.reward

  def sample(params, batch_stats, batch: dict) -> Samples:
    variables = [{"params": partitioning.gather_params(params), "batch_stats": batch_stats}]
    inputs = visual_inputs(config, augment_batch(config, batch))
    constants = ensemble.make_decode_constants(variables)
    contexts = ensemble.prefill(variables, inputs, constants)
    make_key = lambda record, epoch: jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed + 2), record),
                                                        epoch)
    result = temperature_sample(
        lambda tokens, cache: ensemble.decode_step(variables, tokens, cache, contexts, constants),
        ensemble.init_cache(contexts, options.num_samples, reorderable=False),
        keys=jax.vmap(make_key)(batch["record"], batch["epoch"]), num_samples=options.num_samples,
        max_length=config.tokenizer.max_length, bos_id=special_ids.bos_id, eos_id=special_ids.eos_id,
        pad_id=special_ids.pad_id, temperature=options.temperature,
        cache_resizer=CacheResizer(functools.partial(ensemble.grow_cache, contexts), ensemble.cache_is_full))
    return Samples(result.ids, result.draw_log_probs, batch["tokens"])

  return sample


def make_update_fn(model: MCSAM, config: ConfigDict, special_ids: SpecialIds) -> UpdateFn:
  """Returns update(state, batch, terms, start_params, next_samples) -> (state, metrics), to be jitted.

  `batch` is the one that `state.samples` were drawn for, `terms` [B, K, R] are their reward terms, and `next_samples`
  become the samples of the new state. `start_params` are only read with `reward.kl_weight`; else they are None.
  """
  options, eos_id = config.reward, special_ids.eos_id
  term_weights = get_term_weights(config)
  forbidden = tuple({special_ids.bos_id, special_ids.pad_id} - {eos_id})

  def log_probs_of(params, batch_stats, batch: dict, tokens: jax.Array) -> jax.Array:
    """Returns the policy's log-probabilities [B, K, T, vocabulary] at each position of tokens [B, K, T]."""
    logits = model.apply({"params": params, "batch_stats": batch_stats}, visual_inputs(config, batch), tokens,
                         method=read_reports)
    return compute_policy_log_probs(cast(jax.Array, logits), options.temperature, forbidden)

  def update(state: RewardState, batch: dict, terms: jax.Array, start_params, next_samples: Samples):
    params = partitioning.gather_params(state.params)
    ids, draw_log_probs = (partitioning.shard_batch(array)
                           for array in (state.samples.ids, state.samples.draw_log_probs))
    tokens = jnp.pad(ids, ((0, 0), (0, 0), (1, 0)), constant_values=special_ids.bos_id)         # [B, K, T + 1]
    inputs, targets = tokens[..., :-1], tokens[..., 1:]
    mask = jax.vmap(lambda tokens: token_mask(tokens, eos_id))(tokens)                          # [B, K, T]
    valid = batch["valid"]
    study_weights = valid / jnp.maximum(valid.sum(), 1)                                         # [B]
    sampled = mask & valid[:, None, None]
    rewards = (terms * jnp.array(list(term_weights.values()), terms.dtype)).sum(-1)             # [B, K]
    batch = augment_batch(config, batch)
    start_log_probs = None
    if options.kl_weight:
      start_log_probs = log_probs_of(partitioning.gather_params(start_params), state.batch_stats, batch, inputs)

    def mean_over_samples(values):                                                              # [B, K] -> []
      return (study_weights * values.mean(1)).sum()

    def mean_over_tokens(values):                                                               # [B, K, T] -> []
      return jnp.where(sampled, values, 0).sum() / jnp.maximum(sampled.sum(), 1)

    def loss_fn(params):
      loss, metrics, read_batch = jnp.zeros(()), {}, _encode_images_once(model, config, params, state, batch)
      if options.cross_entropy_weight:
        weights = LossWeights(*(options.cross_entropy_weight * weight for weight in make_loss_weights(config)))
        loss, (metrics, _) = compute_loss(model, config, eos_id, params, state.batch_stats, read_batch,
                                          measure_batch(batch, eos_id), make_dropout_key(config, state.step), weights)
      log_probs = log_probs_of(params, state.batch_stats, read_batch, inputs)                   # [B, K, T, vocabulary]
      of_targets = jnp.take_along_axis(log_probs, targets[..., None], -1)[..., 0]
      loss += compute_policy_loss(sum_over_tokens(of_targets, mask), draw_log_probs, rewards, study_weights)
      metrics |= {"reward": mean_over_samples(rewards), "entropy": mean_over_tokens(compute_entropy(log_probs)),
                  "length": mean_over_samples(mask.sum(-1))}
      if start_log_probs is not None:
        metrics["kl"] = mean_over_tokens(compute_kl(log_probs, start_log_probs))
        loss += options.kl_weight * metrics["kl"]
      return loss, metrics

    (loss, metrics), gradient = jax.value_and_grad(loss_fn, has_aux=True)(params)
    gradient = partitioning.shard_params(gradient)
    metrics |= {f"reward_{term}": mean_over_samples(terms[..., number]) for number, term in enumerate(term_weights)}
    metrics |= {"loss": loss, "gradient_norm": optax.tree.norm(gradient)}
    state = apply_gradient(config, state, gradient, state.batch_stats)
    return dataclasses.replace(state, samples=next_samples), metrics

  return update


def _encode_images_once(model: MCSAM, config: ConfigDict, params, state: RewardState, batch: dict) -> dict:
  """Returns the batch with the visual encoder's features instead of images, so that all loss terms share them."""
  if "images" not in batch:
    return batch
  images, view_mask, _ = visual_inputs(config, batch)
  images = jnp.where(view_mask[..., None, None, None], images, 0)
  features = model.apply({"params": params, "batch_stats": state.batch_stats}, images, False, method="extract_features")
  return {name: array for name, array in batch.items() if name != "images"} | {"features": features}
