"""Why the reports of a split say what they say: each word's place in the images, and what the memory recalled.

`explain_reports` goes once over finished reports (see `explain.py`), in batches on the mesh, all hosts together. An
ensemble is explained by its first member: the others may have looked elsewhere.

Slots that answered. A study's slots are those whose answers to its patches weigh most, in the mean over patches and
heads. A slot is told by the words of the topic that it started from, and by the words of the vocabulary to which it
answers most today: training moves slots, and only the latter say what it moved them to.

Neighbours. Patches and words ask one memory, so a training report can be compared with a study by the slots alone:
its profile is the mean weight of each slot over its words, as the decoder reads them, rare words counting more (by
inverse document frequency); a study's is that over its patches. Plain tissue and stock phrases ask the same slots
everywhere, so the mean profile of train is taken from the reports', that of the split from the studies', and the
cosine of what is left says whether both recall the same beyond the usual. Training reports with the same text count
once. No label and no reference report is looked at. (Of the ways that were tried on val phantoms this one's neighbours
shared the most findings with the study: F1 .29, without the means .22, without the frequencies .28, at random .17; the
report of the image that looks most alike has .42.)

Shapes: B studies, T tokens, W words, V views, P patches a view, S slots, R training reports.
"""

from collections.abc import Iterable, Iterator, Sequence
import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from input_pipeline.tokenizer import Tokenizer
from mcsam_jax.distributed.mesh import local_rows, replicated, shard_batches
from mcsam_jax.explain.attention import make_explain
from mcsam_jax.inference.generate import GeneratedReport
from mcsam_jax.inference.load import LoadedModel
from mcsam_jax.memory_init.initial_memory import InitialMemory
from mcsam_jax.models.inputs import token_mask
from mcsam_jax.models.mcsam import MCSAM

NUM_SLOTS, NUM_NEIGHBOURS, NUM_WORDS = 12, 3, 6     # shown of a study, a study, a slot
SAMPLE = 2048                                       # training reports that the usual profile is measured on
BLOCK = 2048                                        # training reports that are compared at once


@dataclasses.dataclass
class Why:
  """Of one report."""
  words: list[str]                      # joined by blanks they are the report
  log_probs: np.ndarray                 # float32 [W], of each word given those before it, the end not included
  maps: np.ndarray                      # uint8 [W, V, P], attention in shares of the word's largest; views that exist
  slots: list[tuple[int, float]]        # that answered most, with their weight (all together have 1); [] without memory
  neighbours: list[tuple[int, float]]   # training records that recall the same, with their cosine; [] without memory


class Slot(NamedTuple):
  """What a slot of the memory stands for."""
  topic: int | None                     # that it started from, None where memory started at random
  began: list[str]                      # words of that topic
  answers: list[str]                    # words that it answers most now


def explain_reports(member: LoadedModel, config: ConfigDict, tokenizer: Tokenizer, mesh: jax.sharding.Mesh,
                    batches: Iterable[dict], written: Sequence[GeneratedReport], train_reports: Sequence[str]) -> list[Why]:
  """Returns why each report was written, in the order of `written`; all hosts get all of it.

  Args:
    member: the model that is asked.
    batches: this host's rows of the studies that `written` belongs to, by their `record` (as `eval_batches` gives).
    written: one report a study, the same on all hosts.
    train_reports: as they were written, one a record; the neighbours are looked for among them.
  """
  ids = {report.record: report.ids for report in written}
  explain = make_explain(member.model, config, tokenizer.eos_id)

  @functools.partial(jax.jit, out_shardings=replicated(mesh))
  def compressed(variables: dict, batch: dict):
    found = explain(variables, batch, batch["ids"])
    largest = jnp.maximum(found.patches.max(-1, keepdims=True), jnp.finfo(jnp.float32).tiny)
    maps = jnp.round(255 * found.patches / largest).astype(jnp.uint8)                          # [B, T, V * P]
    return batch["record"], batch["valid"], batch["view_mask"], found.log_probs, maps, found.slots

  def with_reports() -> Iterator[dict]:
    for batch in batches:
      kept = {name: array for name, array in batch.items() if name not in ("labels", "epoch")}
      yield kept | {"tokens": batch["tokens"][:, :1],                                          # bos; no reference
                    "ids": np.stack([ids[int(record)] for record in batch["record"]])}

  whys, profiles = {}, {}
  for batch in shard_batches(mesh, with_reports()):
    records, valid, views, log_probs, maps, slots = jax.device_get(compressed(member.variables, batch))
    for row in np.flatnonzero(valid):
      record = int(records[row])
      by_view = maps[row].reshape(len(maps[row]), views.shape[1], -1)[:, views[row]]           # [T, V, P]
      whys[record] = _by_words(tokenizer, ids[record], log_probs[row], by_view)
      if slots is not None:
        profiles[record] = slots[row]
  if profiles:
    profiles = np.stack([profiles[report.record] for report in written])                       # [B, S]
    neighbours = _neighbours(member, config, tokenizer, mesh, profiles, train_reports)
    for report, profile, near in zip(written, profiles, neighbours):
      most = np.argsort(-profile, kind="stable")[:NUM_SLOTS]
      whys[report.record].slots = [(int(slot), float(profile[slot])) for slot in most]
      whys[report.record].neighbours = near
  return [whys[report.record] for report in written]


def describe_slots(member: LoadedModel, config: ConfigDict, tokenizer: Tokenizer,
                   initial_memory: InitialMemory | None, mesh: jax.sharding.Mesh) -> list[Slot]:
  """Returns what each of the S slots stands for; [] without memory.

  Args:
    initial_memory: that the memory started from; None where it started at random.
  """
  if not config.model.use_memory:
    return []
  weights = jax.jit(functools.partial(_vocabulary_weights, member.model, config), out_shardings=replicated(mesh))
  table = np.array(weights(member.variables))                                                  # [vocabulary, S]
  table[[tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id]] = 0
  words = [word.strip("▁") for word in tokenizer.get_vocabulary()]
  table[[index for index, word in enumerate(words) if not any(map(str.isalnum, word))]] = 0
  most = np.argsort(-table, axis=0, kind="stable")[:NUM_WORDS].T                               # [S, 6]
  slots = []
  for slot, asking in enumerate(most):
    topic = None if initial_memory is None or initial_memory.kind == "random" else int(initial_memory.slot_topics[slot])
    slots.append(Slot(topic, [] if topic is None else list(initial_memory.topic_words[topic][:NUM_WORDS]),
                      [words[word] for word in asking if table[word, slot] > 0]))
  return slots


def in_numbers(why: Why, slots: Sequence[Slot], train_ids: Sequence[str]) -> dict:
  """Returns a report's `Why` for JSON, without its maps: no text of a report but the generated one's words.

  Args:
    slots: what each slot of the memory stands for.
    train_ids: of the training records; their reports are not told.
  """
  return {
      "words": why.words, "log_probs": [round(float(value), 4) for value in why.log_probs],
      "slots": [{"slot": slot, "weight": round(weight, 5), "topic": slots[slot].topic, "topic_words": slots[slot].began,
                 "answers": slots[slot].answers} for slot, weight in why.slots],
      "neighbours": [{"id": train_ids[record], "cosine": round(cosine, 4)} for record, cosine in why.neighbours]}


def _by_words(tokenizer: Tokenizer, ids: np.ndarray, log_probs: np.ndarray, maps: np.ndarray) -> Why:
  """Returns log_probs [T] and maps [T, V, P] of a report's tokens by its words: of several pieces sum, and mean."""
  pieces, groups = tokenizer.get_vocabulary(), []
  for place, token in enumerate(map(int, ids)):
    if token == tokenizer.eos_id and not (place == 0 and token == tokenizer.bos_id):
      break
    if token in (tokenizer.pad_id, tokenizer.bos_id):
      continue
    if not groups or tokenizer.kind == "word" or pieces[token].startswith("▁"):
      groups.append([])
    groups[-1].append(place)
  words = [tokenizer.decode([int(ids[place]) for place in group]).strip() for group in groups]
  groups, words = [group for group, word in zip(groups, words) if word], [word for word in words if word]
  looks = np.zeros((len(groups), *maps.shape[1:]), np.uint8)
  for look, group in zip(looks, groups):
    mean = maps[group].mean(0)                                                                 # [V, P]
    look[...] = np.round(mean * (255 / max(mean.max(), 1)))
  return Why(words, np.array([log_probs[group].sum() for group in groups], np.float32), looks, [], [])


def _neighbours(member: LoadedModel, config: ConfigDict, tokenizer: Tokenizer, mesh: jax.sharding.Mesh,
                profiles: np.ndarray, train_reports: Sequence[str]) -> list[list[tuple[int, float]]]:
  """Returns for each study (profiles [B, S]) the training records that recall the same, nearest first."""
  if not train_reports:                             # of one's own images, where the records aren't at hand
    return [[] for _ in profiles]
  first = {}                                        # of each text, its first record
  for record, report in enumerate(train_reports):
    first.setdefault(tokenizer.clean(report), record)
  records = np.array(list(first.values()))
  sample = records[np.sort(np.random.default_rng(0).permutation(len(records))[:SAMPLE])]
  weights = rarity(tokenizer, [train_reports[record] for record in sample])
  read = lambda chosen: _report_profiles(member, config, tokenizer, mesh, [train_reports[i] for i in chosen], weights)
  usual = np.concatenate(list(read(sample))).mean(0)                                           # [S]
  studies = _unit(profiles - profiles.mean(0))
  best = np.full((len(studies), NUM_NEIGHBOURS), -np.inf, np.float32)
  who = np.zeros((len(studies), NUM_NEIGHBOURS), np.int64)

  def compare(block: list[np.ndarray], start: int):
    """Lets the reports of a block, which begin with the `start`-th, take the places of those less near."""
    cosines = studies @ _unit(np.concatenate(block) - usual).T                                 # [B, block]
    number = np.broadcast_to(records[start:start + cosines.shape[1]], cosines.shape)
    cosines, number = np.concatenate([best, cosines], 1), np.concatenate([who, number], 1)
    nearest = np.argsort(-cosines, axis=1, kind="stable")[:, :NUM_NEIGHBOURS]
    best[...], who[...] = np.take_along_axis(cosines, nearest, 1), np.take_along_axis(number, nearest, 1)

  block, start, held = [], 0, 0
  for weights in read(records):                                                                # each [b, S]
    block.append(weights)
    held += len(weights)
    if held >= BLOCK:
      compare(block, start)
      block, start, held = [], start + held, 0
  if block:
    compare(block, start)
  return [[(int(record), float(cosine)) for record, cosine in zip(*row) if np.isfinite(cosine)]
          for row in zip(who, best)]


def rarity(tokenizer: Tokenizer, reports: Sequence[str]) -> np.ndarray:
  """Returns log(R / number of R reports that hold a word) of each word, float32 [vocabulary]; at least 0.01."""
  holding = np.zeros(tokenizer.vocab_size)
  for report in reports:
    holding[np.unique(tokenizer.encode(report)).astype(int)] += 1
  return np.maximum(np.log(len(reports) / np.maximum(holding, 1)), 0.01).astype(np.float32)


def _unit(rows: np.ndarray) -> np.ndarray:
  return (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)).astype(np.float32)


def _report_profiles(member: LoadedModel, config: ConfigDict, tokenizer: Tokenizer, mesh: jax.sharding.Mesh,
                     reports: Sequence[str], word_weights: np.ndarray) -> Iterator[np.ndarray]:
  """Yields the profiles of reports, float32 [b, S], a batch at a time: how much each slot answers their words.

  `word_weights` [vocabulary]: what each word counts.
  """
  model, variables, size = member.model, member.variables, config.decode.batch_size
  rows = local_rows(mesh, size)
  by_word = config.memory.query == "word"

  @functools.partial(jax.jit, out_shardings=replicated(mesh))
  def profile(variables: dict, table: jax.Array | None, batch: dict) -> jax.Array:
    tokens = batch["tokens"]
    words, mask = tokens[:, 1:-1], token_mask(tokens, tokenizer.eos_id)[:, 1:]                 # without bos and eos
    if by_word:
      weights = table[words]                                                                   # [b, T, S]
    else:
      memory = model.apply(variables, method="project_memory")
      _, state = model.apply(variables, words, jnp.arange(1, words.shape[1] + 1), None, None, memory, False,
                             method="embed_tokens", mutable=["intermediates"])
      weights = state["intermediates"]["memory_bank"]["slot_weights"][0].mean(1)               # of [b, H, T, S]
    shares = mask * jnp.asarray(word_weights)[words]
    return jnp.einsum("bts,bt->bs", weights, shares / jnp.maximum(shares.sum(-1, keepdims=True), 1e-6))

  table = None
  if by_word:
    table = jax.jit(functools.partial(_vocabulary_weights, model, config), out_shardings=replicated(mesh))(variables)

  def batches() -> Iterator[dict]:
    for start in range(0, len(reports), size):
      mine = [reports[min(start + row, len(reports) - 1)] for row in rows]
      yield {"tokens": np.stack([tokenizer.encode_for_training(report, config.tokenizer.max_length)
                                 for report in mine])}

  for number, batch in enumerate(shard_batches(mesh, batches())):
    yield np.asarray(profile(variables, table, batch))[:len(reports) - number * size]


def _vocabulary_weights(model: MCSAM, config: ConfigDict, variables: dict) -> jax.Array:
  """Returns how much each slot answers each word, mean over heads, float32 [vocabulary, S].

  Where queries hold positions the words are asked as if each stood first.
  """
  memory = model.apply(variables, method="project_memory")
  if config.memory.query == "word":
    _, state = model.apply(variables, memory, False, method="vocabulary_responses", mutable=["intermediates"])
    return state["intermediates"]["memory_bank"]["slot_weights"][0].mean(0)                    # of [H, vocabulary, S]
  words = jnp.arange(model.vocab_size)[None]
  _, state = model.apply(variables, words, jnp.ones(model.vocab_size, jnp.int32), None, None, memory, False,
                         method="embed_tokens", mutable=["intermediates"])
  return state["intermediates"]["memory_bank"]["slot_weights"][0].mean(1)[0]                  # of [1, H, vocabulary, S]
