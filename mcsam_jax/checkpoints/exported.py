"""The folder that `mcsam export` writes: a trained model without optimizer state, data or paths of a machine.

    README.md             model card
    config.json           the config of the run; paths that no other machine has are empty
    export.json           what was exported: step, versions, size and SHA-256 of every other file
    model.safetensors     variables by flat name, params/... and batch_stats/...
    encoder.safetensors   the pretrained image encoder that training started from, if any
    tokenizer/            vocabulary
    memory_bank/          words of the memory's topics, if it started from topics
    ood.npz               the sample of training images that images are compared with (inference/ood.py)
    search.stablehlo      the compiled search, with search.json (export/stablehlo.py), if asked for

Everything that opens a workdir opens such a folder, too; only training needs a workdir.
"""

from collections.abc import Mapping
import hashlib
import json
from typing import Any

from etils import epath
import numpy as np
import safetensors
import safetensors.numpy

from mcsam_jax.atomic_io import atomic_write
from mcsam_jax.checkpoints.weights import flatten_variables, match_variables
from mcsam_jax.errors import UserError

EXPORT_FILE, MODEL_FILE, ENCODER_FILE = "export.json", "model.safetensors", "encoder.safetensors"


def is_exported(path: epath.PathLike) -> bool:
  """Returns whether a folder was written by `mcsam export`."""
  return (epath.Path(path) / EXPORT_FILE).exists()


def read_export_info(path: epath.Path) -> dict[str, Any]:
  """Returns the content of export.json.

  Raises:
    UserError: it is damaged.
  """
  try:
    info = json.loads((path / EXPORT_FILE).read_text())
    return {**info, "step": int(info["step"]), "files": dict(info["files"])}
  except (ValueError, KeyError, TypeError) as error:
    raise UserError(f"{path / EXPORT_FILE} is damaged ({type(error).__name__}: {error}): copy the folder again, or "
                    "export the model again") from error


def save_tensors(path: epath.Path, variables: Mapping, metadata: Mapping[str, str]) -> None:
  """Writes variables by flat name, atomically."""
  tensors = {name: np.asarray(value, order="C") for name, value in flatten_variables(variables).items()}
  atomic_write(path, safetensors.numpy.save(tensors, metadata=dict(metadata)))


def load_tensors(path: epath.Path, expected_variables: Mapping) -> dict:
  """Returns the variables of a file of an exported folder, checked against export.json.

  Args:
    path: the file.
    expected_variables: a tree of arrays or shapes.

  Raises:
    UserError: the file is missing or damaged, or holds other variables.
  """
  recorded = read_export_info(path.parent)["files"].get(path.name)
  try:
    data = path.read_bytes()
  except FileNotFoundError as error:
    raise UserError(f"{path} not found: copy the whole folder of the exported model") from error
  if recorded is None or recorded != describe_bytes(data):
    raise UserError(f"{path} is damaged: its bytes differ from those that {EXPORT_FILE} records; copy the folder again")
  try:
    flat = safetensors.numpy.load(data)
  except (safetensors.SafetensorError, ValueError, TypeError) as error:
    raise UserError(f"{path} is damaged ({error}): copy the folder again") from error
  return match_variables(flat, expected_variables, f"{path} doesn't fit the model of config.json")


def load_variables(path: epath.Path, abstract_variables: Mapping, step: int | None) -> tuple[dict, int]:
  """Returns the variables of an exported model, as NumPy arrays, and the training step that they come from.

  Args:
    path: the folder.
    abstract_variables: shapes and types of `params` and `batch_stats`.
    step: the step that was asked for; None: the one that was exported.

  Raises:
    UserError: another step was exported, or the file is missing or damaged.
  """
  exported = read_export_info(path)["step"]
  if step not in (None, exported):
    raise UserError(f"{path} holds the model of step {exported}, not of step {step}: leave the step out")
  return {"batch_stats": {}, **load_tensors(path / MODEL_FILE, abstract_variables)}, exported


def load_encoder(path: epath.Path, expected_variables: Mapping) -> tuple[dict | None, dict]:
  """Returns the variables of the pretrained encoder and its metadata; (None, {}) if training started without one."""
  info = read_export_info(path)
  if ENCODER_FILE not in info["files"]:
    return None, {}
  return load_tensors(path / ENCODER_FILE, expected_variables), dict(info.get("encoder", {}))


def describe_bytes(data: bytes) -> dict[str, Any]:
  """Returns the entry of a file in export.json."""
  return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
