"""Does an image look like those that a model was trained on? A photograph gets a report as readily as a chest X-ray.

An image is told by its pooled features: those of the encoder as it was before training, mean over the patches. Its
likeness is the mean cosine to the NUM_NEIGHBOURS nearest of a sample of training images (deep nearest neighbours for
what is out of distribution; Sun et al., ICML 2022). Val images, which training hasn't seen either, say what is usual:
an image is unfamiliar when it is less like train than all but a share of RARE of them. Every view takes part.

What it takes to ask, a few megabytes, is kept in the workdir, so that the records are needed once:
  W/familiar.npz    reference float16 [R, C] of length 1, usual (a cosine), first_view (index in VIEWS)

Shapes: M images, R training images of the sample, C channels.
"""

from collections.abc import Callable
import dataclasses
import io

from absl import logging
import jax
import numpy as np

from input_pipeline import token_table
from input_pipeline.splits import Split
from mcsam_jax.atomic_io import atomic_write, NPZ_ERRORS
from mcsam_jax.checkpoints.workdir import init_encoder_variables, Workdir
from mcsam_jax.errors import UserError
from mcsam_jax.findings import VIEWS
from mcsam_jax.inference.feature_cache import pooled_images, split_features
from mcsam_jax.models.visual_encoders.registry import make_encoder

MOST_TRAIN, MOST_VAL = 1000, 500      # studies of the samples
NUM_NEIGHBOURS = 5
FALSE_ALARM_RATE = 0.005                          # share of val images that may be called unfamiliar


@dataclasses.dataclass
class OODDetector:
  """What images a model knows."""
  reference: np.ndarray     # float16 [R, C]
  usual: float              # the likeness that all but RARE of the val images reach
  first_view: str           # what the first view of a training study mostly is

  def similarity(self, pooled: np.ndarray) -> np.ndarray:
    """Returns float32 [M] of pooled features [M, C]."""
    cosines = unit(pooled) @ self.reference.astype(np.float32).T                           # [M, R]
    count = min(NUM_NEIGHBOURS, cosines.shape[1])
    return np.partition(cosines, -count, axis=1)[:, -count:].mean(1)


def load_or_learn(work: Workdir, log: Callable[[str], None] = print) -> OODDetector | None:
  """Returns what images the model of a workdir knows, from its file or from the records; None without either."""
  path = work.path / "familiar.npz"
  try:
    with np.load(io.BytesIO(path.read_bytes())) as kept:
      return OODDetector(kept["reference"], float(kept["usual"]), VIEWS[int(kept["first_view"])])
  except (IndexError, *NPZ_ERRORS):
    pass                                                # not there yet, or damaged
  try:
    train, val = work.open_split("train"), work.open_split("val")
  except UserError:
    return None
  log("looking at the training images, to tell what isn't like them (once)")
  ood_detector = learn(pooled_sample(work, train, MOST_TRAIN, log), pooled_sample(work, val, MOST_VAL, log),
                   first_view(work, train))
  kept = io.BytesIO()
  np.savez(kept, reference=ood_detector.reference, usual=ood_detector.usual, first_view=VIEWS.index(ood_detector.first_view))
  try:
    atomic_write(path, kept.getvalue())
  except OSError as error:                              # a workdir that only may be read
    logging.info("%s wasn't kept: %s", path, error)
  return ood_detector


def learn(train: np.ndarray, val: np.ndarray, view: str = "frontal") -> OODDetector:
  """Returns what is familiar from pooled features [R, C] of train and [M, C] of val images."""
  ood_detector = OODDetector(unit(train).astype(np.float16), 0.0, view)
  ood_detector.usual = float(np.quantile(ood_detector.similarity(val), FALSE_ALARM_RATE, method="lower"))
  return ood_detector


def pooled_sample(work: Workdir, split: Split, most: int, log: Callable[[str], None]) -> np.ndarray:
  """Returns the pooled features [M, C] of all views of at most `most` studies, evenly spread over a split."""
  chosen = np.unique(np.linspace(0, len(split) - 1, min(most, len(split))).astype(int))
  num_views = work.config.data.num_views
  if work.config.encoder.frozen:
    known = token_table.load_token_table(split, work.tokenizer).views[chosen, :num_views] >= 0      # [n, V]
    features = split_features(work, split, log)
    return np.concatenate([features[study, :known.shape[1]][there].astype(np.float32).mean(1)
                           for study, there in zip(chosen, known)])
  encoder, variables = initial_encoder(work)
  return pooled_images(work.config, split.read(chosen), encoder, variables, log)


def initial_encoder(work: Workdir):
  """Returns the encoder as it was before training: module and variables."""
  variables = work.encoder_variables if work.encoder_variables is not None else init_encoder_variables(work.config)
  return make_encoder(work.config.encoder.name), jax.device_put(variables)


def first_view(work: Workdir, train: Split) -> str:
  """Returns what the first view of a training study mostly is."""
  views = token_table.load_token_table(train, work.tokenizer).views[:, 0]
  return VIEWS[int(np.bincount(views[views >= 0], minlength=1).argmax())]


def unit(vectors: np.ndarray) -> np.ndarray:
  vectors = np.asarray(vectors, np.float32)
  return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
