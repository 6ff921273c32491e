"""Writes reports for batches of studies with a jitted search, on all devices of the mesh.

Shapes: B studies, K beams or draws, R training reports, T words, D width.
"""

from collections.abc import Iterable, Iterator, Sequence
import dataclasses
import functools

import jax
from ml_collections import ConfigDict
import numpy as np

from mcsam_jax.decoding.beam_search import beam_search
from mcsam_jax.decoding.loop import CacheResizer
from mcsam_jax.decoding.mbr import Consensus
from mcsam_jax.decoding.sampling import temperature_sample
from mcsam_jax.distributed.mesh import replicated, shard_batches
from mcsam_jax.inference.ensemble import Ensemble
from mcsam_jax.models.inputs import token_mask, visual_inputs
from mcsam_jax.models.mcsam import DecodeConstants, MCSAM


@dataclasses.dataclass
class GeneratedReport:
  """One generated report."""
  record: int         # its study's number in the split
  text: str
  ids: np.ndarray     # int32 [T], its tokens without bos, with eos where it was reached and pad behind it
  log_prob: float     # of the whole report, eos included


class ReportGenerator:
  """Turns studies into reports; compiled once for one batch shape."""

  def __init__(self, models: Sequence[MCSAM], config: ConfigDict, tokenizer, mesh: jax.sharding.Mesh,
               search: str, train_reports: Sequence[str] = ()):
    """Args:
      models: that write together, mostly one; `config` says how.
      search: beam | consensus.
      train_reports: for the consensus, which has to know what is rare.
    """
    self.models, self.config, self.tokenizer, self.mesh = models, config, tokenizer, mesh
    self.train_reports, self._consensus = train_reports, None
    if search == "mbr":
      self._consensus = Consensus(tokenizer.clean(report).split() for report in train_reports)
    ensemble, decode = Ensemble(models), config.decode
    rules = {"bos_id": tokenizer.bos_id, "eos_id": tokenizer.eos_id, "pad_id": tokenizer.pad_id,
             "max_length": config.tokenizer.max_length, "min_length": decode.min_length,
             "no_repeat_ngram_size": decode.no_repeat_ngram_size}

    def write(variables: Sequence[dict], prepared: Sequence[DecodeConstants], batch: dict,
              train_codes: Sequence[jax.Array] | None):
      batch_size = batch["valid"].shape[0]
      begun = ensemble.prefill(variables, visual_inputs(config, batch), prepared)
      step = lambda tokens, cache: ensemble.decode_step(variables, tokens, cache, begun, prepared)
      room = CacheResizer(functools.partial(ensemble.grow_cache, begun), ensemble.cache_is_full)
      if self._consensus:
        cache = ensemble.init_cache(begun, decode.num_samples, reorderable=False)
        keys = jax.vmap(lambda record: jax.random.fold_in(jax.random.key(config.seed), record))(batch["record"])
        drawn = temperature_sample(step, cache, keys=keys, num_samples=decode.num_samples, temperature=decode.temperature,
                              top_k=decode.top_k, top_p=decode.top_p, cache_resizer=room, **rules)
        likelihood = None if train_codes is None else ensemble.likelihood(variables, begun, train_codes)
        return batch["record"], batch["valid"], drawn.ids, drawn.log_probs, likelihood
      cache = ensemble.init_cache(begun, decode.beam_size, reorderable=True)
      found = beam_search(step, cache, batch_size=batch_size, beam_size=decode.beam_size,
                          length_penalty=decode.length_penalty, finished_beams=decode.finished_beams, cache_resizer=room, **rules)
      return batch["record"], batch["valid"], found.ids[:, :1], found.log_probs[:, :1], None

    self._prepare, self._write = (jax.jit(run, out_shardings=replicated(mesh)) for run in (ensemble.make_decode_constants, write))

  def lower(self, variables: Sequence[dict], batch: dict, num_train_reports: int) -> jax.stages.Lowered:
    """Returns the compiled search before it is compiled, for variables and a batch of shapes with shardings.

    `num_train_reports`: that a consensus asks, where it asks them.
    """
    mesh_wide = replicated(self.mesh)
    on_all = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=mesh_wide)
    prepared = jax.tree.map(on_all, jax.eval_shape(self._prepare, variables))
    codes = None
    if self.asks_train_reports:
      tokens = jax.ShapeDtypeStruct((num_train_reports, self.config.tokenizer.max_length + 1), np.int32)
      codes = [on_all(jax.eval_shape(functools.partial(self._recall, model), *member, tokens))
               for model, *member in zip(self.models, variables, prepared)]
    return self._write.lower(variables, prepared, batch, codes)

  @property
  def asks_train_reports(self) -> bool:
    """Whether the training reports have a vote, each as likely as the alignment holds it."""
    return self._consensus is not None and self.config.decode.retrieval_weight > 0

  def __call__(self, variables: Sequence[dict], batches: Iterable[dict]) -> list[GeneratedReport]:
    """Returns the report of every valid study of `batches` (as `eval_batches` gives this host's rows), in order.

    `variables`: of each model.
    """
    return list(self.stream(variables, batches))

  def stream(self, variables: Sequence[dict], batches: Iterable[dict]) -> Iterator[GeneratedReport]:
    """Yields the same reports, each as soon as its batch is written."""
    codes, prepared = None, self._prepare(variables)
    if self.asks_train_reports:
      codes = [self._train_codes(*member) for member in zip(self.models, variables, prepared)]
    shown = ({name: array for name, array in batch.items() if name != "tokens"} for batch in batches)   # no report
    for batch in shard_batches(self.mesh, shown):
      *found, likelihood = jax.device_get(self._write(variables, prepared, batch, codes))   # of all hosts' studies
      for row, (record, valid, candidates, scores) in enumerate(zip(*found)):
        if valid:                                                          # candidates [K, T], scores [K]
          texts = [self.tokenizer.decode(candidate) for candidate in candidates]
          chosen = 0
          if self._consensus:
            chosen = self._consensus.best([self.tokenizer.clean(text).split() for text in texts],
                                          None if likelihood is None else likelihood[row],
                                          self.config.decode.retrieval_weight)
          yield GeneratedReport(int(record), texts[chosen], candidates[chosen], float(scores[chosen]))

  def _recall(self, model: MCSAM, variables: dict, prepared: DecodeConstants, tokens: jax.Array) -> jax.Array:
    """Returns what training reports (tokens [R, T + 1], bos first) recall [R, D]."""
    return model.apply(variables, tokens[:, 1:], token_mask(tokens, self.tokenizer.eos_id), prepared.memory, False,
                       method="encode_report")

  def _train_codes(self, model: MCSAM, variables: dict, prepared: DecodeConstants) -> np.ndarray:
    """Returns what each training report recalls, as the alignment of a model sees it [R, D]."""
    length, size = self.config.tokenizer.max_length, self.config.decode.batch_size
    recall = jax.jit(functools.partial(self._recall, model), out_shardings=replicated(self.mesh))
    tokens = np.stack([self.tokenizer.encode_for_training(report, length) for report in self.train_reports])
    filled = np.pad(tokens, ((0, -len(tokens) % size), (0, 0)), mode="edge")
    codes = [np.asarray(recall(variables, prepared, filled[start:start + size])) for start in range(0, len(filled), size)]
    return np.concatenate(codes)[:len(tokens)]
