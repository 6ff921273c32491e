"""Checkpoints in both of PyTorch's formats, written without PyTorch."""

import collections
import contextlib
import io
import pickle
import struct
import sys
import types
import zipfile

import ml_dtypes
import numpy as np

from mcsam_jax.pretrained.torch_pickle import LEGACY_MAGIC

STORAGES = {"FloatStorage": np.float32, "HalfStorage": np.float16, "BFloat16Storage": ml_dtypes.bfloat16,
            "LongStorage": np.int64, "BoolStorage": np.bool_}


@contextlib.contextmanager
def torch_names():
  """Registers modules with PyTorch's names, so that pickles refer to the same names as PyTorch's."""
  torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
  for name in (*STORAGES, "device"):
    setattr(torch, name, type(name, (), {"__module__": "torch"}))
  for name in ("_rebuild_tensor_v2", "_rebuild_parameter"):
    exec(f"def {name}(): pass", {"__name__": "torch._utils"}, utils.__dict__)
  setattr(torch, "_utils", utils)  # noqa: B010  (pyright knows no such attribute)
  before = {name: sys.modules.get(name) for name in ("torch", "torch._utils")}
  sys.modules.update({"torch": torch, "torch._utils": utils})
  try:
    yield torch
  finally:
    for name, module in before.items():
      sys.modules.pop(name)
      if module is not None:
        sys.modules[name] = module


class Tensor:
  """A view of a storage, which is a flat array with a key."""

  def __init__(self, storage, key, offset, shape, strides, parameter=False):
    self.storage, self.key, self.view, self.parameter = storage, key, (offset, shape, strides), parameter

  def __reduce__(self):
    utils = sys.modules["torch._utils"]
    if self.parameter:
      plain = Tensor(self.storage, self.key, *self.view)
      return utils._rebuild_parameter, (plain, True, collections.OrderedDict())
    return utils._rebuild_tensor_v2, (Storage(self), *self.view, False, collections.OrderedDict())


class Storage:
  def __init__(self, tensor):
    self.array, self.key = tensor.storage, tensor.key


class Pickler(pickle.Pickler):
  def __init__(self, file, legacy):
    super().__init__(file, protocol=2)
    self.legacy, self.storages = legacy, {}

  def persistent_id(self, obj):
    if not isinstance(obj, Storage):
      return None
    self.storages[obj.key] = obj.array
    name = next(name for name, dtype in STORAGES.items() if obj.array.dtype == dtype)
    view = (None,) if self.legacy else ()
    return ("storage", getattr(sys.modules["torch"], name), obj.key, "cpu", obj.array.size, *view)


def legacy_file(content):
  file = io.BytesIO()
  for header in (LEGACY_MAGIC, 1001, {"protocol_version": 1001, "little_endian": True}):
    pickle.dump(header, file, protocol=2)
  pickler = Pickler(file, legacy=True)
  pickler.dump(content)
  pickle.dump(list(pickler.storages), file, protocol=2)
  for array in pickler.storages.values():
    file.write(struct.pack("<q", array.size) + array.tobytes())
  return file.getvalue()


def zip_file(content):
  pickled, file = io.BytesIO(), io.BytesIO()
  pickler = Pickler(pickled, legacy=False)
  pickler.dump(content)
  with zipfile.ZipFile(file, "w") as archive:
    archive.writestr("model/data.pkl", pickled.getvalue())
    archive.writestr("model/byteorder", "little")
    for key, array in pickler.storages.items():
      archive.writestr(f"model/data/{key}", array.tobytes())
  return file.getvalue()
