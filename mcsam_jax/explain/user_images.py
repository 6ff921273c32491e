"""Explains the reports of a user's own images."""

from collections.abc import Sequence
import contextlib

import jax

from input_pipeline.splits import Split
from input_pipeline.user_images import UserStudy
from mcsam_jax.errors import UserError
from mcsam_jax.explain.explanations import explain_reports, Explanation
from mcsam_jax.explain.slots import describe_slots, SlotDescription
from mcsam_jax.inference.generate import GeneratedReport
from mcsam_jax.inference.predictor import batched, Predictor


def explain_user_images(predictor: Predictor, studies: Sequence[UserStudy], reports: Sequence[GeneratedReport]
                        ) -> tuple[list[Explanation], list[SlotDescription], Split | None]:
  """Returns the explanations, the descriptions of the memory slots, and the train split of the neighbors.

  If the training records are restricted or not on this machine, the split is None and no report has neighbors.

  Args:
    predictor: the model that generated the reports.
    studies: the studies.
    reports: one per study.
  """
  workdir, train = predictor.workdir, None
  config, tokenizer = workdir.config, workdir.tokenizer
  if not config.data.restricted:
    with contextlib.suppress(UserError):
      train = workdir.open_split("train")
  batches = (predictor.make_batch(group)[0] for group in batched(studies, predictor.batch_size))
  with jax.set_mesh(predictor.mesh):
    explanations = explain_reports(predictor.loaded, config, tokenizer, predictor.mesh, batches, reports,
                                   train.reports if train else ())
    slots = describe_slots(predictor.loaded, config, tokenizer, workdir.initial_memory, predictor.mesh)
  return explanations, slots, train
