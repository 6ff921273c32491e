"""Only regular files are read, and a size is compared with the file before anything is allocated."""

import io
import os
import pathlib
import struct
import zipfile

import numpy as np
import pytest

from mcsam_jax.files import untrusted
from tests.testing.foreign.memory import limited_memory

ARRAYS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array([["x", "yz"]]), "c": np.float64(0.5),
          "d": np.asfortranarray(np.arange(6).reshape(2, 3)), "e": np.zeros((0, 3), np.float16)}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_are_read_as_numpy_reads_them(tmp_path, save):
  save(tmp_path / "a.npz", **ARRAYS)
  arrays = untrusted.load_npz(tmp_path / "a.npz")
  assert set(arrays) == set(ARRAYS)
  for name, array in ARRAYS.items():
    np.testing.assert_array_equal(arrays[name], array)
    assert arrays[name].dtype == np.asarray(array).dtype and arrays[name].shape == np.shape(array)


def test_only_regular_files_are_read(tmp_path):
  os.mkfifo(tmp_path / "pipe")
  for name, target in {"zero": "/dev/zero", "link to a pipe": tmp_path / "pipe", "null": "/dev/null"}.items():
    (tmp_path / name).symlink_to(target)
  for read in (untrusted.read_regular_file, untrusted.read_json, untrusted.load_npz):
    for name in ("pipe", "zero", "link to a pipe", "null"):
      with limited_memory(2 ** 28), pytest.raises(OSError, match="regular file"):
        read(tmp_path / name)
    with pytest.raises(IsADirectoryError):
      read(tmp_path)
    with pytest.raises(FileNotFoundError):
      read(tmp_path / "missing")
  (tmp_path / "file").write_text("[1]")
  (tmp_path / "link").symlink_to(tmp_path / "file")             # a link to a regular file is followed
  assert untrusted.read_json(tmp_path / "link") == [1]


def test_a_file_larger_than_the_limit_is_not_read(tmp_path):
  with open(tmp_path / "sparse", "wb") as file:
    file.truncate(2 ** 40)
  with limited_memory(2 ** 28):
    with pytest.raises(ValueError, match="bytes"):
      untrusted.read_json(tmp_path / "sparse")
    with pytest.raises(ValueError):
      untrusted.load_npz(tmp_path / "sparse")


@pytest.mark.parametrize("data", [
    b"[" * 3000, b"[" * 100_000, b"[" * 300 + b"]" * 300, b'{"a":' * 3000, b'"\\ud800"', b'{"\\ud800": 1}',
    b"\xff\xfe{}", b"9" * 5000, b"", b"{", b"nul"])
def test_json_that_nobody_wrote_is_a_value_error(data):
  with pytest.raises(ValueError):
    untrusted.parse_json(data)


def test_json_with_a_byte_order_mark_is_read():
  assert untrusted.parse_json(b'\xef\xbb\xbf{"a": [1, "\xc3\xa9"]}') == {"a": [1, "é"]}


def npy(header: str, data: bytes = b"", version=b"\x01\x00") -> bytes:
  encoded = header.encode("latin-1")
  return b"\x93NUMPY" + version + struct.pack("<H" if version == b"\x01\x00" else "<I", len(encoded)) + encoded + data


def header(descr="'<f4'", shape="(4,)", order="False") -> str:
  return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n"


@pytest.mark.parametrize("array", [
    npy(header(shape="(100000000000,)"), bytes(16)),                    # claims 400 GB
    npy(header(shape="(3,)"), bytes(16)), npy(header(shape="(5,)"), bytes(16)), npy(header(shape="(-4,)"), bytes(16)),
    npy(header(shape="(4, 1" + ", 1" * 70 + ")"), bytes(16)), npy(header(shape="(0, 4611686018427387904)")),
    npy(header(descr="'|O'", shape="(2,)"), bytes(16)), npy(header(descr="'<U0'", shape="(1000000000000,)")),
    npy(header(descr="[('a', '<f4'), ('b', '<f4')]", shape="(2,)"), bytes(16)),
    npy(header(descr="'nonsense'"), bytes(16)), npy(header(shape="4"), bytes(16)), npy("[" * 3000), npy("", b"x"),
    npy(header(order="[]"), bytes(16)), npy("{}", bytes(16)), npy(header(), bytes(16), b"\x03\x00"),
    npy(header() + " " * 20_000, bytes(16)), b"", b"\x93NUMPY", b"\x93NUMPY\x01\x00\xff\xff{", b"no array"])
def test_damaged_arrays_are_value_errors(tmp_path, array):
  path = tmp_path / "a.npz"
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("a.npy", array)
  with limited_memory(2 ** 28), pytest.raises(ValueError):
    untrusted.load_npz(path)


def test_a_plain_npy_and_other_archives_are_value_errors(tmp_path):
  path = tmp_path / "a.npz"
  with open(path, "wb") as file:
    np.save(file, np.zeros(3))
  with pytest.raises(ValueError):
    untrusted.load_npz(path)
  for compression in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
    with zipfile.ZipFile(path, "w", compression) as archive:
      archive.writestr("a.npy", npy(header(), bytes(16)))
    with pytest.raises(ValueError):
      untrusted.load_npz(path)
  with pytest.warns(UserWarning), zipfile.ZipFile(path, "w") as archive:
    archive.writestr("a.npy", npy(header(), bytes(16)))
    archive.writestr("a.npy", npy(header(), bytes(16)))
  with pytest.raises(ValueError, match="same name"):
    untrusted.load_npz(path)


def test_a_compressed_array_is_inflated_up_to_a_limit(tmp_path, monkeypatch):
  path = tmp_path / "a.npz"
  np.savez_compressed(path, a=np.zeros(2 ** 18, np.float32))
  monkeypatch.setattr(untrusted, "MAX_INFLATED_BYTES", 2 ** 19)
  with pytest.raises(ValueError, match="compressed"):
    untrusted.load_npz(path)


def test_every_flipped_bit_of_an_archive_is_found_or_harmless(tmp_path):
  buffer = io.BytesIO()
  np.savez(buffer, a=ARRAYS["a"])
  path, data = pathlib.Path(tmp_path / "a.npz"), buffer.getvalue()
  for bit in range(0, 8 * len(data), 3):
    damaged = bytearray(data)
    damaged[bit // 8] ^= 1 << bit % 8
    path.write_bytes(damaged)
    try:
      arrays = untrusted.load_npz(path)
    except ValueError:
      continue
    assert all(np.array_equal(array, ARRAYS["a"]) for array in arrays.values())
