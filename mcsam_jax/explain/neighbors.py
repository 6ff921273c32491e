"""Finds the training reports that select the same memory slots as the images of a study.

Patches and tokens query the same memory, so a study can be compared with a training report by memory slots alone. The
profile of a report is the mean weight of each slot over its tokens, as the decoder reads them, weighted by inverse
document frequency; that of a study is the mean over its patches. Plain tissue and stock phrases select the same slots
everywhere, so the mean profile of the training reports is subtracted from each report's, and the mean of the studies
from each study's. The cosine of what is left is the similarity.

Training reports with the same text count once. No label and no reference report is used. (Of the variants tried on
phantoms of the val split, the neighbors of this one share the most findings with the study: F1 .29; without
subtracting means .22, without document frequencies .28, random reports .17. The report of the most similar image has
.42.)

Shapes: B studies, T tokens, S memory slots, R training reports, H heads.
"""

from collections.abc import Iterator, Sequence
import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict
import numpy as np

from input_pipeline.tokenizer import Tokenizer
from mcsam_jax.distributed.mesh import local_rows, replicated, shard_batches
from mcsam_jax.explain.slots import compute_vocabulary_weights
from mcsam_jax.inference.load import LoadedModel
from mcsam_jax.models.inputs import token_mask

NUM_NEIGHBORS = 3          # per study
SAMPLE_SIZE = 2048         # training reports from which the mean profile and document frequencies are computed
BLOCK_SIZE = 2048          # training reports compared at once
MIN_IDF = 0.01


def find_neighbors(loaded: LoadedModel, config: ConfigDict, tokenizer: Tokenizer, mesh: Mesh,
                   study_profiles: np.ndarray, train_reports: Sequence[str]) -> list[list[tuple[int, float]]]:
  """Returns the nearest training records of each study, with their cosines, nearest first.

  Args:
    study_profiles: float32 [B, S].
    train_reports: one report per training record; [] gives no neighbors.
  """
  if not train_reports:
    return [[] for _ in study_profiles]
  first_record = {}                                 # text -> first record with that text
  for record, report in enumerate(train_reports):
    first_record.setdefault(tokenizer.clean(report), record)
  records = np.array(list(first_record.values()))
  sample = records[np.sort(np.random.default_rng(0).permutation(len(records))[:SAMPLE_SIZE])]
  idf = compute_idf(tokenizer, [train_reports[int(record)] for record in sample])

  def compute_profiles(chosen: np.ndarray) -> Iterator[np.ndarray]:
    reports = [train_reports[int(record)] for record in chosen]
    return compute_report_profiles(loaded, config, tokenizer, mesh, reports, idf)

  mean_profile = np.concatenate(list(compute_profiles(sample))).mean(0)                        # [S]
  studies = _l2_normalize(study_profiles - study_profiles.mean(0))
  best_cosines = np.full((len(studies), NUM_NEIGHBORS), -np.inf, np.float32)
  best_records = np.zeros((len(studies), NUM_NEIGHBORS), np.int64)

  def compare_block(profiles: list[np.ndarray], start: int) -> None:
    """Merges the reports of a block, which starts at index `start` of `records`, into the best ones so far."""
    cosines = studies @ _l2_normalize(np.concatenate(profiles) - mean_profile).T               # [B, block]
    block_records = np.broadcast_to(records[start:start + cosines.shape[1]], cosines.shape)
    cosines = np.concatenate([best_cosines, cosines], 1)
    merged_records = np.concatenate([best_records, block_records], 1)
    nearest = np.argsort(-cosines, axis=1, kind="stable")[:, :NUM_NEIGHBORS]
    best_cosines[...] = np.take_along_axis(cosines, nearest, 1)
    best_records[...] = np.take_along_axis(merged_records, nearest, 1)

  block, start, num_reports = [], 0, 0
  for profiles in compute_profiles(records):                                                   # each [b, S]
    block.append(profiles)
    num_reports += len(profiles)
    if num_reports >= BLOCK_SIZE:
      compare_block(block, start)
      block, start, num_reports = [], start + num_reports, 0
  if block:
    compare_block(block, start)
  return [[(int(record), float(cosine)) for record, cosine in zip(*row) if np.isfinite(cosine)]
          for row in zip(best_records, best_cosines)]


def compute_idf(tokenizer: Tokenizer, reports: Sequence[str]) -> np.ndarray:
  """Returns log(number of reports / number of reports with the token), float32 [vocabulary]; at least MIN_IDF."""
  frequencies = np.zeros(tokenizer.vocab_size)
  for report in reports:
    frequencies[np.unique(tokenizer.encode(report)).astype(int)] += 1
  return np.maximum(np.log(len(reports) / np.maximum(frequencies, 1)), MIN_IDF).astype(np.float32)


def compute_report_profiles(loaded: LoadedModel, config: ConfigDict, tokenizer: Tokenizer, mesh: Mesh,
                            reports: Sequence[str], token_weights: np.ndarray) -> Iterator[np.ndarray]:
  """Yields the profiles of reports, float32 [b, S], one batch at a time.

  Args:
    token_weights: float32 [vocabulary], the weight of each token in the mean.
  """
  model, variables, batch_size = loaded.model, loaded.variables, config.decode.batch_size
  rows = local_rows(mesh, batch_size)
  use_table = config.memory.query == "word"         # then the slots of a token do not depend on its position

  @functools.partial(jax.jit, out_shardings=replicated(mesh))
  def compute_batch(variables: dict, table: jax.Array | None, batch: dict) -> jax.Array:
    tokens = batch["tokens"]
    words, mask = tokens[:, 1:-1], token_mask(tokens, tokenizer.eos_id)[:, 1:]                 # without bos and eos
    if table is not None:
      slot_weights = table[words]                                                              # [b, T, S]
    else:
      memory = model.apply(variables, method="project_memory")
      _, state = cast(tuple[Any, dict[str, Any]], model.apply(
          variables, words, jnp.arange(1, words.shape[1] + 1), None, None, memory, False, method="embed_tokens",
          mutable=["intermediates"]))
      slot_weights = state["intermediates"]["memory_bank"]["slot_weights"][0].mean(1)          # from [b, H, T, S]
    weights = mask * jnp.asarray(token_weights)[words]
    return jnp.einsum("bts,bt->bs", slot_weights, weights / jnp.maximum(weights.sum(-1, keepdims=True), 1e-6))

  table = None
  if use_table:
    compute_table = functools.partial(compute_vocabulary_weights, model, config)
    table = jax.jit(compute_table, out_shardings=replicated(mesh))(variables)

  def make_batches() -> Iterator[dict]:
    for start in range(0, len(reports), batch_size):
      local_reports = [reports[min(start + int(row), len(reports) - 1)] for row in rows]
      yield {"tokens": np.stack([tokenizer.encode_for_training(report, config.tokenizer.max_length)
                                 for report in local_reports])}

  for index, batch in enumerate(shard_batches(mesh, make_batches())):
    yield np.asarray(compute_batch(variables, table, batch))[:len(reports) - index * batch_size]


def _l2_normalize(rows: np.ndarray) -> np.ndarray:
  """Returns float32 rows of length 1."""
  return (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)).astype(np.float32)
