"""Only one run at a time trains in a workdir, if its file system has locks."""

import errno
import os

from etils import epath
import pytest

from mcsam_jax.checkpoints import workdir
from mcsam_jax.errors import UserError


def test_a_second_run_is_refused_until_the_first_ends(tmp_path):
  path, lines = epath.Path(tmp_path), []
  with workdir.acquire_lock(path, lines.append):
    with pytest.raises(UserError, match="another run is training in"):
      workdir.acquire_lock(path, lines.append)
  workdir.acquire_lock(path, lines.append).close()
  assert not lines


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK])
def test_a_file_system_without_locks_is_used_with_a_log_line(tmp_path, monkeypatch, number):
  def flock(file, operation):
    raise OSError(number, os.strerror(number))
  monkeypatch.setattr(workdir.fcntl, "flock", flock)
  lines = []
  with workdir.acquire_lock(epath.Path(tmp_path), lines.append):
    line, = lines
    assert str(tmp_path) in line and os.strerror(number) in line
