"""Reads files that another person or program may have written, and believes nothing in them.

Only regular files are opened: a pipe or /dev/zero would never end. A size that a file claims is compared with the bytes
that it has before anything is allocated or inflated. Whatever is wrong is an OSError (the file can't be read) or a
ValueError (its content is damaged), with a reason in one line.
"""

from collections.abc import Iterator
import contextlib
import errno
import io
import json
import math
import os
import stat
from typing import Any, BinaryIO, cast, IO
import zipfile

from etils import epath
import numpy as np

MAX_JSON_BYTES = 2 ** 28
MAX_JSON_DEPTH = 100           # nesting depth of objects and lists
MAX_INFLATED_BYTES = 2 ** 28   # total size of the compressed members of an archive, inflated
MAX_DIMENSIONS = 16            # axes of an array


def open_regular_file(path: epath.PathLike, can_seek: bool = True) -> BinaryIO:
  """Opens a file, local or in a bucket, for reading.

  Args:
    path: the file.
    can_seek: whether a file in a bucket is read as a whole, so that one can seek in it; a local one always can.

  Raises:
    OSError: the file is missing, or is a folder, pipe, device or socket, or a link to one.
  """
  if "://" in os.fspath(path):
    return io.BytesIO(epath.Path(path).read_bytes()) if can_seek else cast(BinaryIO, epath.Path(path).open("rb"))
  descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)        # opening a pipe would wait otherwise
  mode = os.fstat(descriptor).st_mode
  if stat.S_ISREG(mode):
    return open(descriptor, "rb")
  os.close(descriptor)
  if stat.S_ISDIR(mode):
    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
  raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))


def read_regular_file(path: epath.PathLike, max_bytes: int | None = None) -> bytes:
  """Returns the bytes of a file.

  Args:
    path: the file, local or in a bucket.
    max_bytes: a larger file is not read.

  Raises:
    OSError: see `open_regular_file`.
    ValueError: the file is larger than `max_bytes`.
  """
  with open_regular_file(path) as file:
    size = file.seek(0, os.SEEK_END)
    if max_bytes is not None and size > max_bytes:
      raise ValueError(f"it has {size:,} bytes, more than {max_bytes:,}")
    file.seek(0)
    return file.read(size)


def read_json(path: epath.PathLike) -> Any:
  """Returns the content of a JSON file; the errors are those of `read_regular_file` and `parse_json`."""
  return parse_json(read_regular_file(path, MAX_JSON_BYTES))


def parse_json(data: bytes | str) -> Any:
  """Returns the value of a JSON text.

  Raises:
    ValueError: it isn't UTF-8 or JSON, is nested deeper than MAX_JSON_DEPTH, or has a text with half a character.
  """
  try:
    content = json.loads(data.decode("utf-8-sig") if isinstance(data, bytes) else data)
  except RecursionError:
    raise ValueError("it is nested too deeply") from None
  level = [content]
  for _ in range(MAX_JSON_DEPTH):
    texts = [value for value in level if isinstance(value, str)]
    texts += [key for value in level if isinstance(value, dict) for key in value]
    for text in texts:
      text.encode()                               # raises UnicodeEncodeError, a ValueError
    level = [item for value in level if isinstance(value, (dict, list))
             for item in (value.values() if isinstance(value, dict) else value)]
    if not level:
      return content
  raise ValueError("it is nested too deeply")


class NpzFile:
  """The arrays of an .npz file, none of which is read before it is asked for.

  Attributes:
    shapes: the shape of each array.
    dtypes: the type of each array.
  """

  def __init__(self, archive: zipfile.ZipFile, size: int):
    """Reads the headers of all arrays.

    Args:
      size: bytes of the whole file.

    Raises:
      ValueError: a header is damaged, or claims more than the file holds.
    """
    self._archive, self._members = archive, check_archive(archive, size)
    self.shapes: dict[str, tuple[int, ...]] = {}
    self.dtypes: dict[str, np.dtype] = {}
    for member in self._members:
      with _damage_as_value_error(), archive.open(member) as file:
        name = member.removesuffix(".npy")
        self.shapes[name], self.dtypes[name], _ = _read_header(file, self._members[member].file_size)

  def read(self, name: str) -> np.ndarray:
    """Returns an array; raises ValueError if there is none of this name, or its bytes are damaged."""
    member = next((member for member in (f"{name}.npy", name) if member in self._members), None)
    if member is None:
      raise ValueError(f"it has no array {name}")
    with _damage_as_value_error(), self._archive.open(member) as file:
      shape, dtype, is_fortran = _read_header(file, self._members[member].file_size)
      array = np.empty(math.prod(shape), dtype)
      raw, start = memoryview(cast(Any, array.view(np.uint8) if array.size else np.empty(0, np.uint8))), 0
      while count := cast(io.BufferedIOBase, file).readinto(raw[start:]):
        start += count
      if start != len(raw) or file.read(1):                 # the read at the end compares the checksum
        raise ValueError(f"{name} has {start} of {len(raw)} bytes")
      return array.reshape(shape, order="F" if is_fortran else "C")


@contextlib.contextmanager
def open_npz(path: epath.PathLike) -> Iterator[NpzFile]:
  """Opens an .npz file, whose arrays can be read inside the context.

  Raises:
    OSError: the file is missing or no regular file.
    ValueError: it isn't an .npz file, or is damaged.
  """
  with contextlib.ExitStack() as on_exit:
    file = on_exit.enter_context(open_regular_file(path))
    with _damage_as_value_error():
      size = file.seek(0, os.SEEK_END)
      file.seek(0)
      arrays = NpzFile(on_exit.enter_context(zipfile.ZipFile(file)), size)
    yield arrays


def load_npz(path: epath.PathLike) -> dict[str, np.ndarray]:
  """Returns all arrays of an .npz file; the errors are those of `open_npz`."""
  with open_npz(path) as file:
    return {name: file.read(name) for name in file.shapes}


def check_archive(archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
  """Returns the members of a zip archive by name, after comparing the sizes that they claim with that of the file.

  Args:
    archive: the archive.
    size: bytes of the whole file.

  Raises:
    ValueError: members have the same name, overlap, have an unusual compression, or would take more than
      MAX_INFLATED_BYTES when inflated.
  """
  members = archive.infolist()
  by_name = {member.filename: member for member in members}
  if len(by_name) != len(members):
    raise ValueError("two members have the same name")
  if any(member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for member in members):
    raise ValueError("a member is compressed in an unusual way")
  stored = [member for member in members if member.compress_type == zipfile.ZIP_STORED]
  if (sum(member.compress_size for member in members) > size
      or any(member.file_size != member.compress_size for member in stored)):
    raise ValueError("its members claim more bytes than the file has")
  inflated = sum(member.file_size for member in members if member.compress_type != zipfile.ZIP_STORED)
  if inflated > MAX_INFLATED_BYTES:
    raise ValueError(f"its compressed members would take {inflated:,} bytes, more than {MAX_INFLATED_BYTES:,}")
  return by_name


def _read_header(file: IO[bytes], file_size: int) -> tuple[tuple[int, ...], np.dtype, bool]:
  """Returns shape, type and whether the order is Fortran's of an .npy file; leaves `file` at the first value.

  Raises:
    ValueError: the header claims other values than `file_size` bytes can hold.
  """
  version = np.lib.format.read_magic(file)
  if version not in ((1, 0), (2, 0)):
    raise ValueError("an array has an unknown format")
  is_first = version == (1, 0)
  shape, is_fortran, dtype = (np.lib.format.read_array_header_1_0 if is_first else
                              np.lib.format.read_array_header_2_0)(file)
  is_plain = dtype.kind in "biufcSUV" and dtype.fields is None and dtype.subdtype is None and dtype.itemsize > 0
  if not is_plain or len(shape) > MAX_DIMENSIONS or min(shape, default=0) < 0:
    raise ValueError("an array is neither of numbers nor of texts")
  claimed, available = math.prod(shape) * dtype.itemsize, file_size - file.tell()
  if claimed != available or max(shape, default=0) > file_size:
    raise ValueError(f"an array of shape {list(shape)} claims {claimed:,} bytes and has {available:,}")
  return shape, dtype, is_fortran


@contextlib.contextmanager
def _damage_as_value_error() -> Iterator[None]:
  """Raises a ValueError for the many types that zipfile, zlib and NumPy raise for damaged files."""
  try:
    yield
  except ValueError:
    raise
  except Exception as error:
    if isinstance(error, OSError) and error.errno not in (errno.EINVAL, None):     # EINVAL: a position before the start
      raise
    raise ValueError(f"{type(error).__name__}: {error}") from error
