"""The search that generates candidate reports for a batch of studies, as one pure function to compile.

Shapes: B studies, K candidates, T tokens, R training reports, F findings, D width.
"""

from collections.abc import Callable, Sequence
import functools
from typing import Any, cast, NamedTuple, Protocol

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict
import numpy as np

from mcsam_jax.decoding.beam_search import beam_search
from mcsam_jax.decoding.loop import CacheResizer
from mcsam_jax.decoding.sampling import temperature_sample
from mcsam_jax.distributed.mesh import replicated
from mcsam_jax.inference.ensemble import Ensemble
from mcsam_jax.models.inputs import token_mask, visual_inputs
from mcsam_jax.models.mcsam import DecodeConstants, MCSAM


class SpecialIds(Protocol):
  """The ids of special tokens, as a `Tokenizer` has them."""
  bos_id: int
  eos_id: int
  pad_id: int


class Candidates(NamedTuple):
  """Candidate reports of a batch: the K best of a beam search, best first, or all samples for `search=mbr`."""
  record: jax.Array                       # int32 [B], index of the study in its split
  valid: jax.Array                        # bool [B], False for padding
  ids: jax.Array                          # int32 [B, K, T], see `BeamResult`
  log_probs: jax.Array                    # float32 [B, K], eos included
  train_report_probs: jax.Array | None    # float32 [B, R], see `Ensemble.train_report_probs`
  head_probs: jax.Array | None            # float32 [B, F], see `Ensemble.finding_probs`


SearchFn = Callable[[Sequence[dict], Sequence[DecodeConstants], dict, Sequence[jax.Array] | None], Candidates]


def make_search_fn(models: Sequence[MCSAM], config: ConfigDict, special_ids: SpecialIds, search: str,
                   num_return: int = 1) -> SearchFn:
  """Returns a pure function (variables, constants, batch, train_embeddings) -> Candidates, to be jitted.

  Its arguments are lists with one entry per model, except the batch: parameters, decode constants, and the embeddings
  [R, D] of the training reports; the last is None where these are not used.

  Args:
    models: one, or several that generate together.
    config: `decode`, `tokenizer.max_length`, `encoder` and `seed` are read.
    special_ids: usually the tokenizer.
    search: beam | mbr.
    num_return: K of a beam search, at most `decode.beam_size`.
  """
  ensemble, decode = Ensemble(models), config.decode
  options: dict[str, Any] = {
      "bos_id": special_ids.bos_id, "eos_id": special_ids.eos_id, "pad_id": special_ids.pad_id,
      "max_length": config.tokenizer.max_length, "min_length": decode.min_length,
      "no_repeat_ngram_size": decode.no_repeat_ngram_size}

  def search_fn(variables: Sequence[dict], constants: Sequence[DecodeConstants], batch: dict,
                train_embeddings: Sequence[jax.Array] | None) -> Candidates:
    contexts = ensemble.prefill(variables, visual_inputs(config, batch), constants)
    decode_step = lambda tokens, cache: ensemble.decode_step(variables, tokens, cache, contexts, constants)
    cache_resizer = CacheResizer(functools.partial(ensemble.grow_cache, contexts), ensemble.cache_is_full)
    if search == "mbr":
      cache = ensemble.init_cache(contexts, decode.num_samples, reorderable=False)
      # A key per study: its samples depend neither on the batch size nor on its place in the batch.
      keys = jax.vmap(lambda record: jax.random.fold_in(jax.random.key(config.seed), record))(batch["record"])
      samples = temperature_sample(
          decode_step, cache, keys=keys, num_samples=decode.num_samples, temperature=decode.temperature,
          top_k=decode.top_k, top_p=decode.top_p, cache_resizer=cache_resizer, **options)
      train_report_probs = None
      if train_embeddings is not None:
        train_report_probs = ensemble.train_report_probs(variables, contexts, train_embeddings)
      return Candidates(batch["record"], batch["valid"], samples.ids, samples.log_probs, train_report_probs,
                        ensemble.finding_probs(contexts))
    cache = ensemble.init_cache(contexts, decode.beam_size, reorderable=True)
    beams = beam_search(
        decode_step, cache, batch_size=batch["valid"].shape[0], beam_size=decode.beam_size,
        length_penalty=decode.length_penalty, finished_beams=decode.finished_beams, cache_resizer=cache_resizer,
        **options)
    return Candidates(batch["record"], batch["valid"], beams.ids[:, :num_return], beams.log_probs[:, :num_return],
                      None, ensemble.finding_probs(contexts))

  return search_fn


def uses_retrieval(config: ConfigDict, search: str) -> bool:
  """Returns whether the training reports have a vote in minimum Bayes risk decoding (`decode.retrieval_weight`)."""
  return search == "mbr" and config.decode.retrieval_weight > 0


def embed_reports(model: MCSAM, eos_id: int, variables: dict, constants: DecodeConstants,
                  tokens: jax.Array) -> jax.Array:
  """Returns the embeddings [R, D] of reports, given as tokens [R, T + 1] with bos first."""
  return cast(jax.Array, model.apply(variables, tokens[:, 1:], token_mask(tokens, eos_id), constants.memory, False,
                                     method="encode_report"))


def lower_search(models: Sequence[MCSAM], config: ConfigDict, special_ids: SpecialIds, mesh: Mesh, search: str,
                 variables: Sequence[dict], batch: dict, num_train_reports: int) -> jax.stages.Lowered:
  """Returns the lowered search, for compilation ahead of time; nothing is computed.

  Args:
    models, config, special_ids, search: as in `make_search_fn`.
    mesh: over which the batch is sharded.
    variables: per model, shapes with shardings.
    batch: shapes with shardings, without the reports' tokens.
    num_train_reports: R, if `uses_retrieval`.
  """
  def replicate(leaf):
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated(mesh))
  constants = jax.tree.map(replicate, jax.eval_shape(Ensemble(models).make_decode_constants, variables))
  train_embeddings = None
  if uses_retrieval(config, search):
    tokens = jax.ShapeDtypeStruct((num_train_reports, config.tokenizer.max_length + 1), np.int32)
    train_embeddings = [
        replicate(jax.eval_shape(functools.partial(embed_reports, model, special_ids.eos_id), *values, tokens))
        for model, *values in zip(models, variables, constants)]
  search_fn = jax.jit(make_search_fn(models, config, special_ids, search), out_shardings=replicated(mesh))
  return search_fn.lower(variables, constants, batch, train_embeddings)
