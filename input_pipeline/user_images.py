"""Image files and folders of a user: which files are radiographs, which belong to one study, and which view each shows.

There is no table with this information, so it is taken from the files. A study consists of
  - the DICOM files with the same StudyInstanceUID, wherever they are;
  - the other images of a folder that was given, or that is inside one that was given, if there are at most MAX_VIEWS;
  - files in one folder whose names differ only in the view: smith_pa.png, smith_lateral.png;
  - otherwise one file. The user can also choose the grouping (GROUPINGS).
The view of an image comes from its DICOM header, otherwise from its name, otherwise from its position: the first image
is the frontal, the second the lateral.

Nothing from a DICOM header leaves this module except the view and warnings in fixed words: no name, number or date.
"""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import io
import os
import re
from typing import BinaryIO, cast
import zlib

from etils import epath
from ml_collections import ConfigDict
import numpy as np
import PIL.Image

from input_pipeline import dicom, images
from input_pipeline.datasets.mimic_cxr.tables import classify_view
from mcsam_jax.errors import UnreadableFile
from mcsam_jax.files.home import expand_home

# How files are grouped into studies: by the rules above, all into one, one study per folder, or one per file.
GROUPINGS = ("auto", "all", "folder", "file")
MAX_VIEWS = 4                 # per study in a folder; a folder with more images is a collection of studies
SUFFIXES = frozenset(".png .jpg .jpeg .jp2 .tif .tiff .bmp .webp .gif .pgm .dcm .dicom".split())
_FRONTAL_WORDS, _LATERAL_WORDS = {"pa", "ap", "frontal", "front"}, {"lateral", "lat", "ll", "rl"}
# Modalities (PS3.3 C.7.3.1.1.1) that can't be a chest radiograph; CR, DX and unknown values are accepted.
_OTHER_MODALITIES = {
    "CT": "computed tomography", "MR": "magnetic resonance", "US": "ultrasound", "PT": "positron emission",
    "NM": "nuclear medicine", "MG": "mammography", "XA": "angiography", "IO": "an intraoral dental image",
    "PX": "a dental panorama", "OP": "ophthalmic photography", "OPT": "ophthalmic tomography", "ES": "endoscopy",
    "SM": "microscopy", "GM": "microscopy", "ECG": "an electrocardiogram", "BMD": "bone densitometry"}
_CHEST = {"", "CHEST", "THORAX", "LUNG", "HEART", "RIB", "RIBS", "CHESTABDOMEN"}
# An image is in color if the channels of so many of its pixels differ by more than JPEG noise.
_MIN_COLOR_RANGE, _MIN_COLOR_FRACTION = 32, 0.1


@dataclasses.dataclass(frozen=True)
class ImageFile:
  """A file that may be a radiograph, before its pixels are read.

  Attributes:
    path: path of the file.
    name: name of the file as the user gave it.
    study_key: equal for the files that header or name assign to one study.
    view: frontal, lateral or other; "" if unknown.
    view_source: header, name or order; what determined the view.
    is_pa: whether it is known to be a postero-anterior frontal image.
    warnings: what a user should know about the file.
  """
  path: epath.Path
  name: str
  study_key: tuple[str, ...]
  view: str = ""
  view_source: str = "order"
  is_pa: bool = False
  warnings: tuple[str, ...] = ()


@dataclasses.dataclass
class FoundStudies:
  """The studies in the given files and folders.

  Attributes:
    studies: the files of each study, in the order in which they were given; files of a folder are sorted by name.
    unreadable: files that can't be used, each with its name as the user gave it.
    num_skipped: number of files in folders that are not images.
  """
  studies: list[list[ImageFile]]
  unreadable: list[UnreadableFile]
  num_skipped: int


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


def find_studies(paths: Sequence[str], grouping: str = "auto") -> FoundStudies:
  """Returns the studies in files and folders. Folders are searched recursively, without hidden files and links.

  Args:
    grouping: one of GROUPINGS.
  """
  found, by_study, seen = FoundStudies([], [], 0), {}, set()
  for name in paths:
    path = expand_home(name)
    is_folder = path.is_dir()
    try:
      listed = list(_list_files(path, str(name))) if is_folder else [(path, str(name))]
    except OSError as error:
      found.unreadable.append(UnreadableFile(_make_printable(error.filename or name), error.strerror or str(error)))
      continue
    new = [(file, shown_name) for file, shown_name in listed if str(file) not in seen]
    seen.update(str(file) for file, _ in new)
    image_files, num_unreadable = [], len(found.unreadable)
    for file, shown_name in new:
      shown_name = _make_printable(shown_name)
      try:
        image_file = _inspect_file(file, shown_name, in_folder=is_folder)
      except dicom.DicomError as error:
        found.unreadable.append(UnreadableFile(shown_name, str(error)))
      except OSError as error:
        reason = "no such file or folder" if isinstance(error, FileNotFoundError) else error.strerror or str(error)
        found.unreadable.append(UnreadableFile(shown_name, reason))
      else:
        if image_file is None:
          found.num_skipped += 1
        else:
          image_files.append(image_file)
    nothing_found = not image_files and len(new) == len(listed) and len(found.unreadable) == num_unreadable
    if len(paths) > 1 and is_folder and nothing_found:
      found.unreadable.append(UnreadableFile(_make_printable(name), "no image in this folder"))
    num_images = {}           # folder -> number of images whose header does not name a study
    for image_file in image_files:
      folder = str(image_file.path.parent)
      num_images[folder] = num_images.get(folder, 0) + (image_file.study_key[0] != "dicom")
    for image_file in image_files:
      folder_is_study = is_folder and num_images[str(image_file.path.parent)] <= MAX_VIEWS
      by_study.setdefault(_choose_study(image_file, grouping, folder_is_study), []).append(image_file)
  found.studies = list(by_study.values())
  return found


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
               read: Callable[[ImageFile, int, str], tuple[bytes, bool]] | None = None) -> UserStudy:
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
      jpeg, in_color = read(file, data.short_side, data.dicom_rendering)
    except UnreadableFile as error:
      study.unreadable.append(error)
      continue
    study.files.append(file)
    study.jpegs.append(jpeg)
    study.warnings += [f"{file.name}: {warning}" for warning in file.warnings]
    if in_color:
      study.warnings.append(f"{file.name} is in color, but radiographs are grayscale")
  if study.unreadable:
    study.warnings.append(f"the report does not consider {', '.join(error.path for error in study.unreadable)}, which "
                          "can't be read")
  if study.unused:
    study.warnings.append(f"the model sees {data.num_views} view(s) per study: "
                          f"{', '.join(file.name for file in study.unused)} left out")
  return study


def read_jpeg(file: ImageFile, short_side: int, dicom_rendering: str) -> tuple[bytes, bool]:
  """Returns an image as records store it (`images.load_jpeg`), and whether the file is in color.

  Raises:
    UnreadableFile: it is not a complete image of one page; the error has the name that the user gave.
  """
  try:
    jpeg = images.load_jpeg(file.path, short_side, dicom_rendering)
    return jpeg, is_color(file.path.read_bytes())
  except UnreadableFile as error:
    raise UnreadableFile(file.name, error.reason) from error
  except OSError as error:
    raise UnreadableFile(file.name, error.strerror or str(error)) from error
  except Exception as error:            # see images.load_jpeg
    raise UnreadableFile(file.name, images.describe_decode_error(error)) from error


def is_color(data: bytes) -> bool:
  """Returns whether an image file contains more than shades of gray; False for DICOM files, which are not checked."""
  if dicom.is_dicom(data):
    return False
  with PIL.Image.open(io.BytesIO(data), formats=images.FORMATS) as image:
    if image.mode in ("1", "L", "LA", "I", "F") or image.mode.startswith("I;"):
      return False
    image.draft("RGB", (128, 128))
    channels = np.asarray(image.convert("RGB").resize((64, 64), PIL.Image.Resampling.BOX), int)
  return bool((np.ptp(channels, axis=-1) > _MIN_COLOR_RANGE).mean() > _MIN_COLOR_FRACTION)


def _list_files(folder: epath.Path, name: str) -> Iterator[tuple[epath.Path, str]]:
  """Yields the files below a folder with the names to show, those of a folder before those of its subfolders."""
  entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
  entries.sort(key=lambda entry: entry.name)
  folders = [entry for entry in entries if entry.is_dir()]
  for entry in entries:
    if entry not in folders:
      yield entry, os.path.join(name, entry.name)
  for entry in folders:
    if not os.path.islink(os.fspath(entry)):                 # a link may lead back to a parent folder
      yield from _list_files(entry, os.path.join(name, entry.name))


def _inspect_file(path: epath.Path, name: str, in_folder: bool) -> ImageFile | None:
  """Returns what header and name say about a file; None if it was found in a folder and is not an image.

  Raises:
    DicomError: the header shows that it is not a chest radiograph.
    OSError: the file can't be read.
  """
  with path.open("rb") as file:
    is_dicom = dicom.is_dicom(file.read(132))
    if in_folder and (path.suffix.lower() not in SUFFIXES and not is_dicom or path.name == "DICOMDIR"):
      return None
    if not is_dicom:
      view, stem = _split_view_from_name(path.name)
      return ImageFile(path, name, ("file", str(path.parent), stem), view, "name" if view else "order",
                       "pa" in _split_words(path.name))
    file.seek(0)
    return _inspect_header(path, name, dicom.read_header(cast(BinaryIO, file)))


def _inspect_header(path: epath.Path, name: str, header: dicom.DicomHeader) -> ImageFile:
  """Returns what the header of a DICOM file says about it; raises DicomError for other modalities."""
  if header.modality in _OTHER_MODALITIES:
    raise dicom.DicomError(f"the header says {_OTHER_MODALITIES[header.modality]} ({header.modality}), expected a "
                           "chest radiograph (CR, DX)")
  shows_chest = re.sub(r"[^A-Z]", "", header.body_part.upper()) in _CHEST
  warnings = () if shows_chest else ("its header says that it shows another part of the body",)
  view, source_view = classify_view(header.view_position, header.view_meaning)
  view_source = "header"
  if not source_view:                                        # the header has no view, and `other` is a default
    view, _ = _split_view_from_name(path.name)
    view_source = "name" if view else "order"
  if header.study:
    study_key = ("dicom", header.study)
  else:
    study_key = ("file", str(path.parent), _split_view_from_name(path.name)[1])
  is_pa = source_view.lower().startswith(("pa", "postero"))
  return ImageFile(path, name, study_key, view, view_source, is_pa, warnings)


def _split_view_from_name(name: str) -> tuple[str, str]:
  """Returns the view in a file name, "" if it has none, and the rest of the name without suffix."""
  words = _split_words(name)
  views = {"frontal" for word in words if word in _FRONTAL_WORDS} | {
      "lateral" for word in words if word in _LATERAL_WORDS}
  if len(views) != 1:
    return "", name
  return views.pop(), " ".join(word for word in words if word not in _FRONTAL_WORDS | _LATERAL_WORDS)


def _split_words(name: str) -> list[str]:
  """Returns the words and numbers of a file name, lower-case and without suffix."""
  return re.findall(r"[a-z]+|[0-9]+", name.rpartition(".")[0].lower() or name.lower())


def _make_printable(name: str) -> str:
  """Returns a file name that terminals and JSON can show, whatever bytes it consists of."""
  return "".join(letter if letter.isprintable() else "?" for letter in str(name))


def _choose_study(file: ImageFile, grouping: str, folder_is_study: bool) -> tuple[str, ...]:
  """Returns a key that the files of one study share under a grouping."""
  if grouping == "all":
    return ()
  if grouping == "file":
    return (str(file.path),)
  if grouping == "folder" or (file.study_key[0] != "dicom" and folder_is_study):
    return ("folder", str(file.path.parent))
  return file.study_key
