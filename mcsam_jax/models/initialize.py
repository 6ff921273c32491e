"""Builds the network from a config and initializes its variables."""

from typing import cast

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict, FrozenConfigDict

from mcsam_jax.errors import UserError
from mcsam_jax.models.inputs import contrastive_targets, model_inputs
from mcsam_jax.models.mcsam import MCSAM


def make_model(config: ConfigDict, vocab_size: int, grid: int) -> MCSAM:
  """Returns the network (arguments as in `MCSAM`).

  Raises:
    UserError: the config asks for float64, but JAX runs without 64-bit support.
  """
  if config.train.compute_dtype == "float64" and jnp.result_type(float) != jnp.float64:
    raise UserError("train.compute_dtype=float64 needs the environment variable JAX_ENABLE_X64=1")
  return MCSAM(FrozenConfigDict(config), vocab_size, config.tokenizer.max_length, config.data.num_views, grid)


def init_checkpoint_variables(model: MCSAM, config: ConfigDict, batch: dict) -> dict:
  """Returns initial variables with the types of a checkpoint: float32, or the compute type if that is wider."""
  variables = init_variables(model, config, batch)
  dtype = jnp.promote_types(config.train.compute_dtype, jnp.float32)
  return jax.tree.map(lambda leaf: leaf.astype(dtype), {"batch_stats": {}, **variables})


def init_variables(model: MCSAM, config: ConfigDict, batch: dict) -> dict:
  """Returns freshly initialized variables; a pure function of config.seed and the shapes of `batch`."""
  no_eos = -1                                              # only the shapes of the batch matter

  def forward_and_align(module):
    outputs = module(*model_inputs(config, batch, no_eos), train=False)
    if config.model.use_alignment:
      module.align(outputs.image_embedding, outputs.report_embedding, contrastive_targets(batch, no_eos))
  return cast(dict, model.init(jax.random.key(config.seed), method=forward_and_align))
