"""Checkpoints that were made to harm their reader: refused in one line, without taking memory or executing anything."""

import io
import os
import pickle
import struct
import time
import zipfile

import numpy as np
import pytest

from mcsam_jax.errors import UserError
from mcsam_jax.pretrained.torch_file import read_state_dict
from mcsam_jax.pretrained.torch_pickle import LEGACY_MAGIC
from tests.testing.foreign.memory import limited_memory
from tests.testing.foreign.torch_files import legacy_file, Tensor, torch_names, zip_file

STORAGE = b"((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"


def text(value: str) -> bytes:
  return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def integer(value: int) -> bytes:
  encoded = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
  return b"\x8a" + bytes([len(encoded)]) + encoded


def numbers(*values: int) -> bytes:
  return b"(" + b"".join(map(integer, values)) + b"t"


def tensor(storage: bytes = STORAGE[1:], offset: int = 0, shape=(4,), strides=(1,)) -> bytes:
  """Returns the instructions that rebuild a tensor."""
  return (REBUILD + b"(" + storage + integer(offset) + numbers(*shape) + numbers(*strides) + b"\x89}tR")


def state_dict(*values: bytes, name: str = "fc.bias") -> bytes:
  """Returns a pickle of a state dict with one entry, whose value `values` build."""
  return b"\x80\x02}" + text(name) + b"".join(values) + b"s."


def archive(pickled: bytes, storage: bytes = np.arange(4, dtype=np.float32).tobytes(), **options) -> bytes:
  file = io.BytesIO()
  with zipfile.ZipFile(file, "w", **options) as members:
    members.writestr("model/data.pkl", pickled)
    members.writestr("model/data/0", storage)
  return file.getvalue()


def read(tmp_path, data: bytes, log=lambda line: None):
  path = tmp_path / "model.pth"
  path.write_bytes(data)
  started = time.monotonic()
  try:
    with limited_memory(2 ** 28):
      return read_state_dict(str(path), log)
  finally:
    assert time.monotonic() - started < 5


def test_a_plain_tensor_is_read(tmp_path):
  tensors = read(tmp_path, archive(state_dict(tensor())))
  assert tensors["fc.bias"].tolist() == [0, 1, 2, 3]


NESTED = b")" + b"q\x01h\x01\x86" * 60             # pairs of the same pair: its hash would take 2**60 steps
ATTACKS = {
    "a tensor on a tensor": state_dict(tensor(tensor())),
    "a tensor on a list": state_dict(tensor(b"]")),
    "zero strides": state_dict(tensor(shape=(2 ** 40,), strides=(0,))),
    "zero strides, three axes": state_dict(tensor(shape=(2 ** 15, 2 ** 15, 2), strides=(0, 0, 1))),
    "a shape that overflows": state_dict(tensor(shape=(2 ** 62, 4), strides=(0, 0))),
    "an empty shape that overflows": state_dict(tensor(shape=(0, 2 ** 62), strides=(1, 1))),
    "a shape with a huge number": state_dict(tensor(shape=(10 ** 100,), strides=(0,))),
    "a negative stride": state_dict(tensor(offset=3, strides=(-1,))),
    "a negative offset": state_dict(tensor(offset=-1)),
    "an offset past the end": state_dict(tensor(offset=1)),
    "many axes": state_dict(tensor(shape=(1,) * 70, strides=(1,) * 70)),
    "a huge storage": state_dict(tensor()).replace(b"K\x04tQ", integer(2 ** 40) + b"tQ"),
    "a storage of negative length": state_dict(tensor()).replace(b"K\x04tQ", integer(-4) + b"tQ"),
    "a storage with the path of another file": state_dict(tensor()).replace(
        text("0"), text("../../../../etc/passwd")),
    "a function that executes code": state_dict(b"cos\nsystem\n(", text("true"), b"tR"),
    "a function in two parts": state_dict(text("os"), text("system"), b"\x93(", text("true"), b"tR"),
    "an object of a class": state_dict(b"(ios\nsystem\n", b"o"),
    "an extension": state_dict(b"\x82\x01"),
    "a key that is a nested tuple": b"\x80\x02}" + NESTED + b"K\x01s.",
    "a huge number of a memo": state_dict(b"]r" + struct.pack("<I", 2 ** 31 - 1)),
    "a text that is longer than the file": b"\x80\x02X" + struct.pack("<I", 2 ** 32 - 1) + b"x",
    "bytes that are longer than the file": b"\x80\x03B" + struct.pack("<I", 2 ** 32 - 1) + b"x",
    "an empty stack": b"\x80\x020.", "no mark": b"\x80\x02t.", "no end": b"\x80\x02}",
    "items of a list": state_dict(b"](", text("a"), text("b"), b"u"),
    "a frame that is longer than the file": b"\x80\x04\x95" + struct.pack("<Q", 2 ** 62) + b"}.",
    "a list of pairs that is used a million times": state_dict(
        b"](" + numbers(1, 2) * 1000 + b"e", b"q\x01", b"ccollections\nOrderedDict\nh\x01\x85R" * 1000),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_in_the_pickle_are_refused(tmp_path, name):
  legacy = b"".join(pickle.dumps(header, protocol=2) for header in (LEGACY_MAGIC, 1001, {"little_endian": True}))
  for data in (archive(ATTACKS[name]), legacy + ATTACKS[name]):
    with pytest.raises(UserError, match="model.pth") as error:
      read(tmp_path, data)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("attribute", ["items", "get", "update", "keys"])
def test_attributes_of_a_state_dict_are_ignored(tmp_path, attribute):
  """PyTorch's state dicts have the attribute `_metadata`; another one must not replace a method."""
  ordered = b"\x80\x02ccollections\nOrderedDict\n)R" + text("fc.bias") + tensor() + b"s"
  assert read(tmp_path, archive(ordered + b"}" + text(attribute) + b"K\x01sb."))["fc.bias"].tolist() == [0, 1, 2, 3]


def test_attributes_of_the_reader_itself_can_not_be_set(tmp_path):
  """BUILD with a pair sets attributes of any object, such as the defaults of a function."""
  changed = b"\x80\x02" + REBUILD + b"}}" + text("__defaults__") + b")s\x86b0" + state_dict(tensor())[2:]
  assert read(tmp_path, archive(changed))["fc.bias"].tolist() == [0, 1, 2, 3]
  assert read(tmp_path, archive(state_dict(tensor())))["fc.bias"].tolist() == [0, 1, 2, 3]


def test_a_small_archive_with_a_huge_member_is_refused_before_it_is_inflated(tmp_path):
  zeros = bytes(2 ** 26)
  data = archive(state_dict(tensor()).replace(b"K\x04tQ", integer(2 ** 24) + b"tQ"), zeros,
                 compression=zipfile.ZIP_DEFLATED)
  assert len(data) < 2 ** 17
  with limited_memory(2 ** 25), pytest.raises(UserError, match=r"model.pth.*compressed"):
    path = tmp_path / "model.pth"
    path.write_bytes(data)
    read_state_dict(str(path))


def test_members_that_overlap_or_claim_more_than_the_file_are_refused(tmp_path):
  data = archive(state_dict(tensor()))
  size = struct.pack("<II", 16, 16)
  for claimed in (2 ** 31, 2 ** 32 - 2):
    with pytest.raises(UserError, match="model.pth"):
      read(tmp_path, data.replace(size, struct.pack("<II", claimed, claimed)))


def test_names_are_printed_without_control_characters(tmp_path):
  lines = []
  hostile = "\x1b[2J\x1b]0;owned\x07\u202e"
  pickled = b"\x80\x02}" + text(hostile) + tensor() + b"s" + text(hostile + "2") + b"K\x01s."
  names = list(read(tmp_path, archive(pickled), lines.append))
  assert len(names) == len(lines) == 1
  assert all(text.isprintable() for text in (*names, *lines))
  with pytest.raises(UserError) as error:
    read(tmp_path, archive(state_dict(b"c" + b"os\x1b[2J\nsystem\n)R")))
  assert str(error.value).isprintable()


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_only_regular_files_are_read(tmp_path, ending):
  path = tmp_path / f"model{ending}"
  os.mkfifo(path)
  zero, folder = tmp_path / f"zero{ending}", tmp_path / f"folder{ending}"
  zero.symlink_to("/dev/zero")
  folder.mkdir()
  for source in (path, zero, folder):
    with limited_memory(2 ** 28), pytest.raises(UserError, match=str(source)):
      read_state_dict(str(source))


def test_a_bool_among_the_sizes_and_two_types_of_one_storage_are_refused(tmp_path):
  with pytest.raises(UserError, match="model.pth"):
    read(tmp_path, archive(state_dict(REBUILD, b"(", STORAGE[1:], b"\x88", numbers(4), numbers(1), b"\x89}tR")))
  other = tensor().replace(b"FloatStorage", b"LongStorage")
  with pytest.raises(UserError, match="model.pth"):
    read(tmp_path, archive(b"\x80\x02}" + text("a") + tensor() + b"s" + text("b") + other + b"s."))


@pytest.mark.parametrize("write", [legacy_file, zip_file])
def test_a_tensor_that_repeats_its_values_is_refused(tmp_path, write):
  with torch_names():
    data = write({"fc.bias": Tensor(np.ones(1, np.float32), "0", 0, (4,), (0,))})
  with pytest.raises(UserError, match=r"model.pth.*contiguous"):
    read(tmp_path, data)
