"""Fraction of memory slots selected by at least one query; slots that no query selects are unused capacity.

Shapes: B studies, L patches or tokens, T tokens, S memory slots, H heads.
"""

from collections.abc import Iterable
import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict
import numpy as np

from mcsam_jax.distributed.mesh import replicated, shard_batches
from mcsam_jax.models.inputs import token_mask, visual_inputs
from mcsam_jax.models.mcsam import EncodedImages, MCSAM


def compute_memory_slot_usage(model: MCSAM, config: ConfigDict, eos_id: int, variables: dict, mesh: Mesh,
                              batches: Iterable[dict]) -> dict[str, float]:
  """Returns the fraction of slots that are among the `top_k` of at least one query, in any head.

  Args:
    batches: this host's rows of the studies. Queries are the patches of present views, and the tokens of the reference
      reports as the decoder reads them.

  Returns:
    Fractions for queries by `patches`, by `words`, and by `either` of them.
  """
  @functools.partial(jax.jit, out_shardings=replicated(mesh))
  def find_used_slots(variables: dict, batch: dict) -> tuple[jax.Array, jax.Array]:
    """Returns bool [S] for patches and for tokens."""
    memory = model.apply(variables, method="project_memory")
    encoded, state = cast(tuple[EncodedImages, dict[str, Any]], model.apply(
        variables, *visual_inputs(config, batch), memory, False, method="encode_images", mutable=["intermediates"]))
    used_by_patches = _any_selected(_get_slot_weights(state), encoded.patch_mask & batch["valid"][:, None])

    tokens = batch["tokens"][:, :-1]                        # [B, T], bos first
    if config.memory.query == "word":                       # one row per token of the vocabulary
      _, state = cast(tuple[Any, dict[str, Any]], model.apply(
          variables, memory, False, method="vocabulary_responses", mutable=["intermediates"]))
      weights = jnp.moveaxis(_get_slot_weights(state), 0, 1)[tokens]      # [vocabulary, H, S] -> [B, T, H, S]
      weights = jnp.moveaxis(weights, 2, 1)                               # [B, H, T, S]
    else:
      _, state = cast(tuple[Any, dict[str, Any]], model.apply(
          variables, tokens, jnp.arange(tokens.shape[1]), None, None, memory, False, method="embed_tokens",
          mutable=["intermediates"]))
      weights = _get_slot_weights(state)
    mask = jnp.pad(token_mask(batch["tokens"], eos_id), ((0, 0), (1, 0)), constant_values=True)[:, :-1]
    return used_by_patches, _any_selected(weights, mask & batch["valid"][:, None])

  used = np.array([jax.device_get(find_used_slots(variables, batch)) for batch in shard_batches(mesh, batches)])
  patches, words = used[:, 0].any(0), used[:, 1].any(0)     # each bool [S]
  return {"patches": float(patches.mean()), "words": float(words.mean()), "either": float((patches | words).mean())}


def _get_slot_weights(state: dict[str, Any]) -> jax.Array:
  """Returns the slot weights [..., H, L, S] of the only call of the memory bank."""
  weights, = state["intermediates"]["memory_bank"]["slot_weights"]
  return weights


def _any_selected(weights: jax.Array, mask: jax.Array) -> jax.Array:
  """Returns bool [S]: slots with weight for any query, of weights [B, H, L, S] and a mask [B, L] of queries."""
  return ((weights > 0) & mask[:, None, :, None]).any((0, 1, 2))
