"""Keeps a command from replacing a file that no command of this project wrote."""

import mmap
import os
import stat

from mcsam_jax.errors import UserError


def check_output(option: str, path: str | os.PathLike, *marks: str) -> None:
  """Checks that writing to a path replaces nothing but the output of an earlier call.

  A missing or empty file, a device and a pipe are written to; so is anything in a bucket.

  Args:
    option: the option that names the path, for the error.
    path: the file to write, or "" for none.
    marks: texts that every file has which this option wrote.

  Raises:
    UserError: the path is a folder, or a file without these texts.
  """
  if not os.fspath(path) or "://" in os.fspath(path):
    return
  try:
    status = os.stat(path)
  except FileNotFoundError:
    return
  except OSError as error:
    raise UserError(f"{option} {path}: can't be written ({error.strerror})") from error
  if stat.S_ISDIR(status.st_mode):
    raise UserError(f"{option} {path} is a folder: name a file in it")
  if not stat.S_ISREG(status.st_mode) or not status.st_size or os.path.abspath(path).startswith(("/dev/", "/proc/")):
    return
  with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
    if not all(content.find(mark.encode()) >= 0 for mark in marks):
      raise UserError(f"{option} {path} exists, and wasn't written by an earlier call: name another file, or move it "
                      "away")
