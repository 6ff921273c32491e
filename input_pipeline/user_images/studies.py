"""Groups the image files in the paths that a user gave into studies."""

from collections.abc import Iterator, Sequence
import dataclasses
import os

from etils import epath

from input_pipeline import dicom
from input_pipeline.image_files.limits import MAX_PIXELS
from input_pipeline.user_images.image_file import ImageFile, inspect_file
from mcsam_jax.errors import UnreadableFile
from mcsam_jax.files.home import expand_home

# How files are grouped into studies: by the rules of this package, all into one, one study per folder, or one per file.
GROUPINGS = ("auto", "all", "folder", "file")
MAX_VIEWS = 4                 # per study in a folder; a folder with more images is a collection of studies


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


def find_studies(paths: Sequence[str], grouping: str = "auto", max_pixels: int = MAX_PIXELS) -> FoundStudies:
  """Returns the studies in files and folders. Folders are searched recursively, without hidden files and links.

  Args:
    grouping: one of GROUPINGS.
    max_pixels: of an image; files that are too large for one are not read.
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
    num_unreadable = len(found.unreadable)
    image_files = _inspect_files(new, is_folder, max_pixels, found)
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
  for files in by_study.values():
    found.studies += _split_by_patient(files) if grouping == "auto" else [files]
  return found


def _inspect_files(files: Sequence[tuple[epath.Path, str]], in_folder: bool, max_pixels: int,
                   found: FoundStudies) -> list[ImageFile]:
  """Returns the images among files with the names to show; adds the others to `found`."""
  image_files = []
  for file, shown_name in files:
    shown_name = _make_printable(shown_name)
    try:
      image_file = inspect_file(file, shown_name, in_folder, max_pixels)
    except dicom.DicomError as error:
      found.unreadable.append(UnreadableFile(shown_name, str(error)))
    except UnreadableFile as error:
      found.unreadable.append(UnreadableFile(shown_name, error.reason))
    except OSError as error:
      reason = "no such file or folder" if isinstance(error, FileNotFoundError) else error.strerror or str(error)
      found.unreadable.append(UnreadableFile(shown_name, reason))
    else:
      if image_file is None:
        found.num_skipped += 1
      else:
        image_files.append(image_file)
  return image_files


def _split_by_patient(files: list[ImageFile]) -> list[list[ImageFile]]:
  """Returns the files of a study, divided if their headers name different patients.

  Images of two people must never make one report. It happens where identifiers of studies were made up, or copied by
  mistake. Files that name no patient stay together.
  """
  by_patient = {}
  for file in files:
    by_patient.setdefault(file.patient, []).append(file)
  if len(by_patient.keys() - {""}) < 2:
    return [files]
  warning = "other files are assigned to the same study, but belong to other patients: they are reported apart"
  return [[dataclasses.replace(file, warnings=(*file.warnings, warning)) for file in group]
          for group in by_patient.values()]


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
