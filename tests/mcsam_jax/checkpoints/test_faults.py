"""What a checkpoint meets: damaged manifests, other people's files, a full disk, a run that deletes it meanwhile."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcsam_jax.checkpoints import checkpoint, manifest
from mcsam_jax.checkpoints.checkpoint import Checkpoints
from mcsam_jax.errors import UserError
from tests.testing.foreign.irregular import KINDS, replace_by_irregular
from tests.testing.foreign.memory import limited_memory
from tests.testing.training_run import ROOT

HERE = jax.sharding.SingleDeviceSharding(jax.devices()[0])
ABSTRACT = {"params": {"weights": jax.ShapeDtypeStruct((64,), jnp.float32, sharding=HERE)}, "batch_stats": {}}
SCORES = {10: 0.2, 20: 0.5, 30: 0.4}


def make_state(step: int, weights=None) -> dict:
  weights = jnp.arange(64.0) + step if weights is None else weights
  return {"params": {"weights": weights}, "batch_stats": {}, "step": jnp.int32(step)}


@pytest.fixture(scope="module")
def original(tmp_path_factory):
  """Returns a workdir with checkpoints of three steps, of which 20 is the best."""
  path = tmp_path_factory.mktemp("original")
  checkpoints = Checkpoints(path, keep_last=9)
  for step, score in SCORES.items():
    checkpoints.save(step, make_state(step), {"CIDEr": score}, {"examples": step})
  checkpoints.close()
  return path


@pytest.fixture
def workdir(original, tmp_path):
  return pathlib.Path(shutil.copytree(original, tmp_path / "run"))


def open_best(workdir):
  """Restores the best checkpoint as evaluation does, and returns its step."""
  checkpoints = Checkpoints(workdir, best_metric="CIDEr", read_only=True)
  step = checkpoints.best()
  checkpoints.restore_variables(step, ABSTRACT, ema=False, log=lambda line: None)
  return step


def folder(workdir, step: int) -> pathlib.Path:
  return workdir / "checkpoints" / str(step)


def flip_bit(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)


def test_the_best_checkpoint_is_restored(workdir):
  assert open_best(workdir) == 20


@pytest.mark.parametrize("step", SCORES)
def test_a_flipped_bit_in_any_manifest_is_named_instead_of_taking_another_step(workdir, step):
  flip_bit(folder(workdir, step) / manifest.NAME)
  with pytest.raises(UserError, match=f"checkpoint {step} .*{folder(workdir, step) / manifest.NAME}") as error:
    open_best(workdir)
  others = sorted(set(SCORES) - {step})
  assert f"--step: {others[0]}, {others[1]}" in str(error.value) and "\n" not in str(error.value)
  Checkpoints(workdir, best_metric="CIDEr", read_only=True).restore_variables(others[0], ABSTRACT, ema=False)


def test_training_keeps_a_checkpoint_whose_score_is_unknown(workdir):
  flip_bit(folder(workdir, 20) / manifest.NAME)
  lines = []
  checkpoints = Checkpoints(workdir, keep_last=1, best_metric="CIDEr")
  assert int(checkpoints.restore_latest(make_state(0), lines.append)["step"]) == 30
  checkpoints.save(40, make_state(40), {"CIDEr": 0.1})
  checkpoints.close()
  assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["30", "40", "damaged-20"]
  assert any("checkpoint 20" in line and "damaged-20" in line for line in lines)


def write_manifest(path, content) -> None:
  """Writes a manifest with a right digest, whatever its content."""
  path.write_text(manifest._serialize(content) if isinstance(content, dict) else json.dumps(content))


@pytest.mark.parametrize("content, field", [
    ([], ""), ("text", ""), (None, ""), ({}, "metadata"), ({"metadata": [], "files": {}}, "metadata"),
    ({"metadata": {}, "files": []}, "files"), ({"metadata": {"scores": 3}, "files": {}}, "scores"),
    ({"metadata": {"data_position": []}, "files": {}}, "data_position"),
    ({"metadata": {}, "files": {"/dev/zero": {"bytes": 1, "sha256": ""}}}, "/dev/zero"),
    ({"metadata": {}, "files": {"../x": {"bytes": 1, "sha256": ""}}}, "../x"),
    ({"metadata": {}, "files": {"a\x1b[2J": {"bytes": 1, "sha256": ""}}}, "files"),
    ({"metadata": {}, "files": {"a": 3}}, "files.a"), ({"metadata": {}, "files": {"a": {"bytes": 1}}}, "files.a"),
    ({"metadata": {}, "files": {"a": {"bytes": "1", "sha256": ""}}}, "files.a")])
def test_a_manifest_that_nobody_wrote_names_the_field(workdir, content, field):
  path = folder(workdir, 20) / manifest.NAME
  write_manifest(path, content)
  with pytest.raises(UserError) as error:
    open_best(workdir)
  assert str(path) in str(error.value) and field in str(error.value) and str(error.value).isprintable()


@pytest.mark.parametrize("score", ["0.9", None, [1], float("nan"), float("inf"), {"x": 1}])
def test_a_score_that_is_no_number_is_no_best_score(workdir, score):
  content = json.loads((folder(workdir, 30) / manifest.NAME).read_text())
  content["metadata"]["scores"]["CIDEr"] = score
  write_manifest(folder(workdir, 30) / manifest.NAME, content)
  assert open_best(workdir) == 20


@pytest.mark.parametrize("name", [manifest.NAME, "_CHECKPOINT_METADATA", "default/_METADATA"])
@pytest.mark.parametrize("kind", KINDS)
def test_only_regular_files_are_read(workdir, name, kind):
  path = folder(workdir, 20) / name
  replace_by_irregular(path, kind)
  with limited_memory(2 ** 30), pytest.raises(UserError, match=str(path)):
    open_best(workdir)


def test_a_pipe_in_a_checkpoint_without_a_manifest(workdir, monkeypatch):
  monkeypatch.setattr(checkpoint, "DELETION_SECONDS", 0)
  for step in SCORES:
    (folder(workdir, step) / manifest.NAME).unlink()
  path = folder(workdir, 30) / "default" / "_METADATA"
  path.unlink()
  os.mkfifo(path)
  (folder(workdir, 30) / "loop").symlink_to(folder(workdir, 30))
  with pytest.raises(UserError, match=str(path)):
    open_best(workdir)


@pytest.mark.parametrize("weights", [np.full(64, np.nan, np.float32), np.full(64, -np.inf, np.float32),
                                     np.zeros(64, np.complex64), np.zeros(64, np.int32), np.zeros((8, 8), np.float32)])
def test_weights_that_are_not_finite_and_real_are_refused(tmp_path, weights):
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(10, make_state(10, jnp.asarray(weights)), {})
  checkpoints.close()
  with pytest.raises(UserError) as error:
    open_best(tmp_path)
  assert "10" in str(error.value) and str(tmp_path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("when", ["before the manifest is read", "while it is restored", "file by file"])
def test_a_run_deletes_the_checkpoint_meanwhile(workdir, monkeypatch, when):
  checkpoints = Checkpoints(workdir, best_metric="CIDEr", read_only=True)
  step = checkpoints.best()
  delete, verify = lambda: shutil.rmtree(folder(workdir, step)), manifest.verify
  if when == "before the manifest is read":
    delete()
  elif when == "while it is restored":
    monkeypatch.setattr(manifest, "verify", lambda path: (verify(path), delete())[0])
  else:
    next((folder(workdir, step) / "default" / "d").iterdir()).unlink()
    monkeypatch.setattr(checkpoint.time, "sleep", lambda seconds: delete())
  with pytest.raises(UserError, match=f"checkpoint {step} .*deleted meanwhile.*again"):
    checkpoints.restore_variables(step, ABSTRACT, ema=False, log=lambda line: None)


def test_files_that_somebody_put_into_a_checkpoint_are_kept(workdir):
  (folder(workdir, 10) / "notes.txt").write_text("the one for the paper")
  (folder(workdir, 20) / manifest.NAME).unlink()
  (folder(workdir, 20) / "figures").mkdir()
  (folder(workdir, 20) / "figures" / "loss.png").write_bytes(b"png")
  checkpoints = Checkpoints(workdir, keep_last=1)
  checkpoints.save(40, make_state(40), {})
  checkpoints.close()
  assert (folder(workdir, 10) / "notes.txt").read_text() == "the one for the paper"
  assert (folder(workdir, 20) / "figures" / "loss.png").read_bytes() == b"png"
  assert not folder(workdir, 30).exists() and folder(workdir, 40).exists()


def test_a_folder_of_somebody_that_is_named_like_a_step_is_not_deleted(workdir):
  notes = folder(workdir, 2024) / "notes.txt"
  notes.parent.mkdir()
  notes.write_text("the figures of 2024")
  with pytest.raises(UserError, match=str(notes.parent)):
    Checkpoints(workdir, keep_last=1).restore_latest(make_state(0), lambda line: None)
  assert notes.read_text() == "the figures of 2024" and folder(workdir, 30).exists()


def test_a_file_instead_of_the_folder_of_checkpoints_is_named(tmp_path):
  (tmp_path / "checkpoints").write_text("x")
  for read_only in (True, False):
    with pytest.raises(UserError, match=str(tmp_path / "checkpoints")):
      Checkpoints(tmp_path, read_only=read_only)


FULL_DISK = """if True:
  import resource, signal, sys
  from mcsam_jax.cli.exit_status import run_verb
  from mcsam_jax.cli.main import silence_libraries
  import argparse
  import jax.numpy as jnp
  from mcsam_jax.checkpoints.checkpoint import Checkpoints
  silence_libraries()
  signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  def save(args, overrides):
    checkpoints = Checkpoints(sys.argv[1])
    checkpoints.save(1, {"weights": jnp.arange(100.0)}, {})
    checkpoints.wait()
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
    checkpoints.save(2, {"weights": jnp.sin(jnp.arange(100000.0))}, {})
    checkpoints.wait()
  sys.exit(run_verb(argparse.Namespace(run=save, verb="train"), []))
"""


def test_a_file_that_can_not_be_written_is_one_line_with_the_path(tmp_path):
  """The size of files is limited here, which TensorStore reports as it reports a full disk, with another code."""
  process = subprocess.run([sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True,
                           check=False, cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"})
  line, = process.stderr.splitlines()
  assert process.returncode == 2 and line.startswith("mcsam train: checkpoint 2") and str(tmp_path) in line
  assert Checkpoints(tmp_path, read_only=True).latest() == 1


def test_a_full_disk_is_one_line_that_says_so(tmp_path, monkeypatch):
  checkpoints = Checkpoints(tmp_path)
  for error in (ValueError("RESOURCE_EXHAUSTED: Error writing \"a\" in OCDBT database: No space left on device"),
                OSError(28, "No space left on device", "x")):
    def fail(*_, error=error, **__):
      raise error
    with monkeypatch.context() as patched:
      patched.setattr(checkpoints.manager, "save", fail)
      with pytest.raises(UserError, match=f"no space left .*{tmp_path}"):
        checkpoints.save(1, make_state(1), {})
    with monkeypatch.context() as patched:
      patched.setattr(manifest, "write", fail)                    # in the thread that finishes a checkpoint
      checkpoints.save(1, make_state(1), {})
      with pytest.raises(UserError, match=f"no space left .*{tmp_path}"):
        checkpoints.wait()
    checkpoints.manager.delete(1)
