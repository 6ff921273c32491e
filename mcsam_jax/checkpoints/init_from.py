"""Starting a run from the parameters of another one (`train.init_from`).

The new workdir gets copies of everything it needs: parameters (`initial_weights.npz`), tokenizer, initial memory slots
and pretrained encoder. Nothing is read from the other workdir after the new one has been created.
"""

from collections.abc import Callable, Mapping
import dataclasses
import functools
from typing import Any

from etils import epath
from flax import traverse_util
import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict
import numpy as np

from input_pipeline.batch import empty_batch
from mcsam_jax import config as configs
from mcsam_jax.checkpoints.checkpoint import Checkpoints, to_shape_dtype_struct
from mcsam_jax.checkpoints.weights import flatten_variables, read_weights, save_weights
from mcsam_jax.checkpoints.workdir import INITIAL_WEIGHTS, open_workdir, Workdir
from mcsam_jax.distributed.mesh import replicated
from mcsam_jax.errors import UserError
from mcsam_jax.models.initialize import init_checkpoint_variables, make_model
from mcsam_jax.models.visual_encoders.registry import frozen_feature_shape

# Fields that have to be those of the other run, because parameters depend on them by shape or by meaning.
SAME_SECTIONS = ("tokenizer", "memory")
SAME_FIELDS = ("data.cleaning", "data.image_size", "data.num_views", "encoder.name", "model.width", "model.num_heads",
               "model.feedforward_width", "model.encoder_layers", "model.decoder_layers", "model.patch_activation",
               "model.patch_positions", "model.word_positions", "model.norm", "model.num_memory_tokens",
               "model.align_on", "model.text_encoder_layers")
# Parts of the network that the new run may have in addition, but that it may not lack.
PARTS = ("model.use_memory", "model.use_alignment", "model.use_memory_tokens")


@dataclasses.dataclass
class Origin:
  """The run that a new run starts from.

  Attributes:
    workdir: its workdir.
    step: step of the checkpoint.
    variables: `params` and `batch_stats` of that checkpoint, as NumPy arrays; averaged parameters where it has them.
  """
  workdir: Workdir
  step: int
  variables: dict

  def save_weights(self, path: epath.Path) -> None:
    """Writes the variables to a file that `load_initial_variables` reads."""
    save_weights(path, self.variables, {"architecture": "mcsam", "source": f"{self.workdir.path}@{self.step}",
                                        "pretraining_data": self.workdir.pretraining_data})


def load_origin(config: ConfigDict, mesh: Mesh, log: Callable[[str], None] = print) -> Origin:
  """Returns the run that `train.init_from` names, after checking that its parameters fit the config.

  All hosts call this function.

  Args:
    config: config of the new run.
    mesh: devices that read the checkpoint.
    log: receives a line with the origin, and one with the parameters that it lacks.

  Raises:
    UserError: there is no such workdir or checkpoint, it is damaged, or a field that shapes the model differs.
  """
  path, step = parse_init_from(config.train.init_from)
  workdir = open_workdir(path, log=lambda line: None)
  check_same_model(config, workdir)
  checkpoints = Checkpoints(workdir.path, best_metric=workdir.config.train.best_metric, read_only=True)
  step = checkpoints.best() if step is None else step
  if step is None:
    raise UserError(f"train.init_from={config.train.init_from}: {workdir.path} has no checkpoint yet")
  abstract = _abstract_variables(workdir.config, workdir)
  shardings = jax.tree.map(lambda leaf: replicated(mesh), abstract)
  variables = checkpoints.restore_variables(step, to_shape_dtype_struct(abstract, shardings),
                                            workdir.config.optimizer.ema_decay > 0, log)
  origin = Origin(workdir, step, jax.tree.map(np.asarray, variables))
  new_parts = check_shapes(flatten_variables(_abstract_variables(config, workdir)),
                           flatten_variables(origin.variables), f"train.init_from={config.train.init_from}")
  if workdir.encoder_variables:
    new_parts.discard("visual_encoder")                     # starts from encoder.npz
  log(f"starting from {workdir.path}, step {step}" +
      (f"; initialized freshly, because that run lacks them: {', '.join(sorted(new_parts))}" if new_parts else ""))
  return origin


def parse_init_from(text: str) -> tuple[epath.Path, int | None]:
  """Returns the workdir and the step, or None, of `WORKDIR` or `WORKDIR@STEP`."""
  path, at, step = text.rpartition("@")
  return (epath.Path(path), int(step)) if at and step.isdecimal() else (epath.Path(text), None)


def check_same_model(config: ConfigDict, origin: Workdir) -> None:
  """Raises UserError, which names the field, if a config doesn't fit the parameters of another run."""
  values, other = configs.flatten_config(config), configs.flatten_config(origin.config)
  differing = [field for field in values if values[field] != other[field]
               and (field in SAME_FIELDS or field.partition(".")[0] in SAME_SECTIONS)]
  differing += [field for field in PARTS if other[field] and not values[field]]
  if values["encoder.frozen"] and not other["encoder.frozen"]:
    differing.append("encoder.frozen")
  elif values["encoder.frozen"] and values["encoder.trained_stages"] < other["encoder.trained_stages"]:
    differing.append("encoder.trained_stages")
  if values["model.use_memory"] and other["model.use_memory"] and (
      "random" in (kinds := {values["memory_init.kind"], other["memory_init.kind"]}) and len(kinds) > 1):
    differing.append("memory_init.kind")
  if differing:
    fields = "; ".join(f"{field}={values[field]}, there {other[field]}" for field in differing)
    raise UserError(f"train.init_from={config.train.init_from} holds another model ({fields}): set the values of that "
                    "run, or start without it")


def check_shapes(expected: Mapping[str, Any], found: Mapping[str, np.ndarray], source: str) -> set[str]:
  """Returns the top-level names of expected parameters that aren't found.

  Args:
    expected, found: arrays or shapes by flat name (params/decoder/...).
    source: start of the error message.

  Raises:
    UserError: a shape differs, or a parameter is not expected.
  """
  problems = [f"unexpected {name}" for name in found if name not in expected and name.startswith("params/")]
  problems += [f"{name} is {list(found[name].shape)}, expected {list(leaf.shape)}" for name, leaf in expected.items()
               if name in found and found[name].shape != leaf.shape]
  if problems:
    raise UserError(f"{source} holds another model: {'; '.join(problems)}")
  return {name.split("/")[1] for name in expected if name not in found}


def load_initial_variables(workdir: Workdir) -> dict[str, np.ndarray]:
  """Returns the variables that a run started from by flat name (params/decoder/...); {} without `train.init_from`.

  Raises:
    UserError: `initial_weights.npz` is missing or damaged.
  """
  if not workdir.config.train.init_from:
    return {}
  return read_weights(workdir.path / INITIAL_WEIGHTS, "restore it, or train in a new workdir")[0]


def replace_variables(variables: Mapping, initial: Mapping[str, np.ndarray]) -> dict:
  """Returns a tree of variables in which those with a name in `initial` are replaced, with their types kept."""
  flat = flatten_variables(variables)
  replaced = {name: initial[name].astype(leaf.dtype) if name in initial else leaf for name, leaf in flat.items()}
  return traverse_util.unflatten_dict(replaced, sep="/")


def _abstract_variables(config: ConfigDict, workdir: Workdir) -> dict:
  """Returns the shapes of the variables in a checkpoint of a run with this config and the workdir's vocabulary."""
  model = make_model(config, workdir.tokenizer.vocab_size, workdir.patch_grid)
  batch = empty_batch(config, 1, frozen_feature_shape(config))
  return jax.eval_shape(functools.partial(init_checkpoint_variables, model, config, batch))
