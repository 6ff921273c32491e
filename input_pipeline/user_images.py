"""Image files and folders of a user's own: which of them are films, which films are one study, what each shows.

No table comes with them, so all of it is told by the files. A study is
  - the DICOM files that name the same study (StudyInstanceUID), wherever they lie;
  - of other images, a folder that was given, or lies in one, with no more than MOST_VIEWS of them;
  - files beside each other whose names differ in the view alone: smith_pa.png, smith_lateral.png;
  - else each file; or what the user says (GROUPINGS).
A view is told by the DICOM header, else by the name, else by the order: first the frontal, then the lateral.

Of a header nothing leaves this file but the view and warnings in its own words: no name, number or date.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import io
import os
import re
import zlib

from etils import epath
from ml_collections import ConfigDict
import numpy as np
import PIL.Image

from input_pipeline import dicom, images
from input_pipeline.datasets.mimic_cxr.tables import classify_view
from mcsam_jax.errors import UnreadableFile

GROUPINGS = ("auto", "all", "folder", "file")    # who is one study: as above, all files, those of a folder, each file
MOST_VIEWS = 4                # of one study in a folder; a folder of more images is a collection
SUFFIXES = frozenset(".png .jpg .jpeg .jp2 .tif .tiff .bmp .webp .gif .pgm .dcm .dicom".split())
_FRONTAL, _LATERAL = {"pa", "ap", "frontal", "front"}, {"lateral", "lat", "ll", "rl"}
# Modalities (PS3.3 C.7.3.1.1.1) that are no projection of a chest on film; CR, DX and what is unknown pass.
_NO_FILM = {"CT": "computed tomography", "MR": "magnetic resonance", "US": "ultrasound", "PT": "positron emission",
            "NM": "nuclear medicine", "MG": "mammography", "XA": "angiography", "IO": "a dental film",
            "PX": "a dental panorama", "OP": "ophthalmic photography", "OPT": "ophthalmic tomography",
            "ES": "endoscopy", "SM": "microscopy", "GM": "microscopy", "ECG": "a cardiogram", "BMD": "bone density"}
_CHEST = {"", "CHEST", "THORAX", "LUNG", "HEART", "RIB", "RIBS", "CHESTABDOMEN"}
_COLOUR_RANGE, _COLOUR_SHARE = 32, 0.1       # a pixel whose channels differ so much is coloured; JPEG's noise is below


@dataclasses.dataclass(frozen=True)
class ImageFile:
  """A file that is to be looked at."""
  path: epath.Path
  name: str                   # as the user gave it
  study: tuple[str, ...]      # the films of a study share it
  view: str = ""              # frontal | lateral | other | "": not told
  told_by: str = "order"      # header | name | order
  pa: bool = False            # a frontal film known to be postero-anterior
  warnings: tuple[str, ...] = ()


@dataclasses.dataclass
class Found:
  """What was found, in the order in which it was given; a folder's files by their names."""
  studies: list[list[ImageFile]]
  refused: list[UnreadableFile]   # each names its file as the user did
  skipped: int            # files in folders that are no images


@dataclasses.dataclass
class Study:
  """The films of one study, read."""
  films: list[ImageFile]           # that a model sees, the frontal first
  jpegs: list[bytes]          # of each, as `images.load_jpeg` gives it to records
  left_out: list[ImageFile]        # more views than a model sees
  refused: list[UnreadableFile]   # can't be read
  warnings: list[str]

  @property
  def number(self) -> int:
    """An int32 of the images alone: what is drawn by chance for a study doesn't depend on its place among others."""
    return zlib.crc32(b"".join(self.jpegs)) >> 1

  def decoded(self, image_size: int) -> np.ndarray:
    """Returns uint8 [V, S, S, 1], as `pipeline.make_batch` has it."""
    return np.stack([images.decode(jpeg, image_size) for jpeg in self.jpegs])


def find(given: Sequence[str], grouping: str = "auto") -> Found:
  """Returns the studies in files and folders; folders are searched to any depth, hidden files and links left out."""
  found, by_study, seen = Found([], [], 0), {}, set()
  for name in given:
    path = epath.Path(name).expanduser()
    try:
      listed = list(_below(path, str(name))) if path.is_dir() else [(path, str(name))]
    except OSError as error:
      found.refused.append(UnreadableFile(_printable(error.filename or name), error.strerror or str(error)))
      continue
    num_images, films, told, again = {}, [], len(found.refused), False
    for file, shown in listed:
      if str(file) in seen:
        again = True
        continue
      seen.add(str(file))
      shown = _printable(shown)
      try:
        with file.open("rb") as opened:
          is_dicom = dicom.is_dicom(opened.read(132))
          if path is not file and (file.suffix.lower() not in SUFFIXES and not is_dicom or file.name == "DICOMDIR"):
            found.skipped += 1
            continue
          opened.seek(0)
          films.append(_film(file, shown, dicom.read_header(opened) if is_dicom else None))
      except dicom.Refused as error:
        found.refused.append(UnreadableFile(shown, str(error)))
        continue
      except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        found.refused.append(UnreadableFile(shown, "no such file or folder" if missing else error.strerror or str(error)))
        continue
      folder = str(file.parent)
      num_images[folder] = num_images.get(folder, 0) + (films[-1].study[0] != "dicom")
    if len(given) > 1 and path.is_dir() and not (films or again or len(found.refused) > told):
      found.refused.append(UnreadableFile(_printable(name), "no image in this folder"))
    for film in films:
      whole_folder = path.is_dir() and num_images[str(film.path.parent)] <= MOST_VIEWS
      by_study.setdefault(_study(film, grouping, whole_folder), []).append(film)
  found.studies = list(by_study.values())
  return found


def in_order(films: Sequence[ImageFile], alone: str = "frontal") -> list[ImageFile]:
  """Returns the films of a study as records have their views: best frontal, best lateral, then all others.

  A PA film is better than an AP one. A view that nobody tells is the frontal, then the lateral, where there is none
  yet, then `other`.

  Args:
    alone: what a single film of unknown view is.
  """
  if len(films) == 1:
    free = [alone]
  else:
    free = [view for view in ("frontal", "lateral") if all(film.view != view for film in films)]
  told = []
  for film in films:
    told.append(film if film.view else dataclasses.replace(film, view=free.pop(0) if free else "other"))
  ranked = sorted(told, key=lambda film: (film.view == "frontal" and not film.pa, film.told_by == "order"))
  first = [next((film for film in ranked if film.view == view), None) for view in ("frontal", "lateral")]
  first = [film for film in first if film is not None]
  kinds = ("frontal", "lateral", "other")
  return first + sorted((film for film in ranked if film not in first), key=lambda film: kinds.index(film.view))


def read_study(films: Sequence[ImageFile], data: ConfigDict, alone: str = "frontal") -> Study:
  """Returns a study with as many of its films as `data.num_views`, as records of the config `data` have them.

  A film that can't be read is refused, and the next one takes its place.

  Args:
    alone: see `in_order`.
  """
  study = Study([], [], [], [], [])
  for film in in_order(films, alone):
    if len(study.films) == data.num_views:
      study.left_out.append(film)
      continue
    try:
      jpeg, coloured = read_jpeg(film, data.short_side, data.dicom_rendering)
    except UnreadableFile as error:
      study.refused.append(error)
      continue
    study.films.append(film)
    study.jpegs.append(jpeg)
    study.warnings += [f"{film.name}: {warning}" for warning in film.warnings]
    if coloured:
      study.warnings.append(f"{film.name} is in colour, a radiograph is gray")
  if study.refused:
    study.warnings.append(f"written without {', '.join(error.path for error in study.refused)}, which can't be read")
  if study.left_out:
    study.warnings.append(f"the model sees {data.num_views} view(s) of a study: "
                          f"{', '.join(film.name for film in study.left_out)} left out")
  return study


def read_jpeg(film: ImageFile, short_side: int, dicom_rendering: str) -> tuple[bytes, bool]:
  """Returns a film as `images.load_jpeg` gives it to records, and whether the file is in colour.

  Raises:
    Unreadable: it is no (whole) image of one page; the error names the file as the user did.
  """
  try:
    jpeg = images.load_jpeg(film.path, short_side, dicom_rendering)
    return jpeg, is_coloured(film.path.read_bytes())
  except UnreadableFile as error:
    raise UnreadableFile(film.name, error.reason) from error
  except OSError as error:
    raise UnreadableFile(film.name, error.strerror or str(error)) from error


def is_coloured(data: bytes) -> bool:
  """Tells whether a file that Pillow can read shows more than shades of gray; a DICOM file isn't asked."""
  if dicom.is_dicom(data):
    return False
  with PIL.Image.open(io.BytesIO(data), formats=images.FORMATS) as image:
    if image.mode in ("1", "L", "LA", "I", "F") or image.mode.startswith("I;"):
      return False
    image.draft("RGB", (128, 128))
    channels = np.asarray(image.convert("RGB").resize((64, 64), PIL.Image.Resampling.BOX), int)
  return bool((np.ptp(channels, axis=-1) > _COLOUR_RANGE).mean() > _COLOUR_SHARE)


def _below(folder: epath.Path, name: str) -> Iterator[tuple[epath.Path, str]]:
  """Yields the files below a folder, those of a folder before those of its subfolders, each with the name to show."""
  entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
  entries.sort(key=lambda entry: entry.name)
  folders = [entry for entry in entries if entry.is_dir()]
  for entry in entries:
    if entry not in folders:
      yield entry, os.path.join(name, entry.name)
  for entry in folders:
    if not os.path.islink(os.fspath(entry)):                 # it may lead back here
      yield from _below(entry, os.path.join(name, entry.name))


def _film(path: epath.Path, name: str, header: dicom.Header | None) -> ImageFile:
  """Returns a film with what its header, or its name, tells.

  Raises:
    dicom.Refused: the header says that it is something else.
  """
  if header is None:
    view, stem = _view_in_name(path.name)
    return ImageFile(path, name, ("file", str(path.parent), stem), view, "name" if view else "order",
                "pa" in _words(path.name))
  if header.modality in _NO_FILM:
    raise dicom.Refused(f"the header says {_NO_FILM[header.modality]} ({header.modality}), expected a chest radiograph "
                        "(CR, DX)")
  warnings = [] if re.sub(r"[^A-Z]", "", header.body_part.upper()) in _CHEST else [
      "its header says that it shows another part of the body"]
  view, source_view = classify_view(header.view_position, header.view_meaning)
  told_by = "header"
  if not source_view:                                        # an `other` that nobody says
    view, _ = _view_in_name(path.name)
    told_by = "name" if view else "order"
  study = ("dicom", header.study) if header.study else ("file", str(path.parent), _view_in_name(path.name)[1])
  return ImageFile(path, name, study, view, told_by, source_view.lower().startswith(("pa", "postero")), tuple(warnings))


def _view_in_name(name: str) -> tuple[str, str]:
  """Returns the view that a file name tells, "" if none, and the name without the word and the suffix."""
  words = _words(name)
  told = {"frontal" for word in words if word in _FRONTAL} | {"lateral" for word in words if word in _LATERAL}
  if len(told) != 1:
    return "", name
  return told.pop(), " ".join(word for word in words if word not in _FRONTAL | _LATERAL)


def _printable(name: str) -> str:
  """Returns a file name that can be shown in a terminal and in JSON, whatever bytes it is made of."""
  return "".join(letter if letter.isprintable() else "?" for letter in str(name))


def _words(name: str) -> list[str]:
  return re.findall(r"[a-z]+|[0-9]+", name.rpartition(".")[0].lower() or name.lower())


def _study(film: ImageFile, grouping: str, whole_folder: bool) -> tuple[str, ...]:
  if grouping == "all":
    return ()
  if grouping == "file":
    return (str(film.path),)
  if grouping == "folder" or (film.study[0] != "dicom" and whole_folder):
    return ("folder", str(film.path.parent))
  return film.study
