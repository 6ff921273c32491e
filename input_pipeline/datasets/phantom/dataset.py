"""The phantom data set: any number of synthetic chest radiographs with reports, as a TFDS builder.

Study `index` of a split is a pure function of (seed, split, index), so a larger data set contains the studies of a
smaller one. `first_train` skips training studies: such a data set can share val and test with another one, but no
training study. The labels of a study are exact, because its findings are sampled before images and report are made from
them.
"""

import dataclasses
import datetime
import io
from typing import cast

from ml_collections import ConfigDict
import numpy as np
from PIL import Image
import tensorflow_datasets as tfds

from input_pipeline.datasets import records
from input_pipeline.datasets.phantom.anatomy import draw_study
from input_pipeline.datasets.phantom.film import SIZE
from input_pipeline.datasets.phantom.reports import read_labels, write_report
from input_pipeline.datasets.records import SPLITS
from mcsam_jax.errors import UserError

JPEG_QUALITY = 90
SOURCE_VIEWS = {"frontal": "PA", "lateral": "LL"}
INDICATIONS = ("Cough.", "Shortness of breath.", "Chest pain.", "Fever.", "Preoperative evaluation.",
               "Follow up.")


@dataclasses.dataclass(kw_only=True)
class PhantomConfig(tfds.core.BuilderConfig):
  """Numbers of studies, index of the first training study, and `short_side` in pixels.

  The name tells sets with different fields apart, so they can coexist.
  """
  name: str = ""
  seed: int = 0
  num_train: int = 2000
  num_val: int = 200
  num_test: int = 400
  short_side: int = SIZE
  first_train: int = 0

  def __post_init__(self):
    first = f"from{self.first_train}" if self.first_train else ""
    self.name = (f"seed{self.seed}_train{self.num_train}{first}_val{self.num_val}_test{self.num_test}"
                 f"_side{self.short_side}")


class PhantomBuilder(records.RecordBuilder):
  """Synthetic chest radiographs with reports and exact labels; an entry of the plan is [split, index]."""
  name = "phantom"
  VERSION = tfds.core.Version("2.0.0")       # 2.0.0: the records of a split are in the order of their index

  def plan(self) -> records.BuildPlan:
    config = cast(PhantomConfig, self.builder_config)
    first_train = config.first_train
    indices = {"train": range(first_train, first_train + config.num_train),
               "val": range(config.num_val), "test": range(config.num_test)}
    return records.BuildPlan({split: [[split, index] for index in indices[split]] for split in SPLITS})

  def build_record(self, entry: tuple[str, int]) -> dict:
    split, index = entry
    config = cast(PhantomConfig, self.builder_config)
    return make_record(config.seed, split, index, config.short_side)


def make_record(seed: int, split: str, index: int, short_side: int = SIZE) -> dict:
  """Returns the record (see `records.record_features`) of study `index` of a split.

  Args:
    seed: seed of the data set.
    split: train, val or test.
    index: number of the study within the split.
    short_side: side length of the JPEGs in pixels, at most SIZE; 0 for SIZE.
  """
  key = (seed, SPLITS.index(split), index)
  study = draw_study(key)
  rng = np.random.default_rng((*key, 1))     # for the text; drawing uses separate streams
  findings, impression = write_report(study.findings, rng)
  name = f"phantom-{split}-{index:06d}"
  acquired_at = datetime.datetime(2020, 1, 1) + datetime.timedelta(minutes=int(rng.integers(5 * 365 * 24 * 60)))
  return records.make_empty_record() | {
      "id": name,
      "study_id": name,
      "subject_id": f"phantom-subject-{split}-{index:06d}",
      "images": [_encode(image, short_side) for image in study.images],
      "dicom_ids": [f"{name}-{view}" for view in study.views],
      "views": list(study.views),
      "source_views": [SOURCE_VIEWS[view] for view in study.views],
      "findings": findings,
      "impression": impression,
      "indication": str(rng.choice(INDICATIONS)),
      "technique": "PA and lateral views of the chest." if len(study.views) > 1 else "PA view of the chest.",
      "comparison": "None.",
      "study_datetime": acquired_at.isoformat(),
      "labels": read_labels(findings),
      "labels_from": "findings",
  }


def _encode(image: np.ndarray, short_side: int) -> bytes:
  """Returns a view as JPEG, downsampled to `short_side`, but never upsampled."""
  picture = Image.fromarray(image)
  if 0 < short_side < SIZE:
    picture = picture.resize((short_side, short_side), Image.Resampling.BOX, reducing_gap=None)
  jpeg = io.BytesIO()
  picture.save(jpeg, "JPEG", quality=JPEG_QUALITY)
  return jpeg.getvalue()


def make_builder(config: ConfigDict) -> PhantomBuilder:
  """Returns the builder for a config tree; its records are stored below `data.data_dir`.

  Raises:
    UserError: a size, `data.short_side` or the seed is out of range.
  """
  sizes = config.data.phantom
  for field in ("num_train", "num_val", "num_test"):
    if sizes[field] < 1:
      raise UserError(f"data.phantom.{field} is {sizes[field]}, expected at least 1")
  for field, value in (("data.phantom.seed", sizes.seed), ("data.phantom.first_train", sizes.first_train),
                       ("data.short_side", config.data.short_side)):
    if value < 0:
      raise UserError(f"{field} is {value}, expected 0 or more")
  short_side = min(config.data.short_side, SIZE) or SIZE
  return PhantomBuilder(data_dir=config.data.data_dir, file_format="array_record", config=PhantomConfig(
      seed=sizes.seed, num_train=sizes.num_train, num_val=sizes.num_val, num_test=sizes.num_test,
      short_side=short_side, first_train=sizes.first_train))
