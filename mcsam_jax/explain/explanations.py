"""Explains generated reports: where each word looked, which memory slots the images selected, similar training reports.

`explain_reports` goes once over finished reports (see `attention.py`), in batches over the mesh, on all hosts
together. An ensemble is explained by its first model alone; the others may have attended elsewhere.

Shapes: B studies, T tokens, W words, V views, P patches per view, S memory slots.
"""

from collections.abc import Iterable, Iterator, Sequence
import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict
import numpy as np

from input_pipeline.tokenizer import Tokenizer
from mcsam_jax.distributed.mesh import replicated, shard_batches
from mcsam_jax.explain.attention import make_attribution_fn
from mcsam_jax.explain.neighbors import find_neighbors
from mcsam_jax.explain.slots import SlotDescription
from mcsam_jax.inference.generate import GeneratedReport
from mcsam_jax.inference.load import LoadedModel

NUM_SLOTS = 12     # per study


@dataclasses.dataclass
class Explanation:
  """The explanation of one report.

  Attributes:
    words: W words; joined by spaces they are the report.
    log_probs: float32 [W], of each word given those before it; eos is not included.
    maps: uint8 [W, V, P], attention to the patches of the views that are present; the largest of each word is 255.
    slots: (slot, weight) of the memory slots with the most weight, most first; all slots together have weight 1. []
      without memory.
    neighbors: (training record, cosine) of training reports that select the same slots, nearest first; [] without
      memory.
  """
  words: list[str]
  log_probs: np.ndarray
  maps: np.ndarray
  slots: list[tuple[int, float]]
  neighbors: list[tuple[int, float]]


def explain_reports(loaded: LoadedModel, config: ConfigDict, tokenizer: Tokenizer, mesh: Mesh,
                    batches: Iterable[dict], reports: Sequence[GeneratedReport],
                    train_reports: Sequence[str]) -> list[Explanation]:
  """Returns the explanation of each report, in the order of `reports`, on all hosts.

  Args:
    loaded: the model that generated the reports.
    batches: this host's rows of the studies of `reports`, matched by `record`, as from `eval_batches`.
    reports: one per study, the same on all hosts.
    train_reports: one per training record; neighbors are chosen among them. [] gives no neighbors.
  """
  ids = {report.record: report.ids for report in reports}
  attribute = make_attribution_fn(loaded.model, config, tokenizer.eos_id)

  @functools.partial(jax.jit, out_shardings=replicated(mesh))
  def compute_maps(variables: dict, batch: dict):
    maps = attribute(variables, batch, batch["ids"])
    largest = jnp.maximum(maps.patches.max(-1, keepdims=True), jnp.finfo(jnp.float32).tiny)
    patches = jnp.round(255 * maps.patches / largest).astype(jnp.uint8)                        # [B, T, V * P]
    return batch["record"], batch["valid"], batch["view_mask"], maps.log_probs, patches, maps.slots

  def add_reports() -> Iterator[dict]:
    """Yields the batches with the generated reports instead of the references."""
    for batch in batches:
      inputs = {name: array for name, array in batch.items() if name not in ("labels", "epoch")}
      yield inputs | {"tokens": batch["tokens"][:, :1],                                        # bos
                      "ids": np.stack([ids[int(record)] for record in batch["record"]])}

  explanations, profiles = {}, {}
  for batch in shard_batches(mesh, add_reports()):
    records, valid, view_mask, log_probs, maps, slots = jax.device_get(compute_maps(loaded.variables, batch))
    for row in np.flatnonzero(valid):
      record = int(records[row])
      maps_by_view = maps[row].reshape(len(maps[row]), view_mask.shape[1], -1)[:, view_mask[row]]   # [T, V, P]
      explanations[record] = merge_tokens(tokenizer, ids[record], log_probs[row], maps_by_view)
      if slots is not None:
        profiles[record] = slots[row]
  if profiles:
    study_profiles = np.stack([profiles[report.record] for report in reports])                 # [B, S]
    neighbors = find_neighbors(loaded, config, tokenizer, mesh, study_profiles, train_reports)
    for report, profile, study_neighbors in zip(reports, study_profiles, neighbors):
      top_slots = np.argsort(-profile, kind="stable")[:NUM_SLOTS]
      explanations[report.record].slots = [(int(slot), float(profile[slot])) for slot in top_slots]
      explanations[report.record].neighbors = study_neighbors
  return [explanations[report.record] for report in reports]


def explanation_to_json(explanation: Explanation, slots: Sequence[SlotDescription], train_ids: Sequence[str]) -> dict:
  """Returns an explanation for JSON, without its maps; of report texts it has only the generated words.

  Args:
    slots: descriptions of all memory slots.
    train_ids: ids of the training records.
  """
  return {
      "words": explanation.words, "log_probs": [round(float(value), 4) for value in explanation.log_probs],
      "slots": [{"slot": slot, "weight": round(weight, 5), **slots[slot]._asdict()}
                for slot, weight in explanation.slots],
      "neighbors": [{"id": train_ids[record], "cosine": round(cosine, 4)}
                    for record, cosine in explanation.neighbors]}


def merge_tokens(tokenizer: Tokenizer, ids: np.ndarray, log_probs: np.ndarray, maps: np.ndarray) -> Explanation:
  """Returns an explanation by words from values by tokens; it has no slots and no neighbors yet.

  Of a word of several tokens the log-probabilities are summed and the maps averaged.

  Args:
    ids: int32 [T], a generated report.
    log_probs: float32 [T].
    maps: uint8 [T, V, P].
  """
  vocabulary, groups = tokenizer.get_vocabulary(), []         # each group has the positions of one word
  for position, token in enumerate(map(int, ids)):
    if token == tokenizer.eos_id and not (position == 0 and token == tokenizer.bos_id):
      break
    if token in (tokenizer.pad_id, tokenizer.bos_id):
      continue
    if not groups or tokenizer.kind != "sentencepiece" or vocabulary[token].startswith("▁"):
      groups.append([])
    groups[-1].append(position)
  words = [tokenizer.decode([int(ids[position]) for position in group]).strip() for group in groups]
  groups, words = [group for group, word in zip(groups, words) if word], [word for word in words if word]
  word_maps = np.zeros((len(groups), *maps.shape[1:]), np.uint8)
  for word, group in enumerate(groups):
    mean = maps[group].mean(0)                                                                 # [V, P]
    word_maps[word] = np.round(mean * (255 / max(mean.max(), 1)))
  word_log_probs = np.array([log_probs[group].sum() for group in groups], np.float32)
  return Explanation(words, word_log_probs, word_maps, [], [])
