"""Pickled PyTorch modules give their tensors; their classes are never imported, and nothing in the file runs."""

import collections
import io
import pickle
import struct
import sys
import types
import zipfile

from flax import traverse_util
import jax
import numpy as np
import pytest

from mcsam_jax.checkpoints.weights import read_weights
from mcsam_jax.errors import UserError
from mcsam_jax.models.visual_encoders.registry import find_encoder, make_encoder
from mcsam_jax.pretrained.image_encoder import import_image_encoder
from mcsam_jax.pretrained.torch_file import read_state_dict
from mcsam_jax.pretrained.torch_module import collect_tensors, has_stand_in, StandIn
from mcsam_jax.pretrained.torch_pickle import LEGACY_MAGIC
from tests.testing.parity import draw_state_dict, PARITY, read_json, relative_error

CLASSES = {"torch": ("FloatStorage", "Size"), "torch.nn": (), "torch.nn.modules": (),
           "torch.nn.modules.conv": ("Conv2d",), "torch.nn.modules.container": ("Sequential",), "torch.nn.parallel": (),
           "torch.nn.parallel.data_parallel": ("DataParallel",),
           "torchxrayvision": (), "torchxrayvision.models": ("DenseNet",)}


@pytest.fixture
def classes(monkeypatch):
  """Returns classes by name, in modules with the names that a file refers to; removed before the file is read."""
  created = {}
  for module_name, names in CLASSES.items():
    module = types.ModuleType(module_name)
    monkeypatch.setitem(sys.modules, module_name, module)
    for name in names:
      created[name] = type(name, (), {"__module__": module_name})
      setattr(module, name, created[name])
  utils = types.ModuleType("torch._utils")
  exec("def _rebuild_tensor_v2(): pass\ndef call(): pass", {"__name__": "torch._utils"}, utils.__dict__)
  monkeypatch.setitem(sys.modules, "torch._utils", utils)
  created |= {name: getattr(utils, name) for name in ("_rebuild_tensor_v2", "call")}
  return created


class Storage:
  def __init__(self, array):
    self.array = array


class ModulePickler(pickle.Pickler):
  """Writes arrays as `torch.save` writes tensors."""

  def __init__(self, file, classes, legacy):
    super().__init__(file, protocol=2)
    self.classes, self.storages = classes, {}
    self.legacy, self.described = legacy, {classes["FloatStorage"]}      # classes whose source code is written

  def reducer_override(self, obj):
    if not isinstance(obj, np.ndarray):
      return NotImplemented
    strides = tuple(stride // obj.itemsize for stride in obj.strides)
    return self.classes["_rebuild_tensor_v2"], (Storage(obj), 0, obj.shape, strides, False, collections.OrderedDict())

  def persistent_id(self, obj):
    if isinstance(obj, Storage):
      key = str(len(self.storages))
      self.storages[key] = obj.array
      view = (None,) if self.legacy else ()
      return ("storage", self.classes["FloatStorage"], key, "cpu", obj.array.size, *view)
    if self.legacy and isinstance(obj, type) and obj in self.classes.values() and obj not in self.described:
      self.described.add(obj)
      return "module", obj, "models.py", "class Net: ..."
    return None


def write_file(path, content, classes, legacy):
  pickled = io.BytesIO()
  if legacy:
    for header in (LEGACY_MAGIC, 1001, {"little_endian": True}):
      pickle.dump(header, pickled, protocol=2)
  pickler = ModulePickler(pickled, classes, legacy)
  pickler.dump(content)
  if legacy:
    pickle.dump(list(pickler.storages), pickled, protocol=2)
    for array in pickler.storages.values():
      pickled.write(struct.pack("<q", array.size) + array.tobytes())
    path.write_bytes(pickled.getvalue())
    return str(path)
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("model/data.pkl", pickled.getvalue())
    for key, array in pickler.storages.items():
      archive.writestr(f"model/data/{key}", array.tobytes())
  return str(path)


def make_module(cls, parameters=(), buffers=(), children=(), **attributes):
  module = cls()
  vars(module).update(
      training=False, _parameters=collections.OrderedDict(parameters), _buffers=collections.OrderedDict(buffers),
      _modules=collections.OrderedDict(children), _non_persistent_buffers_set=set(),
      _forward_hooks=collections.OrderedDict(), **attributes)
  return module


def build_tree(tensors, classes, top):
  """Returns nested modules that hold tensors by their dotted names."""
  tree = {}
  for name, tensor in tensors.items():
    *parts, leaf = name.split(".")
    node = tree
    for part in parts:
      node = node.setdefault(part, {})
    node[leaf] = tensor

  def build(node, cls):
    own = {name: value for name, value in node.items() if isinstance(value, np.ndarray)}
    buffers = {name: own.pop(name) for name in list(own) if name.startswith("running")}
    return make_module(cls, own, buffers, {name: build(child, classes["Sequential"]) for name, child in node.items()
                                           if isinstance(child, dict)})
  return build(tree, classes[top])


FORMATS = pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])


@FORMATS
def test_tensors_have_the_names_of_a_state_dict(tmp_path, classes, legacy, monkeypatch):
  weight, mean = np.arange(6, dtype=np.float32).reshape(2, 3), np.ones(2, np.float32)
  shared = make_module(classes["Conv2d"], {"weight": weight, "bias": None}, {"running_mean": mean},
                       padding=classes["Size"](), threshold=np.float64(0.5), in_channels=1)
  net = make_module(classes["DenseNet"], children={"features": make_module(
      classes["Sequential"], children={"0": shared, "1": shared, "empty": None})}, pathologies=["Edema"])
  parallel = make_module(classes["DataParallel"], children={"module": net}, device_ids=[0])
  path = write_file(tmp_path / "model.pt", parallel, classes, legacy)
  for name in (*CLASSES, "torch._utils"):
    monkeypatch.delitem(sys.modules, name)                 # reading must not need them, nor import them
  tensors = read_state_dict(path)
  assert list(tensors) == ["features.0.weight", "features.0.running_mean"]
  np.testing.assert_array_equal(tensors["features.0.weight"], weight)
  np.testing.assert_array_equal(tensors["features.0.running_mean"], mean)
  assert "torchxrayvision" not in sys.modules


@FORMATS
def test_nothing_in_the_file_runs(tmp_path, classes, legacy):
  marker = tmp_path / "ran"

  class Call:
    def __init__(self, function):
      self.function = function

    def __reduce__(self):
      return self.function, (f"open({str(marker)!r}, 'w')",)

  sys.modules["torch._utils"].call.__code__ = (lambda text: exec(text)).__code__
  tensors = {"weight": np.ones(2, np.float32)}
  net = make_module(classes["DenseNet"], tensors, hook=Call(classes["call"]))
  read_state_dict(write_file(tmp_path / "model.pt", net, classes, legacy))
  with pytest.raises(UserError, match=r"model.pt.*(__builtin__|builtins)\.exec"):
    net = make_module(classes["DenseNet"], tensors, hook=Call(exec))
    read_state_dict(write_file(tmp_path / "model.pt", net, classes, legacy))
  assert not marker.exists()


def test_only_names_of_known_libraries_have_stand_ins():
  for name in (("os", "system"), ("builtins", "eval"), ("torchy", "load"), ("__main__", "Net"), ("pathlib", "Path")):
    assert not has_stand_in(".".join(name))
  assert has_stand_in("torch.nn.modules.conv.Conv2d")


def test_a_module_that_contains_itself_or_is_nested_deeply_is_read():
  loop, deep = StandIn(), StandIn()
  loop.state = {"_parameters": {"a": np.ones(1)}, "_modules": {"again": loop, "odd": 3}, "_buffers": None}
  assert list(collect_tensors(loop, np.ndarray)) == ["a"]
  inner = deep
  for _ in range(3000):
    inner.state = {"_modules": {"m": StandIn()}}
    inner = inner.state["_modules"]["m"]
  inner.state = {"_buffers": {"b": np.ones(1)}}
  assert [name[-3:] for name in collect_tensors(deep, np.ndarray)] == ["m.b"]


def test_a_model_of_torchxrayvision_becomes_an_encoder_with_the_same_features(tmp_path, classes):
  tensors = draw_state_dict(read_json("densenet121_keys.json"))
  tensors["op_threshs"], lines = np.full(18, np.nan, np.float32), []
  path = write_file(tmp_path / "densenet.pt", build_tree(tensors, classes, "DenseNet"), classes, legacy=True)
  report = import_image_encoder(path, str(tmp_path / "w.npz"), log=lines.append)
  assert report.is_complete and report.architecture == "densenet121"
  assert len(report.converted) == 120 + 4 * 121                                # convolutions and norms
  flat, meta = read_weights(tmp_path / "w.npz", "")
  assert meta["source"] == "densenet.pt" and "torchxrayvision" in meta["pretraining_data"]
  variables = traverse_util.unflatten_dict(flat, sep="/")
  images = (np.random.RandomState(3).random_sample((2, 1, 224, 224)) * 2 - 1).astype(np.float32) * 1024
  features = np.asarray(jax.jit(make_encoder("densenet121").apply)(variables, images.transpose(0, 2, 3, 1)))
  reference = np.load(PARITY / "densenet121.npz")
  assert features.shape == (2, 7, 7, find_encoder("densenet121").channels)
  assert relative_error(features[..., ::8], reference["features"].transpose(0, 2, 3, 1)) < 1e-4
  assert relative_error(features.mean((1, 2)), reference["features_mean"]) < 1e-4
