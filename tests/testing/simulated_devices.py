"""XLA_FLAGS for a process that simulates several devices on a CPU."""

import os

TIMEOUT_SECONDS = 1200       # wait of a device for the others; XLA's 40 s would end a process on a busy machine


def make_xla_flags(num_devices: int) -> str:
  """Returns the XLA_FLAGS of a process with `num_devices` devices."""
  return (f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={num_devices} "
          f"--xla_cpu_collective_timeout_seconds={TIMEOUT_SECONDS} "
          f"--xla_cpu_collective_call_terminate_timeout_seconds={TIMEOUT_SECONDS}")
