"""Generates the reports of studies, batch by batch, on all devices of the mesh.

Shapes: B studies, K candidates, T tokens, R training reports, F findings, D width, L reports to
return.
"""

from collections.abc import Iterable, Iterator, Sequence
import dataclasses
import functools
from typing import cast

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict
import numpy as np

from input_pipeline.tokenizer import Tokenizer
from mcsam_jax.decoding.beam_search import EMPTY_BEAM_LOG_PROB
from mcsam_jax.distributed.mesh import replicated, shard_batches
from mcsam_jax.errors import UserError
from mcsam_jax.extensions.by_name import is_import_name
from mcsam_jax.files.trace_cache import keep_program, register_results
from mcsam_jax.findings import FINDINGS
from mcsam_jax.inference.ensemble import Ensemble
from mcsam_jax.inference.search import Candidates, embed_reports, make_search_fn, uses_retrieval
from mcsam_jax.inference.token_log_probs import make_token_log_probs_fn
from mcsam_jax.models.layers import KeysValues
from mcsam_jax.models.mcsam import DecodeConstants, MCSAM

register_results(Candidates, DecodeConstants, KeysValues)


@dataclasses.dataclass
class Hypothesis:
  """One of the best reports of a study."""
  text: str
  ids: np.ndarray            # int32 [T], as in `GeneratedReport`
  log_prob: float | None     # as in `GeneratedReport`
  token_log_probs: np.ndarray | None = None        # float32 [T], 0 after eos; None if they were not asked for


@dataclasses.dataclass
class GeneratedReport:
  """The report generated for one study."""
  record: int                # index of the study in its split
  text: str
  ids: np.ndarray            # int32 [T], tokens after bos: up to and including eos if it was reached, then pad
  log_prob: float | None     # sum over the report, eos included; None for a report retrieved from training
  finding_probs: dict[str, float] | None = None    # by abnormal finding; None if decode.utility.findings is 0
  head_probs: dict[str, float] | None = None       # by finding; None without findings head
  nbest: list[Hypothesis] = dataclasses.field(default_factory=list)    # the best reports, beginning with this one


class ReportGenerator:
  """Generates reports with one model or an ensemble; the search is compiled once per batch shape."""

  def __init__(self, models: Sequence[MCSAM], config: ConfigDict, tokenizer: Tokenizer, mesh: Mesh, search: str,
               train_reports: Sequence[str] = (), num_return: int = 1, with_token_log_probs: bool = False):
    """Builds the jitted functions; they are compiled at the first call.

    Args:
      models: one, or several that generate together.
      config: see `make_search_fn`.
      mesh: over which batches are sharded.
      search: beam | mbr.
      train_reports: R reports, used by `mbr` alone: document frequencies of n-grams, and retrieval.
      num_return: L, the number of best reports per study; there may be fewer.
      with_token_log_probs: whether to compute the log-probability of each token, by one more forward pass; for a single
        model.

    Raises:
      UserError: see `MbrUtility`; or `num_return` exceeds the beams or samples of a study.
    """
    field = "beam_size" if search == "beam" else "num_samples"
    if not 1 <= num_return <= config.decode[field]:
      raise UserError(f"{num_return} best reports of a study: must be from 1 to decode.{field}={config.decode[field]}")
    self.models, self.config, self.tokenizer, self.mesh = models, config, tokenizer, mesh
    self.train_reports, self._uses_retrieval = train_reports, uses_retrieval(config, search)
    self._utility = None
    if search == "mbr":
      from mcsam_jax.inference.mbr_utility import MbrUtility  # not at the top: imports scipy and the labelers
      self._utility = MbrUtility(config, tokenizer, train_reports)
    depends_on = None
    if len(models) == 1 and mesh.size == 1 and not is_import_name(config.encoder.name):
      depends_on = [models[0].config.to_json(), config.to_json(), tokenizer.vocab_size, tokenizer.bos_id,
                    tokenizer.eos_id, tokenizer.pad_id, search, num_return]
    self._make_constants = keep_program(Ensemble(models).make_decode_constants, "decode-constants", depends_on,
                                        out_shardings=replicated(mesh))
    self._search_fn = keep_program(make_search_fn(models, config, tokenizer, search, num_return), f"search-{search}",
                                   depends_on, out_shardings=replicated(mesh))
    self._num_return, self._token_log_probs_fn = num_return, None
    if with_token_log_probs:
      model, = models
      self._token_log_probs_fn = jax.jit(make_token_log_probs_fn(model, config, tokenizer),
                                         out_shardings=replicated(mesh))

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
      reports = {}                       # row -> report
      for row in np.flatnonzero(candidates.valid):
        reports[row] = self._choose(cast(Candidates, jax.tree.map(lambda field: field[row], candidates)))
      if self._token_log_probs_fn is not None:
        self._add_token_log_probs(variables[0], batch, reports)
      yield from reports.values()

  def _choose(self, candidates: Candidates) -> GeneratedReport:
    """Returns the report of a study: the best of its candidates, with the L best.

    Args:
      candidates: of one study, without the axis B.
    """
    record, ids, log_probs = int(candidates.record), np.asarray(candidates.ids), np.asarray(candidates.log_probs)
    head_probs, train_report_probs = None, candidates.train_report_probs
    if train_report_probs is not None:
      train_report_probs = np.asarray(train_report_probs)
    if candidates.head_probs is not None:
      head_probs = dict(zip(FINDINGS, np.asarray(candidates.head_probs, float).round(4).tolist()))
    texts = [self.tokenizer.decode(candidate) for candidate in ids]
    if self._utility is None:            # an empty beam, of which the search had no report, isn't one of the best
      chosen, finding_probs = [(candidate, None) for candidate in range(len(ids))
                               if candidate == 0 or log_probs[candidate] > EMPTY_BEAM_LOG_PROB], None
    else:
      choices = self._utility.rank(texts, train_report_probs, self._num_return, head_probs)
      chosen, finding_probs = [choice[:2] for choice in choices], choices[0].finding_probs
    nbest = []
    for sample, train_report in chosen:
      if sample is not None:
        nbest.append(Hypothesis(texts[sample], ids[sample], float(log_probs[sample])))
      else:
        assert train_report is not None
        train_ids = self.tokenizer.encode_for_training(self.train_reports[train_report],
                                                       self.config.tokenizer.max_length)[1:]
        nbest.append(Hypothesis(self.tokenizer.decode(train_ids), train_ids, None))
    best = nbest[0]
    return GeneratedReport(record, best.text, best.ids, best.log_prob, finding_probs, head_probs, nbest)

  def _add_token_log_probs(self, variables: dict, batch: dict, reports: dict[int, GeneratedReport]) -> None:
    """Adds the log-probability of each token to the best reports, given by row of the batch."""
    ids = np.full((len(batch["valid"]), self._num_return, self.config.tokenizer.max_length), self.tokenizer.pad_id,
                  np.int32)                                                                       # [B, L, T]
    for row, report in reports.items():
      ids[row, :len(report.nbest)] = [hypothesis.ids for hypothesis in report.nbest]
    assert self._token_log_probs_fn is not None
    log_probs = jax.device_get(self._token_log_probs_fn(variables, batch, ids))
    for row, report in reports.items():
      for hypothesis, token_log_probs in zip(report.nbest, log_probs[row]):
        hypothesis.token_log_probs = token_log_probs

  def _embed_train_reports(self, model: MCSAM, variables: dict, constants: DecodeConstants) -> np.ndarray:
    """Returns the embeddings [R, D] of the training reports in the alignment space of one model."""
    length, batch_size = self.config.tokenizer.max_length, self.config.decode.batch_size
    embed = jax.jit(functools.partial(embed_reports, model, self.tokenizer.eos_id), out_shardings=replicated(self.mesh))
    tokens = np.stack([self.tokenizer.encode_for_training(report, length) for report in self.train_reports])
    padded = np.pad(tokens, ((0, -len(tokens) % batch_size), (0, 0)), mode="edge")
    embeddings = [np.asarray(embed(variables, constants, padded[start:start + batch_size]))
                  for start in range(0, len(padded), batch_size)]
    return np.concatenate(embeddings)[:len(tokens)]
