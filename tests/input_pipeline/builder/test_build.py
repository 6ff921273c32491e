"""An interrupted build resumes and gives the same bytes, incomplete data never looks complete, and Beam agrees."""

import fcntl
import hashlib
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest
import tensorflow_datasets as tfds

from input_pipeline import datasets, splits
from input_pipeline.builder import build, shards, workers
from input_pipeline.builder.prepare import prepare
from mcsam_jax.config import load_config
from mcsam_jax.errors import UserError
from tests.testing import physionet

PREPARE_SCRIPT = """
import sys
from input_pipeline.builder import shards, workers
from input_pipeline.builder.prepare import prepare
from mcsam_jax.config import load_config
if __name__ == "__main__":
  shards.SHARD_SIZE, workers.MAX_ENTRIES_IN_PROCESS = int(sys.argv[1]), 0
  prepare(load_config("mimic_cxr", sys.argv[2:]), log=lambda line: print(line, flush=True))
"""


def make_overrides(source, data_dir, *more):
  return [f"--config.data.source_dir={source}", f"--config.data.data_dir={data_dir}", "--config.tokenizer.threshold=1",
          *more]


def make_config(tmp_path, *more):
  """Returns the config of a source with 30 studies: 22 in train, 4 in val, 4 in test."""
  physionet.write_tree(tmp_path / "source", 30)
  return load_config("mimic_cxr", make_overrides(tmp_path / "source", tmp_path / "data", *more))


def hash_files(folder):
  """Returns the digest of each file below a folder, by name."""
  paths = [path for path in pathlib.Path(folder).rglob("*") if path.is_file()]
  return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def start_process(script, shard_size, arguments):
  return subprocess.Popen([sys.executable, script, str(shard_size), *arguments], stdout=subprocess.PIPE, text=True,
                          start_new_session=True, env={**os.environ, "PYTHONPATH": os.getcwd()})


def list_running_processes(session):
  """Returns the states of the processes of a session that are still running."""
  output = subprocess.run(["ps", "-s", str(session), "-o", "stat="], capture_output=True, text=True).stdout.split()
  return [state for state in output if not state.startswith("Z")]


def build_with_and_without_kills(tmp_path, num_studies, shard_size, num_kills):
  """Builds the same source once without interruption, and once killed `num_kills` times.

  Each kill comes when a random number of shards is finished, plus up to a tenth of a second.

  Returns:
    The digests of the files of both builds, and how often a build resumed.
  """
  physionet.write_tree(tmp_path / "source", num_studies)
  script = tmp_path / "prepare.py"
  script.write_text(PREPARE_SCRIPT)
  process = start_process(script, shard_size, make_overrides(tmp_path / "source", tmp_path / "uninterrupted"))
  process.communicate()
  assert process.returncode == 0
  num_shards = len(list((tmp_path / "uninterrupted").rglob("*.array_record-*")))
  rng, num_resumed = random.Random(num_studies), 0
  kill_after = sorted(rng.randrange(0, num_shards - 4) for _ in range(num_kills))
  arguments = make_overrides(tmp_path / "source", tmp_path / "killed")
  for num_finished in kill_after:
    process = start_process(script, shard_size, arguments)
    while (len(list((tmp_path / "killed").rglob("*.array_record-*-of-?????"))) < num_finished
           and process.poll() is None):
      time.sleep(.02)
    time.sleep(rng.uniform(0, .1))
    os.kill(process.pid, signal.SIGKILL)
    num_resumed += "Resuming" in process.communicate()[0]
    deadline = time.monotonic() + 20
    while list_running_processes(process.pid) and time.monotonic() < deadline:      # workers notice and exit
      time.sleep(.1)
    assert not list_running_processes(process.pid)
    metadata = list((tmp_path / "killed").rglob("dataset_info.json"))
    assert not metadata or not any("unfinished" in str(path) for path in metadata)
  process = start_process(script, shard_size, arguments)
  num_resumed += "Resuming" in process.communicate()[0]
  assert process.returncode == 0
  return hash_files(tmp_path / "uninterrupted"), hash_files(tmp_path / "killed"), num_resumed


def raise_keyboard_interrupt(*arguments):
  raise KeyboardInterrupt


def interrupt_after(monkeypatch, num_shards):
  """Lets a build be interrupted after it has written `num_shards` shards; returns the list of the written shards."""
  written, write_shard = [], shards.write_shard

  def write_or_interrupt(builder, folder, shard, max_corrupt_records):
    if len(written) == num_shards:
      raise KeyboardInterrupt
    written.append(shard)
    return write_shard(builder, folder, shard, max_corrupt_records)

  monkeypatch.setattr(workers, "write_shard", write_or_interrupt)
  return written


def interrupt_before_metadata(monkeypatch, config):
  """Builds all shards, and interrupts the build before it writes the data set's metadata."""
  with monkeypatch.context() as patched:
    patched.setattr(tfds.core.DatasetInfo, "write_to_directory", raise_keyboard_interrupt)
    with pytest.raises(KeyboardInterrupt):
      build.build(config, lambda line: None)


def test_killed_build_resumes_with_the_same_bytes(tmp_path):
  uninterrupted, killed, num_resumed = build_with_and_without_kills(tmp_path, 80, shard_size=4, num_kills=2)
  assert uninterrupted == killed and len(uninterrupted) > 20 and num_resumed


@pytest.mark.slow
def test_build_of_five_thousand_studies_killed_five_times(tmp_path):
  uninterrupted, killed, num_resumed = build_with_and_without_kills(tmp_path, 5000, shard_size=128, num_kills=5)
  assert uninterrupted == killed and num_resumed


def test_resuming_writes_only_missing_shards(tmp_path, monkeypatch):
  config = make_config(tmp_path)
  monkeypatch.setattr(shards, "SHARD_SIZE", 5)
  with monkeypatch.context() as patched:
    first = interrupt_after(patched, 3)
    with pytest.raises(KeyboardInterrupt):
      build.build(config, lambda line: None)
  assert not splits.is_prepared(datasets.make_builder(config))
  second = interrupt_after(monkeypatch, 100)
  build.build(config, lambda line: None)
  assert len(first) == 3 and len(first + second) == len(set(first + second)) == 7
  assert splits.is_prepared(datasets.make_builder(config))


def test_files_that_killed_processes_left_are_deleted_and_others_stay(tmp_path, monkeypatch):
  config = make_config(tmp_path)
  interrupt_before_metadata(monkeypatch, config)
  final = pathlib.Path(datasets.make_builder(config).data_dir)
  folder = final.parent / f"{final.name}.unfinished"
  record_file = next(folder.glob("*.array_record-*")).name
  leftovers = [f"{record_file}.part-123", ".val-00000-of-00002.json.host-123.unfinished",
               "plan/.val-00000-of-00002.json.host-123.unfinished", "plan/.digest.host-123.unfinished"]
  for name in [*leftovers, "notes.json.unfinished"]:
    (folder / name).write_bytes(b"")
  build.build(config, lambda line: None)
  names = {path.name for path in final.rglob("*")}
  assert not names & {pathlib.Path(name).name for name in leftovers} and {record_file, "notes.json.unfinished"} <= names


def test_build_stopped_before_its_metadata_writes_no_shard_again(tmp_path, monkeypatch):
  config = make_config(tmp_path)
  interrupt_before_metadata(monkeypatch, config)
  monkeypatch.setattr(workers, "write_shard", raise_keyboard_interrupt)
  lines = []
  build.build(config, lines.append)
  assert any("3 of 3 shards" in line for line in lines)
  folder = pathlib.Path(datasets.make_builder(config).data_dir)
  assert splits.is_prepared(datasets.make_builder(config)) and not (folder / "plan").exists()
  (folder / "dataset_info.json").unlink()
  with pytest.raises(UserError, match=f"{folder} .*dataset_info.json"):
    build.build(config, lambda line: None)


def test_shard_with_a_corrupt_record_is_rewritten_when_the_file_has_changed(tmp_path, monkeypatch):
  config = make_config(tmp_path, "--config.prepare.max_corrupt_records=1")
  monkeypatch.setattr(shards, "SHARD_SIZE", 5)
  path = next((tmp_path / "source" / "files" / physionet.make_studies(30)[1].folder).glob("*.jpg"))
  content = path.read_bytes()
  path.write_bytes(content[:500])
  with monkeypatch.context() as patched:
    written = interrupt_after(patched, 4)
    with pytest.raises(KeyboardInterrupt):
      build.build(config, lambda line: None)
  first_shards = []

  def record_and_interrupt(builder, folder, shard, max_corrupt_records):
    first_shards.append(shard)
    raise KeyboardInterrupt

  monkeypatch.setattr(workers, "write_shard", record_and_interrupt)
  with pytest.raises(KeyboardInterrupt):
    build.build(config, lambda line: None)
  path.write_bytes(content)
  with pytest.raises(KeyboardInterrupt):
    build.build(config, lambda line: None)
  assert first_shards[0] not in written and first_shards[1] in written


def test_corrupt_records_of_an_interrupted_build_count(tmp_path, monkeypatch):
  config = make_config(tmp_path, "--config.prepare.max_corrupt_records=1")
  monkeypatch.setattr(shards, "SHARD_SIZE", 5)
  for number in (1, 25):                                    # records of shards 0 and 4 of train
    for path in (tmp_path / "source" / "files" / physionet.make_studies(30)[number].folder).glob("*.jpg"):
      path.write_bytes(b"")
  with monkeypatch.context() as patched:
    interrupt_after(patched, 1)
    with pytest.raises(KeyboardInterrupt):
      build.build(config, lambda line: None)
  with pytest.raises(UserError, match="2 corrupt records .*prepare.max_corrupt_records=1"):
    build.build(config, lambda line: None)


def test_statistics_that_cannot_be_read_make_a_shard_unfinished(tmp_path, monkeypatch):
  config = make_config(tmp_path)
  interrupt_before_metadata(monkeypatch, config)
  folder = pathlib.Path(f"{datasets.make_builder(config).data_dir}.unfinished")
  (folder / "val-00000-of-00001.json").write_text(json.dumps({"kept": 4, "a field of another version": 1}))
  (folder / "test-00000-of-00001.json").write_text("{")
  written = interrupt_after(monkeypatch, 100)
  build.build(config, lambda line: None)
  assert sorted(shard.split for shard in written) == ["test", "val"]


def test_shards_of_another_plan_are_discarded(tmp_path, monkeypatch):
  config = make_config(tmp_path)
  monkeypatch.setattr(shards, "SHARD_SIZE", 5)
  builder = datasets.make_builder(config)
  plan, folder = builder.plan(), pathlib.Path(f"{builder.data_dir}.unfinished")
  with monkeypatch.context() as patched:
    patched.setattr(workers, "write_shard", raise_keyboard_interrupt)
    with pytest.raises(KeyboardInterrupt):
      build.build(config, lambda line: None)
  (folder / "train-00007-of-00009.json").write_text("{}")
  plan.entries["train"].pop()
  monkeypatch.setattr(type(builder), "plan", lambda self: plan)
  build.build(config, lambda line: None)
  assert not (pathlib.Path(builder.data_dir) / "train-00007-of-00009.json").exists()


def test_second_build_at_the_same_time_is_an_error(tmp_path):
  config = make_config(tmp_path)
  folder = pathlib.Path(datasets.make_builder(config).data_dir)
  folder.parent.mkdir(parents=True)
  with open(folder.parent / f".{folder.name}.unfinished.lock", "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    with pytest.raises(UserError, match=f"mcsam prepare.*{folder}.unfinished"):
      build.build(config, lambda line: None)


def test_split_without_records_is_an_error_with_the_reasons(tmp_path, monkeypatch):
  config = make_config(tmp_path)
  builder = datasets.make_builder(config)
  plan = builder.plan()
  plan.entries["val"].clear()
  plan.skipped["val"] = {"no frontal view": 4}
  monkeypatch.setattr(type(builder), "plan", lambda self: plan)
  with pytest.raises(UserError, match=r"split val .*\(no frontal view: 4\)"):
    build.build(config, lambda line: None)


def test_counts_of_another_version_are_an_error(tmp_path):
  config = make_config(tmp_path)
  prepare(config, lambda line: None)
  path = pathlib.Path(datasets.make_builder(config).data_dir) / "build.json"
  path.write_text(path.read_text().replace('"skipped"', '"left_out"'))
  with pytest.raises(UserError, match=str(path)):
    prepare(config, lambda line: None)


def test_beam_builds_the_same_files(tmp_path, monkeypatch):
  pytest.importorskip("apache_beam", reason="Apache Beam is absent: pip install -e '.[beam]'")
  monkeypatch.setattr(shards, "SHARD_SIZE", 8)
  config = make_config(tmp_path)
  prepare(config, lambda line: None)
  with_beam = load_config("mimic_cxr", make_overrides(tmp_path / "source", tmp_path / "beam",
                                                      "--config.prepare.beam_options=--runner=DirectRunner"))
  prepare(with_beam, lambda line: None)
  assert hash_files(tmp_path / "data") == hash_files(tmp_path / "beam")


def test_missing_beam_is_an_error_that_names_the_field(tmp_path, monkeypatch):
  config = make_config(tmp_path, "--config.prepare.beam_options=--runner=DirectRunner")
  monkeypatch.setitem(sys.modules, "apache_beam", None)
  with pytest.raises(UserError, match="prepare.beam_options"):
    build.build(config, lambda line: None)
