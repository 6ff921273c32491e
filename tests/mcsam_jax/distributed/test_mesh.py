"""One device and many, one process and several: the same losses and gradients, and parameters where the rules put them."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import jax
from jax.sharding import PartitionSpec
import numpy as np
import pytest

from mcsam_jax import config as configs
from mcsam_jax.distributed.mesh import make_mesh, mesh_shape
from mcsam_jax.errors import UserError
from mcsam_jax.partitioning import param_spec
from tests.testing import simulated_devices

SCRIPT = pathlib.Path(__file__).with_name("losses_on_mesh.py")
ONE = "1,1,1"


def measure(*arguments, processes=1, devices=8, float64=False, optimised=True):
  """Returns what the script prints, of the first process; not `optimised` it compiles in half the time."""
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  environment = os.environ | {
      "JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": str(int(float64)),
      "JAX_DISABLE_MOST_OPTIMIZATIONS": str(int(not optimised)),
      "XLA_FLAGS": simulated_devices.make_xla_flags(devices // processes),
      "PYTHONPATH": os.pathsep.join([str(SCRIPT.parents[3]), os.environ.get("PYTHONPATH", "")]),
      "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir)}
  arguments += ("--config.train.compute_dtype=float64",) if float64 else ()
  started = []
  for process in range(processes):
    if processes > 1:
      environment |= {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": str(processes),
                      "JAX_PROCESS_ID": str(process)}
    started.append(subprocess.Popen([sys.executable, SCRIPT, *map(str, arguments)], env=environment,
                                    stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
  ended = [process.communicate() for process in started]
  assert all(process.returncode == 0 for process in started), "\n".join(error[-2000:] for _, error in ended)
  return json.loads(ended[0][0].splitlines()[-1])                     # gloo's own lines stand before it


def compare(found, expected, tolerance, first_tolerance=None):
  """Checks the metrics of all steps, relative to their size, and the first step's gradient."""
  for step, (here, there) in enumerate(zip(found["metrics"], expected["metrics"], strict=True)):
    assert here.keys() == there.keys()
    for name in there:
      limit = first_tolerance if first_tolerance and step == 0 else tolerance
      assert abs(here[name] - there[name]) <= limit * max(1, abs(there[name])), (step, name, here[name], there[name])
  for here, there in zip(found["gradient"], expected["gradient"], strict=True):
    np.testing.assert_allclose(here, there, rtol=0, atol=(first_tolerance or tolerance) * max(1, np.abs(there).max()))


def test_two_steps_on_eight_devices_and_on_one():
  """Batch, parameters and heads split at once; in float64, where rounding hides nothing."""
  arguments = 2, "--config.encoder.frozen=true", "--config.model.encoder_layers=0"
  found = measure(*arguments, ONE, "2,2,2", float64=True, optimised=False)
  compare(found["2,2,2"], found[ONE], 1e-10)
  assert found[ONE]["share_on_a_device"] == 1 and found["2,2,2"]["share_on_a_device"] < 0.45


@pytest.mark.slow
@pytest.mark.parametrize("fields", [[], ["--config.model.align_targets=label_similarity", "--config.train.remat=layers", "--config.train.grad_accum_steps=2"]])
def test_fifty_losses_in_float64(fields):
  found = measure(50, ONE, "8,1,1", "1,8,1", "2,1,4", "2,2,2", *fields, float64=True)
  for mesh in ("8,1,1", "1,8,1", "2,1,4", "2,2,2"):
    compare(found[mesh], found[ONE], 1e-10)
  for mesh in ("8,1,1", "2,4,1"):
    compare(measure(50, mesh, *fields, processes=2, float64=True)[mesh], found[ONE], 1e-10)


@pytest.mark.slow
def test_ten_losses_in_float32():
  found = measure(10, ONE, "8,1,1", "1,8,1", "2,1,4", "2,2,2")
  for mesh in ("8,1,1", "1,8,1", "2,1,4", "2,2,2"):
    compare(found[mesh], found[ONE], 1e-4, 1e-5)
  compare(measure(10, "8,1,1", processes=2)["8,1,1"], found[ONE], 1e-4, 1e-5)


def test_parameters_lie_as_the_rules_say():
  sizes = {"data": 4, "fsdp": 2, "tensor": 2}
  for path, shape, expected in (
      ("decoder/layers_0/self_attention/query/kernel", (8, 8), ("fsdp", "tensor")),
      ("decoder/layers_0/self_attention/output/kernel", (8, 8), ("tensor", "fsdp")),
      ("encoder/layer_0/feedforward/hidden/kernel", (8, 6), ("fsdp", "tensor")),
      ("encoder/layer_0/feedforward/output/kernel", (6, 8), ("tensor", "fsdp")),
      ("memory_bank/slots", (12, 5), ("fsdp", None)),
      ("opt_state/1/mu/token_embedding/embedding", (761, 8), (None, "fsdp")),            # 761 words can't be split
      ("visual_encoder/layer1_0/conv1/kernel", (3, 3, 4, 8), (None, None, None, "fsdp")),
      ("encoder/norm/scale", (8,), ())):
    assert param_spec(path, shape, sizes) == PartitionSpec(*expected), path
  assert param_spec("memory_bank/slots", (12, 5), sizes | {"fsdp": 1}) == PartitionSpec(None, None)


@pytest.mark.parametrize("fields, problem", [
    (["mesh.data=2"], "mesh.data=2, mesh.fsdp=1, mesh.tensor=1: there are 1 devices"),
    (["mesh.fsdp=0"], "there are 1 devices"),
])
def test_a_mesh_that_does_not_fit_is_told_by_field(fields, problem):
  with pytest.raises(UserError, match=problem):
    make_mesh(configs.load_config("phantom", [f"--config.{field}" for field in fields]))


def test_minus_one_takes_what_is_left():
  config = configs.load_config("phantom", ["--config.mesh.fsdp=4", "--config.mesh.tensor=2"])
  assert mesh_shape(config, 64) == (8, 4, 2)
