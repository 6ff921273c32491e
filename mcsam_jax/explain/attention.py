"""What a model attended to when it generated a report: patches for each token, memory slots for the whole study.

One forward pass over finished reports, all tokens at once, gives the values that a search does not keep. Searches stay
fast, and the maps do not depend on which search generated a report.

The decoder attends to encoded patches, and the encoder has mixed each patch with others, often with empty corners of
the image. So the decoder's attention is followed back through the encoder's layers: each layer distributes a fraction
of `1 - RESIDUAL_WEIGHT` along its own attention (attention rollout; Abnar and Zuidema, ACL 2020, with one half).

Shapes: B studies, V views, N = V * P patches, T tokens, S memory slots, H heads.
"""

from collections.abc import Callable
from typing import Any, cast, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from ml_collections import ConfigDict

from mcsam_jax.models.inputs import model_inputs
from mcsam_jax.models.mcsam import MCSAM, ModelOutputs

# Fraction of a patch's attention that stays at the same patch in an encoder layer. On phantoms of the train split, the
# map of a finding's word pointed at the finding in 15 % (weight 1: no rollout), 15 (.75), 23 (.5), 30 (.25) and 30 %
# (0) of cases; the map of the same word in another study did in 13, 13, 17, 18 and 20 %.
RESIDUAL_WEIGHT = 0.25


class AttributionMaps(NamedTuple):
  """Attention behind B reports; values of tokens after eos are 0."""
  log_probs: jax.Array        # float32 [B, T], of each token given those before it, eos included
  patches: jax.Array          # float32 [B, T, N], attention of each token to the patches, averaged over the decoder's
                              # layers and heads and followed back through the encoder; sums to 1
  slots: jax.Array | None     # float32 [B, S], attention of the patches to the memory slots, averaged over patches and
                              # heads; sums to 1; None without memory


def make_attribution_fn(model: MCSAM, config: ConfigDict,
                        eos_id: int) -> Callable[[dict, dict, ArrayLike], AttributionMaps]:
  """Returns a jitted function (variables, batch, ids) -> AttributionMaps.

  The batch is one of `eval_batches`, of whose tokens only bos is used. `ids` int32 [B, T] are generated reports: tokens
  after bos, up to and including eos if it was reached, then pad.
  """
  @jax.jit
  def compute_maps(variables: dict, batch: dict, ids: jax.Array) -> AttributionMaps:
    tokens = jnp.concatenate([batch["tokens"][:, :1], ids], axis=1)
    inputs = model_inputs(config, batch | {"tokens": tokens}, eos_id)
    outputs, state = cast(tuple[ModelOutputs, dict[str, Any]],
                          model.apply(variables, *inputs, train=False, mutable=["intermediates"]))
    token_mask = inputs[-1]                                                              # [B, T]
    log_probs = jax.nn.log_softmax(outputs.logits.astype(jnp.float32))
    token_log_probs = jnp.take_along_axis(log_probs, ids[..., None], axis=-1)[..., 0]
    intermediates, length = state["intermediates"], ids.shape[1]

    cross_attention = [
        intermediates["decoder"][f"layers_{layer}"]["cross_attention"]["weights"][0][:, :, -length:]
        for layer in range(config.model.decoder_layers)]                                 # each [B, H, T, N]
    patches = jnp.stack(cross_attention).astype(jnp.float32).mean((0, 2))                # [B, T, N]
    for layer in reversed(range(config.model.encoder_layers)):
      self_attention = intermediates["patch_encoder"][f"layers_{layer}"]["self_attention"]["weights"][0]
      mixing = self_attention.mean(1).astype(jnp.float32)                                # [B, N, N]
      patches = RESIDUAL_WEIGHT * patches + (1 - RESIDUAL_WEIGHT) * patches @ mixing

    slots = None
    if config.model.use_memory:
      weights = intermediates["memory_bank"]["slot_weights"][0]            # first call: the patches' [B, H, N, S]
      patch_mask = jnp.repeat(batch["view_mask"], weights.shape[2] // batch["view_mask"].shape[1], axis=1)
      patch_weights = patch_mask / patch_mask.sum(-1, keepdims=True)
      slots = jnp.einsum("bhns,bn->bs", weights, patch_weights) / weights.shape[1]
    return AttributionMaps(jnp.where(token_mask, token_log_probs, 0),
                           jnp.where(token_mask[..., None], patches, 0), slots)
  return compute_maps
