"""A workdir holds all that evaluation needs, and belongs to one config.

    config.json     the whole config
    tokenizer/      its files
    memory_bank/    slots, and the words nearest to each
    encoder.npz     the pretrained image encoder that training started from, where there was one
    checkpoints/    Orbax
    eval/           scores and reports
    logs/           TensorBoard
    nonfinite-*.json  the records of a step whose loss was no number (training/nonfinite.py)
"""

import contextlib
import dataclasses
import fcntl
import json

from etils import epath
import jax
from ml_collections import ConfigDict
import numpy as np

from input_pipeline import text
from input_pipeline.builder.prepare import dataset_dir, load_or_build_tokenizer
from input_pipeline.splits import open_split, Split
from input_pipeline.tokenizer import load_tokenizer, Tokenizer
from mcsam_jax import config as configs
from mcsam_jax.atomic_io import atomic_write
from mcsam_jax.checkpoints.weights import load_weights
from mcsam_jax.distributed.bucket_access import check_bucket_private
from mcsam_jax.errors import UserError
from mcsam_jax.memory_init.bank import load_bank, make_memory_bank, MemoryBank, save_bank
from mcsam_jax.models.visual_encoders.registry import ENCODERS, make_encoder

RUNTIME_FIELDS = ("train.log_every", "train.checkpoint_every", "train.host_threads", "train.keep_last", "train.max_corrupt_records",
              "train.watchdog_timeout_minutes", "train.profile_steps", "train.grad_accum_steps", "train.remat", "data.source_dir",
              "data.data_dir", "encoder.weights", "mesh.data", "mesh.fsdp", "mesh.tensor",
              "decode.batch_size", "eval.chexbert")           # without making it another run


@dataclasses.dataclass
class Workdir:
  """An open workdir."""
  path: epath.Path
  config: ConfigDict
  tokenizer: Tokenizer
  bank: MemoryBank | None             # None without memory, or with a random one
  encoder_variables: dict | None      # of encoder.npz
  pretraining_data: str               # what encoder.npz was trained on
  inference_overrides: tuple[str, ...] = ()     # fields of decode and eval that this opening set otherwise: beam_size=1, ...

  def split(self, name: str) -> Split:
    return open_split(self.config, name)

  @property
  def patch_grid(self) -> int:
    """Rows (and columns) of patches in one image."""
    return self.config.data.image_size // ENCODERS[self.config.encoder.name].stride


def init_encoder_variables(config: ConfigDict) -> dict:
  """Returns the variables of an untrained encoder, a pure function of config.seed."""
  size = config.data.image_size
  encoder = make_encoder(config.encoder.name)
  return jax.jit(encoder.init)(jax.random.key(config.seed), np.zeros((1, size, size, 3), np.float32))


def open_workdir(path: str, overrides: list[str] = ()) -> Workdir:
  """Opens the workdir of a run.

  Args:
    overrides: `--config.field=value` for fields that don't belong to the trained model.

  Raises:
    UserError: it is no workdir, a file of it is missing or damaged, or a field belongs to the model.
  """
  path = configs.absolute_path(path)
  saved = configs.read_config(path / "config.json")
  config = configs.apply_overrides(saved, overrides)
  check_bucket_private(config, path)
  changed = [line.partition(":")[0] for line in configs.diff_configs(config, saved)]
  for field in changed:
    if field.partition(".")[0] not in configs.RUNTIME_SECTIONS and field not in RUNTIME_FIELDS:
      raise UserError(f"--config.{field} belongs to the trained model; to change it, train in another workdir")
  bank = load_bank(path / "memory_bank") if has_memory_init(config) else None
  variables, meta = None, {}
  if (path / "encoder.npz").exists():
    variables, meta = load_weights(path / "encoder.npz", jax.eval_shape(lambda: init_encoder_variables(config)))
  return Workdir(path, config, load_tokenizer(path / "tokenizer"), bank, variables,
                 meta.get("pretraining_data", "none"),
                 tuple(f"{name}={config[section][name]}"
                       for section, _, name in (field.partition(".") for field in changed)
                       if section in ("decode", "eval")
                       and name not in ("batch_size", "chexbert", "html_report", "html_report_restricted", "explain")))


def create_workdir(path: str, config: ConfigDict, log=print) -> Workdir:
  """Makes the workdir of a run, or opens it again if it holds this config.

  Raises:
    UserError: it holds another config; a weights file is missing or doesn't fit; restricted data in a public bucket.
  """
  path = configs.absolute_path(path)
  check_bucket_private(config, path)
  if (path / "config.json").exists():
    found = configs.read_config(path / "config.json")
    others = [line for line in configs.diff_configs(config, found)
              if line.partition(":")[0] not in RUNTIME_FIELDS and not line.startswith("prepare.")]
    if bool(config.encoder.weights) != bool(found.encoder.weights):
      others.append(f"encoder.weights: {config.encoder.weights!r}, {found.encoder.weights!r}")
    if others:
      raise UserError(f"{path} holds another config; use a new workdir, or the same values. "
                      f"Field: value now, value there. {'; '.join(others)}")
    return open_workdir(path, [f"--config.{field}={value}" for field, value in runtime_values(config).items()])
  if config.encoder.frozen and not config.encoder.weights:
    raise UserError("encoder.frozen needs encoder.weights, a file that `mcsam import-weights` wrote")
  if config.encoder.weights:
    load_weights(config.encoder.weights, jax.eval_shape(lambda: init_encoder_variables(config)))   # it fits, before any work
  tokenizer = load_or_build_tokenizer(config, log)
  path.mkdir(parents=True, exist_ok=True)
  if config.encoder.weights and epath.Path(config.encoder.weights) != path / "encoder.npz":
    epath.Path(config.encoder.weights).copy(path / "encoder.npz", overwrite=True)
  (path / "tokenizer").mkdir(exist_ok=True)
  tokenizer.save(path / "tokenizer")
  if has_memory_init(config):
    made = path / "memory_bank" / "made_from.json"
    if not made.exists():
      init_memory(path, config, log)
    elif json.loads(made.read_text()) != memory_init_settings(config):
      raise UserError(f"{path / 'memory_bank'} was made with other settings than this config's (see made_from.json "
                      "there): run `mcsam init-memory` again with this config, or use a new workdir")
  configs.save_config(config, path / "config.json")   # last: what has a config is whole
  return open_workdir(path)


def acquire_lock(path: epath.Path, log=print) -> contextlib.AbstractContextManager:
  """Keeps other runs out of a workdir inside the returned context; on a bucket, or a disk without locks, it can't.

  Raises:
    UserError: another run is in it.
  """
  if "://" in str(path):
    return contextlib.nullcontext()
  file = open(path / ".lock", "w")
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError as error:
    raise UserError(f"another run is training in {path}: wait for it, or use a new workdir") from error
  except OSError as error:
    log(f"{path} can't be locked ({error.strerror}): see to it yourself that no other run trains there")
  return file


def runtime_values(config: ConfigDict) -> dict:
  """Returns the fields, and their values, that may differ between two starts of one run."""
  return {field: config[section][name] for field in RUNTIME_FIELDS for section, name in [field.split(".")]}


def memory_init_settings(config: ConfigDict) -> dict:
  """Returns what a memory bank is a function of, besides the code."""
  return {"memory_init": config.memory_init.to_dict(), "num_slots": config.memory.num_slots,
          "slot_width": config.memory.slot_width, "seed": config.seed, "cleaning": config.data.cleaning,
          "target": config.data.target, "records": dataset_dir(config).parent.name}


def init_memory(path: epath.Path, config: ConfigDict, log=print) -> MemoryBank:
  """Makes the memory bank from the training reports, and writes it to the workdir.

  Raises:
    UserError: the workdir has been trained in.
  """
  path = configs.absolute_path(path)
  if (path / "config.json").exists():
    raise UserError(f"{path} holds a run that started from its memory bank; use a new workdir")
  log(f"memory bank: {config.memory_init.kind}, {config.memory.num_slots} slots from the training reports")
  reports = [text.clean(report, config.data.cleaning) for report in open_split(config, "train").read_reports(log)]
  bank = make_memory_bank(reports, config, config.seed, log)
  save_bank(path / "memory_bank", bank)
  atomic_write(path / "memory_bank" / "made_from.json", json.dumps(memory_init_settings(config), indent=2) + "\n")
  return bank


def has_memory_init(config: ConfigDict) -> bool:
  return config.model.use_memory and config.memory_init.kind != "random"
