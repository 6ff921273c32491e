"""Reference numbers and real data that are not part of the checkout."""

import os
import pathlib

import pytest

SHARED = pathlib.Path(os.environ.get("MCSAM_SHARED", pathlib.Path(__file__).parents[2] / "shared"))


@pytest.fixture(scope="session")
def shared():
  """shared("parity/x.json") is the path of a file in MCSAM_SHARED; the test is skipped, and says so, without it."""
  def find(name):
    if not (SHARED / name).exists():
      pytest.skip(f"{SHARED / name} is absent: set MCSAM_SHARED to the folder that holds it")
    return SHARED / name
  return find


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(tmp_path_factory, worker_id):
  """Programs that several tests compile are compiled once per run, in whichever worker needs them first.

  MCSAM_TEST_CACHE names a folder that keeps them from run to run.
  """
  import jax
  folder = os.environ.get("MCSAM_TEST_CACHE")
  if not folder:
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "xla"       # workers' folders lie in one of the run's
  jax.config.update("jax_compilation_cache_dir", str(folder))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


@pytest.fixture(scope="module")
def compiled_quickly():
  """For programs that run a few times: most of XLA's optimisations would take longer than they save."""
  import jax
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", False)
