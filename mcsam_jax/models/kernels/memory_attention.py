"""How the memory answers on a TPU: kernels that keep the scores of queries and slots on the chip.

At published size the scores of a step are 1.2 GB, and finding the best of them reads them again and again. Here a tile
of 128 queries and all slots stays in vector memory: product with the keys, the k-th largest score by a sorting network,
softmax, product with the values. The backward kernel makes the same scores again and keeps those that reach the
threshold which the forward one has found. `MemoryBank.answer` is the same in plain JAX.

Shapes: H heads, R queries, S slots, d width of a head. Queries lie along the lanes (the last axis): sorting slots is
then maxima and minima of whole registers, and d, half a register wide, pads nothing.
"""

import functools

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp
import numpy as np

from mcsam_jax.models.kernels import sorting_network
from mcsam_jax.partitioning import RULES

LANES, SUBLANES = 128, 8          # of a vector register; a tile is 128 queries
WORD = 32                         # slots whose dropout is told by the bits of one word
MOST_KEPT = 64                    # longer lists to sort wouldn't fit the 64 registers
MOST_TILES = 5                    # a grid step
MOST_VMEM = 13 * 2**20            # bytes of arrays; the compiler gives a kernel 16 MiB and takes some itself


def supports(num_slots: int, head_width: int, top_k: int, dtype: jnp.dtype) -> bool:
  """Returns whether the kernels can serve a memory of this shape, computing in `dtype`."""
  whole = max(SUBLANES * list_length(top_k), 2 * SUBLANES * WORD)              # bfloat16 lies 16 rows a register
  return (num_slots % whole == 0 and head_width % (2 * SUBLANES) == 0 and top_k <= MOST_KEPT and top_k < num_slots
          and vector_memory(num_slots, head_width, jnp.dtype(dtype).itemsize) <= MOST_VMEM)


def vector_memory(num_slots: int, head_width: int, itemsize: int) -> int:
  """Returns the bytes of a head's arrays that the backward kernel holds, which needs more than the forward one."""
  by_slot, by_width = num_slots * -(-head_width // LANES) * LANES, head_width * num_slots    # lanes are filled up
  blocks = itemsize * (2 * by_slot + by_width) + 4 * 2 * by_width              # keys, values, keys turned; gradients
  blocks += 4 * num_slots // WORD * MOST_TILES * LANES                         # what dropout keeps
  return 2 * blocks + 2 * itemsize * num_slots * LANES                         # a block is held twice; weights, slopes


def pack(kept: jax.Array) -> jax.Array:
  """Returns int32 [1, S/32, R] of bool kept [R, S]: bit b of word w is slot b * S/32 + w."""
  parts = kept.reshape(kept.shape[0], WORD, -1)                                # [R, 32, S/32]
  bits = parts.astype(jnp.uint32) << jnp.arange(WORD, dtype=jnp.uint32)[:, None]
  return lax.bitcast_convert_type(bits.sum(1, dtype=jnp.uint32), jnp.int32).T[None]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6, 7))
def respond(queries: jax.Array, keys: jax.Array, values: jax.Array, words: jax.Array | None, top_k: int,
            keep_rate: float, axes: tuple[str, ...] = (), interpret: bool = False) -> jax.Array:
  """Returns what the memory answers [H, d, R].

  Args:
    queries: [H, d, R].
    keys: [H, d, S].
    values: [H, S, d].
    words: which slots dropout keeps for each query, from `pack`; heads share them. None keeps all.
    top_k: slots that answer a query, per head.
    keep_rate: the share that dropout keeps.
    axes: of the ambient mesh, if there is one, over which R is split; H is split as the rules for heads say.
    interpret: run without a TPU, for tests.
  """
  return respond_forward(queries, keys, values, words, top_k, keep_rate, axes, interpret)[0]


def respond_forward(queries, keys, values, words, top_k, keep_rate, axes, interpret):
  run = functools.partial(forward, top_k=top_k, keep_rate=keep_rate, interpret=interpret)
  answers, *found = by_device(run, axes, takes="query slot slot word", gives="query query query query")(
      queries, keys, values, words)
  return answers, (queries, keys, values, words, answers, *found)


def respond_backward(top_k, keep_rate, axes, interpret, saved, cotangents):
  def run(*arrays):
    by_query, *by_slot = backward(*arrays, keep_rate=keep_rate, interpret=interpret)
    return by_query, *(lax.psum(by_slot, axes) if axes else by_slot)

  run = by_device(run, axes, takes="query slot slot word query query query query query", gives="query slot slot")
  by_query, by_key, by_value = run(*saved, cotangents)
  return by_query, by_key.astype(saved[1].dtype), jnp.swapaxes(by_value, 1, 2).astype(saved[2].dtype), None


respond.defvjp(respond_forward, respond_backward)


def by_device(run, axes: tuple[str, ...], takes: str, gives: str):
  """Returns `run` as every device of the ambient mesh does it on its share of the queries and of the heads.

  What arrays are by: `query` [H, ..., R], `slot` [H, ..., ...] (whole for each head) or `word` [1, ..., R].
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return run
  heads = RULES["heads"] if RULES["heads"] in mesh.axis_names else None
  P = jax.sharding.PartitionSpec
  specs = {"query": P(heads, None, axes), "slot": P(heads), "word": P(None, None, axes)}
  return jax.shard_map(run, in_specs=tuple(specs[word] for word in takes.split()),
                       out_specs=tuple(specs[word] for word in gives.split()), check_vma=False)


# From whole arrays to tiles.

def forward(queries, keys, values, words, *, top_k, keep_rate, interpret):
  """Returns answers [H, d, R], and for each query [H, 1, R] the threshold, the last slot that may tie with it, and
  the logarithm of the sum of the exponentials."""
  grid = Grid(queries, keys, words)
  outputs = pl.pallas_call(
      functools.partial(forward_kernel, top_k=top_k, keep_rate=keep_rate, unroll=not interpret),
      grid=grid.shape,
      in_specs=[grid.by_query(grid.width), grid.by_head(grid.num_slots, grid.width),
                grid.by_head(grid.width, grid.num_slots), *grid.words_spec],
      out_specs=[grid.by_query(grid.width)] + [grid.by_query(1)] * 3,
      out_shape=[grid.array(grid.width, queries.dtype), grid.array(1, jnp.float32), grid.array(1, jnp.int32),
                 grid.array(1, jnp.float32)],
      scratch_shapes=[pltpu.VMEM((grid.num_slots, LANES), jnp.float32),
                      pltpu.VMEM((grid.num_slots, LANES), values.dtype)],
      cost_estimate=grid.cost(products=2), interpret=interpret, name="memory_forward",
  )(grid.fill(queries), jnp.swapaxes(keys, 1, 2), jnp.swapaxes(values, 1, 2), *map(grid.fill, grid.words))
  return tuple(output[..., :grid.num_queries] for output in outputs)


def backward(queries, keys, values, words, answers, thresholds, lasts, log_sums, cotangents, *, keep_rate, interpret):
  """Returns the gradients of queries [H, d, R], and of keys and (turned) values, both float32 [H, d, S]."""
  grid = Grid(queries, keys, words)
  by_query, by_slot = [grid.by_query(grid.width)] * 3, [grid.by_head(grid.width, grid.num_slots)] * 2
  slots = grid.by_head(grid.num_slots, grid.width)
  slot_gradient = jax.ShapeDtypeStruct(keys.shape, jnp.float32)
  by_queries, by_keys, by_values = pl.pallas_call(
      functools.partial(backward_kernel, keep_rate=keep_rate, unroll=not interpret),
      grid=grid.shape,
      in_specs=[*by_query, slots, by_slot[0], slots] + [grid.by_query(1)] * 3 + grid.words_spec,
      out_specs=[by_query[0], *by_slot],
      out_shape=[grid.array(grid.width, jnp.float32), slot_gradient, slot_gradient],
      scratch_shapes=[pltpu.VMEM((grid.num_slots, LANES), queries.dtype)] * 2,
      cost_estimate=grid.cost(products=5), interpret=interpret, name="memory_backward",
  )(*map(grid.fill, (queries, answers, cotangents)), jnp.swapaxes(keys, 1, 2), keys, values,
    *map(grid.fill, (thresholds, lasts, log_sums)), *map(grid.fill, grid.words))
  # What every weight and slope shares is multiplied in here, once.
  scale = np.float32(1 / (np.sqrt(grid.width) * keep_rate))
  by_queries = (by_queries[..., :grid.num_queries] * scale).astype(queries.dtype)
  return by_queries, by_keys * scale, by_values / np.float32(keep_rate)


class Grid:
  """Steps over heads and blocks of queries: a head's slots stay on the chip while its queries pass.

  Queries are filled up with zeros to whole blocks; these get and give no gradient, for their cotangents are zeros.
  """

  def __init__(self, queries, keys, words):
    self.num_heads, self.width, self.num_queries = queries.shape
    self.num_slots = keys.shape[2]
    self.words = [] if words is None else [words]
    tiles = pl.cdiv(self.num_queries, LANES)
    # Few steps (one costs about a third of a tile), and few tiles that only fill up.
    per_step = min(range(1, MOST_TILES + 1), key=lambda count: pl.cdiv(tiles, count) * (count + 0.3))
    self.block = per_step * LANES
    self.shape = self.num_heads, pl.cdiv(tiles, per_step)
    rows = self.num_slots // WORD
    self.words_spec = [pl.BlockSpec((1, rows, self.block), lambda head, step: (0, 0, step)) for _ in self.words]

  def by_query(self, rows: int) -> pl.BlockSpec:
    return pl.BlockSpec((1, rows, self.block), lambda head, step: (head, 0, step))

  def by_head(self, *shape: int) -> pl.BlockSpec:
    return pl.BlockSpec((1, *shape), lambda head, step: (head, 0, 0))

  def array(self, rows: int, dtype) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((self.num_heads, rows, self.shape[1] * self.block), dtype)

  def fill(self, x: jax.Array) -> jax.Array:
    missing = self.shape[1] * self.block - self.num_queries
    return jnp.pad(x, ((0, 0), (0, 0), (0, missing))) if missing else x

  def cost(self, products: int) -> pl.CostEstimate:
    """What the compiler's schedule and a reader of its analysis may count on."""
    pairs = self.num_heads * self.num_queries * self.num_slots
    moved = products * (self.num_queries + self.num_slots) * self.num_heads * self.width * 2
    return pl.CostEstimate(flops=2 * products * pairs * self.width, transcendentals=pairs, bytes_accessed=moved)


# The kernels.

def forward_kernel(queries, keys, values, *refs, top_k, keep_rate, unroll):
  *words, answers, thresholds, lasts, log_sums, scores, weights = refs
  num_slots = keys.shape[1]
  scale = exponent_scale(keys.shape[2])

  @pl.loop(0, queries.shape[2] // LANES)
  def tile(number):
    here = pl.ds(pl.multiple_of(number * LANES, LANES), LANES)
    threshold, largest = score(queries[0, :, here], keys, scores, top_k)       # [1, 128] each

    def answer(last: jax.Array | None = None):
      """Writes the answers of the tile; returns how many slots gave each of them [1, 128]."""
      def weigh(bit, sums):
        at = part(bit, num_slots)
        below = scores[at] < threshold                                         # NaN isn't: it must show
        if last is not None:
          below |= behind(scores[at], threshold, at.start, last)
        share = jnp.where(below, 0.0, jnp.exp2(scores[at] * scale - largest * scale))
        weights[at] = drop(share, words, here, bit).astype(weights.dtype)      # not yet divided by their total
        return sums[0] + fold(share), sums[1] + fold(jnp.where(below, 0.0, 1.0))
      total, count = lax.fori_loop(0, WORD, weigh, (jnp.zeros((SUBLANES, LANES)),) * 2, unroll=unroll)
      total = total.sum(0, keepdims=True)
      mixed = jnp.dot(values[0], weights[...], preferred_element_type=jnp.float32)
      answers[0, :, here] = (mixed * (1 / (total * np.float32(keep_rate)))).astype(answers.dtype)
      log_sums[0, :, here] = largest * scale + jnp.log2(total)
      return count.sum(0, keepdims=True)

    thresholds[0, :, here] = threshold
    lasts[0, :, here] = jnp.full((1, LANES), num_slots, jnp.int32)
    count = answer()

    @pl.when((count > top_k).any())                                            # rare: it may take twice as long
    def ties():
      lasts[0, :, here] = last_tied(scores, threshold, top_k)
      answer(lasts[0, :, here])


def backward_kernel(queries, answers, cotangents, keys, keys_turned, values, thresholds, lasts, log_sums, *refs,
                    keep_rate, unroll):
  *words, by_query, by_key, by_value, weights, slopes = refs
  num_slots = keys.shape[1]
  scale = exponent_scale(keys.shape[2])

  @pl.when(pl.program_id(1) == 0)
  def first():
    by_key[...] = jnp.zeros_like(by_key)
    by_value[...] = jnp.zeros_like(by_value)

  @pl.loop(0, queries.shape[2] // LANES)
  def tile(number):
    here = pl.ds(pl.multiple_of(number * LANES, LANES), LANES)
    query, cotangent = queries[0, :, here], cotangents[0, :, here]             # [d, 128]
    threshold, last, log_sum = thresholds[0, :, here], lasts[0, :, here], log_sums[0, :, here]
    mean = (answers[0, :, here].astype(jnp.float32) * cotangent.astype(jnp.float32)).sum(0, keepdims=True)
    mean *= np.float32(keep_rate)

    def differentiate(ties: bool):
      def weigh(bit, nothing):
        at = part(bit, num_slots)
        scores = jnp.dot(keys[0, at], query, preferred_element_type=jnp.float32)
        products = jnp.dot(values[0, at], cotangent, preferred_element_type=jnp.float32)
        below = scores < threshold
        if ties:
          below |= behind(scores, threshold, at.start, last)
        share = jnp.where(below, 0.0, jnp.exp2(scores * scale - log_sum))
        weights[at] = drop(share, words, here, bit).astype(weights.dtype)
        slopes[at] = (share * (drop(products, words, here, bit) - mean)).astype(slopes.dtype)
        return nothing
      lax.fori_loop(0, WORD, weigh, 0, unroll=unroll)
      by_query[0, :, here] = jnp.dot(keys_turned[0], slopes[...], preferred_element_type=jnp.float32)
      by_key[0] += over_queries(query, slopes[...])
      by_value[0] += over_queries(cotangent, weights[...])

    tied = (last < num_slots).any()
    pl.when(tied)(lambda: differentiate(ties=True))
    pl.when(~tied)(lambda: differentiate(ties=False))


def exponent_scale(width: int) -> np.float32:
  """Returns what scores are multiplied by before 2^x, which the hardware has."""
  return np.float32(np.log2(np.e) / np.sqrt(width))


def part(bit: int | jax.Array, num_slots: int) -> pl.Slice:
  """Returns the slots whose dropout is that bit of the words."""
  rows = num_slots // WORD
  return pl.ds(pl.multiple_of(bit * rows, rows), rows)


def drop(x: jax.Array, words: list, here: pl.Slice, bit: int | jax.Array) -> jax.Array:
  """Returns x [S/32, 128] of the slots of one bit of the words, 0 where dropout says so."""
  return jnp.where((words[0][0, :, here] & lax.shift_left(jnp.int32(1), bit)) != 0, x, 0.0) if words else x


def fold(x: jax.Array) -> jax.Array:
  """Returns the sum [8, 128] of the registers of x [n, 128]."""
  return x.reshape(-1, SUBLANES, LANES).sum(0)


def over_queries(a: jax.Array, b: jax.Array) -> jax.Array:
  """Returns a b^T in float32 [d, S] for a [d, 128], b [S, 128]."""
  return lax.dot_general(a, b, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)


# Which slots answer.

def list_length(top_k: int) -> int:
  """Returns the least power of two that isn't below k."""
  return 1 << (top_k - 1).bit_length()


def score(query: jax.Array, keys, scores, top_k: int) -> tuple[jax.Array, jax.Array]:
  """Fills scores [S, 128] of a query [d, 128]; returns the k-th largest and the largest of them [1, 128]."""
  length = list_length(top_k)

  def take(number, best):
    first = pl.multiple_of(number * length * SUBLANES, length * SUBLANES)
    at = pl.ds(first, length * SUBLANES)
    scores[at] = jnp.dot(keys[0, at], query, preferred_element_type=jnp.float32)
    new = [scores[pl.ds(first + row * SUBLANES, SUBLANES)] for row in range(length)]
    return tuple(sorting_network.best_of(best, sorting_network.descending(new)))

  none = jnp.full((SUBLANES, LANES), -jnp.inf)
  best = lax.fori_loop(0, scores.shape[0] // (length * SUBLANES), take, (none,) * length)
  for shift in (4, 2, 1):                                                      # over the eight rows of a register
    best = sorting_network.best_of(best, [pltpu.roll(row, shift, 0) for row in best])
  return best[top_k - 1][:1], best[0][:1]


def last_tied(scores, threshold: jax.Array, top_k: int) -> jax.Array:
  """Returns int32 [1, 128], the last slot kept of those whose score is the threshold, found bit by bit."""
  index = lax.broadcasted_iota(jnp.int32, scores.shape, 0)
  places = top_k - jnp.where(scores[...] > threshold, 1.0, 0.0).sum(0, keepdims=True)
  num_bits = scores.shape[0].bit_length()

  def set_bit(bit, first):
    """`first` is a number of slots among which no more are tied than there are places."""
    more = first | lax.shift_left(jnp.int32(1), num_bits - 1 - bit)
    tied = jnp.where((scores[...] == threshold) & (index < more), 1.0, 0.0).sum(0, keepdims=True)
    return jnp.where(tied <= places, more, first)
  return lax.fori_loop(0, num_bits, set_bit, jnp.zeros(threshold.shape, jnp.int32)) - 1


def behind(scores: jax.Array, threshold: jax.Array, first: int | jax.Array, last: jax.Array) -> jax.Array:
  """Returns which of the scores [n, 128] of slots from `first` on tie with the threshold behind slot `last`."""
  return (scores == threshold) & (lax.broadcasted_iota(jnp.int32, scores.shape, 0) + first > last)
