"""Writes reports for batches of studies with a jitted search, on all devices of the mesh.

Several models write together as an ensemble: the next word has the mean of the probabilities that they give it.

Shapes: B studies, K beams or draws, M models, R training reports, T words, D width.
"""

from collections.abc import Iterable, Sequence
import dataclasses

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from mcsam_jax.decoding.beam_search import beam_search
from mcsam_jax.decoding.consensus import Consensus
from mcsam_jax.decoding.greedy import Room
from mcsam_jax.decoding.sampling import sample_search
from mcsam_jax.models.mcsam import Prepared, MCSAM
from mcsam_jax.training.sharding import host_rows, replicated, to_global
from mcsam_jax.training.step import token_mask, visual_inputs


@dataclasses.dataclass
class Written:
  """One generated report."""
  record: int         # its study's number in the split
  text: str
  ids: np.ndarray     # int32 [T], its tokens without bos, with eos where it was reached and pad behind it
  log_prob: float     # of the whole report, eos included


class ReportWriter:
  """Turns studies into reports; compiled once for one batch shape."""

  def __init__(self, models: Sequence[MCSAM], config: ConfigDict, tokenizer, mesh: jax.sharding.Mesh,
               search: str, train_reports: Sequence[str] = ()):
    """Args:
      models: that write together; `config` says how.
      search: beam | consensus.
      train_reports: for the consensus, which has to know what is rare.
    """
    self.models, self.config, self.tokenizer, self.mesh = models, config, tokenizer, mesh
    self.train_reports, self._consensus = train_reports, None
    if search == "consensus":
      self._consensus = Consensus(tokenizer.clean(report).split() for report in train_reports)
    ids = {"bos_id": tokenizer.bos_id, "eos_id": tokenizer.eos_id, "pad_id": tokenizer.pad_id}
    decode = config.decode
    rules = {**ids, "max_length": config.tokenizer.max_length, "min_length": decode.min_length, "block_ngrams": decode.block_ngrams}

    def prepare(variables: Sequence[dict]) -> list[Prepared]:
      return [model.apply(v, method="prepare") for model, v in zip(models, variables)]

    def write(variables: Sequence[dict], prepared: Sequence[Prepared], batch: dict,
              train_codes: Sequence[jax.Array] | None):
      batch_size = batch["valid"].shape[0]
      num_rows = decode.num_samples if self._consensus else decode.beam_size
      members = list(zip(models, variables))
      begun = [model.apply(v, *visual_inputs(config, batch), mine, method="begin")
               for (model, v), mine in zip(members, prepared)]
      exchange = not self._consensus
      cache = together([model.apply(v, study, num_rows, exchange, method="first_cache")
                        for (model, v), study in zip(members, begun)])

      def step(words, cache):
        logits, caches = zip(*[model.apply(v, words, *rest, method="step")
                               for (model, v), *rest in zip(members, apart(cache), begun, prepared)])
        return mean_probability(logits), together(caches)

      room = Room(
          lambda cache, nodes: together([model.apply(v, mine, nodes, method="grow")
                                         for (model, v), mine in zip(members, apart(cache))]),
          lambda cache: models[0].apply(variables[0], apart(cache)[0], method="full"))     # all fill up alike

      if self._consensus:
        keys = jax.vmap(lambda record: jax.random.fold_in(jax.random.key(config.seed), record))(batch["record"])
        result = sample_search(step, cache, keys=keys, num_samples=decode.num_samples, temperature=decode.temperature,
                               top_k=decode.top_k, top_p=decode.top_p, room=room, **rules)
        likelihood = None
        if train_codes is not None:
          agreements = [jax.nn.softmax(model.apply(v, study.image_code, codes, method="agree"))              # [B, R]
                        for (model, v), study, codes in zip(members, begun, train_codes)]
          likelihood = sum(agreements) / len(members)
        return result.ids, result.log_probs, likelihood
      result = beam_search(step, cache, batch_size=batch_size, beam_size=decode.beam_size,
                           length_penalty=decode.length_penalty, finished=decode.finished, room=room, **rules)
      return result.ids[:, :1], result.log_probs[:, :1], None

    self._prepare, self._write = (jax.jit(run, out_shardings=replicated(mesh)) for run in (prepare, write))

  def __call__(self, variables: Sequence[dict], batches: Iterable[dict]) -> list[Written]:
    """Returns the report of every valid study of `batches` (as `eval_batches` gives them), in order.

    `variables`: of each model.
    """
    written, codes = [], None
    if self._consensus and self.config.decode.recall_share:
      codes = [self._train_codes(*member) for member in zip(self.models, variables)]
    prepared = self._prepare(variables)
    for batch in batches:
      rows = host_rows(len(batch["valid"]))
      shown = {name: array[rows] for name, array in batch.items() if name != "tokens"}   # a report is never shown
      ids, log_probs, likelihood = jax.device_get(self._write(variables, prepared, to_global(self.mesh, shown), codes))
      for row, (record, candidates, scores, valid) in enumerate(zip(batch["record"], ids, log_probs, batch["valid"])):
        if valid:                                                          # candidates [K, T], scores [K]
          texts = [self.tokenizer.decode(candidate) for candidate in candidates]
          chosen = 0
          if self._consensus:
            chosen = self._consensus.best([self.tokenizer.clean(text).split() for text in texts],
                                          None if likelihood is None else likelihood[row],
                                          self.config.decode.recall_share)
          written.append(Written(int(record), texts[chosen], candidates[chosen], float(scores[chosen])))
    return written

  def _train_codes(self, model: MCSAM, variables: dict) -> np.ndarray:
    """Returns what each training report recalls, as the alignment of a model sees it [R, D]."""
    length, size = self.config.tokenizer.max_length, self.config.decode.batch_size

    @jax.jit
    def recall(variables, tokens):
      memory = model.apply(variables, method="project_memory")
      return model.apply(variables, tokens[:, 1:], token_mask(tokens, self.tokenizer.eos_id), memory, False,
                         method="recall_report")

    tokens = np.stack([self.tokenizer.encode_for_training(report, length) for report in self.train_reports])
    filled = np.pad(tokens, ((0, -len(tokens) % size), (0, 0)), mode="edge")
    codes = [np.asarray(recall(variables, filled[start:start + size])) for start in range(0, len(filled), size)]
    return np.concatenate(codes)[:len(tokens)]


def together(caches: Sequence[dict]) -> dict:
  """Returns the caches of several models as one, in which each beam takes its part of all of them along."""
  return {"beams": [cache["beams"] for cache in caches], "rest": [cache | {"beams": None} for cache in caches]}


def apart(cache: dict) -> list[dict]:
  return [mine | {"beams": beams} for mine, beams in zip(cache["rest"], cache["beams"])]


def mean_probability(logits: Sequence[jax.Array]) -> jax.Array:
  """Returns the logits [..., vocabulary] of the mean of the distributions that M `logits` stand for."""
  if len(logits) == 1:
    return logits[0]
  log_probs = jax.nn.log_softmax(jnp.stack(logits).astype(jnp.float32))          # [M, ..., vocabulary]
  return jax.nn.logsumexp(log_probs, axis=0) - np.log(len(logits))
