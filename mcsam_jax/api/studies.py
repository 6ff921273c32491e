"""The studies that a loaded model takes: files, images in memory, prepared records.

A study is one image, a list of images, or a mapping such as a prepared record:

  an image      a path of a file (PNG, JPEG, TIFF, BMP, WebP, DICOM), or an image in memory (memory_images.py). A path
                of a folder stands for the images in it, if they are of one study, as `mcsam report` groups them.
  a list        the images of one study. Views come from DICOM headers and file names; otherwise the first image is the
                frontal one and the second the lateral one, as in `mcsam report`.
  a mapping     {"images": [...], "views": ["frontal", "lateral", ...]}, in the order in which the model is to see
                them; without "views" like a list.
"""

from collections.abc import Iterable, Iterator, Mapping
import dataclasses
import os
from typing import Any

from etils import epath
from ml_collections import ConfigDict
import numpy as np
import PIL.Image

from input_pipeline import user_images
from input_pipeline.user_images import ImageFile, UserStudy
from mcsam_jax.api.memory_images import store_image
from mcsam_jax.errors import UserError
from mcsam_jax.findings import VIEWS

_PATH_TYPES = (str, os.PathLike)
_IMAGE_TYPES = (*_PATH_TYPES, bytes, PIL.Image.Image, np.ndarray)


def iterate_studies(studies: Any) -> Iterator[tuple[str, Any]]:
  """Yields (name for errors, study) of one study or of an iterable of studies.

  Raises:
    UserError: it is neither.
  """
  if isinstance(studies, (*_IMAGE_TYPES, Mapping)):
    if isinstance(studies, np.ndarray) and studies.ndim > 3:
      raise UserError(f"studies is an array of {list(studies.shape)}: give a list of studies, each an image [height, "
                      "width] or a list of such images")
    yield "the study", studies
    return
  if not isinstance(studies, Iterable):
    raise UserError(f"studies is {type(studies).__name__}, expected a list of studies: paths, images, lists of these, "
                    "or records")
  yield from ((f"studies[{number}]", study) for number, study in enumerate(studies))


def read_study(name: str, study: Any, config: ConfigDict, default_view: str) -> UserStudy:
  """Reads a study, converted like the images of records.

  Args:
    name: of the study, for errors.
    study: see above.
    config: of the model.
    default_view: the view of a single image of which nothing is known.

  Raises:
    UserError: an image can't be read, or the study has none; the message names the study, and the file if it is one.
  """
  images, views = study, None
  if isinstance(study, Mapping):
    if "images" not in study:
      raise UserError(f"{name} has the keys {', '.join(map(str, study)) or 'none'}, expected images and views")
    images, views = study["images"], study.get("views")
  images = [images] if isinstance(images, _IMAGE_TYPES) else images
  if not isinstance(images, Iterable) or not (images := list(images)):
    raise UserError(f"{name} has no image: expected a path, an image, or a list of these")

  # The files of the study; those of images in memory exist only by name.
  files, in_memory = [], {}
  for number, image in enumerate(images):
    image_name = name if len(images) == 1 else f"{name}[{number}]"
    if isinstance(image, _PATH_TYPES):
      files += _find_files(image_name, image)
    elif isinstance(image, _IMAGE_TYPES):
      in_memory[image_name] = image
      files.append(ImageFile(epath.Path(image_name), image_name, ("memory",)))
    else:
      raise UserError(f"{image_name} is {type(image).__name__}, expected a path, bytes, a PIL image or a NumPy array")

  def read(file: ImageFile, data: ConfigDict) -> tuple[bytes, list[str]]:
    if file.study_key == ("memory",):
      jpeg, in_color = store_image(in_memory[file.name], file.name, data)
      return jpeg, [f"{file.name}: is in color, but radiographs are grayscale"] if in_color else []
    return user_images.read_jpeg(file, data)

  if views is None:
    result = user_images.read_study(files, config.data, default_view, read)
  else:
    result = _read_in_given_order(name, files, list(views), config, read)
  if len({file.study_key for file in files if file.study_key[0] == "dicom"}) > 1:
    result.warnings.append("its DICOM files belong to different studies, according to their headers")
  if result.unreadable:
    error = result.unreadable[0]
    raise UserError(f"{error.path}: {error.reason}" if error.path.startswith(name) else
                    f"{name}: {error.path}: {error.reason}")
  return result


def _read_in_given_order(name: str, files: list[ImageFile], views: list[str], config: ConfigDict, read) -> UserStudy:
  """Returns a study whose views are known: the model sees the first ones, in this order, as it does with records."""
  if len(views) != len(files):
    raise UserError(f"{name} has {len(files)} images and {len(views)} views: give one view for each image")
  if unknown := [view for view in views if view not in VIEWS]:
    raise UserError(f"{name} has the view {unknown[0]!r}, expected one of {', '.join(VIEWS)}")
  known = [dataclasses.replace(file, view=view, view_source="record") for file, view in zip(files, views)]
  num_views = config.data.num_views
  study = UserStudy([], [], known[num_views:], [], [])
  for file in known[:num_views]:
    single = user_images.read_study([file], config.data, read=read)
    for field in ("files", "jpegs", "unreadable", "warnings"):
      getattr(study, field).extend(getattr(single, field))
  return study


def _find_files(name: str, path: str | os.PathLike) -> list[ImageFile]:
  """Returns the image files at a path; raises UserError if there is none, or one that is no radiograph."""
  try:
    found = user_images.find_studies([os.fspath(path)])
  except (ValueError, TypeError) as error:               # such as a null byte, or a path of bytes
    raise UserError(f"{name}: {path!r} is no path ({error})") from error
  if found.unreadable:
    error = found.unreadable[0]
    raise UserError(f"{name}: {error.path}: {error.reason}")
  if not found.studies:
    raise UserError(f"{name}: {os.fspath(path)}: no image in this folder")
  if len(found.studies) > 1:
    raise UserError(f"{name}: {os.fspath(path)} holds the images of {len(found.studies)} studies: give a list of their "
                    "folders or files, one entry for each study")
  return found.studies[0]
