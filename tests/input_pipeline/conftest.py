"""A source in R2Gen's schema with made-up images and reports, and a config that reads it."""

import json

from ml_collections import ConfigDict
import numpy as np
import PIL.Image
import pytest

from configs import default

COUNTS = {"train": 11, "val": 3, "test": 5}


def write_source(directory, counts=COUNTS):
  """Writes annotation.json and images; record 0 of a split has one view, the others two."""
  (directory / "images").mkdir(parents=True)
  rng = np.random.default_rng(0)
  annotation = {}
  for split, count in counts.items():
    annotation[split] = []
    for number in range(count):
      name = f"{split}{number}"
      paths = [f"{name}_{view}.jpg" for view in range(1 if number == 0 else 2)]
      for path in paths:
        image = PIL.Image.fromarray(rng.integers(0, 256, (24, 32), np.uint8))
        image.save(directory / "images" / path, quality=90)
      annotation[split].append({"id": name, "report": f"The lungs are clear. Size is {number}.",
                                "image_path": paths, "split": split})
  (directory / "annotation.json").write_text(json.dumps(annotation))
  return annotation


def source_config(source_dir, data_dir) -> ConfigDict:
  config = default.get_config()
  config.data.update({"name": "r2gen_json", "source_dir": str(source_dir), "data_dir": str(data_dir),
                      "image_size": 16})
  config.tokenizer.update({"threshold": 1, "max_length": 7})
  config.train.batch_size = 4
  return config


@pytest.fixture
def source(tmp_path):
  """The folder of an unprepared source and its config."""
  write_source(tmp_path / "chest x-rays")
  return tmp_path / "chest x-rays", source_config(tmp_path / "chest x-rays", tmp_path / "data")


@pytest.fixture(scope="session")
def prepared(tmp_path_factory) -> ConfigDict:
  """The config of a prepared source that no test may change."""
  from input_pipeline.builder.prepare import prepare
  folder = tmp_path_factory.mktemp("prepared")
  write_source(folder / "source")
  config = source_config(folder / "source", folder / "data")
  prepare(config, log=lambda line: None)
  return config
