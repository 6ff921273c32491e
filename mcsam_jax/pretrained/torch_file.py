"""Reads the tensors of a PyTorch checkpoint (.pth, .bin) or of a .safetensors file, without PyTorch.

Nothing in the file is executed (see `torch_pickle` and, for pickled models, `torch_module`). Files that end with
.safetensors contain only tensors and are read by their own library.
"""

from collections.abc import Callable, Mapping
from typing import BinaryIO

import numpy as np

from mcsam_jax.errors import printable, UserError
from mcsam_jax.files.untrusted import open_regular_file
from mcsam_jax.pretrained import torch_pickle
from mcsam_jax.pretrained.torch_module import collect_tensors, StandIn

# Dtypes of safetensors, whose NumPy reader doesn't support bfloat16.
SAFE_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
               "I16": "int16", "I8": "int8", "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8",
               "BOOL": "bool"}
STATE_DICT_KEYS = ("state_dict", "model_state_dict", "model")     # where training scripts store the state dict


def read_state_dict(path: str, log: Callable[[str], None] = lambda line: None) -> dict[str, np.ndarray]:
  """Returns the tensors of a checkpoint by their names in its state dict.

  The state dict may be stored under one of STATE_DICT_KEYS. The prefix `module.` of parallel wrappers is removed if
  all names have it.

  Args:
    path: the file.
    log: receives one line for each entry of the state dict that isn't a tensor.

  Raises:
    UserError: the file is missing, truncated, not a PyTorch checkpoint, without tensors, or would execute code.
  """
  try:
    with open_regular_file(path) as file:
      tensors = _read_tensors(file, str(path).endswith(".safetensors"), log)
  except UserError as error:
    raise UserError(f"{path}: {error}") from error
  except OSError as error:
    raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
  except Exception as error:      # a damaged file can raise any exception
    raise UserError(f"{path}: truncated, damaged, or not a PyTorch checkpoint "
                    f"({type(error).__name__}: {printable(str(error))}); download it again") from error
  if all(name.startswith("module.") for name in tensors):
    tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
  return tensors


def _read_tensors(file: BinaryIO, is_safetensors: bool, log: Callable[[str], None]) -> dict[str, np.ndarray]:
  """Returns the tensors of the state dict in a file by their names, which are safe to print."""
  if is_safetensors:
    return {printable(name): tensor for name, tensor in _read_safetensors(file.read()).items()}
  is_zip = file.read(2) == b"PK"
  checkpoint = torch_pickle.read_zip(file) if is_zip else torch_pickle.read_legacy(file)
  content = checkpoint.content
  for key in STATE_DICT_KEYS:
    if isinstance(content, dict) and isinstance(content.get(key), (dict, StandIn)):
      content = content[key]
  if isinstance(content, StandIn):
    content = collect_tensors(content, torch_pickle.Tensor)
  entries: Mapping = content if isinstance(content, dict) else {}
  tensors = {printable(name): value for name, value in entries.items()
             if isinstance(name, str) and isinstance(value, torch_pickle.Tensor)}
  if not tensors:
    raise UserError("contains no named tensors; expected a state dict, at the top level or under one of "
                    f"{', '.join(STATE_DICT_KEYS)}")
  for name, value in entries.items():
    if not isinstance(name, str) or not isinstance(value, torch_pickle.Tensor):
      log(f"skipped     {printable(str(name))}: not a tensor")
  return checkpoint.read_tensors(tensors)


def _read_safetensors(data: bytes) -> dict[str, np.ndarray]:
  try:
    import safetensors
  except ImportError as error:
    raise UserError("reading .safetensors files needs a library: run `pip install safetensors`") from error
  tensors = {}
  for name, stored in safetensors.deserialize(data):
    if stored["dtype"] not in SAFE_DTYPES:
      raise UserError(f"{printable(name)} has dtype {stored['dtype']}, expected one of {', '.join(SAFE_DTYPES)}")
    dtype = torch_pickle.make_dtype(SAFE_DTYPES[stored["dtype"]])
    tensors[name] = np.frombuffer(stored["data"], dtype).reshape(stored["shape"])
  return tensors
