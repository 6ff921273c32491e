"""A damaged checkpoint is detected before anything is restored."""

import errno
import os
import re

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcsam_jax.checkpoints import manifest
from mcsam_jax.checkpoints.checkpoint import Checkpoints
from mcsam_jax.errors import UserError
from mcsam_jax.retryable import is_retryable

STATE = {"params": {"weights": jnp.arange(4096.0)}, "batch_stats": {}, "step": jnp.int32(7)}
VARIABLES = {"params": STATE["params"], "batch_stats": {}}


def save_steps(workdir, *steps, **options) -> Checkpoints:
  """Saves checkpoints in a workdir, and returns them as opened again."""
  checkpoints = Checkpoints(workdir, keep_last=9)
  for step in steps:
    checkpoints.save(step, STATE | {"step": jnp.int32(step)}, {}, {"examples": 8 * step, "seed": 0, "records": 5})
  checkpoints.close()
  return Checkpoints(workdir, keep_last=9, **options)


def list_files(workdir, step):
  return [path for path in (workdir / "checkpoints" / str(step)).rglob("*") if path.is_file()]


def flip_bit(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(bytes(data))


def test_a_flipped_bit_and_a_truncated_or_missing_file_are_found_in_every_file(tmp_path):
  save_steps(tmp_path, 7)
  folder = epath.Path(tmp_path / "checkpoints" / "7")
  assert manifest.verify(folder) == ""
  for path in list_files(tmp_path, 7):
    content = path.read_bytes()
    flip_bit(path)
    assert path.name in manifest.verify(folder), path
    path.write_bytes(content[:-1])
    assert path.name in manifest.verify(folder) or not content, path
    if path.name != manifest.NAME:
      path.unlink()
      assert path.name in manifest.verify(folder)
    path.write_bytes(content)
  assert manifest.verify(folder) == ""


def test_the_checkpoint_before_a_damaged_one_is_restored_and_the_damaged_one_is_renamed(tmp_path):
  save_steps(tmp_path, 7, 8, 9)
  data = max(list_files(tmp_path, 9), key=lambda path: path.stat().st_size)
  flip_bit(data)
  (tmp_path / "checkpoints" / "8" / manifest.NAME).unlink()           # as if killed before it was finished
  with pytest.raises(UserError, match=f"checkpoint 9 .*{data}.*: 7, 8"):
    Checkpoints(tmp_path, read_only=True).restore_variables(9, VARIABLES, ema=False)
  lines = []
  checkpoints = Checkpoints(tmp_path, keep_last=9)
  state = checkpoints.restore_latest(STATE, lines.append)
  assert int(state["step"]) == 7
  np.testing.assert_array_equal(state["params"]["weights"], STATE["params"]["weights"])
  renamed = tmp_path / "checkpoints" / "damaged-9"
  assert len(lines) == 3 and str(data) in lines[0] and "checkpoint 8" in lines[1]
  assert "checkpoint 9" in lines[2] and str(renamed) in lines[2]
  assert checkpoints.manager.all_steps() == [7]
  assert (renamed / data.relative_to(tmp_path / "checkpoints" / "9")).exists()
  checkpoints.save(9, STATE, {})                                       # replaces the damaged one
  checkpoints.close()
  assert Checkpoints(tmp_path, read_only=True).latest() == 9 and renamed.is_dir()
  flip_bit(max(list_files(tmp_path, 9), key=lambda path: path.stat().st_size))  # again: both are kept
  assert int(Checkpoints(tmp_path, keep_last=9).restore_latest(STATE, lines.append)["step"]) == 7
  assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["7", "damaged-9", "damaged-9-2"]


def test_nothing_is_deleted_if_every_checkpoint_is_damaged(tmp_path):
  checkpoints = save_steps(tmp_path, 7, 8)
  for step in (7, 8):
    flip_bit(max(list_files(tmp_path, step), key=lambda path: path.stat().st_size))
  with pytest.raises(UserError, match=re.escape(str(tmp_path / "checkpoints"))):
    checkpoints.restore_latest(STATE, lambda line: None)
  assert sorted(checkpoints.manager.all_steps()) == [7, 8]


def test_checkpoints_without_any_manifest_are_used_and_a_line_says_so(tmp_path):
  save_steps(tmp_path, 7, 8)
  for step in (7, 8):
    (tmp_path / "checkpoints" / str(step) / manifest.NAME).unlink()
  lines = []
  opened = Checkpoints(tmp_path, best_metric="CIDEr", read_only=True)
  assert opened.best() == 8 and opened.latest() == 8
  restored = opened.restore_variables(7, VARIABLES, False, lines.append)
  np.testing.assert_array_equal(restored["params"]["weights"], STATE["params"]["weights"])
  assert len(lines) == 1 and "checkpoint 7" in lines[0] and manifest.NAME in lines[0]


def test_scores_can_be_added_later(tmp_path):
  checkpoints = save_steps(tmp_path, 7, best_metric="CIDEr")
  checkpoints.save(7, STATE, {"CIDEr": 0.5})
  assert Checkpoints(tmp_path, read_only=True).scores == {7: {"CIDEr": 0.5}}
  assert manifest.verify(epath.Path(tmp_path / "checkpoints" / "7")) == ""


def test_resuming_at_another_position_in_the_data_is_refused(tmp_path):
  checkpoints = save_steps(tmp_path, 7)
  data_position = {"examples": 56, "seed": 0, "records": 5}
  checkpoints.check_data_position(7, data_position)
  for name in data_position:
    with pytest.raises(UserError, match=f"{name}={data_position[name]},.*{name}=99"):
      checkpoints.check_data_position(7, data_position | {name: 99})


def test_a_disk_that_does_not_answer_does_not_count_as_damage(tmp_path, monkeypatch):
  checkpoints = save_steps(tmp_path, 7, 8)
  compute_digest, data = manifest._compute_digest, max(list_files(tmp_path, 8), key=lambda path: path.stat().st_size)

  def fail(path, number):
    if str(path) == str(data):
      raise OSError(number, os.strerror(number))
    return compute_digest(path)
  for number in (errno.ESTALE, errno.ETIMEDOUT):
    monkeypatch.setattr(manifest, "_compute_digest", lambda path: fail(path, number))
    with pytest.raises(OSError, match=os.strerror(number)):
      checkpoints.restore_latest(STATE, lambda line: None)
  monkeypatch.setattr(manifest, "_compute_digest", lambda path: fail(path, errno.EIO))       # a bad sector
  assert str(data) in manifest.verify(epath.Path(tmp_path / "checkpoints" / "8"))
  monkeypatch.setattr(manifest, "_compute_digest", compute_digest)
  assert int(checkpoints.restore_latest(STATE, lambda line: None)["step"]) == 8


def test_a_manifest_that_can_not_be_read_does_not_make_its_checkpoint_unfinished(tmp_path, monkeypatch):
  checkpoints, open_file = save_steps(tmp_path, 7, 8), os.open

  def fail(path, flags, *mode):
    if os.fspath(path) == str(tmp_path / "checkpoints" / "8" / manifest.NAME):
      raise OSError(errno.ESTALE, "Stale file handle")
    return open_file(path, flags, *mode)
  monkeypatch.setattr("os.open", fail)
  monkeypatch.setattr("os.path.exists", lambda path: False)                           # its answer for a stale handle
  with pytest.raises(OSError, match="Stale"):
    checkpoints.restore_latest(STATE, lambda line: None)
  assert (tmp_path / "checkpoints" / "8").is_dir()


@pytest.mark.parametrize("has_manifest", [True, False])
def test_errors_of_a_restore_are_classified(tmp_path, monkeypatch, has_manifest):
  checkpoints = save_steps(tmp_path, 7)
  if not has_manifest:
    (tmp_path / "checkpoints" / "7" / manifest.NAME).unlink()
  restore = lambda: checkpoints.restore_latest(STATE, lambda line: None)
  wrapped = Exception("Encountered error while reading array index")                  # as Orbax wraps TensorStore's
  wrapped.__cause__ = ValueError("UNAVAILABLE: Error reading gs://b/x")
  for error, retryable in [(wrapped, True), (ValueError("ABORTED: Error reading: All 32 retry attempts failed"), True),
                        (TimeoutError("110"), True), (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 1 GB"), False)]:
    def fail(*_, **__):
      raise error
    with monkeypatch.context() as patched:
      patched.setattr(checkpoints.manager, "restore", fail)
      with pytest.raises(type(error)) as caught:
        restore()
    assert caught.value is error and is_retryable(error) == retryable
  other = STATE | {"more": jnp.zeros(3)}
  with pytest.raises(UserError, match="another model") as caught:
    checkpoints.restore_latest(other, lambda line: None)
  assert str(tmp_path / "checkpoints" / "7") in str(caught.value)
  assert ("damaged" in str(caught.value)) != has_manifest and ("intact" in str(caught.value)) == has_manifest
  assert not is_retryable(caught.value) and (tmp_path / "checkpoints" / "7").is_dir()
