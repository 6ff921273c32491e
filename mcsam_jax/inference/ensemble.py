"""Several models that generate one report together: each token has the mean of their probabilities.

`Ensemble` offers a search the same functions as a single model. Where a model has one value (variables, decode
constants, decode context, cache), an ensemble has a list with one entry per model. An ensemble of one model gives
exactly the logits of that model.

Shapes: B studies, K beams or samples, M models, R training reports, F findings, D width.
"""

from collections.abc import Callable, Sequence
import functools

import jax
import jax.numpy as jnp
import numpy as np

from mcsam_jax.models.decode_cache import cache_is_full, grow_cache, init_cache
from mcsam_jax.models.mcsam import DecodeConstants, DecodeContext, MCSAM


class Ensemble:
  """Models with the same vocabulary, and the methods of `MCSAM` and `decode_cache` that a search calls."""

  def __init__(self, models: Sequence[MCSAM]):
    self.models = models

  def make_decode_constants(self, variables: Sequence[dict]) -> list[DecodeConstants]:
    """Returns the values that depend on the parameters alone."""
    return self._apply_each("make_decode_constants", variables)

  def prefill(self, variables: Sequence[dict], visual_inputs: tuple,
              constants: Sequence[DecodeConstants]) -> list[DecodeContext]:
    """Encodes studies; `visual_inputs` are images, view_mask and view_ids, the same for all models."""
    images, view_mask, view_ids = visual_inputs

    def encode_and_prefill(model: MCSAM, constants: DecodeConstants) -> DecodeContext:
      return model.prefill(model.encode_images(images, view_mask, view_ids, constants.memory, train=False))
    return self._apply_each(encode_and_prefill, variables, constants)

  def init_cache(self, contexts: Sequence[DecodeContext], num_beams: int, reorderable: bool) -> dict:
    """Returns the stacked caches before the first token."""
    return stack_caches([init_cache(context.study_kv, num_beams, reorderable) for context in contexts])

  def decode_step(self, variables: Sequence[dict], tokens: jax.Array, cache: dict, contexts: Sequence[DecodeContext],
                  constants: Sequence[DecodeConstants]) -> tuple[jax.Array, dict]:
    """Returns the logits [B, K, vocabulary] of the token after `tokens` [B, K], and the updated cache."""
    logits, caches = zip(*self._apply_each("decode_step", variables, [tokens] * len(self.models),
                                           unstack_caches(cache), contexts, constants))
    return average_probabilities(logits), stack_caches(caches)

  def grow_cache(self, contexts: Sequence[DecodeContext], cache: dict, num_slots: int) -> dict:
    """Returns the cache with `num_slots` slots for report tokens."""
    return stack_caches([grow_cache(model_cache, context.study_kv, num_slots)
                         for model_cache, context in zip(unstack_caches(cache), contexts)])

  def cache_is_full(self, cache: dict) -> jax.Array:
    """Returns whether some study lacks slots for the next tokens (bool scalar)."""
    return cache_is_full(unstack_caches(cache)[0])       # the beams are the same in all models

  def train_report_probs(self, variables: Sequence[dict], contexts: Sequence[DecodeContext],
                         train_embeddings: Sequence[jax.Array]) -> jax.Array:
    """Returns the probability of each training report given a study's images [B, R], by image-report alignment.

    Args:
      train_embeddings: for each model, the embeddings [R, D] of the training reports.
    """
    image_embeddings = [context.image_embedding for context in contexts]
    logits = self._apply_each("alignment_logits", variables, image_embeddings, train_embeddings)   # each [B, R]
    return functools.reduce(jnp.add, map(jax.nn.softmax, logits)) / len(self.models)

  def finding_probs(self, contexts: Sequence[DecodeContext]) -> jax.Array | None:
    """Returns the mean probability of each finding [B, F] by the models' findings heads; None if one has none."""
    probs = [context.finding_probs for context in contexts if context.finding_probs is not None]
    if len(probs) < len(contexts):
      return None
    return jnp.mean(jnp.stack(probs), axis=0)

  def _apply_each(self, method: str | Callable, variables: Sequence[dict], *args: Sequence) -> list:
    """Returns the results of a method of each model, called with that model's entry of each argument."""
    return [model.apply(model_variables, *model_args, method=method)
            for model, model_variables, *model_args in zip(self.models, variables, *args, strict=True)]


def stack_caches(caches: Sequence[dict]) -> dict:
  """Returns the caches of several models as one, whose beams are reordered in all of them."""
  return {"beams": [cache["beams"] for cache in caches], "models": [cache | {"beams": None} for cache in caches]}


def unstack_caches(cache: dict) -> list[dict]:
  """Returns the caches that `stack_caches` has joined."""
  return [model_cache | {"beams": beams} for model_cache, beams in zip(cache["models"], cache["beams"])]


def average_probabilities(logits: Sequence[jax.Array]) -> jax.Array:
  """Returns logits [..., vocabulary] whose softmax is the mean of the softmaxes of M `logits`."""
  if len(logits) == 1:
    return logits[0]
  log_probs = jax.nn.log_softmax(jnp.stack(logits).astype(jnp.float32))          # [M, ..., vocabulary]
  return jax.nn.logsumexp(log_probs, axis=0) - np.log(len(logits))
