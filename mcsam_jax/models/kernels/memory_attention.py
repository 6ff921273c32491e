"""Attention to the memory slots on a TPU, by kernels that keep the scores of queries and slots on the chip.

At published size the scores of a step take 1.2 GB, and finding the best of them reads them again and again. Here a tile
of 128 queries and all slots stays in vector memory: product with the keys, the k-th largest score by a sorting network,
softmax, product with the values. The backward kernel recomputes the scores and keeps those that reach the threshold
that the forward kernel found. `MemoryBank.attend` is the same in plain JAX; `memory_kernels.py` holds the kernels.

Shapes: H heads, R queries, S slots, d width of a head. Queries lie along the lanes (the last axis): sorting slots then
takes maxima and minima of whole registers, and d, half a register wide, needs no padding.
"""

from collections.abc import Callable
import functools

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp
import numpy as np

from mcsam_jax.models.kernels.memory_kernels import (
  backward_kernel,
  forward_kernel,
  LANES,
  MASK_BITS,
  sorted_list_length,
  SUBLANES,
)
from mcsam_jax.partitioning import RULES

MAX_TOP_K = 64                    # longer lists to sort wouldn't fit the 64 registers
MAX_TILES_PER_STEP = 5            # tiles of 128 queries per grid step
VMEM_BUDGET = 13 * 2**20          # bytes of arrays; the compiler gives a kernel 16 MiB and takes some itself


def supports(num_slots: int, head_width: int, top_k: int, dtype: jnp.dtype) -> bool:
  """Returns whether the kernels support a memory of this shape, computing in `dtype`."""
  multiple = max(SUBLANES * sorted_list_length(top_k), 2 * SUBLANES * MASK_BITS)   # bfloat16 packs 16 rows per register
  return (num_slots % multiple == 0 and head_width % (2 * SUBLANES) == 0 and top_k <= MAX_TOP_K and top_k < num_slots
          and vmem_bytes(num_slots, head_width, jnp.dtype(dtype).itemsize) <= VMEM_BUDGET)


def vmem_bytes(num_slots: int, head_width: int, itemsize: int) -> int:
  """Returns the bytes of one head's arrays in the backward kernel, which needs more than the forward kernel."""
  slots_first = num_slots * -(-head_width // LANES) * LANES                    # lanes are padded
  slots_last = head_width * num_slots
  blocks = itemsize * (2 * slots_first + slots_last) + 4 * 2 * slots_last      # keys, values, keys^T; two gradients
  blocks += 4 * num_slots // MASK_BITS * MAX_TILES_PER_STEP * LANES            # dropout mask
  return 2 * blocks + 2 * itemsize * num_slots * LANES                         # double-buffered; weights, score_grads


def pack_keep_mask(keep_mask: jax.Array) -> jax.Array:
  """Returns int32 [1, S/32, R] for bool keep_mask [R, S]: bit b of row w is slot b * S/32 + w."""
  parts = keep_mask.reshape(keep_mask.shape[0], MASK_BITS, -1)                 # [R, 32, S/32]
  bits = parts.astype(jnp.uint32) << jnp.arange(MASK_BITS, dtype=jnp.uint32)[:, None]
  return lax.bitcast_convert_type(bits.sum(1, dtype=jnp.uint32), jnp.int32).T[None]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6, 7))
def memory_attention(queries: jax.Array, keys: jax.Array, values: jax.Array, keep_bits: jax.Array | None, top_k: int,
                     keep_rate: float, axes: tuple[str, ...] = (), interpret: bool = False) -> jax.Array:
  """Returns the weighted values [H, d, R] of each query's best slots.

  Args:
    queries: [H, d, R].
    keys: [H, d, S].
    values: [H, S, d].
    keep_bits: int32 [1, S/32, R], the weights that dropout keeps (`pack_keep_mask`), the same for all heads; None keeps
      all.
    top_k: slots attended to per query and head.
    keep_rate: 1 - dropout rate.
    axes: of the ambient mesh, if there is one, over which R is split; H is split by the sharding rule for heads.
    interpret: run without a TPU, for tests.
  """
  return _forward(queries, keys, values, keep_bits, top_k, keep_rate, axes, interpret)[0]


def _forward(queries, keys, values, keep_bits, top_k, keep_rate, axes, interpret):
  run = functools.partial(call_forward_kernel, top_k=top_k, keep_rate=keep_rate, interpret=interpret)
  outputs, *row_stats = shard_over_mesh(run, axes, inputs="query slot slot mask", outputs="query query query query")(
      queries, keys, values, keep_bits)
  return outputs, (queries, keys, values, keep_bits, outputs, *row_stats)


def _backward(top_k, keep_rate, axes, interpret, residuals, cotangents):
  def run(*arrays):
    query_grad, *slot_grads = call_backward_kernel(*arrays, keep_rate=keep_rate, interpret=interpret)
    return query_grad, *(lax.psum(slot_grads, axes) if axes else slot_grads)

  run = shard_over_mesh(run, axes, inputs="query slot slot mask query query query query query",
                        outputs="query slot slot")
  query_grad, key_grad, value_grad = run(*residuals, cotangents)
  return (query_grad, key_grad.astype(residuals[1].dtype),
          jnp.swapaxes(value_grad, 1, 2).astype(residuals[2].dtype), None)


memory_attention.defvjp(_forward, _backward)


def shard_over_mesh(run: Callable, axes: tuple[str, ...], inputs: str, outputs: str) -> Callable:
  """Returns `run` mapped over the devices of the ambient mesh, each with its share of the queries and of the heads.

  `inputs` and `outputs` name the layout of each array: `query` [H, ..., R], `slot` [H, ..., ...] (not split over
  queries) or `mask` [1, ..., R].
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return run
  heads = RULES["heads"] if RULES["heads"] in mesh.axis_names else None
  P = jax.sharding.PartitionSpec
  specs = {"query": P(heads, None, axes), "slot": P(heads), "mask": P(None, None, axes)}
  return jax.shard_map(run, in_specs=tuple(specs[layout] for layout in inputs.split()),
                       out_specs=tuple(specs[layout] for layout in outputs.split()), check_vma=False)


def call_forward_kernel(queries, keys, values, keep_bits, *, top_k, keep_rate, interpret):
  """Returns outputs [H, d, R] and, for each query [H, 1, R], the statistics that the backward kernel needs.

  These are the threshold score, the last slot that is kept if it ties with the threshold, and the log2-sum-exp of the
  scores.
  """
  grid = KernelGrid(queries, keys, keep_bits)
  outputs = pl.pallas_call(
      functools.partial(forward_kernel, top_k=top_k, keep_rate=keep_rate, unroll=not interpret),
      grid=grid.shape,
      in_specs=[grid.query_block(grid.width), grid.head_block(grid.num_slots, grid.width),
                grid.head_block(grid.width, grid.num_slots), *grid.mask_specs],
      out_specs=[grid.query_block(grid.width)] + [grid.query_block(1)] * 3,
      out_shape=[grid.output(grid.width, queries.dtype), grid.output(1, jnp.float32), grid.output(1, jnp.int32),
                 grid.output(1, jnp.float32)],
      scratch_shapes=[pltpu.VMEM((grid.num_slots, LANES), jnp.float32),
                      pltpu.VMEM((grid.num_slots, LANES), values.dtype)],
      cost_estimate=grid.cost(num_products=2), interpret=interpret, name="memory_forward",
  )(grid.pad(queries), jnp.swapaxes(keys, 1, 2), jnp.swapaxes(values, 1, 2), *map(grid.pad, grid.masks))
  return tuple(output[..., :grid.num_queries] for output in outputs)


def call_backward_kernel(queries, keys, values, keep_bits, outputs, thresholds, last_ties, lses, cotangents, *,
                         keep_rate, interpret):
  """Returns the gradients of queries [H, d, R], and of keys and transposed values, both float32 [H, d, S]."""
  grid = KernelGrid(queries, keys, keep_bits)
  query_blocks, slot_block = [grid.query_block(grid.width)] * 3, grid.head_block(grid.width, grid.num_slots)
  transposed_block = grid.head_block(grid.num_slots, grid.width)
  slot_grad = jax.ShapeDtypeStruct(keys.shape, jnp.float32)
  query_grad, key_grad, value_grad = pl.pallas_call(
      functools.partial(backward_kernel, keep_rate=keep_rate, unroll=not interpret),
      grid=grid.shape,
      in_specs=[*query_blocks, transposed_block, slot_block, transposed_block, *[grid.query_block(1)] * 3,
                *grid.mask_specs],
      out_specs=[query_blocks[0], slot_block, slot_block],
      out_shape=[grid.output(grid.width, jnp.float32), slot_grad, slot_grad],
      scratch_shapes=[pltpu.VMEM((grid.num_slots, LANES), queries.dtype)] * 2,
      cost_estimate=grid.cost(num_products=5), interpret=interpret, name="memory_backward",
  )(*map(grid.pad, (queries, outputs, cotangents)), jnp.swapaxes(keys, 1, 2), keys, values,
    *map(grid.pad, (thresholds, last_ties, lses)), *map(grid.pad, grid.masks))
  # Factors common to all weights and score gradients are applied here, once.
  scale = np.float32(1 / (np.sqrt(grid.width) * keep_rate))
  query_grad = (query_grad[..., :grid.num_queries] * scale).astype(queries.dtype)
  return query_grad, key_grad * scale, value_grad / np.float32(keep_rate)


class KernelGrid:
  """Grid steps over heads and blocks of queries: a head's slots stay on the chip while its queries stream through.

  Queries are padded with zeros to whole blocks; padding contributes no gradient, because its cotangents are zero.
  """

  def __init__(self, queries: jax.Array, keys: jax.Array, keep_bits: jax.Array | None):
    """Computes block size and grid for queries [H, d, R], keys [H, d, S], keep_bits [1, S/32, R]."""
    self.num_heads, self.width, self.num_queries = queries.shape
    self.num_slots = keys.shape[2]
    self.masks = [] if keep_bits is None else [keep_bits]
    num_tiles = pl.cdiv(self.num_queries, LANES)
    # Few steps (each costs about a third of a tile), and few tiles of padding.
    per_step = min(range(1, MAX_TILES_PER_STEP + 1), key=lambda count: pl.cdiv(num_tiles, count) * (count + 0.3))
    self.block = per_step * LANES
    self.shape = self.num_heads, pl.cdiv(num_tiles, per_step)
    rows = self.num_slots // MASK_BITS
    self.mask_specs = [pl.BlockSpec((1, rows, self.block), lambda head, step: (0, 0, step)) for _ in self.masks]

  def query_block(self, rows: int) -> pl.BlockSpec:
    return pl.BlockSpec((1, rows, self.block), lambda head, step: (head, 0, step))

  def head_block(self, *shape: int) -> pl.BlockSpec:
    return pl.BlockSpec((1, *shape), lambda head, step: (head, 0, 0))

  def output(self, rows: int, dtype) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((self.num_heads, rows, self.shape[1] * self.block), dtype)

  def pad(self, x: jax.Array) -> jax.Array:
    missing = self.shape[1] * self.block - self.num_queries
    return jnp.pad(x, ((0, 0), (0, 0), (0, missing))) if missing else x

  def cost(self, num_products: int) -> pl.CostEstimate:
    """Returns the cost of a kernel with this many matrix products, for the compiler's scheduler and for profiles."""
    pairs = self.num_heads * self.num_queries * self.num_slots
    bytes_accessed = num_products * (self.num_queries + self.num_slots) * self.num_heads * self.width * 2
    return pl.CostEstimate(flops=2 * num_products * pairs * self.width, transcendentals=pairs,
                           bytes_accessed=bytes_accessed)
