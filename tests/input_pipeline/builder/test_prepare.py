"""Preparing makes records and tokenizer once; what is missing, cut or too much is said in a line."""

import errno
import functools
import json
import pathlib
import types

import pytest

from input_pipeline import datasets, splits, token_table
from input_pipeline.builder import prepare as preparing
from mcsam_jax.errors import UserError


def files_of(config, split):
  return list(preparing.dataset_dir(config).glob(f"*-{split}.array_record*"))


def test_summary_and_records(source):
  folder, config = source
  lines = []
  summary = preparing.prepare(config, log=lines.append)
  assert {name: row["studies"] for name, row in summary.items()} == {"train": 11, "val": 3, "test": 5}
  assert summary["train"]["images"] == 1 + 2 * 10 and summary["train"]["distinct_reports"] == 11
  assert summary["train"]["mean_words"] == 9           # the lungs are clear . size is N .
  assert "mcsam train" in lines[-1]
  val = splits.open_split(config, "val")
  assert val.ids == ["val0", "val1", "val2"] and val.reports[1] == "The lungs are clear. Size is 1."
  assert [record["images"] for record in val][2] == [
      (folder / "images" / f"val2_{view}.jpg").read_bytes() for view in (0, 1)]
  assert val[2]["labels"]["Edema"] == "absent" and val[2]["dicom_ids"] == ["val2_0", "val2_1"]
  assert all(isinstance(val[2][field], str) for field in ("id", "findings", "impression", "study_datetime"))


def test_second_time_changes_nothing(source):
  _, config = source
  summary = preparing.prepare(config, log=lambda line: None)
  folder = pathlib.Path(preparing.dataset_dir(config))
  stamps = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
  assert preparing.prepare(config, log=lambda line: None) == summary
  assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == stamps


def test_a_cut_summary_is_made_again(source):
  _, config = source
  summary = preparing.prepare(config, log=lambda line: None)
  path = preparing.tokenizer_dir(config) / "summary.json"
  path.write_text(path.read_text()[:-9])
  assert preparing.prepare(config, log=lambda line: None) == summary


def test_other_settings_live_side_by_side(source):
  _, config = source
  preparing.prepare(config, log=lambda line: None)
  folder, tokenizer = preparing.dataset_dir(config), preparing.tokenizer_dir(config)
  config.tokenizer.max_length += 1
  assert preparing.tokenizer_dir(config) == tokenizer
  config.tokenizer.threshold = 2
  assert preparing.tokenizer_dir(config) != tokenizer
  assert preparing.load_or_build_tokenizer(config).vocab_size < 15      # without the numbers
  config.data.short_side = 20
  assert preparing.dataset_dir(config) != folder


def test_before_prepare(source):
  _, config = source
  with pytest.raises(UserError, match="run `mcsam prepare`"):
    splits.open_split(config, "train")
  with pytest.raises(UserError, match="run `mcsam prepare`"):
    preparing.load_or_build_tokenizer(config)


def test_unknown_names(prepared):
  with pytest.raises(UserError, match="no split dev .* train, val, test"):
    splits.open_split(prepared, "dev")
  config = prepared.copy_and_resolve_references()
  config.data.target = "history"
  with pytest.raises(UserError, match="data.target=history"):
    splits.open_split(config, "test")
  config.data.name = "chexpert"
  with pytest.raises(UserError, match="data.name=chexpert.*phantom, r2gen_json"):
    datasets.make_builder(config)


@pytest.mark.parametrize("harm", [lambda path: path.unlink(), lambda path: path.write_bytes(b""),
                                  lambda path: path.write_bytes(path.read_bytes()[:-100])])
def test_missing_and_cut_files_are_named(source, harm):
  _, config = source
  preparing.prepare(config, log=lambda line: None)
  harm(files_of(config, "test")[0])
  with pytest.raises(UserError, match="test.array_record.* holds 0 records instead of 5"):
    preparing.prepare(config, log=lambda line: None)
  splits.open_split(config, "train")                # the others are as good as before


def test_a_file_that_arrayrecord_has_no_way_to_is_not_called_cut(source, monkeypatch):
  """TensorFlow's credentials for a bucket, say, are good, and those that ArrayRecord finds aren't."""
  _, config = source
  preparing.prepare(config, log=lambda line: None)

  class Refused:
    def __init__(self, path, options):
      pass

    def num_records(self):
      return 0

    def read(self, places):
      raise RuntimeError("PERMISSION_DENIED: Anonymous caller does not have storage.objects.get access")

  monkeypatch.setattr(splits.array_record_module, "ArrayRecordReader", Refused)
  with pytest.raises(UserError, match="array_record.* is there, but ArrayRecord can't read it: PERMISSION_DENIED"):
    splits.open_split(config, "test")


@pytest.mark.parametrize("harm", [lambda path: path.write_bytes(path.read_bytes()[:200]), lambda path: flip(path)])
def test_a_damaged_table_is_made_again_and_a_damaged_count_of_words_is_named(source, harm):
  _, config = source
  preparing.prepare(config, log=lambda line: None)
  tokenizer = preparing.load_or_build_tokenizer(config)
  ids = token_table.load_or_build(splits.open_split(config, "test"), tokenizer).ids
  kept, = preparing.dataset_dir(config).glob("table-*-test.npz")
  harm(kept)
  assert (token_table.load_or_build(splits.open_split(config, "test"), tokenizer).ids == ids).all()
  words = preparing.dataset_dir(config) / "words.npz"
  harm(words)
  with pytest.raises(UserError, match="words.npz can't be read"):
    splits.open_split(config, "test")


def flip(path):
  """Changes a byte in each of the arrays."""
  data = bytearray(path.read_bytes())
  for place in range(200, len(data) - 100, 100):
    data[place] ^= 255
  path.write_bytes(bytes(data))


def test_a_damaged_record_is_named(source):
  _, config = source
  preparing.prepare(config, log=lambda line: None)
  path = files_of(config, "test")[0]
  data = path.read_bytes()
  path.write_bytes(data[:5000] + bytes(100) + data[5100:])
  with pytest.raises(UserError, match="record 2 of split test in .* is damaged"):
    list(splits.open_split(config, "test"))


def test_a_few_damaged_records_may_pass_in_training(source):
  _, config = source
  preparing.prepare(config, log=lambda line: None)
  path = files_of(config, "train")[0]
  data = path.read_bytes()
  path.write_bytes(data[:5000] + bytes(100) + data[5100:])              # as above
  with pytest.raises(UserError, match="record 2 of split train in .* is damaged"):
    list(splits.open_split(config, "train"))
  config.train.max_corrupt_records = 1
  for _ in range(2):
    read = splits.open_split(config, "train").read([1, 2, 10])
    assert [record["id"] for record in read] == ["train1", "train3", "train10"]
  line, = map(json.loads, (preparing.dataset_dir(config) / "damaged-train.jsonl").read_text().splitlines())
  assert line["record"] == 2 and line["split"] == "train" and line["reason"]


class Silent:
  """A reader that answers only after some questions, of a store that is away for a while."""

  def __init__(self, reader, number, message="pread() failed: Stale file handle; reading a.array_record"):
    self.reader, self.number, self.message = reader, number, message

  def read(self, places):
    self.number -= 1
    if self.number >= 0:
      raise RuntimeError(self.message)
    return self.reader.read(places)


def test_a_store_that_does_not_answer_is_asked_again_and_damages_nothing(source, monkeypatch):
  _, config = source
  preparing.prepare(config, log=lambda line: None)
  config.train.max_corrupt_records = 1
  split, pauses = splits.open_split(config, "train"), []
  monkeypatch.setattr(splits.time, "sleep", pauses.append)
  readers = list(split._readers)
  split._readers = [Silent(reader, 4) for reader in readers]            # one question of all, three of one
  assert [record["id"] for record in split.read([1, 2, 10])] == ["train1", "train2", "train10"]
  assert pauses == [1, 5, 20]
  split._readers = [Silent(reader, 100) for reader in readers]
  with pytest.raises(TimeoutError, match="record 1 of split train in .* can't be read now .*Stale file handle"):
    split.read([1, 2, 10])                                              # by which the command line starts again
  assert not (preparing.dataset_dir(config) / "damaged-train.jsonl").exists()
  split._readers = [Silent(reader, 5, "pread() failed: Input/output error; reading a") for reader in readers]
  assert [record["id"] for record in split.read([1])] == ["train2"]     # a bad sector stays bad
  assert (preparing.dataset_dir(config) / "damaged-train.jsonl").exists()


def test_a_store_that_does_not_answer_at_first_is_no_missing_file(source, monkeypatch):
  _, config = source
  preparing.prepare(config, log=lambda line: None)

  def away(mode):
    raise OSError(errno.ESTALE, "Stale file handle")
  monkeypatch.setattr(splits, "epath", types.SimpleNamespace(Path=lambda path: types.SimpleNamespace(open=away)))
  monkeypatch.setattr(splits.array_record_module, "ArrayRecordReader",
                      lambda *_, **__: types.SimpleNamespace(num_records=lambda: 0))
  with pytest.raises(OSError, match="Stale"):
    splits.open_split(config, "train")


def test_a_long_pass_over_the_records_gives_signs_of_life(prepared, monkeypatch):
  monkeypatch.setattr(splits, "READ_AT_ONCE", 4)
  monkeypatch.setattr(splits, "SECONDS_A_LINE", 0)
  split, lines = splits.open_split(prepared, "train"), []
  make_table = functools.partial(token_table._build, split, preparing.load_or_build_tokenizer(prepared))
  for pass_over in (split.read_reports, make_table):
    lines.clear()
    pass_over(lines.append)
    assert lines == ["reading the records of train: 4/11", "reading the records of train: 8/11",
                     "reading the records of train: 11/11"]
  assert split.read_reports() == [f"The lungs are clear. Size is {number}." for number in range(11)] == split.reports
  monkeypatch.undo()
  split.read_reports(pytest.fail)                                       # a short one is silent


def test_damaged_metadata_are_named(source):
  _, config = source
  preparing.prepare(config, log=lambda line: None)
  path = preparing.dataset_dir(config) / "dataset_info.json"
  path.write_text(path.read_text()[:-30])
  with pytest.raises(UserError, match="dataset_info.json below .* is damaged"):
    splits.open_split(config, "test")


def test_no_space_leaves_nothing_that_passes_for_whole(source, monkeypatch):
  _, config = source
  builder_class = type(datasets.make_builder(config))
  def full(self, entry):
    raise OSError(errno.ENOSPC, "No space left on device")
  with monkeypatch.context() as patched:
    patched.setattr(builder_class, "record", full)
    with pytest.raises(UserError, match="no space left for .*data_dir"):
      preparing.prepare(config, log=lambda line: None)
  assert not preparing.dataset_dir(config).exists()
  preparing.prepare(config, log=lambda line: None)


def test_no_space_for_the_tokenizer(source, monkeypatch):
  _, config = source
  preparing.prepare(config, log=lambda line: None)
  config.tokenizer.threshold = 5
  def full(self, directory):
    raise OSError(errno.ENOSPC, "No space left on device")
  monkeypatch.setattr("input_pipeline.tokenizer.WordTokenizer.save", full)
  with pytest.raises(UserError, match="no space left"):
    preparing.load_or_build_tokenizer(config)
  assert not preparing.tokenizer_dir(config).exists()
  assert not list(preparing.dataset_dir(config).glob("incomplete*"))
