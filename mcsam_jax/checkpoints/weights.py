"""Our file of encoder weights: one .npz with a name a variable and where they come from.

`params/conv1/kernel`, `batch_stats/bn1/mean`, ... are arrays; `meta` is a JSON object with at least
`architecture`, `source`, `sha256` (of the source) and `pretraining_data`.
"""

import hashlib
import io
import json

from etils import epath
from flax import traverse_util
import numpy as np

from mcsam_jax.atomic_io import atomic_write, NPZ_ERRORS
from mcsam_jax.errors import UserError


def save_weights(path: epath.PathLike, variables: dict, meta: dict) -> None:
  """Writes variables and their origin; the file appears whole or not at all."""
  flat = traverse_util.flatten_dict(variables, sep="/")
  buffer = io.BytesIO()
  np.savez(buffer, meta=json.dumps(meta), **{name: np.asarray(value) for name, value in flat.items()})
  try:
    atomic_write(path, buffer.getvalue())
  except OSError as error:
    raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error


def load_weights(path: epath.PathLike, expected_variables: dict) -> tuple[dict, dict]:
  """Returns (variables, meta) of a file.

  Args:
    path: what `mcsam import-weights` wrote.
    expected_variables: a tree of arrays or shapes that the file has to match name for name.

  Raises:
    UserError: no such file, damaged, or of other names or shapes: each is listed.
  """
  flat, meta = read_weights(path, f"write it with `mcsam import-weights encoder SOURCE {path}`")
  return match_variables(flat, expected_variables, f"{path} ({meta.get('architecture')}) doesn't fit the configured encoder"), meta


def read_weights(path: epath.PathLike, how_to_get: str) -> tuple[dict[str, np.ndarray], dict]:
  """Returns the variables of a file by flat name, whatever they are, and its meta.

  Args:
    how_to_get: such a file; ends the line where there is none.

  Raises:
    UserError: no such file, or damaged.
  """
  try:
    with np.load(io.BytesIO(epath.Path(path).read_bytes())) as file:
      flat = {name: file[name] for name in file.files}
    meta = json.loads(str(flat.pop("meta")))
  except FileNotFoundError as error:
    raise UserError(f"{path} not found: {how_to_get}") from error
  except (AttributeError, *NPZ_ERRORS) as error:
    raise UserError(f"{path} is damaged or not of `mcsam import-weights` ({error}); write it again"
                    ) from error
  return flat, meta


def match_variables(flat: dict[str, np.ndarray], expected_variables: dict, otherwise: str) -> dict:
  """Returns variables by flat name as the expected tree, in its types.

  Args:
    otherwise: begins the line where a name or shape differs.

  Raises:
    UserError: names or shapes differ: each is listed.
  """
  expected = traverse_util.flatten_dict(expected_variables, sep="/")
  problems = [f"missing {name}" for name in expected if name not in flat]
  problems += [f"unexpected {name}" for name in flat if name not in expected]
  problems += [f"{name} is {list(flat[name].shape)}, expected {list(leaf.shape)}"
               for name, leaf in expected.items() if name in flat and flat[name].shape != leaf.shape]
  if problems:
    raise UserError(f"{otherwise}: " + "; ".join(problems))
  return traverse_util.unflatten_dict({name: flat[name].astype(leaf.dtype) for name, leaf in expected.items()}, sep="/")


def weights_digest(variables: dict) -> str:
  """Returns 16 hexadecimal digits that change with any name, shape or value."""
  digest = hashlib.sha256()
  for name, value in sorted(traverse_util.flatten_dict(variables, sep="/").items()):
    value = np.asarray(value)
    digest.update(f"{name} {value.dtype} {value.shape};".encode())
    digest.update(np.ascontiguousarray(value).tobytes())
  return digest.hexdigest()[:16]
