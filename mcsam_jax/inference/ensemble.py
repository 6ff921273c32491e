"""Several models that write one report together: the next word has the mean of the probabilities that they give it.

Stands where one `MCSAM` would in a search, with a list where that has a thing: of variables, of what is prepared.
For a model alone all is as without.

Shapes: B studies, K beams or draws, M models, R training reports.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mcsam_jax.models.mcsam import DecodeConstants, DecodeContext, MCSAM


class Ensemble:
  """Models with one vocabulary; all arguments and results are those of the methods of `MCSAM`, a list entry a model."""

  def __init__(self, models: Sequence[MCSAM]):
    self.models = models

  def each(self, method: str, variables: Sequence[dict], *arguments: Sequence) -> list:
    """Returns what a method of each model gives for its own variables and arguments."""
    return [model.apply(mine, *own, method=method)
            for model, mine, *own in zip(self.models, variables, *arguments, strict=True)]

  def prepare(self, variables: Sequence[dict]) -> list[DecodeConstants]:
    return self.each("prepare", variables)

  def begin(self, variables: Sequence[dict], seen: tuple, prepared: Sequence[DecodeConstants]) -> list[DecodeContext]:
    """`seen`: images, view_mask and view_ids, the same for all models."""
    return self.each("begin", variables, *([part] * len(self.models) for part in seen), prepared)

  def init_cache(self, variables: Sequence[dict], begun: Sequence[DecodeContext], num_beams: int, exchange: bool) -> dict:
    count = len(self.models)
    return stack_caches(self.each("init_cache", variables, begun, [num_beams] * count, [exchange] * count))

  def step(self, variables: Sequence[dict], words: jax.Array, cache: dict, begun: Sequence[DecodeContext],
           prepared: Sequence[DecodeConstants]) -> tuple[jax.Array, dict]:
    logits, caches = zip(*self.each("step", variables, [words] * len(self.models), unstack_caches(cache), begun, prepared))
    return mean_probability(logits), stack_caches(caches)

  def grow(self, variables: Sequence[dict], cache: dict, nodes: int) -> dict:
    return stack_caches(self.each("grow", variables, unstack_caches(cache), [nodes] * len(self.models)))

  def full(self, variables: Sequence[dict], cache: dict) -> jax.Array:
    return self.models[0].apply(variables[0], unstack_caches(cache)[0], method="full")       # beams part alike in all

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
