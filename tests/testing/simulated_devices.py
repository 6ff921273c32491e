"""Several devices in a process of its own, on a CPU: XLA_FLAGS for it."""

SECONDS = 1200       # that a device waits for the others; XLA's 40 end a process on a busy machine


def flags(count: int) -> str:
  """Returns XLA_FLAGS of a process with `count` devices."""
  return (f"--xla_force_host_platform_device_count={count} --xla_cpu_collective_timeout_seconds={SECONDS} "
          f"--xla_cpu_collective_call_terminate_timeout_seconds={SECONDS}")
