"""Log-probabilities of the tokens of given reports, by one forward pass over whole reports.

A search keeps only their sum; this pass is cheap beside a search, which stays as fast as it is.

Shapes: B studies, L reports per study, T tokens.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

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
    tokens = jnp.pad(ids, ((0, 0), (0, 0), (1, 0)), constant_values=special_ids.bos_id)              # [B, L, T + 1]
    logits = read_reports(module, (images, view_mask, view_ids), tokens[..., :-1])          # [B, L, T, words]
    log_probs = jnp.take_along_axis(jax.nn.log_softmax(logits.astype(jnp.float32)), ids[..., None], axis=-1)[..., 0]
    mask = jax.vmap(lambda tokens: token_mask(tokens, special_ids.eos_id))(tokens)
    return jnp.where(mask, log_probs, 0)

  def compute(variables: dict, batch: dict, ids: jax.Array) -> jax.Array:
    return model.apply(variables, *visual_inputs(config, batch), ids, method=score)  # pyright: ignore[reportReturnType]
  return compute


def read_reports(module: MCSAM, images: tuple, tokens: jax.Array) -> jax.Array:
  """Returns the logits [B, L, T, vocabulary] after each of the tokens [B, L, T]; each study is encoded once.

  Args:
    module: bound, as in the function that `module.apply` calls.
    images: see `visual_inputs`.
    tokens: of L reports per study, bos first.
  """
  pixels, view_mask, view_ids = images
  constants = module.make_decode_constants()
  context = module.prefill(module.encode_images(pixels, view_mask, view_ids, constants.memory, train=False))
  return module.read_reports(tokens, context, constants)
