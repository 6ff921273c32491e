"""Losses and gradients don't depend on the number of devices and processes, and parameters follow the rules."""

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
from mcsam_jax.distributed.mesh import make_mesh, mesh_shape, shard_batches, shard_batches_in_thread
from mcsam_jax.errors import UserError
from mcsam_jax.partitioning import param_spec
from tests.testing import simulated_devices

SCRIPT = pathlib.Path(__file__).with_name("losses_on_mesh.py")
ONE_DEVICE = "1,1,1"


def run_script(*arguments, num_processes=1, num_devices=8, float64=False, optimize=True):
  """Returns what the script's first process prints; without `optimize` it compiles in half the time."""
  with socket.socket() as unused:
    unused.bind(("localhost", 0))
    port = unused.getsockname()[1]
  environment = os.environ | {
      "JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": str(int(float64)),
      "JAX_DISABLE_MOST_OPTIMIZATIONS": str(int(not optimize)),
      "XLA_FLAGS": simulated_devices.make_xla_flags(num_devices // num_processes),
      "PYTHONPATH": os.pathsep.join([str(SCRIPT.parents[3]), os.environ.get("PYTHONPATH", "")]),
      "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir)}
  arguments += ("--config.train.compute_dtype=float64",) if float64 else ()
  processes = []
  for index in range(num_processes):
    if num_processes > 1:
      environment |= {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": str(num_processes),
                      "JAX_PROCESS_ID": str(index)}
    processes.append(subprocess.Popen([sys.executable, SCRIPT, *map(str, arguments)], env=environment,
                                      stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
  outputs = [process.communicate() for process in processes]
  assert all(process.returncode == 0 for process in processes), "\n".join(error[-2000:] for _, error in outputs)
  return json.loads(outputs[0][0].splitlines()[-1])                     # after gloo's own lines


def assert_close(actual, expected, tolerance, first_tolerance=None):
  """Checks the metrics of all steps, relative to their size, and the gradient of the first step."""
  for step, (ours, theirs) in enumerate(zip(actual["metrics"], expected["metrics"], strict=True)):
    assert ours.keys() == theirs.keys()
    for name in theirs:
      limit = first_tolerance if first_tolerance and step == 0 else tolerance
      assert abs(ours[name] - theirs[name]) <= limit * max(1, abs(theirs[name])), (step, name, ours[name], theirs[name])
  for ours, theirs in zip(actual["gradient"], expected["gradient"], strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=(first_tolerance or tolerance) * max(1, np.abs(theirs).max()))


def test_eight_devices_and_one_agree_for_two_steps():
  """Splits batch, parameters and heads at once; in float64, where rounding hides nothing."""
  arguments = 2, "--config.encoder.frozen=true", "--config.model.encoder_layers=0"
  results = run_script(*arguments, ONE_DEVICE, "2,2,2", float64=True, optimize=False)
  assert_close(results["2,2,2"], results[ONE_DEVICE], 1e-10)
  assert results[ONE_DEVICE]["share_per_device"] == 1 and results["2,2,2"]["share_per_device"] < 0.45


@pytest.mark.slow
@pytest.mark.parametrize("fields", [[], ["--config.model.align_targets=label_similarity", "--config.train.remat=layers",
                                         "--config.train.grad_accum_steps=2"]])
def test_fifty_losses_agree_in_float64(fields):
  results = run_script(50, ONE_DEVICE, "8,1,1", "1,8,1", "2,1,4", "2,2,2", *fields, float64=True)
  for mesh in ("8,1,1", "1,8,1", "2,1,4", "2,2,2"):
    assert_close(results[mesh], results[ONE_DEVICE], 1e-10)
  for mesh in ("8,1,1", "2,4,1"):
    assert_close(run_script(50, mesh, *fields, num_processes=2, float64=True)[mesh], results[ONE_DEVICE], 1e-10)


@pytest.mark.slow
def test_ten_losses_agree_in_float32():
  results = run_script(10, ONE_DEVICE, "8,1,1", "1,8,1", "2,1,4", "2,2,2")
  for mesh in ("8,1,1", "1,8,1", "2,1,4", "2,2,2"):
    assert_close(results[mesh], results[ONE_DEVICE], 1e-4, 1e-5)
  assert_close(run_script(10, "8,1,1", num_processes=2)["8,1,1"], results[ONE_DEVICE], 1e-4, 1e-5)


def test_parameters_are_split_by_the_rules():
  sizes = {"data": 4, "fsdp": 2, "tensor": 2}
  for path, shape, expected in (
      ("decoder/layers_0/self_attention/query/kernel", (8, 8), ("fsdp", "tensor")),
      ("decoder/layers_0/self_attention/output/kernel", (8, 8), ("tensor", "fsdp")),
      ("encoder/layer_0/feedforward/hidden/kernel", (8, 6), ("fsdp", "tensor")),
      ("encoder/layer_0/feedforward/output/kernel", (6, 8), ("tensor", "fsdp")),
      ("memory_bank/slots", (12, 5), ("fsdp", None)),
      ("opt_state/1/mu/token_embedding/embedding", (761, 8), (None, "fsdp")),            # 761 is odd
      ("visual_encoder/layer1_0/conv1/kernel", (3, 3, 4, 8), (None, None, None, "fsdp")),
      ("encoder/norm/scale", (8,), ())):
    assert param_spec(path, shape, sizes) == PartitionSpec(*expected), path
  assert param_spec("memory_bank/slots", (12, 5), sizes | {"fsdp": 1}) == PartitionSpec(None, None)


@pytest.mark.parametrize("fields, problem", [
    (["mesh.data=2"], "mesh.data=2, mesh.fsdp=1, mesh.tensor=1.* devices, 1;"),
    (["mesh.fsdp=0"], "mesh.fsdp=0.* devices, 1;"),
])
def test_a_mesh_that_does_not_fit_the_devices_is_refused(fields, problem):
  with pytest.raises(UserError, match=problem):
    make_mesh(configs.load_config("phantom", [f"--config.{field}" for field in fields]))


def test_minus_one_takes_the_remaining_devices():
  config = configs.load_config("phantom", ["--config.mesh.fsdp=4", "--config.mesh.tensor=2"])
  assert mesh_shape(config, 64) == (8, 4, 2)


@pytest.mark.parametrize("function", [shard_batches, shard_batches_in_thread])
def test_batches_are_sharded_in_order_a_few_ahead_and_errors_come_when_due(function):
  mesh, taken = make_mesh(configs.load_config("phantom")), []

  def make_batches():
    for number in range(6):
      taken.append(number)
      yield {"record": np.full(4, number)}
    raise TimeoutError("the disk doesn't answer")

  batches = function(mesh, make_batches(), prefetch=2)
  for expected in range(4):
    batch = next(batches)
    assert isinstance(batch["record"], jax.Array) and batch["record"].tolist() == [expected] * 4
    assert len(taken) <= expected + 4
  with pytest.raises(TimeoutError):
    list(batches)
  assert list(function(mesh, [], prefetch=2)) == []
