"""Reads the tensors of a PyTorch checkpoint (.pth, .bin) without PyTorch and without executing code in the file.

Such a file is a pickle, which can make its reader call any function. This reader only builds tensors, ordered
dictionaries and plain containers, gives inert stand-ins for the classes of a pickled model (`torch_module.py`), and
refuses every other name. NumPy scalars, which training scripts store next to
the tensors, are skipped. Files that end with .safetensors contain only tensors and are read by their own library.

There are two pickle formats. Since version 1.6 `torch.save` writes a zip file: `NAME/data.pkl`, and one file of raw
bytes per storage in `NAME/data/`. Earlier versions wrote one stream: magic number, protocol version, properties of
the machine, the pickle, the keys of the storages, and then the length and the raw bytes of each storage. In both
formats the pickle refers to storages by key, and a tensor is a strided view of a storage.
"""

import collections
from collections.abc import Callable
import io
import pickle
import zipfile

from etils import epath
import ml_dtypes
import numpy as np

from mcsam_jax.errors import UserError
from mcsam_jax.pretrained.torch_module import collect_tensors, find_stand_in, StandIn

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
# The dtypes are strings, so that the unpickler never returns an object that could be called or modified.
DTYPES = {
    "FloatStorage": "float32", "DoubleStorage": "float64", "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16", "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16",
    "CharStorage": "int8", "ByteStorage": "uint8", "BoolStorage": "bool",
}
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
    data = epath.Path(path).read_bytes()
  except OSError as error:
    raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
  try:
    if str(path).endswith(".safetensors"):
      content = _read_safetensors(data)
    else:
      content = _read_zip(data) if data.startswith(b"PK") else _read_legacy(data)
  except UserError as error:
    raise UserError(f"{path}: {error}") from error
  except Exception as error:      # a damaged pickle can raise any exception
    raise UserError(f"{path}: truncated, damaged, or not a PyTorch checkpoint "
                    f"({type(error).__name__}: {error}); download it again") from error
  for key in STATE_DICT_KEYS:
    if isinstance(content, dict) and isinstance(content.get(key), (dict, StandIn)):
      content = content[key]
  if isinstance(content, StandIn):
    content = collect_tensors(content)
  entries = content.items() if isinstance(content, dict) else ()
  tensors = {name: value for name, value in entries if isinstance(name, str) and isinstance(value, np.ndarray)}
  if not tensors:
    raise UserError(f"{path}: contains no named tensors; expected a state dict, at the top level or under one of "
                    f"{', '.join(STATE_DICT_KEYS)}")
  for name, _ in entries:
    if name not in tensors:
      log(f"skipped     {name}: not a tensor")
  if all(name.startswith("module.") for name in tensors):
    tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
  return tensors


def _read_safetensors(data: bytes):
  try:
    import safetensors
  except ImportError as error:
    raise UserError("reading .safetensors files needs a library: run `pip install safetensors`") from error
  tensors = {}
  for name, stored in safetensors.deserialize(data):
    if stored["dtype"] not in SAFE_DTYPES:
      raise UserError(f"{name} has dtype {stored['dtype']}, expected one of {', '.join(SAFE_DTYPES)}")
    tensors[name] = np.frombuffer(stored["data"], _dtype(SAFE_DTYPES[stored["dtype"]])).reshape(stored["shape"])
  return tensors


def find_weight_error(tensor: np.ndarray) -> str:
  """Returns why a tensor can't be weights of a network, or "" if it can."""
  if tensor.dtype.kind != "f" and tensor.dtype != ml_dtypes.bfloat16:
    return f"dtype {tensor.dtype}, expected floating point"
  with np.errstate(over="ignore"):
    num_nonfinite = int((~np.isfinite(tensor.astype(np.float32))).sum())
  return f"{num_nonfinite} of {tensor.size} values are NaN or infinite" if num_nonfinite else ""


def _dtype(name: str) -> np.dtype:
  return np.dtype(getattr(ml_dtypes, name, name))


def _read_zip(data: bytes):
  with zipfile.ZipFile(io.BytesIO(data)) as archive:
    names = archive.namelist()
    pickled = next((name for name in names if name.endswith("/data.pkl")), None)
    if pickled is None:
      raise UserError("not a PyTorch checkpoint: a zip file without data.pkl")
    root = pickled.removesuffix("data.pkl")
    if root + "byteorder" in names and archive.read(root + "byteorder") != b"little":
      raise UserError("written on a big-endian machine, which is not supported")
    storages = _Storages(limit=len(data))
    content = _TensorUnpickler(io.BytesIO(archive.read(pickled)), storages).load()
    for key, storage in storages.items():
      _fill(storage, archive.read(f"{root}data/{key}"), key)
  return content


def _read_legacy(data: bytes):
  stream = io.BytesIO(data)
  storages = _Storages(limit=len(data))
  if _TensorUnpickler(stream, storages).load() != LEGACY_MAGIC:
    raise UserError("not a PyTorch checkpoint: the magic number is missing")
  _TensorUnpickler(stream, storages).load()                                       # protocol version
  if not _TensorUnpickler(stream, storages).load().get("little_endian", True):
    raise UserError("written on a big-endian machine, which is not supported")
  content = _TensorUnpickler(stream, storages).load()
  keys = _TensorUnpickler(stream, storages).load()
  for key in keys:
    length = int.from_bytes(stream.read(8), "little")
    if key not in storages or length != storages[key].size:
      raise UserError(f"truncated or damaged: storage {key} has length {length}")
    _fill(storages[key], stream.read(storages[key].nbytes), key)
  if set(keys) != set(storages):
    raise UserError("truncated or damaged: some storages are missing")
  return content


def _fill(storage: np.ndarray, raw: bytes, key: str) -> None:
  """Copies raw bytes into a storage."""
  if len(raw) != storage.nbytes:
    raise UserError(f"truncated: storage {key} has {len(raw):,} of {storage.nbytes:,} bytes; download it again")
  storage.view(np.uint8)[:] = np.frombuffer(raw, np.uint8)


class _Storages(dict):
  """Flat arrays by key, allocated when the pickle refers to them and filled when their bytes are read."""

  def __init__(self, limit: int):
    super().__init__()
    self.limit = limit          # bytes of the file: a damaged length must not exhaust the memory

  def get_or_allocate(self, persistent_id: tuple) -> np.ndarray | type:
    """Returns the storage, or the stand-in of a class, to which a persistent id of the pickle refers."""
    if persistent_id[0] == "module":      # a class and its source code, in legacy files
      return persistent_id[1]
    kind, dtype, key, _, length, *view = persistent_id
    if kind != "storage" or any(view):
      raise UserError(f"not a PyTorch checkpoint: its pickle refers to an unknown kind of object, {kind!r}")
    dtype = _dtype(dtype)
    if length * dtype.itemsize > self.limit:
      raise UserError(f"truncated: storage {key} of {length * dtype.itemsize:,} bytes is larger than the file")
    if key not in self:
      self[key] = np.zeros(length, dtype)
    return self[key]


class _IgnoredScalar:
  """Placeholder for a NumPy scalar or a part of one; accepts any state of a pickle and does nothing."""

  def __init__(self, *_):
    pass

  def __setstate__(self, _):
    pass


class _TensorUnpickler(pickle.Unpickler):
  """Builds only tensors, ordered dictionaries and plain containers."""

  def __init__(self, stream: io.BytesIO, storages: _Storages):
    super().__init__(stream, encoding="utf-8")
    self.persistent_load = storages.get_or_allocate

  def find_class(self, module: str, name: str):
    if module == "torch" and name in DTYPES:
      return DTYPES[name]
    allowed = {("collections", "OrderedDict"): collections.OrderedDict,
               ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
               ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
               ("numpy.core.multiarray", "scalar"): _IgnoredScalar,
               ("numpy._core.multiarray", "scalar"): _IgnoredScalar,
               ("numpy", "dtype"): _IgnoredScalar, ("_codecs", "encode"): _IgnoredScalar}
    if (module, name) not in allowed and (stand_in := find_stand_in(module, name)):
      return stand_in
    if (module, name) not in allowed:
      raise UserError(f"refused to call {f'{module}.{name}'!r}, because a checkpoint may contain only tensors in plain "
                      "containers; save only the state_dict")
    return allowed[module, name]


def _rebuild_tensor(storage: np.ndarray, offset: int, shape: tuple, strides: tuple, *_) -> np.ndarray:
  """Returns the view of torch._utils._rebuild_tensor_v2; offset and strides are in elements."""
  last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
  if min(shape, default=1) > 0 and (min(offset, *strides, 0) < 0 or last >= storage.size):
    raise UserError(f"damaged: a tensor of shape {shape} exceeds its storage")
  byte_strides = tuple(stride * storage.itemsize for stride in strides)
  return np.lib.stride_tricks.as_strided(storage[offset:], shape, byte_strides)


def _rebuild_parameter(tensor: np.ndarray, *_) -> np.ndarray:
  return tensor
