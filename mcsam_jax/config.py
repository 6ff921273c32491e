"""Loads, overrides, checks, saves and compares configs; configs/default.py is their schema.

Importing this module doesn't import JAX, so that the command line can report a mistyped field at once.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import contextlib
import difflib
import importlib
import importlib.util
import json
import pathlib
import sys
from types import ModuleType
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from mcsam_jax import __version__
from mcsam_jax.atomic_io import atomic_write
from mcsam_jax.errors import printable, UserError
from mcsam_jax.files.home import expand_home
from mcsam_jax.files.untrusted import read_json

CONFIGS_DIR = pathlib.Path(__file__).parents[1] / "configs"
PATH_FIELDS = ("data.source_dir", "data.data_dir", "data.mimic_cxr.reports", "encoder.weights",
               "memory_init.word_vectors", "train.init_from", "eval.chexbert",
               "eval.manual_labels")
RUNTIME_SECTIONS = ("decode", "eval", "mesh", "prepare")      # may differ from what a workdir was trained with
VERSION_KEY = "mcsam_jax_version"                             # in config.json; version 0.1 didn't write it
SOFTWARE_KEY = "software"                                     # in config.json: what wrote it, for people
_PARSERS: dict[type, Callable[[str], Any]] = {
    str: str, int: int, float: float, bool: lambda text: {"true": True, "false": False}[text.lower()]}
_project_modules: dict[str, ModuleType] = {}                  # the package `configs` and its modules, once imported


def default_config() -> ConfigDict:
  """Returns the tree of configs/default.py: every field with its default."""
  with _project_configs():
    return importlib.import_module("configs.default").get_config()


def load_config(name: str, overrides: Iterable[str] = ()) -> ConfigDict:
  """Returns the checked config of a file, with overrides applied.

  Args:
    name: path of a config file, or the name of one in the project's configs/ ("iu_xray").
    overrides: arguments of the form `--config.section.field=value`.

  Raises:
    UserError: there is no such file; it fails, or lacks fields; a field is unknown, or has a wrong type or value.
  """
  path = find_config(name)
  spec = importlib.util.spec_from_file_location(path.stem, path)
  assert spec and spec.loader, path
  module = importlib.util.module_from_spec(spec)
  try:
    with _project_configs():
      spec.loader.exec_module(module)
      config = module.get_config()
  except Exception as error:                                  # a user's own code may raise anything
    raise UserError(f"{path}: {type(error).__name__}: {error}") from error
  if not isinstance(config, ConfigDict):
    raise UserError(f"{path}: get_config() returned {type(config).__name__}, expected the ConfigDict of "
                    "configs/default.py with other values")
  check_fields(config, default_config(), str(path))
  return apply_overrides(config, overrides)


def find_config(name: str) -> epath.Path:
  """Returns the path of a config file, given by its path or by its name in the project's configs/.

  Raises:
    UserError: there is no such file.
  """
  path = epath.Path(name)
  if path.suffix != ".py":
    path = epath.Path(CONFIGS_DIR / f"{name}.py")
  if not path.exists():
    names = sorted(path.stem for path in CONFIGS_DIR.glob("[!_]*.py"))
    close = difflib.get_close_matches(name, names, 1)
    raise UserError(f"no config {name}" + (f", did you mean {close[0]}?" if close else
                                           f": give the path of a .py file, or one of {', '.join(names)}"))
  return path


def parse_overrides(overrides: Iterable[str]) -> dict[str, Any]:
  """Returns {field: value} of arguments `--config.section.field=value`.

  Raises:
    UserError: an argument has another form, a field is unknown, or a value has the wrong type.
  """
  defaults = flatten_config(default_config())                 # determine types: a file may set a float field to 1
  values = {}
  for argument in overrides:
    field, equals, text = argument.removeprefix("--config.").partition("=")
    if not argument.startswith("--config.") or not equals:
      raise UserError(f"unexpected argument {argument}: set fields as --config.section.field=value")
    if field not in defaults:
      raise UserError(f"--config.{field}: no such field{_suggest_field(field, defaults)}")
    try:
      values[field] = _PARSERS[type(defaults[field])](text)
    except (ValueError, KeyError) as error:
      expected = "true or false" if isinstance(defaults[field], bool) else type(defaults[field]).__name__
      raise UserError(f"--config.{field}={text}: expected {expected}") from error
  return values


def apply_overrides(config: ConfigDict, overrides: Iterable[str]) -> ConfigDict:
  """Returns a checked and locked copy of a config, with `--config.field=value` applied and paths made absolute."""
  config = config.copy_and_resolve_references()
  config.update_from_flattened_dict(parse_overrides(overrides))
  values = flatten_config(config)
  paths = {field: str(absolute_path(values[field])) for field in PATH_FIELDS if values[field]}
  config.update_from_flattened_dict(paths)
  from mcsam_jax.config_rules import check_values  # imports JAX
  check_values(flatten_config(config))
  return config.lock()


def absolute_path(path: epath.PathLike) -> epath.Path:
  """Returns a path that doesn't depend on the working directory; URLs of buckets (gs://...) stay as they are."""
  return epath.Path(path) if "://" in str(path) else expand_home(path).resolve()


def check_fields(config: ConfigDict, reference: ConfigDict, source: str) -> None:
  """Raises UserError unless `config` has exactly the fields and types of `reference`; messages start with `source`."""
  values, expected = flatten_config(config), flatten_config(reference)
  _check_known_fields(values, expected, source)
  for field in expected:
    if field not in values:
      raise UserError(f"{source}: field {field} is missing; start from configs/default.py")


def save_config(config: ConfigDict, path: epath.Path, software: Mapping | None = None) -> None:
  """Writes a config, this version's number and a description of the software to `path` as JSON, atomically."""
  header = {VERSION_KEY: __version__, **({SOFTWARE_KEY: software} if software else {})}
  atomic_write(path, json.dumps({**header, **config.to_dict()}, indent=2) + "\n")


def read_config(path: epath.PathLike, log: Callable[[str], None] = print) -> ConfigDict:
  """Returns the config that `save_config` wrote.

  Fields that were added to the schema since then take their defaults, and one log line names them: a workdir remains
  usable when the schema grows.

  Raises:
    UserError: the file is missing or damaged, was written by version 0.1, or has a field that is unknown here.
  """
  try:
    content = read_json(path)
  except FileNotFoundError as error:
    raise UserError(f"{path} not found: is this a workdir of `mcsam train`?") from error
  except (OSError, ValueError) as error:
    raise UserError(f"{path} is damaged ({printable(str(error))}); restore it or train in a new workdir") from error
  if not isinstance(content, dict):
    raise UserError(f"{path} is damaged: it holds no JSON object; restore it or train in a new workdir")
  if VERSION_KEY not in content:
    raise UserError(f"{path} was written by mcsam-jax 0.1; version {__version__} can't open its workdirs, because "
                    "fields and parameters were renamed: train again, or use version 0.1 for this workdir")
  version = printable(str(content.pop(VERSION_KEY)))
  content.pop(SOFTWARE_KEY, None)
  config, saved = default_config(), _flatten_object(content)
  defaults = flatten_config(config)
  _check_known_fields(saved, defaults, str(path) if version == __version__ else
                      f"{path} (written by mcsam-jax {version}, this is {__version__})")
  config.update_from_flattened_dict(saved)
  if added := {field: value for field, value in defaults.items() if field not in saved}:
    log(f"{path} lacks new fields, which take their defaults: " +
        ", ".join(f"{field}={value}" for field, value in added.items()))
  return config


def diff_configs(config: ConfigDict, other: ConfigDict) -> list[str]:
  """Returns a line `field: value, other value` for each field in which two configs differ."""
  values, other_values = flatten_config(config), flatten_config(other)
  return [f"{field}: {value!r}, {other_values[field]!r}" for field, value in values.items()
          if other_values[field] != value]


def _flatten_object(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
  """Returns all values of nested JSON objects by dotted name; a dot in a name itself makes it an unknown one."""
  fields = {}
  for key, value in content.items():
    name = f"{prefix}{key.replace('.', '..')}"
    fields.update(_flatten_object(value, f"{name}.") if isinstance(value, dict) and value else {name: value})
  return fields


def flatten_config(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
  """Returns all fields of a config with their values, by dotted name ("data.phantom.seed")."""
  fields = {}
  for key, value in config.items():
    if isinstance(value, ConfigDict):
      fields.update(flatten_config(value, f"{prefix}{key}."))
    else:
      fields[prefix + key] = value
  return fields


def _check_known_fields(values: dict[str, Any], expected: dict[str, Any], source: str) -> None:
  for field, value in values.items():
    if any(name.startswith(f"{field}.") for name in expected):
      raise UserError(f"{source}: {field} is {_describe(value)}, expected a section with fields")
    if field not in expected:
      raise UserError(f"{source}: unknown field {printable(field)}{_suggest_field(field, expected)}")
    required = type(expected[field])
    matches = (isinstance(value, required) or required is float and isinstance(value, int)) and (
        required is bool or not isinstance(value, bool))
    if not matches:
      raise UserError(f"{source}: {field} is {_describe(value)}, expected {required.__name__}")
    if isinstance(value, int) and abs(value) >= 2 ** 63:
      raise UserError(f"{source}: {field} is {_describe(value)}, expected a number below 2**63")
    if isinstance(value, str) and not value.isprintable():
      raise UserError(f"{source}: {field} is {_describe(value)}, which has characters that can't be printed")


def _describe(value: Any) -> str:
  """Returns a value as it is shown in an error."""
  return printable(repr(value)) if isinstance(value, (str, int, float, bool, type(None))) else type(value).__name__


def _suggest_field(field: str, known: Iterable[str]) -> str:
  known = list(known)
  matches: Sequence[str] = difflib.get_close_matches(field, known, 1, cutoff=0.75) or [
      name for name in known if name.rpartition(".")[2] == field.rpartition(".")[2]]
  return f", did you mean {matches[0]}?" if matches else "; configs/default.py lists all fields"


@contextlib.contextmanager
def _project_configs() -> Iterator[None]:
  """Makes `configs` the project's package inside the context, even where the working directory has another one."""
  def pop_modules() -> dict[str, ModuleType]:
    return {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "configs"}

  if not _project_modules:
    spec = importlib.util.spec_from_file_location("configs", CONFIGS_DIR / "__init__.py",
                                                  submodule_search_locations=[str(CONFIGS_DIR)])
    assert spec
    _project_modules["configs"] = importlib.util.module_from_spec(spec)
  users_modules = pop_modules()
  sys.modules.update(_project_modules)
  try:
    yield
  finally:
    _project_modules.update(pop_modules())
    sys.modules.update(users_modules)
