"""Reads the tensors of a PyTorch checkpoint (.pth, .bin) without PyTorch, and without running what it holds.

Such a file is a pickle, which may name any function for the reader to call. Here only tensors, ordered
dictionaries and plain containers can be built; every other name is refused. NumPy's
scalars, which training scripts keep beside the tensors, are passed over.

Files that end with .safetensors hold tensors alone and are left to their library.

Of the pickles two formats exist. `torch.save` has written a zip since 1.6: `NAME/data.pkl` and one file of raw bytes a
storage in `NAME/data/`. Before, it wrote one stream: magic number, protocol, facts about the machine, the
pickle, the keys of the storages, and behind them for each its length and raw bytes. In both the pickle
refers to storages by key; a tensor is a strided view of one.
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

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
# By name, so that the unpickler hands out nothing that could be called or altered.
DTYPES = {
    "FloatStorage": "float32", "DoubleStorage": "float64", "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16", "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16",
    "CharStorage": "int8", "ByteStorage": "uint8", "BoolStorage": "bool",
}
# Of safetensors, whose own reader for NumPy lacks bfloat16.
SAFE_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
               "I16": "int16", "I8": "int8", "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8",
               "BOOL": "bool"}
NESTS = ("state_dict", "model_state_dict", "model")     # keys under which training scripts keep the state dict


def read_state_dict(path: str, log: Callable[[str], None] = lambda line: None) -> dict[str, np.ndarray]:
  """Returns the tensors of a checkpoint by their names in its state dict.

  A state dict below a key of `NESTS` is found; a leading `module.` of every name, the trace
  of a parallel wrapper, is dropped. `log` receives a line for what stands beside the tensors and is none.

  Raises:
    UserError: no such file, cut short, no PyTorch checkpoint, holds no tensors, or needs other code.
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
  except Exception as error:      # a damaged pickle stream raises whatever its garbled opcodes lead to
    raise UserError(f"{path}: cut short, damaged, or no PyTorch checkpoint "
                    f"({type(error).__name__}: {error}); fetch it again") from error
  for key in NESTS:
    if isinstance(content, dict) and isinstance(content.get(key), dict):
      content = content[key]
  entries = content.items() if isinstance(content, dict) else ()
  tensors = {name: value for name, value in entries if isinstance(name, str) and isinstance(value, np.ndarray)}
  if not tensors:
    raise UserError(f"{path}: holds no named tensors; expected a state dict, alone or under "
                    f"{', '.join(NESTS)}")
  for name, _ in entries:
    if name not in tensors:
      log(f"left out    {name}: no tensor")
  if all(name.startswith("module.") for name in tensors):
    tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
  return tensors


def _read_safetensors(data: bytes):
  try:
    import safetensors
  except ImportError as error:
    raise UserError("reading .safetensors needs its library: run `pip install safetensors`") from error
  tensors = {}
  for name, stored in safetensors.deserialize(data):
    if stored["dtype"] not in SAFE_DTYPES:
      raise UserError(f"{name} is of type {stored['dtype']}; known are {', '.join(SAFE_DTYPES)}")
    tensors[name] = np.frombuffer(stored["data"], _dtype(SAFE_DTYPES[stored["dtype"]])).reshape(stored["shape"])
  return tensors


def not_weights(tensor: np.ndarray) -> str:
  """Returns why a tensor can't be the weights of a network, "" where it can."""
  if tensor.dtype.kind != "f" and tensor.dtype != ml_dtypes.bfloat16:
    return f"{tensor.dtype} numbers, no fractions"
  with np.errstate(over="ignore"):
    wrong = int((~np.isfinite(tensor.astype(np.float32))).sum())
  return f"{wrong} of {tensor.size} values are NaN or infinite" if wrong else ""


def _dtype(name: str) -> np.dtype:
  return np.dtype(getattr(ml_dtypes, name, name))


def _read_zip(data: bytes):
  with zipfile.ZipFile(io.BytesIO(data)) as archive:
    names = archive.namelist()
    pickled = next((name for name in names if name.endswith("/data.pkl")), None)
    if pickled is None:
      raise UserError("a zip file without data.pkl, so no PyTorch checkpoint")
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
    raise UserError("not a PyTorch checkpoint (its magic number is missing)")
  _TensorUnpickler(stream, storages).load()                                       # protocol version
  if not _TensorUnpickler(stream, storages).load().get("little_endian", True):
    raise UserError("written on a big-endian machine, which is not supported")
  content = _TensorUnpickler(stream, storages).load()
  keys = _TensorUnpickler(stream, storages).load()
  for key in keys:
    length = int.from_bytes(stream.read(8), "little")
    if key not in storages or length != storages[key].size:
      raise UserError(f"cut short or damaged: storage {key} has length {length}")
    _fill(storages[key], stream.read(storages[key].nbytes), key)
  if set(keys) != set(storages):
    raise UserError("cut short or damaged: not every storage is there")
  return content


def _fill(storage: np.ndarray, raw: bytes, key: str) -> None:
  if len(raw) != storage.nbytes:
    raise UserError(f"cut short: storage {key} has {len(raw):,} of {storage.nbytes:,} bytes; fetch it again")
  storage.view(np.uint8)[:] = np.frombuffer(raw, np.uint8)


class _Storages(dict):
  """Flat arrays by key. They are made when the pickle names them and filled when their bytes are reached."""

  def __init__(self, limit: int):
    super().__init__()
    self.limit = limit          # bytes of the whole file; a damaged length must not take all memory

  def make(self, persistent_id: tuple) -> np.ndarray:
    kind, dtype, key, _, length, *view = persistent_id
    if kind != "storage" or any(view):
      raise UserError(f"refers to {kind!r} of an unknown kind")
    dtype = _dtype(dtype)
    if length * dtype.itemsize > self.limit:
      raise UserError(f"cut short: storage {key} of {length * dtype.itemsize:,} bytes exceeds the file")
    if key not in self:
      self[key] = np.zeros(length, dtype)
    return self[key]


class _LeftOut:
  """Stands for a scalar of NumPy, or a part of one; takes all that a pickle hands it, and does nothing."""

  def __init__(self, *_):
    pass

  def __setstate__(self, _):
    pass


class _TensorUnpickler(pickle.Unpickler):
  """Builds tensors, ordered dictionaries and plain containers, nothing else."""

  def __init__(self, stream: io.BytesIO, storages: _Storages):
    super().__init__(stream, encoding="utf-8")
    self.persistent_load = storages.make

  def find_class(self, module: str, name: str):
    if module == "torch" and name in DTYPES:
      return DTYPES[name]
    allowed = {("collections", "OrderedDict"): collections.OrderedDict,
               ("torch._utils", "_rebuild_tensor_v2"): _tensor,
               ("torch._utils", "_rebuild_parameter"): _parameter,
               ("numpy.core.multiarray", "scalar"): _LeftOut, ("numpy._core.multiarray", "scalar"): _LeftOut,
               ("numpy", "dtype"): _LeftOut, ("_codecs", "encode"): _LeftOut}
    if (module, name) not in allowed:
      raise UserError(f"wants to run {f'{module}.{name}'!r}; only tensors in plain containers are read, "
                      "so save its state_dict alone")
    return allowed[module, name]


def _tensor(storage: np.ndarray, offset: int, shape: tuple, strides: tuple, *_) -> np.ndarray:
  """Returns the view that torch._utils._rebuild_tensor_v2 describes; offset and strides count elements."""
  last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
  if min(shape, default=1) > 0 and (min(offset, *strides, 0) < 0 or last >= storage.size):
    raise UserError(f"damaged: a tensor of shape {shape} reaches outside its storage")
  bytes_strides = tuple(stride * storage.itemsize for stride in strides)
  return np.lib.stride_tricks.as_strided(storage[offset:], shape, bytes_strides)


def _parameter(tensor: np.ndarray, *_) -> np.ndarray:
  return tensor
