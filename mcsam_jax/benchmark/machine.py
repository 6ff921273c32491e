"""Describes the machine that a benchmark runs on, and measures how fast it multiplies matrices."""

from collections.abc import Callable
import math
import os
import pathlib
import platform
import time

import jax
import jax.numpy as jnp
import numpy as np

# Vector instruction sets of x86 and ARM as /proc/cpuinfo names them, the widest first.
INSTRUCTION_SETS = ("avx512f", "avx2", "avx", "sse4_2", "sve2", "sve", "asimd")


def describe_machine() -> dict:
  """Returns the devices, the instruction set of the CPU and the version of JAX, as entries of a benchmark's figures."""
  return {"device": jax.devices()[0].device_kind, "num_devices": jax.device_count(), "cores": os.cpu_count(),
          "instruction_set": find_instruction_set(), "jax": jax.__version__}


def find_instruction_set(cpuinfo: str = "/proc/cpuinfo") -> str:
  """Returns the widest vector instruction set of the CPU, such as avx2; the processor's family where it isn't listed.

  Args:
    cpuinfo: file in which Linux lists the features of the CPU.
  """
  try:
    lines = pathlib.Path(cpuinfo).read_text(errors="replace").splitlines()
  except OSError:
    lines = []
  listed = {word for line in lines if line.lower().startswith(("flags", "features")) for word in line.split()}
  return next((name for name in INSTRUCTION_SETS if name in listed), platform.machine())


def measure_matmul(rows: int, width: int, num_kernels: int, iterations: int = 2000,
                   dtype: str | jnp.dtype = "float32") -> float:
  """Returns the FLOP/s of products [rows, width] x [width, width] that cycle through `num_kernels` kernels.

  One device is measured.

  Args:
    iterations: of a product with 24 rows per call; more rows or kernels take fewer.
    dtype: of both factors and of the product.
  """
  kernels = [(jax.random.normal(jax.random.key(number), (width, width)) / math.sqrt(width)).astype(dtype)
             for number in range(num_kernels)]
  iterations = max(1, iterations // (num_kernels * max(1, rows // 24)))

  @jax.jit
  def run(x, kernels):
    def multiply(_, x):
      for kernel in kernels:
        x = jnp.clip(x @ kernel, -3, 3)
      return x
    return jax.lax.fori_loop(0, iterations, multiply, x)

  x = jnp.ones((rows, width), dtype)
  call = lambda: jax.block_until_ready(run(x, kernels))
  call()
  seconds = np.median([measure_seconds(call) for _ in range(5)])
  return 2 * rows * width * width * num_kernels * iterations / seconds


def measure_seconds(run: Callable) -> float:
  """Returns the seconds that a call of `run` takes."""
  start = time.perf_counter()
  run()
  return time.perf_counter() - start
