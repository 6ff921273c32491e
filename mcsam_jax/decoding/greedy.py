"""Greedy search: at every step the likeliest word that may stand there, until the report ends.

A search knows the model only as a function that reads one token and remembers the ones before:

    step(ids int32 [B, K], cache) -> (logits [B, K, vocabulary], cache)

The cache is a dict. When beams of a study change places, each takes along its part of what stands under "beams",
whose leaves are [B, K, ...]; all the rest (the position, and what is found through what the beams carry) stays as
it is. What never changes during a search (the keys of the patches) is closed over by `step`.

A cache is read whole at every step, however little is written in it. With `room`, two functions

    grow(cache, nodes) -> cache      full(cache) -> bool scalar

a search starts with a small cache and widens it when it is full (`while_loop_with_growing_cache`); without, the cache has all room from
the start. A node is one token of one beam or of several that share it, so K * T nodes are always enough.

K is 1 here. `next_token_log_probs` is where every search, this one or another, asks what may come next.

Shapes: B studies, K beams, T tokens.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Cache = dict[str, Any]
Step = Callable[[jax.Array, Cache], tuple[jax.Array, Cache]]

CACHE_CHUNK = 32      # nodes that a cache grows by, at first; each stage is compiled, so they should be few


class CacheResizer(NamedTuple):
  grow: Callable[[Cache, int], Cache]
  full: Callable[[Cache], jax.Array]


class GreedyResult(NamedTuple):
  """`ids` hold the tokens after bos, with eos where it was reached and pad behind it."""
  ids: jax.Array        # int32 [B, T]
  log_probs: jax.Array  # float32 [B], summed over the tokens, eos included


class _Search(NamedTuple):
  """What goes round the loop."""
  num_written: jax.Array   # int32 []
  last: jax.Array          # int32 [B], the token that the next step reads
  ids: jax.Array           # int32 [B, T]
  log_probs: jax.Array     # float32 [B]
  ended: jax.Array         # bool [B]
  cache: Cache


def while_loop_with_growing_cache(unfinished, body, search, room: CacheResizer | None, max_length: int, num_beams: int = 1):
  """Returns the last state of `while unfinished(search): search = body(search)`, without its cache.

  Args:
    unfinished: true at most `max_length` times.
    search: a named tuple with a `cache`, which grows on the way.
    num_beams: that share the cache; each may need up to `max_length` nodes of its own.
  """
  if room is None:
    return jax.lax.while_loop(unfinished, body, search)._replace(cache=None)

  def run(search, sizes):
    search = search._replace(cache=room.grow(search.cache, sizes[0]))
    search = jax.lax.while_loop(lambda search: unfinished(search) & ~room.full(search.cache), body, search)
    if len(sizes) == 1:
      return search._replace(cache=None)
    return jax.lax.cond(unfinished(search), lambda search: run(search, sizes[1:]),
                        lambda search: search._replace(cache=None), search)
  return run(search, cache_schedule(max_length, max_length * num_beams))


def cache_schedule(usual: int, most: int) -> list[int]:
  """Returns the sizes of a cache one after the other, the last being `most` nodes.

  Beams mostly share all but their last words, so `usual` nodes (the tokens of a report) and half a STAGE for where
  they differ are mostly enough: up to there sizes grow in equal steps, and then they double.
  """
  steps = -(-usual // CACHE_CHUNK)
  sizes = [-(-usual * step // steps) for step in range(1, steps + 1)]
  if most > usual:
    sizes = [size + CACHE_CHUNK // 2 for size in sizes]
  while sizes[-1] * 2 < most:
    sizes.append(sizes[-1] * 2)
  return [size for size in sizes if size < most] + [most]


def next_token_log_probs(logits, num_written, *, bos_id, eos_id, pad_id, min_length) -> jax.Array:
  """Returns the float32 log-probabilities [..., vocabulary] of the next token, -inf where it is forbidden.

  Forbidden are eos before `min_length` tokens are written, and bos and pad unless they share eos's id.
  They are normalised over the whole vocabulary before anything is forbidden, so that what remains is what
  the model itself says, whatever the compute type of its logits.
  """
  log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
  token = jnp.arange(logits.shape[-1])
  forbidden = (token == eos_id) & (num_written < min_length)
  for special_id in (bos_id, pad_id):
    if special_id != eos_id:
      forbidden |= token == special_id
  return jnp.where(forbidden, -jnp.inf, log_probs)


def ban_repeated_ngrams(log_probs: jax.Array, ids: jax.Array, num_written: jax.Array, size: int) -> jax.Array:
  """Returns the log-probabilities [..., vocabulary] with -inf for each token that would repeat an n-gram.

  Blocked is what would complete a run of `size` tokens that already stands in the report (Paulus et al., ICLR 2018);
  0 blocks nothing.

  Args:
    ids: int32 [..., T], of which the first `num_written` tokens are written.
  """
  length = ids.shape[-1]
  if not 0 < size <= length:
    return log_probs
  num_starts = length - size + 1
  written = num_written - size + 1                                    # the last size - 1 tokens begin here
  repeats = jnp.broadcast_to(jnp.arange(num_starts) < written, ids.shape[:-1] + (num_starts,))   # whole ones only
  for place in range(size - 1):
    latest = jax.lax.dynamic_index_in_dim(ids, jnp.maximum(written, 0) + place, axis=-1)         # [..., 1]
    repeats &= ids[..., place:place + num_starts] == latest
  blocked = jnp.where(repeats, ids[..., size - 1:], log_probs.shape[-1])   # no token where nothing repeats

  def block(row, tokens):
    return row.at[tokens].set(-jnp.inf, mode="drop")
  for _ in ids.shape[:-1]:
    block = jax.vmap(block)
  return block(log_probs, blocked)


def greedy_search(step: Step, cache: Cache, *, batch_size: int, max_length: int, bos_id: int, eos_id: int,
                  pad_id: int, min_length: int = 0, no_repeat_ngram_size: int = 0, room: CacheResizer | None = None) -> GreedyResult:
  """Writes one report a study, of at most `max_length` tokens (T), eos included.

  `no_repeat_ngram_size`: no run of so many tokens stands twice in a report; 0: anything may.
  """
  def unfinished(search):
    return (search.num_written < max_length) & ~jnp.all(search.ended)

  def write_one(search):
    logits, cache = step(search.last[:, None], search.cache)
    options = next_token_log_probs(logits[:, 0], search.num_written, bos_id=bos_id, eos_id=eos_id, pad_id=pad_id,
                                   min_length=min_length)                            # [B, vocabulary]
    options = ban_repeated_ngrams(options, search.ids, search.num_written, no_repeat_ngram_size)
    chosen = jnp.argmax(options, axis=-1).astype(jnp.int32)
    log_probs = search.log_probs + jnp.where(search.ended, 0.0, jnp.max(options, axis=-1))
    ids = search.ids.at[:, search.num_written].set(jnp.where(search.ended, pad_id, chosen))
    return _Search(search.num_written + 1, chosen, ids, log_probs, search.ended | (chosen == eos_id), cache)

  start = _Search(jnp.int32(0), jnp.full([batch_size], bos_id, jnp.int32),
                  jnp.full([batch_size, max_length], pad_id, jnp.int32),
                  jnp.zeros([batch_size], jnp.float32), jnp.zeros([batch_size], bool), cache)
  search = while_loop_with_growing_cache(unfinished, write_one, start, room, max_length)
  return GreedyResult(search.ids, search.log_probs)
