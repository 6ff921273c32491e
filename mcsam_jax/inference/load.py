"""Loads trained models from their workdirs: one, or several as an ensemble."""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import shlex

import jax
from jax.sharding import Mesh

from input_pipeline.batch import empty_batch
from mcsam_jax import config as configs
from mcsam_jax.checkpoints import exported
from mcsam_jax.checkpoints.checkpoint import Checkpoints, to_shape_dtype_struct
from mcsam_jax.checkpoints.weights import hash_weights
from mcsam_jax.checkpoints.workdir import RUNTIME_FIELDS, Workdir
from mcsam_jax.distributed.mesh import state_shardings
from mcsam_jax.errors import UserError
from mcsam_jax.extensions.by_name import is_import_name
from mcsam_jax.files import trace_cache
from mcsam_jax.models.initialize import init_checkpoint_variables, make_model
from mcsam_jax.models.mcsam import MCSAM
from mcsam_jax.models.visual_encoders.registry import frozen_feature_shape


@dataclasses.dataclass
class LoadedModel:
  """A model with the variables of one of its checkpoints.

  Attributes:
    workdir: where it was trained.
    model: the Flax module.
    variables: `params` and `batch_stats`, on the devices of a mesh.
    step: training step of the checkpoint.
  """
  workdir: str
  model: MCSAM
  variables: dict
  step: int


def load_model(workdir: Workdir, mesh: Mesh, step: int | None = None,
               log: Callable[[str], None] = print) -> LoadedModel:
  """Returns the model of a workdir. No record is read.

  Args:
    workdir: an open workdir.
    mesh: over which the variables are sharded.
    step: training step of the checkpoint; None: the best one on val.
    log: receives lines of progress.

  Raises:
    UserError: the workdir has no checkpoint, or none of that step, or the checkpoint is damaged.
  """
  config, tokenizer = workdir.config, workdir.tokenizer
  model = make_model(config, tokenizer.vocab_size, workdir.patch_grid)
  sample_batch = empty_batch(config, 1, frozen_feature_shape(config))
  init = functools.partial(init_checkpoint_variables, model, config, sample_batch)
  if is_import_name(config.encoder.name):            # the user's own code, which may have changed
    abstract = jax.eval_shape(init)
  else:
    abstract = trace_cache.keep_shapes(init, "model-shapes", [config.to_json(), tokenizer.vocab_size])
  if exported.is_exported(workdir.path):
    arrays, step = exported.load_variables(workdir.path, {name: tree for name, tree in abstract.items() if tree}, step)
    return LoadedModel(str(workdir.path), model, jax.device_put(arrays, state_shardings(mesh, abstract)), step)
  checkpoints = Checkpoints(workdir.path, best_metric=config.train.best_metric, read_only=True)
  step = checkpoints.best() if step is None else step
  if step is None:
    raise UserError(f"{workdir.path} has no checkpoint yet: run `mcsam train --config ... --workdir "
                    f"{shlex.quote(str(workdir.path))}` first")
  variables = checkpoints.restore_variables(step, to_shape_dtype_struct(abstract, state_shardings(mesh, abstract)),
                                            config.optimizer.ema_decay > 0, log)
  return LoadedModel(str(workdir.path), model, variables, step)


def check_compatible(workdirs: Sequence[Workdir]) -> None:
  """Checks that the models of all workdirs can generate reports together.

  Raises:
    UserError: two models have different inputs or vocabularies, or one has no alignment, which
      `decode.retrieval_weight` needs. It names the workdir.
  """
  first, *others = workdirs
  for workdir in workdirs:
    if first.config.decode.retrieval_weight and not workdir.config.model.use_alignment:
      raise UserError(f"{workdir.path} was trained without alignment, which decode.retrieval_weight needs: "
                      "set --config.decode.retrieval_weight=0")
  for other in others:
    differences = [line for line in configs.diff_configs(first.config, other.config)
                   if line.startswith(("data.", "tokenizer.", "encoder.name:", "encoder.frozen:",
                                        "encoder.trained_stages:"))
                   and line.partition(":")[0] not in RUNTIME_FIELDS]
    if not differences and first.tokenizer.get_vocabulary() != other.tokenizer.get_vocabulary():
      differences = ["their vocabularies differ"]
    if not differences and first.config.encoder.frozen and _encoder_digest(first) != _encoder_digest(other):
      differences = ["the weights of their frozen encoders differ"]
    if differences:
      raise UserError(f"{other.path} can't generate reports together with {first.path}: {'; '.join(differences)}")


def _encoder_digest(workdir: Workdir) -> str | None:
  """Returns a digest of the weights in encoder.npz; None without that file."""
  return None if workdir.encoder_variables is None else hash_weights(workdir.encoder_variables)
