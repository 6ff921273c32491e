"""Writes reports for batches of studies with a jitted search, on all devices of the mesh."""

from collections.abc import Iterable, Sequence
import dataclasses

import jax
from ml_collections import ConfigDict
import numpy as np

from mcsam_jax.decoding.beam_search import beam_search
from mcsam_jax.decoding.consensus import Consensus
from mcsam_jax.decoding.sampling import sample_search
from mcsam_jax.models.mcsam import MCSAM
from mcsam_jax.training.sharding import host_rows, replicated, to_global
from mcsam_jax.training.step import token_mask, visual_inputs


@dataclasses.dataclass
class Written:
  """One generated report."""
  record: int         # its study's number in the split
  text: str
  log_prob: float     # of the whole report, eos included


class ReportWriter:
  """Turns studies into reports; compiled once for one batch shape."""

  def __init__(self, model: MCSAM, config: ConfigDict, tokenizer, mesh: jax.sharding.Mesh,
               search: str, train_reports: Sequence[str] = ()):
    """`search`: beam | consensus. `train_reports`: for the consensus, which has to know what is rare."""
    self.model, self.config, self.tokenizer, self.mesh = model, config, tokenizer, mesh
    self.train_reports, self._consensus = train_reports, None
    if search == "consensus":
      self._consensus = Consensus(tokenizer.clean(report).split() for report in train_reports)
    ids = {"bos_id": tokenizer.bos_id, "eos_id": tokenizer.eos_id, "pad_id": tokenizer.pad_id}
    decode, max_length = config.decode, config.tokenizer.max_length
    rules = {**ids, "min_length": decode.min_length, "block_ngrams": decode.block_ngrams}

    def write(variables: dict, batch: dict, train_codes: jax.Array | None):
      begun = model.apply(variables, *visual_inputs(config, batch), method="begin")
      batch_size = batch["valid"].shape[0]
      num_rows = decode.num_samples if self._consensus else decode.beam_size
      cache = model.apply(variables, batch_size, num_rows, method="empty_cache")
      step = lambda words, cache: model.apply(variables, words, cache, begun, method="step")
      if self._consensus:
        keys = jax.vmap(lambda record: jax.random.fold_in(jax.random.key(config.seed), record))(batch["record"])
        result = sample_search(step, cache, keys=keys, num_samples=decode.num_samples, max_length=max_length,
                               temperature=decode.temperature, top_k=decode.top_k, top_p=decode.top_p, **rules)
        likelihood = None
        if train_codes is not None:
          likelihood = jax.nn.softmax(model.apply(variables, begun[1], train_codes, method="agree"))   # [B, R]
        return result.ids, result.log_probs, likelihood
      result = beam_search(step, cache, batch_size=batch_size, beam_size=decode.beam_size, max_length=max_length,
                           length_penalty=decode.length_penalty, finished=decode.finished, **rules)
      return result.ids[:, :1], result.log_probs[:, :1], None

    self._write = jax.jit(write, out_shardings=replicated(mesh))

  def __call__(self, variables: dict, batches: Iterable[dict]) -> list[Written]:
    """Returns the report of every valid study of `batches` (as `eval_batches` gives them), in order."""
    written = []
    codes = self._train_codes(variables) if self._consensus and self.config.decode.recall_share else None
    for batch in batches:
      rows = host_rows(len(batch["valid"]))
      shown = {name: array[rows] for name, array in batch.items() if name != "tokens"}   # a report is never shown
      ids, log_probs, likelihood = jax.device_get(self._write(variables, to_global(self.mesh, shown), codes))
      for row, (record, candidates, scores, valid) in enumerate(zip(batch["record"], ids, log_probs, batch["valid"])):
        if valid:                                                          # candidates [K, T], scores [K]
          texts = [self.tokenizer.decode(candidate) for candidate in candidates]
          chosen = 0
          if self._consensus:
            chosen = self._consensus.best([self.tokenizer.clean(text).split() for text in texts],
                                          None if likelihood is None else likelihood[row],
                                          self.config.decode.recall_share)
          written.append(Written(int(record), texts[chosen], float(scores[chosen])))
    return written

  def _train_codes(self, variables: dict) -> np.ndarray:
    """Returns what each training report recalls, as the alignment sees it [R, D]."""
    length, size = self.config.tokenizer.max_length, self.config.decode.batch_size

    @jax.jit
    def recall(variables, tokens):
      memory = self.model.apply(variables, method="project_memory")
      return self.model.apply(variables, tokens[:, 1:], token_mask(tokens, self.tokenizer.eos_id), memory, False,
                              method="recall_report")

    tokens = np.stack([self.tokenizer.encode_for_training(report, length) for report in self.train_reports])
    filled = np.pad(tokens, ((0, -len(tokens) % size), (0, 0)), mode="edge")
    codes = [np.asarray(recall(variables, filled[start:start + size])) for start in range(0, len(filled), size)]
    return np.concatenate(codes)[:len(tokens)]
