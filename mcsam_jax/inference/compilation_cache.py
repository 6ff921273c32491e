"""Keeps traced and compiled programs between processes, so that only the first one waits for both."""

import hashlib
from pathlib import Path
import platform

import jax

from mcsam_jax.files import trace_cache
from mcsam_jax.files.home import find_cache_folder


def enable_compilation_cache() -> None:
  """Keeps traced and compiled programs for later calls, unless the user has chosen a place for the compiled ones.

  Where JAX_COMPILATION_CACHE_DIR names that place, JAX keeps compiled programs there, and traced ones aren't kept. The
  programs contain neither images nor reports. A program compiled for one processor may not run on another one that
  shares the home folder, so each kind of processor has a folder of its own.
  """
  if jax.config.jax_compilation_cache_dir is not None:  # pyright: ignore[reportAttributeAccessIssue]
    return
  try:
    cpuinfo = Path("/proc/cpuinfo").read_text().splitlines()
    processor = next(line for line in cpuinfo if line.startswith(("flags", "Features")))
  except (OSError, StopIteration):
    processor = platform.processor()
  kind = hashlib.sha256(f"{platform.machine()} {processor}".encode()).hexdigest()[:10]
  cache_folder = find_cache_folder()
  if cache_folder is None:
    return
  folder = cache_folder / "mcsam" / f"xla-{kind}"
  jax.config.update("jax_compilation_cache_dir", str(folder))
  trace_cache.enable(folder)
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
