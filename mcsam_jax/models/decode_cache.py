"""The key-value cache of the report decoder: a tree of tokens that all beams of a study share.

A token's keys and values never move once they are written. Reordering beams would mean copying them; instead, each
beam has a mask of the cache slots that hold its own past, and only the masks are reordered. Beams share the slots of
their common prefix, and a slot that no beam sees any more is overwritten. So a study's cache is little larger than one
report.

A cache is a dict:

    layers     one `KeysValues` per decoder layer: keys [G, H, D/H, C], values [G, H, C, D/H]
    position   int32 scalar, the position of the next token, memory tokens included
    beams      bool [B, K, C], the slots that each beam sees; None if beams are never reordered: each then sees all
               slots up to `position`

Shapes: B studies, K beams or samples, N patches, M memory tokens, G trees (B if beams are reordered, else B * K),
C cache slots (memory tokens first), H heads, D width.
"""

from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from mcsam_jax.models.layers import KeysValues


@flax.struct.dataclass
class StudyKV:
  """Keys and values that every token of a study's report sees, one entry per decoder layer."""
  patches: Sequence[KeysValues]          # keys [B, H, D/H, N], mask [B, 1, 1, N]
  memory_tokens: Sequence[KeysValues]    # keys [B, H, D/H, M]

  @property
  def num_memory_tokens(self) -> int:
    return self.memory_tokens[0].values.shape[2]


def init_cache(study_kv: StudyKV, num_beams: int, reorderable: bool = True) -> dict:
  """Returns the cache before the first token; it holds the memory tokens and has no slots for report tokens yet.

  Args:
    study_kv: of B studies.
    num_beams: K.
    reorderable: whether the search reorders the beams of a study (beam search does, sampling doesn't).
  """
  layers, beams = list(study_kv.memory_tokens), None
  if reorderable:
    beams = jnp.ones((layers[0].values.shape[0], num_beams, study_kv.num_memory_tokens), bool)
  else:
    layers = jax.tree.map(lambda leaf: jnp.repeat(leaf, num_beams, axis=0), layers)
  return {"layers": layers, "position": jnp.int32(study_kv.num_memory_tokens), "beams": beams}


def grow_cache(cache: dict, study_kv: StudyKV, num_slots: int) -> dict:
  """Returns the cache with empty slots appended, so that it has `num_slots` besides those of the memory tokens."""
  added = study_kv.num_memory_tokens + num_slots - cache["layers"][0].values.shape[2]

  def pad(kv):
    return KeysValues(jnp.pad(kv.keys, ((0, 0), (0, 0), (0, 0), (0, added))),
                      jnp.pad(kv.values, ((0, 0), (0, 0), (0, added), (0, 0))))
  beams = cache["beams"]
  if beams is not None:
    beams = jnp.pad(beams, ((0, 0), (0, 0), (0, added)))
  return cache | {"layers": [pad(kv) for kv in cache["layers"]], "beams": beams}


def cache_is_full(cache: dict) -> jax.Array:
  """Returns whether some study lacks free slots for one more token of each beam (bool scalar)."""
  beams, num_slots = cache["beams"], cache["layers"][0].values.shape[2]
  if beams is None:
    return cache["position"] >= num_slots
  return jnp.any(num_slots - beams.any(1).sum(-1) < beams.shape[1])


def allocate_slots(cache: dict) -> tuple[jax.Array | None, jax.Array | None, jax.Array]:
  """Returns where the next token of each beam goes, and what each beam sees from there.

  Returns:
    slots: int32 [B, K], a free slot for each beam; None without reordering: the token goes to `position`.
    beams: bool [B, K, C], the updated entry of the cache.
    mask: bool, which slots the queries of each tree see: [B, 1, K, C], or [C] without reordering.
  """
  beams, num_slots = cache["beams"], cache["layers"][0].values.shape[2]
  if beams is None:
    return None, None, jnp.arange(num_slots) <= cache["position"]
  slots = find_free_slots(beams.any(1), beams.shape[1])
  beams |= slots[..., None] == np.arange(num_slots)
  return slots, beams, beams[:, None]


def find_free_slots(used: jax.Array, count: int) -> jax.Array:
  """Returns the indices int32 [B, count] of the first unused slots, for used [B, C]."""
  num_free = jnp.cumsum(~used, axis=-1)                          # free slots up to and including each slot
  return jnp.argmax(num_free[:, None] == np.arange(1, count + 1)[:, None], axis=-1)


def write_slots(kv: KeysValues, new: KeysValues, position: jax.Array, slots: jax.Array | None) -> KeysValues:
  """Returns the C slots of `kv` with those at `slots` [G, K], or the one at `position`, overwritten by `new`."""
  if slots is None:
    return KeysValues(jax.lax.dynamic_update_slice_in_dim(kv.keys, new.keys, position, axis=3),
                      jax.lax.dynamic_update_slice_in_dim(kv.values, new.values, position, axis=2))
  known = {"mode": "promise_in_bounds", "unique_indices": True}
  return KeysValues(
      jax.vmap(lambda old, new, slots: old.at[:, :, slots].set(new, **known))(kv.keys, new.keys, slots),
      jax.vmap(lambda old, new, slots: old.at[:, slots].set(new, **known))(kv.values, new.values, slots))
