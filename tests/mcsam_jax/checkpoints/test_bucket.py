"""Runs whose data, workdir and compiled programs are in a bucket, with a fake of Cloud Storage.

Orbax, TensorStore, TensorFlow, ArrayRecord and JAX's compilation cache each use a client of their own.
"""

import os
import pathlib
import signal
import subprocess
import sys

from etils import epath
import pytest

from tests.testing.cloud_storage import CloudStorage
from tests.testing.training_run import assert_same_final_state, ROOT, run_to_end, TrainingRun

BUCKET = epath.Path("gs://bucket")


@pytest.fixture
def storage(tmp_path):
  with CloudStorage(tmp_path).serving() as storage:
    yield storage


def flip_bit(storage: CloudStorage, prefix: str) -> None:
  """Flips a bit of the largest object below a prefix, without a new generation, as bit rot on a disk would."""
  largest = max((storage.objects["bucket", name] for name in storage.list_names("bucket", prefix)),
                key=lambda item: len(item.content))
  content = bytearray(largest.content)
  content[len(content) // 2] ^= 1
  largest.content = bytes(content)


def download(storage: CloudStorage, prefix: str, folder: pathlib.Path) -> pathlib.Path:
  """Writes the objects below a prefix to a folder, and returns their local path."""
  for name in storage.list_names("bucket", prefix):
    if not name.endswith("/"):                                         # marks a folder
      (folder / name).parent.mkdir(parents=True, exist_ok=True)
      (folder / name).write_bytes(storage.objects["bucket", name].content)
  return folder / prefix


SAVE = """if True:
  import jax.numpy as jnp
  from etils import epath
  from mcsam_jax.checkpoints.checkpoint import Checkpoints
  checkpoints = Checkpoints(epath.Path("gs://bucket/run"), keep_last=9)
  for step in (7, 8):
    checkpoints.save(step, {"weights": jnp.arange(4096.0) + step}, {"CIDEr": 0.1 * step})
  checkpoints.close()
"""
RESTORE = """if True:
  import jax, jax.numpy as jnp
  from etils import epath
  from mcsam_jax.checkpoints.checkpoint import Checkpoints
  here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  checkpoints = Checkpoints(epath.Path("gs://bucket/run"), keep_last=9)
  print("scores", sorted(checkpoints.scores.items()))
  state = checkpoints.restore_latest({"weights": jax.ShapeDtypeStruct((4096,), jnp.float32, sharding=here)})
  print("weights from", state["weights"][0], "steps", checkpoints.steps())
  checkpoints.close()
"""


def test_checkpoints_are_restored_from_a_bucket_and_a_damaged_one_is_renamed(storage):
  def run(program: str) -> str:
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False,
                             cwd=ROOT, env=os.environ | storage.environment | {"JAX_PLATFORMS": "cpu"})
    assert process.returncode == 0, process.stderr
    return process.stdout

  run(SAVE)
  assert {"run/checkpoints/7/manifest.json", "run/checkpoints/8/manifest.json"} <= set(storage.list_names("bucket"))
  flip_bit(storage, "run/checkpoints/8/default/")
  output = run(RESTORE)
  assert "scores [(7, {'CIDEr': 0.7" in output and "weights from 7.0 steps [7]" in output
  assert "checkpoint 8 is damaged" in output and "gs://bucket/run/checkpoints/8/default/" in output
  assert storage.list_names("bucket", "run/checkpoints/damaged-8/default/")
  assert not storage.list_names("bucket", "run/checkpoints/8/")
  assert not storage.unknown_requests


@pytest.mark.slow
def test_two_hosts_train_in_a_bucket_as_on_a_disk(storage, tmp_path):
  """In the bucket, SIGTERM and a damaged checkpoint interrupt the run, and many requests get status 503."""
  fields = {"train__keep_last": 2, "train__log_every": 10, "train__checkpoint_every": 10, "data__restricted": True}
  run_to_end(tmp_path, "", verb="prepare", num_hosts=1, **fields)
  run_to_end(tmp_path, "run", **fields)
  run_to_end(tmp_path, "run", verb="evaluate", num_hosts=1)

  in_bucket = {"environment": storage.environment}
  storage.is_busy = lambda method, path: sum(storage.request_counts.values()) % 50 == 0
  run_to_end(BUCKET, "", verb="prepare", num_hosts=1, **in_bucket, **fields)
  run = TrainingRun(BUCKET, "run", **in_bucket, **fields)
  assert run.wait_until(lambda: storage.list_names("bucket", "run/checkpoints/10/manifest.json")), run.text
  os.kill(run.process.pid, signal.SIGTERM)
  assert run.wait() == 75, run.text
  assert "stopped at step" in run.text
  output = run_to_end(BUCKET, "run", **in_bucket, **fields)
  assert "resumed at step" in output and "trained 60 steps" in output
  flip_bit(storage, "run/checkpoints/60/default/")
  output = run_to_end(BUCKET, "run", **in_bucket, **fields)
  assert "checkpoint 60 is damaged" in output and "resumed at step 50" in output
  run_to_end(BUCKET, "run", verb="evaluate", **in_bucket)

  assert_same_final_state(download(storage, "run", tmp_path / "copy"), tmp_path / "run")
  reports = "eval/test-60.jsonl"
  assert (tmp_path / "copy" / "run" / reports).read_text() == (tmp_path / "run" / reports).read_text()
  assert storage.request_counts[503] > 20 and not storage.unknown_requests
