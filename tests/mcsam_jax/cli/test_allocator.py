"""Freed memory is reused where JAX computes on CPUs, and the user's own settings count."""

import os
import platform
import subprocess
import sys

import pytest

from mcsam_jax.cli import allocator

glibc_only = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt's parameters are those of glibc")
_SIZE = 64 << 20                # bytes
# Allocates, fills and frees memory three times, and prints the page faults of the last time.
_SCRIPT = f"""
import resource
from mcsam_jax.cli.allocator import keep_freed_memory
print(keep_freed_memory())
for _ in range(3):
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  b"x" * {_SIZE}
  faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults)
"""


def _run(**variables: str) -> tuple[str, int]:
  environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
  output = subprocess.run([sys.executable, "-c", _SCRIPT], env=environment | {"JAX_PLATFORMS": "cpu"} | variables,
                          capture_output=True, text=True, check=True).stdout.split()
  return output[0], int(output[1])


@glibc_only
def test_freed_memory_is_reused_without_page_faults():
  done, faults = _run()
  assert done == "True" and faults < 10


@glibc_only
@pytest.mark.parametrize("variables", [{"JAX_PLATFORMS": "tpu"}, {"JAX_PLATFORMS": "cuda,cpu"},
                                       {"MALLOC_ARENA_MAX": "4"}, {"GLIBC_TUNABLES": "glibc.malloc.arena_max=4"}])
def test_hosts_of_accelerators_and_settings_of_the_user_are_left_alone(variables: dict[str, str]):
  done, faults = _run(**variables)
  assert done == "False" and faults > 20          # about 16,000; 32 where the system uses huge pages


@pytest.mark.parametrize(("installed", "on_cpu"), [((), True), (("libtpu",), False), (("jax_plugins",), False)])
def test_without_jax_platforms_an_installed_plugin_decides(monkeypatch, installed: tuple[str, ...], on_cpu: bool):
  monkeypatch.delenv("JAX_PLATFORMS", raising=False)
  monkeypatch.setattr(allocator.importlib.util, "find_spec", lambda name: name if name in installed else None)
  assert allocator._computes_on_cpu() is on_cpu
