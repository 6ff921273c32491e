"""Files with changed bytes are read or refused by name: no other exception, no hang, no gigabytes, no crash."""

import pathlib
import resource
import time

from etils import epath
import numpy as np
import pytest

from configs import default
from input_pipeline import images, user_images
from input_pipeline.dicom import RENDERINGS
from input_pipeline.image_files import decoder_process
from mcsam_jax.errors import UnreadableFile
from tests.testing.foreign import mutated_files

MAX_PIXELS = 10 ** 6
MAX_SECONDS, MAX_MEMORY_GROWTH = 20, 2 ** 28         # of one file; bytes


@pytest.fixture(autouse=True)
def short_limits(monkeypatch):
  monkeypatch.setattr(decoder_process, "CPU_SECONDS", 1)


def read(path: pathlib.Path, rendering: str) -> bool:
  """Reads a file in both ways in which the project does; returns whether it could be read."""
  config = make_data_config(rendering)
  found = user_images.find_studies([str(path)], max_pixels=MAX_PIXELS)
  assert all(error.path == str(path) and error.reason for error in found.unreadable)
  study = user_images.read_study(found.studies[0], config) if found.studies else None
  if study is not None:
    assert [error.path for error in study.unreadable] == ([] if study.files else [str(path)])
  try:
    jpeg = images.load_jpeg(epath.Path(path), 64, rendering, MAX_PIXELS)
  except UnreadableFile as error:
    assert error.path == str(path) and "\n" not in str(error)
    assert study is None or not study.jpegs
    return False
  assert images.decode(jpeg, 8).shape == (8, 8, 1)
  assert study is None or study.jpegs == [jpeg]
  return True


def make_data_config(rendering):
  config = default.get_config().data
  config.update({"short_side": 64, "max_image_pixels": MAX_PIXELS, "dicom_rendering": rendering})
  return config


@pytest.mark.parametrize("kind", ["dicom", "image"])
def test_files_with_random_damage(kind, tmp_path):
  files = mutated_files.make_dicom_files() if kind == "dicom" else mutated_files.make_image_files()
  memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  num_read = 0
  for number in range(300):
    rng = np.random.default_rng(number)
    name = sorted(files)[number % len(files)]
    path = tmp_path / f"{number}.dat"
    path.write_bytes(mutated_files.mutate(files[name], rng))
    start = time.monotonic()
    num_read += read(path, RENDERINGS[number % 2])
    assert time.monotonic() - start < MAX_SECONDS, (name, number)
  assert 30 < num_read < 270
  assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < MAX_MEMORY_GROWTH // 1024


def test_undamaged_files_are_read(tmp_path):
  for name, data in {**mutated_files.make_dicom_files(), **mutated_files.make_image_files()}.items():
    (tmp_path / "file").write_bytes(data)
    if name in ("jpeg-ls", "jpeg lossless"):
      pytest.importorskip("gdcm", reason="python-gdcm is absent: pip install -e '.[dicom]'")
    assert read(tmp_path / "file", "voi"), name
