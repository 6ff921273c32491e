"""Detects images that are unlike a model's training images; a photograph gets a report as readily as a chest X-ray.

An image is represented by its pooled features: the features of the encoder as it was before training, averaged over
the patches. Its similarity is the mean cosine to its NUM_NEIGHBORS nearest neighbors in a sample of training images
(deep nearest neighbors for out-of-distribution detection; Sun et al., ICML 2022). The threshold comes from val images,
which training has not seen either: all but a fraction of FALSE_ALARM_RATE of them reach it. Images of all views take
part.

The detector takes a few megabytes. It is stored in the workdir, so that the records are needed only once:

  W/ood.npz    reference float16 [R, C] of length 1, threshold (a cosine), first_view (index in VIEWS)

Shapes: M images, R training images of the sample, n studies, V views, C channels.
"""

from collections.abc import Callable
import dataclasses
import io

from absl import logging
from etils import epath
from flax import linen as nn
import jax
import numpy as np

from input_pipeline.splits import Split
from input_pipeline.token_table import load_token_table
from mcsam_jax.atomic_io import atomic_write
from mcsam_jax.checkpoints.encoder_weights import init_encoder_variables, select_frozen_variables
from mcsam_jax.checkpoints.workdir import Workdir
from mcsam_jax.errors import UserError
from mcsam_jax.files.untrusted import open_npz
from mcsam_jax.findings import VIEWS
from mcsam_jax.inference.feature_cache import load_split_features
from mcsam_jax.inference.image_encoder import compute_pooled_views, make_pool_fn
from mcsam_jax.models.visual_encoders.registry import find_encoder, make_frozen_stages

OOD_FILE = "ood.npz"
MAX_TRAIN_STUDIES, MAX_VAL_STUDIES = 1000, 500      # sampled
STUDIES_PER_BATCH = 16                              # whose images are pooled at once
NUM_NEIGHBORS = 5
FALSE_ALARM_RATE = 0.005                            # fraction of val images below the threshold


@dataclasses.dataclass
class OODDetector:
  """A sample of training images, and the similarity that an image of the same kind reaches.

  Attributes:
    reference: float16 [R, C], pooled features of training images, of length 1.
    threshold: a mean cosine; images with a lower similarity are out of distribution.
    first_view: the most common first view of the training studies, one of VIEWS.
  """
  reference: np.ndarray
  threshold: float
  first_view: str

  def compute_similarity(self, pooled: np.ndarray) -> np.ndarray:
    """Returns the similarity float32 [M] of images with pooled features [M, C]."""
    cosines = l2_normalize(pooled) @ self.reference.astype(np.float32).T                   # [M, R]
    count = min(NUM_NEIGHBORS, cosines.shape[1])
    return np.partition(cosines, -count, axis=1)[:, -count:].mean(1)

  def describe_outlier(self, name: str, similarity: float) -> str:
    """Returns the warning about an image, called `name`, whose similarity is below the threshold."""
    return (f"{name} doesn't look like a chest X-ray of the kind that the model was trained on (similarity "
            f"{similarity:.2f}; {1 - FALSE_ALARM_RATE:.1%} of the val images reach {self.threshold:.2f})")


def load_or_fit_detector(workdir: Workdir, log: Callable[[str], None] = print) -> OODDetector | None:
  """Returns the detector of a workdir from its file, or fits it to the records; None if neither can be read."""
  path = workdir.path / OOD_FILE
  try:
    return _load_detector(path, find_encoder(workdir.config.encoder.name).channels)
  except (OSError, ValueError):
    pass                                                # the file does not exist yet, or is damaged
  try:
    train, val = workdir.open_split("train"), workdir.open_split("val")
  except UserError:
    return None
  log("fitting the detector of out-of-distribution images to a sample of train and val (once)")
  detector = fit_detector(_pool_sample(workdir, train, MAX_TRAIN_STUDIES, log),
                          _pool_sample(workdir, val, MAX_VAL_STUDIES, log), _find_common_first_view(workdir, train))
  try:
    save_detector(workdir.path, detector)
  except OSError as error:                              # a read-only workdir
    logging.info("%s could not be stored: %s", path, error)
  return detector


def save_detector(directory: epath.Path, detector: OODDetector) -> None:
  """Writes OOD_FILE to a folder."""
  buffer = io.BytesIO()
  np.savez(buffer, reference=detector.reference, threshold=detector.threshold,
           first_view=VIEWS.index(detector.first_view))
  atomic_write(directory / OOD_FILE, buffer.getvalue())


def _load_detector(path: epath.Path, channels: int) -> OODDetector:
  """Returns the detector in a file; raises OSError or ValueError if it is missing or damaged."""
  with open_npz(path) as file:
    reference, threshold, first_view = (file.read(name) for name in ("reference", "threshold", "first_view"))
  if (reference.dtype != np.float16 or reference.ndim != 2 or reference.shape[1] != channels or not len(reference)
      or threshold.dtype.kind != "f" or first_view.dtype.kind not in "iu" or threshold.shape or first_view.shape
      or not np.isfinite(reference).all() or not -1 <= threshold <= 1 or not 0 <= first_view < len(VIEWS)):
    raise ValueError(f"{path} holds no detector of images with {channels} channels")
  return OODDetector(reference, float(threshold), VIEWS[int(first_view)])


def fit_detector(train: np.ndarray, val: np.ndarray, first_view: str = "frontal") -> OODDetector:
  """Returns a detector from the pooled features of train images [R, C] and val images [M, C]."""
  detector = OODDetector(l2_normalize(train).astype(np.float16), 0.0, first_view)
  detector.threshold = float(np.quantile(detector.compute_similarity(val), FALSE_ALARM_RATE, method="lower"))
  return detector


def load_initial_encoder(workdir: Workdir) -> tuple[nn.Module, dict]:
  """Returns the encoder as it was before training, or its frozen stages alone: the module and its variables."""
  variables = workdir.encoder_variables
  if variables is None:
    variables = init_encoder_variables(workdir.config)
  return make_frozen_stages(workdir.config), jax.device_put(select_frozen_variables(workdir.config, variables))


def l2_normalize(vectors: np.ndarray) -> np.ndarray:
  """Returns float32 vectors [M, C] of length 1."""
  vectors = np.asarray(vectors, np.float32)
  return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def _pool_sample(workdir: Workdir, split: Split, max_studies: int, log: Callable[[str], None]) -> np.ndarray:
  """Returns the pooled features [M, C] of all views of at most `max_studies` studies, evenly spread over a split."""
  sample = np.unique(np.linspace(0, len(split) - 1, min(max_studies, len(split))).astype(int))
  num_views = workdir.config.data.num_views
  features = load_split_features(workdir, split, log)
  if features is not None:
    present = load_token_table(split, workdir.tokenizer).views[sample, :num_views] >= 0      # [n, V]
    pool = make_pool_fn(workdir.config, workdir.encoder_variables)
    images = lambda start: [features[study, :mask.shape[0]][mask] for study, mask in zip(
        sample[start:start + STUDIES_PER_BATCH], present[start:start + STUDIES_PER_BATCH])]
    return np.concatenate([pool(np.concatenate(images(start))) for start in range(0, len(sample), STUDIES_PER_BATCH)])
  encoder, variables = load_initial_encoder(workdir)
  return compute_pooled_views(workdir.config, split, sample.tolist(), encoder, variables, log)


def _find_common_first_view(workdir: Workdir, train: Split) -> str:
  """Returns the most common first view of the training studies."""
  views = load_token_table(train, workdir.tokenizer).views[:, 0]
  return VIEWS[int(np.bincount(views[views >= 0], minlength=1).argmax())]
