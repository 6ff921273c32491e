"""Reference numbers and real data that are not part of the checkout."""

import importlib.metadata
import os
import pathlib
import shutil

import pytest

# Most of the time of most tests is compilation, which takes a third less with the older code generator. An unknown flag
# would end the process, so that it is set only for the versions that have been tried.
if importlib.metadata.version("jaxlib").startswith("0.10."):
  os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_use_fusion_emitters=false".strip()

SHARED = pathlib.Path(os.environ.get("MCSAM_SHARED", pathlib.Path(__file__).parents[2] / "shared"))


@pytest.fixture(scope="session")
def shared():
  """shared("parity/x.json") is the path of a file in MCSAM_SHARED; the test is skipped, and says so, without it."""
  def find(name):
    if not (SHARED / name).exists():
      pytest.skip(f"{SHARED / name} is absent: set MCSAM_SHARED to the folder that holds it")
    return SHARED / name
  return find


@pytest.fixture(scope="session")
def workdir(tmp_path_factory):
  """A workdir whose checkpoint has random weights that give different studies different reports."""
  from tests.testing.tiny_workdir import make_tiny_workdir
  return make_tiny_workdir(tmp_path_factory.mktemp("workdir"))


@pytest.fixture(scope="session")
def tiny_model(workdir):
  """The model of `workdir`, from `mcsam_jax.load`."""
  import mcsam_jax
  return mcsam_jax.load(workdir)


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


@pytest.fixture(scope="session", autouse=True)
def compile_quickly():
  """Turns most of XLA's optimizations off: for programs that run a few times they take longer than they save.

  Lines of the source aren't written into programs either.
  """
  import jax
  jax.config.update("jax_disable_most_optimizations", True)
  jax.config.update("jax_traceback_in_locations_limit", 0)


@pytest.fixture(scope="module", autouse=True)
def keep_xla_optimizations(request, compile_quickly):
  """Turns them on for a module that asserts on compiled programs or on speed: `KEEP_XLA_OPTIMIZATIONS = True`."""
  if not getattr(request.module, "KEEP_XLA_OPTIMIZATIONS", False):
    yield
    return
  import jax
  jax.config.update("jax_disable_most_optimizations", False)
  yield
  jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="session")
def idle_meteor():
  """Processes of METEOR that are loaded and idle; ended with the session."""
  idle = []
  yield idle
  for meteor in idle:
    meteor._close()


@pytest.fixture(scope="module", autouse=True)
def share_meteor(request, idle_meteor):
  """Lets all scorers of a worker use one process of METEOR after another: Java takes seconds to load its tables.

  A module that tests the process itself starts its own with `OWN_METEOR = True`.
  """
  from mcsam_jax.metrics.meteor import Meteor
  if getattr(request.module, "OWN_METEOR", False):
    yield
    return
  enter, leave = Meteor.__enter__, Meteor.__exit__

  def take_process(self):
    if idle_meteor and self._process is None and shutil.which("java"):        # not where a test hides Java
      self._process = idle_meteor.pop()._process
    return enter(self)

  def return_process(self, *exception):
    if self._process is None or self._failure:
      return leave(self, *exception)
    keeper = Meteor()
    keeper._process, self._process = self._process, None
    return idle_meteor.append(keeper)

  Meteor.__enter__, Meteor.__exit__ = take_process, return_process
  yield
  Meteor.__enter__, Meteor.__exit__ = enter, leave


def pytest_collection_modifyitems(items):
  """Starts with the files that take longest, those with whole runs, so that no process is left with one at the end."""
  def order(item):
    if item.path.name == "test_train.py":
      return 0
    return 1 if {"training", "distributed", "checkpoints"} & set(item.path.parts) else 2
  items.sort(key=order)
