"""A build that is killed goes on and ends with the same bytes; a part never passes for the whole; Beam gives the same."""

import fcntl
import hashlib
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
from input_pipeline.builder import build
from input_pipeline.builder.prepare import prepare
from mcsam_jax.config import load_config
from mcsam_jax.errors import UserError
from tests.testing import physionet

PREPARE = """
import sys
from input_pipeline.builder import build
from input_pipeline.builder.prepare import prepare
from mcsam_jax.config import load_config
if __name__ == "__main__":
  build.SHARD_SIZE, build.SMALL = int(sys.argv[1]), 0
  prepare(load_config("mimic_cxr", sys.argv[2:]), show=lambda line: print(line, flush=True))
"""


def overrides(source, data_dir, *more):
  return [f"--config.data.source_dir={source}", f"--config.data.data_dir={data_dir}", "--config.tokenizer.threshold=1",
          *more]


def files_below(folder):
  """Returns the digest of each file of the records, by name."""
  paths = [path for path in pathlib.Path(folder).rglob("*") if path.is_file()]
  return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def start(script, shard_size, arguments):
  return subprocess.Popen([sys.executable, script, str(shard_size), *arguments], stdout=subprocess.PIPE, text=True,
                          start_new_session=True, env={**os.environ, "PYTHONPATH": os.getcwd()})


def processes_of(session):
  """Returns the processes of a session that are still running."""
  found = subprocess.run(["ps", "-s", str(session), "-o", "stat="], capture_output=True, text=True).stdout.split()
  return [state for state in found if not state.startswith("Z")]


def undisturbed_and_killed(tmp_path, count, shard_size, kills):
  """Builds a tree of `count` studies at once, and again killed `kills` times; returns the files of both.

  A moment is drawn as a number of shards that are there, and some hundredths of a second more.
  """
  physionet.write_tree(tmp_path / "source", count)
  script = tmp_path / "prepare.py"
  script.write_text(PREPARE)
  whole = start(script, shard_size, overrides(tmp_path / "source", tmp_path / "whole"))
  whole.communicate()
  assert whole.returncode == 0
  shards = len(list((tmp_path / "whole").rglob("*.array_record-*")))
  rng, resumed = random.Random(count), 0
  moments = sorted(rng.randrange(0, shards - 4) for _ in range(kills))
  arguments = overrides(tmp_path / "source", tmp_path / "killed")
  for moment in moments:
    process = start(script, shard_size, arguments)
    while len(list((tmp_path / "killed").rglob("*.array_record-*-of-?????"))) < moment and process.poll() is None:
      time.sleep(.02)
    time.sleep(rng.uniform(0, .1))
    os.kill(process.pid, signal.SIGKILL)
    resumed += "Going on" in process.communicate()[0]
    deadline = time.monotonic() + 20
    while processes_of(process.pid) and time.monotonic() < deadline:      # the workers see that they are alone
      time.sleep(.1)
    assert not processes_of(process.pid)
    shown = list((tmp_path / "killed").rglob("dataset_info.json"))
    assert not shown or not any("unfinished" in str(path) for path in shown)
  last = start(script, shard_size, arguments)
  resumed += "Going on" in last.communicate()[0]
  assert last.returncode == 0
  return files_below(tmp_path / "whole"), files_below(tmp_path / "killed"), resumed


def test_killed_and_run_again(tmp_path):
  whole, killed, resumed = undisturbed_and_killed(tmp_path, 160, 4, 2)
  assert whole == killed and len(whole) > 40 and resumed


@pytest.mark.slow
def test_five_thousand_studies_killed_five_times(tmp_path):
  whole, killed, resumed = undisturbed_and_killed(tmp_path, 5000, 128, 5)
  assert whole == killed and resumed


def small_config(tmp_path, *more):
  physionet.write_tree(tmp_path / "source", 30)
  return load_config("mimic_cxr", overrides(tmp_path / "source", tmp_path / "data", *more))


def test_only_what_is_missing_is_written(tmp_path, monkeypatch):
  config = small_config(tmp_path)
  monkeypatch.setattr(build, "SHARD_SIZE", 5)
  written, write = [], build.write_shard

  def stop_after_three(builder, unfinished, shard, max_corrupt_records):
    if len(written) == 3:
      raise KeyboardInterrupt
    written.append(shard)
    return write(builder, unfinished, shard, max_corrupt_records)

  monkeypatch.setattr(build, "write_shard", stop_after_three)
  with pytest.raises(KeyboardInterrupt):
    build.build(config, lambda line: None)
  assert not splits.is_prepared(datasets.make_builder(config))
  monkeypatch.setattr(build, "write_shard", lambda *given: written.append(given[2]) or write(*given))
  build.build(config, lambda line: None)
  assert len(written) == len(set(written)) == 7      # 22 train, 4 val, 4 test
  assert splits.is_prepared(datasets.make_builder(config))


def test_a_build_stopped_at_its_last_step_writes_no_shard_again(tmp_path, monkeypatch):
  config = small_config(tmp_path)

  def stop(*given):
    raise KeyboardInterrupt

  with monkeypatch.context() as patched:
    patched.setattr(tfds.core.DatasetInfo, "write_to_directory", stop)
    with pytest.raises(KeyboardInterrupt):
      build.build(config, lambda line: None)
  monkeypatch.setattr(build, "write_shard", stop)
  lines = []
  build.build(config, lines.append)
  assert "Going on: 3 of 3 shards are there" in lines
  folder = pathlib.Path(datasets.make_builder(config).data_dir)
  assert splits.is_prepared(datasets.make_builder(config)) and not (folder / "plan").exists()
  (folder / "dataset_info.json").unlink()
  with pytest.raises(UserError, match="is there without its dataset_info.json"):
    build.build(config, lambda line: None)


def test_a_shard_with_faults_is_tried_again_when_its_file_has_changed(tmp_path, monkeypatch):
  config = small_config(tmp_path, "--config.prepare.max_corrupt_records=1")
  monkeypatch.setattr(build, "SHARD_SIZE", 5)
  path = next((tmp_path / "source" / "files" / physionet.make_studies(30)[1].folder).glob("*.jpg"))
  whole = path.read_bytes()
  path.write_bytes(whole[:500])
  written, write = [], build.write_shard

  def stop_after_four(*given):
    if len(written) == 4:
      raise KeyboardInterrupt
    written.append(given[2])
    return write(*given)

  monkeypatch.setattr(build, "write_shard", stop_after_four)
  with pytest.raises(KeyboardInterrupt):
    build.build(config, lambda line: None)
  waiting = []
  monkeypatch.setattr(build, "write_shard", lambda *given: waiting.append(given[2]) or stop())
  with pytest.raises(KeyboardInterrupt):
    build.build(config, lambda line: None)
  path.write_bytes(whole)
  with pytest.raises(KeyboardInterrupt):
    build.build(config, lambda line: None)
  assert waiting[0] not in written and waiting[1] in written


def test_faults_of_an_earlier_start_count(tmp_path, monkeypatch):
  config = small_config(tmp_path, "--config.prepare.max_corrupt_records=1")
  monkeypatch.setattr(build, "SHARD_SIZE", 5)
  for number in (1, 25):                                    # of shards 0 and 4 of train
    for path in (tmp_path / "source" / "files" / physionet.make_studies(30)[number].folder).glob("*.jpg"):
      path.write_bytes(b"")
  written, write = [], build.write_shard

  def stop_after_one(*given):
    if written:
      raise KeyboardInterrupt
    written.append(given[2])
    return write(*given)

  with monkeypatch.context() as patched:
    patched.setattr(build, "write_shard", stop_after_one)
    with pytest.raises(KeyboardInterrupt):
      build.build(config, lambda line: None)
  with pytest.raises(UserError, match="2 such are more than prepare.max_corrupt_records=1"):
    build.build(config, lambda line: None)


def stop():
  raise KeyboardInterrupt


def test_another_source_is_not_mixed_in(tmp_path, monkeypatch):
  config = small_config(tmp_path)
  monkeypatch.setattr(build, "SHARD_SIZE", 5)
  builder = datasets.make_builder(config)
  plan, unfinished = builder.plan(), pathlib.Path(f"{builder.data_dir}.unfinished")
  write = build.write_shard
  monkeypatch.setattr(build, "write_shard", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt))
  with pytest.raises(KeyboardInterrupt):
    build.build(config, lambda line: None)
  (unfinished / "stale.json").write_text("{}")
  plan.entries["train"].pop()
  monkeypatch.setattr(type(builder), "plan", lambda self: plan)
  monkeypatch.setattr(build, "write_shard", write)
  build.build(config, lambda line: None)
  assert not (pathlib.Path(builder.data_dir) / "stale.json").exists()


def test_two_builds_at_once_are_refused(tmp_path):
  config = small_config(tmp_path)
  folder = pathlib.Path(datasets.make_builder(config).data_dir)
  folder.parent.mkdir(parents=True)
  with open(folder.parent / f".{folder.name}.unfinished.lock", "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    with pytest.raises(UserError, match="another `mcsam prepare` writes"):
      build.build(config, lambda line: None)


def test_a_split_without_records_is_refused(tmp_path, monkeypatch):
  config = small_config(tmp_path)
  builder = datasets.make_builder(config)
  plan = builder.plan()
  plan.entries["val"].clear()
  plan.left["val"] = {"no frontal view": 4}
  monkeypatch.setattr(type(builder), "plan", lambda self: plan)
  with pytest.raises(UserError, match=r"no study is left in split val \(no frontal view: 4\)"):
    build.build(config, lambda line: None)


def test_beam_builds_the_same(tmp_path, monkeypatch):
  pytest.importorskip("apache_beam", reason="Apache Beam is absent: pip install -e '.[beam]'")
  monkeypatch.setattr(build, "SHARD_SIZE", 8)
  config = small_config(tmp_path)
  prepare(config, lambda line: None)
  by_beam = load_config("mimic_cxr", overrides(tmp_path / "source", tmp_path / "beam",
                                               "--config.prepare.beam_options=--runner=DirectRunner"))
  prepare(by_beam, lambda line: None)
  assert files_below(tmp_path / "data") == files_below(tmp_path / "beam")


def test_beam_that_is_not_installed_is_named(tmp_path, monkeypatch):
  config = small_config(tmp_path, "--config.prepare.beam_options=--runner=DirectRunner")
  monkeypatch.setitem(sys.modules, "apache_beam", None)
  with pytest.raises(UserError, match="prepare.beam_options needs Apache Beam"):
    build.build(config, lambda line: None)
