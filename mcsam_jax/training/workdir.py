"""A workdir holds all that evaluation needs, and belongs to one config.

    config.json     the whole config
    tokenizer/      its files
    memory_bank/    slots, and the words nearest to each
    encoder.npz     the pretrained image encoder that training started from, where there was one
    checkpoints/    Orbax
    eval/           scores and reports
    logs/           TensorBoard
"""

import dataclasses

from etils import epath
import jax
from ml_collections import ConfigDict
import numpy as np

from input_pipeline import text
from input_pipeline.prepare import load_or_build_tokenizer
from input_pipeline.splits import Split, open_split
from input_pipeline.tokenizer import Tokenizer, load_tokenizer
from mcsam_jax import config as configs
from mcsam_jax.errors import UserError
from mcsam_jax.memory_init.bank import MemoryBank, load_bank, make_memory_bank, save_bank
from mcsam_jax.models.visual_encoder import ENCODERS, make_encoder
from mcsam_jax.pretrained.weights_file import load_weights
from mcsam_jax.training import feature_cache

MAY_CHANGE = ("train.log_every", "train.host_threads", "train.keep_last", "data.source_dir", "data.data_dir",
              "encoder.weights", "mesh.data", "mesh.fsdp", "decode.batch_size")   # without making it another run


@dataclasses.dataclass
class Workdir:
  """An open workdir."""
  path: epath.Path
  config: ConfigDict
  tokenizer: Tokenizer
  bank: MemoryBank | None             # None without memory, or with a random one
  encoder_variables: dict | None      # of encoder.npz
  pretraining_data: str               # what encoder.npz was trained on

  def split(self, name: str) -> Split:
    return open_split(self.config, name)

  def features(self, split: Split, show=print) -> np.ndarray | None:
    """Returns the cached features [n, V, P, C] of a split where the encoder is frozen, else None."""
    if not self.config.encoder.frozen:
      return None
    encoder = make_encoder(self.config.encoder.name)
    return feature_cache.cached_features(self.config, split.name, split, encoder, self.encoder_variables, show=show)

  def pooled(self, split: Split, show=print) -> np.ndarray:
    """Returns the first view's pooled features [n, C] by the encoder as it was before training."""
    if self.config.encoder.frozen:
      return feature_cache.pooled(self.features(split, show))
    encoder = make_encoder(self.config.encoder.name)
    variables = self.encoder_variables or random_encoder(self.config)
    return feature_cache.pooled_features(self.config, split, encoder, variables)

  @property
  def grid(self) -> int:
    """Rows (and columns) of patches in one image."""
    return self.config.data.image_size // ENCODERS[self.config.encoder.name].stride


def random_encoder(config: ConfigDict) -> dict:
  """Returns the variables of an untrained encoder, a pure function of config.seed."""
  size = config.data.image_size
  encoder = make_encoder(config.encoder.name)
  return jax.jit(encoder.init)(jax.random.key(config.seed), np.zeros((1, size, size, 3), np.float32))


def open_workdir(path: str, overrides: list[str] = ()) -> Workdir:
  """Opens the workdir of a run.

  Raises:
    UserError: it is none, or a file of it is missing or damaged.
  """
  path = configs.absolute(path)
  config = configs.override(configs.read_config(path / "config.json"), overrides)
  bank = load_bank(path / "memory_bank") if learned_memory(config) else None
  variables, meta = None, {}
  if config.encoder.weights:
    variables, meta = load_weights(path / "encoder.npz", jax.eval_shape(lambda: random_encoder(config)))
  return Workdir(path, config, load_tokenizer(path / "tokenizer"), bank, variables,
                 meta.get("pretraining_data", "none"))


def create_workdir(path: str, config: ConfigDict, show=print) -> Workdir:
  """Makes the workdir of a run, or opens it again if it holds this config.

  Raises:
    UserError: it holds another config; a weights file is missing or doesn't fit.
  """
  path = configs.absolute(path)
  if (path / "config.json").exists():
    found = configs.read_config(path / "config.json")
    others = [line for line in configs.differences(config, found) if line.partition(":")[0] not in MAY_CHANGE]
    if others:
      raise UserError(f"{path} holds another config; use a new workdir, or the same values. "
                      f"Field: value now, value there. {'; '.join(others)}")
  path.mkdir(parents=True, exist_ok=True)
  if config.encoder.frozen and not config.encoder.weights:
    raise UserError("encoder.frozen needs encoder.weights, a file that `mcsam import-weights` wrote")
  if config.encoder.weights and not (path / "encoder.npz").exists():
    load_weights(epath.Path(config.encoder.weights), jax.eval_shape(lambda: random_encoder(config)))
    epath.Path(config.encoder.weights).copy(path / "encoder.npz")
  if not (path / "tokenizer").exists():
    unfinished = path / "tokenizer.unfinished"
    unfinished.mkdir(exist_ok=True)
    load_or_build_tokenizer(config).save(unfinished)
    unfinished.rename(path / "tokenizer")
  if learned_memory(config) and not (path / "memory_bank").exists():
    init_memory(path, config, show)
  configs.save_config(config, path / "config.json")   # last: what has a config is whole
  return open_workdir(path)


def init_memory(path: epath.Path, config: ConfigDict, show=print) -> MemoryBank:
  """Makes the memory bank from the training reports, and writes it to the workdir."""
  show(f"memory bank: {config.memory_init.kind}, {config.memory.num_slots} slots from the training reports")
  reports = [text.clean(report, config.data.cleaning) for report in open_split(config, "train").reports]
  bank = make_memory_bank(reports, config, config.seed, show)
  save_bank(epath.Path(path) / "memory_bank", bank)
  return bank


def learned_memory(config: ConfigDict) -> bool:
  return config.model.use_memory and config.memory_init.kind != "random"
