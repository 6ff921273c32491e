"""A bound on the memory that a test may allocate."""

from collections.abc import Iterator
import contextlib
import resource


@contextlib.contextmanager
def limited_memory(num_bytes: int) -> Iterator[None]:
  """Lets the process allocate only `num_bytes` more inside the context; beyond that there is a MemoryError."""
  with open("/proc/self/statm", encoding="ascii") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
  soft, hard = resource.getrlimit(resource.RLIMIT_AS)
  resource.setrlimit(resource.RLIMIT_AS, (used + num_bytes, hard))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
