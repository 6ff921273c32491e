"""The phantom data set: synthetic chest radiographs with reports, any number of them, as a TFDS builder.

Study `index` of a split is a pure function of (seed, split, index): a larger
set holds the studies of a smaller one, and each study's labels are exact,
because what is drawn was decided before it was written.
"""

import concurrent.futures
import dataclasses
import datetime
import io
import multiprocessing
from collections.abc import Iterator

from ml_collections import ConfigDict
import numpy as np
from PIL import Image
import tensorflow_datasets as tfds

from input_pipeline.datasets import records
from input_pipeline.datasets.phantom_anatomy import draw_study
from input_pipeline.datasets.phantom_film import SIZE
from input_pipeline.datasets.phantom_reports import read_labels, write_report
from mcsam_jax.errors import UserError

SPLITS = ("train", "val", "test")
JPEG_QUALITY = 90
SOURCE_VIEWS = {"frontal": "PA", "lateral": "LL"}
INDICATIONS = ("Cough.", "Shortness of breath.", "Chest pain.", "Fever.", "Preoperative evaluation.",
               "Follow up.")
WORKERS = 2                                  # processes that draw; a set of a few studies needs none
STUDIES_A_TASK = 16


@dataclasses.dataclass(kw_only=True)
class PhantomConfig(tfds.core.BuilderConfig):
  """Sizes in studies; `short_side` in pixels. The name says all of it, so that sets stand side by side."""
  name: str = ""
  seed: int = 0
  num_train: int = 2000
  num_val: int = 200
  num_test: int = 400
  short_side: int = SIZE

  def __post_init__(self):
    self.name = (f"seed{self.seed}_train{self.num_train}_val{self.num_val}_test{self.num_test}"
                 f"_side{self.short_side}")


class Phantom(tfds.core.GeneratorBasedBuilder):
  """Synthetic chest radiographs with reports and exact labels."""
  VERSION = tfds.core.Version("1.0.0")

  def _info(self) -> tfds.core.DatasetInfo:
    return self.dataset_info_from_configs(
        description="Synthetic chest radiographs with reports and exact labels.",
        features=records.features())

  def _split_generators(self, dl_manager):
    del dl_manager                           # nothing is downloaded
    config = self.builder_config
    sizes = dict(zip(SPLITS, (config.num_train, config.num_val, config.num_test)))
    return {split: self._generate_examples(split, size) for split, size in sizes.items()}

  def _generate_examples(self, split: str, size: int) -> Iterator[tuple[str, dict]]:
    config = self.builder_config
    tasks = [(config.seed, split, start, min(start + STUDIES_A_TASK, size), config.short_side)
             for start in range(0, size, STUDIES_A_TASK)]
    if len(tasks) <= 2 * WORKERS:
      drawn = map(_make_records, tasks)
      yield from ((record["id"], record) for some in drawn for record in some)
      return
    # Processes are spawned, not forked: JAX and TensorFlow run threads.
    with concurrent.futures.ProcessPoolExecutor(WORKERS, multiprocessing.get_context("spawn")) as pool:
      for some in pool.map(_make_records, tasks):
        yield from ((record["id"], record) for record in some)


def _make_records(task: tuple) -> list[dict]:
  seed, split, start, stop, short_side = task
  return [make_record(seed, split, index, short_side) for index in range(start, stop)]


def make_record(seed: int, split: str, index: int, short_side: int = SIZE) -> dict:
  """Returns the record (see `records.features`) of study `index` of a split."""
  key = (seed, SPLITS.index(split), index)
  study = draw_study(key)
  rng = np.random.default_rng((*key, 1))     # of words; the drawing has streams of its own
  findings, impression = write_report(study.findings, rng)
  name = f"phantom-{split}-{index:06d}"
  taken = datetime.datetime(2020, 1, 1) + datetime.timedelta(minutes=int(rng.integers(5 * 365 * 24 * 60)))
  return records.empty_record() | {
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
      "study_datetime": taken.isoformat(),
      "labels": read_labels(findings),
      "labels_from": "findings",
  }


def _encode(image: np.ndarray, short_side: int) -> io.BytesIO:
  """Returns the JPEG of a view, made smaller where a shorter side is asked for, never larger."""
  picture = Image.fromarray(image)
  if 0 < short_side < SIZE:
    picture = picture.resize((short_side, short_side), Image.Resampling.BOX, reducing_gap=None)
  jpeg = io.BytesIO()
  picture.save(jpeg, "JPEG", quality=JPEG_QUALITY)
  jpeg.seek(0)
  return jpeg


def make_builder(config: ConfigDict) -> Phantom:
  """Returns the builder of a config tree, its records below `data.data_dir`.

  Raises:
    UserError: a size or a seed that makes no data set.
  """
  sizes = config.data.phantom
  for field in ("num_train", "num_val", "num_test"):
    if sizes[field] < 1:
      raise UserError(f"data.phantom.{field} is {sizes[field]}: every split needs at least one study")
  for field, value in (("data.phantom.seed", sizes.seed), ("data.short_side", config.data.short_side)):
    if value < 0:
      raise UserError(f"{field} is {value}: it can't be negative")
  short_side = min(config.data.short_side, SIZE) or SIZE
  return Phantom(data_dir=config.data.data_dir, file_format="array_record", config=PhantomConfig(
      seed=sizes.seed, num_train=sizes.num_train, num_val=sizes.num_val, num_test=sizes.num_test,
      short_side=short_side))
