"""The workdir of a run: everything that evaluation needs, for one config.

    config.json       the whole config, with the version that wrote it
    tokenizer/        vocabulary
    memory_bank/      initial memory slots, with the words nearest to each
    encoder.npz       the pretrained image encoder that training started from, if any
    initial_weights.npz   the parameters of another run that training started from (`train.init_from`), if any
    checkpoints/      Orbax checkpoints
    eval/             scores and reports
    logs/             TensorBoard
    metrics.jsonl     the metrics of each logged step; metrics.png draws them (training/run_log/)
    train.log         what `mcsam train` printed, over all starts
    nonfinite-*.json  records of a step whose loss was not finite (training/nonfinite.py)
"""

from collections.abc import Callable, Iterable
import contextlib
import dataclasses
import json
from typing import Any, TYPE_CHECKING

from etils import epath
from ml_collections import ConfigDict

from input_pipeline import text
from input_pipeline.builder.tokenizer import load_or_build_tokenizer
from input_pipeline.splits import dataset_dir, open_split, Split
from input_pipeline.tokenizer import load_tokenizer, Tokenizer
from mcsam_jax import config as configs
from mcsam_jax.atomic_io import atomic_write
from mcsam_jax.checkpoints import exported
from mcsam_jax.checkpoints.encoder_weights import check_encoder, find_encoder_shapes, load_encoder_weights
from mcsam_jax.checkpoints.provenance import describe_software
from mcsam_jax.distributed.bucket_access import check_bucket_private
from mcsam_jax.errors import printable, UserError
from mcsam_jax.files import lock
from mcsam_jax.files.outputs import check_output
from mcsam_jax.files.untrusted import read_json, read_regular_file
from mcsam_jax.memory_init.initial_memory import InitialMemory, load_initial_memory, save_initial_memory
from mcsam_jax.models.visual_encoders.registry import find_encoder

if TYPE_CHECKING:
  from mcsam_jax.checkpoints.init_from import Origin

INITIAL_WEIGHTS = "initial_weights.npz"
RUNTIME_FIELDS = (       # may differ between two starts of one run; `prepare.*` may, too
    "train.log_every", "train.log_term_norms", "train.checkpoint_every", "train.host_threads", "train.keep_last",
    "train.max_corrupt_records", "train.watchdog_timeout_minutes", "train.profile_steps", "train.grad_accum_steps",
    "train.remat", "train.patience",
    "data.source_dir", "data.data_dir", "data.max_image_pixels", "data.contact_sheet_restricted",
    "encoder.weights", "mesh.data", "mesh.fsdp", "mesh.tensor", "decode.batch_size", "eval.chexbert",
    "eval.manual_labels")
# Fields of `decode` and `eval` that change no score, so they don't appear in the names of evaluation files.
_NOT_IN_FILE_NAMES = ("batch_size", "chexbert", "html_report", "html_report_restricted", "explain", "metrics",
                      "manual_labels")


@dataclasses.dataclass
class Workdir:
  """An open workdir.

  Attributes:
    path: its folder, absolute, or a gs:// URL.
    config: the saved config, with overrides applied.
    tokenizer: the tokenizer that training used.
    initial_memory: initial memory slots; None without memory, or with a random one.
    encoder_variables: content of encoder.npz (or encoder.safetensors); None without such a file.
    pretraining_data: the data that encoder.npz was pretrained on.
    inference_overrides: fields of `decode` and `eval` that overrides changed ("beam_size=1", ...), for file names.
  """
  path: epath.Path
  config: ConfigDict
  tokenizer: Tokenizer
  initial_memory: InitialMemory | None
  encoder_variables: dict | None
  pretraining_data: str
  inference_overrides: tuple[str, ...] = ()

  def open_split(self, name: str) -> Split:
    return open_split(self.config, name)

  @property
  def patch_grid(self) -> int:
    """Number of rows, and of columns, of patches in one image."""
    return self.config.data.image_size // find_encoder(self.config.encoder.name).stride


def open_workdir(path: epath.PathLike, overrides: Iterable[str] = (), log: Callable[[str], None] = print) -> Workdir:
  """Opens the workdir of a run.

  Args:
    path: its folder or gs:// URL.
    overrides: `--config.section.field=value` for fields that the trained model doesn't depend on.
    log: receives a line if the saved config lacks fields of this version.

  Raises:
    UserError: the folder is no workdir, a file is missing or damaged, version 0.1 wrote it, or the trained model
      depends on a field in `overrides`.
  """
  path = configs.absolute_path(path)
  return _open(path, configs.read_config(path / "config.json", log), overrides)


def create_workdir(path: epath.PathLike, config: ConfigDict, log: Callable[[str], None] = print,
                   origin: "Origin | None" = None) -> Workdir:
  """Creates the workdir of a run, or reopens it if it holds this config.

  A larger `train.num_steps` than the saved one extends the run: the new config is saved.

  Args:
    path: its folder or gs:// URL.
    config: config of the run.
    log: receives lines of progress.
    origin: the run to start from (`train.init_from`), whose files are copied into a new workdir.

  Raises:
    UserError: the workdir holds another config or an exported model, or was trained for more steps; a weights file is
      missing or doesn't fit; another run is training in a workdir to be extended; a restricted data set is in a public
      bucket.
  """
  path = configs.absolute_path(path)
  check_bucket_private(config, path)
  if exported.is_exported(path):
    raise UserError(f"{path} holds an exported model, which can't be trained further: train in the workdir that it "
                    "came from, or in a new one")
  if (path / "config.json").exists():
    return _reopen(path, config, log)
  if origin is not None:
    _copy_from_origin(path, config, origin)
    encoder_weights, tokenizer = "", origin.workdir.tokenizer
  else:
    encoder_weights = config.encoder.weights
    if config.encoder.frozen and not encoder_weights:
      raise UserError("encoder.frozen=true needs encoder.weights, a file written by `mcsam import-weights`")
    check_encoder(config)                               # raises before any work is done
    if encoder_weights:
      load_encoder_weights(encoder_weights, config)
    tokenizer = load_or_build_tokenizer(config, log)
  check_record_labels(config)
  path.mkdir(parents=True, exist_ok=True)
  if encoder_weights and epath.Path(encoder_weights) != path / "encoder.npz":
    _copy_encoder(epath.Path(encoder_weights), path / "encoder.npz")
  _save_tokenizer(tokenizer, path / "tokenizer")
  if has_memory_init(config) and not (origin and has_memory_init(origin.workdir.config)):
    settings = path / "memory_bank" / "made_from.json"
    if not settings.exists():
      init_memory(path, config, log)
    elif _read_settings(settings) != memory_init_settings(config):
      raise UserError(f"{settings.parent} was made with other settings than this config's (see {settings.name} in it): "
                      "run `mcsam init-memory` again with this config, or use a new workdir")
  # Last: a workdir with a config is complete.
  configs.save_config(config, path / "config.json", describe_software())
  return open_workdir(path)


def check_record_labels(config: ConfigDict) -> None:
  """Raises UserError if training needs labels, and the annotation.json that the records were made from has none."""
  field = ("model.findings_head" if config.model.findings_head else
           "model.align_targets" if config.model.align_targets == "label_similarity" else None)
  if config.data.name != "r2gen_json" or config.train.labels != "records" or field is None:
    return
  if not any(record["labels_from"] for block in open_split(config, "train").read_blocks() for record in block):
    raise UserError(f"{field} needs labels, and annotation.json has none: set train.labels=rules to read them from the "
                    f"reports, or change {field}")


def _copy_from_origin(path: epath.Path, config: ConfigDict, origin: "Origin") -> None:
  """Copies parameters, pretrained encoder and initial memory slots of another run into a new workdir."""
  source = origin.workdir.path
  path.mkdir(parents=True, exist_ok=True)
  origin.save_weights(path / INITIAL_WEIGHTS)
  if (source / "encoder.npz").exists():
    _copy_encoder(source / "encoder.npz", path / "encoder.npz")
  if has_memory_init(config) and has_memory_init(origin.workdir.config):
    (path / "memory_bank").mkdir(exist_ok=True)
    for file in (source / "memory_bank").iterdir():
      file.copy(path / "memory_bank" / file.name, overwrite=True)


def _copy_encoder(source: epath.Path, target: epath.Path) -> None:
  """Copies the pretrained encoder; raises UserError instead of replacing another one."""
  weights = read_regular_file(source)
  if not target.exists():
    atomic_write(target, weights)
  elif read_regular_file(target) != weights:
    raise UserError(f"{target} holds other weights than encoder.weights={source}: move it away, or use a new workdir")


def _save_tokenizer(tokenizer: Tokenizer, folder: epath.Path) -> None:
  """Writes the tokenizer; raises UserError instead of replacing another one."""
  folder.mkdir(exist_ok=True)
  if not any(folder.iterdir()):
    tokenizer.save(folder)
    return
  saved = load_tokenizer(folder)
  if [saved.kind, saved.cleaning, saved.get_vocabulary()] != [
      tokenizer.kind, tokenizer.cleaning, tokenizer.get_vocabulary()]:
    raise UserError(f"{folder} holds another tokenizer than this config's: move it away, or use a new workdir")


def _read_settings(path: epath.Path) -> Any:
  """Returns the settings of a memory bank."""
  try:
    return read_json(path)
  except (OSError, ValueError) as error:
    raise UserError(f"{path} is damaged ({printable(str(error))}): run `mcsam init-memory` again") from error


def acquire_lock(path: epath.Path, log: Callable[[str], None] = print) -> contextlib.AbstractContextManager:
  """Returns a context that keeps other runs out of a workdir.

  On a bucket, or a file system without locks, it locks nothing (the latter with a log line).

  Raises:
    UserError: another run holds the lock.
  """
  if "://" in str(path):
    return contextlib.nullcontext()
  return lock.acquire_lock(path / ".lock", f"another run is training in {path}: wait for it, or use a new workdir", log)


def _open(path: epath.Path, saved: ConfigDict, overrides: Iterable[str]) -> Workdir:
  config = _apply_overrides(path, saved, overrides)
  check_bucket_private(config, path)
  changed = _differing_fields(config, saved)
  for field in changed:
    if field.partition(".")[0] not in configs.RUNTIME_SECTIONS and field not in RUNTIME_FIELDS:
      raise UserError(f"--config.{field}: the trained model depends on this field; to change it, use a new workdir")
  initial_memory = load_initial_memory(path / "memory_bank") if has_memory_init(config) else None
  slots_shape = (config.memory.num_slots, config.memory.slot_width)
  if initial_memory is not None and initial_memory.slots.shape != slots_shape:
    raise UserError(f"{path / 'memory_bank' / 'slots.npz'} has slots of shape {list(initial_memory.slots.shape)}, "
                    f"expected {list(slots_shape)}: run `mcsam init-memory` again in a new workdir")
  variables, meta = None, {}
  if exported.is_exported(path):
    variables, meta = exported.load_encoder(path, find_encoder_shapes(config))
  elif (path / "encoder.npz").exists():
    variables, meta = load_encoder_weights(path / "encoder.npz", config)
  inference_overrides = []
  for field in changed:
    section, _, name = field.partition(".")
    if section in ("decode", "eval") and name not in _NOT_IN_FILE_NAMES:
      inference_overrides.append(f"{name}={config[section][name]}")
  return Workdir(path, config, load_tokenizer(path / "tokenizer"), initial_memory, variables,
                 meta.get("pretraining_data", "none"), tuple(inference_overrides))


def _apply_overrides(path: epath.Path, saved: ConfigDict, overrides: Iterable[str]) -> ConfigDict:
  """Returns the saved config with overrides; an error names config.json if the saved values cause it."""
  try:
    return configs.apply_overrides(saved, overrides)
  except UserError as error:
    try:
      configs.apply_overrides(saved, ())
    except UserError:
      raise UserError(f"{path / 'config.json'}: {error}") from error
    raise


def _reopen(path: epath.Path, config: ConfigDict, log: Callable[[str], None]) -> Workdir:
  """Returns the workdir of another start of the same run, which may have more steps."""
  saved = configs.read_config(path / "config.json", log)
  changes = [line for line in configs.diff_configs(config, saved)
             if (field := line.partition(":")[0]) not in (*RUNTIME_FIELDS, "train.num_steps")
             and not field.startswith("prepare.")]
  if bool(config.encoder.weights) != bool(saved.encoder.weights):
    changes.append(f"encoder.weights: {config.encoder.weights!r}, {saved.encoder.weights!r}")
  if changes:
    raise UserError(f"{path} holds another config; use a new workdir, or the same values "
                    f"(field: value now, value there): {'; '.join(changes)}")
  num_steps, saved_steps = config.train.num_steps, saved.train.num_steps
  if num_steps < saved_steps:
    raise UserError(f"{path} holds a run of train.num_steps={saved_steps}, which can be raised but not lowered to "
                    f"{num_steps}: use a new workdir, or {saved_steps} steps or more")
  if num_steps > saved_steps:
    with acquire_lock(path, log):
      configs.save_config(config, path / "config.json", describe_software())
    log(f"{path}: train.num_steps raised from {saved_steps} to {num_steps}")
    saved = config
  values = configs.flatten_config(config)
  return _open(path, saved, [f"--config.{field}={values[field]}" for field in RUNTIME_FIELDS])


def _differing_fields(config: ConfigDict, other: ConfigDict) -> list[str]:
  return [line.partition(":")[0] for line in configs.diff_configs(config, other)]


def memory_init_settings(config: ConfigDict) -> dict:
  """Returns all settings that determine the initial memory slots."""
  return {"memory_init": config.memory_init.to_dict(), "num_slots": config.memory.num_slots,
          "slot_width": config.memory.slot_width, "seed": config.seed, "cleaning": config.data.cleaning,
          "target": config.data.target, "records": dataset_dir(config).parent.name}


def init_memory(path: epath.PathLike, config: ConfigDict, log: Callable[[str], None] = print) -> InitialMemory:
  """Computes the initial memory slots from the training reports, and writes them to the workdir.

  Raises:
    UserError: the workdir already holds a run.
  """
  path = configs.absolute_path(path)
  if (path / "config.json").exists():
    raise UserError(f"{path} holds a run that started from its memory bank; use a new workdir")
  check_output("--workdir", path / "memory_bank" / "topics.json", '"median_npmi":')
  check_output("--workdir", path / "memory_bank" / "slots.npz", "slot_words.npy", "npmi.npy")
  check_output("--workdir", path / "memory_bank" / "made_from.json", '"memory_init":')
  from mcsam_jax.memory_init.make_initial_memory import make_initial_memory  # not at the top: imports for seconds
  log(f"memory bank: {config.memory_init.kind}, {config.memory.num_slots} slots from the training reports")
  reports = [text.clean(report, config.data.cleaning) for report in open_split(config, "train").read_reports(log)]
  initial_memory = make_initial_memory(reports, config, config.seed, log)
  save_initial_memory(path / "memory_bank", initial_memory)
  atomic_write(path / "memory_bank" / "made_from.json", json.dumps(memory_init_settings(config), indent=2) + "\n")
  return initial_memory


def has_memory_init(config: ConfigDict) -> bool:
  """Returns whether the memory starts from computed slots, rather than random ones."""
  return config.model.use_memory and config.memory_init.kind != "random"
