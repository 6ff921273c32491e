"""The memory's TPU kernels, interpreted on a CPU, against the same in plain JAX; and compiled for TPUs."""

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
from tests.testing import simulated_devices


def in_plain_jax(queries, keys, values, kept, top_k, keep_rate):
  """Returns the answers [H, d, R] by the bank's own functions, with arguments as of `memory_attention.respond`."""
  scores = jnp.einsum("hdr,hds->hrs", queries, keys)
  weights = jax.nn.softmax(memory_bank.top_k_mask(scores, top_k) / np.sqrt(queries.shape[1]), axis=-1)
  return jnp.einsum("hrs,hsd->hdr", jnp.where(kept, weights / keep_rate, 0), values)


def example(num_queries, num_slots, decimals, width=16, num_heads=2):
  """Returns queries [H, d, R], keys [H, d, S], values [H, S, d], cotangents [H, d, R], kept [R, S]."""
  rng = np.random.default_rng(num_slots)
  make = lambda *shape: rng.normal(size=shape).astype(np.float32)
  queries, keys = make(num_heads, width, num_queries), make(num_heads, width, num_slots)
  return (queries.round(decimals), keys.round(decimals), make(num_heads, num_slots, width),
          make(num_heads, width, num_queries), rng.random((num_queries, num_slots)) < 0.9)


def compare(arrays, top_k, axes=()):
  queries, keys, values, cotangents, kept = arrays

  def kernel(*arrays):
    return memory_attention.respond(*arrays, memory_attention.pack(jnp.asarray(kept)), top_k, 0.9, axes, interpret=True)
  plain = functools.partial(in_plain_jax, kept=kept, top_k=top_k, keep_rate=0.9)

  def with_gradients(respond):
    answers, transpose = jax.vjp(respond, queries, keys, values)
    return answers, *transpose(cotangents)
  quickly_compiled = {"xla_backend_optimization_level": 0}
  for found, expected in zip(jax.jit(lambda: with_gradients(kernel), compiler_options=quickly_compiled)(),
                             jax.jit(lambda: with_gradients(plain))()):
    np.testing.assert_allclose(found, expected, atol=2e-6 * np.abs(expected).max())


def test_answers_and_gradients_equal_plain_jax_with_ties_dropout_and_a_tile_that_is_not_full():
  """Whole numbers: most thresholds are tied, so one slot too many or the wrong one would show."""
  compare(example(num_queries=40, num_slots=512, decimals=0), top_k=2)


@pytest.mark.slow
@pytest.mark.parametrize("num_slots, top_k, decimals", [(2048, 32, 7), (2048, 32, 0), (512, 5, 7), (1024, 24, 0)])
def test_answers_and_gradients_equal_plain_jax(num_slots, top_k, decimals):
  compare(example(1000, num_slots, decimals, width=32), top_k)


@pytest.mark.slow
def test_devices_share_queries_and_heads_and_add_up_the_gradients_of_the_slots():
  """In a process of its own, which has eight devices."""
  script = """if True:
    import jax
    from jax.sharding import AxisType
    from tests.mcsam_jax.models.kernels.test_memory_attention import compare, example
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    with jax.set_mesh(mesh):
      compare(example(512, 512, 0), top_k=2, axes=("data", "fsdp"))"""
  environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": simulated_devices.flags(8)}
  subprocess.run([sys.executable, "-c", script], env=environment, cwd=pathlib.Path(__file__).parents[4], check=True)


def test_the_network_sorts():
  rows = list(np.random.default_rng(0).permutation(32).astype(np.float32))
  largest = sorting_network.best_of(sorting_network.descending(rows[:16]), sorting_network.descending(rows[16:]))
  np.testing.assert_array_equal(largest, np.arange(31, 15, -1))


def test_a_memory_that_would_not_fit_in_vector_memory_is_left_to_plain_jax():
  assert not memory_attention.supports(8192, 64, 32, jnp.bfloat16) and not memory_attention.supports(4096, 64, 32, jnp.float32)
  assert memory_attention.supports(2048, 64, 32, jnp.bfloat16)


@pytest.mark.slow
@pytest.mark.parametrize("chip", ["v5e:2x2", "v4:2x2x1", "v6e:2x2"])
@pytest.mark.parametrize("num_slots, width, dtype", [(4096, 64, jnp.bfloat16), (2048, 128, jnp.bfloat16),
                                                     (2048, 128, jnp.float32)])
def test_the_largest_memories_that_are_supported_compile(chip, num_slots, width, dtype):
  pytest.importorskip("libtpu")
  assert memory_attention.supports(num_slots, width, 64, dtype)
  devices = np.array(topologies.get_topology_desc(chip, "tpu").devices[:1])
  whole = jax.sharding.NamedSharding(jax.sharding.Mesh(devices, ("data",)), jax.sharding.PartitionSpec())
  described = lambda *shape, of=dtype: jax.ShapeDtypeStruct(shape, of, sharding=whole)
  respond = lambda *arrays: memory_attention.respond(*arrays, 64, 0.9).astype(jnp.float32).sum()
  compiled = jax.jit(jax.grad(respond, (0, 1, 2))).lower(
      described(2, width, 1000), described(2, width, num_slots), described(2, num_slots, width),
      described(1, num_slots // memory_attention.WORD, 1000, of=jnp.int32)).compile()
  assert "memory_backward" in compiled.as_text()


@pytest.mark.slow
@pytest.mark.parametrize("chip", ["v5e:2x2", "v4:2x2x1"])
def test_a_pod_needs_no_room_for_scores(chip):
  """Compiled for a TPU, at published size: forward and backward, where the scores alone would be 0.8 GB a chip."""
  pytest.importorskip("libtpu")
  devices = np.array(topologies.get_topology_desc(chip, "tpu").devices[:4])
  mesh = jax.sharding.Mesh(devices, ("data",), axis_types=(jax.sharding.AxisType.Auto,))
  bank = memory_bank.MemoryBank(2048, 512, 512, 8, 32, dropout=0.1, dtype=jnp.bfloat16)
  respond = lambda bank, features: bank(features, bank.project(), train=True)

  def loss(parameters, features, key):
    return bank.apply(parameters, features, method=respond, rngs={"dropout": key}).astype(jnp.float32).sum()

  def described(tree, *split):
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*split))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)

  features = jax.ShapeDtypeStruct((256, 100, 512), jnp.bfloat16)
  key = jax.eval_shape(jax.random.key, 0)
  parameters = jax.eval_shape(functools.partial(bank.init, method=respond), {"params": key, "dropout": key}, features)
  with jax.set_mesh(mesh):
    compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(
        described({"params": parameters["params"]}), described(features, "data"), described(key)).compile()
  assert compiled.memory_analysis().temp_size_in_bytes < 100e6
  assert "memory_forward" in compiled.as_text() and "memory_backward" in compiled.as_text()
