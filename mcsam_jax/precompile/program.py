"""Lowers the programs of training and decoding with abstract arrays: nothing is allocated or read."""

from collections.abc import Callable
import functools

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict
import numpy as np

from input_pipeline.batch import ArraySpec, batch_spec
from mcsam_jax.distributed.mesh import batch_sharding, decode_batch_size, make_mesh, replicated, state_shardings
from mcsam_jax.inference.search import lower_search
from mcsam_jax.models.initialize import make_model
from mcsam_jax.models.visual_encoders.registry import find_encoder, frozen_feature_shape
from mcsam_jax.precompile.topology import Topology
from mcsam_jax.training.reward.reward_state import init_reward_state
from mcsam_jax.training.reward.rewards import get_term_weights
from mcsam_jax.training.reward.sample_and_update import make_sample_fn, make_update_fn
from mcsam_jax.training.train_state import init_train_state
from mcsam_jax.training.train_step import make_train_step


class _SpecialIds:
  """Special ids, the only values of a tokenizer that a compiled search needs."""
  bos_id, eos_id, pad_id = 1, 2, 0


def lower_train(config: ConfigDict, topology: Topology, vocab_size: int) -> jax.stages.Lowered:
  """Lowers a training step of `config.train.batch_size` studies for a topology; the state is donated."""
  mesh = make_mesh(config, topology.devices)
  model, state, shardings = abstract_state(config, mesh, vocab_size)
  step = jax.jit(make_train_step(model, config, _SpecialIds.eos_id), donate_argnums=0,
                 out_shardings=(shardings, replicated(mesh)))
  with jax.set_mesh(mesh):
    return step.lower(state, abstract_batch(config, config.train.batch_size, mesh))


def lower_decode(config: ConfigDict, topology: Topology, vocab_size: int,
                 num_train_reports: int = 0) -> jax.stages.Lowered:
  """Lowers the search that generates the reports of `config.decode.batch_size` studies for a topology.

  Args:
    num_train_reports: size of the retrieval index of training reports, which `decode.retrieval_weight` > 0 uses.
  """
  mesh = make_mesh(config, topology.devices)
  model, state, _ = abstract_state(config, mesh, vocab_size)
  batch = abstract_batch(config, decode_batch_size(config, mesh.shape), mesh)
  del batch["tokens"]
  with jax.set_mesh(mesh):
    return lower_search([model], config, _SpecialIds(), mesh, config.decode.search, [state.variables], batch,
                        num_train_reports)


def lower_reward_sample(config: ConfigDict, topology: Topology, vocab_size: int) -> jax.stages.Lowered:
  """Lowers the sampling of `config.reward.num_samples` reports for each study of a training batch."""
  mesh = make_mesh(config, topology.devices)
  model, state, _ = abstract_state(config, mesh, vocab_size, init_reward_state)
  sample = jax.jit(make_sample_fn(model, config, _SpecialIds()), out_shardings=replicated(mesh))
  with jax.set_mesh(mesh):
    return sample.lower(state.params, state.batch_stats, abstract_batch(config, config.train.batch_size, mesh))


def lower_reward_update(config: ConfigDict, topology: Topology, vocab_size: int) -> jax.stages.Lowered:
  """Lowers the update of reward fine-tuning from the samples of a training batch; the state is donated."""
  mesh = make_mesh(config, topology.devices)
  model, state, shardings = abstract_state(config, mesh, vocab_size, init_reward_state)
  terms = jax.ShapeDtypeStruct((*state.samples.draw_log_probs.shape, len(get_term_weights(config))), np.float32,
                               sharding=batch_sharding(mesh))
  update = jax.jit(make_update_fn(model, config, _SpecialIds()), donate_argnums=0,
                   out_shardings=(shardings, replicated(mesh)))
  with jax.set_mesh(mesh):
    return update.lower(state, abstract_batch(config, config.train.batch_size, mesh), terms,
                        state.params if config.reward.kl_weight else None, state.samples)


def abstract_state(config: ConfigDict, mesh: Mesh, vocab_size: int, init_state: Callable = init_train_state):
  """Returns the model, its abstract train state with shardings, and the shardings."""
  encoder = find_encoder(config.encoder.name)
  model = make_model(config, vocab_size, config.data.image_size // encoder.stride)
  sample = {name: jax.ShapeDtypeStruct(*spec) for name, spec in get_batch_spec(config, 1).items()}
  state = jax.eval_shape(functools.partial(init_state, model, config), sample)
  shardings = state_shardings(mesh, state)
  with_sharding = lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
  return model, jax.tree.map(with_sharding, state, shardings), shardings


def abstract_batch(config: ConfigDict, size: int, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns an abstract batch of `size` studies with the specs of `input_pipeline`, sharded over the mesh."""
  split = batch_sharding(mesh)
  return {name: jax.ShapeDtypeStruct(*spec, sharding=split) for name, spec in get_batch_spec(config, size).items()}


def get_batch_spec(config: ConfigDict, size: int) -> dict[str, ArraySpec]:
  """Returns shape and dtype of each array of a batch: features if the encoder is frozen, else images."""
  return batch_spec(config, size, frozen_feature_shape(config))
