"""Preparing builds records and tokenizer once; missing, truncated and corrupt files are errors that name them."""

import errno
import functools
import json
import pathlib
import re
import types

import numpy as np
import pytest

from input_pipeline import datasets, pipeline, splits, token_table
from input_pipeline.builder.prepare import prepare
from input_pipeline.builder.tokenizer import load_or_build_tokenizer, tokenizer_dir
from input_pipeline.splits import dataset_dir, open_split
from mcsam_jax.errors import UserError
from mcsam_jax.progress import ProgressLog


def find_record_files(config, split):
  return list(dataset_dir(config).glob(f"*-{split}.array_record*"))


def test_summary_and_records(source):
  folder, config = source
  lines = []
  summary = prepare(config, log=lines.append)
  assert {name: row["studies"] for name, row in summary.items()} == {"train": 11, "val": 3, "test": 5}
  assert summary["train"]["images"] == 1 + 2 * 10 and summary["train"]["distinct_reports"] == 11
  assert summary["train"]["mean_words"] == 9           # the lungs are clear . size is N .
  val = open_split(config, "val")
  assert val.ids == ["val0", "val1", "val2"] and val.reports[1] == "The lungs are clear. Size is 1."
  assert [record["images"] for record in val][2] == [
      (folder / "images" / f"val2_{view}.jpg").read_bytes() for view in (0, 1)]
  assert val[2]["labels"]["Edema"] == "absent" and val[2]["dicom_ids"] == ["val2_0", "val2_1"]
  assert all(isinstance(val[2][field], str) for field in ("id", "findings", "impression", "study_datetime"))


def test_preparing_again_changes_nothing(source):
  _, config = source
  summary = prepare(config, log=lambda line: None)
  folder = pathlib.Path(dataset_dir(config))
  stamps = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
  assert prepare(config, log=lambda line: None) == summary
  assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == stamps


def test_damaged_summary_is_computed_again(source):
  _, config = source
  summary = prepare(config, log=lambda line: None)
  path = tokenizer_dir(config) / "summary.json"
  for content in (path.read_text()[:-9], "[" * 3000, "[]", "{}", json.dumps({**summary, "test": {"studies": 5}})):
    path.write_text(content)
    assert prepare(config, log=lambda line: None) == summary


def test_other_settings_have_folders_of_their_own(source):
  _, config = source
  prepare(config, log=lambda line: None)
  folder, tokenizer = dataset_dir(config), tokenizer_dir(config)
  config.tokenizer.max_length += 1
  assert tokenizer_dir(config) == tokenizer
  config.tokenizer.threshold = 2
  assert tokenizer_dir(config) != tokenizer
  assert load_or_build_tokenizer(config).vocab_size < 15      # without the numbers
  config.data.short_side = 20
  assert dataset_dir(config) != folder


def test_records_and_tokenizer_need_mcsam_prepare(source):
  _, config = source
  with pytest.raises(UserError, match="run `mcsam prepare`"):
    open_split(config, "train")
  with pytest.raises(UserError, match="run `mcsam prepare`"):
    load_or_build_tokenizer(config)


def test_unknown_split_target_and_data_set_are_errors(prepared):
  with pytest.raises(UserError, match="split dev .* train, val, test"):
    open_split(prepared, "dev")
  config = prepared.copy_and_resolve_references()
  config.data.target = "history"
  with pytest.raises(UserError, match="data.target=history"):
    open_split(config, "test")
  config.data.name = "chexpert"
  with pytest.raises(UserError, match="data.name=chexpert.*phantom, r2gen_json"):
    datasets.make_builder(config)


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b""),
                                    lambda path: path.write_bytes(path.read_bytes()[:-100])],
                         ids=["missing", "empty", "truncated"])
def test_missing_and_truncated_record_files_are_named(source, damage):
  _, config = source
  prepare(config, log=lambda line: None)
  damage(find_record_files(config, "test")[0])
  with pytest.raises(UserError, match="test.array_record.* 0 records .* 5"):
    prepare(config, log=lambda line: None)
  open_split(config, "train")                # other splits are not affected


def test_file_that_arrayrecord_may_not_read_is_not_reported_as_truncated(source, monkeypatch):
  """For example, the bucket credentials of TensorFlow are valid, but those that ArrayRecord uses are not."""
  _, config = source
  prepare(config, log=lambda line: None)

  class ReaderWithoutPermission:
    def __init__(self, path, options):
      pass

    def num_records(self):
      return 0

    def read(self, places):
      raise RuntimeError("PERMISSION_DENIED: Anonymous caller does not have storage.objects.get access")

  monkeypatch.setattr(splits.array_record_module, "ArrayRecordReader", ReaderWithoutPermission)
  with pytest.raises(UserError, match="array_record.* ArrayRecord .*: PERMISSION_DENIED"):
    open_split(config, "test")


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(path.read_bytes()[:200]),
                                    lambda path: flip_bytes(path)], ids=["truncated", "flipped bytes"])
def test_damaged_token_table_is_rebuilt_and_damaged_word_counts_are_named(source, damage):
  _, config = source
  prepare(config, log=lambda line: None)
  tokenizer = load_or_build_tokenizer(config)
  ids = token_table.load_token_table(open_split(config, "test"), tokenizer).ids
  path, = dataset_dir(config).glob("table-*-test.npz")
  damage(path)
  assert (token_table.load_token_table(open_split(config, "test"), tokenizer).ids == ids).all()
  words = dataset_dir(config) / "words.npz"
  damage(words)
  with pytest.raises(UserError, match="words.npz"):
    open_split(config, "test")


def flip_bytes(path):
  """Changes some bytes of each array in a file."""
  data = bytearray(path.read_bytes())
  for position in range(200, len(data) - 100, 100):
    data[position] ^= 255
  path.write_bytes(bytes(data))


def test_corrupt_record_is_named(source):
  _, config = source
  prepare(config, log=lambda line: None)
  path = find_record_files(config, "test")[0]
  data = path.read_bytes()
  path.write_bytes(data[:5000] + bytes(100) + data[5100:])
  with pytest.raises(UserError, match="record 2 of split test in .* is corrupt"):
    list(open_split(config, "test"))


def test_training_may_tolerate_a_few_corrupt_records(source):
  _, config = source
  prepare(config, log=lambda line: None)
  path = find_record_files(config, "train")[0]
  data = path.read_bytes()
  path.write_bytes(data[:5000] + bytes(100) + data[5100:])              # record 2
  with pytest.raises(UserError, match="record 2 of split train in .* is corrupt"):
    list(open_split(config, "train"))
  config.train.max_corrupt_records = 1
  for _ in range(2):
    read = open_split(config, "train").read([1, 2, 10])
    assert [record["id"] for record in read] == ["train1", "train3", "train10"]
  line, = map(json.loads, (dataset_dir(config) / "corrupt_records-train.jsonl").read_text().splitlines())
  assert line["record"] == 2 and line["split"] == "train" and line["reason"]


@pytest.mark.parametrize("with_features", [False, True])
def test_a_substitute_brings_its_own_report(source, with_features):
  """Also if the record was read, and its tokens were stored, before it became corrupt; and after a restart."""
  _, config = source
  prepare(config, log=lambda line: None)
  config.train.max_corrupt_records, config.train.batch_size = 2, 4
  tokenizer, split = load_or_build_tokenizer(config), open_split(config, "train")
  token_table.load_token_table(split, tokenizer)
  before = read_epoch(split, tokenizer, config)
  path = find_record_files(config, "train")[0]
  data = path.read_bytes()
  path.write_bytes(data[:5000] + bytes(100) + data[5100:])              # record 2
  open_split(config, "train").read([2])                                 # notes it
  features = None
  if with_features:
    features = np.zeros((len(split), config.data.num_views, 1, 1), np.float16)
  for _ in range(2):
    after = read_epoch(open_split(config, "train"), tokenizer, config, features)
    assert after.keys() == before.keys()
    for record, (images, tokens) in after.items():
      expected_images, expected_tokens = before[3 if record == 2 else record]
      assert (tokens == expected_tokens).all() and (with_features or (images == expected_images).all())
  assert (before[2][0] != before[3][0]).any()


def read_epoch(split, tokenizer, config, features=None):
  """Returns {record: (images or features, tokens)} of the first epoch."""
  batches = pipeline.train_batches(split, tokenizer, config, 0, -(-len(split) // config.train.batch_size), features)
  return {int(record): (images, tokens) for batch in batches
          for record, images, tokens in zip(batch["record"], batch["features" if features is not None else "images"],
                                            batch["tokens"])}


class FlakyReader:
  """A reader whose first reads fail, as those of a disk that is unavailable for a while."""

  def __init__(self, reader, num_failures, message="pread() failed: Stale file handle; reading a.array_record"):
    self.reader, self.num_failures, self.message = reader, num_failures, message

  def read(self, indices):
    self.num_failures -= 1
    if self.num_failures >= 0:
      raise RuntimeError(self.message)
    return self.reader.read(indices)


def test_unavailable_disk_is_retried_and_its_records_are_not_corrupt(source, monkeypatch):
  _, config = source
  prepare(config, log=lambda line: None)
  config.train.max_corrupt_records = 1
  split, delays = open_split(config, "train"), []
  monkeypatch.setattr(splits.time, "sleep", delays.append)
  readers = list(split._readers)

  def fail_reads(num_failures, *message):
    flaky_readers = [FlakyReader(reader, num_failures, *message) for reader in readers]
    monkeypatch.setattr(split, "_readers", flaky_readers)

  fail_reads(4)                                                         # one read of all records, three of one
  assert [record["id"] for record in split.read([1, 2, 10])] == ["train1", "train2", "train10"]
  assert delays == [1, 5, 20]
  fail_reads(100)
  with pytest.raises(TimeoutError, match="record 1 of split train in .*Stale file handle"):
    split.read([1, 2, 10])                                              # the CLI reports it as retryable
  assert not (dataset_dir(config) / "corrupt_records-train.jsonl").exists()
  fail_reads(5, "pread() failed: Input/output error; reading a")
  assert [record["id"] for record in split.read([1])] == ["train2"]     # a bad sector is permanent
  assert (dataset_dir(config) / "corrupt_records-train.jsonl").exists()


def test_unavailable_disk_is_not_reported_as_a_missing_file(source, monkeypatch):
  _, config = source
  prepare(config, log=lambda line: None)

  def raise_stale(mode):
    raise OSError(errno.ESTALE, "Stale file handle")
  monkeypatch.setattr(splits, "epath", types.SimpleNamespace(Path=lambda path: types.SimpleNamespace(open=raise_stale)))
  monkeypatch.setattr(splits.array_record_module, "ArrayRecordReader",
                      lambda *_, **__: types.SimpleNamespace(num_records=lambda: 0))
  with pytest.raises(OSError, match="Stale"):
    open_split(config, "train")


def test_long_pass_over_the_records_logs_progress(prepared, monkeypatch):
  monkeypatch.setattr(splits, "READ_BLOCK", 4)
  monkeypatch.setattr(splits, "ProgressLog", functools.partial(ProgressLog, every_seconds=-1))
  split, lines = open_split(prepared, "train"), []
  build_table = functools.partial(token_table._build, split, load_or_build_tokenizer(prepared))
  for read_all in (split.read_reports, build_table):
    lines.clear()
    read_all(lines.append)
    assert [re.findall(r"train: \d+/\d+", line) for line in lines] == [["train: 4/11"], ["train: 8/11"],
                                                                        ["train: 11/11"]]
  assert split.read_reports() == [f"The lungs are clear. Size is {number}." for number in range(11)] == split.reports
  monkeypatch.undo()
  split.read_reports(pytest.fail)                                       # a short pass is silent


def test_damaged_metadata_is_named(source):
  _, config = source
  prepare(config, log=lambda line: None)
  path = dataset_dir(config) / "dataset_info.json"
  path.write_text(path.read_text()[:-30])
  with pytest.raises(UserError, match="dataset_info.json is damaged"):
    open_split(config, "test")


def test_full_disk_leaves_nothing_that_looks_finished(source, monkeypatch):
  _, config = source
  builder_class = type(datasets.make_builder(config))

  def raise_disk_full(self, entry):
    raise OSError(errno.ENOSPC, "No space left on device")
  with monkeypatch.context() as patched:
    patched.setattr(builder_class, "build_record", raise_disk_full)
    with pytest.raises(UserError, match="no space left for .*data_dir"):
      prepare(config, log=lambda line: None)
  assert not dataset_dir(config).exists()
  prepare(config, log=lambda line: None)


def test_full_disk_while_the_tokenizer_is_saved(source, monkeypatch):
  _, config = source
  prepare(config, log=lambda line: None)
  config.tokenizer.threshold = 5

  def raise_disk_full(self, directory):
    raise OSError(errno.ENOSPC, "No space left on device")
  monkeypatch.setattr("input_pipeline.tokenizer.WordTokenizer.save", raise_disk_full)
  with pytest.raises(UserError, match="no space left"):
    load_or_build_tokenizer(config)
  assert not tokenizer_dir(config).exists()
  assert not list(dataset_dir(config).glob("incomplete*"))
