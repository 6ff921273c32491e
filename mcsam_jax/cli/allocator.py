"""Settings of the C library's memory allocator for computations on CPUs."""

import ctypes
import importlib.util
import os
import sys

# Parameters of glibc's mallopt (malloc.h, https://man7.org/linux/man-pages/man3/mallopt.3.html).
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
_MOST_KEPT = 2**31 - 1                                  # bytes at the end of the heap; mallopt takes a C int
_PLUGINS = "libtpu", "jax_plugins"                      # packages through which JAX finds accelerators


def keep_freed_memory() -> bool:
  """Makes glibc reuse freed memory instead of returning it to the operating system; for processes that compute on CPUs.

  XLA allocates the buffers of a program anew for each call. By default glibc maps large buffers when they are allocated
  and unmaps them when they are freed, so the kernel clears each of their pages at every training step (times in
  docs/benchmarks.md). Afterwards there is one heap, which keeps up to 2 GiB at its end.

  Nothing is changed where JAX may find an accelerator, whose hosts allocate from many threads at once; where the user
  has set a variable MALLOC_... or GLIBC_TUNABLES; and without glibc.

  Returns:
    whether the settings were made.
  """
  set_by_user = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
  if set_by_user or not _computes_on_cpu() or not sys.platform.startswith("linux"):
    return False
  mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
  if mallopt is None:
    return False
  settings = (_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _MOST_KEPT)
  return all([mallopt(parameter, value) == 1 for parameter, value in settings])


def _computes_on_cpu() -> bool:
  """Returns whether JAX will use CPUs, as far as that can be said before importing it."""
  platforms = os.environ.get("JAX_PLATFORMS", "")
  if platforms:
    return platforms == "cpu"
  return all(importlib.util.find_spec(package) is None for package in _PLUGINS)
