"""Builds the network from a config and initializes its variables."""

import jax
from ml_collections import ConfigDict, FrozenConfigDict

from mcsam_jax.errors import UserError
from mcsam_jax.models.inputs import make_contrastive_pairs, model_inputs
from mcsam_jax.models.mcsam import MCSAM


def make_model(config: ConfigDict, vocab_size: int, grid: int) -> MCSAM:
  """Returns the network.

  Raises:
    UserError: it is to compute in float64, which JAX hasn't been told to have.
  """
  if config.train.compute_dtype == "float64" and not jax.config.jax_enable_x64:
    raise UserError("train.compute_dtype=float64 needs the environment variable JAX_ENABLE_X64=1")
  return MCSAM(FrozenConfigDict(config), vocab_size, config.tokenizer.max_length, config.data.num_views, grid)


def init_variables(model: MCSAM, config: ConfigDict, batch: dict) -> dict:
  """Returns freshly initialized variables; a pure function of config.seed and the shapes of `batch`."""
  def whole(module):
    *inputs, mask = model_inputs(config, batch, eos_id=-1)
    outputs = module(*inputs, mask, train=False)
    if config.model.use_alignment:
      module.align(outputs.image_embedding, outputs.report_embedding, make_contrastive_pairs(batch, mask))
  return model.init(jax.random.key(config.seed), method=whole)
