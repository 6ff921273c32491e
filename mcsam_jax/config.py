"""Reads a config file, applies `--config.field=value`, and says what is wrong with either."""

import difflib
import importlib.util
import json
import math

from etils import epath
from ml_collections import ConfigDict

import configs
from configs import phantom
from mcsam_jax.atomic_io import atomic_write
from mcsam_jax.errors import UserError
from mcsam_jax.models.visual_encoders.registry import ENCODERS

CONFIGS_DIR = epath.Path(configs.__path__[0])
PATH_FIELDS = ("data.source_dir", "data.data_dir", "data.mimic_cxr.reports", "encoder.weights", "memory_init.word_vectors",
         "eval.chexbert")
CHOICES = {   # fields that take one of a few words
    "data.cleaning": ("iu_xray", "mimic_cxr"),
    "data.dicom_rendering": ("voi", "mimic_cxr_jpg"),
    "data.mimic_cxr.unit": ("study", "image"),
    "data.mimic_cxr.images": ("jpg", "dcm"),
    "data.mimic_cxr.labels": ("chexpert", "negbio", "none"),
    "data.mimic_cxr.required_views": ("any", "frontal", "lateral", "both"),
    "data.mimic_cxr.view_order": ("pa_first", "acquisition"),
    "data.target": ("findings", "impression", "both"),
    "tokenizer.kind": ("word", "sentencepiece"),
    "encoder.name": tuple(ENCODERS),
    "memory.consolidation": ("residual", "gate"),
    "memory.query": ("word_position", "word"),
    "memory_init.kind": ("topics", "kmeans", "random"),
    "model.patch_activation": ("none", "relu"),
    "model.patch_positions": ("learned", "sinusoidal"),
    "model.word_positions": ("learned", "sinusoidal"),
    "model.norm": ("layernorm", "r2gencmn"),
    "model.align_on": ("response", "consolidated"),
    "model.align_targets": ("identity", "same_text", "label_similarity"),
    "optimizer.schedule": ("cosine", "linear", "constant"),
    "train.compute_dtype": ("float32", "bfloat16", "float64"),
    "train.remat": ("none", "layers"),
    "train.best_metric": ("", "token_loss", "BLEU_1", "BLEU_4", "ROUGE_L", "CIDEr", "micro_F1", "macro_F1",
                          "CIDEr_macro_F1"),
    "train.eval_search": ("beam", "mbr"),
    "decode.search": ("beam", "mbr"),
    "decode.finished_beams": ("separate", "in_place"),
    "eval.labeler": ("phantom", "rules", "chexbert", "none"),
    "eval.chexbert_dtype": ("float32", "bfloat16"),
}
RUNTIME_SECTIONS = ("decode", "eval", "mesh", "prepare")     # sections that may differ from what a workdir was trained with
ADDED_FIELDS = ("train.max_corrupt_records", "train.grad_accum_steps", "train.remat", "train.watchdog_timeout_minutes", "train.profile_steps",
       "train.checkpoint_every")     # of other sections, whose default is what was done before
POSITIVE = (
    "data.num_views", "data.image_size", "tokenizer.threshold", "tokenizer.max_length", "memory.num_slots",
    "memory.slot_width", "memory.num_heads", "memory.top_k", "model.width", "model.num_heads",
    "model.feedforward_width", "model.decoder_layers", "model.num_memory_tokens", "train.batch_size", "train.num_steps",
    "train.grad_accum_steps", "train.log_every", "train.eval_every", "train.keep_last", "train.host_threads",
    "decode.beam_size", "decode.batch_size", "decode.num_samples", "eval.num_permutations")
NOT_NEGATIVE = (
    "seed", "eval.seed", "data.short_side", "data.min_words", "model.encoder_layers", "model.text_encoder_layers",
    "decode.min_length", "decode.no_repeat_ngram_size", "decode.top_k", "prepare.num_workers", "prepare.max_corrupt_records",
    "train.max_corrupt_records", "train.watchdog_timeout_minutes", "train.profile_steps", "train.checkpoint_every", "optimizer.warmup_steps",
    "optimizer.weight_decay", "optimizer.clip_norm", "train.eval_studies", "model.align_weight")
_PARSERS = {str: str, int: int, float: float,
            bool: lambda text: {"true": True, "false": False}[text.lower()]}


def load_config(name: str, overrides: list[str] = ()) -> ConfigDict:
  """Returns the config of a file, with overrides, checked against the tree of configs/phantom.py.

  Args:
    name: path of a config file, or the name of one in configs/ ("iu_xray").
    overrides: arguments of the form `--config.field.name=value`.

  Raises:
    UserError: no such file, a field that no config has, a value of another type.
  """
  path = epath.Path(name)
  if path.suffix != ".py":
    path = CONFIGS_DIR / f"{name}.py"
  if not path.exists():
    known = ", ".join(sorted(p.stem for p in CONFIGS_DIR.glob("[!_]*.py")))
    raise UserError(f"no config {name}: give the path of a .py file or one of {known}")
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
    config = module.get_config()
  except Exception as error:   # it is the user's own code
    raise UserError(f"{path}: {type(error).__name__}: {error}") from error
  if not isinstance(config, ConfigDict):
    raise UserError(f"{path}: get_config() returned {type(config).__name__}, not the tree of configs/phantom.py")
  check_fields(config, phantom.get_config(), str(path))
  return apply_overrides(config, overrides)


def apply_overrides(config: ConfigDict, overrides: list[str]) -> ConfigDict:
  """Returns a locked copy of `config` with `--config.field=value` arguments applied, paths made absolute."""
  config = config.copy_and_resolve_references()
  known = _leaves(phantom.get_config())      # its types: a file may have set a float to 1
  for argument in overrides:
    field, equals, text = argument.removeprefix("--config.").partition("=")
    if not argument.startswith("--config.") or not equals:
      raise UserError(f"unexpected argument {argument}: fields are set as --config.field=value")
    if field not in known:
      raise UserError(f"--config.{field}: no such field{_closest(field, known)}")
    try:
      config.update_from_flattened_dict({field: _PARSERS[type(known[field])](text)})
    except (ValueError, KeyError) as error:
      expected = "true or false" if isinstance(known[field], bool) else type(known[field]).__name__
      raise UserError(f"--config.{field}={text}: expected {expected}") from error
  leaves = _leaves(config)
  config.update_from_flattened_dict({field: str(absolute_path(leaves[field])) for field in PATH_FIELDS if leaves[field]})
  check_values(config)
  return config.lock()


def check_values(config: ConfigDict) -> None:
  """Raises UserError for a value that would silently mean something else, or fail only when much is done."""
  values = _leaves(config)
  for field, options in CHOICES.items():
    if values[field] not in options:
      raise UserError(f"{field}={values[field]}: one of {', '.join(options)}")
  for field, value in values.items():
    if isinstance(value, float) and not math.isfinite(value):
      raise UserError(f"{field}={value}: must be a finite number")
  if values["train.grad_accum_steps"] > 1 and values["encoder.train_batch_norm"] and not values["encoder.frozen"]:
    raise UserError("train.grad_accum_steps needs encoder.train_batch_norm=false: statistics of a part aren't the batch's")
  if values["decode.min_length"] > values["tokenizer.max_length"]:
    raise UserError(f"decode.min_length={values['decode.min_length']} must not be above "
                    f"tokenizer.max_length={values['tokenizer.max_length']}")
  for field in POSITIVE:
    if values[field] < 1:
      raise UserError(f"{field}={values[field]}: must be at least 1")
  for field in NOT_NEGATIVE:
    if values[field] < 0:
      raise UserError(f"{field}={values[field]}: must not be negative")
  for field in ("model.dropout", "optimizer.label_smoothing", "optimizer.ema_decay"):
    if not 0 <= values[field] < 1:
      raise UserError(f"{field}={values[field]}: must be at least 0 and below 1")
  if not 0 <= values["decode.retrieval_weight"] <= 1:
    raise UserError(f"decode.retrieval_weight={values['decode.retrieval_weight']}: must be from 0 to 1")
  if values["decode.retrieval_weight"] and not values["model.use_alignment"]:
    raise UserError("decode.retrieval_weight asks the alignment: set it to 0, or model.use_alignment=true")
  if not 0 < values["decode.top_p"] <= 1:
    raise UserError(f"decode.top_p={values['decode.top_p']}: must be above 0 and at most 1")
  for field in ("decode.temperature", "model.align_temperature"):
    if values[field] <= 0:
      raise UserError(f"{field}={values[field]}: must be above 0")
  if values["optimizer.warmup_steps"] >= values["train.num_steps"]:
    raise UserError(f"optimizer.warmup_steps={values['optimizer.warmup_steps']} must be below "
                    f"train.num_steps={values['train.num_steps']}")
  if values["data.name"] != "phantom":
    if values["eval.labeler"] == "phantom":
      raise UserError(f"eval.labeler=phantom reads the phantom's wording; set rules for data.name={values['data.name']}")
    if values["model.align_targets"] == "label_similarity" and (
        values["data.name"] != "mimic_cxr" or values["data.mimic_cxr.labels"] == "none"):
      raise UserError(f"model.align_targets=label_similarity: data.name={values['data.name']} has no labels")
  for field, divisor in (("model.width", "model.num_heads"), ("model.width", "memory.num_heads"),
                         ("data.image_size", "encoder.name")):
    size = ENCODERS[values[divisor]].stride if divisor == "encoder.name" else values[divisor]
    if values[field] % size:
      raise UserError(f"{field}={values[field]} must be a multiple of {size}, as {divisor}={values[divisor]} asks")
  if values["memory.top_k"] > values["memory.num_slots"]:
    raise UserError(f"memory.top_k={values['memory.top_k']} must not be above "
                    f"memory.num_slots={values['memory.num_slots']}")


def absolute_path(path: str) -> epath.Path:
  """Returns a path that means the same from every folder; those of buckets (gs://...) already do."""
  return epath.Path(path) if "://" in str(path) else epath.Path(path).expanduser().resolve()


def check_fields(config: ConfigDict, reference: ConfigDict, source: str) -> None:
  """Raises UserError unless `config` has exactly the fields and types of `reference`."""
  found, expected = _leaves(config), _leaves(reference)
  for field, value in found.items():
    if field not in expected:
      raise UserError(f"{source}: unknown field {field}{_closest(field, expected)}")
    wanted = type(expected[field])
    if not isinstance(value, wanted) and not (wanted is float and type(value) is int) or (
        wanted is not bool and isinstance(value, bool)):
      raise UserError(f"{source}: {field} is {value!r}, expected {wanted.__name__}")
  for field in expected:
    if field not in found:
      raise UserError(f"{source}: field {field} is missing; start from configs/phantom.py")


def save_config(config: ConfigDict, path: epath.Path) -> None:
  """Writes a config whole or not at all."""
  atomic_write(path, json.dumps(config.to_dict(), indent=2) + "\n")


def read_config(path: epath.Path) -> ConfigDict:
  """Returns the config that `save_config` wrote.

  Fields of `data` and of `RUNTIME_SECTIONS` that it doesn't have yet take their default, which is what was done
  before there was the field: a workdir outlives new ways to use it.

  Raises:
    UserError: the file is missing, cut off, or of another version's tree.
  """
  try:
    config = ConfigDict(json.loads(path.read_text()))
  except FileNotFoundError as error:
    raise UserError(f"{path} not found: is this a workdir of `mcsam train`?") from error
  except json.JSONDecodeError as error:
    raise UserError(f"{path} is damaged ({error}); restore it or train in a new workdir") from error
  defaults, found = phantom.get_config(), _leaves(config)
  for field, value in _leaves(defaults).items():
    *sections, name = field.split(".")
    if field not in found and sections and (sections[0] in (*RUNTIME_SECTIONS, "data") or field in ADDED_FIELDS):
      owner = config
      for section in sections:
        if section not in owner:
          owner[section] = ConfigDict()
        owner = owner[section]
      owner[name] = value
  check_fields(config, defaults, str(path))
  return config


def diff_configs(config: ConfigDict, other: ConfigDict) -> list[str]:
  """Returns a line `field: value, other value` for each field in which two configs differ."""
  ours, theirs = _leaves(config), _leaves(other)
  return [f"{field}: {value!r}, {theirs[field]!r}" for field, value in ours.items() if theirs[field] != value]


def _leaves(config: ConfigDict, prefix: str = "") -> dict:
  leaves = {}
  for key, value in config.items():
    if isinstance(value, ConfigDict):
      leaves.update(_leaves(value, f"{prefix}{key}."))
    else:
      leaves[prefix + key] = value
  return leaves


def _closest(field: str, known) -> str:
  match = difflib.get_close_matches(field, known, 1, cutoff=0.75) or [
      name for name in known if name.rpartition(".")[2] == field.rpartition(".")[2]]
  return f", did you mean {match[0]}?" if match else "; all fields stand in configs/phantom.py"
