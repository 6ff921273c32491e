"""Only one run at a time trains in a workdir."""

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
