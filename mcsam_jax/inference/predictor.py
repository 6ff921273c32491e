"""Generates reports of a user's own images: the model is loaded and compiled once, for any number of studies.

Images go through the same steps as records do in evaluation: `images.load_jpeg` (grayscale, shorter side, JPEG),
`images.decode` (the square that the model sees), and float16 features of a frozen encoder or of its frozen stages. So
the files that records were made from get the same reports as in `mcsam evaluate`.

Shapes: B studies, V views, S image size in pixels, P patches per view, C channels.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
import dataclasses
import itertools

import jax
from ml_collections import ConfigDict
import numpy as np

from input_pipeline.batch import make_batch
from input_pipeline.user_images import UserStudy
from mcsam_jax.checkpoints.workdir import Workdir
from mcsam_jax.distributed.mesh import decode_batch_size, make_mesh
from mcsam_jax.errors import UserError
from mcsam_jax.findings import VIEWS
from mcsam_jax.inference.generate import GeneratedReport, ReportGenerator
from mcsam_jax.inference.image_encoder import make_feature_fn, make_pool_fn
from mcsam_jax.inference.load import load_model
from mcsam_jax.inference.ood import load_initial_encoder, OODDetector


@dataclasses.dataclass
class Prediction:
  """The report of one study.

  Attributes:
    study: the study.
    report: its generated report.
    similarity: of each of its images to the training images; [] without a detector.
  """
  study: UserStudy
  report: GeneratedReport
  similarity: list[float]


class Predictor:
  """The model of a workdir, ready to generate reports of studies that are in no record.

  Attributes:
    workdir: the open workdir.
    ood_detector: detects images that are unlike the training images; None: no image is checked.
    loaded: the model at its checkpoint.
    mesh: over which batches are split; by default of one device.
    batch_size: B.
    search: beam | mbr.
    train_reports: those that `mbr` compares with; () for beam.
    notes: what a user should know about how reports are generated.
  """

  def __init__(self, workdir: Workdir, step: int | None, ood_detector: OODDetector | None,
               log: Callable[[str], None] = print, num_return: int = 1,
               devices: Sequence[jax.Device] | None = None):  # pyright: ignore[reportInvalidTypeForm]
    """Loads the model.

    Args:
      workdir: the open workdir; its config selects the search and the mesh.
      step: training step of the checkpoint; None: the best one on val, or the last.
      ood_detector: see above.
      log: receives lines of progress.
      num_return: number of best reports per study.
      devices: those of the mesh; None: the first one.

    Raises:
      UserError: the workdir has no checkpoint, or none of that step, or the checkpoint is damaged; the config's mesh
        doesn't fit the devices; or `num_return` exceeds the beams.
    """
    self.workdir, self.ood_detector, self.notes = workdir, ood_detector, []
    config = workdir.config
    self.mesh = make_mesh(config, jax.devices()[:1] if devices is None else devices)
    self.batch_size = decode_batch_size(config, self.mesh.shape)
    self.train_reports, self.search = (), config.decode.search
    if self.search == "mbr":
      try:
        self.train_reports = workdir.open_split("train").reports
      except UserError:
        self.search = "beam"
        self.notes.append("decode.search=mbr needs the training records, which are not on this machine: the reports "
                          "come from beam search instead")
    if config.encoder.frozen or ood_detector:
      encoder, self._encoder_variables = load_initial_encoder(workdir)
      self._encode = make_feature_fn(encoder, config, self.mesh.size)
      self._pool = make_pool_fn(config, workdir.encoder_variables)
    with jax.set_mesh(self.mesh):
      self.loaded = load_model(workdir, self.mesh, step, log)
    self._generate = self.make_generator(config, self.search, num_return, train_reports=self.train_reports)

  def make_generator(self, config: ConfigDict, search: str, num_return: int = 1, with_token_log_probs: bool = False,
                     train_reports: Sequence[str] = ()) -> ReportGenerator:
    """Returns a generator of this model's reports with other settings of `config.decode`; see `ReportGenerator`."""
    return ReportGenerator([self.loaded.model], config, self.workdir.tokenizer, self.mesh, search, train_reports,
                           num_return, with_token_log_probs)

  def predict(self, studies: Iterable[UserStudy], generator: ReportGenerator | None = None) -> Iterator[Prediction]:
    """Yields the report of each study, in order, as soon as its batch is finished.

    Args:
      studies: the studies.
      generator: from `make_generator`; None: the one that the workdir's config asks for.
    """
    generate = self._generate if generator is None else generator
    pending = []         # studies of the batches that have been read, in order

    def make_batches() -> Iterator[dict]:
      for group in batched(studies, self.batch_size):
        batch, similarities = self.make_batch(group)
        pending.extend(zip(group, similarities))
        yield batch

    with jax.set_mesh(self.mesh):
      for report in generate.stream([self.loaded.variables], make_batches()):
        study, similarity = pending.pop(0)
        yield Prediction(study, report, similarity)

  def make_batch(self, studies: Sequence[UserStudy]) -> tuple[dict, list[list[float]]]:
    """Returns a batch of up to B studies, padded to B, and the similarities of each study's images.

    Without a detector the similarities are empty.
    """
    config, detector = self.workdir.config, self.ood_detector
    batch_size, num_views, image_size = self.batch_size, config.data.num_views, config.data.image_size
    pixels = np.zeros((batch_size, num_views, image_size, image_size, 1), np.uint8)
    views = np.full((batch_size, num_views), -1)
    views[len(studies):, 0] = VIEWS.index("frontal")         # padding: studies of one black frontal view
    record = np.full(batch_size, studies[0].record_number if studies else 0, np.int32)
    valid = np.arange(batch_size) < len(studies)
    for row, study in enumerate(studies):
      count = len(study.files)
      pixels[row, :count] = study.decode(image_size)
      views[row, :count] = [VIEWS.index(file.view) for file in study.files]
      record[row] = study.record_number

    inputs, similarities = {"images": pixels}, [[] for _ in studies]
    if config.encoder.frozen or detector:
      flat = np.array(self._encode(self._encoder_variables, pixels.reshape(-1, image_size, image_size, 1)))
      features = flat.reshape(batch_size, num_views, *flat.shape[1:])                               # [B, V, P, C]
      if config.encoder.frozen:
        present = (views >= 0) & valid[:, None]                                                     # [B, V]
        inputs = {"features": np.where(present[..., None, None], features, 0)}
      if detector:
        pooled = self._pool(flat).reshape(batch_size, num_views, -1)                                # [B, V, C]
        similarities = [detector.compute_similarity(pooled[row, :len(study.files)]).tolist()
                        for row, study in enumerate(studies)]
    tokens = np.full((batch_size, config.tokenizer.max_length + 1), self.workdir.tokenizer.pad_id, np.int32)
    tokens[:, 0] = self.workdir.tokenizer.bos_id             # there is no reference report
    return make_batch(inputs, views, tokens, record=record, valid=valid), similarities


def batched(studies: Iterable[UserStudy], batch_size: int) -> Iterator[list[UserStudy]]:
  """Yields lists of `batch_size` studies; the last one may be shorter."""
  studies = iter(studies)
  while batch := list(itertools.islice(studies, batch_size)):
    yield batch
