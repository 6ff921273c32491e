"""Imports a published R2GenCMN model as a workdir, from which it can be evaluated or trained further."""

from collections.abc import Callable
import hashlib
import shlex

from etils import epath
from flax import traverse_util
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from input_pipeline.batch import empty_batch
from input_pipeline.builder.tokenizer import load_or_build_tokenizer
from mcsam_jax import config as configs
from mcsam_jax.checkpoints.checkpoint import Checkpoints
from mcsam_jax.checkpoints.weights import save_weights, WEIGHT_MARKS
from mcsam_jax.checkpoints.workdir import create_workdir
from mcsam_jax.errors import UserError
from mcsam_jax.files.outputs import check_output
from mcsam_jax.models.initialize import make_model
from mcsam_jax.models.visual_encoders.registry import find_encoder, frozen_feature_shape
from mcsam_jax.pretrained import r2gencmn, torch_names
from mcsam_jax.pretrained.conversion import convert, ImportReport
from mcsam_jax.pretrained.torch_file import read_state_dict
from mcsam_jax.pretrained.wrappers import peel_wrappers
from mcsam_jax.training.train_state import create_train_state, init_train_state


def import_r2gencmn(src: str, workdir: str, config: ConfigDict, log: Callable[[str], None] = print) -> ImportReport:
  """Writes a published R2GenCMN model to a new workdir, as the checkpoint of step 0.

  The vocabulary is that of the prepared records of `config`. It has to be the vocabulary with which the checkpoint was
  trained (same annotation, cleaning and threshold); only the number of words can be checked.

  Args:
    src: a PyTorch checkpoint.
    workdir: a folder without a run.
    config: the config `r2gencmn`, or one derived from it.
    log: receives each line of the report.

  Raises:
    UserError: the source isn't an R2GenCMN model or doesn't match the config, or the workdir has a run; nothing is
      written.
  """
  path = configs.absolute_path(workdir)
  if (path / "config.json").exists():
    raise UserError(f"{path} already contains a run; choose a new folder")
  tensors = peel_wrappers(read_state_dict(src, log), r2gencmn.is_r2gencmn, log)
  check_output("WORKDIR", path / "encoder.npz", *WEIGHT_MARKS)
  tensors = read_state_dict(src, log)
  if not r2gencmn.is_r2gencmn(tensors):
    raise UserError(f"{src}: not an R2GenCMN model, it has no memory_matrix; use `mcsam import-weights encoder` for an "
                    "image encoder")
  tokenizer = load_or_build_tokenizer(config)
  variables, report = convert(tensors, "r2gencmn", _get_variable_shapes(config, tokenizer.vocab_size),
                              r2gencmn.MAPPING)
  for line in report.lines():
    log(line)
  if not report.is_complete:
    raise UserError(f"{src}: doesn't match the config (see the names above); nothing was written. Check model.*, "
                    f"memory.* and encoder.name, and whether the vocabulary of {config.data.data_dir}, which has "
                    f"{tokenizer.vocab_size} tokens, is the checkpoint's")

  params, stats = dict(variables["params"]), variables["batch_stats"]["visual_encoder"]
  encoder = {"params": params["visual_encoder"], "batch_stats": stats}
  save_weights(path / "encoder.npz", encoder, {
      "architecture": config.encoder.name, "source": epath.Path(src).name,
      "sha256": hashlib.sha256(epath.Path(src).read_bytes()).hexdigest(),
      "pretraining_data": "that of the R2GenCMN checkpoint"})
  config = config.copy_and_resolve_references()
  config.encoder.weights = str(path / "encoder.npz")
  work = create_workdir(str(path), config, log)
  if config.encoder.frozen:
    del params["visual_encoder"]
  params = jax.tree.map(jnp.asarray, params)
  batch_stats = {} if config.encoder.frozen else {"visual_encoder": stats}
  checkpoints = Checkpoints(work.path, best_metric=config.train.best_metric)
  checkpoints.save(0, create_train_state(config, params, batch_stats), {})
  checkpoints.close()
  log(f"created {workdir}; next: mcsam evaluate --workdir {shlex.quote(str(workdir))}    # or mcsam train")
  return report


def _get_variable_shapes(config: ConfigDict, vocab_size: int) -> dict[str, tuple[int, ...]]:
  """Returns the shape of each variable of the model and its image encoder by flat name."""
  grid = config.data.image_size // find_encoder(config.encoder.name).stride
  batch = empty_batch(config, 1, frozen_feature_shape(config))
  state = jax.eval_shape(lambda: init_train_state(make_model(config, vocab_size, grid), config, batch))
  params: dict = traverse_util.flatten_dict(
      {name: tree for name, tree in state.params.items() if name != "visual_encoder"}, sep="/")
  shapes = {f"params/{name}": leaf.shape for name, leaf in params.items()}
  for name, shape in torch_names.get_encoder_shapes(config.encoder.name).items():
    collection, _, variable = name.partition("/")
    shapes[f"{collection}/visual_encoder/{variable}"] = shape
  return shapes
