"""Mutated records and their metadata: each split is read, or refused in one line.

The records are ArrayRecord files of serialized tf.train.Examples. Some mutations are of the bytes of a file, others of
a record that is then written with right checksums.
"""

import pathlib
import random
import shutil

from array_record.python import array_record_module
import numpy as np
import pytest

from input_pipeline.builder.prepare import prepare
from input_pipeline.builder.record_counts import count_records
from input_pipeline.datasets import make_builder
from input_pipeline.splits import open_split
from input_pipeline.token_table import load_token_table
from input_pipeline.tokenizer import WordTokenizer
from tests.testing.foreign import fuzz
from tests.testing.tiny import make_config, NETWORK, PHANTOMS

COUNTS = pytest.mark.parametrize("count", [150, pytest.param(20_000, marks=pytest.mark.slow)])
CASES = pathlib.Path(__file__).parents[1] / "cases" / "records"
TOKENIZER = WordTokenizer.train(["the lungs are clear ."], "iu_xray", 1, False)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  """Returns the config and the folder of a few prepared phantoms."""
  config = make_config(NETWORK, PHANTOMS, data__data_dir=tmp_path_factory.mktemp("records"), data__short_side=32,
                       data__phantom__num_train=4, data__phantom__num_val=1, data__phantom__num_test=1)
  prepare(config, log=lambda line: None)
  return config, pathlib.Path(make_builder(config).data_dir)


def write_records(path: pathlib.Path, serialized: list[bytes]) -> bytes:
  writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
  for data in serialized:
    writer.write(data)
  writer.close()
  return path.read_bytes()


def mutate_a_file(config, folder: pathlib.Path, rng: random.Random) -> pathlib.Path:
  """Changes one file of a prepared split, and returns its path."""
  path = rng.choice(sorted(file for file in folder.iterdir() if file.is_file() and "val" not in file.name))
  if path.name.endswith(".json"):
    path.write_bytes(fuzz.mutate_json(path.read_bytes(), rng))
  elif "array_record" in path.name and rng.random() < 0.6:
    serialized = open_split(config, "train").read_serialized(range(4))
    number = rng.randrange(4)
    small = len(serialized[number]) - rng.randrange(1500)                 # the texts and labels follow the images
    serialized[number] = serialized[number][:small] + fuzz.mutate_bytes(serialized[number][small:], rng)
    if "train" in path.name:
      write_records(path, serialized)
  else:
    path.write_bytes(fuzz.mutate_bytes(path.read_bytes(), rng))
  return path


def read_split(config) -> None:
  split = open_split(config, "train")
  load_token_table(split, TOKENIZER)
  assert len(split.metadata) == len(split.reports) == len(split) > 0
  count_records(make_builder(config), {"train": {}, "val": {}, "test": {}})


@COUNTS
def test_mutated_records_are_read_or_refused(prepared, count, tmp_path, monkeypatch):
  config, folder = prepared
  monkeypatch.setattr("input_pipeline.splits._RETRY_DELAYS", ())
  backup = pathlib.Path(shutil.copytree(folder, tmp_path / "backup"))
  num_refused = 0
  for number in range(count):
    path = mutate_a_file(config, folder, random.Random(number))
    data, problem = path.read_bytes(), fuzz.check(lambda: read_split(config))
    num_refused += problem == ""
    for file in folder.iterdir():
      if file.is_file():
        file.unlink()
    for file in backup.iterdir():
      if file.is_file():
        shutil.copy(file, folder)
    if problem:
      raise fuzz.Finding(f"input {number}, {path.name}: {problem}", data)
  assert num_refused > count / 10


@pytest.mark.parametrize("case", sorted(CASES.glob("*-*")), ids=lambda case: case.name)
def test_files_that_were_once_handled_wrongly(prepared, case):
  """The name of a case is that of the file that it replaces, a hyphen, and what is wrong."""
  config, folder = prepared
  path = folder / case.name.partition("-")[0]
  before = path.read_bytes()
  try:
    path.write_bytes(case.read_bytes())
    assert fuzz.check(lambda: read_split(config)) == ""
  finally:
    path.write_bytes(before)


def test_a_record_that_is_no_study_is_named_or_replaced(prepared, tmp_path):
  """A record with right checksums whose content nobody wrote counts as corrupt."""
  config, folder = prepared
  path, = folder.glob("*train.array_record*")
  backup, serialized = path.read_bytes(), open_split(config, "train").read_serialized(range(4))
  reports = list(open_split(config, "train").reports)
  try:
    for damaged in (b"", b"\xff" * 20, serialized[1].replace(b"findings", b"findingx"),
                    serialized[1].replace(b"views", b"viewz")):
      write_records(path, [serialized[0], damaged, *serialized[2:]])
      assert fuzz.check(lambda: list(open_split(config, "train").reports)) == ""
      tolerant = config.copy_and_resolve_references()
      tolerant.train.max_corrupt_records = 1
      split = open_split(tolerant, "train")
      assert split.reports == [reports[0], reports[2], *reports[2:]] and split.substitutes == {1: 2}
      np.testing.assert_array_equal(split.resolve([1]), [2])
      (folder / "corrupt_records-train.jsonl").unlink()
  finally:
    path.write_bytes(backup)
