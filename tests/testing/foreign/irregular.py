"""Files that never end or are none: what a reader of regular files has to refuse."""

import os
import pathlib

KINDS = ("pipe", "zero", "folder")


def replace_by_irregular(path: pathlib.Path, kind: str) -> None:
  """Puts a named pipe, a link to /dev/zero or a folder in place of a file."""
  path.unlink()
  if kind == "pipe":
    os.mkfifo(path)
  elif kind == "zero":
    path.symlink_to("/dev/zero")
  else:
    path.mkdir()
