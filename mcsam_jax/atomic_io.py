"""Files that appear whole or not at all, whatever stops the program while it writes."""

import os
import socket
import zipfile
import zlib

from etils import epath

NPZ_ERRORS = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)   # of one that is cut or damaged


def atomic_write(path: epath.PathLike, content: str | bytes) -> None:
  """Writes a file under another name beside `path`, then gives it its own; folders are made.

  Raises:
    OSError: as the file system says it; what was at `path` is untouched and nothing unfinished stays.
  """
  path = epath.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  unfinished = path.parent / f".{path.name}.{socket.gethostname()}-{os.getpid()}.unfinished"    # others may write it too
  try:
    unfinished.write_bytes(content.encode() if isinstance(content, str) else content)
    unfinished.replace(path)
  except BaseException:                             # a signal that stops the run too
    unfinished.unlink(missing_ok=True)
    raise
