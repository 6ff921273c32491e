"""The real programs of training and writing, lowered with arrays that are shapes alone: nothing is allocated or read.

Shapes: B studies, V views, S pixels, P patches a view, C channels, T tokens.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mcsam_jax.distributed.mesh import batch_sharding, decode_batch_size, make_mesh, replicated, state_shardings
from mcsam_jax.findings import FINDINGS
from mcsam_jax.inference.generate import ReportGenerator
from mcsam_jax.models.initialize import make_model
from mcsam_jax.models.visual_encoders.registry import ENCODERS
from mcsam_jax.precompile.topology import Topology
from mcsam_jax.training.train_state import init_train_state
from mcsam_jax.training.train_step import make_train_step


class _SpecialIds:
  """All that a compiled search needs of a tokenizer."""
  bos_id, eos_id, pad_id = 1, 2, 0


def lower_train(config: ConfigDict, topology: Topology, vocab_size: int) -> jax.stages.Lowered:
  """Returns one training step of `config.train.batch_size` studies, lowered for a topology; the state is donated."""
  mesh = make_mesh(config, topology.devices)
  model, state, shardings = abstract_state(config, mesh, vocab_size)
  step = jax.jit(make_train_step(model, config, _SpecialIds.eos_id), donate_argnums=0,
                 out_shardings=(shardings, replicated(mesh)))
  with jax.set_mesh(mesh):
    return step.lower(state, abstract_batch(config, config.train.batch_size, mesh))


def lower_decode(config: ConfigDict, topology: Topology, vocab_size: int,
                 num_train_reports: int = 0) -> jax.stages.Lowered:
  """Returns the search that writes the reports of `decode.batch_size` studies, lowered for a topology.

  `num_train_reports`: that have a vote, where `decode.retrieval_weight` gives them one.
  """
  mesh = make_mesh(config, topology.devices)
  model, state, _ = abstract_state(config, mesh, vocab_size)
  writer = ReportGenerator([model], config, _SpecialIds, mesh, config.decode.search)
  batch = abstract_batch(config, decode_batch_size(config, mesh.shape), mesh)
  with jax.set_mesh(mesh):
    return writer.lower([state.variables], {name: array for name, array in batch.items() if name != "tokens"},
                        num_train_reports)


def abstract_state(config: ConfigDict, mesh: Mesh, vocab_size: int):
  """Returns the model, its state as shapes with shardings, and the shardings."""
  encoder = ENCODERS[config.encoder.name]
  model = make_model(config, vocab_size, config.data.image_size // encoder.stride)
  state = jax.eval_shape(functools.partial(init_train_state, model, config), _shapes(config, 1))
  shardings = state_shardings(mesh, state)
  place = lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
  return model, jax.tree.map(place, state, shardings), shardings


def abstract_batch(config: ConfigDict, size: int, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns a batch of `size` studies, as `input_pipeline` makes them, split over the mesh."""
  split = batch_sharding(mesh)
  return {name: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=split)
          for name, array in _shapes(config, size).items()}


def _shapes(config: ConfigDict, size: int) -> dict[str, jax.ShapeDtypeStruct]:
  data, encoder = config.data, ENCODERS[config.encoder.name]
  if config.encoder.frozen:                                # as training/feature_cache.py keeps them
    patches = (data.image_size // encoder.stride) ** 2
    pixels = {"features": ((size, data.num_views, patches, encoder.channels), jnp.float16)}
  else:
    pixels = {"images": ((size, data.num_views, data.image_size, data.image_size, 1), jnp.uint8)}
  fields = pixels | {
      "view_mask": ((size, data.num_views), jnp.bool_), "view_ids": ((size, data.num_views), jnp.int32),
      "tokens": ((size, config.tokenizer.max_length + 1), jnp.int32), "labels": ((size, len(FINDINGS)), jnp.int8),
      "record": ((size,), jnp.int32), "epoch": ((size,), jnp.int32), "valid": ((size,), jnp.bool_)}
  return {name: jax.ShapeDtypeStruct(shape, dtype) for name, (shape, dtype) in fields.items()}
