"""The memory's TPU kernels, interpreted on a CPU, against plain JAX; and compiled for TPUs."""

import functools
import os
import pathlib
import subprocess
import sys

import jax
from jax.experimental import topologies
import jax.numpy as jnp
import numpy as np
import pytest

from mcsam_jax.models import memory_bank
from mcsam_jax.models.kernels import memory_attention, sorting_network
from mcsam_jax.models.kernels.top_k import top_k_mask
from tests.testing import simulated_devices


def plain_attention(queries, keys, values, keep_mask, top_k, keep_rate):
  """Returns the outputs [H, d, R] in plain JAX, for arguments as in `memory_attention` and keep_mask [R, S]."""
  scores = jnp.einsum("hdr,hds->hrs", queries, keys)
  weights = jax.nn.softmax(top_k_mask(scores, top_k) / np.sqrt(queries.shape[1]), axis=-1)
  return jnp.einsum("hrs,hsd->hdr", jnp.where(keep_mask, weights / keep_rate, 0), values)


def make_example(num_queries, num_slots, decimals, width=16, num_heads=2):
  """Returns queries [H, d, R], keys [H, d, S], values [H, S, d], cotangents [H, d, R], keep_mask [R, S]."""
  rng = np.random.default_rng(num_slots)
  normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
  queries, keys = normal(num_heads, width, num_queries), normal(num_heads, width, num_slots)
  return (queries.round(decimals), keys.round(decimals), normal(num_heads, num_slots, width),
          normal(num_heads, width, num_queries), rng.random((num_queries, num_slots)) < 0.9)


def compare(arrays, top_k, axes=()):
  """Asserts that outputs and gradients of the kernels equal those of `plain_attention`."""
  queries, keys, values, cotangents, keep_mask = arrays

  def kernel_attention(*arrays):
    keep_bits = memory_attention.pack_keep_mask(jnp.asarray(keep_mask))
    return memory_attention.memory_attention(*arrays, keep_bits, top_k, 0.9, axes, interpret=True)
  plain = functools.partial(plain_attention, keep_mask=keep_mask, top_k=top_k, keep_rate=0.9)

  def outputs_and_gradients(attention):
    outputs, vjp = jax.vjp(attention, queries, keys, values)
    return outputs, *vjp(cotangents)
  fast_compilation = {"xla_backend_optimization_level": 0}
  for actual, expected in zip(
      jax.jit(lambda: outputs_and_gradients(kernel_attention), compiler_options=fast_compilation)(),
      jax.jit(lambda: outputs_and_gradients(plain))()):
    np.testing.assert_allclose(actual, expected, atol=2e-6 * np.abs(expected).max())


def test_equals_plain_jax_with_ties_dropout_and_a_partial_tile():
  """Integers: most thresholds are tied, so selecting one slot too many, or the wrong one, changes the result."""
  compare(make_example(num_queries=40, num_slots=512, decimals=0), top_k=2)


@pytest.mark.slow
@pytest.mark.parametrize("num_slots, top_k, decimals", [(2048, 32, 7), (2048, 32, 0), (512, 5, 7), (1024, 24, 0)])
def test_equals_plain_jax(num_slots, top_k, decimals):
  compare(make_example(1000, num_slots, decimals, width=32), top_k)


@pytest.mark.slow
def test_equals_plain_jax_on_a_mesh_that_splits_queries_and_heads():
  """Runs in a process of its own, which has eight devices."""
  script = """if True:
    import jax
    from jax.sharding import AxisType
    from tests.mcsam_jax.models.kernels.test_memory_attention import compare, make_example
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    with jax.set_mesh(mesh):
      compare(make_example(512, 512, 0), top_k=2, axes=("data", "fsdp"))"""
  environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": simulated_devices.make_xla_flags(8)}
  subprocess.run([sys.executable, "-c", script], env=environment, cwd=pathlib.Path(__file__).parents[4], check=True)


def test_the_sorting_network_sorts():
  rows = list(np.random.default_rng(0).permutation(32).astype(np.float32))
  largest = sorting_network.merge_largest(sorting_network.sort_descending(rows[:16]),
                                          sorting_network.sort_descending(rows[16:]))
  np.testing.assert_array_equal(largest, np.arange(31, 15, -1))


def test_memories_that_exceed_vector_memory_are_not_supported():
  assert not memory_attention.supports(8192, 64, 32, jnp.bfloat16)
  assert not memory_attention.supports(4096, 64, 32, jnp.float32)
  assert memory_attention.supports(2048, 64, 32, jnp.bfloat16)


@pytest.mark.slow
@pytest.mark.parametrize("chip", ["v5e:2x2", "v4:2x2x1", "v6e:2x2"])
@pytest.mark.parametrize("num_slots, width, dtype", [(4096, 64, jnp.bfloat16), (2048, 128, jnp.bfloat16),
                                                     (2048, 128, jnp.float32)])
def test_the_largest_supported_memories_compile(chip, num_slots, width, dtype):
  pytest.importorskip("libtpu")
  assert memory_attention.supports(num_slots, width, 64, dtype)
  devices = np.array(topologies.get_topology_desc(chip, "tpu").devices[:1])
  replicated = jax.sharding.NamedSharding(jax.sharding.Mesh(devices, ("data",)), jax.sharding.PartitionSpec())
  spec = lambda *shape, dtype=dtype: jax.ShapeDtypeStruct(shape, dtype, sharding=replicated)
  loss = lambda *arrays: memory_attention.memory_attention(*arrays, 64, 0.9).astype(jnp.float32).sum()
  compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(
      spec(2, width, 1000), spec(2, width, num_slots), spec(2, num_slots, width),
      spec(1, num_slots // memory_attention.MASK_BITS, 1000, dtype=jnp.int32)).compile()
  assert "memory_backward" in compiled.as_text()


@pytest.mark.slow
@pytest.mark.parametrize("chip", ["v5e:2x2", "v4:2x2x1"])
def test_a_pod_needs_no_memory_for_scores(chip):
  """Compiled for a TPU, at published size: forward and backward, where the scores alone would take 0.8 GB per chip."""
  pytest.importorskip("libtpu")
  devices = np.array(topologies.get_topology_desc(chip, "tpu").devices[:4])
  mesh = jax.sharding.Mesh(devices, ("data",), axis_types=(jax.sharding.AxisType.Auto,))
  bank = memory_bank.MemoryBank(2048, 512, 512, 8, 32, dropout=0.1, dtype=jnp.bfloat16)
  query_bank = lambda bank, features: bank(features, bank.project_slots(), train=True)

  def loss(parameters, features, key):
    return bank.apply(parameters, features, method=query_bank, rngs={"dropout": key}).astype(jnp.float32).sum()

  def specs(tree, *split):
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*split))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)

  features = jax.ShapeDtypeStruct((256, 100, 512), jnp.bfloat16)
  key = jax.eval_shape(jax.random.key, 0)
  rngs = {"params": key, "dropout": key}
  parameters = jax.eval_shape(functools.partial(bank.init, method=query_bank), rngs, features)
  with jax.set_mesh(mesh):
    compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(
        specs({"params": parameters["params"]}), specs(features, "data"), specs(key)).compile()
  assert compiled.memory_analysis().temp_size_in_bytes < 100e6
  assert "memory_forward" in compiled.as_text() and "memory_backward" in compiled.as_text()
