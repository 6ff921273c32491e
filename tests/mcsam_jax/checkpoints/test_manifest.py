"""Damage of a checkpoint is found before anything is restored."""

import errno
import json
import os

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcsam_jax.checkpoints import manifest
from mcsam_jax.checkpoints.checkpoint import Checkpoints
from mcsam_jax.errors import UserError
from mcsam_jax.retryable import is_retryable

STATE = {"weights": jnp.arange(4096.0), "step": jnp.int32(7)}


def saved(workdir, *steps, **options) -> Checkpoints:
  """Returns the checkpoints of a workdir where some steps were saved, opened again."""
  checkpoints = Checkpoints(workdir, keep_last=9)
  for step in steps:
    checkpoints.save(step, STATE | {"step": jnp.int32(step)}, {}, {"examples": 8 * step, "seed": 0, "records": 5})
  checkpoints.close()
  return Checkpoints(workdir, keep_last=9, **options)


def files(workdir, step):
  return [path for path in (workdir / "checkpoints" / str(step)).rglob("*") if path.is_file()]


def flip(path, place=0.5):
  data = bytearray(path.read_bytes())
  data[int(place * len(data))] ^= 1
  path.write_bytes(bytes(data))


def test_one_flipped_byte_a_cut_and_a_missing_file_are_found_in_each_file(tmp_path):
  saved(tmp_path, 7)
  folder = epath.Path(tmp_path / "checkpoints" / "7")
  assert manifest.verify(folder) == ""
  for path in files(tmp_path, 7):
    whole = path.read_bytes()
    flip(path)
    assert path.name in manifest.verify(folder), path
    path.write_bytes(whole[:-1])
    assert path.name in manifest.verify(folder) or not whole, path
    if path.name != manifest.NAME:
      path.unlink()
      assert f"{path.name} is missing" in manifest.verify(folder)
    path.write_bytes(whole)
  assert manifest.verify(folder) == ""


def test_the_checkpoint_before_a_damaged_one_is_used_and_the_damaged_one_is_put_aside(tmp_path):
  saved(tmp_path, 7, 8, 9)
  data = max(files(tmp_path, 9), key=lambda path: path.stat().st_size)
  flip(data)
  (tmp_path / "checkpoints" / "8" / manifest.NAME).unlink()           # killed before it was finished
  with pytest.raises(UserError, match=f"checkpoint 9 is damaged: {data} has other bytes than were written"):
    Checkpoints(tmp_path, read_only=True).restore(9, STATE)
  lines = []
  checkpoints = Checkpoints(tmp_path, keep_last=9)
  state = checkpoints.restore_latest(STATE, lines.append)
  assert int(state["step"]) == 7
  np.testing.assert_array_equal(state["weights"], STATE["weights"])
  aside = tmp_path / "checkpoints" / "damaged-9"
  assert len(lines) == 3 and str(data) in lines[0] and "checkpoint 8 was not finished" in lines[1]
  assert lines[2] == f"checkpoint 9 is kept as {aside}; nothing needs it"
  assert checkpoints.manager.all_steps() == [7] and (aside / data.relative_to(tmp_path / "checkpoints" / "9")).exists()
  checkpoints.save(9, STATE, {})                                       # in the place of the damaged one
  checkpoints.close()
  assert Checkpoints(tmp_path, read_only=True).latest() == 9 and aside.is_dir()
  flip(max(files(tmp_path, 9), key=lambda path: path.stat().st_size))  # once more: the later of both is kept
  assert int(Checkpoints(tmp_path, keep_last=9).restore_latest(STATE, lines.append)["step"]) == 7
  assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["7", "damaged-9"]


def test_nothing_is_deleted_where_no_checkpoint_is_whole(tmp_path):
  checkpoints = saved(tmp_path, 7, 8)
  for step in (7, 8):
    flip(max(files(tmp_path, step), key=lambda path: path.stat().st_size))
  with pytest.raises(UserError, match="no checkpoint in .* is whole"):
    checkpoints.restore_latest(STATE, lambda line: None)
  assert sorted(checkpoints.manager.all_steps()) == [7, 8]


def test_checkpoints_older_than_manifests_are_used_with_a_line_that_says_so(tmp_path):
  saved(tmp_path, 7, 8)
  for step in (7, 8):
    (tmp_path / "checkpoints" / str(step) / manifest.NAME).unlink()
  metrics = tmp_path / "checkpoints" / "7" / "metrics"
  metrics.mkdir()
  (metrics / "metrics").write_text(json.dumps({"CIDEr": 0.5}))
  lines = []
  opened = Checkpoints(tmp_path, best_metric="CIDEr", read_only=True)
  assert opened.best() == 7 and opened.latest() == 8
  assert int(opened.restore(8, STATE, lines.append)["step"]) == 8
  assert lines == ["checkpoint 8 has no manifest.json: it can't be verified, and is used as it is"]


def test_scores_can_come_later(tmp_path):
  checkpoints = saved(tmp_path, 7, best_metric="CIDEr")
  checkpoints.save(7, STATE, {"CIDEr": 0.5})
  assert Checkpoints(tmp_path, read_only=True).scores == {7: {"CIDEr": 0.5}}
  assert manifest.verify(epath.Path(tmp_path / "checkpoints" / "7")) == ""


def test_going_on_at_another_place_in_the_data_is_refused(tmp_path):
  checkpoints = saved(tmp_path, 7)
  place = {"examples": 56, "seed": 0, "records": 5}
  checkpoints.check_data_position(7, place)
  for name in place:
    with pytest.raises(UserError, match=f"saved with {name} {place[name]}, this run has 99"):
      checkpoints.check_data_position(7, place | {name: 99})


def test_a_disk_that_does_not_answer_is_no_damage(tmp_path, monkeypatch):
  checkpoints = saved(tmp_path, 7, 8)
  whole, data = manifest._digest, max(files(tmp_path, 8), key=lambda path: path.stat().st_size)

  def silent(path, number):
    if str(path) == str(data):
      raise OSError(number, os.strerror(number))
    return whole(path)
  for number in (errno.ESTALE, errno.ETIMEDOUT):
    monkeypatch.setattr(manifest, "_digest", lambda path: silent(path, number))
    with pytest.raises(OSError, match=os.strerror(number)):
      checkpoints.restore_latest(STATE, lambda line: None)
  monkeypatch.setattr(manifest, "_digest", lambda path: silent(path, errno.EIO))       # a bad sector
  assert f"{data} can't be read" in manifest.verify(epath.Path(tmp_path / "checkpoints" / "8"))
  monkeypatch.setattr(manifest, "_digest", whole)
  assert int(checkpoints.restore_latest(STATE, lambda line: None)["step"]) == 8


def test_a_manifest_that_does_not_answer_makes_no_checkpoint_unfinished(tmp_path, monkeypatch):
  checkpoints, read = saved(tmp_path, 7, 8), epath.Path.read_bytes

  def silent(path):
    if path == epath.Path(tmp_path / "checkpoints" / "8" / manifest.NAME):
      raise OSError(errno.ESTALE, "Stale file handle")
    return read(path)
  monkeypatch.setattr(type(epath.Path(tmp_path)), "read_bytes", silent)
  monkeypatch.setattr("os.path.exists", lambda path: False)                           # what it says of a stale handle
  with pytest.raises(OSError, match="Stale"):
    checkpoints.restore_latest(STATE, lambda line: None)
  assert (tmp_path / "checkpoints" / "8").is_dir()


@pytest.mark.parametrize("verified", [True, False])
def test_what_hinders_a_restore_is_told_as_what_it_is(tmp_path, monkeypatch, verified):
  checkpoints = saved(tmp_path, 7)
  if not verified:
    (tmp_path / "checkpoints" / "7" / manifest.NAME).unlink()
  restore = lambda: checkpoints.restore_latest(STATE, lambda line: None)
  wrapped = Exception("Encountered error while reading array index")                  # as Orbax wraps TensorStore's
  wrapped.__cause__ = ValueError("UNAVAILABLE: Error reading gs://b/x")
  for error, passes in [(wrapped, True), (ValueError("ABORTED: Error reading: All 32 retry attempts failed"), True),
                        (TimeoutError("110"), True), (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 1 GB"), False)]:
    def fail(*_, **__):
      raise error
    with monkeypatch.context() as patched:
      patched.setattr(checkpoints.manager, "restore", fail)
      with pytest.raises(type(error)) as caught:
        restore()
    assert caught.value is error and is_retryable(error) == passes
  other = STATE | {"more": jnp.zeros(3)}
  with pytest.raises(UserError, match="holds another model") as caught:
    checkpoints.restore_latest(other, lambda line: None)
  assert ("damaged" in str(caught.value)) != verified and ("files are what was written" in str(caught.value)) == verified
  assert not is_retryable(caught.value) and (tmp_path / "checkpoints" / "7").is_dir()
