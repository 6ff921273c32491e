"""What software wrote a file: the version of this project, its commit, and the packages that results depend on.

It is written into config.json, the manifests of checkpoints and the scores of evaluations. Importing this module
doesn't import JAX.
"""

import functools
import importlib.metadata
import pathlib
import platform
import subprocess

from mcsam_jax import __version__

PACKAGES = ("jax", "jaxlib", "libtpu", "flax", "optax", "orbax-checkpoint", "numpy", "tensorflow", "tensorflow-cpu",
            "array_record")
SOURCE = pathlib.Path(__file__).parents[2]           # the folder with the project's packages


@functools.cache
def describe_software() -> dict:
  """Returns {"mcsam_jax", "commit", "python", "packages"}, ready for JSON.

  The commit is None unless the project runs from its own git repository. "-dirty" is added if tracked files have
  changed since. Packages that aren't installed are left out.
  """
  packages = {}
  for name in PACKAGES:
    try:
      packages[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      pass
  return {"mcsam_jax": __version__, "commit": find_commit(SOURCE), "python": platform.python_version(),
          "packages": packages}


def find_commit(folder: pathlib.Path) -> str | None:
  """Returns the commit of the git repository at exactly this folder; None if there is none, or no git."""
  if not (folder / ".git").exists():    # an installed copy may lie inside another project's repository
    return None
  try:
    run = lambda *arguments: subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    return run("rev-parse", "HEAD") + ("-dirty" if run("status", "--porcelain", "--untracked-files=no") else "")
  except (OSError, subprocess.SubprocessError):
    return None
