"""A home folder that is unknown costs the cache, and a path that needs it is refused by name."""

import os
import pathlib
import pwd
import subprocess
import sys

import pytest

from mcsam_jax import config
from mcsam_jax.errors import UserError
from mcsam_jax.files.home import expand_home, find_cache_folder


@pytest.fixture
def homeless(monkeypatch, tmp_path):
  """A user id without a name, in an environment without HOME."""
  def find_no_user(uid):
    raise KeyError(uid)

  monkeypatch.setattr(pwd, "getpwuid", find_no_user)
  for name in ("HOME", "XDG_CACHE_HOME"):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.chdir(tmp_path)


def test_a_known_home_is_used(monkeypatch, tmp_path):
  monkeypatch.setenv("HOME", str(tmp_path))
  monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
  assert pathlib.Path(expand_home("~/a b")) == tmp_path / "a b" and str(expand_home("x/~")) == "x/~"
  assert pathlib.Path(config.absolute_path("~/a")) == tmp_path / "a"
  assert pathlib.Path(find_cache_folder() or "") == tmp_path / ".cache"
  assert str(expand_home("gs://bucket/~x")) == "gs://bucket/~x"


def test_an_unknown_home_is_named(homeless):
  assert find_cache_folder() is None
  for expand in (expand_home, config.absolute_path):
    with pytest.raises(UserError, match="~/runs.*HOME"):
      expand("~/runs")
    with pytest.raises(UserError, match="~no_such_user"):
      expand("~no_such_user/runs")
  pathlib.Path("~odd name").write_text("")
  assert str(expand_home("~odd name")) == "~odd name"                   # a file may be called that
  with pytest.raises(UserError, match="~/data"):
    config.load_config("phantom", ["--config.data.data_dir=~/data"])


def test_report_runs_without_a_cache(homeless, monkeypatch):
  from mcsam_jax.evaluation import report
  updated = {}
  monkeypatch.setattr(report.jax.config, "update", updated.__setitem__)
  report.enable_compilation_cache()
  assert not updated


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "ascii", "cp437"])
def test_output_survives_a_terminal_with_another_encoding(tmp_path, encoding):
  """Files with a Chinese name, and with bytes that are no text, are named in the output."""
  name = tmp_path / "\u80ba\u90e8-\u00e9.json"
  name.write_text('{"a": "Lungs are clear.", "b": "No effusion."}')
  raw = os.fsencode(tmp_path) + b"/\xff.json"
  pathlib.Path(os.fsdecode(raw)).write_bytes(name.read_bytes())
  environment = {**os.environ, "PYTHONIOENCODING": encoding, "PATH": str(tmp_path)}
  result = subprocess.run(
      [sys.executable, "-m", "mcsam_jax", "score", "--predictions", name, "--references", raw, "--labeler", "none",
       "--json", tmp_path / "\u80ba.out"], env=environment, capture_output=True, check=False)
  assert result.returncode == 0, result.stderr
  assert rb"\u80ba\u90e8-" in result.stdout and rb"\udcff" in result.stdout and b"BLEU-1" in result.stdout
  assert (tmp_path / "\u80ba.out").exists()
  environment["PYTHONIOENCODING"] = f"{encoding}:strict"
  result = subprocess.run([sys.executable, "-m", "mcsam_jax", "score", "--predictions", tmp_path / "\u80ba",
                           "--references", raw], env=environment, capture_output=True, check=False)
  assert result.returncode == 2 and result.stderr.count(b"\n") == 1 and rb"\u80ba" in result.stderr
