"""Checkpoints in both of PyTorch's formats, written here without PyTorch, are read without PyTorch."""

import collections
import json
import pickle
import struct

import ml_dtypes
import numpy as np
import pytest

from mcsam_jax.errors import UserError
from mcsam_jax.pretrained.torch_file import read_state_dict
from tests.testing.foreign.torch_files import legacy_file, Tensor, torch_names, zip_file


@pytest.fixture
def torch():
  with torch_names() as module:
    yield module


FORMATS = pytest.mark.parametrize("write", [legacy_file, zip_file])


def write_file(tmp_path, data):
  path = tmp_path / "model.pth"
  path.write_bytes(data)
  return str(path)


@FORMATS
def test_types_strides_and_shared_storages(tmp_path, torch, write):
  base = np.arange(24, dtype=np.float32)
  state = collections.OrderedDict(
      full=Tensor(base, "0", 0, (4, 6), (6, 1)),
      transposed=Tensor(base, "0", 0, (6, 4), (1, 6)),
      part=Tensor(base, "0", 7, (2, 3), (6, 2), parameter=True),
      half=Tensor(np.array([0.5, -2], np.float16), "1", 0, (2,), (1,)),
      brain=Tensor(np.array([1.5, 3], ml_dtypes.bfloat16), "2", 0, (2,), (1,)),
      count=Tensor(np.array([2**40]), "3", 0, (), ()),
      flags=Tensor(np.array([True, False]), "4", 0, (2,), (1,)),
      empty=Tensor(np.zeros(0, np.float32), "5", 0, (0, 3), (3, 1)))
  vars(state)["_metadata"] = {"": {"version": 1}}  # an attribute of PyTorch's state dicts
  tensors = read_state_dict(write_file(tmp_path, write(state)))
  assert list(tensors) == list(state)
  np.testing.assert_array_equal(tensors["full"], base.reshape(4, 6))
  np.testing.assert_array_equal(tensors["transposed"], base.reshape(4, 6).T)
  np.testing.assert_array_equal(tensors["part"], [[7, 9, 11], [13, 15, 17]])
  assert tensors["half"].dtype == np.float16 and tensors["half"].tolist() == [0.5, -2]
  assert tensors["brain"].astype(np.float32).tolist() == [1.5, 3]
  assert tensors["count"].shape == () and tensors["count"] == 2**40
  assert tensors["flags"].tolist() == [True, False] and tensors["empty"].shape == (0, 3)


@FORMATS
@pytest.mark.parametrize("nest", ["state_dict", "model", "model_state_dict"])
def test_nested_state_dicts_of_parallel_wrappers(tmp_path, torch, write, nest):
  tensor = Tensor(np.ones(2, np.float32), "0", 0, (2,), (1,))
  tensors = read_state_dict(write_file(tmp_path, write({"epoch": 3, nest: {"module.fc.bias": tensor}})))
  assert tensors["fc.bias"].tolist() == [1, 1] and len(tensors) == 1


@FORMATS
def test_entries_that_are_not_tensors_are_skipped_and_logged(tmp_path, torch, write):
  tensor, lines = Tensor(np.ones(2, np.float32), "0", 0, (2,), (1,)), []
  content = {"state_dict": {"fc.bias": tensor, "best": np.float64(0.5), "step": np.int64(3), "note": "x"},
             "accuracy": np.float32(0.25)}
  tensors = read_state_dict(write_file(tmp_path, write(content)), lines.append)
  assert tensors["fc.bias"].tolist() == [1, 1] and len(tensors) == 1
  assert len(lines) == 3
  assert all(name in line for name, line in zip(("best", "step", "note"), lines))


def test_safetensors_dtypes(tmp_path):
  pytest.importorskip("safetensors")
  values, path = np.array([[1.5, -2, 0.25]]), tmp_path / "model.safetensors"

  def save(name, data):
    header = json.dumps({"w": {"dtype": name, "shape": [1, 3], "data_offsets": [0, len(data)]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
  for name, dtype in (("BF16", ml_dtypes.bfloat16), ("F16", np.float16), ("F32", np.float32), ("I64", np.int64)):
    save(name, values.astype(dtype).tobytes())
    tensors, = read_state_dict(str(path)).values()
    assert tensors.dtype == dtype
    np.testing.assert_array_equal(tensors.astype(np.float64), values.astype(dtype).astype(np.float64))
  save("F8_E4M3", bytes(3))
  with pytest.raises(UserError, match="model.safetensors: w .*F8_E4M3.*F64"):
    read_state_dict(str(path))


@FORMATS
@pytest.mark.parametrize("kept", [0.02, 0.3, 0.6, 0.95, 0.999])
def test_truncated_file_is_refused(tmp_path, torch, write, kept):
  data = write({"weight": Tensor(np.arange(400, dtype=np.float32), "0", 0, (20, 20), (20, 1))})
  with pytest.raises(UserError, match="model.pth"):
    read_state_dict(write_file(tmp_path, data[:int(len(data) * kept)]))


@FORMATS
def test_code_is_refused_and_never_executed(tmp_path, torch, write):
  marker = tmp_path / "ran"

  class Attack:
    def __reduce__(self):
      return exec, (f"open({str(marker)!r}, 'w')",)

  with pytest.raises(UserError, match=r"(__builtin__|builtins)\.exec"):
    read_state_dict(write_file(tmp_path, write({"weight": Attack()})))
  assert not marker.exists()


@FORMATS
def test_tensor_that_exceeds_its_storage_is_refused(tmp_path, torch, write):
  for view in ((0, (5,), (1,)), (3, (2,), (1,)), (0, (2, 2), (3, 1)), (-1, (2,), (1,)), (3, (2,), (-9,))):
    with pytest.raises(UserError, match=r"model.pth.*storage"):
      read_state_dict(write_file(tmp_path, write({"weight": Tensor(np.ones(4, np.float32), "0", *view)})))


@pytest.mark.parametrize("data, message", [
    (b"<html>404</html>", "not a PyTorch checkpoint"), (b"", "not a PyTorch checkpoint"),
    (pickle.dumps({"a": 1}), "magic number"), (legacy_file({"epoch": 3}), "no named tensors")])
def test_other_files_are_refused(tmp_path, data, message):
  with pytest.raises(UserError, match=message):
    read_state_dict(write_file(tmp_path, data))


def test_missing_file_is_named(tmp_path):
  with pytest.raises(UserError, match="nowhere.pth"):
    read_state_dict(str(tmp_path / "nowhere.pth"))
