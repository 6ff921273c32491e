"""Several models that write one report together: the next word has the mean of the probabilities that they give it.

Stands where one `MCSAM` would in a search, with a list where that has a thing: of variables, of what is prepared.
For a model alone all is as without.

Shapes: B studies, K beams or draws, M models, R training reports.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mcsam_jax.models.decode_cache import cache_is_full, grow_cache, init_cache
from mcsam_jax.models.mcsam import DecodeConstants, DecodeContext, MCSAM


class Ensemble:
  """Models with one vocabulary; all arguments and results are those of the methods of `MCSAM`, a list entry a model."""

  def __init__(self, models: Sequence[MCSAM]):
    self.models = models

  def each(self, method: str | Callable, variables: Sequence[dict], *arguments: Sequence) -> list:
    """Returns what a method of each model gives for its own variables and arguments."""
    return [model.apply(mine, *own, method=method)
            for model, mine, *own in zip(self.models, variables, *arguments, strict=True)]

  def make_decode_constants(self, variables: Sequence[dict]) -> list[DecodeConstants]:
    return self.each("make_decode_constants", variables)

  def prefill(self, variables: Sequence[dict], visual_inputs: tuple,
              constants: Sequence[DecodeConstants]) -> list[DecodeContext]:
    """Encodes studies; `visual_inputs` are images, view_mask and view_ids, the same for all models."""
    def encode_and_prefill(model: MCSAM, constants: DecodeConstants) -> DecodeContext:
      return model.prefill(model.encode_images(*visual_inputs, constants.memory, train=False))
    return self.each(encode_and_prefill, variables, constants)

  def init_cache(self, contexts: Sequence[DecodeContext], num_beams: int, reorderable: bool) -> dict:
    return stack_caches([init_cache(context.study_kv, num_beams, reorderable) for context in contexts])

  def decode_step(self, variables: Sequence[dict], tokens: jax.Array, cache: dict, contexts: Sequence[DecodeContext],
                  constants: Sequence[DecodeConstants]) -> tuple[jax.Array, dict]:
    logits, caches = zip(*self.each("decode_step", variables, [tokens] * len(self.models), unstack_caches(cache),
                                    contexts, constants))
    return mean_probability(logits), stack_caches(caches)

  def grow_cache(self, contexts: Sequence[DecodeContext], cache: dict, num_slots: int) -> dict:
    return stack_caches([grow_cache(part, context.study_kv, num_slots)
                         for part, context in zip(unstack_caches(cache), contexts)])

  def cache_is_full(self, cache: dict) -> jax.Array:
    return cache_is_full(unstack_caches(cache)[0])       # all models have the same beams

  def likelihood(self, variables: Sequence[dict], begun: Sequence[DecodeContext], codes: Sequence[jax.Array]) -> jax.Array:
    """Returns how likely each training report is by the alignments [B, R], for its codes [R, D] in each model."""
    agreements = self.each("alignment_logits", variables, [study.image_embedding for study in begun], codes)
    return sum(map(jax.nn.softmax, agreements)) / len(self.models)


def stack_caches(caches: Sequence[dict]) -> dict:
  """Returns the caches of several models as one, in which each beam takes its part of all of them along."""
  return {"beams": [cache["beams"] for cache in caches], "rest": [cache | {"beams": None} for cache in caches]}


def unstack_caches(cache: dict) -> list[dict]:
  return [mine | {"beams": beams} for mine, beams in zip(cache["rest"], cache["beams"])]


def mean_probability(logits: Sequence[jax.Array]) -> jax.Array:
  """Returns the logits [..., vocabulary] of the mean of the distributions that M `logits` stand for."""
  if len(logits) == 1:
    return logits[0]
  log_probs = jax.nn.log_softmax(jnp.stack(logits).astype(jnp.float32))          # [M, ..., vocabulary]
  return jax.nn.logsumexp(log_probs, axis=0) - np.log(len(logits))
