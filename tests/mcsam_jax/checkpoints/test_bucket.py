"""Runs whose data, workdir and compiled programs are in a bucket, by the libraries that would ask Cloud Storage.

Orbax, TensorStore, TensorFlow, ArrayRecord and JAX's compilation cache each have a way of their own to get there.
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


def flip_a_byte(storage: CloudStorage, prefix: str) -> None:
  """Changes the largest object below a prefix, as a disk that rots would: under the same generation."""
  found = max((storage.objects["bucket", name] for name in storage.names("bucket", prefix)),
              key=lambda found: len(found.content))
  middle = len(found.content) // 2
  found.content = found.content[:middle] + bytes([found.content[middle] ^ 1]) + found.content[middle + 1:]


def downloaded(storage: CloudStorage, prefix: str, folder: pathlib.Path) -> pathlib.Path:
  for name in storage.names("bucket", prefix):
    if not name.endswith("/"):                                         # that stands for a folder
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


def test_a_checkpoint_goes_into_a_bucket_and_comes_back_and_a_damaged_one_is_put_aside(storage):
  def run(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False,
                          cwd=ROOT, env=os.environ | storage.environment | {"JAX_PLATFORMS": "cpu"})
    assert done.returncode == 0, done.stderr
    return done.stdout
  run(SAVE)
  assert {"run/checkpoints/7/manifest.json", "run/checkpoints/8/manifest.json"} <= set(storage.names("bucket"))
  flip_a_byte(storage, "run/checkpoints/8/default/")
  said = run(RESTORE)
  assert "scores [(7, {'CIDEr': 0.7" in said and "weights from 7.0 steps [7]" in said
  assert "checkpoint 8 is damaged, the one before it is used: gs://bucket/run/checkpoints/8/default/" in said
  assert storage.names("bucket", "run/checkpoints/damaged-8/default/") and not storage.names("bucket",
                                                                                            "run/checkpoints/8/")
  assert not storage.unknown


@pytest.mark.slow
def test_two_hosts_train_in_a_bucket_as_on_a_disk(storage, tmp_path):
  """Interrupted there, by SIGTERM and by a damaged checkpoint, with a bucket that often has no time."""
  fields = {"train__keep_last": 2, "train__log_every": 10, "train__checkpoint_every": 10, "data__restricted": True}
  run_to_end(tmp_path, "", verb="prepare", num_hosts=1, **fields)
  run_to_end(tmp_path, "run", **fields)
  run_to_end(tmp_path, "run", verb="evaluate", num_hosts=1)

  there = {"environment": storage.environment}
  storage.busy = lambda method, path: sum(storage.asked.values()) % 50 == 0
  run_to_end(BUCKET, "", verb="prepare", num_hosts=1, **there, **fields)
  run = TrainingRun(BUCKET, "run", **there, **fields)
  assert run.wait_until(lambda: storage.names("bucket", "run/checkpoints/10/manifest.json")), run.text
  os.kill(run.process.pid, signal.SIGTERM)
  assert run.wait() == 75, run.text
  assert "stopped at step" in run.text
  said = run_to_end(BUCKET, "run", **there, **fields)
  assert "resumed at step" in said and "trained 60 steps" in said
  flip_a_byte(storage, "run/checkpoints/60/default/")
  said = run_to_end(BUCKET, "run", **there, **fields)
  assert "checkpoint 60 is damaged" in said and "resumed at step 50" in said
  run_to_end(BUCKET, "run", verb="evaluate", **there)

  assert_same_final_state(downloaded(storage, "run", tmp_path / "copy"), tmp_path / "run")
  reports = "eval/test-60.jsonl"
  assert (tmp_path / "copy" / "run" / reports).read_text() == (tmp_path / "run" / reports).read_text()
  assert storage.asked[503] > 20 and not storage.unknown
