"""The decoding loop that greedy search, beam search and sampling share, and the rules for which tokens may follow.

A search knows the model only as a function that reads one token per beam and returns the logits of the next one:

    decode_step(tokens int32 [B, K], cache) -> (logits [B, K, vocabulary], cache)

The cache is a dict. Its entry "beams" is a pytree with leaves [B, K, ...], which beam search reorders when one beam
replaces another. All other entries (the position, and the keys and values that the beams refer to) are not reordered.
Values that are constant during a search, such as the keys and values of the image patches, are closed over by
`decode_step`.

Attention reads the whole cache at every step, including its empty part. With a `CacheResizer` the loop therefore
starts with a small cache and grows it whenever it is full. Without one the cache has its full size from the start. A
cache slot holds one token of one beam, or of several beams that share it, so K * T cache slots are always enough.

Each search carries its state through the loop as a named tuple (`GreedyState`, `BeamState`, `SamplingState`). All of
them have `cur_index`, the number of tokens generated so far, and `last_tokens`, the input of the next step.

Shapes: B studies, K beams or samples, T tokens.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Cache = dict[str, Any]
DecodeStep = Callable[[jax.Array, Cache], tuple[jax.Array, Cache]]

CACHE_CHUNK = 32      # slots per growth step up to the report length; each size is compiled, so there should be few


class CacheResizer(NamedTuple):
  """How the loop grows the cache."""
  grow: Callable[[Cache, int], Cache]       # (cache, number of cache slots) -> cache
  is_full: Callable[[Cache], jax.Array]     # cache -> bool []


def while_loop_with_growing_cache(cond_fn: Callable[[Any], jax.Array], body_fn: Callable[[Any], Any], state: Any,
                                  cache_resizer: CacheResizer | None, max_length: int, num_beams: int = 1) -> Any:
  """Returns the final state of `while cond_fn(state): state = body_fn(state)`, with its cache removed.

  The loop is compiled once for each size of the cache (see `cache_schedule`): it leaves `jax.lax.while_loop` when the
  cache is full and continues with a larger one.

  Args:
    cond_fn: whether to continue; true at most `max_length` times.
    body_fn: one decoding step.
    state: a named tuple with a field `cache`.
    cache_resizer: grows the cache; None: the cache already has its full size.
    max_length: T.
    num_beams: beams that share the cache; each needs at most `max_length` cache slots.
  """
  if cache_resizer is None:
    return jax.lax.while_loop(cond_fn, body_fn, state)._replace(cache=None)

  def run(state, sizes):
    state = state._replace(cache=cache_resizer.grow(state.cache, sizes[0]))
    state = jax.lax.while_loop(lambda state: cond_fn(state) & ~cache_resizer.is_full(state.cache), body_fn, state)
    if len(sizes) == 1:
      return state._replace(cache=None)
    return jax.lax.cond(cond_fn(state), lambda state: run(state, sizes[1:]), lambda state: state._replace(cache=None),
                        state)
  return run(state, cache_schedule(max_length, max_length * num_beams))


def cache_schedule(max_length: int, max_slots: int) -> list[int]:
  """Returns the increasing sizes of a cache; the last is `max_slots`.

  Beams of a study differ mostly in their last tokens. So a cache for `max_length` tokens, and half a CACHE_CHUNK more
  for where the beams differ, is usually enough: up to that size it grows in equal steps, beyond it doubles.
  """
  num_sizes = -(-max_length // CACHE_CHUNK)
  sizes = [-(-max_length * index // num_sizes) for index in range(1, num_sizes + 1)]
  if max_slots > max_length:
    sizes = [size + CACHE_CHUNK // 2 for size in sizes]
  while sizes[-1] * 2 < max_slots:
    sizes.append(sizes[-1] * 2)
  return [size for size in sizes if size < max_slots] + [max_slots]


def next_token_log_probs(logits: jax.Array, cur_index: jax.Array | int, *, bos_id: int, eos_id: int, pad_id: int,
                         min_length: int) -> jax.Array:
  """Returns the float32 log-probabilities [..., vocabulary] of the next token, -inf where it is forbidden.

  Eos is forbidden before `min_length` tokens are generated; bos and pad are forbidden unless they share the id of eos.
  The softmax is over the whole vocabulary, in float32: the allowed tokens keep the model's own probabilities.
  """
  log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
  token = jnp.arange(logits.shape[-1])
  forbidden = (token == eos_id) & (cur_index < min_length)
  for special_id in (bos_id, pad_id):
    if special_id != eos_id:
      forbidden |= token == special_id
  return jnp.where(forbidden, -jnp.inf, log_probs)


def ban_repeated_ngrams(log_probs: jax.Array, ids: jax.Array, cur_index: jax.Array, ngram_size: int) -> jax.Array:
  """Returns the log-probabilities [..., vocabulary] with -inf for each token that would repeat an n-gram.

  A token is banned if it would complete an n-gram that the report already contains (Paulus et al., ICLR 2018).

  Args:
    log_probs: float32 [..., vocabulary] of the next token.
    ids: int32 [..., T], the tokens generated so far: the first `cur_index` of them count.
    cur_index: int32 [].
    ngram_size: n; 0 bans nothing.
  """
  length = ids.shape[-1]
  if not 0 < ngram_size <= length:
    return log_probs
  num_starts = length - ngram_size + 1
  prefix_start = cur_index - ngram_size + 1                           # index of the first of the last n - 1 tokens
  # matches[..., i]: the n-gram at i is complete and begins with the last n - 1 tokens.
  matches = jnp.broadcast_to(jnp.arange(num_starts) < prefix_start, ids.shape[:-1] + (num_starts,))
  for offset in range(ngram_size - 1):
    prefix_token = jax.lax.dynamic_index_in_dim(ids, jnp.maximum(prefix_start, 0) + offset, axis=-1)   # [..., 1]
    matches &= ids[..., offset:offset + num_starts] == prefix_token
  out_of_range = log_probs.shape[-1]
  banned = jnp.where(matches, ids[..., ngram_size - 1:], out_of_range)

  def ban(log_probs, tokens):
    return log_probs.at[tokens].set(-jnp.inf, mode="drop")
  for _ in ids.shape[:-1]:   # one vmap per leading axis
    ban = jax.vmap(ban)
  return ban(log_probs, banned)
