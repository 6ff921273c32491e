"""Only regular files are read, and none that is larger than an image can be."""

import os

from etils import epath
import numpy as np
import PIL.Image
import pytest

from input_pipeline import images, user_images
from mcsam_jax.errors import UnreadableFile

FILM = np.random.default_rng(0).integers(0, 256, (20, 30)).astype(np.uint8)


@pytest.fixture
def odd_folder(tmp_path):
  """A folder with one image, pipes, devices, links to them, and a file of 2 TB that takes no space."""
  PIL.Image.fromarray(FILM).save(tmp_path / "film.png")
  os.mkfifo(tmp_path / "pipe.png")
  os.mkfifo(tmp_path / "pipe")
  (tmp_path / "zero.dcm").symlink_to("/dev/zero")
  (tmp_path / "zero").symlink_to("/dev/zero")
  (tmp_path / "pipe link.jpg").symlink_to("pipe")
  (tmp_path / "nowhere.png").symlink_to("absent")
  (tmp_path / "link.png").symlink_to("film.png")
  with open(tmp_path / "huge.tif", "wb") as file:
    file.truncate(2 * 10 ** 12)
  return tmp_path


def test_a_folder_with_pipes_and_devices(odd_folder):
  found = user_images.find_studies([str(odd_folder)])
  assert [[file.path.name for file in files] for files in found.studies] == [["film.png", "link.png"]]
  assert sorted(os.path.basename(error.path) for error in found.unreadable) == [
      "huge.tif", "nowhere.png", "pipe link.jpg", "pipe.png", "zero.dcm"]
  assert found.num_skipped == 2                     # without the suffix of an image


def test_each_by_itself(odd_folder):
  for name in ("pipe.png", "pipe", "zero", "zero.dcm", "pipe link.jpg", "huge.tif", "absent", "."):
    with pytest.raises(UnreadableFile) as error:
      images.load_jpeg(epath.Path(odd_folder / name), 256)
    assert error.value.path == str(odd_folder / name) and error.value.reason
  assert [error.path for error in user_images.find_studies([str(odd_folder / "pipe")]).unreadable] == [
      str(odd_folder / "pipe")]
  assert images.load_jpeg(epath.Path(odd_folder / "link.png"), 256)
