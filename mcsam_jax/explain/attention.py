"""Why a report says what it says: how sure the model was of each word, where it looked, and what it remembered.

One pass over finished reports, all words at once, gives what a search doesn't keep. So searches pay nothing for it,
and it is the same whichever search wrote the report.

Where it looked. The decoder attends to encoded patches, and the encoder has carried what a patch shows to others: to
corners of the picture, not seldom, where there is nothing. So the decoder's attention is followed back through the
encoder's layers, each of which sends `1 - OWN_SHARE` of it on along its own attention (attention rollout; Abnar and
Zuidema, ACL 2020, whose share is a half).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mcsam_jax.models.inputs import model_inputs
from mcsam_jax.models.mcsam import MCSAM

# Of a patch's meaning that is its own behind a layer of the encoder. On train phantoms the map of a finding's word
# pointed at the finding in 15 % (share 1: no rollout), 15 (.75), 23 (.5), 30 (.25) and 30 % (0); another study's map
# of the word did in 13, 13, 17, 18 and 20 %.
OWN_SHARE = 0.25


class Explanation(NamedTuple):
  """Of B reports; what belongs to words is 0 behind eos."""
  log_probs: jax.Array        # float32 [B, T], of each token given those before it, eos included
  patches: jax.Array          # float32 [B, T, N], attention over the patches, mean over the decoder's layers and heads,
                              # followed through the encoder; sums to 1
  slots: jax.Array | None     # float32 [B, S], the memory slots that answered the patches, mean over patches and
                              # heads; sums to 1; None without memory


def make_explain(model: MCSAM, config: ConfigDict, eos_id: int) -> Callable[[dict, dict, jax.Array], Explanation]:
  """Returns a jitted function (variables, batch, ids) that explains reports.

  `batch` is one of `eval_batches` (its own tokens, the references, aren't read), `ids` int32 [B, T] are what a search
  wrote, without bos, with eos where it was reached.
  """
  @jax.jit
  def explain(variables: dict, batch: dict, ids: jax.Array) -> Explanation:
    tokens = jnp.concatenate([batch["tokens"][:, :1], ids], axis=1)                      # bos first
    inputs = model_inputs(config, batch | {"tokens": tokens}, eos_id)
    outputs, state = model.apply(variables, *inputs, train=False, mutable=["intermediates"])
    written = inputs[-1]                                                                 # [B, T]
    log_probs = jax.nn.log_softmax(outputs.logits.astype(jnp.float32))
    chosen = jnp.take_along_axis(log_probs, ids[..., None], axis=-1)[..., 0]
    seen, length = state["intermediates"], ids.shape[1]
    looks = [seen["decoder"][f"layers_{layer}"]["cross_attention"]["weights"][0][:, :, -length:]
             for layer in range(config.model.decoder_layers)]                            # each [B, H, T, N]
    patches = jnp.stack(looks).astype(jnp.float32).mean((0, 2))
    for layer in reversed(range(config.model.encoder_layers)):
      mixed = seen["patch_encoder"][f"layers_{layer}"]["self_attention"]["weights"][0].mean(1).astype(jnp.float32)  # [B, N, N]
      patches = OWN_SHARE * patches + (1 - OWN_SHARE) * patches @ mixed
    slots = None
    if config.model.use_memory:
      weights = seen["memory_bank"]["slot_weights"][0]                                 # patches ask first: [B, H, N, S]
      there = jnp.repeat(batch["view_mask"], weights.shape[2] // batch["view_mask"].shape[1], axis=1)
      slots = jnp.einsum("bhns,bn->bs", weights, there / there.sum(-1, keepdims=True)) / weights.shape[1]
    return Explanation(jnp.where(written, chosen, 0), jnp.where(written[..., None], patches, 0), slots)
  return explain
