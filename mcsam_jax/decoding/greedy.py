"""Greedy search: at every step the likeliest word that may stand there, until the report ends.

A search knows the model only as a function that reads one token and remembers the ones before:

    step(ids int32 [B, K], cache) -> (logits [B, K, vocabulary], cache)

Every leaf of the cache with two or more axes begins with [B, K]; smaller ones (the position) belong to all
beams together. What never changes during a search (the keys of the patches) is closed over by `step`.
K is 1 here. `next_token_log_probs` is where every search, this one or another, asks what may come next.

Shapes: B studies, K beams, T tokens.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Cache = Any
Step = Callable[[jax.Array, Cache], tuple[jax.Array, Cache]]


class GreedyResult(NamedTuple):
  """`ids` hold the tokens after bos, with eos where it was reached and pad behind it."""
  ids: jax.Array        # int32 [B, T]
  log_probs: jax.Array  # float32 [B], summed over the tokens, eos included


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


def without_repeats(log_probs: jax.Array, ids: jax.Array, num_written: jax.Array, size: int) -> jax.Array:
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
                  pad_id: int, min_length: int = 0, block_ngrams: int = 0) -> GreedyResult:
  """Writes one report a study, of at most `max_length` tokens (T), eos included.

  `block_ngrams`: no run of so many tokens stands twice in a report; 0: anything may.
  """

  def unfinished(state):
    num_written, _, _, _, ended, _ = state
    return (num_written < max_length) & ~jnp.all(ended)

  def write_one(state):
    num_written, last, ids, log_probs, ended, cache = state
    logits, cache = step(last[:, None], cache)
    options = next_token_log_probs(logits[:, 0], num_written, bos_id=bos_id, eos_id=eos_id, pad_id=pad_id,
                                   min_length=min_length)                            # [B, vocabulary]
    options = without_repeats(options, ids, num_written, block_ngrams)
    chosen = jnp.argmax(options, axis=-1).astype(jnp.int32)
    log_probs += jnp.where(ended, 0.0, jnp.max(options, axis=-1))
    ids = ids.at[:, num_written].set(jnp.where(ended, pad_id, chosen))
    return num_written + 1, chosen, ids, log_probs, ended | (chosen == eos_id), cache

  start = (jnp.int32(0), jnp.full([batch_size], bos_id, jnp.int32),
           jnp.full([batch_size, max_length], pad_id, jnp.int32),
           jnp.zeros([batch_size], jnp.float32), jnp.zeros([batch_size], bool), cache)
  _, _, ids, log_probs, _, _ = jax.lax.while_loop(unfinished, write_one, start)
  return GreedyResult(ids, log_probs)
