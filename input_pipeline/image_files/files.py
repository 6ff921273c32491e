"""Reads files of unknown origin: regular files alone, and no more bytes than an image can have.

A folder of images may hold a pipe, which would be waited for, or a device such as /dev/zero, which never ends; both may
hide behind a link.
"""

import os
import stat
from typing import BinaryIO, cast

from etils import epath

from mcsam_jax.errors import UnreadableFile

# A file is larger than its image only by its header and, where it is badly compressed, by a few bytes per pixel.
_BYTES_PER_PIXEL, _HEADER_BYTES = 8, 2 ** 26


def open_regular(path: epath.Path, max_pixels: int) -> BinaryIO:
  """Opens a file for reading.

  Args:
    path: the file; links are followed.
    max_pixels: files that are too large for an image of so many pixels are refused.

  Raises:
    UnreadableFile: it is not a regular file, or too large.
    OSError: it can't be opened.
  """
  if "://" in str(path):                            # buckets hold nothing but regular files
    size = path.stat().length
    file = cast(BinaryIO, path.open("rb"))
  else:
    # Without O_NONBLOCK, opening a pipe waits for somebody who writes to it.
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode):
      file.close()
      kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe or a device"
      raise UnreadableFile(path, f"{kind}, expected a regular file")
    size = status.st_size
  if size > _BYTES_PER_PIXEL * max_pixels + _HEADER_BYTES:
    file.close()
    raise UnreadableFile(path, f"a file of {size / 1e9:.1f} GB, too large for an image of data.max_image_pixels="
                         f"{max_pixels}")
  return file


def read_regular(path: epath.Path, max_pixels: int) -> bytes:
  """Returns the content of a file.

  Raises:
    UnreadableFile: there is no such file, it is not a regular file, or it is too large (see `open_regular`).
  """
  try:
    with open_regular(path, max_pixels) as file:
      return file.read(_BYTES_PER_PIXEL * max_pixels + _HEADER_BYTES)
  except OSError as error:
    raise UnreadableFile(path, error.strerror or str(error)) from error
