"""The real programs of training and writing, lowered with arrays that are shapes alone: nothing is allocated or read.

Shapes: B studies, V views, S pixels, P patches a view, C channels, T tokens.
"""

import functools

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from input_pipeline.batch import ArraySpec, batch_spec
from mcsam_jax.distributed.mesh import batch_sharding, decode_batch_size, make_mesh, replicated, state_shardings
from mcsam_jax.inference.search import lower_search
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
  batch = abstract_batch(config, decode_batch_size(config, mesh.shape), mesh)
  del batch["tokens"]
  with jax.set_mesh(mesh):
    return lower_search([model], config, _SpecialIds(), mesh, config.decode.search, [state.variables], batch,
                        num_train_reports)


def abstract_state(config: ConfigDict, mesh: Mesh, vocab_size: int):
  """Returns the model, its state as shapes with shardings, and the shardings."""
  encoder = ENCODERS[config.encoder.name]
  model = make_model(config, vocab_size, config.data.image_size // encoder.stride)
  sample = {name: jax.ShapeDtypeStruct(*spec) for name, spec in get_batch_spec(config, 1).items()}
  state = jax.eval_shape(functools.partial(init_train_state, model, config), sample)
  shardings = state_shardings(mesh, state)
  place = lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
  return model, jax.tree.map(place, state, shardings), shardings


def abstract_batch(config: ConfigDict, size: int, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns a batch of `size` studies, as `input_pipeline` makes them, split over the mesh."""
  split = batch_sharding(mesh)
  return {name: jax.ShapeDtypeStruct(*spec, sharding=split) for name, spec in get_batch_spec(config, size).items()}


def get_batch_spec(config: ConfigDict, size: int) -> dict[str, ArraySpec]:
  """Returns shape and type of each array of a batch: features where the encoder is frozen, else images."""
  encoder = ENCODERS[config.encoder.name]
  return batch_spec(config, size, encoder.feature_shape(config.data.image_size) if config.encoder.frozen else None)
