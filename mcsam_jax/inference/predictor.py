"""A trained model that writes about images which are in no record: loaded once, compiled once, any number of studies.

Images pass the very steps that records and evaluation put them through: `images.load_jpeg` (gray, shorter side,
JPEG), `images.decode` (the square that the model sees), the frozen encoder's features in float16. So the files that
records were made from get the reports that `mcsam evaluate` writes of them.

Shapes: B studies, V views, S pixels, P patches a view, C channels.
"""

from collections.abc import Iterable, Iterator, Sequence
import dataclasses
import itertools

import jax
import numpy as np

from input_pipeline.batch import make_batch
from input_pipeline.user_images import UserStudy
from mcsam_jax.checkpoints.workdir import Workdir
from mcsam_jax.distributed.mesh import make_mesh
from mcsam_jax.errors import UserError
from mcsam_jax.findings import VIEWS
from mcsam_jax.inference.feature_cache import encode_images
from mcsam_jax.inference.generate import GeneratedReport, ReportGenerator
from mcsam_jax.inference.load import restore_member
from mcsam_jax.inference.ood import initial_encoder, OODDetector


@dataclasses.dataclass
class Result:
  """What a model says of a study."""
  study: UserStudy
  written: GeneratedReport
  similarity: list[float]             # of each film to the training images; [] where that isn't known


class Predictor:
  """The model of a workdir, ready to write about studies that are in no record."""

  def __init__(self, work: Workdir, step: int | None, ood_detector: OODDetector | None, log=print):
    """Args:
      step: of the checkpoint; None: the best on val, or the last.
      familiar: what images it knows; None: nobody is warned.

    Raises:
      UserError: no (such) checkpoint, or a damaged one.
    """
    self.work, self.ood_detector, self.notes = work, ood_detector, []
    config = work.config
    self.mesh = make_mesh(config, jax.devices()[:1])
    self.train_reports, search = (), config.decode.search
    if search == "mbr":
      try:
        self.train_reports = work.open_split("train").reports
      except UserError:
        search = "beam"
        self.notes.append("decode.search=mbr needs the training records, which aren't on this machine: written "
                          "by beam search instead")
    self.search = search
    if config.encoder.frozen or ood_detector:
      encoder, self._encoder_variables = initial_encoder(work)
      self._encode = jax.jit(
          lambda variables, pixels: encode_images(encoder, config, variables, pixels).astype("float16"))
    with jax.set_mesh(self.mesh):
      self.member = restore_member(work, self.mesh, self.inputs([])[0], step, log)
    self._generate = ReportGenerator([self.member.model], config, work.tokenizer, self.mesh, search, self.train_reports)

  def reports(self, studies: Iterable[UserStudy]) -> Iterator[Result]:
    """Yields the report of each study, in order, as soon as its batch is written."""
    waiting = []

    def batches() -> Iterator[dict]:
      for group in groups(studies, self.work.config.decode.batch_size):
        batch, similarity = self.inputs(group)
        waiting.extend(zip(group, similarity))
        yield batch

    with jax.set_mesh(self.mesh):
      for written in self._generate.stream([self.member.variables], batches()):
        yield Result(waiting[0][0], written, waiting.pop(0)[1])

  def inputs(self, group: Sequence[UserStudy]) -> tuple[dict, list[list[float]]]:
    """Returns a batch of up to B studies, filled up with studies that don't count, and each film's likeness."""
    config = self.work.config
    size, num_views, side = config.decode.batch_size, config.data.num_views, config.data.image_size
    pixels = np.zeros((size, num_views, side, side, 1), np.uint8)
    views = np.full((size, num_views), -1)
    record, valid = np.full(size, group[0].record_number if group else 0, np.int32), np.arange(size) < len(group)
    views[len(group):, 0] = VIEWS.index("frontal")           # padding: studies of one black frontal view
    for row, study in enumerate(group):
      count = len(study.files)
      pixels[row, :count] = study.decode(side)
      views[row, :count] = [VIEWS.index(film.view) for film in study.files]
      record[row] = study.record_number
    seen, similarity = {"images": pixels}, [[] for _ in group]
    if config.encoder.frozen or self.ood_detector:
      encoded = np.array(self._encode(self._encoder_variables, pixels.reshape(-1, side, side, 1)))     # [B * V, P, C]
      encoded = encoded.reshape(size, num_views, *encoded.shape[1:])
      if config.encoder.frozen:
        seen = {"features": np.where((views >= 0)[..., None, None] & valid[:, None, None, None], encoded, 0)}
      if self.ood_detector:
        pooled = encoded.astype(np.float32).mean(2)                                                    # [B, V, C]
        similarity = [self.ood_detector.similarity(pooled[row, :len(study.files)]).tolist() for row, study in enumerate(group)]
    tokens = np.full((size, config.tokenizer.max_length + 1), self.work.tokenizer.pad_id, np.int32)
    tokens[:, 0] = self.work.tokenizer.bos_id                # no reference
    return make_batch(seen, views, tokens, record=record, valid=valid), similarity


def groups(studies: Iterable[UserStudy], size: int) -> Iterator[list[UserStudy]]:
  studies = iter(studies)
  while group := list(itertools.islice(studies, size)):
    yield group
