"""The home folder of the user, which may be unknown: in a container HOME can be unset and the user have no name."""

import os

from etils import epath

from mcsam_jax.errors import UserError


def expand_home(path: epath.PathLike) -> epath.Path:
  """Returns a path with the home folder in place of a leading "~" or "~user".

  Raises:
    UserError: that folder is unknown, and no file has this name as it stands.
  """
  expanded = os.path.expanduser(os.fspath(path))
  if expanded.startswith("~") and not os.path.lexists(expanded):
    raise UserError(f"{expanded}: the home folder {expanded.split(os.sep)[0]} is unknown: set HOME, or "
                    "give the whole path")
  return epath.Path(expanded)


def find_cache_folder() -> epath.Path | None:
  """Returns the folder for this user's caches, $XDG_CACHE_HOME or ~/.cache; None without a home folder."""
  cache_home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
  return None if cache_home.startswith("~") else epath.Path(cache_home)
