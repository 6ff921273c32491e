"""The project's file format for pretrained weights: one .npz, with one array per variable and its origin.

`params/conv1/kernel`, `batch_stats/bn1/mean`, ... are arrays. `meta` is a JSON object with at least `architecture`,
`source`, `sha256` (of the source file) and `pretraining_data`.
"""

from collections.abc import Callable, Mapping
import hashlib
import io
import json
import shlex
from typing import Any

from etils import epath
from flax import traverse_util
import ml_dtypes
import numpy as np

from mcsam_jax.atomic_io import atomic_write
from mcsam_jax.errors import printable, UserError
from mcsam_jax.files.untrusted import load_npz, parse_json

WEIGHT_MARKS = ("meta.npy",)           # in every file; the names of an archive's members aren't compressed
TEXT_FIELDS = ("architecture", "source", "sha256", "pretraining_data")          # metadata fields that hold text


def save_weights(path: epath.PathLike, variables: Mapping, meta: Mapping[str, Any]) -> None:
  """Writes variables and their origin atomically.

  Raises:
    UserError: the file can't be written.
  """
  arrays: dict[str, Any] = {name: np.asarray(value) for name, value in flatten_variables(variables).items()}
  buffer = io.BytesIO()
  np.savez(buffer, meta=np.asarray(json.dumps(dict(meta))), **arrays)
  try:
    atomic_write(path, buffer.getvalue())
  except OSError as error:
    raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error


def load_weights(path: epath.PathLike, expected_variables: Mapping, fit: Callable | None = None) -> tuple[dict, dict]:
  """Returns the variables and the metadata of a file.

  Args:
    path: a file written by `mcsam import-weights`.
    expected_variables: a tree of arrays or shapes, which the file has to match by name and shape.
    fit: function (arrays, expected shapes), both by flat name, that changes the file's arrays before that.

  Raises:
    UserError: the file is missing or damaged, names or shapes differ, or values aren't finite; the message lists each.
  """
  flat, meta = read_weights(path, f"write it with `mcsam import-weights encoder SOURCE {shlex.quote(str(path))}`")
  if fit:
    flat = fit(flat, {name: leaf.shape for name, leaf in flatten_variables(expected_variables).items()})
  error_prefix = f"{path} ({meta.get('architecture')}) doesn't fit the configured encoder"
  return match_variables(flat, expected_variables, error_prefix), meta


def read_weights(path: epath.PathLike, hint: str) -> tuple[dict[str, np.ndarray], dict]:
  """Returns all variables of a file by flat name ("params/conv1/kernel"), and its metadata.

  Args:
    path: a file written by `mcsam import-weights`.
    hint: how to get the file, for the error message if it is missing.

  Raises:
    UserError: the file is missing or damaged.
  """
  try:
    flat = load_npz(path)
    if flat["meta"].shape != () or flat["meta"].dtype.kind != "U":
      raise ValueError("meta is no text")
    meta = parse_json(str(flat.pop("meta")))
    if not isinstance(meta, dict):
      raise ValueError("meta holds no JSON object")
    for name in TEXT_FIELDS:
      if not isinstance(meta.get(name, ""), str):
        raise ValueError(f"meta.{name} is no text")
  except FileNotFoundError as error:
    raise UserError(f"{path} not found: {hint}") from error
  except KeyError as error:
    raise UserError(f"{path} was not written by `mcsam import-weights`: it has no {error.args[0]}; write it again"
                    ) from error
  except (OSError, ValueError) as error:
    raise UserError(f"{path} is damaged, or was not written by `mcsam import-weights` ({printable(str(error))}); write "
                    "it again") from error
  return flat, meta


def match_variables(flat: Mapping[str, np.ndarray], expected_variables: Mapping, error_prefix: str) -> dict:
  """Returns variables, given by flat name, as a tree like `expected_variables`, with its data types.

  Args:
    flat: arrays by flat name.
    expected_variables: a tree of arrays or shapes.
    error_prefix: start of the error message.

  Raises:
    UserError: names or shapes differ, or values aren't finite and real; the message lists each.
  """
  expected = flatten_variables(expected_variables)
  problems = [f"missing {name}" for name in expected if name not in flat]
  problems += [f"unexpected {printable(name)}" for name in flat if name not in expected]
  for name, leaf in expected.items():
    if name in flat and flat[name].shape != leaf.shape:
      problems.append(f"{name} is {list(flat[name].shape)}, expected {list(leaf.shape)}")
    elif name in flat and (error := find_weight_error(flat[name])):
      problems.append(f"{name}: {error}")
  if problems:
    raise UserError(f"{error_prefix}: " + "; ".join(problems))
  return traverse_util.unflatten_dict({name: flat[name].astype(leaf.dtype) for name, leaf in expected.items()}, sep="/")


def find_weight_error(array: np.ndarray) -> str:
  """Returns why an array can't be weights of a network, or "" if it can."""
  if array.dtype.kind != "f" and array.dtype != ml_dtypes.bfloat16:
    return f"dtype {array.dtype}, expected floating point"
  with np.errstate(over="ignore"):
    num_nonfinite = int((~np.isfinite(array.astype(np.float32))).sum())
  return f"{num_nonfinite} of {array.size} values are NaN or infinite" if num_nonfinite else ""


def hash_weights(variables: Mapping) -> str:
  """Returns 16 hexadecimal digits that change with any name, shape or value."""
  digest = hashlib.sha256()
  for name, value in sorted(flatten_variables(variables).items()):
    value = np.asarray(value)
    digest.update(f"{name} {value.dtype} {value.shape};".encode())
    digest.update(np.ascontiguousarray(value).tobytes())
  return digest.hexdigest()[:16]


def flatten_variables(variables: Mapping) -> dict[str, Any]:
  """Returns the arrays (or shapes) of a tree by flat name."""
  return traverse_util.flatten_dict(variables, sep="/")
