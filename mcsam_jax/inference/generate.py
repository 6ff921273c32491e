"""Generates the reports of studies, batch by batch, on all devices of the mesh.

Shapes: B studies, K candidates, T tokens, R training reports, F findings, D width.
"""

from collections.abc import Iterable, Iterator, Sequence
import dataclasses
import functools

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict
import numpy as np

from input_pipeline.tokenizer import Tokenizer
from mcsam_jax.distributed.mesh import replicated, shard_batches
from mcsam_jax.findings import FINDINGS
from mcsam_jax.inference.ensemble import Ensemble
from mcsam_jax.inference.mbr_utility import MbrUtility
from mcsam_jax.inference.search import Candidates, embed_reports, make_search_fn, uses_retrieval
from mcsam_jax.models.mcsam import DecodeConstants, MCSAM


@dataclasses.dataclass
class GeneratedReport:
  """The report generated for one study."""
  record: int                # index of the study in its split
  text: str
  ids: np.ndarray            # int32 [T], tokens after bos: up to and including eos if it was reached, then pad
  log_prob: float | None     # sum over the report, eos included; None for a report retrieved from training
  finding_probs: dict[str, float] | None = None    # by abnormal finding; None if decode.utility.findings is 0
  head_probs: dict[str, float] | None = None       # by finding; None without findings head


class ReportGenerator:
  """Generates reports with one model or an ensemble; the search is compiled once per batch shape."""

  def __init__(self, models: Sequence[MCSAM], config: ConfigDict, tokenizer: Tokenizer, mesh: Mesh, search: str,
               train_reports: Sequence[str] = ()):
    """Builds the jitted functions; they are compiled at the first call.

    Args:
      models: one, or several that generate together.
      config: see `make_search_fn`.
      mesh: over which batches are sharded.
      search: beam | mbr.
      train_reports: R reports, used by `mbr` alone: document frequencies of n-grams, and retrieval.

    Raises:
      UserError: see `MbrUtility`.
    """
    self.models, self.config, self.tokenizer, self.mesh = models, config, tokenizer, mesh
    self.train_reports, self._uses_retrieval = train_reports, uses_retrieval(config, search)
    self._utility = MbrUtility(config, tokenizer, train_reports) if search == "mbr" else None
    self._make_constants = jax.jit(Ensemble(models).make_decode_constants, out_shardings=replicated(mesh))
    self._search_fn = jax.jit(make_search_fn(models, config, tokenizer, search), out_shardings=replicated(mesh))

  def __call__(self, variables: Sequence[dict], batches: Iterable[dict]) -> list[GeneratedReport]:
    """Returns the reports of all valid studies, in order.

    Args:
      variables: one entry per model.
      batches: this host's rows of the batches, as from `eval_batches`. The references in them are not used.
    """
    return list(self.stream(variables, batches))

  def stream(self, variables: Sequence[dict], batches: Iterable[dict]) -> Iterator[GeneratedReport]:
    """Yields the same reports as `__call__`, each as soon as its batch is finished."""
    constants, train_embeddings = self._make_constants(variables), None
    if self._uses_retrieval:
      train_embeddings = [self._embed_train_reports(*values) for values in zip(self.models, variables, constants)]
    without_references = ({name: array for name, array in batch.items() if name != "tokens"} for batch in batches)
    for batch in shard_batches(self.mesh, without_references):
      # Every host gets the candidates of all hosts' studies.
      candidates = jax.device_get(self._search_fn(variables, constants, batch, train_embeddings))
      for row in np.flatnonzero(candidates.valid):
        yield self._choose(Candidates(*(None if field is None else field[row] for field in candidates)))

  def _choose(self, candidates: Candidates) -> GeneratedReport:
    """Returns the candidate that becomes the report of a study; a beam search has a single one.

    Args:
      candidates: of one study, without the axis B.
    """
    record, ids = int(candidates.record), np.asarray(candidates.ids)
    texts = [self.tokenizer.decode(candidate) for candidate in ids]
    chosen, finding_probs, head_probs = 0, None, None
    if candidates.head_probs is not None:
      head_probs = dict(zip(FINDINGS, np.asarray(candidates.head_probs, float).round(4).tolist()))
    if self._utility is not None:
      sample, train_report, finding_probs = self._utility.choose(texts, candidates.train_report_probs, head_probs)
      if train_report is not None:
        ids = self.tokenizer.encode_for_training(self.train_reports[train_report], self.config.tokenizer.max_length)[1:]
        return GeneratedReport(record, self.tokenizer.decode(ids), ids, None, finding_probs, head_probs)
      assert sample is not None
      chosen = sample
    return GeneratedReport(record, texts[chosen], ids[chosen], float(candidates.log_probs[chosen]), finding_probs,
                           head_probs)

  def _embed_train_reports(self, model: MCSAM, variables: dict, constants: DecodeConstants) -> np.ndarray:
    """Returns the embeddings [R, D] of the training reports in the alignment space of one model."""
    length, batch_size = self.config.tokenizer.max_length, self.config.decode.batch_size
    embed = jax.jit(functools.partial(embed_reports, model, self.tokenizer.eos_id), out_shardings=replicated(self.mesh))
    tokens = np.stack([self.tokenizer.encode_for_training(report, length) for report in self.train_reports])
    padded = np.pad(tokens, ((0, -len(tokens) % batch_size), (0, 0)), mode="edge")
    embeddings = [np.asarray(embed(variables, constants, padded[start:start + batch_size]))
                  for start in range(0, len(padded), batch_size)]
    return np.concatenate(embeddings)[:len(tokens)]
