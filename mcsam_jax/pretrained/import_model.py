"""A whole model of another framework -> a workdir of ours, from which it is evaluated or trained on."""

from collections.abc import Callable
import hashlib

from etils import epath
from flax import traverse_util
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from input_pipeline.batch import empty_batch
from input_pipeline.builder.tokenizer import load_or_build_tokenizer
from mcsam_jax import config as configs
from mcsam_jax.checkpoints.checkpoint import Checkpoints
from mcsam_jax.checkpoints.weights import save_weights
from mcsam_jax.checkpoints.workdir import create_workdir
from mcsam_jax.errors import UserError
from mcsam_jax.models.initialize import make_model
from mcsam_jax.models.visual_encoders.registry import ENCODERS
from mcsam_jax.pretrained import r2gencmn, torch_names
from mcsam_jax.pretrained.import_weights import convert, ImportReport
from mcsam_jax.pretrained.torch_file import read_state_dict
from mcsam_jax.training.train_state import create_train_state, init_train_state


def import_model(src: str, workdir: str, config: ConfigDict, log: Callable[[str], None] = print) -> ImportReport:
  """Puts a published R2GenCMN into a new workdir, as the checkpoint of step 0.

  The vocabulary is that of the prepared records of `config`: it has to be the one that the checkpoint was trained
  with (same annotation, cleaning and threshold), which its number of words is held against.

  Args:
    src: a PyTorch checkpoint.
    workdir: a folder that holds no run yet.
    config: as configs/r2gencmn.py has it.
    show: receives a line for each name.

  Raises:
    UserError: no R2GenCMN, or one that doesn't fit the config; the workdir holds a run. Nothing is written then.
  """
  path = configs.absolute_path(workdir)
  if (path / "config.json").exists():
    raise UserError(f"{path} holds a run already; give a new folder")
  tensors = read_state_dict(src, log)
  if not r2gencmn.is_r2gencmn(tensors):
    raise UserError(f"{src}: no R2GenCMN (it has no memory_matrix); an image encoder is imported with `mcsam import-weights encoder`")
  tokenizer = load_or_build_tokenizer(config)
  variables, report = convert(tensors, "r2gencmn", expected_shapes(config, tokenizer.vocab_size), r2gencmn)
  for line in report.lines():
    log(line)
  if not report.fits:
    raise UserError(f"{src}: doesn't fit the config (see the names above): check model.*, memory.*, encoder.name, and "
                    f"that the {tokenizer.vocab_size} words of {config.data.data_dir} are the checkpoint's; nothing "
                    "was written")

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
  log(f"made {workdir}; next: mcsam evaluate --workdir {workdir}, or mcsam train to go on")
  return report


def expected_shapes(config: ConfigDict, vocab_size: int) -> dict[str, tuple[int, ...]]:
  """Returns the shape of each variable of the model and its image encoder by flat name."""
  encoder = ENCODERS[config.encoder.name]
  grid = config.data.image_size // encoder.stride
  batch = empty_batch(config, 1, encoder.feature_shape(config.data.image_size) if config.encoder.frozen else None)
  state = jax.eval_shape(lambda: init_train_state(make_model(config, vocab_size, grid), config, batch))
  own = traverse_util.flatten_dict({name: tree for name, tree in state.params.items() if name != "visual_encoder"},
                                   sep="/")
  shapes = {f"params/{name}": leaf.shape for name, leaf in own.items()}
  for name, shape in torch_names.expected_shapes(config.encoder.name).items():
    collection, _, variable = name.partition("/")
    shapes[f"{collection}/visual_encoder/{variable}"] = shape
  return shapes
