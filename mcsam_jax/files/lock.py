"""Lock files, which keep two processes from writing into one folder; the lock ends with its process."""

from collections.abc import Callable
import errno
import fcntl
import os
import stat
from typing import IO

from mcsam_jax.errors import UserError


def open_lock_file(path: str | os.PathLike) -> IO[bytes]:
  """Opens a lock file, created if needed, without changing its content.

  Raises:
    OSError: it is a link or no regular file, or can't be opened.
  """
  descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
  file = open(descriptor, "r+b", buffering=0)
  if not stat.S_ISREG(os.fstat(descriptor).st_mode):
    file.close()
    raise OSError(errno.EINVAL, "not a regular file", str(path))
  return file


def acquire_lock(path: str | os.PathLike, if_held: str, log: Callable[[str], None] = print) -> IO[bytes]:
  """Returns a lock file that is locked until it is closed.

  A file system without locks locks nothing, and a log line says so. A lock file is never deleted: processes that opened
  it before and after the deletion would not exclude each other.

  Args:
    path: the lock file, local.
    if_held: the error if another process holds the lock.
    log: receives the log line.

  Raises:
    UserError: another process holds the lock, or the file can't be opened.
  """
  try:
    file = open_lock_file(path)
  except OSError as error:
    raise UserError(f"{path} can't be opened ({error.strerror}): it must be a regular file that you may write"
                    ) from error
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError as error:
    file.close()
    raise UserError(if_held) from error
  except OSError as error:
    log(f"{path} can't be locked ({error.strerror}): make sure that no other process writes there")
  return file
