"""Errors of a full or read-only disk as one line for the user."""

from collections.abc import Iterator
import contextlib
import errno
import os

from etils import epath

from mcsam_jax.errors import UserError


@contextlib.contextmanager
def explain_write_errors(path: epath.PathLike) -> Iterator[None]:
  """Turns the errors of a disk that is full or can't be written into a UserError that names `path`."""
  try:
    yield
  except BrokenPipeError:         # the reader of our output is gone; this has nothing to do with `path`
    raise
  except Exception as error:      # the writer of ArrayRecord raises other types than OSError
    if getattr(error, "errno", None) == errno.ENOSPC or os.strerror(errno.ENOSPC) in str(error):
      raise UserError(f"no space left for {path}: free some space and run the same command again, which keeps what is "
                      "finished, or set --config.data.data_dir to another disk") from error
    if isinstance(error, OSError):
      raise UserError(f"{path} can't be written ({error.strerror or error}); set --config.data.data_dir to a folder "
                      "that can be written") from error
    raise
