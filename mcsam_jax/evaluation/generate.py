"""Writes reports for batches of studies with jitted beam search, on all devices of the mesh."""

from collections.abc import Iterable
import dataclasses

import jax
from ml_collections import ConfigDict
import numpy as np

from mcsam_jax.decoding.beam_search import beam_search
from mcsam_jax.models.mcsam import MCSAM
from mcsam_jax.training.sharding import host_rows, replicated, to_global
from mcsam_jax.training.step import visual_inputs


@dataclasses.dataclass
class Written:
  """One generated report."""
  record: int         # its study's number in the split
  text: str
  ids: list[int]      # up to and with eos
  log_prob: float     # of the whole report, eos included


class ReportWriter:
  """Turns studies into reports; compiled once for one batch shape."""

  def __init__(self, model: MCSAM, config: ConfigDict, tokenizer, mesh: jax.sharding.Mesh):
    self.config, self.tokenizer, self.mesh = config, tokenizer, mesh

    def write(variables: dict, batch: dict):
      begun = model.apply(variables, *visual_inputs(config, batch), method="begin")
      batch_size, beam_size = batch["valid"].shape[0], config.decode.beam_size
      cache = model.apply(variables, batch_size, beam_size, method="empty_cache")
      result = beam_search(
          lambda ids, cache: model.apply(variables, ids, cache, begun, method="step"), cache,
          batch_size=batch_size, beam_size=beam_size, max_length=config.tokenizer.max_length,
          bos_id=tokenizer.bos_id, eos_id=tokenizer.eos_id, pad_id=tokenizer.pad_id,
          min_length=config.decode.min_length, length_penalty=config.decode.length_penalty)
      return result.ids[:, 0], result.log_probs[:, 0], result.lengths[:, 0]

    self._write = jax.jit(write, out_shardings=replicated(mesh))

  def __call__(self, variables: dict, batches: Iterable[dict]) -> list[Written]:
    """Returns the best report of every valid study of `batches` (as `eval_batches` gives them), in order."""
    written = []
    for batch in batches:
      rows = host_rows(len(batch["valid"]))
      shown = {name: array[rows] for name, array in batch.items() if name != "tokens"}   # a report is never shown
      ids, log_probs, lengths = map(np.asarray, self._write(variables, to_global(self.mesh, shown)))
      written += [
          Written(int(record), self.tokenizer.decode(row[:length]), row[:length].tolist(), float(log_prob))
          for record, row, length, log_prob, valid in zip(batch["record"], ids, lengths, log_probs, batch["valid"])
          if valid]
    return written
