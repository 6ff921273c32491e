"""Explains the reports that a model wrote about a user's own images."""

from collections.abc import Sequence
import contextlib

import jax

from input_pipeline.splits import Split
from input_pipeline.user_images import UserStudy
from mcsam_jax.errors import UserError
from mcsam_jax.explain.explanations import describe_slots, explain_reports
from mcsam_jax.inference.generate import GeneratedReport
from mcsam_jax.inference.predictor import groups, Predictor


def reasons_of(model: Predictor, studies: Sequence[UserStudy],
               written: Sequence[GeneratedReport]) -> tuple[Sequence, Sequence, Split | None]:
  """Returns why each report was written, what the slots stand for, and the training records that `why` means.

  Without the training records, or where they are restricted, no report is compared with them.
  """
  work, train = model.work, None
  config, tokenizer = work.config, work.tokenizer
  if not config.data.restricted:
    with contextlib.suppress(UserError):
      train = work.open_split("train")
  batches = (model.inputs(group)[0] for group in groups(studies, config.decode.batch_size))
  with jax.set_mesh(model.mesh):
    whys = explain_reports(model.member, config, tokenizer, model.mesh, batches, written,
                           train.reports if train else ())
    return whys, describe_slots(model.member, config, tokenizer, work.initial_memory, model.mesh), train
