"""Files that appear complete or not at all, even if the program is stopped while it writes."""

import os
import socket
import zipfile
import zlib

from etils import epath

NPZ_ERRORS = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)   # np.load's for damaged files


def atomic_write(path: epath.PathLike, content: str | bytes) -> None:
  """Writes a file under a temporary name next to `path`, then renames it; creates missing folders.

  Raises:
    OSError: the file system's error. What was at `path` is unchanged, and no temporary file remains.
  """
  path = epath.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  # The name differs between processes, which may write the same file.
  temporary = path.parent / f".{path.name}.{socket.gethostname()}-{os.getpid()}.unfinished"
  try:
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    temporary.replace(path)
  except BaseException:                             # includes signals that stop the run
    temporary.unlink(missing_ok=True)
    raise
