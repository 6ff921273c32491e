"""Generates the reports of studies, batch by batch, on all devices of the mesh.

Shapes: B studies, K candidates, T tokens, R training reports, D width.
"""

from collections.abc import Iterable, Iterator, Sequence
import dataclasses
import functools

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict
import numpy as np

from input_pipeline.tokenizer import Tokenizer
from mcsam_jax.decoding.mbr import retrieve_most_probable, select_sample
from mcsam_jax.distributed.mesh import replicated, shard_batches
from mcsam_jax.inference.ensemble import Ensemble
from mcsam_jax.inference.search import embed_reports, make_search_fn, uses_retrieval
from mcsam_jax.metrics.cider import CiderCorpus
from mcsam_jax.models.mcsam import DecodeConstants, MCSAM


@dataclasses.dataclass
class GeneratedReport:
  """The report generated for one study."""
  record: int         # index of the study in its split
  text: str
  ids: np.ndarray     # int32 [T], tokens after bos: up to and including eos if it was reached, then pad
  log_prob: float     # sum over the report, eos included


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
    """
    self.models, self.config, self.tokenizer, self.mesh = models, config, tokenizer, mesh
    self.train_reports, self._uses_retrieval = train_reports, uses_retrieval(config, search)
    self._cider = None
    if search == "mbr":
      self._cider = CiderCorpus((tokenizer.clean(report).split() for report in train_reports), min_documents=2)
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
        ids, log_probs, train_report_probs = candidates.ids[row], candidates.log_probs[row], None    # [K, T], [K]
        if candidates.train_report_probs is not None:
          train_report_probs = candidates.train_report_probs[row]                                    # [R]
        texts = [self.tokenizer.decode(candidate) for candidate in ids]
        chosen = self._choose(texts, train_report_probs)
        yield GeneratedReport(int(candidates.record[row]), texts[chosen], ids[chosen], float(log_probs[chosen]))

  def _choose(self, texts: Sequence[str], train_report_probs: np.ndarray | None) -> int:
    """Returns the index of the candidate (one of K texts) that becomes the study's report.

    Beam search has a single candidate. Of samples, the one with the highest expected CIDEr-D is chosen.
    """
    if self._cider is None:
      return 0
    samples = [self.tokenizer.clean(text).split() for text in texts]
    utilities = self._cider.compare_pairwise(samples)                                                # [K, K]
    if train_report_probs is None:
      return select_sample(utilities)
    retrieved, weights = retrieve_most_probable(train_report_probs)
    return select_sample(utilities, self._cider.compare_with_corpus(samples, retrieved), weights,
                         self.config.decode.retrieval_weight)

  def _embed_train_reports(self, model: MCSAM, variables: dict, constants: DecodeConstants) -> np.ndarray:
    """Returns the embeddings [R, D] of the training reports in the alignment space of one model."""
    length, batch_size = self.config.tokenizer.max_length, self.config.decode.batch_size
    embed = jax.jit(functools.partial(embed_reports, model, self.tokenizer.eos_id), out_shardings=replicated(self.mesh))
    tokens = np.stack([self.tokenizer.encode_for_training(report, length) for report in self.train_reports])
    padded = np.pad(tokens, ((0, -len(tokens) % batch_size), (0, 0)), mode="edge")
    embeddings = [np.asarray(embed(variables, constants, padded[start:start + batch_size]))
                  for start in range(0, len(padded), batch_size)]
    return np.concatenate(embeddings)[:len(tokens)]
