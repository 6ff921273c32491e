"""Log-probabilities of the tokens of given reports, by one forward pass over whole reports.

A search keeps only their sum; this pass is cheap beside a search, which stays as fast as it is.

Shapes: B studies, L reports per study, T tokens, N patches, D width.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from mcsam_jax.inference.search import SpecialIds
from mcsam_jax.models.inputs import token_mask, visual_inputs
from mcsam_jax.models.mcsam import MCSAM


def make_token_log_probs_fn(model: MCSAM, config: ConfigDict, special_ids: SpecialIds) -> Callable:
  """Returns a pure function (variables, batch, ids) -> float32 [B, L, T], to be jitted.

  `ids` int32 [B, L, T] are reports: tokens after bos, up to and including eos, then padding. The value of a token is
  its log-probability given the images and the tokens before it, of the model without the rules of a search; after eos
  it is 0.
  """
  def score(module: MCSAM, images: jax.Array, view_mask: jax.Array, view_ids: jax.Array, ids: jax.Array) -> jax.Array:
    num_reports, length = ids.shape[1:]
    memory = module.project_memory()
    encoded = module.encode_images(images, view_mask, view_ids, memory, train=False)
    conditioning = module.image_conditioning(encoded.image_embedding)
    repeat = lambda array: jnp.repeat(array, num_reports, axis=0)                         # [B, ...] -> [B * L, ...]
    ids = ids.reshape(-1, length)                                                              # [B * L, T]
    tokens = jnp.concatenate([jnp.full_like(ids[:, :1], special_ids.bos_id), ids], axis=1)     # [B * L, T + 1]
    x = module.embed_tokens(tokens[:, :-1], np.arange(length),
                            None if conditioning is None else repeat(conditioning),
                            module.vocabulary_responses(memory, train=False), memory, train=False)
    logits = module.decoder(x, repeat(encoded.patches), repeat(encoded.patch_mask), train=False)
    log_probs = jnp.take_along_axis(jax.nn.log_softmax(logits.astype(jnp.float32)), ids[..., None], axis=-1)[..., 0]
    return jnp.where(token_mask(tokens, special_ids.eos_id), log_probs, 0).reshape(-1, num_reports, length)

  def compute(variables: dict, batch: dict, ids: jax.Array) -> jax.Array:
    return model.apply(variables, *visual_inputs(config, batch), ids, method=score)  # pyright: ignore[reportReturnType]
  return compute
