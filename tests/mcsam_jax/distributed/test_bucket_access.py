"""Restricted data is kept out of public buckets; a fake `urlopen` answers for Cloud Storage."""

import io
import urllib.error

import pytest

from mcsam_jax.config import load_config
from mcsam_jax.distributed.bucket_access import check_bucket_private, is_public
from mcsam_jax.errors import UserError

DENIED = (401, "")
NO_PERMISSIONS = (200, '{"kind": "storage#testIamPermissionsResponse"}')


class FakeUrlopen:
  """Answers URLs with (status, body) or raises an exception, and records URLs and pauses."""

  def __init__(self, listing=DENIED, grants=NO_PERMISSIONS):
    self.listing, self.grants, self.urls, self.pauses = listing, grants, [], []

  def __call__(self, url, timeout):
    assert timeout > 0 and url.startswith("https://storage.googleapis.com/storage/v1/b/")
    self.urls.append(url.split("/b/")[1])
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
    self.pauses.append(seconds)


@pytest.mark.parametrize("storage, public", [
    (FakeUrlopen(), False),
    (FakeUrlopen((403, ""), (403, "")), False),
    (FakeUrlopen((404, ""), (404, "")), False),
    (FakeUrlopen((200, '{"kind": "storage#objects"}')), True),
    (FakeUrlopen(DENIED, (200, '{"permissions": ["storage.objects.get"]}')), True),      # readable, but not listable
    (FakeUrlopen([OSError("no route"), (503, ""), DENIED]), False),
])
def test_a_bucket_is_public_if_a_stranger_may_list_or_read_it(storage, public):
  assert is_public("b", storage, storage.sleep) is public


def test_a_missing_answer_is_an_error():
  storage = FakeUrlopen(OSError("no route to host"))
  with pytest.raises(OSError, match="no route to host"):
    is_public("b", storage, storage.sleep)
  assert storage.pauses == [1, 2, 4, 8]
  proxy = FakeUrlopen((200, "<html>log in</html>"))
  with pytest.raises(OSError):
    is_public("b", proxy, proxy.sleep)


def check(storage, *overrides, workdir="runs/x", name="mimic_cxr"):
  config = load_config(name, [f"--config.{override}" for override in overrides])
  check_bucket_private(config, workdir, storage, storage.sleep)


def test_every_bucket_of_a_restricted_run_is_checked_once(monkeypatch):
  storage = FakeUrlopen()
  check(storage, "data.data_dir=gs://records/mimic", "data.source_dir=gs://source/a",
         "prepare.beam_options=--runner=DataflowRunner --temp_location=gs://beam/tmp", workdir="gs://records/runs/x")
  assert {url.split("/")[0] for url in storage.urls} == {"records", "source", "beam"}
  assert len(storage.urls) == 6


@pytest.mark.parametrize("overrides, workdir, named", [
    ([], "gs://open/runs", "the workdir"), (["data.data_dir=gs://open/data"], "runs/x", "data.data_dir")])
def test_a_public_bucket_is_refused(overrides, workdir, named):
  storage = FakeUrlopen((200, '{"kind": "storage#objects"}'))
  with pytest.raises(UserError) as error:
    check(storage, *overrides, workdir=workdir)
  assert named in str(error.value) and "gs://open" in str(error.value) and "\n" not in str(error.value)
  assert "--public-access-prevention" in str(error.value)


def test_the_compilation_cache_is_checked(monkeypatch):
  import jax
  before = jax.config.jax_compilation_cache_dir
  jax.config.update("jax_compilation_cache_dir", "gs://open/xla")
  try:
    with pytest.raises(UserError, match="JAX_COMPILATION_CACHE_DIR.*gs://open"):
      check(FakeUrlopen((200, '{"kind": "storage#objects"}')))
  finally:
    jax.config.update("jax_compilation_cache_dir", before)


def test_nothing_is_asked_about_open_data_and_local_paths():
  storage = FakeUrlopen(AssertionError("asked"))
  check(storage)
  check(storage, "data.data_dir=gs://open/data", workdir="gs://open/runs", name="phantom")


def test_without_network_only_a_trusted_bucket_passes(monkeypatch):
  storage = FakeUrlopen(OSError("no route to host"))
  with pytest.raises(UserError, match="MCSAM_PRIVATE_BUCKETS=mine"):
    check(storage, workdir="gs://mine/runs")
  monkeypatch.setenv("MCSAM_PRIVATE_BUCKETS", "other mine")
  check(storage, workdir="gs://mine/runs")
  with pytest.raises(UserError, match="gs://mine, which everyone"):       # trust replaces only a missing answer
    check(FakeUrlopen((200, '{"kind": "storage#objects"}')), workdir="gs://mine/runs")


def test_train_and_prepare_check_before_anything_is_written(tmp_path, monkeypatch, capsys):
  from mcsam_jax import cli
  from mcsam_jax.distributed import bucket_access
  storage = FakeUrlopen((200, '{"kind": "storage#objects"}'))
  monkeypatch.setattr(bucket_access, "is_public", lambda bucket, *_: is_public(bucket, storage, storage.sleep))
  for verb in (["train", "--workdir", str(tmp_path / "run")], ["prepare"]):
    assert cli.main([*verb, "--config", "mimic_cxr", "--config.data.data_dir=gs://open/data"]) == 2
    assert "gs://open, which everyone can read" in capsys.readouterr().err
  assert not list(tmp_path.iterdir())
