"""Reads the images of a study as the model sees them: which of them, in which order, and what is odd about them."""

from collections.abc import Callable, Sequence
import dataclasses
import zlib

from ml_collections import ConfigDict
import numpy as np

from input_pipeline import dicom, images
from input_pipeline.image_files.files import read_regular
from input_pipeline.image_files.formats import is_color
from input_pipeline.user_images.image_file import ImageFile
from mcsam_jax.errors import UnreadableFile


@dataclasses.dataclass
class UserStudy:
  """The images of one study.

  Attributes:
    files: those that the model sees, the frontal first.
    jpegs: the image of each of them, as records store it (`images.load_jpeg`).
    unused: files beyond the number of views that the model sees.
    unreadable: files that can't be read.
    warnings: what a user should know about the study.
  """
  files: list[ImageFile]
  jpegs: list[bytes]
  unused: list[ImageFile]
  unreadable: list[UnreadableFile]
  warnings: list[str]

  @property
  def record_number(self) -> int:
    """A number for the field `record` of a batch, int32: a hash of the images.

    It seeds sampling, so that the report of a study does not depend on the other studies.
    """
    return zlib.crc32(b"".join(self.jpegs)) >> 1

  def decode(self, image_size: int) -> np.ndarray:
    """Returns the images as uint8 [V, S, S, 1], like `images` of a batch."""
    return np.stack([images.decode(jpeg, image_size) for jpeg in self.jpegs])


def order_views(files: Sequence[ImageFile], single_view: str = "frontal") -> list[ImageFile]:
  """Returns the files of a study in the order of records: the best frontal, the best lateral, then all others.

  PA is better than AP. Unknown views become the frontal, then the lateral, if the study has none yet, then `other`.

  Args:
    single_view: view of a single image of unknown view.
  """
  if len(files) == 1:
    missing_views = [single_view]
  else:
    missing_views = [view for view in ("frontal", "lateral") if all(file.view != view for file in files)]
  with_views = []
  for file in files:
    if not file.view:
      file = dataclasses.replace(file, view=missing_views.pop(0) if missing_views else "other")
    with_views.append(file)
  ranked = sorted(with_views, key=lambda file: (file.view == "frontal" and not file.is_pa, file.view_source == "order"))
  best = [next((file for file in ranked if file.view == view), None) for view in ("frontal", "lateral")]
  best = [file for file in best if file is not None]
  order = ("frontal", "lateral", "other")
  return best + sorted((file for file in ranked if file not in best), key=lambda file: order.index(file.view))


def read_study(files: Sequence[ImageFile], data: ConfigDict, single_view: str = "frontal",
               read: Callable[[ImageFile, ConfigDict], tuple[bytes, list[str]]] | None = None) -> UserStudy:
  """Reads up to `data.num_views` images of a study, converted like the images of records.

  An image that can't be read is noted and replaced by the next one.

  Args:
    data: `config.data`.
    single_view: see `order_views`.
    read: takes the place of `read_jpeg`, for images that are not in files.
  """
  read = read or read_jpeg
  study = UserStudy([], [], [], [], [])
  for file in order_views(files, single_view):
    if len(study.files) == data.num_views:
      study.unused.append(file)
      continue
    try:
      jpeg, warnings = read(file, data)
    except UnreadableFile as error:
      study.unreadable.append(error)
      continue
    study.files.append(file)
    study.jpegs.append(jpeg)
    study.warnings += warnings
  if len({file.patient for file in study.files} - {""}) > 1:
    study.warnings.append("the headers of these files name different patients")
  if study.unreadable:
    study.warnings.append(f"the report does not consider {', '.join(error.path for error in study.unreadable)}, which "
                          "can't be read")
  if study.unused:
    study.warnings.append(f"the model sees {data.num_views} view(s) per study: "
                          f"{', '.join(file.name for file in study.unused)} left out")
  return study


def read_jpeg(file: ImageFile, data: ConfigDict) -> tuple[bytes, list[str]]:
  """Returns an image as records store it (`images.to_jpeg`), and what a user should know about it.

  Args:
    data: `config.data`.

  Raises:
    UnreadableFile: it is not a complete image of one page; the error has the name that the user gave.
  """
  warnings = []
  try:
    content = read_regular(file.path, data.max_image_pixels)
    jpeg = images.to_jpeg(content, data.short_side, data.dicom_rendering, data.max_image_pixels, warnings.append)
    if not dicom.is_dicom(content[:dicom.HEAD_SIZE]) and is_color(content, data.max_image_pixels):
      warnings.append("is in color, but radiographs are grayscale")
  except UnreadableFile as error:
    raise UnreadableFile(file.name, error.reason) from error
  except Exception as error:            # see images.load_jpeg
    raise UnreadableFile(file.name, images.describe_decode_error(error)) from error
  return jpeg, [f"{file.name}: {warning}" for warning in [*file.warnings, *warnings]]
