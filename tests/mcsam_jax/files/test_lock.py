"""Lock files exclude other processes, keep their content, and are no links."""

import errno
import os

import pytest

from mcsam_jax.errors import UserError
from mcsam_jax.files import lock


def test_a_lock_file_keeps_its_content_and_is_no_link(tmp_path):
  target, link = tmp_path / "thesis.txt", tmp_path / ".lock"
  target.write_text("three years of work")
  with lock.open_lock_file(target):
    pass
  link.symlink_to(target)
  os.mkfifo(tmp_path / "pipe")
  for path in (link, tmp_path / "pipe", tmp_path):
    with pytest.raises(UserError, match=str(path)):
      lock.acquire_lock(path, "held")
  assert target.read_text() == "three years of work"
  with lock.open_lock_file(tmp_path / "new"):
    assert (tmp_path / "new").exists()


def test_a_lock_is_held_until_it_is_closed(tmp_path):
  with lock.acquire_lock(tmp_path / "lock", "first"), pytest.raises(UserError, match="second"):
    lock.acquire_lock(tmp_path / "lock", "second")
  lock.acquire_lock(tmp_path / "lock", "third").close()


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK])
def test_a_file_system_without_locks_is_used_with_a_log_line(tmp_path, monkeypatch, number):
  def flock(file, operation):
    raise OSError(number, os.strerror(number))
  monkeypatch.setattr(lock.fcntl, "flock", flock)
  lines = []
  with lock.acquire_lock(tmp_path / "lock", "held", lines.append):
    line, = lines
    assert str(tmp_path) in line and os.strerror(number) in line
