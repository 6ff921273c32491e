"""The folder of images beside a page of many studies: nothing in it is deleted or replaced unless a page wrote it.

A page lists the images that it wrote, with their digests, in IMAGE_LIST in the same folder. The next page of the same
path deletes exactly these. If anything else remains, or if the folder is a link, it belongs to the user: the page keeps
it and takes another name.
"""

import hashlib
import itertools
import pathlib

from etils import epath

IMAGE_LIST = "written_by_mcsam.txt"        # a line per image: SHA-256, space, file name


class ImageFolder:
  """The images of one page.

  Attributes:
    name: name of the folder beside the page: STEM_images, or STEM_images-2, ... if those belong to the user.
  """

  def __init__(self, page: epath.Path):
    """Deletes the images that earlier pages of the same path wrote, whichever name their folder had."""
    free = []
    for number in itertools.count(1):
      path = page.parent / f"{page.stem}_images{f'-{number}' if number > 1 else ''}"
      is_new = not _is_link(path) and not path.exists()
      if not _is_link(path) and _delete_images(path):
        free.append(path)
      if is_new and number > 1:
        break
    self._path = free[0]
    self.name, self._lines = self._path.name, []

  def save(self, name: str, jpeg: bytes) -> None:
    """Writes an image."""
    if not self._lines:
      self._path.mkdir(parents=True, exist_ok=True)
    (self._path / name).write_bytes(jpeg)
    self._lines.append(f"{hashlib.sha256(jpeg).hexdigest()} {name}\n")

  def write_list(self) -> None:
    """Lists the images; without this, as after a crash, the next page takes them for the user's and keeps them."""
    if self._lines:
      (self._path / IMAGE_LIST).write_text("".join(self._lines))


def _is_link(path: epath.Path) -> bool:
  """Returns whether a local path is a symbolic link."""
  return "://" not in str(path) and pathlib.Path(path).is_symlink()


def _delete_images(folder: epath.Path) -> bool:
  """Deletes the listed images of a folder, and the folder if nothing else is in it; returns whether it is gone."""
  if not folder.exists():
    return True
  image_list = folder / IMAGE_LIST
  if not folder.is_dir() or not image_list.exists() or _is_link(image_list):
    return False
  for line in image_list.read_bytes().decode("utf-8", "replace").splitlines():
    digest, _, name = line.partition(" ")
    image = folder / pathlib.PurePosixPath(name).name
    if image.is_file() and not _is_link(image) and hashlib.sha256(image.read_bytes()).hexdigest() == digest:
      image.unlink()
  if [file.name for file in folder.iterdir()] != [IMAGE_LIST]:
    return False
  image_list.unlink()
  if "://" not in str(folder):
    try:
      pathlib.Path(folder).rmdir()         # not rmtree: a file that has just been added is kept
    except OSError:
      return False
  return True
