"""A home folder that is unknown costs the cache, and a path that needs it is refused by name."""

import io
import os
import pathlib
import pwd
import sys

import pytest

from mcsam_jax import config
from mcsam_jax.cli import main
from mcsam_jax.cli.main import silence_libraries
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


def test_no_library_makes_a_folder_of_that_name(homeless, monkeypatch):
  monkeypatch.delenv("KERAS_HOME", raising=False)
  silence_libraries()
  assert os.environ["KERAS_HOME"] == os.devnull


def test_report_runs_without_a_cache(homeless, monkeypatch):
  from mcsam_jax.inference import compilation_cache
  updated = {}
  monkeypatch.setattr(compilation_cache.jax.config, "update", updated.__setitem__)
  compilation_cache.enable_compilation_cache()
  assert not updated


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "ascii", "cp437"])
def test_output_survives_a_terminal_with_another_encoding(tmp_path, encoding, monkeypatch):
  """Files with a Chinese name, and with bytes that are no text, are named in the output."""
  name, raw = tmp_path / "\u80ba\u90e8-\u00e9.json", os.fsdecode(os.fsencode(tmp_path) + b"/\xff.json")
  for path in (name, pathlib.Path(raw)):
    path.write_text('{"a": "Lungs are clear.", "b": "No effusion."}')
  monkeypatch.setenv("PATH", str(tmp_path))

  def run(*arguments):
    out, err = io.BytesIO(), io.BytesIO()
    for stream, buffer in (("stdout", out), ("stderr", err)):
      monkeypatch.setattr(sys, stream, io.TextIOWrapper(buffer, encoding, "strict", write_through=True))
    return main(["score", "--labeler", "none", *arguments]), out.getvalue(), err.getvalue()

  status, out, _ = run("--predictions", str(name), "--references", raw, "--json", str(tmp_path / "\u80ba.out"))
  assert status == 0 and rb"\u80ba\u90e8-" in out and rb"\udcff" in out and b"BLEU-1" in out
  assert (tmp_path / "\u80ba.out").exists()
  status, _, err = run("--predictions", str(tmp_path / "\u80ba"), "--references", raw)
  assert status == 2 and err.count(b"\n") == 1 and rb"\u80ba" in err
