"""Which memory slots answer anybody: a bank whose slots nobody asks holds nothing."""

from collections.abc import Iterable
import functools

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from mcsam_jax.distributed.mesh import replicated, shard_batches
from mcsam_jax.models.inputs import token_mask, visual_inputs
from mcsam_jax.models.mcsam import MCSAM


def memory_slot_usage(model: MCSAM, config: ConfigDict, eos_id: int, variables: dict,
                    mesh: jax.sharding.Mesh, batches: Iterable[dict]) -> dict[str, float]:
  """Returns the share of slots that are among the `top_k` of some query of the batches, in any head.

  Queries are the patches of the views that exist, and the words of the reference
  reports as the decoder reads them. `batches` are this host's rows.
  """
  @functools.partial(jax.jit, out_shardings=replicated(mesh))
  def used(variables, batch):
    def answered(weights, mask):                            # [B, H, L, S], [B, L] -> [S]
      return ((weights > 0) & mask[:, None, :, None]).any((0, 1, 2))

    images, view_mask, view_ids = visual_inputs(config, batch)
    memory = model.apply(variables, method="project_memory")
    encoded, state = model.apply(variables, images, view_mask, view_ids, memory, False, method="encode_images",
                                 mutable=["intermediates"])
    patches = answered(*state["intermediates"]["memory_bank"]["slot_weights"],
                       encoded.patch_mask & batch["valid"][:, None])
    if config.memory.query == "word":                       # a table [vocabulary, D]: look up who answered each word
      _, state = model.apply(variables, memory, False, method="vocabulary_responses", mutable=["intermediates"])
      weights = jnp.moveaxis(state["intermediates"]["memory_bank"]["slot_weights"][0], 0, 1)[batch["tokens"][:, :-1]]
      weights = jnp.moveaxis(weights, 2, 1)                 # [vocabulary, H, S] -> [B, T, H, S] -> [B, H, T, S]
    else:
      words = batch["tokens"][:, :-1]
      _, state = model.apply(variables, words, jnp.arange(words.shape[1]), None, None, memory, False,
                             method="embed_tokens", mutable=["intermediates"])
      weights = state["intermediates"]["memory_bank"]["slot_weights"][0]
    shown = jnp.pad(token_mask(batch["tokens"], eos_id), ((0, 0), (1, 0)), constant_values=True)[:, :-1]
    return patches, answered(weights, shown & batch["valid"][:, None])

  patches, words = np.any([jax.device_get(used(variables, batch)) for batch in shard_batches(mesh, batches)], axis=0)
  return {"patches": float(patches.mean()), "words": float(words.mean()), "either": float((patches | words).mean())}
