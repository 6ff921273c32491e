"""Files that appear complete or not at all, even if the program is stopped while it writes."""

import os
import socket
import stat

from etils import epath


def atomic_write(path: epath.PathLike, content: str | bytes) -> None:
  """Writes a file under a temporary name next to `path`, then renames it; creates missing folders.

  A link is followed. A device, a pipe or an open file (/dev/stdout, >(command)) is written into.

  Raises:
    OSError: the file system's error. What was at `path` is unchanged, and no temporary file remains.
  """
  data = content
  if isinstance(data, str):                         # names of files may hold bytes that are no text
    data = data.encode("utf-8", "backslashreplace")
  path = epath.Path(path)
  if "://" not in str(path):
    if _is_stream(str(path)):
      with open(path, "wb") as stream:
        stream.write(data)
      return
    path = epath.Path(os.path.realpath(path))
  path.parent.mkdir(parents=True, exist_ok=True)
  # The name differs between processes, which may write the same file.
  temporary = path.parent / f".{path.name}.{socket.gethostname()}-{os.getpid()}.unfinished"
  try:
    temporary.write_bytes(data)
    temporary.replace(path)
  except BaseException:                             # includes signals that stop the run
    temporary.unlink(missing_ok=True)
    raise


def _is_stream(path: str) -> bool:
  """Returns whether a local path is a device, pipe or socket, or names an open file of a process."""
  try:
    mode = os.stat(path).st_mode
  except OSError:
    return False                                    # it doesn't exist yet
  return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode) or os.path.abspath(path).startswith(("/dev/", "/proc/"))
