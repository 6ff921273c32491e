"""Restricted data and open buckets, with Cloud Storage played by a function."""

import io
import urllib.error

import pytest

from mcsam_jax.config import load_config
from mcsam_jax.distributed.bucket_access import check_bucket_private, is_public
from mcsam_jax.errors import UserError

CLOSED = (401, "")
UNSURE = (200, '{"kind": "storage#testIamPermissionsResponse"}')


class CloudStorage:
  """Answers (status, body) a URL; an exception is no network. Keeps what it was asked."""

  def __init__(self, listing=CLOSED, grants=UNSURE):
    self.listing, self.grants, self.asked, self.waited = listing, grants, [], []

  def __call__(self, url, timeout):
    assert timeout > 0 and url.startswith("https://storage.googleapis.com/storage/v1/b/")
    self.asked.append(url.split("/b/")[1])
    answer = self.grants if "testPermissions" in url else self.listing
    if isinstance(answer, list):
      answer = answer.pop(0)
    if isinstance(answer, Exception):
      raise answer
    status, body = answer
    if status != 200:
      raise urllib.error.HTTPError(url, status, "refused", {}, None)
    return io.BytesIO(body.encode())

  def sleep(self, seconds):
    self.waited.append(seconds)


@pytest.mark.parametrize("storage, public", [
    (CloudStorage(), False),
    (CloudStorage((403, ""), (403, "")), False),
    (CloudStorage((404, ""), (404, "")), False),
    (CloudStorage((200, '{"kind": "storage#objects"}')), True),
    (CloudStorage(CLOSED, (200, '{"permissions": ["storage.objects.get"]}')), True),      # to be read, not listed
    (CloudStorage([OSError("no route"), (503, ""), CLOSED]), False),
])
def test_what_a_stranger_may_do(storage, public):
  assert is_public("b", storage, storage.sleep) is public


def test_no_answer_is_no_yes():
  storage = CloudStorage(OSError("no route to host"))
  with pytest.raises(OSError, match="no route to host"):
    is_public("b", storage, storage.sleep)
  assert storage.waited == [1, 2, 4, 8]
  proxy = CloudStorage((200, "<html>log in</html>"))
  with pytest.raises(OSError):
    is_public("b", proxy, proxy.sleep)


def refuse(storage, *overrides, workdir="runs/x", name="mimic_cxr"):
  check_bucket_private(load_config(name, [f"--config.{override}" for override in overrides]), workdir, storage, storage.sleep)


def test_every_bucket_of_a_restricted_run_is_asked_about_once(monkeypatch):
  storage = CloudStorage()
  refuse(storage, "data.data_dir=gs://records/mimic", "data.source_dir=gs://source/a",
         "prepare.beam_options=--runner=DataflowRunner --temp_location=gs://beam/tmp", workdir="gs://records/runs/x")
  assert {url.split("/")[0] for url in storage.asked} == {"records", "source", "beam"}
  assert len(storage.asked) == 6


@pytest.mark.parametrize("overrides, workdir, named", [
    ([], "gs://open/runs", "the workdir"), (["data.data_dir=gs://open/data"], "runs/x", "data.data_dir")])
def test_an_open_bucket_is_refused(overrides, workdir, named):
  storage = CloudStorage((200, '{"kind": "storage#objects"}'))
  with pytest.raises(UserError) as error:
    refuse(storage, *overrides, workdir=workdir)
  assert named in str(error.value) and "gs://open" in str(error.value) and "\n" not in str(error.value)
  assert "--public-access-prevention" in str(error.value)


def test_the_cache_of_programs_is_asked_about(monkeypatch):
  import jax
  before = jax.config.jax_compilation_cache_dir
  jax.config.update("jax_compilation_cache_dir", "gs://open/xla")
  try:
    with pytest.raises(UserError, match="JAX_COMPILATION_CACHE_DIR is on gs://open"):
      refuse(CloudStorage((200, '{"kind": "storage#objects"}')))
  finally:
    jax.config.update("jax_compilation_cache_dir", before)


def test_open_data_and_local_paths_ask_nothing():
  storage = CloudStorage(AssertionError("asked"))
  refuse(storage)
  refuse(storage, "data.data_dir=gs://open/data", workdir="gs://open/runs", name="phantom")


def test_without_network_only_a_vouched_bucket_passes(monkeypatch):
  storage = CloudStorage(OSError("no route to host"))
  with pytest.raises(UserError, match="MCSAM_PRIVATE_BUCKETS=mine"):
    refuse(storage, workdir="gs://mine/runs")
  monkeypatch.setenv("MCSAM_PRIVATE_BUCKETS", "other mine")
  refuse(storage, workdir="gs://mine/runs")
  with pytest.raises(UserError, match="which everyone can read"):       # vouching is for silence, not against an answer
    refuse(CloudStorage((200, '{"kind": "storage#objects"}')), workdir="gs://mine/runs")


def test_train_and_prepare_ask_before_anything_is_written(tmp_path, monkeypatch, capsys):
  from mcsam_jax import cli
  from mcsam_jax.distributed import bucket_access
  storage = CloudStorage((200, '{"kind": "storage#objects"}'))
  monkeypatch.setattr(bucket_access, "is_public", lambda bucket, *_: is_public(bucket, storage, storage.sleep))
  for verb in (["train", "--workdir", str(tmp_path / "run")], ["prepare"]):
    assert cli.main([*verb, "--config", "mimic_cxr", "--config.data.data_dir=gs://open/data"]) == 2
    assert "gs://open, which everyone can read" in capsys.readouterr().err
  assert not list(tmp_path.iterdir())
