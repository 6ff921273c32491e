"""The trained models that write a report: one, or several as an ensemble."""

from collections.abc import Sequence
import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict
import numpy as np

from input_pipeline.pipeline import read_batch
from input_pipeline.splits import Split
from mcsam_jax import config as configs
from mcsam_jax.checkpoints.checkpoint import Checkpoints, to_shape_dtype_struct
from mcsam_jax.checkpoints.weights import weights_digest
from mcsam_jax.checkpoints.workdir import RUNTIME_FIELDS, Workdir
from mcsam_jax.distributed.mesh import state_shardings
from mcsam_jax.errors import UserError
from mcsam_jax.inference.feature_cache import split_features
from mcsam_jax.models.initialize import init_variables, make_model
from mcsam_jax.models.mcsam import MCSAM


@dataclasses.dataclass
class LoadedModel:
  """A model at one of its checkpoints."""
  workdir: str
  model: MCSAM
  variables: dict
  step: int


def load_member(work: Workdir, mesh: Mesh, split: Split, step: int | None = None, log=print) -> LoadedModel:
  """Returns the model of a workdir with the variables of a checkpoint, spread over the mesh.

  Args:
    split: that it will read; tells the shape of its inputs.
    step: of the checkpoint; None: the best on val.

  Raises:
    UserError: the workdir holds no training, or no such step; a damaged checkpoint.
  """
  first = np.zeros(1, np.int64)
  sample = read_batch(split, first, first, work.tokenizer, work.config, split_features(work, split))
  return restore_member(work, mesh, sample, step, log)


def restore_member(work: Workdir, mesh: Mesh, sample: dict, step: int | None = None, log=print) -> LoadedModel:
  """Returns the same for a model whose inputs have the shapes of the batch `sample`; no records are asked for."""
  config, tokenizer = work.config, work.tokenizer
  checkpoints = Checkpoints(work.path, best_metric=config.train.best_metric, read_only=True)
  step = checkpoints.best() if step is None else step
  if step is None:
    raise UserError(f"{work.path} has no checkpoint yet: run `mcsam train --config ... --workdir {work.path}` first")
  model = make_model(config, tokenizer.vocab_size, work.patch_grid)
  empty = jax.eval_shape(functools.partial(abstract_variables, model, config, sample))
  variables = checkpoints.restore_variables(step, to_shape_dtype_struct(empty, state_shardings(mesh, empty)),
                                            config.optimizer.ema_decay > 0, log)
  return LoadedModel(str(work.path), model, variables, step)


def abstract_variables(model: MCSAM, config: ConfigDict, sample: dict) -> dict:
  """Returns `params` and `batch_stats` as a checkpoint holds them: float32, or wider where the model computes so."""
  variables = init_variables(model, config, sample)
  dtype = jnp.promote_types(config.train.compute_dtype, jnp.float32)
  return jax.tree.map(lambda leaf: leaf.astype(dtype), {"batch_stats": {}, **variables})


def check_compatible(works: Sequence[Workdir]) -> None:
  """Raises UserError unless all workdirs read the same inputs, write the same words, and can vote as decode asks."""
  first, *others = works
  for work in works:
    if first.config.decode.retrieval_weight and not work.config.model.use_alignment:
      raise UserError(f"{work.path} was trained without alignment, which decode.retrieval_weight asks: "
                      "set --config.decode.retrieval_weight=0")
  for other in others:
    problems = [line for line in configs.diff_configs(first.config, other.config)
                if line.startswith(("data.", "tokenizer.", "encoder.name:", "encoder.frozen:"))
                and line.partition(":")[0] not in RUNTIME_FIELDS]
    if not problems and first.tokenizer.get_vocabulary() != other.tokenizer.get_vocabulary():
      problems = ["their vocabularies differ"]
    if not problems and first.config.encoder.frozen and (
        weights_digest(first.encoder_variables) != weights_digest(other.encoder_variables)):
      problems = ["the weights of their frozen encoders differ"]
    if problems:
      raise UserError(f"{other.path} can't write together with {first.path}: {'; '.join(problems)}")
