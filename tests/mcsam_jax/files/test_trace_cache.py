"""A second process neither traces nor compiles what the first one has: shapes, traced programs, compiled programs."""

import json
import os
import subprocess
import sys

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from mcsam_jax.files import trace_cache
from mcsam_jax.files.trace_cache import keep_program, keep_shapes

# A tiny program with weights, called in a fresh process; prints what JAX and Python did.
PROCESS = """
import json
import jax, jax.monitoring, numpy as np
from mcsam_jax.inference.compilation_cache import enable_compilation_cache
from mcsam_jax.files.trace_cache import keep_program, keep_shapes
events, calls = [], []
jax.monitoring.register_event_listener(lambda name, **unused: events.append(name.rsplit("/", 1)[-1]))
enable_compilation_cache()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)

def network(weights, x):
  calls.append("network")
  return {"y": x @ weights + 1}

def init():
  calls.append("init")
  return {"w": np.zeros((3, 2), np.float32), "none": {}}

shapes = keep_shapes(lambda: jax.tree.map(jax.numpy.asarray, init()), "shapes", ["config"])
program = keep_program(network, "network", ["config"])
weights, x = np.arange(6, dtype=np.float32).reshape(3, 2), np.ones((1, 3), np.float32)
print(json.dumps({"y": program(weights, x)["y"].tolist(), "again": program(weights, 2 * x)["y"].tolist(),
                  "shapes": str(shapes), "calls": calls, "misses": events.count("cache_misses"),
                  "hits": events.count("cache_hits")}))
"""


def test_the_second_process_only_reads(tmp_path):
  environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}

  def run() -> dict:
    result = subprocess.run([sys.executable, "-c", PROCESS], capture_output=True, text=True, check=True,
                            env={**environment, "XDG_CACHE_HOME": str(tmp_path)})
    return json.loads(result.stdout)

  first, second = run(), run()
  assert first["y"] == second["y"] == [[7, 10]] and first["again"] == second["again"] == [[13, 19]]
  assert first["shapes"] == second["shapes"]
  assert sorted(first["calls"]) == ["init", "network"] and second["calls"] == []
  assert first["misses"] > 0 and second["misses"] == 0 and second["hits"] == first["misses"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """The folder that programs and shapes are kept in."""
  monkeypatch.setattr(trace_cache, "_state", {})
  monkeypatch.setattr(trace_cache, "_digest_sources", lambda: trace_cache._SOURCE_DIGEST)   # whoever edits it now
  trace_cache.enable(epath.Path(tmp_path))
  return tmp_path


def count_traces(depends_on=("config",), dtype="float32", size=3) -> int:
  """Returns how often Python code ran for a program that adds 1, as a new process would call it."""
  traces, x = [], np.zeros(size, dtype)

  def add(x):
    traces.append(x)
    return x + 1
  np.testing.assert_array_equal(keep_program(add, "add", depends_on)(x), x + 1)
  return len(traces)


def test_a_program_is_reused_only_where_it_is_the_same(folder):
  assert count_traces() == 1 and count_traces() == 0
  assert count_traces(["other config"]) == 1
  assert count_traces(size=4) == 1
  assert count_traces(dtype="int32") == 1
  with jax.default_matmul_precision("highest"):
    assert count_traces() == 1
  assert count_traces() == 0


def test_a_program_of_nothing_known_is_not_kept(folder):
  assert count_traces(None) == count_traces(None) == 1
  assert not list(folder.iterdir())


def test_nothing_is_kept_without_a_compilation_cache(folder):
  jax.config.update("jax_enable_compilation_cache", False)
  try:
    assert count_traces() == count_traces() == 1
  finally:
    jax.config.update("jax_enable_compilation_cache", True)
  assert not list(folder.iterdir())


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data[:50] + b"?" + data[51:],
                                    lambda data: b""])
def test_a_damaged_file_is_written_again(folder, damage):
  assert count_traces() == 1
  file, = folder.iterdir()
  intact = file.read_bytes()
  file.write_bytes(damage(intact))
  assert count_traces() == 1 and count_traces() == 0


def test_nothing_is_kept_of_source_code_that_has_changed_meanwhile(folder, monkeypatch):
  monkeypatch.setattr(trace_cache, "_digest_sources", lambda: "edited")
  assert count_traces() == count_traces() == 1
  assert not list(folder.iterdir())


def test_a_folder_that_cannot_be_written_does_no_harm(folder):
  trace_cache.enable(epath.Path(folder) / "file" / "below")
  (folder / "file").write_text("")
  assert count_traces() == count_traces() == 1
  assert keep_shapes(lambda: {"w": jnp.zeros(2)}, "shapes", [])["w"].shape == (2,)


def test_an_operation_that_cannot_be_exported_is_computed(folder):
  def call_back(x):
    return jax.pure_callback(lambda x: np.asarray(x) * 2, x, x)
  x = jnp.ones(3)
  np.testing.assert_array_equal(keep_program(call_back, "call_back", [])(x), 2 * x)


REPORT = """
import json, sys
import jax.monitoring
from mcsam_jax.cli import main
events = []
jax.monitoring.register_event_listener(lambda name, **unused: events.append(name.rsplit("/", 1)[-1]))
jax.monitoring.register_event_duration_secs_listener(lambda name, *unused, **more: events.append(more.get("fun_name")))
status = main(["report", "--json", "--workdir", *sys.argv[1:]])
print(json.dumps({name: events.count(name) for name in ("cache_misses", "cache_hits", "search_fn")}), file=sys.stderr)
sys.exit(status)
"""


@pytest.mark.slow
def test_a_second_report_compiles_nothing_and_is_the_same(workdir, tmp_path):
  PIL.Image.fromarray(np.arange(64 * 64, dtype=np.uint8).reshape(64, 64)).save(tmp_path / "frontal.png")
  environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}

  def run() -> tuple[str, dict]:
    result = subprocess.run([sys.executable, "-c", REPORT, str(workdir), str(tmp_path / "frontal.png")], text=True,
                            capture_output=True, env={**environment, "XDG_CACHE_HOME": str(tmp_path)})
    assert result.returncode == 0, result.stderr
    return result.stdout, json.loads(result.stderr.splitlines()[-1])

  first, second = run(), run()
  assert first[0] == second[0]
  assert first[1]["search_fn"] > 0 and second[1]["search_fn"] == 0            # it was traced, it was not
  assert first[1]["cache_misses"] > 0 and second[1]["cache_misses"] == 0
