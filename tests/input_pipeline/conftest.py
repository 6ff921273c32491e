"""A data set in the JSON format of R2Gen with random images and reports, and a config that reads it."""

import json

from ml_collections import ConfigDict
import numpy as np
import PIL.Image
import pytest

from configs import default

COUNTS = {"train": 11, "val": 3, "test": 5}


def write_source(directory, counts=COUNTS):
  """Writes annotation.json and images; record 0 of each split has one view, the others two."""
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


def make_config(source_dir, data_dir) -> ConfigDict:
  """Returns a config that reads the source in `source_dir` and keeps its records in `data_dir`."""
  config = default.get_config()
  config.data.update({"name": "r2gen_json", "source_dir": str(source_dir), "data_dir": str(data_dir),
                      "image_size": 16})
  config.tokenizer.update({"threshold": 1, "max_length": 7})
  config.train.batch_size = 4
  return config


@pytest.fixture
def source(tmp_path):
  """Returns the folder of a source that is not prepared, and its config."""
  write_source(tmp_path / "chest x-rays")
  return tmp_path / "chest x-rays", make_config(tmp_path / "chest x-rays", tmp_path / "data")


@pytest.fixture(scope="session")
def prepared(tmp_path_factory) -> ConfigDict:
  """Returns the config of a prepared source, which tests must not modify."""
  from input_pipeline.builder.prepare import prepare
  folder = tmp_path_factory.mktemp("prepared")
  write_source(folder / "source")
  config = make_config(folder / "source", folder / "data")
  prepare(config, log=lambda line: None)
  return config
