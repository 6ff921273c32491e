"""`prepare` refuses an odd image by name, or skips it if the config allows it; the others become records."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest

from input_pipeline import splits
from input_pipeline.builder.prepare import prepare
from input_pipeline.image_files import decoder_process
from mcsam_jax.errors import UserError
from tests.input_pipeline.conftest import make_config, write_source
from tests.testing.foreign.mutated_files import make_dicom, make_dicom_files

CASES = pathlib.Path(__file__).parents[2] / "cases" / "mutated"
KINDS = ["598103ee.tif", "53901685.tif", "3c02cd58.gif", "685db05b.jpg", "gdcm_abort.dcm", "j2k_loop.dcm", "pipe",
         "zero", "black", "large"]


def replace_image(path: pathlib.Path, kind: str) -> None:
  """Replaces an image by something that is none."""
  path.unlink()
  if kind == "pipe":
    os.mkfifo(path)
  elif kind == "zero":
    path.symlink_to("/dev/zero")
  elif kind in ("black", "large"):
    PIL.Image.fromarray(np.zeros((20, 20), np.uint8) if kind == "black" else
                        np.random.default_rng(0).integers(0, 256, (60, 60), np.uint8)).save(path)
  else:
    path.write_bytes((CASES / kind).read_bytes())


@pytest.fixture
def source(tmp_path, monkeypatch):
  """A source of six records in train, one image for the first and two for each other."""
  monkeypatch.setattr(decoder_process, "CPU_SECONDS", 1)
  write_source(tmp_path / "source", {"train": len(KINDS) + 2, "val": 1, "test": 1})
  config = make_config(tmp_path / "source", tmp_path / "data")
  config.data.max_image_pixels = 3500
  return tmp_path / "source" / "images", config


@pytest.mark.parametrize("kind", ["598103ee.tif", "gdcm_abort.dcm", "pipe", "black", "large"])
def test_an_odd_image_is_named(source, kind):
  folder, config = source
  replace_image(folder / "train1_1.jpg", kind)
  with pytest.raises(UserError, match="train1_1.jpg"):
    prepare(config, log=lambda line: None)


def test_odd_images_are_skipped_and_listed(source):
  folder, config = source
  for number, kind in enumerate(KINDS, 1):
    replace_image(folder / f"train{number}_1.jpg", kind)
  config.prepare.max_corrupt_records = len(KINDS)
  prepare(config, log=lambda line: None)
  assert splits.open_split(config, "train").ids == ["train0", f"train{len(KINDS) + 1}"]
  lines = (splits.dataset_dir(config) / "corrupt_records.jsonl").read_text().splitlines()
  assert [json.loads(line)["record"] for line in lines] == [f"train{number}" for number in range(1, len(KINDS) + 1)]


def test_warnings_about_images_are_counted(source):
  folder, config = source
  for number in range(3):
    (folder / f"train{number}_0.jpg").write_bytes(make_dicom(WindowCenter="100000", WindowWidth="10"))
  lines = []
  prepare(config, log=lines.append)
  assert "3 images: the window or lookup table leaves a single shade: ignored" in "\n".join(lines)


@pytest.mark.slow
def test_compressed_dicom_files_in_several_processes(source, tmp_path):
  folder, config = source
  files = make_dicom_files()
  names = [name for name in ("jpeg", "jpeg 2000", "rle", "plain") for _ in range(2)]
  for number, name in enumerate(names, 1):
    (folder / f"train{number}_1.jpg").write_bytes(files[name])
  replace_image(folder / "train9_1.jpg", "gdcm_abort.dcm")
  script = tmp_path / "script.py"
  script.write_text(
      "import sys\nfrom input_pipeline.builder import shards, workers\n"
      "from input_pipeline.builder.prepare import prepare\n"
      "from mcsam_jax.config import load_config\n"
      "if __name__ == '__main__':\n  shards.SHARD_SIZE, workers.MAX_ENTRIES_IN_PROCESS = 3, 0\n"
      "  prepare(load_config('default', sys.argv[1:]))\n")
  fields = {"data.name": "r2gen_json", "data.source_dir": folder.parent, "data.data_dir": config.data.data_dir,
            "tokenizer.threshold": 1, "prepare.num_workers": 2, "prepare.max_corrupt_records": 1}
  arguments = [f"--config.{field}={value}" for field, value in fields.items()]
  subprocess.run([sys.executable, script, *arguments], check=True,
                 env=os.environ | {"PYTHONPATH": os.getcwd()})
  assert len(splits.open_split(config, "train")) == len(KINDS) + 1
