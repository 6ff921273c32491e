"""Reads the two file formats of `torch.save` without PyTorch and without executing anything in the file.

Since version 1.6 `torch.save` writes a zip file: `NAME/data.pkl`, and one file of raw bytes per storage in
`NAME/data/`. Earlier versions wrote one stream: magic number, protocol version, properties of the machine, the pickle,
the keys of the storages, and then the length and the raw bytes of each storage. In both formats the pickle refers to
storages by key, and a tensor is a strided view of a storage.

A pickle is a program, so Python's reader isn't used. `_Pickle` interprets the instructions that build tensors, ordered
dictionaries, plain containers and the inert stand-ins of `torch_module.py`, and refuses all others. It gives
descriptions of tensors; only when all of them fit into their storages, and the storages into the file, are bytes
read.
"""

from collections.abc import Callable
import dataclasses
import io
import math
import os
import pickletools
from typing import Any, BinaryIO, cast, IO, NamedTuple
import zipfile

import ml_dtypes
import numpy as np

from mcsam_jax.errors import printable, UserError
from mcsam_jax.files.untrusted import check_archive
from mcsam_jax.pretrained.torch_module import has_stand_in, StandIn

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
DTYPES = {
    "FloatStorage": "float32", "DoubleStorage": "float64", "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16", "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16",
    "CharStorage": "int8", "ByteStorage": "uint8", "BoolStorage": "bool",
}
MAX_DIMENSIONS = 16
SKIPPED_CALLS = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype", "_codecs.encode")


class Storage(NamedTuple):
  """A flat array in the file: its key, the name of its type, and its number of elements."""
  key: str
  dtype: str
  length: int

  @property
  def num_bytes(self) -> int:
    return self.length * make_dtype(self.dtype).itemsize


class Tensor(NamedTuple):
  """A view of a storage; offset and strides are in elements."""
  storage: Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]


@dataclasses.dataclass
class Checkpoint:
  """The content of a file, in which tensors are `Tensor`, and a reader of the bytes of a storage."""
  content: Any
  read_storage: Callable[[Storage], bytes]

  def read_tensors(self, tensors: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """Returns the arrays of tensors; those of one storage share its memory."""
    arrays = {}
    for storage in dict.fromkeys(tensor.storage for tensor in tensors.values()):
      arrays[storage] = np.frombuffer(self.read_storage(storage), make_dtype(storage.dtype))
    return {name: _view(arrays[tensor.storage], tensor) for name, tensor in tensors.items()}


def make_dtype(name: str) -> np.dtype:
  """Returns the type of a name, which may be bfloat16."""
  return np.dtype(getattr(ml_dtypes, name, name))


def read_zip(file: BinaryIO) -> Checkpoint:
  """Reads the pickle of a zip file.

  Raises:
    UserError: the file is damaged, of a big-endian machine, or would execute code. The message doesn't name it.
    Exception: of any type, if the file is damaged.
  """
  size = file.seek(0, os.SEEK_END)
  archive = zipfile.ZipFile(file)
  members = check_archive(archive, size)
  pickled = next((name for name in members if name.endswith("/data.pkl")), None)
  if pickled is None:
    raise UserError("not a PyTorch checkpoint: a zip file without data.pkl")
  root = pickled.removesuffix("data.pkl")

  def read(name: str, num_bytes: int | None = None) -> bytes:
    member = members[name]
    if member.compress_type != zipfile.ZIP_STORED:
      raise UserError(f"{printable(name)} is compressed, which PyTorch never does: save the state_dict again")
    if num_bytes is not None and member.file_size != num_bytes:
      raise UserError(f"truncated: storage {printable(name)} has {member.file_size:,} of {num_bytes:,} bytes; "
                      "download it again")
    return archive.read(member)

  if f"{root}byteorder" in members and read(f"{root}byteorder") != b"little":
    raise UserError("written on a big-endian machine, which is not supported")
  content = _Pickle(io.BytesIO(read(pickled))).load()
  return Checkpoint(content, lambda storage: read(f"{root}data/{storage.key}", storage.num_bytes))


def read_legacy(file: BinaryIO) -> Checkpoint:
  """Reads the pickle of a stream; the errors are those of `read_zip`."""
  size = file.seek(0, os.SEEK_END)
  file.seek(0)
  stream = _BoundedReader(file, size)
  if _Pickle(stream).load() != LEGACY_MAGIC:
    raise UserError("not a PyTorch checkpoint: the magic number is missing")
  _Pickle(stream).load()                                                          # protocol version
  machine = _Pickle(stream).load()
  if not isinstance(machine, dict) or not machine.get("little_endian", True):
    raise UserError("written on a big-endian machine, which is not supported")
  pickled = _Pickle(stream)
  content, keys, starts = pickled.load(), _Pickle(stream).load(), {}
  _check(_is(keys, list) and all(_is(key, str) for key in keys))
  for key in keys:
    length, storage = int.from_bytes(file.read(8), "little"), pickled.storages.get(key)
    if storage is None or length != storage.length:
      raise UserError(f"truncated or damaged: storage {printable(key)} has length {length:,}")
    starts[storage] = file.tell()
    if starts[storage] + storage.num_bytes > size:
      raise UserError(f"truncated: storage {printable(key)} ends after the file; download it again")
    file.seek(storage.num_bytes, os.SEEK_CUR)
  if set(starts) != set(pickled.storages.values()):
    raise UserError("truncated or damaged: some storages are missing")

  def read_storage(storage: Storage) -> bytes:
    file.seek(starts[storage])
    return file.read(storage.num_bytes)

  return Checkpoint(content, read_storage)


class _BoundedReader:
  """Reads a stream without asking it for more bytes than it has, which Python would allocate first."""

  def __init__(self, stream: BinaryIO, size: int):
    self._stream, self._size, self.tell, self.readline = stream, size, stream.tell, stream.readline

  def read(self, count: int) -> bytes:
    return self._stream.read(min(count, self._size - self._stream.tell()))


class _Global(str):
  """The name of a function or class that a pickle refers to."""


class _StandInClass(_Global):
  """The name of a class whose objects become stand-ins."""


class _Skipped:
  """Stands for a NumPy scalar, or for a part of one."""


class _Pickle:
  """Interprets one pickle of a stream, and leaves the stream behind it.

  Attributes:
    storages: the storages that the pickle refers to, by key.
  """

  def __init__(self, stream: "_BoundedReader | io.BytesIO"):
    self.storages: dict[str, Storage] = {}
    self._stream, self._stack, self._marks = stream, [], []
    self._memo: dict[int, Any] = {}

  def load(self) -> Any:
    """Returns the object that the pickle builds."""
    for opcode, argument, _ in pickletools.genops(cast(IO[bytes], self._stream)):
      self._execute(opcode.name, argument)
    return self._stack.pop()

  def _execute(self, name: str, argument: Any) -> None:
    stack = self._stack
    if name in _PUSHED:
      stack.append(_PUSHED[name]())
    elif name in _PUSHING:
      stack.append(argument)
    elif name in ("PROTO", "FRAME", "STOP"):
      pass
    elif name == "MARK":
      self._marks.append(len(stack))
    elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
      self._memo[len(self._memo) if argument is None else argument] = stack[-1]
    elif name in ("GET", "BINGET", "LONG_BINGET"):
      stack.append(self._memo[argument])
    elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
      stack.append(tuple(self._pop(int(name[-1]))))
    elif name == "TUPLE":
      stack.append(tuple(self._pop_to_mark()))
    elif name == "LIST":
      stack.append(self._pop_to_mark())
    elif name == "DICT":
      stack.append(_set_items({}, self._pop_to_mark()))
    elif name in ("APPEND", "APPENDS"):
      items = self._pop_to_mark() if name == "APPENDS" else self._pop(1)
      _check(type(stack[-1]) in (list, StandIn))
      if _is(stack[-1], list):
        stack[-1].extend(items)
    elif name in ("SETITEM", "SETITEMS"):
      items = self._pop_to_mark() if name == "SETITEMS" else self._pop(2)
      if not _is(stack[-1], StandIn):
        _set_items(stack[-1], items)
    elif name == "EMPTY_SET":
      stack.append(StandIn())
    elif name == "ADDITEMS":
      self._pop_to_mark()
      _check(_is(stack[-1], StandIn))
    elif name == "POP":
      stack.pop()
    elif name == "GLOBAL":
      stack.append(_refer(argument.replace(" ", ".", 1)))
    elif name == "STACK_GLOBAL":
      module, short = self._pop(2)
      _check(_is(module, str) and _is(short, str))
      stack.append(_refer(f"{module}.{short}"))
    elif name == "BINPERSID":
      stack.append(self._refer_to_storage(stack.pop()))
    elif name in ("REDUCE", "NEWOBJ"):
      stack.append(_call(*self._pop(2)))
    elif name == "BUILD":          # attributes; those of anything but a stand-in, such as `_metadata`, are ignored
      state = stack.pop()
      if _is(stack[-1], StandIn):
        stack[-1].state = state
    else:
      raise UserError(f"refused the instruction {name} of its pickle, because a checkpoint may contain only tensors in "
                      "plain containers; save only the state_dict")

  def _pop(self, count: int) -> list:
    _check(len(self._stack) >= count)
    items = self._stack[-count:]
    del self._stack[-count:]
    return items

  def _pop_to_mark(self) -> list:
    start = self._marks.pop()
    items = self._stack[start:]
    del self._stack[start:]
    return items

  def _refer_to_storage(self, persistent_id: Any) -> "Storage | _StandInClass":
    if _is(persistent_id, tuple) and persistent_id[:1] == ("module",):       # a class and its source, in a stream
      _check(len(persistent_id) > 1 and _is(persistent_id[1], _StandInClass))
      return persistent_id[1]
    _check(_is(persistent_id, tuple) and len(persistent_id) >= 5)
    kind, dtype, key, _, length, *view = persistent_id
    if kind != "storage" or any(part is not None for part in view) or not _is(dtype, _Global):
      raise UserError("not a PyTorch checkpoint: its pickle refers to an unknown kind of object, "
                      f"{printable(str(kind) if isinstance(kind, str) else type(kind).__name__)!r}")
    dtype = DTYPES[dtype.removeprefix("torch.")]
    _check(_is(key, str) and _is(length, int) and length >= 0)
    storage = self.storages.setdefault(key, Storage(key, dtype, length))
    if storage != Storage(key, dtype, length):
      raise UserError(f"damaged: storage {printable(key)} has two types or lengths")
    return storage


# What an instruction pushes, for those without an argument; those in _PUSHING push their argument.
_PUSHED: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False, "EMPTY_TUPLE": tuple, "EMPTY_LIST": list,
    "EMPTY_DICT": dict}
_PUSHING = ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
            "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE")


def _check(condition: bool) -> None:
  if not condition:
    raise UserError("its pickle is damaged; download it again")


def _is(value: Any, kind: type) -> bool:
  """Returns whether a value is of exactly this type: a bool is no int, and the name of a function is no text."""
  return type(value) is kind


def _refer(name: str) -> _Global:
  """Returns a name that a pickle refers to, unless calling it would execute code."""
  module, _, short = name.rpartition(".")
  is_tensor_part = name in _CALLS or name in SKIPPED_CALLS or module == "torch" and short in DTYPES
  if not is_tensor_part and has_stand_in(name):
    return _StandInClass(name)
  if not is_tensor_part:
    raise UserError(f"refused to call {printable(name)!r}, because a checkpoint may contain only tensors in plain "
                    "containers; save only the state_dict")
  return _Global(name)


def _call(function: Any, arguments: Any) -> Any:
  if _is(function, _StandInClass):
    return StandIn()
  _check(_is(function, _Global) and _is(arguments, tuple))
  if function in SKIPPED_CALLS:
    return _Skipped()
  _check(function in _CALLS)
  return _CALLS[function](*arguments)


def _set_items(mapping: Any, items: list) -> dict:
  """Adds alternating keys and values to a dictionary; keys are texts or numbers, whose hashes cost nothing."""
  _check(_is(mapping, dict) and len(items) % 2 == 0)
  _check(all(type(key) in (str, int, float, bool, bytes, type(None)) for key in items[::2]))
  mapping.update(zip(items[::2], items[1::2]))
  return mapping


def _make_ordered_dict(pairs: Any = None) -> dict:
  """Makes a dictionary of a list of pairs, which is emptied: a pickle that names it a million times stays small."""
  if pairs is None:
    return {}
  _check(_is(pairs, list) and all((_is(pair, list) or _is(pair, tuple)) and len(pair) == 2 for pair in pairs))
  items = [item for pair in pairs for item in pair]
  pairs.clear()
  return _set_items({}, items)


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_) -> Tensor:
  """Describes the view that torch._utils._rebuild_tensor_v2 returns, after checking that its storage has it."""
  _check(_is(storage, Storage) and _is(offset, int) and _is(shape, tuple) and _is(strides, tuple))
  _check(all(_is(size, int) for size in (*shape, *strides)) and len(shape) == len(strides) <= MAX_DIMENSIONS)
  if min(offset, *shape, *strides, 0) < 0 or max(offset, *shape, *strides, 0) >= 2 ** 63:
    raise UserError("damaged: a tensor exceeds its storage")
  last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides))
  if math.prod(shape) and last >= storage.length or max(shape, default=0) > max(storage.length, 1 << 20):
    raise UserError(f"damaged: a tensor of shape {list(shape)} exceeds its storage")
  if math.prod(shape) > storage.length:
    raise UserError(f"a tensor of shape {list(shape)} repeats the {storage.length:,} values of its storage: call "
                    "contiguous() on it before it is saved")
  return Tensor(storage, offset, shape, strides)


def _rebuild_parameter(tensor: Any, *_) -> Tensor:
  _check(_is(tensor, Tensor))
  return tensor


_CALLS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _make_ordered_dict, "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _rebuild_parameter}


def _view(storage: np.ndarray, tensor: Tensor) -> np.ndarray:
  """Returns the array of a tensor; NumPy, too, checks that the storage has it."""
  if not math.prod(tensor.shape):
    return np.zeros(tensor.shape, storage.dtype)
  strides = tuple(stride * storage.itemsize for stride in tensor.strides)
  return np.ndarray(tensor.shape, storage.dtype, storage, tensor.offset * storage.itemsize, strides)
